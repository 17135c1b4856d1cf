"""
RESULTS.md and the list of claims in README.md, from the tables in assets/: what does each original claim, what came
out, and what would have changed the verdict? The claims and their rules are in claims.py.

    python experiments/results.py                  seconds
"""
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import claims
import scaling
import streams
from claims import Data, Missing
from lab import NAMES, interval, paired, said

from common import files
from common.checkpoint import ROOT
from common.settings import guard

MARK, END = "<!-- claims: python experiments/results.py -->", "<!-- end of claims -->"
VERDICTS = ("holds", "partly", "partly (open)", "no", "untested")
KEYS = ("claimed", "how", "rule", "run")                # of a claim's docstring, after the title
CLAIMS = [f for name, f in vars(claims).items() if name.startswith("claim_")]
PICTURES = dict(scaling="longer")                       # of a script's claims, if the name is another
# What a command says, if it is not the text alone.
OPTIONS = dict(induction="", speed="", memory="", kick="kicks=128 dataset=shakespeare_char",
               scaling="budgets=5.5 dataset=shakespeare_char out=longer",
               ablate="models=fluidlm,wavefield dataset=shakespeare_char")


@dataclass
class Row:
    title: str
    verdict: str                    # one of VERDICTS
    short: str                      # the number with its interval: for the README
    more: str                       # the rest of what was found
    about: dict                     # KEYS

    @property
    def script(self):
        return self.about["run"].partition(", ")[0]


NOT_HERE = """\
- *Momentum: a conservation law.* A step of the shear conserves areas: its determinant is 1 (`python momentum.py`).
  There is no Hamiltonian, and nothing that stays constant along a text.
- *Momentum: spectral forensics.* Its bands are measured above. That a spectrum finds an induction head is not shown.
- *Momentum: 125M parameters track 350M.* Two cores cannot train either; 0.6 M against 2.4 M is above.
- *Advection-GLU: transport.* The original's product has no derivative and carries nothing along the text.
  `field=slope` does.
- *Hydra: Sinkhorn.* It is an option. The default is softmax, because Sinkhorn loses a little in a long stream (below).
- *FluidLM: Turing patterns.* No pair of activator and inhibitor is built in, and no instability was looked for.
- *FluidLM: an equation in continuous time.* The default takes one Euler step, and h has no dt in it, as in the
  original. That the result converges for small steps is not shown.
- *FluidLM: turbulence.* tau is a quotient of means, as in the code of V4.5.0, not the mean of quotients of its
  document. The original cuts its gradient, here it has one.
- *FluidLM: distances of 1, 4 and 16 for syntax, phrase and paragraph.* Not tested. LongConv was never trained here.
- *Wave Field: interference.* It is a gated cosine of two learned vectors. The phase of h has no part in it.
- *Wave Field: bugs found by physics.* Of energy, conservation and causality, causality has an alarm, in train.py.
  Energy is drawn, and no balance is kept."""


def rows_of(data):
    rows = []
    for f in CLAIMS:
        title, _, rest = inspect.getdoc(f).partition("\n")
        about = {key: " ".join(text.split()) for key, text in
                 re.findall(rf"^({'|'.join(KEYS)}): (.*?)(?=^(?:{'|'.join(KEYS)}): |\Z)", rest, re.M | re.S)}
        try:
            found = f(data)
        except Missing:                                          # no table, no rows, or an older kind of table
            found = "untested", "", ""
        rows.append(Row(title, *found, about))
    return rows


def command(script):
    words = [f"python experiments/{script}.py full=true", OPTIONS.get(script, "dataset=shakespeare_char")]
    return " ".join(words).strip()


def picture(row):
    """Where the picture of a claim is; empty if it has none, or if that shows something else (run: ..., table only)."""
    file = f"assets/{PICTURES.get(row.script, row.script)}.png"
    table_only = row.about["run"] != row.script
    return file if (ROOT / file).exists() and not table_only and row.verdict != "untested" else ""


def block(row):
    """A claim in RESULTS.md."""
    about = row.about
    link = f", [picture]({picture(row)})" if picture(row) else ""
    found = f"**{row.short}**" + (f"; {row.more}" if row.more else "")
    if row.verdict == "untested":
        found = "not measured yet"
    return [f"### {row.title}: {row.verdict}", "", f"- *Claimed:* {about['claimed']}.",
            f"- *Measured:* {about['how']} (`{command(row.script)}`{link}).", f"- *Found:* {found}.",
            f"- *Verdict:* {about['rule']}.", ""]


def influence_numbers(data):
    """Shares of the influence of other characters, from the one before and the last five: the least and the most."""
    rows, found = data.table("influence"), {1: [], 5: []}
    for model in dict.fromkeys(r["model"] for r in rows):
        own = [r for r in rows if r["model"] == model and r["low"] >= 1]
        nats = {}
        for r in own:
            nats[r["low"]] = nats.get(r["low"], 0) + r["influence"] * (r["high"] - r["low"])
        for d in found:
            found[d].append(100 * sum(nats[low] for low in nats if low <= d) / sum(nats.values()))
    return {d: f"{min(v):.0f} to {max(v):.0f}%" for d, v in found.items()}


def reaches(data, when):
    found = [float(r["setting"].split()[1]) for r in data.table("filters") if r["mixer"] == f"waves {when}"]
    return f"{min(found):.3g} to {max(found):.3g} tokens"


def size_table(rows, timed=True):                                # -> lines
    """What scaling.py measured, at the largest budget: the loss by width, the best in bold, and the exponents."""
    widths, budgets = (sorted({r[key] for r in rows}) for key in ("width", "minutes"))
    models, slopes = dict.fromkeys(r["model"] for r in rows), {}
    heads = ["model", "parameters, M", "tokens, M", *(f"{width:.0f}" for width in widths), "by parameters",
             "minus the baseline's", *["by seconds"] * timed]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * 3 + " ---: |" * len(widths) + " --- |" * (2 + timed)]
    for model in models:
        *pairs, best = scaling.curves(rows, model, widths, budgets)
        (parameters, loss), _ = pairs
        by_size, by_time = (np.array([scaling.slope(x, y) for y in losses]) for x, losses in pairs)
        slopes[model] = by_size
        read = [np.mean([r["tokens"] for r in rows if (r["model"], r["width"], r["minutes"]) ==
                         (model, width, budgets[-1])]) for width in widths]
        cells = [model, ", ".join(f"{n / 1e6:.2f}" for n in parameters), ", ".join(f"{n / 1e6:.1f}" for n in read)]
        cells += [f"**{x:.3f}**" if width == best[-1] else f"{x:.3f}" for width, x in zip(widths, loss.mean(0))]
        cells += [said(interval(by_size)), said(interval(by_size - slopes["baseline"])) if model != "baseline" else ""]
        cells += [said(interval(by_time))] * timed
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sizes(data):
    """The section on scaling.csv, and on longer.csv if there is one."""
    try:
        rows = data.table("scaling")
    except Missing:
        return []
    widths, budgets = (sorted({r[key] for r in rows}) for key in ("width", "minutes"))
    seconds = 60 * budgets[-1]
    narrow, wide = (np.mean([r["tokens"] for r in rows if r["width"] == width and r["minutes"] == budgets[-1]]) / 1e6
                    for width in (widths[0], widths[-1]))
    times = " and ".join(f"{60 * minutes:.0f}" for minutes in budgets)
    return ["## Who gains with size?", "", f"""\
Models of several widths (n_embd), {times} CPU-seconds, three random seeds each
(`python experiments/scaling.py full=true budgets={",".join(f"{m:g}" for m in budgets)} dataset=shakespeare_char`).
The loss is that of the whole validation text as a stream, after {seconds:.0f} seconds. The exponents are those of the
loss against parameters, at {seconds:.0f} seconds, and of the loss at the best width against seconds: -0.1 would be 21%
less loss for ten times as much. no_zeus is Hydra without its force: four layers instead of two. Two runs shared the
machine, which slows each down by up to a quarter. momentum, fluidlm and advection_glu ran on another, slower day:
compare their exponents with those of the others, not their losses.
""", *size_table(rows), "", "![Loss against parameters and against seconds](assets/scaling.png)", "", f"""\
Size costs time: in {seconds:.0f} seconds a model with {widths[0]:.0f} channels reads {narrow:.1f} M tokens, one with
{widths[-1]:.0f} only {wide:.1f} M. An exponent above zero says that the time was too short for the size.
""", *longer(data, rows)]


def longer(data, before):
    """The longer runs of scaling.py, on another machine; before: the rows of the shorter ones."""
    try:
        rows = data.table("longer")
    except Missing:
        return []
    ours, minutes = [r for r in rows if r["model"] != "lstm"], rows[0]["minutes"]
    models, widths = dict.fromkeys(r["model"] for r in ours), sorted({r["width"] for r in ours})
    last = max(r["minutes"] for r in before)
    read = lambda rows, width, minutes: np.mean([r["tokens"] for r in rows if r["model"] in models and
                                                 (r["width"], r["minutes"]) == (width, minutes)])
    more = [f"{read(ours, width, minutes) / read(before, width, last):.1f}" for width in widths]
    loss = lambda model, width: data("longer", "val_loss", model=model, width=width)
    steps = []
    for a, b in zip(widths, widths[1:]):
        gaps = [paired(loss(model, b), loss(model, a)) for model in models]
        gain, lose = sum(gap[2] < 0 for gap in gaps), sum(gap[1] > 0 for gap in gaps)
        steps.append(f"From {a:.0f} to {b:.0f} channels {gain} of {len(gaps)} models gain for sure and {lose} lose "
                     f"({min(gaps)[0]:+.3f} to {max(gaps)[0]:+.3f} nats).")
    behind = [f"| minus the baseline's loss | {' | '.join(f'{width:.0f}' for width in widths)} |",
              "| --- |" + " --- |" * len(widths)]
    for model in models:
        if model != "baseline":
            cells = [said(paired(loss(model, width), loss("baseline", width))) for width in widths]
            behind.append(f"| {model} | {' | '.join(cells)} |")
    return [f"""\
For longer, on the newer CPU: {60 * minutes:.0f} CPU-seconds, three random seeds
(`{command("scaling")}`).
Its table is kept as `assets/longer.csv`, its picture as `assets/longer.png`. Again two runs shared the machine.
From narrow to wide the models read {", ".join(more)} times as much as above: as much text as in ten minutes of the
older CPU, or more, as bfloat16 helps the wide ones. Ten minutes of the newer one were not run.
""", *size_table(ours, timed=False), "", "![Loss against parameters, for longer](assets/longer.png)", "",
            "\n".join(steps) + f"""
So time makes size pay: after {60 * last:.0f} seconds most were best with 64 channels, now all are with 128. With 256
they have read the training text about twice, and that is where two cores end. The exponents are those of three widths
with the least loss in the middle: they say who suffers less at the wide end, and are no law.
""", *behind, "", """\
With 128 channels Wave Field, Hydra and Advection-GLU were ahead of the transformer in the race. Of none is that sure
any more. Wave Field still is with 64 and with 256, Hydra with 256 and half of the parameters.
""", *rival(data)]


def rival(data):
    """The LSTM of the longer runs, and the best of the five."""
    rows = data.table("longer")
    loss = lambda model, width: data("longer", "val_loss", model=model, width=width)
    best = lambda names: min({(r["model"], r["width"]) for r in rows if r["model"] in names},
                             key=lambda cell: np.mean(list(loss(*cell).values())), default=None)
    ours, theirs = best(NAMES), best(["lstm"])
    if not theirs:
        return []
    size, tokens = (np.mean(list(data("longer", key, model="lstm", width=theirs[1]).values())) / 1e6
                    for key in ("parameters", "tokens"))
    score = np.mean(list(loss(*theirs).values()))
    widths = " and ".join(f"{width:.0f}" for width in sorted({r["width"] for r in rows if r["model"] == "lstm"}))
    return [f"""\
LSTMs of {widths} channels had the same time (`models=lstm widths={widths.replace(" and ", ",")}`). The better one,
{theirs[1]:.0f} channels, {size:.2f} M parameters, {tokens:.1f} M tokens, comes to {score:.3f}.
The best of the five, {ours[0]} with {ours[1]:.0f} channels, minus that: {said(paired(loss(*ours), loss(*theirs)))}. The
learning rates of both sides were chosen for 180 seconds.
"""]


def same_side(row, number, verdict):                             # -> yes, no, open or -
    """Is a number, as text, on the same side of zero as that of a claim? Open if its interval contains zero. Where a
    claim has no interval, the verdict should be the same. A dash if the table does not have the number."""
    if verdict == "untested":
        return "-"
    found = re.search(r"([+-][\d.]+)%? \[([+-][\d.]+)%?, ([+-][\d.]+)%?\]", row.short)
    if not found:
        return "yes" if verdict == row.verdict else "no"
    mean, low, high = map(float, found.groups())
    if low <= 0 <= high:
        return "open"
    quick = re.search(r"[+-][\d.]+", number)
    return "yes" if quick and float(quick[0]) * mean > 0 else "no"


def quick_versions(data, rows):
    """The section on quick.csv: how long each script takes with its defaults, and what it says about its claims."""
    try:
        found = data.table("quick")
    except Missing:
        return []
    titles, seconds = {row.title: row for row in rows}, {r["script"]: r["seconds"] for r in found}
    lines, counted = ["| script, seconds | claim | quick | same side |", "| --- | --- | --- | --- |"], []
    for r in found:
        cells = ["", "", ""]
        if r["claim"]:
            text = f"{r['number']:+g}" if isinstance(r["number"], float) else r["number"]      # one without a unit
            counted.append(same_side(titles[r["claim"]], text, r["verdict"]))
            cells = [r["claim"], text, counted[-1]]
        lines.append(f"| {r['script']}, {r['seconds']:.0f} | {' | '.join(cells)} |")
    yes, no, left_open = map(counted.count, ("yes", "no", "open"))
    return ["## The quick versions", "", f"""\
With their defaults the {len(seconds)} scripts take {min(seconds.values()):.0f} to {max(seconds.values()):.0f} seconds
each, {sum(seconds.values()) / 60:.0f} minutes in all, on two cores of the newer CPU (`python experiments/quick.py`, in
one go): one seed, two for viscosity, and models that were trained for seconds. Is their number on the same side of zero
as the one above? {yes} are, {no} {"is" if no == 1 else "are"} not; for {left_open} the interval above contains zero, so
that there is no side. Without an interval the verdict is compared. That of the kernels needs 32k tokens, too long for a
quick version: it stops at 8k.

On the older CPU the scripts took 24 to 179 seconds, and 6 numbers were on the other side. After that flow, late and
vocabulary got longer runs or wider models, as kick, ablate and vocabulary had before: the defaults were chosen with the
full numbers in sight. One run of seconds is noisy, and some changed sides when it was repeated: trust those above.
""", *lines, ""]


def page(data, rows):
    """RESULTS.md."""
    near = influence_numbers(data)
    ours = sum(row.about["claimed"].startswith(("nothing", "by nobody")) for row in rows)
    choices = data.table("choices")
    also = "|".join(dict.fromkeys(f"{r['model']} {r['changes']}" for r in choices if r["changes"]))
    holds, partly, left_open, no, untested = ([row.verdict for row in rows].count(v) for v in VERDICTS)
    lines = [f"""\
# Results: what was claimed, and what came out

This page is written by `python experiments/results.py` from the tables in `assets/`. {holds} claims hold, {partly}
hold in part, {left_open} are left open by their interval, {no} do not hold, {untested} are untested; {ours} of them are
questions of our own. Everything was measured on two CPU cores, on Tiny Shakespeare by characters, in nats per
character, unless a claim says otherwise. The cores were up to a quarter slower on some days, which costs all models
0.03 in 180 seconds: compare within a table, not between two. Hydra was changed on such a day; in the race, and where
its variants are compared, it had the iterations of the faster one, and the seconds are those. So had all models of late
and smooth, a variant as many fewer as its step takes longer. The README's changes, the choices that break a stream,
the longer runs of scaling and the quick versions came later, on a newer CPU: nearly twice as fast, with matrix products
in bfloat16.

A number in brackets is a 95% interval: Student's t over random seeds, mostly three, differences paired by seed. The
verdict follows from the interval by the rule beside it, so the rule also says what would have changed it. *Partly*: a
part of it is established. *Partly (open)*: the interval contains both answers. With so many intervals one or two may
miss: trust least those that end near a limit.

| claim | verdict | measured |
| --- | --- | --- |"""]
    lines += [f"| {row.title} | {row.verdict} | {row.short} |" for row in rows]
    lines += ["", "## Claim by claim", ""]
    shown = {"", "assets/kick.png", "assets/filters.png", "assets/longer.png"}               # these are below
    for row in rows:
        lines += block(row)
        if picture(row) not in shown:
            lines += [f"![{row.title}]({picture(row)})", ""]
            shown.add(picture(row))
    lines += ["## Asked for by the originals, and not here", "", NOT_HERE, "", f"""\
## Where each model looks

How much does a prediction move when one earlier character is another? Above, measured in trained models (means of three
random seeds, 180 CPU-seconds each), relative to the character itself. Below, what the term of the equation that reaches
along the text would do alone, with the trained constants
(`{command("influence")}`).

![Influence against distance, measured and predicted](assets/influence.png)

All five look at the text alike: of the influence of other characters {near[1]} comes from the one before,
{near[5]} from the last five. The text decides that, not the equation. Attention ends at its window of
128 tokens in each layer; FluidLM and Wave Field fade.

## Kick the fluid

In mid-stream half of the numbers in a model's state are set to zero, and it reads on
(`{command("kick")}`). For attention the state is the cached keys and values.
The claim *fluids repair themselves*, above, has the numbers: what heals quickly is a recurrent state, and the LSTM,
which is no fluid, has one too.

![Excess loss after the kick, and the characters to recover](assets/kick.png)

## Choices that break a stream

The defaults stay good however far a text goes (the table in README.md). Here are other windows and switches, three
random seeds, 90 CPU-seconds of a newer CPU: the loss of tokens with so much past, minus that of the same tokens with 64
to 128.

    python experiments/streams.py dataset=shakespeare_char seeds=3 minutes=1.5 out=choices models=baseline also="{also}"

{chr(10).join(streams.table(choices, lambda gaps: said(interval(gaps))))}

A position code is what breaks a stream, in Wave Field and in FluidLM: the model never saw those positions. So it is
off. Sinkhorn's pressure loses a little, as a key cannot know how much more it will be asked. Attention that has barely
learned to use its window is a little better with less of it, but gets no worse further down. FluidLM, if it has seen
only 64 tokens at a time, lost 0.006 in one seed of three. Everything else stands still.
""", *sizes(data), f"""\
## Every token mixer is a filter

On a frozen model the shear, the Laplacians and the waves are linear filters along the text: one Bode plot for all, with
the formula as a line and the torch operator as dots (`{command("filters")}`).
The one-sided second difference smooths slow changes and amplifies fast ones. The waves of the first layer of Wave Field
reach {reaches(data, "at first")} before training and {reaches(data, "trained")} after it.

![Gain of token mixers against frequency](assets/filters.png)
""", *quick_versions(data, rows), """\
With `full=true` the scripts take about 36 CPU-hours in all: scaling 15 (what is shown took 4.5, and 6 of the newer
CPU), ablate 5, vocabulary 2.5, induction, late and sweep 2 each, the others about an hour or less. They write into
`assets/`, over what is shown here, unless `out=` names another folder. [sweeps.md](experiments/sweeps.md) says how the
defaults were chosen. Three of the hours of ablate were not spent: the terms of Momentum, Hydra and Advection-GLU were
not left out at this length, as no claim asks for it."""]
    return "\n".join(lines) + "\n"


def summary(rows):
    """The README's list: one line for each claim."""
    lines = [MARK, "| claim | so far |", "| --- | --- |"]
    for row in rows:
        lines.append(f"| {row.title} | {row.verdict}{': ' + row.short if row.short else ''} |")
    return "\n".join([*lines, END])


def main():
    data = Data(ROOT / "assets")
    rows = rows_of(data)
    readme = (ROOT / "README.md").read_text("utf-8")
    before, after = readme.partition(MARK)[0], readme.partition(END)[2]
    files.write_atomic(ROOT / "RESULTS.md", page(data, rows).encode())
    files.write_atomic(ROOT / "README.md", (before + summary(rows) + after).encode())
    for row in rows:
        print(f"{row.verdict:<9} {row.title}{': ' + row.short if row.short else ''}")


if __name__ == "__main__":
    guard(main)
