"""
The text around what a model writes: the prompt that it begins with, tokens as text while they come, the place where the
text ends, the lines that a user types.
"""
import codecs
import sys
from pathlib import Path

from common.files import read_file
from common.settings import UserError
from data.text import to_text


def read_stop(stop, tokenizer):
    r"""The text to end before, with \n and \t, as they are typed in a shell, for a newline and a tab."""
    stop = stop.replace("\\n", "\n").replace("\\t", "\t")
    tokenizer.encode(stop)                              # an error if it can never come
    return stop


def blank(tokenizer):
    """What to begin with if nothing is said: a newline; or a space, or any token, if the training text had none."""
    for text in ("\n", " "):
        try:
            tokenizer.encode(text)
            return text
        except UserError:
            pass
    return tokenizer.decode([0])


def read_prompt(prompt, tokenizer):
    """The prompt as text: what was typed, what stands in the file of file:path, or a blank one."""
    if not prompt.startswith("file:"):
        return prompt or blank(tokenizer)
    path = Path(prompt.removeprefix("file:"))
    return to_text(read_file(path), str(path)).replace("\r\n", "\n")


def decoded(tokenizer, ids, written):
    """Tokens as pieces of text, as they come; half a letter waits for its other half. The list `written` keeps them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        written.append(i)
        yield decoder.decode(tokenizer.token_bytes(i))
    yield decoder.decode(b"", final=True)


def until(pieces, stop):
    """The pieces of a text up to the first `stop`, which may begin in one of them and end in another.

    What may be the beginning of a `stop` is held back until the next piece tells."""
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            yield held.partition(stop)[0]
            return
        sizes = range(min(len(stop), len(held)) + 1)
        keep = max(n for n in sizes if held.endswith(stop[:n]))
        yield held[:len(held) - keep]
        held = held[len(held) - keep:]
    yield held


def heard(tokenizer):
    """The lines that a user types, as lists of tokens, until Ctrl-D (on Windows Ctrl-Z and Enter)."""
    while True:
        try:
            line = input("\n> ")
            yield tokenizer.encode(line + blank(tokenizer)).tolist()
        except EOFError:
            return
        except UserError as e:                          # a character that it does not know: type again
            print(f"error: {e}", file=sys.stderr)
