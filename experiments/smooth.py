"""
Does a smooth fluid write more steadily? The gradient loss of FluidLM, w_grad times the mean |second difference| of the
last u along the text, without it, as it is, and ten times as strong.

The original says that the smoothness helps generation to stay stable. Each model writes on from the start of the
validation text, many texts at once. A counter of letters (common/counter.py) that knows the training text reads what
was written: the better it looks like Shakespeare, the fewer nats a character costs. What gets worse on the way is
unsteady.

  rough       mean |u_{t+1} - 2 u_t + u_{t-1}| of the last u, over validation text
  first       nats per character of the first quarter of what a model wrote, by the counter
  last        the same of the last quarter
  drift       last minus first
  val_loss    the validation text as a stream, in nats per character, by the model

Differences to a training without the term are paired by random seed, with 95% intervals by Student's t.
Models that race.py has trained for as long are not trained again.

    python experiments/smooth.py                   about two minutes on two cores: one seed, 18 CPU-seconds each
    python experiments/smooth.py full=true         three seeds, 180 CPU-seconds: 35 CPU-minutes; resume=true goes on
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flow import windows
from lab import COLOUR, collect, get_data, interval, paired, read_settings, said, save_picture, trained

from common.counter import Counter
from common.settings import guard
from train import Train

WEIGHTS = (0.0, 0.005, 0.05)                                     # of the term; the middle one is the default
COLUMNS = ("w_grad minutes texts characters seed dataset small rough first last drift val_loss "
           "parameters tokens seconds").split()


@dataclass
class Settings:
    out: str = "assets"             # folder of smooth.csv and smooth.png
    full: bool = False              # three seeds, three minutes, 16 texts of 4,000 characters
    seeds: int = 1                  # runs for each weight
    minutes: float = 0.3            # CPU-minutes of each run
    texts: int = 8                  # how many each model writes
    characters: int = 1000          # of each of them
    dataset: str = "plays"          # the text
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what smooth.csv already holds

    def __post_init__(self):
        if self.seeds < 1 or self.texts < 1 or self.characters < 32:
            raise ValueError("seeds and texts should be 1 or more, characters 32 or more")


FULL = dict(seeds=3, minutes=3.0, texts=16, characters=4000)


@torch.inference_mode()
def write(model, prompt, texts, characters, seed):               # (P,) -> (texts, characters)
    """Texts that go on from one prompt, side by side, at temperature 0.8."""
    generator = torch.Generator().manual_seed(seed)
    state, new, written = {}, prompt.expand(texts, -1), []
    for _ in range(characters):
        logits = model(new, state=state)[0][:, -1]
        new = torch.multinomial((logits / 0.8).softmax(-1), 1, generator=generator)
        written.append(new)
    return torch.cat(written, 1).numpy()


@torch.inference_mode()
def roughness(model, idx):                                       # (B, T) -> mean |u_{t+1} - 2 u_t + u_{t-1}|
    return model.flow(idx, None)[0].diff(n=2, dim=1).abs().mean().item()


def work(w_grad, minutes, texts, characters, seed, dataset, small):
    changes = dict(w_grad=w_grad) if w_grad != WEIGHTS[1] else {}
    model, data, progress = trained("fluidlm", dataset, changes, small, minutes=minutes, seed=seed)
    written = write(model, torch.from_numpy(data.val[:8].astype(np.int64)), texts, characters, seed)
    nats = -Counter(data.train, data.meta["vocab_size"]).log_probs(written)
    quarter = characters // 4
    first, last = nats[:, :quarter].mean(), nats[:, -quarter:].mean()
    rough = roughness(model, windows(data.val, 64, model.config.block_size))
    step, seconds, _, loss, _ = progress.rows[-1]
    tokens = step * Train.batch_size * model.config.block_size
    return [[rough, first, last, last - first, loss, sum(p.numel() for p in model.parameters()), tokens, seconds]]


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    of = lambda weight, key: {r["seed"]: r[key] for r in rows if r["w_grad"] == weight}
    print(f"{'w_grad':<8}{'rough':>8}{'first':>8}{'last':>8}{'drift, minus that without':>34}{'loss, minus':>28}")
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 5.5), layout="constrained").subplots()
        labels, drifts = [], []
        for y, weight in enumerate(WEIGHTS):
            rough, first, last = (np.mean(list(of(weight, key).values())) for key in ("rough", "first", "last"))
            gaps = [said(paired(of(weight, key), of(0, key))) for key in ("drift", "val_loss")]
            print(f"{weight:<8g}{rough:8.3f}{first:8.3f}{last:8.3f}{gaps[0]:>34}{gaps[1]:>28}")
            middle, low, high = interval(of(weight, "drift").values())
            ax.plot((low, high), (y, y), color=COLOUR["fluidlm"], lw=3)
            ax.plot(middle, y, "o", color=COLOUR["fluidlm"], ms=12)
            ax.annotate(f"{middle:+.3f}", (middle, y), xytext=(0, 13), textcoords="offset points", ha="center",
                        bbox=dict(fc="white", lw=0, pad=1))                              # over the line at 0
            labels.append(f"w_grad = {weight:g}\nroughness {rough:.2f}")
            drifts.append(abs(middle))
        ax.axvline(0, color="#999999", lw=1, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(yticks=range(len(WEIGHTS)), yticklabels=labels, ylim=(-0.5, len(WEIGHTS) - 0.3),
               xlabel=f"nats per character: the last quarter of {s.characters:,}\nminus the first (lines: 95%)",
               title="With its gradient loss or without, the mean drift\n"
                     f"of FluidLM's text is at most {math.ceil(1000 * max(drifts)) / 1000:.3f} nats")
        ax.margins(x=0.1)
        save_picture(ax.figure, s.out, "smooth.png")


def main():
    s = read_settings(Settings, FULL)
    get_data(s.dataset)
    jobs = [(weight, s.minutes, s.texts, s.characters, seed, s.dataset, s.small)
            for seed in range(s.seeds) for weight in WEIGHTS]
    draw(collect(Path(s.out, "smooth.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
