"""Rows that each stage wants and those that are answered, counted in the ledger without texts."""

from mcr_jax.generate.api import Outcome
from mcr_jax.generate.driver import ATTEMPTS
from mcr_jax.generate.ledger import Ledger, Scope

_COMPLETIONS = ("sample", "stitch")  # stages whose replies are not parsed as verdicts
_VERSIONED = ("diagnosis", "reasons")  # stages that config.judge.version is for


def read(ledger: Ledger, version: str = "") -> dict[Scope, tuple[int, int]]:
    """Counts the wanted and the answered rows of each scope, as `questions.is_open` defines them.

    Args:
      ledger: may be written by another process meanwhile.
      version: config.judge.version.

    Raises:
      McrError: the ledger is damaged.
    """
    completions, versioned = (_texts(stages) for stages in (_COMPLETIONS, _VERSIONED))
    unsettled = _texts((Outcome.INFRA_ERROR, Outcome.MALFORMED))
    counted = f"? = '' OR b.model_version = ? OR w.stage NOT IN ({versioned})"
    query = f"""
      SELECT w.stage, w.model, w.judge, count(*), sum(EXISTS (
        SELECT 1 FROM attempts b
        WHERE b.stage = w.stage AND b.case_fingerprint = w.case_fingerprint
          AND b.model = w.model AND b.sample = w.sample AND b.judge = w.judge
          AND b.repeat = w.repeat AND b.digest = w.digest AND CASE
            WHEN w.stage IN ({completions}) THEN b.outcome NOT IN ({unsettled})
              OR b.outcome = '{Outcome.MALFORMED}' AND b.attempt >= {ATTEMPTS}
            ELSE b.outcome = '{Outcome.OK}' AND ({counted})
              OR b.outcome = '{Outcome.PROMPT_TOO_LONG}' END))
      FROM wanted w GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""
    found = ledger.select(query, (version, version))
    return {Scope(*scope): (wanted, answered) for *scope, wanted, answered in found}


def _texts(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)
