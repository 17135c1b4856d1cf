"""momentum.py: kernels two ways, the Bode formula, and that gamma = 0 is the plain transformer."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from train import load_model

M = load_model("momentum")
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257)


def relative(a, b):
    return float(abs(np.asarray(a) - np.asarray(b)).max() / max(abs(np.asarray(b)).max(), 1e-300))


def shear_gap(shear, T, streamed):
    """Largest relative difference between a torch shear and the loop."""
    rng = np.random.default_rng(T)
    x, gamma, last = rng.normal(size=(T, 3, 4)), rng.normal(size=(3, 1)), rng.normal(size=(3, 4))
    fast = shear(torch.tensor(x)[None], torch.tensor(gamma), torch.tensor(last)[None, None] if streamed else None)
    return relative(fast[0], M.shear_ref(x, gamma, last if streamed else None))


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("streamed", [False, True])
def test_shear_two_ways(T, streamed):
    assert (gap := shear_gap(M.shear, T, streamed)) < 1e-12, f"{gap:.1e} relative"


def test_shear_check_can_fail():
    delayed = lambda x, gamma, last: M.shear(x, gamma, last).roll(1, 1)
    flipped = lambda x, gamma, last: M.shear(x, -gamma, last)
    assert min(shear_gap(delayed, 33, False), shear_gap(flipped, 33, False)) > 1e-2


@pytest.mark.parametrize("T", LENGTHS)
def test_attention_two_ways(T):
    """Values, and the gradient against finite differences of the reference along a random direction."""
    rng, window = np.random.default_rng(T), 20
    q, k, v, g = (rng.normal(size=(T, 2, 6)) for _ in range(4))
    leaves = [torch.tensor(a)[None].requires_grad_() for a in (q, k, v)]
    y = M.attention(*leaves, window)
    assert (gap := relative(y[0].detach(), M.attention_ref(q, k, v, window))) < 1e-12, f"values {gap:.1e}"
    y.backward(torch.tensor(g)[None])
    for i, name in enumerate("qkv"):
        d, h = rng.normal(size=q.shape), 1e-5
        up, down = ([a + s * h * d if i == j else a for j, a in enumerate((q, k, v))] for s in (1, -1))
        slope = ((M.attention_ref(*up, window) - M.attention_ref(*down, window)) * g).sum() / (2 * h)
        got = (leaves[i].grad[0].numpy() * d).sum()
        assert abs(got - slope) <= 1e-6 * max(1, abs(slope)), f"{name}: {got} against {slope}"


def test_attention_check_can_fail():
    q, k, v = (np.random.default_rng(i).normal(size=(40, 2, 6)) for i in range(3))
    unmasked = F.scaled_dot_product_attention(*(torch.tensor(a).transpose(0, 1) for a in (q, k, v))).transpose(0, 1)
    wide = M.attention(*(torch.tensor(a)[None] for a in (q, k, v)), 21)[0]
    ref = M.attention_ref(q, k, v, 20)
    assert relative(unmasked, ref) > 1e-2 and relative(wide, ref) > 1e-3


@pytest.mark.parametrize("pos, T", [(0, 1), (0, 65), (100_000, 7)])
def test_rope_two_ways(pos, T):
    x = np.random.default_rng(T).normal(size=(T, 2, 8))
    fast = M.rope(torch.tensor(x)[None], M.turns(pos, T, 8, dtype=torch.float64))[0]
    for t in range(T):
        for j in range(4):
            z = (x[t, :, 2 * j] + 1j * x[t, :, 2 * j + 1]) * np.exp(1j * (pos + t) * 10000 ** (-2 * j / 8))
            assert np.allclose(fast[t, :, 2 * j], z.real, atol=1e-10)
            assert np.allclose(fast[t, :, 2 * j + 1], z.imag, atol=1e-10)
    if pos == 0:
        assert relative(fast, M.rope_ref(x)) < 1e-12


def test_backwards_by_hand():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(M.rms_norm, x)
    assert torch.autograd.gradcheck(M.relu2, x)
    assert relative(M.rms_norm(x).detach(), M.rms_norm_ref(x.detach().numpy())) < 1e-12


@pytest.mark.parametrize("f", [M.rms_norm, M.relu2])
def test_second_derivatives_are_refused(f):
    """A backward by hand is not differentiated again, and says so instead of giving a wrong number."""
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(f(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 0.3, 1.0, 4.0])
def test_bode(gamma):
    w = np.linspace(0.01, math.pi, 64)
    H, measured = M.response(w, gamma), M.measured_response(w, gamma)
    assert abs(abs(measured) - abs(H)).max() < 1e-9 and abs(measured - H).max() < 1e-9
    assert abs(measured - M.response(w, gamma + 0.1)).max() > 1e-3, "a wrong gamma must be seen"
    constant, alternating = torch.ones(1, 6, 1), torch.tensor([1.0, -1.0]).repeat(3)[None, :, None]
    g = torch.tensor([gamma])
    assert torch.equal(M.shear(constant, g), constant)
    assert torch.allclose(M.shear(alternating, g)[:, 1:], (1 + 2 * gamma) * alternating[:, 1:])


@torch.no_grad()
def test_gamma_zero_is_the_plain_transformer_bit_for_bit(monkeypatch):
    torch.manual_seed(0)
    model = M.Model(M.Config(vocab_size=30, block_size=16, n_layer=2, n_embd=32, n_head=2, gamma=0.0)).eval()
    for p in model.parameters():
        p += 0.1 * torch.randn_like(p) * (p.shape != (2, 2, 1))
    idx, state = torch.randint(30, (2, 40)), {}
    with_shear = model(idx)[0], model(idx, state=state)[0]
    monkeypatch.setattr(M, "shear", lambda x, gamma, last=None: x)
    assert torch.equal(model(idx)[0], with_shear[0]) and torch.equal(model(idx)[0], with_shear[1])
    monkeypatch.undo()
    model.blocks[0].attn.gamma.fill_(0.5)
    assert not torch.equal(model(idx)[0], with_shear[0])


def test_recall_needs_the_values_in_another_order():
    idx, targets = M.recall_batch(200, generator=torch.Generator().manual_seed(0))
    told, asked = idx[:, :16:2], idx[:, 16::2]
    assert torch.equal(told.sort(1).values, asked.sort(1).values) and (told != asked).any(1).float().mean() > 0.9
    answers = targets[:, 16::2]
    where = (told[:, None] == asked[:, :, None]).int().argmax(-1)
    assert torch.equal(idx[:, 1:16:2].gather(1, where), answers)
    assert (targets != -100).sum() == 200 * 8
