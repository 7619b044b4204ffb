"""Errors that end a command early, printed as one line.

`McrError` is failed work (exit status 1), `UsageError` an invalid call (2), `Stopped` a stopped run
that can resume (75). The message names the file, row or field and what to do. Any other exception
is a bug and shows its traceback.
"""


def one_line(text: str, longest: int) -> str:
    """Collapses white space in `text` and truncates it to `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def printable(text: str) -> str:
    """Replaces each character that could act on a terminal, such as an escape, by "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)


def for_terminal(text: str) -> str:
    """Returns `text` with each of its lines `printable`."""
    return "\n".join(map(printable, text.split("\n")))


class McrError(Exception):
    """Failed work; the message is the line for the user. Exit status 1."""


class UsageError(McrError):
    """Invalid call, flag or config. Exit status 2."""


class Stopped(McrError):
    """Stopped run; all finished work is saved. Exit status 75, EX_TEMPFAIL of sysexits.h."""
