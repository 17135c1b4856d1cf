"""The pictures of a run."""
import inspect
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.files import note, write_atomic


def column(rows, i):                                             # -> iterations, values
    """The entries of one column of log.csv; evaluations leave the others empty."""
    pairs = [(row[0], row[i]) for row in rows if row[i] != ""]
    return np.array(pairs).reshape(-1, 2).T


def draw_loss(rows, counter, title, path):
    from matplotlib.figure import Figure
    ax = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    x, loss = column(rows, 2)
    width = max(1, len(rows) // 100)
    ax.plot(x, loss, color="#0072B2", alpha=0.2, lw=0.8)
    if len(x) >= width:
        mean = np.convolve(loss, np.ones(width) / width, "valid")
        ax.plot(x[width - 1:], mean, color="#0072B2", label=f"train, mean of {width}")
    ax.plot(*column(rows, 3), "o-", color="#D55E00", label="validation")
    ax.axhline(counter, color="#999999", ls="--", label=f"counting letters gets you here: {counter:.3f}")
    ax.set(xlabel="iteration", ylabel="loss (nats per token)", title=title)
    ax.title.set_parse_math(False)      # the name of a file may hold $
    ax.legend()
    ax.grid(alpha=0.3)
    ax.figure.savefig(path, dpi=110)


def letters(tokenizer, ids):
    """The text of some tokens with a letter for each, "" if they are longer: for the axis of a picture."""
    text = ""
    for i in ids:
        letter = tokenizer.token_bytes(int(i)).decode(errors="replace")
        if len(letter) != 1:
            return ""
        if letter == "\n":
            letter = "\u21b5"
        elif not letter.isprintable() or letter > "\u04ff":       # or not in the font of the pictures
            letter = "\u00b7"
        text += letter
    return text


def draw_portrait(model, data, tokenizer, path):
    """The portrait in the model's file, at work on the beginning of the validation text."""
    portrait = sys.modules[type(model).__module__].portrait
    ids = data.val[:512].astype(np.int64)
    if "text" in inspect.signature(portrait).parameters:
        portrait(model, ids, path, text=letters(tokenizer, ids))
    else:
        portrait(model, ids, path)


@contextmanager
def plain_style():
    """matplotlib as it comes, whatever a matplotlibrc and MPLBACKEND say of TeX, fonts and windows."""
    backend = os.environ.pop("MPLBACKEND", None)        # a wrong one would forbid the import
    try:
        import matplotlib.style
        with matplotlib.style.context("default"):
            yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def draw(out, drawings):
    """Each drawing(path) writes its picture(s) into a temporary folder, from where they are copied
    into place -> {name: path} of those that could be drawn; each of the others costs a note."""
    drawn = {}
    for name, drawing in drawings.items():
        with note(f"{name}; resume=true draws again"), plain_style():
            with tempfile.TemporaryDirectory() as folder:
                drawing(str(Path(folder, name)))
                for path in sorted(Path(folder).iterdir()):
                    write_atomic(Path(out, path.name), path.read_bytes())
            drawn[name] = Path(out, name)
    return drawn
