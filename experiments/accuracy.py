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
    with rc_context({"font.size": 13}):
        ax = Figure(figsize=(9, 5), layout="constrained").subplots()
        print(f"{'model':<14}{'accuracy (%)':>13}{'minus baseline':>24}{'loss (nats)':>13}{'minus baseline':>26}")
        for y, model in enumerate(sorted(models, key=mean.get)):
            accuracy, loss = of(model, "accuracy"), of(model, "loss")
            middle, low, high = gap = paired(accuracy, of("baseline", "accuracy"))
            mean_loss = np.mean(list(loss.values()))
            print(f"{model:<14}{mean[model]:>13.2f}{said(gap, 2):>24}{mean_loss:>13.3f}"
                  f"{said(paired(loss, of('baseline', 'loss'))):>26}")
            ax.plot((low, high), (y, y), color=COLOUR[model], lw=2)
            ax.plot(middle, y, "o", color=COLOUR[model], ms=9)
            ax.text(1.02, y, f"{mean[model]:.1f}%, {mean_loss:.3f} nats", va="center",
                    transform=ax.get_yaxis_transform(), color=COLOUR[model])
        ax.axvline(0, color="black", lw=0.8)
        ax.axvline(-0.5, color="#999999", ls=":")
        ax.annotate("published\nfor Wave Field", (-0.5, 0.02), xycoords=("data", "axes fraction"), xytext=(-5, 0),
                    textcoords="offset points", ha="right", color="#777777")
        ax.set(yticks=range(len(models)), yticklabels=sorted(models, key=mean.get), ylim=(-0.9, len(models) - 0.4),
               xlabel="accuracy minus that of the baseline (percentage points)",
               title="How often the next character is the expected one")
        ax.margins(x=0.1)
        ax.set_xlim(min(-1.5, ax.get_xlim()[0]))                 # room for what was published
        save_picture(ax.figure, s.out, "accuracy.png")


def main():
    s = read_settings(Settings, dict(seeds=3, minutes=3.0))
    get_data(s.dataset)
    entrants = dict.fromkeys(["baseline", *chosen(s.models, ENTRANTS)])
    jobs = [(model, s.minutes, seed, s.dataset, s.small) for seed in range(s.seeds) for model in entrants]
    draw(collect(Path(s.out, "accuracy.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
