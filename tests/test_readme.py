"""The tables in README.md and sweeps.md are those of the files in assets/, links lead somewhere, commands run."""
import os
import re
import subprocess
import sys

import pytest
from helpers import TINY

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


def test_table_of_sweeps(table):
    import sweep
    text = (ROOT / "experiments/sweeps.md").read_text()
    for line in sweep.table(table("sweep")):
        assert line in text, line


def test_table_of_changes(table):
    """Every row of `things to change` was tried, and says what came out."""
    import changes
    loss = {row["change"]: row["val_loss"] for row in table("changes")}
    for change in changes.CHANGES:
        gap = loss[change] - loss[change.split()[0]]
        assert f"| `{change}` | {gap:+.3f} |" in README, f"{change} {gap:+.3f}"


def test_commands(text_file, tmp_path):
    """The commands of the README, with tiny numbers."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"(?:&& |^    |`)python ((?:train|sample)\.py[^`\n]*)", text, re.M)
    assert len(commands) >= 4
    (tmp_path / "mybook.txt").write_text(text_file.read_text())
    for command in commands:
        words = [w.strip('"') for w in re.sub(r'="([^"]*)"', r"=\1", command).split()]
        if words[0] == "train.py" and "help" not in words:
            given = {w.split("=")[0] for w in words}
            tiny = [*TINY, "max_iters=2", f"dataset={text_file}", "overwrite=true"]
            words += [w for w in tiny if w.split("=")[0] not in given]
        if words[0] == "sample.py":
            words = [w for w in words if not w.startswith("prompt")] + ["prompt=A:", "tokens=3"]
        done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=tmp_path, capture_output=True,
                              text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("experiments/*.md")], ids=lambda page: page.name)
def test_links_and_files(page):
    """Links are relative to their page; files in `quotes` may leave out data/ or common/, and mine.py is yours."""
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        assert (page.parent / link).exists(), link
    for file in re.findall(r"`(\w+\.py|experiments/\w+\.py)`", text):
        places = (ROOT, ROOT / "data", ROOT / "common", page.parent)
        assert file == "mine.py" or any((place / file).exists() for place in places), file
