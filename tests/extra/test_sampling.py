"""sample.py: one line for whatever is wrong, and every extreme of its settings."""
import importlib
import subprocess
import sys

import pytest
import torch
from helpers import ONE_THREAD, TINY

import sample
from common.checkpoint import ROOT
from common.settings import guard


@pytest.mark.parametrize("words, part", [
    ("prompt=A~Z", "no 'Z' '~'"), ("prompt=", "prompt is empty"), ("temperature=-1", "between 0 and 100"),
    ("temperature=nan", "finite"), ("top_p=0", "above 0"), ("tokens=-1", "0 or more"), ("top_k=1.5", "whole"),
    ("ckpt=nowhere", "train first"), ("ckpt=.", "is a folder"), ("device=gpu", "device=cpu always works"),
    ("prompt=A\udcff", "Unicode"), ("promt=A", "did you mean prompt?"), ("tokens", "key=value")])
def test_sample_says_what_is_wrong(trained, words, part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample.py", *([] if "ckpt" in words else [f"ckpt={trained}"]), words])
    with pytest.raises(SystemExit) as e:
        guard(sample.main)
    shown = capsys.readouterr()
    assert e.value.code == 2 and part in shown.err and shown.err.count("\n") == 1 and not shown.out


@pytest.mark.parametrize("words", [
    "temperature=0", "temperature=1e-300", "temperature=100", "top_k=999999", "top_k=0 top_p=1e-30", "top_p=1e-300",
    "tokens=0"])
def test_sample_takes_extremes(trained, text_file, words, monkeypatch, capsys):
    prompt = text_file.read_text()[:100]                # six times the block
    words = {w.split("=")[0]: w for w in [f"ckpt={trained}", f"prompt={prompt}", "tokens=20", *words.split()]}
    monkeypatch.setattr(sys, "argv", ["sample.py", *words.values()])
    guard(sample.main)
    torch.set_flush_denormal(False)
    shown = capsys.readouterr()
    assert shown.out.startswith(prompt) and len(shown.out) == 100 + int(words["tokens"][7:])
    assert "tokens/s; the state holds" in shown.err and "-- -" not in shown.err


def sampled(monkeypatch, capsys, *words):
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["sample.py", *words])
    try:
        guard(sample.main)
    finally:
        torch.set_flush_denormal(False)
    return capsys.readouterr().out


def test_a_text_of_one_line_and_control_characters(inside, tmp_path, no_pictures, monkeypatch, capsys):
    """Without a line break the first character of the validation text begins; a file gets \\x1b as it is, a terminal
    does not."""
    text = "ab\x1b[2J\x9b" * 300
    (tmp_path / "line.txt").write_text(text)
    inside(*TINY, "dataset=line.txt", "max_iters=1", "out=run")
    words = ["ckpt=run/ckpt.pt", "tokens=60"]
    raw = sampled(monkeypatch, capsys, *words)
    assert raw[0] == text[int(0.9 * len(text))] and "\x1b" in raw and len(raw) == 61
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        seen = sampled(patch, capsys, *words)
    assert not {"\x1b", "\x9b"} & set(seen) and seen == raw.replace("\x1b", r"\x1b").replace("\x9b", r"\x9b")


def test_a_checkpoint_of_another_model_in_an_experiment(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    for name, what in (("filters", "is of another model; give a checkpoint of wavefield"),
                       ("halting", "takes one Euler step")):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, f"ckpt={trained}", "small=true"])
        with pytest.raises(SystemExit) as e:
            guard(module.main)
        line = capsys.readouterr().err
        assert e.value.code == 2 and what in line and line.count("\n") == 1


def test_sample_into_a_closed_pipe_and_an_ascii_terminal(trained):
    command = [sys.executable, str(ROOT / "sample.py"), f"ckpt={trained}", "tokens=3000", "prompt=A"]
    done = subprocess.run(["bash", "-c", 'set -o pipefail; "$@" | head -c 5', "bash", *command], timeout=60,
                          capture_output=True, env=ONE_THREAD | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and len(done.stdout) == 5 and done.stderr == b"", done.stderr
