"""
Is Hydra a Navier-Stokes flow: which terms of the equation are there, and what does each do to a trained model's tokens?

    Navier-Stokes:  du/dt + u . grad u = -grad p + nu div grad u + f,   div u = 0
    Hydra:          rotation (z Omega), viscosity (z_{t-1} - z_t), pressure (attention), force (Zeus only)

There: something called pressure, a viscosity, which as an upwind difference is half transport and half diffusion, and
a force of the form (curl M) x M. Not there: u . grad u, by which a flow carries itself, and div u = 0: no pressure is
solved for to keep the flow incompressible, and nothing enforces div M = 0 of the force's field. The rotation is in no
Navier-Stokes equation; it is that of a rotating frame.

For every layer and term, over windows of validation text: the effective rank of the token cloud (exp of its entropy)
before and after, from the eigenvalues of the covariance as in hydra.py and, in the table's file, also from the singular
values; the mean cosine between two tokens of a window (do they cluster?); how much longer |z| gets; the cosine between
what the term adds and what the other terms of this layer add (does it do work on the flow?), whose mean absolute value
is 0.07 for random directions; and |div M| over the most that it can be for such a J = dM/dn, sqrt(C) |J|.

Also the loss with the other rotation in place, the weights left alone: if "euler" only turned z, nothing would change.

    python experiments/flow.py                     about three minutes on two cores: one seed, 36 CPU-seconds each
    python experiments/flow.py full=true           three seeds, 180 CPU-seconds: 40 CPU-minutes; resume=true goes on
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, interval, read_settings, said, save_picture, trained

from common.checkpoint import load_model
from common.score import evaluate
from common.settings import UserError, guard

hydra = load_model("hydra")
FLOW = dict(zeus=False, n_layer=4)                               # preset=hydra
VARIANTS = {"zeus, euler": {}, "zeus, cayley": dict(rotation="cayley"),
            "hydra, euler": FLOW, "hydra, cayley": FLOW | dict(rotation="cayley")}
COLUMNS = ("variant minutes texts seed dataset small layer term rank_before rank spread_before spread cosine_before "
           "cosine growth work work_size div val_loss swapped swap_from").split()


@dataclass
class Settings:
    out: str = "assets"             # folder of flow.csv and flow.png
    full: bool = False              # three seeds, three minutes, 64 windows
    seeds: int = 1                  # runs of each variant
    minutes: float = 0.6            # CPU-minutes of each run
    texts: int = 16                 # windows of validation text
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what flow.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.texts < 1:
            raise ValueError("seeds and texts should be 1 or more")


FULL = dict(seeds=3, minutes=3.0, texts=64)


def windows(data, texts, length):                                # -> (texts, length)
    """Evenly spaced over the text."""
    if len(data) < length:
        raise UserError(f"the validation text has {len(data)} tokens; a window has {length}, give a longer text")
    starts = np.unique(np.linspace(0, len(data) - length, texts).astype(int))
    return torch.from_numpy(np.stack([data[s:s + length] for s in starts]).astype(np.int64))


def singular_rank(n):                                            # (..., T, C) -> (...)
    """The effective rank from singular values instead of their squares (Roy and Vetterli, 2007)."""
    size = torch.linalg.svdvals(n - n.mean(-2, keepdim=True))
    return torch.special.entr(size / size.sum(-1, keepdim=True)).sum(-1).exp()


def cloud(z):                                                    # (B, T, C) -> rank, spread, cosine
    """How far the tokens of a window spread over the sphere: means over the windows."""
    n = F.normalize(z, dim=-1)
    T = n.shape[1]
    cosine = (n.sum(1).square().sum(-1) - T) / (T * (T - 1))     # of all pairs of two tokens
    return [v.mean().item() for v in (hydra.effective_rank(n), singular_rank(n), cosine)]


def divergence(layer, z):                                        # (N, C) -> a scalar
    """mean |tr J| / (sqrt(C) |J|) with J = dM/dn; 1 where the field M only swells, near 1 / C for a random J."""
    def field(n):
        return hydra.tangent(layer.out(F.silu(layer.fc(n))), n)
    J = torch.func.vmap(torch.func.jacrev(field))(hydra.rms_norm(z))
    trace = J.diagonal(dim1=1, dim2=2).sum(-1).abs()
    return (trace / (math.sqrt(z.shape[-1]) * J.flatten(1).norm(dim=1))).mean().item()


@torch.no_grad()
def terms(model, idx):                                           # (B, T) -> rows of layer, term, measurements
    z, turn = model.embed(idx, 0)
    rows = []
    for l, layer in enumerate(model.layers):
        path = [z, layer.rotation(z)]
        path.append(layer.viscosity(path[-1], None))
        path.append(layer.pressure(path[-1], turn, None))
        path.append(layer.force(path[-1]))
        z = path[-1]
        clouds = [cloud(p) for p in path]
        for i, term in enumerate(hydra.TERMS[:3 + model.config.zeus]):
            before, after = path[i:i + 2]
            rest = (path[-1] - path[0]) - (after - before)       # what the other terms of this layer add
            cosine = F.cosine_similarity(after - before, rest, dim=-1)
            growth = 100 * (after.norm(dim=-1) / before.norm(dim=-1) - 1).mean().item()
            div = divergence(layer, before.flatten(0, 1)[::16]) if term == "force" else ""
            pairs = [v for pair in zip(clouds[i], clouds[i + 1]) for v in pair]
            rows.append([l, term, *pairs, growth, cosine.mean().item(), cosine.abs().mean().item(), div])
    return rows


def work(variant, minutes, texts, seed, dataset, small):
    model, data, progress = trained("hydra", dataset, VARIANTS[variant], small, minutes=minutes, seed=seed)
    rows = terms(model, windows(data.val, texts, model.config.block_size))
    score = lambda: evaluate(model, data.val, 16, 8 * model.config.block_size)
    before = score()
    model.config.rotation = "euler" if model.config.rotation == "cayley" else "cayley"
    return [[*row, progress.rows[-1][3], score(), before] for row in rows]


def table(rows):
    print(f"{'':<14}{'layer':>5} {'term':<10} {'effective rank':>16} {'cosine of tokens':>18} {'|z|':>7} "
          f"{'work on the flow':>17} {'|div M|':>8}")
    for variant in dict.fromkeys(r["variant"] for r in rows):
        own = [r for r in rows if r["variant"] == variant]
        for layer, term in dict.fromkeys((r["layer"], r["term"]) for r in own):
            mean = lambda key: np.mean([r[key] for r in own if (r["layer"], r["term"]) == (layer, term)])
            div = f"{mean('div'):8.1%}" if term == "force" else ""
            print(f"{variant:<14}{layer:5.0f} {term:<10} {mean('rank_before'):6.1f} -> {mean('rank'):6.1f} "
                  f"{mean('cosine_before'):8.2f} -> {mean('cosine'):6.2f} {mean('growth'):+6.1f}% "
                  f"{mean('work'):+7.2f} ({mean('work_size'):.2f}) {div}")
        last = {r["seed"]: r for r in own}.values()
        print(f"{variant:<14}loss {np.mean([r['val_loss'] for r in last]):.3f}; with the other rotation in place "
              f"{np.mean([r['swapped'] for r in last]):.3f} instead of {np.mean([r['swap_from'] for r in last]):.3f}")
    for kind in ("zeus", "hydra"):
        loss = {(r["variant"], r["seed"]): r["val_loss"] for r in rows}
        gaps = [v - loss[f"{kind}, euler", seed] for (name, seed), v in loss.items() if name == f"{kind}, cayley"]
        print(f"{kind}: cayley minus euler {said(interval(gaps))} nats")


def draw(rows, s):
    """The path of the default through its steps; table() has the other variants."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    own = [r for r in rows if r["variant"] == next(iter(VARIANTS))]
    steps = list(dict.fromkeys((r["layer"], r["term"]) for r in own))
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(11, 6.2), layout="constrained").subplots()
        ends = []
        for x, step in enumerate(steps):
            seeds = [r for r in own if (r["layer"], r["term"]) == step]
            before, after = (np.mean([r[key] for r in seeds]) for key in ("rank_before", "rank"))
            _, low, high = interval(r["rank"] - r["rank_before"] for r in seeds)
            colour = COLOURS[0] if after > before else COLOURS[1]
            ax.bar(x, after - before, 0.7, before, color=colour)
            ax.plot((x, x), (before + low, before + high), color="black", lw=1.5)
            ax.plot((x + 0.35, x + 0.65), (after, after), color="#777777", lw=1.5)       # where the next one begins
            top = np.nanmax([before, after, before + low, before + high])
            ax.annotate(f"{after - before:+.1f}", (x, top), xytext=(0, 5), textcoords="offset points", ha="center",
                        color=colour)
            ends += before, after
        ax.use_sticky_edges = False                              # else no margin at the end of a bar
        ax.margins(y=0.12)
        bottom = ax.get_ylim()[0]
        for layer in dict.fromkeys(layer for layer, _ in steps):
            at = [x for x, step in enumerate(steps) if step[0] == layer]
            ax.text(np.mean(at), bottom, f"layer {layer:.0f}", ha="center", va="bottom", weight="bold")
            if at[0]:
                ax.axvline(at[0] - 0.5, color="#999999", ls=":")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(xticks=range(len(steps)), xticklabels=[term for _, term in steps], xlim=(-0.6, len(steps) - 0.4),
               ylabel="effective rank of the token cloud; lines: 95%",
               title=f"Through Hydra the cloud of tokens goes from {ends[0]:.0f} to {ends[-1]:.0f} dimensions")
        save_picture(ax.figure, s.out, "flow.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(variant, s.minutes, s.texts, seed, s.dataset, s.small) for seed in range(s.seeds) for variant in VARIANTS]
    rows = collect(Path(s.out, "flow.csv"), COLUMNS, work, jobs, s.resume)
    table(rows)
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
