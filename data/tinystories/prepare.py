"""
TinyStories V2: short stories in the words of a small child. CDLA-Sharing, so download only.

    python data/tinystories/prepare.py                  fetches the text; 4096 byte pairs learned from its training part
    python data/tinystories/prepare.py level=gpt2       GPT-2's tokens, which tiktoken fetches
    python data/tinystories/prepare.py input=FILE       with the file you already have

The file is the validation part of the original, 22 MB, which is plenty here: nine tenths of its stories to train, the
rest to validate. The mark <|endoftext|> between stories stays in the text, so a model learns to write it.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common.start  # noqa: F401

# isort: split
from common.settings import guard, settings
from data.text import fetch, make_tokenizer, obtain, prepared, read_file, run, sha256, to_text, write_dataset

URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt"
SIZE, SHA256 = 22_502_601, "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d"
MARK = "<|endoftext|>\n"


@dataclass
class Prepare:
    input: str = ""         # the text, if you have it already
    any: bool = False       # take `input` even if its sha256 is not the expected one
    level: Literal["bpe", "gpt2", "char"] = "bpe"       # what a token is
    vocab: int = 4096       # tokens to learn at level=bpe
    out: str = ""           # folder to write; default the folder of this script


def prepare(out, input="", any=False, level="bpe", vocab=4096):
    """Write train.bin, val.bin and meta.json into the folder `out`, unless they are there."""
    source = {"url": URL, "sha256": sha256(read_file(input)) if any and input else SHA256,
              "licence": "CDLA-Sharing-1.0", "level": level} | ({"vocab": vocab} if level == "bpe" else {})
    if prepared(out, source):
        return
    data = obtain(lambda: fetch(URL, SIZE, SHA256), SIZE, SHA256, "data/tinystories/prepare.py", input, any)
    text = to_text(data, input or URL)
    cut = int(0.9 * len(text))
    cut = text.find(MARK, cut) + len(MARK) if MARK in text[cut:] else cut       # between two stories
    write_dataset(out, make_tokenizer(level, text[:cut], text[cut:], vocab), text[:cut], text[cut:], source)


if __name__ == "__main__":
    guard(lambda: run(prepare, settings(sys.argv[1:], Prepare), __file__))
