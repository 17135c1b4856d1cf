"""The map of the tests, in the docstring of tests/test_models.py, leads somewhere."""
import ast
import re
import subprocess
import sys

from helpers import ONE_THREAD

from common.checkpoint import ROOT

SCRIPT = """
import shlex, sys, pytest
print(*[int(pytest.main([*shlex.split(words), "--collect-only", "-qq"])) for words in sys.argv[1:]])
"""


def test_every_command_of_the_map_selects_tests():
    page = ast.get_docstring(ast.parse((ROOT / "tests/test_models.py").read_text()))
    commands = re.findall(r"python -m pytest (.*)", page)
    assert len(commands) >= 6
    commands.append("tests/test_bpe.py -k nonsense")             # one that selects none is found
    done = subprocess.run([sys.executable, "-c", SCRIPT, *commands], cwd=ROOT, env=ONE_THREAD,
                          capture_output=True, text=True, timeout=180)
    codes = done.stdout.split("\n")[-2].split()
    assert codes == ["0"] * (len(commands) - 1) + ["5"], done.stdout + done.stderr
