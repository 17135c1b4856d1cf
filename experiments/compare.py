"""
Finished runs side by side, from the log.csv that train.py leaves: their losses in one picture.

    python experiments/compare.py runs=out/momentum,out/mine
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, read_csv, read_settings, save_picture, write_csv

from common.settings import UserError, guard


@dataclass
class Settings:
    runs: str = ""                  # folders of runs, with commas between them
    x: str = "seconds"              # what to draw the loss against: seconds or iter
    out: str = "out"                # folder of compare.csv and compare.png


def main():
    s = read_settings(Settings, {})
    if s.x not in ("seconds", "iter"):
        raise UserError(f"x={s.x} should be seconds or iter")
    runs = [run for run in s.runs.split(",") if run]
    if not runs:
        raise UserError("no runs; say runs=out/momentum,out/mine")
    from matplotlib.figure import Figure
    fig = Figure(figsize=(9, 5), layout="constrained")
    ax = fig.subplots()
    table = []
    for i, run in enumerate(runs):
        rows = [row for row in read_csv(Path(run, "log.csv")) if row["val_loss"] != ""]
        if not rows:
            raise UserError(f"{run} holds no log.csv with losses; train first, python train.py out={run}")
        colour = COLOURS[i % len(COLOURS)]
        x = [row[s.x] for row in rows]
        ax.plot(x, [row["val_loss"] for row in rows], "o-", color=colour, ms=4)
        ax.annotate(f" {run} {rows[-1]['val_loss']:.3f}", (x[-1], rows[-1]["val_loss"]), color=colour, va="center",
                    parse_math=False)
        table += [[run, row["iter"], row["seconds"], row["val_loss"], row["bits_per_byte"]] for row in rows]
        print(f"{run}: {rows[-1]['val_loss']:.4f} nats per token after {rows[-1]['iter']:.0f} iterations, "
              f"{rows[-1]['seconds']:.0f} s")
    ax.set(xlabel="seconds of training" if s.x == "seconds" else "iteration",
           ylabel="validation loss (nats per token)", title="Runs side by side")
    ax.margins(x=0.25)
    ax.grid(alpha=0.3)
    write_csv(Path(s.out, "compare.csv"), "run iter seconds val_loss bits_per_byte".split(), table)
    save_picture(fig, s.out, "compare.png")


if __name__ == "__main__":
    guard(main)
