"""
All five, the baseline and two rivals on one text: who learns most from the same seconds of a CPU core, who from the
same tokens? Every model at its defaults, same batches: for so many CPU-seconds (evaluations not counted), or so many
iterations. The score is the validation text read once as a stream, and beside it in windows from nothing.

The baseline is momentum with gamma = 0, a plain RoPE transformer. The rivals are what a user would really take: an
LSTM (lstm.py) and a counter (counting.py), which gets as long as it needs: a second or two.

    python experiments/race.py                     about three minutes on two cores: one seed, 15 seconds each
    python experiments/race.py full=true           three seeds, 180 seconds; resume=true goes on
    python experiments/race.py models=mine,wavefield,counter
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, entrant, get_data, paired, read_settings, said, save_picture, trained
from labels import name_ends

from common.checkpoint import models, tensor_bytes
from common.counter import Counter
from common.score import LONGEST, cold_loss, leak
from common.settings import guard
from train import Train

BASELINE = dict(gamma=0.0)
COLUMNS = ("model budget limit seed dataset small iter tokens seconds val_loss bits_per_byte final cold "
           "parameters tokens_per_s generated_per_s state_bytes leak").split()


@dataclass
class Settings:
    out: str = "assets"             # folder of race.csv and race.png
    full: bool = False              # three seeds, three minutes
    seeds: int = 1                  # runs per model and budget
    minutes: float = 0.25           # CPU-minutes of each run of the first kind
    max_iters: int = 0              # iterations of each run of the second kind; 0: no such runs
    dataset: str = "plays"          # the text
    models: str = ",".join(["baseline", *NAMES, "lstm", "counter"])       # who runs: these, or any model file
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what race.csv already holds


FULL = dict(seeds=3, minutes=3.0)


def generation(model, idx, tokens=100):                          # (1, 1000) -> tokens/s, bytes
    """Speed of greedy generation after idx, and the size of the state then."""
    state = {}
    for chunk in idx.split(model.config.block_size, 1):
        logits = model(chunk, state=state)[0]
    size = tensor_bytes(state)
    taken = []
    for _ in range(tokens):
        began = time.process_time()
        logits = model(logits[:, -1:].argmax(-1), state=state)[0]
        taken.append(time.process_time() - began)
    return 1 / float(np.median(taken)), size


def count(dataset):
    """The counter's one row: tokens are those that it counted, parameters its different n-grams."""
    data = get_data(dataset)
    began = time.process_time()
    counter = Counter(data.train, data.meta["vocab_size"], order=7)
    seconds = time.process_time() - began
    text = data.val[:LONGEST + 1]
    loss = -counter.log_probs(text)[1:].mean()
    cold = -counter.log_probs(text, window=128)[1:].mean()
    speed = len(data.train) / seconds
    return [[0, len(data.train), seconds, loss, loss * data.bits, 1, cold, sum(counter.sizes), speed, "", "", 0.0]]


def work(model, budget, limit, seed, dataset, small):
    """One run -> a row per evaluation, at last one on the whole text and with all measurements."""
    if model == "counter":
        return count(dataset)
    name, changes = ("momentum", BASELINE) if model == "baseline" else (model, {})
    length = dict(minutes=limit) if budget == "seconds" else dict(max_iters=int(limit))
    net, data, progress = trained(name, dataset, changes, small, seed=seed, **length)
    recipe = getattr(entrant(name), "RECIPE", {})
    batch = recipe.get("batch_size", Train.batch_size) * net.config.block_size
    idx = torch.from_numpy(data.val[:1000].astype(np.int64))[None]
    with torch.inference_mode():
        speed, size = generation(net, idx)
    points = []
    for step, seconds, _, loss, bits in progress.rows:
        if loss != "":
            points.append([step, step * batch, seconds, loss, bits, 0, "", "", "", "", "", ""])
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    cold = cold_loss(net, data.val, Train.batch_size)
    tokens_per_s = progress.step * batch / progress.seconds
    leaked = leak(net, data.val[:net.config.block_size])[0]
    points[-1][5:] = 1, cold, parameters, tokens_per_s, speed, size, leaked
    return points


def table(rows):
    """The README's table, a line each: means over seeds, losses with their standard deviation, and their difference to
    the baseline's, paired by seed, with its 95% interval."""
    final = [r for r in rows if r["final"]]

    def column(model, key, budget="seconds"):
        return np.array([r[key] for r in final if (r["model"], r["budget"]) == (model, budget) and r[key] != ""])

    def spread(x):
        if len(x) == 0:
            return "not measured"
        return f"{x.mean():.3f}" + (f" ± {x.std(ddof=1):.3f}" if len(x) > 1 else "")

    def behind(model):
        own, other = ({r["seed"]: r["val_loss"] for r in final if (r["model"], r["budget"]) == (m, "seconds")}
                      for m in (model, "baseline"))
        if model == "baseline" or not other:
            return "-"
        if model == "counter":                                   # has no seed
            own = dict.fromkeys(other, *own.values())
        return said(paired(own, other))

    names = list(dict.fromkeys(r["model"] for r in final if r["budget"] == "seconds"))
    same_tokens = any(r["budget"] == "tokens" for r in final)
    head = ["model", "parameters", "seconds", "tokens seen", "stream", "minus the baseline", "bits/byte",
            "in windows of 128"]
    head += ["stream, same tokens"] * same_tokens + ["generated/s", "state"]
    lines = [f"| {' | '.join(head)} |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for m in sorted(names, key=lambda m: column(m, "val_loss").mean()):
        cells = [m, f"{column(m, 'parameters')[0]:,.0f}", f"{column(m, 'seconds').mean():.0f}",
                 f"{column(m, 'tokens').mean() / 1e6:.1f} M", spread(column(m, "val_loss")), behind(m),
                 f"{column(m, 'bits_per_byte').mean():.3f}", spread(column(m, "cold"))]
        if same_tokens:
            cells.append("-" if m == "counter" else spread(column(m, "val_loss", "tokens")))
        if m == "counter":
            cells += ["-", "-"]
        else:
            cells += [f"{np.median(column(m, 'generated_per_s')):,.0f}",
                      f"{column(m, 'state_bytes').mean() / 1024:,.0f} KiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    raced = [x for x in ("seconds", "tokens") if any(r["budget"] == x for r in rows)]
    with rc_context({"font.size": 16}):
        fig = Figure(figsize=(1 + 9 * len(raced), 7), layout="constrained")
        for ax, x in zip(fig.subplots(1, len(raced), squeeze=False)[0], raced):
            draw_race(ax, [r for r in rows if r["budget"] == x], x)
        save_picture(fig, s.out, "race.png")


def draw_race(ax, rows, x):
    """The last two thirds of the curves, from evaluations; a dot is the whole text as a stream, as in the table."""
    whole = {}
    for r in rows:
        if r["final"]:
            whole.setdefault(r["model"], []).append(r["val_loss"])
    order = sorted(whole, key=lambda m: np.mean(whole[m]))
    end = np.median([r[x] for r in rows if r["final"] and r["model"] != "counter"])
    ends, heights = [], []
    for m in order:
        colour, score = COLOUR.get(m, "#000000"), np.mean(whole[m])
        if m == "counter":                                       # it has no curve
            ax.plot((end / 3, end), (score, score), color=colour, lw=2, ls=":")
        else:
            points = [r for r in rows if r["model"] == m and not r["final"]]
            runs = [np.array([(r[x], r["val_loss"]) for r in points if r["seed"] == seed])
                    for seed in sorted({r["seed"] for r in points})]
            at = np.linspace(end / 3, end, 41)
            mean = np.mean([np.interp(at, *run.T) for run in runs], 0)
            ax.plot(at, mean, color=colour, lw=3, ls="--" if m in ("baseline", "lstm") else "-")
            heights += [*mean]
        ax.plot(1.03 * end, score, "o", color=colour, ms=9)
        ends.append((1.03 * end, score, f"{m} {score:.3f}", colour))
    low, unit = min(score for _, score, _, _ in ends), "CPU-seconds" if x == "seconds" else x
    ax.set(xlim=(end / 3, 1.03 * end), ylim=(low - 0.12 * (max(heights) - low), max(heights)),
           ylabel="loss of validation text (nats per token)",
           xlabel=f"{unit} of training; dots: the whole text",
           title=f"In front after {end:,.0f} {unit}: {', then '.join(order[:2])}")
    ax.locator_params(axis="x", nbins=4)
    ticks = [tick for tick in ax.get_xticks() if end / 3 <= tick <= 1.03 * end]
    ax.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    ax.spines[["top", "right"]].set_visible(False)
    name_ends(ax, ends, 0.06, 0.42)


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    names = chosen(s.models, ["baseline", "lstm", "counter", *models()])
    budgets = (("seconds", s.minutes), ("tokens", s.max_iters))
    jobs = [(model, budget, limit, seed, s.dataset, s.small) for budget, limit in budgets if limit
            for seed in range(s.seeds) for model in names if model != "counter" or (budget, seed) == ("seconds", 0)]
    rows = collect(Path(s.out, "race.csv"), COLUMNS, work, jobs, s.resume)
    print("", *table(rows), sep="\n")
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
