"""
How often is the next character the one that a model expects most, and does that rank the models as their loss does?

The original of Wave Field gives both: a perplexity of 6.2 against 5.9, and an accuracy of 50.5% against 51.0% for a
transformer. Here each model reads the validation text once as a stream, after the same CPU time of training.

  accuracy       the share of characters, in percent, that had the highest probability (of equal ones, the first)
  loss           nats per character of the same stream, as train.py gives it in the end

Differences to the baseline, momentum with gamma = 0, are paired by random seed, with 95% intervals by Student's t.
Models that race.py has trained for as long are not trained again.

    python experiments/accuracy.py                 about two minutes on two cores: one seed, 12 CPU-seconds each
    python experiments/accuracy.py full=true       three seeds, 180 CPU-seconds: an hour of a core; resume=true goes on
    python experiments/accuracy.py models=baseline,wavefield
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, get_data, paired, read_settings, said, save_picture, trained
from race import BASELINE

from common.score import LONGEST, nats, token_losses
from common.settings import guard

COLUMNS = "model minutes seed dataset small tokens accuracy loss".split()
ENTRANTS = ["baseline", *NAMES]


@dataclass
class Settings:
    out: str = "assets"             # folder of accuracy.csv and accuracy.png
    full: bool = False              # three seeds, three minutes
    seeds: int = 1                  # runs of each model
    minutes: float = 0.2            # CPU-minutes of each run
    dataset: str = "plays"          # the text
    models: str = ",".join(ENTRANTS)                             # who reads, beside the baseline
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what accuracy.csv already holds

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError("seeds should be 1 or more")


def both(logits, y):                                             # (B, T, V), (B, T) -> (B, T, 2)
    """Of each token: 1 if it was the most likely one, else 0; its nats."""
    return torch.stack((logits.argmax(-1) == y, nats(logits, y)), -1)


def read(model, data):                                           # -> tokens, accuracy in percent, loss
    found = token_losses(model, data[None, :LONGEST + 1], max(model.config.block_size, 512), score=both)[0]
    hit, loss = found.mean(0, dtype=np.float64)
    return len(found), 100 * hit, loss


def work(name, minutes, seed, dataset, small):
    name, changes = ("momentum", BASELINE) if name == "baseline" else (name, {})
    model, data, _ = trained(name, dataset, changes, small, seed=seed, minutes=minutes)
    return [read(model, data.val)]


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    of = lambda model, key: {r["seed"]: r[key] for r in rows if r["model"] == model}
    models = list(dict.fromkeys(r["model"] for r in rows))
    mean = {model: np.mean(list(of(model, "accuracy").values())) for model in models}
    others = sorted([model for model in models if model != "baseline"], key=mean.get)
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 3.3 + 0.9 * len(others)), layout="constrained").subplots()
        print(f"{'model':<14}{'accuracy (%)':>13}{'minus baseline':>24}{'loss (nats)':>13}{'minus baseline':>26}")
        for model in sorted(models, key=mean.get):
            accuracy, loss = of(model, "accuracy"), of(model, "loss")
            middle, low, high = gap = paired(accuracy, of("baseline", "accuracy"))
            print(f"{model:<14}{mean[model]:>13.2f}{said(gap, 2):>24}{np.mean(list(loss.values())):>13.3f}"
                  f"{said(paired(loss, of('baseline', 'loss'))):>26}")
            if model != "baseline":
                y = others.index(model)
                ax.plot((low, high), (y, y), color=COLOUR[model], lw=3)
                mark(ax, middle, y, f"{middle:+.2f}", COLOUR[model], COLOUR[model])
        if "wavefield" in others:
            mark(ax, -0.5, others.index("wavefield"), "published: -0.5", COLOUR["wavefield"], "white")
        ax.axvline(0, color="#999999", lw=1, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
        best = dict.fromkeys([max(models, key=mean.get), "baseline"])
        ax.set(yticks=range(len(others)), yticklabels=others, ylim=(-0.6, max(1, len(others)) - 0.2),
               xlabel="accuracy minus that of the baseline\n(percentage points; line: 95%)",
               title=f"Right about the next character:\n{', '.join(f'{m} {mean[m]:.1f}%' for m in best)}")
        ax.margins(x=0.2)
        save_picture(ax.figure, s.out, "accuracy.png")


def mark(ax, x, y, text, colour, fill):
    """A dot and what it says above it."""
    ax.plot(x, y, "o", color=colour, mfc=fill, mew=2.5, ms=13)
    ax.annotate(text, (x, y), xytext=(0, 13), textcoords="offset points", ha="center", color=colour)


def main():
    s = read_settings(Settings, dict(seeds=3, minutes=3.0))
    get_data(s.dataset)
    entrants = dict.fromkeys(["baseline", *chosen(s.models, ENTRANTS)])
    jobs = [(model, s.minutes, seed, s.dataset, s.small) for seed in range(s.seeds) for model in entrants]
    draw(collect(Path(s.out, "accuracy.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
