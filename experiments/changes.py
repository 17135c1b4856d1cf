"""
Things to change and watch: what does one setting do to what a model learns, and what does the reader see?

Every change is one key=value of `train.py`. Each is trained for the same iterations, on the same batches, as its model
with its defaults; the table shows both validation losses, the picture their difference.

    python experiments/changes.py                  about a minute on two cores: 20 iterations each
    python experiments/changes.py full=true        60 iterations; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, collect, get_data, read_settings, save_picture, short_run

from common.checkpoint import load_model
from common.settings import guard, settings, split

CHANGES = ["momentum gamma=-0.5", "momentum gamma=1", "momentum shear=k", "wavefield stride=4",
           "wavefield stride=4 init=original", "hydra nu=0", "hydra learn_nu=false",
           "hydra laplacian=one_sided", "hydra rotation=cayley", "fluidlm n_steps=2",
           "fluidlm pump=broadcast", "advection_glu pre_ln=false", "advection_glu viscosity=token"]
COLUMNS = "change dataset iters small val_loss".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of changes.csv and changes.png
    full: bool = False              # 60 iterations
    iters: int = 20                 # iterations of each run
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what changes.csv already holds


def work(change, dataset, iters, small):
    """Train `model key=value ...` -> the loss on the whole validation text."""
    name, *words = change.split()
    config = settings(words, load_model(name).Config)
    given = {key: getattr(config, key) for key in split(words)}
    _, _, progress = short_run(name, dataset, given, small, max_iters=iters, evaluations=1)
    return [[progress.rows[-1][3]]]


def main():
    s = read_settings(Settings, dict(iters=60))
    get_data(s.dataset)
    models = sorted({change.split()[0] for change in CHANGES})
    rows = collect(Path(s.out, "changes.csv"), COLUMNS, work,
                   [(change, s.dataset, s.iters, s.small) for change in [*models, *CHANGES]], s.resume)
    val = {row["change"]: row["val_loss"] for row in rows}

    from matplotlib.figure import Figure
    ax = Figure(figsize=(9, 5), layout="constrained").subplots()
    for i, change in enumerate(CHANGES):
        gap = val[change] - val[change.split()[0]]
        print(f"{change:<32} {val[change]:.3f} instead of {val[change.split()[0]]:.3f}")
        ax.barh(i, gap, color=COLOUR[change.split()[0]])
        ax.annotate(f"{gap:+.3f}", (gap, i), xytext=(4 if gap >= 0 else -4, 0), textcoords="offset points", va="center",
                    ha="left" if gap >= 0 else "right", fontsize=9)
    ax.set(yticks=range(len(CHANGES)), yticklabels=CHANGES,
           xlabel="change of the validation loss (nats per token); left is better",
           title=f"One setting changed, {s.iters} iterations")
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.axvline(0, color="black", lw=0.8)
    save_picture(ax.figure, s.out, "changes.png")


if __name__ == "__main__":
    guard(main)
