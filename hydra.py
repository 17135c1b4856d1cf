"""
Hydra: a transformer as a fluid. Depth is time, and the latent z moves after the pattern of Navier and Stokes,

    dz/dtau  =  pressure  +  rotation  +  nu(tau) viscosity  [ + Lorentz force, zeus=True ]

of which layer l of L takes one Euler step per term, one after the other, with n = RMSNorm(z):

    z <- z + Attention(n)                           pressure: the seed reads attention as the flow of an entropy
    z <- z + kappa z Omega,   Omega^T = -Omega      instead of a wide MLP; z . (z Omega) = 0: the flow does no work
    z <- z + nu_l (z_{t-1} - z_t)                   drift by nu_l tokens, and diffusion; nu_l = nu (1 - l/(L-1))
    z <- z + lambda F,   F = 1/2 P (J - J^T) M      J = dM/dn: the curl of a learned field M acts on M; M . F = 0

    code            symbol      meaning                                              shape
    z               z           latent; n lies on the sphere of radius sqrt(C)       (B, T, C)
    free            Omega       strictly lower half of the skew matrix               (C(C-1)/2,)
    kappa           kappa       speed of the rotation, learned                       ()
    nu              nu_l        viscosity of layer l, from nu and schedule           a number
    w, mass         A_ts        attention weights; what key s has received so far    (B, H, T, S), (B, H, 1, S)
    fc, out         W1, b1, W2  M = P W2 silu(W1 n + b1), P = I - n n^T / (n.n)      (R, C), (R,), (C, R)
    lam             lambda      strength of the force, learned                       ()
    state           -           sliding cache of k, v, mass; last two z; kappa Omega a dict

Source: seed "hydra", marvosyntactical/hydra (preprint announced). pressure="sinkhorn" is its doubly stochastic
attention made causal: the one causal doubly stochastic matrix is the identity, so we divide each key by the mass it got
*so far* and renormalise the row, sinkhorn_iters times. rotation="cayley" is the orthogonal (I - kappa/2 Omega)^-1
(I + kappa/2 Omega). laplacian="seed" is z_t - 2 z_{t-1} + z_{t-2}: the Laplacian of the token *before*; it sharpens.

What we changed, and why: the original sees the future (Sinkhorn after the mask; a curl fitted on neighbours in the
batch) and its viscosity adds one number to all channels, which LayerNorm removes. Ours is causal and per channel, and
the curl is exact: four more matrix products, no Jacobian. RoPE replaces learned positions, so streams can outrun the
block. The rotation acts on z itself, so that its flow does no work; an Euler step still adds |kappa z Omega|^2 to
|z|^2, Cayley's nothing. Norms are RMSNorm and carry no gain.

Run `python hydra.py` for the proof and a picture, `python train.py model=hydra` to train it, preset=zeus for the force.
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
    n_layer: int = 4                          # steps of the flow
    n_head: int = 4                           # attention heads
    n_embd: int = 128                         # channels
    dropout: float = 0.0                      # on pressure and Lorentz force, while training
    pressure: Literal["softmax", "sinkhorn"] = "softmax"                    # how attention weights are normalised
    sinkhorn_iters: int = 1                   # column normalisations of pressure=sinkhorn; 0 is softmax
    rotation: Literal["euler", "cayley"] = "euler"                          # z + kappa z Omega, or exactly orthogonal
    kappa: float = 1.0                        # speed of rotation at the start, learned; 0 leaves the rotation out
    laplacian: Literal["upwind", "seed"] = "upwind"                         # z_{t-1} - z_t, or the original's stencil
    nu: float = 0.1                           # largest viscosity, 0 to 1; 0 leaves it out
    schedule: Literal["falling", "constant", "rising"] = "falling"          # viscosity over the layers
    zeus: bool = False                        # add the Lorentz force
    n_field: int = 256                        # width of the field M of zeus

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} heads of even width")
        if not 0 <= self.nu <= 1:
            raise ValueError(f"nu={self.nu:g} should be 0 to 1, or viscosity would not smooth")

    def nu_at(self, l):
        """Viscosity of layer l: nu (1 - l/(L-1)) falling, nu constant, nu l/(L-1) rising."""
        tau = l / (self.n_layer - 1) if self.n_layer > 1 else 1.0
        return self.nu * {"falling": 1 - tau, "constant": 1, "rising": tau}[self.schedule]


PRESETS = {"seed": dict(n_layer=8, n_head=8, n_embd=512, block_size=256),    # the original's own run
           "zeus": dict(zeus=True)}


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


def causal_sinkhorn_ref(q, k, v, window, iters):                 # 3 x (T, H, D) -> (T, H, D)
    """A^0 = softmax_s(q_t . k_s / sqrt(D)), s = t - window + 1 .. t;  A^n_ts = A^{n-1}_ts / sum_{t' <= t} A^{n-1}_t's,
    rows renormalised;  y = A^iters v. Query t needs only what each key got before: causal, and it streams."""
    T, H, D = q.shape
    y, mass = np.empty_like(v), np.zeros((iters, H, T))
    for t in range(T):
        s = slice(max(0, t - window + 1), t + 1)
        score = np.einsum("hd,shd->hs", q[t], k[s]) / math.sqrt(D)
        w = np.exp(score - score.max(-1, keepdims=True))
        w = w / w.sum(-1, keepdims=True)
        for n in range(iters):
            mass[n, :, s] += w
            w = w / mass[n, :, s]
            w = w / w.sum(-1, keepdims=True)
        y[t] = np.einsum("hs,shd->hd", w, v[s])
    return y


def skew_ref(free, C):                                           # (C(C-1)/2,) -> (C, C)
    """Omega from its strictly lower half, row by row: Omega_ij = -Omega_ji = free[i(i-1)/2 + j], j < i."""
    omega = np.zeros((C, C))
    for i in range(C):
        for j in range(i):
            omega[i, j] = free[i * (i - 1) // 2 + j]
            omega[j, i] = -omega[i, j]
    return omega


def rotation_ref(z, omega, kappa, how):                          # (T, C), (C, C) -> (T, C)
    """euler: z + kappa z Omega;  cayley: z (I - kappa/2 Omega)^-1 (I + kappa/2 Omega)."""
    eye = np.eye(len(omega))
    if how == "euler":
        return z @ (eye + kappa * omega)
    return z @ np.linalg.inv(eye - kappa / 2 * omega) @ (eye + kappa / 2 * omega)


def viscosity_ref(z, nu, laplacian, last=None):                  # (T, C), (2, C) or None -> (T, C)
    """z_t + nu (z_{t-1} - z_t) or z_t + nu (z_t - 2 z_{t-1} + z_{t-2}); before the first token, that token again."""
    u = np.concatenate([z[:1], z[:1], z] if last is None else [last, z])
    y = np.empty_like(z)
    for t in range(len(z)):
        lap = u[t + 1] - u[t + 2] if laplacian == "upwind" else u[t + 2] - 2 * u[t + 1] + u[t]
        y[t] = z[t] + nu * lap
    return y


def field_ref(n, W1, b1, W2):                                    # (C,) -> M (C,), J (C, C)
    """M = g - n (n.g)/(n.n) with g = W2 silu(W1 n + b1), and its Jacobian J_ij = dM_i/dn_j written out."""
    a = W1 @ n + b1
    p = 1 / (1 + np.exp(-a))
    g, G = W2 @ (a * p), W2 * (p + a * p * (1 - p)) @ W1
    r2, ng = n @ n, n @ g
    J = G - ng / r2 * np.eye(len(n)) - np.outer(n, g + G.T @ n) / r2 + 2 * ng / r2 ** 2 * np.outer(n, n)
    return g - n * ng / r2, J


def lorentz_ref(n, W1, b1, W2):                                  # (T, C) -> (T, C)
    """F = 1/2 P_n (J - J^T) M, token by token. P_n = I - n n^T/(n.n) keeps it tangent to the sphere."""
    F = np.empty_like(n)
    for t in range(len(n)):
        M, J = field_ref(n[t], W1, b1, W2)
        f = 0.5 * (J - J.T) @ M
        F[t] = f - n[t] * (n[t] @ f) / (n[t] @ n[t])
    return F


def forward_ref(params, idx, config):                            # {name: array}, (B, T) -> logits (B, T, V)
    """The whole model in NumPy, one sequence at a time. `params` are the float64 arrays of Model.state_dict()."""
    c, H, D = config, config.n_head, config.n_embd // config.n_head
    iters = c.sinkhorn_iters if c.pressure == "sinkhorn" else 0
    logits = np.empty((*idx.shape, c.vocab_size))
    for b, tokens in enumerate(idx):
        z = rms_norm_ref(params["wte.weight"][tokens])                                          # (T, C)
        for l in range(c.n_layer):
            p = {k.removeprefix(f"steps.{l}."): w for k, w in params.items() if k.startswith(f"steps.{l}.")}
            qkv = rms_norm_ref(z) @ p["pressure.qkv.weight"].T                                  # (T, 3C)
            q, k, v = qkv.reshape(-1, 3, H, D).transpose(1, 0, 2, 3)                            # 3 x (T, H, D)
            q, k = rope_ref(rms_norm_ref(q)), rope_ref(rms_norm_ref(k))
            y = causal_sinkhorn_ref(q, k, v, c.block_size, iters).reshape(-1, c.n_embd)
            z = z + y @ p["pressure.proj.weight"].T
            if c.kappa:
                z = rotation_ref(z, skew_ref(p["free"], c.n_embd), p["kappa"], c.rotation)
            z = viscosity_ref(z, c.nu_at(l), c.laplacian)
            if c.zeus:
                W1, b1, W2 = p["fc.weight"], p["fc.bias"], p["out.weight"]
                z = z + p["lam"] * lorentz_ref(rms_norm_ref(z), W1, b1, W2)
        logits[b] = rms_norm_ref(z) @ params["wte.weight"].T
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


def rms_norm(x):                                                 # (..., C) -> (..., C)
    """x / rms(x), over the last axis; without a backward to come, torch's own has fewer calls to make."""
    return RMSNorm.apply(x) if torch.is_grad_enabled() else F.rms_norm(x, x.shape[-1:], eps=1e-6)


def turns(pos, T, D, base=10000.0, device=None, dtype=torch.float32):
    """RoPE's rotations e^{i t base^(-2j/D)}, t = pos .. pos+T-1. In float64 on the CPU: exact for any t and device."""
    freq = base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(pos, pos + T, dtype=torch.float64), freq)[:, None]
    return torch.polar(torch.ones_like(angle), angle).to(device, dtype.to_complex())            # (T, 1, D/2)


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


def causal_sinkhorn(q, k, v, window, iters, mass=None):          # (B, T, H, D), 2 x (B, S, H, D) -> (B, T, H, D)
    """Attention whose keys share out their influence, of the T newest of S tokens, with its weights (B, H, T, S) and
    the `mass` that each key has now received, per iteration: for the next chunk of a stream."""
    T, S, sums = q.shape[1], k.shape[1], []
    t, s = torch.arange(S - T, S, device=q.device)[:, None], torch.arange(S, device=q.device)
    outside = (s > t) | (s <= t - window)                                                      # (T, S)
    w = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    w = w.masked_fill(outside, -math.inf).softmax(-1)
    for i in range(iters):
        m = w.cumsum(2) + (mass[i] if mass else 0)
        sums.append(m[:, :, -1:])
        w = w / (m + outside)                                    # outside the window 0 / 0 becomes 0 / 1
        w = w / w.sum(-1, keepdim=True)
    return torch.einsum("bhts,bshd->bthd", w.to(v.dtype), v), w, sums


def skew(free, C):                                               # (C(C-1)/2,) -> (C, C)
    """Omega from its strictly lower half."""
    lower = free.new_zeros(C, C)
    i, j = torch.tril_indices(C, C, -1, device=free.device)
    lower[i, j] = free
    return lower - lower.T


def turning(omega, kappa, how):                                  # (C, C) -> (C, C)
    """The rotation is z + z A, A = kappa Omega, or Cayley's (I - A/2)^-1 (I + A/2) - I = (I - A/2)^-1 A."""
    A = kappa * omega
    return A if how == "euler" else torch.linalg.solve(torch.eye(len(A), device=A.device, dtype=A.dtype) - A / 2, A)


def viscosity(z, nu, laplacian, last=None):                      # (B, T, C), (B, 2, C) or None -> (B, T, C)
    """One step of diffusion along the sequence, and the next `last`; lerp(a, b, nu) is a + nu (b - a)."""
    u = torch.cat((z[:, :1].expand(-1, 2, -1) if last is None else last, z), 1)
    one, two = u[:, 1:-1], u[:, :-2]                                                           # z_{t-1}, z_{t-2}
    return torch.lerp(z, one, nu) if laplacian == "upwind" else z + nu * (z - 2 * one + two), u[:, -2:]


def tangent(f, n):                                               # 2 x (..., C) -> (..., C)
    """P_n f = f - n (n.f)/(n.n)."""
    return torch.addcmul(f, n, -(n * f).sum(-1, keepdim=True) / (n * n).sum(-1, keepdim=True))


def lorentz(n, W1, b1, W2):                                      # (..., C) -> (..., C)
    """1/2 P (J - J^T) M. With g = W2 s(W1 n + b1), G = dg/dn, M = P g, what P adds to J cancels or points along n:
    1/2 P (G - G^T) M is enough, and G M = W2 (s' * (W1 M)), G^T M = W1^T (s' * (W2^T M)) go side by side."""
    a = F.linear(n, W1, b1).to(n.dtype)                                                        # (..., R)
    p = torch.sigmoid(a)
    s = a * p
    M = tangent(F.linear(s, W2).to(n.dtype), n)
    both = F.linear(M, torch.cat((W1, W2.T))).unflatten(-1, (2, -1)) * (p + s * (1 - p)).unsqueeze(-2)
    return 0.5 * tangent((both.flatten(-2) @ torch.cat((W2.T, -W1))).to(n.dtype), n)


class Pressure(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def heads(self, n, turn):                                    # (B, T, C) -> q, k, v, each (B, T, H, D)
        qk, v = self.qkv(n).unflatten(-1, (3, self.config.n_head, -1)).split((2, 1), 2)
        q, k = rope(rms_norm(qk), turn.unsqueeze(1)).unbind(2)
        return q, k, v.squeeze(2).to(q.dtype)

    def forward(self, n, turn, state):                           # (B, T, C) -> (B, T, C)
        c, W, T, mass = self.config, self.config.block_size, n.shape[1], []
        q, k, v = self.heads(n, turn)
        if "k" in state:
            S = W + T - 1                                        # the oldest of the T queries sees W tokens
            k, v = (torch.cat((state[name], new), 1)[:, -S:] for name, new in (("k", k), ("v", v)))
            mass = [F.pad(m, (0, T))[..., -S:] for m in state["mass"]]
        if c.pressure == "softmax":
            y = attention(q, k, v, W)
        else:
            y, _, mass = causal_sinkhorn(q, k, v, W, c.sinkhorn_iters, mass)
        state.update(k=k[:, -W:], v=v[:, -W:], mass=[m[..., -W:] for m in mass])
        return self.proj(y.flatten(2))


class Step(nn.Module):
    def __init__(self, config, l):
        super().__init__()
        self.config, self.nu, C = config, config.nu_at(l), config.n_embd
        self.pressure = Pressure(config)
        if config.kappa:
            self.free = nn.Parameter(torch.zeros(C * (C - 1) // 2))
            self.kappa = nn.Parameter(torch.tensor(float(config.kappa)))
        if config.zeus:
            self.fc = nn.Linear(C, config.n_field)
            self.out = nn.Linear(config.n_field, C, bias=False)
            self.lam = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, z, turn, state, seen=None):                # (B, T, C) -> (B, T, C)
        """`seen`: a list that collects z after each of the four terms, for the portrait."""
        c, seen = self.config, [] if seen is None else seen
        z = z + self.drop(self.pressure(rms_norm(z), turn, state))
        seen.append(z)
        if c.kappa:
            A = None if torch.is_grad_enabled() else state.get("A")          # the same for all tokens of a stream
            state["A"] = A = turning(skew(self.free, c.n_embd), self.kappa, c.rotation) if A is None else A
            z = z + z @ A
        seen.append(z)
        if self.nu:
            z, state["z"] = viscosity(z, self.nu, c.laplacian, state.get("z"))
        seen.append(z)
        if c.zeus:
            z = z + self.lam * self.drop(lorentz(rms_norm(z), self.fc.weight, self.fc.bias, self.out.weight))
        seen.append(z)
        return z


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)            # also the head: tied
        self.steps = nn.ModuleList(Step(config, l) for l in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith(("bias", "proj.weight")):
                nn.init.zeros_(p)                                            # no pressure at the start
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.01 if name == "wte.weight" else 0.5 * p.shape[1] ** -0.5)

    def forward(self, idx, targets=None, state=None, seen=None):     # (B, T) -> logits (B, T, V), loss or None
        """`state`: a dict, empty at the start of a stream. It is filled; pass it again with the next tokens."""
        c, T, state = self.config, idx.shape[1], {} if state is None else state
        pos = state.get("pos", 0)
        turn = turns(pos, T, c.n_embd // c.n_head, device=idx.device, dtype=self.wte.weight.dtype)
        z = rms_norm(self.wte(idx))                                          # (B, T, C)
        for l, step in enumerate(self.steps):
            z = step(z, turn, state.setdefault(l, {}), seen)
        state["pos"] = pos + T
        logits = F.linear(rms_norm(z), self.wte.weight)                      # (B, T, C) x (V, C) -> (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# The physics, drawn and checked.

@torch.inference_mode()
def trajectory(model, idx):                                      # (1, T) -> z (4 L + 1, T, C), entropy (L, H)
    """z from the embedding on, after each term of each layer, and the mean entropy of each head's attention weights."""
    c, T, seen, entropy = model.config, idx.shape[1], [], []
    model(idx, seen=seen)
    z, turn = torch.cat((rms_norm(model.wte(idx)), *seen)), turns(0, T, c.n_embd // c.n_head, device=idx.device)
    for before, step in zip(z[::4], model.steps):
        q, k, v = step.pressure.heads(rms_norm(before[None]), turn)
        w = causal_sinkhorn(q, k, v, c.block_size, c.sinkhorn_iters * (c.pressure == "sinkhorn"))[1][0]
        entropy.append(-torch.special.xlogy(w, w).sum(-1).mean(-1))
    return z.float().cpu().numpy(), torch.stack(entropy).float().cpu().numpy()


def portrait(model, tokens, path):
    """The latent flow on the sphere, as a picture and a GIF; size of each term; entropy; viscosity as a filter."""
    from matplotlib import colormaps
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure
    c, colours, fine = model.eval().config, "#0072B2 #D55E00 #009E73 #CC79A7".split(), 10
    T, L = min(48, len(tokens), c.block_size), c.n_layer
    idx = torch.as_tensor(np.asarray(tokens[:T]).astype(np.int64), device=model.wte.weight.device)[None]
    z, entropy = trajectory(model, idx)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    _, s, axes = np.linalg.svd(unit.reshape(-1, c.n_embd), full_matrices=False)                # the main directions
    part = np.arange(fine)[:, None, None] / fine
    x = np.concatenate([*(a + part * (b - a) for a, b in zip(unit, unit[1:])), unit[-1:]]) @ axes[:3].T
    x /= np.linalg.norm(x, axis=-1, keepdims=True)                                             # (4 L fine + 1, T, 3)
    eye = x.mean((0, 1)) / np.linalg.norm(x.mean((0, 1)))        # look at it from the side where the tokens are
    front = np.where((x @ eye > 0)[..., None], x, np.nan)        # and what is behind the sphere is pale

    def sphere(ax, first, last, title):
        u, v = np.meshgrid(np.linspace(0, 2 * math.pi, 25), np.linspace(0, math.pi, 13))
        ax.clear()
        ax.plot_wireframe(np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v), color="0.85", lw=0.4)
        for t, colour in enumerate(colormaps["viridis"](np.linspace(0, 1, T))):
            ax.plot(*x[first:last + 1, t].T, color=colour, lw=0.8, alpha=0.25)
            ax.plot(*front[first:last + 1, t].T, color=colour, lw=0.8)
        ax.set(title=title, box_aspect=(1, 1, 1), xlim=(-0.7, 0.7), ylim=(-0.7, 0.7), zlim=(-0.7, 0.7))
        ax.view_init(azim=math.degrees(math.atan2(eye[1], eye[0])), elev=math.degrees(math.asin(eye[2])))
        ax.set_axis_off()
        return ax.scatter(*x[last].T, c=np.arange(T), s=20, cmap="viridis", depthshade=False)

    fig, layers = Figure(figsize=(13, 7), layout="constrained"), np.arange(L)
    grid = fig.add_gridspec(3, 3)
    ball, a, b, d = fig.add_subplot(grid[:, :2], projection="3d"), *(fig.add_subplot(grid[i, 2]) for i in range(3))
    dots = sphere(ball, 0, len(x) - 1, "From the embedding to the last layer (dots), on the sphere of the 3 main "
                  f"directions: {(s[:3] ** 2).sum() / (s ** 2).sum():.0%} of |z|²")
    fig.colorbar(dots, ax=ball, shrink=0.6, location="left", label="position in the text")
    size = (np.linalg.norm(np.diff(z, axis=0), axis=-1) / np.linalg.norm(z[:-1], axis=-1)).mean(1)         # (4 L,)
    top = 20 * size.max() or 1.0                                 # room for the legend
    size[size == 0] = np.nan                                     # a term that is off has no dot
    for i, term in enumerate(("pressure", "rotation", "viscosity", "Lorentz")):
        if np.isfinite(size[i::4]).any():
            a.semilogy(layers, size[i::4], "o-", color=colours[i], label=term)
    b.plot(layers, entropy, "o", color=colours[0], alpha=0.5)
    b.plot(layers, entropy.mean(1), color=colours[0], label="mean of the heads")
    b.axhline(np.log(np.arange(1, T + 1)).mean(), ls=":", color="0.4", label="uniform attention")
    w = np.linspace(0, math.pi, 100)
    for l in layers:
        d.plot(w, abs(1 - c.nu_at(l) + c.nu_at(l) * np.exp(-1j * w)), color=colormaps["cividis"](l / L),
               label=f"upwind, layer {l}" if l in (0, L - 1) else None)
    d.plot(w, abs(1 + c.nu * (1 - np.exp(-1j * w)) ** 2), "--", color=colours[1], label=f"seed stencil, nu = {c.nu:g}")
    a.set(title="Size of each term, |dz| / |z|", xlabel="layer", xticks=layers, ylim=(None, top))
    a.yaxis.set_major_formatter("{x:g}")
    b.set(title="Entropy of the attention (nats)", xlabel="layer", xticks=layers, ylim=(0, 1.1 * math.log(T)))
    d.set(title="Viscosity is a filter: its gain", xlabel="frequency (radians per token)", ylim=(0, None),
          xticks=[0, math.pi / 2, math.pi], xticklabels=["0", "π/2", "π"])
    for ax in (a, b, d):
        ax.legend(fontsize=8, ncols=1 + (ax is a))
    fig.savefig(path, dpi=110)
    small, movie = Figure(figsize=(3.2, 3.2)), PillowWriter(fps=10)
    ax = small.add_axes((0, 0, 1, 0.92), projection="3d")
    with movie.saving(small, os.path.splitext(path)[0] + ".gif", 100):
        for f in np.linspace(0, len(x) - 1, 25).astype(int):
            sphere(ax, max(0, f - len(x) // 10), f, f"layer {f / 4 / fine:.1f}")
            movie.grab_frame()


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
    free, z, qkv = rng.normal(size=120) / 4, rng.normal(size=(40, 16)), rng.normal(size=(3, 40, 2, 8))
    field = rng.normal(size=(24, 16)) / 4, rng.normal(size=24), rng.normal(size=(16, 24)) / 5          # W1, b1, W2
    omega, zt = skew(torch.tensor(free), 16), torch.tensor(z)[None]
    force = lorentz(zt, *map(torch.tensor, field))
    turned = {how: zt + zt @ turning(omega, 0.7, how) for how in ("euler", "cayley")}
    pairs = {"Sinkhorn": (causal_sinkhorn(*torch.tensor(qkv)[:, None], 16, 3)[0], causal_sinkhorn_ref(*qkv, 16, 3)),
             "Lorentz force": (force, lorentz_ref(z, *field)),
             **{how: (turned[how], rotation_ref(z, skew_ref(free, 16), 0.7, how)) for how in turned},
             **{k: (viscosity(zt, 0.3, k)[0], viscosity_ref(z, 0.3, k)) for k in ("upwind", "seed")}}
    for what, (fast, ref) in pairs.items():
        check(f"{what}: torch against the loops", abs(fast[0].numpy() - ref).max(), 1e-12)
    M, J = map(np.array, zip(*(field_ref(n, *field) for n in z)))
    slope = [(field_ref(z[0] + h, *field)[0] - field_ref(z[0] - h, *field)[0]) / 2e-5 for h in 1e-5 * np.eye(16)]
    check("Jacobian of the field against finite differences", abs(J[0] - np.stack(slope, 1)).max(), 1e-8)
    check("the force does no work: cosine F, M", F.cosine_similarity(force, torch.tensor(M), 2).abs().max(), 1e-12)
    check("nor does the rotation: cosine z, z Omega", F.cosine_similarity(zt, zt @ omega, -1).abs().max(), 1e-12)
    check("Cayley: |z| after / before - 1", (turned["cayley"].norm(dim=-1) / zt.norm(dim=-1) - 1).abs().max(), 1e-12)
    before, after = (u.diff(dim=1).abs().sum((0, 1)) for u in (zt, viscosity(zt, 0.9, "upwind")[0]))
    check("upwind: total variation after / before, worst channel", (after / before).max(), 1)
    nu = [Config(n_layer=6).nu_at(l) for l in range(6)]
    check(f"viscosity falls to {nu[-1]:g} in 6 layers: largest step up", max(np.diff(nu)), 0)

    torch.manual_seed(0)
    size = dict(vocab_size=50, block_size=16, n_layer=3, n_head=2, n_embd=32)
    other = dict(pressure="sinkhorn", sinkhorn_iters=3, rotation="cayley", laplacian="seed", zeus=True, n_field=48)
    idx, worst = torch.randint(50, (2, 40)), np.zeros(4)
    edited = torch.cat((idx[:, :20], torch.randint(50, (2, 20))), 1)
    for options in (other, {}):
        model, state = Model(Config(**size, **options)).double().eval(), {}
        for p in model.parameters():                             # zero-initialised projections would hide mistakes
            p.add_(0.1 * torch.randn_like(p))
        logits = model(idx)[0]
        params = {k: v.numpy() for k, v in model.state_dict().items()}
        ref = torch.tensor(forward_ref(params, idx.numpy(), model.config))
        stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split((1, 1, 5, 20, 1, 12), 1)], 1)
        moved, cut = (model(edited)[0] - logits)[:, :20], model(idx[:, :20])[0] - logits[:, :20]
        errors = (logits - ref) / ref.abs().max(), moved, cut, stream - logits
        worst = np.maximum(worst, [e.abs().max() for e in errors])
    check("both models: float64 torch against NumPy, relative", worst[0], 1e-10)
    check("causality: later tokens move earlier logits by", worst[1], 1e-12)
    check("causality: so does the length", worst[2], 1e-12)
    check("a stream in chunks against one shot, 2.5 blocks", worst[3], 1e-9)
    for step in model.steps:
        step.nu = 0
    check("viscosity matters: without it the logits move by", (model(idx)[0] - logits).abs().max(), 1e-2, ">=")
    ours, baseline = sum(p.numel() for p in Model(Config()).parameters()), 256 * 128 + 4 * 12 * 128 ** 2
    check(f"parameters: {ours:,} / {baseline:,} of a transformer as wide and deep", ours / baseline, 0.5)

    with open(__file__, "rb") as file:                           # train a small Zeus on the text of this file
        text = torch.tensor(list(file.read()))
    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        model = Model(Config(zeus=True, block_size=64))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
        for _ in range(100):
            batch = text[torch.randint(len(text) - 65, (16, 1)) + torch.arange(65)]
            optimizer.zero_grad()
            model(batch[:, :-1], batch[:, 1:])[1].backward()
            optimizer.step()
    batch = text[:len(text) // 65 * 65].view(-1, 65)
    check("Zeus, 100 batches of this file: nats per byte", model.eval()(batch[:, :-1], batch[:, 1:])[1].item(), 3)
    return ok, model, text[:64]


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    os.makedirs("out", exist_ok=True)
    if "ckpt" in options:                                        # draw a trained model: ckpt=out/hydra/ckpt.pt
        ckpt = torch.load(options["ckpt"], map_location="cpu", weights_only=True)
        model = Model(Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
        tokens, ok = ckpt["tokens"], True
    else:
        ok, model, tokens = self_check()
    portrait(model, tokens, "out/hydra.png")
    print("wrote out/hydra.png and out/hydra.gif")
    sys.exit(not ok)
