"""
How do time and memory grow with the length, in training and in generation, and how fast are the kernels?

One thread, CPU-seconds, medians over rounds in which every candidate has its turn. Memory is what a step takes at its
peak above the model and its input. The attention models see the whole text here (block_size is the length) and their
state is a cache; the other two hold a state that does not grow. `ratio` is how many times better than what is named,
`at_least` our aim; rivals.py has what is compared. Training is at each model's defaults, generation at 256 channels
and 6 layers, fluidlm 4 of 4 steps.

    python experiments/speed.py                    about three minutes
    python experiments/speed.py full=true          longer texts, more rounds
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import COLOUR, NAMES, read_settings, save_picture, write_csv
from rivals import alternate, kernel, peak, training, whole_steps

from sample import tensor_bytes
from train import guard, load_model

COLUMNS = "panel name n ms mib ratio at_least".split()
KERNELS = {"attention": "#777777", "wave": COLOUR["wavefield"], "wave by FFT": COLOUR["advection_glu"],
           "scan": COLOUR["fluidlm"], "scan as a loop": "#000000"}
RATIOS = [("scan", "scan as a loop", 4, 256, 3), ("scan", "scan as a loop", 4, 1024, 5), # batch, length, at least
          ("wave", "wave by FFT", 8, 256, 2), ("wave", "wave by FFT", 8, 1024, 3.5),
          ("wave", "wave by FFT", 1, 8192, 4), ("wave", "attention", 1, 2048, 15), ("wave", "attention", 1, 8192, 50)]


@dataclass
class Settings:
    out: str = "assets"             # folder of speed.csv and speed.png
    full: bool = False              # longer texts, more rounds
    training: int = 2048            # tokens in a training step, at most
    kernel: int = 8192              # tokens in a kernel, at most
    stream: int = 4096              # tokens read before generation is timed, at most
    rounds: int = 3                 # rounds of every comparison


FULL = dict(training=8192, kernel=16384, stream=16384, rounds=7)


@torch.inference_mode()
def reading(name, n, longest):
    """A call: one token more after a stream of n; a call: the same by reading all n again; the state of the stream."""
    module = load_model(name)
    sizes = dict(n_layer=4, n_steps=4) if name == "fluidlm" else dict(n_layer=6)
    model, state = module.Model(module.Config(block_size=longest, n_embd=256, **sizes)).eval(), {}
    idx = torch.randint(256, (1, n))
    model(idx, state=state)
    return lambda: model(idx[:, :1], state=state), lambda: model(idx), state


def measure(s):                                                  # -> rows of COLUMNS
    rows, nan = [], math.nan

    def add(panel, name, n, ms, mib=nan, ratio=nan, at_least=nan):
        rows.append((panel, name, n, ms, mib, ratio, at_least))
        if ratio == ratio:
            aim = "" if at_least != at_least else f" at least {at_least:.3g}" + ": NOT REACHED" * (ratio < at_least)
            print(f"{panel:<8} {name:<52} {n:5d} tokens {ms:8.2f} ms {ratio:7.2f} x{aim}", flush=True)

    lengths = lambda last: [2 ** k for k in range(min(8, last.bit_length() - 1), last.bit_length())]
    kernels = [("kernel", name, n) for n in lengths(s.kernel) for name in KERNELS if "loop" not in name or n <= 1024]
    curves = [(training, [("training", name, n) for n in lengths(s.training) for name in NAMES]), (kernel, kernels)]
    memory = {key: peak(make(key[1]), key[2]) for make, keys in curves for key in keys}        # while we are small
    memory |= {(name, B, n): peak(kernel(name, B), n) for *pair, B, n, _ in RATIOS for name in pair
               if n <= s.kernel and pair[0] == "scan"}
    for make, keys in curves:
        for n in sorted({key[2] for key in keys}):
            ms = alternate({key: make(key[1])(n) for key in keys if key[2] == n}, s.rounds)
            for key in ms:
                add(*key, ms[key], memory[key])
    for fast, slow, B, n, at_least in RATIOS:
        if n <= s.kernel:
            ms = alternate({name: kernel(name, B)(n) for name in (fast, slow)}, s.rounds)
            add("faster", f"{fast}, against {slow}, batch {B}", n, ms[fast], nan, ms[slow] / ms[fast], at_least)
        if (fast, B, n) in memory:
            mib = [memory[name, B, n] for name in (fast, slow)]
            add("smaller", f"{fast}, against {slow}, batch {B}", n, ms[fast], mib[0], mib[1] / mib[0], 10)

    steps, a = whole_steps(), torch.randn(1024, 1024)
    flops = {name: FlopCounterMode(display=False) for name in steps}
    for name, step in steps.items():
        with flops[name]:
            step()
    ms = alternate(steps | {"sgemm": lambda: a @ a}, 7 * s.rounds)
    for name in steps:
        share = flops[name].get_total_flops() / ms[name] / (2 * 1024 ** 3 / ms["sgemm"])
        add("step", f"{name}, against gpt ({share:.0%} of the rate of sgemm)", 64, ms[name], nan, ms["gpt"] / ms[name],
            1.1 if name in ("momentum", "hydra", "advection_glu") else nan)

    streams = {(name, n): reading(name, n, s.stream) for name in NAMES for n in (64, 256, 1024, 4096, 16384)
               if n <= s.stream}
    with torch.inference_mode():
        again = {(name, n, "again"): all_of_it for (name, n), (_, all_of_it, _) in streams.items() if n <= 1024}
        ms = alternate({key: one for key, (one, _, _) in streams.items()} | again, 3 * s.rounds)
    for (name, n), (_, _, state) in streams.items():
        add("generate", name, n, ms[name, n], tensor_bytes(state) / 2 ** 20)
        if n <= 1024:
            add("faster", f"{name} from its state, against reading again", n, ms[name, n], nan,
                ms[name, n, "again"] / ms[name, n], 20 if n == 1024 else nan)
        if n == 4096 and name in ("fluidlm", "wavefield"):
            add("flat", f"{name}, a token after 256 against one after 4096", n, ms[name, n], nan,
                ms[name, 256] / ms[name, n], 1 / 1.15)
    return rows


def draw(rows, s):
    from matplotlib.figure import Figure
    fig = Figure(figsize=(13, 8), layout="constrained")
    ax = fig.subplots(2, 3)
    titles = {"training": "a training step", "kernel": "kernels, 256 channels",
              "generate": "one more token (the three caches are alike)"}
    for column, (panel, title) in enumerate(titles.items()):
        for row, unit in enumerate(("milliseconds", "MiB at the peak" if column < 2 else "MiB of state")):
            a = ax[row, column]
            for name, colour in (KERNELS if panel == "kernel" else {n: COLOUR[n] for n in NAMES}).items():
                points = [(r[2], r[3 + row]) for r in rows if r[:2] == (panel, name) and r[3 + row] > 0]
                n, y = np.array(points).reshape(-1, 2).T
                slope = np.log(y[-1] / y[-2]) / np.log(n[-1] / n[-2]) if len(n) > 1 else math.nan
                print(f"slope {slope:5.2f}  {panel:<9} {name:<15} {unit}")
                a.loglog(n, y, "o-", ms=4, color=colour, label=f"{name}  {slope:.2f}", base=2)
            a.set(title=title, xlabel="tokens", ylabel=unit, ylim=(None, 8 * a.get_ylim()[1]))
            a.legend(fontsize=8, title="slope at the end", title_fontsize=8, loc="upper left", ncols=2)
            a.xaxis.set_major_formatter("{x:g}")
            a.yaxis.set_major_formatter("{x:g}")
            a.grid(alpha=0.3)
    save_picture(fig, s.out, "speed.png")


def main():
    s = read_settings(Settings, FULL)
    rows = measure(s)
    write_csv(Path(s.out, "speed.csv"), COLUMNS, rows)
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
