"""
Does momentum give induction to a single layer of attention, which gamma is best at which depth, and can it replace a
layer? Small circuits, attention only, 64 channels, 2 heads, learn associative recall: 16 pairs of one vocabulary of
32 symbols, all trained for the same short time, so that no loss has reached the floor. The published law says that the
best gamma is 4.17 N^-0.74 for N layers. Here it is the lowest point of a parabola through the loss against log gamma,
at each depth, with its interval over the seeds; so is the exponent.

Controls. Queries and keys without their RMSNorm, every other gamma: the norm fixes how loud a score can be, which the
shear changes. Only keys, only queries. No shear, but a score as loud as the shear makes it. And plain models of one and
two layers beside one layer with gamma = 1, each trained until it stops improving.

    python experiments/induction.py                about two minutes on two cores: one seed, three depths
    python experiments/induction.py full=true      five seeds, up to six layers; resume=true goes on
A training of 100 steps took 2.3, 4.2, 5.9, 7.8, 7.6 and 8.7 CPU-seconds with 1 to 6 layers, 1,800 steps of two layers
102: the full run, 760 of them, takes about 90 CPU-minutes.
"""
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, interval, paired, read_settings, said, save_picture
from labels import name_ends

from common.checkpoint import load_model
from common.optimizer import make_optimizers
from common.settings import convert, guard
from train import Train

momentum = load_model("momentum")
COLUMNS = "layers shear gamma norm louder seed steps longest accuracy loss parameters updates tokens seconds".split()
PAIRS, SYMBOLS, ANSWERS = 16, 32, 512   # of a sequence; of the vocabulary; asked for in each batch
LR = 1e-2
PATIENCE = 300                          # steps without a gain of 1% after which a training stops, if it may go on
LOUD = (0.5, 1.0, 2.0)                  # gammas whose loudness is tried without a shear
STANDS_FOR = (1, 2)                     # layers of the plain models that one layer with gamma = 1 may stand for


@dataclass
class Settings:
    out: str = "assets"                     # folder of induction.csv and induction.png
    full: bool = False                      # five seeds, six layers, gamma in factors of sqrt(2)
    seeds: int = 1                          # runs per setting
    steps: int = 100                        # training steps of each circuit
    longest: int = 500                      # and, of those trained until they stop improving, at most
    depth: int = 3                          # layers, at most
    gammas: str = "0,0.25,0.5,1,2,4"        # strengths of the shear
    resume: bool = False                    # keep what induction.csv already holds

    def __post_init__(self):
        if not 1 <= self.depth <= 6:
            raise ValueError(f"depth={self.depth} should be 1 to 6")


FULL = dict(seeds=5, depth=6, longest=3000, gammas=",".join(f"{g:.5g}" for g in [0, *2 ** (np.arange(-6, 7) / 2)]))


def recall_batch(n, pairs=PAIRS, symbols=SYMBOLS, generator=None):               # -> idx, targets (n, 4 * pairs - 1)
    """Pairs of key and value, then the same pairs in another order. In the same order position alone would do.

        a 7  c 2  b 9 | b 9  a 7  c 2       targets: 9, 7, 2 where b, a, c are read again; elsewhere -100, no loss

    Any symbol can be a key or a value, but no key comes twice."""
    keys = torch.rand(n, symbols, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(symbols, (n, pairs), generator=generator)
    order = torch.rand(n, pairs, generator=generator).argsort(1)
    told = torch.stack((keys, values), 2).flatten(1)                                         # a 7  c 2  b 9
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), 2).flatten(1)      # b 9  a 7  c 2
    targets = torch.full((n, 4 * pairs - 1), -100)
    targets[:, 2 * pairs::2] = asked[:, 1::2]
    return torch.cat((told, asked), 1)[:, :-1], targets


def loudness(gamma):
    """How much louder the shear makes the score of two tokens that have nothing to do with each other, nor with those
    before them: q_t + gamma (q_t - q_{t-1}) is sqrt((1 + gamma)^2 + gamma^2) as long as q_t, and so is the key."""
    return round((1 + gamma) ** 2 + gamma ** 2, 4)


def without_norm(model):
    """Queries and keys as they come: inside of qk(), rms_norm does nothing. The model has no switch for this."""
    def patched(qk):
        def plain(*args, **options):
            norm, momentum.rms_norm = momentum.rms_norm, lambda x: x
            try:
                return qk(*args, **options)
            finally:
                momentum.rms_norm = norm
        return plain
    for block in model.blocks:
        block.attn.qk = patched(block.attn.qk)


@torch.no_grad()
def score(model, idx, targets):                                  # -> accuracy, loss
    logits, loss = model(idx, targets)
    hits = (logits.argmax(-1) == targets).sum() / (targets != -100).sum()
    return hits.item(), loss.item()


def train_recall(layers, shear, gamma, norm, louder, seed, steps, longest=0):
    """Train one circuit -> accuracy, loss on fresh sequences; parameters, updates, tokens, CPU-seconds.

    The first quarter of the steps has 2 pairs in a sequence, then 4, 8 and 16: with 16 from the start nothing is
    learned for long. The learning rate falls over the second half. With `longest` it goes on at 16 pairs until the
    loss has not fallen by 1% for PATIENCE steps, or for so many steps in all; then the rate falls over `steps` / 2."""
    torch.manual_seed(seed)
    data = torch.Generator().manual_seed(seed)
    tests = recall_batch(256, generator=torch.Generator().manual_seed(1000 + seed))
    config = momentum.Config(SYMBOLS, 4 * PAIRS, n_layer=layers, n_head=2, n_embd=64, gamma=gamma, shear=shear,
                             mlp=False, temperature=momentum.Config.temperature / louder)
    model = momentum.Model(config)
    torch.nn.init.normal_(model.wte.weight, std=0.1)             # a tied head must tell the symbols apart early
    if not norm:
        without_norm(model)
    optimizers = make_optimizers(model, Train(lr=LR, weight_decay=0.0))
    end = math.inf if longest else steps
    best, since, step, tokens, began = math.inf, 0, 0, 0, time.process_time()
    while step < end:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1, (step + 1) / 20, 2 * (end - step) / steps)
        pairs = 2 ** min(4, 1 + 4 * step // steps)               # 2, 4, 8, 16 = PAIRS
        idx, targets = recall_batch(ANSWERS // pairs, pairs, generator=data)
        model(idx, targets)[1].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + idx.numel()
        if end == math.inf and (step % 50 == 0 or step >= longest):
            loss = score(model, *tests)[1]
            if loss < 0.99 * best:
                best, since = loss, step
            if step >= longest or step - since >= PATIENCE:
                end = step + steps // 2
    seconds = time.process_time() - began
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return *score(model, *tests), parameters, step, tokens, seconds


def work(*job):                                 # what `collect` calls: one row
    return [train_recall(*job)]


def plan(s):
    """All jobs: (layers, shear, gamma, norm, louder, seed, steps, longest)."""
    gammas = sorted({0.0, 1.0, *(convert("gammas", g, float) for g in s.gammas.split(","))})     # 0 and 1: controls
    coarse = [0.0, *[g for g in gammas if g][::2]]
    jobs = []
    for seed in range(s.seeds):
        for n in range(1, s.depth + 1):
            jobs += [(n, "qk", g, True, 1.0, seed, s.steps, 0) for g in gammas]
            jobs += [(n, "qk", g, False, 1.0, seed, s.steps, 0) for g in coarse]
        jobs += [(1, shear, g, True, 1.0, seed, s.steps, 0) for shear in "kq" for g in coarse if g]
        jobs += [(1, "qk", g, True, 1.0, seed, s.steps, 0) for g in LOUD]
        jobs += [(1, "qk", 0.0, True, loudness(g), seed, s.steps, 0) for g in LOUD]
        jobs += [(n, "qk", 0.0, True, 1.0, seed, s.steps, s.longest) for n in STANDS_FOR]
        jobs += [(1, "qk", 1.0, True, 1.0, seed, s.steps, s.longest)]
    return jobs


def pick(rows, key="loss", **where):                             # -> {seed: value}
    """The values of the rows with these settings; short=False: of those trained until they stopped."""
    where = dict(shear="qk", norm="True", louder=1.0, short=True) | where
    short = where.pop("short")
    return {r["seed"]: r[key] for r in rows
            if (r["longest"] == 0) == short and all(r[k] == v for k, v in where.items())}


def optimum(gammas, loss):
    """The lowest point of a parabola in log gamma, through the losses within a factor of 4 of the lowest. If that is
    no valley, or its floor lies outside of it, the gamma with the lowest loss."""
    at = np.log(gammas)
    lowest = at[int(np.argmin(loss))]
    near = abs(at - lowest) <= math.log(4) + 1e-6
    if near.sum() >= 3:
        bend, slope, _ = np.polyfit(at[near], np.asarray(loss)[near], 2)
        floor = -slope / (2 * bend) if bend > 0 else math.inf
        if at[near].min() <= floor <= at[near].max():
            return math.exp(floor)
    return math.exp(lowest)


def law(rows, norm="True"):
    """-> {layers: (best gamma, low, high)} and the exponent b of best gamma ~ N^b as (b, low, high). Both are fitted
    for each seed; the means, that of gamma a geometric one, have 95% intervals by Student's t."""
    depths = sorted({r["layers"] for r in rows if r["norm"] == norm and r["longest"] == 0})
    gammas = sorted({r["gamma"] for r in rows if r["norm"] == norm and r["gamma"] and r["layers"] == depths[-1]})
    found = [[pick(rows, layers=n, gamma=g, norm=norm) for g in gammas] for n in depths]
    seeds = sorted(set.intersection(*(set(values) for line in found for values in line)))
    best = np.log([[optimum(gammas, [values[seed] for values in line]) for seed in seeds] for line in found])
    by_depth = {n: tuple(float(v) for v in np.exp(interval(line))) for n, line in zip(depths, best)}
    slopes = np.polyfit(np.log(depths), best, 1)[0] if len(depths) > 1 else [math.nan]
    return by_depth, interval(slopes)


def report(rows, s):
    print("\nbest gamma, with its 95% interval, beside the law")
    for norm, title in (("True", "normalised q and k"), ("False", "without the norm")):
        best, exponent = law(rows, norm)
        for n, (gamma, low, high) in best.items():
            print(f"{title}, {n:.0f} layers: {said((gamma, low, high), 2)}   (law {4.17 * n ** -0.74:.2f})")
        print(f"{title}: exponent {said(exponent, 2)}   (law -0.74)")
    print("\none layer, loss minus that of the plain model, paired by seed")
    plain = pick(rows, layers=1, gamma=0.0)
    for g in LOUD:
        sheared = paired(pick(rows, layers=1, gamma=g), plain)
        loud = paired(pick(rows, layers=1, gamma=0.0, louder=loudness(g)), plain)
        print(f"gamma = {g:g}: {said(sheared)}   as loud, no shear: {said(loud)}")


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context({"font.size": 16}):
        fig = Figure(figsize=(10, 15), layout="constrained")
        bars, parts, laws = fig.subplots(3, height_ratios=(3, 5, 5))
        draw_bars(bars, rows)
        draw_parts(parts, rows)
        draw_laws(laws, rows, s.depth)
        save_picture(fig, s.out, "induction.png")


def draw_bars(ax, rows):
    """What is recalled after a long training. A run is cut short if it still improved when it had `longest` updates."""
    runs = {f"{n} layer{'s' * (n > 1)}, plain": dict(layers=n, gamma=0.0) for n in STANDS_FOR}
    runs["1 layer, sheared"] = dict(layers=1, gamma=1.0)
    of = lambda name, key: np.array(list(pick(rows, key, short=False, **runs[name]).values()))
    share = {name: 100 * of(name, "accuracy") for name in runs}
    for i, (name, dots) in enumerate(share.items()):
        cut = sum(of(name, "updates") >= of(name, "longest") + of(name, "steps") // 2)
        ax.barh(i, dots.mean(), color=COLOURS[1] if runs[name]["gamma"] else "#999999")
        ax.plot(dots, [i + 0.25] * len(dots), "k.", ms=8)
        ax.annotate(f"{dots.mean():.0f}%" + f", {cut} of {len(dots)} cut short" * bool(cut), (dots.mean(), i),
                    xytext=(12, 0), textcoords="offset points", va="center")
    plain, *_, sheared = (dots.mean() for dots in share.values())
    ax.set(title=f"With the shear one layer recalls {sheared:.0f}% instead of {plain:.0f}%",
           yticks=range(len(runs)), yticklabels=list(runs), xlim=(0, 140), xticks=range(0, 101, 25),
           xlabel="% recalled, trained until it stops improving\nor is cut short; dots: seeds")
    ax.invert_yaxis()


def draw_parts(ax, rows):
    names, ends, best = {"q": "only queries", "qk": "queries and keys", "k": "only keys"}, [], {}
    for (shear, name), colour in zip(names.items(), COLOURS):
        gammas = sorted({r["gamma"] for r in rows if r["gamma"] and pick([r], layers=1, shear=shear, gamma=r["gamma"])})
        loss = [np.mean(list(pick(rows, layers=1, shear=shear, gamma=g).values())) for g in gammas]
        ax.plot(gammas, loss, "o-", lw=2.5, ms=7, color=colour)
        ends.append((gammas[-1], loss[-1], name, colour))
        best[name] = min(loss)
    loud = [np.mean(list(pick(rows, layers=1, gamma=0.0, louder=loudness(g)).values())) for g in LOUD]
    ax.plot(LOUD, loud, "s", ms=12, mfc="none", mew=2, color="black")
    ax.annotate("squares: no shear, but as loud", (LOUD[0], loud[0]), xytext=(0, 14), textcoords="offset points")
    ax.set(title=f"One layer learns most if {min(best, key=best.get)} are sheared", xscale="log", xlabel="gamma",
           ylabel="loss of recall (nats)")
    ax.margins(y=0.2)
    name_ends(ax, ends, room=0.5, gap=0.1)
    ax.set_xticks([0.125, 0.5, 2, 8], "1/8 1/2 2 8".split())
    ax.minorticks_off()


def draw_laws(ax, rows, depth):
    n, ends, exponents = np.linspace(1, depth, 50), [], []
    ax.plot(n, 4.17 * n ** -0.74, lw=2.5, color="#777777")
    ends.append((depth, 4.17 * depth ** -0.74, "the law:\n4.17 $N^{-0.74}$", "#777777"))
    depths = np.arange(1, depth + 1)
    for norm, label, colour in ("True", "with RMSNorm", COLOURS[0]), ("False", "without", COLOURS[1]):
        points, exponent = law(rows, norm)
        middle, low, high = np.array(list(points.values())).T
        ax.plot(depths, middle, "o", ms=9, color=colour)
        ax.vlines(depths, low, high, lw=2.5, color=colour)
        ends.append((depth, middle[-1], f"{label}:\n$N^{{{exponent[0]:.2f}}}$", colour))
        exponents.append(exponent)
    slower = all(low > -0.74 for _, low, _ in exponents)
    ax.set(title="The best gamma falls more slowly with depth than the law" if slower else "The best gamma by depth",
           xlabel="layers N", ylabel="best gamma, 95%", yscale="log", ylim=(0.8 * min(y for _, y, *_ in ends), 10))
    name_ends(ax, ends, room=0.4, gap=0.16)
    ax.set_xticks(depths)
    ax.set_yticks([0.5, 1, 2, 4, 8], "1/2 1 2 4 8".split())
    ax.minorticks_off()


def main():
    s = read_settings(Settings, FULL)
    rows = collect(Path(s.out, "induction.csv"), COLUMNS, work, plan(s), s.resume)
    report(rows, s)
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
