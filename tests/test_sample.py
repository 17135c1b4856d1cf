"""sample.py: what is drawn, from which tokens, with which seed; and that the command passes its settings on."""
import sys

import pytest
import torch

import sample
from common.checkpoint import build, load_checkpoint, tensor_bytes
from sample import generate

P = torch.tensor([0.1, 0.4, 0.2, 0.3])


class Die(torch.nn.Module):
    """Throws token i with the probability P[i], whatever it has read; remembers what that was."""

    def __init__(self):
        super().__init__()
        self.config = type("C", (), {"block_size": 8, "vocab_size": 4})
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.read = []

    def forward(self, idx, targets=None, state=None):
        state["read"] = state.get("read", 0) + idx.shape[1]
        self.read.append(idx[0].tolist())
        return P.log().expand(*idx.shape, -1), None


def shares(**settings):
    """How often each token is thrown, of 400 times."""
    thrown = list(generate(Die(), [0], 400, **settings))
    return torch.bincount(torch.tensor(thrown), minlength=4) / 400


@pytest.mark.parametrize("temperature, power", [(1.0, 1), (0.5, 2), (2.0, 0.5)])
def test_the_temperature_is_a_power(temperature, power):
    expected = P ** power / (P ** power).sum()
    assert (shares(temperature=temperature) - expected).abs().max() < 0.06


@pytest.mark.parametrize("top_k, top_p, kept", [
    (0, 1.0, [0, 1, 2, 3]), (40, 1.0, [0, 1, 2, 3]), (3, 1.0, [1, 2, 3]), (2, 1.0, [1, 3]), (1, 1.0, [1]),
    (0, 0.75, [1, 2, 3]), (0, 0.65, [1, 3]), (0, 0.3, [1]),
    (2, 0.6, [1, 3]), (2, 0.55, [1])])                           # top_p is a part of what top_k has left: of 0.7
def test_only_the_likeliest_are_drawn(top_k, top_p, kept):
    drawn = shares(temperature=1.0, top_k=top_k, top_p=top_p)
    assert drawn.nonzero().flatten().tolist() == kept
    expected = P[kept] / P[kept].sum()
    assert (drawn[kept] - expected).abs().max() < 0.06, "and their shares stay as they were"


def test_the_seed_and_nothing_else_decides():
    throws = {}
    for seed in (1, 2):
        throws[seed] = list(generate(Die(), [0], 40, seed=seed))
        torch.rand(3)
        assert list(generate(Die(), [0], 40, seed=seed)) == throws[seed]
    assert throws[1] != throws[2] and list(generate(Die(), [0], 40)) == throws[1]


def test_every_token_is_read_once():
    """The prompt in chunks of block_size, then what was drawn, but for the last: nobody asks what comes after it."""
    model, state, prompt = Die(), {}, [3, 2, 1, 0] * 5
    drawn = list(generate(model, prompt, 6, state=state))
    assert [len(part) for part in model.read] == [8, 8, 4, 1, 1, 1, 1, 1]
    assert sum(model.read, []) == prompt + drawn[:-1] and state["read"] == 25


def test_the_command_passes_its_settings_on(trained, monkeypatch, capsys):
    model, tokenizer = build(load_checkpoint(trained), trained)
    settings = dict(temperature=1.7, top_k=9, top_p=0.5, seed=5)
    words = ["prompt=A:", "tokens=40", *(f"{key}={value}" for key, value in settings.items())]
    monkeypatch.setattr(sys, "argv", ["sample.py", f"ckpt={trained}", *words])
    try:
        sample.main()
    finally:
        torch.set_flush_denormal(False)
    ids = tokenizer.encode("A:").astype("int64")
    expected = tokenizer.decode(generate(model, ids, 40, **settings))
    assert capsys.readouterr().out.startswith("A:" + expected)
    for key, default in (("temperature", 0.8), ("top_k", 40), ("top_p", 1.0), ("seed", 1)):
        other = tokenizer.decode(generate(model, ids, 40, **settings | {key: default}))
        assert other != expected, f"{key} ignored would be seen"


def test_bytes_of_a_state():
    state = {"pos": 7, 0: {"k": torch.zeros(3, 2), "h": [torch.zeros(5, dtype=torch.complex128)]}}
    assert tensor_bytes(state) == 6 * 4 + 5 * 16
