"""The map of the tests, in the docstring of tests/test_models.py, leads somewhere."""
import ast
import re
import subprocess
import sys

from helpers import ONE_THREAD

from common.checkpoint import ROOT

SCRIPT = """
import shlex, sys, pytest
for words in sys.argv[1:]:
    assert pytest.main([*shlex.split(words), "--collect-only", "-qq"]) == 0, words
"""


def collect(commands):
    return subprocess.run([sys.executable, "-c", SCRIPT, *commands], cwd=ROOT, env=ONE_THREAD,
                          capture_output=True, text=True, timeout=180)


def test_every_command_of_the_map_selects_tests():
    page = ast.get_docstring(ast.parse((ROOT / "tests/test_models.py").read_text()))
    commands = re.findall(r"python -m pytest (.*)", page)
    assert len(commands) >= 6
    done = collect(commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert collect(["tests/test_bpe.py -k nonsense"]).returncode != 0, "one that selects none is found"
