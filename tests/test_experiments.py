"""Every experiment runs from end to end, with tiny numbers, and leaves its table and its picture."""
import ast
import contextlib
import csv
import importlib
import re
import sys

import numpy as np
import pytest
import torch
from helpers import awake, tokens

from common.checkpoint import COLUMNS, ROOT, load_model
from common.settings import UserError

TINY = {"accuracy": "small=true minutes=0.0005 seeds=2 models=wavefield",
        "bands": "small=true minutes=0.0005 seeds=2 characters=400",
        "meaning": "small=true minutes=0.0005 seeds=2 characters=400",
        "induction": "steps=4 longest=4 depth=1 gammas=0,1",
        "speed": "small=true training=64 kernel=64 stream=64 rounds=0 memory=true",
        "filters": "small=true max_iters=2",
        "flow": "small=true minutes=0.0005 texts=2",
        "late": "small=true minutes=0.0005 evaluations=2 models=hydra",
        "leaky": "small=true iters=1",
        "memory": "small=true length=300 models=whole_text,fluidlm",
        "reach": "small=true minutes=0.0005 seeds=2 characters=400",
        "scaling": "small=true widths=16,32 budgets=0.0005 models=baseline,no_zeus",
        "race": "small=true minutes=0.0005 max_iters=1 models=baseline,wavefield,lstm,counter",
        "streams": "small=true minutes=0.0005 models=lstm,wavefield",
        "sweep": "small=true minutes=0.0005 model=lstm changes=lr=1e-3|n_layer=2",
        "ablate": "small=true max_iters=1 models=momentum",
        "counting": "order=2 window=8 length=40",
        "changes": "small=true iters=1",
        "influence": "small=true minutes=0.0005",
        "kick": "small=true minutes=0.0005 kicks=3",
        "halting": "small=true seeds=2 windows=2 draws=5 n_steps=3 epsilons=0,0.1",
        "smooth": "small=true minutes=0.0005 seeds=2 texts=2 characters=32",
        "spelling": "small=true iters=2 characters=40",
        "viscosity": "small=true max_iters=1 seeds=1",
        "vocabulary": "small=true minutes=0.0005 vocabs=260 widths=16"}


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Run an experiment in this process, one job at a time, in an empty folder; returns its module."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import lab
    monkeypatch.setattr(lab.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(name, *args):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, "out=pictures", *args])
        try:
            module.main()
        finally:
            torch.set_flush_denormal(False)
        return module
    return run


def table(folder, name):
    with open(folder / "pictures" / f"{name}.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_every_experiment_is_here():
    scripts = {path.stem for path in ROOT.glob("experiments/*.py") if "def main" in path.read_text()}
    assert scripts == {*TINY, "compare", "quick", "results"}


def test_finished_runs_side_by_side(experiment, tmp_path, capsys):
    """From the log.csv of each, names with a $ included; a folder without one is named."""
    for name, losses in (("a", (3.0, 2.0)), ("b$x$", (3.0, 1.5))):
        (tmp_path / name).mkdir()
        rows = [f"{10 * i},{i},,{loss},{loss},0,0" for i, loss in enumerate(losses)]
        (tmp_path / name / "log.csv").write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    experiment("compare", "runs=a,b$x$")
    assert "b$x$: 1.5000 nats per token after 10 iterations" in capsys.readouterr().out
    assert [row["val_loss"] for row in table(tmp_path, "compare")] == ["3", "2", "3", "1.5"]
    with pytest.raises(UserError, match="nowhere holds no log.csv"):
        experiment("compare", "runs=a,nowhere")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TINY)
def test_runs(name, experiment, text_file, tmp_path, capsys):
    text = [f"dataset={text_file}"] if "dataset: str" in (ROOT / f"experiments/{name}.py").read_text() else []
    experiment(name, *TINY[name].split(), *text)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [f"{name}.csv", f"{name}.png"]
    assert (tmp_path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = table(tmp_path, name)
    assert rows and all(None not in row and None not in row.values() for row in rows)
    if name == "filters":
        for row in rows:
            error = abs(float(row["gain"]) - float(row["measured_gain"]))
            assert error < 1e-6 * max(1, float(row["gain"])), row
        mixers = {row["mixer"] for row in rows}
        assert mixers > {"momentum", "fluidlm, upwind", "hydra", "advection_glu"}
        assert sum(mixer.startswith("fluidlm, ") for mixer in mixers) == 2, "both stencils"
    if name == "race":
        final = [row for row in rows if row["final"] == "1"]
        assert len(final) == 2 * 3 + 1 and all(float(row["leak"]) < 1e-10 for row in final)
        assert "nan" not in capsys.readouterr().out.lower()


def test_an_experiment_as_a_script(cli, text_file, tmp_path):
    done = cli("experiments/viscosity.py", "out=pictures", *TINY["viscosity"].split(), f"dataset={text_file}")
    assert "Warning" not in done.stderr and len(table(tmp_path, "viscosity")) == 7


def test_intervals(monkeypatch):
    """Student's t against its table, at the seam as well; what two runs owe to the same seed drops out."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import lab
    for freedom, t in ((1, 12.706), (2, 4.303), (5, 2.571), (6, 2.447), (7, 2.365), (29, 2.045), (1000, 1.962)):
        assert lab.quantile_of_t(freedom) == pytest.approx(t, abs=2e-3), freedom
    assert lab.interval([1, 2, 3]) == pytest.approx((2, 2 - 4.303 / 3 ** 0.5, 2 + 4.303 / 3 ** 0.5))
    assert lab.interval([5])[0] == 5 and np.isnan(lab.interval([5])[1:]).all()
    assert lab.said(lab.interval([5])) == "+5.000" and lab.said((1, 0, 2), 1, "%") == "+1.0% [+0.0%, +2.0%]"
    ours, theirs = {0: 1.0, 1: 2.1, 2: 2.9, 7: 0}, {2: 3.0, 1: 2.0, 0: 1.0}
    assert lab.paired(ours, theirs) == pytest.approx(lab.interval([0, 0.1, -0.1]))
    with pytest.raises(UserError, match="share no seed"):
        lab.paired({0: 1.0}, {1: 1.0})


def test_scores_of_spelling(monkeypatch):
    """Written on the way, and the training is the same; the three have the same size."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import spelling
    text = "ANN:\nthe sea\n\nBOB:\nthe sky\n\nthe end\n"
    assert spelling.play_lines(text + "cut") == pytest.approx(5 / 6)
    assert spelling.words("O'er the Sea, 'tis") == ["o'er", "the", "sea", "tis"]
    size = {}
    for name, changes in spelling.ENTRANTS.items():
        module = load_model("advection_glu")
        model = module.Model(module.Config(vocab_size=65, **changes))
        if name == "swiglu":
            spelling.without_transport(model)
        size[name] = sum(p.numel() for p in model.parameters())
        assert model(tokens((1, 5)))[0].shape == (1, 5, 65)
    assert max(size.values()) < 1.005 * min(size.values()), size


def test_writing_on_the_way_does_not_change_what_is_learned(experiment, text_file, monkeypatch):
    import spelling
    short = lambda: spelling.work("product", 1, 4, 0, str(text_file), True, 20)
    often = short()
    monkeypatch.setattr(spelling, "SHARES", (1.0,))
    once = short()
    assert [row[0] for row in often] == [1, 2, 4] and len(once) == 1 and once[0][1:7] == often[-1][1:7]


def test_what_is_there_is_not_done_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import lab
    done, path, columns = [], tmp_path / "table.csv", "name n word value".split()
    work = lambda *job: done.append(job) or [[f"{n} of 2", job[1] / 3] for n in (1, 2)]
    jobs = [("a", 1.0), ("b", 2)]
    for more in ([], [("c", 3)]):
        for job in jobs + more:                         # one job at a time: no worker processes
            rows = lab.collect(path, columns, work, [job], resume=True)
    monkeypatch.setattr(lab.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    rows = lab.collect(path, columns, work, [*jobs, ("c", 3)], resume=True)
    a, b, c = ("a", 1.0), ("b", 2), ("c", 3)
    assert done == [a, b, a, b, c, a, b]                # only c was kept
    assert [row["word"] for row in rows] == ["1 of 2", "2 of 2"] * 3
    assert rows[3]["value"] == pytest.approx(2 / 3)
    assert lab.collect(path, columns, work, [*jobs, ("c", 3)], resume=True) == rows and len(done) == 7
    lab.collect(path, [*columns[:3], "other"], work, [("c", 3)], resume=True)
    assert len(done) == 8                               # another kind of table


@pytest.mark.parametrize("name, word, what", [
    ("race", "models=foo", "no 'foo'; there are baseline"),
    ("ablate", "models=momentun", "did you mean momentum?"),
    ("race", "seeds=0", "1 or more"), ("induction", "gammas=a", "should be a number"),
    ("filters", "layer=9", "layer=9")])
def test_wrong_settings(name, word, what, experiment, text_file):
    words = dict(w.split("=") for w in TINY[name].split()) | dict([word.split("=")])
    words |= {"dataset": str(text_file)} if name != "induction" else {}
    with pytest.raises(UserError, match=re.escape(what)):
        experiment(name, *(f"{key}={value}" for key, value in words.items()))


def test_a_kick(monkeypatch, text_file):
    """Half of the numbers, none of the counters; without a kick no loss moves; what attention forgot is over after
    a window for each layer."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import kick
    chance = torch.Generator().manual_seed(0)
    z = [torch.ones(9, dtype=torch.complex64)]
    state = {"pos": 7, 0: {"k": torch.ones(50, 40), "t": torch.tensor([3]), "z": z}}
    hurt = kick.kick(state, 0.5, chance)
    assert hurt["pos"] == 7 and hurt[0]["t"] == 3 and hurt[0]["z"][0].is_complex()
    assert 900 < hurt[0]["k"].sum() < 1100 and state[0]["k"].sum() == 2000
    data = np.random.default_rng(0).integers(23, size=200).astype(np.uint16)
    for name in ("momentum", "wavefield", "fluidlm", "hydra", "advection_glu"):
        model = awake(load_model(name))
        for share in (0.0, 0.5):
            plain, kicked = kick.excess(model, data, 4, share, 0, past=30, after=60)
            assert plain.shape == kicked.shape == (4, 60)
            assert abs(kicked - plain).max() > 0 if share else abs(kicked - plain).max() < 1e-9
            if name in ("momentum", "advection_glu"):            # 3 layers that see 12 tokens; the shear sees one more
                assert abs(kicked - plain)[:, 3 * 12:].max() < 1e-9


def test_when_a_model_has_recovered(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from kick import recovery
    assert recovery(np.zeros(50)) == 0 and np.isnan(recovery(np.ones(50)))
    assert recovery(np.where(np.arange(50) < 20, 1.0, 0.0)) == 20
    back = np.zeros(50)
    back[[0, 30]] = 1                                            # it is lost once more
    assert recovery(back) == 31


@torch.no_grad()
def test_random_halting_takes_as_many_steps(monkeypatch):
    """What is planned is done; the control deals out the same numbers; the model is left as it was."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import halting
    model = awake(load_model("fluidlm"), n_layer=2, n_steps=4).eval()
    x = tokens((3, 12))
    before = model(x)[0]
    model.config.epsilon, model.config.patience, model.config.min_steps = 0.1, 1, 1
    planned = torch.randint(1, 5, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    with halting.halting_after(model, planned):
        report = model.flow(x)[1]
    assert torch.equal(report[..., 0].isfinite().sum(1), planned)
    seen = []
    monkeypatch.setattr(halting, "halting_after", lambda model, steps: seen.append(steps) or contextlib.nullcontext())
    halting.random_halting(model, x, x, planned, np.random.default_rng(0))
    dealt = torch.cat(seen, 1)
    assert not torch.equal(dealt, planned)
    assert torch.equal(dealt.flatten(1).sort()[0], planned.flatten(1).sort()[0])
    model.config.epsilon = 0.0
    assert torch.equal(model(x)[0], before)


@torch.no_grad()
def test_hydra_that_carries_itself(monkeypatch):
    """One layer whose other terms do nothing: z - s n (z_t - z_{t-1}); and a stream goes on where it stopped."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import late
    model = awake(load_model("hydra"))
    late.carry_itself(model)
    idx = tokens((2, 20))
    state = {}
    stream = torch.cat([model(part, state=state)[0] for part in idx.split(3, 1)], 1)
    assert (stream - model(idx)[0]).abs().max() < 1e-9
    still = load_model("hydra").Model(load_model("hydra").Config(n_layer=1, n_embd=32, zeus=False, nu=0.0)).double()
    z = still.embed(idx, 0)[0]
    late.carry_itself(still)
    n = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    after = z.clone()
    after[:, 1:] -= 0.1 * n[:, 1:] * z.diff(dim=1)
    n = after / (after.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (still(idx)[0] - n @ still.wte.weight.T).abs().max() < 1e-9


@torch.no_grad()
def test_a_pulse_on_a_string(monkeypatch):
    """It is heard when it has come so far; the field is a sum over what struck; a stream goes on where it stopped."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import late
    model = awake(load_model("wavefield"), block_size=64)
    late.strings(model)
    idx = tokens((2, 70))
    state = {}
    stream = torch.cat([model(part, state=state)[0] for part in idx.split(9, 1)], 1)
    assert (stream - model(idx)[0]).abs().max() < 1e-9
    attn = model.blocks[0].attn
    deposit = torch.randn(1, 30, model.config.n_head, 4, dtype=torch.float64)
    w = attn.kernel(30)
    slow = torch.stack([sum(w[:, t - s, None] * deposit[0, s] for s in range(t + 1)) for t in range(30)])
    assert (attn.read(deposit, {})[0] - slow).abs().max() < 1e-12
    attn.damp.fill_(-30.0)                                       # no damping
    attn.omega.fill_(torch.pi / 40)                              # 40 tokens from end to end
    attn.phi.fill_(float(torch.tensor(0.25).logit()))
    heard = attn.kernel(64)[0]
    assert heard.argmax() == 10 and heard[20:25].abs().max() < 0.2 * heard.max()
    # from the ends it comes upside down: struck at 3/8, over the near end and on to 5/8 it is 1 long
    assert heard.argmin() == 40


@torch.no_grad()
def test_cells_that_tokens_share(monkeypatch):
    """With a cell for each token the field is Wave Field's; with fewer the alarm rings, also for the rare pair."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import leaky
    text = np.arange(60) % 23
    for cells in (1.0, 0.9, 0.5):
        model = awake(load_model("wavefield"), block_size=60)
        before = model(tokens((1, 30)))[0]
        weights = [block.attn.proj.weight.clone() for block in model.blocks]
        leaky.share_cells(model, cells)
        assert all(block.attn.proj.weight.std() < 2e-3 for block in model.blocks)
        for block, weight in zip(model.blocks, weights):
            block.attn.proj.weight.copy_(weight)
        moved = (model(tokens((1, 30)))[0] - before).abs().max()
        assert moved < 1e-12 if cells == 1 else moved > 1e-3
        assert (leaky.leak(model, text)[0] > 1e-6) == (cells < 1)


def test_kinds_of_letters(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import reach
    kind = reach.kinds("King\n\nA king, kings" + "." * 600 + "kin king")
    shown = "".join(".lfsno"[k + 1] for k in kind)               # line, first, second, new, occurred
    assert shown == "fsnn..l.fsoo..fsnnn" + "." * 600 + "fsn.fsnn"


@torch.no_grad()
def test_silent_waves(monkeypatch):
    """Those that are silent are those with this reach; all of them silent leave nothing of the field."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import reach
    model = awake(load_model("wavefield"))
    attn = model.blocks[0].attn
    heads, hooks = reach.silence(model, 0, float("inf"))
    x = torch.randn(1, 5, model.config.n_embd, dtype=torch.float64)
    assert heads == model.config.n_layer * model.config.n_head and attn(x, {}).abs().max() == 0
    for hook in hooks:
        hook.remove()
    middle = attn.reach().sort()[0].mean().item()
    heads, hooks = reach.silence(model, middle, float("inf"))
    written = attn.write(x)[0].abs().amax((0, 1, 3)) > 0         # (H,)
    assert torch.equal(written, attn.reach() < middle) and 0 < heads < model.config.n_layer * model.config.n_head


def test_query_and_momentum(monkeypatch):
    """The identity of their product, in a model and in any text of vectors; what spectra of known waves share."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import bands
    own = bands.queries(awake(load_model("momentum"), gamma=1.0), tokens((40,)).numpy()).flatten(0, 1)
    for x in own, torch.randn(2, 9, 3, 8, dtype=torch.float64):
        q, last, p = x[:, 1:], x[:, :-1], x.diff(dim=1)
        squares = (q.square() - last.square() + p.square()).sum(-1) / 2
        assert torch.allclose((q * p).sum(-1), squares, atol=1e-12)
    half = (own.diff(dim=1).norm(dim=-1) / own[:, 1:].norm(dim=-1) / 2).mean().item()
    found = bands.compare(own)[0]
    assert own.shape == (9, 12, 2, 16) and 0.1 < half == pytest.approx(found["cosine"], rel=1e-4)
    t = torch.arange(65, dtype=torch.float64)[:, None, None]
    wave = lambda w: torch.cat(((w * t).cos(), (w * t).sin()), -1)[None]
    slow, w, _, of_p = bands.compare(torch.cat((20 + 0 * wave(0), wave(1.5)), -1))
    assert slow["overlap"] < 0.05 and slow["cosine"] < 0.05 and w[np.argmax(of_p)] == pytest.approx(1.5, abs=0.05)
    fast = bands.compare(torch.cat((wave(0.4), wave(2.9)), -1))[0]
    assert fast["above pi/2 of q"] == pytest.approx(0.5, abs=0.01) and fast["overlap"] < 0.6
    share = 1 / (1 + np.sin(0.2) ** 2 / np.sin(1.45) ** 2)       # of p: |1 - e^{-iw}| = 2 sin(w/2)
    assert fast["above pi/2 of p"] == pytest.approx(share, abs=0.01)
    assert bands.compare(wave(0.5))[0]["overlap"] > 0.95         # one wave: its difference is the same wave
    noise = torch.randn(400, 65, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert bands.spectrum(noise[:, 1:]).numpy() * 64 == pytest.approx([1, *[2] * 31, 1], rel=0.2)


@torch.no_grad()
def test_a_band_taken_out(monkeypatch):
    """Without AC: gamma = 0. Without DC: (q^, k^) minus (q, k). Afterwards the model is as it was."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import bands
    module = load_model("momentum")
    model, idx = awake(module, gamma=0.7), tokens((1, 12))
    first = lambda gamma=None: next(module.queries_and_keys(model, idx, gamma))
    sheared, plain = first(), first(0)
    with bands.without(model, "AC"):
        for q, x in zip(first(), plain):
            assert torch.equal(q, x)
    with bands.without(model, "DC"):
        for q, x, y in zip(first(), sheared, plain):
            assert torch.allclose(q, x - y) and q[:, 0].abs().max() == 0 < q.abs().max()
    for q, x in zip(first(), sheared):
        assert torch.equal(q, x)


def test_accuracy_and_loss_of_a_stream(monkeypatch):
    """In one reading, the same loss; the share of hits against the logits of the whole text at once."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import accuracy
    model, text = awake(load_model("wavefield")), tokens((700,)).numpy()
    n, hit, loss = accuracy.read(model, text)
    idx = torch.from_numpy(text)[None]
    with torch.no_grad():
        logits, whole = model(idx[:, :-1], idx[:, 1:])
    expected = 100 * (logits.argmax(-1) == idx[:, 1:]).double().mean()
    assert n == 699 and hit == pytest.approx(expected.item(), abs=1e-9)
    assert loss == pytest.approx(whole.item(), abs=1e-6)


def test_texts_side_by_side_and_their_roughness(monkeypatch):
    """Every text is drawn from the model, which reads the prompt and then each new token, with its state."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import smooth
    model = awake(load_model("fluidlm"))
    a, b = (smooth.write(model, torch.arange(8), 3, 20, seed) for seed in (0, 0))
    assert a.shape == (3, 20) and (a == b).all() and len({tuple(row) for row in a}) == 3
    assert (a != smooth.write(model, torch.arange(8), 3, 20, 1)).any()
    idx = tokens((2, 9))
    with torch.no_grad():
        u = model.flow(idx, None)[0].numpy()
    assert smooth.roughness(model, idx) == pytest.approx(abs(u[:, 2:] - 2 * u[:, 1:-1] + u[:, :-2]).mean(), rel=1e-5)
    def counts(idx, state=None):                         # all but certain: how many tokens it has read
        state["n"] = state.get("n", 0) + idx.shape[1]
        return torch.full((*idx.shape, 9), -1e9).index_fill(-1, torch.tensor([state["n"]]), 0.0), None
    assert smooth.write(counts, torch.arange(2), 2, 4, 0).tolist() == [[2, 3, 4, 5]] * 2


@torch.no_grad()
def test_viscosity_of_every_token(monkeypatch):
    """nu in a stream is that of the whole text; entropy is the expected loss; letters know their place."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import meaning
    assert meaning.places("O'er the\nSea,").tolist() == [0, 2, 0, 1, 2, 0, 1, 1, 2, 0, 1, 1, 2]
    model, text = awake(load_model("advection_glu")), tokens((600,)).numpy()
    seen = []
    hook = model.blocks[1].ffn.nu_up.register_forward_hook(lambda layer, args, s: seen.append(s))
    logits = model(torch.from_numpy(text)[None, :-1])[0][0]
    hook.remove()
    nu, loss, entropy = meaning.read(model, text)
    assert nu.shape == (3, 599) and nu[1] == pytest.approx((1 + seen[0][0].exp()).log().mean(-1).numpy())
    p = logits.softmax(-1)
    assert entropy == pytest.approx(-(p * p.log()).sum(-1).numpy(), rel=1e-5)
    assert loss == pytest.approx(-p.log()[torch.arange(599), torch.from_numpy(text)[1:]].numpy(), rel=1e-4)


@torch.no_grad()
def test_what_is_measured_of_the_flow(monkeypatch):
    """Against the same by hand: pairs of tokens one by one, a field that only swells, a field that only turns."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import flow
    z = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = torch.nn.functional.normalize(z, dim=-1)
    pairs = [(n[b, s] @ n[b, t]).item() for b in range(2) for s in range(6) for t in range(s)]
    assert flow.cloud(z)[2] == pytest.approx(np.mean(pairs))
    layer = awake(load_model("hydra")).layers[0]
    monkeypatch.setattr(flow.hydra, "tangent", lambda f, n: n)   # M = n
    assert flow.divergence(layer, z.new_ones(1, 32)) == pytest.approx(1, abs=0.1)
    monkeypatch.undo()
    assert 0 < flow.divergence(layer, torch.randn(3, 32, dtype=torch.float64)) < 0.5


def test_bytes_that_a_state_holds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from memory import held
    whole = torch.zeros(100, dtype=torch.float64)
    assert held({"a": whole[:10], 0: [whole[50:], torch.zeros(3)]}) == 800 + 12


def test_the_slope_of_a_law(monkeypatch):
    """A table made of a law gives its exponent back, and the best width at each budget."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import scaling
    rows = [dict(model="baseline", width=w, minutes=m, seed=seed, parameters=w * w,
                 val_loss=2 * (w * w) ** -0.1 * m ** (-0.2 if w == 64 else -0.05))
            for w in (32, 64) for m in (1, 10) for seed in (0, 1)]
    (x, by_size), (seconds, by_time), best = scaling.curves(rows, "baseline", [32, 64], [1, 10])
    assert x == [1024, 4096] and seconds == [60, 600] and best == [64, 64] and by_size.shape == by_time.shape == (2, 2)
    assert scaling.slope(seconds, by_time[0]) == pytest.approx(-0.2)
    assert scaling.slope([1, 10, 100], [3, 3 * 10**-0.1, 3 * 100**-0.1]) == pytest.approx(-0.1)
    assert np.isnan(scaling.slope([1], [1]))


@torch.no_grad()
def test_what_the_equations_predict(monkeypatch):
    """Against the same in closed form."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from influence import predicted
    make = lambda name, **changes: awake(load_model(name), **changes)
    model = make("momentum", n_layer=2)
    g = np.concatenate([block.attn.gamma[1].flatten().numpy() for block in model.blocks])
    shear = predicted("momentum", model, 9)
    assert shear[:2] == pytest.approx([np.mean((1 + g) ** 2), np.mean(g ** 2)]) and not shear[2:].any()
    model = make("hydra", n_layer=2, nu=0.3)
    pulses = [np.convolve((1 - a, a), (1 - b, b)) for a, b in zip(*(layer.nu.tolist() for layer in model.layers))]
    assert predicted("hydra", model, 5)[:3] == pytest.approx(np.square(pulses).mean(0))
    assert not predicted("hydra", model, 5)[3:].any()
    assert predicted("advection_glu", make("advection_glu"), 3).tolist() == [1, 0, 0]
    model = make("fluidlm", n_layer=1)
    D = torch.nn.functional.softplus(model.blocks[0].diff).numpy() * model.blocks[0].step().item()       # (3, C)
    seen = predicted("fluidlm", model, 20)
    assert seen[[0, 1, 4, 16]] == pytest.approx([np.mean((1 - D.sum(0)) ** 2), *np.mean(D ** 2, 1)])
    assert np.flatnonzero(seen).tolist() == [0, 1, 4, 16]
    attn = (model := make("wavefield", n_layer=1)).blocks[0].attn
    alpha, omega, phi, _, field = (v.numpy()[:, None] if hasattr(v, "numpy") else v for v in attn.physics())
    wave = np.exp(-alpha * np.arange(field)) * np.cos(omega * np.arange(field) + phi)
    wave /= abs(wave).sum(1, keepdims=True)
    assert predicted("wavefield", model, field) == pytest.approx((wave ** 2).mean(0))


def test_every_experiment_begins_with_its_question():
    for path in ROOT.glob("experiments/*.py"):
        about = ast.get_docstring(ast.parse(path.read_text()))
        assert about, f"{path.name} says nothing about itself"
        if path.stem in TINY:
            assert "?" in about.partition("\n\n")[0], f"{path.name} asks nothing"
            assert f"python experiments/{path.name}" in about, f"{path.name} does not say how it is run"


def test_every_term_can_be_left_out(monkeypatch):
    """Each ablation moves the logits of a model that is awake, and no gradient reaches what it froze."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import ablate
    idx = tokens((2, 12))
    for name, terms in ablate.TERMS.items():
        logits = {}
        for term, alter in {"": lambda model: None, **terms}.items():
            model = awake(load_model(name))
            alter(model)
            logits[term] = model(idx)[0].detach()
            assert term == "" or (logits[term] - logits[""]).abs().max() > 1e-6, (name, term)
            frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
            model(idx, idx)[1].backward()
            assert all(dict(model.named_parameters())[key].grad is None for key in frozen), (name, term)


def test_what_was_trained_once_is_kept(experiment, text_file, monkeypatch):
    """The same run is not done twice, and is the same model; another seed or another model file is another run."""
    import lab
    run = lambda seed: lab.trained("momentum", str(text_file), dict(gamma=0.0), True, seed=seed, max_iters=1)
    real, runs = lab.short_run, []
    monkeypatch.setattr(lab, "short_run", lambda *args, **more: runs.append(more["seed"]) or real(*args, **more))
    first, _, progress = run(0)
    again, _, kept = run(0)
    assert runs == [0] and kept == progress and progress.step == 1
    for p, q in zip(first.parameters(), again.parameters()):
        assert torch.equal(p, q)
    run(1)
    monkeypatch.setattr(load_model("momentum"), "__file__", str(text_file))
    run(0)
    assert runs == [0, 1, 0]
