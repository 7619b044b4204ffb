"""`mcr build --traces`: location of the file, and its checks before any work."""

import dataclasses
import pathlib

import pytest
import tensorflow_datasets as tfds
from trace_rows import row

from mcr_jax import synthetic
from mcr_jax.cases import write_jsonl
from mcr_jax.cli.main import main
from mcr_jax.data import traces

CASES = synthetic.cases(3, {"train": 3, "test": 1})


@pytest.fixture
def home(tmp_path, monkeypatch) -> pathlib.Path:
    """A home and working directory with cases, their traces and files that are no traces."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_jsonl(CASES, tmp_path / "clinic.jsonl")
    traces.write(tmp_path / "traces.parquet", [row(c) for c in CASES if c.split == "train"])
    (tmp_path / "notes.parquet").write_text("fictional notes")
    return tmp_path


def test_a_tilde_stands_for_the_home_in_the_path_of_the_traces(home):
    flags = ["--source=clinic.jsonl", "--data_dir=tfds", "--traces=~/traces.parquet"]
    assert main(["build", *flags]) == 0
    stitched = tfds.data_source("medcasereasoning/stitched", data_dir="tfds", split="train")
    assert {example["trace"].decode() for example in stitched} == {
        row(case).trace for case in CASES if case.split == "train"
    }


@pytest.mark.promise(
    "It prints statistics of statements per case, and the first cases whose single long "
    "statement may be an unrecognised list"
)
def test_build_says_how_many_statements_cases_have_and_which_may_be_lists(tmp_path, capsys):
    long = "It was not Mossgout; " * 20
    odd = dataclasses.replace(CASES[0], pmcid="PMC77", diagnostic_reasoning=long, split="train")
    write_jsonl([odd, *CASES[1:]], tmp_path / "clinic.jsonl")
    for _ in range(2):  # also where there is nothing to do
        assert main(["build", f"--source={tmp_path}/clinic.jsonl", f"--data_dir={tmp_path}/t"]) == 0
        said = capsys.readouterr().out
        assert "build: train: cases by number of statements: 1: 1, " in said
        assert "1 case has a single statement of 300 characters or more" in said
        assert "not recognised: PMC77\nbuild: to load it in Python: import mcr_jax.tfds" in said


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("nowhere.parquet", 1, "nowhere.parquet: no traces here; run `mcr stitch` first"),
        ("~/nowhere.parquet", 1, "nowhere.parquet: no traces here"),
        ("~nobody_of_that_name/traces.parquet", 2, "there is no home folder of"),
        ("notes.parquet", 1, "notes.parquet is not a whole file of traces"),
        ("clinic.jsonl", 1, "clinic.jsonl is not a whole file of traces"),
        (".", 1, "is not a whole file of traces"),
        ("gs://bucket/traces.parquet", 2, "gs://bucket/traces.parquet is not a local"),
    ],
)
@pytest.mark.parametrize("where", [["--source=clinic.jsonl", "--data_dir=tfds"], ["--workdir=w"]])
def test_traces_that_cannot_be_read_are_told_before_anything_is_made(
    home, capsys, path, status, told, where
):
    before = sorted(home.rglob("*"))
    assert main(["build", *where, f"--traces={path}"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mcr build: ") and told in line
    assert sorted(home.rglob("*")) == before
