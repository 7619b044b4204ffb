"""Prices of services: rows of mcr_jax/prices.toml and of the file of config.prices.

A price is known only where a row states it: for any other model it is None, never a guess.
"""

import dataclasses
import datetime
import functools
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from mcr_jax import artifacts
from mcr_jax.errors import UsageError
from mcr_jax.generate.api import Usage
from mcr_jax.model_specs import TIERS
from mcr_jax.paths import local_folder

BATCH = "batch"  # tier of a call that a batch answers
_PER = 1_000_000  # tokens that a price is for
_FIELDS = [name.removesuffix("?") for name in artifacts.PRICE if name != "own?"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
    """One row.

    Attributes:
      service: kind of service.
      model: name, or a prefix followed by "*".
      tier: service tier that the price is for; "" is the standard one.
      input: USD per million prompt tokens.
      output: USD per million output tokens, thoughts included.
      cached: USD per million prompt tokens from a cache; None is `input`.
      batch: price of a batch as a share of these; None is unknown.
      valid_from: first day (UTC).
      valid_to: last day; None is open.
      source: who states it.
      own: True for a row of config.prices, which goes before all shipped rows.
    """

    service: str
    model: str
    input: float
    output: float
    tier: str = ""
    cached: float | None = None
    batch: float | None = None
    valid_from: datetime.date
    valid_to: datetime.date | None = None
    source: str
    own: bool = False

    def of(self, service: str, day: datetime.date) -> bool:
        """Returns whether the row is for `service` ("KIND:MODEL") on `day`."""
        kind, _, model = service.partition(":")
        named = self.model == model
        if self.model.endswith("*"):
            named = model.startswith(self.model[:-1])
        open_or_later = self.valid_to is None or day <= self.valid_to
        return kind == self.service and named and self.valid_from <= day and open_or_later

    def cost(self, usage: Usage, tier: str = "") -> float | None:
        """Returns the USD of `usage`; None if this row has no price for `tier`."""
        share = {self.tier: 1.0, BATCH: self.batch}.get(tier)
        if share is None:
            return None
        cached = min(usage.cached, usage.prompt)
        at_cache = self.input if self.cached is None else self.cached
        fresh = (usage.prompt - cached) * self.input
        return share * (fresh + cached * at_cache + usage.output * self.output) / _PER

    def plain(self) -> dict[str, Any]:
        """Returns the row as JSON for results.json."""
        stated = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        for name in ("own", "tier"):
            if not stated[name]:
                del stated[name]
        return _plain_days(stated)


class Prices:
    """Rows to look up; the most specific one that is valid on a day counts.

    A row of config.prices goes before a shipped one, an exact name before a prefix, a longer prefix
    before a shorter one, a later `valid_from` before an earlier one.
    """

    def __init__(self, rows: Iterable[Price]):
        self._rows = sorted(rows, key=_rank, reverse=True)

    def find(self, service: str, day: datetime.date, tier: str = "") -> Price | None:
        """Returns the row of `service` ("KIND:MODEL") on `day`; None if its price is unknown.

        The price of a batch is a share of the standard one, in its row.
        """
        tier = "" if tier == BATCH else tier
        rows = (row for row in self._rows if row.tier == tier and row.of(service, day))
        return next(rows, None)


def _rank(row: Price) -> tuple[bool, bool, int, datetime.date]:
    return row.own, not row.model.endswith("*"), len(row.model), row.valid_from


def load(path: str = "") -> Prices:
    """Returns the shipped rows and those of the file of config.prices.

    Raises:
      UsageError: the file cannot be read, or a row is of another form.
    """
    return Prices((*_shipped(), *(_own(path) if path else ())))


def of_rows(rows: Iterable[Mapping[str, Any]]) -> Prices:
    """Returns the rows that results.json holds. Raises ValueError if one is of another form."""
    return Prices(_row(row) for row in rows)


@functools.cache
def _shipped() -> tuple[Price, ...]:
    text = resources.files("mcr_jax").joinpath("prices.toml").read_text(encoding="utf-8")
    return tuple(_row(row) for row in tomllib.loads(text)["price"])


def _own(path: str) -> list[Price]:
    place = local_folder(path)
    try:
        found = tomllib.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"config.prices: cannot read {place}: {error}") from error
    rows = found.get("price")
    if not isinstance(rows, list) or found.keys() != {"price"}:
        raise UsageError(f"config.prices: {place} must hold rows [[price]] and nothing else")
    made = []
    for number, row in enumerate(rows, start=1):
        try:
            made.append(dataclasses.replace(_row(row), own=True))
        except ValueError as error:
            raise UsageError(f"config.prices: {place}, row {number}: {error}") from error
    return made


def _plain_days(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, datetime.date) else v for k, v in row.items()}


def _row(row: Any) -> Price:
    """Reads a row of TOML or JSON. Raises ValueError if it is of another form."""
    plain = _plain_days(row) if isinstance(row, dict) else row
    if fault := artifacts.wrong(plain, artifacts.PRICE):
        raise ValueError(fault)
    if unknown := [name for name in plain if name not in (*_FIELDS, "own")]:
        raise ValueError(f"there is no field {unknown[0]}: fields are {', '.join(_FIELDS)}")
    days = {}
    for name in ("valid_from", "valid_to"):
        if name in plain:
            try:
                days[name] = datetime.date.fromisoformat(plain[name])
            except ValueError:
                raise ValueError(f"field {name} is not a day such as 2026-12-31") from None
    made = Price(**{**plain, **days})
    if made.valid_to is not None and made.valid_to < made.valid_from:
        raise ValueError("field valid_to is before valid_from")
    if made.tier in (BATCH, *TIERS[:2]):
        raise ValueError(f"field tier is {made.tier!r}: leave it out; batch is a field of its own")
    if "*" in made.model[:-1] or not made.model:
        raise ValueError("field model is a name, or a prefix that ends with *")
    return made
