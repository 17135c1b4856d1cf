"""
Does a model stay good when it reads on and on? It is trained on windows of 128, then reads streams of 16,384 tokens.

The loss of each token with so many tokens before it, minus the loss of the *same* token with 64 to 128 before it: so
an easy passage does not look like a good position. Below zero, the longer past helps; above, it hurts.

    python experiments/streams.py                  about two minutes on two cores: two models, 30 CPU-seconds each
    python experiments/streams.py full=true        three seeds, 180 CPU-seconds; resume=true goes on
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, collect, entrant, get_data, read_settings, save_picture, trained
from labels import name_ends

from common.checkpoint import models
from common.score import token_losses
from common.settings import UserError, guard, settings

WINDOW = 128
RANGES = ((0, 128), (128, 512), (512, 2048), (2048, 16384))
COLUMNS = "model changes minutes seed dataset small low high tokens loss reference difference".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of streams.csv and streams.png
    full: bool = False              # three seeds, three minutes
    seeds: int = 1                  # runs of each model
    minutes: float = 0.5            # CPU-minutes of each run
    dataset: str = "plays"          # the text
    models: str = "fluidlm,wavefield"       # who reads: baseline, lstm, or any model file
    also: str = ""                  # more rows, e.g. wavefield position=true|fluidlm block_size=64
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what streams.csv already holds


FULL = dict(seeds=3, minutes=3.0, models=",".join(["baseline", *NAMES, "lstm"]))


def short_past(model, data, window=WINDOW):                      # -> (N,) loss of each token, nan for the first ones
    """The loss of every token with window/2 to window tokens before it: windows, every window/2 tokens."""
    half = window // 2
    starts = np.arange(0, len(data) - window, half)
    losses = np.full(len(data), np.nan)
    for some in np.array_split(starts, max(1, len(starts) // 64)):
        part = token_losses(model, np.stack([data[s:s + window + 1] for s in some]), window)
        for s, row in zip(some, part):
            losses[s + half + 1:s + window + 1] = row[half:]
    return losses


def position_table(model, data, ranges=RANGES, window=WINDOW):
    """-> rows (low, high, tokens, loss, reference, difference), one for each range."""
    reference = short_past(model, data, window)
    short = ranges[-2][1]                                        # short pasts occur in more and shorter streams
    rows = []
    for low, high in ranges:
        length = min(len(data) - 1, max(short, high))
        starts = np.arange(0, len(data) - length, length)
        found = []
        for some in np.array_split(starts, max(1, len(starts) // 16)):
            losses = token_losses(model, np.stack([data[s:s + length + 1] for s in some]), 512)
            for s, row in zip(some, losses):
                at = np.arange(low, min(high, length))
                found.append(np.stack([row[at], reference[s + at + 1]]))
        loss, same = np.concatenate(found, 1)
        seen = np.isfinite(same)
        loss, same = loss[seen], same[seen]
        if len(loss):
            rows.append([low, high, len(loss), loss.mean(), same.mean(), (loss - same).mean()])
    return rows


def work(name, changes, minutes, seed, dataset, small):
    words = dict(word.split("=") for word in changes.split())
    model = name
    if name == "baseline":
        model, words = "momentum", words | {"gamma": "0"}
    config = settings([f"{key}={text}" for key, text in words.items()], entrant(model).Config)
    values = {key: getattr(config, key) for key in words}
    net, data, _ = trained(model, dataset, values, small, seed=seed, minutes=minutes)
    return position_table(net, data.val)


def table(rows, words=lambda gaps: f"{np.mean(gaps):+.3f}"):
    """For the README: the difference in each range, mean over seeds. words: what a cell says of those of all seeds."""
    lines = ["| model | " + " | ".join(f"{low:,} to {high:,}" for low, high in RANGES) + " |",
             "| --- " + "| ---: " * len(RANGES) + "|"]
    for key in dict.fromkeys((r["model"], r["changes"]) for r in rows):
        cells = []
        for low, high in RANGES:
            gaps = [r["difference"] for r in rows if (r["model"], r["changes"]) == key and r["low"] == low]
            cells.append(words(gaps) if gaps else "")
        lines.append(f"| {' '.join(key).strip()} | {' | '.join(cells)} |")
    return lines


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    read = [(low, high) for low, high in RANGES if any(r["low"] == low for r in rows)]
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 6), layout="constrained").subplots()
        ends = []
        for model, changes in dict.fromkeys((r["model"], r["changes"]) for r in rows):
            own = [r for r in rows if (r["model"], r["changes"]) == (model, changes)]
            gap = [np.mean([r["difference"] for r in own if r["low"] == low]) for low, _ in read]
            colour = COLOUR.get(model, "#000000")
            ax.plot(range(len(read)), gap, "o--" if changes else "o-", color=colour, lw=2.5, ms=8)
            ends.append((len(read) - 1, gap[-1], f"{model} {changes}".strip(), colour))
        ax.text(0.12, ax.get_ylim()[1], "hardly any past", va="top")
        worst = math.ceil(1000 * max(gap for _, gap, _, _ in ends)) / 1000       # of the longest past
        ax.plot((0, len(read) - 1), (0, 0), color="#999999", lw=1, zorder=0)
        ax.set(xticks=range(len(read)), xticklabels=[f"{low:,}\nto {high:,}" for low, high in read],
               xlabel="tokens of past", ylabel="loss minus that of the same tokens\nwith 64 to 128 of past (nats)",
               title=f"After {read[-1][0]:,} tokens of a stream\nno model loses more than {max(worst, 0.0):.3f} nats")
        ax.margins(y=0.15)
        ax.spines[["top", "right"]].set_visible(False)
        name_ends(ax, ends, 0.065, 0.15 + 0.018 * max(len(name) for _, _, name, _ in ends))
        save_picture(ax.figure, s.out, "streams.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    known = ["baseline", "lstm", *models()]
    entrants = [(name, "") for name in s.models.split(",")]
    for words in s.also.split("|") if s.also else []:
        name, _, changes = words.strip().partition(" ")
        entrants.append((name, changes))
    for name, _ in entrants:
        if name not in known:
            raise UserError(f"no '{name}'; there are {', '.join(known)}")
    jobs = [(name, changes, s.minutes, seed, s.dataset, s.small) for seed in range(s.seeds)
            for name, changes in entrants]
    rows = collect(Path(s.out, "streams.csv"), COLUMNS, work, jobs, s.resume)
    print("", *table(rows), sep="\n")
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
