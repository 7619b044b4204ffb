"""Shows what is wanted, answered and open of each model and judge, and what was paid for it.

Reads the ledger only, also while another mcr writes it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened
from mcr_jax.errors import UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.paths import local_folder

if TYPE_CHECKING:
    from rich.table import Table

    from mcr_jax.generate.ledger import Ledger
    from mcr_jax.generate.spending import Total


def main(argv: Sequence[str]) -> None:
    """Runs `mcr status --workdir=DIR`."""
    flags = Flags("status", __doc__)
    flags.experiment()
    if not flags.parse(argv):
        return
    path = flags.values["workdir"].value
    if path and not local_folder(path).is_dir():
        raise UsageError(f"{path}: no such workdir")
    show(opened(flags, writes=False))


def show(experiment: Experiment) -> None:
    """Prints the tables. Raises McrError if there is no ledger, or it is damaged."""
    from rich.console import Console

    from mcr_jax.generate.ledger import Ledger

    with Ledger(experiment.workdir.ledger, readonly=True) as ledger:
        tables = [table(ledger, experiment) for table in _TABLES]
    for table in filter(None, tables):
        Console().print(table)


def _calls(ledger: "Ledger", e: Experiment) -> "Table":
    """Returns rows, calls and dollars of each stage, model and judge."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mcr_jax.generate import prices as price_rows
    from mcr_jax.generate import progress, spending

    prices, spent = price_rows.load(e.config.prices), spending.read(ledger)
    rows = progress.read(ledger, e.config.judge.version)
    whole = spending.total(spent, prices)
    sums = [sum(count) for count in zip(*rows.values(), strict=True)] or [0, 0]
    table = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False, show_footer=True)
    table.add_column("stage", "all", no_wrap=True)
    table.add_column("model and judge", overflow="fold")
    heads = ("answered", "open", "calls", "tokens", "USD")
    for head, foot in zip(heads, _cells(*sums, whole), strict=True):
        table.add_column(head, foot, justify="right", no_wrap=True)
    for scope in sorted(rows.keys() | {part.scope for part in spent}):
        total = spending.total((part for part in spent if part.scope == scope), prices)
        who = f"{scope.model}\nby {scope.judge}" if scope.judge else scope.model
        cells = _cells(*rows.get(scope, (0, 0)), total)
        table.add_row(escape(scope.stage), escape(who), *cells)
    table.caption = _limits(e, whole)
    return table


def _cells(wanted: int, answered: int, total: "Total") -> list[str]:
    from mcr_jax.generate.spending import amount

    cost = amount(total.dollars) if total.requests else "–"
    numbers = (wanted - answered, total.requests, total.tokens)
    return [f"{answered:,} of {wanted:,}", *(f"{number:,}" for number in numbers), cost]


def _limits(e: Experiment, whole: "Total") -> str:
    """Returns a line about config.budget; "" without limits."""
    from mcr_jax.generate.spending import amount

    budget = e.config.budget
    parts = []
    if budget.dollars:
        parts.append(f"{amount(whole.dollars)} of {budget.dollars:g} USD")
    if budget.requests:
        parts.append(f"{whole.requests:,} of {budget.requests:,} calls")
    if budget.tokens:
        parts.append(f"{whole.tokens:,} of {budget.tokens:,} tokens")
    return f"config.budget: {', '.join(parts)}" if parts else ""


def _batches(ledger: "Ledger", e: Experiment) -> "Table | str":
    """Returns the batches at a service whose replies are not fetched; "" without any."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mcr_jax.generate.open_batches import open_batches

    found = open_batches(ledger)
    if not found:
        return ""
    table = Table(box=box.HORIZONTALS, pad_edge=False, show_edge=False)
    table.add_column("open batch", overflow="fold")
    for head in ("service", "stage", "model", "rows", "state", "since"):
        table.add_column(head, justify="right" if head == "rows" else "left", overflow="fold")
    for batch in found:
        cells = (batch.name or "no name yet", batch.service, batch.scope.stage, batch.scope.model)
        state = (f"{batch.rows:,}", batch.state, batch.submitted_at or "–")
        table.add_row(*(escape(str(cell)) for cell in (*cells, *state)))
    return table


_TABLES = (_calls, _batches)  # printed in turn
