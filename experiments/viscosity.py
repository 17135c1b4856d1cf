"""
Should viscosity fall across the layers, and which Laplacian trains better?

The original Hydra lets viscosity fall to zero with depth, so that tokens can cluster at the end. Here falling, none,
constant and rising are trained on the same batches, for the same tokens, with the upwind stencil; then falling once
more with the one-sided second difference, which smooths slow changes and amplifies fast ones, and with a third of the
viscosity; at last as hydra.py has it, falling at the start and then learned for each channel. Constant takes nu/2:
with that, all three schedules have the same total viscosity.

    python experiments/viscosity.py                two to three minutes on two cores: two seeds, 25 iterations each
    python experiments/viscosity.py full=true      three seeds, 300 iterations; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, interval, read_settings, said, save_picture, short_run

from common.settings import guard

COLUMNS = "schedule laplacian nu iters seed dataset small val_loss bits_per_byte".split()
LAYERS = 4                      # of the flow without a force, preset=hydra


@dataclass
class Settings:
    out: str = "assets"             # folder of viscosity.csv and viscosity.png
    full: bool = False              # three seeds, 300 iterations
    seeds: int = 2                  # runs per row
    max_iters: int = 25             # iterations of each run
    nu: float = 0.3                 # the largest viscosity
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what viscosity.csv already holds


FULL = dict(seeds=3, max_iters=300)


def variants(nu):                                                # schedule, laplacian, nu
    return [("falling", "upwind", nu), ("none", "upwind", 0.0), ("constant", "upwind", nu / 2),
            ("rising", "upwind", nu), ("falling", "one_sided", nu), ("falling", "upwind", round(nu / 3, 4)),
            ("learned", "upwind", round(nu / 3, 4))]         # as the table has it: resume=true finds it


def work(schedule, laplacian, nu, iters, seed, dataset, small):
    changes = dict(laplacian=laplacian, nu=nu, learn_nu=schedule == "learned")
    changes["schedule"] = schedule if schedule in ("constant", "rising") else "falling"
    changes |= dict(zeus=False, n_layer=3 if small else LAYERS)  # one layer has no schedule
    _, _, progress = short_run("hydra", dataset, changes, small, max_iters=iters, seed=seed, evaluations=1)
    return [progress.rows[-1][3:5]]


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    losses = {}
    for variant in variants(s.nu):
        schedule, laplacian, nu = variant
        losses[variant] = {r["seed"]: r["val_loss"] for r in rows if (r["schedule"], r["laplacian"]) == variant[:2]
                           and abs(r["nu"] - nu) < 1e-6}
    first = next(iter(losses))
    gaps = {variant: [loss[seed] - losses[first][seed] for seed in loss] for variant, loss in losses.items()}
    print(f"{'schedule':<10} {'stencil':<9} {'nu':>5}   validation loss: mean; minus that of {first[0]}")
    for variant, loss in losses.items():
        schedule, laplacian, nu = variant
        print(f"{schedule:<10} {laplacian:<9} {nu:5.2f}   {np.mean(list(loss.values())):.4f}",
              said(interval(gaps[variant])))
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 6.5), layout="constrained").subplots()
        order, labels = sorted(gaps, key=lambda variant: np.mean(gaps[variant])), []
        for y, variant in enumerate(order):
            schedule, laplacian, nu = variant
            mean, low, high = interval(gaps[variant])
            colour = COLOURS[1] if variant == first else COLOURS[0]
            ax.plot((low, high), (y, y), color=colour, lw=2.5)
            ax.plot(mean, y, "o", color=colour, ms=11)
            ax.annotate("" if variant == first else f"{mean:+.3f}", (mean, y), xytext=(0, 13), ha="center",
                        textcoords="offset points", bbox=dict(fc="white", lw=0, pad=1))   # over the line at 0
            stencil = ", one-sided" if laplacian == "one_sided" else ""
            special = {"none": "none", "learned": "learned by channel"}
            labels.append(special.get(schedule, f"{schedule}{stencil}, {nu:.2g}"))
        none = np.mean(gaps["none", "upwind", 0.0])
        side = "behind" if none < 0 else "ahead of"
        ax.axvline(0, color="#999999", lw=1, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.1)
        ax.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.8),
               xlabel=f"loss after {s.max_iters} iterations minus that of\nfalling, {first[2]:.2g} (nats; lines: 95%)",
               title=f"Viscosity that falls with depth\nends {abs(none):.3f} nats {side} none")
        save_picture(ax.figure, s.out, "viscosity.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(*variant, s.max_iters, seed, s.dataset, s.small) for seed in range(s.seeds) for variant in variants(s.nu)]
    draw(collect(Path(s.out, "viscosity.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
