"""The counter is modified Kneser-Ney: written a second time from the formula, in plain Python with fractions."""
import bz2
import itertools
import math
import random
from collections import Counter as Dict
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from common.counter import Counter, discounts

LONG = random.Random(5).choices(range(4), [9, 5, 2, 1], k=250)
TEXTS = {"long": LONG, "without a 3": [0, 1, 2, 0, 1, 1, 0, 0, 1, 2, 2, 0, 1], "one token": [2], "one kind": [1] * 9,
         "nothing": []}


def plain_discounts(counts):
    n = [sum(c == i for c in counts) for i in range(5)]
    if 0 not in n[1:]:
        Y = Fraction(n[1], n[1] + 2 * n[2])
        D = [i - (i + 1) * Y * Fraction(n[i + 1], n[i]) for i in (1, 2, 3)]
        if min(D) > 0:
            return D
    return [Fraction(1, 2), Fraction(1), Fraction(3, 2)]


def plain(text, V, order, fault=""):
    """p(token, context) as a fraction, straight from Chen and Goodman's formula."""
    often, before = defaultdict(Dict), defaultdict(lambda: defaultdict(set))
    for n in range(1, order + 1):
        for i in range(len(text) - n + 1):
            gram = tuple(text[i:i + n])
            often[n][gram] += 1
            before[n][gram].add(text[i - 1] if i else None)
    after = {n: Dict({gram: len(tokens) for gram, tokens in grams.items()}) for n, grams in before.items()}
    after = often if fault == "lower orders count how often" else after

    def p(token, context, table=often):
        n = len(context) + 1
        shorter = p(token, context[1:], after) if context else Fraction(1, V)
        counts = table.get(n, Dict())
        D = [0, *plain_discounts(counts.values())]
        D = {"one discount": [0, D[1], D[1], D[1]], "always half": [0, 0.5, 1, 1.5]}.get(fault, D)
        here = [counts[(*context, w)] for w in range(V)]
        if sum(here) == 0:
            return shorter
        gamma = sum(D[min(c, 3)] for c in here)
        gamma = 0 if fault == "nothing passed on" else gamma
        c = counts[(*context, token)]
        return (c - D[min(c, 3)] + gamma * shorter) / sum(here)
    return lambda token, context: p(token, tuple(context)[max(0, len(context) - order + 1):])


def largest_error(text, V, order, fault=""):
    """Between counter and formula: of all probabilities after all contexts of up to `order` tokens, seen or not."""
    counter, p, errors = Counter(text, V, order), plain(text, V, order, fault), []
    for context in itertools.chain(*(itertools.product(range(V), repeat=n) for n in range(order + 1))):
        ours = counter.distribution(context)
        theirs = [p(w, context) for w in range(V)]
        errors += [abs(ours[w] - float(theirs[w])) for w in range(V)]
        assert fault or sum(theirs) == 1
    return max(errors)


@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("name", TEXTS)
def test_every_probability_is_that_of_the_formula(name, order):
    assert largest_error(TEXTS[name], 3 if name == "nothing" else 4, order) < 1e-12


@pytest.mark.parametrize("fault", ("lower orders count how often", "one discount", "always half", "nothing passed on"))
def test_a_wrong_formula_is_another(fault):
    assert largest_error(LONG, 4, 3, fault) > 1e-3


def test_discounts():
    assert discounts([1] * 8 + [2] * 4 + [3] * 2 + [4] + [9] * 7).tolist() == [0, 0.5, 1.25, 2]     # Y = 1/2
    for counts in ([], [5, 6], [1, 1, 2, 3], [1] * 4 + [2] + [3] * 2 + [4]):            # the last: D2 = -2
        assert discounts(np.array(counts, int)).tolist() == [0, 0.5, 1, 1.5]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_probabilities_are_positive_and_sum_to_one(data):
    V = data.draw(st.integers(1, 6))
    tokens = st.lists(st.integers(0, V - 1), max_size=60)
    counter = Counter(data.draw(tokens), V, data.draw(st.integers(1, 8)))
    p = counter.distribution(data.draw(tokens))
    assert p.shape == (V,) and p.min() > 0 and abs(p.sum() - 1) < 1e-12


def windows_by_hand(counter, tokens, window):
    """The convention of train.evaluate: inputs [:-1] and targets [1:] of tokens[s:s + window + 1], each by itself."""
    out = []
    for s in range(0, len(tokens) - 1, window):
        w = tokens[s:s + window + 1]
        out += [math.log(counter.distribution(w[:i])[w[i]]) for i in range(1, len(w))]
    return np.array(out)


def test_stream_and_cold_windows():
    rng = np.random.default_rng(0)
    text = rng.integers(5, size=400) // rng.integers(1, 4, size=400)
    counter, tokens = Counter(text, 5, 4), text[100:151][::-1]
    stream = counter.log_probs(tokens)
    by_hand = [math.log(counter.distribution(tokens[:i])[tokens[i]]) for i in range(len(tokens))]
    assert stream.shape == (51,) and stream.dtype == np.float64
    np.testing.assert_allclose(stream, by_hand, atol=1e-12)
    for window in (1, 2, 7, 10, 16, 50, 99):                    # 50 predictions: some divide, some do not
        cold = counter.log_probs(tokens, window=window)[1:]
        np.testing.assert_allclose(cold, windows_by_hand(counter, tokens, window), atol=1e-12)
        assert (np.abs(cold - stream[1:]).max() > 1e-3) == (window < 50)
    rows = tokens[:50].reshape(2, 5, 5)                         # each row from nothing
    np.testing.assert_allclose(counter.log_probs(rows)[1, 2], counter.log_probs(rows[1, 2]), atol=1e-12)
    for order in (1, 2, 3, 4):
        np.testing.assert_array_equal(counter.log_probs(tokens, order), Counter(text, 5, order).log_probs(tokens))


def test_it_finds_the_entropy_of_a_markov_source():
    """Each token depends on the two before it: order 3 comes within 0.005 nats, order 2 cannot, 6 hardly loses."""
    V, rng = 4, np.random.default_rng(1)
    p, draws = rng.dirichlet(np.ones(V) / 2, size=(V, V)), rng.random(60_000)
    text, edges = [0, 1], p.cumsum(-1)
    for u in draws:
        text.append(min(int((u > edges[text[-2], text[-1]]).sum()), V - 1))
    train, val = np.array(text[:50_000], np.uint16), np.array(text[50_000:], np.uint16)
    truth = -np.log(p[val[:-2], val[1:-1], val[2:]]).mean()
    counter = Counter(train, V, 6)
    loss = {order: -counter.log_probs(val, order)[2:].mean() for order in (1, 2, 3, 6)}
    assert abs(loss[3] - truth) < 0.005 and loss[3] < loss[6] < truth + 0.03
    assert loss[1] > loss[2] > loss[3] + 0.1
    many = np.unique([tuple(train[i:i + 3]) for i in range(len(train) - 2)], axis=0)
    assert counter.sizes[:3] == [4, 16, len(many)]


def test_san_francisco():
    """A frequent word that follows one other word only is less likely elsewhere than a rarer one that follows many."""
    words = [w for i in range(20) for w in (["san", "francisco"] * 2 + [f"x{i}", "tea"])]
    names = sorted(set(words)) + ["unseen"]
    counter = Counter([names.index(w) for w in words], len(names), 2)
    p = lambda context: dict(zip(names, counter.distribution([names.index(w) for w in context])))
    assert words.count("francisco") == 2 * words.count("tea")
    assert p(["san"])["francisco"] > 0.9 and p([])["francisco"] > 1.5 * p([])["tea"]
    assert p(["unseen"])["francisco"] < 0.2 * p(["unseen"])["tea"]


def test_a_large_vocabulary_and_what_was_never_seen():
    text = np.array([65535, 0, 65535, 0, 7, 65535, 0], np.uint16)
    counter = Counter(text, 65536, 5)
    p = counter.distribution([65535])
    assert p.shape == (65536,) and abs(p.sum() - 1) < 1e-9 and p.argmax() == 0 and p[0] > 0.5
    unseen = counter.log_probs(np.array([1, 2, 3, 1, 65534]))
    assert np.isfinite(unseen).all() and np.ptp(unseen) < 1e-12 and unseen[0] < -11
    count_up = Counter(np.arange(40_000), 65536, 3).log_probs(np.arange(39_995, 40_005))    # keys beyond 2**31
    assert (count_up[1:5] > -1).all() and (count_up[5:] < -8).all()
    assert Counter([0] * 5, 1, 7).log_probs([0] * 9).tolist() == [0] * 9        # an alphabet of one
    assert counter.log_probs([]).shape == (0,)


def test_what_it_refuses():
    counter = Counter([0, 1, 2, 1], 3, 2)
    for wrong in (lambda: counter.log_probs([3]), lambda: counter.log_probs([-1]), lambda: Counter([3], 3),
                  lambda: counter.distribution([5])):
        with pytest.raises(ValueError, match="vocabulary of 3"):
            wrong()
    for order in (0, 3):
        with pytest.raises(ValueError, match="from 1 to 2"):
            counter.log_probs([0], order)


def test_the_experiment_scores_as_it_says(monkeypatch, tmp_path, text_file):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    import counting
    text = text_file.read_bytes()
    train, val = text[:int(0.9 * len(text))], text[int(0.9 * len(text)):]       # ASCII: a byte is a character
    (alone, after), size = counting.work("bz2", 0, 0, str(text_file)), lambda text: len(bz2.compress(text))
    assert alone[2] == pytest.approx(8 * size(val) / len(val))
    assert after[2] == pytest.approx(8 * (size(train + val) - size(train)) / len(val))
    stream, cold = counting.work("counter", 4, 8, str(text_file))
    chars = sorted(set(text))
    ids = lambda text: [chars.index(c) for c in text]
    counter = Counter(ids(train), len(chars), 4)
    assert stream[1] == pytest.approx(-counter.log_probs(ids(val))[1:].mean())
    assert cold[1] == pytest.approx(-windows_by_hand(counter, ids(val), 8).mean()) and cold[1] > stream[1]
    for reads, nats, bits, *_ in (alone, after, stream, cold):
        assert bits == pytest.approx(nats / math.log(2)), reads
    written = counting.write(str(text_file), 4, 50, 1)
    assert len(written) == 50 and written == counting.write(str(text_file), 4, 50, 1) != \
        counting.write(str(text_file), 4, 50, 2)
