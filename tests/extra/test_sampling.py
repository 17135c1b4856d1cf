"""sample.py: one line for whatever is wrong, and every extreme of its settings."""
import importlib
import subprocess
import sys

import pytest
import torch
from helpers import ONE_THREAD, TINY
from hypothesis import given
from hypothesis import strategies as st

import sample
from common.checkpoint import ROOT
from common.settings import guard
from common.writing import decoded, read_prompt, until
from data.text import Tokenizer


@pytest.mark.parametrize("words, part", [
    ("prompt=A~Z", "no 'Z' '~'"), ("prompt=file:nowhere", "cannot read nowhere"), ("prompt=file:.", "is a folder"),
    ("stop=~", "no '~'"), ("samples=0", "1 or more"), ("chat=true samples=2", "leave out samples"),
    ("temperature=-1", "between 0 and 100"),
    ("temperature=nan", "finite"), ("top_p=0", "above 0"), ("tokens=-1", "0 or more"), ("top_k=1.5", "whole"),
    ("ckpt=nowhere", "train first"), ("ckpt=.", "is a folder"), ("device=gpu", "device=cpu always works"),
    ("prompt=A\udcff", "Unicode"), ("promt=A", "did you mean prompt?"), ("tokens", "key=value")])
def test_sample_says_what_is_wrong(trained, words, part, monkeypatch, capsys):
    ckpt = [] if "ckpt" in words else [f"ckpt={trained}"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *ckpt, *words.split(" ")])
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


# Where a text begins and ends.

@pytest.fixture
def told(trained, monkeypatch, capsys):
    """What sample.py prints on stdout, given these settings and, in a chat, these lines."""
    def run(*words, lines=(), ckpt=trained):
        lines = iter(lines)

        def type_line(sign):
            for line in lines:
                return line
            raise EOFError
        monkeypatch.setattr("builtins.input", type_line)
        monkeypatch.setattr(sys, "argv", ["sample.py", f"ckpt={ckpt}", *words])
        sample.main()
        torch.set_flush_denormal(False)
        return capsys.readouterr().out
    return run


@given(st.text("ab\n", max_size=30), st.text("ab\n", max_size=4), st.randoms())
def test_a_text_ends_before_the_stop(text, stop, rng):
    """However it is cut into pieces, and no piece too many is asked for."""
    at = [0, *sorted(rng.randrange(len(text) + 1) for _ in range(5)), len(text)]
    pieces = [text[i:j] for i, j in zip(at, at[1:])]
    asked = []
    shown = list(until((asked.append(piece) or piece for piece in pieces), stop))
    assert "".join(shown) == (text.partition(stop)[0] if stop else text)
    if stop and stop in text:
        assert stop not in "".join(asked[:-1])
    if not stop:
        assert shown == [*pieces, ""]                   # nothing is held back


def test_a_text_that_does_not_wait_for_the_stop_is_found():
    """`until` without holding back, as a careless one would: it prints the first half of a stop."""
    def careless(pieces, stop):
        for piece in pieces:
            yield piece.partition(stop)[0]
    pieces = ["a\n", "\nb"]
    assert "".join(until(pieces, "\n\n")) == "a" != "".join(careless(pieces, "\n\n"))


def test_sample_stops(told):
    whole = told("prompt=A", "tokens=60", "temperature=100")
    middle = whole[30:32]
    short = told("prompt=A", "tokens=60", "temperature=100", "stop=" + middle.replace("\n", "\\n"))
    assert short == whole[0] + whole[1:].partition(middle)[0] and len(short) < len(whole)


def test_sample_reads_its_prompt_from_a_file(told, tmp_path):
    (tmp_path / "scene.txt").write_bytes(b"\xef\xbb\xbfA:\r\nwave\n")
    typed = told("prompt=A:\nwave\n", "tokens=20")
    assert told(f"prompt=file:{tmp_path / 'scene.txt'}", "tokens=20") == typed


def test_several_samples_are_those_of_several_seeds(told):
    one, two = (told("prompt=A", "tokens=20", f"seed={seed}", "temperature=100") for seed in (5, 6))
    assert one != two
    both = told("prompt=A", "tokens=20", "seed=5", "samples=2", "temperature=100")
    assert both == f"\n--- 1 of 2\n{one}\n--- 2 of 2\n{two}"


def test_a_chat_goes_on_from_its_state(told, monkeypatch):
    """It reads each token once, and ends in the state of one who reads the whole text at once. A character that it
    does not know costs a line."""
    read, states = [], []

    def spy(model, ids, *args):
        states.append(args[-1])
        read.append(list(ids))
        return generate(model, ids, *args)
    generate = sample.generate
    monkeypatch.setattr(sample, "generate", spy)
    out = told("prompt=A:", "chat=true", "tokens=7", lines=["wave", "~", "field"])
    assert out.startswith("A:") and len(out) == 2 + 7 + 7
    assert [len(ids) for ids in read] == [2 + 5, 1 + 6]         # the last token was written, but never read
    assert states[0] is states[1] and states[0]["pos"] == 2 + 5 + 7 + 6 + 6


def test_a_blank_prompt_is_in_the_vocabulary():
    for chars, expected in (("ab\n ", "\n"), ("ab ", " "), ("ba", "b")):
        tokenizer = Tokenizer({"kind": "char", "chars": chars})
        assert read_prompt("", tokenizer) == expected


def test_letters_of_two_tokens_are_shown_whole():
    tokenizer = Tokenizer({"kind": "byte"})
    ids, written = list("aü".encode()) + [0xc3], []
    assert list(decoded(tokenizer, ids, written)) == ["a", "", "ü", "", "\ufffd"] and written == ids


def sampled(monkeypatch, capsys, *words):
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["sample.py", *words])
    try:
        guard(sample.main)
    finally:
        torch.set_flush_denormal(False)
    return capsys.readouterr().out


def test_a_text_of_one_line_and_control_characters(inside, tmp_path, no_pictures, monkeypatch, capsys):
    """Without a line break or a space any character begins; a file gets \\x1b as it is, a terminal
    does not."""
    text = "ab\x1b[2J\x9b" * 300
    (tmp_path / "line.txt").write_text(text)
    inside(*TINY, "dataset=line.txt", "max_iters=1", "out=run")
    words = ["ckpt=run/ckpt.pt", "tokens=60"]
    raw = sampled(monkeypatch, capsys, *words)
    assert raw[0] in text and "\x1b" in raw and len(raw) == 61
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
