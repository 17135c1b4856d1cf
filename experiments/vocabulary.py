"""
How far is the wave field behind attention by characters, and with byte pairs? Is what it lacks capacity?

The original reports a perplexity 5% above a transformer's by characters and 87% above it with 8,000 byte pairs, and
expects the gap to close in larger models. The baseline (momentum, gamma = 0) and the wave field learn the same text,
cut into characters and into byte pairs of several vocabularies, at two widths, for the same CPU-seconds. The score is
the validation text as a stream; a gap is that of the perplexity per token, paired by seed. Bits per byte, in the table,
compare across vocabularies. If capacity is what is lacking, the gap is smaller in the wider models.

    python experiments/vocabulary.py               about three minutes on two cores: one seed, 21 CPU-seconds each
    python experiments/vocabulary.py full=true     three seeds, 180 CPU-seconds: two and a half CPU-hours; resume=true
                                                   goes on
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, interval, paired, read_settings, said, save_picture, trained
from labels import name_ends
from scaling import sizes

from common.settings import UserError, convert, guard
from data.text import Tokenizer, make_tokenizer, prepared, write_dataset
from train import Train

ENTRANTS = {"baseline": ("momentum", dict(gamma=0.0)), "wavefield": ("wavefield", {})}
COLUMNS = "model vocab width minutes seed dataset small parameters tokens seconds val_loss bits_per_byte".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of vocabulary.csv and vocabulary.png
    full: bool = False              # three seeds, three minutes, three vocabularies of byte pairs
    seeds: int = 1                  # runs of each model, vocabulary and width
    minutes: float = 0.35           # CPU-minutes of each run
    vocabs: str = "8000"            # byte pairs, learned from the training text; characters come anyway
    widths: str = "128,192"         # n_embd
    dataset: str = "plays"          # the text
    small: bool = False             # one layer and short texts, to try the script out
    resume: bool = False            # keep what vocabulary.csv already holds

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError("seeds should be 1 or more")


FULL = dict(seeds=3, minutes=3.0, vocabs="512,2000,8000", widths="128,256")


def cut(dataset, vocab):
    """The folder of the same text in byte pairs; vocab = 0 is the data set itself."""
    if not vocab:
        return dataset
    data = get_data(dataset)
    folder, source = Path(f"out/data/{Path(dataset).stem}-bpe{vocab}"), data.meta["source"] | {"vocab": vocab}
    if not prepared(folder, source):
        texts = [Tokenizer(data.meta["tokenizer"]).decode(part) for part in (data.train, data.val)]
        write_dataset(folder, make_tokenizer("bpe", *texts, vocab), *texts, source)
    return str(folder)


def work(model, vocab, width, minutes, seed, dataset, small):
    name, changes = ENTRANTS[model]
    net, _, progress = trained(name, cut(dataset, vocab), changes | sizes(name, width), small, minutes=minutes,
                               seed=seed, evaluations=0)
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    tokens = progress.step * Train.batch_size * net.config.block_size
    return [[parameters, tokens, progress.seconds, *progress.rows[-1][3:5]]]


def named(vocab):
    return f"{vocab:,.0f} pairs" if vocab else "characters"


def gap(rows, vocab, width):                                     # -> mean, low, high of the gap in percent
    of = lambda model: {r["seed"]: r["val_loss"] for r in rows
                        if (r["model"], r["vocab"], r["width"]) == (model, vocab, width)}
    return tuple(100 * math.expm1(nats) for nats in paired(of("wavefield"), of("baseline")))


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 7), layout="constrained").subplots()
        vocabs, widths, ends = sorted({r["vocab"] for r in rows}), sorted({r["width"] for r in rows}), []
        means = [gap(rows, vocab, width)[0] for vocab in vocabs for width in widths]
        for i, (width, colour) in enumerate(zip(widths, COLOURS)):
            gaps = [gap(rows, vocab, width) for vocab in vocabs]
            at = [k + 0.06 * i for k in range(len(vocabs))]
            ax.plot(at, [mean for mean, _, _ in gaps], "o-", color=colour)
            for x, (_, low, high) in zip(at, gaps):
                ax.plot((x, x), (low, high), color=colour, lw=1.2)
            ends.append((at[-1], gaps[-1][0], f"{width:.0f} channels", colour))
            for vocab, three in zip(vocabs, gaps):
                losses = {m: interval([r["bits_per_byte"] for r in rows if (r["model"], r["vocab"], r["width"]) == (
                    m, vocab, width)])[0] for m in ENTRANTS}
                print(f"{named(vocab):>11} {width:4.0f} channels: {said(three, 1, '%')}; bits per byte",
                      *(f"{m} {loss:.3f}" for m, loss in losses.items()))
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(len(vocabs)), [named(vocab) for vocab in vocabs])
        ax.set(ylabel="perplexity per token minus the baseline's (%)",
               title=f"Wave Field against attention: {min(means):+.0f}% to {max(means):+.0f}% in perplexity")
        ax.grid(alpha=0.3)
        name_ends(ax, ends, room=0.45)
        save_picture(ax.figure, s.out, "vocabulary.png")


def main():
    s = read_settings(Settings, FULL)
    vocabs = [0, *sorted(convert("vocabs", word, int) for word in s.vocabs.split(","))]
    widths = sorted(convert("widths", word, int) for word in s.widths.split(","))
    if any(width < 16 or width % 16 for width in widths):
        raise UserError(f"widths={s.widths} should be multiples of 16")
    for vocab in vocabs:
        get_data(cut(s.dataset, vocab))
    jobs = [(model, vocab, width, s.minutes, seed, s.dataset, s.small) for seed in range(s.seeds)
            for vocab in vocabs for width in widths for model in ENTRANTS]
    draw(collect(Path(s.out, "vocabulary.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
