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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import claims
import streams
from claims import Data, Missing

from common import files
from common.checkpoint import ROOT
from common.settings import guard

MARK, END = "<!-- claims: python experiments/results.py -->", "<!-- end of claims -->"
VERDICTS = ("holds", "partly", "no", "untested")
KEYS = ("claimed", "how", "rule", "run")                # of a claim's docstring, after the title
CLAIMS = [f for name, f in vars(claims).items() if name.startswith("claim_")]
# What a command says, if it is not the text alone.
OPTIONS = dict(induction="", speed="", memory="", kick="kicks=128 dataset=shakespeare_char",
               ablate="models=fluidlm,wavefield dataset=shakespeare_char")


@dataclass
class Row:
    title: str
    verdict: str                    # holds, partly, no, untested
    short: str                      # the number with its interval: for the README
    more: str                       # the rest of what was found
    about: dict                     # KEYS


UNTESTED = """\
- *Momentum: 125M parameters track 350M.* Two cores cannot; one size is compared above.
- *Hydra: the latent flow obeys an anisotropic Navier-Stokes equation.* It has something called pressure, a viscosity
  and a force, but no u . grad u and no incompressibility. `experiments/late.py` adds u . grad u.
- *Wave Field: no variant of Mamba or Hyena.* A matter of definition, and the file shows the opposite: a head is one
  complex pole of a diagonal linear state space, as in S4D (arXiv 2206.11893) and the LRU (arXiv 2303.06349). Nothing
  travels: it is an oscillator in time."""


def rows_of(data):
    rows = []
    for f in CLAIMS:
        title, _, rest = inspect.getdoc(f).partition("\n")
        about = {key: " ".join(text.split()) for key, text in
                 re.findall(rf"^({'|'.join(KEYS)}): (.*?)(?=^(?:{'|'.join(KEYS)}): |\Z)", rest, re.M | re.S)}
        try:
            found = f(data)
        except (Missing, KeyError):                              # no table, no rows, or an older kind of table
            found = "untested", "", ""
        rows.append(Row(title, *found, about))
    return rows


def command(script):
    words = [f"python experiments/{script}.py full=true", OPTIONS.get(script, "dataset=shakespeare_char")]
    return " ".join(words).strip()


def block(row):
    """A claim in RESULTS.md."""
    about, picture = row.about, f"assets/{row.about['run']}.png"
    link = f", [picture]({picture})" if (ROOT / picture).exists() and row.verdict != "untested" else ""
    found = f"**{row.short}**" + (f"; {row.more}" if row.more else "")
    if row.verdict == "untested":
        found = "not measured yet"
    return [f"### {row.title}: {row.verdict}", "", f"- *Claimed:* {about['claimed']}.",
            f"- *Measured:* {about['how']} (`{command(about['run'])}`{link}).", f"- *Found:* {found}.",
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


def page(data, rows):
    """RESULTS.md."""
    near = influence_numbers(data)
    choices = data.table("choices")
    also = "|".join(dict.fromkeys(f"{r['model']} {r['changes']}" for r in choices if r["changes"]))
    holds, partly, no, untested = ([row.verdict for row in rows].count(v) for v in VERDICTS)
    lines = [f"""\
# Results: what was claimed, and what came out

This page is written by `python experiments/results.py` from the tables in `assets/`. {holds} claims hold, {partly}
hold in part or are left open, {no} do not hold, {untested} are untested. Everything was measured on two CPU cores, on
Tiny Shakespeare by characters, in nats per character, unless a claim says otherwise. The cores were up to a quarter
slower on some days, which costs all models 0.03 in 180 seconds: compare within a table, not between two. Hydra was
changed on such a day; in the race, and where its variants are compared, it had the iterations of the faster one. So
had all models of late and smooth, a variant as many fewer as its step takes longer.

A number in brackets is a 95% interval: Student's t over random seeds, differences paired by seed. The verdict follows
from the interval by the rule beside it, so the rule also says what would have changed it. *Partly*: a part of it is
established, or the interval leaves both open.

| claim | verdict | measured |
| --- | --- | --- |"""]
    lines += [f"| {row.title} | {row.verdict} | {row.short} |" for row in rows]
    lines += ["", "## Claim by claim", ""]
    shown = {"kick", "filters"}                                  # below
    for row in rows:
        script = row.about["run"]
        lines += block(row)
        if row.verdict != "untested" and script not in shown and (ROOT / f"assets/{script}.png").exists():
            lines += [f"![{row.title}](assets/{script}.png)", ""]
            shown.add(script)
    lines += ["## Claims without a number", "", UNTESTED, "", f"""\
## Where each model looks

How much does a prediction move when one earlier character is another? Dots are measured in trained models (three
random seeds, 180 CPU-seconds each), relative to the character itself. Black is what the term of the equation that
reaches along the text would do alone, with the trained constants
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

The defaults stay good however far a text goes (the table in README.md). Here are other windows and switches, one random
seed, 90 CPU-seconds: the loss of tokens with so much past, minus that of the same tokens with 64 to 128.

    python experiments/streams.py dataset=shakespeare_char minutes=1.5 out=choices models=baseline also="{also}"

{chr(10).join(streams.table(choices))}

A position code is what breaks a stream, in Wave Field and in FluidLM: the model never saw those positions. So it is
off. Sinkhorn's pressure loses a little, as a key cannot know how much more it will be asked. Attention that has barely
learned to use a window of 256 is a little better with less of it, but gets no worse further down. Everything else
stands still.

## Every token mixer is a filter

On a frozen model the shear, the Laplacians and the waves are linear filters along the text: one Bode plot for all, with
the formula as a line and the torch operator as dots (`{command("filters")}`).
The one-sided second difference smooths slow changes and amplifies fast ones. The waves of the first layer of Wave Field
reach {reaches(data, "at first")} before training and {reaches(data, "trained")} after it.

![Gain of token mixers against frequency](assets/filters.png)

With their default settings the scripts take up to three minutes each on two cores (sweep: eight). With `full=true`
they take about 34 CPU-hours in all: scaling 15, ablate 5, vocabulary 2.5, late and sweep 2 each, the others an hour or
less. They write into `assets/`, over what is shown here, unless `out=` names another folder.
[sweeps.md](experiments/sweeps.md) says how the defaults were chosen."""]
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
