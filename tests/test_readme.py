"""The README's numbers are those of the files in assets/, and its commands and links exist."""
import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_race_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import common
    import race
    for line in race.table(common.read_csv(ROOT / "assets/race.csv")):
        assert line in README, line
    rows = [r for r in common.read_csv(ROOT / "assets/race.csv") if r["final"]]
    final = {(r["model"], r["budget"]): f"{r['val_loss']:.3f}" for r in rows}
    claims = README[README.index("## What was claimed"):README.index("## The five, raced")]
    assert set(re.findall(r"(?<![\d.])[12]\.\d{3}(?!\d)", claims)) <= set(final.values())


def test_induction_numbers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import common
    table = common.read_csv(ROOT / "assets/induction.csv")
    rows = {(r["layers"], r["shear"], r["gamma"]): r for r in table if r["task"] == "two"}
    cited = re.findall(r"<!--i:(\d) (\w+) ([\d.]+)-->([\d.]+\d)", README)
    assert len(cited) >= 6
    for layers, shear, gamma, said in cited:
        assert f"{rows[float(layers), shear, float(gamma)]['accuracy']:.2f}" == said, (layers, shear, gamma)
    for layers in (1, 2, 3, 4):                         # "lowest loss at gamma = 1 for one to four layers"
        losses = {g: rows[layers, "qk", g]["loss"] for g in (0, 0.3, 1, 4)}
        assert min(losses, key=losses.get) == 1


def test_links_and_files():
    for path in re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"`(\w+\.py|experiments/\w+\.py)`", README):
        assert (ROOT / path).exists() or (ROOT / "data" / path).exists() or path == "mine.py", path
