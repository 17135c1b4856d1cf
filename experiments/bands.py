"""
Are Momentum's two signals, query and momentum, orthogonal, and does the shear carry recall and leave the rest alone?

The original calls q slow ("DC") and p_t = q_t - q_{t-1} fast ("AC"). Its theorems: the two are orthogonal, and the
shear adds recall beside what attention does anyway. A model with gamma = 1 is trained; queries are those that enter the
shear. Exactly, q_t . p_t = (|q_t|^2 - |q_{t-1}|^2 + |p_t|^2) / 2. Queries of one length, as here, have
cos(q_t, p_t) = |p_t| / 2|q_t|: never below zero, and zero only where q stands still.

  cosine, absolute cosine   of q_t and p_t in a layer, mean over tokens and heads; orthogonal: 0
  power of q, power of p    spectra along the text, sum 1: the last 64 tokens of windows of text under a Hann window,
                            mean over windows and channels
  overlap                   sum of the smaller of the two powers; bands apart: 0, the same spectrum: 1
  above pi/2 of q, of p     the power of fast waves, of less than 4 tokens
  without AC, without DC    rise of the loss (nats) if queries and keys of the trained model are q alone (gamma = 0), or
                            gamma p alone: for the rest of words that occurred in the last 512 characters, as in
                            reach.py, and for all other characters

    python experiments/bands.py                    a minute on two cores: one seed, 30 CPU-seconds
    python experiments/bands.py full=true          three seeds, 180 CPU-seconds: 12 CPU-minutes; resume=true goes on
"""
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, interval, read_settings, said, save_picture, trained
from labels import name_ends
from reach import KINDS, kinds, spelled

from common.score import token_losses
from common.settings import guard

SPAN = 64                   # tokens of a spectrum
PLACES = ("rest, word occurred", "all others")
MEASURES = ("cosine", "absolute cosine", "overlap", "above pi/2 of q", "above pi/2 of p")
COLUMNS = "minutes characters seed dataset small measure layer place frequency value".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of bands.csv and bands.png
    full: bool = False              # three seeds, three minutes, 100,000 characters
    seeds: int = 1                  # runs
    minutes: float = 0.5            # CPU-minutes of each run
    characters: int = 16384         # of the validation text that are read
    dataset: str = "plays"          # the text
    small: bool = False             # a tiny model, to try the script out
    resume: bool = False            # keep what bands.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.characters < 256:
            raise ValueError("seeds should be 1 or more, characters 256 or more")


FULL = dict(seeds=3, minutes=3.0, characters=100_000)


@torch.inference_mode()
def queries(model, ids):                                         # -> (layers, windows, SPAN + 1, H, D)
    """Before the shear, at the end of each window of text."""
    T, module = model.config.block_size, sys.modules[type(model).__module__]
    windows = torch.from_numpy(ids[:len(ids) // T * T].astype(np.int64)).view(-1, T)
    found = []
    for some in windows.split(64):
        found.append(torch.stack([q[:, -SPAN - 1:] for q, _ in module.queries_and_keys(model, some, gamma=0)]))
    return torch.cat(found, 1)


def spectrum(x):                                                 # (windows, T, H, D) -> (T // 2 + 1,)
    """The power of each frequency along the text, sum 1."""
    T = x.shape[1]
    taper = torch.hann_window(T + 1, dtype=x.dtype)[:-1]
    power = torch.fft.rfft(x * taper[:, None, None], dim=1).abs().square().mean((0, 2, 3))
    power[1:(T + 1) // 2] *= 2                                   # the others stand for -w as well
    return power / power.sum()


def compare(q):                                                  # (windows, T + 1, H, D)
    """Queries and their momentum -> MEASURES; the frequencies, the power of each."""
    q, p = q[:, 1:], q.diff(dim=1)
    cosine = torch.cosine_similarity(q, p, -1)
    w = 2 * math.pi * np.arange(q.shape[1] // 2 + 1) / q.shape[1]
    of_q, of_p = spectrum(q), spectrum(p)
    fast = torch.from_numpy(w > math.pi / 2)
    values = cosine.mean(), cosine.abs().mean(), torch.minimum(of_q, of_p).sum(), of_q[fast].sum(), of_p[fast].sum()
    return dict(zip(MEASURES, map(float, values))), w, of_q.tolist(), of_p.tolist()


@contextmanager
def without(model, band):
    """What the shear makes of queries and keys is x alone, without AC, or gamma p alone, without DC."""
    module = sys.modules[type(model).__module__]
    real = module.shear
    other = {"AC": lambda x, gamma, last: x, "DC": lambda x, gamma, last: real(x, gamma, last) - x}
    module.shear = other[band]
    try:
        yield
    finally:
        module.shear = real


def work(minutes, characters, seed, dataset, small):
    model, data, _ = trained("momentum", dataset, dict(gamma=1.0), small, minutes=minutes, seed=seed)
    ids, text = spelled(data, characters, dataset)
    rows = []
    for l, q in enumerate(queries(model, ids)):
        values, frequencies, of_q, of_p = compare(q)
        rows += [[measure, l, "", "", value] for measure, value in values.items()]
        for name, powers in (("power of q", of_q), ("power of p", of_p)):
            rows += [[name, l, "", w, power] for w, power in zip(frequencies, powers)]
    recurs = kinds(text)[1:] == KINDS.index(PLACES[0])           # of the characters that are predicted
    read = lambda: token_losses(model, ids[None], max(model.config.block_size, 512))[0]
    plain, found = read(), {}
    for band in ("AC", "DC"):
        with without(model, band):
            found[f"without {band}"] = read() - plain
    for measure, values in dict(loss=plain, **found).items():
        rows += [[measure, "", place, "", values[at].mean(dtype=np.float64)]
                 for place, at in zip(PLACES, (recurs, ~recurs)) if at.any()]
    return rows


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    seeds = sorted({r["seed"] for r in rows})

    def mean(measure, **where):                                  # over layers, for each seed
        own = [r for r in rows if r["measure"] == measure and all(r[k] == v for k, v in where.items())]
        return [np.mean([r["value"] for r in own if r["seed"] == seed]) for seed in seeds]

    layers = sorted({r["layer"] for r in rows if r["layer"] != ""})
    print(f"{'layer':<20}", *(f"{l:>26g}" for l in layers))
    for measure in MEASURES:
        print(f"{measure:<20}", *(f"{said(interval(mean(measure, layer=l))):>26}" for l in layers))
    places = [place for place in PLACES if any(r["place"] == place for r in rows)]
    print(f"\n{'':<20}", *(f"{place:>26}" for place in places))
    for measure in ("loss", "without AC", "without DC"):
        print(f"{measure:<20}", *(f"{said(interval(mean(measure, place=place))):>26}" for place in places))

    with rc_context({"font.size": 13}):
        ax = Figure(figsize=(9, 5.4), layout="constrained").subplots()
        w = np.array(sorted({r["frequency"] for r in rows if r["frequency"] != ""}))
        width = np.where((w < 1e-5) | (w > math.pi - 1e-5), 0.5, 1)                     # 0 and pi have no -w
        ends, powers = [], []
        for name, label, colour in (("power of q", "query q", COLOURS[0]), ("power of p", "momentum p", COLOURS[1])):
            power = np.array([np.mean(mean(name, frequency=at)) for at in w]) * width.sum() / width
            ax.plot(w, power, color=colour, lw=2)
            ends.append((w[-1], power[-1], label, colour))
            powers.append(power)
        both = np.minimum(*powers)
        ax.fill_between(w, both, color="#bbbbbb", lw=0)
        top = 1.1 * max(map(max, powers))
        if top > 2.6:                                            # the average query would press all else flat
            ax.text(0.2, 2.42, f"up to {top / 1.1:.1f}", color=COLOURS[0])
        shared, cosine = np.mean(mean("overlap")), np.mean(mean("cosine"))
        ax.text(w[len(w) // 2], both.max() / 4, "shared", ha="center")
        title = f"Query and momentum share {shared:.0%} of their spectra; their cosine is {cosine:.2f}"
        ax.set(xticks=[0, math.pi / 2, math.pi], xticklabels=["0", "π/2", "π"], title=title, ylabel="power (mean 1)",
               xlim=(0, math.pi), ylim=(0, min(top, 2.6)), xlabel="frequency along the text (radians per token)")
        name_ends(ax, ends, 0.08, 0.25)
        save_picture(ax.figure, s.out, "bands.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(s.minutes, s.characters, seed, s.dataset, s.small) for seed in range(s.seeds)]
    draw(collect(Path(s.out, "bands.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
