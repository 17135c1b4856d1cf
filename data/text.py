"""
Text in, tokens out: tokenizers, and data sets as folders on disk.

    data/<name>/train.bin, val.bin      tokens, little-endian uint16
    data/<name>/meta.json               tokenizer, source, sizes, sha256; written last, so its presence means complete

Nothing is read without a check and nothing is written in place: a file is either whole or absent. Whatever a user can
mend is a UserError: one line that says what is wrong and what to do.
"""
import http.client
import importlib.util
import io
import json
import math
import os
import re
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import read_file, sha256, writable, write_atomic
from common.settings import UserError, did_you_mean


@dataclass
class Dataset:
    train: np.ndarray       # tokens, a memory map
    val: np.ndarray
    meta: dict              # what meta.json says, with the whole tokenizer spec in meta["tokenizer"]

    @property
    def bits(self):
        """Bits per byte for each nat per token, on the validation text."""
        return self.meta["val"]["tokens"] / self.meta["val"]["bytes"] / math.log(2)


# Tokenizers.

class Tokenizer:
    """Text <-> tokens, from a plain dict: {"kind": "char", "chars": "..."}, {"kind": "byte"},
    {"kind": "bpe", "ranks": [base64 of each token]}, {"kind": "gpt2"}."""

    def __init__(self, spec):
        kind = spec.get("kind") if isinstance(spec, dict) else None
        self.spec, self.bpe = spec, None
        if kind == "char":
            chars = spec.get("chars")
            if not isinstance(chars, str) or not 0 < len(chars) == len(set(chars)) <= 65536 or not is_unicode(chars):
                raise UserError("a tokenizer of kind char needs 1 to 65536 distinct characters; prepare the data again")
            self.tokens = [c.encode() for c in chars]
            self.codes = np.frombuffer(chars.encode("utf-32-le"), "<u4")
            self.order = np.argsort(self.codes)
        elif kind == "byte":
            self.tokens = [bytes([i]) for i in range(256)]
        elif kind in ("bpe", "gpt2"):
            from data import bpe
            self.bpe, self.tokens = bpe.load(spec) if kind == "bpe" else bpe.load_gpt2()
        else:
            raise UserError("the tokenizer is none of char, byte, bpe, gpt2; prepare the data again")
        self.vocab_size = len(self.tokens)

    def encode(self, text):
        """Text -> uint16 array."""
        if not is_unicode(text):
            raise UserError("the text is not valid Unicode; give it as UTF-8")
        if self.bpe:
            try:
                return self.bpe.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
            except ValueError as e:                     # such as a million spaces in a row
                raise UserError(f"tiktoken cannot encode the text ({e}); shorten its runs of spaces") from None
        if self.spec["kind"] == "byte":
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        at = np.searchsorted(self.codes, codes, sorter=self.order).clip(max=self.vocab_size - 1)
        ids = self.order[at]
        if (self.codes[ids] != codes).any():
            unseen = " ".join(repr(chr(c)) for c in np.unique(codes[self.codes[ids] != codes])[:10])
            raise UserError(f"the vocabulary has no {unseen}; leave out what the training text does not contain")
        return ids.astype(np.uint16)

    def decode(self, ids):
        """Tokens -> text; a broken UTF-8 sequence becomes U+FFFD."""
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def token_bytes(self, id):
        """The UTF-8 bytes of one token; they may be a part of a character."""
        return self.tokens[id]


def make_tokenizer(level, train_text, val_text, vocab=0):
    """A tokenizer for two texts: their characters, or GPT-2's, or byte pairs learned from the training text alone."""
    if level == "char":
        return Tokenizer({"kind": "char", "chars": "".join(sorted({*train_text, *val_text}))})
    if level == "gpt2":
        return Tokenizer({"kind": "gpt2"})
    if not 256 < vocab <= 65536:
        raise UserError(f"vocab={vocab} should be between 257 and 65536")
    from data import bpe
    return Tokenizer(bpe.spec(bpe.train(train_text, vocab)))


def is_unicode(text):
    """False for the lone surrogates that json and the command line can smuggle into a str."""
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


# Files.

def to_text(data, name):
    """bytes -> str, if they are text."""
    if not data.strip():
        raise UserError(f"{name} is empty; give a file with text in it")
    if b"\0" in data:
        raise UserError(f"{name} is binary; give plain text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{name} is not UTF-8 (byte 0x{data[e.start]:02x} at {e.start}); convert it to UTF-8") from None


def unzip(data, names, name):
    """The texts of some members of a zip file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            return [to_text(z.read(member), member) for member in names]
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, EOFError) as e:
        raise UserError(f"{name} is not the expected zip file ({e}); get the right one") from None


def check(data, size, sha, name):
    """The data, if it has this size and sha256."""
    if (len(data), sha256(data)) != (size, sha):
        raise UserError(f"{name} is not the expected file: {len(data):,} bytes, sha256 {sha256(data)}, "
                        f"instead of {size:,} bytes, sha256 {sha}")
    return data


def fetch(url, size, sha, timeout=30):
    """The bytes at a URL, if they have this size and sha256."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            data = response.read(size + 1)
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise UserError(f"cannot fetch {url}: {getattr(e, 'reason', None) or e}") from None
    return check(data, size, sha, url)


def obtain(get, size, sha, script, input="", any=False, builtin="plays or dataset=pydoc"):
    """A raw file: `input` if given (the expected one, unless any=true), else what get() fetches."""
    if input:
        data = read_file(input)
        try:
            return data if any else check(data, size, sha, input)
        except UserError as e:
            raise UserError(f"{e}; get the right one, or take this with any=true") from None
    try:
        return check(get(), size, sha, "what came")
    except UserError as e:
        raise UserError(f"{e}; get it by hand (sha256 {sha}) and run python {script} input=FILE, "
                        f"or train on the built-in dataset={builtin}") from None


# Data sets.

def write_dataset(folder, tokenizer, train_text, val_text, source):
    """Tokenize both texts into `folder`; meta.json comes last."""
    folder, spec = Path(folder), tokenizer.spec
    meta = {"tokenizer": spec, "vocab_size": tokenizer.vocab_size, "source": source}
    files = {}
    if spec["kind"] == "bpe":
        from data import bpe
        ranks = bpe.to_file(spec)
        name = f"bpe{tokenizer.vocab_size}.tiktoken"
        files[name], meta["tokenizer"] = ranks, {"kind": "bpe", "ranks": name, "sha256": sha256(ranks)}
    for split, text in (("train", train_text), ("val", val_text)):
        ids = tokenizer.encode(text)
        if len(ids) < 2:
            raise UserError(f"the text is too short: its {split} part has {len(ids)} tokens; give a longer one")
        data = files[f"{split}.bin"] = ids.astype("<u2").tobytes()
        meta[split] = {"tokens": len(ids), "bytes": len(text.encode()), "sha256": sha256(data)}
    for name, data in files.items():
        write_atomic(folder / name, data)
    write_atomic(folder / "meta.json", json.dumps(meta, indent=1).encode())


def load_dataset(folder):
    """The data set in a folder, if it is exactly what meta.json says."""
    folder = Path(folder)
    script = folder / "prepare.py"
    mend = f"run python {script} to prepare it again" if script.exists() else "prepare it again, or give a text file"

    def need(fine, file, what):
        if not fine:
            raise UserError(f"{folder / file} {what}; {mend}")

    def positive(value):
        return type(value) is int and value > 0

    need(os.path.isfile(folder / "meta.json"), "meta.json", "is missing")
    try:
        meta = json.loads(read_file(folder / "meta.json"))
    except (ValueError, RecursionError):
        need(False, "meta.json", "is not JSON")
    need(isinstance(meta, dict) and isinstance(meta.get("tokenizer"), dict), "meta.json", "names no tokenizer")
    if meta["tokenizer"].get("kind") == "bpe":
        name = meta["tokenizer"].get("ranks")
        need(isinstance(name, str) and name == os.path.basename(name) != "", "meta.json", "names no file of ranks")
        need(os.path.isfile(folder / name), name, "is missing")
        ranks = read_file(folder / name)
        need(sha256(ranks) == meta["tokenizer"].get("sha256"), name, "has been changed")
    try:
        if meta["tokenizer"].get("kind") == "bpe":
            from data import bpe
            meta["tokenizer"] = bpe.from_file(ranks)
        tokenizer = Tokenizer(meta["tokenizer"])
    except UserError as e:
        raise UserError(f"{folder / 'meta.json'}: {e}") from None
    need(meta.get("vocab_size") == tokenizer.vocab_size, "meta.json", "has the wrong vocab_size")
    lengths, data = np.array([len(t) for t in tokenizer.tokens]), {}
    for split in ("train", "val"):
        about, file = meta.get(split), f"{split}.bin"
        fine = isinstance(about, dict) and positive(about.get("tokens")) and positive(about.get("bytes"))
        need(fine, "meta.json", f"does not describe {file}")
        need(os.path.isfile(folder / file), file, "is missing")
        size = os.path.getsize(folder / file)
        need(size == 2 * about["tokens"], file, f"has {size:,} bytes instead of {2 * about['tokens']:,}")
        try:
            data[split] = np.memmap(folder / file, "<u2", "r")
        except OSError as e:
            raise UserError(f"cannot read {folder / file}: {e.strerror or e}; check its permissions") from None
        need(sha256(data[split]) == about.get("sha256"), file, "has been changed")
        pieces = np.array_split(data[split], 1 + len(data[split]) // 10**7)
        count = sum(np.bincount(piece, minlength=65536) for piece in pieces)
        need(not count[len(lengths):].any(), file, f"has tokens beyond its vocabulary of {len(lengths)}")
        need(count[:len(lengths)] @ lengths == about["bytes"], "meta.json", f"has the wrong number of bytes for {file}")
    return Dataset(data["train"], data["val"], meta)


def prepared(folder, source):
    """True if `folder` holds a whole data set made from this source."""
    try:
        return load_dataset(folder).meta.get("source") == source
    except UserError:
        return False


def ensure_dataset(name, root, cache, spare=None, spec=None):
    """The folder of a data set: root/<name>, prepared if need be; for a text file, one in `cache` by its contents.

    What cannot be written there goes into cache/<name>, and what not there into spare/data. spec: of the tokenizer that
    a text file shall get, if not its own."""
    root, names = Path(root), sorted(p.parent.name for p in Path(root).glob("*/prepare.py"))
    places = [Path(cache), *([Path(spare, "data")] if spare else [])]
    if name in names:
        folders = [root / name, *(place / name for place in places)]
        for folder in folders:
            if os.path.exists(folder / "meta.json"):
                return folder
        script = root / name / "prepare.py"
        if not re.search(r"^def prepare\(", script.read_text("utf-8", "replace"), re.M):
            raise UserError(f"{script} has no function prepare(out) (is it nanoGPT's?); give its text file instead, "
                            f"dataset={root / name / 'input.txt'}")
        folder = writable(*folders)
        print(f"preparing the data set {name} (once{f', in {folder}' if folder != folders[0] else ''})", flush=True)
        spec = importlib.util.spec_from_file_location(f"_prepare_{name}", script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.prepare(folder)
        return folder
    if os.path.isfile(os.path.join(name, "meta.json")):
        return Path(name)
    if name and os.path.isfile(os.path.join(name, "meta.pkl")):
        raise UserError(f"{name} is a data set of nanoGPT, whose meta.pkl is not opened here; give its text file "
                        f"instead, dataset={os.path.join(name, 'input.txt')}")
    if not name or not os.path.exists(name):
        raise UserError(f"no data set or text file '{name}'; {did_you_mean(name, names)}"
                        f"give the path of a text file or one of {', '.join(names)}")
    data = read_file(name)
    text, source = to_text(data, name), {"file": Path(name).name, "sha256": sha256(data)}
    tokenizer = make_tokenizer("char", text, "") if len(set(text)) <= 256 else Tokenizer({"kind": "byte"})
    key = source["sha256"][:16]
    if spec and spec != tokenizer.spec:
        tokenizer = Tokenizer(spec)
        source["tokenizer"] = sha256(json.dumps(spec, sort_keys=True, default=str).encode())
        key = f"{key}-{source['tokenizer'][:16]}"
    cut = int(0.9 * len(text))
    for place in places:
        if prepared(place / key, source):
            return place / key
    folder = writable(*places) / key
    try:
        write_dataset(folder, tokenizer, text[:cut], text[cut:], source)
    except UserError as e:
        raise UserError(f"{name}: {e}" if "tokenizer" in source else str(e)) from None
    return folder


def run(prepare, settings, script):
    """What every prepare.py does as a script: prepare its own folder or `out`, and say what is there."""
    values = dict(vars(settings))
    out = Path(values.pop("out") or Path(script).parent)
    prepare(out, **values)
    meta = load_dataset(out).meta
    print(f"{out}: {meta['train']['tokens']:,} tokens to train on, {meta['val']['tokens']:,} to validate, "
          f"vocabulary {meta['vocab_size']}")
