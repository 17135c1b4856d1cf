"""A checkpoint is read as data or refused in one line, whatever is in the file; its code never runs."""
import errno
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, fails, losses, steps
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from common.checkpoint import build, load_checkpoint
from common.settings import UserError

pytestmark = pytest.mark.usefixtures("no_pictures")


# Files.

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


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
    says |= {"missing": "no checkpoint", ".": "a folder", "pipe": "no regular file"}
    for name, content, what in [
            ("foreign", {"model": {}}, "of this project"), ("list", [1, 2], "of this project"),
            ("scalar", torch.ones(3), "of this project"), ("old", old, "or an old one"),
            ("short", ckpt | {"progress": short}, "or an old one"),
            ("columns", ckpt | {"progress": progress | {"rows": [[0, 1.0]]}}, "or an old one"),
            ("samples", ckpt | {"progress": progress | {"samples": [7]}}, "or an old one"),
            ("bomb", Bomb(), "is damaged"), ("hidden", ckpt | {"meta": Bomb()}, "is damaged"),
            ("nan", ckpt | {"model": poisoned}, "not finite"),
            ("inf", ckpt | {"optimizers": moments}, "not finite"),
            ("meta", ckpt | {"model": {"x": torch.ones(2, device="meta")}}, "of an odd kind"),
            ("sparse", ckpt | {"model": {"x": torch.eye(2).to_sparse()}}, "of an odd kind")]:
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


def test_a_checkpoint_that_may_not_be_read(trained, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", denied)
    fails("Permission denied", load_checkpoint, trained)


@effort(max_examples=1500, deadline=None)
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


# Models and runs that they do not fit.

@pytest.mark.parametrize("change", [
    dict(config={"n_embd": 16, "colour": 1}), dict(config={"vocab_size": 3, "n_embd": 16}),
    dict(name="hydra"), dict(name="nothing"), dict(meta={}), dict(meta={"tokenizer": {"kind": 7}}),
    dict(meta={"tokenizer": {"kind": "char", "chars": "ab"}})])
def test_checkpoints_that_do_not_fit(trained, change):
    fails("", build, load_checkpoint(trained) | change, trained)


def test_resume_with_another_shape_or_text(inside, refused, text_file, tmp_path):
    inside(*TINY, f"dataset={text_file}", "max_iters=4")
    before = (tmp_path / "out/momentum/ckpt.pt").read_bytes()
    (tmp_path / "other.txt").write_text("abc " * 500)
    assert "shape or vocabulary" in refused("resume=true", "n_embd=32")
    assert "shape or vocabulary" in refused("resume=true", "dataset=other.txt")
    assert "shape or vocabulary" in refused("resume=true", "preset=original")
    assert "shape or vocabulary" in refused("resume=true", "model=hydra", "out=out/momentum")
    assert "does not fit" in refused("resume=true", "optimizer=adamw", "max_iters=5")
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


@pytest.mark.parametrize("part, change, what", [
    ("train", {"colour": 1}, ""), ("train", {"lr": "fast"}, "lr=fast should be a number"),
    ("train", {"batch_size": None}, "should be a whole number"),
    ("train", {"optimizer": 3}, "one of muon, adamw"),
    ("config", {"n_layer": 1.5}, "whole"), ("config", {"colour": 1}, "shape or vocabulary"),
    ("config", {"n_head": 5}, "does not divide"),
    ("optimizers", [], "does not fit"), ("model", {}, "does not fit"),
    ("optimizers", [{}, {}], "does not fit"), ("name", "hydra", "shape or vocabulary"),
    ("progress", {"colour": 1}, ";"), ("progress", {"step": "four"}, "or an old one"),
    ("meta", {"tokenizer": None}, "shape or vocabulary")])
def test_resume_of_an_odd_checkpoint(inside, refused, trained, tmp_path, part, change, what):
    ckpt = torch.load(trained, weights_only=True)
    ckpt[part] = ckpt[part] | change if part in ("train", "config", "progress") else change
    torch.save(ckpt, tmp_path / "ckpt.pt")
    before = (tmp_path / "ckpt.pt").read_bytes()
    words = ["resume=true", f"out={tmp_path}", "max_iters=5"]
    if what:
        assert what in refused(*words) and (tmp_path / "ckpt.pt").read_bytes() == before
    else:
        inside(*words)
        assert steps(tmp_path / "ckpt.pt") == 5
