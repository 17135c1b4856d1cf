"""The score of a model: every token once, as a stream and in windows; streams that stay good; cheats caught."""
import math
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import TINY, awake

import train as T
from common.checkpoint import load_model, models
from common.score import LONGEST, cold_loss, counter_loss, evaluate, evaluating, leak, stream_loss, token_losses
from data.text import Dataset
from sample import generate

each_model = pytest.mark.parametrize("name", models())


class Seen(torch.nn.Module):
    """Predicts that the next token is the one that it was shown, plus one; remembers what it was shown, and how."""

    def __init__(self, vocab_size=64, block_size=8):
        super().__init__()
        self.config = type("C", (), {"block_size": block_size, "vocab_size": vocab_size})
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shown = []

    def forward(self, idx, targets=None, state=None):
        assert not self.training
        state["shown"] = state.get("shown", 0) + idx.shape[1]
        self.shown.append((idx.tolist(), state["shown"]))
        certain = torch.nn.functional.one_hot((idx + 1) % self.config.vocab_size, self.config.vocab_size)
        return 2.0 * certain.float(), None


RIGHT = -math.log(math.exp(2) / (math.exp(2) + 63))              # nats of Seen where it is right
WRONG = -math.log(1 / (math.exp(2) + 63))


def test_the_loss_of_every_token():
    data = np.arange(20) % 64
    data[13] = 50                                                # 13 is wrong, and so is what follows it
    losses = token_losses(Seen(), data[None], 3)
    expected = np.where(np.isin(np.arange(1, 20), (13, 14)), WRONG, RIGHT)
    assert losses.shape == (1, 19) and np.allclose(losses[0], expected, atol=1e-5)


def test_a_stream_is_read_once_with_its_state():
    model, data = Seen(), np.arange(2000) % 64
    assert stream_loss(model, data) == pytest.approx(RIGHT, abs=1e-5)
    assert [t for idx, _ in model.shown for t in idx[0]] == list(data[:-1])
    assert [past for _, past in model.shown] == [512, 1024, 1536, 1999]


def test_a_long_text_is_cut(monkeypatch):
    monkeypatch.setattr("common.score.LONGEST", 1000)
    model, shares = Seen(), []
    stream_loss(model, np.arange(5000) % 64, nullcontext(), shares.append)
    assert model.shown[-1][1] == 1000 and shares == [0.5, 1.0] and LONGEST >= 2**17
    assert len(token_losses(model, np.arange(30)[None], 7)[0]) == 29


def test_cold_windows_score_every_token_once_from_nothing():
    model, data = Seen(), np.arange(61) % 64
    assert cold_loss(model, data, 4) == pytest.approx(RIGHT, abs=1e-5)
    assert sorted(t for rows, _ in model.shown for row in rows for t in row) == list(range(60))
    assert all(past <= 8 for _, past in model.shown)


def test_every_token_counts_the_same():
    """Two wrong tokens of 20, both in the short rest: a mean of the means of windows would be larger."""
    model, data = Seen(), np.arange(21) % 64
    data[19] = 50
    for loss in (cold_loss(model, data, 2), stream_loss(model, data), evaluate(model, data, 1, 20)):
        assert loss == pytest.approx((18 * RIGHT + 2 * WRONG) / 20, abs=1e-5)


def test_an_evaluation_is_a_few_streams_of_the_whole_text():
    model, data = Seen(), np.arange(1000) % 64
    evaluate(model, data, 4, 24)
    assert [past for _, past in model.shown] == [8, 16, 24]
    starts = [row[0] for row in model.shown[0][0]]
    assert starts == [s % 64 for s in np.linspace(0, 975, 4).astype(int)]
    short = Seen()
    evaluate(short, data[:10], 4, 24)
    assert [len(rows) for rows, _ in short.shown] == [1, 1], "a short text is one stream"


def test_a_model_is_left_as_it_was():
    """Also by an exception, and by a generator that nobody reads to its end."""
    model = awake(load_model("momentum")).float().train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        1 / 0
    assert model.training
    written = generate(model, [1, 2], 9)
    next(written)
    written.close()
    assert model.training
    evaluate(model, np.arange(50) % 23, 2, 12)
    assert model.training


def test_what_counting_gets_you():
    """A text that a counter of order 3 knows, and the level of the right order: not of a longer or a shorter one."""
    rng, text = np.random.default_rng(0), [0, 1]
    for _ in range(6000):
        text.append((text[-1] + 2 * text[-2] + int(rng.random() < 0.1)) % 5)
    text = np.array(text)
    data = Dataset(text[:5000], text[5000:], {"vocab_size": 5})
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert counter_loss(data) == pytest.approx(entropy, abs=0.05)
    noise = Dataset(text, rng.integers(5, size=1000), {"vocab_size": 5})
    assert counter_loss(noise) > math.log(5) - 0.02, "what is scored is not what was counted"


# Streams that stay good.

WINDOW, RANGES = 32, ((0, 32), (32, 128), (128, 512), (512, 4096))


def drift(name, monkeypatch, **changes):
    """How much worse a briefly trained model gets further down a stream than with half a window to a window of past."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import streams
    rng = np.random.default_rng(0)
    words = [rng.integers(3, 20, rng.integers(2, 6)) for _ in range(12)]
    text = np.concatenate([np.append(words[i], 1) for i in rng.integers(12, size=9000)])
    module = load_model(name)
    torch.manual_seed(0)
    model = module.Model(module.Config(vocab_size=20, block_size=WINDOW, n_layer=2, n_head=2, n_embd=32, **changes)
                         if "n_head" in module.Config.__annotations__ else
                         module.Config(vocab_size=20, block_size=WINDOW, n_layer=2, n_embd=32, **changes))
    for _ in T.fit(model, text[:20000], T.Train(batch_size=8, max_iters=90, warmup=10), T.Progress()):
        pass
    torch.set_flush_denormal(False)
    return [row[-1] for row in streams.position_table(model, text[20000:], RANGES, WINDOW)]


@each_model
def test_streams_stay_good(name, monkeypatch):
    gaps = drift(name, monkeypatch)
    assert len(gaps) == 4 and max(gaps[1:]) < 0.02, gaps        # the first range has tokens with no past at all


def test_a_position_code_breaks_streams(monkeypatch):
    """The check can fail: with the original's code, Wave Field meets positions that it has never seen."""
    assert max(drift("wavefield", monkeypatch, position=True)) > 0.05


# Cheats.

CHEAT = '''
import torch.nn as nn
import torch.nn.functional as F
from dataclasses import dataclass

@dataclass
class Config:
    vocab_size: int = 256
    block_size: int = 32

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, 32)
        self.conv = nn.Conv1d(32, 32, 3, padding=1)     # centred: it reads the next token
        self.head = nn.Linear(32, config.vocab_size)

    def forward(self, idx, targets=None, state=None):
        x = self.conv(self.wte(idx).transpose(1, 2)).transpose(1, 2)
        logits = self.head(x)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


def test_a_file_that_cheats_is_caught(inside, text_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "cheat.py").write_text(CHEAT)
    monkeypatch.setattr("common.checkpoint.ROOT", tmp_path)
    try:
        inside("model=cheat", f"dataset={text_file}", "max_iters=60", "device=cpu", "eval_iters=1", "batch_size=8")
    finally:
        sys.modules.pop("_nanophysics_cheat", None)
    shown = capsys.readouterr()
    assert "warning: tokens see the future: changing the text from token" in shown.err
    assert "no token sees the future" not in shown.out


@each_model
@pytest.mark.parametrize("block_size", [1, 2, 16, 65])
def test_no_false_alarm(name, block_size):
    model = awake(load_model(name), block_size=block_size).float()
    tokens = np.random.default_rng(0).integers(23, size=block_size)
    assert leak(model, tokens)[0] < 1e-9
    with torch.autocast("cpu", torch.bfloat16):
        assert leak(model, tokens)[0] < 1e-9


def test_a_run_in_bfloat16_raises_no_alarm(inside, text_file, capsys):
    inside(*TINY, f"dataset={text_file}", "model=wavefield", "max_iters=3", "dtype=bfloat16")
    shown = capsys.readouterr()
    assert "no token sees the future" in shown.out and "warning" not in shown.err


def test_where_a_leak_is():
    """A model whose token 3 alone looks ahead, by a little: how much, from where, and at which token."""
    class Peek(Seen):
        def forward(self, idx, targets=None, state=None):
            logits = super().forward(idx, None, {})[0].double()
            if idx.shape[1] > 6:
                logits[:, 3, 5] += 1e-4 * idx[:, 6]
            return logits, None
    nats, later, earlier = leak(Peek(), np.arange(8) + 10)
    assert 1e-6 < nats < 1e-2 and 3 < later <= 6 and earlier == 3


def test_a_leak_between_two_neighbours():
    """A model in which only tokens 10 and 11 share a cell: no edit shows it but the one that begins between them."""
    class Pair(Seen):
        def forward(self, idx, targets=None, state=None):
            logits = super().forward(idx, None, {})[0].double()
            if idx.shape[1] > 11:
                logits[:, 10, 5] += 1e-4 * idx[:, 11]
            return logits, None
    nats, later, earlier = leak(Pair(block_size=48), np.arange(48) % 13)
    assert nats > 1e-6 and (later, earlier) == (11, 10)


def test_a_leak_of_a_model_that_rules_tokens_out():
    """Logits of -inf neither hide a leak nor are one."""
    class Never(Seen):
        peeks = False

        def forward(self, idx, targets=None, state=None):
            logits = super().forward(idx, None, {})[0].double()
            logits[..., 0] = -math.inf
            if self.peeks and idx.shape[1] > 6:
                logits[:, 3, 5] += 1e-4 * idx[:, 6]
            return logits, None
    model = Never()
    assert leak(model, np.arange(8) + 10)[0] == 0
    model.peeks = True
    assert leak(model, np.arange(8) + 10)[0] > 1e-6


def test_a_leak_of_the_length_alone():
    """No token is read ahead, but how long the text is."""
    class Longer(Seen):
        def forward(self, idx, targets=None, state=None):
            logits = super().forward(idx, None, {})[0].double()
            logits[..., 5] += 1e-3 * idx.shape[1]
            return logits, None
    assert leak(Longer(), np.arange(8) + 10)[0] > 1e-6
