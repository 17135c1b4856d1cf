"""Nothing a student types, and nothing a machine does, loses work or runs foreign code: one clean line instead."""
import errno
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from test_train import Knobs, losses

import data.text
import train as T
from train import UserError, load_checkpoint, models, settings


@pytest.fixture
def refused(inside):
    """Run train.py's main() and return the one line it ends with."""
    def run(*args):
        with pytest.raises(UserError) as e:
            inside(*args)
        assert str(e.value) and "\n" not in str(e.value)
        return str(e.value)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """A checkpoint of 4 steps of momentum, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, ROOT / "train.py", *TINY, f"dataset={text_file}", "max_iters=4", f"out={folder}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder / "ckpt.pt"


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
])
def test_wrong_settings(refused, text_file, tmp_path, words, part):
    words = {w.split("=")[0]: w for w in [*TINY, f"dataset={text_file}", "max_iters=1", *words.split()]}
    assert part in refused(*words.values())
    assert not (tmp_path / "out/momentum/ckpt.pt").exists()


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("word", "block_size=0 n_embd=0 n_layer=-3 n_embd=1e6 dropout=2 block_size=1e12".split())
def test_impossible_sizes_of_every_model(refused, text_file, name, word):
    words = {w.split("=")[0]: w for w in [*TINY, f"model={name}", f"dataset={text_file}", "max_iters=1", word]}
    refused(*words.values())


@pytest.mark.parametrize("content, part", [
    (b"", "empty"), (b"\0\1\2", "binary"), (b"caf\xe9 " * 99, "UTF-8"), (b"short", "short")])
def test_texts_that_are_none(refused, tmp_path, content, part):
    (tmp_path / "text").write_bytes(content)
    assert part in refused(*TINY, "dataset=text", "max_iters=1")


def test_tampered_tokens_are_named(inside, refused, text_file, tmp_path):
    inside(*TINY, f"dataset={text_file}", "max_iters=1")
    file = next((tmp_path / "out/data").glob("*/train.bin"))
    file.write_bytes(file.read_bytes()[:-2])
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=again")          # a cached text is simply cut again
    folder = file.parent
    file.write_bytes(b"\xff\xff" + file.read_bytes()[2:])
    assert "train.bin has been changed" in refused(*TINY, f"dataset={folder}", "max_iters=1", "out=third")


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
    for name, content in {"foreign": {"model": {}}, "list": [1, 2], "bomb": Bomb(), "hidden": ckpt | {"meta": Bomb()},
                          "nan": ckpt | {"model": poisoned}, "old": old}.items():
        torch.save(content, tmp_path / name)
        bad[name] = None
    for name in [*bad, "missing", "."]:
        with pytest.raises(UserError) as e:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(e.value), name
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("change", [
    dict(config={"n_embd": 16, "colour": 1}), dict(config={"vocab_size": 3, "n_embd": 16}),
    dict(name="hydra"), dict(name="nothing"), dict(meta={}), dict(meta={"tokenizer": {"kind": 7}})])
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
    assert "resume=true goes on" in refused(*TINY, f"dataset={text_file}")
    assert (tmp_path / "out/momentum/ckpt.pt").read_bytes() == before
    inside("resume=true")                               # a finished run: scored again, nothing appended
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 4
    inside(*TINY, f"dataset={text_file}", "max_iters=2", "overwrite=true")
    assert len(losses(tmp_path / "out/momentum/log.csv")) == 2


def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(refused, text_file, tmp_path):
    wild = "max_iters=60 optimizer=adamw lr=1e18 warmup=1 clip=off eval_interval=1".split()
    line = refused(*TINY, f"dataset={text_file}", *wild)
    assert "iteration" in line and "last good checkpoint is kept" in line
    ckpt = load_checkpoint(tmp_path / "out/momentum/ckpt.pt")
    assert all(torch.isfinite(p).all() for p in ckpt["model"].values())


def test_a_full_disk_loses_nothing(inside, refused, text_file, tmp_path, monkeypatch):
    inside(*TINY, f"dataset={text_file}", "max_iters=4")
    out = tmp_path / "out/momentum"
    before, real, count = {p.name: p.read_bytes() for p in out.iterdir()}, os.fsync, 0

    def full(fd):
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)
    monkeypatch.setattr(data.text.os, "fsync", full)
    assert "No space left" in refused("resume=true", "max_iters=8", "eval_interval=2")
    assert load_checkpoint(out / "ckpt.pt")["step"] == 4 and (out / "ckpt.pt").read_bytes() == before["ckpt.pt"]
    assert sorted(p.name for p in out.iterdir()) == sorted(before), "no temporary file stays"


def test_thirty_kills(text_file, tmp_path):
    """One run, killed 30 times at random moments and resumed each time, has the losses of a run that was left alone."""
    script = tmp_path / "kills.py"
    script.write_text(f"""
import os, random, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_num_threads(1)
import train
train.draw = lambda *args: None                         # pictures come after the last save
base = {[*TINY, f"dataset={text_file}", "max_iters=1200", "eval_interval=25", "dropout=0.1"]!r}
def child(*words):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["train.py", *base, *words]
        code = 1
        try:
            train.main()
            code = 0
        finally:
            os._exit(code)
    return pid
assert os.waitpid(child("out=whole"), 0)[1] == 0
kills, rng = 0, random.Random(1)
while True:
    pid = child("out=broken", "resume=true")
    if kills < 30:
        time.sleep(rng.uniform(0.0, 0.4) if kills else 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    elif os.waitpid(pid, 0)[1] == 0:
        break
    else:
        sys.exit("a resumed run failed")
print(kills)
""")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout.split()[-1] == "30", done.stderr
    assert losses(tmp_path / "broken/log.csv") == losses(tmp_path / "whole/log.csv")


@pytest.fixture
def sample(trained):
    def run(*args, shell=None, **env):
        command = [sys.executable, str(ROOT / "sample.py"), f"ckpt={trained}", *args]
        if shell:
            command = ["bash", "-c", 'set -o pipefail; "$@" | ' + shell, "bash", *command]
        return subprocess.run(command, capture_output=True, timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1"} | env)
    return run


def test_sample(sample, text_file):
    for word, part in (("prompt=A~", "'~'"), ("prompt=", "prompt is empty"), ("temperature=-1", "between 0 and 100"),
                       ("top_p=0", "above 0"), ("tokens=-1", "0 or more")):
        done = sample(word)
        assert done.returncode == 2 and done.stderr.count(b"error: ") == 1 and b"Traceback" not in done.stderr
        assert part.encode() in done.stderr, done.stderr
    long = sample("prompt=" + text_file.read_text()[:100], "tokens=20", "temperature=0", "top_k=9999")
    assert long.returncode == 0 and len(long.stdout) >= 120
    closed = sample("tokens=3000", "prompt=A", shell="head -c 5")
    assert closed.returncode == 0 and len(closed.stdout) == 5 and b"Traceback" not in closed.stderr, closed.stderr
    assert sample("prompt=A", "tokens=5", PYTHONIOENCODING="ascii").returncode == 0


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
    assert job.returncode != 0 and "SIGKILL" in err or "Signal 9" in err
    load_checkpoint(tmp_path / "out/momentum/ckpt.pt")


@effort(max_examples=2000, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=12), st.builds("{}={}".format, st.sampled_from(
    ["n_embd", "lr", "flag", "kind", "name", "--lr", "n_emb"]), st.text(max_size=8))), max_size=4))
def test_any_words_as_settings(words):
    try:
        knobs = settings([w for w in words if w not in ("help", "-h", "--help")], Knobs)
    except UserError as e:
        assert str(e)
    else:
        assert isinstance(knobs.n_embd, int) and isinstance(knobs.lr, float) and knobs.kind in "ab"


@effort(max_examples=300, deadline=None)
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
