"""Statements per case, the denominator of reasoning recall, and cases to check by hand.

A list that was not recognised becomes one long statement; such cases are named.
"""

import collections
from collections.abc import Iterable
from typing import Any

from mcr_jax.cases import SPLITS, Case

LONG = 300  # characters from which a single statement may be a list
_MAX_NAMED = 10  # cases


def statement_counts(cases: Iterable[Case]) -> dict[str, Any]:
    """Returns the dataset's metadata about the statements of its cases, as JSON data.

    `statement_counts`: for each split the number of cases by the number of their statements.
    `single_long_statements`: `total` cases have only one, of `LONG` characters or more; `first` has
    the pmcid (without one, the start of the fingerprint) of the first ten, in the order of `cases`.
    """
    counts = {split: collections.Counter() for split in SPLITS}
    single = []
    for case in cases:
        counts[case.split][len(case.statements)] += 1
        if len(case.statements) == 1 and len(case.statements[0]) >= LONG:
            single.append(case.pmcid or case.fingerprint[:12])
    return {
        "statement_counts": {
            split: {str(size): number for size, number in sorted(sizes.items())}
            for split, sizes in counts.items()
            if sizes
        },
        "single_long_statements": {"total": len(single), "first": single[:_MAX_NAMED]},
    }


def describe(metadata: dict[str, Any]) -> list[str]:
    """Describes the result of `statement_counts` in lines of text."""
    lines = [
        f"{split}: cases by number of statements: "
        + ", ".join(f"{size}: {number}" for size, number in sizes.items())
        for split, sizes in metadata["statement_counts"].items()
    ]
    single = metadata["single_long_statements"]
    if total := single["total"]:
        more = ", ..." if total > len(single["first"]) else ""
        lines.append(
            f"{total} {'case has' if total == 1 else 'cases have'} a single statement of {LONG} "
            f"characters or more, perhaps a list that was not recognised: "
            f"{', '.join(single['first'])}{more}"
        )
    return lines
