"""
What a user types and what a user is told: settings as key=value, and one line for every error.

Every setting is a field of a dataclass; its comment is the help text.
"""
import difflib
import inspect
import math
import os
import re
import sys
from dataclasses import fields
from typing import get_args, get_type_hints

POSITIVE = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "batch_size", "grad_accum", "eval_iters",
            "n_field", "seeds", "depth", "windows", "samples"}
NOT_NEGATIVE = {"lr", "weight_decay", "minutes"}        # and every whole number


class UserError(Exception):
    """Something the user can mend."""


def did_you_mean(word, words):
    close = difflib.get_close_matches(word, words, 1)
    return f"did you mean {close[0]}? " if close else ""


def convert(key, text, kind):
    """The value of `key=text` as the type of its field; UserError says what it should be."""
    def need(fine, what):
        if not fine:
            raise UserError(f"{key}={text} should be {what}")

    if get_args(kind):
        need(text in get_args(kind), f"one of {', '.join(get_args(kind))}")
    elif kind is bool:
        need(text.lower() in ("true", "false"), "true or false")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    try:
        number = int(text) if kind is int and re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    except ValueError:
        need(False, f"a {'whole ' if kind is int else ''}number")
    need(math.isfinite(number) and abs(number) <= 1e18, "a finite number")
    need(kind is float or number == int(number), "a whole number")
    need(key not in POSITIVE or number >= 1, "1 or more")
    need(kind is float and key not in NOT_NEGATIVE or number >= 0, "0 or more")
    need(key != "dropout" or 0 <= number < 1, "0 or more and below 1")
    return kind(number)


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
    """Instances of the dataclasses, from their defaults, then `defaults`, then the key=value words of argv."""
    given = split(argv)
    kinds = {key: kind for c in classes for key, kind in get_type_hints(c).items()}
    if "help" in given:
        for c in classes:
            comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", inspect.getsource(c), re.M))
            print(f"\n{sys.modules[c.__module__].__file__}")
            for f in fields(c):
                kind = "|".join(get_args(kinds[f.name])) or kinds[f.name].__name__
                value = defaults.get(f.name, f.default)
                print(f"  {f.name + '=' + str(value):<24} {kind:<8} {comments.get(f.name, '')}")
        sys.exit(0)
    for key in given:
        if key not in kinds:
            raise UserError(f"no setting '{key}'; {did_you_mean(key, kinds)}add help to list them")
    values = {key: convert(key, str(value), kinds[key]) for key, value in (defaults | given).items() if key in kinds}
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
    if type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile does not work here ({first_line(e)}); leave out compile=true"
    return ""


def guard(main):
    """Run main(); whatever a user can mend ends in one line and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # a terminal that cannot show a character shows ? instead
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:                             # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:
        if not advice(e):
            raise
        print(f"error: {advice(e)}", file=sys.stderr)
        sys.exit(2)
