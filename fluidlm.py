"""
FluidLM: a text is a fluid. Each token carries C concentrations, which drift to later tokens, react
and are remembered, as a reaction-diffusion equation says. No attention, and no cache that grows.

    du/dt = diffusion(u) + memory(u) + reaction(u) + pump + local mean
    u    <- RMSNorm(u + s dt du/dt)             an Euler step; every layer takes n_steps of them

    diffusion(u)_t = sum_d D_d (u_{t-d} - u_t)           flow from the tokens d = 1, 4, 16 before
    memory(u)_t    = what a selective state space (Mamba) keeps of tokens 0 .. t; in a box below
    reaction(u)    = W_down (silu(W_gate u) * W_up u)    each token for itself
    pump           = a h,   h <- sigmoid(theta) h + g tanh(mean of the last 32 reaction(u))
    local mean     = b W_local (mean of the last 8 u)

    code         symbol  meaning                                                          shape
    u            u       the fluid; RMSNorm(u) = u / sqrt(mean u^2) over the channels     (B, T, C)
    h            h       a slow reservoir, handed on from step to step, layer to layer    (B, T, C)
    diff         D_d     diffusion over the distance d, softplus(diff)                    (3, C)
    theta        theta   the part of the reservoir that stays in a step is sigmoid(theta) (C,)
    g            g       how far the pump is open; see pump_ref                           (B, T, C)
    alpha        a, b    strength of pump and local mean, softplus(alpha)                 (2, C)
    dt_gate      dt      time step, dt_max (0.005 + 0.995 sigmoid(dt_gate)); s = 1/sqrt(n_layer)
    tau          tau     turbulence, mean |change of u| / mean |u|: once calm, a token may halt

Source: FluidLM V4.5.0 (infinition). `python fluidlm.py` checks and draws this file,
`python train.py model=fluidlm` trains it.
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
    """Lengths are in tokens. dt has no unit: what counts is the change of u in an Euler step, which
    is s dt times a rate. Raises ValueError where settings do not go together."""
    vocab_size: int = 256                     # tokens in the vocabulary; the data set decides
    block_size: int = 128                     # tokens in a training text; the model has no limit
    n_layer: int = 2                          # fluid layers, each with its own weights
    n_steps: int = 1                          # Euler steps in each layer, all with the same weights
    n_embd: int = 128                         # channels
    d_state: int = 4                          # numbers the memory keeps per channel
    dropout: float = 0.0                      # on du/dt, while training
    dt: float = 1.0                           # time step before training; learned per layer
    dt_max: float = 2.0                       # its upper bound
    laplacian: Literal["upwind", "original"] = "upwind"     # original: the second difference
    local_window: int = 8                     # tokens in the local mean
    pump: Literal["causal", "broadcast"] = "causal"     # broadcast: the original's, sees the future
    longconv: bool = False                    # add convolutions over 33, 65, 129 and 257 tokens
    position: float = 0.0                     # amplitude of the sinusoidal position code
    epsilon: float = 0.0                      # below this turbulence a token is calm; 0: none halts
    patience: int = 2                         # calm steps in a row until it halts; not in training
    min_steps: int = 2                        # steps that every token takes
    w_eq: float = 0.01                        # weight of the turbulence in the training loss
    w_grad: float = 0.005                     # weight of the mean |second difference| of the last u
    w_gate: float = 0.08                      # weight of pump gates outside 0.2 .. 0.8

    def __post_init__(self):
        if self.longconv and self.n_embd % 4:
            raise ValueError(f"n_embd={self.n_embd} does not divide into the 4 heads of longconv")
        if not 0.005 * self.dt_max < self.dt < self.dt_max:
            raise ValueError(f"dt={self.dt} should be between 0.005 dt_max and {self.dt_max=}")
        if min(self.n_steps, self.d_state, self.local_window, self.patience) < 1:
            raise ValueError("n_steps, d_state, local_window and patience should be 1 or more")


PRESETS = {"original": dict(
    n_layer=4,
    n_steps=8,
    n_embd=512,
    block_size=256,
    d_state=16,
    dt=0.1,
    dt_max=0.2,
    laplacian="original",
    longconv=True,
    position=1.0,
    epsilon=0.05)}
DILATIONS = (1, 4, 16)                        # distances of diffusion, in tokens
RECENT = 32                                   # tokens in the means of the pump


# Kernels: the reference in NumPy, and the same in torch right below.
#
# A reference works on one text (T, C), torch on a batch of them (B, T, C). A stream brings a text
# in chunks, so torch also gets what came before: either in `past`, ahead of the T new tokens, or in
# `state`, a dict that it reads and fills.

def sigmoid_ref(x):
    """1 / (1 + e^{-x})."""
    return 1 / (1 + np.exp(-x))


def softplus_ref(x):
    """log(1 + e^x)."""
    return np.log1p(np.exp(x))


def silu_ref(x):
    """x sigmoid(x)."""
    return x * sigmoid_ref(x)


def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x) over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rms_norm(x):                                                 # (..., C) -> (..., C)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def delayed_ref(x, d):                                           # (T, C) -> (T, C)
    """x_{t-d}. Before the first token x is zero."""
    return np.concatenate((np.zeros((d, x.shape[1])), x))[:len(x)]


def delayed(past, d, T):                                         # (B, reach + T, C) -> (B, T, C)
    """x_{t-d} for the last T tokens of `past`, which begins with what came before them."""
    return past.narrow(1, past.shape[1] - T - d, T)


def history(x, reach, state, key):                               # (B, T, C) -> (B, reach + T, C)
    """x behind the `reach` tokens before it. At the start the state is empty: they are zeros."""
    before = state.get(key, x.new_zeros(len(x), reach, x.shape[2]))
    past = torch.cat((before, x), 1)
    state[key] = past[:, -reach:].clone()                        # a view would keep all of it alive
    return past


def laplacian_ref(u, D, kind="upwind"):                          # (T, C), (3, C) -> (T, C)
    """sum_d D_d (u_{t-d} - u_t), or "original": sum_d D_d (u_t - 2 u_{t-d} + u_{t-2d}).
    Both look only back, because a token may not know the later ones. "upwind" is what numerical
    fluid dynamics calls a difference that is taken on the side from which the fluid comes."""
    y = 0
    for D_d, d in zip(D, DILATIONS):
        if kind == "upwind":
            y = y + D_d * (delayed_ref(u, d) - u)
        else:
            y = y + D_d * (u - 2 * delayed_ref(u, d) + delayed_ref(u, 2 * d))
    return y


def laplacian(past, D, T, kind="upwind"):                        # (B, reach + T, C) -> (B, T, C)
    u = delayed(past, 0, T)
    y = 0
    for D_d, d in zip(D, DILATIONS):
        if kind == "upwind":
            y = y + D_d * (delayed(past, d, T) - u)
        else:
            y = y + D_d * (u - 2 * delayed(past, d, T) + delayed(past, 2 * d, T))
    return y


def filter_ref(x, w):                                            # (T, C), (n, C) -> (T, C)
    """y_t = sum_d w_d x_{t-d}, each channel for itself."""
    y = 0
    for d in range(len(w)):
        y = y + w[d] * delayed_ref(x, d)
    return y


def causal_filter(past, w, T):                                   # (B, reach + T, C) -> (B, T, C)
    y = 0
    for d in range(len(w)):
        y = y + w[d] * delayed(past, d, T)
    return y


def local_mean(past, window, T):                                 # (B, reach + T, C) -> (B, T, C)
    """The causal filter with `window` weights, each 1 / window; torch has a fast one."""
    recent = past[:, 1 - T - window:].transpose(1, 2)
    return F.avg_pool1d(recent, window, stride=1).transpose(1, 2)


def recent_mean(x, count, state, key):                           # (B, T, C), (T, 1) -> (B, T, C)
    """Mean of the last RECENT tokens up to each; of the `count` that there are, near the start."""
    past = history(x, RECENT - 1, state, key)
    return local_mean(past, RECENT, x.shape[1]) * RECENT / count.clamp(max=RECENT)


def pump_ref(R, u, h, W_x, W_h, theta, causal=True):             # 3 x (T, C) -> h (T, C)
    """h <- sigmoid(theta) h + g tanh(mean R),  g = sigmoid(W_x RMSNorm(mean u) + W_h RMSNorm(h)),
    where R is reaction(u). The means are over the last RECENT tokens up to t. The original's
    (causal=False) are those of the last token, for all: they see what comes later."""
    new = np.empty_like(h)
    for t in range(len(u)):
        last = t if causal else len(u) - 1
        recent = slice(max(0, last - RECENT + 1), last + 1)
        g = sigmoid_ref(W_x @ rms_norm_ref(u[recent].mean(0)) + W_h @ rms_norm_ref(h[t]))
        new[t] = sigmoid_ref(theta) * h[t] + g * np.tanh(R[recent].mean(0))
    return new


def pump(R, u, h, W_x, W_h, theta, count, state, causal=True):   # 3 x (B, T, C) -> h, g (B, T, C)
    R_mean = recent_mean(R, count, state, "pump_R")
    u_mean = recent_mean(u, count, state, "pump_u")
    if not causal:                                               # the last mean, for every token
        R_mean = R_mean[:, -1:]
        u_mean = u_mean[:, -1:]
    g = torch.sigmoid(F.linear(rms_norm(u_mean), W_x) + F.linear(rms_norm(h), W_h))
    return torch.sigmoid(theta) * h + g * torch.tanh(R_mean), g


# How weights begin.

def linear(n_in, n_out, scale=0.5):
    """A matrix without bias; its numbers are normal, of size scale / sqrt(n_in). Those that write
    into the fluid begin at zero: before training only diffusion and the pump are at work."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=scale / n_in ** 0.5)
    return layer


def softplus_inverse(x):
    """The y with softplus(y) = x. What must stay positive is stored as such a y."""
    return x.expm1().log()


# The box of the memory: a selective state space (Mamba, arXiv 2312.00752).
#
# Each channel keeps S numbers, which fade at S different rates. It is selective: every token
# decides what it writes, what it reads, and for how long it acts: while a token with a long delta
# acts, what was there before fades. These names mean something only in this box:
#
#     x        what the memory is given: silu of a filter over the last 4 W_in u    (B, T, C)
#     z        the memory                                                           (B, S, C)
#     A        the rates at which it fades, negative                                (S, C)
#     delta    for how long a token acts                                            (B, T, C)
#     write    how much of a token goes into each of the S numbers                  (B, T, S)
#     read     how much of each number comes out at a token                         (B, T, S)
#     skip     how much of x goes past the memory                                   (C,)
#
# Mamba's own letters are Delta for delta, B for write, C for read and D for skip.

def selective_scan_ref(x, delta, A, write, read, skip, z):       # one text -> y (T, C), z (S, C)
    """z_t = exp(delta_t A) z_{t-1} + write_t delta_t x_t,   y_t = read_t z_t + skip x_t."""
    y = np.empty_like(x)
    for t in range(len(x)):
        z = np.exp(delta[t] * A) * z + np.outer(write[t], delta[t] * x[t])
        y[t] = read[t] @ z + skip * x[t]
    return y, z


def selective_scan(x, delta, A, write, read, skip, z):           # -> y (B, T, C), z (B, S, C)
    y = []
    tokens = zip(x.unbind(1), delta.unbind(1), write.unbind(1), read.unbind(1))
    for x_t, delta_t, write_t, read_t in tokens:
        z = torch.exp(delta_t[:, None] * A) * z + write_t[:, :, None] * (delta_t * x_t)[:, None]
        y.append((read_t[:, :, None] * z).sum(1) + skip * x_t)
    return torch.stack(y, 1), z


class Memory(nn.Module):
    """memory(u) = proj(y * silu(gate(u))), where y is what the scan of x reads."""

    def __init__(self, c):
        super().__init__()
        C = c.n_embd
        S = c.d_state
        self.sizes = (math.ceil(C / 16), S, S)                   # of what `select` makes
        self.in_proj = linear(C, C)
        self.conv = nn.Parameter(torch.rand(4, C) - 0.5)
        self.conv_bias = nn.Parameter(torch.zeros(C))
        self.select = linear(C, sum(self.sizes))
        self.delta_proj = linear(self.sizes[0], C)
        delta = 10 ** torch.empty(C).uniform_(-2, -1)            # it fades in at most 100 tokens
        self.delta_bias = nn.Parameter(softplus_inverse(delta))
        # Before training A = -1, -2 .. -S, the same for all channels.
        self.log_rate = nn.Parameter(torch.arange(1.0, S + 1).log()[:, None].repeat(1, C))
        self.skip = nn.Parameter(torch.ones(C))
        self.gate = linear(C, C)
        self.proj = linear(C, C, 0)

    def scan(self, u, state):                                    # (B, T, C) -> y (B, T, C)
        past = history(self.in_proj(u), 3, state, "x")
        x = F.silu(causal_filter(past, self.conv, u.shape[1]) + self.conv_bias)
        # `low` has few numbers, so that delta costs little. .to(x): autocast may bring bfloat16.
        low, write, read = self.select(x).to(x).split(self.sizes, -1)
        delta = F.softplus(self.delta_proj(low) + self.delta_bias)
        A = -self.log_rate.exp()
        z = state.get("z", A.new_zeros(len(u), *A.shape))
        y, state["z"] = fast_selective_scan(x, delta, A, write, read, self.skip, z)
        return y

    def forward(self, u, state):                                 # (B, T, C) -> (B, T, C)
        return self.proj(self.scan(u, state) * F.silu(self.gate(u)))


# The other modules.

class Reaction(nn.Module):
    """reaction(u) = W_down (silu(W_gate u) * W_up u), the SwiGLU of arXiv 2002.05202."""

    def __init__(self, c):
        super().__init__()
        C = c.n_embd
        hidden = 64 * math.ceil(C / 24)                          # 8/3 C, rounded up
        self.gate = linear(C, hidden)
        self.up = linear(C, hidden)
        self.proj = linear(hidden, C, 0)                         # W_down

    def forward(self, u):                                        # (B, T, C) -> (B, T, C)
        return self.proj(F.silu(self.gate(u)) * self.up(u))


class LongConv(nn.Module):
    """Four heads of C/4 channels, each with a causal filter of its own length; then a mix."""

    def __init__(self, c):
        super().__init__()
        C = c.n_embd
        lengths = (33, 65, 129, 257)
        self.filters = nn.ParameterList(torch.randn(n, C // 4) / n ** 0.5 for n in lengths)
        self.mix = linear(C, C, 0)

    def forward(self, past, T):                                  # (B, reach + T, C) -> (B, T, C)
        heads = zip(past.chunk(4, 2), self.filters)
        return self.mix(torch.cat([causal_filter(head, w, T) for head, w in heads], 2))


class Block(nn.Module):
    """A layer: n_steps Euler steps of the equation, all with the same weights."""

    def __init__(self, c):
        super().__init__()
        C = c.n_embd
        self.config = c
        self.dt_gate = nn.Parameter(torch.tensor((c.dt / c.dt_max - 0.005) / 0.995).logit())
        D = torch.tensor([[0.15], [0.10], [0.08]])               # before training
        self.diff = nn.Parameter(softplus_inverse(D).repeat(1, C))
        self.alpha = nn.Parameter(softplus_inverse(torch.full((2, C), 0.1)))
        self.theta = nn.Parameter(torch.full((C,), 0.97).logit())
        self.memory = Memory(c)
        self.reaction = Reaction(c)
        self.gate_x = linear(C, C)
        self.gate_h = linear(C, C)
        self.local = linear(C, C, 0)
        # How many tokens the terms look back: the original's Laplacian twice 16.
        self.reach = max(32, c.local_window - 1)
        if c.longconv:
            self.longconv = LongConv(c)
            self.reach = max(self.reach, 256)

    def step(self):                                              # s dt, a scalar
        c = self.config
        return c.dt_max * (0.005 + 0.995 * torch.sigmoid(self.dt_gate)) / c.n_layer ** 0.5

    def rhs(self, u, R, h, state):                               # 3 x (B, T, C) -> (B, T, C)
        """du/dt: the right-hand side of the equation, one term a line."""
        c = self.config
        T = u.shape[1]
        a, b = F.softplus(self.alpha)
        past = history(u, self.reach, state, "u")                # (B, reach + T, C)
        du = laplacian(past, F.softplus(self.diff), T, c.laplacian)      # diffusion(u)
        du = du + self.memory(u, state)                                  # memory(u)
        du = du + R                                                      # reaction(u)
        du = du + a * h                                                  # pump
        du = du + b * self.local(local_mean(past, c.local_window, T))    # local mean
        if c.longconv:
            du = du + self.longconv(past, T)
        return du

    def forward(self, u, h, count, state=None):                  # 2 x (B, T, C), (T, 1)
        """The Euler steps -> u, h, and a report (n_steps, B, T, 2): for each step and token the
        turbulence, and how far the pump's gates were outside 0.2 .. 0.8.

        count: how many tokens there are up to each. state: a dict to be filled; None: keep nothing.
        A token that has halted keeps its u, which later tokens go on reading; its report is NaN.
        """
        c = self.config
        dt = self.step()
        report = u.new_full((c.n_steps, *u.shape[:2], 2), math.nan)
        R = None
        live = None                                              # (B, T, 1), or None: all move
        calm = 0                                                 # calm steps in a row
        for k in range(c.n_steps):
            own = {} if state is None else state.setdefault(k, {})
            if live is not None and not live.any():
                if state is None:
                    break
                self.remember(u, R, own)
                continue
            # R and the reservoir come first: the equation needs what they are now.
            R = hold(live, self.reaction(u), R)
            pumped, g = pump(
                R, u, h, self.gate_x.weight, self.gate_h.weight, self.theta,
                count, own, c.pump == "causal")
            du = self.rhs(u, R, pumped, own)
            new = rms_norm(u + dt * F.dropout(du, c.dropout, self.training))
            # What is new holds for the tokens that live; those that have halted stay as they are.
            tau = turbulence(u, new)
            report[k] = hold(live, torch.cat((tau, closed(g)), -1), math.nan)
            u = hold(live, new, u)
            h = hold(live, pumped, h)
            if c.epsilon and not self.training:
                calm = hold(live, torch.where(tau < c.epsilon, calm + 1, 0), calm)
                if k + 1 >= c.min_steps:
                    live = calm < c.patience
        return u, h, report

    def remember(self, u, R, state):
        """All tokens have halted: compute only what later tokens of the stream will read."""
        history(u, self.reach, state, "u")
        history(u, RECENT - 1, state, "pump_u")
        history(R, RECENT - 1, state, "pump_R")
        self.memory.scan(u, state)


# What stands beside the equation: halting, regularisers, positions.

def hold(live, new, old):
    """The new value for tokens that move, the old one for those that have halted."""
    return new if live is None else torch.where(live, new, old)


def turbulence(u, new):                                          # 2 x (B, T, C) -> (B, T, 1)
    """tau = mean |new - u| / mean |u| over the channels of each token."""
    return (new - u).abs().mean(-1, keepdim=True) / (u.abs().mean(-1, keepdim=True) + 1e-8)


def closed(g):                                                   # (B, T, C) -> (B, T, 1)
    """How far gates are outside 0.2 .. 0.8, where they hardly learn any more."""
    return F.relu((g - 0.5).abs() - 0.3).mean(-1, keepdim=True)


def positions_ref(T, C):                                         # -> (T, C)
    """P_{t,2j} = sin(t / 10000^(2j/C)),  P_{t,2j+1} = cos(t / 10000^(2j/C))  (arXiv 1706.03762)."""
    P = np.empty((T, C))
    for t in range(T):
        for i in range(C):
            angle = t / 10000 ** (i // 2 * 2 / C)
            P[t, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return P


def positions(pos, T, C):                                        # -> (T, C), t = pos .. pos + T - 1
    t = torch.arange(pos, pos + T).double()[:, None]
    i = torch.arange(C).double()
    angle = t / 10000 ** (i // 2 * 2 / C)
    return torch.where(i % 2 == 0, angle.sin(), angle.cos())


class Model(nn.Module):
    """Tokens become a fluid, the layers move it, and the next token is read from it."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.progress = 1.0                                      # how much of the training is done
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)      # and the head: they are tied
        nn.init.normal_(self.wte.weight, std=0.01)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))

    def start(self, idx, pos=0):                                 # (B, T) -> 2 x (B, T, C), (T, 1)
        """The fluid and the reservoir before the first layer, and how many tokens there are up to
        each."""
        c = self.config
        T = idx.shape[1]
        u = rms_norm(self.wte(idx))
        if c.position:
            u = u + c.position * positions(pos, T, c.n_embd).to(u)
        return u, torch.zeros_like(u), (torch.arange(T) + pos + 1).to(u)[:, None]

    def flow(self, idx, state=None):                             # (B, T) -> u (B, T, C)
        """The fluid after the last layer, and the reports of all: (n_layer, n_steps, B, T, 2)."""
        pos = 0 if state is None else state.get("pos", 0)
        u, h, count = self.start(idx, pos)
        reports = []
        for l, block in enumerate(self.blocks):
            own = None if state is None else state.setdefault(l, {})
            u, h, report = block(u, h, count, own)
            reports.append(report)
        if state is not None:
            state["pos"] = pos + idx.shape[1]
        return u, torch.stack(reports)

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss
        """The loss is in nats per token; in training it includes the regularisers. `state`: a dict,
        empty at the start of a text. It is filled; pass it again with the next tokens."""
        u, report = self.flow(idx, state)
        logits = F.linear(u, self.wte.weight)                    # u is normalised already
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.training:
            loss = loss + self.regularisers(u, report)
        return logits, loss

    def regularisers(self, u, report):                           # -> a scalar
        """The original's: a calm fluid, gates neither open nor shut, and a last u that does not
        bend along the text. The first and the last set in over a tenth of the training."""
        c = self.config
        ramp = min(1.0, 10 * self.progress)
        tau, shut = report.unbind(-1)
        loss = c.w_eq * ramp * tau.mean() + c.w_gate * shut.mean()
        if u.shape[1] > 2:
            loss = loss + c.w_grad * ramp * u.diff(n=2, dim=1).abs().mean()
        return loss


# Proof: the whole model in NumPy, and what must be true of this file.

def memory_ref(p, u):                                            # {name: array}, (T, C) -> (T, C)
    A = -np.exp(p["memory.log_rate"])                            # (S, C)
    S = len(A)
    x = filter_ref(u @ p["memory.in_proj.weight"].T, p["memory.conv"])
    x = silu_ref(x + p["memory.conv_bias"])
    low, write, read = np.split(x @ p["memory.select.weight"].T, (-2 * S, -S), 1)
    delta = softplus_ref(low @ p["memory.delta_proj.weight"].T + p["memory.delta_bias"])
    y, _ = selective_scan_ref(x, delta, A, write, read, p["memory.skip"], 0 * A)
    return (y * silu_ref(u @ p["memory.gate.weight"].T)) @ p["memory.proj.weight"].T


def reaction_ref(p, u):                                          # {name: array}, (T, C) -> (T, C)
    hidden = silu_ref(u @ p["reaction.gate.weight"].T) * (u @ p["reaction.up.weight"].T)
    return hidden @ p["reaction.proj.weight"].T


def rhs_ref(p, u, R, h, c):                                      # {name: array}, 3 x (T, C)
    a, b = softplus_ref(p["alpha"])
    mean = filter_ref(u, np.ones((c.local_window, 1)) / c.local_window)
    du = laplacian_ref(u, softplus_ref(p["diff"]), c.laplacian)
    du = du + memory_ref(p, u)
    du = du + R
    du = du + a * h
    du = du + b * (mean @ p["local.weight"].T)
    if c.longconv:
        quarters = enumerate(np.split(u, 4, 1))
        heads = [filter_ref(head, p[f"longconv.filters.{i}"]) for i, head in quarters]
        du = du + np.concatenate(heads, 1) @ p["longconv.mix.weight"].T
    return du


def block_ref(p, u, h, c):                                       # {name: array}, 2 x (T, C) -> u, h
    dt = c.dt_max * (0.005 + 0.995 * sigmoid_ref(p["dt_gate"])) / c.n_layer ** 0.5
    R = 0
    live = True                                                  # then, like `calm`, one per token
    calm = 0
    for k in range(c.n_steps):
        R = np.where(live, reaction_ref(p, u), R)
        pumped = pump_ref(
            R, u, h, p["gate_x.weight"], p["gate_h.weight"], p["theta"], c.pump == "causal")
        new = rms_norm_ref(u + dt * rhs_ref(p, u, R, pumped, c))
        tau = abs(new - u).mean(1, keepdims=True) / (abs(u).mean(1, keepdims=True) + 1e-8)
        u = np.where(live, new, u)
        h = np.where(live, pumped, h)
        calm = np.where(tau < c.epsilon, calm + 1, 0)
        if k + 1 >= c.min_steps:
            live = live & (calm < c.patience)
    return u, h


def forward_ref(params, idx, config):                            # (B, T) -> logits (B, T, V)
    """The whole model, text by text. `params` are the float64 arrays of Model.state_dict()."""
    logits = []
    for tokens in idx:
        u = rms_norm_ref(params["wte.weight"][tokens])
        u = u + config.position * positions_ref(len(tokens), config.n_embd)
        h = 0 * u
        for l in range(config.n_layer):
            p = {}
            for name, value in params.items():
                p[name.removeprefix(f"blocks.{l}.")] = value     # this layer's, without prefix
            u, h = block_ref(p, u, h, config)
        logits.append(u @ params["wte.weight"].T)
    return np.stack(logits)


def check(what, value, bound):                                   # -> True if value <= bound
    """Print a claim of this file with its measured number and its bound."""
    holds = bool(value <= bound)
    print(f"{'ok  ' if holds else 'FAIL'} {what:<66} {float(value):9.2e} <= {bound:g}")
    return holds


def self_check():
    """Print what must be true, measured -> True if all of it is, and a small trained model."""
    torch.manual_seed(0)
    text = torch.tensor(list(__doc__[:520].encode())).view(8, 65)
    model = Model(Config(n_layer=2, n_steps=3, n_embd=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(70):
        loss = model(text[:, :-1], text[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model.double().eval()
    idx = text[:2]
    edited = idx * (torch.arange(65) < 30)                       # the tokens from 30 on become 0
    params = {name: value.numpy() for name, value in model.state_dict().items()}
    state = {}
    with torch.no_grad():
        logits = model(idx)[0]
        early = logits[:, :30]
        ahead = model(edited)[0][:, :30] - early
        alone = model(idx[:, :30])[0] - early
        stream = [model(part, state=state)[0] for part in idx.split((1, 41, 23), 1)]
        drift = torch.cat(stream, 1) - logits
    error = logits.numpy() - forward_ref(params, idx.numpy(), model.config)
    ok = [check("8 pieces of the docstring, learned: nats per byte", loss.item(), 1.5),
          check("torch against NumPy: logits differ by", abs(error).max(), 1e-10),
          check("a stream in chunks against one shot", drift.abs().max(), 1e-9),
          check("later tokens move earlier logits by", ahead.abs().max(), 1e-12),
          check("without any later tokens these logits move by", alone.abs().max(), 1e-12)]
    return all(ok), model


# Picture.

@torch.no_grad()
def trace(model, idx):                                           # (1, T) -> {name: (L, T), ...}
    """For the page of a run: how far each term alone moves each token in the first Euler step of a
    layer, s dt |term| / |u|; the turbulence of all together; the steps until a token halts."""
    u, h, count = model.start(idx)
    sizes = []
    for block in model.blocks:
        past = history(u, block.reach, {}, "u")
        flow = laplacian(past, F.softplus(block.diff), idx.shape[1], model.config.laplacian)
        new, h, _ = block(u, h, count)
        pumped = F.softplus(block.alpha[0]) * h
        terms = torch.cat((                                      # (4, T, C)
            flow,
            block.memory(u, {}),
            block.reaction(u),
            pumped
        ))
        size = terms.norm(dim=-1) / u.norm(dim=-1)
        sizes.append(block.step() * size)
        u = new
    tau = model.flow(idx)[1][:, :, 0, :, 0]                      # (L, n_steps, T)
    found = {
        "turbulence": (tau.nanmean(1), "|u|", "mean |change of u| / mean |u| in a step"),
        "steps": (tau.isfinite().sum(1), "Euler steps", "of a layer, until the token halts")
    }
    sizes = torch.stack(sizes, 1)                                # (4, L, T)
    for term, size in zip(("diffusion", "memory", "reaction", "pump"), sizes):
        found[term] = (size, "|u|", f"how far {term} moves this token in an Euler step")
    return found


@torch.no_grad()
def portrait(model, tokens, path, text=""):
    """A drop of dye under diffusion alone; what diffusion does to waves; turbulence along a text.

    tokens: a sequence of ints, of which 90 are drawn. text: their characters, if they are known.
    """
    from matplotlib.figure import Figure
    kind = model.eval().config.laplacian
    D = F.softplus(model.blocks[0].diff).mean(1).cpu()           # (3,)
    dt = model.blocks[0].step().item()
    fig = Figure(figsize=(13, 8), layout="constrained")
    dye, wave, line = fig.subplot_mosaic("AB;CC").values()

    # The drop: 1 at one token, 0 at 32 before it and 511 behind it. `change` is what a step does to
    # it by each distance alone, so its Fourier transform says what a step does to each wave.
    u = F.pad(D.new_ones(1, 1, 1), (0, 0, 32, 511))
    change = dt * laplacian(u.expand(1, -1, 3), D.diag(), 512, kind)[0]     # (512, 3)
    rows = []
    for k in range(12):
        rows.append(u[0, 32:82, 0].abs())
        u[:, 32:] += dt * laplacian(u, D[:, None], 512, kind)
    fig.colorbar(
        dye.imshow(np.stack(rows), aspect="auto", norm="log", vmin=1e-3, vmax=1),
        label="concentration")
    dye.set(
        title="A drop of dye falls on token 0, and diffusion carries it on",
        xlabel="token",
        ylabel="Euler steps")

    length = 512 / np.arange(1, 257)                             # of a wave, in tokens
    H = torch.fft.rfft(change, dim=0)[1:]
    wave.semilogx(length, abs(1 + H), base=2, label=[f"distance {d} alone" for d in DILATIONS])
    wave.plot(length, abs(1 + H.sum(1)), "k", label="all three")
    wave.set(
        title="Distance d changes waves of 2d tokens most, of d tokens not at all",
        xlabel="length of the wave in tokens",
        ylabel="its height after one Euler step")
    wave.legend()

    idx = torch.as_tensor(tokens[:90], device=model.wte.weight.device)
    _, report = model.flow(idx[None])
    tau = report[..., 0].flatten(0, 2).cpu().numpy()             # (n_layer n_steps, T)
    fig.colorbar(
        line.imshow(tau, aspect="auto"),
        label="turbulence: mean |change of u| / mean |u|")
    line.set(
        title="How much each Euler step stirs each character (white: it has halted)",
        ylabel="Euler steps, layer after layer")
    letters = text[:90].replace("\n", "↵").replace(" ", "␣")
    line.set_xticks(range(len(letters)), list(letters))
    fig.savefig(path, dpi=110)


# Optional: the same, faster.
#
# A loop over tokens under autograd keeps every state of every token for the backward pass, and goes
# through main memory again and again. Here the text is cut into chunks, whose states fit into a
# processor's cache. The forward pass keeps the memory before each chunk and nothing else; the
# backward pass goes through the chunks from the last to the first and computes their states again.

CHUNK = 2 ** 18                               # numbers in a buffer: 1 MiB


@torch.compiler.disable                                          # it would unroll the loops
def fast_selective_scan(x, delta, A, write, read, skip, z):      # -> y (B, T, C), z (B, S, C)
    """The same as selective_scan."""
    n = min(x.shape[1], max(8, CHUNK // z.numel()))              # tokens in a chunk
    room = z.new_empty(3, n + 1, *z.shape)                       # buffers, used by all chunks
    parts = [v.transpose(0, 1).split(n) for v in (delta * x, delta, write, read)]
    y = []
    for x_n, delta_n, write_n, read_n in zip(*parts):            # time is their first axis
        y_n, z = ScanChunk.apply(x_n, delta_n, A, write_n, read_n, z, room)
        y.append(y_n)
    return torch.cat(y).transpose(0, 1) + skip * x, z


def scan_states(x, delta, A, write, z, room):                    # -> (n, ...), (n + 1, B, S, C)
    """The decays exp(delta_t A), and the memory before the chunk and after each of its tokens."""
    decay = room[0, 1:]
    zs = room[1]
    # exp2, because exp is many times slower where its result is too small for a float.
    torch.mul(delta[:, :, None], A / math.log(2), out=decay).exp2_()
    torch.mul(x[:, :, None], write[:, :, :, None], out=zs[1:])
    zs[0] = z
    for decay_t, z_t in zip(decay, zs[1:]):
        z_t.addcmul_(decay_t, z)
        z = z_t
    return decay, zs


class ScanChunk(torch.autograd.Function):
    """z_t = exp(delta_t A) z_{t-1} + write_t x_t,   y_t = read_t z_t: the x here is delta x above.

    x, delta (n, B, C); A (S, C); write, read (n, B, S); z (B, S, C)  ->  y (n, B, C), z (B, S, C)
    """

    @staticmethod
    def forward(ctx, x, delta, A, write, read, z, room):
        ctx.room = room[:, :len(x) + 1]                          # the last chunk may be shorter
        ctx.save_for_backward(x, delta, A, write, read, z)
        decay, zs = scan_states(x, delta, A, write, z, ctx.room)
        with torch.autocast(x.device.type, enabled=False):       # it would round to bfloat16
            y = torch.einsum("tbs,tbsc->tbc", read, zs[1:])
        return y, zs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, gz):                                   # gy is dloss/dy, and so on
        x, delta, A, write, read, z = ctx.saved_tensors
        decay, zs = scan_states(x, delta, A, write, z, ctx.room)
        gzs = ctx.room[2, 1:]                                    # dloss/dz_t, which comes
        torch.mul(gy[:, :, None], read[:, :, :, None], out=gzs)  # through y_t,
        gzs[-1] += gz                                            # through the next chunk,
        decays = list(decay)
        rows = list(gzs)
        for t in reversed(range(1, len(x))):
            rows[t - 1].addcmul_(decays[t], rows[t])             # and through z_{t+1}
        gz = decay[0] * gzs[0]
        gread = torch.einsum("tbc,tbsc->tbs", gy, zs[1:])
        gwrite = torch.einsum("tbc,tbsc->tbs", x, gzs)
        gx = torch.einsum("tbs,tbsc->tbc", write, gzs)
        gzs.mul_(decay).mul_(zs[:-1])                            # now it is dloss / d(delta_t A)
        gdelta = torch.mul(gzs, A, out=decay).sum(2)
        gA = gzs.mul_(delta[:, :, None]).sum((0, 1))
        return gx, gdelta, gA, gwrite, gread, gz, None


# What we changed from the original, and why.
#
# The pump. The original's code averages the last 32 tokens of the text (its formula, all of them)
# and adds the result to every token: in training each token sees the future. Ours averages the last
# 32 up to each token; given u and h, the two agree at the last one. A mean of everything so far
# learns no better, and turns into a constant in a long stream. pump="broadcast" keeps the leak.
# The local mean. The original's window grows with the text, another leak. Ours is a constant.
# Halting. The original stops when the text as a whole is calm, so that late tokens decide how long
# early ones compute. Here each token halts by itself.
# The time step. The original's, at most 0.2, lets the text move too little: dt_max is a setting.
# Diffusion. The original's Laplacian damps slow waves a little and amplifies fast ones, by up to
# 1 + 4 s dt D_1. The upwind one, a first difference, carries the text on by s dt sum_d d D_d tokens
# a step, and smooths on the way as long as s dt sum_d D_d <= 1.
# Steps. In three minutes of training a second Euler step is worth less than a second layer, and two
# layers learn more than the original's four: the default is one step in each of two layers.
# The memory. Mamba's time steps begin at 0.001 .. 0.1. A memory that fades in 1,000 tokens is never
# full in a training text of 128, and one that is full, in a long stream, is new to the model: it was
# 0.013 nats worse there. Ours begin at 0.01 .. 0.1, and it is not.
# Norms and positions. The embedding is normalised, and the norms have no gain. There is no position
# code, unless position=1 as in the original.
# Sizes. LongConv stands in the original's table, but not in its code: longconv=true adds it. The
# table's 10.7 million for the SwiGLU do not follow from its 8/3 expansion, which makes 8.65.

if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(__doc__)
        sys.exit(0 if "help" in sys.argv[1] else 2)
    ok, model = self_check()
    os.makedirs("out", exist_ok=True)
    portrait(model, list(__doc__.encode()), "out/fluidlm.png", __doc__)
    print("wrote out/fluidlm.png")
    sys.exit(not ok)
