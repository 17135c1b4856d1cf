"""
What a user types and what a user is told: settings as key=value, and one line for every error.

Every setting is a field of a dataclass; its comment is the help text.
"""
import ast
import difflib
import errno
import inspect
import os
import re
import sys
from contextlib import suppress
from dataclasses import MISSING, fields
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

POSITIVE = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "batch_size", "grad_accum", "eval_iters",
            "n_field", "seeds", "depth", "windows", "samples"}
NOT_NEGATIVE = {"lr", "weight_decay", "minutes"}        # and every whole number


class UserError(Exception):
    """Something the user can mend."""


def did_you_mean(word, words):
    close = difflib.get_close_matches(word, words, 1)
    return f"did you mean {close[0]}? " if close else ""


def is_a(value, kind):
    """Whether a value is of the type of a field; True for types that are not known here."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(kind))
    if origin in (Union, UnionType):
        return any(is_a(value, part) for part in get_args(kind))
    if origin in (int, float):
        return type(value) is int or type(value) is origin
    return not isinstance(origin, type) or isinstance(value, origin)


def kind_name(kind):
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def checked(key, value, kind, said=None):
    """The value, if it is one that the field `key` may have; UserError says what it should be."""
    def need(fine, what):
        if not fine:
            raise UserError(f"{key}={repr(value)[:60] if said is None else said} should be {what}")

    if get_origin(kind) is Literal:
        need(is_a(value, kind), f"one of {', '.join(map(str, get_args(kind)))}")
    elif kind is bool:
        need(is_a(value, kind), "true or false")
    elif kind in (int, float):
        need(is_a(value, kind), "a whole number" if kind is int else "a number")
    else:
        need(is_a(value, kind), f"a value of the kind {kind_name(kind)}")
    if type(value) not in (int, float):
        return value
    need(abs(value) <= 1e18, "a finite number")         # nor is NaN
    need(key not in POSITIVE or value >= 1, "1 or more")
    need(kind is not int and key not in NOT_NEGATIVE or value >= 0, "0 or more")
    need(key != "dropout" or 0 <= value < 1, "0 or more and below 1")
    return kind(value) if kind in (int, float) else value


def convert(key, text, kind):
    """The value of `key=text` as the type of its field; UserError says what it should be."""
    value = text
    if kind in (int, float):
        with suppress(ValueError):
            value = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)                          # 1e4
    elif kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif get_origin(kind) is Literal:
        value = {str(option): option for option in get_args(kind)}.get(text, text)
    elif kind is not str:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)              # None, 3 or (1, 2), for a reader's own Config
    return checked(key, value, kind, text)


def check_values(cls, values):
    """Values from a file for the fields of a dataclass: each of its kind, and none that it does not know."""
    kinds = get_type_hints(cls)
    for key, value in values.items():
        if key not in kinds:
            raise UserError(f"there is no setting {key!r}; it is of another version of {cls.__name__}")
        checked(key, value, kinds[key])


def split(argv):
    """['a=1', '--b=2'] -> {'a': '1', 'b': '2'}; 'help' -> {'help': ''}."""
    given = {}
    for arg in argv:
        key, equals, text = arg.removeprefix("--").partition("=")
        if not equals and key not in ("help", "-h"):
            raise UserError(f"'{arg}' is not a setting; settings look like key=value, and help lists them")
        if key in given:
            raise UserError(f"{key} is given twice; keep one")
        given["help" if key == "-h" else key] = text
    return given


def settings(argv, *classes, defaults={}):
    """Instances of the dataclasses, from their defaults, then `defaults` (values), then the key=value words of argv."""
    given = split(argv)
    kinds = {key: kind for c in classes for key, kind in get_type_hints(c).items()}
    if "help" in given:
        for c in classes:
            comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", inspect.getsource(c), re.M))
            print(f"\n{sys.modules[c.__module__].__file__}")
            for f in fields(c):
                default = f.default if f.default_factory is MISSING else f.default_factory()
                value = "" if default is MISSING else defaults.get(f.name, default)
                print(f"  {f.name + '=' + str(value):<24} {kind_name(kinds[f.name]):<8} {comments.get(f.name, '')}")
        sys.exit(0)
    for key in given:
        if key not in kinds:
            raise UserError(f"no setting '{key}'; {did_you_mean(key, kinds)}add help to list them")
    values = {key: checked(key, value, kinds[key]) for key, value in defaults.items() if key in kinds}
    values |= {key: convert(key, text, kinds[key]) for key, text in given.items()}
    try:
        made = [c(**{f.name: values[f.name] for f in fields(c) if f.name in values}) for c in classes]
    except ValueError as e:
        raise UserError(str(e)) from None
    return made[0] if len(made) == 1 else made


def first_line(e):
    return str(e).strip().partition("\n")[0]


def advice(e):
    """One line about an exception that a user can mend; "" for a bug, which keeps its traceback."""
    name, text = type(e).__name__, str(e)               # torch's exceptions by name: to prepare data needs no torch
    if isinstance(e, UserError):
        return text.replace("\n", " ")
    if name in ("MemoryError", "OutOfMemoryError") or "allocate memory" in text:
        return "out of memory; lower batch_size, block_size, n_embd or whatever you raised"
    if name == "DistBackendError" or "RANK" in os.environ and re.search("gloo|peer|NCCL", text):
        return f"lost a process of the run ({first_line(e)}); go on with resume=true"
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EIO):
        return f"the output cannot be written ({e.strerror}); make room, or send it elsewhere"
    if type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile does not work here ({first_line(e)}); leave out compile=true"
    return ""


def visible(text):
    r"""The text with control characters, which could steer a terminal, as \x1b and the like; lines and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda c: ascii(c[0])[1:-1], text)


def show(text):
    """Print a piece of text as it comes; only a file or a pipe gets control characters."""
    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def open_streams():
    """stdout and stderr that can be written to: closed ones lead nowhere, files and pipes get UTF-8, and a terminal
    that cannot show a character shows ? instead."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            told = stream.isatty() or os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(encoding=None if told else "utf-8", errors="replace")


def hush(stream):
    """What a stream still holds goes nowhere: its end did not take it, and would not when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def guard(main):
    """Run main(); whatever a user can mend ends in one line and exit status 2."""
    try:
        open_streams()
        main()
        sys.stdout.flush()
    except BrokenPipeError:                             # `| head` has read enough
        hush(sys.stdout)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:
        if not advice(e):
            raise
        if isinstance(e, OSError):
            hush(sys.stdout)
        try:
            print(f"error: {visible(advice(e))}", file=sys.stderr, flush=True)
        except OSError:
            hush(sys.stderr)
        sys.exit(2)
