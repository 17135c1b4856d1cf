"""
What each original claims, and the rule by which a number decides. results.py writes them down.

A claim is a function. Its text is printed as it stands here: the title, what is claimed, how it was measured, the rule
of the verdict, the script that measures it. Its code applies that rule to the numbers, so that another measurement
changes the verdict by itself. Each returns the verdict, the number with its interval, and the rest of what was found.
A table that is missing, or lacks the rows, raises Missing: the claim is untested. *Partly* is for what is established
in part; where the interval leaves it open, the verdict says so.
"""
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import induction
import late
import leaky
import vocabulary
from lab import NAMES, interval, paired, read_csv, said
from rivals import PUBLISHED

from common.checkpoint import load_model


class Missing(Exception):
    """A table or rows that a claim needs."""


class Data:
    """The tables of a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.tables = {}

    def table(self, name, columns=()):
        if name not in self.tables:
            self.tables[name] = read_csv(self.folder / f"{name}.csv")
        rows = self.tables[name]
        if not rows or set(columns) - rows[0].keys():
            raise Missing(name)
        return rows

    def __call__(self, name, key, **where):                      # -> {seed: value}
        rows = self.table(name, [key, *where])
        found = {r["seed"]: r[key] for r in rows if r[key] != "" and all(r[k] == v for k, v in where.items())}
        if not found:
            raise Missing(name)
        return found

    def race(self, model, key="val_loss"):
        return self("race", key, model=model, budget="seconds", final=1)

    def circuit(self, key="loss", **where):
        found = induction.pick(self.table("induction", induction.COLUMNS), key, **where)
        if not found:
            raise Missing("induction")
        return found


def says(three, digits=3, unit=""):
    """mean [low, high]; a number without an interval decides nothing."""
    if math.isnan(three[1]):
        raise Missing("one seed")
    return said(three, digits, unit)


def percent(three):
    """A difference of nats as one of perplexity, in percent."""
    return tuple(100 * math.expm1(v) for v in three)


def mean(values):
    return float(np.mean(list(values.values())))


def verdict(holds, no, part=False):
    return "holds" if holds else "no" if no else "partly" if part else "partly (open)"


def cost(of, a, b):
    """What both sides had: of(side, column) gives {seed: value}."""
    sides = []
    for side in (a, b):
        parts = [f"{mean(of(side, key)) / unit:,.{digits}f} {name}" for key, unit, digits, name in (
            ("parameters", 1, 0, "parameters"), ("tokens", 1e6, 1, "M tokens"), ("seconds", 1, 0, "s"))]
        sides.append(f"{side}: {', '.join(parts)}")
    return "; ".join(sides)


def size(name, **changes):
    """Parameters of a model with these settings, in words, for tables that do not have them."""
    model = load_model(name).Model(load_model(name).Config(**dict(vocab_size=65) | changes))
    return f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters"


def raced(data, model, say=lambda gap: says(gap) + " nats"):     # -> two differences, both in words, what both had
    """The difference to the baseline in the race, and, if they are there, in the longer runs of scaling.py."""
    longer = lambda name, key="val_loss": data("longer", key, model=name, width=128)
    gaps, had = [paired(data.race(model), data.race("baseline"))], cost(data.race, model, "baseline")
    try:
        gaps.append(paired(longer(model), longer("baseline")))
        had += "; in the longer runs " + cost(longer, model, "baseline")
    except Missing:                                              # the race alone decides
        pass
    return gaps, "; in longer runs ".join(map(say, gaps)), had


def settle(gaps, limit):                                         # -> what verdict() takes
    """Below the limit: in all; nowhere, but above it somewhere; somewhere."""
    below, above = [gap[2] < limit for gap in gaps], [gap[1] > limit for gap in gaps]
    return all(below), any(above) and not any(below), any(below)


# Momentum.

def claim_single_layer(data):
    """Momentum: induction in one layer
    claimed: with the shear one layer of attention can look up what came after the last x; without it that takes two
    how: one layer recalls 16 pairs of one vocabulary, with gamma = 1 and with 0, each trained until it stops improving
        or is cut off
    rule: holds if the accuracy with the shear is more than 25 points higher, no if less than 5
    run: induction"""
    of = lambda gamma, key: data.circuit(key, layers=1, gamma=gamma, short=False)
    gap = [100 * v for v in paired(of(1.0, "accuracy"), of(0.0, "accuracy"))]
    more = f"accuracy {mean(of(1.0, 'accuracy')):.0%} and {mean(of(0.0, 'accuracy')):.0%}; gamma = "
    return verdict(gap[1] > 25, gap[2] < 5), says(gap, 0) + " points of accuracy", more + cost(of, 1.0, 0.0)


def claim_keys_and_queries(data):
    """Momentum: shear queries and keys
    claimed: the shear acts on both
    how: one layer, the same task in a short training, each at its best gamma: both against the keys alone
    rule: holds if both reach a lower loss than the keys alone, no if a higher one
    run: induction"""
    gammas = sorted({r["gamma"] for r in data.table("induction", induction.COLUMNS) if r["shear"] == "k"})
    runs = {shear: [data.circuit(layers=1, shear=shear, gamma=g) for g in gammas] for shear in ("qk", "k", "q")}
    best = {shear: min(found, key=mean) for shear, found in runs.items()}
    gap, queries = paired(best["qk"], best["k"]), paired(best["q"], data.circuit(layers=1, gamma=0.0))
    more = f"queries alone against no shear: {says(queries)} nats"
    return verdict(gap[2] < 0, gap[1] > 0), says(gap) + " nats against keys alone", more


def claim_depth(data):
    """Momentum: the shear stands in for depth
    claimed: it sidesteps the two layers that induction otherwise needs
    how: one layer with gamma = 1 against plain models of two layers, both trained until they stop improving or are cut
        off
    rule: holds if its accuracy is above theirs or at most 2 points below, and most of theirs stopped by themselves; no
        if it is further below, and most of its runs stopped by themselves
    run: induction"""
    of = lambda n, key: data.circuit(key, layers=n, gamma=float(n == 1), short=False)
    gap = [100 * v for v in paired(of(1, "accuracy"), of(2, "accuracy"))]
    plain = ", ".join(f"{n}: {mean(data.circuit('accuracy', layers=n, gamma=0.0, short=False)):.0%}"
                      for n in induction.STANDS_FOR)
    cut = {n: np.mean([updates >= of(n, "longest")[seed] + of(n, "steps")[seed] // 2
                       for seed, updates in of(n, "updates").items()]) for n in (1, 2)}
    more = (f"plain models by layers {plain}; cut off were {cut[1]:.0%} of the sheared runs and {cut[2]:.0%} of the "
            f"plain ones; layers = {cost(of, 1, 2)}")
    found = verdict(gap[1] > -2 and cut[2] < 0.5, gap[2] < -2 and cut[1] < 0.5)
    return found, says(gap, 0) + " points of accuracy", more


def claim_law(data):
    """Momentum: the best gamma is 4.17 N^-0.74 for N layers
    claimed: a scaling law from associative recall
    how: gamma from 1/8 to 8, one to six layers, a training so short that no loss is near its floor; the best gamma is
        the lowest point of a parabola in log gamma, fitted for each seed
    rule: holds if the interval of the exponent contains -0.74 but not 0, with and without RMSNorm on queries and keys;
        no if both exclude -0.74
    run: induction"""
    rows, found, exponents = data.table("induction", induction.COLUMNS), [], []
    for norm, title in (("True", "with the norm"), ("False", "without")):
        best, exponent = induction.law(rows, norm)
        exponents.append(exponent)
        points = ", ".join(f"{g:.2f} [{low:.2f}, {high:.2f}]" for g, low, high in best.values())
        found.append(f"{title} {says(exponent, 2)}, gamma by layers: {points}")
    inside = [low <= -0.74 <= high for _, low, high in exponents]
    laws = ", ".join(f"{4.17 * n ** -0.74:.2f}" for n in best)
    short = f"exponents {says(exponents[0], 2)} and, without the norm, {says(exponents[1], 2)}"
    holds = all(inside) and all(high < 0 for _, _, high in exponents)
    return verdict(holds, not any(inside)), short, "; ".join(found) + f"; the law: {laws}"


def claim_louder(data):
    """Momentum: it is the shear, not a louder score
    claimed: nothing; we ask, as the shear also makes scores louder
    how: one layer, gamma = 1, against gamma = 0 with a temperature that makes the scores as loud
    rule: holds if the shear reaches a lower loss, no if a higher one
    run: induction"""
    loud = data.circuit(layers=1, gamma=0.0, louder=induction.loudness(1.0))
    gap = paired(data.circuit(layers=1, gamma=1.0), loud)
    alone = paired(loud, data.circuit(layers=1, gamma=0.0))
    return verdict(gap[2] < 0, gap[1] > 0), says(gap) + " nats", f"the louder score alone brings {says(alone)} nats"


def claim_high_pass(data):
    """Momentum: the shear is a high-pass filter
    claimed: the symplectic-filter duality: "mathematically equivalent to a high-pass filter"
    how: the gain of the torch operator at the lowest and the highest frequency of the table, at gamma = 1
    rule: holds if fast waves are amplified and slow ones stopped (a gain below 0.1), partly if slow ones pass, no if
        fast ones are not amplified
    run: filters"""
    rows = [r for r in data.table("filters") if (r["mixer"], r["setting"]) == ("momentum", "gamma = 1")]
    if not rows:
        raise Missing("filters")
    low, high = (end(rows, key=lambda r: r["frequency"])["measured_gain"] for end in (min, max))
    found = verdict(high > 1 and low < 0.1, high <= 1, part=True)
    return found, f"gain {low:.2f} to {high:.2f}", "engineers call it a high shelf"


def by_layer(data, table, measure):                              # -> {layer: {seed: value}}
    rows = data.table(table, ["measure", "layer", "seed", "value"])
    layers = sorted({r["layer"] for r in rows if r["measure"] == measure})
    if not layers:
        raise Missing(table)
    return {layer: data(table, "value", measure=measure, layer=layer) for layer in layers}


def over_layers(data, measure):                                  # of the bands -> {seed: mean over layers}
    found = by_layer(data, "bands", measure).values()
    return {seed: float(np.mean([layer[seed] for layer in found])) for seed in min(found, key=len)}


def claim_orthogonal(data):
    """Momentum: DC and AC are orthogonal
    claimed: a theorem: with RoPE and the shear, what means and what works lie in separate bands of frequency
    how: what the spectra along the text of the query q_t, after RoPE, and of its momentum p_t = q_t - q_{t-1} share,
        mean over heads and layers of a model trained with gamma = 1
    rule: holds if it is below 10% for every random seed, no if above 30% for every one
    run: bands"""
    shared = {seed: 100 * v for seed, v in over_layers(data, "overlap").items()}
    cosine = interval(over_layers(data, "absolute cosine").values())
    q, p = (mean(over_layers(data, measure)) for measure in ("above pi/2 of q", "above pi/2 of p"))
    more = (f"{q:.0%} of the power of q and {p:.0%} of that of p is above pi/2; mean |cos(q_t, p_t)| "
            f"{says(cosine, 2)}: q of one length, as here, has cos(q, p) = |p| / 2|q|, zero only where it stands "
            "still. RoPE is not the low-pass filter of the original, nor any filter: it turns q_t by t theta, which "
            "moves every frequency by theta and keeps its power")
    holds, no = max(shared.values()) < 10, min(shared.values()) > 30
    return verdict(holds, no), says(interval(shared.values()), 0, "%") + " shared", more


def claim_bands(data):
    """Momentum: the shear carries recall, the rest of attention is untouched
    claimed: what is slow passes as it was, what is fast brings recall
    how: a model trained with gamma = 1 loses p: the rise of the loss at the rest of words that occurred in the last 512
        characters, minus that at all others
    rule: holds if the difference is above zero and the rise at all others below 0.01 nats, no if the difference is
        below zero
    run: bands"""
    occurred, others = "rest, word occurred", "all others"
    rise = lambda band, place: data("bands", "value", measure=f"without {band}", place=place)
    gap = paired(rise("AC", occurred), rise("AC", others))
    rises = {band: [interval(rise(band, place).values()) for place in (occurred, others)] for band in ("AC", "DC")}
    more = ", ".join(f"without {band} {says(both[0])} and {says(both[1])}" for band, both in rises.items())
    holds = gap[1] > 0 and rises["AC"][1][2] < 0.01
    return verdict(holds, gap[2] < 0, part=gap[1] > 0), says(gap) + " nats", more


def claim_lower_on_text(data):
    """Momentum: a lower loss on text than the plain transformer
    claimed: a model of 125M parameters comes within 2.9% of the loss of a plain one of 350M; here, one size
    how: the race and the longer runs of scaling.py, the validation text as a stream
    rule: holds if the difference is below zero in both, no if above in one and below in none
    run: race"""
    gaps, short, more = raced(data, "momentum")
    widths = dict(momentum=128, baseline=256)
    try:
        table, minutes = longest(data)
        of = lambda model, key: data(table, key, model=model, minutes=minutes, width=widths[model])
        larger = paired(of("momentum", "val_loss"), of("baseline", "val_loss"))
        more += (f"; against a larger baseline, in scaling.py, {says(larger)} nats, as that reads less in the same "
                 f"time: {cost(of, 'momentum', 'baseline')}")
    except Missing:                                              # the race alone decides
        pass
    return verdict(*settle(gaps, 0)), short, more


# Wave Field.

def claim_within_five(data):
    """Wave Field: 5% behind a transformer's perplexity, by characters
    claimed: 6.2 against 5.9
    how: the race; as a stream, and in windows of 128; and the longer runs of scaling.py as a stream
    rule: holds if the perplexity is at most 5.1% above everywhere, no if more in one and less in none
    run: race"""
    gaps, short, had = raced(data, "wavefield", lambda gap: says(percent(gap), 1, "%"))
    cold = paired(*(data.race(model, "cold") for model in ("wavefield", "baseline")))
    gaps = [percent(gap) for gap in (*gaps, cold)]
    more = f"in windows {says(gaps[-1], 1, '%')}; the published 6.2 and 5.9 are per token of 2.1 characters; {had}"
    return verdict(*settle(gaps, 5.1)), short, more


def claim_accuracy(data):
    """Wave Field: 50.5% accuracy against 51.0%
    claimed: half a point below a transformer
    how: the share of characters that were the most likely one, the validation text as a stream, after three minutes
    rule: holds if it is less than one point below the baseline, no if more
    run: accuracy"""
    of = lambda key: [data("accuracy", key, model=m) for m in ("wavefield", "baseline")]
    ours, theirs = of("accuracy")
    gap = paired(ours, theirs)
    perplexity = " and ".join(f"{math.exp(mean(loss)):.2f}" for loss in of("loss"))
    more = (f"{mean(ours):.1f}% and {mean(theirs):.1f}%, perplexity {perplexity}, in other runs than the race's; "
            f"{size('wavefield')} and {size('momentum')}")
    return verdict(gap[1] > -1, gap[2] < -1), says(gap, 2) + " points", more


def claim_byte_pairs(data):
    """Wave Field: 87% behind at 8,000 byte pairs
    claimed: the gap opens with the vocabulary
    how: perplexity per token against the transformer's at 8,000 byte pairs, 128 channels, the same seconds
    rule: holds if it is more than 43% above, half of what is claimed, no if less
    run: vocabulary"""
    gap = gaps_by_vocabulary(data)
    narrow = min(width for _, width in gap)
    text = ", ".join(f"{vocabulary.named(vocab)} {says(three, 1, '%')}" for (vocab, width), three in gap.items()
                     if width == narrow)
    of = lambda model, key: data("vocabulary", key, model=model, vocab=8000, width=narrow)
    bits = paired(of("wavefield", "bits_per_byte"), of("baseline", "bits_per_byte"))
    more = f"by vocabulary {text}; at 8,000 {says(bits)} bits per byte; {cost(of, 'wavefield', 'baseline')}"
    three = gap[8000, narrow]
    return verdict(three[1] > 43, three[2] < 43), says(three, 1, "%"), more


def gaps_by_vocabulary(data):                                    # -> {(vocab, width): mean, low, high in percent}
    rows = data.table("vocabulary", vocabulary.COLUMNS)
    if not any(r["vocab"] == 8000 for r in rows):
        raise Missing("vocabulary")
    return {key: vocabulary.gap(rows, *key) for key in dict.fromkeys((r["vocab"], r["width"]) for r in rows)}


def claim_cheaper(data):
    """Wave Field: 31x, 107x, 367x cheaper than attention at 2k, 8k, 32k tokens
    claimed: counted operations
    how: time of one kernel against the other, forward and backward; and of whole training steps. Medians, no interval
    rule: holds if kernels and a whole step of 2,048 tokens reach at least half of what is claimed, partly if only the
        kernels do, no if they do not
    run: speed"""
    ms = {(r["panel"], r["name"], r["n"]): r["ms"] for r in data.table("speed")}
    kernels = {n: ms["kernel", "attention", n] / ms["kernel", "wave", n] for n in PUBLISHED
               if ("kernel", "wave", n) in ms}
    whole = {n: ms["training", "momentum", n] / ms["training", "wavefield", n] for panel, name, n in ms
             if (panel, name) == ("training", "wavefield")}
    if not kernels or 2048 not in whole:
        raise Missing("speed")
    good, complete = all(2 * ratio > PUBLISHED[n] for n, ratio in kernels.items()), len(kernels) == len(PUBLISHED)
    short = ", ".join(f"{ratio:.0f}x" for ratio in kernels.values()) + " for the kernel alone"
    more = ("a whole training step: " + ", ".join(f"{ratio:.1f}x at {n:,.0f} tokens" for n, ratio in whole.items())
            + f". The kernel at 32k is near its limit of {PUBLISHED[32768] / 2:.0f}x, and such ratios move by a third "
            "from day to day. Later the author gives 1.0x, 4.5x and 21.8x for whole models")
    return verdict(complete and good and 2 * whole[2048] > PUBLISHED[2048], not good, part=complete), short, more


def claim_roles(data):
    """Wave Field: heads take roles, from the letter to the passage
    claimed: they organise themselves
    how: waves of one reach fall silent in a trained model; the rise of the loss at letters, by what one must have read
        to know them
    rule: holds if without the long waves the rest of a word that occurred before suffers by 0.005 nats more than that
        of a new word, no if for sure by less
    run: reach"""
    rise = lambda kind: data("reach", "rise", silent="long, above 32", kind=kind)
    gap = paired(rise("rest, word occurred"), rise("rest, word is new"))
    lost = [f"the {silent} tokens, {mean(data('reach', 'rise', silent=silent, kind='rest, word occurred')):.2f}"
            for silent in ("short, below 4", "middle, 4 to 32", "long, above 32")]
    more = ("they are told to at the start, by reaches of 1 to 128. What silence costs in the rest of a word that "
            f"occurred: {', '.join(lost)} nats")
    return verdict(gap[1] > 0.005, gap[2] < 0.005), says(gap) + " nats", more


def claim_coupling(data):
    """Wave Field: coupling and interference route information
    claimed: heads exchange what they carry, and waves interfere
    how: one term left out, trained anew
    rule: holds if the loss rises by more than 0.005 nats without either, no if each is certainly worth less
    run: ablate"""
    gaps = {term: without(data, "wavefield", term) for term in ("coupling of heads", "interference", "gate")}
    both = gaps["coupling of heads"], gaps["interference"]
    text = ", ".join(f"{term} {says(gap)}" for term, gap in gaps.items())
    more = f"{text}, oscillation {says(without(data, 'wavefield', 'oscillation'))}; {ablated(data, 'wavefield')}"
    worth = [gap[1] > 0.005 for gap in both]
    found = verdict(all(worth), all(gap[2] < 0.005 for gap in both), part=any(worth))
    return found, says(gaps["coupling of heads"]) + " nats without coupling", more


def ablated(data, model):
    """What each side had."""
    steps = mean(data("ablate", "steps", model=model, without=""))
    return f"{size(model)} with all terms, {steps * 2048 / 1e6:.1f} M tokens on each side"


def without(data, model, term):                                  # -> how much the loss rises
    return paired(*(data("ablate", "val_loss", model=model, without=left_out) for left_out in (term, "")))


def claim_gap_closes(data):
    """Wave Field: the gap to a transformer closes with capacity
    claimed: so its author expects, of byte pairs
    how: perplexity per token against the transformer's at 8,000 byte pairs, 256 channels against 128, the same seconds:
        how much of the gap goes
    rule: holds if there is a gap with 128 channels, and a smaller one with 256, no if it grows, or if there is none
    run: vocabulary"""
    gap = gaps_by_vocabulary(data)
    narrow, wide = (f(width for _, width in gap) for f in (min, max))
    of = lambda model, key, width=wide: data("vocabulary", key, model=model, vocab=8000, width=width)

    def behind(width):
        ours, theirs = (of(model, "val_loss", width) for model in ("wavefield", "baseline"))
        return {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()}

    change = percent(paired(behind(wide), behind(narrow)))
    short = (f"{says(gap[8000, narrow], 1, '%')} with {narrow:.0f} channels, {says(gap[8000, wide], 1, '%')} with "
             f"{wide:.0f}")
    more = f"a change of {says(change, 1, '%')}; with {wide:.0f} {cost(of, 'wavefield', 'baseline')}"
    none = gap[8000, narrow][2] < 0
    return verdict(gap[8000, narrow][1] > 0 and change[2] < 0, none or change[1] > 0), short, more


def longest(data):                                               # -> a table, minutes
    """The largest budget of scaling.py: that of longer.csv, if it is there."""
    try:
        name, rows = "longer", data.table("longer")
    except Missing:
        name, rows = "scaling", data.table("scaling")
    return name, max(r["minutes"] for r in rows)


def steeper(data, a, b):
    """The exponent of loss against parameters at the largest budget, a minus b, seed by seed; and both exponents. Only
    of seeds that have every width."""
    table, minutes = longest(data)
    rows = [r for r in data.table(table) if r["minutes"] == minutes and r["model"] in (a, b)]
    slopes = []
    for model in (a, b):
        slopes.append({})
        for seed in {r["seed"] for r in rows if r["model"] == model}:
            points = [(r["parameters"], r["val_loss"]) for r in rows if (r["model"], r["seed"]) == (model, seed)]
            if len(points) == len({r["width"] for r in rows}) > 1:
                slopes[-1][seed] = np.polyfit(*np.log(points).T, 1)[0]
    if not slopes[0].keys() & slopes[1].keys():
        raise Missing(table)
    return paired(*slopes), *(interval(found.values()) for found in slopes)


def claim_no_variant(data):
    """Wave Field: no variant of Mamba or Hyena
    claimed: completely different
    how: the frequency response of the torch operator against that of one complex pole for each head, which is a
        diagonal linear state space as in S4D (arXiv 2206.11893) and the LRU (arXiv 2303.06349)
    rule: holds if they differ by more than 0.001 in gain, no if by less
    run: filters"""
    rows = [r for r in data.table("filters", ["mixer", "gain", "measured_gain"]) if r["mixer"].startswith("waves")]
    if not rows:
        raise Missing("filters")
    most = max(abs(r["gain"] - r["measured_gain"]) for r in rows)
    more = "Mamba's pole depends on the token, this one does not. Nothing travels: it is an oscillator in time"
    return verdict(most > 0.001, most < 0.001), f"one complex pole, to {max(most, 1e-6):.0e} in gain", more


def claim_successor(data):
    """Wave Field's successor: a perplexity 24 times better
    claimed: and withdrawn by its author, as its field had fewer cells than the text had tokens
    how: half a cell for each token against a whole one, 600 iterations of a small model: the loss as it is published,
        and in use, when the later tokens are not there yet
    rule: holds if half a cell has the lower loss in use, no if the higher one
    run: leaky"""
    last = max(r["iter"] for r in data.table("leaky"))
    of = lambda key, stride: data("leaky", key, stride=stride, iter=last)
    gap, shown = (paired(of(key, 0.5), of(key, 1)) for key in ("in_use", "published"))
    began = data("leaky", "leak", stride=0.5, iter=0)
    rang = max(r["alarm"] for r in data.table("leaky") if r["stride"] == 1), min(
        data("leaky", "alarm", stride=0.5, iter=0).values())
    heard = {(0, 1): "rings from iteration 0 on, and never for a whole cell"}.get(rang, "is not to be trusted")
    more = (f"as published {says(shown)} nats; a prediction moves by {mean(began):.0e} nats before training and by "
            f"{mean(of('leak', 0.5)):.0f} after it; the alarm of train.py {heard}; "
            f"{size('wavefield', **leaky.SIZE)}, {last * 2048 / 1e6:.1f} M tokens on both sides")
    return verdict(gap[2] < 0, gap[1] > 0), says(gap) + " nats in use", more


# Advection-GLU.

def spelled(data, key, ours, after=1, lr_factor=1):              # -> ours minus the SwiGLU
    ends = data("spelling", "iters", model="product", lr_factor=lr_factor)
    where = dict(lr_factor=lr_factor, after=round(mean(ends) * after))
    return paired(*(data("spelling", key, model=m, **where) for m in (ours, "swiglu")))


def both_transports(data, key, after):
    """Points that a score is above the SwiGLU's: with the original's product, and with a gradient in its place."""
    product, slope = ([100 * v for v in spelled(data, key, ours, after)] for ours in ("product", "slope"))
    ahead, behind = (product[1] > 0, slope[1] > 0), (product[2] < 0, slope[2] < 0)
    short = f"{says(product, 1)} points, {says(slope, 1)} with advection by the slope"
    return verdict(all(ahead), all(behind), part=any(ahead)), short


def spelling_cost(data):
    of = lambda m, key: data("spelling", key, model=m, lr_factor=1)
    return f"{cost(of, 'product', 'slope')}; {cost(of, 'swiglu', 'swiglu').partition('; ')[0]}"


def claim_spells(data):
    """Advection-GLU: transport makes it spell well
    claimed: orthographic precision
    how: words that it writes and the training text has, after 300 iterations, against a SwiGLU of the same size: with
        the original's product, and with advection by the slope (field=slope)
    rule: holds if the share is higher with both, partly if with one, no if lower with both
    run: spelling"""
    return *both_transports(data, "known_words", 1), spelling_cost(data)


def claim_spells_soon(data):
    """Advection-GLU: it learns to spell fast
    claimed: fast learning of spelling and syntactic structure
    how: the same after a quarter of the iterations
    rule: holds if the share is higher with both, partly if with one, no if lower with both
    run: spelling"""
    _, lines = both_transports(data, "play_lines", 0.25)
    words = [100 * mean(data("spelling", "known_words", model=m, lr_factor=1, after=min(
        r["after"] for r in data.table("spelling")))) for m in ("product", "slope", "swiglu")]
    shares = ", ".join(f"{share:.0f}%" for share in words)
    return *both_transports(data, "known_words", 0.25), f"{shares} with product, slope, SwiGLU; lines in place {lines}"


def claim_form(data):
    """Advection-GLU: it adheres to the structure of the text
    claimed: rhythm, overall form, strict adherence to structure
    how: lines in their place (a SPEAKER: after a blank line, and only there), as above at the end
    rule: holds if the share is higher with both, partly if with one, no if lower with both
    run: spelling, table only"""
    return *both_transports(data, "play_lines", 1), spelling_cost(data)


def claim_smooth(data):
    """Advection-GLU: training is stable and converges smoothly
    claimed: highly stable
    how: largest rise of the training loss (mean of 20) above its lowest so far, at one and at three times the learning
        rate, beside the SwiGLU's
    rule: holds if it is less than 0.01 nats above the SwiGLU's at both rates, no if more at both
    run: spelling, table only"""
    once, thrice = (spelled(data, "largest_rise", "product", lr_factor=factor) for factor in (1, 3))
    rises = [mean(data("spelling", "largest_rise", model=m, lr_factor=1)) for m in ("product", "swiglu")]
    more = f"{rises[0]:.3f} against {rises[1]:.3f}; at three times the rate {says(thrice, 4)}"
    holds, no = max(once[2], thrice[2]) < 0.01, min(once[1], thrice[1]) > 0.01
    return verdict(holds, no), says(once, 4) + " nats", more


def claim_meaning(data):
    """Advection-GLU: interpretable through its equation
    claimed: one can read in its viscosity what it does
    how: how much nu (mean over channels) at first letters of words differs from that inside words, in standard
        deviations along the text, in each layer of a trained model, up or down
    rule: holds if they differ by at least 0.5 in every layer, no if by less in every layer
    run: meaning"""
    gaps = [interval(map(abs, gap.values())) for gap in by_layer(data, "meaning", "first minus inside").values()]
    short = ", ".join(says(gap, 2) for gap in gaps) + " in the layers"
    apart, close = [gap[1] >= 0.5 for gap in gaps], [gap[2] < 0.5 for gap in gaps]
    ranks = []
    for name in ("surprise", "loss", "entropy"):
        found = by_layer(data, "meaning", name).values()
        ranks.append(f"{name} " + ", ".join(says(interval(rank.values()), 2) for rank in found))
    return verdict(all(apart), all(close), part=any(apart)), short, "rank correlation with " + "; with ".join(ranks)


# Hydra and Zeus.

def claim_half_the_parameters(data):
    """Hydra: on par at half the parameters
    claimed: parity in loss and time while more than halving the parameters
    how: the race and the longer runs of scaling.py, the validation text as a stream; hydra.py as it is, with the
        force, which its author calls Zeus
    rule: holds if it is less than 0.01 nats behind the transformer in both, with less than half of its parameters,
        partly if in one or with more, no if it is further behind in one and less in none
    run: race"""
    gaps, short, had = raced(data, "hydra")
    share = mean(data.race("hydra", "parameters")) / mean(data.race("baseline", "parameters"))
    par, no, part = settle(gaps, 0.01)
    more = f"with {share:.1%} of the parameters; {had}"
    try:
        plain = paired(losses(data, "hydra, euler"), data.race("baseline"))
        more += f"; without the force, four layers: {says(plain)} nats with {size('hydra', zeus=False, n_layer=4)}"
    except Missing:                                              # the race alone decides
        pass
    return verdict(par and share < 0.5, no, part), short, more


def losses(data, variant):                                       # of the models of flow.csv -> {seed: loss}
    return {seed: rows[0]["val_loss"] for seed, rows in flow(data, variant).items()}


def claim_navier_stokes(data):
    """Hydra: the latent flow obeys an anisotropic Navier-Stokes equation
    claimed: approximately
    how: which terms of du/dt + u . grad u = -grad p + nu div grad u + f, div u = 0 a layer has
    rule: holds if it has all five, no if u . grad u, which makes a flow of what is otherwise heat, is not among them
    run: flow, table only"""
    there = list(dict.fromkeys(r["term"] for r in data.table("flow", ["term"])))
    lacking = [term for term in ("u . grad u", "pressure", "viscosity", "force", "div u = 0") if term not in there]
    early, end = over_time(data, "hydra", "u . grad u")
    more = (f"there is {', '.join(there)}. The pressure is attention, and keeps no flow incompressible; the rotation "
            f"is that of a frame that turns. With u . grad u the loss changes by {says(early)} nats a quarter through "
            f"the race's time, by {says(end)} at its end")
    return verdict(not lacking, "u . grad u" in lacking, part=True), f"lacks {' and '.join(lacking)}", more


def claim_viscosity_falls(data):
    """Hydra: viscosity should fall with depth
    claimed: so that tokens cluster in the end
    how: falling from nu, constant at nu/2 (the same in total), rising to nu, none; the same iterations, upwind stencil
    rule: holds if falling reaches a lower loss than constant and rising, partly if than one of them, no if one is lower
    run: viscosity"""
    nu = max(r["nu"] for r in data.table("viscosity"))
    loss = lambda schedule, nu: data("viscosity", "val_loss", schedule=schedule, laplacian="upwind", nu=nu)
    falls, others = loss("falling", nu), dict(constant=nu / 2, rising=nu, none=0)
    gaps = {name: paired(falls, loss(name, other)) for name, other in others.items()}
    text = f"nu = {nu:g}; falling minus rising {says(gaps['rising'])}, minus none {says(gaps['none'])}"
    learned = paired(data("viscosity", "val_loss", schedule="learned"), loss("none", 0))
    tokens = mean(data("viscosity", "iters", schedule="falling")) * 2048 / 1e6
    text += f"; learned for each channel minus none {says(learned)}; {size('hydra')}, {tokens:.1f} M tokens each"
    lower, higher = zip(*((gap[2] < 0, gap[1] > 0) for gap in (gaps["constant"], gaps["rising"])))
    short = says(gaps["constant"]) + " nats against constant"
    return verdict(all(lower), any(higher), part=any(lower)), short, text


def claim_viscosity_late(data):
    """Hydra: viscosity helps early and hurts late
    claimed: nothing; we ask
    how: a run without viscosity minus one with it, on the same batches, a quarter through 180 CPU-seconds and at the
        end
    rule: holds if without it the loss is higher after a quarter and lower at the end, no if not lower at the end
    run: late"""
    early, end = over_time(data, "hydra", "nu=0")
    found = verdict(early[1] > 0 and end[2] < 0, end[1] > 0, part=early[1] > 0)
    return found, f"{says(early)}, then {says(end)} nats", f"{size('hydra')}; {late_tokens(data, 'hydra', 'nu=0')}"


def over_time(data, model, variant):                             # -> the differences a quarter through, and at the end
    rows = [r for r in data.table("late", late.COLUMNS) if r["model"] == model]
    if not any(r["variant"] == variant for r in rows):
        raise Missing("late")
    _, quarter = late.difference(rows, model, variant, 0, 4)
    _, end = late.difference(rows, model, variant, 1, 1)
    return interval(quarter[:, 0]), interval(end[:, 0])


def late_tokens(data, model, variant):
    """What both sides had; without its time, as the variants had as many iterations as the race's seconds gave."""
    sides = (mean(data("late", "iter", model=model, variant=v, final=1)) * 2048 / 1e6 for v in (variant, ""))
    return "M tokens {:.2f} and {:.2f}".format(*sides)


def flow(data, variant="zeus, euler", **where):                  # -> {seed: its rows, in order}
    found = {}
    for row in data.table("flow", ["variant", "term", "rank_before", "rank"]):
        if row["variant"] == variant and all(row[k] == v for k, v in where.items()):
            found.setdefault(row["seed"], []).append(row)
    if not found:
        raise Missing("flow")
    return found


def claim_entropy(data):
    """Hydra: pressure raises the entropy of the tokens
    claimed: attention is a heat flow, a gradient ascent on the entropy of the token distribution
    how: effective rank of the cloud of tokens before and after each pressure step of a trained model
    rule: holds if it rises in every layer, partly if in one, no if it falls in every layer
    run: flow"""
    gaps = layers_of(data, "zeus, euler", "pressure", lambda r: r["rank"] - r["rank_before"])
    other = layers_of(data, "hydra, euler", "pressure", lambda r: r["rank"] - r["rank_before"])
    rises, falls = [gap[1] > 0 for gap in gaps], [gap[2] < 0 for gap in gaps]
    more = "without the force, four layers: " + ", ".join(says(gap, 1) for gap in other)
    short = ", ".join(says(gap, 1) for gap in gaps) + " dimensions in the layers"
    return verdict(all(rises), all(falls), part=any(rises)), short, more


def layers_of(data, variant, term, of):                          # -> [mean, low, high] of the seeds, layer by layer
    found = flow(data, variant, term=term).values()
    return [interval(map(of, rows)) for rows in zip(*found)]


def claim_cluster(data):
    """Hydra: tokens cluster in the end
    claimed: viscosity falls, so that tokens gather in points
    how: effective rank of the cloud of tokens, and the mean cosine of two tokens of a text, after the last layer minus
        before it
    rule: holds if the rank falls and the cosine rises, partly if one of them, no if neither
    run: flow"""
    runs, last = flow(data).values(), max(r["layer"] for r in data.table("flow") if r["variant"] == "zeus, euler")
    ends = [[r for r in rows if r["layer"] == last] for rows in runs]
    change = lambda key: interval([rows[-1][key] - rows[0][f"{key}_before"] for rows in ends])
    whole = lambda key: interval([rows[-1][key] - rows[0][f"{key}_before"] for rows in runs])
    rank, cosine = change("rank"), change("cosine")
    more = f"over all layers, from the embeddings on, {says(whole('rank'), 1)} and {says(whole('cosine'), 2)}"
    good, bad = (rank[2] < 0, cosine[1] > 0), (rank[1] > 0, cosine[2] < 0)
    short = f"{says(rank, 1)} dimensions, cosine {says(cosine, 2)}"
    return verdict(all(good), all(bad), part=any(good)), short, more


def claim_rotation(data):
    """Hydra: the skew matrix turns the tokens
    claimed: a rotation; we ask whether it keeps lengths, as one does
    how: how much longer a token is after z + kappa z Omega, in each layer of a trained model; and the same weights with
        the exact rotation in its place
    rule: holds if it grows by less than 1% in every layer, no if by more in every layer
    run: flow, table only"""
    growth = layers_of(data, "zeus, euler", "rotation", lambda r: r["growth"])
    swapped = interval([rows[0]["swapped"] - rows[0]["swap_from"] for rows in flow(data).values()])
    exact = paired(losses(data, "zeus, cayley"), losses(data, "zeus, euler"))
    more = (f"the exact rotation in place of the trained one costs {says(swapped)} nats; trained with it, "
            f"rotation=cayley, a model is {says(exact)} nats behind; {size('hydra')} on both sides")
    short = ", ".join(says(gap, 0, "%") for gap in growth) + " in length in the layers"
    return verdict(all(g[2] < 1 for g in growth), all(g[1] > 1 for g in growth)), short, more


def claim_maxwell(data):
    """Zeus: a magnetic field, whose force does no work
    claimed: Maxwell's equations, so div M = 0; we ask whether the force only bends the flow
    how: the size of div M over the most that it can be for such a Jacobian (of a random one about 1%); and the absolute
        cosine of the force and what the other terms of its layer add (of random directions it is 0.07)
    rule: holds if div M is below 1% and the absolute cosine below 0.1, no if neither is
    run: flow, table only"""
    own = flow(data, term="force").values()
    div = interval([100 * np.mean([r["div"] for r in rows]) for rows in own])
    work = interval([np.mean([r["work_size"] for r in rows]) for rows in own])
    good, bad = (div[2] < 1, work[2] < 0.1), (div[1] > 1, work[1] > 0.1)
    longer = layers_of(data, "zeus, euler", "force", lambda r: r["growth"])
    more = (f"absolute cosine {says(work, 2)}; after it tokens are {', '.join(says(gap, 0, '%') for gap in longer)} "
            "longer, layer by layer. It is orthogonal to its own field, by construction, not to the flow")
    return verdict(all(good), all(bad), part=any(good)), f"div M {says(div, 1, '%')} of its most", more


def claim_zeus(data):
    """Zeus: the Lorentz-like force scales better
    claimed: better scaling than Hydra
    how: the slope of log loss against log parameters, width 64 to 256, with the force (two layers) minus without (four
        layers, about as many parameters); the longer runs
    rule: holds if it is below zero, and loss falls with size at all, no if above zero
    run: scaling"""
    gap, own, other = steeper(data, "hydra", "no_zeus")
    table, minutes = longest(data)
    widths = sorted({r["width"] for r in data.table(table) if r["model"] == "hydra"})
    middle = widths[len(widths) // 2]
    of = lambda model, key, width=middle: data(table, key, model=model, minutes=minutes, width=width)
    leads = ", ".join(says(paired(*(of(m, "val_loss", width) for m in ("hydra", "no_zeus")))) for width in widths)
    more = (f"exponents {says(own)} and {says(other)}; with the force minus without, by width {leads} nats; with "
            f"{middle:.0f} channels {cost(of, 'hydra', 'no_zeus')}")
    return verdict(gap[2] < 0 and own[2] < 0, gap[1] > 0), f"{says(gap)} in the exponent", more


# FluidLM.

def claim_linear(data):
    """FluidLM: linear in the length, with a memory that does not grow
    claimed: O(N) training, an O(1) state, no cache
    how: a training step of one long text against many short ones with as many tokens; bytes of state in a long stream
    rule: holds if a long text costs at most 1.25 times as much and the state does not grow, no if neither
    run: speed, table only"""
    flat = [r for r in data.table("speed") if r["panel"] == "flat" and r["name"] == "fluidlm, texts of 256 against one"]
    bytes_at = {r["n"]: r["mib"] for r in data.table("speed") if (r["panel"], r["name"]) == ("generate", "fluidlm")}
    if not flat or len(bytes_at) < 2:
        raise Missing("speed")
    cheap, constant = flat[0]["ratio"] >= 0.8, len(set(bytes_at.values())) == 1
    short = f"one text of {flat[0]['n']:,.0f} tokens costs {1 / flat[0]['ratio']:.2f} times as much"
    less, most = min(bytes_at.values()), max(bytes_at.values())
    more = (f"{less:.2f} to {most:.2f} MiB of state, up to {max(bytes_at):,.0f} tokens, in a model of 256 channels, "
            "four layers and four steps")
    return verdict(cheap and constant, not (cheap or constant), part=cheap or constant), short, more


def claim_memory(data):
    """FluidLM: O(1) memory
    claimed: no cache that grows
    how: bytes of the state after 250 and after 100,000 tokens of a stream, beside a transformer that keeps it all
    rule: holds if they are the same, no otherwise
    run: memory"""
    kib = {}
    for row in data.table("memory"):
        kib.setdefault(row["model"], []).append((row["tokens"], row["bytes"] / 1024))
    said = {name: f"{points[0][1]:,.0f} KiB after {points[0][0]:,.0f} tokens and {points[-1][1]:,.0f} after "
            f"{points[-1][0]:,.0f}" for name, points in kib.items()}
    others = ", ".join(f"{name} {kib[name][-1][1]:,.0f}" for name in ("wavefield", "hydra", "momentum", "lstm"))
    same = len({size for _, size in kib["fluidlm"]}) == 1
    more = f"the transformer that keeps the whole text: {said['whole_text']}; KiB of the others: {others}"
    return verdict(same, not same), said["fluidlm"], more


def claim_thinks_longer(data):
    """FluidLM: computes longer where it is hard
    claimed: listed by its author as not shown
    how: rank correlation of the steps that a token takes with its loss in the full computation, at the largest epsilon
        that costs less than 0.05 nats
    rule: holds if it is positive, no if negative
    run: halting"""
    rows = data.table("halting", ["gain", "seed"])
    pick = lambda epsilon, key: [r[key] for r in rows if r["epsilon"] == epsilon]
    cheap = [e for e in {r["epsilon"] for r in rows}
             if max(pick(e, "loss_paid")) < 0.05 and not any(map(math.isnan, pick(e, "correlation")))]
    if not cheap:
        raise Missing("halting")
    epsilon = max(cheap)
    three, gain = interval(pick(epsilon, "correlation")), interval(pick(epsilon, "gain"))
    others = ", ".join(f"{e:g} {says(interval(pick(e, 'correlation')), 2)}" for e in sorted(cheap)[:-1])
    more = (f"epsilon = {epsilon:g} saves {1 - np.mean(pick(epsilon, 'share_of_steps')):.0%} of the steps for "
            f"{np.mean(pick(epsilon, 'loss_paid')):.3f} nats; the same number of steps at random places costs "
            f"{says(gain)} nats more; smaller ones: {others}")
    return verdict(three[1] > 0, three[2] < 0), says(three, 2), more


def claim_terms(data):
    """FluidLM: every term of its equation is needed
    claimed: each has its task
    how: one term left out, trained anew
    rule: holds if each is worth more than 0.005 nats, partly if some are, no if one is certainly worth less
    run: ablate"""
    terms = dict.fromkeys(r["without"] for r in data.table("ablate") if r["model"] == "fluidlm" and r["without"])
    gaps = {term: without(data, "fluidlm", term) for term in terms}
    needed = [term for term, gap in gaps.items() if gap[1] > 0.005]
    text = ", ".join(f"{term} {says(gap)}" for term, gap in gaps.items())
    most = max(gaps, key=lambda term: gaps[term][0])
    short = f"{len(needed)} of {len(gaps)} needed, {most} most: {says(gaps[most])} nats"
    idle = [term for term, gap in gaps.items() if gap[2] < 0.005]
    found = verdict(len(needed) == len(gaps), bool(idle), part=bool(needed))
    return found, short, f"{text}; {ablated(data, 'fluidlm')}"


def claim_steady(data):
    """FluidLM: its gradient loss steadies generation
    claimed: a penalty on high frequencies of the last u makes it degrade gracefully as it writes
    how: the last quarter of what a model writes minus the first, in nats per character of a counter that knows the
        training text; the difference between trainings with the term and without it
    rule: holds if the term makes the text get worse by 0.03 nats less, no if for sure by less than that
    run: smooth"""
    of = lambda weight, key="drift": data("smooth", key, w_grad=weight)
    gap = paired(of(0.005), of(0.0))
    rough = paired(of(0.005, "rough"), of(0.0, "rough"))
    more = (f"without the term the text changes by {says(interval(of(0.0).values()))} as it is written; "
            f"ten times the term: "
            f"{says(paired(of(0.05), of(0.0)))}; the term changes the roughness of u by {says(rough)} and the loss of "
            f"the model by {says(paired(of(0.005, 'val_loss'), of(0.0, 'val_loss')))} nats; "
            f"{cost(lambda weight, key: of(float(weight), key), '0.005', '0')}")
    return verdict(gap[2] < -0.03, gap[1] > -0.03), says(gap) + " nats of drift", more


def claim_parity(data):
    """FluidLM: as good as attention
    claimed: by nobody. Its author lists it as not shown, and his own V4.5.0 stands at 5.85 against 4.5 to 5.0
    how: the race and the longer runs of scaling.py, the validation text as a stream
    rule: holds if it is less than 0.01 nats behind the transformer in both, no if more in one and less in none
    run: race"""
    gaps, short, had = raced(data, "fluidlm")
    return verdict(*settle(gaps, 0.01)), short, had


# All.

def claim_causal(data):
    """All five: no token sees the future
    claimed: by all; two of the originals do see it
    how: in the models of the race, the most that a prediction moves when later tokens change; tests do every setting
    rule: holds if that is below 1e-9 nats in every run, no otherwise
    run: race"""
    worst = max(r["leak"] for r in data.table("race") if r["final"] and r["leak"] != "")
    return verdict(worst < 1e-9, worst >= 1e-9), f"at most {worst:.0e} nats", "`pump=broadcast` leaks, for study"


def claim_endless(data):
    """FluidLM, Wave Field: a stream may go on without end
    claimed: a state of constant size carries all that is needed
    how: loss with 2,048 to 16,384 tokens of past, minus that of the same tokens with 64 to 128
    rule: holds if neither is more than 0.01 nats worse far down the text, no if both are
    run: streams"""
    fluid, wave = (interval(data("streams", "difference", model=m, changes="", low=2048).values())
                   for m in ("fluidlm", "wavefield"))
    holds, no = max(fluid[2], wave[2]) < 0.01, min(fluid[1], wave[1]) > 0.01
    return verdict(holds, no, part=min(fluid[2], wave[2]) < 0.01), f"{says(fluid, 4)} and {says(wave, 4)} nats", ""


def claim_heals(data):
    """FluidLM, Wave Field: fluids repair themselves
    claimed: nothing; we ask, as a disturbed fluid finds back
    how: half of the state is set to zero; excess loss of the first character after it, against attention and an LSTM
    rule: holds if both lose less than attention and than the LSTM, no if either loses more than attention
    run: kick"""
    excess = lambda model: data("kick", "excess", model=model, low=0)
    back = lambda model: mean(data("kick", "recovered", model=model, low=0))
    fluids, rivals = ("fluidlm", "wavefield"), ("baseline", "lstm")
    gaps = {rival: [paired(excess(m), excess(rival)) for m in fluids] for rival in rivals}
    holds = all(gap[2] < 0 for pair in gaps.values() for gap in pair)
    no = any(gap[1] > 0 for gap in gaps["baseline"])
    beside = {rival: " and ".join(says(gap, 2) for gap in pair) for rival, pair in gaps.items()}
    models = ", ".join(f"{m} {mean(excess(m)):.2f} and {back(m):.1f}" for m in fluids + rivals)
    sizes = ", ".join(f"{m} {size(m)}" for m in fluids) + f", attention {size('momentum')}"
    more = f"against the LSTM {beside['lstm']}; nats at once, and characters until it is back: {models}; {sizes}"
    part = all(gap[2] < 0 for gap in gaps["baseline"])
    return verdict(holds, no, part), f"{beside['baseline']} nats against attention", more


def claim_truer(data):
    """All: truer physics learns sooner and ends behind
    claimed: nothing; we ask
    how: advection by the slope, u . grad u in Hydra, a string in Wave Field, each minus its default on the same
        batches, a quarter through 180 CPU-seconds and at the end
    rule: holds if each is ahead after a quarter and behind at the end, partly if one is, no if each is behind after a
        quarter or ahead at the end
    run: late"""
    tried = {"field=slope": "advection_glu", "u . grad u": "hydra", "string": "wavefield"}
    found = {variant: over_time(data, model, variant) for variant, model in tried.items()}
    turned = [early[2] < 0 and end[1] > 0 for early, end in found.values()]
    off = [early[1] > 0 or end[2] < 0 for early, end in found.values()]
    text = [f"{variant} {says(early)}, then {says(end)} nats ({size(tried[variant])} and more, "
            f"{late_tokens(data, tried[variant], variant)})" for variant, (early, end) in found.items()]
    short, _, rest = text[0].partition(" (")
    return verdict(all(turned), all(off), part=any(turned)), short, "; ".join([rest[:-1], *text[1:]])


def claim_beats_counting(data):
    """Any of the five: better than counting letters
    claimed: by nobody; we ask
    how: the race, against a counter of letters (modified Kneser-Ney of order 7) as a stream; and the longer runs of
        scaling.py, each model with its best width
    rule: holds if the best of the five has a lower loss in the race, no if a higher one in both; partly if it takes
        the longer runs
    run: race"""
    counter = mean(data.race("counter"))
    above = lambda losses: interval(np.array(list(losses.values())) - counter)
    gaps = {m: above(data.race(m)) for m in NAMES}
    best, *others = sorted(gaps, key=gaps.get)
    short = f"{says(gaps[best])} nats, {best}"
    more = ", ".join(f"{m} {says(gaps[m])}" for m in others) + "; the counter took a second"
    holds, no = gaps[best][2] < 0, gaps[best][1] > 0
    try:
        widths = {r["width"] for r in data.table("longer") if r["model"] in NAMES}
        later = {m: min(above(data("longer", "val_loss", model=m, width=width)) for width in widths) for m in NAMES}
    except Missing:                                              # the race alone decides
        return verdict(holds, no), short, more
    best, *others = sorted(later, key=later.get)
    short += f"; in longer runs {says(later[best])}, {best}"
    more += "; in longer runs " + ", ".join(f"{m} {says(later[m])}" for m in others)
    return verdict(holds, no and later[best][1] > 0, part=later[best][2] < 0), short, more
