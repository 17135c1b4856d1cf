"""
Kick the fluid: how long does a model take to recover when half of what it remembers is gone?

Fluid models are said to repair themselves. Here each model reads a text as a stream. In mid-stream every number of its
`state` is set to zero with probability 1/2, and it reads on. The same is done to all: for attention the state is the
keys and values of the last 128 tokens, for FluidLM and the waves what they carry on; only what counts tokens is left
alone. The excess is the loss of each later character minus that of the same character without the kick, mean over many
kicks. A model has recovered when the excess of the next eight characters is, and stays, below 0.05 nats.

    python experiments/kick.py                     two to three minutes on two cores: four models, 36 CPU-seconds each
    python experiments/kick.py full=true           three seeds, 180 CPU-seconds, 512 kicks; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, get_data, read_settings, save_picture, trained

from common.score import token_losses
from common.settings import UserError, guard

PAST = 256                  # characters before a kick: twice what attention sees
AFTER = 256                 # characters after it
NEAR = 0.05                 # nats: an excess below this counts as recovered
WIDTH = 8                   # characters over which the excess is averaged
EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)         # of the rows of kick.csv
ENTRANTS = ["baseline", *NAMES, "lstm"]
CARRIES_ON = "wavefield", "fluidlm", "lstm"      # the others attend to a cache
COLUMNS = "model minutes share kicks seed dataset small low high loss excess recovered".split()


@dataclass
class Settings:
    out: str = "assets"                     # folder of kick.csv and kick.png
    full: bool = False                      # three seeds, three minutes, 512 kicks
    seeds: int = 1                          # runs of each model
    minutes: float = 0.6                    # CPU-minutes of each run
    share: float = 0.5                      # of the state that is set to zero
    kicks: int = 96                         # places in the text
    dataset: str = "plays"                  # the text
    models: str = "baseline,fluidlm,wavefield,lstm"         # who is kicked
    small: bool = False                     # tiny models, to try the script out
    resume: bool = False                    # keep what kick.csv already holds

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} should be 0 to 1")
        if self.seeds < 1 or self.kicks < 1:
            raise ValueError("seeds and kicks should be 1 or more")


FULL = dict(seeds=3, minutes=3.0, kicks=512, models=",".join(ENTRANTS))


def kick(state, share, generator):
    """A state with a share of its numbers set to zero, at random; integers count tokens and stay. The old one is left
    as it was."""
    if isinstance(state, dict):
        return {key: kick(value, share, generator) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(kick(value, share, generator) for value in state)
    if isinstance(state, torch.Tensor) and (state.is_floating_point() or state.is_complex()):
        return state * (torch.rand(state.shape, generator=generator) >= share)
    return state


def excess(model, data, kicks, share, seed, past=PAST, after=AFTER):         # -> loss, loss when kicked: (kicks, after)
    """The loss of each character after the kicks, which are evenly spaced over the text."""
    length = past + after + 1
    if len(data) < length:
        raise UserError(f"the validation text has {len(data)} tokens; a kick needs {length}, give a longer text")
    generator = torch.Generator().manual_seed(seed)
    starts = np.unique(np.linspace(0, len(data) - length, kicks).astype(int))
    plain, kicked = [], []
    for some in np.array_split(starts, max(1, len(starts) // 16)):
        tokens = np.stack([data[s:s + length] for s in some])
        before, later = tokens[:, :past + 1], tokens[:, past:]
        state = {}
        token_losses(model, before, model.config.block_size, state=state)
        hurt = kick(state, share, generator)
        plain.append(token_losses(model, later, after, state=state))
        kicked.append(token_losses(model, later, after, state=hurt))
    return np.concatenate(plain), np.concatenate(kicked)


def recovery(mean, near=NEAR, width=WIDTH):                                  # (T,) -> characters; nan: not in T
    """From which character on the excess, mean of `width` characters, stays below `near`."""
    smooth = np.convolve(mean, np.ones(width) / width, "valid")
    above = np.flatnonzero(smooth >= near)
    if len(above) == 0:
        return 0.0
    return float("nan") if above[-1] == len(smooth) - 1 else above[-1] + 1.0


def work(name, minutes, share, kicks, seed, dataset, small):
    model, changes = ("momentum", {"gamma": 0.0}) if name == "baseline" else (name, {})
    net, data, _ = trained(model, dataset, changes, small, minutes=minutes, seed=seed)
    plain, kicked = excess(net, data.val, kicks, share, seed)
    more = (kicked - plain).mean(0, dtype=np.float64)
    after = recovery(more)
    return [[low, high, plain[:, low:high].mean(dtype=np.float64), more[low:high].mean(), after]
            for low, high in zip(EDGES, EDGES[1:])]


def found(hurt):                                                 # {model: excess}
    carried, kept = ([hurt[name] for name in hurt if (name in CARRIES_ON) == carries] for carries in (True, False))
    if carried and kept and max(carried) < min(kept):
        return "A kick hurts a state that is carried on less than the cache of attention"
    return "What it costs to lose a part of the state"


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    print(f"{'model':<14} excess at once, after 16 and after 64 characters (nats); characters until it is below {NEAR}")
    of = lambda name, key, low: np.array([r[key] for r in rows if (r["model"], r["low"]) == (name, low)])
    names = list(dict.fromkeys(r["model"] for r in rows))
    hurt = {name: of(name, "excess", 0).mean() for name in names}
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 1.5 + 0.85 * len(names)), layout="constrained").subplots()
        for y, name in enumerate(sorted(names, key=hurt.get)):
            after = of(name, "recovered", 0)
            print(f"{name:<14} {hurt[name]:.3f}  {of(name, 'excess', 16).mean():.3f}  "
                  f"{of(name, 'excess', 64).mean():.3f}   ", *(f"{a:.0f}" for a in after))
            back = f"not in {AFTER}" if np.isnan(after).any() else f"{after.mean():.1f}"
            ax.barh(y, hurt[name], color=COLOUR[name], alpha=0.6)
            ax.plot(of(name, "excess", 0), [y + 0.25] * len(after), "k.", ms=8)
            ax.annotate(f"{hurt[name]:.2f}, back after {back} characters", (hurt[name], y - 0.1), xytext=(8, 0),
                        textcoords="offset points", va="center")
        ax.set(xlabel=f"excess loss of the next character (nats), {s.share:.0%} of the state at zero\n"
               f"back after: until it is below {NEAR} nats; dots: seeds",
               yticks=range(len(names)), yticklabels=sorted(names, key=hurt.get))
        ax.set_xlim(right=1.85 * max(0.01, *hurt.values()))      # room for the words
        ax.invert_yaxis()
        ax.figure.suptitle(found(hurt))
        save_picture(ax.figure, s.out, "kick.png")


def main():
    s = read_settings(Settings, FULL)
    names = chosen(s.models, ENTRANTS)
    get_data(s.dataset)
    jobs = [(name, s.minutes, s.share, s.kicks, seed, s.dataset, s.small) for seed in range(s.seeds) for name in names]
    draw(collect(Path(s.out, "kick.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
