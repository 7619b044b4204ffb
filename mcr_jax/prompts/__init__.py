"""Loads and fills in the prompts, one text file each.

A value replaces each `{{field}}` of a file. A `NAME.txt` in the user's folder (`config.prompts`)
replaces the shipped file of that name.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable

from mcr_jax.errors import UsageError
from mcr_jax.paths import expanded

_SHIPPED = pathlib.Path(__file__).parent
_FIELD = re.compile(r"\{\{([a-z_]+)\}\}")
_UNREAD = re.compile(r"([\W_]+)(\w?)")  # a run without letters or digits, and the next character


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Text of a prompt, with its fields.

    Attributes:
      name: name of the file, without `.txt`.
      text: content of the file without the final line breaks.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields."""
        return frozenset(_FIELD.findall(self.text))

    def render(self, **values: str) -> str:
        """Replaces every `{{field}}` in one pass: a `{{field}}` in a value is not replaced.

        Raises:
          UsageError: a field has no value, or a value has no field.
        """
        for word, names in (
            ("needs a value for", self.fields - values.keys()),
            ("has no place for", values.keys() - self.fields),
        ):
            if names:
                raise UsageError(f"prompt {self.name} {word} {_listed(names)}")
        return _FIELD.sub(lambda match: values[match[1]], self.text)


def names() -> tuple[str, ...]:
    """Returns the names of all prompts."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.txt")))


def load(name: str, folder: str = "") -> Prompt:
    """Reads a prompt.

    Args:
      name: one of `names()`.
      folder: folder of the user's prompts (`config.prompts`), or "".

    Raises:
      UsageError: the name is unknown, the folder or a file cannot be read, or the fields differ
        from those of the shipped file.
    """
    if name not in names():
        raise UsageError(f"no prompt is called {name!r}; there are {', '.join(names())}")
    own = expanded(folder)
    if folder and not own.is_dir():
        raise UsageError(f"{folder}: not a folder of prompts; set config.prompts to one, or to ''")
    shipped, path = _read(name, _SHIPPED / f"{name}.txt"), own / f"{name}.txt"
    if not folder or not path.exists():
        return shipped
    found = _read(name, path)
    if found.fields != shipped.fields:
        raise UsageError(
            f"{path}: this prompt has the fields {_listed(found.fields)}, but needs "
            f"{_listed(shipped.fields)}"
        )
    return found


def _listed(fields: Iterable[str]) -> str:
    return ", ".join(f"{{{{{name}}}}}" for name in sorted(fields)) or "nothing"


def _read(name: str, path: pathlib.Path) -> Prompt:
    try:
        return Prompt(name, path.read_text(encoding="utf-8").rstrip("\r\n"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read this prompt: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this prompt is not UTF-8 text") from error


def inert(text: str) -> str:
    """Prevents prompt injection by tags: replaces "<" before a letter or "/" by "‹".

    Prompts enclose texts of models and articles in tags, which such a text must not close. A "<"
    before a number, as in "lactate <2", stays.
    """

    def replaced(run: re.Match[str]) -> str:
        unread, following = run.groups()
        opens = following and not following.isdecimal()
        return (unread.replace("<", "‹") if opens else unread) + following

    return _UNREAD.sub(replaced, text)
