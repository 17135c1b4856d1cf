"""
Who gains with size? The five, a plain transformer and Hydra without its force at several widths and budgets; an LSTM,
the rival of the race, on request.

Every model at its defaults but for its width (n_embd; Hydra's field is twice as wide), for so many CPU-minutes,
evaluations not counted. The score is the validation text read once as a stream. Two fits: log loss against log
parameters at the largest budget, and log loss against log seconds, each budget with the width that is best at it. A
slope of -0.1 means: ten times the size, 21% less loss. It is fitted for each seed; its interval, and that of its
difference to the transformer's, is Student's t over the seeds. No floor is subtracted: three points do not tell it.

What it cannot say: at a fixed time a wider model sees fewer tokens, so the first slope is that of a size that you pay
for, and two cores reach a million parameters, not a billion.

    python experiments/scaling.py                  about three minutes on two cores: one seed, 8 CPU-seconds each
    python experiments/scaling.py full=true        three seeds, widths 64 to 256, 1, 3 and 10 CPU-minutes: 15 CPU-hours
    python experiments/scaling.py full=true budgets=1,3 resume=true       four and a half CPU-hours of them; goes on
    python experiments/scaling.py full=true budgets=5.5 out=longer        six; on a CPU with bfloat16 ten minutes' text
"""
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOUR, NAMES, chosen, collect, entrant, get_data, interval, read_settings, said, save_picture, trained
from labels import name_ends

from common.settings import UserError, convert, guard
from train import Train

ENTRANTS = {"baseline": ("momentum", dict(gamma=0.0)), **{name: (name, {}) for name in NAMES},
            "no_zeus": ("hydra", dict(zeus=False, n_layer=4)),           # preset=hydra
            "lstm": ("lstm", {})}
COLOURS = COLOUR | {"no_zeus": "#000000"}
COLUMNS = "model width minutes seed dataset small parameters tokens seconds val_loss".split()


@dataclass
class Settings:
    out: str = "assets"             # folder of scaling.csv and scaling.png
    full: bool = False              # three seeds, three widths, three budgets
    seeds: int = 1                  # runs of each model, width and budget
    widths: str = "32,64"           # n_embd, each a multiple of 16
    budgets: str = "0.13"           # CPU-minutes
    models: str = ",".join(["baseline", *NAMES, "no_zeus"])     # who runs: these, lstm
    dataset: str = "plays"          # the text
    small: bool = False             # one layer and short texts, to try the script out
    resume: bool = False            # keep what scaling.csv already holds

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError("seeds should be 1 or more")


FULL = dict(seeds=3, widths="64,128,256", budgets="1,3,10")


def sizes(name, width):
    """The changes of a Config that make a model so wide; none that is its default anyway."""
    Config = entrant(name).Config
    wanted = dict(n_embd=width) | (dict(n_field=2 * width) if hasattr(Config, "n_field") else {})
    return {key: value for key, value in wanted.items() if getattr(Config, key) != value}


def work(model, width, minutes, seed, dataset, small):
    name, changes = ENTRANTS[model]
    net, _, progress = trained(name, dataset, changes | sizes(name, width), small, minutes=minutes, seed=seed,
                               evaluations=0)
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    tokens = progress.step * Train.batch_size * net.config.block_size
    return [[parameters, tokens, progress.seconds, progress.rows[-1][3]]]


def slope(x, y):
    """Of log y against log x, by least squares; nan for a single point."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


def curves(rows, model, widths, budgets):                        # -> two of: x, losses (seeds, x); and the best widths
    """Loss against parameters at the largest budget; against seconds, each budget with its best width."""
    seeds = sorted({r["seed"] for r in rows})
    at = {(r["width"], r["minutes"], r["seed"]): r for r in rows if r["model"] == model}
    loss = lambda width, minutes: [at[width, minutes, seed]["val_loss"] for seed in seeds]
    most = max(budgets)
    parameters = [at[width, most, seeds[0]]["parameters"] for width in widths]
    best = [min(widths, key=lambda width: np.mean(loss(width, minutes))) for minutes in budgets]
    by_size = np.array([loss(width, most) for width in widths]).T
    by_time = np.array([loss(width, minutes) for width, minutes in zip(best, budgets)]).T
    return (parameters, by_size), ([60 * minutes for minutes in budgets], by_time), best


def report(rows, names, widths, budgets):
    """Both slopes of each model, and minus those of the baseline."""
    found = {model: curves(rows, model, widths, budgets) for model in names}
    for i, what in enumerate(("parameters", "CPU-seconds")):
        if len((widths, budgets)[i]) < 2:                        # a point has no slope
            continue
        slopes = {model: np.array([slope(pairs[i][0], y) for y in pairs[i][1]]) for model, pairs in found.items()}
        print(f"slope of log loss against log {what}; minus that of the baseline")
        for model, own in slopes.items():
            gap = said(interval(own - slopes["baseline"])) if model != "baseline" in slopes else ""
            print(f"{model:<14} {said(interval(own)):<28} {gap}")


def draw(rows, s, names, widths, budgets):
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    found = {model: curves(rows, model, widths, budgets) for model in names}
    seconds = 60 * max(budgets)
    most = Counter(best[-1] for _, _, best in found.values()).most_common(1)[0]
    panels = min(2, len(budgets))                                # one budget has no curve over time
    titles = (f"After {seconds:g} CPU-seconds {most[1]} of {len(names)} models\n"
              f"{'are' if most[1] > 1 else 'is'} best with {most[0]:g} channels (of {', '.join(map(str, widths))})",
              "Each budget with its best width")
    with rc_context({"font.size": 16}):
        fig = Figure(figsize=(10, 6.5 * panels), layout="constrained")
        for i, (ax, title) in enumerate(zip(fig.subplots(panels, squeeze=False)[:, 0], titles)):
            ends = []
            for model, pairs in found.items():
                x, loss = pairs[i]
                ax.plot(x, loss.mean(0), "o-", color=COLOURS[model])
                ends.append((x[-1], loss.mean(0)[-1], model, COLOURS[model]))
            what = ("parameters", "CPU-seconds of training")[i]
            ax.set(xscale="log", yscale="log", xlabel=what, ylabel="loss of a stream (nats per token)", title=title)
            ax.minorticks_off()
            x = sorted({x for pairs in found.values() for x in pairs[i][0]})
            ax.set_xticks(x if i else [1e5, 1e6], [f"{v:,.0f}" for v in (x if i else (1e5, 1e6))])
            low, high = ax.get_ylim()
            apart = next(step for step in (0.02, 0.05, 0.1, 0.5) if high - low < 12 * step or step == 0.5)
            ticks = [v for v in np.arange(1, 6, apart) if low <= v <= high]
            ax.set_yticks(ticks, [f"{v:.{1 if apart >= 0.1 else 2}f}" for v in ticks])
            name_ends(ax, ends, room=0.5 if i == 0 else 0.6)
        save_picture(fig, s.out, "scaling.png")


def main():
    s = read_settings(Settings, FULL)
    names = chosen(s.models, ENTRANTS)
    widths = sorted(convert("widths", word, int) for word in s.widths.split(","))
    budgets = sorted(convert("budgets", word, float) for word in s.budgets.split(","))
    if any(width < 16 or width % 16 for width in widths) or min(budgets) <= 0:
        raise UserError(f"widths={s.widths} should be multiples of 16, budgets={s.budgets} minutes above 0")
    get_data(s.dataset)
    jobs = [(model, width, minutes, seed, s.dataset, s.small) for seed in range(s.seeds) for minutes in budgets
            for width in widths for model in names]
    print(f"{len(jobs)} runs of together {sum(job[2] for job in jobs):.0f} CPU-minutes")
    rows = collect(Path(s.out, "scaling.csv"), COLUMNS, work, jobs, s.resume)
    report(rows, names, widths, budgets)
    draw(rows, s, names, widths, budgets)


if __name__ == "__main__":
    guard(main)
