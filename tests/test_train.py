"""train.py and sample.py: settings, the loop by itself, losses that repeat, two processes, sampling."""
import csv
import math
import os
import platform
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers import FORK, SMALL, TINY, Knobs, after, awake, forked, losses, relative, small, steps
from torch.overrides import _get_current_function_mode_stack

import train as T
from common.checkpoint import COLUMNS, load_checkpoint, load_model, models
from common.machine import LinearInBfloat16, Processes, has_bfloat16, precision, tune_cpu
from common.optimizer import Muon, clip_gradients, make_optimizers, orthogonal
from common.settings import UserError, guard, settings
from sample import generate

# Settings.

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


# Parts.

def test_batches_are_a_function_of_seed_and_step():
    data = np.arange(1000, dtype=np.uint16)
    x, y = T.get_batch(data, 8, 1, 5, 6, 2)
    assert torch.equal(x + 1, y) and x.shape == (2, 6, 8)
    assert torch.equal(x, T.get_batch(data, 8, 1, 5, 6, 2)[0])
    assert not torch.equal(x, T.get_batch(data, 8, 1, 6, 6, 2)[0])
    shares = [T.get_batch(data, 8, 1, 5, 6, 2, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(shares, 1), x)


def test_muon_orthogonalises():
    """From any gradient, a step whose singular values are all about one, scaled to the size of AdamW's."""
    torch.manual_seed(0)
    for shape in ((8, 32), (32, 8), (16, 16)):
        p = torch.nn.Parameter(torch.zeros(shape))
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        p.grad = u @ torch.diag(torch.logspace(0, 1, min(shape))) @ v      # singular values from 1 to 10
        Muon([p], lr=1.0, weight_decay=0.0).step()
        s = torch.linalg.svdvals(p.detach()) / (0.2 * max(shape) ** 0.5)
        assert s.min() > 0.5 and s.max() < 1.3, s


def test_muon_orthogonalises_in_bfloat16_when_the_run_does():
    """Near enough; weights and momentum stay in float32."""
    steps = {}
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 32)
        muon = make_optimizers(layer, T.Train(dtype=dtype))[0]
        before = layer.weight.detach().clone()
        layer(torch.randn(64, 16)).square().sum().backward()
        muon.step()
        steps[dtype] = layer.weight.detach() - before
        assert layer.weight.dtype == muon.state[layer.weight]["momentum"].dtype == torch.float32
    assert 1e-5 < relative(steps["bfloat16"], steps["float32"]) < 0.1


def test_muon_has_momentum():
    """Four steps on other gradients each, against the two lines of its docstring."""
    g = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(0))
    p, w, m = torch.nn.Parameter(torch.ones(8, 6)), torch.ones(8, 6), torch.zeros(8, 6)
    muon = Muon([p], lr=0.1, weight_decay=0.5)
    for grad in g:
        p.grad = grad.clone()
        muon.step()
        m = 0.95 * m + 0.05 * grad
        w = (1 - 0.1 * 0.5) * w - 0.1 * 0.2 * 8 ** 0.5 * orthogonal(0.05 * grad + 0.95 * m)
    assert relative(p.detach(), w) < 1e-5


def test_muon_reaches_small_directions():
    """A direction with a hundredth of the largest gradient takes all five steps to come to one."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(8, 32), full_matrices=False)
    s = torch.linalg.svdvals(orthogonal(u @ torch.diag(torch.logspace(0, 2, 8)) @ v))
    assert s.min() > 0.5 and s.max() < 1.3, s


def test_muon_takes_the_hidden_matrices_and_no_more():
    """Not the embedding, nor a head that is tied to it, nor what does not learn."""
    module = load_model("momentum")
    model = module.Model(small(module))                 # gamma does not learn
    model.head = torch.nn.Linear(8, 4)
    model.head.weight = model.wte.weight
    muon, adamw = make_optimizers(model, T.Train())
    ids = lambda optimizer: {id(p) for group in optimizer.param_groups for p in group["params"]}
    hidden = {id(p) for key, p in model.blocks.named_parameters() if key.endswith("weight")}
    assert ids(muon) == hidden and ids(adamw) == {id(model.wte.weight), id(model.head.bias)}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weights_decay(optimizer):
    """Without a gradient a step takes lr weight_decay of every matrix, and nothing of the rest."""
    model = torch.nn.ModuleDict({"wte": torch.nn.Embedding(5, 4), "fc": torch.nn.Linear(4, 3)})
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for o in make_optimizers(model, T.Train(optimizer=optimizer, lr=0.1, weight_decay=0.3)):
        o.step()
    for key, p in model.named_parameters():
        kept = 0.97 if key.endswith("weight") else 1
        assert relative(p.detach(), kept * before[key]) < 1e-6, key


def test_every_parameter_has_one_optimizer():
    module = load_model("momentum")
    model = module.Model(module.Config(learn_gamma=True))
    for optimizer in ("muon", "adamw"):
        groups = [g for o in make_optimizers(model, T.Train(optimizer=optimizer)) for g in o.param_groups]
        ids = [id(p) for g in groups for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        decayed = [id(p) for g in groups if g["weight_decay"] for p in g["params"]]
        assert id(model.wte.weight) in decayed and id(model.blocks[0].attn.gamma) not in decayed


def test_clip_by_layer():
    blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    model = torch.nn.ModuleDict({"wte": torch.nn.Linear(4, 4), "blocks": blocks})
    for how, norm in (("global", 1.0), ("layer", 2 ** 0.5)):
        for p in model.parameters():
            p.grad = torch.full_like(p, 9.0)
        clip_gradients(model, how)
        whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        assert math.isclose(whole, norm, rel_tol=1e-4)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_precision(monkeypatch):
    """bfloat16 if asked for, or by itself on a GPU or CPU that has instructions for it."""
    able, gpu = dict(avx512_bf16=False, amx_bf16=False), True
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(sys, "platform", "linux")

    def told(device, dtype):
        return precision(torch.device(device), dtype)[1]
    assert told("cpu", "auto") == told("cuda", "float32") == "float32"
    assert told("cpu", "bfloat16") == told("cuda", "auto") == "bfloat16"
    assert told("mps", "auto") == "float32"
    for key in ("avx512_bf16", "amx_bf16", "bf16"):
        able = {key: True}
        assert told("cpu", "auto") == "bfloat16" and told("cpu", "float32") == "float32", key
    monkeypatch.setattr(sys, "platform", "darwin")
    assert told("cpu", "auto") == "float32", "Apple's float32 is the faster one"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert told("cpu", "auto") == "float32", "an older torch"
    assert isinstance(precision(torch.device("cuda"), "auto")[0], torch.autocast)
    gpu = False
    assert told("cuda", "auto") == "float32", "an older GPU"


def test_only_linear_is_in_bfloat16_on_a_cpu():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(32, 32), torch.randn(8, 32, requires_grad=True)
    exact = layer(x)
    grad, = torch.autograd.grad(exact.square().sum(), x)
    with precision(torch.device("cpu"), "bfloat16")[0]:
        near = layer(x)
        assert torch.equal(x @ layer.weight.T, x.matmul(layer.weight.T)) and (x @ x.T).dtype == torch.float32
        assert (x @ layer.weight.T + layer.bias - exact).abs().max() < 1e-5, "a product that is no F.linear"
        assert torch.equal(torch.nn.functional.linear(x, bias=layer.bias, weight=layer.weight), near)
        alone = torch.nn.functional.linear(input=x, weight=layer.weight)
    near_grad, = torch.autograd.grad(near.square().sum(), x)
    for a, b in ((near, exact), (alone, exact - layer.bias), (near_grad, grad)):
        assert a.dtype == torch.float32 and 1e-6 < (a - b).abs().max() / b.abs().max() < 2e-2
    assert torch.equal(layer(x), exact), "and afterwards all is as before"


@pytest.mark.parametrize("name", models())
def test_bfloat16_learns_like_float32(name):
    """The same batches: losses after 25 iterations are the same but for rounding."""
    data = np.frombuffer(b"A wave is a field that moves; a token is a field that waits. " * 40, np.uint8)
    module, end = load_model(name), {}
    for dtype in ("float32", "bfloat16"):
        recipe = T.Train(max_iters=25, batch_size=4, dtype=dtype)
        torch.manual_seed(0)
        model = module.Model(module.Config(vocab_size=128, block_size=32, n_layer=1, n_embd=32))
        seen = [loss for loss, _ in T.fit(model, data, recipe, T.Progress())]
        end[dtype] = np.mean(seen[-5:])
    assert 0 < abs(end["bfloat16"] - end["float32"]) < 0.03 and end["float32"] < 0.85 * np.log(128)


def test_generate_is_greedy_and_truncates():
    module = load_model("momentum")
    torch.manual_seed(0)
    model = module.Model(module.Config(vocab_size=11, block_size=8, n_layer=1, n_embd=16, n_head=2))
    ids = [1, 2, 3] * 7
    greedy = list(generate(model, ids, 12, temperature=0))
    full = model.eval()(torch.tensor([ids + greedy]))[0][0, len(ids) - 1:-1].argmax(-1).tolist()
    assert greedy == full
    assert greedy == list(generate(model, ids, 12, top_k=1)) == list(generate(model, ids, 12, top_p=1e-6))
    assert list(generate(model, ids, 12, seed=4)) == list(generate(model, ids, 12, seed=4, top_k=99))


# The loop by itself.

DATA = np.random.default_rng(0).integers(SMALL["vocab_size"], size=500).astype(np.uint16)


def little(**settings):
    """(model, Train) of a loop that takes milliseconds."""
    torch.manual_seed(0)
    module = load_model("momentum")
    model = module.Model(small(module, n_layer=1, n_embd=8, dropout=0.1))
    return model, T.Train(**{"batch_size": 2, "warmup": 3} | settings)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_only_steps_count_as_seconds():
    """By a clock of our own: a step takes 2 seconds, what the caller does in between 100."""
    now = 0.0

    def forward(*args):
        nonlocal now
        now += 2
    model, train = little(minutes=0.1)
    model.register_forward_hook(forward)
    progress = T.Progress()
    for loss, lr in T.fit(model, DATA, train, progress, clock=lambda: now):
        now += 100
    assert (progress.step, progress.seconds) == (3, 6.0) and progress.share(train) == 1


def test_a_run_does_not_count_its_evaluations(inside, text_file, tmp_path, monkeypatch, capsys):
    now = 0.0

    def spend(seconds):
        nonlocal now
        now += seconds
    monkeypatch.setattr(T, "draw", lambda *args: {})
    monkeypatch.setattr(T, "fit", partial(T.fit, clock=lambda: now))
    monkeypatch.setattr(T, "evaluate", after(0, T.evaluate, lambda: spend(100)))
    monkeypatch.setattr(T, "clip_gradients", after(0, T.clip_gradients, lambda: spend(2)))
    inside(*TINY, f"dataset={text_file}", "minutes=0.1", "eval_interval=1")
    rows = list(csv.DictReader(open(tmp_path / "out/momentum/log.csv", newline="")))
    assert [float(row["seconds"]) for row in rows] == [0, 2, 4, 6, 6] and now == 6 + 100 * 4
    assert "3 iterations in 6 s" in capsys.readouterr().out


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    model, train = little(max_iters=20, lr=0.5, warmup=4)
    rates = [lr for _, lr in T.fit(model, DATA, train, T.Progress())]
    assert rates == pytest.approx([0.125, 0.25, 0.375, *[0.5] * 8, *np.linspace(0.45, 0.05, 9)])


def test_a_loop_goes_on_where_it_stopped():
    """With its progress and its optimizers; a fresh pair of either ends elsewhere."""
    def trained(stop, keep=True):
        model, train = little(max_iters=6)
        progress, optimizers = T.Progress(), make_optimizers(model, train)
        for loss, lr in T.fit(model, DATA, train, progress, optimizers):
            if progress.step == stop:
                break
        torch.rand(99)                                  # whatever else draws random numbers does not matter
        if not keep:
            optimizers = make_optimizers(model, train)
        for loss, lr in T.fit(model, DATA, train, progress, optimizers):
            pass
        assert progress.step == 6
        return weights(model)
    assert torch.equal(trained(stop=6), trained(stop=2))
    assert not torch.equal(trained(stop=6), trained(stop=2, keep=False))


def test_the_loop_is_the_one_that_everybody_writes():
    """Three steps without clipping, warmup and dropout, at the learning rates that fit() reports."""
    train = T.Train(max_iters=3, batch_size=2, clip="off", warmup=0, dtype="float32")
    model, plain = (awake(load_model("momentum"), n_layer=1, n_embd=8) for _ in range(2))
    rates = [lr for _, lr in T.fit(model, DATA, train, T.Progress())]
    optimizers = make_optimizers(plain, train)
    for step, lr in enumerate(rates):
        (x,), (y,) = T.get_batch(DATA, plain.config.block_size, train.seed, step, 2)
        plain.zero_grad()
        plain(x, y)[1].backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
    assert relative(weights(model), weights(plain)) < 1e-12 and len(rates) == 3


def test_two_passes_are_one_large_batch(monkeypatch):
    model = awake(load_model("momentum"), n_layer=1, n_embd=8)
    train = T.Train(max_iters=1, batch_size=2, grad_accum=2, dtype="float32")
    x, y = T.get_batch(DATA, model.config.block_size, train.seed, 0, 2, 2)
    whole = model(x.flatten(0, 1), y.flatten(0, 1))[1]
    whole.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    monkeypatch.setattr(T, "clip_gradients", lambda model, how: seen.extend(
        p.grad.clone() for p in model.parameters() if p.requires_grad))
    seen = []
    (loss, _), = T.fit(model, DATA, train, T.Progress())
    assert loss == pytest.approx(whole.item(), rel=1e-6)        # added up in float32
    assert max(relative(a, b) for a, b in zip(seen, expected, strict=True)) < 1e-10


def test_the_model_is_told_how_far_the_training_is():
    """And that it is training, whatever the caller does with it in between."""
    model, train = little(max_iters=4)
    seen = []
    model.register_forward_hook(lambda *args: seen.append((model.progress, model.training)))
    for _ in T.fit(model, DATA, train, T.Progress()):
        model.eval()
    assert seen == [(0, True), (0.25, True), (0.5, True), (0.75, True)]


def test_every_pass_drops_something_else(monkeypatch):
    """All masks of a run differ, those of another seed or process do, and those of the same run do not."""
    monkeypatch.setattr(T, "get_batch", lambda *args, batch=T.get_batch: batch(*args[:6]))      # the same for all

    def masks(rank=0, seed=1):
        model = awake(load_model("momentum"), n_layer=1, n_embd=8, dropout=0.5)
        seen = []
        model.blocks[0].drop.register_forward_hook(lambda drop, x, y: seen.append((y == 0).numpy().tobytes()))
        train = T.Train(max_iters=3, batch_size=2, grad_accum=2, seed=seed)
        for _ in T.fit(model, DATA, train, T.Progress(), team=Processes(rank)):
            pass
        return seen
    run = masks()
    assert len(run) == len(set(run)) == 3 * 2 * 2 and masks() == run
    assert not set(run) & {*masks(seed=2), *masks(rank=1)}


def test_gradients_are_clipped_as_the_setting_says(monkeypatch):
    seen = []
    monkeypatch.setattr(T, "clip_gradients", lambda model, how: seen.append(how))
    for how in ("layer", "off", "global"):
        model, train = little(max_iters=1, clip=how)
        list(T.fit(model, DATA, train, T.Progress()))
    assert seen == ["layer", "off", "global"]


def test_a_loss_that_is_not_finite_does_not_reach_the_weights():
    model, train = little(max_iters=5)
    forward, progress = model.forward, T.Progress()
    model.forward = lambda *args: (None, forward(*args)[1] * (math.nan if progress.step == 2 else 1))
    before = None
    with pytest.raises(FloatingPointError, match="the loss of iteration 3 is nan"):
        for loss, lr in T.fit(model, DATA, train, progress):
            before = weights(model)
    assert progress.step == 2 and torch.equal(weights(model), before) and torch.isfinite(before).all()


# Whole runs.

def test_train_then_sample(cli, refused, text_file, tmp_path):
    done = cli("train.py", *TINY, f"dataset={text_file}", "max_iters=20", "eval_interval=10", fresh=True)
    out = tmp_path / "out/momentum"
    names = ".lock best.pt ckpt.pt index.html log.csv loss.png physics.png sample.txt".split()
    assert sorted(p.name for p in out.iterdir()) == names
    rows = list(csv.DictReader(open(out / "log.csv", newline="")))
    assert list(rows[0]) == COLUMNS and [r["iter"] for r in rows if r["val_loss"]] == ["0", "10", "20", "20"]
    first, last = float(rows[0]["val_loss"]), float(rows[-1]["val_loss"])
    assert last < first and float(rows[-1]["bits_per_byte"]) == pytest.approx(last / math.log(2), rel=1e-4)
    assert "bits per byte" in done.stdout
    assert [len(text) for text in re.split("--- iteration.*\n", (out / "sample.txt").read_text())] == [0, 162, 162, 162]
    text = cli("sample.py", "prompt=A:", "tokens=50", "seed=3")
    assert text.stdout.startswith("A:") and re.search(r"tokens/s; the state holds [\d,]+ bytes", text.stderr)
    again = cli("sample.py", "ckpt=out/momentum/ckpt.pt", "prompt=A:", "tokens=50", "seed=3")
    assert again.stdout == text.stdout
    assert "resume=true goes on" in refused(*TINY, f"dataset={text_file}", "max_iters=20")


def test_a_model_without_a_portrait(inside, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(load_model("momentum"), "portrait")
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    assert (tmp_path / "out/momentum/loss.png").exists()
    assert not (tmp_path / "out/momentum/physics.png").exists()
    assert "look at out/momentum/index.html, out/momentum/loss.png; " in capsys.readouterr().out


@pytest.fixture
def bare(inside, monkeypatch):
    """A run of momentum without pictures, page and search for leaks."""
    monkeypatch.setattr(T, "draw", lambda *args: {})
    monkeypatch.setattr(T, "write_run", lambda *args, **more: None)
    monkeypatch.setattr(T, "leak", lambda *args: (0.0, 0, 0))
    return partial(inside, *TINY)


def test_the_same_seed_gives_the_same_losses(bare, text_file, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        bare(f"dataset={text_file}", "max_iters=10", f"out={out}", f"seed={seed}", "dropout=0.1")
    a, b, c = (losses(tmp_path / out / "log.csv") for out in "abc")
    assert a == b and len(a) == 10 and a != c


def logged(folder, column="val_loss"):
    """{iteration: what the last row says of it}."""
    rows = csv.DictReader(open(folder / "out/momentum/log.csv", newline=""))
    return {int(row["iter"]): float(row[column]) for row in rows if row[column]}


def scores(monkeypatch, *losses):
    """These are what evaluations say, one after the other."""
    left = [float(loss) for loss in losses]
    monkeypatch.setattr(T, "evaluate", lambda *args: left.pop(0))
    return left


def test_best_is_the_best_also_after_resuming(bare, text_file, tmp_path, monkeypatch):
    out = tmp_path / "out/momentum"
    left = scores(monkeypatch, 3, 1, 2)
    bare(f"dataset={text_file}", "max_iters=2", "eval_interval=1")
    assert not left and (steps(out / "best.pt"), steps(out / "ckpt.pt")) == (1, 2)
    left = scores(monkeypatch, 1.5, 1.25)
    bare("resume=true", "max_iters=4")
    assert not left and (steps(out / "best.pt"), steps(out / "ckpt.pt")) == (1, 4)
    assert load_checkpoint(out / "ckpt.pt")["progress"]["best"] == 1
    scores(monkeypatch, 0.5)
    bare("resume=true", "max_iters=5")
    assert steps(out / "best.pt") == 5 == steps(out / "ckpt.pt")


def test_ten_evaluations_a_run(bare, text_file, tmp_path, monkeypatch):
    left = scores(monkeypatch, *range(100, 111))
    bare(f"dataset={text_file}", "max_iters=20")
    assert not left
    assert list(logged(tmp_path)) == list(range(0, 21, 2)) and logged(tmp_path)[18] == 109


def test_bits_per_byte_in_the_log(bare, tmp_path, monkeypatch):
    """Of a text whose characters are not bytes: bits are nats / log 2, and a token is so many bytes."""
    text = "Ünïcödé 漢字 wave\n" * 200
    (tmp_path / "text").write_text(text, encoding="utf-8")
    bare("dataset=text", "max_iters=2", "eval_interval=1")
    val = text[int(0.9 * len(text)):]
    nats, bits = logged(tmp_path), logged(tmp_path, "bits_per_byte")
    assert list(nats) == list(bits) == [0, 1, 2]
    for step in nats:
        assert bits[step] == pytest.approx(nats[step] * len(val) / len(val.encode()) / math.log(2), rel=1e-4)


def test_a_finished_run_is_scored_again_and_nothing_is_appended(bare, text_file, tmp_path):
    bare(f"dataset={text_file}", "max_iters=3")
    files = [tmp_path / "out/momentum" / name for name in ("log.csv", "sample.txt")]
    before = [file.read_text() for file in files]
    bare("resume=true")
    assert [file.read_text() for file in files] == before and len(before[0].splitlines()) == 1 + 1 + 3 + 1


def test_bfloat16_is_in_every_pass(bare, text_file, monkeypatch):
    """Training, evaluation, the sample of text and both last scores."""
    seen, Model = set(), load_model("momentum").Model
    forward = Model.forward

    def watched(self, idx, targets=None, state=None):
        on = any(isinstance(mode, LinearInBfloat16) for mode in _get_current_function_mode_stack())
        seen.add((on, "training" if self.training else idx.shape[0]))
        return forward(self, idx, targets, state)
    monkeypatch.setattr(Model, "forward", watched)
    bare(f"dataset={text_file}", "max_iters=2", "dtype=bfloat16")
    assert {on for on, _ in seen} == {True} and {what for _, what in seen} >= {"training", 1, 4}
    seen.clear()
    bare(f"dataset={text_file}", "max_iters=2", "overwrite=true")
    assert {on for on, _ in seen} == {has_bfloat16(torch.device("cpu"))}, "unless asked for, the CPU decides"


def rank(*words):
    """One of two processes, in a folder of its own."""
    os.mkdir("rank" + os.environ["RANK"])
    os.chdir("rank" + os.environ["RANK"])
    sys.argv = ["train.py", *words]
    guard(T.main)


def launched(*words):
    """What `torchrun --standalone --nproc_per_node=2` does, but that the ranks are forked and have torch already."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    here = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", run_id="two")
    elastic_launch(here, rank)(*words)


@pytest.mark.skipif(not FORK, reason="forks a process that has computed")
def test_two_processes_match_one(inside, text_file, tmp_path):
    """And only the first writes: the folder of the second stays empty."""
    args = [*TINY, f"dataset={text_file}", "max_iters=20", "grad_accum=2"]
    inside(*args, "out=one")
    args[-3] = f"dataset={next((tmp_path / 'out/data').iterdir())}"
    job = forked(tmp_path, "two", launched, *args, "out=two")
    job.join(120)
    job.kill()
    assert job.exitcode == 0, (tmp_path / "two.stderr").read_text()
    one, two = (np.array(losses(tmp_path / out / "log.csv"), float) for out in ("one", "rank0/two"))
    assert len(one) == 20 and abs(one - two).max() < 1e-4
    assert (tmp_path / "rank0/two/physics.png").exists() and not list((tmp_path / "rank1").rglob("*"))
    assert (tmp_path / "two.stdout").read_text().count("20 iterations in") == 1


def test_a_cpu_is_tuned():
    """Denormals become zero; freed memory is kept, where it is glibc that keeps it."""
    try:
        told = tune_cpu()
        assert told or platform.libc_ver()[0] != "glibc"
        assert (torch.full((8,), 1e-38) * 1e-3).count_nonzero() == 0
    finally:
        torch.set_flush_denormal(False)
    assert (torch.full((8,), 1e-38) * 1e-3).count_nonzero() == 8
