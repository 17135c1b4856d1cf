"""Tokenizers and data sets: round trips, levels, splits, preparing, loading. Damage: tests/extra."""
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import fails
from hypothesis import given
from hypothesis import strategies as st
from texts import CHAR, DOWNLOADED, PLAY, TEXT, damage, files, load_prepare, made_input

from common.checkpoint import ROOT
from common.files import sha256, write_atomic
from data.text import Tokenizer, ensure_dataset, load_dataset, make_tokenizer, write_dataset

# Tokenizers.

@given(st.text(max_size=200))
def test_char_and_byte_round_trip(text):
    for tokenizer in [Tokenizer({"kind": "byte"})] + ([make_tokenizer("char", text, "")] if text else []):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint16 and tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes(int(i)) for i in ids) == text.encode()
        assert tokenizer.vocab_size == (256 if tokenizer.spec["kind"] == "byte" else len(set(text)))


@given(st.binary(max_size=100))
def test_bytes_decode_whatever_comes(data):
    tokenizer = Tokenizer({"kind": "byte"})
    assert tokenizer.decode(data) == data.decode("utf-8", "replace")
    assert b"".join(tokenizer.token_bytes(i) for i in data) == data


def test_unseen_characters_are_named():
    message = fails("'€'", CHAR.encode, "what light €5 @ home")
    assert "'@'" in message and "'5'" in message and "'w'" not in message
    for tokenizer in (CHAR, Tokenizer({"kind": "byte"})):
        fails("Unicode", tokenizer.encode, "a\udcff")
        assert len(tokenizer.encode("")) == 0


def test_bits_per_byte_agree(tmp_path):
    """A model that spends 8 bits on each byte scores 8 under every tokenizer: the bytes add up."""
    for level in ("char", "byte", "bpe"):
        tokenizer = Tokenizer({"kind": "byte"}) if level == "byte" else make_tokenizer(level, TEXT, TEXT, 300)
        write_dataset(tmp_path / level, tokenizer, TEXT, TEXT[:500], {})
        data = load_dataset(tmp_path / level)
        bits = sum(8 * len(tokenizer.token_bytes(int(i))) for i in data.val)
        nats_per_token = bits * math.log(2) / len(data.val)
        assert nats_per_token * data.bits == pytest.approx(8)               # as train.py says it
        assert data.meta["val"]["bytes"] == len(TEXT[:500].encode())
        assert len(data.val) == data.meta["val"]["tokens"]


# Files and folders.

def test_write_atomic(tmp_path):
    write_atomic(tmp_path / "new" / "a", b"one")
    write_atomic(tmp_path / "new" / "a", memoryview(b"two"))
    assert files(tmp_path / "new") == {"a": b"two"}
    assert os.stat(tmp_path / "new" / "a").st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


def test_load_what_was_written(tmp_path):
    folder = tmp_path / "d"
    write_dataset(folder, CHAR, TEXT, TEXT[:99], {"url": "here"})
    data = load_dataset(folder)
    assert CHAR.decode(data.train) == TEXT and CHAR.decode(data.val) == TEXT[:99]
    assert data.meta["tokenizer"] == CHAR.spec and data.meta["vocab_size"] == len(set(TEXT))
    assert data.meta["source"] == {"url": "here"} and data.train.dtype == np.dtype("<u2")
    assert sorted(files(folder)) == ["meta.json", "train.bin", "val.bin"]
    assert (folder / "val.bin").read_bytes()[:2] == bytes([CHAR.encode("R")[0], 0])


def test_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8", newline="")
    ensure = lambda path: ensure_dataset(str(path), ROOT / "data", tmp_path / "cache")
    folder = ensure(tmp_path / "a.txt")
    data = load_dataset(folder)
    assert folder == tmp_path / "cache" / sha256(TEXT.encode())[:16]
    assert data.meta["tokenizer"]["kind"] == "char" and len(data.train) == int(0.9 * len(TEXT))
    assert CHAR.decode(data.train) + CHAR.decode(data.val) == TEXT
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert ensure(tmp_path / "a.txt") == folder
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert ensure(folder) == folder                     # a prepared folder is one too
    damage(folder, "flipped")
    data = load_dataset(ensure(tmp_path / "a.txt"))     # what is damaged is cut again
    assert CHAR.decode(data.train) + CHAR.decode(data.val) == TEXT
    (tmp_path / "a.txt").write_text(TEXT + "!")
    assert ensure(tmp_path / "a.txt") != folder


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    data = load_dataset(ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache"))
    assert CHAR.decode(data.train) + CHAR.decode(data.val) == TEXT


def test_the_vocabulary_has_the_characters_of_both_texts():
    tokenizer = make_tokenizer("char", "abba", "cab")
    assert tokenizer.spec["chars"] == "abc" and tokenizer.encode("cab").tolist() == [2, 0, 1]


def test_a_text_of_many_characters_is_read_as_bytes(tmp_path):
    for count, kind in ((256, "char"), (257, "byte")):
        (tmp_path / "a.txt").write_text("".join(map(chr, range(1000, 1000 + count))) * 3, encoding="utf-8")
        data = load_dataset(ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path))
        assert data.meta["tokenizer"]["kind"] == kind


# The prepare scripts, on small texts.

def test_speeches():
    assert list(load_prepare("plays").speeches(PLAY)) == [
        "ROSENCRANTZ and GUILDENSTERN:\nHow now! what's the news? yellow stockings &c.\n"
        "'Item: She hath more wit,'--\nand so do I.\n", "HERMIA:\nAdieu . Adieu?\n"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_prepare_from_a_file(name, tmp_path):
    prepare, file, out = load_prepare(name).prepare, made_input(name, tmp_path), tmp_path / "out"
    message = fails("is not the expected file", prepare, out, file)
    assert load_prepare(name).SHA256 in message and "any=true" in message and not out.exists()
    prepare(out, file, any=True)
    data, before = load_dataset(out), {p: p.stat().st_mtime_ns for p in out.iterdir()}
    source = data.meta["source"]
    assert source["sha256"] == sha256(Path(file).read_bytes()) and "licence" in source
    prepare(out, file, any=True)                                                        # does nothing
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}
    whole = files(out)
    damage(out, "flipped")
    fails("train.bin has been changed", load_dataset, out)
    prepare(out, file, any=True)
    assert files(out) == whole


@pytest.mark.parametrize("name", ["wikitext2", "tinystories"])
def test_levels(name, tmp_path):
    prepare, file = load_prepare(name).prepare, made_input(name, tmp_path)
    prepare(tmp_path / "d", file, True, "char")
    kinds = [load_dataset(tmp_path / "d").meta["tokenizer"]["kind"]]
    texts = []
    for vocab in (280, 300):
        prepare(tmp_path / "d", file, True, "bpe", vocab)
        data = load_dataset(tmp_path / "d")
        assert data.meta["vocab_size"] == vocab
        kinds.append(data.meta["tokenizer"]["kind"])
        texts.append(Tokenizer(data.meta["tokenizer"]).decode(data.val))
    assert kinds == ["char", "bpe", "bpe"] and texts[0] == texts[1]
    fails("vocab=256 should be between 257 and 65536", prepare, tmp_path / "e", file, True, "bpe", 256)


def test_pairs_are_learned_from_the_training_text_only(tmp_path):
    (tmp_path / "a.txt").write_text("ab cd " * 900 + "<|endoftext|>\n" + "xyxyxyxy " * 66)
    load_prepare("tinystories").prepare(tmp_path / "d", str(tmp_path / "a.txt"), True, "bpe", 300)
    tokenizer = Tokenizer(load_dataset(tmp_path / "d").meta["tokenizer"])
    assert b" cd" in tokenizer.tokens and b"xy" not in tokenizer.tokens


def test_stories_are_not_cut(tmp_path):
    module, file = load_prepare("tinystories"), made_input("tinystories", tmp_path)
    module.prepare(tmp_path / "d", file, True)
    data = load_dataset(tmp_path / "d")
    tokenizer = Tokenizer(data.meta["tokenizer"])
    assert tokenizer.decode(data.train).endswith(module.MARK)
    assert tokenizer.decode(data.val).startswith("ROMEO")


def test_nine_tenths_of_tiny_shakespeare(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    load_prepare("shakespeare_char").prepare(tmp_path / "d", str(tmp_path / "a.txt"), True)
    data = load_dataset(tmp_path / "d")
    assert (len(data.train), len(data.val)) == (int(0.9 * len(TEXT)), len(TEXT) - int(0.9 * len(TEXT)))
    assert data.meta["vocab_size"] == len(set(TEXT))


def test_pydoc_is_prepared_on_first_use(tmp_path, capsys):
    (tmp_path / "pydoc").mkdir()
    shutil.copy(ROOT / "data/pydoc/prepare.py", tmp_path / "pydoc")
    folder = ensure_dataset("pydoc", tmp_path, tmp_path / "cache")
    assert capsys.readouterr().out.splitlines() == ["preparing the data set pydoc (once)"]
    before = files(folder)
    assert ensure_dataset("pydoc", tmp_path, tmp_path / "cache") == folder == tmp_path / "pydoc"
    assert capsys.readouterr().out == "" and files(folder) == before
    data = load_dataset(folder)
    tokenizer = Tokenizer(data.meta["tokenizer"])
    train, val = (tokenizer.decode(ids).split("\n\n") for ids in (data.train, data.val))
    assert len(data.val) > 20_000 and len(data.train) > 8 * len(data.val)
    assert not {p for p in train if len(p) > 80} & set(val)                 # no long paragraph is in both


def test_command_line(cli, tmp_path):
    file, out = made_input("tinystories", tmp_path), tmp_path / "out"
    done = cli("data/tinystories/prepare.py", f"input={file}", "any=true", "vocab=300", f"out={out}")
    data = load_dataset(out)
    assert done.stderr == ""
    assert done.stdout == (f"{out}: {len(data.train):,} tokens to train on, {len(data.val):,} to validate, "
                           "vocabulary 300\n")
