"""The optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest; and clipping."""
import re

import torch

from common.machine import precision


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, so that no direction of a matrix is left behind (K. Jordan, 2024).

    m <- 0.95 m + 0.05 grad,   w <- w - lr 0.2 sqrt(max(rows, columns)) orthogonal(0.05 grad + 0.95 m)
    The factor gives a step the size of AdamW's (arXiv 2502.16982), so one learning rate serves both.
    dtype: of the products that orthogonalise; bfloat16 is enough, and ten times slower on a CPU that lacks it."""

    def __init__(self, params, lr, weight_decay, momentum=0.95, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                m = self.state[p]["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                step = orthogonal(p.grad.lerp(m, group["momentum"]).to(self.dtype))     # Nesterov
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonal(x):                                               # (M, N) -> (M, N)
    """x with its singular values moved to about 1, by five steps of Newton and Schulz: x <- (a + b s + c s^2) x with
    s = x x^T."""
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        s = x @ x.T
        polynomial = torch.addmm(s, s, s, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x.T if tall else x


def make_optimizers(model, train):
    """[AdamW] or [Muon, AdamW]; weight decay on the weights of Linear and Embedding only."""
    embedding = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    hidden, decayed, other = [], [], []
    for p in model.parameters():
        if not p.requires_grad:
            continue
        if train.optimizer == "muon" and id(p) in linear - embedding:                   # a tied head is an embedding
            hidden.append(p)
        elif id(p) in linear | embedding:
            decayed.append(p)
        else:
            other.append(p)
    groups = [dict(params=decayed, weight_decay=train.weight_decay), dict(params=other, weight_decay=0.0)]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, lr=train.lr, betas=(0.9, 0.95), fused=True)
    if not hidden:
        return [adamw]
    _, dtype = precision(hidden[0].device, train.dtype)
    return [Muon(hidden, train.lr, train.weight_decay, dtype=getattr(torch, dtype)), adamw]


def clip_gradients(model, how):
    """Scale gradients down to norm 1: of everything at once, or of the embedding, the head and each layer apart."""
    if how == "off":
        return
    parts = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            layer = re.match(r"\w+\.\d+|\w+", name)[0] if how == "layer" else "all"
            parts.setdefault(layer, []).append(p)
    for part in parts.values():
        torch.nn.utils.clip_grad_norm_(part, 1.0)
