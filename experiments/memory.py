"""
How many bytes does a model carry along while it reads a long stream?

FluidLM promises a memory that does not grow, O(1). Each model at its defaults reads one random text as a stream, and
its `state` is weighed on the way: the numbers in its tensors, and the memory that these keep alive (a tensor may be a
view of a larger one). Attention, whose window slides here, also forgets and also stops growing; so beside it stands the
transformer that keeps the whole text, which is what a claim of O(1) is against.

    python experiments/memory.py                   about half a minute: 5,000 tokens
    python experiments/memory.py full=true         100,000 tokens: a quarter of an hour, the whole text most of it
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, entrant, read_settings, save_picture
from labels import name_ends

from common.checkpoint import tensor_bytes, tensors
from common.settings import guard

KEEPS_ALL, WORDS = "whole_text", "the whole text"      # in the table, in the picture
ENTRANTS = ["baseline", KEEPS_ALL, *NAMES, "lstm"]
CHUNK = 250                 # tokens read at a time
POINTS = 12                 # how often the state is weighed
COLUMNS = "model length small tokens bytes held".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of memory.csv and memory.png
    full: bool = False              # 100,000 tokens
    length: int = 5000              # tokens of the stream
    models: str = ",".join(ENTRANTS)        # who reads
    small: bool = False             # tiny models, to try the script out
    resume: bool = False            # keep what memory.csv already holds

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length={self.length} should be 1 or more")


def held(state):
    """Bytes of memory that the tensors of a state keep alive, each piece counted once."""
    pieces = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}
    return sum(pieces.values())


@torch.inference_mode()
def work(name, length, small):
    own = {"baseline": dict(gamma=0.0), KEEPS_ALL: dict(gamma=0.0, block_size=length)}
    module = entrant("momentum" if name in own else name)
    sizes = dict(n_layer=1, n_embd=16, block_size=16) if small else {}
    sizes = {key: value for key, value in sizes.items() if hasattr(module.Config, key)} | own.get(name, {})
    torch.manual_seed(0)
    model = module.Model(module.Config(**sizes)).eval()
    text = torch.randint(256, (1, length))
    looks = set(np.unique(np.geomspace(min(CHUNK, length), length, POINTS) // CHUNK * CHUNK).astype(int)) | {length}
    rows, state, tokens = [], {}, 0
    for chunk in text.split(CHUNK, 1):
        model(chunk, state=state)
        tokens += chunk.shape[1]
        if tokens in looks:
            rows.append([tokens, tensor_bytes(state), held(state)])
    return rows


def groups(last):                                                # {name: bytes} -> [[name, ...], ...]
    """Models whose states are within a tenth of the smallest among them share a line of the picture, and a label."""
    found = []
    for name in sorted(last, key=last.get):
        if found and last[name] < 1.1 * last[found[-1][0]]:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def draw(rows, s):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    print(f"{'model':<16} KiB after the first and the last tokens, and kept alive by it")
    sizes, kib = {}, {}
    for name in dict.fromkeys(r["model"] for r in rows):
        own = [r for r in rows if r["model"] == name]
        sizes[name] = [r["tokens"] for r in own], [r["bytes"] / 1024 for r in own]
        kib[name] = own[-1]["bytes"] / 1024
        print(f"{name:<16} {own[0]['bytes'] / 1024:10,.1f} {kib[name]:10,.1f} {own[-1]['held'] / 1024:10,.1f}")
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 7.5), layout="constrained").subplots()
        ends, last = [], rows[-1]["tokens"]
        for alike in groups(kib):
            colour = COLOUR.get(alike[0], "#000000") if len(alike) == 1 else "#444444"
            for name in alike:
                ax.loglog(*sizes[name], "-", lw=3, color=colour)
            range_of = dict.fromkeys(f"{kib[name]:,.0f}" for name in (alike[0], alike[-1]))
            label = fill(f"{', '.join(alike)}: {' to '.join(range_of)} KiB", 26).replace(KEEPS_ALL, WORDS)
            ends.append((last, kib[alike[-1]], label, colour))
        grow = [name for name, (_, size) in sizes.items() if size[-1] > 1.1 * size[0]]
        ax.figure.suptitle("Only attention to the whole text needs ever more memory" if grow == [KEEPS_ALL] else
                           f"What grows along a stream: {', '.join(grow).replace(KEEPS_ALL, WORDS) or 'nothing'}")
        ax.set(xlabel="tokens read", ylabel="KiB of state")
        name_ends(ax, ends, room=0.7, gap=0.1)
        ax.set_xticks([10 ** k for k in range(2, 7) if rows[0]["tokens"] < 10 ** k <= last])
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.minorticks_off()
        save_picture(ax.figure, s.out, "memory.png")


def main():
    s = read_settings(Settings, dict(length=100_000))
    jobs = [(name, s.length, s.small) for name in chosen(s.models, ENTRANTS)]
    draw(collect(Path(s.out, "memory.csv"), COLUMNS, work, jobs, s.resume), s)


if __name__ == "__main__":
    guard(main)
