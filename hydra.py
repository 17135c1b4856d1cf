"""
Hydra, a transformer read as a fluid. Depth is time, and each of L layers moves the latent z by the
terms of the Navier-Stokes equation, one after the other. With n = z / rms(z):

    dz/dtau  =  rotation + nu viscosity + pressure + Lorentz force

    z <- z + kappa z Omega              rotation: Omega^T = -Omega, in place of an MLP
    z <- z + nu (z_{t-1} - z_t)         viscosity: a token mixes with the one before it
    z <- z + Attention(n)               pressure: what a token attends to moves it
    z <- z + lambda/2 P (J - J^T) M     force: the curl of a learned field M acts on M; J = dM/dn

    code      symbol      meaning                                           shape
    z         z           latent; n lies on a sphere of radius sqrt(C)      (B, T, C)
    skew      W           Omega = W - W^T, so that z . z Omega = 0              (C, C)
    kappa     kappa       speed of the rotation, learned                    ()
    nu        nu          viscosity of each channel, learned                (C,)
    w, mass   w_ts, m_s   attention weights; what key s has received        2 x (B, H, T, S)
    fc, out   W1, b1, W2  M = P g with g = W2 silu(W1 n + b1)               (R, C), (R,), (C, R)
    tangent   P           P f = f - n (n.f)/(n.n): f along the sphere       (B, T, C)
    lam       lambda      strength of the force, learned                    ()

Source: "Hydra" by Marvin Koss, github.com/marvosyntactical/hydra, doi 10.5281/zenodo.15634703.
With the force the original calls it Zeus; preset=hydra is the flow without it.
Check and draw it with `python hydra.py`, train it with `python train.py model=hydra`.
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
    vocab_size: int = 256           # tokens in the vocabulary; the data set decides
    block_size: int = 128           # tokens a query can see, itself included
    n_layer: int = 2                # layers: steps of the flow
    n_head: int = 4                 # attention heads
    n_embd: int = 128               # channels
    dropout: float = 0.0            # on pressure and Lorentz force, while training
    rotation: Literal["euler", "cayley"] = "euler"          # z + kappa z Omega, or a true rotation
    kappa: float = 1.0              # speed of rotation at the start, learned; 0 leaves it out
    laplacian: Literal["upwind", "one_sided"] = "upwind"    # z_{t-1} - z_t, or a second difference
    nu: float = 0.1                 # largest viscosity at the start, 0 to 1; 0 leaves it out
    schedule: Literal["falling", "constant", "rising"] = "falling"    # viscosity over the layers
    learn_nu: bool = True           # learn it from there on, for each layer and channel
    temperature: float = 0.56       # divides the scores: below 1 attention is sharper
    pressure: Literal["softmax", "sinkhorn"] = "softmax"    # how attention weights are normalised
    sinkhorn_iters: int = 1         # column normalisations of pressure=sinkhorn; 0 is softmax
    zeus: bool = True               # the Lorentz force
    n_field: int = 256              # width R of its field M

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} "
                             "heads of even width")
        if not 0 <= self.nu <= 1:
            raise ValueError(f"nu={self.nu:g} should be 0 to 1, or viscosity would not smooth")

    def nu_at(self, l):
        """Viscosity of layer l of L: nu (1 - l/(L-1)) falling, nu constant, nu l/(L-1) rising."""
        tau = l / (self.n_layer - 1) if self.n_layer > 1 else 1.0
        share = {"falling": 1 - tau, "constant": 1, "rising": tau}
        return self.nu * share[self.schedule]


PRESETS = {"original": dict(n_layer=8, n_head=8, n_embd=512, block_size=256,
                            learn_nu=False, zeus=False),
           "hydra": dict(n_layer=4, zeus=False)}                 # without the force; thin layers


# Kernels: the reference in NumPy, and the same in torch right below.

def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x) over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rms_norm(x):                                                 # (..., C) -> (..., C)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def skew_ref(W):                                                 # (C, C) -> (C, C)
    """Omega_ij = W_ij - W_ji, so that Omega_ji = -Omega_ij."""
    omega = np.empty_like(W)
    for i in range(len(W)):
        for j in range(len(W)):
            omega[i, j] = W[i, j] - W[j, i]
    return omega


def skew(W):                                                     # (C, C) -> (C, C)
    return W - W.T


def rotate_ref(z, omega, kappa, how):                            # (T, C), (C, C) -> (T, C)
    """euler:   z + kappa z Omega
    cayley:  z (I - kappa/2 Omega)^-1 (I + kappa/2 Omega)

    Cayley's is a true rotation, which keeps all lengths. Euler's step is tangential, as
    z . z Omega = 0: it turns z and lengthens it, by sqrt(1 + |kappa z Omega|^2 / |z|^2).
    """
    eye = np.eye(len(omega))
    if how == "euler":
        return z @ (eye + kappa * omega)
    return z @ np.linalg.inv(eye - kappa / 2 * omega) @ (eye + kappa / 2 * omega)


def rotate(z, omega, kappa, how):                                # (B, T, C), (C, C) -> (B, T, C)
    A = kappa * omega
    if how == "cayley":
        # (I - A/2)^-1 (I + A/2) is I + (I - A/2)^-1 A: again z and something added.
        eye = torch.eye(len(A)).to(A)
        A = torch.linalg.solve(eye - A / 2, A)
    return z + z @ A


def viscosity_ref(z, nu, laplacian, last=None):                  # (T, C), (C,) -> (T, C)
    """upwind:     z_t + nu (z_{t-1} - z_t)
    one_sided:  z_t + nu (z_t - 2 z_{t-1} + z_{t-2})

    `last` (2, C) are the two tokens before; before the first token stands that token again.
    """
    if last is None:
        last = z[[0, 0]]
    u = np.concatenate([last, z])
    y = np.empty_like(z)
    for t in range(len(z)):
        two, one, now = u[t:t + 3]                               # z_{t-2}, z_{t-1}, z_t
        lap = one - now if laplacian == "upwind" else now - 2 * one + two
        y[t] = now + nu * lap
    return y


def viscosity(z, nu, laplacian, state=None):                     # (B, T, C), (C,) -> (B, T, C)
    """The state keeps the last two z."""
    last = z[:, [0, 0]]
    if state is not None:
        last = state.get("z", last)
        state["z"] = torch.cat((last, z), 1)[:, -2:]
    u = torch.cat((last, z), 1)
    one = u[:, 1:-1]                                             # z_{t-1}
    two = u[:, :-2]                                              # z_{t-2}
    lap = one - z if laplacian == "upwind" else z - 2 * one + two
    return z + nu * lap


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


def causal_sinkhorn_ref(q, k, v, window, iters):                 # 3 x (T, H, D) -> (T, H, D)
    """Attention whose keys share out their influence; iters = 0 is softmax attention.

    w_ts = softmax_s(q_t . k_s / sqrt(D))     over the last `window` tokens s <= t
    iters times:
        m_s   = sum_{t' <= t} w_t's           what key s has received so far
        w_ts <- w_ts / m_s                    the more it has had, the less it gets,
        w_ts <- w_ts / sum_s' w_ts'           and the weights of a query still sum to 1
    y_t  = sum_s w_ts v_s
    """
    T, H, D = q.shape
    y = np.empty_like(v)
    mass = np.zeros((iters, H, T))
    for t in range(T):
        seen = slice(max(0, t - window + 1), t + 1)
        score = np.einsum("hd,shd->hs", q[t], k[seen]) / math.sqrt(D)
        w = np.exp(score - score.max(-1, keepdims=True))
        w = w / w.sum(-1, keepdims=True)
        for i in range(iters):
            mass[i, :, seen] += w
            w = w / mass[i, :, seen]
            w = w / w.sum(-1, keepdims=True)
        y[t] = np.einsum("hs,shd->hd", w, v[seen])
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


def causal_sinkhorn(q, k, v, window, iters, state=None):
    """q (B, T, H, D) of the T newest of S tokens, k and v (B, S, H, D) -> y (B, T, H, D).

    The state keeps what its keys have received, one (B, H, 1, S) for each iteration.
    """
    T = q.shape[1]
    s = torch.arange(k.shape[1], device=q.device)
    t = s[-T:, None]
    outside = (s > t) | (s <= t - window)                        # (T, S)
    score = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    w = score.masked_fill(outside, -math.inf).softmax(-1)        # (B, H, T, S)
    before = None if state is None else state.get("mass")
    received = []
    for i in range(iters):
        mass = w.cumsum(2)
        if before is not None:
            mass = mass + F.pad(before[i], (0, T))               # the new keys had none
        received.append(mass[:, :, -1:, -window:])
        w = w / mass.masked_fill(outside, 1)                     # outside the window, 0 / 1
        w = w / w.sum(-1, keepdim=True)
    if state is not None:
        state["mass"] = received
    return torch.einsum("bhts,bshd->bthd", w.to(v.dtype), v)


def tangent_ref(f, n):                                           # 2 x (..., C) -> (..., C)
    """P f = f - n (n.f) / (n.n)."""
    return f - n * (n * f).sum(-1, keepdims=True) / (n * n).sum(-1, keepdims=True)


def tangent(f, n):                                               # 2 x (..., C) -> (..., C)
    """What of f is tangential to the sphere at n."""
    return f - n * (n * f).sum(-1, keepdim=True) / (n * n).sum(-1, keepdim=True)


def field_ref(n, W1, b1, W2):                                    # (..., C) -> (..., C)
    """M = P g,  g = W2 silu(W1 n + b1),  silu(a) = a / (1 + e^-a)."""
    a = n @ W1.T + b1
    g = a / (1 + np.exp(-a)) @ W2.T
    return tangent_ref(g, n)


def lorentz_ref(n, W1, b1, W2):                                  # (T, C) -> (T, C)
    """1/2 P (J - J^T) M with J = dM/dn, token by token.

    In three dimensions (J - J^T) M is (curl M) x M: the force of a magnetic field M on the current
    curl M that belongs to it. J by the complex step: M(n + i h e_j) = M(n) + i h dM/dn_j, so that
    the imaginary part is the derivative, exact for a tiny h.
    """
    h = 1e-30
    M = field_ref(n, W1, b1, W2)
    force = np.empty_like(n)
    for t in range(len(n)):
        moved = n[t] + 1j * h * np.eye(n.shape[1])               # row j: n + i h e_j
        J = field_ref(moved, W1, b1, W2).imag.T / h              # J[i, j] = dM_i/dn_j
        force[t] = (J - J.T) @ M[t] / 2
    return tangent_ref(force, n)


def lorentz(n, W1, b1, W2):                                      # (..., C) -> (..., C)
    """The same in four more products, without a matrix J.

    M is g - beta n with beta = n.g / n.n. So J = G - beta I - n (dbeta/dn)^T with G = dg/dn, by the
    product rule. G alone gives the same force: beta I cancels in J - J^T, and the last part and its
    transpose make of M a multiple of n, which P removes, and a multiple of n.M, which is 0.
    """
    a = F.linear(n, W1, b1)                                      # (..., R)
    sigmoid = torch.sigmoid(a)
    slope = sigmoid * (1 + a * (1 - sigmoid))                    # silu'(a)
    M = tangent(F.linear(a * sigmoid, W2), n)
    JM = F.linear(slope * F.linear(M, W1), W2)                   # G M   = W2 (slope * (W1 M))
    JtM = (slope * (M @ W2)) @ W1                                # G^T M = W1^T (slope * (W2^T M))
    return tangent(JM - JtM, n) / 2


# The model: a layer is four terms.

class Layer(nn.Module):
    def __init__(self, config, l):
        super().__init__()
        C = config.n_embd
        self.config = config
        if config.kappa:
            self.skew = nn.Linear(C, C, bias=False)
            self.kappa = nn.Parameter(torch.tensor(float(config.kappa)))
        if config.nu:
            nu = torch.full((C,), config.nu_at(l))
            self.nu = nn.Parameter(nu, requires_grad=config.learn_nu)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.proj = nn.Linear(C, C, bias=False)
        if config.zeus:
            self.fc = nn.Linear(C, config.n_field)
            self.out = nn.Linear(config.n_field, C, bias=False)
            self.lam = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(config.dropout)

    def rotation(self, z):
        """z <- z + kappa z Omega"""
        if not self.config.kappa:
            return z
        omega = skew(self.skew.weight)
        return rotate(z, omega, self.kappa, self.config.rotation)

    def viscosity(self, z, state):
        """z <- z + nu (z_{t-1} - z_t)"""
        if not self.config.nu:
            return z
        return viscosity(z, self.nu, self.config.laplacian, state)

    def pressure(self, z, turn, state):
        """z <- z + Attention(n)"""
        c = self.config
        qkv = self.qkv(rms_norm(z)).unflatten(-1, (3, c.n_head, -1))
        q, k, v = qkv.unbind(2)                                  # 3 x (B, T, H, D)
        q = rope(rms_norm(q) / c.temperature, turn)
        k = rope(rms_norm(k), turn)
        k, v = remember(state, k, v.to(q.dtype), c.block_size)
        if c.pressure == "softmax":
            y = attention(q, k, v, c.block_size)
        else:
            y = causal_sinkhorn(q, k, v, c.block_size, c.sinkhorn_iters, state)
        return z + self.drop(self.proj(y.flatten(2)))

    def force(self, z):
        """z <- z + lambda/2 P (J - J^T) M"""
        if not self.config.zeus:
            return z
        f = lorentz(rms_norm(z), self.fc.weight, self.fc.bias, self.out.weight)
        return z + self.lam * self.drop(f)

    def forward(self, z, turn, state=None):                      # (B, T, C) -> (B, T, C)
        z = self.rotation(z)
        z = self.viscosity(z, state)
        z = self.pressure(z, turn, state)
        return self.force(z)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)    # also the head: tied
        self.layers = nn.ModuleList(Layer(config, l) for l in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith(("bias", "proj.weight", "skew.weight")):
                nn.init.zeros_(p)                                # no pressure, no rotation at first
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.5 / math.sqrt(p.shape[1]))
        nn.init.normal_(self.wte.weight, std=0.01)

    def embed(self, idx, pos):
        """idx (B, T) from position `pos` on -> z (B, T, C), RoPE's turn (T, 1, D/2)."""
        t = pos + torch.arange(idx.shape[1], dtype=torch.float64)
        turn = rotation(t, self.config.n_embd // self.config.n_head)
        z = rms_norm(self.wte(idx))
        return z, turn.to(z.device, z.dtype.to_complex())

    def forward(self, idx, targets=None, state=None):
        """idx (B, T) -> logits (B, T, V), and the loss in nats per token, None without targets.

        `state` is a dict, empty at the start of a stream; pass it again with the next tokens.
        """
        pos = 0 if state is None else state.get("pos", 0)
        z, turn = self.embed(idx, pos)
        for l, layer in enumerate(self.layers):
            own = None if state is None else state.setdefault(l, {})
            z = layer(z, turn, own)
        if state is not None:
            state["pos"] = pos + idx.shape[1]
        logits = F.linear(rms_norm(z), self.wte.weight)          # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# Proof.

def forward_ref(params, idx, config):
    """The whole model in NumPy, one text at a time: idx (B, T) -> logits (B, T, V).

    `params` are the float64 arrays of Model.state_dict().
    """
    c = config
    iters = c.sinkhorn_iters if c.pressure == "sinkhorn" else 0
    logits = []
    for tokens in idx:
        z = rms_norm_ref(params["wte.weight"][tokens])           # (T, C)
        for l in range(c.n_layer):
            p = {}                                               # the parameters of this layer
            for name, value in params.items():
                p[name.removeprefix(f"layers.{l}.")] = value
            if c.kappa:
                omega = skew_ref(p["skew.weight"])
                z = rotate_ref(z, omega, p["kappa"], c.rotation)
            if c.nu:
                z = viscosity_ref(z, p["nu"], c.laplacian)
            qkv = rms_norm_ref(z) @ p["qkv.weight"].T            # (T, 3 C)
            q, k, v = qkv.reshape(len(z), 3, c.n_head, -1).swapaxes(0, 1)
            q = rope_ref(rms_norm_ref(q) / c.temperature)
            k = rope_ref(rms_norm_ref(k))
            y = causal_sinkhorn_ref(q, k, v, c.block_size, iters)
            z = z + y.reshape(z.shape) @ p["proj.weight"].T
            if c.zeus:
                field = (p["fc.weight"], p["fc.bias"], p["out.weight"])
                z = z + p["lam"] * lorentz_ref(rms_norm_ref(z), *field)
        logits.append(rms_norm_ref(z) @ params["wte.weight"].T)
    return np.stack(logits)


def check(what, value, bound):                                   # -> True if value <= bound
    """Print a claim of this file with its measured number and its bound."""
    holds = bool(value <= bound)
    print(f"{'ok  ' if holds else 'FAIL'} {what:<66} {float(value):9.2e} <= {bound:g}")
    return holds


@torch.no_grad()
def check_whole(name, **options):                                # -> two results
    """A small model on a text of 2.5 blocks: against NumPy, and in chunks."""
    config = Config(vocab_size=50, block_size=16, n_embd=32, **options)
    model = Model(config).double()
    for p in model.parameters():                                 # zeros would hide mistakes
        p.add_(torch.randn_like(p), alpha=0.1)
    params = {key: p.numpy() for key, p in model.state_dict().items()}
    idx = torch.randint(50, (2, 40))
    logits, _ = model(idx)
    error = logits - torch.tensor(forward_ref(params, idx.numpy(), config))
    state = {}
    chunks = [model(chunk, state=state)[0] for chunk in idx.split(3, 1)]
    gap = logits - torch.cat(chunks, 1)
    # A chunk cannot know what follows it, so the second line is about causality, too.
    return [
        check(f"{name}: torch against NumPy", abs(error).max(), 1e-10),
        check(f"{name}: a stream in chunks against one shot", abs(gap).max(), 1e-9)
    ]


@torch.no_grad()
def check_terms(layer, z):                                       # (N, C), |z| = 1 -> five results
    """What the terms do and what they keep, on trained weights."""
    omega = skew(layer.skew.weight)
    step = layer.kappa * (z @ omega).norm(dim=-1)
    euler = rotate(z, omega, layer.kappa, "euler").norm(dim=-1)
    cayley = rotate(z, omega, layer.kappa, "cayley").norm(dim=-1)

    angle = torch.tensor([0.45, 0.47]) * math.pi                 # radians per token
    wave = torch.exp(1j * torch.outer(torch.arange(3), angle))
    slow, fast = viscosity(wave[None], 0.15, "one_sided")[0, -1].abs()

    # M . (J - J^T) M = 0 by construction. It says nothing about work done on the flow.
    n = rms_norm(z)
    M = tangent(layer.out(F.silu(layer.fc(n))), n)
    cosine = F.cosine_similarity(layer.force(z) - z, M, -1)
    return [
        check("Euler makes |z|^2 larger by |kappa z Omega|^2: error",
              abs(euler ** 2 - step ** 2 - 1).max(), 1e-12),
        check("Cayley keeps the length of z: error",
              abs(cayley - 1).max(), 1e-12),
        check("one_sided, nu = 0.15, smooths slow waves: gain at 0.45 pi",
              slow, 1),
        check("and amplifies fast ones: 1 / gain at 0.47 pi",
              1 / fast, 1),
        check("the force is orthogonal to its field: cosine F, M",
              abs(cosine).max(), 1e-12)
    ]


def own_text():
    """The bytes of this file."""
    return torch.tensor(np.fromfile(__file__, np.uint8)).long()


def small_zeus():
    """60 batches of this file -> the loss on a quarter of it, and the Zeus that learned it."""
    model = Model(Config(block_size=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    windows = own_text().unfold(0, 65, 1)

    def loss(batch):
        return model(batch[:, :-1], batch[:, 1:])[1]

    for _ in range(60):
        batch = windows[torch.randint(len(windows), (16,))]
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    return loss(windows[::260]).item(), model.double()


def self_check():
    """Print each claim with its number and its bound -> all hold, a small trained Zeus."""
    torch.manual_seed(0)
    ok = check_whole("default")
    ok += check_whole(
        "every option",
        pressure="sinkhorn",
        sinkhorn_iters=3,
        rotation="cayley",
        laplacian="one_sided"
    )
    loss, model = small_zeus()
    ok += [check("Zeus, after 60 batches of this file: nats per byte", loss, 3)]
    ok += check_terms(model.layers[0], F.normalize(model.wte.weight))
    return all(ok), model


# Picture.

TERMS = ("rotation", "viscosity", "pressure", "force")


@torch.no_grad()
def trajectory(model, idx):                                      # (1, T) -> (4 L + 1, T, C)
    """z from the embedding on, after each of the four terms of each layer."""
    z, turn = model.embed(idx, 0)
    path = [z]
    for layer in model.layers:
        turned = layer.rotation(path[-1])
        mixed = layer.viscosity(turned, None)
        pushed = layer.pressure(mixed, turn, None)
        path += [turned, mixed, pushed, layer.force(pushed)]
    return torch.cat(path).cpu()


def effective_rank(n):                                           # (..., T, C) -> (...), 1 to C
    """exp of the entropy of the normalised eigenvalues of the tokens' covariance."""
    power = torch.linalg.svdvals(n - n.mean(-2, keepdim=True)) ** 2
    share = power / power.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def globe(ax, path, title):
    """A sphere seen from the front: where the paths (steps, T, 3) end, and every 12th of them."""
    ax.clear()
    a, b = np.mgrid[-1:1:49j, -1:1:9j] * math.pi / 2             # angles on the sphere
    ax.plot(np.cos(a) * np.sin(b), np.sin(a), color="0.9")       # meridians
    ax.plot(np.cos(b) * np.sin(a), np.sin(b), color="0.9")       # parallels
    x, y, depth = path[-1].T
    ax.scatter(x, y, c=range(len(x)), s=np.where(depth > 0, 30, 6), zorder=3)
    for t in range(0, len(x), 12):
        ax.plot(path[:, t, 0], path[:, t, 1])
        ax.text(x[t], y[t], t, fontsize=14)
    ax.set(title=title, aspect="equal")
    ax.set_axis_off()


def sphere(z):                                                   # (steps, T, C) -> (steps, T, 3)
    """Along the three main directions of z, on a sphere; the first of them points to the reader."""
    n = F.normalize(z, dim=-1)
    axes = torch.linalg.svd(n.flatten(0, 1), full_matrices=False)[2][:3]
    x = F.pad(n @ axes.T, (0, 3 - len(axes)))
    x = F.normalize(x * x[..., 0].mean().sign(), dim=-1)
    return x.roll(-1, -1)                                        # to the right, up, to the reader


def moved(z):                                                    # (4 L + 1, T, C) -> (4 L, T)
    """How far each term moves each token: |dz| / |z|."""
    return z.diff(dim=0).norm(dim=-1) / z[:-1].norm(dim=-1)


def trace(model, idx):                                           # (1, T) -> {name: (L, T), ...}
    """For the page of a run: how far each term moves each token, and the way over the sphere."""
    z = trajectory(model, idx)
    x = sphere(z[::4])                                           # (L + 1, T, 3)
    speed = F.normalize(z[::4], dim=-1).diff(dim=0).norm(dim=-1)
    found = {"speed": (speed, "radii", "how far a layer moves this token over the sphere"),
             "flow": (x, "radii", "the tokens after each layer, in the three directions in which "
                      "the latents differ most")}
    for i, term in enumerate(TERMS[:3 + model.config.zeus]):
        meaning = f"how far the {term} of a layer moves this token, |dz| / |z|"
        found[term] = (moved(z)[i::4], "|z|", meaning)
    return found


def portrait(model, tokens, path):
    """The flow on the sphere, how far each term moves, and the effective rank."""
    from matplotlib.figure import Figure
    idx = torch.as_tensor(tokens[:48], device=model.wte.weight.device)
    z = trajectory(model.eval(), idx[None])                      # (4 L + 1, T, C)
    fig = Figure((12, 6), layout="constrained")
    ball, size, rank = fig.subplot_mosaic("AB;AC").values()
    globe(ball, sphere(z), "Where tokens end, and the path of every 12th")
    step = moved(z)
    spread = effective_rank(F.normalize(z, dim=-1))
    rank.plot(spread, color="0.7")
    for i in range(4):
        after = range(i + 1, len(z), 4)
        size.plot(after, step[i::4].mean(1), "o-", label=TERMS[i])
        rank.plot(after, spread[i + 1::4], "o")
    size.set(title="How far each term moves a token: |dz| / |z|")
    fig.legend(loc="outside lower center", ncols=4)
    rank.set(title="Effective rank: over how many directions all tokens spread",
             xlabel="terms so far, four in each layer; a dot has the colour of the last one")
    fig.savefig(path)


def film(model, tokens, path):
    """The flow on the sphere as a GIF, term by term."""
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure
    x = sphere(trajectory(model.eval(), tokens[None, :48]))
    fig = Figure((3.6, 3.6))
    ax = fig.subplots()

    def draw(frame):                                             # four for each term
        i = frame // 4
        now = torch.lerp(x[i], x[i + 1], frame % 4 / 3)
        globe(ax, torch.stack((x[i], now)), f"layer {i // 4}: {TERMS[i % 4]}")

    FuncAnimation(fig, draw, 4 * len(x) - 4).save(path, "pillow")


# What we changed from the original, and why.
#
# Navier-Stokes is a pattern here: no term is u . grad u, and nothing keeps the flow incompressible.
# The original reads attention as pressure: it follows the gradient of the tokens' entropy. A
# preprint with the derivations is announced.
#
# The original sees the future. Its Sinkhorn makes attention doubly stochastic (rows and columns sum
# to 1) after the causal mask, and exp(0) = 1 brings the masked entries back. The only causal doubly
# stochastic matrix is the identity. So ours divides each key by what it has received so far, and
# normalises the row again.
#
# Its viscosity is a centred stencil (1, -2, 1), which reads the next token. The leak does not show,
# as the result is one number for all channels, which the next LayerNorm removes. So its viscosity
# does nothing at all. Ours is causal and per channel, and changing nu changes the logits.
#
# nu is learned for each channel: the flow is anisotropic, as the original says. That is 0.03 nats
# lower, for 256 numbers (experiments/sweeps.md). Some become negative. Then the term sharpens what
# viscosity smooths, and is the shear of momentum.py with gamma = -nu: no viscosity, but a filter
# that amplifies. learn_nu=false keeps the original's, which falls with depth.
#
# laplacian="one_sided" is not Hydra's, but FluidLM's: z_t - 2 z_{t-1} + z_{t-2} is the Laplacian
# at the token before. A wave of angle phi per token gets the gain |1 + nu (1 - e^{-i phi})^2|. It
# is below 1 where cos phi > nu / (1 + nu), up to 0.46 pi at nu = 0.15, and above 1 beyond: slow
# changes are smoothed, fast ones amplified. "upwind", |1 - nu + nu e^{-i phi}|, is not above 1 for
# any nu from 0 to 1.
#
# The original begins with the pressure. Ours takes the two linear terms first, and then the two
# that are not linear: 0.03 nats lower (experiments/sweeps.md). For short steps the order would not
# matter; these are long.
#
# Its rotation acts on LayerNorm(z), ours on z, so that z . z Omega = 0. Still an Euler step makes z
# longer; rotation="cayley" is the true rotation.
#
# The force is the default, because two layers with it learn more than four without it from as many
# parameters: all else that is not linear here is softmax and norms.
#
# The original's Zeus fits its curl to the nearest neighbours in the batch: other texts, and the
# future. Ours is exact and per token. Nothing enforces the rest of Maxwell, such as div M = 0.
#
# RoPE replaces learned positions, so that a stream can be longer than the block.
# Norms are RMSNorm and carry no gain.
#
# Omega is stored as a whole matrix W, of which C (C-1)/2 numbers act: Muon moves matrices.
# The lower half as free numbers, under AdamW, ends as low: experiments/sweeps.md.


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(__doc__)
        sys.exit(0 if "help" in sys.argv[1] else 2)
    ok, model = self_check()
    os.makedirs("out", exist_ok=True)
    portrait(model, own_text(), "out/hydra.png")
    film(model, own_text(), "out/hydra.gif")
    print("wrote out/hydra.png and out/hydra.gif")
    sys.exit(not ok)
