"""momentum.py: kernels two ways, the Bode formula, gamma = 0 is the plain transformer, induction in one layer."""
import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import awake, tokens

from common.checkpoint import ROOT, load_model

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
    fast = M.rope(torch.tensor(x)[None], M.rotation(torch.arange(pos, pos + T, dtype=torch.float64), 8))[0]
    for t in range(T):
        for j in range(4):
            z = (x[t, :, 2 * j] + 1j * x[t, :, 2 * j + 1]) * np.exp(1j * (pos + t) * 10000 ** (-2 * j / 8))
            assert np.allclose(fast[t, :, 2 * j], z.real, atol=1e-10)
            assert np.allclose(fast[t, :, 2 * j + 1], z.imag, atol=1e-10)
    if pos == 0:
        assert relative(fast, M.rope_ref(x)) < 1e-12


def test_rms_norm_two_ways():
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    assert relative(M.rms_norm(torch.tensor(x)), M.rms_norm_ref(x)) < 1e-12
    assert relative((M.rms_norm(torch.tensor(x)) ** 2).mean(-1), np.ones((2, 5))) < 1e-5


@torch.no_grad()
def test_relu_squared():
    mlp = M.MLP(M.Config(n_embd=8, n_head=1)).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    hidden = np.maximum(x.numpy() @ mlp.fc.weight.numpy().T, 0) ** 2
    assert relative(mlp(x), hidden @ mlp.proj.weight.numpy().T) < 1e-12


def test_gamma_learns_by_its_true_slope():
    """Gradients of the input and of gamma through a whole attention layer, against finite differences."""
    torch.manual_seed(0)
    attn = M.Attention(M.Config(n_embd=8, n_head=2, learn_gamma=True)).double()
    turn = M.rotation(torch.arange(5, dtype=torch.float64), 4)
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)

    def run(x, gamma):
        return torch.func.functional_call(attn, {"gamma": gamma}, (x, turn))
    assert torch.autograd.gradcheck(run, (x, attn.gamma))


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


@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
def test_largest_phase(gamma):
    """It is asin(gamma / (1 + gamma)), where cos w = gamma / (1 + gamma)."""
    ratio = gamma / (1 + gamma)
    largest = np.angle(M.response(np.linspace(0, math.pi, 10_001), gamma)).max()
    assert abs(largest - math.asin(ratio)) < 1e-6
    assert abs(np.angle(M.response(math.acos(ratio), gamma)) - math.asin(ratio)) < 1e-12


@pytest.mark.parametrize("gamma", [-0.5, 0.3, 1.0])
def test_a_step_keeps_areas_and_a_text_does_not(gamma):
    """Determinants of what `shear` does: 1 for the step (q, p) -> (q + gamma p, p), (1 + gamma)^(T-1) for T tokens."""
    def step(z):
        q, p = z
        before_and_now = torch.stack((q - p, q))[None]
        return torch.stack((M.shear(before_and_now, gamma)[0, 1], p))
    matrix = torch.autograd.functional.jacobian(step, torch.randn(2, dtype=torch.float64))
    assert torch.allclose(matrix, torch.tensor([[1, gamma], [0, 1]], dtype=torch.float64))
    assert abs(torch.det(matrix) - 1) < 1e-12
    for T in (1, 2, 8, 33):
        whole = torch.det(M.shear(torch.eye(T, dtype=torch.float64), gamma))
        assert abs(whole / (1 + gamma) ** (T - 1) - 1) < 1e-12, T


@torch.no_grad()
def test_gamma_zero_is_the_plain_transformer_bit_for_bit(monkeypatch):
    torch.manual_seed(0)
    model = M.Model(M.Config(vocab_size=30, block_size=16, n_layer=2, n_embd=32, n_head=2, gamma=0.0)).eval()
    for name, p in model.named_parameters():
        if not name.endswith("gamma"):
            p += 0.1 * torch.randn_like(p)
    idx, state = torch.randint(30, (2, 40)), {}
    with_shear = model(idx)[0], model(idx, state=state)[0]
    monkeypatch.setattr(M, "shear", lambda x, gamma, last=None: x)
    assert torch.equal(model(idx)[0], with_shear[0]) and torch.equal(model(idx)[0], with_shear[1])
    monkeypatch.undo()
    model.blocks[0].attn.gamma.fill_(0.5)
    assert not torch.equal(model(idx)[0], with_shear[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qk", "k", "q"])
def test_attention_weights(kind):
    """What the portrait draws is the softmax of the sheared q . k over the last block_size tokens."""
    torch.manual_seed(0)
    config = M.Config(vocab_size=30, block_size=6, n_layer=2, n_embd=32, n_head=2, gamma=0.7, shear=kind,
                      temperature=0.5)
    model = M.Model(config).double()
    for name, p in model.named_parameters():
        if not name.endswith("gamma"):
            p += 0.1 * torch.randn_like(p)
    idx = torch.randint(30, (1, 9))
    logits = model(idx)[0]
    for gamma in (None, 0.0, 2.0):
        weights = M.attention_weights(model, idx, gamma)
        assert weights.shape == (2, 2, 9, 9) and np.allclose(weights.sum(-1), 1)
        assert not np.triu(weights, 1).any() and not np.tril(weights, -6).any()
        x = M.rms_norm(M.rms_norm(model.wte(idx)))
        q, k, v = model.blocks[0].attn.qkv(x).numpy().reshape(9, 3, 2, 16).swapaxes(0, 1)
        strength = np.full((2, 1), 0.7 if gamma is None else gamma)
        q, k = (M.shear_ref(y, strength) if name in kind else y
                for name, y in (("q", M.rope_ref(M.rms_norm_ref(q))), ("k", M.rope_ref(M.rms_norm_ref(k)))))
        score = np.exp(k[2:8, 1] @ q[7, 1] / 4 / 0.5)            # token 7 sees the tokens 2 .. 7; head 1, D = 16
        assert np.allclose(weights[0, 1, 7, 2:8], score / score.sum()), gamma
    assert torch.equal(model(idx)[0], logits), "the model is as it was"


@pytest.mark.parametrize("shear", ["qk", "k"])
def test_trace_from_the_equations(shear):
    """Layer 0 in NumPy: |q_t - q_{t-1}| / |q_t|, and the attention on tokens that stand behind the same one."""
    model = awake(M, shear=shear, block_size=9)
    c, text = model.config, tokens((14,)) % 3                    # three symbols: they come again
    p = {key: value.numpy() for key, value in model.state_dict().items()}
    x = M.rms_norm_ref(M.rms_norm_ref(p["wte.weight"][text]))
    q, k, _ = (x @ p["blocks.0.attn.qkv.weight"].T).reshape(-1, 3, c.n_head, c.n_embd // c.n_head).swapaxes(0, 1)
    q, k = M.rope_ref(M.rms_norm_ref(q) / c.temperature), M.rope_ref(M.rms_norm_ref(k))
    size = lambda v: np.sqrt((v * v).sum(-1))
    seen = M.trace(model, text[None])
    speed = np.concatenate(([0], (size(q[1:] - q[:-1]) / size(q[1:])).mean(1)))
    assert relative(seen["momentum"][0][0], speed) < 1e-12
    gamma = p["blocks.0.attn.gamma"]
    if "q" in shear:
        q = M.shear_ref(q, gamma[0])
    value = np.eye(14)[:, None].repeat(c.n_head, 1)              # so attention returns its own weights
    weight = M.attention_ref(q, M.shear_ref(k, gamma[1]), value, 9)              # (T, H, S)
    found, spread = np.zeros(14), np.zeros(14)
    for t in range(14):
        for h in range(c.n_head):
            found[t] += sum(weight[t, h, s] for s in range(1, t + 1) if text[s - 1] == text[t]) / c.n_head
            w = weight[t, h][weight[t, h] > 0]
            spread[t] += np.exp(-(w * np.log(w)).sum()) / c.n_head
    assert found.max() > 0.1 and relative(seen["induction"][0][0], found) < 1e-12
    assert relative(seen["spread of attention"][0][0], spread) < 1e-12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("block_size, tokens", [(1, 1), (2, 3), (16, 512)])
def test_portrait_of_an_untrained_model(block_size, tokens, tmp_path):
    model = M.Model(M.Config(vocab_size=3, block_size=block_size, n_layer=1, n_embd=2, n_head=1))
    M.portrait(model, np.arange(tokens) % 3, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 20_000


def test_the_circuit_of_the_portrait_draws_a_stripe():
    torch.manual_seed(0)
    model = M.induction_circuit()
    twice = torch.randperm(32)[:16].repeat(2)[None]
    share = [M.attention_weights(model, twice, gamma)[0, 0].diagonal(-15)[1:].mean() for gamma in (None, 0.0)]
    assert share[0] > 0.6 and share[1] < 0.2, share


@pytest.fixture
def induction(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("induction")


def test_recall_needs_the_values_in_another_order(induction):
    idx, targets = induction.recall_batch(200, 8, generator=torch.Generator().manual_seed(0))
    told, asked = idx[:, :16:2], idx[:, 16::2]
    assert torch.equal(told.sort(1).values, asked.sort(1).values) and (told != asked).any(1).float().mean() > 0.9
    answers = targets[:, 16::2]
    where = (told[:, None] == asked[:, :, None]).int().argmax(-1)
    assert torch.equal(idx[:, 1:16:2].gather(1, where), answers)
    assert (targets != -100).sum() == 200 * 8 and idx.max() < 32
    assert set(told.flatten().tolist()) & set(answers.flatten().tolist()), "one vocabulary"


def test_one_layer_recalls_with_momentum_and_cannot_without(induction):
    accuracy = {gamma: induction.train_recall(1, "qk", gamma, True, 1.0, 0, 120)[0] for gamma in (1.0, 0.0)}
    assert accuracy[1.0] >= 0.2 and accuracy[0.0] <= 0.12, accuracy


def test_a_circuit_without_the_norm(induction):
    """Twice as long queries change a score that is not normalised, and no other; the shear is still there."""
    for norm in (True, False):
        model = M.Model(M.Config(n_layer=1, mlp=False, gamma=1.0))
        if not norm:
            induction.without_norm(model)
        attn = model.blocks[0].attn
        x, turn = torch.randn(1, 5, 128), M.rotation(torch.arange(5.0), 32).to(torch.complex64)
        before = attn.qk(x, turn)
        with torch.no_grad():
            attn.qkv.weight[:128] *= 2
        after = attn.qk(x, turn)
        assert relative(after[0].detach(), (before[0] if norm else 2 * before[0]).detach()) < 1e-4
        assert torch.equal(before[1], after[1]) and M.rms_norm(2 * x).std() < 1.1
        assert relative(attn.qk(x, turn, gamma=0.0)[0].detach(), after[0].detach()) > 0.1


def test_the_best_gamma_and_its_law(induction):
    """Found again where it was put: on a fine grid, in the middle of a valley, with its exponent and its interval."""
    gammas = 2 ** (np.arange(-6, 7) / 2)
    for true in (0.4, 1.0, 3.1):
        assert induction.optimum(gammas, 2 + np.log(gammas / true) ** 2) == pytest.approx(true, rel=1e-6)
    assert induction.optimum(gammas, 3 - gammas) == pytest.approx(8)         # no valley: the end of the grid
    rng = np.random.default_rng(0)
    rows = [dict(layers=n, shear="qk", gamma=g, norm="True", louder=1.0, seed=seed, steps=9, longest=0,
                 loss=2 + np.log(g / (2 * n ** -0.5)) ** 2 + 0.01 * rng.normal())
            for n in (1, 2, 4) for g in gammas for seed in range(5)]
    best, (exponent, low, high) = induction.law(rows)
    assert low < exponent < high and exponent == pytest.approx(-0.5, abs=0.05) and high - low < 0.2
    assert best[4][0] == pytest.approx(1, rel=0.05) and best[4][1] <= best[4][0] <= best[4][2]


def test_gamma_begins_as_the_setting_says():
    for learn in (False, True):
        for block in M.Model(M.Config(gamma=0.7, learn_gamma=learn)).blocks:
            assert (block.attn.gamma == 0.7).all() and block.attn.gamma.requires_grad == learn
