"""Byte-pair encoding: our trainer against brute force, tiktoken against plain merging, round trips."""
import base64
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from data import bpe
from data.text import Tokenizer, load_dataset, write_dataset

TEXT = "the cat sat on the mat; the dog's hat, and the cat's! 12 12 123  \n\n über über naïve 漢字漢字 " * 5
texts = st.one_of(st.text("ab c", max_size=60), st.text("aA1' \n.é", max_size=60), st.text(max_size=40))


def brute(text, vocab_size, flip=1):
    """Count every pair of the whole text anew at each step."""
    words = [[bytes([b]) for b in word.encode()] for word in regex.findall(bpe.PATTERN, text)]
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < vocab_size:
        count = Counter((tokens.index(a), tokens.index(b)) for word in words for a, b in pairwise(word))
        if not count or max(count.values()) < 2:
            break
        a, b = min(count, key=lambda pair: (-count[pair], flip * pair[0], flip * pair[1]))
        tokens.append(tokens[a] + tokens[b])
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (tokens[a], tokens[b]):
                    word[i:i + 2] = [tokens[-1]]
                i += 1
    return tokens


def brute_encode(text, tokens):
    """Merge the neighbours whose union has the lowest rank until none is a token."""
    rank, ids = {token: i for i, token in enumerate(tokens)}, []
    for word in regex.findall(bpe.PATTERN, text):
        parts = [bytes([b]) for b in word.encode()]
        while found := [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]:
            new, i = min(found)
            parts[i:i + 2] = [tokens[new]]
        ids += [rank[part] for part in parts]
    return ids


@given(texts, st.integers(256, 300))
@settings(deadline=None, max_examples=100)
def test_ranks_equal_brute_force(text, vocab_size):
    assert bpe.train(text, vocab_size) == brute(text, vocab_size)


def test_brute_force_notices_another_order():
    assert bpe.train(TEXT, 300) == brute(TEXT, 300) != brute(TEXT, 300, flip=-1)


def test_it_learns_the_commonest_first_and_stops_when_nothing_repeats():
    assert bpe.train("low low low lower lower", 400)[256:] == [b"lo", b"low", b" low", b"er", b" lower"]
    assert len(bpe.train("", 400)) == len(bpe.train("abcdefg", 400)) == 256


@given(texts)
@settings(deadline=None, max_examples=100)
def test_encoding_equals_plain_merging(text):
    tokens = bpe.train(TEXT, 320)
    ids = Tokenizer(bpe.spec(tokens)).encode(text)
    assert ids.tolist() == brute_encode(text, tokens)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_round_trip_on_arbitrary_bytes(data):
    tokenizer = Tokenizer(bpe.spec(bpe.train(TEXT, 320)))
    text = data.decode("latin-1")                                   # every byte a character
    assert tokenizer.decode(tokenizer.encode(text)).encode("latin-1") == data
    assert b"".join(tokenizer.token_bytes(b) for b in data) == data     # and every byte a token
    text = data.decode("utf-8", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(data) == text


def test_training_text_round_trips_through_a_file(tmp_path):
    tokenizer = Tokenizer(bpe.spec(bpe.train(TEXT, 300)))
    assert bpe.from_file(bpe.to_file(tokenizer.spec)) == tokenizer.spec
    write_dataset(tmp_path, tokenizer, TEXT, TEXT[:50], {})
    data = load_dataset(tmp_path)
    assert data.meta["tokenizer"] == tokenizer.spec and tokenizer.decode(data.train) == TEXT
    lines = (tmp_path / "bpe300.tiktoken").read_bytes().splitlines()
    assert lines[299] == base64.b64encode(tokenizer.token_bytes(299)) + b" 299"


def test_eight_thousand_merges_in_five_seconds():
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.zipf(1.3, rng.integers(1, 12)) % 26) for _ in range(30000)]
    text = " ".join(words[i % len(words)] for i in rng.zipf(1.2, 400_000) % 10**9)[:1_100_000]
    began = time.process_time()
    tokens = bpe.train(text, 8256)
    took = time.process_time() - began
    assert (len(text), len(tokens)) == (1_100_000, 8256)
    assert took < 5, f"{took:.1f} s"


def test_gpt2(monkeypatch, tmp_path):
    tokens = bpe.train(TEXT, 300)
    fake = tiktoken.Encoding("gpt2", pat_str=bpe.PATTERN, special_tokens={"<|endoftext|>": 300},
                             mergeable_ranks={token: i for i, token in enumerate(tokens)})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: fake)
    text = TEXT + "<|endoftext|>\n" + TEXT
    tokenizer = Tokenizer({"kind": "gpt2"})
    write_dataset(tmp_path, tokenizer, text, text[:100], {})
    data = load_dataset(tmp_path)
    assert data.meta["tokenizer"] == {"kind": "gpt2"} and data.meta["vocab_size"] == 301
    assert tokenizer.decode(data.train) == text and tokenizer.token_bytes(300) == b"<|endoftext|>"
