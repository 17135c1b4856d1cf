"""advection_glu.py: the transport two ways, and what the page says of sign, scale, gauge and zero viscosity."""
import numpy as np
import pytest
import torch

from train import load_model

A = load_model("advection_glu")
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257)


def gap(advection, T, width):
    """Largest relative difference between a torch transport and the loop; width of nu: M or 1."""
    rng, M = np.random.default_rng(T), 6
    ug, s, alpha = rng.normal(size=(T, 2 * M)), rng.normal(size=(T, width)), 0.7
    ref = A.advection_ref(ug, s, alpha)
    fast = advection(*(torch.tensor(v, dtype=torch.float64) for v in (ug, s, alpha))).numpy()
    return abs(fast - ref).max() / abs(ref).max()


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("width", [1, 6])
def test_advection_two_ways(T, width):
    assert (error := gap(A.advection, T, width)) < 1e-12, f"{error:.1e} relative"


def test_advection_check_can_fail():
    assert min(gap(lambda ug, s, alpha: -A.advection(ug, s, alpha), 7, 6),
               gap(lambda ug, s, alpha: A.advection(ug, s.roll(1, 0), alpha), 7, 6)) > 1e-2


@pytest.mark.parametrize("width", [1, 3])
def test_backward_by_hand(width):
    g = torch.Generator().manual_seed(0)
    shapes = (2, 4, 6), (2, 4, width), ()
    inputs = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(A.advection, inputs)


@pytest.mark.parametrize("slow", ["block", "token", "off"])
def test_slow_rope_two_ways(slow):
    c, z = A.Config(n_embd=8, n_head=2, block_size=16, slow=slow), np.random.default_rng(0).normal(size=(40, 8))
    turn = A.slow_turns(0, 40, c, dtype=torch.float64)
    fast = torch.tensor(z) if turn is None else A.rope(torch.tensor(z)[None, :, None], turn)[0, :, 0]
    assert abs(fast.numpy() - A.slow_rope_ref(z, 16, slow)).max() < 1e-12


def branch(**changes):
    torch.manual_seed(0)
    c = A.Config(n_embd=32, n_head=2, **changes)
    ffn = A.AdvectionGLU(c).double()
    for p in ffn.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 0), std=0.2)  # nu far above the norm's epsilon
    return ffn, torch.randn(1, 9, 32, dtype=torch.float64), A.slow_turns(0, 9, c, dtype=torch.float64)


@pytest.mark.parametrize("viscosity", ["channel", "token"])
@torch.no_grad()
def test_the_gauge(viscosity):
    """In legacy mode a factor common to all channels of a token does nothing; in pre-LN mode it does."""
    for pre_ln in (False, True):
        ffn, z, slow = branch(pre_ln=pre_ln, viscosity=viscosity)
        before = ffn(z, slow)
        ffn.nu_up.weight.mul_(-1)
        moved = (ffn(z, slow) - before).abs().max() / before.abs().max()
        assert (moved < 1e-4) == (not pre_ln and viscosity == "token"), f"pre_ln={pre_ln}: {moved:.1e}"
        before = ffn(z, slow)
        ffn.alpha_adv.mul_(3)                           # its size is gauge in legacy mode, whatever the viscosity
        moved = (ffn(z, slow) - before).abs().max() / before.abs().max()
        assert (moved < 1e-4) == (not pre_ln), f"pre_ln={pre_ln}: {moved:.1e}"


@torch.no_grad()
def test_sign_homogeneity_and_zero_viscosity():
    ffn, z, slow = branch(pre_ln=False)
    before = ffn(z, slow)
    ffn.alpha_adv.mul_(-1)
    assert torch.equal(ffn(z, slow), -before)
    ffn.nu_up.weight.zero_()                            # nu held fixed
    assert torch.allclose(ffn.adv(3 * z, slow), 9 * ffn.adv(z, slow), rtol=1e-12)
    ffn, z, slow = branch(pre_ln=True)
    ffn.nu_up.weight.zero_()
    ffn.nu_up.bias.fill_(-1e4)
    assert ffn(z, slow).abs().max() == 0


def test_a_branch_has_the_parameters_of_a_4c_mlp():
    for changes in (dict(), dict(viscosity="token"), dict(nu_rank=0), dict(n_embd=256)):
        c = A.Config(**changes)
        size = sum(p.numel() for p in A.AdvectionGLU(c).parameters())
        assert abs(size / (8 * c.n_embd ** 2) - 1) < 0.02, f"{changes}: {size}"
