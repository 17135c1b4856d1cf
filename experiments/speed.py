"""
How do time and memory grow with the length, in training and in generation, and how fast are the kernels?

One thread, CPU time, medians over rounds in which every candidate has its turn. Memory is what a step takes at its
peak above the model and its input. The attention models see the whole text here (block_size is the length) and their
state is a cache; the other two hold a state that does not grow. `ratio` is how many times better than what is named,
`at_least` our aim; rivals.py has what is compared. Training is at each model's defaults, generation at 256 channels
and 6 layers, fluidlm 4 of 4 steps. `share` is what a training step spends on matrix products (attention included), on
other operators, and between them. The table has it all; the picture shows three curves.

    python experiments/speed.py                    about three minutes
    python experiments/speed.py full=true          longer texts, more rounds
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, read_settings, save_picture, write_csv
from labels import name_ends
from rivals import KERNELS, PUBLISHED, RATIOS, kernel, reading, training, whole_steps
from stopwatch import alternate, peak, shares

from common.checkpoint import tensor_bytes
from common.settings import guard

COLUMNS = "panel name n ms mib ratio at_least".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of speed.csv and speed.png
    full: bool = False              # longer texts, more rounds
    training: int = 2048            # tokens in a training step: many short texts, or one long one
    kernel: int = 8192              # tokens in a kernel, at most
    stream: int = 512               # tokens read before generation is timed, at most
    rounds: int = 1                 # rounds of every comparison
    memory: bool = False            # measure the peaks of memory as well, which takes minutes
    small: bool = False             # tiny models, to try the script out


FULL = dict(training=4096, kernel=32768, stream=16384, rounds=7, memory=True)


def measure(s):                                                  # -> rows of COLUMNS
    rows, nan = [], math.nan

    def add(panel, name, n, ms, mib=nan, ratio=nan, at_least=nan):
        rows.append((panel, name, n, ms, mib, ratio, at_least))
        if ratio == ratio:
            aim = f" at least {at_least:.3g}" + ": NOT REACHED" * bool(ratio < at_least) if at_least == at_least else ""
            print(f"{panel:<8} {name:<52} {n:5d} tokens {ms:8.2f} ms {ratio:7.2f}{aim}", flush=True)

    lengths = lambda last: [2 ** k for k in range(min(8, last.bit_length() - 1), last.bit_length())]
    kernels = [("kernel", name, n) for n in lengths(s.kernel) for name in KERNELS if "loop" not in name or n <= 1024]
    steps = [("training", name, n) for n in lengths(s.training) for name in NAMES]
    curves = (lambda name: training(name, s.training), steps), (kernel, kernels)
    warm = lambda make, name: make(name) if make is kernel else training(name, 64)
    used = peak if s.memory else lambda *_: nan
    memory = {key: used(make(key[1]), key[2], warm(make, key[1])) for make, keys in curves for key in keys}
    memory |= {(name, B, n): used(kernel(name, B), n) for *pair, B, n, _ in RATIOS for name in pair
               if n <= s.kernel and pair[0] == "scan"}
    for make, keys in curves:
        for n in sorted({key[2] for key in keys}):
            ms = alternate({key: make(key[1])(n) for key in keys if key[2] == n}, s.rounds if n <= 8192 else 1)
            for key in ms:
                add(*key, ms[key], memory[key])
    for name in ("fluidlm", "wavefield"):
        ms = alternate({n: training(name, s.training)(n) for n in (lengths(s.training)[0], s.training)}, s.rounds)
        add("flat", f"{name}, texts of 256 against one", s.training, ms[s.training], nan,
            ms.get(256, nan) / ms[s.training], 0.8)
    for fast, slow, B, n, at_least in RATIOS:
        if n <= s.kernel:
            ms = alternate({name: kernel(name, B)(n) for name in (fast, slow)}, s.rounds)
            add("faster", f"{fast}, against {slow}, batch {B}", n, ms[fast], nan, ms[slow] / ms[fast], at_least)
        if not math.isnan(mib := memory.get((fast, B, n), nan)):
            add("smaller", f"{fast}, against {slow}, batch {B}", n, ms[fast], mib, memory[slow, B, n] / mib, 10)

    layers, width = (1, 32) if s.small else (4, 128)
    for name, step in whole_steps(16, 128, "muon", layers, width).items():
        for part, share in zip(("matrix products", "other operators", "between"), shares(step, s.rounds)):
            add("share", f"{name}: {part}", 128, nan, nan, float(share), 0.5 if part[0] == "m" else nan)

    steps, a = whole_steps(L=layers, C=width), torch.randn(1024, 1024)
    flops = {name: FlopCounterMode(display=False) for name in steps}
    for name, step in steps.items():
        with flops[name]:
            step()
    ms = alternate(steps | {"sgemm": lambda: a @ a}, 7 * s.rounds)
    for name in steps:
        share = flops[name].get_total_flops() / ms[name] / (2 * 1024 ** 3 / ms["sgemm"])
        add("step", f"{name}, against gpt ({share:.0%} of the rate of sgemm)", 64, ms[name], nan, ms["gpt"] / ms[name],
            1.1 if name in ("momentum", "hydra", "advection_glu") else nan)

    streams = {(name, n): reading(name, n, s.stream, 2 * width)
               for name in NAMES for n in (16, 256, 512, 1024, 4096, 16384) if n <= s.stream}
    with torch.inference_mode():
        again = {(name, n, "again"): all_of_it for (name, n), (_, all_of_it, _) in streams.items() if n <= 1024}
        ms = alternate({key: one for key, (one, _, _) in streams.items()} | again, 3 * s.rounds)
    for (name, n), (_, _, state) in streams.items():
        add("generate", name, n, ms[name, n], tensor_bytes(state) / 2 ** 20)
        if n <= 1024:
            add("faster", f"{name} from its state, against reading again", n, ms[name, n], nan,
                ms[name, n, "again"] / ms[name, n], 20 if n == 1024 or (name, n) == ("wavefield", 512) else nan)
        if n == 4096 and name in ("fluidlm", "wavefield"):
            add("flat", f"{name}, a token after 256 against one after 4096", n, ms[name, n], nan,
                ms[name, 256] / ms[name, n], 1 / 1.15)
    return rows


def draw(rows, s):
    """How many times longer attention takes than the wave: what is published, the kernels alone, whole steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    ms = {(panel, name, n): t for panel, name, n, t, *_ in rows}
    ratio = lambda panel, attends, wave: [(n, t / ms[panel, wave, n]) for (which, name, n), t in ms.items()
                                          if (which, name) == (panel, attends)]
    kernel, step = ratio("kernel", "attention", "wave"), ratio("training", "momentum", "wavefield")
    published = [(n, times) for n, times in PUBLISHED.items() if n <= kernel[-1][0]]
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 6.5), layout="constrained").subplots()
        ax.loglog(*zip(*kernel), "o-", lw=2.5, ms=7, color=COLOUR["wavefield"])
        ax.loglog(*zip(*step), "o-", lw=2.5, ms=7, color="black")
        ends = [(*kernel[-1], "one kernel\nalone", COLOUR["wavefield"])]
        if published:
            ax.loglog(*zip(*published), "x", color="#777777", ms=12, mew=3)
            ends.append((*published[-1], "operations,\nas published", "#777777"))
        ax.annotate("a whole\ntraining step", step[-1], xytext=(14, 0), textcoords="offset points", va="center")
        ax.axhline(1, color="black", lw=1, ls=":")
        ax.set(xlabel="tokens in a text", ylabel="time of attention / time of the wave")
        name_ends(ax, ends, gap=0.13)
        ax.set_xticks([n for n, _ in kernel[::3]], [f"{n:,.0f}" for n, _ in kernel[::3]])
        ax.set_yticks([10 ** k for k in range(4) if 10 ** k < ax.get_ylim()[1]])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.figure.suptitle(f"Alone, attention takes {kernel[-1][1]:.3g} times as long as a wave ({kernel[-1][0]:,.0f} "
                           f"tokens);\nin a whole training step, {step[-1][1]:.3g} times ({step[-1][0]:,.0f} tokens)")
        save_picture(ax.figure, s.out, "speed.png")


def main():
    s = read_settings(Settings, FULL)
    write_csv(Path(s.out, "speed.csv"), COLUMNS, rows := measure(s))
    draw(rows, s)


if __name__ == "__main__":
    guard(main)
