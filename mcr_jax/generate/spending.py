"""Calls, tokens and dollars that a workdir has spent, counted from its ledger.

A row counts if its call was made for it (`Attempt.shared` is None) and a service was asked: failed
and replaced attempts too, completions of a model of this machine not. A row from before schema 4
does not name its service; a judge or a writer of that time was named after it.
"""

import datetime
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mcr_jax.errors import McrError
from mcr_jax.generate import services
from mcr_jax.generate.api import Usage
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.generate.prices import Price, Prices


class Spent(NamedTuple):
    """Attempts of one scope at one service in one tier on one day (UTC)."""

    scope: Scope
    service: str
    tier: str
    day: datetime.date
    requests: int
    usage: Usage


class Total(NamedTuple):
    """Sum of `Spent`.

    Attributes:
      requests: number of attempts.
      usage: their tokens.
      dollars: their price in USD; None if any of it is unknown.
      prices: rows used, each once.
      unpriced: services without a price on a day of use, with the tier, each once.
    """

    requests: int
    usage: Usage
    dollars: float | None
    prices: tuple[Price, ...]
    unpriced: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens, in and out."""
        return self.usage.prompt + self.usage.output

    def plain(self) -> dict[str, Any]:
        """Returns the entry "usage" of results.json."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.usage.prompt,
            "output_tokens": self.usage.output,
            "cached_tokens": self.usage.cached,
            "dollars": self.dollars,
        }


def read(ledger: Ledger) -> list[Spent]:
    """Reads all spending of a workdir. Raises McrError if the ledger is damaged."""
    query = f"""
      SELECT stage, model, judge, {_service(ledger)}, {ledger.columns["tier"]}, date(created),
             count(*), sum(prompt_tokens), sum(output_tokens), sum(cached_tokens)
      FROM attempts a WHERE {ledger.columns["shared"]} IS NULL AND {_service(ledger)} <> ''
      GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6"""
    found = []
    for *scope, service, tier, day, requests, prompt, output, cached in ledger.select(query):
        if day is None:
            raise McrError(
                f"{ledger.path}: damaged: column created of an attempt of {' '.join(scope)} holds "
                "no time"
            )
        usage = Usage(prompt=prompt, output=output, cached=cached)
        used = datetime.date.fromisoformat(day)
        found.append(Spent(Scope(*scope), service, tier, used, requests, usage))
    return found


def total(spent: Iterable[Spent], prices: Prices) -> Total:
    """Sums spending; the day of use decides the price."""
    requests = prompt = output = cached = 0
    dollars: list[float | None] = []
    rows: dict[Price, None] = {}
    unpriced: dict[str, None] = {}
    for part in spent:
        requests += part.requests
        prompt += part.usage.prompt
        output += part.usage.output
        cached += part.usage.cached
        price = prices.find(part.service, part.day, part.tier)
        cost = price and price.cost(part.usage, part.tier)
        dollars.append(cost)
        if price is None or cost is None:
            unpriced[named(part.service, part.tier)] = None
        else:
            rows[price] = None
    return Total(
        requests=requests,
        usage=Usage(prompt=prompt, output=output, cached=cached),
        dollars=None if unpriced else math.fsum(dollars),
        prices=tuple(rows),
        unpriced=tuple(unpriced),
    )


def means(ledger: Ledger, stage: str, service: str) -> tuple[int, float, float]:
    """Returns count, mean prompt tokens and mean output tokens of a service's calls in a stage."""
    query = f"""
      SELECT count(*), avg(prompt_tokens), avg(output_tokens) FROM attempts a
      WHERE stage = ? AND {ledger.columns["shared"]} IS NULL AND {_service(ledger)} = ?
        AND prompt_tokens > 0"""
    ((count, prompt, output),) = ledger.select(query, (stage, service))
    return count, prompt or 0.0, output or 0.0


def sentence(results: Mapping[str, Any]) -> str:
    """Returns one sentence about the cost in results.json; "" if it is from before `usage`."""
    judges = results["judge"], *results.get("judges", {}).values()
    parts = [*results["models"].values(), *judges]
    used = [part["usage"] for part in parts if "usage" in part]
    if not used:
        return ""
    summed = {name: sum(part[name] for part in used) for name in used[0] if name != "dollars"}
    if not summed["requests"]:
        return "Cost: no call to a service."
    prices = [part["dollars"] for part in used]
    price = None if None in prices else math.fsum(prices)
    return (
        f"Cost: {counted(summed['requests'], 'call')}, {summed['prompt_tokens']:,} tokens in, "
        f"{summed['output_tokens']:,} out, {dollars(price)}."
    )


def named(service: str, tier: str) -> str:
    """Returns the name of a service for people, with its tier unless that is the standard one."""
    return f"{service} in tier {tier}" if tier else service


def dollars(value: float | None) -> str:
    """Returns such as "0.012 USD", or "price unknown"."""
    return "price unknown" if value is None else f"{amount(value)} USD"


def amount(value: float | None) -> str:
    """Formats USD to the cent, smaller amounts to two significant digits; None is "unknown"."""
    if value is None:
        return "unknown"
    digits = 2 if value == 0 else max(2, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def counted(number: int, noun: str) -> str:
    """Returns such as "1 call" or "2,000 calls"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _service(ledger: Ledger) -> str:
    """Returns SQL for the service of an attempt; '' for a model of this machine."""
    old = " ".join(
        f"WHEN judge LIKE '{kind}:%' THEN judge "
        f"WHEN judge = '' AND model LIKE '{kind}:%' THEN model"
        for kind in services.KINDS
    )
    stated = ledger.columns["service"]
    return f"CASE WHEN {stated} <> '' THEN {stated} {old} ELSE '' END"
