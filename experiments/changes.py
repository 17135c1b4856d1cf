"""
Things to change and watch: what does one setting do to what a model learns, and what does the reader see?

Every change is one key=value of `train.py`. Each is trained for the same iterations, on the same batches, as its model
with its defaults; the table has all validation losses, the picture the largest differences.

    python experiments/changes.py                  about three minutes on two cores: 20 iterations each
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
SHOWN = 8                   # how many of them the picture has
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


def draw(val, s):                                                # {change: loss}
    """The changes that moved the loss most; the table has the rest."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    gaps = {change: val[change] - val[change.split()[0]] for change in CHANGES}
    shown = sorted(sorted(CHANGES, key=lambda change: -abs(gaps[change]))[:SHOWN], key=gaps.get)
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 1.8 + 0.7 * len(shown)), layout="constrained").subplots()
        for i, change in enumerate(shown):
            name, words = change.split(maxsplit=1)
            ax.barh(i, gaps[change], color=COLOUR[name], alpha=0.8)
            ax.annotate(f"{gaps[change]:+.2f}", (gaps[change], i), xytext=(6 if gaps[change] >= 0 else -6, 0),
                        textcoords="offset points", va="center", ha="left" if gaps[change] >= 0 else "right")
        ax.set(yticks=range(len(shown)), yticklabels=[change.replace(" ", ": ", 1) for change in shown],
               xlabel="rise of the validation loss (nats per token)\n"
               f"{s.iters} iterations, one random seed, so without intervals")
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.locator_params(axis="x", nbins=5)
        ax.axvline(0, color="black", lw=1)
        moved = [gaps[change] for change in shown]
        ax.figure.suptitle(f"One setting moves the loss by {min(moved):+.2f} to {max(moved):+.2f} nats")
        save_picture(ax.figure, s.out, "changes.png")


def main():
    s = read_settings(Settings, dict(iters=60))
    get_data(s.dataset)
    models = sorted({change.split()[0] for change in CHANGES})
    rows = collect(Path(s.out, "changes.csv"), COLUMNS, work,
                   [(change, s.dataset, s.iters, s.small) for change in [*models, *CHANGES]], s.resume)
    val = {row["change"]: row["val_loss"] for row in rows}
    for change in CHANGES:
        print(f"{change:<32} {val[change]:.3f} instead of {val[change.split()[0]]:.3f}")
    draw(val, s)


if __name__ == "__main__":
    guard(main)
