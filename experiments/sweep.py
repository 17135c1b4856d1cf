"""
How were the defaults chosen? Each run changes something in a model and has the CPU-seconds of a run in the race.

Every entry is what one could type after `python train.py model=`. A change that was worth its while became the default;
these are the others. One thread, one seed, the whole validation text: a difference of 0.02 is noise. sweeps.md has the
table of the full run, and what was tried before this script was written.

    python experiments/sweep.py                    about eight minutes on two cores: 10 seconds each
    python experiments/sweep.py full=true dataset=shakespeare_char       180 seconds each; resume=true goes on
"""
import sys
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, chosen, collect, entrant, get_data, read_settings, save_picture, short_run

from common.checkpoint import models
from common.settings import guard, settings, split
from train import Train

TRIED = {                       # most were tried at four layers, before three became the default
    "wavefield": ["n_layer=3", "n_layer=4", "n_layer=4 stride=4", "n_layer=4 stride=4 init=original",
                  "n_layer=4 init=original", "n_layer=4 n_head=16", "n_layer=6 n_embd=96", "n_layer=4 batch_size=8",
                  "n_layer=4 block_size=64 batch_size=32", "n_layer=4 lr=2e-2"],
    "advection_glu": ["n_layer=3", "n_layer=4", "n_layer=4 viscosity=token", "n_layer=4 pre_ln=false",
                      "n_layer=4 nu_rank=4", "n_layer=6 n_embd=96", "n_layer=4 batch_size=8",
                      "n_layer=4 block_size=64 batch_size=32", "n_layer=4 lr=2e-2"],
    "hydra": ["nu=0", "n_layer=6", "n_layer=3", "batch_size=8", "block_size=64 batch_size=32", "lr=2e-2", "n_embd=184",
              "zeus=true", "zeus=true n_layer=3"],
    "fluidlm": ["n_layer=3", "n_layer=6 n_embd=96", "n_layer=2 n_steps=2", "d_state=1", "batch_size=8",
                "block_size=64 batch_size=32", "laplacian=original", "w_eq=0 w_grad=0 w_gate=0"],
    "momentum": ["n_layer=3", "n_layer=4", "n_layer=4 shear=k", "n_layer=6 n_embd=96", "n_layer=4 n_head=8",
                 "n_layer=4 block_size=64 batch_size=32", "n_layer=10 mlp=false", "n_layer=4 optimizer=adamw lr=2e-3"],
}
COLUMNS = "model change minutes seed dataset small iter parameters tokens_per_s val_loss".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of sweep.csv and sweep.png
    full: bool = False              # three minutes
    minutes: float = 0.17           # CPU-minutes of each run
    seed: int = 0                   # of each run
    models: str = ",".join(TRIED)   # whose settings, of those listed here
    model: str = ""                 # or one model file, also yours, or lstm
    changes: str = ""               # and its settings to try, e.g. n_layer=2|lr=5e-3 batch_size=8
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what sweep.csv already holds


def work(name, change, minutes, seed, dataset, small):
    """Train `name key=value ...` for so long -> iterations, parameters, speed, loss."""
    Config, words = entrant(name).Config, split(change.split())
    train, config = settings(change.split(), Train, Config)
    own = {f.name for f in fields(Config)}
    pick = lambda settings, keys: {key: getattr(settings, key) for key in keys}
    model, _, progress = short_run(name, dataset, pick(config, words.keys() & own), small, seed=seed, minutes=minutes,
                               **pick(train, words.keys() - own))
    step, seconds, loss = (progress.rows[-1][i] for i in (0, 1, 3))
    tokens = step * train.batch_size * model.config.block_size
    return [[step, sum(p.numel() for p in model.parameters() if p.requires_grad), tokens / seconds, loss]]


def table(rows):
    """The rows as Markdown, a line each."""
    lines = ["| model | change | parameters | tokens/s | iterations | val loss |", "| --- | --- |" + " ---: |" * 4]
    return lines + [f"| {r['model']} | {r['change']} | {r['parameters']:,.0f} "
                    f"| {r['tokens_per_s']:,.0f} | {r['iter']:.0f} | {r['val_loss']:.3f} |" for r in rows]


def main():
    s = read_settings(Settings, dict(minutes=3.0))
    get_data(s.dataset)
    tried = {name: TRIED[name] for name in chosen(s.models, TRIED)}
    if s.model:
        chosen(s.model, ["lstm", *models()])
        tried = {s.model: ["", *(change.strip() for change in s.changes.split("|") if change.strip())]}
    jobs = [(name, change, s.minutes, s.seed, s.dataset, s.small) for name in tried for change in tried[name]]
    rows = collect(Path(s.out, "sweep.csv"), COLUMNS, work, jobs, s.resume)
    print("", *table(rows), sep="\n")

    from matplotlib.figure import Figure
    ax = Figure(figsize=(9, 7), layout="constrained").subplots()
    for i, r in enumerate(rows):
        ax.barh(i, r["val_loss"], color=COLOUR.get(r["model"], "#000000"), alpha=0.6)
        ax.annotate(f"{r['val_loss']:.3f}", (r["val_loss"], i), xytext=(4, 0), textcoords="offset points", va="center",
                    fontsize=8)
    losses = [r["val_loss"] for r in rows]
    ax.set(yticks=range(len(rows)), yticklabels=[f"{r['model']} {r['change']}" for r in rows],
           xlim=(min(losses) - 0.1, max(losses) + 0.05), xlabel="validation loss (nats per token); axis is cut",
           title=f"One setting changed, {60 * s.minutes:g} CPU-seconds each")
    ax.margins(y=0.01)
    ax.invert_yaxis()
    save_picture(ax.figure, s.out, "sweep.png")


if __name__ == "__main__":
    guard(main)
