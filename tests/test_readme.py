"""The README's numbers are those of the files in assets/, its links lead somewhere, and its commands run."""
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY

README = " ".join((ROOT / "README.md").read_text().split())        # lines may be broken anywhere


@pytest.fixture
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")


def pick(table, key, **where):
    """One column of a table in assets/, of the rows where other columns have these values."""
    import common
    rows = common.read_csv(ROOT / f"assets/{table}.csv")
    rows = [r[key] for r in rows if all(r[k] == v for k, v in where.items())]
    assert rows, f"assets/{table}.csv has no row with {where}"
    return np.array(rows)


def three(values):
    """Mean and standard deviation over the seeds, as the README writes them."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def test_race_table(experiments):
    import race

    import common
    for line in race.table(common.read_csv(ROOT / "assets/race.csv")):
        assert line in README, line


def sentences():
    """What the README must say, with the numbers of the tables."""
    loss = lambda m, budget="seconds": pick("race", "val_loss", model=m, budget=budget, final=1)
    base = loss("baseline")
    both = lambda m: (f"{three(loss(m))} against {three(base)} in the same seconds, {three(loss(m, 'tokens'))} against "
                      f"{three(loss('baseline', 'tokens'))} after the same tokens")
    perplexity = lambda level, m: np.expm1(pick("vocabulary", "val_loss", level=level, model=m)
                                           - pick("vocabulary", "val_loss", level=level, model="baseline")).mean()
    recall = lambda layers, shear, gamma, task="two": pick(
        "induction", "accuracy", task=task, layers=layers, shear=shear, gamma=gamma).mean()
    viscosity = lambda **where: three(pick("viscosity", "val_loss", **where))
    words = lambda m, key="known_words", rate=1: pick("spelling", key, model=m, lr_factor=rate)
    percent = lambda x: f"{100 * x.mean():.1f} ± {100 * x.std(ddof=1):.1f}%"
    speed = lambda panel, name, n, key="ratio": pick("speed", key, panel=panel, name=name, n=n)[0]
    cheaper = [speed("kernel", "attention", n, "ms") / speed("kernel", "wave", n, "ms") for n in (2048, 8192, 32768)]
    sweep = lambda model, change: pick("sweep", "val_loss", model=model, change=change)[0]
    halting = {e: i for i, e in enumerate(pick("halting", "epsilon"))}
    halt = lambda key, epsilon: pick("halting", key)[halting[epsilon]]
    without = lambda model, term: (pick("ablate", "val_loss", model=model, without=term)
                                   - pick("ablate", "val_loss", model=model, without="")).mean()

    # momentum
    yield (f"recall of 8 pairs in another order: {recall(1, 'qk', 1):.2f} with gamma = 1, "
           f"{recall(1, 'qk', 0):.2f} without")
    yield (f"keys alone do {recall(1, 'k', 1):.2f}, queries alone {recall(1, 'q', 1):.2f}; when keys and values share "
           f"one vocabulary {recall(1, 'k', 1, 'one'):.2f} against {recall(1, 'qk', 1, 'one'):.2f} for both")
    yield (f"one layer with gamma = 1: {recall(1, 'qk', 1):.2f}; without, two layers {recall(2, 'qk', 0):.2f}, three "
           f"{recall(3, 'qk', 0):.2f}, four {recall(4, 'qk', 0):.2f}")
    yield f"at four layers gamma = 4 does {recall(4, 'qk', 4):.2f}"
    yield f"with gamma = 0.3 {both('momentum')}"
    # wavefield
    below = -100 * np.expm1(loss("wavefield").mean() - base.mean())
    yield f"a perplexity {below:.1f}% *below* the transformer's after the same seconds"
    yield (f"{perplexity('bpe', 'reach'):+.1%} at 8,000 byte pairs, {perplexity('char', 'reach'):+.1%} by characters; "
           f"with V3.5's waves {perplexity('bpe', 'seed'):+.1%} and {perplexity('char', 'seed'):+.1%}")
    yield f"{cheaper[0]:.0f}x, {cheaper[1]:.0f}x and {cheaper[2]:.0f}x in measured time"
    # hydra
    size = lambda m: pick("race", "parameters", model=m, final=1)[0]
    shallow = {key: pick("sweep", key, model="hydra", change="n_layer=3")[0] for key in ("parameters", "val_loss")}
    yield (f"at the same width and depth {shallow['parameters'] / size('baseline'):.0%} of the parameters and "
           f"{shallow['val_loss']:.3f} (one seed); with its four layers {size('hydra') / size('baseline'):.0%} and "
           f"{three(loss('hydra'))} against {three(base)} in the same seconds")
    yield f"at about as many parameters (`n_embd=184`) {sweep('hydra', 'n_embd=184'):.3f}"
    yield (f"falling {viscosity(schedule='falling', laplacian='upwind', nu=0.3)}, constant "
           f"{viscosity(schedule='constant')}, rising {viscosity(schedule='rising')}, none "
           f"{viscosity(schedule='none')}")
    yield f"the seed's stencil {viscosity(laplacian='seed')}"
    yield f"the force brings {sweep('hydra', 'zeus=true'):.3f} against {loss('hydra').mean():.3f}"
    # advection_glu
    yield f"words of the training text {percent(words('advection_glu'))} against {percent(words('baseline'))}"
    lines = [percent(words(m, "play_lines")) for m in ("advection_glu", "baseline")]
    yield f"lines in their place {lines[0]} against {lines[1]}"
    for rate, when in ((1, "nats"), (3, "at three times the learning rate")):
        rises = [words(m, "largest_rise", rate).mean() for m in ("advection_glu", "baseline")]
        yield f"{rises[0]:.3f} against {rises[1]:.3f} {when}"
    # fluidlm
    yield f"with {size('fluidlm') / size('baseline'):.1f} times the parameters {both('fluidlm')}"
    ratio = speed("flat", "fluidlm, texts of 256 against one", 4096)
    yield f"a step of 4,096 tokens costs {ratio:.2f} times as much in texts of 256 as in a single one"
    yield (f"rank correlation of steps and loss {halt('correlation', 0.2):.2f} (95%: {halt('low', 0.2):.2f} to "
           f"{halt('high', 0.2):.2f}) at epsilon = 0.2, which saves {1 - halt('share_of_steps', 0.2):.0%} of the steps "
           f"and costs {halt('loss_paid', 0.2):.3f} nats")
    yield "without " + ", ".join(f"{term} {without('fluidlm', term):+.3f}" for term in (
        "SSM", "diffusion", "local mean", "pump", "reaction"))


def test_numbers(experiments):
    missing = [sentence for sentence in sentences() if sentence not in README]
    assert not missing, "\n".join(missing)


def test_table_of_sweeps(experiments):
    import sweep

    import common
    text = (ROOT / "experiments/sweeps.md").read_text()
    for line in sweep.table(common.read_csv(ROOT / "assets/sweep.csv")):
        assert line in text, line


def test_table_of_changes(experiments):
    """Every row of `things to change` was tried, and says what came out."""
    import changes
    for change in changes.CHANGES:
        gap = pick("changes", "val_loss", change=change)[0] - pick("changes", "val_loss", change=change.split()[0])[0]
        assert f"| `{change}` | {gap:+.3f} |" in README, f"{change} {gap:+.3f}"


def test_commands(text_file, tmp_path):
    """The commands of the README, with tiny numbers."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"(?:&& |^    |`)python ((?:train|sample)\.py[^`\n]*)", text, re.M)
    assert len(commands) >= 4
    (tmp_path / "mybook.txt").write_text(text_file.read_text())
    for command in commands:
        words = [w.strip('"') for w in re.sub(r'="([^"]*)"', r"=\1", command).split()]
        if words[0] == "train.py" and "help" not in words:
            given = {w.split("=")[0] for w in words}
            tiny = [*TINY, "max_iters=2", f"dataset={text_file}", "overwrite=true"]
            words += [w for w in tiny if w.split("=")[0] not in given]
        if words[0] == "sample.py":
            words = [w for w in words if not w.startswith("prompt")] + ["prompt=A:", "tokens=3"]
        done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=tmp_path, capture_output=True,
                              text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
        assert done.returncode == 0, (command, done.stderr)


def test_links_and_files():
    for path in re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"`(\w+\.py|experiments/\w+\.py)`", README):
        assert (ROOT / path).exists() or (ROOT / "data" / path).exists() or path == "mine.py", path
