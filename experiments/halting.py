"""
Does a token that is hard to predict compute longer, and what does halting save and cost?

The original lets the fluid run until it is calm (turbulence below epsilon), and lists "adaptive compute follows
difficulty" as not shown. Here a token halts by itself. For each epsilon: the mean number of Euler steps, the loss, the
time per token in a stream, and the rank correlation between the steps a token took and its loss in the *full*
computation, with a 95% interval from resampling whole windows of text (tokens of one window are not independent).

The control is random halting at the same number of steps: in each layer every token stops after as many steps as some
other token did, drawn by chance. If it costs more than halting does (gain above zero, interval as above), then it is
worth knowing which tokens are calm.

    python experiments/halting.py                  about two minutes on two cores: a model trained for 30 seconds
    python experiments/halting.py full=true        three seeds of four minutes, eight times the text: 25 CPU-minutes
    python experiments/halting.py ckpt=out/fluidlm/ckpt.pt      a model of your own with several Euler steps
"""
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, get_data, read_settings, save_picture, trained, write_csv

from common.checkpoint import build, load_checkpoint
from common.settings import UserError, convert, guard

COLUMNS = ("epsilon n_layer n_steps mean_steps share_of_steps val_loss loss_paid ms_per_token correlation low high "
           "tokens random_loss gain gain_low gain_high seed").split()
CHEAP = 0.05                # nats per token: halting that costs less is worth its while
EPSILONS = "0,0.02,0.05,0.1,0.15,0.2,0.3,0.4"           # with full=true


@dataclass
class Settings:
    out: str = "assets"             # folder of halting.csv and halting.png
    full: bool = False              # three seeds, four minutes of training, 128 windows
    seeds: int = 1                  # models that are trained
    ckpt: str = ""                  # a trained model; empty: train one
    dataset: str = "plays"          # the text
    minutes: float = 0.5            # training, if there is no ckpt
    n_layer: int = 2                # layers of the model that is trained
    n_steps: int = 6                # its Euler steps in each layer
    windows: int = 16               # windows of validation text
    epsilons: str = "0,0.1,0.2,0.4"         # turbulence below which a token is calm
    draws: int = 1000               # resamplings
    small: bool = False             # a tiny model, to try the script out

    def __post_init__(self):
        if self.seeds < 1 or self.windows < 1:
            raise ValueError("seeds and windows should be 1 or more")


def ranks(x):
    """1, 2, 3 ... in order of size; equal values share the mean of their ranks."""
    _, inverse, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[inverse.reshape(x.shape)]


def correlation(a, b):
    """Pearson's; nan if one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


def spearman(steps, loss, draws, rng):                           # 2 x (windows, T) -> correlation, 2.5%, 97.5%
    """Rank correlation over all tokens, and its interval from drawing windows with replacement."""
    a, b = ranks(steps), ranks(loss)
    picks = (rng.integers(len(a), size=len(a)) for _ in range(draws))
    return correlation(a, b), *np.quantile([correlation(a[i], b[i]) for i in picks], (0.025, 0.975))


@contextmanager
def halting_after(model, planned):                               # (n_layer, B, T) steps
    """Each token stops after so many steps, however calm it is: the blocks are told another turbulence."""
    module = sys.modules[type(model).__module__]
    real, place = module.turbulence, {}

    def enter(l):
        return lambda block, args: place.update(layer=l, step=0)

    def told(u, new):
        place["step"] += 1
        return torch.where(planned[place["layer"]] <= place["step"], 0.0, 1e9)[..., None]

    hooks = [block.register_forward_pre_hook(enter(l)) for l, block in enumerate(model.blocks)]
    module.turbulence = told
    try:
        yield
    finally:
        module.turbulence = real
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def random_halting(model, x, y, steps, rng):                     # (n_layer, windows, T) -> (windows, T) losses
    """The same numbers of steps in each layer, dealt out to other tokens."""
    dealt = torch.stack([layer.flatten()[rng.permutation(layer.numel())].view_as(layer) for layer in steps])
    loss = []
    for xs, ys, planned in zip(x.split(16), y.split(16), dealt.split(16, 1)):
        with halting_after(model, planned):
            logits = model(xs)[0]
        loss.append(F.cross_entropy(logits.transpose(1, 2), ys, reduction="none"))
    return torch.cat(loss).double().numpy()


def mean_of_windows(gain, draws, rng):                           # (windows, T) -> mean, 2.5%, 97.5%
    """And its interval from drawing windows with replacement."""
    gain = gain.mean(1)
    picks = rng.integers(len(gain), size=(draws, len(gain)))
    return float(gain.mean()), *np.quantile(gain[picks].mean(1), (0.025, 0.975))


@torch.inference_mode()
def evaluate(model, x, y, epsilon):
    """Loss of each token (windows, T), its steps (n_layer, windows, T); milliseconds per token in a stream."""
    model.config.epsilon, model.config.patience, model.config.min_steps = epsilon, 1, 1        # the blocks share it
    loss, steps = [], []
    for xs, ys in zip(x.split(16), y.split(16)):
        u, report = model.flow(xs)
        logits = F.linear(u, model.wte.weight)
        loss.append(F.cross_entropy(logits.transpose(1, 2), ys, reduction="none"))
        steps.append(report[..., 0].isfinite().sum(1))           # turbulence is NaN after halting
    state, count = {}, min(100, x.shape[1] - 8)
    model(x[:1, :8], state=state)
    began = time.perf_counter()
    for t in range(8, 8 + count):
        model(x[:1, t:t + 1], state=state)
    ms = 1000 * (time.perf_counter() - began) / count
    return torch.cat(loss).double().numpy(), torch.cat(steps, 1), ms


def measure(model, data, s, seed):                               # -> a row for each epsilon
    T, values = model.config.block_size, np.asarray(data.val).astype(np.int64)
    at = np.linspace(0, len(values) - T - 1, s.windows).astype(int)
    window = torch.from_numpy(values[at[:, None] + np.arange(T + 1)])
    x, y, rows, rng = window[:, :-1], window[:, 1:], [], np.random.default_rng(seed)
    full = evaluate(model, x, y, 0.0)[0]
    print("epsilon  steps  loss    ms/token  rank correlation, 95%      other tokens: loss, rise, 95%")
    for epsilon in sorted({0.0, *(convert("epsilons", e, float) for e in s.epsilons.split(","))}):
        loss, by_layer, ms = evaluate(model, x, y, epsilon)
        steps = by_layer.double().mean(0).numpy()                # (windows, T)
        other = random_halting(model, x, y, by_layer, rng)
        gain = mean_of_windows(other - loss, s.draws, rng)
        r = spearman(steps, full, s.draws, rng) if np.ptp(steps) else [float("nan")] * 3
        c, mean = model.config, float(steps.mean())
        rows.append([epsilon, c.n_layer, c.n_steps, mean, mean / c.n_steps, float(loss.mean()),
                     float(loss.mean() - full.mean()), ms, *map(float, r), loss.size, float(other.mean()),
                     *map(float, gain), seed])
        print(f"{epsilon:7g} {mean:6.2f} {loss.mean():6.4f} {ms:8.2f} {r[0]:9.3f} [{r[1]:6.3f}, {r[2]:6.3f}] "
              f"{other.mean():12.4f} {gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}]", flush=True)
    return rows


def found(rows):
    """What the rows say about hard tokens, each a model at one epsilon, with its own interval."""
    longer, sooner = sum(row["low"] > 0 for row in rows), sum(row["high"] < 0 for row in rows)
    if sooner and not longer:
        return "Where halting is cheap, hard tokens do not compute longer"
    if longer and not sooner:
        return "Where halting is cheap, hard tokens compute longer"
    return "Hard tokens and how long they compute"


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    moved = [row for row in rows if not np.isnan(row["correlation"])]
    eps = sorted({row["epsilon"] for row in moved})
    mean = lambda key, e: np.mean([row[key] for row in rows if row["epsilon"] == e])
    cheap = [e for e in eps if max(row["loss_paid"] for row in rows if row["epsilon"] == e) < CHEAP]
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 6.5), layout="constrained").subplots()
        for row in moved:
            x = eps.index(row["epsilon"]) + 0.15 * (row["seed"] - (max(r["seed"] for r in rows)) / 2)
            ax.plot((x, x), (row["low"], row["high"]), color=COLOURS[1], lw=2)
            ax.plot(x, row["correlation"], "o", ms=9, color=COLOURS[1])
        ax.axhline(0, color="black", lw=1)
        ax.axvspan(-0.5, len(cheap) - 0.5, color="#eeeeee", zorder=0)
        ax.text(0.02, 0.94, f"shaded: halting costs less than {CHEAP:g} nats", transform=ax.transAxes, va="top")
        costs = {e: round(mean("loss_paid", e), 2) + 0 for e in eps}         # + 0: no -0.00
        names = [f"{e:g}\nsaves {1 - mean('share_of_steps', e):.0%}\ncosts {costs[e]:.2f}" for e in eps]
        ax.set(xlim=(-0.5, max(len(eps), 1) - 0.5), xlabel="epsilon; Euler steps saved; nats per token that it costs",
               ylabel="rank correlation of steps and loss\n(above 0: hard tokens compute longer)")
        ax.set_xticks(range(len(eps)), names, fontsize=14)
        ax.margins(y=0.2)
        ax.figure.suptitle(found([row for row in moved if row["epsilon"] in cheap]))
        save_picture(ax.figure, s.out, "halting.png")


def main():
    s = read_settings(Settings, dict(seeds=3, minutes=4.0, windows=128, epsilons=EPSILONS))
    rows = []
    for seed in range(1 if s.ckpt else s.seeds):
        if s.ckpt:
            ckpt = load_checkpoint(s.ckpt)
            model = build(ckpt, s.ckpt)[0].eval()
            data = get_data(ckpt["train"]["dataset"])
            if not hasattr(model.config, "epsilon") or model.config.n_steps < 2:
                raise UserError(f"{s.ckpt} takes one Euler step in a layer: none to save; train fluidlm with n_steps=6")
        else:
            length = dict(max_iters=1) if s.small else dict(minutes=s.minutes)
            changes = dict(n_layer=s.n_layer, n_steps=s.n_steps)
            model, data, _ = trained("fluidlm", s.dataset, changes, s.small, seed=seed, **length)
        rows += measure(model, data, s, seed)
        write_csv(Path(s.out, "halting.csv"), COLUMNS, rows)
    draw([dict(zip(COLUMNS, row)) for row in rows], s)


if __name__ == "__main__":
    guard(main)
