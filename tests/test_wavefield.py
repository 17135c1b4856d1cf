"""wavefield.py: the field, the FFT, the scan and the steps agree, with all gradients; what a wave must do; streams."""
import numpy as np
import pytest
import torch
from helpers import LENGTHS, awake, relative, tokens

from common.checkpoint import ROOT, load_model
from sample import tensor_bytes

W = load_model("wavefield")
LONG = (*LENGTHS, 1000)
H, D, STRIDE, FIELD = 3, 2, 4, 256


def small_chunks(*args):
    """Chunks of 2 tokens instead of 16, in blocks of 128 tokens."""
    return W.wave_scan(*args, L=2)


def by_steps(deposit, alpha, omega, phi, stride, field, first=0):
    """Token by token, as a stream is generated: h_t = rho h_{t-1} + d_t."""
    power, amp = W.resonator(alpha, omega, phi, stride, field, 2)
    rho, amp = (z.to(deposit.dtype.to_complex()) for z in (power[:, 1:], amp))
    fields, h = [], first
    for d in deposit.unbind(1):
        f, h = W.wave_step(d, rho, amp, h)
        fields.append(f)
    return torch.stack(fields, 1), h


KERNELS = [W.wave_fft, W.wave_scan, small_chunks, by_steps]


def physics(seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.005, 0.5, H), rng.uniform(0, 0.7, H), rng.uniform(-1, 1, H)
    return [torch.tensor(v, dtype=dtype) for v in values]


def signal(T, dtype=torch.float64):
    g = torch.Generator().manual_seed(T)
    first = torch.complex(*torch.randn(2, 2, H, D, generator=g, dtype=torch.float64).unbind(0))
    return torch.randn(2, T, H, D, generator=g, dtype=torch.float64).to(dtype), first.to(dtype.to_complex())


def gap(kernel, T, dtype=torch.float64, streamed=True):
    """Largest relative difference of values and last state from the field, over a batch of two."""
    d, first = signal(T, dtype)
    f, last = kernel(d, *physics(dtype=dtype), STRIDE, FIELD, *([first] if streamed else []))
    d, first = signal(T)
    waves = *(p.numpy() for p in physics()), STRIDE, FIELD
    refs = [W.wave_field_ref(d[b].numpy(), *waves, first[b].numpy() if streamed else 0) for b in (0, 1)]
    fields, lasts = (np.stack(r) for r in zip(*refs))
    return max(relative(f, fields), relative(last, lasts))


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree_with_the_field(kernel, T):
    for streamed in (True, False):
        assert (error := gap(kernel, T, streamed=streamed)) < 1e-10, f"float64: {error:.1e} relative"
        assert (error := gap(kernel, T, torch.float32, streamed)) < 1e-5, f"float32: {error:.1e} relative"


def test_the_check_can_fail():
    flipped = lambda d, a, o, p, *rest: W.wave_scan(d, a, -o, p, *rest)
    delayed = lambda *args: tuple(x.roll(1, 1) if x.ndim == 4 else x for x in W.wave_scan(*args))
    forgetful = lambda *args: W.wave_scan(*args[:-1])
    assert min(gap(flipped, 33), gap(delayed, 33), gap(forgetful, 33)) > 1e-3


@pytest.mark.parametrize("T", LONG)
def test_all_gradients_agree(T):
    """Of deposit, alpha, omega, phi and the first state, through values and last state: all against the FFT's."""
    grads = []
    for kernel in KERNELS:
        d, first = signal(T)
        leaves = [v.clone().requires_grad_() for v in (d, *physics(), first)]
        f, last = kernel(*leaves[:4], STRIDE, FIELD, leaves[4])
        g = torch.Generator().manual_seed(1)
        (f * torch.randn(f.shape, generator=g, dtype=f.dtype)).sum().backward(retain_graph=True)
        (last.real * 0.3 - last.imag).sum().backward()
        grads.append([v.grad for v in leaves])
    for kernel, own in zip(KERNELS[1:], grads[1:]):
        for name, a, b in zip(("deposit", "alpha", "omega", "phi", "first"), grads[0], own, strict=True):
            assert (error := relative(b, a)) < 1e-9, f"{kernel.__name__}, {name}: {error:.1e} relative"


@torch.no_grad()
@pytest.mark.parametrize("kernel", KERNELS)
def test_physics(kernel):
    """A linear, time-invariant filter whose answer to a single token is the damped cosine; free waves only decay."""
    alpha, omega, phi = physics()
    wave = lambda d, *first: kernel(d, alpha, omega, phi, STRIDE, FIELD, *first)
    d, first = signal(40)
    zero = torch.zeros_like(d)
    late = torch.cat((zero[:, :5], d[:, :-5]), 1)
    assert wave(zero)[0].abs().max() == 0 or kernel is W.wave_fft and wave(zero)[0].abs().max() < 1e-15
    assert relative(wave(late)[0][:, 5:], wave(d)[0][:, :-5]) < 1e-12, "time invariance"
    assert relative(wave(2 * d + late)[0], 2 * wave(d)[0] + wave(late)[0]) < 1e-12, "linearity"

    k = lambda c: torch.exp(-alpha * c) * torch.cos(omega * c + phi)
    Z = k(torch.arange(FIELD)[:, None]).abs().sum(0)
    pulse = zero.clone()
    pulse[:, 0] = 1
    response = k(STRIDE * torch.arange(40)[:, None]) / Z                     # (T, H)
    assert relative(wave(pulse)[0][0, :, :, 0], response) < 1e-12, "the field of a single token is the wave"
    c, e = torch.linspace(1, 20, 50, dtype=torch.float64)[:, None], 1e-3
    slope, bend = (k(c + e) - k(c - e)) / (2 * e), (k(c + e) - 2 * k(c) + k(c - e)) / e**2
    residue = bend + 2 * alpha * slope + (alpha**2 + omega**2) * k(c)
    assert residue.abs().max() < 1e-6, "w'' + 2 alpha w' + (alpha^2 + omega^2) w = 0"

    h, energy = first, []
    for _ in range(200):
        energy.append(h.abs().square().sum().item())
        h = wave(zero[:, :1], h)[1]
    assert all(b <= a for a, b in zip(energy, energy[1:])), "the energy of a free field never grows"


def test_three_numbers_a_wave_and_a_coupling():
    attn = W.Model(W.Config(n_head=2)).blocks[0].attn
    assert sum(p.numel() for p in attn.parameters(recurse=False)) == 3 * 2 + 2 * 2
    assert (attn.coupling.softmax(-1).sum(-1) - 1).abs().max() < 1e-6
    assert (W.Model(W.Config(init="original")).blocks[0].attn.omega.max() - 4).abs() < 1e-6
    for stride in (1, 4):
        reach = W.Model(W.Config(stride=stride)).blocks[0].attn.reach()
        assert abs(reach.min() - 1) < 1e-4 and abs(reach.max() - 128) < 1e-2, "in tokens, whatever the cells"


def test_learns_a_text():
    """80 steps on the text of the file itself."""
    torch.manual_seed(0)
    text = torch.tensor(list((ROOT / "wavefield.py").read_bytes()))
    model = W.Model(W.Config(block_size=64, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(80):
        batch = text[torch.randint(len(text) - 65, (16, 1)) + torch.arange(65)]
        loss = model(batch[:, :-1], batch[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 3, f"{loss:.2f} nats per byte"


@torch.inference_mode()
def test_a_long_stream_keeps_its_size():
    """100,000 tokens, in chunks and one by one: the state keeps its size, and never a NaN."""
    torch.manual_seed(0)
    model = W.Model(W.Config(vocab_size=20, block_size=64, n_layer=3, n_embd=32, n_head=4)).eval()
    state, sizes, idx = {}, set(), torch.randint(20, (1, 100_000))
    for chunk in idx.split(5_000, 1):
        logits = model(chunk, state=state)[0]
        assert torch.isfinite(logits).all()
        for token in chunk[:, :3].split(1, 1):
            model(token, state=state)
        sizes.add(tensor_bytes(state))
    assert len(sizes) == 1


def test_a_stream_in_training():
    """With gradients a single token goes through the kernel that the weights still reach, and gives the same."""
    torch.manual_seed(0)
    model = W.Model(W.Config(vocab_size=20, block_size=16, n_embd=32, n_head=4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(20, (2, 9))
    losses = []
    for lengths in ([9], [4, 1, 1, 3]):
        state, logits = {}, []
        for chunk in idx.split(lengths, 1):
            logits.append(model(chunk, state=state)[0])
        model.zero_grad()
        loss = torch.cat(logits, 1).square().mean()
        loss.backward()
        losses.append((loss.item(), model.blocks[0].attn.damp.grad.clone()))
    assert relative(losses[1][0], losses[0][0]) < 1e-12 and relative(losses[1][1], losses[0][1]) < 1e-9


@torch.no_grad()
def test_a_decayed_tail_is_exactly_zero():
    """One token, then silence: with flush-to-zero, as in train.py, no denormal number slows the field down."""
    torch.set_flush_denormal(True)
    try:
        pulse = torch.zeros(1, 8192, 8, 4)
        pulse[:, 0] = 1
        waves = 0.25 / torch.logspace(0, 2, 8), torch.linspace(0, 0.7, 8), torch.zeros(8)
        f, last = W.wave_scan(pulse, *waves, STRIDE, FIELD)
        assert not ((f != 0) & (f.abs() < torch.finfo(f.dtype).tiny)).any()
        assert W.wave_scan(0 * pulse, *waves, STRIDE, FIELD, last)[1].abs().max() == 0
    finally:
        torch.set_flush_denormal(False)


def test_trace_from_the_field_itself():
    """The energy of an array of cells, and the mean of 1 / alpha that it weighs."""
    model = awake(W, stride=2)
    p = {key.removeprefix("blocks.0.attn."): value.numpy() for key, value in model.state_dict().items()}
    c, text = model.config, tokens((14,))
    x = W.rms_norm_ref(W.rms_norm_ref(p["wte.weight"][text]))
    k, v, gate = (x @ p["kvg.weight"].T + p["kvg.bias"]).reshape(14, 3, c.n_head, -1).swapaxes(0, 1)
    alpha = np.log1p(np.exp(p["damp"]))
    deposit = v * np.sqrt((k * k).sum(-1, keepdims=True))
    f, _ = W.wave_field_ref(deposit, alpha, p["omega"], p["phi"], 2, 2 * c.block_size)
    energy = (f * f).sum(-1)                                     # (T, H)
    seen = {what: array[0] for what, (array, _, _) in W.trace(model, text[None]).items()}
    assert relative(seen["energy of the field"], energy.sum(1) / c.n_embd) < 1e-10
    assert relative(seen["reach"], (energy / (2 * alpha)).sum(1) / energy.sum(1)) < 1e-10
    assert relative(seen["gate"], W.sigmoid_ref(gate).mean((1, 2))) < 1e-10


@pytest.mark.parametrize("sizes", [
    dict(block_size=1, n_layer=1, n_head=1, n_embd=4), dict(n_head=2, n_embd=8, stride=4)])
@pytest.mark.filterwarnings("error")
def test_portrait_of_any_size(sizes, tmp_path):
    model = W.Model(W.Config(vocab_size=7, **sizes))
    for idx in (np.arange(300) % 7, np.zeros(1, np.int64)):
        W.portrait(model, idx, tmp_path / "wave.png")
        assert (tmp_path / "wave.png").stat().st_size > 20_000


@pytest.mark.parametrize("bad", [dict(stride=0), dict(stride=1.5), dict(n_head=3), dict(n_embd=34, n_head=2)])
def test_bad_settings_get_one_line(bad):
    with pytest.raises(ValueError) as e:
        W.Config(**bad)
    assert len(str(e.value).splitlines()) == 1 and next(iter(bad)) in str(e.value)


@torch.no_grad()
@pytest.mark.parametrize("changes", [dict(stride=2), dict(stride=3, init="original", position=True)])
def test_a_whole_model_with_cells_between_tokens(changes):
    """Against NumPy, and as a stream."""
    model, idx, state = awake(W, n_head=4, **changes), tokens((2, 31)), {}
    logits = model(idx)[0]
    ref = W.forward_ref({k: v.numpy() for k, v in model.state_dict().items()}, idx.numpy(), model.config)
    assert (error := relative(logits, ref)) < 1e-10, f"{error:.1e} relative"
    stream = [model(chunk, state=state)[0] for chunk in idx.split((5, 1, 1, 20, 4), 1)]
    assert (torch.cat(stream, 1) - logits).abs().max() < 1e-9


def test_initial_values():
    """Gates are open, waves turn by two radians while they fade to 1/e, heads hear themselves; the temperature."""
    model = W.Model(W.Config(n_embd=32))
    for block in model.blocks:
        keys_and_values, gate = block.attn.kvg.bias.split((64, 32))
        assert (gate == 2).all() and not keys_and_values.any()
        alpha, omega, phi, *_ = block.attn.physics()
        assert relative(omega.detach(), 2 * alpha.detach()) < 1e-5 and not phi.any()
        assert torch.equal(block.attn.coupling.detach(), 3 * torch.eye(8))
    assert model.blocks[2].interference.log_temp.exp().item() == pytest.approx(0.5)
    attn = W.Model(W.Config(n_embd=32, init="original")).blocks[0].attn
    alpha, omega, *_ = attn.physics()
    expected = torch.nn.functional.softplus(torch.linspace(-3, 0.5, 8))
    assert relative(alpha.detach(), expected) < 1e-5 and omega[0].item() == pytest.approx(0.3)


@torch.no_grad()
def test_the_kernel_knows_no_autocast(monkeypatch):
    """A deposit that autocast has made of bfloat16 is read in float32."""
    seen = []

    def scan(deposit, *rest, real=W.wave_scan):
        seen.append((deposit.dtype, torch.is_autocast_enabled("cpu")))
        return real(deposit, *rest)
    monkeypatch.setattr(W, "wave_scan", scan)
    with torch.autocast("cpu", torch.bfloat16):
        W.Model(W.Config(n_embd=32))(tokens((2, 9)))
    assert seen == [(torch.float32, False)] * 3


@torch.no_grad()
def test_the_mean_of_a_long_stream_still_moves():
    """After 2^25 tokens one more is below the last digit of a float32."""
    torch.manual_seed(0)
    layer, state = W.Interference(W.Config(n_embd=32)), {}
    x = torch.randn(1, 50, 32)
    layer(x, state)
    step = state["total"].clone()
    state["total"] *= 2 ** 20
    state["t"] *= 2 ** 20
    before = state["total"].clone()
    layer(x, state)
    assert relative(state["total"] - before, step) < 1e-4


def test_a_wave_that_turns_and_turns_keeps_its_digits():
    """The angle after 300 tokens is exact, also for weights in float32."""
    waves = physics(dtype=torch.float32)
    power, _ = W.resonator(*waves, STRIDE, FIELD, 300)
    alpha, omega, _ = (wave.double() for wave in waves)
    expected = torch.polar((-alpha * STRIDE * 299).exp(), omega * STRIDE * 299)
    assert relative(power[:, 299], expected) < 1e-12
