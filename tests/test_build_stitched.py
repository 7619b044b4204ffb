"""The config `stitched` is added to the dataset and never replaces it. All of it is fiction."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from trace_rows import row

from mcr_jax import errors, synthetic
from mcr_jax.build.prepare import build
from mcr_jax.cases import FIELDS, write_jsonl
from mcr_jax.data import dataset, traces

CASES = synthetic.cases(9, {"train": 120, "val": 3, "test": 2})
SPLITS = {"train": 120, "val": 3, "test": 2}


TRACED = [row(case) for case in CASES if case.split != "test"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("source") / "clinic.jsonl"
    write_jsonl(CASES, path)
    return str(path)


@pytest.fixture(scope="module")
def traces_path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("traces") / "traces.parquet"
    traces.write(path, TRACED)
    return str(path)


@pytest.fixture(scope="module")
def built(source, traces_path, tmp_path_factory):
    """A data_dir with both."""
    folder = tmp_path_factory.mktemp("tfds")
    build(source, folder)
    report = build(source, folder, traces_path=traces_path)
    assert (report.name, report.counts) == ("medcasereasoning/stitched", SPLITS)
    return folder


def test_every_example_has_the_fields_of_the_dataset_and_its_trace(built):
    plain = tfds.data_source("medcasereasoning", data_dir=built)
    both = tfds.data_source("medcasereasoning/stitched", data_dir=built)
    traced = {r.fingerprint: r for r in TRACED}
    for split, size in SPLITS.items():
        assert len(plain[split]) == len(both[split]) == size
        for alone, example in zip(plain[split], both[split], strict=True):
            trace, origin = example.pop("trace").decode(), example.pop("trace_source").decode()
            assert sorted(example) == sorted((*FIELDS, "statements", "fingerprint"))
            assert {k: list(v) if k == "statements" else v for k, v in example.items()} == {
                k: list(v) if k == "statements" else v for k, v in alone.items()
            }
            found = traced.get(example["fingerprint"].decode())
            assert (trace, origin) == ((found.trace, found.source) if found else ("", ""))


LOADED = """
import json, os, sys
{imported}
import tensorflow_datasets as tfds
told = []
for name, where in json.loads(sys.argv[1]):
    loaded = tfds.load(name, split="train", **where)
    source = tfds.data_source(name, split="train", **where)
    same = sorted(next(iter(loaded))) == sorted(source[0])
    told.append([str(tfds.builder(name, **where).data_dir), len(loaded), len(source), same])
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["", "import mcr_jax.tfds"])
def test_tfds_finds_each_dataset_at_its_place_with_data_dir_alone_or_by_name_after_the_import(
    built, source, tmp_path, imported
):
    pytest.importorskip("tensorflow")
    alone = tmp_path / "tfds"
    build(source, alone)
    plain, stitched = "medcasereasoning", "medcasereasoning/stitched"
    calls = [(plain, alone, "1.0.0"), (plain, built, "1.0.0"), (stitched, built, "1.0.0")]
    if imported:
        calls = [(name, folder, version) for name, folder, version in calls if folder == built]
    asked = [(name, {} if imported else {"data_dir": str(f)}) for name, f, _ in calls]
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(imported=imported), json.dumps(asked)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TFDS_DATA_DIR": str(built)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [str(folder / name / version), 120, 120, True] for name, folder, version in calls
    ]


def test_built_again_it_is_done_and_other_traces_are_refused_until_overwritten(
    built, source, traces_path, tmp_path
):
    assert build(source, built, traces_path=traces_path).already_done
    other = tmp_path / "other.parquet"
    traces.write(
        other, [row(c, trace="Joined.", source=traces.JOINED) for c in CASES if c.split != "test"]
    )
    with pytest.raises(errors.McrError, match=r"holds a dataset of other traces .*--overwrite"):
        build(source, built, traces_path=str(other))
    folder = tmp_path / "tfds"
    build(source, folder, traces_path=traces_path)
    assert not build(source, folder, overwrite=True, traces_path=str(other)).already_done
    (first, *_) = tfds.data_source("medcasereasoning/stitched", data_dir=folder, split="val")
    assert (first["trace"], first["trace_source"]) == (b"Joined.", b"joined")


def test_traces_that_miss_a_case_of_train_or_val_prepare_nothing(source, tmp_path):
    path = tmp_path / "few.parquet"
    traces.write(path, TRACED[4:])
    with pytest.raises(errors.McrError, match="no trace of 4 of 123 cases"):
        build(source, tmp_path / "tfds", traces_path=str(path))
    assert not list((tmp_path / "tfds").rglob("*.json"))
    with pytest.raises(dataset.MissingDatasetError):
        dataset.open_builder(tmp_path / "tfds", "stitched")


def test_building_stitched_needs_no_tensorflow(source, traces_path, tmp_path):
    code = (
        "import sys\nfrom mcr_jax.build.prepare import build\n"
        "build(sys.argv[1], sys.argv[2], traces_path=sys.argv[3])\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source, str(tmp_path), traces_path],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_builder_without_traces_says_what_to_do(source, tmp_path):
    from mcr_jax.data_builders.medcasereasoning import Builder

    builder = Builder(source=source, config="stitched", data_dir=tmp_path)
    with pytest.raises(
        errors.UsageError, match=r"stitched is not prepared in .*mcr build.*--traces"
    ):
        builder.download_and_prepare()
    assert all(str(builder.info.features[n].doc.desc) for n in ("trace", "trace_source"))
