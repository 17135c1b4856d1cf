"""
Things to change and watch: what does one setting do to what a model learns, and what does the reader see?

Every change is one key=value of `train.py`. Each is trained for the same iterations, on the same batches, as its model
with its defaults; the table has all validation losses, the picture the largest differences, paired by seed, with 95%
intervals.

    python experiments/changes.py                  about three minutes on two cores: one seed, 20 iterations each
    python experiments/changes.py full=true        three seeds, 60 iterations; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, collect, get_data, paired, read_settings, said, save_picture, short_run

from common.checkpoint import load_model
from common.settings import guard, settings, split

CHANGES = ["momentum gamma=-0.5", "momentum gamma=1", "momentum shear=k", "wavefield stride=4",
           "wavefield stride=4 init=original", "hydra nu=0", "hydra learn_nu=false",
           "hydra laplacian=one_sided", "hydra rotation=cayley", "fluidlm n_steps=2",
           "fluidlm pump=broadcast", "advection_glu pre_ln=false", "advection_glu viscosity=token"]
SHOWN = 8                   # how many of them the picture has
COLUMNS = "change dataset iters seed small val_loss".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of changes.csv and changes.png
    full: bool = False              # three seeds, 60 iterations
    seeds: int = 1                  # runs of each change
    iters: int = 20                 # iterations of each run
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what changes.csv already holds

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError("seeds should be 1 or more")


def work(change, dataset, iters, seed, small):
    """Train `model key=value ...` -> the loss on the whole validation text."""
    name, *words = change.split()
    config = settings(words, load_model(name).Config)
    given = {key: getattr(config, key) for key in split(words)}
    _, _, progress = short_run(name, dataset, given, small, max_iters=iters, seed=seed, evaluations=1)
    return [[progress.rows[-1][3]]]


def effects(rows):                                               # -> {change: (mean, low, high)}
    """What each change does to the loss, paired by seed."""
    of = lambda change: {r["seed"]: r["val_loss"] for r in rows if r["change"] == change}
    return {change: paired(of(change), of(change.split()[0])) for change in CHANGES}


def draw(gaps, s):                                               # {change: (mean, low, high)}
    """The changes that moved the loss most; the table has the rest."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    largest = sorted(CHANGES, key=lambda change: -abs(gaps[change][0]))[:SHOWN]
    shown = sorted(largest, key=lambda change: gaps[change][0])
    seeds = f"{s.seeds} random seeds, lines: 95%" if s.seeds > 1 else "one random seed, so without intervals"
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 1.8 + 0.7 * len(shown)), layout="constrained").subplots()
        for i, change in enumerate(shown):
            mean, low, high = gaps[change]
            ax.barh(i, mean, color=COLOUR[change.split()[0]], alpha=0.8)
            ax.plot((low, high), (i, i), color="black", lw=2)
            end = max(mean, high) if mean >= 0 else min(mean, low)
            ax.annotate(f"{mean:+.2f}", (end, i), xytext=(6 if mean >= 0 else -6, 0), textcoords="offset points",
                        va="center", ha="left" if mean >= 0 else "right")
        ax.set(yticks=range(len(shown)), yticklabels=[change.replace(" ", ": ", 1) for change in shown],
               xlabel=f"rise of the validation loss (nats per token)\n{s.iters} iterations, {seeds}")
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.locator_params(axis="x", nbins=5)
        ax.axvline(0, color="black", lw=1)
        moved = [gaps[change][0] for change in shown]
        ax.figure.suptitle(f"One setting moves the loss by {min(moved):+.2f} to {max(moved):+.2f} nats")
        save_picture(ax.figure, s.out, "changes.png")


def main():
    s = read_settings(Settings, dict(seeds=3, iters=60))
    get_data(s.dataset)
    models = sorted({change.split()[0] for change in CHANGES})
    jobs = [(change, s.dataset, s.iters, seed, s.small) for seed in range(s.seeds) for change in [*models, *CHANGES]]
    gaps = effects(collect(Path(s.out, "changes.csv"), COLUMNS, work, jobs, s.resume))
    for change in CHANGES:
        print(f"{change:<32} {said(gaps[change])}")
    draw(gaps, s)


if __name__ == "__main__":
    guard(main)
