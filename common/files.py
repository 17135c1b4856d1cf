"""
Files that are whole or absent: written under a temporary name and moved into place. No torch here, so that preparing
data needs none.
"""
import csv
import hashlib
import io
import os
import re
import secrets
import stat
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from common.settings import UserError, first_line, visible

try:
    import fcntl
except ImportError:                                     # Windows
    fcntl = None


def sha256(data):
    return hashlib.sha256(data).hexdigest()


HALF = re.compile(r"\.tmp-[0-9a-f]{16}-.+", re.S)       # the name of a file that is half-written


def write_atomic(path, data):
    """Write bytes so that `path` is the old file or the whole new one, whatever fails or runs beside us."""
    path = Path(path)
    temp = path.parent / f".tmp-{secrets.token_hex(8)}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temp, "xb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temp, path)
        finally:
            temp.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}; make room or write to another folder") from None


def write_csv(path, columns, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode())


def lock(out):
    """An open file in the folder `out` that keeps other processes from training there until it is closed."""
    path = Path(out, ".lock")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        if path.is_symlink():                           # whose file would it be?
            raise OSError(0, ".lock is a link")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = os.fdopen(os.open(path, flags, 0o666), "wb", buffering=0)                # which empties nothing
    except OSError as e:
        raise UserError(f"cannot write into the folder {out}: {e.strerror}; give another with out=...") from None
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is training in {out}; wait for it, or give another out=...") from None
    except OSError:                                     # a file system without locks
        pass
    for path in Path(out).iterdir():                    # what a kill has left half-written
        with suppress(OSError):
            if HALF.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
    return file


def writable(*folders):
    """The first of the folders in which a file can be made, else the last. None of them is made."""
    for folder in folders:
        there = Path(folder).absolute()
        while not os.path.lexists(there):
            there = there.parent
        with suppress(OSError), tempfile.TemporaryFile(dir=there):
            return Path(folder)
    return Path(folders[-1])


def read_file(path):
    """The bytes of a regular file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            kind = "a folder" if os.path.isdir(path) else "no regular file"
            raise UserError(f"{path} is {kind}; give a file")
        return Path(path).read_bytes()
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}; give a file you can read") from None


@contextmanager
def note(what):
    """Whatever goes wrong in here costs a line on stderr, and nothing else."""
    try:
        yield
    except Exception as e:
        with suppress(OSError):
            print(visible(f"note: no {what} ({type(e).__name__}: {first_line(e)})"), file=sys.stderr)
