"""
Wave field: a language model without attention; every head is one damped wave on a field the tokens write on.

    d_j      = v_j |k_j|                                            deposit of token j, at cell j * stride
    k_h(c)   = exp(-alpha_h c) cos(omega_h c + phi_h) / Z_h         the wave, c >= 0 cells behind its source
    f_h(c)   = sum_j k_h(c - j * stride) d_j                        the field: scatter, then convolve
    y_i      = W_o( sigmoid(W_g x_i) * sum_g softmax(S)_hg f_g(i * stride) )        couple the heads, gather, gate

The seed speaks of a damped wave equation; in its one variable k obeys k'' + 2 alpha k' + (alpha^2 + omega^2) k = 0: a
damped oscillator, driven by the text. With a whole number of cells per token the field needs no array: token t reads
one resonator per head and channel,

    h_t = rho h_{t-1} + d_t,     f_t = Re(e^{i phi} h_t) / Z,     rho = e^{(-alpha + i omega) stride}

the same numbers three ways: on the field, by FFT over the tokens, or in chunks that hand the complex h on. After every
third block a field interference adds c_t, expanded from the running mean of compressed tokens, the more the better it
is in phase with the token: x += gate(x, c) c sigmoid(a / temp), where a is the cosine between a learned "phase" vector
of the token and one of c. However long a stream is, h, the sum behind that mean and a count are all it has to remember.

    code            symbol      meaning                                                     shape
    deposit         d           what a token writes                                         (B, N, H, D)
    alpha           alpha       damping per cell, softplus of the parameter `damp`          (H,)
    omega, phi      omega, phi  angle per cell, angle at the source                         (H,)
    field           -           cells over which Z sums |k| before the division              number
    lam, amp        ln rho, -   (-alpha + i omega) stride;  e^{i phi} / Z                   complex (H,)
    first, last     h           the state before the first and after the last token         complex (B, H, D)
    coupling        S           static coupling of the heads, its softmax has rows of sum 1 (H, H)

Source: seed "wavefield"; the public Wave Field V3.5, from its description.

What we changed, and why: the stride is whole (below two cells per token V3.5's bilinear gather reads the future); no Q
(V3.5 computes it and never uses it); the gate's bias really starts at 2; Z is closed over the fixed field of a whole
block, so that it does not depend on the length at hand; one cell per token, not four: the same waves, but Z sums over
fewer cells, so they are louder and learn faster; the waves at first reach 1 .. block_size tokens (V3.5: up to 5);
RMSNorm without gain for LayerNorm and relu^2 for GELU, as in the baseline it is compared with.

Run `python wavefield.py` for the proof and a picture, `python train.py model=wavefield` to train it.
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
    vocab_size: int = 256                             # tokens in the vocabulary; the data set decides
    block_size: int = 128                             # tokens in a training window; the field is this long
    n_layer: int = 3                                  # blocks; a field interference follows every third
    n_head: int = 8                                   # waves per block
    n_embd: int = 128                                 # channels
    dropout: float = 0.0                              # on both residual branches, while training
    stride: int = 1                                   # cells of the field per token; V3.5 has 4
    init: Literal["reach", "seed"] = "reach"          # waves reach 1 .. block_size tokens at first; or V3.5's values
    kernel: Literal["auto", "fft", "scan"] = "auto"   # how the waves are summed; auto: scan, the faster one

    def __post_init__(self):
        if self.n_embd % self.n_head or self.n_embd % 4:
            raise ValueError(f"n_embd={self.n_embd} does not divide into n_head={self.n_head} heads and into 4")
        if self.stride != int(self.stride) or self.stride < 1:
            raise ValueError(f"stride={self.stride} should be a whole number of cells per token, 1 or more")
        for name, choices in (("kernel", ("auto", "fft", "scan")), ("init", ("reach", "seed"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)} should be one of {', '.join(choices)}")


PRESETS = {"seed": dict(n_layer=6, n_head=8, n_embd=256, stride=4, init="seed")}   # V3.5's 6M model


# The reference: plain NumPy, float64, loops. It shares nothing with the fast version below.

def wave_field_ref(deposit, alpha, omega, phi, stride, field, first=None):
    """f(c) = sum_j k(c - j stride) d_j on a real field, read at c = i stride; h = sum_j rho^(N-1-j) d_j  (seed)
    deposit (N, H, D), 3 x (H,), number, number, complex (H, D) or None -> (N, H, D), last complex (H, D)."""
    N, H, D = deposit.shape
    wave = -alpha[:, None] + 1j * omega[:, None]                                                # (H, 1), per cell
    c = np.arange(max(N * stride, field))
    k = np.exp(-alpha[:, None] * c) * np.cos(omega[:, None] * c + phi[:, None])                 # (H, cells)
    Z = abs(k[:, :field]).sum(1)
    cells, f = np.zeros((2, N * stride, H, D))
    for j in range(N):
        cells[j * stride] = deposit[j]                                                          # scatter
    for i in range(N * stride):
        f[i] = np.einsum("hc,chd->hd", k[:, i::-1], cells[:i + 1]) / Z[:, None]                 # convolve
        if first is not None:                                                                   # from cell -stride
            f[i] += (np.exp(1j * phi[:, None] + wave * (i + stride)) * first).real / Z[:, None]
    last = sum(np.exp(wave * stride * (N - 1 - j)) * deposit[j] for j in range(N))
    return f[::stride], last if first is None else last + np.exp(wave * stride * N) * first     # gather


def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x), over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def sigmoid_ref(x):
    """1 / (1 + e^{-x})."""
    return 1 / (1 + np.exp(-x))


def interference_ref(x, p):                                      # (T, C), {name: array} -> (T, C)
    """x + gate(x, c) c sigmoid(cosine(phase(x), phase(c)) / temp), c_t = W_e mean_{s <= t} W_c rms_norm(x_s)."""
    T, C = x.shape
    own = rms_norm_ref(x) @ p["own.weight"].T + p["own.bias"]
    squeezed, own_phase, own_gate = np.split(own, (C // 4, C // 2), 1)
    c = np.stack([squeezed[:t + 1].mean(0) for t in range(T)]) @ p["proj.weight"].T             # (T, C)
    phase, gate = np.split(c @ p["all.weight"].T, (C // 4,), 1)
    in_phase = (rms_norm_ref(own_phase) * rms_norm_ref(phase)).mean(1, keepdims=True)           # (T, 1), a cosine
    return x + sigmoid_ref(own_gate + gate) * c * sigmoid_ref(in_phase / np.exp(p["log_temp"]))


def forward_ref(params, idx, config):                            # {name: array}, (B, T) -> logits (B, T, V)
    """The whole model in NumPy, one sequence at a time. `params` are the float64 arrays of Model.state_dict()."""
    H, C = config.n_head, config.n_embd
    logits = np.empty((*idx.shape, config.vocab_size))
    for b, tokens in enumerate(idx):
        x = rms_norm_ref(params["wte.weight"][tokens])                                          # (T, C)
        for t in range(len(x)):
            for j in range(C // 2):
                angle = t * 10000.0 ** (-2 * j / C)
                x[t, 2 * j:2 * j + 2] += math.sin(angle), math.cos(angle)
        for l in range(config.n_layer):
            p = {k.split(".", 2)[2]: v for k, v in params.items() if k.startswith(f"blocks.{l}.")}
            kvg = rms_norm_ref(x) @ p["attn.kvg.weight"].T + p["attn.kvg.bias"]                 # (T, 3C)
            k, v, g = kvg.reshape(-1, 3, H, C // H).transpose(1, 0, 2, 3)                       # 3 x (T, H, D)
            deposit = v * np.sqrt((k * k).sum(-1, keepdims=True))
            f, _ = wave_field_ref(deposit, np.log1p(np.exp(p["attn.damp"])), p["attn.omega"], p["attn.phi"],
                                  config.stride, config.block_size * config.stride)
            mix = np.exp(p["attn.coupling"])
            f = np.einsum("hg,tgd->thd", mix / mix.sum(1, keepdims=True), f)
            x = x + (sigmoid_ref(g) * f).reshape(-1, C) @ p["attn.proj.weight"].T
            h = np.maximum(rms_norm_ref(x) @ p["mlp.fc.weight"].T, 0) ** 2                      # (T, 4C)
            x = x + h @ p["mlp.proj.weight"].T
            if l % 3 == 2:
                x = interference_ref(x, {k[6:]: v for k, v in p.items() if k.startswith("field.")})
        logits[b] = rms_norm_ref(x) @ params["wte.weight"].T
    return logits


# The same in torch, fast. The kernels take and return what wave_field_ref does, with a batch in front.

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


def resonator(alpha, omega, phi, stride, field):                 # 3 x (H,) -> lam, amp: complex128 (H,)
    """lam = (-alpha + i omega) stride, amp = e^{i phi} / Z. In float64: an angle of many turns keeps its digits."""
    alpha, omega, phi = alpha.double(), omega.double(), phi.double()
    c = torch.arange(field, device=alpha.device, dtype=alpha.dtype)
    k = torch.exp(-alpha[:, None] * c) * torch.cos(omega[:, None] * c + phi[:, None])          # (H, cells)
    return torch.complex(-alpha, omega) * stride, torch.exp(1j * phi) / k.abs().sum(1)


def powers(lam, m):                                              # complex (H,), (n,) -> complex (H, n)
    """e^{lam m}; below e^-60 exactly 0, because denormal numbers make every later product slow."""
    z = lam[:, None] * m
    return torch.exp(z) * (z.real > -60)


def toeplitz(p):                                                 # (H, n) -> (H, n, n)
    """p_{i-j} for j <= i, else 0."""
    n = p.shape[1]
    return F.pad(p, (n - 1, 0)).unfold(1, n, 1).flip(2)


def flush(h):
    """A decayed state becomes exactly 0 before it becomes denormal."""
    return torch.view_as_complex(F.hardshrink(torch.view_as_real(h), 1e-30))


def wave_fft(deposit, alpha, omega, phi, stride, field, first=None):
    """f = k * d by FFT over the tokens, zero-padded so that nothing wraps around."""
    N, kind = deposit.shape[1], deposit.dtype.to_complex()
    lam, amp = resonator(alpha, omega, phi, stride, field)
    p = powers(lam, torch.arange(N + 1, device=lam.device))
    read = (amp[:, None] * p).to(kind)                                                         # (H, N+1)
    p, n = p.to(kind), 1 << (2 * N - 1).bit_length()
    x = deposit.permute(0, 2, 3, 1)                                                            # (B, H, D, N)
    f = torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(read.real, n)[:, None], n)[..., :N]
    last = torch.view_as_complex(x @ torch.view_as_real(p[:, :N].flip(1)))
    if first is not None:
        f = f + (first[..., None] * read[:, None, 1:]).real
        last = last + first * p[:, N, None]
    return f.permute(0, 3, 1, 2), flush(last)


def chunked(x, L):                                               # (B, N, H, D) -> view (H, L, N/L, B, D)
    return x.unflatten(1, (-1, L)).permute(3, 2, 1, 0, 4)


class Chunks(torch.autograd.Function):
    """The wave over chunks of L tokens, a block of n chunks at a time so that it stays in the cache. Three products:
    `leave` (H, 2, L) is what every chunk leaves behind by itself, Re and Im; `carry` complex (H, n+1, n+1) what enters
    each from all before it; `inside` (H, L, L+2) what the entering state and its own tokens make of it."""

    @staticmethod
    def forward(ctx, d, h, inside, leave, carry):
        B, N, H, D = d.shape
        L, y, kept = leave.shape[2], torch.empty_like(d), []
        block = L * (carry.shape[1] - 1)
        for t in range(0, N, block):
            n = min(block, N - t) // L
            x = d.new_empty(H, L + 2, n, B, D)
            x[:, 2:] = chunked(d[:, t:t + block], L)
            rows = x.flatten(2)                                                                # (H, L+2, n B D)
            left = torch.bmm(leave, rows[:, 2:]).view(H, 2, n, B * D)
            h = torch.cat((h, torch.complex(*left.unbind(1))), 1)                              # (H, n+1, B D)
            kept += rows, h
            enter, h = flush(torch.bmm(carry[:, :n + 1, :n + 1], h)).split((n, 1), 1)
            x[:, 0], x[:, 1] = enter.real.view(H, n, B, D), enter.imag.view(H, n, B, D)
            chunked(y[:, t:t + block], L).copy_(torch.bmm(inside, rows).view(H, L, n, B, D))
        ctx.save_for_backward(inside, leave, carry, *kept)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, g, gh):                                    # the transposed products, from the last block back
        inside, leave, carry, *kept = ctx.saved_tensors
        B, N, H, D = g.shape
        gd, grads = torch.empty_like(g), [torch.zeros_like(w) for w in (inside, leave, carry)]
        L, block = leave.shape[2], leave.shape[2] * (carry.shape[1] - 1)
        for t in reversed(range(0, N, block)):
            h, rows = kept.pop(), kept.pop()
            n = min(block, N - t) // L
            gf = chunked(g[:, t:t + block], L).reshape(H, L, n * B * D)
            grads[0].baddbmm_(gf, rows.mT)
            gx = torch.bmm(inside.mT, gf)                                                      # (H, L+2, n B D)
            gh = torch.cat((torch.complex(gx[:, 0], gx[:, 1]).view(H, n, B * D), gh), 1)
            grads[2][:, :n + 1, :n + 1] += torch.bmm(gh, h.mH)
            gh, left = torch.bmm(carry[:, :n + 1, :n + 1].mH, gh).split((1, n), 1)
            left = torch.stack((left.real, left.imag), 1).flatten(2)                           # (H, 2, n B D)
            grads[1].baddbmm_(left, rows[:, 2:].mT)
            chunked(gd[:, t:t + block], L).copy_(gx[:, 2:].baddbmm_(leave.mT, left).view(H, L, n, B, D))
        return gd, gh, *grads


@torch.compiler.disable                                          # its loop would be unrolled
def wave_scan(deposit, alpha, omega, phi, stride, field, first=None, chunk=16, cache=2**18):
    """f = k * d in chunks: a Toeplitz product inside each, a complex state handed from each to the next."""
    B, N, H, D = deposit.shape
    L, kind = min(chunk, N), deposit.dtype.to_complex()
    if N % L:                                                    # what is left over is one shorter chunk
        f, first = wave_scan(deposit[:, :-(N % L)], alpha, omega, phi, stride, field, first, chunk, cache)
        rest, first = wave_scan(deposit[:, -(N % L):], alpha, omega, phi, stride, field, first, chunk, cache)
        return torch.cat((f, rest), 1), first
    n = max(1, min(N // L, 64, cache // (B * H * D * L)))        # chunks in a block: `carry` costs n^2
    lam, amp = resonator(alpha, omega, phi, stride, field)
    m = torch.cat((torch.arange(L + 1), L * torch.arange(n + 1))).to(lam.device)
    p, carry = powers(lam, m).split((L + 1, n + 1), 1)
    read = torch.view_as_real((amp[:, None] * p).conj_physical().to(kind))                     # (H, L+1, 2)
    inside = torch.cat((read[:, 1:], toeplitz(read[:, :L, 0])), 2)                             # (H, L, L+2)
    leave = torch.view_as_real(p[:, :L].to(kind)).mT.flip(2)                                   # (H, 2, L)
    h = deposit.new_zeros(H, 1, B * D, dtype=kind) if first is None else first.transpose(0, 1).reshape(H, 1, B * D)
    f, h = Chunks.apply(deposit, h, inside, leave, toeplitz(carry.to(kind)))
    return f, h.view(H, B, D).transpose(0, 1)


# auto is the scan at any length: the FFT gains 0.4 ms below 100 tokens, and rounds later tokens into earlier ones.
KERNELS = {"fft": wave_fft, "scan": wave_scan, "auto": wave_scan}


def sinusoids(pos, T, C, base=10000.0):                          # -> float64 (T, C)
    """sin and cos of t base^(-2j/C) in channels 2j, 2j+1; t = pos .. pos+T-1. float64 on the CPU: exact for any t."""
    freq = base ** (-torch.arange(0, C, 2, dtype=torch.float64) / C)
    angle = torch.outer(torch.arange(pos, pos + T, dtype=torch.float64), freq)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


class WaveAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        H, C, self.stride = config.n_head, config.n_embd, config.stride
        self.n_head, self.field, self.kernel = H, config.block_size * config.stride, KERNELS[config.kernel]
        self.kvg = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C, bias=False)
        if config.init == "seed":
            alpha, omega = F.softplus(torch.linspace(-3, 0.5, H)), torch.linspace(0.3, 4, H)
        else:
            alpha = 1 / (self.stride * torch.logspace(0, 1, H, base=config.block_size))        # reach 1 .. block_size
            omega = 2.0 * alpha
        self.damp = nn.Parameter(alpha.expm1().log())                                          # alpha = softplus(damp)
        self.omega, self.phi = nn.Parameter(omega), nn.Parameter(torch.zeros(H))
        self.coupling = nn.Parameter(3 * torch.eye(H))

    def physics(self):                                           # what the kernels take after the deposit
        return F.softplus(self.damp), self.omega, self.phi, self.stride, self.field

    def step(self, deposit, state):                              # one token of a stream: the recurrence itself
        if "rho" not in state:                                   # the weights do not move while a stream is read
            lam, amp = resonator(*self.physics())
            read = self.coupling.softmax(-1) * amp               # S e^{i phi} / Z in one (H, H)
            state["rho"], state["read"] = (z.to(deposit.dtype.to_complex()) for z in (lam.exp()[:, None], read))
        h = flush(deposit[:, 0] + state["rho"] * state.get("first", 0))
        return (state["read"] @ h).real[:, None], h                                            # (B, 1, H, D)

    def forward(self, x, state):                                 # (B, T, C), dict -> (B, T, C)
        k, v, gate = self.kvg(x).unflatten(-1, (3, self.n_head, -1)).unbind(2)                 # 3 x (B, T, H, D)
        deposit = (v * torch.linalg.vector_norm(k, dim=-1, keepdim=True)).to(self.omega.dtype)
        if x.shape[1] == 1 and not torch.is_grad_enabled():
            f, state["first"] = self.step(deposit, state)
        else:
            with torch.autocast(x.device.type, enabled=False):
                f, state["first"] = self.kernel(deposit, *self.physics(), state.get("first"))
            f = torch.einsum("hg,btgd->bthd", self.coupling.softmax(-1), f)
        return self.proj((gate.sigmoid() * f).flatten(2))


class Interference(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.cut = (C // 4, C // 4, C)
        self.own = nn.Linear(C, sum(self.cut))                   # from the token: what it adds to the mean, phase, gate
        self.all = nn.Linear(C, C // 4 + C, bias=False)          # from the mean: phase, gate
        self.proj = nn.Linear(C // 4, C, bias=False)
        self.log_temp = nn.Parameter(torch.tensor(0.5).log())                # a temperature stays above 0

    def forward(self, x, state):                                 # (B, T, C), dict -> (B, T, C)
        squeezed, own_phase, own_gate = self.own(rms_norm(x)).split(self.cut, -1)
        total = squeezed.double().cumsum(1) + state.get("total", 0)          # float64: it runs on as long as the stream
        t = state.get("t", 0)
        state["total"], state["t"] = total[:, -1:], t + x.shape[1]
        count = torch.arange(t + 1, t + 1 + x.shape[1], device=x.device)[:, None]
        c = self.proj((total / count).to(squeezed.dtype))                                      # (B, T, C)
        phase, gate = self.all(c).split(self.cut[1:], -1)
        in_phase = (rms_norm(own_phase) * rms_norm(phase)).mean(-1, keepdim=True)              # a cosine
        return x + (own_gate + gate).sigmoid() * c * (in_phase / self.log_temp.exp()).sigmoid()


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        return self.proj(relu2(self.fc(x)))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attn = WaveAttention(config)
        self.mlp = MLP(config)
        self.field = Interference(config) if layer % 3 == 2 else None
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x, state):
        x = x + self.drop(self.attn(rms_norm(x), state))
        x = x + self.drop(self.mlp(rms_norm(x)))
        return x if self.field is None else self.field(x, state)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)            # also the head: tied
        self.blocks = nn.ModuleList(Block(config, l) for l in range(config.n_layer))
        for name, p in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.zeros_(p)                                            # each block starts as the identity
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.01 if name == "wte.weight" else 0.5 * p.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
                if name.endswith("kvg.bias"):
                    nn.init.constant_(p[-config.n_embd:], 2)                 # the gate starts open: sigmoid(2) = 0.88

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss or None
        """`state`: a dict, empty at the start of a stream. It is filled; pass it again with the next tokens."""
        state = {} if state is None else state
        pos = state.get("pos", 0)
        state["pos"] = pos + idx.shape[1]
        x = rms_norm(self.wte(idx))                                          # (B, T, C)
        x = x + sinusoids(pos, idx.shape[1], self.config.n_embd).to(x.device, x.dtype)
        for l, block in enumerate(self.blocks):
            x = block(x, state.setdefault(l, {}))
        logits = F.linear(rms_norm(x), self.wte.weight)                      # (B, T, C) x (V, C) -> (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# The physics, drawn and checked.

@torch.inference_mode()
def portrait(model, tokens, path):
    """Waves in time and frequency, their reach, the field while the text is read, energy per block, the coupling."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    model.eval()
    c, seen, blocks = model.config, {}, np.arange(model.config.n_layer)
    idx = torch.as_tensor(np.asarray(tokens[:c.block_size]).astype(np.int64), device=model.wte.weight.device)[None]
    hooks = [module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out)}))
             for name, module in model.named_modules()]                      # what enters and leaves every part
    model(idx)
    for hook in hooks:
        hook.remove()
    lam, amp = (torch.stack(z).cpu().numpy() for z in zip(*(resonator(*b.attn.physics()) for b in model.blocks)))
    reach, order = -1 / lam.real, np.argsort(lam[0].real)                    # (L, H), tokens; shortest first in block 0
    fig = Figure(figsize=(13, 7.4), layout="constrained")
    ax = fig.subplots(2, 3)
    t, z = np.arange(64), np.exp(-1j * np.linspace(0, math.pi, 300))
    for h, colour in zip(order, colormaps["viridis"](np.linspace(0, 0.95, c.n_head))):
        k = (amp[0, h] * np.exp(lam[0, h] * t)).real
        ax[0, 0].plot(t, k / abs(k).max(), color=colour, label=f"{reach[0, h]:.1f}")
        gain = abs(amp[0, h] / (1 - np.exp(lam[0, h]) * z) + (amp[0, h] / (1 - np.exp(lam[0, h]) / z)).conj())
        ax[0, 1].semilogy(-np.angle(z), gain / gain.max(), color=colour)
    ax[0, 0].legend(title="1/e reach, tokens", fontsize=8, ncols=2)
    ax[0, 0].set(title="waves of block 0 in time", xlabel="tokens behind their source", ylabel="amplitude / largest")
    ax[0, 1].set(title="each is a resonator: gain", xlabel="frequency (radians per token)", ylabel="gain / largest",
                 xticks=[0, math.pi / 2, math.pi], xticklabels=["0", "π/2", "π"])
    ax[0, 2].semilogy(blocks, reach, "o", color="#0072B2", alpha=0.7)
    roles = (0.1, 4, "local", "#E69F00"), (4, 32, "phrase", "#009E73"), (32, 1e4, "passage", "#CC79A7")
    for low, high, role, colour in roles:
        ax[0, 2].axhspan(low, high, color=colour, alpha=0.12)
        ax[0, 2].text(c.n_layer - 0.6, math.sqrt(low * min(high, 400)), role, va="center", color="0.3")
    ax[0, 2].set(title="reach of every wave", xlabel="block", ylabel="tokens", xticks=blocks,
                 xlim=(-0.5, 1.3 * c.n_layer - 0.5), ylim=(min(0.3, reach.min() / 1.5), max(400, 2 * reach.max())))
    field = seen["blocks.0.attn.proj"][0][0].float().unflatten(-1, (c.n_head, -1)).norm(dim=-1).T.cpu()[order]  # (H, T)
    image = ax[1, 0].imshow(field / field.amax(1, keepdim=True), aspect="auto", cmap="cividis", interpolation="nearest")
    ax[1, 0].set(title="the gated field while the text is read", xlabel="token", ylabel="wave, shortest reach first")
    fig.colorbar(image, ax=ax[1, 0], label="|field| / largest")
    parts = ((".attn", "attention", "#0072B2"), (".mlp", "MLP", "#E69F00"), (".field", "interference", "#CC79A7"),
             ("", "stream that leaves", "0.4"))
    for i, (part, label, colour) in enumerate(parts):
        at = [l for l in blocks if f"blocks.{l}{part}" in seen]
        pairs = [seen[f"blocks.{l}{part}"] for l in at]          # an interference returns the stream it adds to
        energy = [(out - came * (part == ".field")).float().square().mean().item() for came, out in pairs]
        ax[1, 1].semilogy(np.add(at, 0.2 * (i - 1.5)), energy, "s^Do"[i], ms=8, color=colour, label=label)
    ax[1, 1].set(title="energy that a block adds and passes on", xlabel="block", ylabel="mean square", xticks=blocks)
    ax[1, 1].margins(0.1, 0.4)
    ax[1, 1].legend(fontsize=8, ncols=2, loc="upper center")
    S = model.blocks[0].attn.coupling.softmax(-1).cpu().numpy()
    image = ax[1, 2].imshow(np.where(np.eye(c.n_head), np.nan, S), cmap="cividis", vmin=0)
    ax[1, 2].set(title="coupling to other waves, block 0", xlabel="from wave", ylabel="to wave")
    fig.colorbar(image, ax=ax[1, 2], label=f"share; with itself (white) {S.diagonal().mean():.2f} on average")
    fig.savefig(path, dpi=110)


@torch.no_grad()
def self_check():
    """Print every claim of this file with its measured number and its bound; True if all hold."""
    ok = True

    def check(what, value, bound):
        nonlocal ok
        ok &= bool(value <= bound)
        print(f"{'ok  ' if value <= bound else 'FAIL'} {what:<66} {value:9.2e} <= {bound:g}")

    rng = np.random.default_rng(0)
    H, D, stride, field = 3, 4, 4, 256
    alpha, omega, phi = rng.uniform(0.005, 0.5, H), rng.uniform(0, 0.7, H), rng.uniform(-1, 1, H)
    physics = *(torch.tensor(a) for a in (alpha, omega, phi)), stride, field
    d, first = rng.normal(size=(71, H, D)), rng.normal(size=(H, D)) + 1j * rng.normal(size=(H, D))
    ref = wave_field_ref(d, alpha, omega, phi, stride, field, first)
    x, free = torch.tensor(d)[None], torch.tensor(first)[None]
    for kernel in (wave_fft, wave_scan):
        error = max(abs(a[0].numpy() - b).max() for a, b in zip(kernel(x, *physics, free), ref))
        check(f"{kernel.__name__}: against the field itself, scattered and gathered", error, 1e-10)
    k = lambda c: np.exp(-alpha * c) * np.cos(omega * c + phi)
    c, h = np.linspace(1, 20, 50)[:, None], 1e-3
    bend, slope = (k(c + h) - 2 * k(c) + k(c - h)) / h**2, (k(c + h) - k(c - h)) / (2 * h)
    residue = bend + 2 * alpha * slope + (alpha**2 + omega**2) * k(c)
    check("the kernel obeys k'' + 2 alpha k' + (alpha^2 + omega^2) k = 0", abs(residue).max(), 1e-6)
    wave = lambda x, first=None: wave_scan(x, *physics, first)
    pulse = F.pad(torch.ones(1, 1, H, D, dtype=x.dtype), (0, 0, 0, 0, 0, 39))
    response = k(stride * np.arange(40)[:, None]) / abs(k(np.arange(field)[:, None])).sum(0)               # (40, H)
    check("the response to a pulse is the kernel", abs(wave(pulse)[0][0, :, :, 0].numpy() - response).max(), 1e-12)
    late = F.pad(x, (0, 0, 0, 0, 5, 0))[:, :71]
    check("time invariance", (wave(late)[0][:, 5:] - wave(x)[0][:, :-5]).abs().max(), 1e-12)
    check("linearity", (wave(2 * x + late)[0] - 2 * wave(x)[0] - wave(late)[0]).abs().max(), 1e-12)
    states = [free] + [free := wave(0 * x[:, :1], free)[1] for _ in range(50)]
    grown = torch.stack([s.abs().square().sum() for s in states]).diff().max()
    check("the energy of a free field never grows: largest change", grown, 0)

    torch.manual_seed(0)
    model = Model(Config(vocab_size=50, block_size=16, n_layer=3, n_head=2, n_embd=32)).double().eval()
    for p in model.parameters():                                 # zero-initialised projections would hide mistakes
        p.add_(0.1 * torch.randn_like(p))
    attn = model.blocks[0].attn
    check("rows of the coupling sum to 1", (attn.coupling.softmax(-1).sum(-1) - 1).abs().max(), 1e-12)
    count = sum(p.numel() for p in attn.parameters(recurse=False))
    check("numbers of physics per block: 3 H + H^2", abs(count - (3 * 2 + 2 * 2)), 0)
    idx = torch.randint(50, (2, 40))
    logits = model(idx)[0]
    ref = forward_ref({k: v.numpy() for k, v in model.state_dict().items()}, idx.numpy(), model.config)
    check("whole model: float64 torch against NumPy, relative", abs(logits.numpy() - ref).max() / abs(ref).max(), 1e-10)
    edits = [torch.where(torch.arange(40) < t, idx, (idx + 1) % 50) for t in range(1, 40)]
    leak = max((model(edit)[0] - logits)[:, :t].abs().max() for t, edit in enumerate(edits, 1))
    check("causality scan: largest leak over every distance 1 .. 39", leak, 1e-12)
    check("causality: the length moves the logits by", (model(idx[:, :20])[0] - logits[:, :20]).abs().max(), 1e-12)
    state = {}
    stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split((1, 1, 5, 20, 1, 12), 1)], 1)
    check("a stream in chunks against one shot, 2.5 blocks", (stream - logits).abs().max(), 1e-9)

    text = torch.tensor(np.fromfile(__file__, np.uint8)).long()
    model = Model(Config(block_size=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    for _ in range(80):
        batch = text[torch.randint(len(text) - 65, (16, 1)) + torch.arange(65)]
        with torch.enable_grad():
            loss = model(batch[:, :-1], batch[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    check("80 steps on the text of this file: nats per byte", loss.item(), 3)
    return ok, model, text[:64]


if __name__ == "__main__":
    options = dict(arg.split("=", 1) for arg in sys.argv[1:])
    os.makedirs("out", exist_ok=True)
    if "ckpt" in options:                                        # draw a trained model: ckpt=out/wavefield/ckpt.pt
        ckpt = torch.load(options["ckpt"], map_location="cpu", weights_only=True)
        model = Model(Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
        tokens, ok = ckpt["tokens"], True
    else:
        ok, model, tokens = self_check()
    portrait(model, tokens, "out/wavefield.png")
    print("wrote out/wavefield.png")
    sys.exit(not ok)
