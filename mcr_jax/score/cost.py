"""Usage of services in results.json: calls, tokens and dollars of each model and of each judge.

They follow from the ledger and the price rows. The rows used are part of results.json, so `verify`
needs nothing else. A usage counts every attempt that the workdir paid for under a name: failed
ones, and those of a prompt or model that was replaced since.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcr_jax import artifacts
from mcr_jax.errors import McrError
from mcr_jax.generate import prices as price_rows
from mcr_jax.generate import spending
from mcr_jax.generate.prices import Price, Prices
from mcr_jax.generate.spending import Spent
from mcr_jax.judge_specs import STAGES
from mcr_jax.workdir import Workdir


def with_usage(
    results: Mapping[str, Any], spent: Sequence[Spent], prices: Prices
) -> dict[str, Any]:
    """Returns results.json with "usage" of each model and judge, and "prices", the rows used.

    Args:
      results: as `results.tabulate` returns them.
      spent: spending of the workdir.
      prices: the rows to choose from.
    """

    def of_judge(name: str) -> list[Spent]:
        return [p for p in spent if p.scope.judge == name and p.scope.stage in STAGES]

    def of_model(name: str) -> list[Spent]:
        return [p for p in spent if (p.scope.stage, p.scope.model) == ("sample", name)]

    rows: dict[Price, None] = {}

    def used(entry: Mapping[str, Any], parts: Sequence[Spent]) -> dict[str, Any]:
        total = spending.total(parts, prices)
        rows.update(dict.fromkeys(total.prices))
        return {**entry, "usage": total.plain()}

    first, others = results["judge"], results.get("judges", {})
    found = {
        **results,
        "judge": used(first, of_judge(first["name"])),
        "models": {n: used(entry, of_model(n)) for n, entry in results["models"].items()},
    }
    if others:
        found["judges"] = {n: used(entry, of_judge(n)) for n, entry in others.items()}
    return {**found, "prices": _sorted(row.plain() for row in rows)}


def as_stored(
    stored: Mapping[str, Any], fresh: dict[str, Any], spent: Sequence[Spent], workdir: Workdir
) -> dict[str, Any]:
    """Returns recomputed results with usage by the price rows of the stored ones.

    Args:
      stored: content of results.json; without "prices" it is older than usages, and `fresh` is
        returned as it is.
      fresh: as `results.tabulate` returns them.
      spent: spending of the workdir.
      workdir: its results.json is named in errors.

    Raises:
      McrError: a stored price row is of another form.
    """
    if "prices" not in stored:
        return fresh
    rows = artifacts.check(workdir.results, stored["prices"], [artifacts.PRICE], "prices")
    try:
        prices = price_rows.of_rows(rows)
    except ValueError as error:
        raise McrError(f"{workdir.results}: field prices: {error}") from error
    return with_usage(fresh, spent, prices)


def _sorted(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (row["service"], row["model"], row["valid_from"]))
