"""The map of the tests, in the docstring of tests/test_models.py, leads somewhere."""
import ast
import re
import shlex
import subprocess
import sys

from helpers import ONE_THREAD

from common.checkpoint import ROOT


def selected(command, ids):
    """The tests that the words after `python -m pytest` select, of all: by file, and by the words of -k."""
    words = shlex.split(command)
    files = tuple(word for word in words if word.startswith("tests/"))
    wanted = words[words.index("-k") + 1] if "-k" in words else "test"
    test = re.sub(r"\b(?!(?:and|or|not)\b)\w+", lambda word: f"{word[0]!r} in i", wanted)
    return [i for i in ids if i.startswith(files or "tests/") and eval(test, {"i": i})]


def test_every_command_of_the_map_selects_tests():
    page = ast.get_docstring(ast.parse((ROOT / "tests/test_models.py").read_text()))
    commands = re.findall(r"python -m pytest (.*)", page)
    assert len(commands) >= 6
    done = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"], cwd=ROOT,
                          env=ONE_THREAD, capture_output=True, text=True, timeout=180)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(ids) > 1000 and selected("-q", ids) == ids
    for command in commands:
        assert selected(command, ids), command
    assert not selected("tests/test_bpe.py -k nonsense", ids), "one that selects none is found"
