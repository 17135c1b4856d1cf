"""
Does the viscosity of Advection-GLU mean anything: does nu know where a word begins, or what is hard to predict?

Its original calls the model interpretable through its equation, whose one quantity with a name is the viscosity
nu = softplus(W_nu z + b). A trained model reads the validation text as a stream; in each layer nu is taken of every
character that it reads, as the mean over the channels.

  first letter, inside a word,           mean of nu there minus its mean over the text, in standard deviations along the
  between words                          text. A word is letters only; between: spaces, ends of lines, punctuation
  first minus inside                     the difference of the first two
  surprise, loss, entropy                rank correlation of nu with the loss of the character that is read, with that
                                         of the next one, which nu helps to predict, and with the entropy of that
                                         prediction (nats)

Means over random seeds with 95% intervals by Student's t. nu follows the character that is read, so some of this only
says that it knows which one that is. Models that race.py has trained for as long are not trained again.

    python experiments/meaning.py                  a minute on two cores: one seed, 30 CPU-seconds
    python experiments/meaning.py full=true        three seeds, 180 CPU-seconds: ten CPU-minutes; resume=true goes on
"""
import sys
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from halting import correlation, ranks
from lab import COLOURS, collect, get_data, interval, read_settings, said, save_picture, trained
from labels import name_ends
from reach import spelled

from common.score import nats, token_losses
from common.settings import guard

PLACES = ("first letter", "inside a word", "between words")
GAP = "first minus inside"
RANKS = ("surprise", "loss", "entropy")
COLUMNS = "minutes characters seed dataset small layer measure tokens value".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of meaning.csv and meaning.png
    full: bool = False              # three seeds, three minutes, 100,000 characters
    seeds: int = 1                  # runs
    minutes: float = 0.5            # CPU-minutes of each run
    characters: int = 16384         # of the validation text that are read
    dataset: str = "plays"          # the text
    small: bool = False             # a tiny model, to try the script out
    resume: bool = False            # keep what meaning.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.characters < 256:
            raise ValueError("seeds should be 1 or more, characters 256 or more")


FULL = dict(seeds=3, minutes=3.0, characters=100_000)


def places(text):                                                # a string of N -> (N,) index into PLACES
    letter = np.array([c.isalpha() for c in text])
    return np.where(letter, np.append(False, letter[:-1]), 2)


def both(logits, y):                                             # (B, T, V), (B, T) -> (B, T, 2)
    """The loss of each token, and the entropy of its prediction."""
    log_p = logits.log_softmax(-1)
    return torch.stack((nats(logits, y), -(log_p.exp() * log_p).sum(-1)), -1)


def read(model, ids):                                            # (N + 1,) -> nu (L, N), loss (N,), entropy (N,)
    """nu of every token that is read, mean over its channels; loss and entropy of what comes next."""
    nu = [[] for _ in model.blocks]
    hooks = []
    for block, found in zip(model.blocks, nu):
        keep = lambda layer, args, s, found=found: found.append(F.softplus(s)[0].mean(-1))
        hooks.append(block.ffn.nu_up.register_forward_hook(keep))
    loss, entropy = token_losses(model, ids[None], max(model.config.block_size, 512), score=both)[0].T
    for hook in hooks:
        hook.remove()
    return torch.stack([torch.cat(found) for found in nu]).double().numpy(), loss, entropy


def work(minutes, characters, seed, dataset, small):
    model, data, _ = trained("advection_glu", dataset, {}, small, minutes=minutes, seed=seed)
    ids, text = spelled(data, characters, dataset)
    place, rows = places(text)[:-1], []
    by_layer, loss, entropy = read(model, ids)
    for l, nu in enumerate(by_layer):
        nu = (nu - nu.mean()) / (nu.std() or 1)
        means = [nu[place == i].mean() for i in range(len(PLACES))]
        rows += [[l, name, int((place == i).sum()), means[i]] for i, name in enumerate(PLACES)]
        rows.append([l, GAP, int((place < 2).sum()), means[0] - means[1]])
        pairs = (nu[1:], loss[:-1]), (nu, loss), (nu, entropy)
        rows += [[l, name, len(a), correlation(ranks(a), ranks(b))] for name, (a, b) in zip(RANKS, pairs)]
    return rows


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    layers = sorted({r["layer"] for r in rows})
    of = lambda l, measure: interval([r["value"] for r in rows if (r["layer"], r["measure"]) == (l, measure)])
    print(f"{'layer':<20}", *(f"{l:>26g}" for l in layers))
    for measure in (*PLACES, GAP, *RANKS):
        print(f"{measure:<20}", *(f"{said(of(l, measure), 2):>26}" for l in layers))
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 6), layout="constrained").subplots()
        ends, clear = [], 0
        for l in layers:
            _, low, high = of(l, GAP)
            ax.plot((l, l), (low, high), color="#dddddd", lw=22, solid_capstyle="butt", zorder=0)
            clear += low > 0 or high < 0
        for seed, colour in zip(sorted({r["seed"] for r in rows}), cycle(COLOURS)):
            gaps = [r["value"] for r in rows if (r["seed"], r["measure"]) == (seed, GAP)]
            ax.plot(layers, gaps, "o-", color=colour, lw=2.5, ms=10)
            ends.append((layers[-1], gaps[-1], f"seed {seed:.0f}", colour))
        ax.plot((layers[0], layers[-1]), (0, 0), color="black", lw=1)
        ax.set(xticks=layers, xlabel="layer (grey: 95%)",
               ylabel="nu at first letters minus inside words\n(standard deviations)",
               title=f"In {clear} of {len(layers)} layers the viscosity\nclearly tells where a word begins")
        ax.margins(0.1)
        ax.spines[["top", "right"]].set_visible(False)
        name_ends(ax, ends, 0.08, 0.25)
        save_picture(ax.figure, s.out, "meaning.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(s.minutes, s.characters, seed, s.dataset, s.small) for seed in range(s.seeds)]
    draw(collect(Path(s.out, "meaning.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
