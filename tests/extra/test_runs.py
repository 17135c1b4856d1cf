"""Nothing that a machine does loses work: kills, interrupts, full disks, closed pipes, a loss that is NaN."""
import errno
import functools
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers import FORK, ONE_THREAD, TINY, after, forked, losses, steps, written

import train
from common.checkpoint import ROOT, load_checkpoint, load_model
from common.files import lock
from common.pictures import draw
from common.settings import guard

if not hasattr(signal, "SIGHUP"):
    pytest.skip("Windows has other signals", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("no_pictures")
forks = pytest.mark.skipif(not FORK, reason="forks a process that has computed")


# Numbers, disks and folders.

def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(refused, text_file, tmp_path):
    wild = "max_iters=60 optimizer=adamw lr=1e18 warmup=1 clip=off eval_interval=1".split()
    line = refused(*TINY, f"dataset={text_file}", *wild)
    assert "iteration" in line and "last good checkpoint is kept" in line
    ckpt = load_checkpoint(tmp_path / "out/momentum/ckpt.pt")
    assert all(torch.isfinite(p).all() for p in ckpt["model"].values())
    named = int(re.search(r"iteration (\d+)", line)[1])
    assert ckpt["progress"]["step"] == named - 1


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
        monkeypatch.setattr(os, "fsync", full)
        assert "No space left" in refused("resume=true", "max_iters=8", "eval_interval=2")
        assert sorted(written(out)) == sorted(before), "no temporary file stays"
        assert steps(out / "ckpt.pt") in (4, 6) and load_checkpoint(out / "best.pt")


def test_a_disk_that_fills_while_drawing(inside, text_file, tmp_path, monkeypatch, capsys):
    """It costs a note: the run ends as usual, and resume=true draws the rest."""
    def full(model, tokens, path):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(train, "draw", draw)
    with monkeypatch.context() as patch:
        patch.setattr(load_model("momentum"), "portrait", full)
        inside(*TINY, f"dataset={text_file}", "max_iters=2")
    said = capsys.readouterr()
    assert "note: no physics.png; resume=true draws again (OSError: [Errno 28] No space left" in said.err
    assert "the validation text as a stream" in said.out
    assert (tmp_path / "out/momentum/loss.png").exists()
    inside("resume=true")
    assert (tmp_path / "out/momentum/physics.png").exists()


def test_one_run_in_a_folder(refused, inside, text_file, tmp_path):
    with lock(tmp_path / "a"):
        assert "another process is training" in refused(*TINY, f"dataset={text_file}", "max_iters=1", "out=a")
        assert "another process is training" in refused("resume=true", "out=a")


def test_only_what_is_ours_is_cleaned_away(inside, text_file, tmp_path):
    """In a folder full of a user's things, half-written files of our own making go, and nothing else."""
    name = ".tmp-0123456789abcdef-"
    (tmp_path / ".tmp-mine").mkdir()
    (tmp_path / f"{name}folder").mkdir()
    theirs = [".tmp-mine/a", f"{name}folder/b", ".tmp-notes", ".tmp-0123-ckpt.pt", f"x{name}ckpt.pt", "target", ".lock"]
    for path in theirs:
        (tmp_path / path).write_text("mine")
    (tmp_path / f"{name}link").symlink_to("target")
    (tmp_path / f"{name}ckpt.pt").write_text("what a kill has left half-written")
    (tmp_path / "run").mkdir()
    (tmp_path / f"run/{name}log.csv").write_text("of another run")
    inside(*TINY, f"dataset={text_file}", "max_iters=1", "out=.")
    assert all((tmp_path / path).read_text() == "mine" for path in [*theirs, f"{name}link"])
    assert (tmp_path / f"run/{name}log.csv").exists() and not (tmp_path / f"{name}ckpt.pt").exists()


def test_a_lock_that_is_a_link_or_a_folder(refused, text_file, tmp_path):
    """Nothing is opened through a link, whose file is somebody's."""
    (tmp_path / "thesis").write_text("ten years of work")
    for out, make in (("a", lambda path: path.symlink_to("../thesis")), ("b", lambda path: path.symlink_to("../new")),
                      ("c", lambda path: path.mkdir())):
        (tmp_path / out).mkdir()
        make(tmp_path / out / ".lock")
        assert "cannot write into the folder" in refused(*TINY, f"dataset={text_file}", "max_iters=1", f"out={out}")
    assert (tmp_path / "thesis").read_text() == "ten years of work" and not (tmp_path / "new").exists()


# Pictures.

def test_a_text_whose_name_is_no_formula(inside, text_file, tmp_path, monkeypatch, capsys):
    """And a matplotlib that is told to use TeX, which is not there: pictures come as usual."""
    import matplotlib
    monkeypatch.setattr(train, "draw", draw)
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "figure.dpi", 7)
    (tmp_path / r"a$\frac{$.txt").write_text(text_file.read_text())
    inside(*TINY, r"dataset=a$\frac{$.txt", "max_iters=1", r"out=b$^$")
    assert "note: " not in capsys.readouterr().err
    assert (tmp_path / "b$^$/loss.png").exists() and (tmp_path / "b$^$/physics.png").exists()
    assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["figure.dpi"] == 7, "a user's own stay"


def test_a_matplotlib_that_is_set_up_wrongly(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: true\nbackend: nonsense\nfont.size: many\n")
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from common.pictures import draw, draw_loss
rows = [[0, 0.0, "", 3.0, 4.0, 0.0, 0.0], [1, 0.1, 3.0, 2.9, 4.0, 0.1, 9.0]]
drawn = draw(".", {{"loss.png": lambda path: draw_loss(rows, 1.0, "two $ and _{{ $", path)}})
assert list(drawn) == ["loss.png"] and os.environ["MPLBACKEND"] == "nonsense"
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=ONE_THREAD | {"MPLBACKEND": "nonsense"},
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# Streams.

def test_streams_that_are_closed_or_full(tmp_path):
    """Status 2 and one line where the output is lost, 0 where nobody wanted it, and never a traceback."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from common.settings import UserError, guard\n"
    says = "guard(lambda: print('x' * 9))"
    errs = "def main(): raise UserError('wrong; mend it')\nguard(main)"
    for code, redirect, status in [
            (says, ">&-", 0), (says, "2>&-", 0), (says, "<&- >&- 2>&-", 0), (says, ">/dev/full", 2),
            (errs, ">&-", 2), (errs, "2>&-", 2), (errs, "2>/dev/full", 2), (errs, ">/dev/full 2>/dev/full", 2)]:
        done = subprocess.run(["bash", "-c", f'"$@" {redirect}', "bash", sys.executable, "-c", script + code],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == status, (code, redirect, done)
        lines = done.stderr.splitlines()
        assert len(lines) == (status == 2 and "2>" not in redirect), (code, redirect, done.stderr)
        assert all(line.startswith("error: ") for line in lines)


def test_output_is_utf8_unless_a_terminal_says_otherwise(monkeypatch):
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    for terminal, want in ((False, "漢"), (True, "?")):
        shown = io.BytesIO()
        stream = io.TextIOWrapper(shown, "cp1252")
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            guard(lambda: print("漢", end=""))
        assert shown.getvalue() == want.encode()


def test_a_terminal_that_is_not_utf8(inside, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("naïve 漢字 🎭 " * 99, encoding="utf-8")
    shown = io.BytesIO()
    stream = io.TextIOWrapper(shown, "ascii")
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stream)
    guard(lambda: inside(*TINY, "dataset=text", "max_iters=2"))
    assert b"2 iterations in" in shown.getvalue() and b"?" in shown.getvalue()


def test_control_characters_do_not_reach_the_terminal(inside, tmp_path, capsys):
    (tmp_path / "t\x1b]0;x\x07.txt").write_text("\x1b[2J\x9b\u202e\ta\n" * 300)
    inside(*TINY, "dataset=t\x1b]0;x\x07.txt", "max_iters=1")
    shown = capsys.readouterr()
    assert r"\x1b" in shown.out and r"t\x1b]0;x\x07.txt" in shown.out and r"\u202e" in shown.out
    assert not set("\x07\x9b\u202e") & set(shown.out + shown.err)
    assert re.sub("\x1b\\[K\r", "", shown.out).count("\x1b") == 0


# Where and how it is started.

def test_training_from_a_thread(inside, text_file):
    """Where Python catches no signals: a run goes through all the same."""
    failed = []

    def work():
        try:
            inside(*TINY, f"dataset={text_file}", "max_iters=2")
        except BaseException as e:
            failed.append(e)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and steps("out/momentum/ckpt.pt") == 2


def test_variables_that_a_cluster_has_left(inside, text_file, monkeypatch, capsys):
    for name, value in dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="3", MASTER_ADDR="nowhere", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    inside(*TINY, f"dataset={text_file}", "max_iters=1")
    assert "note: WORLD_SIZE is set, but torchrun did not start this" in capsys.readouterr().err
    assert steps("out/momentum/ckpt.pt") == 1


@pytest.mark.parametrize("script", ["train.py", "sample.py", "data/plays/prepare.py"])
def test_what_is_not_installed_and_ctrl_c_meanwhile(script, tmp_path):
    for numpy, status, what in [
            ("raise ModuleNotFoundError('No module named numpy')", 2, "No module named numpy); pip install -r requ"),
            ("raise OSError('libtorch.so: no\\nmore')", 2, "(libtorch.so: no); pip install -r requirements.txt"),
            ("raise KeyboardInterrupt", 130, "")]:
        (tmp_path / "numpy.py").write_text(numpy)
        done = subprocess.run([sys.executable, ROOT / script, "help"], env=ONE_THREAD | {"PYTHONPATH": str(tmp_path)},
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == status and what in done.stderr, done.stderr
        assert done.stderr.count("\n") == (status == 2), done.stderr


# Interrupts.

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_saves_and_resume_is_unbroken(number, inside, text_file, tmp_path, monkeypatch, capsys):
    args = [*TINY, f"dataset={text_file}", "max_iters=9", "dropout=0.1"]
    inside(*args, "out=whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop = lambda: os.kill(os.getpid(), number)
        patch.setattr(train, "clip_gradients", after(4, train.clip_gradients, stop))
        inside(*args, "out=broken")
    assert "stopped and saved after iteration 5; add resume=true to go on" in capsys.readouterr().out
    assert steps("broken/ckpt.pt") == 5 and signal.getsignal(number) is before
    inside("out=broken", "resume=true")
    assert losses("broken/log.csv") == losses("whole/log.csv")
    assert (tmp_path / "broken/sample.txt").read_text() == (tmp_path / "whole/sample.txt").read_text()


def test_nohup_goes_on(inside, text_file, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            hang_up = lambda: os.kill(os.getpid(), signal.SIGHUP)
            patch.setattr(train, "clip_gradients", after(2, train.clip_gradients, hang_up))
            inside(*TINY, f"dataset={text_file}", "max_iters=4")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert steps("out/momentum/ckpt.pt") == 4


def test_interrupt_before_the_first_step(inside, text_file, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop = lambda: os.kill(os.getpid(), signal.SIGINT)
        patch.setattr(train, "evaluate", after(0, train.evaluate, stop))
        inside(*TINY, f"dataset={text_file}", "max_iters=9")
    assert "after iteration 0" in capsys.readouterr().out and steps("out/momentum/ckpt.pt") == 0


def test_interrupt_of_the_last_score_loses_no_step(inside, text_file, tmp_path, monkeypatch):
    def stop():
        raise KeyboardInterrupt
    args = [*TINY, f"dataset={text_file}", "max_iters=9", "eval_interval=99"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", after(1, train.evaluate, stop))
        with pytest.raises(KeyboardInterrupt):
            inside(*args)
    assert steps("out/momentum/ckpt.pt") == 9
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
    assert 2 <= steps("out/momentum/ckpt.pt") < 9


# Kills.

@forks
def test_thirty_kills(text_file, tmp_path):
    """One run, killed 30 times and resumed each time, has the losses of a run that was left alone.

    Killed in the first step, in the very first save, in a save when the new file is written but not in place,
    and at random moments."""
    args = ["train.py", *TINY, f"dataset={text_file}", "max_iters=360", "eval_interval=20", "dropout=0.1"]

    def run(dies, *words):
        sys.argv = [*args, *words]
        if dies:
            owner, name, calls = dies
            setattr(owner, name, after(calls, getattr(owner, name), lambda: os.kill(os.getpid(), signal.SIGKILL)))
        train.main()

    def ends(*words, dies=None, seconds=None):
        process = forked(tmp_path, "run", run, dies, *words)
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode
    assert ends("out=whole") == 0
    resume, rng, seen = ("out=broken", "resume=true"), random.Random(1), []
    moments = [(os, "replace", 0), (os, "replace", 3)]
    moments += [(train, "clip_gradients", 0), (torch.Tensor, "backward", 0)]
    moments += [(os, "replace", n) for n in (0, 4, 5, 7, 9, 12)] + [(train, "clip_gradients", n) for n in (21, 3)]
    moments += [None] * (30 - len(moments))
    for dies in moments:
        assert ends(*resume, dies=dies, seconds=None if dies else rng.uniform(0.02, 0.2)) == -signal.SIGKILL, dies
        there = (tmp_path / "broken/ckpt.pt").exists()
        seen.append(there and steps(tmp_path / "broken/ckpt.pt"))
    assert not seen[1] and seen[2] == seen[3] == 0 and sorted(seen) == seen, seen
    assert ends(*resume) == 0
    assert losses(tmp_path / "broken/log.csv") == losses(tmp_path / "whole/log.csv")
    assert (tmp_path / "broken/sample.txt").read_bytes() == (tmp_path / "whole/sample.txt").read_bytes()
    assert not list((tmp_path / "broken").glob(".tmp-*")), "what the kills left is cleared away"


# Several processes.

@pytest.fixture
def two_ranks(text_file, tmp_path):
    """Two processes of one run, forked from this one instead of started by torchrun, which imports torch thrice;
    test_two_processes_match_one starts them as a user does."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    args = ["train.py", *TINY, f"dataset={text_file}"]

    def run(rank, *words):
        os.environ.update(TORCHELASTIC_RUN_ID="one", WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        sys.argv = [*args, *words]
        guard(train.main)
    ranks = []
    yield lambda *words: ranks.extend(forked(tmp_path, f"rank{n}", run, str(n), *words) for n in range(2)) or ranks
    for rank in ranks:
        rank.kill()


@forks
def test_two_processes_agree_that_the_time_is_over(two_ranks, tmp_path, monkeypatch):
    """The clock of the second runs twice as fast: when its minutes are over, the run is complete for both."""
    clock = lambda: (1 + int(os.environ["RANK"])) * time.perf_counter()
    monkeypatch.setattr(train, "fit", functools.partial(train.fit, clock=clock))
    for rank in two_ranks("minutes=0.02"):
        rank.join(120)
        assert rank.exitcode == 0
    out = (tmp_path / "rank0.stdout").read_text()
    assert "the validation text as a stream" in out and "stopped and saved" not in out, out


@forks
def test_a_process_that_dies_ends_the_job(two_ranks, tmp_path):
    first, second = two_ranks("max_iters=100000")
    while first.is_alive() and "\niteration" not in (tmp_path / "rank0.stdout").read_text():
        time.sleep(0.1)
    time.sleep(0.2)
    second.kill()
    first.join(60)
    err = (tmp_path / "rank0.stderr").read_text()
    assert first.exitcode == 2, err
    assert "error: lost a process of the run" in err and "go on with resume=true" in err, err
    load_checkpoint(tmp_path / "out/momentum/ckpt.pt")
