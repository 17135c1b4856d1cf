"""
FluidLM: a language model as a reaction-diffusion fluid. No attention, no cache: text flows through a PDE, step by step.

    du/dt = sum_d D_d Lap_d(u)  +  SSM(u)  +  R(u)  +  alpha h  +  alpha_loc W_loc A(u)  (+ LongConv(u))
    u    <- RMSNorm(u + s dt du/dt)             n_steps forward Euler steps in a layer, all with the same weights

    Lap_d(u)_t = u_{t-d} - u_t (upwind) or u_t - 2 u_{t-d} + u_{t-2d} (seed);  d = 1, 4, 16: wholly in the past
    SSM(u)     = W_out (y * silu(W_gate u)),  y_t = C_t z_t + D x_t,  z_t = exp(dt_t A) z_{t-1} + dt_t B_t x_t:
                 Mamba, x a short convolution of W_in u; its dt, A, B, C, D are its own, and dt, B, C depend on x
    R(u)       = W_down (silu(W_gate u) * W_up u): SwiGLU
    pump:        h <- delta h + g tanh(mean_{j<=t} R(u)_j),  g = sigmoid(W_x RMS(mean_{j<=t} u_j) + W_h RMS(h)),
                 before it enters du/dt
    tau_t      = mean |u_new - u| / mean |u|: turbulence. Once below epsilon for `patience` steps, token t halts

    code            symbol      meaning                                                             shape
    u               u           the fluid: concentrations of C species at every token               (B, T, C)
    diff            D_d         diffusion, softplus(diff), for each scale and channel               (3, C)
    state["z"]      z_t         what the SSM remembers of all the tokens so far                     (B, S, C)
    h               h           reservoir, handed from step to step and from layer to layer         (B, T, C)
    theta           delta       viscosity of the reservoir, delta = sigmoid(theta)                  (C,)
    alpha           alpha       and alpha_loc, softplus(alpha): weights of pump and local mean      (2, C)
    dt_gate         dt          time step, dt_max (0.005 + 0.995 sigmoid(dt_gate)); s = 1/sqrt(n_layer)
    local_window    -           A(u) is the mean of so many tokens, itself included, 0 before the first
    state           -           for each layer and step: last u, last W_in u, z and two running means; it never grows

Source: seed "fluidlm" (infinition/FluidLM V4.5.0). The SSM is Mamba, arXiv 2312.00752; SwiGLU, arXiv 2002.05202.

What we changed, and why. The seed's pump averages the whole sequence and adds the result to every token: in training
each token sees the future. Ours reads the same formula at every token; given u and h, they agree at the last one.
pump="broadcast" keeps the leak to be looked at. The seed's local window grows with the length, another leak: ours is a
constant. Its halting rule asks the whole sequence, ours each token. Its time step of at most 0.2 lets the text move too
little: dt_max is a setting. Its Laplacian sharpens, by 1 + 4 s dt D_1 at the highest frequency; the upwind one, a first
difference, carries the text on by s dt sum_d d D_d tokens a step and smooths on the way, if s dt sum_d D_d <= 1. In
three minutes a second Euler step is worth less than a second layer, so the default is one. The embedding is normalised,
norms carry no gain, and there is no position code unless position=1, as in the seed.

Run `python fluidlm.py` for the proof and a picture, `python train.py model=fluidlm` to train it.
"""
import math
import os
import sys
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


@dataclass
class Config:
    vocab_size: int = 256                     # tokens in the vocabulary; the data set decides
    block_size: int = 128                     # tokens in a training sequence; the model itself has no limit
    n_layer: int = 4                          # fluid layers, each with its own weights
    n_steps: int = 1                          # Euler steps in each layer
    n_embd: int = 128                         # channels
    d_state: int = 4                          # numbers the SSM remembers per channel
    dropout: float = 0.0                      # on du/dt, while training
    dt: float = 1.0                           # time step before training; learned per layer
    dt_max: float = 2.0                       # its upper bound
    laplacian: Literal["upwind", "seed"] = "upwind"     # u_{t-d} - u_t, or the seed's second difference
    local_window: int = 8                     # tokens in the local mean
    pump: Literal["causal", "broadcast"] = "causal"     # broadcast: the seed's pump, which sees the future
    longconv: bool = False                    # add four convolutions over 33, 65, 129 and 257 tokens
    position: float = 0.0                     # amplitude of the sinusoidal position code
    epsilon: float = 0.0                      # below this turbulence a token is calm; 0: no token halts
    patience: int = 2                         # so many calm steps in a row, and it halts (not in training)
    min_steps: int = 2                        # steps that every token takes
    w_eq: float = 0.01                        # weight of the turbulence in the training loss
    w_grad: float = 0.005                     # weight of the mean |second difference| of the last u
    w_gate: float = 0.08                      # weight of pump gates outside 0.2 .. 0.8

    def __post_init__(self):
        if self.longconv and self.n_embd % 4:
            raise ValueError(f"n_embd={self.n_embd} does not divide into the 4 heads of longconv")
        if not 0.005 * self.dt_max < self.dt < self.dt_max:
            raise ValueError(f"dt={self.dt} should be between 0.005 dt_max and dt_max={self.dt_max}")
        for name in ("n_steps", "d_state", "local_window", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} should be 1 or more")


PRESETS = {"seed": dict(n_layer=4, n_steps=8, n_embd=512, block_size=256, d_state=16, dt=0.1, dt_max=0.2,
                        laplacian="seed", longconv=True, position=1.0, epsilon=0.05)}
DILATIONS, KERNELS = (1, 4, 16), (33, 65, 129, 257)


# The reference: plain NumPy, float64, loops. It shares nothing with the fast version below.

def sigmoid_ref(x):
    """1 / (1 + e^{-x})."""
    return 1 / (1 + np.exp(-x))


def softplus_ref(x):
    """log(1 + e^x)."""
    return np.log1p(np.exp(x))


def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x), over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def positions_ref(T, C):                                         # -> (T, C)
    """PE_{t,2i} = sin(t / 10000^(2i/C)), PE_{t,2i+1} = cos(t / 10000^(2i/C))."""
    return np.array([[(math.cos if i % 2 else math.sin)(t / 10000 ** ((i - i % 2) / C)) for i in range(C)]
                     for t in range(T)])


def laplacian_ref(u, D, kind="seed"):                            # (T, C), (3, C) -> (T, C)
    """sum_d D_d (u_t - 2 u_{t-d} + u_{t-2d}), or "upwind" sum_d D_d (u_{t-d} - u_t); zero before the first token."""
    at = lambda t: u[t] if t >= 0 else 0 * u[0]
    y = np.zeros_like(u)
    for t in range(len(u)):
        for d, coef in zip((1, 4, 16), D):
            y[t] += coef * (at(t) - 2 * at(t - d) + at(t - 2 * d) if kind == "seed" else at(t - d) - at(t))
    return y


def filter_ref(x, w):                                            # (T, C), (K, C) -> (T, C)
    """A causal convolution of each channel: y_t = sum_k w_k x_{t-k}, zero before the first token."""
    return np.array([sum(w[k] * x[t - k] for k in range(min(len(w), t + 1))) for t in range(len(x))])


def selective_scan_ref(x, dt, A, B, C, D, h0=None):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,  y_t = C_t h_t + D x_t  (Mamba, eq. 2)  -> y (B, L, D), h_L (B, S, D)
    x, dt (B, L, D);  A (D, S), negative;  B, C (B, L, S);  D (D,);  h0 (B, S, D), zero if None."""
    h = np.zeros((len(x), *A.T.shape)) if h0 is None else h0.copy()
    y = np.empty_like(x)
    for b in range(len(x)):
        for t in range(x.shape[1]):
            h[b] = np.exp(dt[b, t] * A.T) * h[b] + dt[b, t] * x[b, t] * B[b, t][:, None]         # (S, D)
            y[b, t] = C[b, t] @ h[b] + D * x[b, t]
    return y, h


def pump_ref(R, u, h, W_x, W_h, theta, causal=True):             # 3 x (T, C), 2 x (C, C), (C,) -> (T, C)
    """h <- sigmoid(theta) h + g tanh(s), g = sigmoid(W_x RMS(ubar) + W_h RMS(h)); s, ubar: means of R, u up to t."""
    new = np.empty_like(h)
    for t in range(len(u)):
        seen = t + 1 if causal else len(u)                       # the seed's mean is over all tokens, also later ones
        s, ubar = R[:seen].mean(0), u[:seen].mean(0)
        g = sigmoid_ref(W_x @ rms_norm_ref(ubar) + W_h @ rms_norm_ref(h[t]))
        new[t] = sigmoid_ref(theta) * h[t] + g * np.tanh(s)
    return new


def block_ref(p, u, h, c):                                       # {name: array}, 2 x (T, C) -> 2 x (T, C)
    """One layer: n_steps Euler steps; a token that halts keeps its u, and others go on reading it."""
    silu = lambda x: x * sigmoid_ref(x)
    D, alpha, W_x, W_h = softplus_ref(p["diff"]), softplus_ref(p["alpha"]), p["gate_x.weight"], p["gate_h.weight"]
    dt = c.dt_max * (0.005 + 0.995 * sigmoid_ref(p["dt_gate"])) / math.sqrt(c.n_layer)
    R, live, calm = 0 * u, np.ones((len(u), 1), bool), np.zeros((len(u), 1))
    for k in range(c.n_steps):
        new = silu(u @ p["reaction.gate.weight"].T) * (u @ p["reaction.up.weight"].T) @ p["reaction.proj.weight"].T
        R = np.where(live, new, R)                               # a halted token's last reaction stays in the means
        h = np.where(live, pump_ref(R, u, h, W_x, W_h, p["theta"], c.pump == "causal"), h)
        x = silu(filter_ref(u @ p["ssm.in_proj.weight"].T, p["ssm.conv"]) + p["ssm.conv_bias"])
        low, B, C = np.split(x @ p["ssm.select.weight"].T, [-2 * c.d_state, -c.d_state], 1)
        step = softplus_ref(low @ p["ssm.dt_proj.weight"].T + p["ssm.dt_bias"])
        y = selective_scan_ref(x[None], step[None], -np.exp(p["ssm.A_log"]), B[None], C[None], p["ssm.D"])[0][0]
        mean = filter_ref(u, np.ones((c.local_window, 1)) / c.local_window)
        du = laplacian_ref(u, D, c.laplacian) + (y * silu(u @ p["ssm.gate.weight"].T)) @ p["ssm.proj.weight"].T
        du = du + R + alpha[0] * h + alpha[1] * (mean @ p["local.weight"].T)
        if c.longconv:
            heads = [filter_ref(x, p[f"longconv.{i}"]) for i, x in enumerate(np.split(u, 4, 1))]
            du = du + np.concatenate(heads, 1) @ p["mix.weight"].T
        new = rms_norm_ref(u + dt * du)
        tau = abs(new - u).mean(1, keepdims=True) / (abs(u).mean(1, keepdims=True) + 1e-8)
        u = np.where(live, new, u)
        calm = np.where(tau < c.epsilon, calm + 1, 0)
        live = live & ((calm < c.patience) | (k + 1 < c.min_steps))
    return u, h


def forward_ref(params, idx, config):                            # {name: array}, (B, T) -> logits (B, T, V)
    """The whole model in NumPy, one sequence at a time. `params` are the float64 arrays of Model.state_dict()."""
    logits = np.empty((*idx.shape, config.vocab_size))
    for b, tokens in enumerate(idx):
        u = rms_norm_ref(params["wte.weight"][tokens]) + config.position * positions_ref(len(tokens), config.n_embd)
        h = 0 * u
        for l in range(config.n_layer):
            start = f"blocks.{l}."
            u, h = block_ref({k[len(start):]: v for k, v in params.items() if k.startswith(start)}, u, h, config)
        logits[b] = u @ params["wte.weight"].T
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


def recur(a, h, back=False):                                     # 2 x (n, B, S, D), h in place
    """h_t += a_t h_{t-1} for t = 1 .. n-1, or back: h_t += a_t h_{t+1} for t = n-2 .. 0."""
    n, way = len(h), -1 if back else 1
    walk = lambda n: zip(range(n)[::way], range(n)[::way][1:])                                 # (from, to), in order
    if n % 16 or n < 64 or h[0].numel() >= 8192:
        rows, decays = h.unbind(0), a.unbind(0)
        for s, t in walk(n):
            rows[t].addcmul_(decays[t], rows[s])
        return
    h, a = h.view(n // 16, 16, -1), a.reshape(n // 16, 16, -1)   # short rows: what costs is the number of calls,
    p, end = a.clone(), 0 if back else -1                        # so 16 steps in all groups at once; p: product of a
    for s, t in walk(16):
        h[:, t].addcmul_(a[:, t], h[:, s])
        p[:, t].mul_(p[:, s])
    for s, t in walk(len(h)):
        h[t].addcmul_(p[t], h[s, end])                           # then from group to group


def scan_chunk(x, dt, A, B, a, h):                               # 2 x (n, B, D), (S, D), (n, B, S)
    """From h[0], the state before the chunk, fill h[1:] with its states and a with its decays."""
    torch.mul(dt.unsqueeze(2), A / math.log(2), out=a).exp2_()   # torch.exp is 35 times slower where it underflows
    torch.mul(x.unsqueeze(2), B.unsqueeze(3), out=h[1:])
    h[1].addcmul_(a[0], h[0])
    recur(a, h[1:])


class SelectiveScan(torch.autograd.Function):
    """h_t = exp(dt_t A) h_{t-1} + B_t x_t,  y_t = C_t h_t, time first, in chunks: two or three buffers of 1 MiB stay in
    cache. Only the state before each chunk is kept for the backward pass, which computes the chunk again."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, h0):                        # 2 x (L, B, D), (S, D), 2 x (L, B, S), (B, S, D)
        (L, b, d), S = x.shape, len(A)
        ctx.K = K = min(L, 256, max(8, 2 ** 18 // (b * S * d)))
        a, h = x.new_empty(K, b, S, d), x.new_empty(K + 1, b, S, d)
        y, first = x.new_empty(L, b, d), x.new_empty(-(-L // K), b, S, d)
        last = h0
        for i, s in enumerate(range(0, L, K)):
            n = min(K, L - s)
            h[0] = first[i] = last
            scan_chunk(x[s:s + n], dt[s:s + n], A, B[s:s + n], a[:n], h[:n + 1])
            torch.bmm(C[s:s + n].reshape(n * b, 1, S), h[1:n + 1].flatten(0, 1), out=y[s:s + n].view(n * b, 1, d))
            last = h[n]
        ctx.save_for_backward(x, dt, A, B, C, first)
        return y, last.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, gh):
        x, dt, A, B, C, first = ctx.saved_tensors
        A = A.contiguous()
        (L, b, d), S, K = x.shape, len(A), ctx.K
        a, h, g = x.new_zeros(K + 1, b, S, d), x.new_empty(K + 1, b, S, d), x.new_empty(K, b, S, d)
        gx, gdt, gA, gB, gC = x.new_empty(L, b, d), x.new_empty(L, b, d), torch.zeros_like(A), *x.new_empty(2, L, b, S)
        gh = gh.clone()                                          # dloss/dh, coming from the right
        for i in reversed(range(len(first))):
            s = slice(i * K, min(L, i * K + K))
            n = s.stop - s.start
            h[0] = first[i]
            scan_chunk(x[s], dt[s], A, B[s], a[:n], h[:n + 1])
            torch.mul(gy[s].unsqueeze(2), C[s].unsqueeze(3), out=g[:n])
            g[n - 1].add_(gh)
            recur(a[1:n + 1], g[:n], back=True)
            torch.mul(a[0], g[0], out=gh)
            rows = lambda v: v.flatten(0, 1).unsqueeze(1)                                      # (n, B, *) -> (nB, 1, *)
            torch.bmm(rows(gy[s]), h[1:n + 1].flatten(0, 1).transpose(1, 2), out=rows(gC[s]))
            torch.bmm(rows(x[s]), g[:n].flatten(0, 1).transpose(1, 2), out=rows(gB[s]))
            torch.bmm(rows(B[s]), g[:n].flatten(0, 1), out=rows(gx[s]))
            g[:n].mul_(a[:n]).mul_(h[:n])                                                      # dloss / d(dt_t A)
            torch.sum(torch.mul(g[:n], A, out=a[:n]), 2, out=gdt[s])
            gA += g[:n].mul_(dt[s].unsqueeze(2)).sum((0, 1))
        return gx, gdt, gA, gB, gC, gh


@torch.compiler.disable                                          # its loops would be unrolled
def selective_scan(x, dt, A, B, C, D, h0=None):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,  y_t = C_t h_t + D x_t  (Mamba, eq. 2)  -> y (B, L, D), h_L (B, S, D)
    x, dt (B, L, D);  A (D, S), negative;  B, C (B, L, S);  D (D,);  h0 (B, S, D), zero if None."""
    if x.dtype != torch.float64:                                 # autocast may bring bfloat16
        x, dt, A, B, C, D = (v.float() for v in (x, dt, A, B, C, D))
    if h0 is None:
        h0 = x.new_zeros(len(x), A.shape[1], A.shape[0])
    if x.shape[1] == 1:                                          # a single token needs no chunks
        h = torch.exp(dt.transpose(1, 2) * A).transpose(1, 2) * h0 + B.transpose(1, 2) * (dt * x)
        return (C.transpose(1, 2) * h).sum(1, keepdim=True) + D * x, h
    xt, dtt, Bt, Ct = (v.transpose(0, 1) for v in (dt * x, dt, B, C))
    y, h = SelectiveScan.apply(xt, dtt, A.t(), Bt, Ct, h0)
    return torch.addcmul(y.transpose(0, 1), x, D), h


class Taps(torch.autograd.Function):
    """What `taps` does, in one pass of fused multiply-adds for each delay, forward and back."""

    @staticmethod
    def forward(ctx, x, w, delays, T):                           # (B, P + T, C), (n, C) -> (B, T, C)
        ctx.save_for_backward(x, w)
        ctx.starts = starts = [x.shape[1] - T - d for d in delays]
        y = x.narrow(1, starts[0], T) * w[0]
        for s, wi in zip(starts[1:], w[1:]):
            y.addcmul_(x.narrow(1, s, T), wi)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gx, gw, T = torch.zeros_like(x), None, g.shape[1]
        for s, wi in zip(ctx.starts, w):
            gx.narrow(1, s, T).addcmul_(g, wi)
        if ctx.needs_input_grad[1]:
            gw = torch.stack([(g * x.narrow(1, s, T)).sum((0, 1)) for s in ctx.starts])
        return gx, gw, None, None


def taps(x, w, delays, T):                                       # (B, P + T, C), (n, C) -> (B, T, C)
    """y_t = sum_i w_i x_{t - delays_i}, each channel for itself. x begins with the history: y has the last T tokens."""
    if T > 1:
        return Taps.apply(x, w, delays, T)
    return (x[:, [x.shape[1] - 1 - d for d in delays]] * w).sum(1, keepdim=True)


def stencil(D, kind="seed"):                                     # (3, C) -> (n, C), n delays
    """The three Laplacians, weighted with D, as one filter."""
    if kind == "upwind":
        return torch.stack((-D.sum(0), *D)), (0, *DILATIONS)
    return torch.stack((D.sum(0), *(-2 * D), *D)), (0, *DILATIONS, *(2 * d for d in DILATIONS))


def history(x, P, state, key):                                   # (B, T, C) -> (B, P + T, C)
    """x behind the P tokens that came before it, zero at the start; the last P are kept in the state."""
    x = torch.cat((state[key], x), 1) if key in state else F.pad(x, (0, 0, P, 0))
    state[key] = x[:, x.shape[1] - P:].clone()                   # a view would keep the whole chunk in memory
    return x


def running_mean(x, count, state, key):                          # (B, T, C), (T, 1) -> (B, T, C)
    """Mean of the `count` tokens up to each. A mean stays small where a sum would lose digits as it grows."""
    past = state.get(key, 0)
    mean = (x - past).cumsum(1) / count + past
    state[key] = mean[:, -1:].clone()
    return mean


def turbulence(u, new):                                          # 2 x (..., C) -> (..., 1)
    """tau = mean |u_new - u| / mean |u|, over the channels of each token."""
    return (new - u).abs().mean(-1, keepdim=True) / (u.abs().mean(-1, keepdim=True) + 1e-8)


def positions(pos, T, C, device):                                # -> (T, C)
    """PE_{t,2i} = sin(t / 10000^(2i/C)), PE_{t,2i+1} = cos(t / 10000^(2i/C)), t = pos .. pos + T - 1."""
    t = torch.arange(pos, pos + T, dtype=torch.float64)          # on the CPU: not every device has float64
    angle = torch.outer(t, 10000 ** (-torch.arange(0, C + 1, 2, dtype=torch.float64) / C))
    return torch.stack((angle.sin(), angle.cos()), 2).flatten(1)[:, :C].to(device)


class SSM(nn.Module):
    def __init__(self, c):
        super().__init__()
        C, S = c.n_embd, c.d_state
        self.split = (-(-C // 16), S, S)
        self.in_proj, self.gate, self.proj = (nn.Linear(C, C, bias=False) for _ in range(3))
        self.conv = nn.Parameter(torch.empty(4, C).uniform_(-0.5, 0.5))
        self.conv_bias = nn.Parameter(torch.zeros(C))
        self.select = nn.Linear(C, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(self.split[0], C, bias=False)
        dt = torch.empty(C).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(dt.expm1().log())                                          # softplus^-1(dt)
        self.A_log = nn.Parameter(torch.arange(1, S + 1.0).log().repeat(C, 1))
        self.D = nn.Parameter(torch.ones(C))

    def forward(self, u, state, pick):                           # (B, T, C) -> (B, T, C), or (n, C) once some halted
        """Scans every token, because later ones read the state; only those that `pick` chooses are read out."""
        x = history(self.in_proj(u), 3, state, "x")
        x = F.silu(taps(x, self.conv, range(4), u.shape[1]) + self.conv_bias)
        dt, B, C = self.select(x).split(self.split, -1)
        dt = F.softplus(self.dt_proj(dt) + self.dt_bias)
        y, state["z"] = selective_scan(x, dt, -self.A_log.exp(), B, C, self.D, state.get("z"))
        return self.proj(pick(y) * F.silu(self.gate(pick(u))))


class Reaction(nn.Module):
    def __init__(self, c):
        super().__init__()
        H = -(-8 * c.n_embd // 192) * 64                         # 8/3 C, rounded up to 64
        self.gate, self.up = (nn.Linear(c.n_embd, H, bias=False) for _ in range(2))
        self.proj = nn.Linear(H, c.n_embd, bias=False)

    def forward(self, u):
        return self.proj(F.silu(self.gate(u)) * self.up(u))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        C = c.n_embd
        self.config = c
        sigma = (c.dt / c.dt_max - 0.005) / 0.995
        self.dt_gate = nn.Parameter(torch.tensor(math.log(sigma / (1 - sigma))))
        self.alpha = nn.Parameter(torch.full((2, C), math.log(math.expm1(0.1))))
        self.diff = nn.Parameter(torch.tensor((0.15, 0.10, 0.08)).expm1().log()[:, None].repeat(1, C))
        self.ssm, self.reaction = SSM(c), Reaction(c)
        self.gate_x, self.gate_h, self.local = (nn.Linear(C, C, bias=False) for _ in range(3))
        self.theta = nn.Parameter(torch.full((C,), math.log(0.97 / 0.03)))
        if c.longconv:
            self.longconv = nn.ParameterList(torch.randn(k, C // 4) / k ** 0.5 for k in KERNELS)
            self.mix = nn.Linear(C, C, bias=False)
        self.reach = max(*stencil(self.diff, c.laplacian)[1], c.local_window - 1, c.longconv * (max(KERNELS) - 1))
        self.drop = nn.Dropout(c.dropout) if c.dropout else nn.Identity()

    def step(self):                                              # s dt, a scalar
        c = self.config
        return c.dt_max * (0.005 + 0.995 * torch.sigmoid(self.dt_gate)) / c.n_layer ** 0.5

    def forward(self, u, h, count, state, log=None):             # 2 x (B, T, C) -> 2 x (B, T, C), steps (B, T)
        """`count` (T, 1): tokens up to each. `log`: a list that collects (u, next u, gate) of every Euler step."""
        c, T = self.config, u.shape[1]
        w, delays = stencil(F.softplus(self.diff), c.laplacian)
        alpha, delta, dt = F.softplus(self.alpha), torch.sigmoid(self.theta), self.step()
        window = torch.full_like(self.diff[:1], 1 / c.local_window).expand(c.local_window, -1)
        R = live = None                                          # live: the tokens that still move; None: all
        calm = steps = torch.zeros_like(u[..., :1])              # (B, T, 1)
        pick = lambda x: x if live is None else x.flatten(0, 1)[live]                          # (B, T, *) -> (n, *)
        put = lambda x, new: new if live is None else x.flatten(0, 1).index_copy(0, live, new).view_as(x)

        for k in range(c.n_steps):
            # What later tokens will read is updated for every token; a halted one contributes its last u and R.
            own, moves = state.setdefault(k, {}), live is None or len(live) > 0
            past, ssm = history(u, self.reach, own, "u"), self.ssm(u, own, pick)
            R = put(R, self.reaction(pick(u))) if moves else R
            u_mean, R_mean = running_mean(u, count, own, "mean_u"), running_mean(R, count, own, "mean_R")
            if c.pump == "broadcast":                            # the seed's: the last mean for all, also earlier ones
                u_mean, R_mean = (x[:, -1:].expand_as(x) for x in (u_mean, R_mean))
            if not moves:
                continue

            # The equation, for the tokens that still move; from here on all is (B, T, C), or (n, C) once some halted.
            v, g = pick(u), torch.sigmoid(self.gate_x(rms_norm(pick(u_mean))) + self.gate_h(rms_norm(pick(h))))
            tanh = 2 * torch.sigmoid(2 * pick(R_mean)) - 1       # torch.tanh is three times slower
            pump = torch.addcmul(g * tanh, delta, pick(h))       # delta h + g tanh(mean R)
            du = (pick(taps(past, w, delays, T))                                               # sum_d D_d Lap_d(u)
                  + ssm                                                                        # SSM(u)
                  + pick(R)                                                                    # R(u)
                  + alpha[0] * pump                                                            # alpha h
                  + alpha[1] * self.local(pick(taps(past, window, range(c.local_window), T))))    # W_loc A(u)
            if c.longconv:
                heads = [taps(x, f, range(len(f)), T) for x, f in zip(past.chunk(4, 2), self.longconv)]
                du = du + self.mix(pick(torch.cat(heads, 2)))
            new = rms_norm(torch.addcmul(v, dt, self.drop(du)))  # RMSNorm(u + s dt du/dt)

            if log is not None:
                log.append((v, new, g))
            u, h, steps = put(u, new), put(h, pump), put(steps, pick(steps) + 1)
            if c.epsilon and not self.training:
                calm = put(calm, torch.where(turbulence(v, new) < c.epsilon, pick(calm) + 1, 0))
                if k + 1 >= c.min_steps:
                    live = (calm < c.patience).flatten().nonzero().squeeze(1)                  # (n,)
                    live = None if len(live) == calm.numel() else live
        return u, h, steps[..., 0]


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.progress = config, 1.0                             # progress: set by train.py, 0 to 1
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)            # also the head: tied
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith((".proj.weight", "local.weight", "mix.weight")):
                nn.init.zeros_(p)                                            # what writes into the fluid starts at zero
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.01 if name == "wte.weight" else 0.5 * p.shape[1] ** -0.5)

    def start(self, idx, n=0):                                   # (B, T), n tokens before -> 2 x (B, T, C), (T, 1)
        """What enters the first layer: u, an empty reservoir h, and how many tokens each position has seen."""
        c, T, u = self.config, idx.shape[1], rms_norm(self.wte(idx))
        if c.position:
            u = u + c.position * positions(n, T, c.n_embd, u.device).to(u.dtype)
        return u, torch.zeros_like(u), torch.arange(n + 1, n + 1 + T, device=u.device, dtype=u.dtype)[:, None]

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss or None
        """`state`: a dict, empty at the start of a stream. It is filled; pass it again with the next tokens."""
        c, state, log, steps = self.config, {} if state is None else state, [] if self.training else None, []
        n = state.get("n", 0)
        u, h, count = self.start(idx, n)
        for l, block in enumerate(self.blocks):
            u, h, taken = block(u, h, count, state.setdefault(l, {}), log)
            steps.append(taken)
        state["n"] = n + idx.shape[1]
        self.steps = torch.stack(steps)                                      # (n_layer, B, T), what each token took
        logits = F.linear(u, self.wte.weight)                                # u is normalised already
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.training:
            ramp = min(1.0, 10 * self.progress)                              # the seed's curriculum
            for u_k, new, gate in log:
                loss = loss + c.w_eq / len(log) * ramp * turbulence(u_k, new).mean()
                loss = loss + c.w_gate / len(log) * F.relu((gate - 0.5).abs() - 0.3).mean()
            if idx.shape[1] > 2:
                loss = loss + c.w_grad * ramp * u.diff(n=2, dim=1).abs().mean()
        return logits, loss


# The physics, drawn and checked.

def gain(w, D, kind="seed"):                                     # (n,) radians per token, (3, ...) -> complex (n, ...)
    """The filter of the three Laplacians: sum_d D_d (1 - e^{-iwd})^2, or "upwind" sum_d D_d (e^{-iwd} - 1)."""
    z = np.exp(-1j * np.outer(w, DILATIONS))                                                   # (n, 3)
    return ((1 - z) ** 2 if kind == "seed" else z - 1) @ D


@torch.inference_mode()
def waves(model, idx, n_steps):                                  # (1, T) -> u (L, n_steps + 1, T, C)
    """Let each layer run for n_steps Euler steps, however many it was trained for, while no token halts."""
    (u, h, count), c, out = model.start(idx), model.config, []
    for block in model.blocks:
        block.config, log = replace(c, n_steps=n_steps, epsilon=0.0), []
        block(u, h, count, {}, log)
        out.append(torch.cat((u, *(new for _, new, _ in log))))
        block.config = c
        u, h, _ = block(u, h, count, {})
    return torch.stack(out).float().cpu()


def portrait(model, tokens, path):
    """|u| over tokens and Euler steps, the steps each token needs, turbulence against steps, what diffusion filters."""
    from matplotlib.figure import Figure
    c, K, colours = model.eval().config, 12, "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9".split()
    idx = torch.as_tensor(np.asarray(tokens[:96]).astype(np.int64), device=model.wte.weight.device)[None]
    u = waves(model, idx, K)
    tau, u, L = turbulence(u[:, :-1], u[:, 1:])[..., 0].numpy(), u.abs().numpy(), len(u)       # (L, K, T)
    epsilon = c.epsilon or float(np.median(tau[:, 3]))
    steps = np.where((tau < epsilon).any(1), (tau < epsilon).argmax(1) + 1, K)                 # (L, T)
    fig, look = Figure(figsize=(13, 7.6), layout="constrained"), dict(aspect="auto", interpolation="nearest")
    places = [["first", "last"], ["steps", "steps"], ["tau", "gain"]]
    ax = fig.subplot_mosaic(places, gridspec_kw=dict(height_ratios=(1, 0.6, 1.3)))
    for place, l in (("first", 0), ("last", L - 1)):
        channel = abs(u[l, -1] - u[l, 0]).mean(0).argmax()
        ax[place].imshow(u[l, :, :, channel], cmap="cividis", origin="lower", **look)
        ax[place].axhline(c.n_steps + 0.5, color="white", ls="--")
        ax[place].set(title=f"\"Turing waves\", layer {l}: |u| of channel {channel}, which moves most", xlabel="token",
                      ylabel="Euler step", yticks=range(0, K + 1, 4))
    ax["steps"].imshow(steps, cmap="viridis", vmin=1, vmax=K, **look)
    ax["steps"].set(title=f"Steps until a token is calm: turbulence below epsilon = {epsilon:.2g} ({K}: or never)",
                    xlabel="token", ylabel="layer", yticks=range(L))
    for place in ("first", "last", "steps"):
        fig.colorbar(ax[place].images[0], ax=ax[place], pad=0.01)
    w = np.linspace(0, math.pi, 600)
    for l, (block, colour) in enumerate(zip(model.blocks, colours * L)):
        low, mid, high = np.quantile(tau[l], (0.1, 0.5, 0.9), axis=1)
        ax["tau"].semilogy(range(1, K + 1), mid, "o-", ms=4, color=colour, label=f"layer {l}")
        ax["tau"].fill_between(range(1, K + 1), low, high, color=colour, alpha=0.15, lw=0)
        D, dt = F.softplus(block.diff).detach().float().mean(1).cpu().numpy(), block.step().item()
        label = f"layer {l}: D = {D[0]:.2f}, {D[1]:.2f}, {D[2]:.2f}; s dt = {dt:.2f}"
        ax["gain"].plot(w, abs(1 + dt * gain(w, D, c.laplacian)), color=colour, label=label)
    ax["tau"].axhline(epsilon, color="black", ls=":", label="epsilon")
    ax["tau"].axvline(c.n_steps, color="0.45", ls="--", label="steps in training")
    ax["tau"].set(title="Turbulence: median, and 10% to 90% of the tokens", xlabel="Euler step", xlim=(0.5, K + 4),
                  ylabel="mean |du| / mean |u|", xticks=range(2, K + 1, 2))
    ax["tau"].yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    ax["tau"].yaxis.set_major_formatter("{x:g}")
    ax["tau"].yaxis.set_minor_formatter("")
    ax["gain"].axhline(1, color="black", lw=0.8)
    ax["gain"].set(title=f"What diffusion does in one step, laplacian={c.laplacian}", xticks=[0, math.pi / 2, math.pi],
                   xticklabels=["0", "π/2", "π"], xlabel="frequency (radians per token)",
                   ylabel="gain |1 + s dt sum D Lap|")
    for place in ("tau", "gain"):
        ax[place].legend(fontsize=8)
    fig.suptitle("FluidLM: text as a reaction-diffusion fluid. Dashed: the steps in training; beyond, it runs on")
    fig.savefig(path, dpi=110)


def table(model):
    """Print the parameters by component beside the seed's own list, in millions, and return their sum. The seed's
    10.7 for SwiGLU does not follow from its 8/3 expansion: three matrices of 512 x 1,408 in 4 layers are 8.65."""
    rows = {"embedding, tied": (25.7, "wte"), "reaction": (10.7, "reaction"), "SSM": (3.4, "ssm"),
            "pump gates": (2.1, "gate_x gate_h"), "LongConv": (1.2, "longconv mix"), "local": (1.05, "local"),
            "diffusion": (0.006, "diff"), "dt, alpha, theta": (0.008, "dt_gate alpha theta"), "all": (44.2, "")}
    print(f"     {'millions of parameters, preset=seed':<44} seed     here")
    for row, (seed, parts) in rows.items():
        here = sum(p.numel() / 1e6 for name, p in model.named_parameters() if any(x in name for x in parts.split(" ")))
        print(f"     {row:<40} {seed:8.3f} {here:8.3f}")
    return here


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
    draw = lambda *shape: rng.normal(size=shape)
    args = [draw(2, 70, 6), rng.uniform(0.01, 1, (2, 70, 6)), -rng.uniform(0.5, 4, (6, 3)), draw(2, 70, 3),
            draw(2, 70, 3), draw(6), draw(2, 3, 6)]
    ref, fast = selective_scan_ref(*args), selective_scan(*map(torch.tensor, args))
    check("selective scan: torch against the loop", max(abs(f.numpy() - r).max() for f, r in zip(fast, ref)), 1e-12)
    dt, ones = torch.logspace(-4, math.log10(20), 256)[None, :, None], torch.ones(1, 256, 16)
    wild = selective_scan(ones[..., :1], dt, -torch.arange(1, 17.0)[None], ones, ones, torch.ones(1))
    check("dt from 1e-4 to 20: numbers that are not finite", sum((~v.isfinite()).sum().item() for v in wild), 0)

    D, x, t = np.array([[0.15], [0.10], [0.08]]), draw(80, 1), np.arange(80.0)[:, None]
    lap = lambda x, kind="seed": taps(F.pad(torch.tensor(x)[None], (0, 0, 32, 0)), *stencil(torch.tensor(D), kind),
                                      len(x))[0].numpy()
    check("Laplacian, seed: of a constant and a ramp, after 32 tokens", abs(lap(1 + 0.3 * t)[32:]).max(), 1e-12)
    for kind in ("upwind", "seed"):
        check(f"Laplacian, {kind}: torch against the loop", abs(lap(x, kind) - laplacian_ref(x, D, kind)).max(), 1e-12)
        bode = np.fft.fft(lap(1.0 * (t == 0), kind)[:, 0])       # of the response to an impulse
        error = abs(bode - gain(2 * math.pi * t[:, 0] / 80, D, kind)[:, 0]).max()
        check(f"Bode, {kind}: measured response against the closed form in `gain`", error, 1e-12)
    pump = [draw(9, 4), draw(9, 4), draw(9, 4), draw(4, 4), draw(4, 4), draw(4)]
    error = abs(pump_ref(*pump) - pump_ref(*pump, causal=False))[-1].max()
    check("the causal pump at the last token is the seed's", error, 1e-12)

    idx = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(1))
    edited = torch.cat((idx[:, :20], idx[:, 20:].flip(1)), 1)
    largest = lambda gap: gap[:, :20].abs().max()
    for name, options in (("", dict(n_steps=2, longconv=True, position=1.0)),
                          (", halting", dict(n_steps=6, epsilon=0.25))):
        torch.manual_seed(0)
        model, state = Model(Config(vocab_size=50, n_layer=2, n_embd=16, **options)).double().eval(), {}
        for p in model.parameters():                             # zero-initialised projections would hide mistakes
            p.add_(0.1 * torch.randn_like(p))
        logits, steps = model(idx)[0], model.steps.mean().item()
        params = {k: v.numpy() for k, v in model.state_dict().items()}
        gap = logits.numpy() - (ref := forward_ref(params, idx.numpy(), model.config))
        stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split((1, 1, 5, 20, 1, 12), 1)], 1)
        check(f"whole model{name}: torch against NumPy, relative", abs(gap).max() / abs(ref).max(), 1e-10)
        check(f"causality{name}: later tokens move earlier logits by", largest(model(edited)[0] - logits), 1e-12)
        check(f"causality{name}: so does the length", largest(model(idx[:, :20])[0] - logits[:, :20]), 1e-12)
        check(f"a stream in chunks{name} against one shot", (stream - logits).abs().max(), 1e-9)
    check("halting: mean steps of a token in a layer, of 6", steps, 5.9)
    model.config.pump = "broadcast"                              # the blocks share the Config
    check("the seed's pump sees the future: it moves them by", largest(model(edited)[0] - model(idx)[0]), 1e-4, ">=")
    with torch.device("meta"):
        size = table(Model(Config(vocab_size=50257, **PRESETS["seed"])))
    check("parameters of the seed's model, millions", size, 44.2)

    with open(__file__, encoding="utf-8") as file:               # train a small fluid on the text of this file
        text = file.read()
    tokens = torch.tensor([min(ord(c), 127) for c in text])
    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        model = Model(Config(vocab_size=128, n_layer=2, n_steps=3, n_embd=64))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
        for step in range(120):
            batch = tokens[torch.randint(len(tokens) - 64, (16, 1)) + torch.arange(65)]
            model.progress = step / 120
            optimizer.zero_grad()
            model(batch[:, :-1], batch[:, 1:])[1].backward()
            optimizer.step()
    model.eval()
    loss = model(tokens[None, :999], tokens[None, 1:1000])[1].item()
    check("this file, after 120 batches of it: nats per character", loss, 3.0)
    return ok, model, tokens[text.index("What we changed"):]


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    os.makedirs("out", exist_ok=True)
    if "ckpt" in options:                                        # draw a trained model: ckpt=out/fluidlm/ckpt.pt
        ckpt = torch.load(options["ckpt"], map_location="cpu", weights_only=True)
        model = Model(Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
        tokens, ok = ckpt["tokens"], True
    else:
        ok, model, tokens = self_check()
    portrait(model, tokens, "out/fluidlm.png")
    print("wrote out/fluidlm.png")
    sys.exit(not ok)
