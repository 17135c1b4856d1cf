"""sample.py: one line for whatever is wrong, and every extreme of its settings."""
import os
import subprocess
import sys

import pytest
import torch

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
    "temperature=0", "temperature=1e-300", "top_k=999999", "top_k=0 top_p=1e-30", "tokens=0", "temperature=100"])
def test_sample_takes_extremes(trained, text_file, words, monkeypatch, capsys):
    prompt = text_file.read_text()[:100]                # six times the block
    words = {w.split("=")[0]: w for w in [f"ckpt={trained}", f"prompt={prompt}", "tokens=20", *words.split()]}
    monkeypatch.setattr(sys, "argv", ["sample.py", *words.values()])
    guard(sample.main)
    torch.set_flush_denormal(False)
    shown = capsys.readouterr()
    assert shown.out.startswith(prompt) and len(shown.out) == 100 + int(words["tokens"][7:])
    assert "tokens/s; the state holds" in shown.err and "-- -" not in shown.err


def test_sample_into_a_closed_pipe_and_an_ascii_terminal(trained):
    command = [sys.executable, str(ROOT / "sample.py"), f"ckpt={trained}", "tokens=3000", "prompt=A"]
    done = subprocess.run(["bash", "-c", 'set -o pipefail; "$@" | head -c 5', "bash", *command], capture_output=True,
                          timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and len(done.stdout) == 5 and done.stderr == b"", done.stderr
