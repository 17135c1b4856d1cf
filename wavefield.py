"""
Wave field: a language model without attention. Every head is one damped wave on a field. Tokens
write on the field, the wave carries forward what they wrote, and later tokens read it.

    d_t = v_t |k_t|                                 what token t writes, at cell t * stride
    w(c) = e^(-alpha c) cos(omega c + phi) / Z      the wave of one head, c cells behind its source
    f_t = sum_{s <= t} w((t - s) stride) d_s        the field where token t reads it
    y_t = W_o (sigmoid(g_t) * softmax(M) f_t)       heads are mixed, a gate decides what is used

A wave is a damped oscillator that the text drives: w'' + 2 alpha w' + (alpha^2 + omega^2) w = 0.
So one complex number per head and channel remembers everything that was read:
    h_t = rho h_{t-1} + d_t,   f_t = Re(e^{i phi} h_t) / Z,   rho = e^((-alpha + i omega) stride)

    code          symbol      meaning                                                 shape
    deposit       d           what tokens write; k, v and g are linear in x           (B, T, H, D)
    alpha         alpha       damping per cell, softplus of the parameter `damp`      (H,)
    omega, phi    same        turn per cell, and phase at the source, in radians      (H,)
    field         -           number of cells over which Z makes sum |w| = 1
    power, amp    rho^n, -    the powers of rho; e^{i phi} / Z                        (H, n), (H, 1)
    first, last   h           h before the first and after the last token, complex    (B, H, D)
    coupling      M           how much each head listens to each                      (H, H)

Source: the original "wavefield", that is the public Wave Field V3.5; ORIGINALS.md has what it did.
Proof and picture: `python wavefield.py`. Training: `python train.py model=wavefield`.
"""
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
    block_size: int = 128           # tokens in a training window; the field is this long
    n_layer: int = 3                # blocks; a field interference follows every third
    n_head: int = 8                 # waves per block
    n_embd: int = 128               # channels
    dropout: float = 0.0            # on both residual branches, while training
    stride: int = 1                 # cells of the field per token; V3.5 has 4
    init: Literal["reach", "original"] = "reach"    # waves reach 1 .. block_size tokens; or V3.5's
    position: bool = False          # V3.5's sinusoidal position code; a stream outruns it

    def __post_init__(self):
        C = self.n_embd
        if C % self.n_head or C % 4:
            raise ValueError(f"n_embd={C} is not a multiple of n_head={self.n_head} and of 4")
        if self.stride < 1 or self.stride % 1:
            raise ValueError(f"stride={self.stride} should be a whole number of cells, 1 or more")


PRESETS = {
    "original": dict(                                            # V3.5's 6M model
        n_layer=6,
        n_head=8,
        n_embd=256,
        stride=4,
        init="original",
        position=True)}


# Kernels: the reference in NumPy, and the same in torch right below.

def wave_field_ref(deposit, alpha, omega, phi, stride, field, first=0):
    """The field as an array of cells: f(c) = sum_t w(c - t stride) d_t, read at c = t stride.

    deposit             (T, H, D)
    alpha, omega, phi   (H,)
    stride, field       numbers of cells: between two tokens, and in the sum Z
    first               complex (H, D): what an earlier text left behind, or 0
    -> f (T, H, D), last: complex (H, D), what this text leaves behind
    """
    T, H, D = deposit.shape
    c = np.arange(max(T * stride, field))[:, None]
    w = np.exp(-alpha * c) * np.cos(omega * c + phi)             # (cells, H)
    Z = abs(w[:field]).sum(0)[:, None]                           # (H, 1)

    # Scatter the deposits, convolve them with the wave, gather what each token reads.
    cells = np.zeros((T * stride, H, D))
    cells[::stride] = deposit
    f = np.zeros_like(cells)
    for c in range(T * stride):
        # The cells 0 .. c are c .. 0 cells behind cell c.
        f[c] = np.einsum("ch,chd->hd", w[c::-1], cells[:c + 1]) / Z
    f = f[::stride]

    # What an earlier text left behind rings on, and h gathers what this one leaves.
    rho = np.exp((-alpha + 1j * omega) * stride)[:, None]        # (H, 1)
    amp = np.exp(1j * phi)[:, None] / Z
    h = first
    for t in range(T):
        f[t] += (amp * rho ** (t + 1) * first).real
        h = rho * h + deposit[t]
    return f, h


def resonator(alpha, omega, phi, stride, field, n):              # 3 x (H,) -> (H, n), (H, 1)
    """What the kernels below need of a wave: `power` and `amp`.

    rho^0 .. rho^(n-1) tell how much is left of it, and how far it has turned, after that many
    tokens; e^{i phi} / Z tells how it is read. Both are complex128: float32 has too few digits
    for an angle that turns and turns.
    """
    waves = torch.stack((alpha, omega, phi)).double()
    alpha, omega, phi = waves[:, :, None]                        # 3 x (H, 1)
    c = torch.arange(field, device=alpha.device)
    w = torch.exp(-alpha * c) * torch.cos(omega * c + phi)       # (H, cells)
    Z = w.abs().sum(1, keepdim=True)
    ln_rho = torch.complex(-alpha, omega) * stride
    power = torch.exp(ln_rho * torch.arange(n, device=alpha.device))
    return power, torch.polar(1 / Z, phi)


def wave_fft(deposit, alpha, omega, phi, stride, field, first=None):
    """wave_field_ref with a batch in front, and only at the cells that tokens read.

    There the convolution over cells is one over tokens, with w(t stride). By FFT it is a product
    of spectra. An FFT wraps around, so both sides are padded with zeros to 2 T.

    deposit     (B, T, H, D)
    first       complex (B, H, D), or None
    -> f (B, T, H, D), last: complex (B, H, D)
    """
    T = deposit.shape[1]
    power, amp = resonator(alpha, omega, phi, stride, field, T + 1)
    read = amp * power                                           # (H, T+1)
    w = read.real[:, :T].to(deposit.dtype)                       # the wave, token by token
    d = deposit.permute(0, 2, 3, 1)                              # (B, H, D, T)
    spectrum = torch.fft.rfft(d, 2 * T)
    spectrum = spectrum * torch.fft.rfft(w, 2 * T)[:, None]
    f = torch.fft.irfft(spectrum, 2 * T)[..., :T]

    power = power.to(spectrum.dtype)
    leave = torch.view_as_real(power[:, :T].flip(1))             # rho^(T-1) .. rho^0
    last = torch.view_as_complex(d @ leave)
    if first is not None:                                        # an earlier text rings on
        ringing = read[:, None, 1:].to(power.dtype) * first[..., None]
        f = f + ringing.real
        last = last + power[:, T:] * first
    return f.permute(0, 3, 1, 2), last


def wave_step(deposit, rho, amp, h):                             # (B, H, D), 2 x (H, 1), (B, H, D)
    """The same for one more token of a stream: this is all that a wave is.

    h       the state that the token before left, or 0
    -> f (B, H, D), h (B, H, D)
    """
    h = rho * h + deposit
    return (amp * h).real, h


def rms_norm_ref(x):                                             # (..., C) -> (..., C)
    """x / rms(x) over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rms_norm(x):                                                 # (..., C) -> (..., C)
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def sinusoids_ref(T, C):                                         # -> (T, C)
    """sin and cos of t 10000^(-2j/C) in channels 2j and 2j+1  (arXiv 1706.03762, section 3.5)."""
    theta = 10000.0 ** (-np.arange(0, C, 2) / C)
    angle = np.outer(np.arange(T), theta)
    return np.stack((np.sin(angle), np.cos(angle)), -1).reshape(T, C)


def sinusoids(t, C):                                             # (T,) -> (T, C)
    theta = 10000.0 ** (-torch.arange(0, C, 2, dtype=t.dtype) / C)
    angle = torch.outer(t, theta)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


# The model.

class WaveAttention(nn.Module):
    """Tokens write on a field of H waves and read it.

    Its physics is 3 H + H^2 numbers: damping, turn and phase of every wave, and the coupling.
    """

    def __init__(self, config):
        super().__init__()
        H = config.n_head
        C = config.n_embd
        self.config = config
        self.kvg = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C, bias=False)
        if config.init == "original":
            alpha = F.softplus(torch.linspace(-3, 0.5, H))
            omega = torch.linspace(0.3, 4, H)
        else:
            reach = torch.logspace(0, 1, H, base=config.block_size)
            alpha = 1 / (config.stride * reach)
            omega = 2 * alpha
        self.damp = nn.Parameter(alpha.expm1().log())            # alpha = softplus(damp)
        self.omega = nn.Parameter(omega)
        self.phi = nn.Parameter(torch.zeros(H))
        self.coupling = nn.Parameter(3 * torch.eye(H))

    def physics(self):
        """What the kernels take after the deposit."""
        stride = self.config.stride
        field = self.config.block_size * stride
        return F.softplus(self.damp), self.omega, self.phi, stride, field

    def reach(self):                                             # -> (H,)
        """The number of tokens after which 1/e of a wave is left."""
        return 1 / (F.softplus(self.damp) * self.config.stride)

    def write(self, x):                                          # (B, T, C) -> 2 x (B, T, H, D)
        """What each token writes on the field, and its gate."""
        kvg = self.kvg(x).unflatten(-1, (3, self.config.n_head, -1))
        k, v, gate = kvg.unbind(2)
        return v * k.norm(dim=-1, keepdim=True), gate

    def read(self, deposit, state):                              # (B, T, H, D) -> (B, T, H, D)
        """The field where each token reads it. A stream goes on from the h in its state."""
        if deposit.shape[1] > 1 or torch.is_grad_enabled():
            # The same numbers as wave_fft, faster: see the end of this file.
            f, state["h"] = wave_scan(deposit, *self.physics(), state.get("h"))
            return f

        # One token. The weights do not move while a stream is read, so rho and Z are kept.
        if "rho" not in state:
            power, amp = resonator(*self.physics(), 2)
            kind = deposit.dtype.to_complex()
            state["rho"] = power[:, 1:].to(kind)
            state["amp"] = amp.to(kind)
        h = state.get("h", 0)
        f, state["h"] = wave_step(deposit[:, 0], state["rho"], state["amp"], h)
        return f[:, None]

    def forward(self, x, state):                                 # (B, T, C) -> (B, T, C)
        deposit, gate = self.write(x)
        with torch.autocast(x.device.type, enabled=False):
            f = self.read(deposit.to(self.omega.dtype), state)
        M = self.coupling.softmax(-1)
        f = torch.einsum("hg,btgd->bthd", M, f)
        y = gate.sigmoid() * f
        return self.proj(y.flatten(2))


class MLP(nn.Module):
    """Two matrices with ReLU^2 between them."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.fc = nn.Linear(C, 4 * C, bias=False)
        self.proj = nn.Linear(4 * C, C, bias=False)

    def forward(self, x):                                        # (B, T, C) -> (B, T, C)
        hidden = F.relu(self.fc(x))                              # (B, T, 4C)
        return self.proj(hidden * hidden)


class Interference(nn.Module):
    """Adds the past to a token, as far as the two are in phase. r is x, RMS-normalised.

    u_t = W_2 mean_{s <= t} W_1 r_s                             the past, through C/4 channels
    a_t = cosine(P r_t, Q u_t)                                  1: in phase, -1: out of phase
    y_t = x_t + sigmoid(G r_t + E u_t) u_t sigmoid(a_t / temp)

    own     W_1, P, G: what a token says of itself
    all     Q, E: the same of the past, but for W_1
    proj    W_2
    """

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.own = nn.Linear(C, C + C // 2)
        self.all = nn.Linear(C, C + C // 4, bias=False)
        self.proj = nn.Linear(C // 4, C, bias=False)
        self.log_temp = nn.Parameter(torch.tensor(0.5).log())    # a temperature stays above 0

    def forward(self, x, state):                                 # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        own = self.own(rms_norm(x))
        squeezed, own_vector, own_gate = own.split((C // 4, C // 4, C), -1)

        # The mean of all tokens so far; in float64, because a stream goes on adding.
        total = squeezed.double().cumsum(1) + state.get("total", 0)
        t = torch.arange(1, T + 1, device=x.device)[:, None] + state.get("t", 0)
        state["total"] = total[:, -1:]
        state["t"] = t[-1:]
        mean = (total / t).to(squeezed.dtype)

        u = self.proj(mean)                                      # (B, T, C)
        vector, gate = self.all(u).split((C // 4, C), -1)
        a = (rms_norm(own_vector) * rms_norm(vector)).mean(-1, keepdim=True)
        in_phase = (a / self.log_temp.exp()).sigmoid()
        return x + (own_gate + gate).sigmoid() * u * in_phase


class Block(nn.Module):
    """Waves, then an MLP, each added to the stream x; after every third block an interference.

    state: a dict that a stream fills, or None. Then nothing is kept from one call to the next:
    torch.utils.checkpoint calls twice, and the second call must find what the first one found.
    """

    def __init__(self, config, layer):
        super().__init__()
        self.attn = WaveAttention(config)
        self.mlp = MLP(config)
        self.interference = Interference(config) if layer % 3 == 2 else None
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, state=None):                            # (B, T, C) -> (B, T, C)
        if state is None:
            state = {}
        x = x + self.drop(self.attn(rms_norm(x), state))
        x = x + self.drop(self.mlp(rms_norm(x)))
        if self.interference is not None:
            x = self.interference(x, state)
        return x


class Model(nn.Module):
    """Embedding, blocks, and the embedding again as the head that reads out the logits."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, l) for l in range(config.n_layer))

        # A block starts as the identity, because its last matrices are zero.
        for name, p in self.named_parameters():
            if name == "wte.weight":
                nn.init.normal_(p, std=0.01)
            elif name.endswith(("proj.weight", "bias")):
                nn.init.zeros_(p)
            elif name.endswith("weight"):
                nn.init.normal_(p, std=0.5 * p.shape[1] ** -0.5)

        # All gates start open: sigmoid(2) = 0.88.
        for block in self.blocks:
            nn.init.constant_(block.attn.kvg.bias[-config.n_embd:], 2)

    def embed(self, idx, pos=0):                                 # (B, T) -> (B, T, C)
        x = rms_norm(self.wte(idx))
        if self.config.position:
            t = torch.arange(pos, pos + idx.shape[1], dtype=torch.float64)   # exact for any t
            x = x + sinusoids(t, x.shape[-1]).to(x.device, x.dtype)
        return x

    def forward(self, idx, targets=None, state=None):            # (B, T) -> (B, T, V), loss or None
        """The logits of every next token, and their mean cross-entropy in nats.

        state: an empty dict at the start of a stream. It is filled; pass it again with the next
        tokens. However long the stream gets, the state keeps its size.
        """
        pos = 0
        if state is not None:
            pos = state.get("pos", 0)
            state["pos"] = pos + idx.shape[1]
        x = self.embed(idx, pos)
        for l, block in enumerate(self.blocks):
            x = block(x, None if state is None else state.setdefault(l, {}))
        logits = F.linear(rms_norm(x), self.wte.weight)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


# Proof.

def sigmoid_ref(x):
    """1 / (1 + e^{-x})."""
    return 1 / (1 + np.exp(-x))


def wave_attention_ref(x, p, config):                            # (T, C), {name: array} -> (T, C)
    """W_o (sigmoid(g_t) * softmax(M) f_t), with the f of wave_field_ref."""
    kvg = x @ p["attn.kvg.weight"].T + p["attn.kvg.bias"]
    kvg = kvg.reshape(len(x), 3, config.n_head, -1)
    k, v, gate = kvg.swapaxes(0, 1)                              # 3 x (T, H, D)
    deposit = v * np.sqrt((k * k).sum(-1, keepdims=True))
    alpha = np.log1p(np.exp(p["attn.damp"]))
    waves = (alpha, p["attn.omega"], p["attn.phi"])
    field = config.block_size * config.stride
    f, _ = wave_field_ref(deposit, *waves, config.stride, field)
    M = np.exp(p["attn.coupling"])
    M = M / M.sum(1, keepdims=True)
    y = sigmoid_ref(gate) * np.einsum("hg,tgd->thd", M, f)
    return y.reshape(x.shape) @ p["attn.proj.weight"].T


def interference_ref(x, p):                                      # (T, C), {name: array} -> (T, C)
    """x_t + sigmoid(G r_t + E u_t) u_t sigmoid(a_t / temp), see Interference."""
    T, C = x.shape
    own = rms_norm_ref(x) @ p["interference.own.weight"].T + p["interference.own.bias"]
    squeezed, own_vector, own_gate = np.split(own, (C // 4, C // 2), 1)
    mean = squeezed.cumsum(0) / np.arange(1, T + 1)[:, None]
    u = mean @ p["interference.proj.weight"].T                   # (T, C)
    vector, gate = np.split(u @ p["interference.all.weight"].T, (C // 4,), 1)
    a = (rms_norm_ref(own_vector) * rms_norm_ref(vector)).mean(1, keepdims=True)
    in_phase = sigmoid_ref(a / np.exp(p["interference.log_temp"]))
    return x + sigmoid_ref(own_gate + gate) * u * in_phase


def forward_ref(params, idx, config):                            # {name: array}, (B, T) -> logits
    """The whole model in NumPy, text by text.

    params: Model.state_dict() as float64 arrays.
    """
    logits = np.empty((*idx.shape, config.vocab_size))
    for b, tokens in enumerate(idx):
        x = rms_norm_ref(params["wte.weight"][tokens])           # (T, C)
        if config.position:
            x = x + sinusoids_ref(*x.shape)
        for l in range(config.n_layer):
            p = {}
            for name, array in params.items():
                p[name.removeprefix(f"blocks.{l}.")] = array
            x = x + wave_attention_ref(rms_norm_ref(x), p, config)
            h = rms_norm_ref(x) @ p["mlp.fc.weight"].T
            h = np.maximum(h, 0) ** 2
            x = x + h @ p["mlp.proj.weight"].T
            if l % 3 == 2:
                x = interference_ref(x, p)
        logits[b] = rms_norm_ref(x) @ params["wte.weight"].T
    return logits


def check(what, value, bound):                                   # -> True if value <= bound
    """Print a claim of this file with its measured number and its bound."""
    holds = bool(value <= bound)
    print(f"{'ok  ' if holds else 'FAIL'} {what:<66} {float(value):9.2e} <= {bound:g}")
    return holds


@torch.no_grad()
def self_check():                                                # -> do all claims hold, a model
    """The kernels against the field, the physics of a wave, then the whole model.

    More is in tests/test_wavefield.py: gradients, linearity, energy, long streams.
    """
    ok = []
    torch.manual_seed(0)
    alpha, omega, phi = 0.5 * torch.rand(3, 3, dtype=torch.float64)
    deposit = torch.randn(1, 71, 3, 4, dtype=torch.float64)
    ref, _ = wave_field_ref(
        deposit[0].numpy(), alpha.numpy(), omega.numpy(), phi.numpy(), 4, 256)
    for kernel in (wave_fft, wave_scan):
        f, _ = kernel(deposit, alpha, omega, phi, 4, 256)
        error = abs(f[0].numpy() - ref).max()
        ok.append(check(f"{kernel.__name__} against the field itself", error, 1e-10))

    # The field of one token is the wave. Slow waves, so that differences are derivatives:
    alpha = alpha / 100
    omega = omega / 100
    deposit[:, 0] = 1
    deposit[:, 1:] = 0
    f, _ = wave_scan(deposit, alpha, omega, phi, 1, 256)
    w = f[0, :, :, 0]                                            # (T, H)
    slope = (w[2:] - w[:-2]) / 2
    bend = w.diff(n=2, dim=0)
    rest = bend + 2 * alpha * slope + (alpha**2 + omega**2) * w[1:-1]
    error = rest.abs().max() / bend.abs().max()
    ok.append(check("w'' + 2 alpha w' + (alpha^2 + omega^2) w = 0", error, 1e-4))

    # A small model, with all weights moved: zeros would hide mistakes.
    model = Model(Config(vocab_size=50, block_size=16, n_embd=32)).double()
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(50, (2, 40))
    logits, _ = model(idx)
    params = {name: p.numpy() for name, p in model.state_dict().items()}
    ref = forward_ref(params, idx.numpy(), model.config)
    error = abs(logits.numpy() - ref).max() / abs(ref).max()
    ok.append(check("whole model: torch against NumPy, relative", error, 1e-10))

    # Causality: other tokens from t on, at every t.
    leak = 0
    for t in range(1, 40):
        other = torch.cat((idx[:, :t], 49 - idx[:, t:]), 1)
        y, _ = model(other)
        leak = max(leak, (y - logits)[:, :t].abs().max())
    ok.append(check("causality: later tokens move earlier logits by", leak, 1e-12))

    # A stream, token by token, over 2.5 blocks.
    state = {}
    stream = [model(token, state=state)[0] for token in idx.split(1, 1)]
    error = (torch.cat(stream, 1) - logits).abs().max()
    ok.append(check("a stream against one shot", error, 1e-9))
    return all(ok), Model(Config())


# Picture.

@torch.inference_mode()
def trace(model, idx):                                           # (1, T) -> {name: (L, T), ...}
    """For the page of a run: the energy of the field where each token reads it, the reach of the
    waves that carry it, and how far the gate is open."""
    x = model.embed(idx)
    rows = []
    for block in model.blocks:
        attn = block.attn
        deposit, gate = attn.write(rms_norm(x))
        energy = attn.read(deposit, {}).square().mean((0, 3))    # (T, H)
        reach = energy @ attn.reach() / energy.sum(1)
        rows.append(torch.stack((energy.mean(1), reach, gate.sigmoid().mean((0, 2, 3)))))
        x = block(x)
    energy, reach, gate = torch.stack(rows, 1)
    return {"energy of the field": (energy, "f\u00b2", "mean square of the field f that this token "
                                    "reads, over waves and channels"),
            "reach": (reach, "tokens", "of the waves that it reads, weighted with their energy: "
                      "short ones carry the letters, long ones the passage"),
            "gate": (gate, "of 1", "how far it opens to the field, mean over the channels")}


@torch.inference_mode()
def portrait(model, tokens, path, text=""):
    """The waves of a model, and the field of its first block while `text` is read.

    T: the waves of block 0 in time.
    G: the same as filters: how strongly they answer to a slow or a fast change along the text.
    R: how far the waves of every block reach.
    F: what every token reads from every wave; letters below. Short waves follow the letters, long
    ones hold on to what was written long ago.
    """
    from matplotlib.figure import Figure
    attn = model.blocks[0].attn
    idx = torch.as_tensor(tokens[:90], device=attn.omega.device)
    deposit, _ = attn.write(rms_norm(model.embed(idx[None])))
    field = attn.read(deposit, {})[0].cpu().numpy()              # (T, H, D)
    power, amp = resonator(*attn.physics(), 4096)
    waves = (amp * power).real.cpu().numpy()                     # (H, tokens)
    reach = torch.stack([block.attn.reach() for block in model.blocks])
    reach = reach.cpu().numpy()                                  # (blocks, H)
    order = reach[0].argsort()

    # A row of F is the loudest channel of a wave, as a part of its largest value.
    fig = Figure(figsize=(14, 8), layout="constrained")
    ax = fig.subplot_mosaic("TGR;FFF")
    rows = []
    for h in order:
        w = waves[h]
        ax["T"].plot(w[:64] / abs(w).max(), label=f"{reach[0, h]:.1f}")
        ax["G"].loglog(np.fft.rfftfreq(len(w)), abs(np.fft.rfft(w)))
        loudest = abs(field[:, h]).max(0).argmax()
        f = field[:, h, loudest]
        rows.append(f / abs(f).max())
    ax["R"].semilogy(reach[:, order], "o")
    ax["F"].imshow(rows, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)

    ax["T"].set(title="The waves of block 0", xlabel="tokens behind their source")
    ax["T"].legend(title="reach in tokens;\nlocal < 4 < phrase < 32 < passage")
    ax["G"].set(title="The same waves as filters: gain", xlabel="turns per token")
    ax["R"].set(title="Reach of all waves: 1/e is left", xlabel="block", ylabel="tokens")
    ax["R"].set_xticks(range(len(reach)))
    ax["F"].set_title("The field where each token reads it: loudest channel, red + and blue -")
    ax["F"].set_ylabel("waves of block 0, shortest reach first")
    letters = list(text[:90])
    ax["F"].set_xticks(range(len(letters)), letters)
    fig.savefig(path, dpi=110)


# Optional: the same, faster.

def toeplitz(p):                                                 # (H, n) -> (H, n, n)
    """p_{i-j} in row i and column j <= i, and 0 above the diagonal:

    p0  0   0
    p1  p0  0
    p2  p1  p0
    """
    i = torch.arange(p.shape[1], device=p.device)
    return p[:, i[:, None] - i].tril()


def wave_scan(deposit, alpha, omega, phi, stride, field, first=None, L=16):
    """The values of wave_fft, 3 to 5 times faster: chunks of L tokens, n chunks at a time.

    Three products with small matrices of powers of rho do it, each for a whole block of n chunks:

    own    (H, L+2, L)    what the tokens of a chunk add to its field: s adds w(t - s) d_s at t;
                          two rows below: Re and Im of what they leave, s leaves rho^(L-1-s) d_s
    carry  (H, n+1, n+1)  the h that enters each chunk, from what all earlier chunks left
    enter  (H, L, 2)      what Re and Im of the h that enters add to the field of a chunk
    """
    B, T, H, D = deposit.shape
    n = min(64, T // L, 2**18 // (B * H * D * L)) or 1           # what stays in the cache
    kind = deposit.dtype.to_complex()
    power, amp = resonator(alpha, omega, phi, stride, field, n * L + 1)
    read = (amp * power[:, :L + 1]).to(kind)
    power = power.to(kind)
    leave = torch.view_as_real(power[:, :L].flip(1)).mT          # (H, 2, L)
    own = torch.cat((toeplitz(read[:, :L].real), leave), 1)
    carry = toeplitz(power[:, ::L])
    enter = torch.stack((read.real, -read.imag), 2)[:, 1:]

    if first is None:
        first = deposit.new_zeros(B, H, D, dtype=kind)
    h = first.transpose(0, 1).reshape(H, 1, B * D)
    out = []
    for d in deposit.split(n * L, 1):
        n = d.shape[1] // L
        d, rest = d.split((n * L, d.shape[1] % L), 1)
        x = d.unflatten(1, (n, L))                               # (B, n, L, H, D)
        x = x.permute(3, 2, 1, 0, 4)                             # (H, L, n, B, D)

        # Every chunk by itself.
        f, re, im = (own @ x.flatten(2)).split((L, 1, 1), 1)     # (H, L, n B D), 2 x (H, 1, n B D)
        left = torch.complex(re, im).view(H, n, B * D)

        # What enters chunk 0 .. n, of which the last belongs to the next block.
        h = carry[:, :n + 1, :n + 1] @ torch.cat((h, left), 1)   # (H, n+1, B D)
        before, h = h.split((n, 1), 1)

        # What that adds to every chunk.
        before = torch.stack((before.real, before.imag), 1)
        f = torch.baddbmm(f, enter, before.flatten(2))
        f = f.view(x.shape).permute(3, 2, 1, 0, 4)               # (B, n, L, H, D)
        out.append(f.flatten(1, 2))

    # What is left over is less than a chunk: token by token.
    h = h.view(H, B, D).transpose(0, 1)
    rho = power[:, 1:2]
    amp = read[:, :1]
    for d in rest.unbind(1):
        f, h = wave_step(d, rho, amp, h)
        out.append(f[:, None])
    return torch.cat(out, 1), h


# What we changed from the original, and why.
#
# - The stride is whole. Below two cells per token V3.5's bilinear gather reads the future.
#   With whole cells the field needs no array: only the cells that tokens read are computed.
# - There is no Q: V3.5 computes it and never uses it.
# - The gate's bias really starts at 2. V3.5's own initialiser sets it back to 0.
# - Z is summed over the fixed field of a whole block: it does not depend on the length at hand.
# - One cell per token, not four: the same waves, but Z sums over fewer cells, so they are louder
#   and learn faster.
# - No position code: beyond the block it takes values that training never showed, and a stream
#   falls apart. The waves are translation invariant; position=True brings V3.5's code back.
# - The waves at first reach 1 .. block_size tokens. V3.5's reach up to 5.
# - RMSNorm without gain for LayerNorm, and relu^2 for GELU, as in the baseline it is compared with.
#
# The original says: not a variant of Mamba or Hyena. Seen from outside it has relatives. One head
# is one complex pole of a diagonal linear state space, as in S4D (arXiv 2206.11893) and the LRU
# (arXiv 2303.06349). Here all channels of a head share the pole, and its input is v |k|.

if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(__doc__)
        sys.exit(0 if "help" in sys.argv[1] else 2)
    ok, model = self_check()
    os.makedirs("out", exist_ok=True)
    text = " ".join(__doc__.split())
    portrait(model, list(text.encode()), "out/wavefield.png", text)
    print("wrote out/wavefield.png")
    sys.exit(not ok)
