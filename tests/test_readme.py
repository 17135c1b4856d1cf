"""The tables in README.md and sweeps.md are those of assets/, links lead somewhere, commands run."""
import re
import sys

import numpy as np
import pytest
import torch
from helpers import commands, shortened

import sample
import train
from common.checkpoint import ROOT

README = " ".join((ROOT / "README.md").read_text().split())        # lines may be broken anywhere


@pytest.fixture
def table(monkeypatch):
    """The rows of a table in assets/; scripts of experiments/ can be imported."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import lab

    def read(name):
        rows = lab.read_csv(ROOT / f"assets/{name}.csv")
        assert rows, f"assets/{name}.csv is empty or missing"
        return rows
    return read


def test_table_of_the_race(table):
    import race
    for line in race.table(table("race")):
        assert line in README, line


def test_table_of_streams(table):
    import streams
    for line in streams.table(table("streams")):
        assert line in README, line
    far = [[r["difference"] for r in table("streams") if (r["model"], r["low"]) == (model, 2048)]
           for model in {r["model"] for r in table("streams")}]
    assert max(map(np.mean, far)) < 0.0055 and "no model is worse by more than 0.005" in README


def test_table_of_sweeps(table):
    import sweep
    text = (ROOT / "experiments/sweeps.md").read_text()
    for line in sweep.table(table("sweep")):
        assert line in text, line


def test_table_of_changes(table):
    """Every row of `things to change` was tried, and says what came out."""
    import changes
    from lab import said
    rows = table("changes")
    assert {row["seed"] for row in rows} == {0, 1, 2} and "three random seeds" in README
    for change, gap in changes.effects(rows).items():
        assert f"| `{change}` | {said(gap)} |" in README, f"{change} {said(gap)}"


def test_commands(text_file, tmp_path, monkeypatch, no_pictures):
    """The commands of the README, with tiny numbers, in this process; test_lessons.py runs those of mine.py."""
    found = [words for words in commands((ROOT / "README.md").read_text())
             if words[0] in ("train.py", "sample.py") and "model=mine" not in words]
    assert len(found) >= 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mybook.txt").write_text(text_file.read_text())
    for words in found:
        script, *given = shortened(words, text_file)
        monkeypatch.setattr(sys, "argv", [script, *given])
        try:
            {"train.py": train, "sample.py": sample}[script].main()
        except SystemExit as e:
            assert not e.code, words
        finally:
            torch.set_flush_denormal(False)


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("experiments/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files(page):
    """Links are relative to their page; `file.py` may be in data/ or common/, or yours."""
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        assert (page.parent / link).exists(), link
    for file in re.findall(r"`(\w+\.py|experiments/\w+\.py)`", text):
        places = (ROOT, ROOT / "data", ROOT / "common", page.parent)
        yours = file in ("mine.py", "cheat.py", "red.py", "blue.py")
        assert yours or any((place / file).exists() for place in places), file
