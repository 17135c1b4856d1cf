"""
The reference manual of Python, out of the running Python itself (pydoc_data.topics): needs no network at all.

    python data/pydoc/prepare.py        what train.py does by itself when this data set is first used

The text differs between Python versions, so losses compare only under one version. Many topics repeat parts of others;
a paragraph is kept where it comes first, so that the validation text, the last tenth, holds nothing of the rest.
"""
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common.start  # noqa: F401

# isort: split
from common.settings import UserError, guard, settings
from data.text import make_tokenizer, prepared, run, sha256, write_dataset


@dataclass
class Prepare:
    out: str = ""           # folder to write; default the folder of this script


def manual():
    """All topics in the order of their names, each paragraph once."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError("this Python comes without pydoc_data; use dataset=plays or a text file") from None
    seen, kept = set(), []
    for name in sorted(topics):
        paragraphs = dict.fromkeys(p.rstrip() for p in topics[name].strip().split("\n\n"))
        fresh = [p + "\n\n" for p in paragraphs if p not in seen]
        seen.update(paragraphs)
        kept += fresh if len(fresh) > 1 else []                     # not a heading alone
    return kept


def prepare(out):
    """Write train.bin, val.bin and meta.json into the folder `out`, unless they are there."""
    paragraphs = manual()
    text = "".join(paragraphs)
    source = {"package": f"pydoc_data.topics of Python {platform.python_version()}", "sha256": sha256(text.encode()),
              "licence": "PSF"}
    if prepared(out, source):
        return
    cut = 0
    while cut < 0.9 * len(text):
        cut += len(paragraphs.pop(0))
    write_dataset(out, make_tokenizer("char", text, ""), text[:cut], text[cut:], source)


if __name__ == "__main__":
    guard(lambda: run(prepare, settings(sys.argv[1:], Prepare), __file__))
