"""
Do the quick versions of the experiments show what the full ones do?

Every script runs with its defaults, one after the other, each in an empty folder, and is timed. Then every claim of
claims.py gets its number from their tables, which have one seed and a few seconds of training. results.py says in
RESULTS.md whether it is on the same side of zero as the number from assets/.

    python experiments/quick.py                    half an hour on two cores, or more; with nothing else on the machine
    python experiments/quick.py scripts=kick,race  only these, beside what out/quick and quick.csv hold
"""
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import claims
import results
from lab import chosen, read_csv, read_settings, said, write_csv

from common.checkpoint import ROOT
from common.settings import UserError, guard

SCRIPTS = ("ablate accuracy bands changes counting filters flow halting induction influence kick late leaky meaning "
           "memory race reach scaling smooth speed spelling streams sweep viscosity vocabulary").split()
COLUMNS = "script seconds claim number verdict".split()


@dataclass
class Settings:
    out: str = "assets"                     # folder of quick.csv
    folder: str = "out/quick"               # folder of the quick tables and pictures
    scripts: str = ",".join(SCRIPTS)        # which


def run(script, folder):                                         # -> seconds
    """One script as a reader starts it. In an empty folder no model is found trained already."""
    command = [sys.executable, str(ROOT / f"experiments/{script}.py"), f"out={folder}"]
    began = time.perf_counter()
    with TemporaryDirectory() as empty:
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script}.py failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return time.perf_counter() - began


def main():
    s = read_settings(Settings, {})
    path, folder = Path(s.out, "quick.csv"), Path(s.folder).resolve()
    seconds = {r["script"]: r["seconds"] for r in read_csv(path)}
    for script in chosen(s.scripts, SCRIPTS):
        seconds[script] = run(script, folder)
        print(f"{script:<12}{seconds[script]:5.0f} s", flush=True)
        with patch.object(claims, "says", said):                 # a number without an interval is enough here
            found = results.rows_of(claims.Data(folder))
        rows = []
        for script in filter(seconds.get, SCRIPTS):
            mine = [[row.title, row.short, row.verdict] for row in found if row.script == script] or [["", "", ""]]
            rows += [[script, seconds[script], *cells] for cells in mine]
        write_csv(path, COLUMNS, rows)


if __name__ == "__main__":
    guard(main)
