"""
Advection-GLU: a transformer whose MLP is a transport term, a bilinear field times a viscosity made by context.

    z     <- z + Attention(norm z)                   causal, RoPE base 10000 on q and k
    z     <- z + alpha_mlp FFN(z)

    z_glu  = RoPE_16180(z)                           the slow rotation, on the channel pairs of z itself
    adv    = -(alpha_adv nu) * (W_u z_glu) * (W_g z_glu)         nu = softplus(W_nu z + b_nu) > 0
    FFN(z) = W_c norm(adv)                           pre_ln=False: legacy mode, the seed's formula
    FFN(z) = W_c adv(norm z)                         pre_ln=True: normalise before, leave adv alone

There is no activation: each channel of (W_u z) * (W_g z) is a quadratic form of z, and nu scales it. The seed calls it
transport; an engineer would call it a gated quadratic source: it acts on each token by itself, a larger nu means more
of it, and its sign could as well be W_c's. The lesson is gauge, numbers that change nothing: norm(c x) = norm(x), so
legacy mode removes whatever nu has in common over the channels of a token, and |alpha_adv|. One nu per token
(viscosity="token") then does nothing at all; in pre-LN mode it acts, and of the alphas only their product does.

    code            symbol      meaning                                              shape
    ug              W_u, W_g    the two factors of the bilinear field                (2M, C)
    nu_down, nu_up  W_nu, b_nu  viscosity, W_nu = nu_up nu_down of rank nu_rank      (R, C), (M, R), (M,)
    alpha_adv, _mlp alpha       strength of the flow, and of the whole branch        scalars
    proj            W_c         back into the latent                                 (C, M)
    turn, slow      e^{i t th}  RoPE of the queries and keys; of the latent          (T, 1, D/2), (T, 1, C/2)
    state           -           sliding cache of k, v; position                      a dict

Source: seed "Advection-GLU". It gives the branch and nothing else: attention, sizes and initial values are ours.
PRESETS["seed"] is its formula at GPT-2 small's shape, because the seed names no size.

What we changed, and why. The slow RoPE makes the branch see absolute positions. At one radian per token for the fastest
pair (slow="token", the seed's) half of the channels are scrambled: that costs 0.1 nats per character. At one radian per
block_size tokens (slow="block") it costs nothing. Either way it starts over every block_size tokens, because positions
that training never saw turn a stream into noise. pre_ln=True learns better than legacy mode; a W_nu of low rank learns
no worse than a full one, a quarter of the branch. norm is RMSNorm without gain: the same gauge.

Run `python advection_glu.py` for the proof and a picture, `python train.py model=advection_glu` to train it.
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
    pre_ln: bool = True                       # normalise z before the transport; False: adv after it (legacy)
    viscosity: Literal["channel", "token"] = "channel"      # one nu per hidden channel, or one per token
    nu_rank: int = 16                         # rank of W_nu; 0 is full rank
    slow: Literal["block", "token", "off"] = "block"        # the slow RoPE's fastest pair turns 1 radian per ...

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} heads of even width")
        if self.nu_rank < 0:
            raise ValueError(f"nu_rank={self.nu_rank} should be 0 or more")

    def sizes(self):                                             # -> hidden channels M, how many nu a token has
        C, R, one = self.n_embd, self.nu_rank, self.viscosity == "token"
        free, per_channel = 8 * C * C - C * (R or one), 3 * C + (not one) * ((R or C) + 1)
        M = max(8, round(free / per_channel / 8) * 8)            # the branch has the parameters of a 4C MLP
        return M, 1 if one else M


PRESETS = {"seed": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, pre_ln=False, slow="token")}


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


def slow_rope_ref(z, window, slow):                              # (T, C) -> (T, C)
    """RoPE_16180: turn the pair (2j, 2j+1) by t 16180^(-2j/C); t counts tokens or windows, and starts over (step 1)."""
    y = z.copy()
    for t in range(len(z) if slow != "off" else 0):
        for j in range(z.shape[1] // 2):
            angle = t % window / (window if slow == "block" else 1) * 16180.0 ** (-2 * j / z.shape[1])
            y[t, 2 * j] = math.cos(angle) * z[t, 2 * j] - math.sin(angle) * z[t, 2 * j + 1]
            y[t, 2 * j + 1] = math.sin(angle) * z[t, 2 * j] + math.cos(angle) * z[t, 2 * j + 1]
    return y


def advection_ref(ug, s, alpha):                                 # (T, 2M), (T, M) or (T, 1), scalar -> (T, M)
    """adv = -(alpha_adv nu) * u * g with nu = softplus(s); ug holds u = W_u z_glu, then g = W_g z_glu (step 3)."""
    M = ug.shape[1] // 2
    adv = np.empty((len(ug), M))
    for t in range(len(ug)):
        nu = np.logaddexp(0, s[t])
        adv[t] = -(alpha * nu) * ug[t, :M] * ug[t, M:]
    return adv


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
        z = rms_norm_ref(p["wte.weight"][tokens])                                               # (T, C)
        for l in range(config.n_layer):
            qkv = rms_norm_ref(z) @ p[f"blocks.{l}.attn.qkv.weight"].T                          # (T, 3C)
            q, k, v = qkv.reshape(-1, 3, H, D).transpose(1, 0, 2, 3)                            # 3 x (T, H, D)
            y = attention_ref(rope_ref(rms_norm_ref(q)), rope_ref(rms_norm_ref(k)), v, config.block_size)
            z = z + y.reshape(-1, config.n_embd) @ p[f"blocks.{l}.attn.proj.weight"].T
            ffn = f"blocks.{l}.ffn."
            h = rms_norm_ref(z) if config.pre_ln else z
            ug = slow_rope_ref(h, config.block_size, config.slow) @ p[ffn + "ug.weight"].T      # (T, 2M)
            s = h @ p[ffn + "nu_down.weight"].T if config.nu_rank else h                        # (T, R)
            s = s @ p[ffn + "nu_up.weight"].T + p[ffn + "nu_up.bias"]                           # (T, M) or (T, 1)
            adv = advection_ref(ug, s, p[ffn + "alpha_adv"])                                    # (T, M)
            adv = adv if config.pre_ln else rms_norm_ref(adv)
            z = z + p[ffn + "alpha_mlp"] * (adv @ p[ffn + "proj.weight"].T)
        logits[b] = rms_norm_ref(z) @ p["wte.weight"].T
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


class Advection(torch.autograd.Function):
    """adv = -(alpha nu) * u * g, nu = softplus(s), with a backward by hand: autograd would keep every product."""

    @staticmethod
    def forward(ctx, ug, s, alpha):                              # (..., 2M), (..., M) or (..., 1), () -> (..., M)
        nu = F.softplus(s)
        ctx.save_for_backward(ug, s, nu, alpha)
        u, g = ug.chunk(2, -1)
        return (u * g).mul_(nu).mul_(-alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        ug, s, nu, alpha = ctx.saved_tensors
        u, g = ug.chunk(2, -1)
        dug, db = torch.empty_like(ug), (d * nu).mul_(-alpha)    # db = d loss / d (u g)
        du, dg = dug.chunk(2, -1)                                # two halves of one buffer: no cat
        torch.mul(db, g, out=du)
        torch.mul(db, u, out=dg)
        dnu = (d * u).mul_(g)                                    # but for the factor -alpha
        dnu = dnu if nu.shape == d.shape else dnu.sum(-1, keepdim=True)
        dalpha = -torch.dot(dnu.flatten(), nu.flatten())
        return dug, dnu.mul_(-alpha).mul_(torch.sigmoid(s)), dalpha                  # softplus' = sigmoid


def rms_norm(x):                                                 # (..., C) -> (..., C)
    """x / rms(x), over the last axis; without a backward to come, torch's own has fewer calls to make."""
    return RMSNorm.apply(x) if torch.is_grad_enabled() else F.rms_norm(x, x.shape[-1:], eps=1e-6)


advection = Advection.apply


def turns(pos, T, D, base=10000.0, device=None, dtype=torch.float32):
    """RoPE's rotations e^{i t base^(-2j/D)}, t = pos .. pos+T-1. In float64 on the CPU: exact for any t and device."""
    freq = base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(pos, pos + T, dtype=torch.float64), freq)[:, None]
    return torch.polar(torch.ones_like(angle), angle).to(device, dtype.to_complex())            # (T, 1, D/2)


def slow_turns(pos, T, config, device=None, dtype=torch.float32):
    """The turns of RoPE_16180 for the latent at pos .. pos+T-1; None if it is off  -> complex (T, 1, C/2)."""
    if config.slow == "off":
        return None
    C, W = config.n_embd, config.block_size
    t = torch.arange(pos, pos + T, dtype=torch.float64) % W / (W if config.slow == "block" else 1)
    angle = torch.outer(t, 16180.0 ** (-torch.arange(0, C, 2, dtype=torch.float64) / C))[:, None]
    return torch.polar(torch.ones_like(angle), angle).to(device, dtype.to_complex())


def rope(x, turn):                                               # (..., T, H, D), (T, 1, D/2) -> (..., T, H, D)
    """Rotate the channel pairs (2j, 2j+1), each read as one complex number."""
    z = torch.view_as_complex(x.to(turn.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * turn).flatten(-2)


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

    def forward(self, x, turn, state=None):                      # (B, T, C) -> (B, T, C)
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1))                                  # (B, T, 3, H, D)
        qk, v = qkv.split((2, 1), 2)
        q, k = rope(rms_norm(qk), turn.unsqueeze(1)).unbind(2)                                 # (B, T, H, D)
        v = v.squeeze(2).to(k.dtype)
        if state is not None:
            W, T = self.window, x.shape[1]
            if "k" in state:
                k, v = torch.cat((state["k"], k), 1), torch.cat((state["v"], v), 1)
            k, v = k[:, -(W + T - 1):], v[:, -(W + T - 1):]      # the oldest of the T queries sees W tokens
            state["k"], state["v"] = k[:, -W:], v[:, -W:]
        return self.proj(attention(q, k, v, self.window).flatten(2))


class AdvectionGLU(nn.Module):
    def __init__(self, config):
        super().__init__()
        M, width = config.sizes()
        self.pre_ln = config.pre_ln
        self.ug = nn.Linear(config.n_embd, 2 * M, bias=False)
        self.nu_down = nn.Linear(config.n_embd, config.nu_rank, bias=False) if config.nu_rank else nn.Identity()
        self.nu_up = nn.Linear(config.nu_rank or config.n_embd, width)
        self.proj = nn.Linear(M, config.n_embd, bias=False)
        self.alpha_adv, self.alpha_mlp = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def adv(self, z, slow):                                      # (B, T, C), (T, 1, C/2) -> (B, T, M)
        """The transport term -(alpha_adv nu) * (W_u z_glu) * (W_g z_glu)."""
        z_glu = z if slow is None else rope(z.unsqueeze(-2), slow).squeeze(-2)
        ug, s = self.ug(z_glu), self.nu_up(self.nu_down(z))
        return advection(ug.to(self.alpha_adv.dtype), s.to(self.alpha_adv.dtype), self.alpha_adv)

    def forward(self, z, slow):                                  # (B, T, C) -> alpha_mlp FFN(z), (B, T, C)
        adv = self.adv(rms_norm(z), slow) if self.pre_ln else rms_norm(self.adv(z, slow))
        return F.linear(adv, self.alpha_mlp * self.proj.weight)  # scaling the matrix is cheaper than the stream


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = Attention(config)
        self.ffn = AdvectionGLU(config)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, z, turn, slow, state=None):
        z = z + self.drop(self.attn(rms_norm(z), turn, state))
        return z + self.drop(self.ffn(z, slow))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)            # also the head: tied
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith(("proj.weight", "nu_up.weight")):
                nn.init.zeros_(p)                                            # each block starts as the identity
            elif name.endswith("nu_up.bias"):
                nn.init.constant_(p, math.log(math.e - 1))                   # softplus^-1(1): nu starts at 1
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.01 if name == "wte.weight" else p.shape[1] ** -0.5)

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss or None
        """`state`: a dict, empty at the start of a stream. It is filled; pass it again with the next tokens."""
        c, pos = self.config, 0 if state is None else state.get("pos", 0)
        where = dict(device=idx.device, dtype=self.wte.weight.dtype)
        turn = turns(pos, idx.shape[1], c.n_embd // c.n_head, **where)
        slow = slow_turns(pos, idx.shape[1], c, **where)
        z = rms_norm(self.wte(idx))                                          # (B, T, C)
        for l, block in enumerate(self.blocks):
            z = block(z, turn, slow, None if state is None else state.setdefault(l, {}))
        if state is not None:
            state["pos"] = pos + idx.shape[1]
        logits = F.linear(rms_norm(z), self.wte.weight)                      # (B, T, C) x (V, C) -> (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# The physics, drawn and checked.

@torch.inference_mode()
def flow(model, idx):                                            # (1, T) -> four arrays (T, M | 1), 3 x (T,), per block
    """Viscosity, |transport|, |attention|, and the cosine between the transport and the latent it is added to."""
    seen = []
    parts = [part for block in model.blocks for part in (block.attn, block.ffn)]
    hooks = [part.register_forward_hook(lambda part, args, y: seen.append((part, args[0][0], y[0]))) for part in parts]
    model(idx)
    for hook in hooks:
        hook.remove()
    out = []
    for (_, _, y), (ffn, z, f) in zip(seen[::2], seen[1::2]):
        nu = F.softplus(ffn.nu_up(ffn.nu_down(rms_norm(z) if ffn.pre_ln else z)))
        cosine = F.cosine_similarity(f, z, -1)
        out.append([a.float().cpu().numpy() for a in (nu, f.norm(dim=-1), y.norm(dim=-1), cosine)])
    return out


def portrait(model, tokens, path, text=""):
    """Viscosity along the tokens (`text`, if given, labels them); size of the transport; spread of nu; direction."""
    from matplotlib.figure import Figure
    model.eval()
    idx = torch.as_tensor(np.asarray(tokens[:model.config.block_size]).astype(np.int64), device=model.wte.weight.device)
    nus, transports, attentions, cosines = zip(*flow(model, idx[None]))
    x, shown, legacy = np.arange(len(nus)), min(len(idx), 96), not model.config.pre_ln
    fig = Figure(figsize=(13, 7), layout="constrained")
    fig.suptitle("Advection-GLU: how viscous, how much, and which way it flows")
    grid = fig.add_gridspec(2, 3, height_ratios=(1, 1.4))
    top, size, spread, angle = fig.add_subplot(grid[0, :]), *(fig.add_subplot(grid[1, i]) for i in range(3))

    rows = []
    for nu in map(np.log2, nus):
        if legacy and nu.shape[1] > 1:                           # what all channels share is gauge: the norm removes it
            nu = nu - nu.mean(1, keepdims=True)
        rows.append(nu[:shown, nu[:shown].std(0).argmax()])
    fig.colorbar(top.imshow(rows, aspect="auto", cmap="cividis", vmin=-6, vmax=3), ax=top, pad=0.01,
                 label="log2 of nu" + " / token mean" * legacy)
    top.set(title="Viscosity along a text: in each block the channel that varies most", ylabel="block", yticks=x,
            xlabel="" if text else "token")
    if text:
        labels = text[:shown].replace("\n", "↵").replace(" ", "␣")
        top.set_xticks(range(shown), list(labels), fontsize=8, family="monospace")

    size.bar(x - 0.2, np.mean(attentions, 1), 0.4, color="#0072B2", label="attention")
    size.bar(x + 0.2, np.mean(transports, 1), 0.4, color="#E69F00", label="transport")
    size.set(title="What the branches add to the latent", xlabel="block", ylabel="norm, mean over tokens", xticks=x)
    size.legend(fontsize=8)

    edges = np.linspace(-8, 4, 73)
    for l, (nu, colour) in enumerate(zip(nus, "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00".split() * len(nus))):
        share = np.histogram(np.log2(nu).clip(-8, 4), edges)[0] / nu.size
        spread.plot((edges[1:] + edges[:-1]) / 2, share, color=colour, label=f"block {l}" if l < 6 else None)
    spread.axvline(0, color="black", ls=":", label="before training")
    spread.set(title="Viscosity of all tokens and channels", xlabel="nu", ylabel="share", xticks=range(-8, 5, 2),
               xticklabels=["≤1/256", "1/64", "1/16", "1/4", "1", "4", "16"])
    spread.legend(fontsize=8)

    angle.boxplot(cosines, positions=x, widths=0.5, sym="", whis=(5, 95), patch_artist=True,
                  boxprops=dict(facecolor="#56B4E9"), medianprops=dict(color="black"))
    angle.axhline(0, color="black", lw=0.8)
    angle.set(title="Flow along (+) or against (−) the latent", xlabel="block", ylabel="cosine", ylim=(-1, 1))
    fig.savefig(path, dpi=110)


def learn_text(config, text, steps):                             # -> Model, losses (steps,), tokens
    """Train a small model on the characters of a text with AdamW."""
    torch.manual_seed(0)
    data, model, losses = torch.tensor([min(ord(c), 127) for c in text]), Model(config), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 20, 2 - 2 * i / steps))
    for _ in range(steps):
        at = torch.randint(len(data) - config.block_size, (16, 1)) + torch.arange(config.block_size + 1)
        loss = model(data[at[:, :-1]], data[at[:, 1:]])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model, losses, data


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
    ug, s = rng.normal(size=(9, 16)), rng.normal(size=(9, 8))
    error = max(abs(advection(*map(torch.tensor, (ug, s_, np.float64(0.7)))).numpy() - advection_ref(ug, s_, 0.7)).max()
                for s_ in (s, s[:, :1]))
    check("advection: torch against the loop, nu per channel and per token", error, 1e-12)

    errors, moved = {"ref": 0, "edit": 0, "length": 0, "stream": 0}, {}
    for pre_ln in (False, True):
        for viscosity in ("channel", "token"):
            torch.manual_seed(0)
            config = Config(50, 16, 2, 2, 32, pre_ln=pre_ln, viscosity=viscosity)
            model = Model(config).double().eval()
            for p in model.parameters():                         # zero-initialised projections would hide mistakes
                p.add_(0.1 * torch.randn_like(p))
            idx = torch.randint(50, (2, 40))
            logits = model(idx)[0]
            ref = forward_ref({k: v.numpy() for k, v in model.state_dict().items()}, idx.numpy(), model.config)
            edited, state = idx.clone(), {}
            edited[:, 20:] = torch.randint(50, (2, 20))
            stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split((1, 1, 5, 20, 1, 12), 1)], 1)
            for name, error in (("ref", abs(logits.numpy() - ref).max() / abs(ref).max()),
                                ("edit", (model(edited)[0] - logits)[:, :20].abs().max().item()),
                                ("length", (model(idx[:, :20])[0] - logits[:, :20]).abs().max().item()),
                                ("stream", (stream - logits).abs().max().item())):
                errors[name] = max(errors[name], error)
            for block in model.blocks:
                block.ffn.nu_up.weight.neg_()                    # quite another viscosity
                block.ffn.nu_up.bias.add_(2)
            moved[pre_ln, viscosity] = (model(idx)[0] - logits).abs().max().item()
    check("whole model, 2 modes x 2 viscosities: torch against NumPy, relative", errors["ref"], 1e-10)
    check("causality: later tokens move earlier logits by", errors["edit"], 1e-12)
    check("causality: so does the length", errors["length"], 1e-12)
    check("a stream in chunks against one shot, 2.5 blocks", errors["stream"], 1e-9)
    check("gauge: legacy, another nu per token moves the logits by", moved[False, "token"], 1e-4)
    check("       legacy, another nu per channel", moved[False, "channel"], 1e-2, ">=")
    check("       pre-LN, another nu per token", moved[True, "token"], 1e-2, ">=")
    check("       pre-LN, another nu per channel", moved[True, "channel"], 1e-2, ">=")

    config = Config(n_embd=32, pre_ln=False, slow="token")
    ffn, slow = AdvectionGLU(config).double(), slow_turns(5, 9, config, dtype=torch.float64)
    z = torch.randn(1, 9, 32, dtype=torch.float64)
    plus = ffn(z, slow)
    ffn.alpha_adv.neg_()
    check("legacy: the sign of alpha_adv is the sign of FFN", (ffn(z, slow) + plus).abs().max().item(), 0)
    ffn.nu_up.weight.zero_()                                     # holds nu fixed
    adv = ffn.adv(z, slow)
    error = ((ffn.adv(3 * z, slow) / (9 * adv)) - 1).abs().max().item()
    check("homogeneity: adv(3 z) = 9 adv(z) at fixed nu, relative", error, 1e-9)
    ffn.pre_ln = True
    ffn.nu_up.bias.fill_(-1000)
    check("pre-LN: FFN without viscosity", ffn(z, slow).abs().max().item(), 0)

    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    config = Config(vocab_size=128, block_size=96, n_layer=3, n_embd=64)
    with torch.inference_mode(False), torch.enable_grad():
        model, losses, data = learn_text(config, text, 300)
    smooth = np.convolve(losses, np.ones(20) / 20, "valid")
    check("it learns to spell this file: nats per character, 300 steps", smooth[-1], 2.2)
    check("smoothly: largest rise of the loss (mean of 20 steps)", (smooth - np.minimum.accumulate(smooth)).max(), 0.1)
    at = text.index("    alpha_adv, _mlp")
    return ok, model, data[at:at + 96], text[at:at + 96]


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    os.makedirs("out", exist_ok=True)
    if "ckpt" in options:                                        # draw a trained model: ckpt=out/advection_glu/ckpt.pt
        ckpt = torch.load(options["ckpt"], map_location="cpu", weights_only=True)
        model = Model(Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
        tokens, ok, tokenizer = ckpt["tokens"], True, ckpt["meta"]["tokenizer"]
        text = "".join(tokenizer["chars"][i] for i in tokens) if "chars" in tokenizer else ""
    else:
        ok, model, tokens, text = self_check()
    portrait(model, tokens, "out/advection_glu.png", text)
    print("wrote out/advection_glu.png")
    sys.exit(not ok)
