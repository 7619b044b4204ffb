"""Usage of services in results.json: calls, tokens and dollars of each model and of the judge.

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
from mcr_jax.generate.prices import Prices
from mcr_jax.generate.spending import Spent
from mcr_jax.judge_specs import STAGES
from mcr_jax.workdir import Workdir


def with_usage(
    results: Mapping[str, Any], spent: Sequence[Spent], prices: Prices
) -> dict[str, Any]:
    """Returns results.json with "usage" for each model and the judge, and "prices", the rows used.

    Args:
      results: as `results.tabulate` returns them.
      spent: spending of the workdir.
      prices: the rows to choose from.
    """
    name = results["judge"]["name"]
    of_judge = [part for part in spent if part.scope.judge == name and part.scope.stage in STAGES]
    judge = spending.total(of_judge, prices)
    models = {
        model: spending.total(
            [part for part in spent if (part.scope.stage, part.scope.model) == ("sample", model)],
            prices,
        )
        for model in results["models"]
    }
    used = {row: None for total in (judge, *models.values()) for row in total.prices}
    return {
        **results,
        "judge": {**results["judge"], "usage": judge.plain()},
        "models": {
            model: {**entry, "usage": models[model].plain()}
            for model, entry in results["models"].items()
        },
        "prices": _sorted(row.plain() for row in used),
    }


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
