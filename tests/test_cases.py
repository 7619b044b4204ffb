"""All cases of a source are read, or none. Every disease, patient and article here is invented."""

import dataclasses
import datetime
import hashlib
import json
import pathlib
import re
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mcr_jax import errors
from mcr_jax import statements as statements_lib
from mcr_jax.cases import (
    CONTENT,
    FIELDS,
    PROVENANCE,
    Case,
    parse_source,
    read_cases,
    source_fingerprint,
    write_jsonl,
)

REAL = pathlib.Path(__file__).parents[2] / "shared/data/cases/medcasereasoning_val_16.jsonl"
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def row(number: int = 1, **changes) -> dict:
    """A fictional case as one row of a source."""
    return {
        "pmcid": f"PMC{number}",
        "title": "A fictional report of Quillfever",
        "case_prompt": f"Patient {number} of a fictional clinic had 38.5 C and blue nails.",
        "diagnostic_reasoning": "1. Mossgout was out — “no moss.”  \n2. Blue nails → Quillfever.",
        "final_diagnosis": "Quillfever",
        **changes,
    }


def case(number: int = 1, **changes) -> Case:
    return Case(**row(number, **{"split": "train", **changes}))


def jsonl(path: pathlib.Path, rows) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def snapshot(folder: pathlib.Path) -> pathlib.Path:
    """A folder as the Hub's client leaves it: two shards of train, one of val and test."""
    (folder / "data").mkdir(parents=True)
    layout = {"train-00000-of-00002": 1, "train-00001-of-00002": 2, "val-00000-of-00001": 3}
    for name, number in {**layout, "test-00000-of-00001": 4}.items():
        nulls = dict.fromkeys(("journal", "article_link", "publication_date", "text"))
        table = pa.Table.from_pylist([{"Unnamed: 0": number, **row(number), **nulls}])
        parquet.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


def failure(paths) -> list[str]:
    """The lines of the error that reading `paths` ends in."""
    with pytest.raises(errors.McrError) as caught:
        read_cases(paths)
    return str(caught.value).splitlines()


# ---------------------------------------------------------------------------------- the case


def test_importing_cases_loads_nothing_outside_the_standard_library():
    check = (
        "import sys; old = set(sys.modules); import mcr_jax.cases; "
        "new = {name.split('.')[0] for name in set(sys.modules) - old}; "
        "print(sorted(new - sys.stdlib_module_names - {'mcr_jax'}))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_case_is_frozen_and_parses_its_statements_once():
    one = case()
    assert one.statements == ("Mossgout was out — “no moss.”", "Blue nails → Quillfever.")
    assert one.statements is one.statements
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.split = "test"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, 7, "nul \0", "lone \ud800"])
def test_a_field_that_is_not_clean_text_is_refused_by_name(name, value):
    with pytest.raises(errors.McrError, match=name):
        case(**{name: value})


@pytest.mark.parametrize("name", CONTENT)
def test_a_blank_content_field_is_refused_by_name(name):
    with pytest.raises(errors.McrError, match=f"{name} is empty"):
        case(**{name: " \n"})


def test_a_numbering_without_statements_is_refused():
    with pytest.raises(errors.McrError, match="no statement"):
        case(diagnostic_reasoning="1.\n2.")


def test_a_fingerprint_is_the_hash_of_the_canonical_json_of_the_identity():
    canonical = (
        '{"case_prompt":"Patient 1 of a fictional clinic had 38.5 C and blue nails.",'
        '"diagnostic_reasoning":"1. Mossgout was out — “no moss.”  \\n2. Blue nails → Quillfever.",'
        '"final_diagnosis":"Quillfever","pmcid":"PMC1"}'
    )
    assert case().fingerprint == hashlib.sha256(canonical.encode()).hexdigest(), (
        "Ledgers and datasets are joined by this value: a change orphans all that were written."
    )


@given(st.sampled_from(FIELDS), text)
def test_a_fingerprint_follows_the_content_and_nothing_else(name, value):
    value = value if name != "split" else "val"
    value = value if value.strip() and statements_lib.parse_statements(value) else "other"
    changed = case(**{name: value})
    is_content = name in ("pmcid", *CONTENT) and value != getattr(case(), name)
    assert (changed.fingerprint != case().fingerprint) == is_content


def test_the_fingerprint_of_a_source_is_what_it_was_before_fields_were_added():
    """Update it only together with the dataset's version: prepared datasets are found by it."""
    one = Case(
        pmcid="FICTION-1",
        case_prompt="A lamplighter hums.",
        diagnostic_reasoning="1. He hums.\n2. No frost.",
        final_diagnosis="Harrow fever",
        split="test",
    )
    expected = "cb4788b90433e8ce27ce2f6649835bd2662deddd7d8c2f8e41fa6b0429c4579b"
    assert source_fingerprint([one]) == expected
    assert source_fingerprint([dataclasses.replace(one, license="CC BY 4.0")]) != expected


@given(st.permutations(range(5)))
def test_a_source_fingerprint_does_not_depend_on_the_order(order):
    assert source_fingerprint(case(n) for n in order) == source_fingerprint(map(case, range(5)))


@pytest.mark.parametrize("name", FIELDS)
def test_a_source_fingerprint_follows_every_field_that_is_packaged(name):
    changed = case(**{name: "val" if name == "split" else "other"})
    assert source_fingerprint([changed]) != source_fingerprint([case()])


# ---------------------------------------------------------------------------------- reading


entities = st.lists(st.sampled_from(["&", "amp;", "lt;", "#60;", "a"])).map("".join)


@given(st.lists(st.tuples(text, text | entities), max_size=5, unique_by=lambda pair: pair[0]))
def test_cases_that_are_written_and_read_are_the_same_cases(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    cases = [case(n, title=a, case_prompt=f"{n} {b}") for n, (a, b) in enumerate(texts)]
    write_jsonl(cases, path)
    assert path.exists() and (not cases or read_cases(path) == cases)
    assert [file.name for file in path.parent.iterdir()] == ["cases.jsonl"]


@pytest.mark.parametrize(
    ("published", "read"),
    [
        ("&lt;2 mmol &amp; more", "<2 mmol & more"),
        ("&amp;lt;2 mmol", "&lt;2 mmol"),
        ("&degrees; &copyright; &beta;2", "&degrees; &copyright; β2"),
        ("<2 mmol, A&B, AT&T; R&D", "<2 mmol, A&B, AT&T; R&D"),
        ("see ?a=1&copy=2&lt", "see ?a=1&copy=2&lt"),
        ("38&nbsp;&#176;C &#x3b1;&hellip;", "38\u00a0°C α…"),
        ("&nosuchthing; &;", "&nosuchthing; &;"),
    ],
)
def test_html_entities_are_decoded_once_when_cases_are_read(tmp_path, published, read):
    fields = dict.fromkeys(("title", "text", *CONTENT), published)
    (one,) = read_cases(jsonl(tmp_path / "val.jsonl", [row(**fields)]))
    assert {name: getattr(one, name) for name in fields} == dict.fromkeys(fields, read)
    assert one.fingerprint == case(split="val", **dict.fromkeys(CONTENT, read)).fingerprint
    parquet.write_table(pa.Table.from_pylist([row(**fields)]), tmp_path / "val.parquet")
    assert read_cases(tmp_path / "val.parquet") == [one]
    write_jsonl([one], tmp_path / "again.jsonl")
    assert read_cases(tmp_path / "again.jsonl") == [one]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_jsonl([case()], tmp_path / "cases.jsonl")
    with pytest.raises(ZeroDivisionError):
        write_jsonl((case(n // 0) for n in range(3)), tmp_path / "cases.jsonl")
    assert read_cases(tmp_path / "cases.jsonl") == [case()]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_hub_snapshot_its_data_folder_and_jsonl_files_give_the_same_cases(tmp_path):
    hub = snapshot(tmp_path / "hub")
    cases = read_cases(hub)
    assert [c.split for c in cases] == ["test", "train", "train", "val"]
    assert cases[0] == Case(**row(4), split="test")
    for split in ("train", "val", "test"):
        write_jsonl((c for c in cases if c.split == split), tmp_path / f"lines/{split}.jsonl")
    assert read_cases(hub / "data") == read_cases(str(hub)) == cases
    assert read_cases(tmp_path / "lines") == cases


def test_the_split_comes_from_the_row_before_the_file_name(tmp_path):
    rows = [row(1, split="test"), row(2, split=""), row(3, split=None), row(4, split="validation")]
    assert [c.split for c in read_cases(jsonl(tmp_path / "my_dev_set.jsonl", rows))] == [
        "test",
        "val",
        "val",
        "val",
    ]


def test_a_row_without_split_in_a_file_without_split_says_what_to_do(tmp_path):
    for name in ("cases.jsonl", "train_and_test.jsonl", "latest.jsonl"):
        (line,) = failure(jsonl(tmp_path / name, [row()]))
        assert re.search(r"row 1, field split: is missing: add it to the row, or name", line)


def test_blank_lines_a_byte_order_mark_and_other_columns_are_passed_over(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [json.dumps(row(1, extra=[1], statements=None)), "", "  ", json.dumps(row(2))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert read_cases(path) == [case(1), case(2)]


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        (datetime.date(2021, 5, 1), "2021-05-01"),
        (datetime.datetime(2021, 5, 1), "2021-05-01"),
        (datetime.datetime(2021, 5, 1, 12), "2021-05-01T12:00:00"),
        (None, ""),
    ],
)
def test_dates_become_iso_dates_and_nulls_the_empty_string(tmp_path, date, expected):
    table = pa.Table.from_pylist([row(publication_date=date, journal=None)])
    parquet.write_table(table, tmp_path / "val.parquet")
    (one,) = read_cases(tmp_path / "val.parquet")
    assert (one.publication_date, one.journal) == (expected, "")


def test_a_large_parquet_file_is_read_over_its_row_groups(tmp_path):
    table = pa.Table.from_pylist([row(n) for n in range(1500)])
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=400)
    assert [c.pmcid for c in read_cases(tmp_path)] == [f"PMC{n}" for n in range(1500)]


def test_a_source_string_names_several_paths_and_a_comma_in_a_path_is_kept(tmp_path):
    one, two = jsonl(tmp_path / "train.jsonl", [row(1)]), jsonl(tmp_path / "val.jsonl", [row(2)])
    odd = jsonl(tmp_path / "test,really.jsonl", [row(3)])
    assert read_cases(f"{one},{two}") == [case(1), case(2, split="val")]
    assert parse_source(str(odd)) == (odd,)
    for bad in ("", ",", f"{one},"):
        with pytest.raises(errors.UsageError, match="PATH"):
            parse_source(bad)


# ---------------------------------------------------------------------------------- bad input


def test_every_bad_row_is_named_with_file_row_and_field(tmp_path):
    rows = [
        row(1),
        '{"pmcid": ',
        row(2, final_diagnosis=" "),
        [1],
        "",
        row(3, case_prompt=3, split="all"),
        row(4, title="\ud800"),
        {key: value for key, value in row(5).items() if key != "diagnostic_reasoning"},
        "[" * 100_000,
    ]
    path = jsonl(tmp_path / "train.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"pmcid": "\xff"}\n')
    lines = failure(path)
    assert lines[0] == "9 problems in 1 file, no case was taken:"
    for line, expected in zip(
        lines[1:],
        [
            "row 2: is not JSON",
            "row 3, field final_diagnosis: is empty",
            "row 4: is a JSON list, not an object",
            "row 6, field case_prompt: is int, not text",
            "row 6, field split: is 'all', not one of train, val, test",
            "row 7, field title: holds a lone surrogate",
            "row 8, field diagnostic_reasoning: is missing",
            "row 9: is JSON beyond what can be read",
            "row 10: is not UTF-8 (byte 12 of the line)",
        ],
        strict=True,
    ):
        assert line.startswith(f"{path}, {expected}")


def test_a_single_problem_is_a_single_line(tmp_path):
    path = jsonl(tmp_path / "val.jsonl", [row(1), row(2, final_diagnosis="")])
    assert failure(path) == [f"{path}, row 2, field final_diagnosis: is empty"]


def test_a_flood_of_problems_is_cut_and_counted(tmp_path):
    lines = failure(jsonl(tmp_path / "val.jsonl", ["x"] * 50))
    assert (len(lines), lines[-1]) == (22, "... and 30 more")


def test_the_same_case_twice_is_refused_and_across_splits_is_called_a_leak(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", [row(1), row(1, title="another title")])
    test = jsonl(tmp_path / "test.jsonl", [row(2), row(1)])
    lines = failure([train, test])
    assert lines[1] == f"{train}, row 2: is the same case as {train}, row 1: keep one of them"
    assert lines[2] == (
        f"{test}, row 2: is the same case as {train}, row 1, a leak from train into test: "
        "keep one of them"
    )


def test_an_empty_split_is_refused(tmp_path):
    snapshot(tmp_path / "hub")
    file = tmp_path / "hub/data/test-00000-of-00001.parquet"
    parquet.write_table(parquet.read_table(file).slice(0, 0), file)
    assert failure(tmp_path / "hub") == [f"split test of {file} holds no cases"]
    empty = jsonl(tmp_path / "cases.jsonl", [""])
    assert failure(empty) == [f"{empty} holds no cases"]


def test_a_parquet_file_that_is_cut_off_or_none_at_all_is_refused(tmp_path):
    whole = snapshot(tmp_path / "hub") / "data/val-00000-of-00001.parquet"
    content = whole.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no parquet at all"):
        whole.write_bytes(broken)
        (line,) = failure(whole)
        assert line.startswith(f"{whole}: is not a whole Parquet file")
    whole.write_bytes(content[:4] + bytes(len(content) // 2) + content[len(content) // 2 + 4 :])
    (line,) = failure(whole)
    assert line.startswith(f"{whole}: is not a whole Parquet file")


@pytest.mark.parametrize("columns", [{}, {"case_prompt": ["x"], "final_diagnosis": ["y"]}])
def test_a_parquet_file_without_a_needed_column_is_one_error(tmp_path, columns):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table(columns), path)
    (line,) = failure(path)
    assert line.startswith(f"{path}: has no column") and "diagnostic_reasoning" in line


def test_a_parquet_row_that_is_not_utf8_is_named(tmp_path):
    columns = {name: [str(value)] * 3 for name, value in row().items()}
    columns["case_prompt"] = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table(columns), tmp_path / "val.parquet")
    assert failure(tmp_path / "val.parquet") == [f"{tmp_path}/val.parquet, row 2: is not UTF-8"]


def test_a_snapshot_with_a_shard_missing_is_refused(tmp_path):
    hub = snapshot(tmp_path / "hub")
    (hub / "data/train-00000-of-00002.parquet").unlink()
    assert re.search(r"1 of 2 shards of train \(shard 0 is missing\)", failure(hub)[0])


def test_a_path_that_cannot_be_a_source_is_a_wrong_call(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cases.csv").touch()
    both = snapshot(tmp_path / "both")
    jsonl(both / "data/train.jsonl", [row()])
    for path in ("nowhere.jsonl", "empty", "cases.csv", "both"):
        with pytest.raises(errors.UsageError, match=re.escape(str(tmp_path / path))) as caught:
            read_cases(tmp_path / path)
        assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------------------------- the real thing


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.name} is not here: real cases stay outside")
def test_the_sixteen_real_cases_parse_contiguously_and_without_loss():
    cases = read_cases(REAL)
    assert len(cases) == 16 and {c.split for c in cases} == {"val"}
    for one in cases:
        assert 3 <= len(one.statements) <= 9
        lines = one.diagnostic_reasoning.splitlines()
        assert [int(line.split(".")[0]) for line in lines] == [
            n + 1 for n in range(len(one.statements))
        ]
        assert one.statements == tuple(line.split(". ", 1)[1].strip() for line in lines)
        assert not any(re.match(r"\d+\. ", statement) for statement in one.statements)
        assert all(isinstance(getattr(one, name), str) for name in PROVENANCE)
