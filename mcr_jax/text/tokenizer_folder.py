"""Reads and writes the files of a tokenizer in a Hugging Face folder."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mcr_jax import disk
from mcr_jax.errors import McrError

JSON = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
PROCESSOR_TEMPLATE = "chat_template.json"
GENERATION = "generation_config.json"
FILES = (
    *(JSON, SENTENCEPIECE, CONFIG, SPECIAL_TOKENS, TEMPLATE, PROCESSOR_TEMPLATE, GENERATION),
    *("added_tokens.json", "vocab.json", "merges.txt"),
)


class TokenizerFolder:
    """Settings of the tokenizer in a folder, by the rules of transformers.

    Attributes:
      path: the folder.
      files: content of each of the tokenizer's files, by name.
    """

    def __init__(self, path: str | Path):
        """Reads the folder's files. Raises McrError if one cannot be read."""
        self.path, self.files = Path(path), {}
        for name in FILES:
            try:
                self.files[name] = (self.path / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise McrError(
                    f"{self.path / name}: cannot read the tokenizer: {error.strerror}"
                ) from error

    @functools.cached_property
    def special_tokens(self) -> dict[str, str]:
        """Returns the named special tokens, such as `bos_token`, by name. Raises McrError."""
        named = {**self._config, **_instance(self._config.get("extra_special_tokens"), dict)}
        texts = {key: _content(value) for key, value in named.items() if key.endswith("_token")}
        return {key: text for key, text in texts.items() if text}

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Returns the texts of the named and of all other special tokens. Raises McrError."""
        lists = ("additional_special_tokens", "extra_special_tokens")  # of transformers 4 and 5
        others = (_content(x) for key in lists for x in _instance(self._config.get(key), list))
        return tuple(dict.fromkeys((*self.special_tokens.values(), *filter(None, others))))

    @functools.cached_property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """Returns the added tokens of tokenizer_config.json, in the order of their ids."""
        try:
            declared = (self._config.get("added_tokens_decoder") or {}).items()
            tokens = tuple(AddedToken(**t) for _, t in sorted(declared, key=lambda x: int(x[0])))
        except (AttributeError, TypeError, ValueError) as error:
            raise McrError(f"{self.path / CONFIG}: broken added_tokens_decoder: {error}") from error
        for token in tokens:
            token.special = token.special or token.content in self.special_texts
        return tokens

    def chat_template(self) -> tuple[str, str] | None:
        """Returns the template and the path of its file, or None. Raises McrError."""
        if TEMPLATE in self.files:
            return self._text(TEMPLATE), str(self.path / TEMPLATE)
        for name in (CONFIG, PROCESSOR_TEMPLATE):
            found = self._json(name).get("chat_template")
            if isinstance(found, list):
                named = [entry for entry in found if isinstance(entry, Mapping)]
                default = [t.get("template") for t in named if t.get("name") == "default"]
                found = default[-1] if default else found
            if isinstance(found, str):
                return found, str(self.path / name)
            if found is not None:
                raise McrError(f"{self.path / name}: no chat_template in it is named default")
        return None

    def eos_ids(self) -> tuple[int, ...]:
        """Returns the eos ids of generation_config.json. Raises McrError."""
        found = self._json(GENERATION).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise McrError(f"{self.path / GENERATION}: eos_token_id={found!r} is no token id")
        return tuple(ids)

    @functools.cached_property
    def _config(self) -> Mapping[str, Any]:
        config = self._json(CONFIG)
        if "added_tokens_decoder" in config:
            return config
        return {**config, **self._json(SPECIAL_TOKENS)}

    def _json(self, name: str) -> Mapping[str, Any]:
        if name not in self.files:
            return {}
        try:
            value = json.loads(self._text(name))
        except ValueError as error:
            raise McrError(f"{self.path / name}: not JSON, or cut short: {error}") from error
        if not isinstance(value, dict):
            raise McrError(f"{self.path / name}: not a JSON object")
        return value

    def _text(self, name: str) -> str:
        try:
            return self.files[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise McrError(f"{self.path / name}: not UTF-8") from error


def write(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Writes each file atomically. Raises McrError if one cannot be written."""
    for name, content in files.items():
        with disk.atomic_write(Path(folder) / name) as file:
            file.write(content)


def _instance(value: Any, kind: type) -> Any:
    """Returns `value` if it is of that kind, else an empty one."""
    return value if isinstance(value, kind) else kind()


def _content(value: Any) -> str | None:
    """Returns the text of a token given as a string or as an object."""
    found = value.get("content") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else None
