"""
Does transport make a model spell, as the original says of Advection-GLU, and does its training run more smoothly?

Advection-GLU against the baseline (momentum, gamma = 0) with as many parameters, on the same batches. Each writes on
from the start of the validation text. Scored are the words that the training text has, those that only the validation
text has, the lines in their place (a SPEAKER: after a blank line, and only there), the quotes and brackets that close.
Stability: the largest rise of the training loss (mean of 20) above its lowest so far, also at three times the rate.

    python experiments/spelling.py                 half a minute on two cores: one seed, 40 iterations
    python experiments/spelling.py full=true       three seeds, 300 iterations; resume=true goes on
"""
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from lab import COLOUR, collect, get_data, read_settings, save_picture, short_run

from common.settings import guard
from data.text import Tokenizer
from sample import generate
from train import Train

ENTRANTS = {"baseline": ("momentum", {"gamma": 0.0}), "advection_glu": ("advection_glu", {})}
SCORES = "known_words only_validation play_lines closed largest_rise".split()
COLUMNS = ["model", "lr_factor", "iters", "seed", "dataset", "small", "characters", "val_loss", *SCORES]
LABELS = ["words of the\ntraining text", "only of the\nvalidation text", "lines in\ntheir place",
          "quotes and\nbrackets closed"]


@dataclass
class Settings:
    out: str = "assets"             # folder of spelling.csv and spelling.png
    full: bool = False              # three seeds, 300 iterations, 8,000 characters
    seeds: int = 1                  # runs per model and learning rate
    iters: int = 40                 # iterations of each run
    characters: int = 1000          # length of the text that is scored
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what spelling.csv already holds


FULL = dict(seeds=3, iters=300, characters=8000)


def words(text):
    """The words of a text, in small letters."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def closed(text):
    """Share of the quotes and brackets that are balanced, speech by speech; 1 if there are none."""
    good = total = 0
    for speech in text.split("\n\n"):
        for left, right in ("()", "[]"):
            a, b = speech.count(left), speech.count(right)
            good, total = good + 2 * min(a, b), total + a + b
        quotes = speech.count('"')
        good, total = good + quotes - quotes % 2, total + quotes
    return good / total if total else 1.0


def play_lines(text):
    """Share of lines in their place: a SPEAKER: after a blank line, and only there."""
    lines = text.split("\n")[:-1]                               # the last one is cut short
    speaker = [bool(re.fullmatch(r"[A-Z][A-Za-z ]*:", line)) for line in lines]
    return float(np.mean([s == (before == "") for before, s in zip(lines, speaker[1:])] or [0]))


def rise(losses, width=20):
    """How far the smoothed loss climbs above its lowest value so far."""
    smooth = np.convolve(losses, np.ones(min(width, len(losses))) / min(width, len(losses)), "valid")
    return float((smooth - np.minimum.accumulate(smooth)).max())


def work(model, lr_factor, iters, seed, dataset, small, characters):
    """Train, write, score -> one row."""
    name, changes = ENTRANTS[model]
    trained, data, progress = short_run(name, dataset, changes, small, max_iters=iters, evaluations=1, seed=seed,
                                    lr=Train.lr * lr_factor)
    tokenizer = Tokenizer(data.meta["tokenizer"])
    text = tokenizer.decode(list(generate(trained, data.val[:8].astype(np.int64), characters, seed=seed)))
    train_words, val_words = (set(words(tokenizer.decode(split))) for split in (data.train, data.val))
    written = words(text) or ["?"]
    share = lambda vocabulary: float(np.mean([w in vocabulary for w in written]))
    losses = [row[2] for row in progress.rows if row[2] != ""]
    return [[progress.rows[-1][3], share(train_words), share(val_words - train_words), play_lines(text), closed(text),
             rise(losses)]]


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(m, factor, s.iters, seed, s.dataset, s.small, s.characters)
            for seed in range(s.seeds) for factor in (1, 3) for m in ENTRANTS]
    rows = collect(Path(s.out, "spelling.csv"), COLUMNS, work, jobs, s.resume)
    from matplotlib.figure import Figure
    fig = Figure(figsize=(13, 5), layout="constrained")
    ax = fig.subplots(1, 2, width_ratios=(2, 1))
    for i, m in enumerate(ENTRANTS):
        of = lambda key, factor: [r[key] for r in rows if r["model"] == m and r["lr_factor"] == factor]
        for factor in (1, 3):
            print(f"{m:<14} lr x {factor}: loss {np.mean(of('val_loss', factor)):.3f}",
                  *(f"{key} {np.mean(of(key, factor)):.3f} ± {np.std(of(key, factor)):.3f}" for key in SCORES))
            ax[1].plot(np.full(s.seeds, factor + 0.2 * i), of("largest_rise", factor), "o", ms=8, color=COLOUR[m],
                       label=m if factor == 1 else None)
        ax[0].bar(np.arange(4) + 0.4 * i, [np.mean(of(key, 1)) for key in SCORES[:4]], 0.4, color=COLOUR[m], label=m)
        for k, key in enumerate(SCORES[:4]):
            ax[0].annotate(f"{np.mean(of(key, 1)):.1%}", (k + 0.4 * i, max(of(key, 1))), xytext=(0, 6), ha="center",
                           textcoords="offset points", fontsize=9)
            ax[0].plot(np.full(s.seeds, k + 0.4 * i), of(key, 1), "k.", ms=6)
    ax[0].set(title=f"share of the text after {s.iters} iterations (dots: seeds)", ylim=(0, 1.25),
              xticks=np.arange(4) + 0.2, xticklabels=LABELS)
    ax[1].set(title="largest rise of the training loss", xlabel="learning rate, in units of the default", ylabel="nats",
              xticks=(1.1, 3.1), xticklabels=("1", "3"), xlim=(0.5, 3.7), ylim=(0, None))
    for a in ax:
        a.legend()
    save_picture(fig, s.out, "spelling.png")


if __name__ == "__main__":
    guard(main)
