"""Open batches of a ledger: for people, and so that no run asks for their rows again."""

from collections.abc import Sequence
from typing import NamedTuple

from mcr_jax.generate._rows import BatchState
from mcr_jax.generate.ledger import Ledger, RowKey, Scope
from mcr_jax.generate.questions import Question


class OpenBatch(NamedTuple):
    """One open batch, for people.

    Attributes:
      service: identity of the generator.
      scope: stage, model and judge of its rows.
      rows: number of its rows.
      state: a `BatchState`.
      name: name of the job at the service; "" while it is unknown.
      submitted_at: ISO 8601 in UTC; "" before the submission.
    """

    service: str
    scope: Scope
    rows: int
    state: str
    name: str
    submitted_at: str


def open_batches(ledger: Ledger) -> list[OpenBatch]:
    """Returns the batches of a ledger whose replies have not been fetched, the oldest first."""
    return [
        OpenBatch(b.service, b.scope, len(b.rows), str(b.state), b.name, b.submitted_at)
        for b in ledger.batches()
    ]


def without_open(
    questions: Sequence[Question], ledger: Ledger
) -> tuple[list[Question], list[Question]]:
    """Splits questions into those that may be asked, and those that are in an open batch.

    A question that a batch asks for other rows counts as in the batch: its answer can be copied.
    """
    rows: set[tuple[RowKey, str]] = set()
    names: set[str] = set()
    for batch in ledger.batches():
        if batch.state is not BatchState.PLANNED:
            rows.update(batch.rows)
            names.update(item.question for item in batch.items if item.question)
    free, taken = [], []
    for question in questions:
        left = [row for row in question.rows if (row.key, row.digest) not in rows]
        if left and question.name not in names:
            question.rows = left
            free.append(question)
        else:
            taken.append(question)
    return free, taken
