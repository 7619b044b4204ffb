"""Cases whose list may not have been recognised are counted and named. All cases are invented."""

from mcr_jax.cases import Case
from mcr_jax.data.statement_counts import LONG, describe, statement_counts


def case(number: int, reasoning: str, split: str = "train") -> Case:
    return Case(
        pmcid=f"PMC{number}" if number else "",
        case_prompt=f"Patient {number} of a fictional clinic had blue nails.",
        diagnostic_reasoning=reasoning,
        final_diagnosis="Quillfever",
        split=split,
    )


def test_cases_are_counted_by_split_and_number_of_statements_in_order():
    cases = [case(n, "\n".join(f"{i}. rash" for i in range(1, n + 1))) for n in (10, 2, 3, 2)]
    found = statement_counts([*cases, case(5, "Blue nails.", "test")])
    assert list(found["statement_counts"]["train"].items()) == [("2", 2), ("3", 1), ("10", 1)]
    assert found["statement_counts"]["test"] == {"1": 1}
    assert describe(found) == [
        "train: cases by number of statements: 2: 2, 3: 1, 10: 1",
        "test: cases by number of statements: 1: 1",
    ]


def test_the_first_cases_with_a_single_long_statement_are_named_and_all_are_counted():
    long = "It was not Mossgout; " * (LONG // 20)
    lists = [case(n, f"1. {long}\n2. {long}") for n in (50, 51)]
    singles = [case(n, long) for n in range(1, 13)]
    found = statement_counts([*lists, *singles, case(60, "No moss.")])["single_long_statements"]
    assert found == {"total": 12, "first": [f"PMC{n}" for n in range(1, 11)]}
    unnamed = case(0, long)
    found = statement_counts([unnamed])
    assert found["single_long_statements"]["first"] == [unnamed.fingerprint[:12]]
    assert describe(found)[-1].startswith("1 case has a single statement of 300 characters or more")
    assert describe(found)[-1].endswith(f": {unnamed.fingerprint[:12]}")
