"""The map of the tests, in the docstring of tests/test_models.py, leads somewhere."""
import ast
import os
import re
import subprocess
import sys

from common.checkpoint import ROOT

SCRIPT = """
import shlex, sys, pytest
for words in sys.argv[1:]:
    assert pytest.main([*shlex.split(words), "--collect-only", "-qq"]) == 0, words
"""


def test_every_command_of_the_map_selects_tests():
    page = ast.get_docstring(ast.parse((ROOT / "tests/test_models.py").read_text()))
    commands = re.findall(r"python -m pytest (.*)", page)
    assert len(commands) >= 6
    done = subprocess.run([sys.executable, "-c", SCRIPT, *commands], cwd=ROOT, capture_output=True, text=True,
                          timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = subprocess.run([sys.executable, "-c", SCRIPT, "tests/test_bpe.py -k nonsense"], cwd=ROOT,
                             capture_output=True, text=True, timeout=60, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert unknown.returncode != 0, "and one that selects none is found"
