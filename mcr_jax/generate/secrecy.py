"""Removal of a service's key from its replies: a server may repeat what it was sent."""

import base64
import dataclasses
import functools
import urllib.parse

from mcr_jax.errors import one_line, printable
from mcr_jax.generate.api import Reply

HIDDEN = "[key]"
_LONGEST_ERROR = 300
_SECRET_CHARS = 16  # a shorter key, such as EMPTY, may be a word of a completion


def without_key(text: str, key: str) -> str:
    """Replaces a key by "[key]": as it is, in a URL, and inside base64 text."""
    for form in _forms(key):
        text = text.replace(form, HIDDEN)
    return text


def line(text: str, key: str) -> str:
    """Returns one short printable line without the key, which a cut would leave in part."""
    return printable(one_line(without_key(text, key), _LONGEST_ERROR))


def cleaned(reply: Reply, key: str) -> Reply:
    """Returns a reply without the key; its text is searched for long keys only."""
    texts = {"error": line(reply.error, key)}
    texts |= {
        name: without_key(getattr(reply, name), key) for name in ("model_version", "model_status")
    }
    if len(key) >= _SECRET_CHARS:
        texts["text"] = without_key(reply.text, key)
    return dataclasses.replace(reply, **texts)


@functools.cache
def _forms(key: str) -> tuple[str, ...]:
    if len(key) < _SECRET_CHARS:
        return (key,) if key else ()
    forms = [key, urllib.parse.quote(key), urllib.parse.quote(key, safe="")]
    for before in range(3):  # bytes in front of the key, modulo 3
        coded = base64.b64encode(bytes(before) + key.encode()).decode()
        # The characters that depend on the key only: 6 bits each.
        forms.append(coded[-(-8 * before // 6) : 8 * (before + len(key)) // 6])
    return tuple(dict.fromkeys(forms))
