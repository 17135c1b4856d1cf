"""What several tests share: small models with moved weights, how far apart two results are, small runs."""
import csv
import multiprocessing
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from common.checkpoint import ROOT, load_checkpoint, load_model
from common.settings import UserError
from train import Train

TINY = "n_layer=1 n_embd=16 block_size=16 batch_size=4 device=cpu eval_iters=1".split()
SMALL = dict(vocab_size=23, block_size=12, n_layer=3, n_embd=32, n_head=2, dropout=0.0)
LENGTHS = (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 257)     # of a text: one token, and around 32, 64 and 256
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}      # for the processes that tests start
# Where a process that has computed may fork: not with a GPU, nor outside Linux.
FORK = sys.platform == "linux" and not torch.cuda.is_available()


# Models.

def small(module, **changes):
    """The small Config of a model, with the common names that it has."""
    names = {f.name for f in fields(module.Config)}
    return module.Config(**{key: value for key, value in SMALL.items() if key in names} | changes)


def awake(module, **changes):
    """A small float64 model whose weights are all moved: nothing initialised to zero hides a mistake."""
    torch.manual_seed(0)
    model = module.Model(small(module, **changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def tokens(shape, seed=1):
    return torch.randint(SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    """The largest difference of two arrays or tensors, relative to the largest entry of b."""
    a, b = np.asarray(a), np.asarray(b)
    return float(abs(a - b).max()) / max(float(abs(b).max()), 1e-300)


def scan_loop(x, dt, A, B, C, D, h):
    """The selective scan of fluidlm.py, token by token, for autograd to differentiate."""
    ys = []
    for xt, dtt, Bt, Ct in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1)):
        h = (dtt.unsqueeze(1) * A.t()).exp() * h + (dtt * xt).unsqueeze(1) * Bt.unsqueeze(2)
        ys.append((Ct.unsqueeze(2) * h).sum(1) + D * xt)
    return torch.stack(ys, 1), h


# Processes.

def forked(folder, name, work, *args):
    """A process that does the work in a folder and writes <name>.stdout and <name>.stderr there. It has what this one
    has imported, which takes a process that starts from nothing ten seconds."""
    files = {stream: Path(folder, f"{name}.{stream}") for stream in ("stdout", "stderr")}
    for file in files.values():
        file.write_text("")

    def child():
        os.chdir(folder)
        for fd, (stream, file) in enumerate(files.items(), 1):
            os.dup2(os.open(file, os.O_WRONLY), fd)
            setattr(sys, stream, open(fd, "w", buffering=1, encoding="utf-8", closefd=False))
        work(*args)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def as_script(path, *args):
    """What `python path args` does, in a process of its own: it imports our files from where it looks for them."""
    ours = {ROOT / folder for folder in (".", "common", "data", "experiments", "tests")}
    sys.path[:] = [str(path.parent), *(p for p in sys.path if p and Path(p) not in ours)]
    for name, module in [*sys.modules.items()]:
        if name != "__main__" and Path(getattr(module, "__file__", None) or "-").parent in ours:
            del sys.modules[name]
    sys.argv = [str(path), *args]
    runpy.run_path(str(path), run_name="__main__")


# Settings, runs and errors.

@dataclass
class Knobs:
    n_embd: int = 4                     # channels
    lr: float = 0.1                     # step
    flag: bool = False                  # on or off
    kind: Literal["a", "b"] = "a"       # one of two
    name: str = ""                      # any text

    def __post_init__(self):
        if self.n_embd % 2:
            raise ValueError(f"n_embd={self.n_embd} is odd")


def written(folder):
    """Everything in a folder that is not a data set or a lock: {path: bytes}."""
    paths = [p for p in folder.rglob("*") if p.is_file() and "data" not in p.parts and p.name != ".lock"]
    return {p: p.read_bytes() for p in paths}


def steps(path):
    """After how many iterations a checkpoint was saved."""
    return load_checkpoint(path)["progress"]["step"]


def losses(path):
    """The training losses in a log.csv, as they were written."""
    with open(path, newline="") as f:
        return [row["train_loss"] for row in csv.DictReader(f) if row["train_loss"]]


def after(calls, real, what):
    """The function `real`, which does `what` first from so many calls on."""
    left = [calls]

    def function(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            what()
        return real(*args, **options)
    return function


def fails(what, call, *args, **kwargs):
    """The message of the UserError that the call must end in: one line, which says what."""
    with pytest.raises(UserError) as e:
        call(*args, **kwargs)
    message = str(e.value)
    assert "\n" not in message and what in message, message
    return message


# What README.md and LESSONS.md print.

def commands(page):
    """The words after every `python` in the text of a page that names a script of ours."""
    found = re.findall(r"(?:&& |^    |`)python ((?:experiments/)?\w+\.py[^`\n&]*)", page, re.M)
    return [shlex.split(command) for command in found]


def shortened(words, text):
    """The words of a command of train.py or sample.py, so that it takes a second, on another text."""
    script, *given = words
    model = next((w[6:] for w in given if w.startswith("model=")), "momentum")
    keys = {w.split("=")[0] for w in given}
    if script == "train.py" and "help" not in given:
        names = {f.name for f in (*fields(Train), *fields(load_model(model).Config))}
        short = [*TINY, "max_iters=2", f"dataset={text}", "overwrite=true"]
        given = [w for w in given if w.split("=")[0] not in ("minutes", "max_iters")]
        given += [w for w in short if w.split("=")[0] not in keys - {"max_iters"} and w.split("=")[0] in names]
    if script == "sample.py":
        given = [w for w in given if w.split("=")[0] not in ("prompt", "tokens")] + ["prompt=A:", "tokens=3"]
    return [script, *given]


def printed(name):
    """A file that README.md or LESSONS.md prints: the block of Python that begins with its name."""
    for page in ("README.md", "LESSONS.md"):
        text = (ROOT / page).read_text("utf-8")
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
            if block.startswith(f"# {name}"):
                return block
    raise AssertionError(f"no page prints {name}")
