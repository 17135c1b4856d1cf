"""wavefield.py: the field, the FFT and the scan agree, with all gradients; what a wave must do; endless streams."""
import numpy as np
import pytest
import torch

from common.checkpoint import load_model
from sample import tensor_bytes

W = load_model("wavefield")
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257, 1000)
H, D, STRIDE, FIELD = 3, 2, 4, 256


def small_blocks(*args):
    return W.wave_scan(*args, L=4)                              # chunks of 4 tokens instead of 16


def physics(seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.005, 0.5, H), rng.uniform(0, 0.7, H), rng.uniform(-1, 1, H)
    return [torch.tensor(v, dtype=dtype) for v in values]


def signal(N, dtype=torch.float64):
    g = torch.Generator().manual_seed(N)
    first = torch.complex(*torch.randn(2, 2, H, D, generator=g, dtype=torch.float64).unbind(0))
    return torch.randn(2, N, H, D, generator=g, dtype=torch.float64).to(dtype), first.to(dtype.to_complex())


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item()


def gap(kernel, N, dtype=torch.float64):
    """Largest relative difference of values and last state from the field, over a batch of two."""
    d, first = signal(N, dtype)
    f, last = kernel(d, *physics(dtype=dtype), STRIDE, FIELD, first)
    d, first = signal(N)
    waves = *(p.numpy() for p in physics()), STRIDE, FIELD
    refs = [W.wave_field_ref(d[b].numpy(), *waves, first[b].numpy()) for b in (0, 1)]
    fields, lasts = (torch.tensor(np.stack(r)) for r in zip(*refs))
    return max(relative(f, fields), relative(last, lasts))


@pytest.mark.parametrize("N", LENGTHS[:-1])
@pytest.mark.parametrize("kernel", [W.wave_fft, W.wave_scan, small_blocks])
def test_field_fft_and_scan_agree(kernel, N):
    assert (error := gap(kernel, N)) < 1e-10, f"float64: {error:.1e} relative"
    assert (error := gap(kernel, N, torch.float32)) < 1e-5, f"float32: {error:.1e} relative"


def test_the_check_can_fail():
    flipped = lambda d, a, o, p, *rest: W.wave_scan(d, a, -o, p, *rest)
    delayed = lambda *args: tuple(x.roll(1, 1) if x.ndim == 4 else x for x in W.wave_scan(*args))
    assert min(gap(flipped, 33), gap(delayed, 33)) > 1e-3


@pytest.mark.parametrize("N", LENGTHS)
def test_all_gradients_agree(N):
    """Of deposit, alpha, omega, phi and the first state, through values and last state: FFT against scan."""
    grads = []
    for kernel in (W.wave_fft, W.wave_scan, small_blocks):
        d, first = signal(N)
        leaves = [v.clone().requires_grad_() for v in (d, *physics(), first)]
        f, last = kernel(*leaves[:4], STRIDE, FIELD, leaves[4])
        g = torch.Generator().manual_seed(1)
        (f * torch.randn(f.shape, generator=g, dtype=f.dtype)).sum().backward(retain_graph=True)
        (last.real * 0.3 - last.imag).sum().backward()
        grads.append([v.grad for v in leaves])
    for name, a, b, c in zip(("deposit", "alpha", "omega", "phi", "first"), *grads, strict=True):
        assert (error := max(relative(b, a), relative(c, a))) < 1e-9, f"{name}: {error:.1e} relative"


@pytest.mark.parametrize("N", [5, 9, 21])
def test_backward_by_hand(N):
    d, first = signal(N)
    leaves = [v.requires_grad_() for v in (d[:1], *physics(), first[:1])]
    run = lambda d, a, o, p, h: [torch.view_as_real(x) if x.is_complex() else x for x in
                                 W.wave_scan(d, a, o, p, STRIDE, FIELD, h, L=4)]
    assert torch.autograd.gradcheck(run, leaves)


@torch.no_grad()
def test_physics():
    d, _ = signal(40)
    p = *physics(), STRIDE, FIELD
    zero = torch.zeros_like(d)
    assert W.wave_scan(zero, *p)[0].abs().max() == 0, "no deposit, no field"
    h, energy = signal(1)[1], []
    for _ in range(200):
        energy.append(h.abs().square().sum().item())
        h = W.wave_scan(zero[:, :1], *p, h)[1]
    assert all(b <= a for a, b in zip(energy, energy[1:]))
    assert (W.Model(W.Config(init="original")).blocks[0].attn.omega.max() - 4).abs() < 1e-6


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


@torch.no_grad()
def test_a_decayed_tail_is_exactly_zero():
    """One token, then silence: with flush-to-zero, as in train.py, no denormal number slows the field down."""
    torch.set_flush_denormal(True)
    pulse = torch.zeros(1, 8192, 8, 4)
    pulse[:, 0] = 1
    waves = 0.25 / torch.logspace(0, 2, 8), torch.linspace(0, 0.7, 8), torch.zeros(8)
    f, last = W.wave_scan(pulse, *waves, STRIDE, FIELD)
    assert not ((f != 0) & (f.abs() < torch.finfo(f.dtype).tiny)).any()
    last = W.wave_scan(0 * pulse, *waves, STRIDE, FIELD, last)[1]
    assert last.abs().max() == 0
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("bad", [dict(stride=0), dict(stride=1.5), dict(n_head=3), dict(n_embd=34, n_head=2)])
def test_bad_settings_get_one_line(bad):
    with pytest.raises(ValueError) as e:
        W.Config(**bad)
    assert len(str(e.value).splitlines()) == 1 and next(iter(bad)) in str(e.value)
