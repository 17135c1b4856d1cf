"""
Does momentum give induction to a single layer of attention, which gamma is best at which depth, and can it replace a
layer?

Associative recall: eight pairs of key and value, then the keys in another order, each to be answered with its value.
In the first task keys and values are different symbols, in the second any symbol can be either. Attention only, 64
channels, 4 heads. The published law says the best gamma is 4.17 N^-0.74 for N layers; here `best` is the gamma with
the lowest loss.

    python experiments/induction.py                about three minutes on two cores: one seed
    python experiments/induction.py full=true      three seeds; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, read_settings, save_picture

from common.checkpoint import load_model
from common.settings import convert, guard

momentum = load_model("momentum")
COLUMNS = "task layers shear gamma seed steps accuracy loss".split()
SHEARS = {"qk": "queries and keys", "k": "keys only", "q": "queries only"}


@dataclass
class Settings:
    out: str = "assets"             # folder of induction.csv and induction.png
    full: bool = False              # three seeds
    seeds: int = 1                  # runs per setting
    steps: int = 400                # training steps of each circuit
    depth: int = 4                  # layers, at most
    gammas: str = "0,0.3,1,4"       # strengths of the shear
    resume: bool = False            # keep what induction.csv already holds


FULL = dict(seeds=3)


def one_vocabulary(n, generator=None, batch=momentum.recall_batch):
    """The second task: a value is any of the symbols that can be keys."""
    idx, targets = batch(n, generator=generator)
    return idx % 32, torch.where(targets < 0, targets, targets % 32)


def circuit(task, layers, shear, gamma, seed, steps):            # -> trained model, accuracy, loss of the answers
    """Train one circuit; accuracy and loss on fresh sequences."""
    recall_batch = momentum.recall_batch
    momentum.recall_batch = recall_batch if task == "two" else one_vocabulary
    try:
        config = momentum.Config(vocab_size=64, block_size=32, n_layer=layers, n_embd=64, mlp=False,
                                 gamma=gamma, shear=shear)
        model, accuracy = momentum.train_recall(config, steps, seed)
        idx, targets = momentum.recall_batch(512, generator=torch.Generator().manual_seed(seed + 1000))
    finally:
        momentum.recall_batch = recall_batch
    with torch.inference_mode():
        return model, accuracy, F.cross_entropy(model(idx)[0].flatten(0, 1), targets.flatten()).item()


def work(*job):
    return [circuit(*job)[1:]]


def draw(rows, maps, s):
    from matplotlib.figure import Figure
    fig = Figure(figsize=(13, 8), layout="constrained")
    ax = fig.subplots(2, 3)
    gammas, depths = sorted({r["gamma"] for r in rows}), range(1, s.depth + 1)

    def accuracy(value="accuracy", **where):                     # one number per seed
        return [r[value] for r in rows if all(r[k] == v for k, v in where.items())]

    def line(a, label, colour, style="o-", **where):
        every = [accuracy(**where | dict(shear=where["shear"] if g else "qk"), gamma=g) for g in gammas]
        a.plot(range(len(gammas)), [np.mean(v) for v in every], style, color=colour, label=label, ms=5)
        for x, v in enumerate(every):
            a.plot([x] * len(v), v, ".", color=colour, ms=4, alpha=0.6)

    for n, colour, mark in zip(depths, COLOURS, "osD^"):
        line(ax[0, 0], f"{n} layer{'s' * (n > 1)}", colour, mark + "-", task="two", layers=n, shear="qk")
    for (shear, name), colour in zip(SHEARS.items(), COLOURS):
        line(ax[0, 1], name, colour, "o-", task="two", layers=1, shear=shear)
        line(ax[0, 1], "one vocabulary", colour, "s:", task="one", layers=1, shear=shear)
    for a, title in ((ax[0, 0], "accuracy of recall by depth"), (ax[0, 1], "one layer: what is sheared")):
        a.set(title=title, xlabel="gamma", ylabel="accuracy", ylim=(-0.03, 1.03), xticks=range(len(gammas)))
        a.set_xticklabels([f"{g:g}" for g in gammas])
        a.legend(fontsize=8, loc="upper left" if a is ax[0, 1] else "lower center", ncols=2)
    ax[0, 1].set_ylim(-0.03, 1.42)

    best, plateau = [], []
    for n in depths:
        loss = [np.mean(accuracy("loss", task="two", layers=n, shear="qk", gamma=g)) for g in gammas]
        hit = [np.mean(accuracy(task="two", layers=n, shear="qk", gamma=g)) for g in gammas]
        best.append(gammas[int(np.argmin(loss))])
        plateau.append([g for g, h in zip(gammas, hit) if h >= max(hit) - 0.01])
        plus = np.mean(accuracy(task="two", layers=n + 1, shear="qk", gamma=0.0)) if n < s.depth else float("nan")
        print(f"{n} layers: best gamma {best[-1]:g} (law {4.17 * n ** -0.74:.2f}), within 1% of the best accuracy: "
              f"{', '.join(f'{g:g}' for g in plateau[-1])}; gamma=1 {hit[gammas.index(1.0)]:.3f}, "
              f"gamma=0 {hit[0]:.3f}, gamma=0 with one more layer {plus:.3f}")
        a, low, high = ax[1, 2], hit[0], hit[gammas.index(1.0)]
        for shift, value, colour in ((-0.27, low, "#777777"), (0, high, COLOURS[1]), (0.27, plus, COLOURS[0])):
            a.bar(n + shift, 0 if np.isnan(value) else value, 0.25, color=colour)
    a.set(title="momentum against one more layer", xlabel="layers N", ylabel="accuracy", xticks=depths, ylim=(0, 1.25))
    a.legend(["gamma = 0", "gamma = 1", "gamma = 0, N + 1 layers"], fontsize=7.5, loc="upper center", ncols=3,
             handlelength=1, columnspacing=0.6)
    a = ax[0, 2]
    n = np.linspace(1, s.depth, 50)
    a.plot(n, 4.17 * n ** -0.74, color="#777777", label="law 4.17 N^-0.74")
    for d, level in zip(depths, plateau):
        a.plot([d] * len(level), level, "_", color=COLOURS[0], ms=14, label="accuracy within 1%" if d == 1 else None)
    a.plot(depths, best, "o", color=COLOURS[1], label="lowest loss")
    a.set(title="best gamma", xlabel="layers N", ylabel="gamma", xticks=depths, ylim=(-0.2, 5.6))
    a.legend(fontsize=8, loc="upper right")
    for a, (gamma, weight) in zip(ax[1], maps.items()):
        half = len(weight) // 2
        rows_of_keys = weight.diagonal(1 - half)[1::2]
        a.imshow(weight ** 0.5, cmap="cividis", vmin=0, vmax=1)
        a.plot([1, half], [half, 2 * half - 1], ":", color="white", lw=0.8)
        a.set(title=f"one layer, gamma = {gamma:g}: {rows_of_keys.mean():.0%} on the stripe",
              xlabel="key token", ylabel="query token (8 pairs, twice)")
    save_picture(fig, s.out, "induction.png")


def main():
    s = read_settings(Settings, FULL)
    gammas = [convert("gammas", g, float) for g in s.gammas.split(",")]
    rest = dict.fromkeys((0.0, 1.0, *gammas))                    # 0 and 1 are what the picture compares
    jobs = [(task, n, shear, g, seed, s.steps)
            for seed in range(s.seeds) for n in range(1, s.depth + 1) for task in ("two", "one") for shear in SHEARS
            for g in sorted(rest) if (n == 1 or (task, shear) == ("two", "qk")) and (g or shear == "qk")]
    rows = collect(Path(s.out, "induction.csv"), COLUMNS, work, jobs, s.resume)
    told = momentum.recall_batch(1, generator=torch.Generator().manual_seed(1))[0][:, :16]
    maps = {}
    for gamma in (0.0, 1.0):                                     # the same pairs twice: induction is a diagonal
        weight = momentum.scores(circuit("two", 1, "qk", gamma, 0, s.steps)[0], told.repeat(1, 2))[0][1].numpy()
        maps[gamma] = max(weight, key=lambda w: w.diagonal(-15)[1::2].mean())
    draw(rows, maps, s)


if __name__ == "__main__":
    guard(main)
