"""The TFDS builder follows the conventions of TFDS. Every disease named here is invented."""

import pathlib
import pickle
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_metadata

from mcr_jax import errors
from mcr_jax.cases import FIELDS, Case, source_fingerprint

from mcr_jax.data_builders.medcasereasoning import Builder  # isort: skip

ROOT = pathlib.Path(__file__).parents[1]


def case(number: int, split: str = "train") -> Case:
    return Case(
        pmcid=f"PMC{number}",
        case_prompt=f"Patient {number} of a fictional clinic had blue nails.",
        diagnostic_reasoning="1. No moss.\n2. Blue nails.",
        final_diagnosis="Quillfever",
        split=split,
    )


@pytest.mark.parametrize("module", ["mcr_jax.data_builders", "data_builders"])
def test_the_name_is_the_same_installed_and_from_the_root_of_the_repository(module):
    check = f"import {module}.medcasereasoning as m; print(m.Builder.name)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"medcasereasoning\n"


def test_the_tags_are_tags_of_tfds_and_description_and_citation_are_there():
    metadata = Builder.get_metadata()
    assert metadata.tags and set(metadata.tags) <= set(dataset_metadata.valid_tags())
    assert "Not for patient care" in metadata.description
    assert "arXiv:2505.11733" in metadata.citation


def test_the_features_are_the_fields_the_statements_and_the_fingerprint(tmp_path):
    features = Builder(data_dir=tmp_path).info.features
    assert set(features) == {*FIELDS, "statements", "fingerprint"}
    assert all(str(features[name].doc.desc) for name in features)
    assert Builder(data_dir=tmp_path).info.supervised_keys is None


def test_every_example_of_a_shard_of_hundreds_is_written(tmp_path):
    cases = [case(n) for n in range(450)]
    builder = Builder(source=cases, data_dir=tmp_path)
    builder.download_and_prepare()
    examples = builder.as_data_source("train")
    assert {e["pmcid"].decode() for e in examples} == {c.pmcid for c in cases}
    assert len(examples) == builder.info.splits["train"].num_examples == 450
    assert builder.info.metadata == {
        "source_fingerprint": source_fingerprint(cases),
        "counts": {"train": 450},
        "statement_counts": {"train": {"2": 450}},
        "single_long_statements": {"total": 0, "first": []},
    }


def test_tfds_prepares_it_by_name_with_the_source_as_builder_argument(tmp_path):
    arguments = {"source": [case(1), case(2, "test")]}
    splits = tfds.data_source("medcasereasoning", data_dir=tmp_path, builder_kwargs=arguments)
    assert [len(splits[name]) for name in ("train", "test")] == [1, 1]


def test_a_builder_without_source_says_what_to_do(tmp_path):
    with pytest.raises(errors.UsageError, match=r"is not prepared in .*mcr build"):
        Builder(data_dir=tmp_path).download_and_prepare()


def test_a_case_without_split_is_refused_and_nothing_is_prepared(tmp_path):
    builder = Builder(source=[case(1), case(2, split="")], data_dir=tmp_path)
    with pytest.raises(errors.McrError, match="1 of 2 cases are in a split"):
        builder.download_and_prepare()
    assert not builder.is_prepared()


def test_a_builder_survives_a_pickle(tmp_path):
    builder = pickle.loads(pickle.dumps(Builder(source=[case(1)], data_dir=tmp_path)))
    builder.download_and_prepare()
    assert len(builder.as_data_source("train")) == 1
