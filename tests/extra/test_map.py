"""The map of the tests, in the docstring of tests/test_models.py, leads somewhere."""
import ast
import re
import shlex

import pytest

from common.checkpoint import ROOT


class Collected:
    """A plugin that notes which tests there are."""
    def pytest_collection_finish(self, session):
        self.ids = [item.nodeid for item in session.items]


def holds(node, name):
    """Whether an expression of -k, parsed as Python, holds for the name of a test."""
    if isinstance(node, ast.BoolOp):
        parts = [holds(value, name) for value in node.values]
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.UnaryOp):
        return not holds(node.operand, name)
    return node.id in name


def selected(command, ids):
    """The tests that the words after `python -m pytest` select, of all: by file, and by the words of -k."""
    words = shlex.split(command)
    files = tuple(word for word in words if word.startswith("tests/"))
    wanted = ast.parse(words[words.index("-k") + 1] if "-k" in words else "test", mode="eval").body
    return [i for i in ids if i.startswith(files or "tests/") and holds(wanted, i)]


def test_every_command_of_the_map_selects_tests():
    page = ast.get_docstring(ast.parse((ROOT / "tests/test_models.py").read_text()))
    commands = re.findall(r"python -m pytest (.*)", page)
    assert len(commands) >= 6
    found = Collected()
    pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(ROOT / "tests")], [found])
    ids = found.ids
    assert len(ids) > 1000 and selected("-q", ids) == ids
    for command in commands:
        assert selected(command, ids), command
    assert not selected("tests/test_bpe.py -k nonsense", ids), "one that selects none is found"
