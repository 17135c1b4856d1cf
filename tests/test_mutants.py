"""The list of deliberate faults in mutants.py does not rot."""
import re

import mutants
import pytest


@pytest.mark.parametrize("file", mutants.FAULTS)
def test_every_fault_can_be_made(file):
    text = (mutants.ROOT / file).read_text()
    for old, new, tests in mutants.FAULTS[file]:
        assert text.count(old) == 1, f"{file} has {text.count(old)} x {old!r}"
        assert new != old
        compile(text.replace(old, new), file, "exec")
        for path in re.findall(r"tests/\S+\.py", tests):
            assert (mutants.ROOT / path).exists(), path
