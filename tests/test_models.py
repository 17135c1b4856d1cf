"""
What must be true of every model file in the folder: drop in mine.py and it is tested.

What to run when you changed ... (seconds of one core):

    a mixer             15      python -m pytest -q -k "wavefield and (agree or causal or stream)"
    a model file        60      python -m pytest -q tests/test_models.py tests/test_wavefield.py -k wavefield
    the training loop   60      python -m pytest -q tests/test_train.py
    how a run survives   70     python -m pytest -q tests/extra/test_runs.py tests/extra/test_checkpoints.py
    settings            25      python -m pytest -q -k settings
    sampling            45      python -m pytest -q -k "sampl or generate or test_streams"
    the page of a run   60      python -m pytest -q tests/test_page.py
    data                25      python -m pytest -q -k "data or bpe"
    the lessons         20      python -m pytest -q tests/test_lessons.py
    an experiment       10      python -m pytest -q tests/test_experiments.py -k race
    a claim             10      python -m pytest -q tests/test_results.py
    anything            540     python -m pytest -q -n 2
    the tests           1800    python tests/mutants.py
"""
import ast
import inspect
import itertools
import math
import random
import runpy
import sys
from dataclasses import fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from helpers import awake, relative, small, tokens
from torch.utils.checkpoint import checkpoint

from common.checkpoint import ROOT, load_model, models
from common.optimizer import make_optimizers
from train import Train

LEAKS = {("fluidlm", "pump", "broadcast")}              # kept to be caught: test_fluidlm.py shows it leaking
# The reservoir of the first block is empty in its first Euler step, and by default there is no second one:
# nothing there to decay or to gate by. With two steps all parameters learn.
IDLE = {("fluidlm", "blocks.0.theta"), ("fluidlm", "blocks.0.gate_h.weight")}


def variants():
    """Every default model, and each with each of its choices and switches changed, one at a time."""
    for name in models():
        Config = load_model(name).Config
        yield name, {}
        for field in fields(Config):
            kind = get_type_hints(Config)[field.name]
            for value in get_args(kind) or ((True, False) if kind is bool else ()):
                if value != field.default and (name, field.name, value) not in LEAKS:
                    yield name, {field.name: value}


def one_shot(model):
    return lambda idx: model(idx)[0]


def leak(forward, idx, t):
    """How far the logits of tokens < t move when later tokens change, and when they are not there."""
    edited = torch.cat((idx[:, :t], tokens(idx[:, t:].shape, seed=2)), 1)
    logits = forward(idx)[:, :t]
    edit = (forward(edited)[:, :t] - logits).abs().max().item()
    length = (forward(idx[:, :t]) - logits).abs().max().item()
    return edit, length


def stream_gap(model, idx, lengths):
    """How far the logits of a stream, cut into chunks of these lengths, are from those of one shot."""
    state = {}
    stream = torch.cat([model(chunk, state=state)[0] for chunk in idx.split(lengths, 1)], 1)
    return (stream - model(idx)[0]).abs().max().item()


def random_cuts(total, seed):
    rng, lengths = random.Random(seed), []
    while sum(lengths) < total:
        lengths.append(min(rng.choice((1, 1, 2, 3, 7, 12, 13)), total - sum(lengths)))
    return lengths


def slopes(model, idx):
    """The training loss of idx and its gradients, {name: tensor}."""
    model.train()
    loss = model(idx[:, :-1], idx[:, 1:])[1]
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters() if p.requires_grad}


def idle(model, idx):
    """The parameters that should learn and whose gradient is missing, not finite, or zero throughout."""
    return {key for key, grad in slopes(model, idx)[1].items()
            if grad is None or not torch.isfinite(grad).all() or not grad.any()}


def blocks(model):
    return [block for part in model.children() if isinstance(part, torch.nn.ModuleList) for block in part]


def recompute(model):
    """The model, whose blocks forget what they computed and compute it again in the backward pass."""
    for block in blocks(model):
        def again(*args, forward=block.forward, **options):
            return checkpoint(forward, *args, use_reentrant=False, **options)
        block.forward = again
    return model


def recomputing_gap(make, idx):
    """The relative difference of the losses, and of the gradients, with blocks that store or recompute."""
    (loss, grads), (loss2, grads2) = slopes(make(), idx), slopes(recompute(make()), idx)
    grads = {key: grad for key, grad in grads.items() if grad is not None}
    assert grads.keys() == {key for key, grad in grads2.items() if grad is not None}
    return abs(loss2 / loss - 1), max(relative(grads2[key], grad) for key, grad in grads.items())


each_model = pytest.mark.parametrize("name", models())
each_variant = pytest.mark.parametrize("name, changes", list(variants()), ids=lambda v: str(v))


@each_variant
@torch.no_grad()
def test_numpy_and_torch_agree(name, changes):
    module = load_model(name)
    model, idx = awake(module, **changes), tokens((2, 31))
    params = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    ref = module.forward_ref(params, idx.numpy(), model.config)
    assert isinstance(ref, np.ndarray) and ref.dtype == np.float64
    error = abs(model(idx)[0].numpy() - ref).max() / abs(ref).max()
    assert error < 1e-10, f"float64: {error:.1e} relative"
    error = abs(model.float()(idx)[0].numpy() - ref).max() / abs(ref).max()
    assert error < 2e-5, f"float32: {error:.1e} relative"


@each_variant
@torch.no_grad()
def test_causal(name, changes):
    model, idx = awake(load_model(name), **changes), tokens((2, 30))
    for t in (1, 11, 12, 13, 24, 29):
        edit, length = leak(one_shot(model), idx, t)
        assert edit < 1e-12, f"tokens from {t} on move earlier logits by {edit:.1e}"
        assert length < 1e-12, f"the length moves the first {t} logits by {length:.1e}"


@each_variant
@torch.no_grad()
def test_streams(name, changes):
    model, idx = awake(load_model(name), **changes), tokens((2, 37))
    for lengths in ([37], [1] * 37, *(random_cuts(37, seed) for seed in range(3))):
        gap = stream_gap(model, idx, lengths)
        assert gap < 1e-9, f"chunks {lengths}: {gap:.1e}"
    gap = stream_gap(model.float(), idx, random_cuts(37, 9))
    assert gap < 1e-4, f"float32: {gap:.1e}"


@torch.no_grad()
def test_the_checks_can_fail():
    """A model that mixes in the mean of all tokens leaks, and a stream that forgets differs."""
    model, idx = awake(load_model("momentum")), tokens((2, 30))
    assert min(leak(lambda idx: model(idx)[0] + model(idx)[0].mean(1, keepdim=True), idx, 13)) > 1e-3
    forgetful = lambda idx, state=None: model(idx)
    assert stream_gap(forgetful, idx, [20, 10]) > 1e-3


@pytest.mark.parametrize("name, changes", [*variants(), ("fluidlm", {"n_steps": 2})], ids=lambda v: str(v))
def test_every_parameter_learns(name, changes):
    model = awake(load_model(name), **changes)
    model.progress = 0.5
    excused = {key for model, key in IDLE if model == name and "n_steps" not in changes}
    found = idle(model, tokens((2, 13)))
    assert found <= excused, f"no gradient reaches {', '.join(sorted(found - excused))}"


def test_a_parameter_that_does_not_learn_is_found():
    """A factor of zero behind it leaves a gradient that is there, and zero."""
    model = awake(load_model("momentum"))
    first = blocks(model)[0]
    first.forward = lambda x, *args, forward=first.forward, **options: x + 0 * forward(x, *args, **options)
    model.unused = torch.nn.Parameter(torch.ones(3))
    silent = {id(p) for p in first.parameters()} | {id(model.unused)}
    found = idle(model, tokens((2, 13)))
    assert found == {key for key, p in model.named_parameters() if p.requires_grad and id(p) in silent}
    assert len(found) > 2


@each_variant
def test_blocks_can_be_recomputed(name, changes):
    """torch.utils.checkpoint around every block: what a block reads must come through its arguments."""
    make = lambda: awake(load_model(name), **changes)
    assert blocks(make())
    loss, grads = recomputing_gap(make, tokens((2, 13)))
    assert loss < 1e-10, f"the loss moves by {loss:.1e}, relative"
    assert grads < 1e-10, f"the gradients move by {grads:.1e}, relative"


@pytest.mark.parametrize("fault", ["counts its calls", "writes to a shared dict", "draws its own noise"])
def test_a_block_that_cannot_be_recomputed_is_found(fault):
    def faulty():
        model, shared, calls = awake(load_model("momentum")), {"mean": 1.0}, itertools.count(1)
        own = torch.Generator().manual_seed(0)
        for block in blocks(model):
            def forward(x, *args, plain=block.forward, **options):
                if fault == "counts its calls":
                    return plain(x * next(calls), *args, **options)
                if fault == "writes to a shared dict":
                    y = plain(x + shared["mean"], *args, **options)
                    shared["mean"] = x.mean().item()
                    return y
                return plain(x + torch.randn(1, dtype=x.dtype, generator=own), *args, **options)
            block.forward = forward
        return model
    loss, grads = recomputing_gap(faulty, tokens((2, 13)))
    assert loss == 0 and grads > 1e-3


@each_model
@pytest.mark.filterwarnings("ignore:Dynamo")
def test_compiled_is_the_same(name):
    """torch.compile up to the code generator, which not every machine has a compiler for."""
    model, idx = awake(load_model(name), n_layer=1).train(), tokens((2, 13))
    weights = [p for p in model.parameters() if p.requires_grad]
    plain, compiled = ([loss := f(idx[:, :-1], idx[:, 1:])[1], *torch.autograd.grad(loss, weights)]
                       for f in (model, torch.compile(model, backend="aot_eager")))
    assert max((a - b).abs().max().item() for a, b in zip(plain, compiled)) < 1e-10


@each_model
def test_under_autocast(name):
    """What dtype=bfloat16 does on a GPU: rounded, but nearly the same loss and gradients, in one go and as a stream."""
    model, idx = awake(load_model(name)).float(), tokens((4, 13))
    weights = [p for p in model.parameters() if p.requires_grad]
    found = []
    for rounded in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = model(idx[:, :-1], idx[:, 1:])[1]
        found.append((loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            state = {}
            parts = [model(part, state=state)[0].float() for part in (idx[:, :1], idx[:, 1:3], idx[:, 3:])]
            assert relative(torch.cat(parts, 1), model(idx)[0].float()) < (0.1 if rounded else 1e-5)
    (loss, g), (rounded_loss, rounded_g) = found
    assert rounded_g.dtype == g.dtype and 0 < abs(loss - rounded_loss) < 0.02
    assert 0 < (g - rounded_g).norm() / g.norm() < 0.1


@each_model
def test_first_loss_is_that_of_a_guess(name):
    module = load_model(name)
    for vocab_size in (65, 4096):
        torch.manual_seed(3)
        model = module.Model(module.Config(vocab_size=vocab_size)).eval()
        with torch.no_grad():
            idx = torch.randint(vocab_size, (4, 65))
            loss = model(idx[:, :-1], idx[:, 1:])[1].item()
        guess = math.log(vocab_size)
        assert abs(loss / guess - 1) < 0.02, f"{loss:.3f} against ln {vocab_size} = {guess:.3f}"


@each_model
def test_overfits_one_batch(name):
    module = load_model(name)
    torch.manual_seed(0)
    model, idx = module.Model(small(module, n_layer=2, n_embd=64)), tokens((4, 13))
    optimizers = make_optimizers(model, Train(lr=1e-2, weight_decay=0.0))
    for step in range(80):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    loss = model.eval()(idx[:, :-1], idx[:, 1:])[1].item()
    assert loss < 0.1, f"{loss:.3f}"


@each_model
def test_trace(name):
    """What the page colours a text by: finite numbers with a unit for each token; the model stays as it is."""
    module = load_model(name)
    if not hasattr(module, "trace"):
        pytest.skip(f"{name}.py traces nothing")
    model = awake(module)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for T in (30, 1):                                   # 30: more than block_size
        logits = model(tokens((1, T)))[0]
        for what, (array, unit, meaning) in module.trace(model, tokens((1, T))).items():
            shape, L = np.shape(array), len(blocks(model))
            assert shape in ((T,), (L, T), (L, T, 3), (L + 1, T, 3)), (what, shape)
            assert np.isfinite(np.asarray(array)).all(), what
            assert unit and meaning and len(what) < 30, what
        assert torch.equal(model(tokens((1, T)))[0], logits)
    assert not model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_model
def test_presets_can_be_built(name):
    module = load_model(name)
    for preset in module.PRESETS.values():
        known = {k: v for k, v in preset.items() if k in {f.name for f in fields(module.Config)}}
        with torch.device("meta"):
            model = module.Model(module.Config(**known))
        assert sum(p.numel() for p in model.parameters()) > 1e5


# Shapes of the originals, from their papers and code.
ORIGINAL = {
    "momentum": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024),
    "advection_glu": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, pre_ln=False, slow="token"),
    "hydra": dict(n_layer=8, n_head=8, n_embd=512, block_size=256, zeus=False),
    "wavefield": dict(n_layer=6, n_head=8, n_embd=256, stride=4, init="original", position=True),
    "fluidlm": dict(n_layer=4, n_steps=8, n_embd=512, block_size=256, d_state=16, dt=0.1, dt_max=0.2, longconv=True,
                    laplacian="original", position=1.0, epsilon=0.05)}


@pytest.mark.parametrize("name", ORIGINAL)
def test_presets_are_the_originals(name):
    module = load_model(name)
    config = module.Config(**module.PRESETS["original"])
    assert {key: getattr(config, key) for key in ORIGINAL[name]} == ORIGINAL[name]


# Where each setting acts, if not by default; block_size is only the length of a training text in fluidlm.
ACTS = {"hydra": dict(pressure="sinkhorn", zeus=True), "fluidlm": dict(n_layer=2, n_steps=5, epsilon=0.25)}
NO_PART = {("fluidlm", "block_size")}


def another(config, field):
    """A setting's value, changed."""
    value, kind = getattr(config, field.name), get_type_hints(type(config))[field.name]
    if get_args(kind):
        return next(choice for choice in get_args(kind) if choice != value)
    return not value if kind is bool else 2 * value if kind is int else 1.3 * value + 0.1


@torch.no_grad()
def results(module, **changes):
    """Weights at the start, logits of two and a half blocks, and a loss in training, with and without dropout."""
    torch.manual_seed(0)
    weights = list(module.Model(small(module, **changes)).parameters())
    start = [(*p.shape, p.requires_grad, p.norm().item()) for p in weights]
    model, idx = awake(module, **changes), tokens((1, 30))
    logits = model(idx)[0]
    torch.manual_seed(0)
    return start, logits.norm().item(), model.train()(idx, idx)[1].item()


@each_model
def test_every_setting_acts(name):
    module = load_model(name)
    base = results(module, **ACTS.get(name, {}))
    config = small(module, **ACTS.get(name, {}))
    for field in fields(module.Config):
        if (name, field.name) in NO_PART or field.name == "vocab_size":
            continue
        changed = results(module, **ACTS.get(name, {}) | {field.name: another(config, field)})
        assert changed != base, f"{field.name} is ignored"


BRANCHES = {"hydra": dict(kappa=0.0, nu=0.0, zeus=True)}         # rotation and viscosity are no branches


@each_model
@torch.no_grad()
def test_dropout_is_on_every_branch(name, monkeypatch):
    """Where all is dropped nothing is left but the embedding; in evaluation nothing is dropped."""
    def gone(x, p, training, inplace=False):
        assert p == 0.25 or not training
        return 0 * x if training else x
    monkeypatch.setattr(torch.nn.functional, "dropout", gone)
    module = load_model(name)
    model, idx = awake(module, n_layer=2, dropout=0.25, **BRANCHES.get(name, {})), tokens((2, 12))
    z = model.wte(idx)
    z = z / z.square().mean(-1, keepdim=True).sqrt()
    assert relative(model.train()(idx)[0], z @ model.wte.weight.T) < 1e-4
    plain = awake(module, n_layer=2, **BRANCHES.get(name, {}))
    assert torch.equal(model.eval()(idx)[0], plain(idx)[0])


# Matrices that begin at zero, and the size of the others times sqrt(columns).
ZERO = {"advection_glu": {"proj", "nu_up"}, "hydra": {"proj", "skew"}, "fluidlm": {"proj", "local"}}
SIZE = {"advection_glu": 1.0}


@each_model
@torch.no_grad()
def test_how_matrices_begin(name):
    module, zero = load_model(name), set()
    torch.manual_seed(0)
    model = module.Model(module.Config())
    assert 0.0095 < model.wte.weight.std() < 0.0105
    for key, p in model.named_parameters():
        if key.endswith(".weight") and p.ndim == 2 and key != "wte.weight":
            size = p.std().item() * p.shape[1] ** 0.5
            if size == 0:
                zero.add(key.split(".")[-2])
            else:
                assert abs(size / SIZE.get(name, 0.5) - 1) < 0.1, f"{key}: {size:.3f}"
        elif key.endswith("bias") and name == "hydra":
            assert not p.any(), key
    assert zero == ZERO.get(name, {"proj"})


@each_model
@pytest.mark.filterwarnings("ignore:Animation was deleted")
def test_a_portrait_changes_nothing(name, monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **more: None)
    monkeypatch.setattr("matplotlib.animation.Animation.save", lambda *args, **more: None)
    module = load_model(name)
    model = awake(module).float()
    before = {key: p.clone() for key, p in model.state_dict().items()}
    module.portrait(model, np.arange(12) % 23, tmp_path / "a.png")
    now = model.state_dict()
    assert before.keys() == now.keys() and all(torch.equal(now[key], p) for key, p in before.items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


@each_model
def test_settings_have_help(name):
    """Every field has a comment: it is the help text."""
    Config = load_model(name).Config
    source = inspect.getsource(Config).splitlines()
    for field in fields(Config):
        line = next(line for line in source if line.startswith(f"    {field.name}: "))
        assert "#" in line, f"{name}: {field.name} has no comment"


def test_copies_are_identical():
    """What two model files both define is the same to the letter, but for what each has for itself."""
    own = {"Config", "Model", "Block", "Layer", "Attention", "forward_ref", "portrait", "trace", "self_check"}
    sources = {}
    for name in models():
        text = (ROOT / f"{name}.py").read_text()
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in own:
                sources.setdefault(node.name, {})[name] = ast.get_source_segment(text, node)
    for symbol, copies in sources.items():
        for (a, x), (b, y) in itertools.combinations(copies.items(), 2):
            assert x == y, (f"{symbol} differs between {a}.py and {b}.py; "
                            "changed on purpose? then give it a name of its own")


@each_model
def test_model_files_stand_alone(name):
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for module in [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]:
                top = module.split(".")[0]
                allowed = sys.stdlib_module_names | {"numpy", "torch", "matplotlib"}
                assert top in allowed, f"{name}.py imports {module}"


@pytest.mark.parametrize("name", sorted({*models()} - {"momentum"}))
def test_self_check(name, tmp_path, monkeypatch, capsys):
    """`python <model>.py` proves the file and draws it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert not e.value.code and "FAIL" not in out and out.count("ok ") >= 5, out
    assert (tmp_path / f"out/{name}.png").stat().st_size > 20_000


def test_self_check_as_a_script(cli):
    """Momentum in a process of its own, which has nothing but what the file imports."""
    assert cli("momentum.py").stdout.count("ok ") >= 5
