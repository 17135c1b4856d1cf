"""
What our models are measured against in speed.py: a plain GPT in the manner of nanoGPT on a CPU, the selective scan as
a loop under autograd, `scaled_dot_product_attention`; and the calls that are timed.
"""
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from lab import COLOUR, NAMES

from common.checkpoint import load_model
from common.optimizer import clip_gradients, make_optimizers
from train import Train

KERNELS = {"attention": "#777777", "wave": COLOUR["wavefield"], "wave by FFT": COLOUR["advection_glu"],
           "scan": COLOUR["fluidlm"], "scan as a loop": "#000000"}
RATIOS = [("scan", "scan as a loop", 4, 256, 3), ("scan", "scan as a loop", 4, 1024, 5), # batch, length, at least
          ("wave", "wave by FFT", 8, 256, 2), ("wave", "wave by FFT", 8, 1024, 3.5),
          ("wave", "wave by FFT", 1, 8192, 4), ("wave", "attention", 1, 2048, 15), ("wave", "attention", 1, 8192, 50)]
PUBLISHED = {2048: 31, 8192: 107, 32768: 367}                    # operations of attention over those of Wave Field V3.5


class GPT(nn.Module):
    """LayerNorm, GELU, learned positions, a tied head: what ours are measured against."""

    def __init__(self, V=65, T=64, L=4, H=4, C=128):
        super().__init__()
        norm, matrix = lambda: nn.LayerNorm(C, bias=False), lambda m, n: nn.Linear(m, n, bias=False)
        layer = lambda: (norm(), matrix(C, 3 * C), matrix(C, C), norm(), matrix(C, 4 * C), matrix(4 * C, C))
        self.H, self.wte, self.wpe, self.ln = H, nn.Embedding(V, C), nn.Embedding(T, C), norm()
        self.blocks = nn.ModuleList(nn.ModuleList(layer()) for _ in range(L))
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx, targets):
        x = self.wte(idx) + self.wpe.weight[:idx.shape[1]]
        for ln1, qkv, proj, ln2, up, down in self.blocks:
            q, k, v = (y.unflatten(2, (self.H, -1)).transpose(1, 2) for y in qkv(ln1(x)).chunk(3, 2))
            x = x + proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            x = x + down(F.gelu(up(ln2(x))))
        logits = F.linear(self.ln(x), self.wte.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def scan_loop(x, dt, A, B, C, D):
    """The selective scan, token by token under autograd."""
    h, y = x.new_zeros(len(x), *A.T.shape), []
    a, b = torch.exp(dt[..., None] * A.T), (dt * x)[..., None] * B[:, :, None]                   # (B, L, D, S)
    for at, bt, ct in zip(a.unbind(1), b.unbind(1), C.unbind(1)):
        h = at * h + bt
        y.append((h @ ct[..., None]).squeeze(-1))
    return torch.stack(y, 1) + x * D


def kernel(name, B=1, width=256):
    """A function of N that gives a call: forward and backward pass over (B, N, 256), in 8 heads or with 16 states."""
    def make(n):
        torch.manual_seed(0)
        heads = lambda: torch.randn(B, n, 8, width // 8)
        if name == "attention":
            args = [heads().transpose(1, 2) for _ in range(3)]
            f = lambda *a: F.scaled_dot_product_attention(*a, is_causal=True)
        elif name.startswith("wave"):
            module = load_model("wavefield")
            wave = module.wave_fft if name == "wave by FFT" else module.wave_scan
            args = [heads(), 0.25 / torch.logspace(0, 2, 8), torch.linspace(0, 0.7, 8), torch.zeros(8)]
            f = lambda *a: wave(*a, 4, 512)[0]
        else:
            A = -torch.arange(1.0, 17)[:, None].repeat(1, width)
            args = [torch.randn(B, n, width), 0.1 * torch.rand(B, n, width), A, torch.randn(B, n, 16),
                    torch.randn(B, n, 16), torch.ones(width)]
            fast, z = load_model("fluidlm").fast_selective_scan, torch.zeros(B, 16, width)
            f = scan_loop if "loop" in name else lambda *a: fast(*a, z)[0]
        args = [a.requires_grad_() for a in args]
        def call():
            y = f(*args)
            torch.autograd.grad(y, args, y.detach())
        return call
    return make


def training(name, total):
    """A function of N that gives a call: forward and backward pass of a model over `total` tokens in texts of N."""
    def make(n):
        module = load_model(name)
        model, idx = module.Model(module.Config(block_size=n)), torch.randint(256, (total // n, n + 1))
        weights = [p for p in model.parameters() if p.requires_grad]
        return lambda: torch.autograd.grad(model(idx[:, :-1], idx[:, 1:])[1], weights)
    return make


def whole_steps(B=12, T=64, optimizer="adamw", L=4, C=128):
    """Calls: forward, backward, clipping and optimizer as in training, B texts of T tokens, L layers, C channels."""
    x, y = torch.randint(65, (2, B, T))

    def step(model, optimizers):
        model(x, y)[1].backward()
        clip_gradients(model, "global")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    models = {name: load_model(name) for name in NAMES}
    sizes = dict(vocab_size=65, block_size=T, n_layer=L, n_embd=C)
    models = {name: m.Model(m.Config(**sizes)) for name, m in models.items()}
    optimizers = {name: make_optimizers(model, Train(optimizer=optimizer)) for name, model in models.items()}
    models["gpt"] = GPT(T=T, L=L, C=C)
    optimizers["gpt"] = [torch.optim.AdamW(models["gpt"].parameters(), lr=1e-3, foreach=False)]        # as nanoGPT
    return {name: partial(step, model, optimizers[name]) for name, model in models.items()}


@torch.inference_mode()
def reading(name, n, longest, C=256):
    """A call: one token more after a stream of n; a call: the same by reading all n again; the state of the stream."""
    module = load_model(name)
    sizes = dict(n_layer=4, n_steps=4) if name == "fluidlm" else dict(n_layer=6)
    model, state = module.Model(module.Config(block_size=longest, n_embd=C, **sizes)).eval(), {}
    idx = torch.randint(256, (1, n))
    model(idx, state=state)
    return lambda: model(idx[:, :1], state=state), lambda: model(idx), state
