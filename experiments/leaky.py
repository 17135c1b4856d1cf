"""
Would we notice a wave field that reads the future? What happens when two tokens share a cell of it.

A public successor of Wave Field announced a perplexity 24 times better, and withdrew it in its own commits: its field
had fewer cells than the text had tokens. Tokens that share a cell read in it what later ones wrote. With the weights of
a beginner that moves predictions by next to nothing; training finds it and makes it grow.

The same here, in this script only: token t writes to cell floor(t stride) and reads the wave's field there; stride = 1
is wavefield.py. For each stride and at some iterations: the loss in windows, as it would be published; the loss in use,
when the later tokens are not yet there (each prediction made from the text before it alone); and what the alarm of
train.py measures (common/score.py: nats that a prediction moves when later tokens change; above 1e-6 it warns). At
stride = 0.9 only every tenth token shares a cell, so that no edit shows it but one that begins between these two.

    python experiments/leaky.py                    about two minutes on two cores: 120 iterations of a small model
    python experiments/leaky.py full=true          three seeds, 600 iterations: 15 CPU-minutes; resume=true goes on
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, interval, read_settings, said, save_picture, untrained
from labels import name_ends

from common.checkpoint import load_model
from common.optimizer import make_optimizers
from common.score import evaluating, leak
from common.settings import UserError, convert, guard
from train import Progress, Train, fit

wavefield = load_model("wavefield")
ALARM = 1e-6                # nats: train.py warns above it
BEGINNING = 1e-3            # of the matrices that write into the residual stream; at 0 no field is read, none leaks
SIZE = dict(n_layer=2, n_embd=64, block_size=64)
COLUMNS = "stride iters seed dataset small iter published in_use leak alarm".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of leaky.csv and leaky.png
    full: bool = False              # three seeds, 600 iterations
    seeds: int = 1                  # runs of each stride
    iters: int = 120                # iterations of each run
    strides: str = "1,0.9,0.5"      # cells of the field per token, at most 1
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what leaky.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.iters < 1:
            raise ValueError("seeds and iters should be 1 or more")


FULL = dict(seeds=3, iters=600)


class SharedCells(wavefield.WaveAttention):
    """Wave attention whose field has `cells` cells per token, fewer than one: it cheats."""
    cells = 1.0

    def read(self, deposit, state):                              # (B, T, H, D) -> (B, T, H, D)
        B, T, H, D = deposit.shape
        cell = (torch.arange(T) * self.cells).long()
        field = deposit.new_zeros(B, int(cell[-1]) + 1, H, D).index_add(1, cell, deposit)
        f, _ = wavefield.wave_scan(field, *self.physics())
        return f[:, cell]


def share_cells(model, cells):
    """Let every field of the model have so many cells per token, and the first weights be as they are published."""
    for block in model.blocks:
        block.attn.__class__ = SharedCells
        block.attn.cells = cells
        torch.nn.init.normal_(block.attn.proj.weight, std=BEGINNING)


@torch.inference_mode()
def losses(model, windows):                                      # (N, T + 1) -> published, in use
    """Mean nats in whole windows; and of predictions from prefixes, where no later token is there to be read."""
    T = windows.shape[1] - 1
    with evaluating(model):
        logits = model(windows[:, :-1])[0]
        published = F.cross_entropy(logits.transpose(1, 2), windows[:, 1:]).item()
        ends = range(1, T + 1, 3)                                # both parities of t: even and odd cells
        prefixes = [F.cross_entropy(model(windows[:, :t])[0][:, -1], windows[:, t]).item() for t in ends]
    return published, float(np.mean(prefixes))


def work(stride, iters, seed, dataset, small):
    data = get_data(dataset)
    train = Train(model="wavefield", dataset=dataset, device="cpu", max_iters=iters, seed=seed)
    torch.manual_seed(seed)
    model = untrained("wavefield", data, {} if small else SIZE, small)
    share_cells(model, stride)
    T = model.config.block_size
    if len(data.val) < T + 1:
        raise UserError(f"the validation text has {len(data.val)} tokens; a window has {T + 1}, give a longer text")
    starts = np.unique(np.linspace(0, len(data.val) - T - 1, 64).astype(int))
    windows = torch.from_numpy(np.stack([data.val[s:s + T + 1] for s in starts]).astype(np.int64))
    looks = {0, *np.unique(np.geomspace(1, iters, 12).round().astype(int)).tolist()}
    rows = []

    def look(step):
        nats = leak(model, data.val[:T])[0]
        rows.append([step, *losses(model, windows), nats, int(nats > ALARM)])

    look(0)
    progress = Progress()
    for _ in fit(model, data.train, train, progress, make_optimizers(model, train)):
        if progress.step in looks:
            look(progress.step)
    return rows


def found(last):                                                 # {stride: (published, in use)}
    """What the rows say about the field that tokens share most, beside that of a cell for each."""
    (fewest, (paper, use)), (most, (honest_paper, honest_use)) = min(last.items()), max(last.items())
    if fewest < most == 1 and paper < honest_paper and use > honest_use:
        return "Fewer cells than tokens: better as published, worse in use"
    return "The loss as published, and in use"


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    strides = list(dict.fromkeys(r["stride"] for r in rows))
    shown = {max(strides): COLOURS[0], min(strides): COLOURS[1]}         # the rest of the losses lies between
    print("cells per token: the leak before training, after it; the loss published, in use; when the alarm rings")
    with rc_context({"font.size": 16}):
        fig = Figure(figsize=(10, 11), layout="constrained")
        loss, alarm = fig.subplots(2, 1, sharex=True)
        ends, last, sure = ([], []), {}, []
        for stride in strides:
            own = [r for r in rows if r["stride"] == stride]
            iters = sorted({r["iter"] for r in own})
            values = lambda key, step: [r[key] for r in own if r["iter"] == step]
            mean = {key: np.array([np.mean(values(key, step)) for step in iters])
                    for key in ("published", "in_use", "leak", "alarm")}
            x = np.array(iters) + 1                              # the logarithmic axis has no 0
            name, last[stride] = f"{stride:g} cell{'s' * (stride != 1)}", (mean["published"][-1], mean["in_use"][-1])
            if stride in shown:
                colour, leak = shown[stride], np.maximum(mean["leak"], 1e-16)
                for key, style, words in (("in_use", "--", "in use"), ("published", "-", "published")):
                    loss.plot(x, mean[key], style, lw=2.5, color=colour)
                    ends[0].append((x[-1], mean[key][-1], f"{name}, {words}", colour))
                alarm.plot(x, leak, "o-", lw=2.5, ms=7, color=colour)
                ends[1].append((x[-1], leak[-1], name, colour))
            rings = [int(step) for step, rung in zip(iters, mean["alarm"]) if rung == 1]
            sure.append(not rings if stride == 1 else rings[:1] == [0])
            print(f"stride {stride:<5g} {mean['leak'][0]:8.1e} {mean['leak'][-1]:8.1e}   {mean['published'][-1]:.3f} "
                  f"{mean['in_use'][-1]:.3f}   {f'at iteration {rings[0]}' if rings else 'never'}")
            if len({r["seed"] for r in own}) > 1:
                final = [r for r in own if r["iter"] == iters[-1]]
                gap = interval([r["in_use"] - r["published"] for r in final])
                print("             in use minus published", said(gap))
        alarm.axhline(ALARM, color="black", ls=":", lw=1.5)
        alarm.annotate("train.py warns above this line", (1, ALARM), xytext=(0, 6), textcoords="offset points")
        loss.set(ylabel="nats per token", title=found(last))
        alarm.set(xscale="log", yscale="log", ylim=(1e-17, 1e4), xlabel="iterations + 1", ylabel="leak (nats)",
                  title="The alarm rings before any training" if all(sure) else "What the alarm of train.py measures")
        for a, names in zip((loss, alarm), ends):
            a.set_xlim(0.9, x[-1])
            name_ends(a, names, 0.08, 0.55)
        alarm.set_xticks([10 ** k for k in range(6) if 10 ** k <= x[-1]])
        alarm.minorticks_off()
        save_picture(fig, s.out, "leaky.png")


def main():
    s = read_settings(Settings, FULL)
    strides = [convert("strides", word, float) for word in s.strides.split(",")]
    if not all(0 < stride <= 1 for stride in strides):
        raise UserError(f"strides={s.strides} should be above 0 and at most 1; try strides=1,0.9")
    get_data(s.dataset)
    jobs = [(stride, s.iters, seed, s.dataset, s.small) for seed in range(s.seeds) for stride in strides]
    draw(collect(Path(s.out, "leaky.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
