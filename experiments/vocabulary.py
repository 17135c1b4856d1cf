"""
How far is the wave field behind attention by characters, and at a large vocabulary? How much of it is reach?

The original reports a perplexity 5% above a transformer's by characters and 87% above it with 8,000 byte pairs. The
baseline (momentum, gamma = 0) and the wave field, with waves that reach 1 .. block_size tokens at first and with V3.5's
own values, which forget within 5 tokens, are trained on the same batches of one text, cut both ways.

    python experiments/vocabulary.py               about a minute on two cores: one seed, 15 iterations
    python experiments/vocabulary.py full=true     three seeds, 60 iterations; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, collect, get_data, read_settings, save_picture, short_run

from common.settings import guard
from data.text import Tokenizer, make_tokenizer, prepared, write_dataset

ENTRANTS = {"baseline": ("momentum", dict(gamma=0.0)), "reach": ("wavefield", dict(init="reach")),
            "V3.5": ("wavefield", dict(stride=4, init="original"))}
COLUMNS = "model level iters seed vocab dataset small val_loss bits_per_byte".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of vocabulary.csv and vocabulary.png
    full: bool = False              # three seeds, 60 iterations
    seeds: int = 1                  # runs per row
    max_iters: int = 15             # iterations of each run
    vocab: int = 8000               # byte pairs, learned from the training text
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what vocabulary.csv already holds


def cut(dataset, vocab):
    """The folder of the same text in byte pairs."""
    data = get_data(dataset)
    folder, source = Path(f"out/data/{Path(dataset).stem}-bpe{vocab}"), data.meta["source"] | {"vocab": vocab}
    if not prepared(folder, source):
        texts = [Tokenizer(data.meta["tokenizer"]).decode(part) for part in (data.train, data.val)]
        write_dataset(folder, make_tokenizer("bpe", *texts, vocab), *texts, source)
    return str(folder)


def work(model, level, iters, seed, vocab, dataset, small):
    name, changes = ENTRANTS[model]
    text = cut(dataset, vocab) if level == "bpe" else dataset
    _, _, progress = short_run(name, text, changes, small, max_iters=iters, seed=seed, evaluations=1)
    return [progress.rows[-1][3:5]]


def main():
    s = read_settings(Settings, dict(seeds=3, max_iters=60))
    cut(s.dataset, s.vocab)
    jobs = [(model, level, s.max_iters, seed, s.vocab, s.dataset, s.small) for seed in range(s.seeds)
            for level in ("bpe", "char") for model in ENTRANTS]
    rows = collect(Path(s.out, "vocabulary.csv"), COLUMNS, work, jobs, s.resume)

    from matplotlib.figure import Figure
    ax = (fig := Figure(figsize=(10, 4.2), layout="constrained")).subplots(1, 2)
    for a, level in zip(ax, ("char", "bpe")):
        loss = {m: np.array([r["val_loss"] for r in rows if (r["model"], r["level"]) == (m, level)]) for m in ENTRANTS}
        for y, m in enumerate(ENTRANTS):
            gap = 100 * np.expm1(loss[m] - loss["baseline"])
            print(f"{level:<5} {m:<9} loss {loss[m].mean():.4f}   perplexity {np.exp(loss[m]).mean():8.2f}, "
                  f"{gap.mean():+.1f}% of the baseline's, from {gap.min():+.1f}% to {gap.max():+.1f}%")
            colour = COLOUR["baseline" if m == "baseline" else "wavefield"]
            a.plot(loss[m], [y] * len(loss[m]), "o", color=colour, alpha=0.6)
            a.plot(loss[m].mean(), y, "|", color=colour, ms=24, mew=2.5)
            a.annotate(f"{gap.mean():+.1f}% perplexity" if m != "baseline" else "", (loss[m].mean(), y), xytext=(0, 15),
                       textcoords="offset points", ha="center")
        a.set(title="characters" if level == "char" else f"{s.vocab:,} byte pairs", yticks=range(3), ylim=(2.5, -0.7),
              yticklabels=["baseline", "wavefield", "wavefield,\nV3.5's waves"],
              xlabel=f"validation loss after {s.max_iters} iterations (nats per token)")
        a.margins(x=0.3)
    save_picture(fig, s.out, "vocabulary.png")


if __name__ == "__main__":
    guard(main)
