"""
Does truer physics help early in training and hurt late? Loss over a whole run, a variant against its default.

    advection_glu field=slope   u . grad z, an advection with its derivative, for the original's product of two maps
    hydra nu=0                  no viscosity: does it help early and hurt late?
    hydra u . grad u            one term more: z <- z - s n (z_t - z_{t-1}), the flow carries itself along the text,
                                n = z / rms(z), upwind slope, s learned per channel and layer from 0.1 on
    wavefield string            a damped string for each oscillator, with as many numbers (damping, speed, distance from
                                where it is struck to where it is heard): a pulse that travels, and arrives

A variant and its default see the same batches; the difference is paired by seed, with its 95% interval, over the whole
run. What decides is the loss a quarter through, and that of the whole text at the end. Both are of one run: early also
means at a high learning rate, which falls to zero in the second half.

    python experiments/late.py                     about three minutes on two cores: one seed, 24 CPU-seconds each
    python experiments/late.py full=true           three seeds, 180 CPU-seconds: 100 CPU-minutes; resume=true goes on
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, chosen, collect, get_data, interval, read_settings, said, save_picture, short_run

from common.checkpoint import load_model
from common.settings import guard

COLUMNS = "model variant minutes evaluations seed dataset small share iter val_loss final".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of late.csv and late.png
    full: bool = False              # three seeds, three minutes
    seeds: int = 1                  # runs of each variant
    minutes: float = 0.4            # CPU-minutes of each run, evaluations not counted
    evaluations: int = 8            # points of a curve
    dataset: str = "plays"          # the text
    models: str = "advection_glu,hydra,wavefield"               # whose variants
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what late.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.evaluations < 1:
            raise ValueError("seeds and evaluations should be 1 or more")


FULL = dict(seeds=3, minutes=3.0, evaluations=20)
MODES = 24                  # of a string: its pulse is 1/24 of it wide
SPAN = 512                  # tokens that a stream remembers of what struck a string

wavefield = load_model("wavefield")


class String(wavefield.WaveAttention):
    """Wave attention with a string of length 1 for each head, its ends held fast. Struck at a, heard at b = 1 - a:

    w(t) = e^{-alpha t} sum_n sin(n pi a) sin(n pi b) cos(n omega t) / Z,   omega = pi c,   b - a = sigmoid(phi)

    The pulse, of speed c, is heard (b - a) / c tokens later, and once more from each end."""

    def kernel(self, T):                                         # -> (H, T)
        n = torch.arange(1, MODES + 1)[:, None]
        distance = self.phi.sigmoid()
        shape = (torch.cos(n * math.pi * distance) - torch.cos(n * math.pi)) / 2     # sin(n pi a) sin(n pi b)
        t = torch.arange(max(T, self.config.block_size))
        w = (shape[..., None] * torch.cos(n[..., None] * self.omega[:, None] * t)).sum(0)
        w = w * torch.exp(-F.softplus(self.damp)[:, None] * t)
        return (w / w[:, :self.config.block_size].abs().sum(1, keepdim=True))[:, :T]

    def read(self, deposit, state):                              # (B, T, H, D) -> (B, T, H, D)
        past = torch.cat((state.get("struck", deposit[:, :0]), deposit), 1)
        state["struck"] = past[:, -SPAN:]
        T = past.shape[1]
        d = torch.fft.rfft(past.permute(0, 2, 3, 1), 2 * T)
        w = torch.fft.rfft(self.kernel(T).to(past.dtype), 2 * T)
        f = torch.fft.irfft(d * w[:, None], 2 * T)[..., :T]
        return f.permute(0, 3, 1, 2)[:, -deposit.shape[1]:]


@torch.no_grad()
def strings(model):
    """The reach of each wave stays. A pulse crosses its string in twice that time, but not faster than the highest mode
    can be told apart from token to token; it is heard after half of the reach."""
    for block in model.blocks:
        attn = block.attn
        attn.__class__ = String
        speed = 1 / (2 * attn.reach()).clamp(min=MODES)
        attn.omega.copy_(math.pi * speed)
        attn.phi.copy_((speed * attn.reach() / 2).logit())


def carry_itself(model):
    """u . grad u for Hydra, after the other terms of a layer: z <- z - s n (z_t - z_{t-1})."""
    norm = load_model("hydra").rms_norm

    def step(layer, args, z):                                    # args: z, RoPE's turn, the state of a stream
        state = args[2]
        last = z[:, :1]
        if state is not None:
            last = state.get("carried", last)
            state["carried"] = z[:, -1:].clone()
        slope = z - torch.cat((last, z[:, :-1]), 1)
        return z - layer.carry * norm(z) * slope

    for layer in model.layers:
        layer.carry = nn.Parameter(torch.full((model.config.n_embd,), 0.1))
        layer.register_forward_hook(step)


def as_it_is(model):
    """The default."""


VARIANTS = {                                                     # changes of the Config, and of the model
    "advection_glu": {"field=slope": (dict(field="slope"), as_it_is)},
    "hydra": {"nu=0": (dict(nu=0.0), as_it_is), "u . grad u": ({}, carry_itself)},
    "wavefield": {"string": ({}, strings)},
}


def work(name, variant, minutes, evaluations, seed, dataset, small):
    """One run -> its evaluations, with the share of the training that is done, and the whole text as a stream."""
    changes, alter = VARIANTS[name].get(variant, ({}, as_it_is))
    _, _, progress = short_run(name, dataset, changes, small, alter, evaluations, minutes=minutes, seed=seed)
    rows = [[min(1.0, seconds / 60 / minutes), step, loss, 0]
            for step, seconds, _, loss, _ in progress.rows if loss != ""]
    rows[-1][3] = 1
    return rows


def difference(rows, name, variant, final, evaluations):         # -> shares, differences (seeds, shares)
    """Of the variant to its default, seed by seed, at equal shares."""
    at = np.arange(1, evaluations + 1) / evaluations
    gaps = []
    for seed in sorted({r["seed"] for r in rows}):
        pick = lambda which: [r for r in rows if (r["model"], r["variant"], r["seed"], r["final"]) ==
                              (name, which, seed, final)]
        if final:
            gaps.append([pick(variant)[0]["val_loss"] - pick("")[0]["val_loss"]])
        else:
            curve = lambda which: np.interp(at, [r["share"] for r in pick(which)], [r["val_loss"] for r in pick(which)])
            gaps.append(curve(variant) - curve(""))
    return at, np.array(gaps)


def ahead(three):
    """Whether a difference is below zero for sure; with one seed, whether it is below zero."""
    mean, _, high = three
    return (mean if math.isnan(high) else high) < 0


def draw(rows, s):
    """A panel for each variant; the scale is linear between -0.05 and 0.05, and logarithmic beyond."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    print(f"{'':<30} a quarter through, at the end (evaluations); the whole text as a stream")
    pairs, count = [(name, variant) for name in s.models.split(",") for variant in VARIANTS[name]], np.zeros(2, int)
    with rc_context({"font.size": 16}):
        lines = (len(pairs) + 1) // 2
        fig = Figure(figsize=(11, 1 + 4 * lines), layout="constrained")
        axes = fig.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
        for (name, variant), ax in zip(pairs, axes.flat):
            at, gaps = difference(rows, name, variant, 0, s.evaluations)
            _, whole = difference(rows, name, variant, 1, s.evaluations)
            early = np.searchsorted(at, 0.25)
            of = [interval(column) for column in (gaps[:, early], gaps[:, -1], whole[:, 0])]
            print(f"{name + ' ' + variant:<30} {said(of[0])}, {said(of[1])}; {said(of[2])}")
            count += ahead(of[0]), ahead(of[2])
            mean, low, high = np.array([interval(column) for column in gaps.T]).T
            ax.fill_between(at, low, high, color=COLOUR[name], alpha=0.2, lw=0)
            ax.plot(at, mean, color=COLOUR[name], lw=3)
            ax.axhline(0, color="black", lw=1)
            ax.set(title=f"{name}: {variant}", xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1],
                   xticklabels=["0", "1/4", "1/2", "3/4", "1"])
            ax.set_yscale("symlog", linthresh=0.05)
            ax.set_yticks([-0.5, -0.05, 0, 0.05, 0.5], "-0.5 -0.05 0 0.05 0.5".split())
            ax.minorticks_off()
        for ax in axes.flat[len(pairs):]:
            ax.set_axis_off()
        first, last = (n or "none" for n in count)
        fig.suptitle(f"A quarter through {first} of {len(pairs)} variants are clearly ahead, at the end {last}")
        fig.supxlabel("share of the training (band: 95%)")
        fig.supylabel("loss minus that of the default (nats)")
        save_picture(fig, s.out, "late.png")


def main():
    s = read_settings(Settings, FULL)
    names = chosen(s.models, VARIANTS)
    get_data(s.dataset)
    jobs = [(name, variant, s.minutes, s.evaluations, seed, s.dataset, s.small) for seed in range(s.seeds)
            for name in names for variant in ("", *VARIANTS[name])]
    draw(collect(Path(s.out, "late.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
