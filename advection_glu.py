"""
Advection-GLU: a transformer whose MLP is a product of two linear maps, scaled by a viscosity nu.

    z      <- z + Attention(norm z)                        z, the latent: a vector for each token
    z      <- z + alpha_mlp FFN(z)                         norm(x) = x / rms(x)
    z_glu  =  RoPE_16180(z)                                channel pairs of z, rotated with position
    adv(z) = -(alpha_adv nu) * (W_u z_glu) * (W_g z_glu)   nu = softplus(W_nu z + b_nu) > 0
    FFN(z) =  W_c norm(adv(z))                             the original ("legacy", pre_ln=False)
    FFN(z) =  W_c adv(norm z)                              our default: normalise first

The original calls adv transport. Real advection, u du/dx, has a derivative, here along the text.
adv has none, treats each token by itself and grows with nu: physicists would call it a source term.
norm(c x) = norm(x) for c > 0, so in legacy mode a factor that all channels of a token share drops
out: one nu per token does nothing, nor does |alpha_adv|. (Physicists call such a number gauge.)

    code             symbol       meaning                                      shape
    ug               W_u, W_g     gated linear unit (GLU): gives u and g       (2M, C)
    nu_down, nu_up   W_nu, b_nu   W_nu = nu_up nu_down; s = W_nu z + b_nu      (R, C), (M, R), (M,)
    alpha_adv, _mlp  alpha        strength of adv; of the whole branch         scalars
    proj             W_c          from M hidden channels back to C             (C, M)
    turn, slow       e^(i angle)  RoPE: rotations, of q and k; slow ones, of z (T, 1, D/2 or C/2)

Source: the original "Advection-GLU", a forum post. It gives adv and FFN; the rest is ours.
Check it with `python advection_glu.py`, train it with `python train.py model=advection_glu`.
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


@dataclass
class Config:
    """Sizes and options. ValueError if n_embd does not divide into heads of an even width."""
    vocab_size: int = 256                     # tokens in the vocabulary; the data set decides
    block_size: int = 128                     # tokens a query can see, itself included
    n_layer: int = 3                          # transformer blocks
    n_head: int = 4                           # attention heads
    n_embd: int = 128                         # channels
    dropout: float = 0.0                      # on both residual branches, while training
    temperature: float = 0.56                 # divides the scores: below 1 attention is sharper
    pre_ln: bool = True                       # normalise z before adv; False: adv itself (legacy)
    viscosity: Literal["channel", "token"] = "channel"  # one nu per hidden channel, or per token
    nu_rank: int = 16                         # rank of W_nu; 0 is full rank
    field: Literal["product", "slope"] = "product"      # slope: W_g reads z_t - z_{t-1}, advection
    slow: Literal["block", "token", "off"] = "block"    # the slow RoPE: at most 1 radian per ...

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} "
                             "heads of even width")

    def hidden(self):                                            # -> M
        """The number of hidden channels that gives the branch the parameters of a 4C MLP, 8 C^2."""
        C = self.n_embd
        per_channel = 3 * C                                      # of W_u, W_g and W_c
        if self.viscosity == "channel":
            per_channel += (self.nu_rank or C) + 1               # of nu_up and its bias
        M = round((8 * C * C - self.nu_rank * C) / per_channel / 8) * 8
        return max(8, M)


PRESETS = {"original": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, pre_ln=False,
                            slow="token")}


# Kernels: the reference in NumPy, and the same in torch right below.

def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x) over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rms_norm(x):                                                 # (..., C) -> (..., C)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def advection_ref(u, g, s, alpha):                               # 2 x (T, M), (T, M | 1) -> (T, M)
    """adv = -(alpha nu) * u * g, with nu = softplus(s) = log(1 + e^s)  (the original, step 3)."""
    nu = np.logaddexp(0, s)
    return -(alpha * nu) * u * g


def advection(u, g, s, alpha):
    return -alpha * F.softplus(s) * u * g


def slope_ref(x, last=None):                                     # (T, M) -> (T, M)
    """x_t - x_{t-1}, the upwind derivative along the text; x_{-1} is `last`, or x_0 at its start."""
    y = np.empty_like(x)
    prev = x[0] if last is None else last
    for t in range(len(x)):
        y[t] = x[t] - prev
        prev = x[t]
    return y


def slope(x, last=None):                                         # (B, T, M) -> (B, T, M)
    before = x[:, :1] if last is None else last
    return x - torch.cat((before, x[:, :-1]), 1)


def rope_ref(x, base=10000.0):                                   # (T, H, D) -> (T, H, D)
    """Rotate the channel pair (2j, 2j+1) of token t by the angle t base^(-2j/D)  (RoFormer, eq. 34)."""
    T, H, D = x.shape
    y = np.empty_like(x)
    for t in range(T):
        for j in range(D // 2):
            angle = t * base ** (-2 * j / D)
            a = x[t, :, 2 * j]
            b = x[t, :, 2 * j + 1]
            y[t, :, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
            y[t, :, 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    return y


def rotation(t, width, base=10000.0):                            # (T,) -> complex (T, 1, width/2)
    """RoPE's e^{i t theta_j}, theta_j = base^(-2j/width). t in float64: exact for any position."""
    theta = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(t, theta)[:, None]
    return torch.polar(torch.ones_like(angle), angle)


def rope(x, turn):                                               # (B, T, H, D), (T, 1, D/2) -> (B, T, H, D)
    """Rotate the channel pairs (2j, 2j+1), each read as one complex number, by `turn`."""
    pairs = x.to(turn.real.dtype).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)


def slow_rope_ref(z, window, slow):                              # (T, C) -> (T, C)
    """Rotate the channel pair (2j, 2j+1) of token t by t' / unit * 16180^(-2j/C), t' = min(t, W-1).

    After W = window tokens it stays: a stream meets no angle that training did not show.
    """
    if slow == "off":
        return z
    unit = window if slow == "block" else 1
    T, C = z.shape
    y = np.empty_like(z)
    for t in range(T):
        for j in range(C // 2):
            angle = min(t, window - 1) / unit * 16180.0 ** (-2 * j / C)
            a = z[t, 2 * j]
            b = z[t, 2 * j + 1]
            y[t, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
            y[t, 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    return y


def slow_rope(z, slow):                                          # (B, T, C), (T, 1, C/2) -> like z
    return rope(z.unsqueeze(2), slow).squeeze(2)                 # all channels are one head


def attention_ref(q, k, v, window):                              # 3 x (T, H, D) -> (T, H, D)
    """y_t = sum_s softmax_s(q_t . k_s / sqrt(D)) v_s over the last `window` tokens s <= t."""
    T, H, D = q.shape
    y = np.empty_like(v)
    for t in range(T):
        seen = slice(max(0, t - window + 1), t + 1)
        score = np.einsum("hd,shd->hs", q[t], k[seen]) / math.sqrt(D)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight = weight / weight.sum(-1, keepdims=True)
        y[t] = np.einsum("hs,shd->hd", weight, v[seen])
    return y


def attention(q, k, v, window):                                  # (B, T, H, D), 2 x (B, S, H, D) -> (B, T, H, D)
    """Attention of the T newest of S tokens, each over the last `window` tokens up to itself."""
    T = q.shape[1]
    S = k.shape[1]
    q = q.transpose(1, 2)                                        # (B, H, T, D)
    k = k.transpose(1, 2)                                        # (B, H, S, D)
    v = v.transpose(1, 2)
    if T == S <= window:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:                                                        # a stream, or a text beyond the window
        t = torch.arange(S - T, S, device=q.device)[:, None]
        s = torch.arange(S, device=q.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(s <= t) & (s > t - window))
    return y.transpose(1, 2)


def remember(state, k, v, window):                               # 2 x (B, T, H, D) -> 2 x (B, S, H, D)
    """Keys and values seen before and now; the state keeps the last `window` of them."""
    if state is None:
        return k, v
    if "k" in state:
        k = torch.cat((state["k"], k), 1)
        v = torch.cat((state["v"], v), 1)
    state["k"] = k[:, -window:]
    state["v"] = v[:, -window:]
    return k, v


# The model.

class Attention(nn.Module):
    """Causal attention over the last block_size tokens, with RMSNorm and RoPE on q and k."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, turn, state=None):                      # (B, T, C) -> (B, T, C)
        c = self.config
        qkv = self.qkv(x).unflatten(-1, (3, c.n_head, -1))       # (B, T, 3, H, D)
        q, k, v = qkv.unbind(2)                                  # (B, T, H, D)
        q = rope(rms_norm(q) / c.temperature, turn)
        k = rope(rms_norm(k), turn)
        k, v = remember(state, k, v.to(q.dtype), c.block_size)
        y = attention(q, k, v, c.block_size)                     # (B, T, H, D)
        return self.proj(y.flatten(2))


class AdvectionGLU(nn.Module):
    """alpha_mlp FFN(z), the branch that this file is about. slow: (T, 1, C/2), see rotations()."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        M = config.hidden()
        R = config.nu_rank
        self.config = config
        self.ug = nn.Linear(C, 2 * M, bias=False)
        self.nu_down = nn.Linear(C, R, bias=False) if R else nn.Identity()
        width = M if config.viscosity == "channel" else 1        # how many nu a token has
        self.nu_up = nn.Linear(R or C, width)
        self.proj = nn.Linear(M, C, bias=False)
        self.alpha_adv = nn.Parameter(torch.ones(()))
        self.alpha_mlp = nn.Parameter(torch.ones(()))

    def adv(self, z, slow, state=None):                          # (B, T, C) -> (B, T, M)
        """Steps 1 to 3 of the original: rotate z slowly, multiply its two maps, scale by nu."""
        z_glu = slow_rope(z, slow)
        u, g = self.ug(z_glu).chunk(2, -1)                       # (B, T, M)
        if self.config.field == "slope":                         # W_g is linear: the slope of W_g z
            last = None if state is None else state.get("g")
            if state is not None:
                state["g"] = g[:, -1:].clone()
            g = slope(g, last)
        s = self.nu_up(self.nu_down(z))                          # (B, T, M), or (B, T, 1)
        return advection(u, g, s, self.alpha_adv)

    def forward(self, z, slow, state=None):                      # (B, T, C) -> (B, T, C)
        """Step 4, the way back to the latent, with a norm on one side of adv or on the other."""
        if self.config.pre_ln:
            adv = self.adv(rms_norm(z), slow, state)
        else:
            adv = rms_norm(self.adv(z, slow, state))
        return self.alpha_mlp * self.proj(adv)


class Block(nn.Module):
    """The first two lines of the equation."""

    def __init__(self, config):
        super().__init__()
        self.attn = Attention(config)
        self.ffn = AdvectionGLU(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, z, turn, slow, state=None):                # (B, T, C) -> (B, T, C)
        z = z + self.drop(self.attn(rms_norm(z), turn, state))
        return z + self.drop(self.ffn(z, slow, state))


class Model(nn.Module):
    """Tokens in, logits of the next token out; the embedding is also the output matrix."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith(("proj.weight", "nu_up.weight")):
                nn.init.zeros_(p)                                # each block starts as the identity
            elif name.endswith("nu_up.bias"):
                nn.init.constant_(p, math.log(math.e - 1))       # softplus gives 1: nu starts at 1
            elif name == "wte.weight":
                nn.init.normal_(p, std=0.01)
            elif name.endswith("weight"):
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def rotations(self, t):                                      # (T,) -> (T, 1, D/2), (T, 1, C/2)
        """RoPE of queries and keys, and the slow RoPE of z, at the positions t (float64)."""
        C = self.config.n_embd
        window = self.config.block_size
        # The slow RoPE counts in blocks or in tokens, and stays after the first block.
        until = t.clamp(max=window - 1)
        slow_t = {"block": until / window, "token": until, "off": 0 * t}
        turn = rotation(t, C // self.config.n_head)
        slow = rotation(slow_t[self.config.slow], C, 16180)
        weight = self.wte.weight
        kind = weight.dtype.to_complex()
        return turn.to(weight.device, kind), slow.to(weight.device, kind)

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss
        """The loss is the cross-entropy in nats per token, or None without targets.

        state: an empty dict at the start of a stream. The model fills it with its position and the
        last block_size keys and values of each block; pass it again with the next tokens.
        """
        T = idx.shape[1]
        pos = 0 if state is None else state.get("pos", 0)
        t = torch.arange(pos, pos + T, dtype=torch.float64)
        turn, slow = self.rotations(t)
        z = rms_norm(self.wte(idx))                              # (B, T, C)
        for l, block in enumerate(self.blocks):
            memory = None if state is None else state.setdefault(l, {})
            z = block(z, turn, slow, memory)
        if state is not None:
            state["pos"] = pos + T
        logits = F.linear(rms_norm(z), self.wte.weight)          # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# Proof.

def forward_ref(params, idx, config):                            # dict, (B, T) -> (B, T, V)
    """The whole model in NumPy. `params`: the float64 arrays of Model.state_dict(), by name."""
    def linear(name, x):
        return x @ params[name + ".weight"].T

    H = config.n_head
    logits = []
    for tokens in idx:
        z = rms_norm_ref(params["wte.weight"][tokens])           # (T, C)
        for l in range(config.n_layer):
            attn = f"blocks.{l}.attn."
            qkv = linear(attn + "qkv", rms_norm_ref(z))          # (T, 3C)
            qkv = qkv.reshape(len(z), 3, H, -1)                  # (T, 3, H, D)
            q = rope_ref(rms_norm_ref(qkv[:, 0]) / config.temperature)    # (T, H, D)
            k = rope_ref(rms_norm_ref(qkv[:, 1]))
            y = attention_ref(q, k, qkv[:, 2], config.block_size)
            z = z + linear(attn + "proj", y.reshape(z.shape))

            ffn = f"blocks.{l}.ffn."
            h = rms_norm_ref(z) if config.pre_ln else z
            z_glu = slow_rope_ref(h, config.block_size, config.slow)
            u, g = np.split(linear(ffn + "ug", z_glu), 2, 1)     # (T, M)
            if config.field == "slope":
                g = slope_ref(g)
            low = linear(ffn + "nu_down", h) if config.nu_rank else h
            s = linear(ffn + "nu_up", low) + params[ffn + "nu_up.bias"]
            adv = advection_ref(u, g, s, params[ffn + "alpha_adv"])
            if not config.pre_ln:
                adv = rms_norm_ref(adv)
            z = z + params[ffn + "alpha_mlp"] * linear(ffn + "proj", adv)
        logits.append(linear("wte", rms_norm_ref(z)))
    return np.stack(logits)


def check(what, value, bound):                                   # -> True if value <= bound
    """Print a claim of this file with its measured number and its bound."""
    holds = bool(value <= bound)
    print(f"{'ok  ' if holds else 'FAIL'} {what:<66} {float(value):9.2e} <= {bound:g}")
    return holds


@torch.enable_grad()
def learn_this_file():                                           # -> Model, losses (140,)
    """Train a small model on the characters of this file: data to draw, and a check of learning."""
    torch.manual_seed(0)
    data = torch.tensor(np.fromfile(__file__, np.uint8), dtype=torch.int64)
    model = Model(Config(block_size=96, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for step in range(140):
        start = torch.randint(len(data) - 96, (16, 1))
        text = data[start + torch.arange(97)]
        loss = model(text[:, :-1], text[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def self_check():                                                # -> True if all holds, the model
    """Print what this file claims, as measured, and teach a small model to spell this file."""
    torch.manual_seed(0)
    # The kernel, and its gauge.
    u, g, s = torch.randn(3, 9, 8, dtype=torch.float64)
    ref = torch.tensor(advection_ref(u.numpy(), g.numpy(), s.numpy(), 0.7))
    error = advection(u, g, s, 0.7) - ref
    gauge = rms_norm(advection(u, g, s[:, :1], 0.7)) - rms_norm(-u * g)
    results = [
        check("adv: torch against NumPy", error.abs().max(), 1e-12),
        check("gauge: one nu per token changes norm(adv) by", gauge.abs().max(), 1e-4)]

    # The whole model, as it is by default; the tests have every other mode.
    config = Config(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32)
    model = Model(config).double().eval()
    for p in model.parameters():                                 # zeros would hide mistakes
        p.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(50, (2, 40))                             # two and a half windows
    logits = model(idx)[0]
    params = {name: p.numpy() for name, p in model.state_dict().items()}
    ref = torch.tensor(forward_ref(params, idx.numpy(), config))
    error = (logits - ref) / ref.abs().max()
    edited = idx.clone()
    edited[:, 20:] = 0
    leak = (model(edited)[0] - logits)[:, :20]
    state = {}
    stream = []
    for chunk in idx.split((1, 20, 7, 12), 1):
        stream.append(model(chunk, state=state)[0])
    gap = torch.cat(stream, 1) - logits
    results += [
        check("whole model: torch against NumPy", error.abs().max(), 1e-10),
        check("causality: later tokens move earlier logits by", leak.abs().max(), 1e-12),
        check("a stream in chunks against the whole text", gap.abs().max(), 1e-9)]

    # Training.
    model, losses = learn_this_file()
    smooth = np.convolve(losses, np.ones(20) / 20, "valid")      # means of 20 steps
    rise = smooth - np.minimum.accumulate(smooth)
    results += [
        check("it learns to spell this file: nats per character", smooth[-1], 2.2),
        check("smoothly: largest rise of the loss, mean of 20 steps", rise.max(), 0.1)]
    return all(results), model


# Picture.

@torch.inference_mode()
def flow(model, idx):                                            # (T,) -> (4, L, T), for L blocks
    """log2 of nu in the channel where it varies most; the cosine of transport and latent; and the
    lengths of what transport and attention add to the latent."""
    turn, slow = model.rotations(torch.arange(len(idx), dtype=torch.float64))
    z = rms_norm(model.wte(idx[None]))                           # (1, T, C)
    rows = []
    for block in model.blocks:
        ffn = block.ffn
        y = block.attn(rms_norm(z), turn)                        # the two lines of Block
        z = z + y
        f = ffn(z, slow)
        s = ffn.nu_up(ffn.nu_down(rms_norm(z) if ffn.config.pre_ln else z))
        nu = F.softplus(s)[0].clamp(1e-9).log2()                 # (T, M), or (T, 1)
        if not ffn.config.pre_ln:
            nu = nu - nu.mean(-1, keepdim=True)                  # what the channels share is gauge
        nu = nu[:, nu.var(0, correction=0).argmax()]
        cosine = F.cosine_similarity(f, z, -1)[0]
        transport = f.norm(dim=-1)[0]
        attention = y.norm(dim=-1)[0]
        rows.append(torch.stack((nu, cosine, transport, attention)))
        z = z + f
    return torch.stack(rows, 1).float().cpu().numpy()


def trace(model, idx):                                           # (1, T) -> {name: (L, T), ...}
    """For the page of a run: viscosity, size and direction of the transport, and attention."""
    nu, cosine, transport, attention = flow(model, idx[0])
    length = model.config.n_embd ** 0.5                          # of the latent before block 0
    return {"viscosity": (nu, "doublings", "log2 of nu, in the channel where it varies most along "
                          "this text; untrained: 0"),
            "transport": (transport / length, "|z_0|", "length of what transport adds to the "
                          "latent, in lengths of an embedding"),
            "direction": (cosine, "cosine", "of transport and latent; 1: it makes the latent "
                          "longer, -1: shorter"),
            "attention": (attention / length, "|z_0|", "length of what attention adds, likewise")}


def portrait(model, tokens, path, text=""):
    """Draw viscosity and direction of the transport over the tokens, which `text` spells, and the
    size of transport and attention."""
    from matplotlib.figure import Figure
    model.eval()
    # Maps over the tokens, a row for each block, with the text below; then a bar for each branch.
    T = min(96, len(tokens), model.config.block_size)
    idx = torch.as_tensor(tokens[:T], dtype=torch.int64, device=model.wte.weight.device)
    nu, cosine, transport, attention = flow(model, idx)
    blocks = np.arange(len(nu))
    unit = "log2 of nu (untrained: 0)"
    if not model.config.pre_ln:
        unit = "log2 of nu / channel mean"
    fig = Figure(figsize=(13, 8), layout="constrained")
    ax = fig.subplots(3, 1)
    image = ax[0].imshow(nu, aspect="auto", cmap="cividis", vmin=-6, vmax=3)
    fig.colorbar(image, ax=ax[0], pad=0.01, label=unit)
    ax[0].set_title("Viscosity, in each block of the channel where it varies most")
    image = ax[1].imshow(cosine, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    fig.colorbar(image, ax=ax[1], pad=0.01, label="cosine")
    ax[1].set_title("Transport along (red) or against (blue) the latent that it is added to")
    if text:
        labels = list(text[:T].replace("\n", "\u21b5").replace(" ", "\u2423"))
        for panel in ax[:2]:
            panel.set_xticks(range(T), labels, family="monospace")
    ax[2].barh(blocks - 0.2, attention.mean(1), 0.4, color="#0072B2", label="attention")
    ax[2].barh(blocks + 0.2, transport.mean(1), 0.4, color="#E69F00", label="transport")
    ax[2].set(title="How much attention and transport add to the latent",
              xlabel="length of the vector that is added, mean over the tokens")
    ax[2].invert_yaxis()
    ax[2].legend()
    for panel in ax:
        panel.set(ylabel="block", yticks=blocks)
    fig.savefig(path, dpi=110)


# What we changed from the original, and why.
#
# The original gives the feed-forward branch and nothing else. Attention, sizes, initial values and
# how the context makes nu are ours. PRESETS["original"] is its formula at the shape of GPT-2 small,
# because it names no size.
#
# The slow RoPE shows the branch absolute positions. At one radian per token for the fastest pair
# (slow="token", the original) half of the channels are scrambled: that costs 0.1 nats a character.
# At one radian per block_size tokens (slow="block") it costs nothing. Either way it stays where
# it is after block_size tokens, because positions never seen in training turn a stream into noise.
#
# pre_ln=True learns better than legacy mode. One nu per token then acts, too, and of the two alphas
# only the product matters. In legacy mode nu does nothing unless it differs between the channels,
# and only the sign of alpha_adv matters: it is the sign of FFN.
#
# There is no activation function: each channel of (W_u z) * (W_g z) is a quadratic form of z, which
# nu scales. A larger nu means more of it, not more friction, and its sign could as well be W_c's.
#
# field="slope" is advection: W_g reads the upwind slope z_t - z_{t-1}, and u grad z carries what u
# meets along the text. A physicist would call the original's product of two maps of one token a
# source, and the slope a transport without a conservation law: nothing keeps the carried amount.
# In a pilot the slope was ahead early in training and behind later: the product is the default.
#
# W_nu has a low rank, and learns no worse than at full rank, where it is a quarter of the branch.
# norm is RMSNorm without gain: the gauge is that of the original's LayerNorm.

if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(__doc__)
        sys.exit(0 if "help" in sys.argv[1] else 2)
    ok, model = self_check()
    line = __doc__[1:97]                                         # some of what the model has read
    os.makedirs("out", exist_ok=True)
    portrait(model, list(line.encode()), "out/advection_glu.png", line)
    print("wrote out/advection_glu.png")
    sys.exit(not ok)
