"""
How were the defaults chosen? Each run changes something in a model and has the CPU-seconds of a run in the race.

Every entry is what one could type after `python train.py model=`. A change that was worth its while became the default;
these are the others. One thread, one seed, the whole validation text: a difference of 0.02 is noise. sweeps.md has the
table of the full run, and what was tried before this script was written.

    python experiments/sweep.py                    about two minutes on two cores: Wave Field, 10 seconds each
    python experiments/sweep.py full=true dataset=shakespeare_char       all models, 180 seconds each; resume=true
                                                                         goes on
"""
import sys
from collections import Counter
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
NOISE = 0.02                    # nats: what another seed may change
COLUMNS = "model change minutes seed dataset small iter parameters tokens_per_s val_loss".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of sweep.csv and sweep.png
    full: bool = False              # all models, three minutes
    minutes: float = 0.17           # CPU-minutes of each run
    seed: int = 0                   # of each run
    models: str = "wavefield"       # whose settings, of those listed here
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
                               evaluations=0, **pick(train, words.keys() - own))
    step, seconds, loss = (progress.rows[-1][i] for i in (0, 1, 3))
    tokens = step * train.batch_size * model.config.block_size
    return [[step, sum(p.numel() for p in model.parameters() if p.requires_grad), tokens / seconds, loss]]


def table(rows):
    """The rows as Markdown, a line each."""
    lines = ["| model | change | parameters | tokens/s | iterations | val loss |", "| --- | --- |" + " ---: |" * 4]
    return lines + [f"| {r['model']} | {r['change']} | {r['parameters']:,.0f} "
                    f"| {r['tokens_per_s']:,.0f} | {r['iter']:.0f} | {r['val_loss']:.3f} |" for r in rows]


def mostly(changes):
    """The first word of most of the changes, which need not stand at each of their bars; empty if there is none."""
    word, n = Counter(change.split(" ")[0] for change in changes).most_common(1)[0]
    return word if 2 * n > len(changes) > 1 else ""


def draw(rows, s):
    """A panel for each model: how far each change ends behind the best of them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    runs = {name: sorted((r["val_loss"], str(r["change"])) for r in rows if r["model"] == name)
            for name in dict.fromkeys(r["model"] for r in rows)}
    most = max(own[-1][0] - own[0][0] for own in runs.values())
    with rc_context({"font.size": 15}):
        fig = Figure(figsize=(10, 1.6 + 0.33 * len(rows) + 0.75 * len(runs)), layout="constrained")
        panels = fig.subplots(len(runs), sharex=True, squeeze=False, height_ratios=[len(own) for own in runs.values()])
        for ax, (name, own) in zip(panels[:, 0], runs.items()):
            word = mostly([change for _, change in own])
            for i, (loss, _) in enumerate(own):
                gap = loss - own[0][0]
                ax.barh(i, gap, color=COLOUR.get(name, "#000000"), alpha=0.8 if gap > NOISE else 0.35)
                ax.annotate(f"+{gap:.3f}" if i else f"the best: {loss:.3f}", (gap, i), xytext=(6, 0),
                            textcoords="offset points", va="center")
            ax.set(yticks=range(len(own)), ylim=(len(own) - 0.4, -0.6),
                   yticklabels=[change.removeprefix(word + " ") or "as it is" for _, change in own])
            ax.set_title(name + f", {word} if nothing else is said" * bool(word), loc="left")
        ax.set(xlim=(0, 1.3 * max(most, NOISE)), xlabel="validation loss minus that of the best (nats per token)\n"
               f"{60 * s.minutes:g} CPU-seconds each, one seed; pale: below {NOISE:g}, noise")
        fig.suptitle(f"Of what was tried, the worst is {most:.2f} nats behind the best of its model")
        save_picture(fig, s.out, "sweep.png")


def main():
    s = read_settings(Settings, dict(minutes=3.0, models=",".join(TRIED)))
    get_data(s.dataset)
    tried = {name: TRIED[name] for name in chosen(s.models, TRIED)}
    if s.model:
        chosen(s.model, ["lstm", *models()])
        tried = {s.model: ["", *(change.strip() for change in s.changes.split("|") if change.strip())]}
    jobs = [(name, change, s.minutes, s.seed, s.dataset, s.small) for name in tried for change in tried[name]]
    rows = collect(Path(s.out, "sweep.csv"), COLUMNS, work, jobs, s.resume)
    print("", *table(rows), sep="\n")
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
