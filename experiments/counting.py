"""
How well does a model predict that only counts, and how well does a file compressor?

Modified Kneser-Ney of order 1 .. 8 counts the training text in seconds, then scores the validation
text: as a stream, and in cold windows, each from nothing. Beside it gzip, bz2 and xz, alone and
after the training text, size(both) - size(training text), for the counter has seen that, too. A
neural model above these lines knows less than counting does. Last, the best counter writes a text.

    python experiments/counting.py dataset=shakespeare_char         half a minute
"""
import bz2
import gzip
import lzma
import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, collect, get_data, read_settings, save_picture
from labels import name_ends

from common.counter import Counter
from common.settings import UserError, guard
from data.text import Tokenizer

COMPRESS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": partial(lzma.compress, preset=9)}
AFTER = "after the training text"
COLUMNS = "model order window dataset reads nats bits_per_byte seconds ngrams".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of counting.csv and counting.png
    order: int = 8                  # the longest n-grams
    window: int = 128               # predictions in each cold window
    dataset: str = "plays"          # the text
    length: int = 300               # tokens that the best counter writes
    seed: int = 1                   # of what it writes


def work(model, order, window, dataset):
    """Two rows for a counter (stream, windows) and two for a compressor (alone, after the rest)."""
    data = get_data(dataset)
    began, ngrams = time.process_time(), 0
    if model == "counter":
        counter = Counter(data.train, data.meta["vocab_size"], order)
        seconds, ngrams = time.process_time() - began, sum(counter.sizes)
        stream = counter.log_probs(data.val)[1:]
        cold = counter.log_probs(data.val, window=window)[1:]
        nats = {"stream": -stream.mean(), f"windows of {window}": -cold.mean()}
    else:
        decode = Tokenizer(data.meta["tokenizer"]).decode
        before, text = decode(data.train).encode(), decode(data.val).encode()
        alone, first, both = (len(COMPRESS[model](part)) for part in (text, before, before + text))
        seconds = time.process_time() - began
        per_token = 8 * math.log(2) / len(data.val)                    # bytes -> nats per token
        nats = {"alone": alone * per_token, AFTER: (both - first) * per_token}
    return [[reads, loss, loss * data.bits, seconds, ngrams] for reads, loss in nats.items()]


def write(dataset, order, length, seed):
    """A text by the counter, token by token, from nothing."""
    data = get_data(dataset)
    counter = Counter(data.train, data.meta["vocab_size"], order)
    rng, ids = np.random.default_rng(seed), []
    for _ in range(length):
        ids.append(rng.choice(counter.V, p=counter.distribution(ids)))
    return Tokenizer(data.meta["tokenizer"]).decode(ids)


def draw(rows, best, out):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 7), layout="constrained").subplots()
        order, loss = zip(*((int(r["order"]), r["nats"]) for r in rows if r["reads"] == "stream"))
        ax.plot(order, loss, "o-", lw=2.5, ms=8, color=COLOURS[0])
        ax.plot(best, min(loss), "o", ms=15, mfc="none", mew=2.5, color=COLOURS[0])
        ends = [(order[-1], loss[-1], f"the counter:\n{min(loss):.3f} at best", COLOURS[0])]
        for row in rows:
            if row["reads"] == AFTER:
                ax.plot((order[0], order[-1]), (row["nats"],) * 2, color="#777777", lw=1.5, ls="--")
                ends.append((order[-1], row["nats"], f"{row['model']}: {row['nats']:.2f}", "#444444"))
        ax.annotate(f"compressors {AFTER}", (order[-1], max(y for _, y, *_ in ends[1:])), xytext=(0, 8), ha="right",
                    textcoords="offset points", color="#444444")
        ax.set(xticks=order, xlabel="order of the counter: its context and the next token",
               ylabel="loss (nats per token)")
        ax.margins(y=0.15)
        name_ends(ax, ends, gap=0.09, room=0.4)
        ax.figure.suptitle(f"Counting predicts best with {best - 1} tokens of context")
        save_picture(ax.figure, out, "counting.png")


def main():
    s = read_settings(Settings, {})
    if min(s.order, s.window) < 1:
        raise UserError("order and window should be 1 or more")
    get_data(s.dataset)
    jobs = [("counter", n + 1, s.window, s.dataset) for n in range(s.order)]
    jobs += [(name, 0, 0, s.dataset) for name in COMPRESS]
    rows = collect(Path(s.out, "counting.csv"), COLUMNS, work, jobs)
    for row in rows:
        print("{model:<8} {order:.0f}  {reads:<24} {nats:.4f} nats per token, {bits_per_byte:.3f} "
              "bits per byte, {seconds:.2f} s, {ngrams:,.0f} n-grams".format(**row))
    best = min((r["nats"], int(r["order"])) for r in rows if r["reads"] == "stream")[1]
    draw(rows, best, s.out)
    print(f"\nA text by the counter of order {best}:\n\n{write(s.dataset, best, s.length, s.seed)}")


if __name__ == "__main__":
    guard(main)
