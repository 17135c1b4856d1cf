"""hydra.py: its kernels two ways, what each term conserves, all combinations of options, the transformer inside."""
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from common.checkpoint import load_model

Y = load_model("hydra")
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257)
SMALL = dict(vocab_size=23, block_size=12, n_layer=3, n_embd=16, n_head=2, n_field=20)


def relative(a, b):
    return float(abs(np.asarray(a) - np.asarray(b)).max() / max(abs(np.asarray(b)).max(), 1e-300))


def awake(**changes):
    """A small float64 model whose weights are all moved, so that nothing initialised to zero can hide a mistake."""
    torch.manual_seed(0)
    model = Y.Model(Y.Config(**SMALL | changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def gradients(fast, ref, arrays, rng):
    """Largest relative error of the gradients, each against a finite difference of the loop in a random direction."""
    leaves, worst = [torch.tensor(a).requires_grad_() for a in arrays], 0
    y = fast(*leaves)
    g = rng.normal(size=y.shape)
    y.backward(torch.tensor(g))
    for i, leaf in enumerate(leaves):
        d, h = rng.normal(size=leaf.shape), 1e-5
        up, down = (ref(*(a + s * h * d if i == j else a for j, a in enumerate(arrays))) for s in (1, -1))
        slope, got = ((up - down) * g).sum() / (2 * h), (leaf.grad.numpy() * d).sum()
        worst = max(worst, abs(got - slope) / max(1, abs(slope)))
    return worst


# Pressure.

def sinkhorn(q, k, v, window=20, iters=2):
    return Y.causal_sinkhorn(q[None], k[None], v[None], window, iters)[0]


def sinkhorn_ref(q, k, v, window=20, iters=2):
    return Y.causal_sinkhorn_ref(q, k, v, window, iters)


def weights(q, k, window, iters, state=None):                    # (B, T, H, D), (B, S, H, D) -> (B, H, T, S)
    """The attention weights: with values e_s, what a query gets is its row of them."""
    v = torch.eye(k.shape[1], dtype=k.dtype)[None, :, None].expand(k.shape[0], -1, k.shape[2], -1)
    return Y.causal_sinkhorn(q, k, v, window, iters, state).transpose(1, 2)


@pytest.mark.parametrize("T", LENGTHS)
def test_attention_two_ways(T):
    rng = np.random.default_rng(T)
    qkv = rng.normal(size=(3, T, 2, 6))
    fast = lambda *qkv: Y.attention(*(x[None] for x in qkv), 20)[0]
    ref = lambda *qkv: Y.causal_sinkhorn_ref(*qkv, 20, 0)
    assert (gap := relative(fast(*torch.tensor(qkv)), ref(*qkv))) < 1e-12, f"{gap:.1e} relative"
    assert (gap := gradients(fast, ref, qkv, rng)) < 1e-6, f"gradients: {gap:.1e} relative"


@pytest.mark.parametrize("T", LENGTHS)
def test_sinkhorn_two_ways(T):
    rng = np.random.default_rng(T)
    qkv = rng.normal(size=(3, T, 2, 6))
    for iters in (0, 1, 3):
        gap = relative(sinkhorn(*torch.tensor(qkv), iters=iters), sinkhorn_ref(*qkv, iters=iters))
        assert gap < 1e-12, f"{iters} iterations: {gap:.1e} relative"
    assert (gap := gradients(sinkhorn, sinkhorn_ref, qkv, rng)) < 1e-6, f"gradients: {gap:.1e} relative"


@pytest.mark.parametrize("T", (1, 7, 33, 64))
def test_sinkhorn_masses_go_on(T):
    """The masses after T queries, cut to the window, continue the sequence; and they are sums of weights."""
    q, k, v = torch.randn(3, 1, T + 9, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(T))
    whole, rows = Y.causal_sinkhorn(q, k, v, 20, 2), weights(q, k, 20, 2)
    state = {}
    Y.causal_sinkhorn(q[:, :T], k[:, :T], v[:, :T], 20, 2, state)
    old = max(0, T - 20)
    first = weights(q[:, :T], k[:, :T], 20, 1).sum(2)
    assert relative(state["mass"][1][:, :, 0], first[..., old:]) < 1e-12
    rest = Y.causal_sinkhorn(q[:, T:], k[:, old:], v[:, old:], 20, 2, state)
    assert (gap := relative(rest, whole[:, T:])) < 1e-12, f"{gap:.1e}"
    assert state["mass"][0].shape == (1, 2, 1, min(20, T + 9))
    assert relative(rows.sum(-1), np.ones(1)) < 1e-12 and (rows >= 0).all()


def test_sinkhorn_against_closed_forms():
    """Two tokens of equal score: an iteration adds 2 to 1 / A_10; the limit is the identity. No iteration: softmax."""
    q, v = np.zeros((2, 1, 2)), np.array([[[1.0]], [[0.0]]])
    for n in (0, 1, 2, 50):
        assert abs(Y.causal_sinkhorn_ref(q, q, v, 2, n)[1, 0, 0] - 1 / (2 + 2 * n)) < 1e-14
    q = torch.randn(1, 6, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gaps = [(weights(q, q, 6, n)[0, 0] - torch.eye(6)).abs().max().item() for n in (0, 10, 2000)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.01
    softmax = Y.attention(q, q, q, 4)
    assert relative(Y.causal_sinkhorn(q, q, q, 4, 0), softmax) < 1e-12


def test_sinkhorn_check_can_fail():
    """The original's mistake, column sums over all queries, is another operator and sees the future."""
    q, k, v = torch.randn(3, 1, 40, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = weights(q, k, 40, 0)
    w = w / w.sum(2, keepdim=True)
    y = torch.einsum("bhts,bshd->bthd", w / w.sum(-1, keepdim=True), v)
    assert relative(y[0], Y.causal_sinkhorn_ref(q[0].numpy(), k[0].numpy(), v[0].numpy(), 40, 1)) > 1e-2


# Rotation.

@pytest.mark.parametrize("how", ["euler", "cayley"])
def test_rotation_two_ways(how):
    fast = lambda z, W, kappa: Y.rotate(z, Y.skew(W), kappa, how)
    ref = lambda z, W, kappa: Y.rotate_ref(z, Y.skew_ref(W), kappa, how)
    for T in LENGTHS:
        rng = np.random.default_rng(T)
        arrays = rng.normal(size=(T, 7)), rng.normal(size=(7, 7)), np.array(0.7)
        assert (gap := relative(fast(*map(torch.tensor, arrays)), ref(*arrays))) < 1e-12, f"{gap:.1e} relative"
        assert (gap := gradients(fast, ref, arrays, rng)) < 1e-6, f"gradients: {gap:.1e} relative"
        assert relative(fast(*map(torch.tensor, arrays)), ref(arrays[0], arrays[1], -0.7)) > 1e-2, "a sign must be seen"


def test_rotation_conserves():
    rng = np.random.default_rng(0)
    z, omega = torch.tensor(rng.normal(size=(50, 16))), Y.skew(torch.tensor(rng.normal(size=(16, 16))))
    assert torch.equal(omega, -omega.T) and omega.count_nonzero() == 240
    assert F.cosine_similarity(z, z @ omega, -1).abs().max() < 1e-12
    norm = lambda how, kappa: Y.rotate(z, omega, kappa, how).norm(dim=-1) / z.norm(dim=-1)
    assert (norm("cayley", 3.0) - 1).abs().max() < 1e-12
    growth = [norm("euler", kappa).mean().item() - 1 for kappa in (1e-3, 2e-3)]
    assert abs(growth[1] / growth[0] - 4) < 0.01, "Euler's norm grows by second order"
    step = 0.7 * (z @ omega).norm(dim=-1) / z.norm(dim=-1)
    assert (norm("euler", 0.7) - (1 + step ** 2).sqrt()).abs().max() < 1e-12, "by this much"
    eye, c, s = torch.eye(2).double(), np.cos(2 * np.arctan(0.6)), np.sin(2 * np.arctan(0.6))
    plane = Y.rotate(eye, Y.skew(torch.tensor([[0, 0], [0.8, 0]], dtype=torch.float64)), 1.5, "cayley")
    assert relative(plane, [[c, -s], [s, c]]) < 1e-12, "in two dimensions the angle is 2 atan(kappa omega / 2)"


# Viscosity.

@pytest.mark.parametrize("laplacian", ["upwind", "one_sided"])
@pytest.mark.parametrize("streamed", [False, True])
def test_viscosity_two_ways(laplacian, streamed):
    for T in LENGTHS:
        rng = np.random.default_rng(T)
        arrays = (rng.normal(size=(T, 3)), rng.normal(size=(2, 3)))[:1 + streamed]
        fast = lambda z, *last: Y.viscosity(z[None], 0.3, laplacian, {"z": x[None] for x in last} or None)[0]
        ref = lambda z, *last: Y.viscosity_ref(z, 0.3, laplacian, *last)
        assert (gap := relative(fast(*map(torch.tensor, arrays)), ref(*arrays))) < 1e-12, f"{gap:.1e} relative"
        assert (gap := gradients(fast, ref, arrays, rng)) < 1e-6, f"gradients: {gap:.1e} relative"
        late = fast(*(torch.tensor(a).roll(1, 0) for a in arrays)).roll(-1, 0)
        assert T < 7 or relative(late, ref(*arrays)) > 1e-2, "an edge off by one must be seen"


def test_viscosity_is_the_filter_of_its_formula():
    """Gain and phase of both stencils against 1 - nu + nu e^{-iw} and 1 + nu (1 - e^{-iw})^2; upwind only damps."""
    t = torch.arange(12, dtype=torch.float64)
    for w in np.linspace(0.1, np.pi, 7):
        wave, e = torch.stack((torch.cos(w * t), torch.sin(w * t)), -1)[None], np.exp(-1j * w)
        for laplacian, H in (("upwind", 0.7 + 0.3 * e), ("one_sided", 1 + 0.3 * (1 - e) ** 2)):
            y = torch.view_as_complex(Y.viscosity(wave, 0.3, laplacian).contiguous()) / torch.polar(t * 0 + 1, w * t)
            assert abs(y[0, -1].item() - H) < 1e-12
    for nu in (0.1, 0.5, 1.0):
        z = torch.randn(4, 65, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        variation = lambda u: u.diff(dim=1).abs().sum(1)
        assert (variation(Y.viscosity(z, nu, "upwind")) <= variation(z)).all()
        assert (variation(Y.viscosity(z, nu, "one_sided")) > variation(z)).any()


@pytest.mark.parametrize("nu", [0.1, 0.15, 0.3, 1.0])
def test_one_sided_smooths_slow_waves_and_amplifies_fast_ones(nu):
    """Its gain is below 1 where cos(angle) > nu / (1 + nu), 1 there, and above 1 beyond; that of upwind is never."""
    edge = np.arccos(nu / (1 + nu))
    assert nu != 0.15 or abs(edge / np.pi - 0.46) < 0.005
    angle = torch.tensor(np.concatenate(([edge], np.linspace(0.01, np.pi, 99))))
    wave = torch.exp(1j * torch.outer(torch.arange(4), angle))[None]
    gain = {kind: Y.viscosity(wave, nu, kind)[0, -1].abs() for kind in ("upwind", "one_sided")}
    assert abs(gain["one_sided"][0] - 1) < 1e-12 and gain["upwind"].max() < 1 + 1e-12
    slow = angle[1:] < edge
    assert gain["one_sided"][1:][slow].max() < 1 < gain["one_sided"][1:][~slow].min()


def test_the_state_of_viscosity_is_its_last_two_tokens():
    z, state = torch.randn(2, 7, 3), {}
    Y.viscosity(z[:, :1], 0.3, "upwind", state)
    assert torch.equal(state["z"], z[:, [0, 0]])
    Y.viscosity(z[:, 1:], 0.3, "upwind", state)
    assert torch.equal(state["z"], z[:, -2:])


@pytest.mark.parametrize("L", [1, 2, 3, 12])
def test_schedules(L):
    falling, constant, rising = ([Y.Config(n_layer=L, nu=0.4, schedule=s).nu_at(l) for l in range(L)]
                                 for s in ("falling", "constant", "rising"))
    assert (np.diff(falling) <= 0).all() and falling[-1] == 0 and (L == 1 or falling[0] == 0.4)
    assert constant == [0.4] * L and (L == 1 or np.allclose(rising, falling[::-1]))


# Lorentz force.

def field_arrays(T, rng, C=6, R=9):
    return rng.normal(size=(T, C)), rng.normal(size=(R, C)), rng.normal(size=R), rng.normal(size=(C, R))


@pytest.mark.parametrize("T", LENGTHS)
def test_lorentz_two_ways(T):
    """Four products against the whole Jacobian; the wrong sign of J^T, and no projection, are seen."""
    rng = np.random.default_rng(T)
    arrays = field_arrays(T, rng)
    force = Y.lorentz_ref(*arrays)
    assert (gap := relative(Y.lorentz(*map(torch.tensor, arrays)), force)) < 1e-11, f"{gap:.1e} relative"
    assert (gap := gradients(Y.lorentz, Y.lorentz_ref, arrays, rng)) < 1e-6, f"gradients: {gap:.1e} relative"
    M, J = field(arrays[0][0], *arrays[1:])
    assert relative((J - J.T) @ M / 2, force[0]) > 1e-3 and relative((J + J.T) @ M / 2, force[0]) > 1e-2


def field(n, W1, b1, W2):                                        # (C,) -> M (C,), J (C, C)
    """M = g - n (n.g)/(n.n), and dM_i/dn_j by autograd."""
    W1, b1, W2 = map(torch.tensor, (W1, b1, W2))

    def M(x):
        g = F.linear(F.silu(F.linear(x, W1, b1)), W2)
        return g - x * (x @ g) / (x @ x)

    return M(torch.tensor(n)).numpy(), torch.autograd.functional.jacobian(M, torch.tensor(n)).numpy()


def test_lorentz_by_finite_differences_and_autograd():
    """The Jacobian by central differences and by autograd; M.F = 0 with the force as it is and projected."""
    rng = np.random.default_rng(0)
    (n, *w), h = field_arrays(5, rng), 1e-5
    force, ref = Y.lorentz(torch.tensor(n), *map(torch.tensor, w)).numpy(), Y.lorentz_ref(n, *w)
    for x, f, f_ref in zip(n, force, ref):
        M, J = field(x, *w)
        slope = np.stack([(Y.field_ref(x + e, *w) - Y.field_ref(x - e, *w)) / (2 * h) for e in h * np.eye(6)], 1)
        assert relative(Y.field_ref(x, *w), M) < 1e-12 and relative(slope, J) < 1e-8
        raw = (J - J.T) @ M / 2
        scale = np.linalg.norm(M) * np.linalg.norm(raw)
        assert abs(M @ raw) < 1e-12 * scale and abs(M @ f) < 1e-12 * scale, "the force is orthogonal to the field"
        assert abs(x @ f) < 1e-12 * np.linalg.norm(x) * np.linalg.norm(f), "and stays on the sphere"
        assert relative(f, raw - x * (x @ raw) / (x @ x)) < 1e-11 > relative(f_ref, f)


def test_in_three_dimensions_the_force_is_half_of_curl_M_times_M():
    """(J - J^T) M = (curl M) x M, before the projection."""
    n, *w = field_arrays(1, np.random.default_rng(0), C=3)
    M, J = field(n[0], *w)
    curl = np.array([J[2, 1] - J[1, 2], J[0, 2] - J[2, 0], J[1, 0] - J[0, 1]])
    assert relative(Y.lorentz_ref(n, *w)[0], Y.tangent_ref(np.cross(curl, M) / 2, n[0])) < 1e-12


@pytest.mark.parametrize("how", ["euler", "cayley"])
@pytest.mark.parametrize("laplacian", ["upwind", "one_sided"])
@torch.no_grad()
def test_the_linear_terms_commute(how, laplacian):
    """One acts on channels and the other on tokens, if all channels have one viscosity; pressure, which is not linear,
    commutes with neither."""
    layer, z = awake(rotation=how, laplacian=laplacian).layers[0], torch.randn(2, 9, 16).double()
    layer.nu.fill_(0.3)
    turn = Y.rotation(torch.arange(9.0), 16 // layer.config.n_head).to(torch.complex128)
    terms = {"turn": layer.rotation, "mix": lambda z: layer.viscosity(z, None),
             "press": lambda z: layer.pressure(z, turn, None)}
    gap = lambda a, b: relative(terms[a](terms[b](z)), terms[b](terms[a](z)))
    assert gap("turn", "mix") < 1e-14
    assert gap("turn", "press") > 1e-3 and gap("mix", "press") > 1e-3


# The whole model.

COMBINATIONS = list(itertools.product((None, 0, 1, 3), ("euler", "cayley"), ("upwind", "one_sided"), (False, True)))


@pytest.mark.parametrize("iters, rotation, laplacian, zeus", COMBINATIONS)
@torch.no_grad()
def test_every_combination(iters, rotation, laplacian, zeus):
    """Reference, causality and streams for all combinations of the options, two blocks and a half long."""
    pressure = dict(pressure="softmax") if iters is None else dict(pressure="sinkhorn", sinkhorn_iters=iters)
    model = awake(**pressure, rotation=rotation, laplacian=laplacian, zeus=zeus)
    idx, other = torch.randint(23, (2, 2, 30), generator=torch.Generator().manual_seed(1))
    logits = model(idx)[0]
    ref = Y.forward_ref({k: v.numpy() for k, v in model.state_dict().items()}, idx.numpy(), model.config)
    assert (gap := relative(logits, ref)) < 1e-10, f"{gap:.1e} relative"
    for t in (1, 12, 17):
        edited = model(torch.cat((idx[:, :t], other[:, t:]), 1))[0]
        assert (gap := (edited - logits)[:, :t].abs().max()) <= 1e-12, f"later tokens move {t} logits by {gap:.1e}"
        assert (gap := (model(idx[:, :t])[0] - logits[:, :t]).abs().max()) <= 1e-12, f"so does the length: {gap:.1e}"
    for lengths in ([1] * 30, (13, 1, 1, 12, 3), (2, 5, 23)):
        state = {}
        stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split(lengths, 1)], 1)
        assert (gap := (stream - logits).abs().max()) < 1e-9, f"chunks {lengths}: {gap:.1e}"


def test_gradients_of_a_whole_model():
    """All parameters of a model with everything on, against finite differences of forward_ref."""
    model = awake(pressure="sinkhorn", sinkhorn_iters=2, rotation="cayley", zeus=True)
    idx = torch.randint(23, (1, 15), generator=torch.Generator().manual_seed(1))
    names = [k for k, _ in model.named_parameters()]
    arrays = [p.detach().numpy() for p in model.parameters()]
    fast = lambda *leaves: torch.func.functional_call(model, dict(zip(names, leaves)), (idx,))[0]
    ref = lambda *values: Y.forward_ref(dict(zip(names, values)), idx.numpy(), model.config)
    assert (gap := gradients(fast, ref, arrays, np.random.default_rng(0))) < 1e-5, f"{gap:.1e} relative"


@torch.no_grad()
def test_viscosity_changes_the_logits():
    idx = torch.randint(23, (1, 20), generator=torch.Generator().manual_seed(1))
    logits = {nu: awake(nu=nu)(idx)[0] for nu in (0, 0.01, 0.3)}
    assert relative(logits[0.01], logits[0]) > 1e-4 and relative(logits[0.3], logits[0]) > 1e-2


@torch.no_grad()
def test_all_off_is_a_transformer_without_mlp():
    """The logits of momentum.py without shear and MLP, with the same weights."""
    model = awake(nu=0.0, kappa=0.0, zeus=False)
    P = load_model("momentum")
    plain = P.Model(P.Config(**{k: v for k, v in SMALL.items() if k != "n_field"}, gamma=0.0, mlp=False)).double()
    weights = {k.replace("layers", "blocks").replace("qkv", "attn.qkv").replace("proj", "attn.proj"): v
               for k, v in model.state_dict().items()}
    plain.load_state_dict(plain.state_dict() | weights)
    assert set(weights) == {k for k in plain.state_dict() if "gamma" not in k}, "nothing of viscosity or rotation"
    idx = torch.randint(23, (2, 30), generator=torch.Generator().manual_seed(1))
    assert (gap := relative(model(idx)[0], plain(idx)[0])) < 1e-12, f"{gap:.1e} relative"


@pytest.mark.parametrize("pressure", ["softmax", "sinkhorn"])
def test_layers_keep_nothing_without_a_state(pressure):
    """So each of them can be checkpointed: it runs a second time in the backward, and the gradients are the same."""
    model = awake(pressure=pressure, zeus=True)
    idx = torch.randint(23, (2, 15), generator=torch.Generator().manual_seed(1))
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    plain = [p.grad.clone() for p in model.parameters()]
    held = [set(vars(layer)) for layer in model.layers]
    model.zero_grad()
    z, turn = model.embed(idx[:, :-1], 0)
    for layer in model.layers:
        z = checkpoint(layer, z, turn, None, use_reentrant=False)
    logits = F.linear(Y.rms_norm(z), model.wte.weight)
    F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
    assert max(relative(p.grad, g) for p, g in zip(model.parameters(), plain)) < 1e-12
    assert held == [set(vars(layer)) for layer in model.layers]


def test_a_stream_can_be_trained_on():
    """A training step on a stream that was read before reaches the rotation, too."""
    model, idx, state = awake(), torch.randint(23, (2, 12)), {}
    with torch.no_grad():
        model(idx, state=state)
    model(idx, idx, state=state)[1].backward()
    assert all(layer.skew.weight.grad.abs().max() > 0 and layer.kappa.grad != 0 for layer in model.layers)
    assert set(state) == {0, 1, 2, "pos"} and set(state[0]) == {"k", "v", "z"}


def test_bfloat16():
    model, idx = awake(pressure="sinkhorn", zeus=True).float(), torch.randint(23, (2, 13))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@torch.no_grad()
def test_effective_rank():
    """Tokens spread evenly over r directions have rank r, tokens on a line 1."""
    cloud = torch.cat((torch.eye(8)[:5], -torch.eye(8)[:5])).double()
    assert abs(Y.effective_rank(cloud) - 5) < 1e-12
    line = torch.linspace(0, 1, 9).double()[:, None] * torch.randn(8).double()
    assert abs(Y.effective_rank(torch.stack((line, 1 + line))) - 1).max() < 1e-12


@torch.no_grad()
def test_trajectory_ends_where_the_model_ends():
    model, idx = awake(zeus=True), torch.randint(23, (1, 15))
    z = Y.trajectory(model, idx)
    assert z.shape == (13, 15, 16)
    assert relative(F.linear(Y.rms_norm(z[-1]), model.wte.weight), model(idx)[0][0]) < 1e-12
    assert not torch.equal(z[4], z[3]), "zeus: the fourth term moves z"
    z = Y.trajectory(awake(zeus=False), idx)
    assert torch.equal(z[4], z[3]), "without it, no fourth term"


@torch.no_grad()
def test_trace_from_the_equations():
    """Viscosity moves z by nu |z_{t-1} - z_t|, rotation by |kappa z Omega|; distances on the sphere are those of n."""
    model, idx = awake(nu=0.3, zeus=False), torch.randint(23, (1, 15))
    z, layer, seen = Y.trajectory(model, idx).numpy(), model.layers[0], Y.trace(model, idx)
    size = lambda v: np.sqrt((v * v).sum(-1))
    before = np.concatenate((z[1, :1], z[1, :-1]))               # of the first viscosity, of each token's neighbour
    assert relative(seen["viscosity"][0][0], size(layer.nu.numpy() * (before - z[1])) / size(z[1])) < 1e-12
    omega = Y.skew_ref(layer.skew.weight.numpy())
    assert relative(seen["rotation"][0][0], layer.kappa.item() * size(z[0] @ omega) / size(z[0])) < 1e-12
    n = z / size(z)[..., None]
    assert relative(seen["speed"][0], size(n[4::4] - n[:-1:4])) < 1e-12
    assert "force" not in seen and "force" in Y.trace(awake(), idx)


@torch.no_grad()
def test_the_sphere_shows_the_main_directions():
    """Latents that lie in three dimensions keep all their angles, and face the reader."""
    axes = torch.linalg.qr(torch.randn(16, 3).double())[0]
    x = torch.randn(4, 9, 3).double() + torch.tensor([0, 3, 0])
    seen = Y.sphere(x @ axes.T)
    n = F.normalize(x, dim=-1).flatten(0, 1)
    assert relative(seen.flatten(0, 1) @ seen.flatten(0, 1).T, n @ n.T) < 1e-12
    assert seen[..., 2].mean() > 0.5
    assert Y.sphere(torch.ones(1, 1, 2)).shape == (1, 1, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("T, size", [(20, dict(n_embd=2, n_head=1, n_layer=1, block_size=1)), (1, dict(nu=0.0))])
def test_portrait_of_a_small_model(T, size, tmp_path):
    model = Y.Model(Y.Config(**SMALL | size))
    Y.portrait(model, np.arange(T), tmp_path / "small.png")
    assert [path.name for path in tmp_path.iterdir()] == ["small.png"]       # the film takes seconds
    assert (tmp_path / "small.png").stat().st_size > 20_000


@pytest.mark.filterwarnings("error")
def test_a_film(tmp_path):
    Y.film(Y.Model(Y.Config(**SMALL | dict(n_layer=1))), torch.arange(5), tmp_path / "small.gif")
    assert (tmp_path / "small.gif").read_bytes().startswith(b"GIF8")


def test_less_than_half_of_the_parameters():
    """At the same width and depth."""
    P = load_model("momentum")
    count = lambda model: sum(p.numel() for p in model.parameters() if p.requires_grad)
    ours = count(Y.Model(Y.Config(vocab_size=65, n_layer=4, zeus=False)))
    baseline = count(P.Model(P.Config(vocab_size=65, n_layer=4, gamma=0.0)))
    assert ours < baseline / 2, f"{ours:,} against {baseline:,}"


@pytest.mark.parametrize("wrong", [dict(nu=1.5), dict(nu=-0.1), dict(n_embd=100, n_head=3)])
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match="nu=|n_embd="):
        Y.Config(**wrong)


def test_it_begins_as_the_settings_say():
    """Rotation and viscosity of each layer; the force at full strength, out of a field that is there."""
    layers = Y.Model(Y.Config(n_layer=3, kappa=0.3, nu=0.4, zeus=True)).layers
    assert [round(layer.kappa.item(), 6) for layer in layers] == [0.3] * 3
    assert all(layer.nu.shape == (128,) and layer.nu.unique().numel() == 1 for layer in layers)
    assert np.allclose([layer.nu[0].item() for layer in layers], [0.4, 0.2, 0])
    assert all(layer.lam == 1 and layer.fc.weight.any() and layer.out.weight.any() for layer in layers)
    default = Y.Model(Y.Config()).layers
    assert default[0].kappa == 1 and (default[0].nu == 0.1).all()
    for learn in (False, True):
        assert all(layer.nu.requires_grad is learn for layer in Y.Model(Y.Config(learn_nu=learn)).layers)
    assert not any("nu" in name for name, _ in Y.Model(Y.Config(nu=0.0)).named_parameters())
