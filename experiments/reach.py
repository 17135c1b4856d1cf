"""
Do the heads of Wave Field take roles: what is lost when its short, middle or long waves fall silent?

The original says that heads organise themselves, from the letter to the passage. A trained model reads the validation
text as a stream, once as it is and once with the waves of one reach (1/e of a wave is left after so many tokens) kept
from writing on the field; nothing else is touched. The rise of the loss is given for letters by what it takes to know
them: the last letters (inside a word), the line (its first character), or a passage (the rest of a word that occurred
in the last 512 characters, beside that of a word that did not; both from its third letter on). Words that occur again
are also the common ones: compare the groups of waves with each other, not the two kinds of words.

    python experiments/reach.py                    about a minute on two cores: one seed, 30 CPU-seconds
    python experiments/reach.py full=true          three seeds, 180 CPU-seconds: ten CPU-minutes; resume=true goes on
"""
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, interval, read_settings, said, save_picture, trained
from labels import name_ends

from common.score import token_losses
from common.settings import UserError, guard
from data.text import Tokenizer

GROUPS = {"short, below 4": (0, 4), "middle, 4 to 32": (4, 32), "long, above 32": (32, float("inf"))}
PAST = 512                  # characters in which a word has occurred before, or not
KINDS = ("first of a line", "first of a word", "second of a word", "rest, word is new", "rest, word occurred")
COLUMNS = "minutes characters seed dataset small silent kind heads tokens loss rise".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of reach.csv and reach.png
    full: bool = False              # three seeds, three minutes, 100,000 characters
    seeds: int = 1                  # runs
    minutes: float = 0.5            # CPU-minutes of each run
    characters: int = 16384         # of the validation text that are read
    dataset: str = "plays"          # the text
    small: bool = False             # a tiny model, to try the script out
    resume: bool = False            # keep what reach.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.characters < 2:
            raise ValueError("seeds should be 1 or more, characters 2 or more")


FULL = dict(seeds=3, minutes=3.0, characters=100_000)


def spelled(data, characters, dataset):                          # -> (N + 1,) ids, the N + 1 characters that they are
    """The beginning of the validation text, if its tokens are single characters."""
    ids = data.val[:characters + 1]
    text = Tokenizer(data.meta["tokenizer"]).decode(ids.tolist())
    if len(text) != len(ids):
        raise UserError(f"the tokens of {dataset} are not single characters; take another dataset, or vocab=0")
    return ids, text


def kinds(text):                                                 # a string of N -> (N,) index into KINDS, -1: none
    """What each character is. A word is letters only, in any case; it must be complete to have occurred."""
    kind = np.full(len(text), -1)
    last = {}                                                    # where each word ended, the last time
    for word in re.finditer(r"[^\W\d_]+", text):
        start, end = word.span()
        name = word[0].lower()
        kind[start] = 1
        if end - start > 1:
            kind[start + 1] = 2
        kind[start + 2:end] = 4 if start - last.get(name, -PAST - 1) <= PAST else 3
        last[name] = end
    for line in re.finditer(r"(?<=\n)[^\n]", text):
        kind[line.start()] = 0
    return kind


def silence(model, low, high):
    """Waves with a reach in [low, high) no longer write on the field -> how many, and the hooks that do it."""
    heads, hooks = 0, []
    for block in model.blocks:
        reach = block.attn.reach()
        quiet = (low <= reach) & (reach < high)                  # (H,)
        heads += int(quiet.sum())

        def no_keys(layer, args, kvg, quiet=quiet):              # what a token writes is v |k|
            kvg = kvg.unflatten(-1, (3, len(quiet), -1)).clone()
            kvg[..., 0, quiet, :] = 0
            return kvg.flatten(-3)
        hooks.append(block.attn.kvg.register_forward_hook(no_keys))
    return heads, hooks


def work(minutes, characters, seed, dataset, small):
    model, data, _ = trained("wavefield", dataset, {}, small, minutes=minutes, seed=seed)
    ids, text = spelled(data, characters, dataset)
    kind = kinds(text)[1:]                                       # of the tokens that are predicted
    read = lambda: token_losses(model, ids[None], max(model.config.block_size, 512))[0]
    plain, rows = read(), []
    for silent, reach in GROUPS.items():
        heads, hooks = silence(model, *reach)
        quiet = read()
        for hook in hooks:
            hook.remove()
        for i, name in enumerate(KINDS):
            at = kind == i
            if at.any():
                loss = plain[at].mean(dtype=np.float64)
                rows.append([silent, name, heads, int(at.sum()), loss, quiet[at].mean(dtype=np.float64) - loss])
    return rows


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    kinds = [kind for kind in KINDS if any(r["kind"] == kind for r in rows)]
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(11, 6.5), layout="constrained").subplots()
        ends = []
        print(f"{'rise of the loss without':<28}", *(f"{kind:>26}" for kind in kinds))
        for i, (silent, colour) in enumerate(zip(GROUPS, COLOURS)):
            own = [r for r in rows if r["silent"] == silent]
            means = [interval([r["rise"] for r in own if r["kind"] == kind]) for kind in kinds]
            heads = np.mean([r["heads"] for r in own])
            print(f"{silent:<16} ({heads:4.1f} waves)", *(f"{said(three):>26}" for three in means))
            x = np.arange(len(kinds)) + 0.04 * (i - 1)
            ax.plot(x, [mean for mean, _, _ in means], "o-", color=colour, lw=2.5, ms=9)
            for at, (_, low, high) in zip(x, means):
                ax.plot((at, at), (low, high), color=colour, lw=2)
            size, reach = silent.split(", ")
            ends.append((x[-1], means[-1][0], f"without the {size}\n({reach} tokens)", colour))
        labels = []
        for kind in kinds:
            loss = np.mean([r["loss"] for r in rows if r["kind"] == kind])
            labels.append(kind.replace(" of", "\nof").replace(", ", ",\n") + f"\n({loss:.2f})")
        most = max(0, *(mean for mean, _, _ in means))           # of the longest waves
        ax.set(xticks=range(len(kinds)), xticklabels=labels, ylabel="rise of the loss (nats; lines: 95%)",
               xlabel="character that is predicted (its loss with all waves)",
               title=f"Without the waves that reach {reach} tokens\n"
                     f"Wave Field loses at most {math.ceil(100 * most) / 100:.2f} nats")
        ax.spines[["top", "right"]].set_visible(False)
        name_ends(ax, ends, 0.13, 0.42)
        save_picture(ax.figure, s.out, "reach.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(s.minutes, s.characters, seed, s.dataset, s.small) for seed in range(s.seeds)]
    draw(collect(Path(s.out, "reach.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
