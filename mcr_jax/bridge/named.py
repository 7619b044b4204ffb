"""Judges of a ledger, and the one that a name or a SPEC of the command line means."""

import collections

from ml_collections import ConfigDict

from mcr_jax import judge_specs
from mcr_jax.errors import UsageError
from mcr_jax.generate.ledger import Ledger


def judges(ledger: Ledger) -> dict[str, dict[str, list[str]]]:
    """Returns, by judge, the models that it judged, by stage of judging."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for scope in ledger.scopes():
        if scope.stage in judge_specs.STAGES:
            found[scope.judge][scope.stage].append(scope.model)
    return {judge: dict(found[judge]) for judge in sorted(found)}


def resolved(text: str, ledger: Ledger, config: ConfigDict) -> str:
    """Returns the name in the ledger of a judge.

    Args:
      text: that name, or an entry of config.judge.models: SPEC, NAME=SPEC or a preset.
      ledger: may be read-only.
      config: reads `judge.models` and `endpoints`. A SPEC means the judge of these models there.

    Returns:
      The name; `text` itself if it means no judge of the ledger.
    """
    there = judges(ledger)
    if text in there:
        return text
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.judge.models, other.judge.version = (text,), ""
    try:
        meant = judge_specs.headline(other)
    except UsageError:
        return text
    same = (judge.name for judge in judge_specs.judges(config) if judge.models == meant.models)
    return next((name for name in (meant.name, *same) if name in there), text)
