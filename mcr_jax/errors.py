"""The ways a command can end early, each told to the user in one line.

`McrError` is work that failed (exit status 1), `UsageError` a call that was wrong (exit status 2),
`Stopped` work that was asked to stop and goes on when called again (exit status 75). Each carries a
sentence that names the file, row or field and what to do. Anything else that escapes is a bug and
shows its traceback.
"""


def one_line(text: str, longest: int) -> str:
    """`text` without line breaks and runs of white space, cut to `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


class McrError(Exception):
    """The work failed; the message is the line a person reads. Exit status 1."""


class UsageError(McrError):
    """The call, a flag or a config was wrong. Exit status 2."""


class Stopped(McrError):
    """Asked to stop; all that was done is saved. Exit status 75: sysexits.h's "try again"."""
