"""
Does momentum give induction to a single layer of attention, which gamma is best at which depth, and can it replace a
layer? Small circuits learn associative recall: attention only, 64 channels, 4 heads. The published law says the best
gamma is 4.17 N^-0.74 for N layers; here `best` is the gamma with the lowest loss.

    python experiments/induction.py                about three minutes on two cores: one seed
    python experiments/induction.py full=true      three seeds; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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


def recall_batch(n, task="two", pairs=8, symbols=32, generator=None):        # -> idx, targets (n, 4 * pairs - 1)
    """Pairs of key and value, then the same pairs in another order. In the same order position alone would do.

        a 7  c 2  b 9 | b 9  a 7  c 2       targets: 9, 7, 2 where b, a, c are read again; elsewhere -100, no loss

    Task "two": keys and values are different symbols. Task "one": any symbol can be either."""
    keys = torch.rand(n, symbols, generator=generator).argsort(1)[:, :pairs]                 # no key twice
    values = torch.randint(symbols, (n, pairs), generator=generator) + (symbols if task == "two" else 0)
    order = torch.rand(n, pairs, generator=generator).argsort(1)
    told = torch.stack((keys, values), 2).flatten(1)                                         # a 7  c 2  b 9
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), 2).flatten(1)      # b 9  a 7  c 2
    targets = torch.full((n, 4 * pairs - 1), -100)
    targets[:, 2 * pairs::2] = asked[:, 1::2]
    return torch.cat((told, asked), 1)[:, :-1], targets


def train_recall(task, layers, shear, gamma, seed, steps):       # -> model; accuracy, loss on fresh sequences
    """Train one circuit with AdamW."""
    torch.manual_seed(seed)
    data = torch.Generator().manual_seed(seed)
    config = momentum.Config(64, 32, n_layer=layers, n_embd=64, gamma=gamma, shear=shear, mlp=False)
    model = momentum.Model(config)
    torch.nn.init.normal_(model.wte.weight, std=0.1)             # a tied head must tell 64 symbols apart early
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 50, 2 - 2 * step / steps)
        loss = model(*recall_batch(64, task, generator=data))[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    idx, targets = recall_batch(512, task, generator=data)
    with torch.no_grad():
        logits, loss = model(idx, targets)
    hits = (logits.argmax(-1) == targets).sum() / (targets != -100).sum()
    return model, hits.item(), loss.item()


def work(*job):                                                  # what `collect` calls: one row
    return [train_recall(*job)[1:]]


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
        a.set(title=title, xlabel="gamma", ylabel="accuracy", ylim=(-0.03, 1.42), xticks=range(len(gammas)))
        a.set_xticklabels([f"{g:g}" for g in gammas])
        a.legend(fontsize=8, loc="upper left", ncols=2)

    best, bars = [], {"gamma = 0": [], "gamma = 1": [], "gamma = 0, N + 1 layers": []}
    for n in depths:
        loss = [np.mean(accuracy("loss", task="two", layers=n, shear="qk", gamma=g)) for g in gammas]
        hit = [np.mean(accuracy(task="two", layers=n, shear="qk", gamma=g)) for g in gammas]
        plus = np.mean(accuracy(task="two", layers=n + 1, shear="qk", gamma=0.0)) if n < s.depth else float("nan")
        best.append(gammas[int(np.argmin(loss))])
        for values, value in zip(bars.values(), (hit[gammas.index(0.0)], hit[gammas.index(1.0)], plus)):
            values.append(value)
        print(f"{n} layers: best gamma {best[-1]:g} (law {4.17 * n ** -0.74:.2f}), within 1% of the best accuracy: "
              f"{', '.join(f'{g:g}' for g, h in zip(gammas, hit) if h >= max(hit) - 0.01)}; "
              + ", ".join(f"{name} {values[-1]:.3f}" for name, values in bars.items()))
    for i, (name, colour) in enumerate(zip(bars, ("#777777", COLOURS[1], COLOURS[0]))):
        ax[1, 2].bar(np.array(depths) + 0.27 * (i - 1), np.nan_to_num(bars[name]), 0.25, color=colour, label=name)
    ax[1, 2].set(title="momentum or one more layer", xlabel="layers N", ylabel="accuracy", xticks=depths, ylim=(0, 1.4))
    ax[1, 2].legend(fontsize=8, loc="upper left", ncols=2)
    n = np.linspace(1, s.depth, 50)
    ax[0, 2].plot(n, 4.17 * n ** -0.74, color="#777777", label="the law, 4.17 N^-0.74")
    ax[0, 2].plot(depths, best, "o", color=COLOURS[1], label=f"lowest loss, of {', '.join(f'{g:g}' for g in gammas)}")
    ax[0, 2].set(title="best gamma", xlabel="layers N", ylabel="gamma", xticks=depths, ylim=(-0.2, 5.6))
    ax[0, 2].legend(fontsize=8, loc="upper right")
    for a, (gamma, weight) in zip(ax[1], maps.items()):
        a.imshow(weight ** 0.5, cmap="cividis", vmin=0, vmax=1)
        a.plot([1, 16], [16, 31], ":", color="white", lw=0.8)
        a.set(title=f"one layer, gamma = {gamma:g}: {weight.diagonal(-15)[1::2].mean():.0%} on the stripe",
              xlabel="token looked at", ylabel="token (8 pairs, twice; the stripe counts keys)")
    save_picture(fig, s.out, "induction.png")


def main():
    s = read_settings(Settings, dict(seeds=3))
    gammas = sorted({0.0, 1.0, *(convert("gammas", g, float) for g in s.gammas.split(","))})     # 0 and 1: for the bars
    jobs = [(task, n, shear, g, seed, s.steps)
            for seed in range(s.seeds) for n in range(1, s.depth + 1) for task in ("two", "one") for shear in SHEARS
            for g in gammas if (n == 1 or (task, shear) == ("two", "qk")) and (g or shear == "qk")]
    rows = collect(Path(s.out, "induction.csv"), COLUMNS, work, jobs, s.resume)
    told = recall_batch(1, generator=torch.Generator().manual_seed(1))[0][:, :16]
    maps = {}
    for gamma in (0.0, 1.0):                                     # the same pairs twice: induction is a diagonal
        heads = momentum.attention_weights(train_recall("two", 1, "qk", gamma, 0, s.steps)[0], told.repeat(1, 2))[0]
        maps[gamma] = max(heads, key=lambda weight: weight.diagonal(-15)[1::2].mean())
    draw(rows, maps, s)


if __name__ == "__main__":
    guard(main)
