"""
Where a run begins: at nothing, where it stopped (resume=true), or at the weights of another (init=its/ckpt.pt).
"""
import math
import sys
from dataclasses import asdict
from pathlib import Path

from common.checkpoint import load_checkpoint
from common.machine import rank
from common.settings import UserError

HARMLESS = {"dropout"}                                  # in the middle of a run


def note(text):
    if rank() == 0:
        print(f"note: {text}", file=sys.stderr)


def model_meant(given, default):
    """The name of the model that is to be trained: model=, or that of the checkpoint where the run begins."""
    file = Path(given.get("out", ""), "ckpt.pt")
    resumes = given.get("resume", "").lower() == "true" and given.get("out") and file.exists()
    if "model" not in given and resumes:
        return load_checkpoint(file)["name"]
    if "model" not in given and given.get("init"):
        return load_checkpoint(given["init"])["name"]
    return given.get("model", default)


def beginning(train):
    """The checkpoint where a run begins, its file as ckpt["path"], or None. After init= it has weights only."""
    file = Path(train.out, "ckpt.pt")
    if file.exists() and not train.resume and not train.overwrite:
        raise UserError(f"{train.out} holds a run; resume=true goes on, overwrite=true starts over, out=... keeps both")
    if train.resume and file.exists():
        ckpt = load_checkpoint(file) | {"path": file}
        rows = ckpt["progress"]["rows"]
        if len(rows) > 1 and rows[-1][2] == "":
            rows.pop()                                  # the closing line of a finished run, which is written anew
    elif train.init:
        ckpt = load_checkpoint(train.init) | {"path": train.init, "progress": {}, "optimizers": []}
    else:
        ckpt = None
    if train.resume and not file.exists():
        note(f"no checkpoint in {train.out} yet; starting at iteration 0")
    if ckpt and ckpt["name"] != train.model:
        raise UserError(f"{ckpt['path']} is of model={ckpt['name']}, not {train.model}; leave out model=, "
                        "or give another folder with out=")
    return ckpt


def remembered(ckpt, given):
    """The settings that a run takes over from its checkpoint. A new budget replaces the old one."""
    if not ckpt["progress"]:
        return ckpt["config"]
    budget = {"max_iters": 0, "minutes": 0.0} if "max_iters" in given or "minutes" in given else {}
    return ckpt["train"] | ckpt["config"] | budget


def compare(ckpt, train, config, data):
    """Say what is not as it was when the checkpoint was saved; UserError where a run cannot go on."""
    path = ckpt["path"]
    if data.meta["tokenizer"] != ckpt["meta"].get("tokenizer"):
        raise UserError(f"the vocabulary of {train.dataset} is not that of {path}; give a text that has it, "
                        "or begin a run of its own with out=")
    if not ckpt["progress"]:
        return
    was = ckpt["config"]
    now = asdict(config)
    other = [f"{key}={now.get(key)} was {was.get(key)}" for key in [*now, *(was.keys() - now.keys())]
             if key not in HARMLESS and now.get(key) != was.get(key)]
    if train.optimizer != ckpt["train"].get("optimizer"):
        other.append(f"optimizer={train.optimizer} was {ckpt['train'].get('optimizer')}")
    if other:
        raise UserError(f"{path} was made with other settings: {', '.join(other)}; leave them out, "
                        f"or take only its weights with init={path} out=...")
    sizes = [(split, ckpt["meta"].get(split) or {}, data.meta[split]) for split in ("train", "val")]
    changed = [f"{split} {old.get('tokens')} -> {new['tokens']} tokens" for split, old, new in sizes
               if old.get("sha256") != new["sha256"]]
    if changed:
        note(f"{Path(train.dataset).name} is not the text that {path} was trained on ({', '.join(changed)}): best.pt "
             f"starts afresh, and what was validated may now be trained on; init={path} out=... fine-tunes instead")
        ckpt["progress"]["best"] = math.inf
        if ckpt["progress"]["rows"]:
            ckpt["progress"]["rows"][-1][3:5] = "", ""  # evaluated anew, even if no step is left
