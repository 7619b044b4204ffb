"""Free question to each service before its first paid call: is the key taken, the model there.

Services have the method `check`. A server without a list of models, or one that does not answer,
stops nothing here: calls wait for it up to config.judge.patience.
"""

import asyncio
import difflib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from mcr_jax.errors import McrError, one_line, printable
from mcr_jax.generate.batch_wire import Batched

TIMEOUT_S = 10.0
_CLOSE_NAMES = 3
_MOST_NAME_CHARS = 80


@runtime_checkable
class Checked(Protocol):
    """Service that answers the free question."""

    async def check(self) -> str:
        """Returns a line if the service does not answer or does not list the model, else "".

        Raises McrError if it refuses the key or does not have the model.
        """
        ...


def ask(models: Iterable[Any]) -> list[str]:
    """Asks the services among `models`, all at once, each object once.

    Returns:
      A line for each service that does not answer or does not list its model, each line once.

    Raises:
      McrError: a service refuses its key or does not have its model.
    """
    plain = (model.remote if isinstance(model, Batched) else model for model in models)
    services = {id(model): model for model in plain if isinstance(model, Checked)}
    if not services:
        return []

    async def all_of_them() -> list[str | BaseException]:
        checks = (service.check() for service in services.values())
        return await asyncio.gather(*checks, return_exceptions=True)

    with ThreadPoolExecutor(1) as thread:  # in a notebook an event loop runs in this one
        found = thread.submit(asyncio.run, all_of_them()).result()
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return list(dict.fromkeys(line for line in found if line))


def unlisted(model: str, listed: Sequence[Any], *, official: bool, where: str, said: str) -> str:
    """Returns a line if a server that knows no `model` by a 404 does not list it either, else "".

    It may serve the model all the same: gateways take variants of a name, and some servers load any
    folder.

    Args:
      model: asked for.
      listed: names of the models of the service; empty if it does not tell.
      official: whether the 404 is of the service itself, not of a server that speaks its wire.
      where: the service, for people.
      said: its reply.

    Raises:
      McrError: the service itself does not have the model.
    """
    names = [name for name in listed if isinstance(name, str)]
    if model in names or not (official or names):
        return ""
    close = difflib.get_close_matches(model, names, _CLOSE_NAMES, 0.4) or names[:_CLOSE_NAMES]
    has = ", ".join(printable(one_line(name, _MOST_NAME_CHARS)) for name in close)
    if official:
        raise McrError(
            f"{where} has no model {model} ({said})" + (f"; it has {has}" if has else "")
        )
    return f"{where} does not list the model {model}, but {has}"


def away(where: str, line: str) -> str:
    """Returns the line about a service that does not answer."""
    return f"{where} does not answer ({line}); calls wait for it up to config.judge.patience"
