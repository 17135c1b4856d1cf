"""The README's numbers are those of the files in assets/, and its commands and links exist."""
import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


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
