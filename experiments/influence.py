"""
Who influences whom, and is it what the equation says?

One token of a text is replaced by another, and every prediction moves by so many nats (common/score.py: `influence`).
Measured: the mean over all pairs of tokens at one distance, relative to distance 0, in a trained model. Predicted: what
the term of the equation that reaches along the text would do alone, with the trained constants:

    momentum         the shear: a key holds (1 + gamma) of its own token and -gamma of the one before
    wavefield        the waves: w(d)^2, mean over the waves of all blocks; a shape, moved to the measured height
    fluidlm          diffusion, layer after layer: a drop of dye travels 1, 4 and 16 tokens a step
    hydra            viscosity, layer after layer: it carries a token on to its neighbours
    advection_glu    transport acts on each token for itself: nothing at any distance

An equation moves a latent by so much, and for small moves nats are their square: so what is predicted are squares.
Attention has no kernel to compare with, but a window: dotted.

    python experiments/influence.py                two minutes on two cores: one seed, 24 CPU-seconds each, one text
    python experiments/influence.py full=true      three seeds, 180 CPU-seconds, 4 texts; resume=true goes on
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, get_data, read_settings, save_picture, trained
from labels import name_ends

from common.checkpoint import load_model
from common.score import influence
from common.settings import UserError, guard

EDGES = [*range(34), 36, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256]      # distances of the rows
COLUMNS = "model minutes texts seed dataset small low high influence predicted".split()
TITLES = {"momentum": "shear", "wavefield": "waves", "fluidlm": "diffusion 1, 4, 16", "hydra": "viscosity",
          "advection_glu": "itself only"}


@dataclass
class Settings:
    out: str = "assets"                     # folder of influence.csv and influence.png
    full: bool = False                      # three seeds, three minutes, 4 texts
    seeds: int = 1                          # runs of each model
    minutes: float = 0.4                    # CPU-minutes of each run
    texts: int = 1                          # pieces of validation text, each of two windows
    dataset: str = "plays"                  # the text
    models: str = ",".join(NAMES)           # whose map
    small: bool = False                     # tiny models, to try the script out
    resume: bool = False                    # keep what influence.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.texts < 1:
            raise ValueError("seeds and texts should be 1 or more")


FULL = dict(seeds=3, minutes=3.0, texts=4)


def by_distance(model, data, texts):                             # -> (T,) mean nats at each distance, T two windows
    """The upper half of the influence map, mean over its diagonals and over pieces of the text."""
    T = 2 * model.config.block_size
    if len(data) < T:
        raise UserError(f"the validation text has {len(data)} tokens; a map needs {T}, give a longer text")
    starts = np.unique(np.linspace(0, len(data) - T, texts).astype(int))
    maps = [influence(model, data[s:s + T].astype(np.int64)) for s in starts]
    return np.array([np.mean([kl.diagonal(d).mean(dtype=np.float64) for kl in maps]) for d in range(T)])


@torch.no_grad()
def predicted(name, model, T):                                   # -> (T,) the square of an impulse response
    """What the term that reaches along the text makes of a single 1 at token 0."""
    module = load_model(name)
    seen = torch.zeros(1, T, 1, dtype=torch.float64)
    seen[0, 0] = 1
    if name == "momentum":
        if "k" in model.config.shear:
            gamma = torch.cat([block.attn.gamma[1] for block in model.blocks]).double()      # (L H, 1)
            before = torch.zeros(1, 1, *gamma.shape)
            seen = module.shear(seen[..., None].expand(-1, -1, *gamma.shape), gamma, before)[..., 0]
    elif name == "wavefield":
        waves = []
        for block in model.blocks:
            power, amp = module.resonator(*block.attn.physics(), T)
            waves.append((amp * power).real)
        seen = torch.cat(waves).T[None]                          # (1, T, waves)
    elif name == "fluidlm":
        seen = seen.expand(-1, -1, model.config.n_embd)
        for block in model.blocks:
            for step in range(model.config.n_steps):
                past = F.pad(seen, (0, 0, 32, 0))
                flow = module.laplacian(past, F.softplus(block.diff).double(), T, model.config.laplacian)
                seen = seen + block.step().double() * flow
    elif name == "hydra":
        seen = F.pad(seen.expand(-1, -1, model.config.n_embd), (0, 0, 2, 0))     # two empty tokens before it
        for layer in model.layers:
            seen = module.viscosity(seen, layer.nu.double(), model.config.laplacian)
        seen = seen[:, 2:]
    return seen.square().mean((0, 2)).numpy()


def work(name, minutes, texts, seed, dataset, small):
    model, data, _ = trained(name, dataset, {}, small, minutes=minutes, seed=seed)
    nats = by_distance(model, data.val, texts)
    nats /= nats[0]
    line = predicted(name, model.eval(), len(nats))
    if name == "wavefield":                                      # its height is not the equation's
        reached = slice(1, min(len(nats), 64))
        line *= np.exp(np.mean(np.log((nats[reached] + 1e-12) / (line[reached] + 1e-12))))
    else:
        line /= line[0]
    return [[low, high, nats[low:high].mean(), line[low:high].mean()]
            for low, high in zip(EDGES, EDGES[1:]) if high <= len(nats)]


def bump(values, d):
    """The value at distance d over the mean of those on both sides."""
    return values[d] / max((values[d - 1] + values[d + 1]) / 2, 1e-99)


def means(rows, name):
    """-> the distances (low, high), means over seeds of what is measured and predicted there."""
    own = [r for r in rows if r["model"] == name]
    distances = list(dict.fromkeys((r["low"], r["high"]) for r in own))
    mean = {key: np.array([np.mean([r[key] for r in own if r["low"] == low]) for low, _ in distances])
            for key in ("influence", "predicted")}
    return distances, mean


def report(rows):
    """-> the share of the influence that comes from the token before, for each model."""
    print("share of the influence from at most 1, 4, 16, 64 tokens back;",
          "how far distances 4 and 16 stand out, measured and predicted")
    before = []
    for name in dict.fromkeys(r["model"] for r in rows):
        distances, mean = means(rows, name)
        nats = (mean["influence"] * [high - low for low, high in distances])[1:]         # of other tokens
        low = np.array([low for low, _ in distances[1:]])
        shares = [nats[low <= d].sum() / max(nats.sum(), 1e-99) for d in (1, 4, 16, 64)]
        stand = [bump(mean[key], d) for d in (4, 16) for key in mean if len(distances) > 17]
        print(f"{name:<14}", *(f"{v:4.0%}" for v in shares), "  ", *(f"{v:.2f}" for v in stand))
        before.append(shares[0])
    return before


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    least = math.floor(100 * min(report(rows)))
    with rc_context({"font.size": 16}):
        fig = Figure(figsize=(10, 10.5), layout="constrained")
        measured, alone = fig.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
        ends = []
        for y, name in enumerate(dict.fromkeys(r["model"] for r in rows)):
            distances, mean = means(rows, name)
            at = np.array([(low + high - 1) / 2 + 1 for low, high in distances])
            measured.plot(at, np.where(mean["influence"] > 0, mean["influence"], np.nan), color=COLOUR[name], lw=2.5)
            ends.append((at[-1], max(mean["influence"][-1], 1e-9), name, COLOUR[name]))
            size = np.maximum(0, 1 + np.log10(np.maximum(mean["predicted"], 1e-99)) / 6)
            alone.scatter(at, [y] * len(at), 400 * size, color=COLOUR[name], lw=0)
            alone.text(1.33 * at[-1], y, f"{name}:\n{TITLES[name]}", color=COLOUR[name], va="center", fontsize=15)
        window = load_model("momentum").Config.block_size
        measured.axvline(window + 1, color="#777777", ls=":", lw=2)
        measured.text(window - 5, 0.5, "attention's window ends", ha="right", color="#777777")
        measured.set(xscale="log", yscale="log", ylim=(1e-9, 3), ylabel="influence, 1 = on itself",
                     title="Measured in trained models")
        alone.set(xlabel="tokens back", yticks=[], ylim=(len(ends) - 0.4, -0.6), xticks=[1, 2, 5, 17, 65, 129],
                  xticklabels=["0", "1", "4", "16", "64", "128"], xlim=(0.85, None),
                  title="What the equation's term would do alone (area: logarithm)")
        alone.spines["left"].set_visible(False)
        for ax in (measured, alone):
            ax.spines[["top", "right"]].set_visible(False)
            ax.minorticks_off()
        name_ends(measured, ends, 0.07, 0.42)
        fig.suptitle(f"In every model at least {least}% of the influence of other tokens\n"
                     "comes from the one before, wherever its equation reaches", fontsize=19)
        save_picture(fig, s.out, "influence.png")


def main():
    s = read_settings(Settings, FULL)
    names = chosen(s.models, NAMES)
    get_data(s.dataset)
    jobs = [(name, s.minutes, s.texts, seed, s.dataset, s.small) for seed in range(s.seeds) for name in names]
    draw(collect(Path(s.out, "influence.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
