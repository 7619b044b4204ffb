"""The file of traces: whole or not at all, each row fit to be a target, found by fingerprint."""

import dataclasses
import random

import pytest
from pyarrow import parquet

from mcr_jax.data import traces
from mcr_jax.errors import McrError


def row(case, **changes) -> traces.Trace:
    made = {
        "fingerprint": case.fingerprint,
        "split": case.split,
        "trace": f"{case.final_diagnosis} hums.",
        "source": traces.STITCHED,
        "model": "base",
        "model_version": "v1",
        "prompt": "p",
        "attempts": 2,
        "outcomes": ("TRUNCATED", "OK"),
        "faults_first": ("truncated", "dropped"),
        "faults": (),
        "coverage_first": None,
        "coverage": 1.0,
        "additions_first": ("brindl rime",),
        "additions": (),
        "length_first": None,
        "length": 1.25,
    }
    return traces.Trace(**made | changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.parquet"


@pytest.fixture
def cases(clinic_cases):
    return [*clinic_cases["train"][:5], *clinic_cases["val"][:2]]


def test_rows_come_back_as_they_were_by_split_and_fingerprint(path, cases):
    rows = [row(case) for case in cases]
    traces.write(path, rows)
    assert traces.read(path) == sorted(rows, key=lambda r: (r.split, r.fingerprint))
    first = path.read_bytes()
    traces.write(path, rows[::-1])
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_load_gives_the_cases_asked_for_and_the_digest_is_of_these(path, cases):
    traces.write(path, [row(case) for case in cases])
    some = traces.load(path, cases[:3])
    assert some == {case.fingerprint: row(case).trace for case in cases[:3]}
    assert traces.digest(some) == traces.digest(dict(reversed(some.items())))
    assert traces.digest(some) != traces.digest({**some, cases[0].fingerprint: "Other."})


def test_cases_without_a_trace_are_counted_and_the_way_out_is_told(path, cases):
    traces.write(path, [row(case) for case in cases[2:]])
    with pytest.raises(McrError, match=r"no trace of 2 of 7 cases .*run `mcr stitch` again"):
        traces.load(path, cases)


def test_a_missing_file_names_the_stage_to_run(path, cases):
    with pytest.raises(McrError, match=r"traces.parquet: no traces here; run `mcr stitch` first"):
        traces.load(path, cases)


@pytest.mark.parametrize(
    ("trace", "problem"),
    [
        (" ", "row 2, field trace: is empty"),
        ("It hums.</think>", "row 2, field trace: holds a tag of completions"),
        ("It <Answer>hums", "row 2, field trace: holds a tag of completions"),
        ("It\0hums", "row 2, field trace: holds a tag of completions, or a NUL"),
    ],
)
def test_a_trace_that_cannot_be_a_target_is_named_by_its_row(path, cases, trace, problem):
    rows = sorted(map(row, cases[:3]), key=lambda r: r.fingerprint)
    rows[1] = dataclasses.replace(rows[1], trace=trace)
    traces.write(path, rows)
    with pytest.raises(McrError, match=problem):
        traces.read(path)


def test_a_case_that_is_there_twice_is_refused(path, cases):
    traces.write(path, [row(cases[0]), row(cases[0])])
    with pytest.raises(McrError, match="row 2, field fingerprint: is of the same case as row 1"):
        traces.read(path)


def test_a_source_that_is_none_is_refused(path, cases):
    traces.write(path, [row(cases[0], source="told")])
    with pytest.raises(McrError, match="row 1, field source: is neither stitched nor joined"):
        traces.read(path)


def test_a_flipped_bit_never_changes_what_is_read(path, cases):
    rows = [row(case, trace=f"{case.case_prompt} {case.final_diagnosis}") for case in cases]
    traces.write(path, rows)
    whole, there = path.read_bytes(), traces.read(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert traces.read(path) == there
        except McrError:
            refused += 1
    assert refused > 100


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def _without_a_column(path):
    parquet.write_table(parquet.read_table(path).drop_columns(["trace"]), path)


def _with_a_null(path):
    table = parquet.read_table(path)
    nulls = table.column("trace").to_pylist()
    nulls[0] = None
    number = table.schema.get_field_index("trace")
    parquet.write_table(table.set_column(number, "trace", [nulls]), path)


def _no_parquet(path):
    path.write_text("I am no table")


@pytest.mark.parametrize("damage", [_truncated, _without_a_column, _with_a_null, _no_parquet])
def test_a_damaged_file_is_one_line(path, cases, damage):
    traces.write(path, [row(case) for case in cases])
    damage(path)
    with pytest.raises(McrError, match="is not a whole file of traces") as caught:
        traces.read(path)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file(path, cases, small_disk):
    path = small_disk / path.name
    traces.write(path, [row(case) for case in cases])
    before = path.read_bytes()
    noise = [
        row(c, trace="".join(chr(0x4E00 + (i * 7919 + n) % 20000) for i in range(200_000)))
        for n, c in enumerate(cases)
    ]
    with pytest.raises(McrError, match="cannot write"):
        traces.write(path, noise)
    assert path.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == [path.name]
