"""
The rival that is easiest to take: `torch.nn.LSTM`, trained by the same loop, clock and schedule as ours, with an
optimizer and a learning rate of its own. Others are tried with

    python experiments/sweep.py full=true model=lstm changes="optimizer=adamw|lr=1e-2|batch_size=32"
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import optimizer
from common.machine import precision

RECIPE = dict(optimizer="muon", lr=5e-3, weight_decay=0.0)       # of train.py's settings


@dataclass
class Config:
    vocab_size: int = 256       # tokens in the vocabulary
    block_size: int = 128       # tokens of a training window
    n_layer: int = 1            # layers
    n_embd: int = 256           # channels
    dropout: float = 0.0        # before the head


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.lstm = nn.LSTM(config.n_embd, config.n_embd, config.n_layer, batch_first=True)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, idx, targets=None, state=None):            # (B, T) -> logits (B, T, V), loss or None
        memory = None if state is None else state.get("memory")
        x, memory = self.lstm(self.wte(idx), memory)
        if state is not None:
            state["memory"] = memory
        logits = self.head(self.drop(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_optimizers(model, train):
    """As for ours; but Muon is told that the LSTM's matrices are matrices: they are no Linear."""
    if train.optimizer == "adamw":
        return optimizer.make_optimizers(model, train)
    matrices = [p for p in model.lstm.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    adamw = torch.optim.AdamW(rest, lr=train.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    _, dtype = precision(matrices[0].device, train.dtype)
    return [optimizer.Muon(matrices, train.lr, train.weight_decay, dtype=getattr(torch, dtype)), adamw]
