"""Byte-pair encoding: ranks that are broken or changed, texts and networks that tiktoken cannot deal with."""
import pytest
import tiktoken
from helpers import fails
from hypothesis import given
from hypothesis import strategies as st
from texts import TEXT

from common.settings import UserError
from data import bpe
from data.text import Tokenizer, load_dataset, write_dataset

GOOD = bpe.spec([bytes([i]) for i in range(256)])["ranks"]


def test_changed_ranks_are_noticed(tmp_path):
    write_dataset(tmp_path, Tokenizer(bpe.spec(bpe.train(TEXT, 300))), TEXT, TEXT[:50], {})
    file = tmp_path / "bpe300.tiktoken"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join(lines[:298] + [lines[299], lines[298]]))
    fails("bpe300.tiktoken has been changed", load_dataset, tmp_path)
    file.unlink()
    fails("bpe300.tiktoken is missing", load_dataset, tmp_path)


@pytest.mark.parametrize("data", [b"YQ== 1\n", b"YQ==\n", b"YQ== 0 0\n", b"\n", b"YQ== 0\n\nYg== 1\n"])
def test_broken_files(data):
    fails("not in order", bpe.from_file, data)


@given(st.binary(max_size=60))
def test_any_bytes_as_ranks(data):
    """Sixty bytes cannot hold 256 tokens, so each must be refused."""
    fails("prepare the data again", lambda: Tokenizer(bpe.from_file(data)))


@pytest.mark.parametrize("ranks", [None, 5, "YQ==", {}, [], [1] * 256, ["!"] * 256, GOOD[:255], GOOD + GOOD[:1],
                                   GOOD + [""], GOOD[:255] + ["YWI="], [*GOOD, None], [*GOOD, "é"], [GOOD]])
def test_broken_ranks(ranks):
    fails("ranks", Tokenizer, {"kind": "bpe", "ranks": ranks})


def test_a_text_that_tiktoken_refuses():
    tokenizer = Tokenizer(bpe.spec(bpe.train(TEXT, 300)))
    assert tokenizer.decode(tokenizer.encode(" " * 10**6)) == " " * 10**6
    fails("runs of spaces", tokenizer.encode, " " * 10**6 + "x")


def test_gpt2_without_network(monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match="vocab.bpe and encoder.json .*go online.*TIKTOKEN_CACHE_DIR.*level=bpe"):
        Tokenizer({"kind": "gpt2"})
