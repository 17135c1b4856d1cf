"""Nothing that a student types ends in a traceback: one line that says what is wrong and what to do."""
import os
import runpy
import signal
import sys
import time

import pytest
import torch
from helpers import TINY, Knobs, steps, written
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

import common.checkpoint
from common.checkpoint import ROOT, load_checkpoint, models
from common.pictures import draw_loss
from common.settings import UserError, guard, settings

pytestmark = pytest.mark.usefixtures("no_pictures")


# Words.

@pytest.mark.parametrize("words, part", [
    ("model=momentun", "did you mean momentum?"),
    ("model=../momentum", "no model"),
    ("model=train", "no model"),
    ("preset=small", "there are original"),
    ("n_head=3", "does not divide into n_head=3"),
    ("n_layer=0", "1 or more"),
    ("block_size=-1", "1 or more"),
    ("dropout=nan", "finite"),
    ("lr=fast", "should be a number"),
    ("lr=-1", "0 or more"),
    ("minutes=-1", "0 or more"),
    ("optimizer=sgd", "muon, adamw"),
    ("max_iters=3 minutes=1", "contradict"),
    ("device=gpu", "device=cpu always works"),
    ("device=cuda:99", "device=cpu always works"),
    ("n_embd=1e6", "GiB"),
    ("block_size=1e9", "GiB"),
    ("n_layer=1e12", "GiB"),
    ("batch_size=1e9", "GiB"),
    ("block_size=5000", "too short"),
    ("dataset=/nowhere/at/all.txt", "no data set or text file"),
    ("dataset=play", "did you mean plays?"),
    ("dataset=.", "folder"),
    ("model=", "no model ''"),
    ("model=Momentum", "did you mean momentum?"),
    ("=5", "no setting ''"),
    ("batch_sise=4", "did you mean batch_size?"),
    ("dataset=", "no data set"),
    ("out=" + "x" * 300, "File name too long"),
    ("out=file/run", "file/run: Not a directory; give another with out="),
    ("out=file", "file: File exists; give another with out="),
    ("resume=true overwrite=true", "contradict"),
    ("vocab_size=7", "leave it out"),
    ("vocab_size=1e17", "leave it out"),
    ("device=meta", "device=cpu always works"),
    ("device=hpu", "device=cpu always works"),
    ("device=", "device=cpu always works"),
    ("lr=inf", "finite"),
    ("lr=-inf", "finite"),
    ("seed=-1", "0 or more"),
    ("eval_iters=0", "1 or more"),
    ("weight_decay=-1", "0 or more"),
    ("dropout=1", "below 1"),
    ("compile=yes", "true or false"),
    ("dtype=float16", "bfloat16"),
    ("grad_accum=1e12", "GiB"),
    ("n_embd=1e18", "GiB"),
    ("model=fluidlm n_steps=1e9", "GiB"),
    ("model=fluidlm d_state=1e9", "GiB"),
    ("model=fluidlm local_window=1e12", "GiB"),
    ("model=hydra zeus=true n_field=1e9", "GiB"),
    ("model=hydra sinkhorn_iters=1e9", "GiB"),
    ("model=wavefield stride=1e9", "GiB"),
    ("init=nowhere.pt", "no checkpoint nowhere.pt"),
])
def test_wrong_settings(refused, text_file, tmp_path, words, part):
    (tmp_path / "file").write_text("mine")
    words = {w.split("=")[0]: w for w in [*TINY, f"dataset={text_file}", "max_iters=1", *words.split()]}
    assert part in refused(*words.values())
    assert written(tmp_path) == {tmp_path / "file": b"mine"}


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("word", [
    "block_size=0", "n_embd=0", "n_layer=-3", "n_embd=1e6", "dropout=2", "block_size=1e12"])
def test_impossible_sizes_of_every_model(refused, text_file, name, word):
    words = [*TINY, f"model={name}", f"dataset={text_file}", "max_iters=1", word]
    refused(*{w.split("=")[0]: w for w in words}.values())


def test_odd_words_that_are_fine(inside, text_file, tmp_path, capsys):
    """An empty out= is the default; more evaluation, larger batches than there is text; time for one step."""
    odd = ["out=", "eval_iters=1000000000", "lr= 1e-3 ", "warmup=0"]
    inside(*TINY[:-1], f"dataset={text_file}", "max_iters=2", *odd)
    large = [w.replace("batch_size=4", "batch_size=9999") for w in TINY]
    inside(*large, f"dataset={text_file}", "max_iters=1", "out=a b/ü")
    inside(*TINY, f"dataset={text_file}", "minutes=1e-9", "out=c", "dtype=bfloat16", "clip=layer")
    folders = {str(p.parent.relative_to(tmp_path)) for p in written(tmp_path)}
    assert folders == {"out/momentum", "a b/ü", "c"} and steps("c/ckpt.pt") == 1
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=d", "resume=true")
    assert "no checkpoint in d yet" in capsys.readouterr().err
    draw_loss(load_checkpoint("c/ckpt.pt")["progress"]["rows"], 1.5, "nothing to draw", "loss.png")


def test_help(inside, capsys):
    for words in (["help"], ["-h"], ["--help"], ["model=hydra", "help"]):
        with pytest.raises(SystemExit) as e:
            inside(*words)
        shown = capsys.readouterr().out
        assert e.value.code == 0 and "batch_size=16" in shown
        assert ("n_field" in shown) == ("model=hydra" in words)


@pytest.mark.parametrize("name", models())
def test_a_model_file_by_itself_has_no_settings(name, monkeypatch, capsys):
    for word, status in (("help", 0), ("--help", 0), ("n_embd=4", 2)):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", word])
        with pytest.raises(SystemExit) as e:
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        assert e.value.code == status and f"python train.py model={name}`" in capsys.readouterr().out


def test_models_are_files(tmp_path, monkeypatch):
    monkeypatch.setattr(common.checkpoint, "ROOT", tmp_path)
    (tmp_path / "mine.py").write_bytes(b"# caf\xe9\nclass Model:\n    pass\n")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / ".#mine.py").symlink_to("me@here.1234:5")
    assert models() == ["mine"]


@effort(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=12), st.builds("{}={}".format, st.sampled_from(
    ["n_embd", "lr", "flag", "kind", "name", "--lr", "n_emb"]), st.text(max_size=8))), max_size=4))
def test_any_words_as_settings(words):
    try:
        knobs = settings([w for w in words if w not in ("help", "-h", "--help")], Knobs)
    except UserError as e:
        assert str(e)
    else:
        assert isinstance(knobs.n_embd, int) and isinstance(knobs.lr, float) and knobs.kind in "ab"


# What dataset= names.

@pytest.mark.parametrize("content, part", [
    (b"", "empty"), (b"\0\1\2", "binary"), (b"caf\xe9 " * 99, "UTF-8"), (b"short", "short")])
def test_files_that_are_not_text(refused, tmp_path, content, part):
    (tmp_path / "text").write_bytes(content)
    assert part in refused(*TINY, "dataset=text", "max_iters=1")


def test_folders_of_other_programs(refused, tmp_path):
    for name, content in (("other", '{"version": 3}'), ("broken", "{"), ("evil", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prepare.py").write_text("import os; os.mkdir('exploded')")
        if content:
            (tmp_path / name / "meta.json").write_text(content)
        assert name in refused(*TINY, f"dataset={name}", "max_iters=1")
    assert not (tmp_path / "exploded").exists()


def test_tampered_tokens_are_named(inside, refused, text_file, tmp_path):
    inside(*TINY, f"dataset={text_file}", "max_iters=1")
    file = next((tmp_path / "out/data").glob("*/train.bin"))
    file.write_bytes(file.read_bytes()[:-2])
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=again")      # a cached text is simply cut again
    folder = file.parent
    file.write_bytes(b"\xff\xff" + file.read_bytes()[2:])
    assert "train.bin has been changed" in refused(*TINY, f"dataset={folder}", "max_iters=1", "out=third")


# Errors.

def test_what_a_user_can_mend_and_what_is_a_bug(capsys):
    from torch._inductor.exc import InvalidCxxCompiler
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    for e, part in ((MemoryError(), "out of memory"), (full, "out of memory"),
                    (torch.OutOfMemoryError("CUDA"), "out of memory"),
                    (InvalidCxxCompiler(), "leave out compile=true"), (UserError("two\nlines"), "two lines"),
                    (torch.distributed.DistBackendError("NCCL\nx"), "NCCL")):
        def main():
            raise e
        with pytest.raises(SystemExit) as left:
            guard(main)
        line = capsys.readouterr().err
        assert left.value.code == 2 and part in line and line.startswith("error: ") and line.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        guard(lambda: 1 / 0)
    with pytest.raises(SystemExit) as left:
        guard(lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
    assert left.value.code == 130
