"""
Model files and their checkpoints.

A checkpoint is one dict of plain types and tensors, so it can be read without running code.
"""
import importlib.util
import io
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from common.files import read_file, sha256, write_atomic
from common.settings import UserError, did_you_mean, first_line
from data.text import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["iter", "seconds", "train_loss", "val_loss", "bits_per_byte", "lr", "tokens_per_s"]
KINDS = dict(name=str, config=dict, train=dict, meta=dict, model=dict, optimizers=list, progress=dict,
             tokens=torch.Tensor, sha256=str)
PROGRESS = dict(step=int, seconds=float, best=float, rows=list, samples=list)


# Models.

def models():
    """The names of the files of this project that define a Model."""
    files = [p for p in ROOT.glob("*.py") if p.is_file()]                               # and not an editor's lock
    return sorted(p.stem for p in files if re.search(r"^class Model\b", p.read_text("utf-8", "replace"), re.M))


def load_model(name):
    """The model file as a module, by path: an installed package called `hydra` cannot get in the way."""
    if name not in models():
        raise UserError(f"no model '{name}'; {did_you_mean(name, models())}there are {', '.join(models())}")
    key = f"_nanophysics_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


# Checkpoints.

def tensors(nest):
    """All tensors in a nest of dicts, lists and tuples."""
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, dict):
        yield from tensors(list(nest.values()))
    elif isinstance(nest, (list, tuple)):
        for part in nest:
            yield from tensors(part)


def tensor_bytes(nest):
    return sum(t.numel() * t.element_size() for t in tensors(nest))


def finite(ckpt):
    return all(torch.isfinite(t).all() for t in tensors([ckpt["model"], ckpt["optimizers"]]))


def save_checkpoint(path, ckpt):
    buffer = io.BytesIO()
    torch.save(ckpt, buffer)
    write_atomic(path, buffer.getbuffer())


def has(nest, kinds):
    return isinstance(nest, dict) and all(isinstance(nest.get(key), kind) for key, kind in kinds.items())


def plain(tensor):
    kind = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    return kind and tensor.device.type == "cpu"


def load_checkpoint(path):
    """The dict in a checkpoint file. weights_only: a foreign file is read as data or refused, its code never runs."""
    if not os.path.exists(path):
        raise UserError(f"no checkpoint {path}; train first, or say ckpt=path")
    content = read_file(path)
    mend = "use best.pt beside it, or train again"
    try:
        ckpt = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as e:                              # broken bytes raise a dozen kinds of exception
        raise UserError(f"{path} is not a checkpoint or is damaged ({type(e).__name__}); {mend}") from None
    ours = has(ckpt, KINDS) and has(ckpt["progress"], PROGRESS)
    ours = ours and all(isinstance(row, list) and len(row) == len(COLUMNS) for row in ckpt["progress"]["rows"])
    ours = ours and all(isinstance(text, str) for text in ckpt["progress"]["samples"])
    if not ours:
        raise UserError(f"{path} is not a checkpoint of this project, or an old one; {mend}")
    if not all(plain(tensor) for tensor in tensors(ckpt)):
        raise UserError(f"{path} holds tensors of an odd kind; {mend}")
    if not finite(ckpt):
        raise UserError(f"{path} holds numbers that are not finite; {mend}")
    return ckpt


@contextmanager
def fitting(path):
    """Whatever torch or a Config says about settings and shapes that are not the checkpoint's, in one line."""
    try:
        yield
    except Exception as e:
        raise UserError(f"{path} does not fit ({first_line(e)}); keep to the settings it was made with, "
                        "or train again") from None


def build(ckpt, path, device="cpu"):
    """The model of a checkpoint and its tokenizer."""
    module = load_model(ckpt["name"])
    with fitting(path):
        model = module.Model(module.Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
    if ckpt["sha256"] != sha256(Path(module.__file__).read_bytes()):
        print(f"note: {ckpt['name']}.py has changed since this checkpoint", file=sys.stderr)
    tokenizer = Tokenizer(ckpt["meta"].get("tokenizer"))
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{path} knows {tokenizer.vocab_size} tokens for a vocabulary of {model.config.vocab_size}; "
                        "train again")
    return model.to(device), tokenizer
