"""
All five and the baseline on one text: who learns most from the same seconds of a CPU core, who from the same tokens?
Every model at its defaults, same batches: for so many CPU-seconds (evaluations not counted), or so many iterations.
Then bits per byte on the whole validation text, speed of generation and state size after 1,000 tokens, and the leak of
later tokens into earlier logits (float64). The baseline is momentum with gamma = 0, a plain RoPE transformer.

    python experiments/race.py                     about three minutes on two cores: one seed, 15 seconds each
    python experiments/race.py full=true           three seeds, 180 seconds; resume=true goes on
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, get_data, read_settings, save_picture, short_run

from common.checkpoint import tensor_bytes
from common.settings import guard
from train import Train

ENTRANTS = {"baseline": ("momentum", dict(gamma=0.0))} | {name: (name, {}) for name in NAMES}
COLUMNS = ("model budget limit seed dataset small iter tokens seconds val_loss bits_per_byte final "
           "parameters tokens_per_s generated_per_s state_bytes leak").split()


@dataclass
class Settings:
    out: str = "assets"             # folder of race.csv and race.png
    full: bool = False              # three seeds, three minutes
    seeds: int = 1                  # runs per model and budget
    minutes: float = 0.25           # CPU-minutes of each run of the first kind
    max_iters: int = 40             # iterations of each run of the second kind
    dataset: str = "plays"          # the text
    models: str = ",".join(ENTRANTS)        # who runs
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what race.csv already holds


FULL = dict(seeds=3, minutes=3.0, max_iters=100)


def causality_leak(model, idx):                                  # (1, T) -> float
    """The largest change of logits before the middle when all later tokens change; leaves the model in float64."""
    model, half, edited = model.double(), idx.shape[1] // 2, idx.clone()
    edited[:, half:] = (edited[:, half:] + 1) % model.config.vocab_size
    return (model(edited)[0] - model(idx)[0])[:, :half].abs().max().item()


def generation(model, idx, tokens=100):                          # (1, 1000) -> tokens/s, bytes
    """Speed of greedy generation after idx, and the size of the state then."""
    state = {}
    for chunk in idx.split(model.config.block_size, 1):
        logits = model(chunk, state=state)[0]
    size, taken = tensor_bytes(state), []
    for _ in range(tokens):
        began = time.process_time()
        logits = model(logits[:, -1:].argmax(-1), state=state)[0]
        taken.append(time.process_time() - began)
    return 1 / float(np.median(taken)), size


def work(model, budget, limit, seed, dataset, small):
    """One run -> a row per evaluation: on 128 windows, at last on the whole text and with all measurements."""
    name, changes = ENTRANTS[model]
    length = dict(minutes=limit) if budget == "seconds" else dict(max_iters=int(limit))
    trained, data, progress = short_run(name, dataset, changes, small, seed=seed, **length)
    batch = Train.batch_size * trained.config.block_size
    rows = [r for r in progress.rows if r[3] != ""]
    idx = torch.from_numpy(data.val[:1000].astype(np.int64))[None]
    with torch.inference_mode():
        speed, size = generation(trained, idx)
        leak = causality_leak(trained, idx[:, :2 * trained.config.block_size])
    points = [[r[0], r[0] * batch, r[1], r[3], r[4], 0, "", "", "", "", ""] for r in rows]
    parameters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    points[-1][5:] = 1, parameters, rows[-1][0] * batch / rows[-1][1], speed, size, leak
    return points


def table(rows):
    """The README's table, a line each: means over seeds, losses with their standard deviation."""
    lines = ["| model | parameters | tokens/s | nats, same seconds | bits/byte | nats, same tokens "
             "| generated/s | state | leak |", "| --- " + "| ---: " * 8 + "|"]
    final = [r for r in rows if r["final"]]
    for m in dict.fromkeys(r["model"] for r in final):
        of = lambda key, budget="seconds": np.array([r[key] for r in final if (r["model"], r["budget"]) == (m, budget)])
        spread = lambda x: f"{x.mean():.3f}" + (f" ± {x.std(ddof=1):.3f}" if len(x) > 1 else "")
        generated = np.median([*of("generated_per_s"), *of("generated_per_s", "tokens")])
        lines.append(f"| {m} | {of('parameters')[0]:,.0f} | {of('tokens_per_s').mean():,.0f} "
                     f"| {spread(of('val_loss'))} | {of('bits_per_byte').mean():.3f} "
                     f"| {spread(of('val_loss', 'tokens'))} | {generated:,.0f} "
                     f"| {of('state_bytes').mean() / 1024:,.0f} KiB | {max(*of('leak'), *of('leak', 'tokens')):.0e} |")
    return lines


def draw(rows, s):
    from matplotlib.figure import Figure
    ax = (fig := Figure(figsize=(13, 5.6), layout="constrained")).subplots(1, 2)
    for a, x in zip(ax, ("seconds", "tokens")):
        last = []
        for m in dict.fromkeys(r["model"] for r in rows):
            of = lambda seed: [r for r in rows if (r["model"], r["budget"], r["seed"]) == (m, x, seed)]
            runs = [np.array([(r[x], r["val_loss"]) for r in of(seed)]) for seed in range(s.seeds)]
            for run in runs:
                a.plot(*run[1:].T, color=COLOUR[m], lw=0.7, alpha=0.5)
            at = np.linspace(max(run[1, 0] for run in runs), min(run[-1, 0] for run in runs), 40)
            mean = np.mean([np.interp(at, *run.T) for run in runs], 0)
            a.plot(at, mean, color=COLOUR[m], lw=2.4, ls="--" if m == "baseline" else "-")
            last.append((mean[-1], at[-1], m))
        low, span = min(last)[0], max(last)[0] - min(last)[0]
        a.set(xlabel=x, ylabel="validation loss (nats per token)", ylim=(low - 0.1, low + max(0.6, 3 * span)),
              xlim=(0, 1.36 * max(end for _, end, _ in last)),
              title="the same seconds of one CPU core" if x == "seconds" else "the same tokens")
        gap, y, right = 0.05 * (a.get_ylim()[1] - a.get_ylim()[0]), low - 9, max(end for _, end, _ in last)
        for value, end, m in sorted(last):                       # names beside the ends of the lines, pushed apart
            y = max(value - gap, y + gap)
            a.annotate(f"{m} {value:.3f}", (end, value), xytext=(1.04 * right, y), va="center", color=COLOUR[m],
                       fontsize=9, arrowprops=dict(arrowstyle="-", color=COLOUR[m], lw=0.7))
        a.grid(alpha=0.3)
    save_picture(fig, s.out, "race.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    models, budgets = chosen(s.models, ENTRANTS), (("seconds", s.minutes), ("tokens", s.max_iters))
    jobs = [(model, budget, limit, seed, s.dataset, s.small)
            for seed in range(s.seeds) for budget, limit in budgets for model in models]
    rows = collect(Path(s.out, "race.csv"), COLUMNS, work, jobs, s.resume)
    print("", *table(rows), sep="\n")
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
