"""Every prompt, one text file each: loaded by name, filled in by one rule, recorded by its digest.

`{{field}}` in a file is where a value goes. A folder of the user's replaces prompts one by one: its
`NAME.txt` stands in for the shipped file of that name.
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
_UNREAD = re.compile(r"([\W_]+)(\w?)")  # what is no letter or digit, and what is read next


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt's text, still with its fields.

    Attributes:
      name: what it is loaded and recorded by.
      text: the file's text without the line ends at its end.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def fields(self) -> frozenset[str]:
        """The names of the values it takes."""
        return frozenset(_FIELD.findall(self.text))

    def render(self, **values: str) -> str:
        """The text with every `{{field}}` replaced, in one pass: what a value holds stays text.

        Raises:
          UsageError: a field of the prompt has no value, or a value has no field in the prompt.
        """
        for word, names in (
            ("needs a value for", self.fields - values.keys()),
            ("has no place for", values.keys() - self.fields),
        ):
            if names:
                raise UsageError(f"prompt {self.name} {word} {_listed(names)}")
        return _FIELD.sub(lambda match: values[match[1]], self.text)


def names() -> tuple[str, ...]:
    """The names of all prompts."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.txt")))


def load(name: str, folder: str = "") -> Prompt:
    """Reads a prompt.

    Args:
      name: one of `names()`.
      folder: where the user's own prompts are, if anywhere; `config.prompts`.

    Raises:
      UsageError: no prompt has this name, the folder or its file cannot be read, or the file has
        other fields than the shipped one.
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
            f"{path}: this prompt takes {_listed(found.fields)}, and has to take "
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
    """`text` made unable to open or close a tag: "<" before a letter or "/" becomes "‹".

    Prompts fence what models and articles wrote between tags; this keeps it inside. A "<" before a
    number, as in "lactate <2", is left as it is.
    """

    def fenced(run: re.Match[str]) -> str:
        unread, following = run.groups()
        opens = following and not following.isdecimal()
        return (unread.replace("<", "‹") if opens else unread) + following

    return _UNREAD.sub(fenced, text)
