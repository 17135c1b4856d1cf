"""advection_glu.py: the transport two ways, and what the page says of sign, scale, gauge and zero viscosity."""
import math

import numpy as np
import pytest
import torch
from helpers import awake, relative, tokens

from common.checkpoint import load_model

A = load_model("advection_glu")
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257)


def gap(advection, T, width):
    """Largest relative difference between a torch transport and the reference; width of nu: M or 1."""
    rng, M = np.random.default_rng(T), 6
    u, g, s, alpha = rng.normal(size=(T, M)), rng.normal(size=(T, M)), rng.normal(size=(T, width)), 0.7
    ref = A.advection_ref(u, g, s, alpha)
    fast = advection(*(torch.tensor(v, dtype=torch.float64) for v in (u, g, s, alpha))).numpy()
    return abs(fast - ref).max() / abs(ref).max()


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("width", [1, 6])
def test_advection_two_ways(T, width):
    assert (error := gap(A.advection, T, width)) < 1e-12, f"{error:.1e} relative"


def test_advection_check_can_fail():
    assert min(gap(lambda u, g, s, alpha: -A.advection(u, g, s, alpha), 7, 6),
               gap(lambda u, g, s, alpha: A.advection(u, g, s.roll(1, 0), alpha), 7, 6)) > 1e-2


def test_advection_by_hand():
    """softplus(log(e - 1)) = 1, so adv = -(0.5 * 1) * 2 * 3; and softplus(0) = log 2."""
    for s, adv in ((math.log(math.e - 1), -3.0), (0.0, -3.0 * math.log(2))):
        u, g, s = np.array([[2.0]]), np.array([[3.0]]), np.array([[s]])
        assert abs(A.advection_ref(u, g, s, 0.5).item() - adv) < 1e-14


@pytest.mark.parametrize("slow", ["block", "token", "off"])
def test_slow_rope_two_ways(slow):
    """Also after the first window, where it stays."""
    config, z = A.Config(n_embd=8, n_head=2, block_size=16, slow=slow), np.random.default_rng(0).normal(size=(40, 8))
    turn = A.Model(config).double().rotations(torch.arange(40, dtype=torch.float64))[1]
    fast = A.slow_rope(torch.tensor(z)[None], turn)[0].numpy()
    ref = A.slow_rope_ref(z, 16, slow)
    assert abs(fast - ref).max() < 1e-12
    assert (abs(ref - z).max() < 1e-12) == (slow == "off")
    assert np.array_equal(ref[0], z[0])                 # no rotation where a text begins


def test_slow_rope_turns_its_fastest_pair_by_one_radian():
    z = np.tile([1.0, 0.0], (20, 1))
    for slow, t, angle in (("block", 8, 0.5), ("token", 1, 1.0), ("block", 18, 15 / 16), ("token", 18, 15.0)):
        assert abs(A.slow_rope_ref(z, 16, slow)[t] - [math.cos(angle), math.sin(angle)]).max() < 1e-14


def branch(**changes):
    torch.manual_seed(0)
    config = A.Config(n_embd=32, n_head=2, **changes)
    ffn = A.AdvectionGLU(config).double()
    for p in ffn.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 0), std=0.2)  # nu far above the norm's epsilon
    slow = A.Model(config).double().rotations(torch.arange(9, dtype=torch.float64))[1]
    return ffn, torch.randn(1, 9, 32, dtype=torch.float64), slow


@pytest.mark.parametrize("viscosity", ["channel", "token"])
@torch.no_grad()
def test_the_gauge(viscosity):
    """In legacy mode a factor common to all channels of a token does nothing; in pre-LN mode it does."""
    for pre_ln in (False, True):
        ffn, z, slow = branch(pre_ln=pre_ln, viscosity=viscosity)
        before = ffn(z, slow)
        ffn.nu_up.weight.mul_(-1)
        moved = (ffn(z, slow) - before).abs().max() / before.abs().max()
        acts = pre_ln or viscosity == "channel"
        assert moved > 1e-2 if acts else moved < 1e-4, f"pre_ln={pre_ln}: {moved:.1e}"
        before = ffn(z, slow)
        ffn.alpha_adv.mul_(3)                           # its size is gauge in legacy mode, whatever the viscosity
        moved = (ffn(z, slow) - before).abs().max() / before.abs().max()
        assert moved > 1e-2 if pre_ln else moved < 1e-4, f"pre_ln={pre_ln}: {moved:.1e}"


@pytest.mark.parametrize("pre_ln", [False, True])
@pytest.mark.parametrize("viscosity", ["channel", "token"])
@torch.no_grad()
def test_the_gauge_of_the_whole_model(pre_ln, viscosity):
    """Quite another viscosity in every block moves the logits, unless it is one nu per token in legacy mode."""
    torch.manual_seed(0)
    config = A.Config(50, 16, 2, 2, 32, pre_ln=pre_ln, viscosity=viscosity)
    model = A.Model(config).double().eval()
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(50, (2, 40))
    logits = model(idx)[0]
    params = {name: p.numpy() for name, p in model.state_dict().items()}
    ref = A.forward_ref(params, idx.numpy(), config)
    assert abs(logits.numpy() - ref).max() / abs(ref).max() < 1e-10
    for block in model.blocks:
        block.ffn.nu_up.weight.neg_()
        block.ffn.nu_up.bias.add_(2)
    moved = (model(idx)[0] - logits).abs().max().item()
    assert moved > 1e-2 if pre_ln or viscosity == "channel" else moved < 1e-4, f"{moved:.1e}"


@torch.no_grad()
def test_of_the_alphas_only_the_product_acts_after_pre_ln():
    ffn, z, slow = branch(pre_ln=True)
    before = ffn(z, slow)
    ffn.alpha_adv.mul_(-4)
    ffn.alpha_mlp.mul_(-0.25)
    assert torch.allclose(ffn(z, slow), before, rtol=1e-12)


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


@torch.no_grad()
def test_the_transport_acts_on_each_token_by_itself():
    """No derivative along the text: what changes one token changes the transport of that token only."""
    ffn, z, slow = branch()
    other = z.clone()
    other[:, 4] += 1
    moved = (ffn(other, slow) - ffn(z, slow)).abs().amax((0, 2))
    assert moved[4] > 1e-2 and moved.sum() == moved[4]


def test_a_branch_has_the_parameters_of_a_4c_mlp():
    for changes in (dict(), dict(viscosity="token"), dict(nu_rank=0), dict(n_embd=256)):
        c = A.Config(**changes)
        size = sum(p.numel() for p in A.AdvectionGLU(c).parameters())
        assert abs(size / (8 * c.n_embd ** 2) - 1) < 0.02, f"{changes}: {size}"


def test_sizes_that_cannot_be():
    for changes in (dict(n_embd=30), dict(n_head=3)):
        with pytest.raises(ValueError, match=next(iter(changes))):
            A.Config(**changes)


def test_trace_from_the_equations():
    """Block 0 in NumPy: the viscosity of the channel where it varies most, and what adv adds."""
    model = awake(A)
    p = {key: value.numpy() for key, value in model.state_dict().items()}
    c, text = model.config, tokens((10,))
    z = A.rms_norm_ref(p["wte.weight"][text])
    qkv = (A.rms_norm_ref(z) @ p["blocks.0.attn.qkv.weight"].T).reshape(10, 3, c.n_head, -1)
    q, k = (A.rope_ref(A.rms_norm_ref(qkv[:, i])) for i in (0, 1))
    y = A.attention_ref(q / c.temperature, k, qkv[:, 2], c.block_size).reshape(z.shape)
    y = y @ p["blocks.0.attn.proj.weight"].T
    z = z + y
    h, ffn = A.rms_norm_ref(z), "blocks.0.ffn."
    u, g = np.split(A.slow_rope_ref(h, c.block_size, c.slow) @ p[ffn + "ug.weight"].T, 2, 1)
    s = h @ p[ffn + "nu_down.weight"].T @ p[ffn + "nu_up.weight"].T + p[ffn + "nu_up.bias"]
    adv = A.advection_ref(u, g, s, p[ffn + "alpha_adv"]) @ p[ffn + "proj.weight"].T * p[ffn + "alpha_mlp"]
    doublings = np.log2(np.logaddexp(0, s))
    truth = {"viscosity": doublings[:, doublings.var(0).argmax()],
             "transport": np.sqrt((adv * adv).sum(1) / c.n_embd), "attention": np.sqrt((y * y).sum(1) / c.n_embd),
             "direction": (adv * z).sum(1) / np.sqrt((adv * adv).sum(1) * (z * z).sum(1))}
    for what, (array, _, _) in A.trace(model, text[None]).items():
        assert relative(array[0], truth[what]) < 1e-5, what      # float32


@pytest.mark.parametrize("changes", [{}, dict(pre_ln=False), dict(pre_ln=False, viscosity="token"), dict(nu_rank=0)])
@pytest.mark.filterwarnings("error")
def test_portrait_of_the_smallest_model(changes, tmp_path):
    model = A.Model(A.Config(5, 1, 1, 1, 2, **changes))
    A.portrait(model, np.array([3, 1]), tmp_path / "a.png")
    A.portrait(model, [3], tmp_path / "b.png", "x")
    assert (tmp_path / "a.png").stat().st_size > 0 < (tmp_path / "b.png").stat().st_size


def test_what_is_drawn_is_what_the_model_does():
    """The portrait repeats the lines of Block: after the last one the latent is that of the model."""
    torch.manual_seed(0)
    model = A.Model(A.Config(50, 16, 2, 2, 32)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    seen = []
    hooks = [block.ffn.register_forward_hook(lambda ffn, args, f: seen.append(f[0])) for block in model.blocks]
    with torch.no_grad():
        model(idx := torch.randint(50, (1, 16)))
    for hook in hooks:
        hook.remove()
    nu, cosine, transport, attention = A.flow(model, idx[0])
    assert nu.shape == cosine.shape == transport.shape == attention.shape == (2, 16)
    assert np.allclose(transport, torch.stack(seen).norm(dim=-1), rtol=1e-5)
    assert abs(cosine).max() <= 1 + 1e-6


def test_slope_two_ways():
    """The upwind derivative: 0 at the start of a text, and a stream goes on from the last token."""
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    whole = A.slope(x)
    assert np.array_equal(whole[0].numpy(), A.slope_ref(x[0].numpy()))
    assert torch.equal(whole[:, 1:], x.diff(dim=1)) and whole[:, 0].abs().max() == 0
    assert torch.equal(A.slope(x[:, 4:], x[:, 3:4]), whole[:, 4:])


@torch.no_grad()
def test_it_begins_with_nu_one():
    """Whatever the token; both alphas are 1, too."""
    for viscosity in ("channel", "token"):
        for block in A.Model(A.Config(viscosity=viscosity)).blocks:
            ffn = block.ffn
            nu = torch.nn.functional.softplus(ffn.nu_up(ffn.nu_down(torch.randn(5, 128))))
            assert (nu - 1).abs().max() < 1e-6
            assert ffn.alpha_adv == ffn.alpha_mlp == 1
