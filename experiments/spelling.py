"""
Does transport make a model spell, as the original says of Advection-GLU: better, and sooner? Is training smoother?

Three models of one size, on the same batches: Advection-GLU as it is, whose field is the original's product of two maps
of one token; the same with field=slope, which is advection as a physicist means it; and the same with a SwiGLU in place
of the transport, (W_u z) * silu(W_g z), as wide as it takes to have as many parameters. Each writes on from the start
of the validation text, after a quarter of the iterations, after half and at the end. Scored are the words that the
training text has, those that only the validation text has, and the lines in their place (a SPEAKER: after a blank line,
and only there). Differences are paired by seed, with 95% intervals. Stability: the largest rise of the training loss
(mean of 20) above its lowest so far, also at three times the learning rate.

    python experiments/spelling.py                 about two minutes on two cores: one seed, 40 iterations
    python experiments/spelling.py full=true       five seeds, 300 iterations: 50 CPU-minutes; resume=true goes on
"""
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from lab import COLOURS, collect, get_data, interval, paired, read_settings, said, save_picture, short_run
from labels import name_ends

from common.settings import guard
from data.text import Tokenizer
from sample import generate
from train import Train

ENTRANTS = {"product": {}, "slope": {"field": "slope"}, "swiglu": {}}
TITLES = {"product": "original's product", "slope": "slope", "swiglu": "SwiGLU"}
COLOUR = dict(zip(ENTRANTS, COLOURS))
SHARES = (0.25, 0.5, 1.0)               # of the iterations after which a model writes
SCORES = "known_words only_validation play_lines".split()
COLUMNS = ["model", "lr_factor", "iters", "seed", "dataset", "small", "characters", "after", *SCORES, "val_loss",
           "largest_rise", "parameters", "tokens", "seconds"]


@dataclass
class Settings:
    out: str = "assets"             # folder of spelling.csv and spelling.png
    full: bool = False              # five seeds, 300 iterations, 5,000 characters
    seeds: int = 1                  # runs per model and learning rate
    iters: int = 40                 # iterations of each run
    characters: int = 1000          # length of each text that is scored
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what spelling.csv already holds


FULL = dict(seeds=5, iters=300, characters=5000)


class SwiGLU(torch.nn.Module):
    """(W_u z) * silu(W_g z), back to the latent, with as many parameters as the branch that it stands for."""

    def __init__(self, branch):
        super().__init__()
        C = branch.config.n_embd
        hidden = round(sum(p.numel() for p in branch.parameters()) / (3 * C))
        self.ug = torch.nn.Linear(C, 2 * hidden, bias=False)
        self.proj = torch.nn.Linear(hidden, C, bias=False)
        torch.nn.init.normal_(self.ug.weight, std=C ** -0.5)     # both as advection_glu.py begins
        torch.nn.init.zeros_(self.proj.weight)

    def forward(self, z, slow, state=None):                      # (B, T, C) -> (B, T, C)
        z = z * torch.rsqrt((z * z).mean(-1, keepdim=True) + 1e-6)
        u, g = self.ug(z).chunk(2, -1)
        return self.proj(u * torch.nn.functional.silu(g))


def without_transport(model):
    for block in model.blocks:
        block.ffn = SwiGLU(block.ffn)


def words(text):
    """The words of a text, in small letters."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def play_lines(text):
    """Share of lines in their place: a SPEAKER: after a blank line, and only there."""
    lines = text.split("\n")[:-1]                               # the last one is cut short
    speaker = [bool(re.fullmatch(r"[A-Z][A-Za-z ]*:", line)) for line in lines]
    return float(np.mean([s == (before == "") for before, s in zip(lines, speaker[1:])] or [0]))


def rise(losses, width=20):
    """How far the smoothed loss climbs above its lowest value so far."""
    smooth = np.convolve(losses, np.ones(min(width, len(losses))) / min(width, len(losses)), "valid")
    return float((smooth - np.minimum.accumulate(smooth)).max())


def work(model, lr_factor, iters, seed, dataset, small, characters):
    """Train, writing on the way -> a row for each of SHARES; what the whole run has is in the last one."""
    data = get_data(dataset)
    tokenizer = Tokenizer(data.meta["tokenizer"])
    train_words, val_words = (set(words(tokenizer.decode(split))) for split in (data.train, data.val))
    stops = [max(1, round(share * iters)) for share in SHARES] if lr_factor == 1 else []
    rows, spent = [], [0.0]

    def score(net):
        """What it writes now. Training goes on as if nothing had been: fit() seeds every step anew."""
        training, began = net.training, time.process_time()
        net.eval()
        text = tokenizer.decode(list(generate(net, data.val[:8].astype(np.int64), characters, seed=seed)))
        net.train(training)
        spent[0] += time.process_time() - began
        written = words(text) or ["?"]
        share = lambda vocabulary: float(np.mean([w in vocabulary for w in written]))
        return [share(train_words), share(val_words - train_words), play_lines(text)]

    def alter(net):
        """Score at the stops; a step has ended when the next one begins."""
        if model == "swiglu":
            without_transport(net)
        calls = [0]

        def before(net, args):
            if net.training and torch.is_grad_enabled():
                if calls[0] in stops[:-1]:
                    rows.append([calls[0], *score(net)])
                calls[0] += 1
        net.register_forward_pre_hook(before)

    net, _, progress = short_run("advection_glu", dataset, ENTRANTS[model], small, alter, evaluations=1,
                                 max_iters=iters, seed=seed, lr=Train.lr * lr_factor)
    rows = [[*row, "", "", "", "", ""] for row in rows]
    losses = [row[2] for row in progress.rows if row[2] != ""]
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    tokens = progress.step * Train.batch_size * net.config.block_size
    seconds = progress.seconds - spent[0]
    rows.append([iters, *score(net), progress.rows[-1][3], rise(losses), parameters, tokens, seconds])
    return rows


def values(rows, model, key, after, lr_factor=1):                # -> {seed: value}
    return {r["seed"]: r[key] for r in rows
            if (r["model"], r["lr_factor"], r["after"]) == (model, lr_factor, after) and r[key] != ""}


def report(rows, s):
    for factor in (1, 3):
        for m in ENTRANTS:
            of = lambda key: values(rows, m, key, s.iters, factor)
            print(f"{m:<8} lr x {factor}: {next(iter(of('parameters').values())):,.0f} parameters, "
                  f"{np.mean(list(of('seconds').values())):.0f} s, loss {interval(of('val_loss').values())[0]:.3f}",
                  *(f"{key} {interval(of(key).values())[0]:.3f}" for key in [*SCORES, "largest_rise"]))
    print("\nproduct minus the other, paired by seed: mean [95% interval]")
    for other in ("swiglu", "slope"):
        for after in sorted({r["after"] for r in rows}):
            gaps = []
            for key in ["val_loss", *SCORES] if after == s.iters else SCORES:
                gap = paired(values(rows, "product", key, after), values(rows, other, key, after))
                gaps.append(f"{key} {said(gap, 4)} ")
            print(f"{other:<8} after {after:.0f} iterations: ", *gaps)


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 6), layout="constrained").subplots()
        stops, ends, first = sorted({r["after"] for r in rows}), [], {}
        for m in ENTRANTS:
            known = [[100 * v for v in values(rows, m, "known_words", n).values()] for n in stops]
            mean = [np.mean(v) for v in known]
            ax.plot(stops, mean, "--" if m == "swiglu" else "-", color=COLOUR[m], lw=3)  # it may lie on another
            for n, share in zip(stops, known):
                ax.plot([n] * len(share), share, "o", color=COLOUR[m], alpha=0.5, ms=8)
            ends.append((stops[-1], mean[-1], f"{TITLES[m]} {mean[-1]:.0f}%", COLOUR[m]))
            first[m] = mean[0]
        ax.set(xscale="log", xlabel="iterations; dots: random seeds", ylabel="words that the training text has (%)",
               title=f"After {stops[0]:.0f} iterations {first['slope']:.0f}% of the words are real\n"
                     f"with advection by the slope, {first['swiglu']:.0f}% with a SwiGLU")
        ax.minorticks_off()
        ax.set_xticks(stops, [f"{n:.0f}" for n in stops])
        ax.spines[["top", "right"]].set_visible(False)
        name_ends(ax, ends, 0.08, 0.6)
        save_picture(ax.figure, s.out, "spelling.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(m, factor, s.iters, seed, s.dataset, s.small, s.characters)
            for seed in range(s.seeds) for factor in (1, 3) for m in ENTRANTS]
    rows = collect(Path(s.out, "spelling.csv"), COLUMNS, work, jobs, s.resume)
    report(rows, s)
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
