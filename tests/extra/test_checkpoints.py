"""A checkpoint is read as data or refused in one line, whatever is in the file; its code never runs."""
import errno
import math
import os
import pickle
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, fails, losses, small, steps, tokens
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

import common.checkpoint
from common.checkpoint import build, checksum, load_checkpoint, load_model, models, save_checkpoint
from common.resume import remembered
from common.settings import UserError

pytestmark = pytest.mark.usefixtures("no_pictures")


# Files.

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def unsigned(ckpt):
    return {key: value for key, value in ckpt.items() if key not in ("checksum", "path")}


def test_checkpoints_that_are_none(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = trained.read_bytes()
    assert steps(trained) == 4
    bad = {f"cut{i}": good[:len(good) * i // 10] for i in range(10)}
    bad |= {"noise": random.Random(0).randbytes(5000), "text": b"hello", "zip": b"PK\3\4" + bytes(99)}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    ckpt = torch.load(trained, weights_only=True)
    poisoned = {k: v.clone() for k, v in ckpt["model"].items()}
    poisoned["wte.weight"][0, 0] = float("nan")
    progress = ckpt["progress"]
    old = {key: value for key, value in ckpt.items() if key != "progress"} | progress   # all at the top
    short = {key: value for key, value in progress.items() if key != "rows"}
    moments = torch.load(trained, weights_only=True)["optimizers"]
    moments[0]["state"][0]["momentum"][0, 0] = float("inf")
    says = dict.fromkeys(bad, "is damaged")
    moved = poisoned | {"wte.weight": ckpt["model"]["wte.weight"] + 1e-6}
    says |= {"missing": "no checkpoint", ".": "a folder", "pipe": "no regular file"}
    for name, content, what in [
            ("foreign", {"model": {}}, "of this project"), ("list", [1, 2], "of this project"),
            ("scalar", torch.ones(3), "of this project"), ("old", old, "or an old one"),
            ("short", ckpt | {"progress": short}, "or an old one"),
            ("columns", ckpt | {"progress": progress | {"rows": [[0, 1.0]]}}, "or an old one"),
            ("samples", ckpt | {"progress": progress | {"samples": [7]}}, "or an old one"),
            ("rows", ckpt | {"progress": progress | {"rows": [["a", *6 * [""]]]}}, "or an old one"),
            ("surrogate", ckpt | {"progress": progress | {"samples": ["\udcff"]}}, "or an old one"),
            ("best", ckpt | {"progress": progress | {"best": float("nan")}}, "or an old one"),
            ("more", ckpt | {"progress": progress | {"colour": 1}}, "or an old one"),
            ("unsigned", unsigned(ckpt), "or an old one"), ("moved", ckpt | {"model": moved}, "not what was saved"),
            ("settings", ckpt | {"train": ckpt["train"] | {"lr": 7.0}}, "not what was saved"),
            ("passage", ckpt | {"tokens": ckpt["tokens"].flip(0)}, "not what was saved"),
            ("complex", ckpt | {"model": {"x": torch.ones(2, dtype=torch.complex64)}}, "of an odd kind"),
            ("8 bits", ckpt | {"model": {"x": torch.ones(2).to(torch.float8_e5m2)}}, "of an odd kind"),
            ("bomb", Bomb(), "is damaged"), ("hidden", ckpt | {"meta": Bomb()}, "is damaged"),
            ("nan", ckpt | {"model": poisoned}, "not finite"),
            ("inf", ckpt | {"optimizers": moments}, "not finite"),
            ("meta", ckpt | {"model": {"x": torch.ones(2, device="meta")}}, "of an odd kind"),
            ("sparse", ckpt | {"model": {"x": torch.eye(2).to_sparse()}}, "of an odd kind")]:
        if what == "not finite":
            save_checkpoint(tmp_path / name, unsigned(content))
        else:
            torch.save(content, tmp_path / name)
        says[name] = what
    os.mkfifo(tmp_path / "pipe")
    for name, what in says.items():
        assert ";" in fails(what, load_checkpoint, tmp_path / name), name
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    fails("is damaged", load_checkpoint, tmp_path / "bomb.pkl")
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "bomb", weights_only=False)   # and it is a bomb indeed
    assert (tmp_path / "exploded").exists()


def test_a_checkpoint_nested_3000_deep(trained, tmp_path):
    deep = []
    for _ in range(3000):
        deep = [deep]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(30000)
    try:
        torch.save(torch.load(trained, weights_only=True) | {"meta": {"tokenizer": deep}}, tmp_path / "deep.pt")
    finally:
        sys.setrecursionlimit(limit)
    fails("nested too deeply", load_checkpoint, tmp_path / "deep.pt")


def test_a_checkpoint_that_may_not_be_read(trained, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", denied)
    fails("Permission denied", load_checkpoint, trained)


@effort(max_examples=500, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
       cut=st.floats(0.5, 1))
def test_any_bytes_as_checkpoint(trained, changes, cut):
    content = np.frombuffer(trained.read_bytes(), np.uint8).copy()
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = trained.parent / "fuzzed.pt"
    path.write_bytes(content.tobytes()[:int(cut * len(content)) + 1])
    try:
        build(load_checkpoint(path), path)
    except UserError as e:
        assert str(e)


def test_a_bit_that_flips_is_noticed(trained, tmp_path):
    """Wherever in the file: it is refused, or it has changed nothing."""
    good = trained.read_bytes()
    want = torch.load(trained, weights_only=True)["checksum"]
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        content = bytearray(good)
        content[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        (tmp_path / "flipped.pt").write_bytes(content)
        try:
            assert checksum(load_checkpoint(tmp_path / "flipped.pt")) == want
        except UserError:
            refused += 1
    assert refused > 30


def test_everything_counts_in_a_checksum():
    """Type, shape, order and place of each part."""
    x = torch.arange(4.0)
    nests = [x, x.view(2, 2), x.double(), x.long(), x.flip(0), [x], [[x]], {"a": x}, {"b": x}, {"a": [x, 1]},
             {"a": [x, 1.0]}, {"a": [x, "1"]}, {"a": [x], 1: 1}, {"a": [], "b": [x, 1]}, {}, [], "", None, False, 0]
    assert len({checksum(nest) for nest in nests}) == len(nests)
    assert checksum(x) == checksum(torch.arange(4.0).view(2, 2).t().t().reshape(4))


# Models and runs that they do not fit.

@pytest.mark.parametrize("change", [
    dict(config={"n_embd": 16, "colour": 1}), dict(config={"vocab_size": 3, "n_embd": 16}),
    dict(name="hydra"), dict(name="nothing"), dict(meta={}), dict(meta={"tokenizer": {"kind": 7}}),
    dict(meta={"tokenizer": {"kind": "char", "chars": "ab"}}), dict(tokens=torch.ones(3)),
    dict(meta={"tokenizer": {"kind": "char", "chars": "".join(map(chr, range(50, 110)))}}),
    dict(tokens=torch.full((3,), 999)), dict(tokens=torch.zeros(2, 2, dtype=torch.int64)), dict(model={}),
    *(dict(config={"n_embd": 16} | change) for change in (
        {"block_size": -5}, {"block_size": "16"}, {"dropout": float("nan")}, {"n_layer": 10**9}, {"n_embd": 10**6},
        {"mlp": 1}, {"shear": None}, {"n_head": 10**400}, {"gamma": [[]]}))])
def test_checkpoints_that_do_not_fit(trained, change):
    fails("", build, load_checkpoint(trained) | change, trained)


def test_resume_with_another_shape_or_text(inside, refused, text_file, tmp_path):
    inside(*TINY, f"dataset={text_file}", "max_iters=4")
    before = (tmp_path / "out/momentum/ckpt.pt").read_bytes()
    (tmp_path / "other.txt").write_text("abc " * 500)
    (tmp_path / "foreign.txt").write_text("Abc 123 " * 500)
    line = refused("resume=true", "n_embd=32", "dropout=0.5", "shear=k")
    assert "n_embd=32 was 16, shear=k was qk; leave them out" in line and "dropout" not in line
    assert "has no '1' '2' '3'" in refused("resume=true", "dataset=foreign.txt")
    assert "n_embd=" in refused("resume=true", "preset=original")
    assert "is of model=momentum, not hydra" in refused("resume=true", "model=hydra", "out=out/momentum")
    assert "optimizer=adamw was muon" in refused("resume=true", "optimizer=adamw", "max_iters=5")
    assert "resume=true goes on" in refused(*TINY, f"dataset={text_file}")
    assert (tmp_path / "out/momentum/ckpt.pt").read_bytes() == before
    log = tmp_path / "out/momentum/log.csv"
    before = log.read_text()
    inside("resume=true")                               # a finished run: scored again, nothing appended
    assert log.read_text() == before
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 4
    inside("resume=true", "lr=1e-4", "max_iters=6", "batch_size=2")
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 6
    inside(*TINY, f"dataset={text_file}", "max_iters=2", "overwrite=true")
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 2


def copy(path, folder, **changes):
    """A checkpoint with some of its parts exchanged."""
    ckpt = load_checkpoint(path)
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / "ckpt.pt", ckpt | changes)
    return ckpt


@pytest.mark.parametrize("part, change, what", [
    ("train", {"colour": 1}, ""), ("train", {"lr": "fast"}, "lr='fast' should be a number"),
    ("train", {"batch_size": None}, "should be a whole number"),
    ("train", {"optimizer": 3}, "one of muon, adamw"),
    ("config", {"n_layer": 1.5}, "whole"), ("config", {"colour": 1}, "colour=None was 1"),
    ("config", {"block_size": -5}, "1 or more"), ("config", {"block_size": "16"}, "'16' should be a whole number"),
    ("config", {"dropout": float("nan")}, "finite"),
    ("config", {"n_head": 5}, "does not divide"),
    ("optimizers", [], ""), ("model", {}, "does not fit"),
    ("optimizers", [{}, {}], "does not fit"), ("name", "hydra", "is of model=hydra, not momentum"),
    ("name", "\x1b[2J", "no model '\\x1b[2J'"),
    ("meta", {"tokenizer": None}, "the vocabulary")])
def test_resume_of_an_odd_checkpoint(inside, refused, trained, tmp_path, part, change, what):
    ckpt = load_checkpoint(trained)
    copy(trained, tmp_path, **{part: ckpt[part] | change if part in ("train", "config") else change})
    before = (tmp_path / "ckpt.pt").read_bytes()
    words = ["resume=true", f"out={tmp_path}", "max_iters=5", *(["model=momentum"] if change == "hydra" else [])]
    if what:
        assert what in refused(*words) and (tmp_path / "ckpt.pt").read_bytes() == before
    else:
        inside(*words)
        assert steps(tmp_path / "ckpt.pt") == 5


def test_optimizer_states_of_another_shape(refused, trained, tmp_path):
    for change in ({"momentum": torch.zeros(3)}, {"momentum": torch.zeros(1), "extra": torch.ones(1)}, {}):
        optimizers = load_checkpoint(trained)["optimizers"]
        optimizers[0]["state"][0] = change
        copy(trained, tmp_path, optimizers=optimizers)
        assert "its optimizer has" in refused("resume=true", f"out={tmp_path}", "max_iters=5")
    optimizers[0]["param_groups"][0]["params"] = [7]
    copy(trained, tmp_path, optimizers=optimizers)
    assert "other weights" in refused("resume=true", f"out={tmp_path}", "max_iters=5")


# Where a run begins.

def test_resume_needs_no_model_and_takes_new_settings(inside, text_file, tmp_path, trained, capsys):
    """The model is the checkpoint's; dropout, lr and weight decay may change, and do."""
    folder = tmp_path / "run"
    inside(*TINY, "model=wavefield", "n_head=2", f"dataset={text_file}", "max_iters=1", f"out={folder}")
    inside("resume=true", f"out={folder}", "max_iters=2", "dropout=0.2", "weight_decay=0.3")
    ckpt = load_checkpoint(folder / "ckpt.pt")
    assert ckpt["name"] == "wavefield" and ckpt["config"]["dropout"] == 0.2 and ckpt["progress"]["step"] == 2
    assert ckpt["optimizers"][0]["param_groups"][0]["weight_decay"] == 0.3
    assert "note: " not in capsys.readouterr().err


def test_resume_on_a_text_that_has_changed(inside, text_file, tmp_path, capsys):
    """It is said, the best loss starts afresh, and best.pt is of the new text, even if no step is left."""
    text = text_file.read_text()
    for out, more in (("a", "max_iters=3"), ("b", "batch_size=4")):
        (tmp_path / "play.txt").write_text(text)
        inside(*TINY, "dataset=play.txt", "max_iters=2", f"out={out}")
        (tmp_path / "play.txt").write_text(text[::-1])
        before = (tmp_path / out / "best.pt").read_bytes()
        copy(tmp_path / out / "ckpt.pt", tmp_path / out,
             progress=load_checkpoint(tmp_path / out / "ckpt.pt")["progress"] | {"best": 0.0})
        capsys.readouterr()
        inside("resume=true", f"out={out}", more)
        said = capsys.readouterr().err
        assert said.startswith("note: play.txt is not the text that") and said.count("\n") == 1, said
        assert "best.pt starts afresh" in said and "init=a/ckpt.pt out=... fine-tunes".replace("a/", f"{out}/") in said
        assert (tmp_path / out / "best.pt").read_bytes() != before
        progress = load_checkpoint(tmp_path / out / "ckpt.pt")["progress"]
        assert 0 < progress["best"] < math.inf
        inside("resume=true", f"out={out}")
        assert "note: play" not in capsys.readouterr().err


def test_a_new_budget_replaces_the_old_one():
    """Settings on the command line come on top: without this a run of 4 iterations could not get minutes."""
    ckpt = dict(progress={"step": 4}, train={"max_iters": 4, "minutes": 0.0, "lr": 0.1}, config={"n_embd": 16})
    assert remembered(ckpt, {"lr": "1"}) == {"max_iters": 4, "minutes": 0.0, "lr": 0.1, "n_embd": 16}
    assert remembered(ckpt, {"minutes": "1"}) == {"max_iters": 0, "minutes": 0.0, "lr": 0.1, "n_embd": 16}


def test_fine_tuning_takes_the_weights_and_nothing_else(inside, refused, trained, text_file, tmp_path):
    """With the old vocabulary, on a text that has only a part of it; and the run goes on as any other."""
    words = [f"init={trained}", "dataset=new.txt", "device=cpu", "eval_iters=1", "out=new"]
    (tmp_path / "new.txt").write_text("A: wave field. " * 200)
    inside(*words, "lr=0", "max_iters=1", "batch_size=2", "dropout=0.1", "weight_decay=0")
    old, new = load_checkpoint(trained), load_checkpoint("new/ckpt.pt")
    assert all(torch.equal(old["model"][name], new["model"][name]) for name in old["model"])
    assert new["progress"]["step"] == 1 and len(new["progress"]["rows"]) == 3
    assert new["meta"]["tokenizer"] == old["meta"]["tokenizer"] and new["meta"]["train"] != old["meta"]["train"]
    assert new["config"] == old["config"] | {"dropout": 0.1} and new["train"]["batch_size"] == 2
    assert "holds a run" in refused(*words)
    inside("out=new", "resume=true", "max_iters=2")
    assert steps("new/ckpt.pt") == 2
    (tmp_path / "new.txt").write_text("123 " * 500)
    assert "new.txt: the vocabulary has no '1'" in refused(*words, "overwrite=true")
    (tmp_path / "new.txt").write_text("A: wave field. " * 200)
    assert "instead of" in refused(*words, "overwrite=true", "n_embd=32")
    assert "is of model=momentum, not hydra" in refused(*words, "overwrite=true", "model=hydra")
    assert steps("new/ckpt.pt") == 2


READERS = """
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import nn


@dataclass
class Config:
    vocab_size: int = 256               # tokens
    block_size: int = 16                # length
    width: Optional[int] = None         # channels; None: eight
    shape: tuple[int, ...] = (1, 2)     # of nothing
    rate: float | None = 0.5            # of nothing
    names: list = field(default_factory=list)       # none


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.width or 8)
        self.head = nn.Linear(config.width or 8, config.vocab_size)

    def forward(self, idx, targets=None, state=None):
        logits = self.head(self.emb(idx))
        loss = None if targets is None else nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
"""


def test_a_config_with_other_kinds_of_fields(inside, refused, text_file, tmp_path, monkeypatch, capsys):
    """Optional, tuple and list: trained, resumed, helped, sampled from; and a wrong value is one line."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "mine.py").write_text(READERS)
    monkeypatch.setattr(common.checkpoint, "ROOT", root)
    words = ["model=mine", f"dataset={text_file}", "batch_size=2", "device=cpu", "eval_iters=1"]
    inside(*words, "max_iters=1", "width=4", "shape=(3,4,5)", "rate=None")
    inside("model=mine", "resume=true", "max_iters=2")
    config = load_checkpoint("out/mine/ckpt.pt")["config"]
    assert config["width"] == 4 and config["shape"] == (3, 4, 5) and config["rate"] is None
    assert steps("out/mine/ckpt.pt") == 2 and build(load_checkpoint("out/mine/ckpt.pt"), "")[0].config.width == 4
    with pytest.raises(SystemExit):
        inside("model=mine", "help")
    shown = capsys.readouterr().out
    assert re.search(r"width=None +Optional\[int\] +channels", shown)
    assert "shape=(1, 2)" in shown and "names=[]" in shown
    assert "width=wide should be a value of the kind Optional[int]" in refused(*words, "width=wide", "out=b")
    assert "shape=3 should be a value of the kind tuple[int, ...]" in refused(*words, "shape=3", "out=b")
    assert "rate=True" in refused(*words, "rate=True", "out=b")


# Constants.

@pytest.mark.parametrize("name", models())
def test_all_that_a_model_is_stands_in_its_config_and_weights(name):
    """Built without memory and given the weights of another, it is the other: no constant is left behind."""
    torch.manual_seed(0)
    config = small(load_model(name))
    model = load_model(name).Model(config).eval()
    with torch.device("meta"):
        other = load_model(name).Model(config).eval()
    other.load_state_dict(model.state_dict(), assign=True)
    idx = tokens((1, 12))
    assert torch.equal(other(idx)[0], model(idx)[0])
