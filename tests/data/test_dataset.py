"""A dataset reads back as built, or raises an error. Every disease named here is invented."""

import shutil

import grain
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from mcr_jax import errors
from mcr_jax.cases import Case, source_fingerprint
from mcr_jax.data import dataset

from mcr_jax.data_builders.medcasereasoning import Builder  # isort: skip


def case(number: int, split: str) -> Case:
    return Case(
        pmcid=f"PMC{number}",
        title="A fictional report\u2009of Quillfever",
        text="PaO₂ — “…” \r\n\t",
        case_prompt=f"  Patient {number} of a fictional clinic had 38.5 C.\n",
        diagnostic_reasoning="1. No moss.  \n2. “Blue nails…”",
        final_diagnosis="Quillfever",
        split=split,
    )


CASES = [case(n, "train" if n < 130 else "val") for n in range(133)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Builder(source=CASES, data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def copy(built, tmp_path):
    """A copy of the dataset to damage: its data_dir and the folder of its files."""
    shutil.copytree(built, tmp_path / "tfds")
    return tmp_path / "tfds", tmp_path / "tfds/medcasereasoning/1.0.0"


def test_what_is_loaded_is_what_was_built_to_the_last_character(built):
    train, val = (dataset.load_cases(built, split) for split in ("train", "val"))
    assert sorted(train + val, key=str) == sorted(CASES, key=str)
    assert {c.split for c in train} == {"train"} and len(val) == 3
    assert dataset.dataset_fingerprint(built) == source_fingerprint(CASES)


def test_the_order_follows_from_the_cases_and_not_from_the_source(built, tmp_path):
    Builder(source=CASES[::-1], data_dir=tmp_path).download_and_prepare()
    assert dataset.load_cases(tmp_path, "train") == dataset.load_cases(built, "train")
    assert dataset.dataset_fingerprint(tmp_path) == dataset.dataset_fingerprint(built)


def test_a_split_that_is_none_and_one_without_cases_are_told_apart(built):
    with pytest.raises(errors.UsageError, match="'dev' is not one of train, val, test"):
        dataset.load_cases(built, "dev")
    with pytest.raises(errors.McrError, match=r"split test of .* holds no cases"):
        dataset.load_cases(built, "test")


def test_a_source_gives_each_case_when_it_is_asked_for(built):
    source, loaded = dataset.CaseSource(built, "train"), dataset.load_cases(built, "train")
    assert len(source) == len(loaded) == 130
    assert [source[row] for row in (129, 0, 64, -1)] == [loaded[r] for r in (129, 0, 64, -1)]
    assert source[5:9] == loaded[5:9]
    assert list(source) == loaded
    for beyond in (130, -131):
        with pytest.raises(IndexError):
            source[beyond]


def test_threads_that_read_a_source_ahead_give_its_cases_in_order(built):
    source = dataset.CaseSource(built, "train")
    read = grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(4, 16))
    assert list(read) == dataset.load_cases(built, "train")


def test_a_missing_dataset_says_to_build_it(tmp_path):
    for read in (dataset.dataset_fingerprint, lambda where: dataset.load_cases(where, "train")):
        with pytest.raises(dataset.MissingDatasetError, match="run `mcr build"):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_half_prepared_dataset_says_to_build_it(copy, name, content):
    data_dir, files = copy
    (files / name).unlink()
    if content is not None:
        (files / name).write_text(content)
    with pytest.raises(dataset.MissingDatasetError, match="run `mcr build") as caught:
        dataset.load_cases(data_dir, "train")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_missing_cut_off_or_too_short_is_named(copy):
    data_dir, files = copy
    (shard,) = files.glob("*train*")
    content = shard.read_bytes()
    parquet.write_table(parquet.read_table(shard).slice(1), shard)
    too_short = shard.read_bytes()
    for damage in (None, content[: len(content) // 2], too_short):
        shard.unlink(missing_ok=True)
        if damage is not None:
            shard.write_bytes(damage)
        with pytest.raises(dataset.MissingDatasetError, match=shard.name):
            dataset.load_cases(data_dir, "val")


def test_a_changed_example_is_found_out(copy):
    data_dir, files = copy
    (shard,) = files.glob("*val*")
    table = parquet.read_table(shard)
    for old, new in ((b"Patient", b"Pat\0ent"), (b"Patient", b"PATIENT"), (b"\n", b"\xff")):
        rows = [{"data": row["data"].replace(old, new)} for row in table.to_pylist()]
        parquet.write_table(table.from_pylist(rows, table.schema), shard)
        with pytest.raises(errors.McrError, match=r"split val of .* cannot be read"):
            dataset.load_cases(data_dir, "val")


def test_a_changed_row_is_named_when_it_is_read_and_the_others_are_not_touched(copy):
    data_dir, files = copy
    (shard,) = files.glob("*val*")
    table = parquet.read_table(shard)
    rows = table.to_pylist()
    rows[1] = {"data": rows[1]["data"].replace(b"Patient", b"PATIENT")}
    parquet.write_table(table.from_pylist(rows, table.schema), shard)
    source = dataset.CaseSource(data_dir, "val")
    with pytest.raises(errors.McrError, match=r"^split val of .*, row 2, cannot be read") as caught:
        source[1]
    assert len(str(caught.value).splitlines()) == 1
    assert {source[0].split, source[2].split} == {"val"}


def test_a_dataset_of_the_name_that_is_not_ours_is_refused(copy):
    data_dir, files = copy
    (files / "metadata.json").unlink()
    for read in (dataset.dataset_fingerprint, lambda where: dataset.load_cases(where, "train")):
        with pytest.raises(errors.McrError, match="another program prepared it"):
            read(data_dir)


def test_the_default_is_that_of_tfds_and_an_address_is_a_wrong_call():
    assert str(dataset.resolve_data_dir(None)) in str(tfds.core.constants.DATA_DIR)
    with pytest.raises(errors.UsageError, match="not a local folder"):
        dataset.resolve_data_dir("gs://bucket/tfds")
