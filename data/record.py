"""
What a run leaves behind and reads again: the checkpoint, the log, the pictures; and how it takes an interruption.

A checkpoint is one dict of plain types and tensors, so it can be read without running code.
"""
import io
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from data.settings import UserError
from data.text import read_file

COLUMNS = ["iter", "seconds", "train_loss", "val_loss", "bits_per_byte", "lr", "tokens_per_s"]


def tensors(nest):
    """All tensors in a nest of dicts, lists and tuples."""
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, (dict, list, tuple)):
        for part in nest.values() if isinstance(nest, dict) else nest:
            yield from tensors(part)


def finite(ckpt):
    return all(torch.isfinite(t).all() for t in tensors([ckpt["model"], ckpt["optimizers"]]))


def load_checkpoint(path):
    """The dict in a checkpoint file. weights_only: a foreign file is read as data or refused, its code never runs."""
    kinds = dict(name=str, config=dict, train=dict, meta=dict, model=dict, optimizers=list, step=int, seconds=float,
                 best=float, rows=list, samples=list, tokens=torch.Tensor, sha256=str)
    if not os.path.exists(path):
        raise UserError(f"no checkpoint {path}; train first, or say ckpt=path")
    content, mend = read_file(path), "use best.pt beside it, or train again"
    try:
        ckpt = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as e:                              # broken bytes raise a dozen kinds of exception
        raise UserError(f"{path} is not a checkpoint or is damaged ({type(e).__name__}); {mend}") from None
    if not (isinstance(ckpt, dict) and all(isinstance(ckpt.get(key), kind) for key, kind in kinds.items())
            and all(isinstance(row, list) and len(row) == len(COLUMNS) for row in ckpt["rows"])
            and all(isinstance(text, str) for text in ckpt["samples"])):
        raise UserError(f"{path} is not a checkpoint of this project, or an old one; {mend}")
    if not all(type(t) is torch.Tensor and t.layout is torch.strided and t.device.type == "cpu" and not t.is_quantized
               for t in tensors(ckpt)):
        raise UserError(f"{path} holds tensors of an odd kind; {mend}")
    if not finite(ckpt):
        raise UserError(f"{path} holds numbers that are not finite; {mend}")
    return ckpt


def draw_loss(rows, title, path):
    from matplotlib.figure import Figure
    ax = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    curve = lambda column: np.array([(row[0], row[column]) for row in rows if row[column] != ""]).reshape(-1, 2).T
    (x, loss), width = curve(2), max(1, len(rows) // 100)
    ax.plot(x, loss, color="#0072B2", alpha=0.2, lw=0.8)
    if len(x) >= width:
        mean = np.convolve(loss, np.ones(width) / width, "valid")
        ax.plot(x[width - 1:], mean, color="#0072B2", label=f"train, mean of {width}")
    ax.plot(*curve(3), "o-", color="#D55E00", label="validation")
    ax.set(xlabel="iteration", ylabel="loss (nats per token)", title=title)
    ax.legend()
    ax.grid(alpha=0.3)
    ax.figure.savefig(path, dpi=110)


def draw(out, drawings):
    """Each drawing(path) writes its picture(s) into a temporary folder, from where they are moved into place."""
    try:
        for name, drawing in drawings.items():
            with tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as folder:
                drawing(str(Path(folder, name)))
                for path in Path(folder).iterdir():
                    os.replace(path, Path(out, path.name))
    except OSError as e:
        raise UserError(f"cannot draw into {out}: {e.strerror or e}; make room, then resume=true draws again") from None


@contextmanager
def interrupts():
    """A list that collects SIGINT, SIGTERM and SIGHUP instead of dying of them."""
    caught = []
    note = lambda number, frame: caught.append(number)
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:     # nohup means: go on
        signals.append(signal.SIGHUP)
    handlers = {s: signal.signal(s, note) for s in signals}
    try:
        yield caught
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
