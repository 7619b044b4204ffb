"""stitch.json: statistics of first samples and final traces, and the reasons for fallbacks."""

import io
import json

from rich.console import Console

from mcr_jax.data.traces import Trace
from mcr_jax.stitch.summary import summarize, table


def row(number, **changes):
    made = {
        "fingerprint": f"{number:064x}",
        "split": "train",
        "trace": "Nails were blue.",
        "source": "stitched",
        "model": "base",
        "model_version": "v1",
        "prompt": "p",
        "attempts": 1,
        "outcomes": ("OK",),
        "faults_first": (),
        "faults": (),
        "coverage_first": 1.0,
        "coverage": 1.0,
        "additions_first": (),
        "additions": (),
        "length_first": 1.5,
        "length": 1.5,
    }
    return Trace(**made | changes)


ROWS = [
    row(1),
    row(2, attempts=2, outcomes=("OK", "OK"), faults_first=("dropped",), coverage_first=0.5),
    row(
        3,
        split="val",
        source="joined",
        attempts=2,
        outcomes=("OK", "OK"),
        faults_first=("added", "early"),
        faults=("dropped", "added"),
        additions_first=("moss fever",),
        coverage_first=0.75,
        length=1.0,
    ),
    row(
        4,
        source="joined",
        outcomes=("prompt_too_long",),
        faults_first=("prompt_too_long",),
        faults=("prompt_too_long",),
        coverage_first=None,
        length_first=None,
        length=1.0,
    ),
]


def summary():
    return summarize(ROWS, lambda values: (min(values), max(values)), 0.9)


def test_first_samples_are_told_apart_from_what_is_kept():
    made = summary()
    assert made["first"]["coverage"] == {"value": 0.75, "low": 0.5, "high": 1.0, "cases": 3}
    assert made["first"]["faultless"]["value"] == 0.25
    assert made["first"]["with_additions"]["value"] == made["first"]["early"]["value"] == 1 / 3
    assert made["kept"]["coverage"]["value"] == 1.0
    assert made["kept"]["length_ratio"] == {"value": 1.25, "cases": 4}
    assert made["added_names"] == {"moss fever": 1}


def test_each_joined_case_is_counted_under_one_reason():
    made = summary()
    assert made["joined"]["reasons"] == {"prompt_too_long": 1, "added": 1}
    assert made["joined"]["share"]["value"] == sum(made["joined"]["reasons"].values()) / len(ROWS)
    assert made["attempts"] == {"1": 2, "2": 2}
    assert made["outcomes"] == {"OK": 5, "prompt_too_long": 1}
    assert made["cases"] == {"train": 3, "val": 1}


def test_the_table_is_the_same_from_the_file_as_from_the_rows():
    def printed(told):
        console = Console(width=100, file=io.StringIO())
        console.print(table(told))
        return console.file.getvalue()

    assert printed(summary()) == printed(json.loads(json.dumps(summary(), sort_keys=True)))
    assert "because prompt too long" in printed(summary())


def test_without_any_text_there_is_nothing_to_average():
    made = summarize([ROWS[3]], lambda values: (0.0, 1.0), 0.95)
    assert made["first"]["coverage"] == {"value": None, "low": None, "high": None, "cases": 0}
    assert made["kept"]["coverage"]["value"] == 1.0
