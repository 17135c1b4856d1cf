"""
Model files and their checkpoints.

A checkpoint is one dict of plain types and tensors, so it can be read without running code, and a checksum of all that
is in it: a bit that flips on a disk is noticed.
"""
import hashlib
import importlib.util
import io
import math
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from common.files import read_file, sha256, write_atomic
from common.settings import UserError, check_values, did_you_mean, first_line
from data.text import Tokenizer, is_unicode

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["iter", "seconds", "train_loss", "val_loss", "bits_per_byte", "lr", "tokens_per_s"]
KINDS = dict(name=str, config=dict, train=dict, meta=dict, model=dict, optimizers=list, progress=dict,
             tokens=torch.Tensor, sha256=str, checksum=str)
PROGRESS = dict(step=int, seconds=float, best=float, rows=list, samples=list)
MOMENTS = {"momentum"}, {"step", "exp_avg", "exp_avg_sq"}       # what Muon and AdamW know of a weight


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


def checksum(nest):
    """sha256 of all that a nest of dicts, lists, tuples, tensors and plain values says."""
    digest = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {list(part.shape)} ".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(part, (dict, list, tuple)):
            digest.update(f"{len(part)} in {'a dict' if isinstance(part, dict) else 'a list'} ".encode())
            for entry in part.items() if isinstance(part, dict) else part:
                add(entry)
        else:
            digest.update(f"{part!r} ".encode("utf-8", "surrogatepass"))
    add(nest)
    return digest.hexdigest()


def save_checkpoint(path, ckpt):
    buffer = io.BytesIO()
    torch.save(ckpt | {"checksum": checksum(ckpt)}, buffer)
    write_atomic(path, buffer.getbuffer())


def has(nest, kinds):
    return isinstance(nest, dict) and all(isinstance(nest.get(key), kind) for key, kind in kinds.items())


def plain(tensor):
    kind = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    odd = tensor.is_complex() or tensor.is_floating_point() and tensor.element_size() < 2
    return kind and tensor.device.type == "cpu" and not odd


def is_row(row):
    """A line of log.csv: an iteration and numbers, some of them left empty."""
    numbers = isinstance(row, list) and len(row) == len(COLUMNS) and type(row[0]) is int
    return numbers and all(type(cell) in (int, float) or cell == "" for cell in row)


def ours(ckpt):
    """Whether something that torch has read is a checkpoint of this project."""
    if not has(ckpt, KINDS) or not has(ckpt["progress"], PROGRESS) or len(ckpt["progress"]) > len(PROGRESS):
        return False
    progress = ckpt["progress"]
    counts = progress["step"] >= 0 and 0 <= progress["seconds"] < math.inf and not math.isnan(progress["best"])
    texts = all(isinstance(text, str) and is_unicode(text) for text in progress["samples"])
    return counts and texts and all(is_row(row) for row in progress["rows"])


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
    try:
        if not ours(ckpt):
            raise UserError(f"{path} is not a checkpoint of this project, or an old one; {mend}")
        if not all(plain(tensor) for tensor in tensors(ckpt)):
            raise UserError(f"{path} holds tensors of an odd kind; {mend}")
        if ckpt.pop("checksum") != checksum(ckpt):
            raise UserError(f"{path} is damaged: its content is not what was saved; {mend}")
        if not finite(ckpt):
            raise UserError(f"{path} holds numbers that are not finite; {mend}")
    except RecursionError:
        raise UserError(f"{path} is not a checkpoint of this project: it is nested too deeply; {mend}") from None
    return ckpt


@contextmanager
def fitting(path):
    """Whatever torch or a Config says about settings and shapes that are not the checkpoint's, in one line."""
    try:
        yield
    except Exception as e:
        raise UserError(f"{path} does not fit ({first_line(e)}); keep to the settings it was made with, "
                        "or train again") from None


def load_weights(model, weights):
    """ValueError names the first weight that is of another shape, or is not there."""
    have = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in [*have, *weights]:
        if name not in have or not isinstance(weights.get(name), torch.Tensor):
            raise ValueError(f"{name} is only in one of the two")
        if have[name] != tuple(weights[name].shape):
            raise ValueError(f"{name} is {tuple(weights[name].shape)} instead of {have[name]}")
    model.load_state_dict(weights)


def restore(model, optimizers, ckpt, path):
    """The weights and, where it has any, the optimizer states of a checkpoint into a model and its optimizers, whose
    settings stay as they are."""
    with fitting(path):
        load_weights(model, ckpt["model"])
        for optimizer, saved in zip(optimizers, ckpt["optimizers"], strict=bool(ckpt["optimizers"])):
            groups = optimizer.state_dict()["param_groups"]
            if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
                raise ValueError("its optimizers have other weights")
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
            for p, moments in optimizer.state.items():
                shapes = {name: tuple(moment.shape) for name, moment in moments.items()}
                if set(shapes) not in MOMENTS or any(s != p.shape for name, s in shapes.items() if name != "step"):
                    raise ValueError(f"its optimizer has {shapes} for a weight of {tuple(p.shape)}")


def build(ckpt, path, device="cpu"):
    """The model of a checkpoint and its tokenizer."""
    module = load_model(ckpt["name"])
    with fitting(path):
        check_values(module.Config, ckpt["config"])
        config = module.Config(**ckpt["config"])
        L, C = (getattr(config, key, 1) for key in ("n_layer", "n_embd"))
        if L * C * C > 1000 * max(1, tensor_bytes(ckpt["model"])):
            raise ValueError(f"n_layer={L} and n_embd={C} are not those of its weights")
        model = module.Model(config)
        load_weights(model, ckpt["model"])
    if ckpt["sha256"] != sha256(Path(module.__file__).read_bytes()):
        print(f"note: {ckpt['name']}.py has changed since this checkpoint", file=sys.stderr)
    tokenizer = Tokenizer(ckpt["meta"].get("tokenizer"))
    V = tokenizer.vocab_size
    if V != model.config.vocab_size:
        raise UserError(f"{path} knows {V} tokens for a vocabulary of {model.config.vocab_size}; train again")
    tokens = ckpt["tokens"]
    if tokens.dtype != torch.int64 or tokens.dim() != 1 or not all(0 <= i < V for i in tokens.tolist()):
        raise UserError(f"{path} holds a passage that is no text; train again")
    return model.to(device), tokenizer
