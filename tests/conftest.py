"""What pytest hands to tests: a text, runs of train.py in this process or as a user starts them, and more."""
import random
import re
import subprocess
import sys

import pytest
import torch
from helpers import ONE_THREAD, TINY

import train
from common.checkpoint import ROOT
from common.settings import guard

torch.set_num_threads(1)            # small tensors: a second thread costs more than it brings


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
    slow = ("test_self_check", "test_commands", "test_thirty_kills")
    items.sort(key=lambda item: ("quiet" in item.fixturenames, item.originalname not in slow))


@pytest.fixture
def quiet():
    """For tests that measure time: they come last."""


@pytest.fixture
def cli(tmp_path):
    """Run a script of the repo in an empty folder, as a user would: cli("train.py", "model=hydra")."""
    def run(script, *args, expect=0, **options):
        command = [sys.executable, ROOT / script, *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, env=ONE_THREAD, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=180, **options)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        if expect == 2:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, done.stderr
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


# For tests/extra.

@pytest.fixture(scope="module")
def no_pictures():
    """They are drawn when everything is saved, and take most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw", lambda *args: {})
        patch.setattr(train, "write_run", lambda *args, **more: None)
        yield


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
