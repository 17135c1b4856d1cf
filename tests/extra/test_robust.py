"""Nothing a student types, and nothing a machine does, loses work or runs foreign code: one clean line instead."""
import errno
import io
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from test_train import Knobs, losses

import data.text
import sample as S
import train as T
from train import UserError, load_checkpoint, models, settings


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They are drawn when everything is saved, and take most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(T, "draw", lambda *args: None)
        yield


@pytest.fixture
def refused(inside, monkeypatch, capsys):
    """Run train.py's main(), which must end in one line and status 2, and return the line."""
    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            T.guard(lambda: inside(*args))
        line = capsys.readouterr().err
        assert e.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
        assert re.search("[;:?] |should", line), f"says what, but not what to do: {line}"
        return line
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """A checkpoint of 4 steps of momentum."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", *TINY, f"dataset={text_file}", "max_iters=4", f"out={folder}"])
        T.main()
    torch.set_flush_denormal(False)
    return folder / "ckpt.pt"


def written(folder):
    """Everything in a folder that is not a data set or a lock."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "data" not in p.parts and p.name != ".lock"}


# Settings.

@pytest.mark.parametrize("words, part", [
    ("model=momentun", "did you mean momentum?"),
    ("model=../momentum", "no model"),
    ("model=train", "no model"),
    ("preset=small", "there are seed"),
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
])
def test_wrong_settings(refused, text_file, tmp_path, words, part):
    (tmp_path / "file").write_text("mine")
    words = {w.split("=")[0]: w for w in [*TINY, f"dataset={text_file}", "max_iters=1", *words.split()]}
    assert part in refused(*words.values())
    assert written(tmp_path) == {tmp_path / "file": b"mine"}


def test_odd_words_that_are_fine(inside, text_file, tmp_path, capsys):
    """An empty out= is the default; more evaluation and larger batches than there is text; no time for a step."""
    inside(*TINY[:-1], f"dataset={text_file}", "out=", "max_iters=2", "eval_iters=1000000000", "lr= 1e-3 ", "warmup=0")
    large = [w.replace("batch_size=4", "batch_size=9999") for w in TINY]
    inside(*large, f"dataset={text_file}", "max_iters=1", "out=a b/ü")
    inside(*TINY, f"dataset={text_file}", "minutes=1e-9", "out=c", "dtype=bfloat16", "clip=layer")
    assert {p.parent for p in written(tmp_path)} == {tmp_path / out for out in ("out/momentum", "a b/ü", "c")}
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=d", "resume=true")
    assert "no checkpoint in d yet" in capsys.readouterr().err
    T.draw_loss(load_checkpoint("c/ckpt.pt")["rows"], "nothing to draw", "loss.png")


def test_help(inside, capsys):
    for words in (["help"], ["-h"], ["--help"], ["model=hydra", "help"]):
        with pytest.raises(SystemExit) as e:
            inside(*words)
        shown = capsys.readouterr().out
        assert e.value.code == 0 and "batch_size=16" in shown and ("n_field" in shown) == ("model=hydra" in words)


def test_what_a_user_can_mend_and_what_is_a_bug(capsys):
    from torch._inductor.exc import InvalidCxxCompiler
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    for e, part in ((MemoryError(), "out of memory"), (full, "out of memory"),
                    (torch.OutOfMemoryError("CUDA"), "out of memory"), (InvalidCxxCompiler(), "leave out compile=true"),
                    (UserError("two\nlines"), "two lines"), (torch.distributed.DistBackendError("NCCL\nx"), "NCCL")):
        def main():
            raise e
        with pytest.raises(SystemExit) as left:
            T.guard(main)
        line = capsys.readouterr().err
        assert left.value.code == 2 and part in line and line.startswith("error: ") and line.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        T.guard(lambda: 1 / 0)
    with pytest.raises(SystemExit) as left:
        T.guard(lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
    assert left.value.code == 130


def test_a_terminal_that_is_not_utf8(inside, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("naïve 漢字 🎭 " * 99, encoding="utf-8")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    T.guard(lambda: inside(*TINY, "dataset=text", "max_iters=2"))
    assert b"2 iterations in" in shown.getvalue() and b"?" in shown.getvalue()


def test_models_are_files(tmp_path, monkeypatch):
    monkeypatch.setattr(T, "ROOT", tmp_path)
    (tmp_path / "mine.py").write_bytes(b"# caf\xe9\nclass Model:\n    pass\n")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / ".#mine.py").symlink_to("me@here.1234:5")
    assert models() == ["mine"]


# Data.



@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("word", "block_size=0 n_embd=0 n_layer=-3 n_embd=1e6 dropout=2 block_size=1e12".split())
def test_impossible_sizes_of_every_model(refused, text_file, name, word):
    words = {w.split("=")[0]: w for w in [*TINY, f"model={name}", f"dataset={text_file}", "max_iters=1", word]}
    refused(*words.values())


# Data.


@pytest.mark.parametrize("content, part", [
    (b"", "empty"), (b"\0\1\2", "binary"), (b"caf\xe9 " * 99, "UTF-8"), (b"short", "short")])
def test_texts_that_are_none(refused, tmp_path, content, part):
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
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=again")          # a cached text is simply cut again
    folder = file.parent
    file.write_bytes(b"\xff\xff" + file.read_bytes()[2:])
    assert "train.bin has been changed" in refused(*TINY, f"dataset={folder}", "max_iters=1", "out=third")


# Checkpoints.

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_checkpoints_that_are_none(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = trained.read_bytes()
    assert load_checkpoint(trained)["step"] == 4
    bad = {f"cut{i}": good[:len(good) * i // 10] for i in range(10)}
    bad |= {"noise": random.Random(0).randbytes(5000), "text": b"hello", "zip": b"PK\3\4" + bytes(99)}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    ckpt = torch.load(trained, weights_only=True)
    poisoned = {k: v.clone() for k, v in ckpt["model"].items()}
    poisoned["wte.weight"][0, 0] = float("nan")
    old = {k: v for k, v in ckpt.items() if k != "rows"}
    moments = torch.load(trained, weights_only=True)["optimizers"]
    moments[0]["state"][0]["momentum"][0, 0] = float("inf")
    for name, content in {"foreign": {"model": {}}, "list": [1, 2], "bomb": Bomb(), "hidden": ckpt | {"meta": Bomb()},
                          "nan": ckpt | {"model": poisoned}, "inf": ckpt | {"optimizers": moments}, "old": old,
                          "columns": ckpt | {"rows": [[0, 1.0]]}, "scalar": torch.ones(3),
                          "meta": ckpt | {"model": {"x": torch.ones(2, device="meta")}},
                          "sparse": ckpt | {"model": {"x": torch.eye(2).to_sparse()}},
                          "samples": ckpt | {"samples": [7]}}.items():
        torch.save(content, tmp_path / name)
        bad[name] = None
    os.mkfifo(tmp_path / "pipe")
    for name in [*bad, "missing", ".", "pipe"]:
        with pytest.raises(UserError) as e:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(e.value) and ";" in str(e.value), name
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "bomb.pkl")
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "bomb", weights_only=False)   # and it is a bomb indeed
    assert (tmp_path / "exploded").exists()


def test_a_checkpoint_that_may_not_be_read(trained, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match="Permission denied"):
        load_checkpoint(trained)


@pytest.mark.parametrize("change", [
    dict(config={"n_embd": 16, "colour": 1}), dict(config={"vocab_size": 3, "n_embd": 16}),
    dict(name="hydra"), dict(name="nothing"), dict(meta={}), dict(meta={"tokenizer": {"kind": 7}}),
    dict(meta={"tokenizer": {"kind": "char", "chars": "ab"}})])
def test_checkpoints_that_do_not_fit(trained, change):
    with pytest.raises(UserError) as e:
        T.build(load_checkpoint(trained) | change, trained)
    assert "\n" not in str(e.value)


def test_resume_with_another_shape_or_text(inside, refused, text_file, tmp_path):
    inside(*TINY, f"dataset={text_file}", "max_iters=4")
    before = (tmp_path / "out/momentum/ckpt.pt").read_bytes()
    (tmp_path / "other.txt").write_text("abc " * 500)
    assert "shape or vocabulary" in refused("resume=true", "n_embd=32")
    assert "shape or vocabulary" in refused("resume=true", "dataset=other.txt")
    assert "shape or vocabulary" in refused("resume=true", "preset=seed")
    assert "shape or vocabulary" in refused("resume=true", "model=hydra", "out=out/momentum")
    assert "does not fit" in refused("resume=true", "optimizer=adamw", "max_iters=5")
    assert "resume=true goes on" in refused(*TINY, f"dataset={text_file}")
    assert (tmp_path / "out/momentum/ckpt.pt").read_bytes() == before
    inside("resume=true")                               # a finished run: scored again, nothing appended
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 4
    inside("resume=true", "lr=1e-4", "max_iters=6", "batch_size=2")
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 6
    inside(*TINY, f"dataset={text_file}", "max_iters=2", "overwrite=true")
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 2


@pytest.mark.parametrize("part, change, what", [
    ("train", {"colour": 1}, ""), ("train", {"lr": "fast"}, "lr=fast should be a number"),
    ("train", {"batch_size": None}, "should be a whole number"), ("train", {"optimizer": 3}, "one of muon, adamw"),
    ("config", {"n_layer": 1.5}, "whole"), ("config", {"colour": 1}, "shape or vocabulary"),
    ("config", {"n_head": 5}, "does not divide"), ("optimizers", [], "does not fit"), ("model", {}, "does not fit"),
    ("optimizers", [{}, {}], "does not fit"), ("name", "hydra", "shape or vocabulary"),
    ("meta", {"tokenizer": None}, "shape or vocabulary")])
def test_resume_of_an_odd_checkpoint(inside, refused, trained, tmp_path, part, change, what):
    ckpt = torch.load(trained, weights_only=True)
    ckpt[part] = ckpt[part] | change if part in ("train", "config") else change
    torch.save(ckpt, tmp_path / "ckpt.pt")
    before = (tmp_path / "ckpt.pt").read_bytes()
    words = ["resume=true", f"out={tmp_path}", "max_iters=5"]
    if what:
        assert what in refused(*words) and (tmp_path / "ckpt.pt").read_bytes() == before
    else:
        inside(*words)
        assert load_checkpoint(tmp_path / "ckpt.pt")["step"] == 5


# Runs.

def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(refused, text_file, tmp_path):
    wild = "max_iters=60 optimizer=adamw lr=1e18 warmup=1 clip=off eval_interval=1".split()
    line = refused(*TINY, f"dataset={text_file}", *wild)
    assert "iteration" in line and "last good checkpoint is kept" in line
    ckpt = load_checkpoint(tmp_path / "out/momentum/ckpt.pt")
    assert all(torch.isfinite(p).all() for p in ckpt["model"].values())
    assert ckpt["step"] == int(re.search(r"iteration (\d+)", line)[1]) - 1                  # the line names the step


def test_a_full_disk_loses_nothing(inside, refused, text_file, tmp_path, monkeypatch):
    inside(*TINY, f"dataset={text_file}", "max_iters=4")
    out = tmp_path / "out/momentum"
    before, real = written(out), os.fsync
    for room in range(1, 6):                            # best.pt, log.csv, sample.txt, ckpt.pt ...
        left = [room]
        for path, content in before.items():
            path.write_bytes(content)

        def full(fd):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(fd)
        monkeypatch.setattr(data.text.os, "fsync", full)
        assert "No space left" in refused("resume=true", "max_iters=8", "eval_interval=2")
        assert sorted(written(out)) == sorted(before), "no temporary file stays"
        assert load_checkpoint(out / "ckpt.pt")["step"] in (4, 6) and load_checkpoint(out / "best.pt")


def test_one_run_in_a_folder(refused, inside, text_file, tmp_path):
    with data.text.lock(tmp_path / "a"):
        assert "another process is training" in refused(*TINY, f"dataset={text_file}", "max_iters=1", "out=a")
        assert "another process is training" in refused("resume=true", "out=a")
    (tmp_path / "a/.tmp-0123-ckpt.pt").write_text("what a kill has left half-written")
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=a")
    assert sorted(p.name for p in written(tmp_path / "a")) == ["best.pt", "ckpt.pt", "log.csv", "sample.txt"]


def after(calls, real, what):
    """The function `real`, which does `what` first from so many calls on."""
    left = [calls]

    def function(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            what()
        return real(*args, **options)
    return function


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_saves_and_resume_is_unbroken(number, inside, text_file, tmp_path, monkeypatch, capsys):
    args = [*TINY, f"dataset={text_file}", "max_iters=9", "dropout=0.1"]
    inside(*args, "out=whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(T, "clip_gradients", after(4, T.clip_gradients, lambda: os.kill(os.getpid(), number)))
        inside(*args, "out=broken")
    assert "stopped and saved after iteration 5; add resume=true to go on" in capsys.readouterr().out
    assert load_checkpoint("broken/ckpt.pt")["step"] == 5 and signal.getsignal(number) is before
    inside(*args, "out=broken", "resume=true")
    assert losses("broken/log.csv") == losses("whole/log.csv")


def test_nohup_goes_on(inside, text_file, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(T, "clip_gradients", after(2, T.clip_gradients, lambda: os.kill(os.getpid(), signal.SIGHUP)))
            inside(*TINY, f"dataset={text_file}", "max_iters=4")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert load_checkpoint("out/momentum/ckpt.pt")["step"] == 4


def test_interrupt_before_the_first_step(inside, text_file, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(T, "evaluate", after(0, T.evaluate, lambda: os.kill(os.getpid(), signal.SIGINT)))
        inside(*TINY, f"dataset={text_file}", "max_iters=9")
    assert "after iteration 0" in capsys.readouterr().out and load_checkpoint("out/momentum/ckpt.pt")["step"] == 0


def test_interrupt_of_the_last_score_loses_no_step(inside, text_file, tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt
    args = [*TINY, f"dataset={text_file}", "max_iters=9", "eval_interval=99"]
    with monkeypatch.context() as patch:
        patch.setattr(T, "evaluate", after(1, T.evaluate, stop))
        with pytest.raises(KeyboardInterrupt):
            inside(*args)
    assert load_checkpoint("out/momentum/ckpt.pt")["step"] == 9
    inside("resume=true")
    assert float((tmp_path / "out/momentum/log.csv").read_text().splitlines()[-1].split(",")[3]) > 0


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_output_that_nobody_takes_saves(number, inside, text_file, monkeypatch):
    """A pipe that is closed, a log on a full disk, a terminal that went away."""
    class Closed(io.StringIO):
        def write(self, text):
            if "iteration 2" in self.getvalue():
                raise OSError(number, "no more")
            return super().write(text)
    monkeypatch.setattr(sys, "stdout", Closed())
    inside(*TINY, f"dataset={text_file}", "max_iters=100000", "eval_interval=1")
    assert 2 <= load_checkpoint("out/momentum/ckpt.pt")["step"] < 9


def test_thirty_kills(text_file, tmp_path):
    """One run, killed 30 times and resumed each time, has the losses of a run that was left alone: killed in the first
    step, in a save when the new file is written but not in place, in the very first save, and at random moments."""
    script = tmp_path / "kills.py"
    script.write_text(f"""
import os, random, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
import torch._dynamo                                    # the optimizers import it in every child otherwise: seconds
torch.set_num_threads(1)
import train
train.draw = lambda *args: None                         # pictures come after the last save
base = {[*TINY, f"dataset={text_file}", "max_iters=600", "eval_interval=20", "dropout=0.1"]!r}
def die_at(owner, name, left):
    real = getattr(owner, name)
    def function(*args):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    setattr(owner, name, function)
def child(*words, dies=None):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["train.py", *base, *words]
        code = 1
        try:
            if dies:
                die_at(*dies)
            train.main()
            code = 0
        finally:
            os._exit(code)
    return pid
assert os.waitpid(child("out=whole"), 0)[1] == 0
resume, rng, seen = ("out=broken", "resume=true"), random.Random(1), []
moments = [(os, "replace", 0), (os, "replace", 3), (train, "clip_gradients", 0), (torch.Tensor, "backward", 0)]
moments += [(os, "replace", n) for n in (0, 4, 5, 7, 9, 12)] + [(train, "clip_gradients", n) for n in (21, 3)]
moments += [None] * (30 - len(moments))
for dies in moments:
    pid = child(*resume, dies=dies)
    if not dies:
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL, dies
    seen.append(os.path.exists("broken/ckpt.pt") and train.load_checkpoint("broken/ckpt.pt")["step"])
assert not seen[1] and seen[2] == seen[3] == 0 and sorted(seen) == seen, seen
assert os.waitpid(child(*resume), 0)[1] == 0
print(len(seen))
""")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout.split()[-1] == "30", done.stderr
    assert losses(tmp_path / "broken/log.csv") == losses(tmp_path / "whole/log.csv")
    assert not list((tmp_path / "broken").glob(".tmp-*")), "what the kills left is cleared away"


# sample.py.

@pytest.mark.parametrize("words, part", [
    ("prompt=A~Z", "no 'Z' '~'"), ("prompt=", "prompt is empty"), ("temperature=-1", "between 0 and 100"),
    ("temperature=nan", "finite"), ("top_p=0", "above 0"), ("tokens=-1", "0 or more"), ("top_k=1.5", "whole"),
    ("ckpt=nowhere", "train first"), ("ckpt=.", "is a folder"), ("device=gpu", "device=cpu always works"),
    ("prompt=A\udcff", "Unicode"), ("promt=A", "did you mean prompt?"), ("tokens", "key=value")])
def test_sample_says_what_is_wrong(trained, words, part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample.py", *([] if "ckpt" in words else [f"ckpt={trained}"]), words])
    with pytest.raises(SystemExit) as e:
        T.guard(S.main)
    shown = capsys.readouterr()
    assert e.value.code == 2 and part in shown.err and shown.err.count("\n") == 1 and not shown.out


@pytest.mark.parametrize("words", [
    "temperature=0", "temperature=1e-300", "top_k=999999", "top_k=0 top_p=1e-30", "tokens=0", "temperature=100"])
def test_sample_takes_extremes(trained, text_file, words, monkeypatch, capsys):
    prompt = text_file.read_text()[:100]                # six times the block
    words = {w.split("=")[0]: w for w in [f"ckpt={trained}", f"prompt={prompt}", "tokens=20", *words.split()]}
    monkeypatch.setattr(sys, "argv", ["sample.py", *words.values()])
    T.guard(S.main)
    torch.set_flush_denormal(False)
    shown = capsys.readouterr()
    assert shown.out.startswith(prompt) and len(shown.out) == 100 + int(words["tokens"][7:])
    assert "tokens/s; the state holds" in shown.err and "-- -" not in shown.err


def test_sample_into_a_closed_pipe_and_an_ascii_terminal(trained):
    command = [sys.executable, str(ROOT / "sample.py"), f"ckpt={trained}", "tokens=3000", "prompt=A"]
    done = subprocess.run(["bash", "-c", 'set -o pipefail; "$@" | head -c 5', "bash", *command], capture_output=True,
                          timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and len(done.stdout) == 5 and done.stderr == b"", done.stderr


# Several processes.

def test_a_process_that_dies_ends_the_job(text_file, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    job = subprocess.Popen([*command, *TINY, f"dataset={text_file}", "max_iters=100000"], cwd=tmp_path, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for line in job.stdout:
        if line.startswith("iteration"):
            break
    ranks = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    time.sleep(1)
    os.kill(int(ranks[-1]), signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0 and ("SIGKILL" in err or "Signal 9" in err), err
    assert "error: lost a process of the run" in err and "go on with resume=true" in err, err
    load_checkpoint(tmp_path / "out/momentum/ckpt.pt")


# Whatever comes.

@effort(max_examples=3000, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=12), st.builds("{}={}".format, st.sampled_from(
    ["n_embd", "lr", "flag", "kind", "name", "--lr", "n_emb"]), st.text(max_size=8))), max_size=4))
def test_any_words_as_settings(words):
    try:
        knobs = settings([w for w in words if w not in ("help", "-h", "--help")], Knobs)
    except UserError as e:
        assert str(e)
    else:
        assert isinstance(knobs.n_embd, int) and isinstance(knobs.lr, float) and knobs.kind in "ab"


@effort(max_examples=1500, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8), cut=st.floats(0.5, 1))
def test_any_bytes_as_checkpoint(trained, changes, cut):
    content = np.frombuffer(trained.read_bytes(), np.uint8).copy()
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = trained.parent / "fuzzed.pt"
    path.write_bytes(content.tobytes()[:int(cut * len(content)) + 1])
    try:
        T.build(load_checkpoint(path), path)
    except UserError as e:
        assert str(e)
