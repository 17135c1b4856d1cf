"""
Momentum attention: a transformer whose queries and keys know which way they are moving.

    p_t  = q_t - q_{t-1}            the kinematic difference of neighbouring queries, p_0 = 0
    q^_t = q_t + gamma p_t          the shear; the same for keys; values are left alone
    y_t  = sum_s softmax_s( q^_t . k^_s / sqrt(D) ) v_s          s = t - block_size + 1 .. t

A sheared key carries a trace of the token *before* it, so one layer can ask "what came after the last x?": induction,
for which a plain transformer needs two layers. Seen as a filter along the sequence the shear is

    H(w) = (1 + gamma) - gamma e^{-iw}      gain 1 at w = 0, gain 1 + 2 gamma at w = pi

The seed calls it a high-pass; with a gain of 1 at w = 0 an engineer would say high-shelf. The seed calls it symplectic:
one step (q, p) -> (q + gamma p, p) has determinant 1, but the map of a whole *sequence* has (1 + gamma)^(T-1) per
channel, and the self-check prints both. gamma = 0 is a plain RoPE transformer: the baseline of this repo.

    code            symbol      meaning                                              shape
    gamma           gamma       strength of the shear, for q and k of each head      (2, H, 1)
    q, k, v         q, k, v     queries, keys (after RoPE), values                   (B, T, H, D)
    turn            e^{i t th}  RoPE: a pair of channels is one complex number       (T, 1, D/2)
    state           -           sliding cache of k^, v; the last q and k; position   a dict
    block_size      -           how many tokens a query can see

Source: seed "momentum", arXiv 2602.04902; the follow-up, arXiv 2609.32319, shears keys only. Earlier and more general:
KV Shifting Attention, arXiv 2411.19574, learns both taps of a k_t + b k_{t-1}; here b/a = -gamma/(1+gamma).

What we changed, and why: gamma = 0.3, with which three layers learn faster at first and end where gamma = 0 does (the
seed's law says 1.8; already 1 costs); RMSNorm on q and k, so the shear cannot blow up the scores; relu^2 for GELU and
output projections that start at zero, which train better in three minutes; norms without gain: the next matrix has one.

Run `python momentum.py` for the proof and a picture, `python train.py model=momentum` to train it.
"""
import math
import os
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


@dataclass
class Config:
    vocab_size: int = 256                     # tokens in the vocabulary; the data set decides
    block_size: int = 128                     # tokens a query can see, itself included
    n_layer: int = 3                          # transformer blocks
    n_head: int = 4                           # attention heads
    n_embd: int = 128                         # channels
    dropout: float = 0.0                      # on both residual branches, while training
    gamma: float = 0.3                        # strength of the shear; 0 is the plain transformer
    learn_gamma: bool = False                 # learn one gamma per head, for q and for k, starting at gamma
    shear: Literal["qk", "k", "q"] = "qk"     # what is sheared
    mlp: bool = True                          # False: attention only, the circuit of the induction experiments

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} heads of even width")


PRESETS = {"seed": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024)}       # the shape of the paper's 125M


# The reference: plain NumPy, float64, loops. It shares nothing with the fast version below.

def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x), over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rope_ref(x, base=10000.0):                                   # (T, H, D) -> (T, H, D)
    """Rotate the channel pair (2j, 2j+1) of token t by the angle t base^(-2j/D)  (RoFormer, eq. 34)."""
    T, H, D = x.shape
    y = np.empty_like(x)
    for t in range(T):
        for j in range(D // 2):
            c, s = math.cos(t * base ** (-2 * j / D)), math.sin(t * base ** (-2 * j / D))
            y[t, :, 2 * j] = c * x[t, :, 2 * j] - s * x[t, :, 2 * j + 1]
            y[t, :, 2 * j + 1] = s * x[t, :, 2 * j] + c * x[t, :, 2 * j + 1]
    return y


def shear_ref(x, gamma, last=None):                              # (T, H, D), (H, 1), (H, D) or None -> (T, H, D)
    """x^_t = x_t + gamma (x_t - x_{t-1}), and x^_0 = x_0 unless a stream says what came `last`  (seed, abstract)."""
    y = np.empty_like(x)
    for t in range(len(x)):
        prev = x[t - 1] if t > 0 else x[0] if last is None else last
        y[t] = x[t] + gamma * (x[t] - prev)
    return y


def attention_ref(q, k, v, window):                              # 3 x (T, H, D) -> (T, H, D)
    """y_t = sum_s softmax_s(q_t . k_s / sqrt(D)) v_s over the last `window` tokens s <= t."""
    T, H, D = q.shape
    y = np.empty_like(v)
    for t in range(T):
        s = slice(max(0, t - window + 1), t + 1)
        score = np.einsum("hd,shd->hs", q[t], k[s]) / math.sqrt(D)
        w = np.exp(score - score.max(-1, keepdims=True))
        y[t] = np.einsum("hs,shd->hd", w / w.sum(-1, keepdims=True), v[s])
    return y


def forward_ref(params, idx, config):                            # {name: array}, (B, T) -> logits (B, T, V)
    """The whole model in NumPy, one sequence at a time. `params` are the float64 arrays of Model.state_dict()."""
    p, H, D = params, config.n_head, config.n_embd // config.n_head
    logits = np.empty((*idx.shape, config.vocab_size))
    for b, tokens in enumerate(idx):
        x = rms_norm_ref(p["wte.weight"][tokens])                                               # (T, C)
        for l in range(config.n_layer):
            qkv = rms_norm_ref(x) @ p[f"blocks.{l}.attn.qkv.weight"].T                          # (T, 3C)
            q, k, v = qkv.reshape(-1, 3, H, D).transpose(1, 0, 2, 3)                            # 3 x (T, H, D)
            g = p[f"blocks.{l}.attn.gamma"]
            q, k = rope_ref(rms_norm_ref(q)), rope_ref(rms_norm_ref(k))
            q = shear_ref(q, g[0] if "q" in config.shear else 0 * g[0])
            k = shear_ref(k, g[1] if "k" in config.shear else 0 * g[1])
            y = attention_ref(q, k, v, config.block_size).reshape(-1, config.n_embd)
            x = x + y @ p[f"blocks.{l}.attn.proj.weight"].T
            if config.mlp:
                h = np.maximum(rms_norm_ref(x) @ p[f"blocks.{l}.mlp.fc.weight"].T, 0) ** 2      # (T, 4C)
                x = x + h @ p[f"blocks.{l}.mlp.proj.weight"].T
        logits[b] = rms_norm_ref(x) @ p["wte.weight"].T
    return logits


# The same in torch, fast.

class RMSNorm(torch.autograd.Function):
    """x / rms(x), with a backward by hand: torch's own rms_norm is four times slower on a CPU."""

    @staticmethod
    def forward(ctx, x):
        r = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + 1e-6)
        y = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        y, r = ctx.saved_tensors
        return torch.addcmul(g, y, (g * y).mean(-1, keepdim=True), value=-1).mul_(r)    # r (g - y mean(g y))


class ReLU2(torch.autograd.Function):
    """relu(x)^2, keeping one tensor where autograd would keep two."""

    @staticmethod
    def forward(ctx, x):
        h = x.clamp(min=0)
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return (g * ctx.saved_tensors[0]).mul_(2)


def rms_norm(x):                                                 # (..., C) -> (..., C)
    """x / rms(x), over the last axis; without a backward to come, torch's own has fewer calls to make."""
    return RMSNorm.apply(x) if torch.is_grad_enabled() else F.rms_norm(x, x.shape[-1:], eps=1e-6)


relu2 = ReLU2.apply


def turns(pos, T, D, base=10000.0, device=None, dtype=torch.float32):
    """RoPE's rotations e^{i t base^(-2j/D)}, t = pos .. pos+T-1. In float64 on the CPU: exact for any t and device."""
    freq = base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(pos, pos + T, dtype=torch.float64), freq)[:, None]
    return torch.polar(torch.ones_like(angle), angle).to(device, dtype.to_complex())            # (T, 1, D/2)


def rope(x, turn):                                               # (..., T, H, D), (T, 1, D/2) -> (..., T, H, D)
    """Rotate the channel pairs (2j, 2j+1), each read as one complex number."""
    z = torch.view_as_complex(x.to(turn.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * turn).flatten(-2)


def shear(x, gamma, last=None):                                  # (B, T, ..., D), (..., 1), (B, 1, ..., D) -> as x
    """x_t + gamma (x_t - x_{t-1}); lerp(a, b, w) is a + w (b - a), so this is one pass over memory."""
    prev = torch.cat((x[:, :1] if last is None else last, x[:, :-1]), 1)
    return torch.lerp(x, prev, -gamma.to(x.dtype).expand_as(x[:1, :1]))


def attention(q, k, v, window):                                  # (B, T, H, D), 2 x (B, S, H, D) -> (B, T, H, D)
    """Causal attention of the T newest of S tokens, each over the last `window` tokens."""
    T, S = q.shape[1], k.shape[1]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)                          # (B, H, T | S, D)
    if T == S <= window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    t, s = torch.arange(S - T, S, device=q.device)[:, None], torch.arange(S, device=q.device)
    band = (s <= t) & (s > t - window)                                                         # (T, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=band).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.window = config.n_head, config.block_size
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        gamma = torch.full((2, config.n_head, 1), float(config.gamma))
        self.gamma = nn.Parameter(gamma, requires_grad=config.learn_gamma)
        sheared = torch.tensor([float(name in config.shear) for name in "qk"])[:, None, None]
        self.register_buffer("sheared", sheared, persistent=False)                             # (2, 1, 1)

    def qk(self, x, turn, state=None):                           # (B, T, C) -> sheared q, k; v: each (B, T, H, D)
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1))                                  # (B, T, 3, H, D)
        qk, v = qkv.split((2, 1), 2)
        qk, v = rope(rms_norm(qk), turn.unsqueeze(1)), v.squeeze(2)                            # (B, T, 2, H, D)
        last = None if state is None else state.get("last")
        if state is not None:
            state["last"] = qk[:, -1:]
        return *shear(qk, self.gamma * self.sheared, last).unbind(2), v.to(qk.dtype)

    def forward(self, x, turn, state=None):                      # (B, T, C) -> (B, T, C)
        q, k, v = self.qk(x, turn, state)
        if state is not None:
            W, T = self.window, x.shape[1]
            if "k" in state:
                k, v = torch.cat((state["k"], k), 1), torch.cat((state["v"], v), 1)
            k, v = k[:, -(W + T - 1):], v[:, -(W + T - 1):]      # the oldest of the T queries sees W tokens
            state["k"], state["v"] = k[:, -W:], v[:, -W:]
        return self.proj(attention(q, k, v, self.window).flatten(2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        return self.proj(relu2(self.fc(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config) if config.mlp else None
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x, turn, state=None):
        x = x + self.drop(self.attn(rms_norm(x), turn, state))
        return x if self.mlp is None else x + self.drop(self.mlp(rms_norm(x)))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)            # also the head: tied
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.zeros_(p)                                            # each block starts as the identity
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.01 if name == "wte.weight" else 0.5 * p.shape[1] ** -0.5)

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss or None
        """`state`: a dict, empty at the start of a stream. It is filled; pass it again with the next tokens."""
        c, pos = self.config, 0 if state is None else state.get("pos", 0)
        turn = turns(pos, idx.shape[1], c.n_embd // c.n_head, device=idx.device, dtype=self.wte.weight.dtype)
        x = rms_norm(self.wte(idx))                                          # (B, T, C)
        for l, block in enumerate(self.blocks):
            x = block(x, turn, None if state is None else state.setdefault(l, {}))
        if state is not None:
            state["pos"] = pos + idx.shape[1]
        logits = F.linear(rms_norm(x), self.wte.weight)                      # (B, T, C) x (V, C) -> (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# The physics, drawn and checked.

def response(w, gamma):                                          # (n,) radians per token -> complex (n,)
    """The Bode formula H(w) = (1 + gamma) - gamma e^{-iw}."""
    return (1 + gamma) - gamma * np.exp(-1j * w)


def measured_response(w, gamma):                                 # (n,) -> complex (n,)
    """What `shear` does to e^{iwt}: its output over its input, once the first token (p_0 = 0) is behind us."""
    t = torch.arange(4, dtype=torch.float64)
    angle = torch.as_tensor(w)[:, None, None] * t[:, None]                                     # (n, T, 1)
    g = torch.tensor([gamma], dtype=torch.float64)
    y = torch.complex(shear(angle.cos(), g), shear(angle.sin(), g))
    return (y / torch.polar(torch.ones_like(angle), angle))[:, -1, 0].numpy()


def recall_batch(n, pairs=8, symbols=32, generator=None):        # -> idx, targets (n, 4 * pairs - 1)
    """Associative recall: `pairs` of key and value, then the keys again in *another order*, each to be answered with
    its value; targets are -100 except at the answers. In the same order, position alone would solve it."""
    keys = torch.rand(n, symbols, generator=generator).argsort(1)[:, :pairs]
    values = symbols + torch.randint(symbols, (n, pairs), generator=generator)
    order = torch.rand(n, pairs, generator=generator).argsort(1)
    told = torch.stack((keys, values), 2).flatten(1)
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), 2).flatten(1)
    seq = torch.cat((told, asked), 1)
    targets = torch.full_like(seq[:, 1:], -100)
    targets[:, 2 * pairs::2] = asked[:, 1::2]
    return seq[:, :-1], targets


def train_recall(config, steps, seed=0):                         # -> Model, accuracy on fresh sequences
    """Train a small circuit on associative recall with AdamW."""
    torch.manual_seed(seed)
    data = torch.Generator().manual_seed(seed)
    model = Model(config)
    nn.init.normal_(model.wte.weight, std=0.1)                   # a tied head must tell 64 symbols apart early
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 50, 2 - 2 * step / steps)
        loss = model(*recall_batch(64, generator=data))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    idx, targets = recall_batch(512, generator=data)
    with torch.inference_mode():
        hit = model(idx)[0].argmax(-1) == targets
    return model, (hit.sum() / (targets != -100).sum()).item()


@torch.inference_mode()
def scores(model, idx, sheared=True):                            # (1, T) -> [q (T, H, D), weights (H, T, T)] per layer
    """Queries and attention weights of every layer on idx; sheared=False: as they would be without the shear."""
    c, x, out = model.config, rms_norm(model.wte(idx)), []
    turn = turns(0, idx.shape[1], c.n_embd // c.n_head, device=x.device, dtype=x.dtype)
    for block in model.blocks:
        gamma = block.attn.gamma.clone()
        block.attn.gamma.mul_(sheared)
        q, k, _ = block.attn.qk(rms_norm(x), turn)                                             # (1, T, H, D)
        block.attn.gamma.copy_(gamma)
        s = torch.einsum("thd,shd->hts", q[0], k[0]) / q.shape[-1] ** 0.5
        out.append((q[0], s.masked_fill(torch.ones_like(s).triu(1).bool(), -math.inf).softmax(-1)))
        x = block(x, turn)
    return out


def portrait(model, tokens, path):
    """Bode plot of the shear; attention on a passage read twice, with and without it; the spectrum of q."""
    from matplotlib.figure import Figure
    model.eval()
    fig = Figure(figsize=(13, 7.2), layout="constrained")
    ax = fig.subplots(2, 3)
    w, dots = np.linspace(0.01, math.pi, 200), np.linspace(0.1, math.pi, 16)
    own = model.blocks[0].attn.gamma.mean().item()
    colours = "#0072B2 #999999 #009E73 #E69F00 #D55E00 #CC79A7".split()
    for gamma, colour in zip(sorted({-0.5, 0.0, 0.3, 1.0, 4.0, round(own, 2)}), colours):
        for a, f in ((ax[0, 0], np.abs), (ax[1, 0], np.angle)):
            a.plot(w, f(response(w, gamma)), color=colour, label=f"gamma = {gamma:g}")
            a.plot(dots, f(measured_response(dots, gamma)), "o", ms=4, color=colour)
    ax[0, 0].set(title="The shear is a high-shelf filter", ylabel="gain |H|", yscale="log", ylim=(0.2, 12))
    ax[1, 0].set(title="lines: formula; dots: the torch operator", ylabel="phase of H (radians)")
    ax[0, 0].legend(fontsize=8)
    for a in ax[:, 0]:
        a.set(xlabel="frequency (radians per token)", xticks=[0, math.pi / 2, math.pi], xticklabels=["0", "π/2", "π"])

    half = min(len(tokens), model.config.block_size) // 2
    device = model.wte.weight.device
    idx = torch.as_tensor(np.asarray(tokens[:half]).astype(np.int64), device=device).repeat(2)[None]
    on, off = scores(model, idx), scores(model, idx, sheared=False)
    stripe = torch.stack([wt.diagonal(1 - half, 1, 2).mean(-1) for _, wt in on])               # (L, H)
    l, h = divmod(stripe.argmax().item(), stripe.shape[1])
    for a, maps, name in ((ax[0, 1], on, "with the shear"), (ax[1, 1], off, "same weights, shear off")):
        weight = maps[l][1][h].cpu().numpy()
        a.imshow(np.sqrt(weight), cmap="cividis", vmin=0, vmax=1)
        share = weight.diagonal(1 - half).mean()
        a.set(title=f"{name}: {share:.0%} on the stripe", ylabel="query token", xlabel="key token (a passage, twice)")
        a.plot([1, half], [half, 2 * half - 1], ":", color="white", lw=0.8, alpha=0.6)
    fig.suptitle(f"Momentum attention; of all heads, head {h} of layer {l} puts most weight on the induction stripe")

    freq = 2 * math.pi * np.fft.rfftfreq(2 * half)
    spectrum = lambda q: (torch.fft.rfft(q.float(), dim=0).abs() ** 2).mean((1, 2)).cpu().numpy()
    power = [[spectrum(q) for q, _ in maps] for maps in (off, on)]
    for p, colour, name in zip(power, ("#0072B2", "#D55E00"), ("before", "after")):
        ax[0, 2].semilogy(freq[1:], p[l][1:], color=colour, label=f"q {name} the shear")
        ac = [(p_[freq > math.pi / 2].sum() / p_.sum()).item() for p_ in p]
        ax[1, 2].bar(np.arange(len(ac)) + (-0.2 if name == "before" else 0.2), ac, 0.4, color=colour, label=name)
    ax[0, 2].set(title="spectrum of the queries along the text", xlabel="frequency (radians per token)", ylabel="power")
    ax[1, 2].set(title="share of power above π/2 (the AC band)", xlabel="layer", xticks=range(len(on)), ylim=(0, 1))
    ax[0, 2].legend(fontsize=8)
    ax[1, 2].legend(fontsize=8)
    fig.savefig(path, dpi=110)


@torch.inference_mode()
def self_check():
    """Print every claim of this file with its measured number and its bound; True if all hold."""
    ok = True

    def check(what, value, bound, sign="<="):
        nonlocal ok
        good = value <= bound if sign == "<=" else value >= bound
        ok &= bool(good)
        print(f"{'ok  ' if good else 'FAIL'} {what:<66} {value:9.2e} {sign} {bound:g}")

    rng = np.random.default_rng(0)
    x, gamma, last = rng.normal(size=(9, 4, 8)), rng.normal(size=(4, 1)), rng.normal(size=(4, 8))
    fast = shear(torch.tensor(x)[None], torch.tensor(gamma), torch.tensor(last)[None, None])[0].numpy()
    check("shear: torch against the loop", abs(fast - shear_ref(x, gamma, last)).max(), 1e-12)
    w = np.linspace(0.05, math.pi, 64)
    error = max(abs(measured_response(w, g) - response(w, g)).max() for g in (-0.5, 0.3, 1.0, 4.0))
    check("Bode: measured response against H(w), 64 frequencies", error, 1e-12)
    lead = np.angle(response(np.linspace(0, math.pi, 301), 1.0)).max()                        # pi/3 is among them
    check("largest phase is asin(gamma / (1 + gamma)), gamma = 1", abs(lead - math.asin(1 / 2)), 1e-12)
    step = lambda q, p: (shear_ref(np.array([q - p, q])[:, None, None], np.ones((1, 1)))[1, 0, 0], p)
    check("one step (q, p) -> (q + gamma p, p): |det - 1|", abs(np.linalg.det([step(1., 0.), step(0., 1.)]) - 1), 1e-12)
    maps = np.stack([shear_ref(e[:, None, None], np.ones((1, 1)))[:, 0, 0] for e in np.eye(8)], 1)
    check("the whole sequence is not: |det - (1 + gamma)^(T-1)|, T = 8", abs(np.linalg.det(maps) - 2 ** 7), 1e-9)

    torch.manual_seed(0)
    model = Model(Config(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32)).double().eval()
    for p in model.parameters():                                 # zero-initialised projections would hide mistakes
        p.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(50, (2, 40))
    logits = model(idx)[0]
    ref = forward_ref({k: v.numpy() for k, v in model.state_dict().items()}, idx.numpy(), model.config)
    check("whole model: float64 torch against NumPy, relative", abs(logits.numpy() - ref).max() / abs(ref).max(), 1e-10)
    edited = idx.clone()
    edited[:, 20:] = torch.randint(50, (2, 20))
    check("causality: later tokens move earlier logits by", (model(edited)[0] - logits)[:, :20].abs().max(), 1e-12)
    check("causality: so does the length", (model(idx[:, :20])[0] - logits[:, :20]).abs().max(), 1e-12)
    state = {}
    stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split((1, 1, 5, 20, 1, 12), 1)], 1)
    check("a stream in chunks against one shot, 2.5 blocks", (stream - logits).abs().max(), 1e-9)
    q = torch.randn(1, 9, 4, 8)
    check("gamma = 0 changes no bit of q: numbers that differ", (shear(q, torch.zeros(4, 1)) != q).sum(), 0)

    circuit = dict(vocab_size=64, block_size=32, n_layer=1, n_embd=64, mlp=False)
    with torch.inference_mode(False), torch.enable_grad():
        model, sheared = train_recall(Config(gamma=1.0, **circuit), 400)
        _, unsheared = train_recall(Config(gamma=0.0, **circuit), 400)
    check("one layer, gamma = 1, 400 steps: associative recall", sheared, 0.9, ">=")
    check("one layer, gamma = 0: the same circuit cannot", unsheared, 0.4)
    return ok, model


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    os.makedirs("out", exist_ok=True)
    if "ckpt" in options:                                        # draw a trained model: ckpt=out/momentum/ckpt.pt
        ckpt = torch.load(options["ckpt"], map_location="cpu", weights_only=True)
        model = Model(Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
        tokens, ok = ckpt["tokens"], True
    else:
        ok, model = self_check()
        tokens = recall_batch(1, generator=torch.Generator().manual_seed(1))[0][0, :16]
    portrait(model, tokens, "out/momentum.png")
    print("wrote out/momentum.png")
    sys.exit(not ok)
