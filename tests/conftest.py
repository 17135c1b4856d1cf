"""What pytest hands to tests: a text, runs of train.py in this process or as a user starts them, and more."""
import importlib
import random
import re
import subprocess
import sys

import pytest
import torch
from helpers import FORK, ONE_THREAD, TINY, as_script, forked

import train
from common.checkpoint import ROOT
from common.settings import guard
from sample import generate

torch.set_num_threads(1)            # small tensors: a second thread costs more than it brings


@pytest.fixture(scope="session", autouse=True)
def short_samples():
    """A run of train.py in this process writes 8 tokens after each evaluation, not 160: most of the time of a tiny run.
    test_train_then_sample has it write them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "generate", lambda model, ids, tokens: generate(model, ids, 8))
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """About 20,000 characters of nonsense with the shape of a play."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("text") / "play.txt"
    words = "wave field token drift vortex swirl shear flow heat spin phase gauge".split()
    speech = lambda: f"{rng.choice('ABC')}:\n{' '.join(rng.choices(words, k=12))}.\n\n"
    path.write_text("".join(speech() for _ in range(280)))
    return path


def pytest_collection_modifyitems(items):
    """The longest first, so that two processes (-n 2) end together; last those that measure time."""
    importlib.import_module("torch._dynamo")            # every optimizer's first step does, in every forked process
    slow = ("test_self_check", "test_commands", "test_thirty_kills", "test_train_then_sample",
            "test_an_experiment_as_a_script")
    items.sort(key=lambda item: ("quiet" in item.fixturenames, item.originalname not in slow))


@pytest.fixture
def quiet():
    """For tests that measure time: they come last."""


@pytest.fixture
def cli(tmp_path):
    """Run a script of the repo in an empty folder, as a user would: cli("train.py", "model=hydra").

    Not by a new Python but by a copy of this one, which has imported torch, if it can; fresh=True: by a new one."""
    def run(script, *args, fresh=False):
        words = [*map(str, args)]
        if FORK and not fresh:
            process = forked(tmp_path, "cli", as_script, ROOT / script, *words)
            process.join(180)
            process.kill()
            texts = [(tmp_path / f"cli.{stream}").read_text("utf-8") for stream in ("stdout", "stderr")]
            done = subprocess.CompletedProcess(words, process.exitcode, *texts)
        else:
            done = subprocess.run([sys.executable, ROOT / script, *words], cwd=tmp_path, env=ONE_THREAD,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done
    return run


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """train.py's main() in this process, in an empty folder: a run without the seconds of importing torch."""
    def run(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
        try:
            train.main()
        finally:
            torch.set_flush_denormal(False)
    return run


@pytest.fixture(scope="module")
def no_pictures():
    """They are drawn when everything is saved, and take most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw", lambda *args: {})
        patch.setattr(train, "write_run", lambda *args, **more: None)
        yield


# For tests/extra.

@pytest.fixture
def refused(inside, monkeypatch, capsys):
    """Run train.py's main(), which must end in one line and status 2, and return the line."""
    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            guard(lambda: inside(*args))
        line = capsys.readouterr().err
        assert e.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
        assert re.search("[;:?] |should", line), f"says what, but not what to do: {line}"
        return line
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file, no_pictures):
    """A checkpoint of 4 steps of momentum."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [*TINY, f"dataset={text_file}", "max_iters=4", f"out={folder}"]
        patch.setattr(sys, "argv", ["train.py", *words])
        train.main()
    torch.set_flush_denormal(False)
    return folder / "ckpt.pt"
