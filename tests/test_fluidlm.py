"""What is special to fluidlm.py: the scan and the filters two ways, the pump, halting, the state that never grows."""
import math
import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.checkpoint import load_model

m = load_model("fluidlm")
LENGTHS = [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257]
NAMES = ["x", "dt", "A", "B", "C", "D", "h0"]


def scan_inputs(L, B=2, D=6, S=3, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g).to(dtype)
    dt, A = torch.rand(B, L, D, generator=g).to(dtype) + 0.01, -4 * torch.rand(D, S, generator=g).to(dtype) - 0.1
    return [draw(B, L, D), dt, A, draw(B, L, S), draw(B, L, S), draw(D), draw(B, S, D)]


def scan_loop(x, dt, A, B, C, D, h):
    """The same over unbind, for autograd to differentiate."""
    ys = []
    for xt, dtt, Bt, Ct in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1)):
        h = (dtt.unsqueeze(1) * A.t()).exp() * h + (dtt * xt).unsqueeze(1) * Bt.unsqueeze(2)
        ys.append((Ct.unsqueeze(2) * h).sum(1) + D * xt)
    return torch.stack(ys, 1), h


def with_gradients(scan, inputs, seed=1):
    """[y, last state, seven gradients] of a random linear function of both outputs."""
    leaves = [v.clone().requires_grad_() for v in inputs]
    y, h = scan(*leaves)
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(v.shape, generator=g).to(v.dtype) for v in (y, h)]
    (y * weights[0]).sum().add((h * weights[1]).sum()).backward()
    return [y.detach(), h.detach(), *(v.grad for v in leaves)]


def relative(a, b):
    return (a - b).abs().max().item() / max(b.abs().max().item(), 1e-300)


@pytest.mark.parametrize("L", LENGTHS)
def test_scan_two_ways(L):
    inputs = scan_inputs(L)
    ref = m.selective_scan_ref(*(v.numpy() for v in inputs))
    fast, loop = with_gradients(m.selective_scan, inputs), with_gradients(scan_loop, inputs)
    for name, a, b in zip(("y", "last state"), fast, map(torch.tensor, ref)):
        assert relative(a, b) < 1e-12, f"{name}: {relative(a, b):.1e} relative to the NumPy loop"
    for name, a, b in zip(["y", "last state", *NAMES], fast, loop):
        assert relative(a, b) < 1e-9, f"{name}: {relative(a, b):.1e} relative to the loop"
    for a, b in zip(m.selective_scan(*inputs[:6]), m.selective_scan_ref(*(v.numpy() for v in inputs[:6]))):
        assert abs(a.numpy() - b).max() < 1e-12, "without h0"


@pytest.mark.parametrize("L, B, D, S", [(70, 16, 128, 16), (65, 40, 192, 16), (130, 1, 8, 1)])
def test_scan_in_float32_and_at_other_chunk_lengths(L, B, D, S):
    inputs = scan_inputs(L, B, D, S, torch.float32)
    fast, loop = with_gradients(m.selective_scan, inputs), with_gradients(scan_loop, [v.double() for v in inputs])
    for name, a, b in zip(["y", "last state", *NAMES], fast, loop):
        assert relative(a.double(), b) < 2e-5, f"{name}: {relative(a.double(), b):.1e}"


def test_scan_gradcheck():
    assert torch.autograd.gradcheck(m.selective_scan, [v.requires_grad_() for v in scan_inputs(5, 2, 3, 2)])
    inputs = scan_inputs(67, 1, 1, 2)                            # over the border of two chunks
    assert torch.autograd.gradcheck(m.selective_scan, [v.requires_grad_() for v in inputs])


def test_scan_checks_can_fail():
    inputs, right = scan_inputs(33), with_gradients(m.selective_scan, scan_inputs(33))

    def late(x, dt, A, B, C, D, h0):                             # a decay one token too late
        y, h = m.selective_scan(x, dt.roll(1, 1), A, B, C, D, h0)
        return y, h

    def no_skip(x, dt, A, B, C, D, h0):
        return m.selective_scan(x, dt, A, B, C, 0 * D, h0)

    for fault in (late, no_skip):
        assert relative(with_gradients(fault, inputs)[0], right[0]) > 1e-3
    assert relative(with_gradients(no_skip, inputs)[2], right[2]) > 1e-3, "a missing term of the gradient shows"


def test_scan_at_extreme_time_steps():
    """dt from 1e-4 to 20 with A down to -16: decays underflow to nothing, never to NaN."""
    L = 257
    inputs = [v.float() for v in scan_inputs(L, 1, 4, 16)]
    inputs[1] = torch.logspace(-4, math.log10(20), L)[None, :, None].expand(1, L, 4).clone()
    inputs[2] = -torch.arange(1.0, 17).repeat(4, 1)
    for flip in (False, True):
        inputs[1] = inputs[1].flip(1) if flip else inputs[1]
        fast, loop = with_gradients(m.selective_scan, inputs), with_gradients(scan_loop, [v.double() for v in inputs])
        for name, a, b in zip(["y", "last state", *NAMES], fast, loop):
            assert torch.isfinite(a).all(), name
            assert relative(a.double(), b) < 2e-5, f"{name}: {relative(a.double(), b):.1e}"


def test_scan_closed_form():
    """Constant inputs: h_t = dt B x (1 - q^t) / (1 - q) + q^t h0, q = exp(dt A)."""
    dt, A, B, C, D, x, h0, t = 0.3, -0.7, 1.3, 0.9, 0.4, 1.1, 2.0, np.arange(1, 101)
    full = lambda *shape, v: np.full(shape, v)
    ref, _ = m.selective_scan_ref(full(1, 100, 1, v=x), full(1, 100, 1, v=dt), full(1, 1, v=A), full(1, 100, 1, v=B),
                                  full(1, 100, 1, v=C), full(1, v=D), full(1, 1, 1, v=h0))
    q = math.exp(dt * A)
    h = dt * B * x * (1 - q ** t) / (1 - q) + q ** t * h0
    assert abs(ref[0, :, 0] - (C * h + D * x)).max() < 1e-12


def test_scan_keeps_little():
    """What the backward pass needs besides the inputs: a tenth of what the loop keeps, or less."""
    def kept(scan):
        inputs, sizes = [v.requires_grad_() for v in scan_inputs(256, 4, 32, 16, torch.float32)], {}

        def keep(v):
            sizes[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
            return v                                     # and so stays alive: no other tensor takes its address
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
            y, _ = scan(*inputs)
        return sum(sizes.values()) - sum(v.numel() * 4 for v in inputs)
    assert kept(m.selective_scan) * 10 < kept(scan_loop)


def test_scan_is_faster_than_the_loop(quiet):
    """5x at 1,024 tokens is what experiments/speed.py prints on a quiet machine; here any less than 2x is a fault."""
    def seconds(scan, inputs):
        began = time.process_time()
        with_gradients(scan, inputs)
        return time.process_time() - began
    inputs = scan_inputs(512, 4, 256, 16, torch.float32)
    rounds = [[seconds(scan, inputs) for scan in (m.selective_scan, scan_loop)] for _ in range(3)]
    fast, loop = map(min, zip(*rounds))
    assert loop > 2 * fast, f"{loop / fast:.1f}x"


def laplacian(x, D, kind):
    """The torch filter on (T, C)."""
    return m.taps(F.pad(x, (0, 0, 32, 0))[None], *m.stencil(D, kind), len(x))[0]


@pytest.mark.parametrize("kind", ["seed", "upwind"])
@pytest.mark.parametrize("L", LENGTHS)
def test_laplacian_two_ways(L, kind):
    g = torch.Generator().manual_seed(L)
    x, D = torch.randn(L, 5, generator=g, dtype=torch.float64), torch.rand(3, 5, generator=g, dtype=torch.float64)
    error = abs(laplacian(x, D, kind).numpy() - m.laplacian_ref(x.numpy(), D.numpy(), kind)).max()
    assert error < 1e-12, f"{error:.1e}"
    late = m.laplacian_ref(np.roll(x.numpy(), 1, 0), D.numpy(), kind)
    assert L < 3 or abs(laplacian(x, D, kind).numpy() - late).max() > 1e-3, "a delay of one token would show"


def test_laplacian_of_lines_and_waves():
    D, t = torch.rand(3, 1, dtype=torch.float64), torch.arange(100, dtype=torch.float64)[:, None]
    assert laplacian(2 + 0.5 * t, D, "seed")[32:].abs().max() < 1e-12
    assert laplacian(2 + 0 * t, D, "upwind")[16:].abs().max() < 1e-12
    for kind in ("seed", "upwind"):
        for w in np.linspace(0.05, math.pi, 64):
            y = torch.complex(laplacian((w * t).cos(), D, kind), laplacian((w * t).sin(), D, kind))[-1, 0].item()
            z = [np.exp(-1j * w * d) for d in (1, 4, 16)]
            H = sum(D[i, 0].item() * ((1 - z[i]) ** 2 if kind == "seed" else z[i] - 1) for i in range(3))
            assert abs(y / np.exp(99j * w) - H) < 1e-12
            assert abs(m.gain(np.array([w]), D.numpy(), kind)[0, 0] - H) < 1e-12
            if kind == "upwind" and D.sum() <= 1:
                assert abs(1 + H) <= 1 + 1e-12, "upwind diffusion never amplifies"


def test_taps_gradcheck():
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: m.taps(x, w, (0, 1, 3), 4), (draw(2, 9, 3), draw(3, 3)))
    assert torch.autograd.gradcheck(lambda x, w: m.taps(x, w, (2, 0), 1), (draw(2, 3, 2), draw(2, 2)))
    x = draw(2, 3, 2)
    assert torch.autograd.gradcheck(m.rms_norm, (x,))


def test_pump():
    """At the last token the causal pump is the seed's formula; before it, the seed's has seen the future."""
    rng = np.random.default_rng(0)
    args = [rng.normal(size=s) for s in ((9, 4), (9, 4), (9, 4), (4, 4), (4, 4), (4,))]
    ours, seed = m.pump_ref(*args), m.pump_ref(*args, causal=False)
    assert abs(ours - seed)[-1].max() < 1e-12 and abs(ours - seed)[:-1].max() > 1e-3
    R, u, h, W_x, W_h, theta = args
    rms, sigmoid = lambda v: v / np.sqrt((v * v).mean() + 1e-6), lambda v: 1 / (1 + np.exp(-v))
    by_hand = sigmoid(theta) * h[-1] + sigmoid(W_x @ rms(u.mean(0)) + W_h @ rms(h[-1])) * np.tanh(R.mean(0))
    assert abs(seed[-1] - by_hand).max() < 1e-12


def awake(**changes):
    torch.manual_seed(0)
    sizes = dict(vocab_size=23, block_size=12, n_layer=2, n_steps=2, n_embd=16)
    model = m.Model(m.Config(**sizes | changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def tokens(shape, seed=1):
    return torch.randint(23, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_broadcast_pump_leaks():
    """The seed's pump, kept for one lesson: the test that every other setting passes must catch it."""
    idx = tokens((2, 30))
    edited = torch.cat((idx[:, :13], tokens((2, 17), 2)), 1)
    for pump, low, high in (("causal", 0, 1e-12), ("broadcast", 1e-4, 10)):
        model = awake(pump=pump)
        edit = (model(edited)[0] - model(idx)[0])[:, :13].abs().max().item()
        length = (model(idx[:, :13])[0] - model(idx)[0][:, :13]).abs().max().item()
        assert low <= edit <= high and low <= length <= high, f"{pump}: {edit:.1e}, {length:.1e}"


@torch.no_grad()
def test_broadcast_pump_streams():
    """Token by token there is no future to see: then the seed's pump is the causal one, with all the tokens so far."""
    idx, logits = tokens((2, 9)), {}
    for pump in ("causal", "broadcast"):
        model, state = awake(pump=pump), {}
        logits[pump] = torch.cat([model(chunk, state=state)[0] for chunk in idx.split(1, 1)], 1)
    assert (logits["broadcast"] - logits["causal"]).abs().max() < 1e-12


HALTING = [dict(n_steps=6, epsilon=0.25), dict(n_steps=5, epsilon=0.15, patience=1, min_steps=1),
           dict(n_steps=6, epsilon=0.25, longconv=True, position=0.7, laplacian="upwind", local_window=5)]


@pytest.mark.parametrize("changes", HALTING)
@torch.no_grad()
def test_halting_is_causal_exact_and_saves_steps(changes):
    model, idx = awake(**changes), tokens((2, 45))
    logits = model(idx)[0]
    c, steps = model.config, model.steps
    assert steps.shape == (2, 2, 45) and len(steps.unique()) > 1, "some tokens halt, some do not"
    assert c.min_steps <= steps.min() and c.patience <= steps.min() and steps.max() <= c.n_steps
    ref = m.forward_ref({k: v.numpy() for k, v in model.state_dict().items()}, idx.numpy(), c)
    assert abs(logits.numpy() - ref).max() / abs(ref).max() < 1e-10
    edited = torch.cat((idx[:, :13], tokens((2, 32), 2)), 1)
    assert (model(edited)[0] - logits)[:, :13].abs().max() < 1e-12
    assert (model(idx[:, :13])[0] - logits[:, :13]).abs().max() < 1e-12
    for seed in range(3):
        rng, state, parts, seen, at = random.Random(seed), {}, [], [], 0
        while at < 45:
            n = 1 if seed == 0 else min(45 - at, rng.choice((1, 1, 2, 5, 13)))
            parts.append(model(idx[:, at:at + n], state=state)[0])
            seen.append(model.steps)
            at += n
        assert (torch.cat(parts, 1) - logits).abs().max() < 1e-9
        assert torch.equal(torch.cat(seen, 2), steps), "a stream takes the same steps"


@torch.no_grad()
def test_halted_tokens_skip_the_reaction():
    model, idx, rows = awake(n_steps=6, epsilon=0.25), tokens((1, 40)), []
    for block in model.blocks:
        block.reaction.register_forward_hook(lambda part, args, y: rows.append(y.shape[:-1].numel()))
    model(idx)
    assert sum(rows) == model.steps.sum() < 2 * 6 * 40
    model.train()(idx)
    assert (model.steps == 6).all(), "no halting while training"


@torch.no_grad()
def test_steps_that_do_not_halt_change_nothing():
    idx, never, always = tokens((2, 20)), awake(n_steps=5), awake(n_steps=5, epsilon=1e9, min_steps=1, patience=1)
    assert torch.equal(awake(n_steps=5, epsilon=1e-12)(idx)[0], never(idx)[0])
    never.config.n_steps = 1                                     # the Config is shared with the blocks
    assert (always(idx)[0] - never(idx)[0]).abs().max() < 1e-12


@torch.no_grad()
def test_state_is_constant_and_means_do_not_drift():
    """100,000 tokens in float32: not a byte more than after one, and the running means are those of float64."""
    torch.manual_seed(0)
    model = m.Model(m.Config(vocab_size=23, n_layer=1, n_steps=2, n_embd=8, d_state=2)).eval()
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    idx = tokens((1, 100_000), 3)

    def size(state):
        if isinstance(state, dict):
            return sum(map(size, state.values()))
        return state.untyped_storage().nbytes() if isinstance(state, torch.Tensor) else 0

    state, exact = {}, {}
    model(idx[:, :1], state=state)
    first = size(state)
    for chunk in idx[:, 1:].split(3333, 1):
        model(chunk, state=state)
    assert size(state) == first and state["n"] == 100_000
    model.double()(idx, state=exact)
    for k in range(2):
        for key in ("mean_u", "mean_R"):
            error = (state[0][k][key] - exact[0][k][key]).abs().max().item()
            assert error < 1e-5, f"step {k}, {key}: {error:.1e}"


def test_cost_per_token_is_flat(quiet):
    """Training at a constant number of tokens per step: 2 sequences of 4,096 tokens cost what 32 of 256 cost, to within
    25% on a quiet machine. The bound leaves room for a busy one; attention's cost would grow tenfold."""
    torch.manual_seed(0)
    model = m.Model(m.Config(vocab_size=64, n_layer=1, n_steps=1, n_embd=128, d_state=16))
    best = {256: math.inf, 4096: math.inf}
    for _ in range(4):
        for N in best:
            idx = torch.randint(64, (8192 // N, N))
            began = time.process_time()
            model(idx, idx)[1].backward()
            best[N] = min(best[N], time.process_time() - began)
    assert best[4096] < 1.5 * best[256], f"{best[4096] / best[256]:.2f}"


def test_training_loss_has_the_seeds_terms():
    idx = tokens((4, 20))
    weights = dict(w_eq=0.0, w_grad=0.0, w_gate=0.0)
    plain = awake(**weights)
    for term in weights:
        model = awake(**weights | {term: 0.5})
        assert abs(model(idx, idx)[1] - plain(idx, idx)[1]) < 1e-12, "evaluation is the plain cross-entropy"
        model.train()
        extra = []
        for model.progress in (0.0, 0.05, 0.1, 1.0):
            extra.append((model(idx, idx)[1] - plain(idx, idx)[1]).item())
        ramp = (1, 1, 1, 1) if term == "w_gate" else (0, 0.5, 1, 1)
        assert extra[-1] > 0 and np.allclose(extra, np.array(ramp) * extra[-1]), (term, extra)
    short = awake(w_grad=1.0).train()
    assert torch.isfinite(short(idx[:, :2], idx[:, :2])[1]), "two tokens have no second difference"


def test_seed_preset_has_the_seeds_parameters():
    """The components that the seed's table and its equations agree on; for SwiGLU see table()."""
    with torch.device("meta"):
        model = m.Model(m.Config(vocab_size=50257, **m.PRESETS["seed"]))
    count = lambda *parts: sum(p.numel() for k, p in model.named_parameters() if any(part in k for part in parts)) / 1e6
    for parts, seed, slack in ((("wte",), 25.7, 0.05), (("ssm",), 3.4, 0.05), (("gate_x", "gate_h"), 2.1, 0.01),
                               (("local",), 1.05, 0.01), (("longconv", "mix"), 1.2, 0.1), (("reaction",), 8.65, 0.01)):
        assert abs(count(*parts) - seed) <= slack, (parts, count(*parts))
    c, block = model.config, m.Block(m.Config(dt=0.1, dt_max=0.2, n_layer=1))
    assert (c.n_layer, c.n_embd, c.n_steps, c.epsilon) == (4, 512, 8, 0.05)
    assert abs(block.step().item() - 0.1) < 1e-6
    for gate, dt in ((-99, 0.001), (99, 0.2)):                   # dt = 0.001 + 0.199 sigmoid(dt_gate)
        torch.nn.init.constant_(block.dt_gate, gate)
        assert abs(block.step().item() - dt) < 1e-6
    assert (F.softplus(block.diff).mean(1) - torch.tensor([0.15, 0.10, 0.08])).abs().max() < 1e-6
    assert abs(torch.sigmoid(block.theta) - 0.97).max() < 1e-6


@pytest.mark.parametrize("wrong", [dict(n_embd=30, longconv=True), dict(dt=3.0), dict(dt=0.001), dict(n_steps=0)])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        m.Config(**wrong)
