"""
WikiText-2, raw: articles of Wikipedia with their capitals, spaces and rare words. CC BY-SA, so download only.

    python data/wikitext2/prepare.py                            fetches the zip file; one token for each character
    python data/wikitext2/prepare.py level=bpe vocab=8000       byte pairs learned from the training text
    python data/wikitext2/prepare.py input=FILE                 with the zip file you already have

Its own training and validation parts are used, its test part is left alone.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common.start  # noqa: F401

# isort: split
from common.settings import guard, settings
from data.text import fetch, make_tokenizer, obtain, prepared, read_file, run, sha256, unzip, write_dataset

URL = "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip"
SIZE, SHA256 = 4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"


@dataclass
class Prepare:
    input: str = ""         # the zip file, if you have it already
    any: bool = False       # take `input` even if its sha256 is not the expected one
    level: Literal["char", "bpe", "gpt2"] = "char"      # what a token is
    vocab: int = 8000       # tokens to learn at level=bpe
    out: str = ""           # folder to write; default the folder of this script


def prepare(out, input="", any=False, level="char", vocab=8000):
    """Write train.bin, val.bin and meta.json into the folder `out`, unless they are there."""
    source = {"url": URL, "sha256": sha256(read_file(input)) if any and input else SHA256,
              "licence": "CC BY-SA", "level": level} | ({"vocab": vocab} if level == "bpe" else {})
    if prepared(out, source):
        return
    data = obtain(lambda: fetch(URL, SIZE, SHA256), SIZE, SHA256, "data/wikitext2/prepare.py", input, any)
    train, val = unzip(data, ["wikitext-2-raw/wiki.train.raw", "wikitext-2-raw/wiki.valid.raw"], input or URL)
    write_dataset(out, make_tokenizer(level, train, val, vocab), train, val, source)


if __name__ == "__main__":
    guard(lambda: run(prepare, settings(sys.argv[1:], Prepare), __file__))
