"""
Which terms of each model matter? Leave out one at a time, train on the same batches, compare the validation losses.

The models have no switches for this. A term is removed from outside, before training: a parameter is set to the value
that makes the term vanish and kept there, or the output of a layer is overwritten. Everything else stays, also the
speed: the comparison is at equal tokens. A difference is paired by seed; with more than one seed it comes with its
95% interval (Student's t).

    python experiments/ablate.py                   about two minutes on two cores: two models, one seed, 30 iterations
    python experiments/ablate.py full=true         all five, three seeds, 700 iterations, a whole budget: five CPU-hours
    python experiments/ablate.py full=true models=fluidlm,wavefield resume=true      a part of it; goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, get_data, interval, read_settings, said, save_picture, short_run

from common.settings import guard

COLUMNS = "model without iters minutes seed dataset small steps val_loss bits_per_byte".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of ablate.csv and ablate.png
    full: bool = False              # three seeds, 700 iterations
    seeds: int = 1                  # runs per term
    max_iters: int = 0              # iterations of each run; 0: `minutes` decides
    minutes: float = 0.0            # CPU-minutes of each run; 0: 30 iterations, unless max_iters is given
    models: str = "fluidlm,wavefield"       # whose terms
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what ablate.csv already holds

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError("seeds should be 1 or more")
        if self.max_iters and self.minutes:
            raise ValueError(f"max_iters={self.max_iters} and minutes={self.minutes:g} contradict each other; "
                             "set one of them to 0")
        if not self.minutes:
            self.max_iters = self.max_iters or 30


FULL = dict(seeds=3, max_iters=700, models=",".join(NAMES))      # as many as 180 CPU-seconds had in the race


@torch.no_grad()
def freeze(model, ending, value):
    """Set all parameters whose names end so to a value, and keep them there."""
    for name, p in model.named_parameters():
        if name.endswith(ending):
            p.requires_grad_(False).copy_(torch.as_tensor(value).expand_as(p))


def without_pump(model):
    """alpha holds two numbers per channel, softplus-ed: of the pump and of the local mean. The first goes to -30."""
    for block in model.blocks:
        with torch.no_grad():
            block.alpha[0] = -30.0
        block.alpha.register_hook(lambda grad: grad * torch.tensor([[0.0], [1.0]]))


def without_gate(model):
    """kvg gives keys, values and gates side by side; the gates stay where they start, at 2."""
    def open_gates(layer, args, kvg):
        k, v, g = kvg.chunk(3, -1)
        return torch.cat((k, v, torch.full_like(g, 2)), -1)
    for block in model.blocks:
        block.attn.kvg.register_forward_hook(open_gates)


def without_slow_rope(model):
    model.config.slow = "off"


TERMS = {
    "fluidlm": {
        "diffusion": lambda m: freeze(m, "diff", -30.0),                     # softplus(-30) = 1e-13
        "SSM": lambda m: freeze(m, "memory.proj.weight", 0.0),
        "reaction": lambda m: freeze(m, "reaction.proj.weight", 0.0),        # and with it what the pump pumps
        "pump": without_pump,
        "local mean": lambda m: freeze(m, "local.weight", 0.0)},
    "wavefield": {
        "coupling of heads": lambda m: freeze(m, "coupling", 50 * torch.eye(m.config.n_head)),       # identity
        "gate": without_gate,
        "interference": lambda m: freeze(m, "interference.proj.weight", 0.0),
        "oscillation": lambda m: (freeze(m, "omega", 0.0), freeze(m, "phi", 0.0))},                  # decay only
    "hydra": {
        "pressure": lambda m: freeze(m, "proj.weight", 0.0),
        "rotation": lambda m: freeze(m, "skew.weight", 0.0),
        "viscosity": lambda m: freeze(m, "nu", 0.0),
        "force": lambda m: freeze(m, "lam", 0.0)},
    "momentum": {
        "shear": lambda m: freeze(m, "gamma", 0.0),
        "MLP": lambda m: freeze(m, "mlp.proj.weight", 0.0)},
    "advection_glu": {
        "context in the viscosity": lambda m: freeze(m, "nu_up.weight", 0.0),                # one nu per channel
        "slow RoPE": without_slow_rope,
        "transport": lambda m: freeze(m, "ffn.proj.weight", 0.0)},
}


def work(name, without, iters, minutes, seed, dataset, small):
    alter = TERMS[name].get(without, lambda model: None)         # "" leaves everything in
    _, _, progress = short_run(name, dataset, small=small, alter=alter, max_iters=iters, minutes=minutes, seed=seed,
                               evaluations=1)
    return [[progress.step, *progress.rows[-1][3:5]]]


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    loss = {(r["model"], r["without"], r["seed"]): r["val_loss"] for r in rows}
    length = f"{s.max_iters} iterations" if s.max_iters else f"{60 * s.minutes:g} CPU-seconds"
    names = s.models.split(",")
    y, labels, needed = 0, {}, []
    with rc_context({"font.size": 16}):
        bars = sum(2 + len(TERMS[name]) for name in names)
        ax = Figure(figsize=(10, 1.8 + 0.55 * bars), layout="constrained").subplots()
        for name in names:
            whole = [loss[name, "", seed] for seed in range(s.seeds)]
            print(f"{name:<14} {'whole':<26} {np.mean(whole):.4f}")
            labels[y] = f"{name}: {np.mean(whole):.3f}"
            for term in TERMS[name]:
                y += 1
                gaps = [loss[name, term, seed] - loss[name, "", seed] for seed in range(s.seeds)]
                mean, low, high = interval(gaps)
                print(f"{'':<14} without {term:<26} {said(interval(gaps), 4)}")
                needed += [term] * (low > 0)
                ax.barh(y, mean, color=COLOUR[name], alpha=0.9 if low > 0 or s.seeds == 1 else 0.4)
                ax.plot((low, high), (y, y), color="black", lw=2)
                ax.annotate(f"{mean:+.3f}", (np.nanmax([0, *gaps, high]), y), xytext=(8, 0),
                            textcoords="offset points", va="center")
                labels[y] = term
            y += 1.5
        ax.axvline(0, color="black", lw=1)
        sure = "one seed, so without intervals" if s.seeds == 1 else f"lines: 95%, {s.seeds} seeds; pale: 0 is inside"
        ax.set(yticks=list(labels), yticklabels=list(labels.values()), ylim=(y - 0.5, -0.5),
               xlabel=f"rise of the loss without it (nats per token), {length}\n{sure}")
        for label in ax.get_yticklabels():
            name = label.get_text().split(":")[0]
            if name in TERMS:
                label.set(weight="bold", color=COLOUR[name])
        ax.margins(x=0.2)
        ax.figure.suptitle("How the loss changes when a term is left out" if s.seeds == 1 else
                           f"Without {len(needed)} of the {bars - 2 * len(names)} terms the loss rises")
        save_picture(ax.figure, s.out, "ablate.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(name, term, s.max_iters, s.minutes, seed, s.dataset, s.small)
            for seed in range(s.seeds) for name in chosen(s.models, TERMS) for term in ("", *TERMS[name])]
    draw(collect(Path(s.out, "ablate.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
