"""
Tiny Shakespeare by characters, cut as in nanoGPT: the first 90% to train, the last 10% to validate.

    python data/shakespeare_char/prepare.py                 fetches the text
    python data/shakespeare_char/prepare.py input=FILE      with the file you already have

1,003,854 and 111,540 tokens, 65 characters: losses compare with nanoGPT's.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common.start  # noqa: F401

# isort: split
from common.settings import guard, settings
from data.text import fetch, make_tokenizer, obtain, prepared, read_file, run, sha256, to_text, write_dataset

COMMIT = "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
URL = f"https://raw.githubusercontent.com/karpathy/char-rnn/{COMMIT}/data/tinyshakespeare/input.txt"
SIZE, SHA256 = 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass
class Prepare:
    input: str = ""         # the text, if you have it already
    any: bool = False       # take `input` even if its sha256 is not the expected one
    out: str = ""           # folder to write; default the folder of this script


def prepare(out, input="", any=False):
    """Write train.bin, val.bin and meta.json into the folder `out`, unless they are there."""
    source = {"url": URL, "sha256": sha256(read_file(input)) if any and input else SHA256, "licence": "public domain"}
    if prepared(out, source):
        return
    data = obtain(lambda: fetch(URL, SIZE, SHA256), SIZE, SHA256, "data/shakespeare_char/prepare.py", input, any)
    text = to_text(data, input or URL)
    cut = int(0.9 * len(text))
    write_dataset(out, make_tokenizer("char", text, ""), text[:cut], text[cut:], source)


if __name__ == "__main__":
    guard(lambda: run(prepare, settings(sys.argv[1:], Prepare), __file__))
