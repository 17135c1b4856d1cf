"""train.py and sample.py: settings, batches, losses that repeat, kill and resume, two processes, sampling."""
import csv
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

import train as T
from train import UserError, settings


@dataclass
class Knobs:
    n_embd: int = 4                     # channels
    lr: float = 0.1                     # step
    flag: bool = False                  # on or off
    kind: Literal["a", "b"] = "a"       # one of two
    name: str = ""                      # any text

    def __post_init__(self):
        if self.n_embd % 2:
            raise ValueError(f"n_embd={self.n_embd} is odd")


def losses(path):
    with open(path, newline="") as f:
        return [row["train_loss"] for row in csv.DictReader(f) if row["train_loss"]]


def test_a_model_without_a_portrait(inside, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(T.load_model("momentum"), "portrait")
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    assert (tmp_path / "out/momentum/loss.png").exists() and not (tmp_path / "out/momentum/physics.png").exists()
    assert "look at out/momentum/loss.png; " in capsys.readouterr().out


def test_a_disk_that_fills_while_drawing(inside, text_file, tmp_path, monkeypatch):
    """What was drawn before stays, the run is saved, and resume=true draws the rest; a kill's leftovers go then."""
    def full(model, tokens, path):
        raise OSError(28, "No space left on device")
    left = tmp_path / "out/momentum/.tmp-abc"
    with monkeypatch.context() as patch:
        patch.setattr(T.load_model("momentum"), "portrait", full)
        with pytest.raises(UserError, match="No space left on device; make room, then resume=true"):
            inside(*TINY, f"dataset={text_file}", "max_iters=2")
    left.mkdir()
    (left / "physics.png").write_bytes(b"half")
    assert (tmp_path / "out/momentum/loss.png").exists()
    inside("resume=true")
    assert (tmp_path / "out/momentum/physics.png").exists() and not left.exists()


def test_settings_take_what_people_type():
    k = settings("n_embd=1e4 lr=0 flag=TRUE kind=b --name=x=y".split(), Knobs)
    assert k == Knobs(10000, 0.0, True, "b", "x=y") and isinstance(k.lr, float) and isinstance(k.n_embd, int)
    assert settings(["lr=2"], Knobs, defaults={"lr": 1.0, "n_embd": 6}) == Knobs(6, 2.0)


@pytest.mark.parametrize("words, message", [
    ("n_emb=4", "no setting 'n_emb'; did you mean n_embd? add help to list them"),
    ("n_embd=1.5", "n_embd=1.5 should be a whole number"),
    ("n_embd=x", "n_embd=x should be a whole number"),
    ("n_embd=0", "n_embd=0 should be 1 or more"),
    ("n_embd=-2", "n_embd=-2 should be 1 or more"),
    ("n_embd=1e30", "n_embd=1e30 should be a finite number"),
    ("n_embd=3", "n_embd=3 is odd"),
    ("lr=nan", "lr=nan should be a finite number"),
    ("lr=inf", "lr=inf should be a finite number"),
    ("lr=", "lr= should be a number"),
    ("flag=1", "flag=1 should be true or false"),
    ("kind=c", "kind=c should be one of a, b"),
    ("n_embd", "'n_embd' is not a setting; settings look like key=value, and help lists them"),
    ("lr=1 lr=2", "lr is given twice; keep one"),
])
def test_settings_say_what_is_wrong(words, message):
    with pytest.raises(UserError) as e:
        settings(words.split(), Knobs)
    assert str(e.value) == message


def test_batches_are_a_function_of_seed_and_step():
    data = np.arange(1000, dtype=np.uint16)
    x, y = T.get_batch(data, 8, 1, 5, 6, 2)
    assert torch.equal(x + 1, y) and x.shape == (2, 6, 8)
    assert torch.equal(x, T.get_batch(data, 8, 1, 5, 6, 2)[0])
    assert not torch.equal(x, T.get_batch(data, 8, 1, 6, 6, 2)[0])
    shares = [T.get_batch(data, 8, 1, 5, 6, 2, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(shares, 1), x)


def test_muon_orthogonalises():
    """From any gradient, a step whose singular values are all about one, scaled to the size of an AdamW step."""
    torch.manual_seed(0)
    for shape in ((8, 32), (32, 8), (16, 16)):
        p = torch.nn.Parameter(torch.zeros(shape))
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        p.grad = u @ torch.diag(torch.logspace(0, 1, min(shape))) @ v                   # singular values from 1 to 10
        T.Muon([p], lr=1.0, weight_decay=0.0).step()
        s = torch.linalg.svdvals(p.detach()) / (0.2 * max(shape) ** 0.5)
        assert s.min() > 0.5 and s.max() < 1.3, s


def test_every_parameter_has_one_optimizer():
    module = T.load_model("momentum")
    model = module.Model(module.Config(learn_gamma=True))
    for optimizer in ("muon", "adamw"):
        groups = [g for o in T.make_optimizers(model, T.Train(optimizer=optimizer)) for g in o.param_groups]
        ids = [id(p) for g in groups for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        assert any(p is model.wte.weight for g in groups if g["weight_decay"] for p in g["params"])
        assert not any(p is model.blocks[0].attn.gamma for g in groups if g["weight_decay"] for p in g["params"])


def test_clip_by_layer():
    model = torch.nn.ModuleDict({"wte": torch.nn.Linear(4, 4), "blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    for how, norm in (("global", 1.0), ("layer", 2 ** 0.5)):
        for p in model.parameters():
            p.grad = torch.full_like(p, 9.0)
        T.clip_gradients(model, how)
        assert math.isclose(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item(), norm, rel_tol=1e-4)


def test_evaluation_scores_every_token_once():
    """A model that returns the loss of a uniform guess, but for token 7, shows which targets were counted."""
    class Counter(torch.nn.Module):
        config = type("C", (), {"block_size": 8})

        def forward(self, idx, targets):
            seen.extend(targets.flatten().tolist())
            return None, torch.tensor(1.5)
    data = np.arange(61, dtype=np.uint16)
    seen = []
    from contextlib import nullcontext
    assert T.evaluate(Counter(), data, 4, "cpu", nullcontext()) == pytest.approx(1.5)
    assert sorted(seen) == list(range(1, 61))


def test_generate_is_greedy_and_truncates():
    module = T.load_model("momentum")
    torch.manual_seed(0)
    model = module.Model(module.Config(vocab_size=11, block_size=8, n_layer=1, n_embd=16, n_head=2))
    ids = [1, 2, 3] * 7
    greedy = list(T.generate(model, ids, 12, temperature=0))
    full = model.eval()(torch.tensor([ids + greedy]))[0][0, len(ids) - 1:-1].argmax(-1).tolist()
    assert greedy == full
    assert greedy == list(T.generate(model, ids, 12, top_k=1)) == list(T.generate(model, ids, 12, top_p=1e-6))
    assert list(T.generate(model, ids, 12, seed=4)) == list(T.generate(model, ids, 12, seed=4, top_k=99))


def test_train_then_sample(cli, text_file, tmp_path):
    done = cli("train.py", *TINY, f"dataset={text_file}", "max_iters=20", "eval_interval=10")
    out = tmp_path / "out/momentum"
    names = ".lock best.pt ckpt.pt log.csv loss.png physics.png sample.txt".split()
    assert sorted(p.name for p in out.iterdir()) == names
    rows = list(csv.DictReader(open(out / "log.csv", newline="")))
    assert list(rows[0]) == T.COLUMNS and [r["iter"] for r in rows if r["val_loss"]] == ["0", "10", "20"]
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    assert float(rows[-1]["bits_per_byte"]) == pytest.approx(float(rows[-1]["val_loss"]) / math.log(2), rel=1e-4)
    assert "bits per byte" in done.stdout
    text = cli("sample.py", "prompt=A:", "tokens=50", "seed=3")
    assert text.stdout.startswith("A:") and re.search(r"tokens/s; the state holds [\d,]+ bytes", text.stderr)
    assert text.stdout == cli("sample.py", "ckpt=out/momentum/ckpt.pt", "prompt=A:", "tokens=50", "seed=3").stdout
    refused = cli("train.py", *TINY, f"dataset={text_file}", "max_iters=20", expect=2)
    assert "resume=true goes on" in refused.stderr


def test_the_same_seed_gives_the_same_losses(inside, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(T, "draw", lambda *args: None)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        inside(*TINY, f"dataset={text_file}", "max_iters=10", f"out={out}", f"seed={seed}", "dropout=0.1")
    a, b, c = (losses(tmp_path / out / "log.csv") for out in "abc")
    assert a == b and len(a) == 10 and a != c


def test_two_processes_match_one(inside, text_file, tmp_path):
    """And only the first of them writes: each runs in a folder of its own, and that of the second stays empty."""
    args = [*TINY, f"dataset={text_file}", "max_iters=20", "grad_accum=2"]
    inside(*args, "out=one")
    args[-3] = f"dataset={next((tmp_path / 'out/data').iterdir())}"
    script = tmp_path / "ranks.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.makedirs("rank" + os.environ["RANK"])
os.chdir("rank" + os.environ["RANK"])
import train
train.guard(train.main)
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    done = subprocess.run([*command, *args, "out=two"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    one, two = (np.array(losses(tmp_path / out / "log.csv"), float) for out in ("one", "rank0/two"))
    assert len(one) == 20 and abs(one - two).max() < 1e-4
    assert (tmp_path / "rank0/two/physics.png").exists() and not list((tmp_path / "rank1").rglob("*"))
    assert done.stdout.count("20 iterations in") == 1
