"""Datasets are written atomically. Every disease, patient and article here is invented."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from mcr_jax import errors
from mcr_jax.build.prepare import BuildReport, build
from mcr_jax.cases import Case, read_cases, source_fingerprint, write_jsonl
from mcr_jax.data import dataset

SIZES = {"train": 230, "val": 3, "test": 2}


def write_source(folder: pathlib.Path, word: str = "blue", reverse: bool = False) -> str:
    """A source of fictional cases that are alike but for one word; returns its PATH."""
    folder.mkdir()
    for split, size in SIZES.items():
        cases = [
            Case(
                pmcid=f"PMC{split}{n}",
                title="A fictional report of Quillfever",
                case_prompt=f"Patient {n} of a fictional clinic had {word} nails and 38.5\u2009C.",
                diagnostic_reasoning=f"1. No moss, “none”.  \n2. {word} nails → Quillfever.",
                final_diagnosis="Quillfever",
                split=split,
            )
            for n in range(size)
        ]
        write_jsonl(cases[::-1] if reverse else cases, folder / f"{split}.jsonl")
    return str(folder)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below `folder` and what it holds; hidden ones too."""
    paths = (pathlib.Path(root) / file for root, _, files in os.walk(folder) for file in files)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def content(data_dir: pathlib.Path) -> tuple[list[str], list[list[Case]]]:
    """The files below a data_dir and the cases they hold (bytes may differ between processes)."""
    return sorted(tree(data_dir)), [dataset.load_cases(data_dir, split) for split in SIZES]


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Runs `code` in a new process, away from the repository; `sys.argv[1:]` are `arguments`."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )


NO_TENSORFLOW = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] == "tensorflow" else find(name, *rest)
)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return write_source(tmp_path_factory.mktemp("source") / "blue")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    return write_source(tmp_path_factory.mktemp("source") / "green", word="green")


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> BuildReport:
    return build(source, tmp_path_factory.mktemp("tfds"))


# ------------------------------------------------------------------------ what a user then has


@pytest.mark.slow
def test_tfds_load_in_a_new_process_reads_it_without_our_code(built, source):
    pytest.importorskip("tensorflow")
    done = python(
        "import json, sys, tensorflow_datasets as tfds\n"
        "splits = tfds.load('medcasereasoning', data_dir=sys.argv[1])\n"
        "assert not any(name.startswith('mcr_jax') for name in sys.modules)\n"
        "print(json.dumps({name: [[e['pmcid'].decode(), e['case_prompt'].decode(),\n"
        "  [s.decode() for s in e['statements']]] for e in tfds.as_numpy(examples)]\n"
        "  for name, examples in splits.items()}))",
        built.data_dir,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    expected = {(c.pmcid, c.case_prompt, c.statements) for c in read_cases(source)}
    assert {name: len(examples) for name, examples in loaded.items()} == SIZES
    assert {(p, q, tuple(s)) for examples in loaded.values() for p, q, s in examples} == expected


@pytest.mark.parametrize("prelude", ["", NO_TENSORFLOW], ids=["installed", "absent"])
def test_tfds_data_source_in_a_new_process_needs_neither_our_code_nor_tensorflow(
    built, source, prelude
):
    done = python(
        f"{prelude}import json, sys, tensorflow_datasets as tfds\n"
        "examples = tfds.data_source('medcasereasoning', split='train', data_dir=sys.argv[1])\n"
        "print(json.dumps([{name: [s.decode() for s in value] if name == 'statements'\n"
        "  else value.decode() for name, value in e.items()} for e in examples]))\n"
        "assert 'tensorflow' not in sys.modules\n"
        "assert not any(name.startswith('mcr_jax') for name in sys.modules)",
        built.data_dir,
    )
    assert done.returncode == 0, done.stderr
    expected = [
        {**c.asdict(), "statements": list(c.statements), "fingerprint": c.fingerprint}
        for c in read_cases(source)
        if c.split == "train"
    ]
    assert sorted(json.loads(done.stdout), key=str) == sorted(
        (dict(sorted(example.items())) for example in expected), key=str
    )


def test_its_info_tells_counts_citation_licence_and_fingerprint(built):
    info = tfds.builder("medcasereasoning", data_dir=built.data_dir).info
    assert {name: split.num_examples for name, split in info.splits.items()} == SIZES
    assert built.counts == info.metadata["counts"] == SIZES
    assert built.fingerprint == info.metadata["source_fingerprint"]
    assert "2505.11733" in info.citation and "CC BY 4.0" in info.redistribution_info.license
    assert (str(info.version), info.file_format.value) == (built.version, "parquet")


def test_building_and_loading_need_no_tensorflow_and_print_nothing(source, built, tmp_path):
    for prelude in ("", NO_TENSORFLOW):
        done = python(
            f"{prelude}import sys\n"
            "from mcr_jax.build.prepare import build\n"
            "from mcr_jax.data import dataset\n"
            "build(sys.argv[1], sys.argv[2], overwrite=True)\n"
            "assert len(dataset.load_cases(sys.argv[2], 'train')) == 230\n"
            "assert 'tensorflow' not in sys.modules",
            source,
            tmp_path,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert content(tmp_path) == content(built.data_dir)


def test_the_default_folder_is_that_of_tfds(source, tmp_path):
    code = "import sys; from mcr_jax.build.prepare import build; print(build(sys.argv[1]).data_dir)"
    for environment in ({"TFDS_DATA_DIR": str(tmp_path / "named")}, {"HOME": str(tmp_path)}):
        done = python(code, source, **environment)
        folder = environment.get("TFDS_DATA_DIR") or str(tmp_path / "tensorflow_datasets")
        assert (done.stdout.strip(), done.returncode) == (folder, 0), done.stderr
        assert dataset.dataset_fingerprint(folder) == source_fingerprint(read_cases(source))


# ------------------------------------------------------------------------ once, and once only


def test_a_second_build_does_nothing_and_the_order_of_the_source_does_not_matter(
    built, source, tmp_path
):
    before = {file: file.stat().st_mtime_ns for file in built.data_dir.rglob("*")}
    calls = []
    for again in (source, write_source(tmp_path / "reversed", reverse=True)):
        report = build(again, built.data_dir, progress=lambda *call: calls.append(call))
        assert report.already_done and report.fingerprint == built.fingerprint
    assert {file: file.stat().st_mtime_ns for file in built.data_dir.rglob("*")} == before
    assert calls == []


def test_progress_counts_every_case_up_to_the_total(source, tmp_path):
    calls = []
    build(source, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 235) for n in range(1, 236)]


@pytest.mark.promise(
    "A dataset of other cases is refused until you pass `--overwrite` or another `--data_dir`."
)
def test_other_cases_are_refused_by_both_fingerprints_and_replaced_on_request(
    built, source, other, tmp_path
):
    build(source, tmp_path)
    before = tree(tmp_path)
    wanted = source_fingerprint(read_cases(other))
    with pytest.raises(errors.McrError, match="another --data_dir, or --overwrite") as caught:
        build(other, tmp_path)
    assert built.fingerprint[:12] in str(caught.value) and wanted[:12] in str(caught.value)
    assert tree(tmp_path) == before
    assert not build(other, tmp_path, overwrite=True).already_done
    assert dataset.dataset_fingerprint(tmp_path) == wanted
    assert tree(tmp_path).keys() == tree(built.data_dir).keys()


def test_a_dataset_that_is_not_ours_is_replaced_only_on_request(source, tmp_path):
    build(source, tmp_path)
    (tmp_path / "medcasereasoning/1.0.0/metadata.json").unlink()
    with pytest.raises(errors.McrError, match="another program prepared it"):
        build(source, tmp_path)
    assert not build(source, tmp_path, overwrite=True).already_done


def test_a_dataset_whose_statements_were_parsed_in_another_way_is_built_again(source, tmp_path):
    build(source, tmp_path)
    path = tmp_path / "medcasereasoning/1.0.0/metadata.json"
    metadata = json.loads(path.read_text())
    assert metadata["statement_counts"]["val"] == {"2": SIZES["val"]}
    metadata["statement_counts"]["val"] = {"1": SIZES["val"]}
    path.write_text(json.dumps(metadata))
    report = build(source, tmp_path)
    assert not report.already_done and build(source, tmp_path).already_done
    assert report.statements.items() <= json.loads(path.read_text()).items()


def test_a_dataset_that_lost_a_file_is_built_again(built, source, tmp_path):
    for name in ("medcasereasoning-val.parquet-00000-of-00001", "dataset_info.json"):
        build(source, tmp_path)
        (tmp_path / "medcasereasoning/1.0.0" / name).unlink()
        assert not build(source, tmp_path).already_done
        assert content(tmp_path) == content(built.data_dir)


# ------------------------------------------------------------------------ what can go wrong

_KILLED = """
import os, signal, sys
from mcr_jax.build.prepare import build
kill = lambda done, total: done == 100 and os.kill(os.getpid(), signal.SIGKILL)
build(sys.argv[1], sys.argv[2], overwrite=True, progress=kill)
"""

_DISK_FULL = """
import resource, sys
from mcr_jax import errors
from mcr_jax.build.prepare import build
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # no file may grow beyond 8 KiB
try:
    build(sys.argv[1], sys.argv[2], overwrite=True)
except errors.McrError as error:
    print(error)
"""


def test_a_killed_first_build_leaves_nothing_that_tfds_takes(built, source, tmp_path):
    assert python(_KILLED, source, tmp_path).returncode == -9
    assert list(tmp_path.rglob(".mcr-build-*"))
    with pytest.raises(dataset.MissingDatasetError):
        dataset.load_cases(tmp_path, "train")
    load = (
        "import sys, tensorflow_datasets as t; t.builder('medcasereasoning', data_dir=sys.argv[1])"
    )
    assert "DatasetNotFoundError" in python(load, tmp_path).stderr
    assert not build(source, tmp_path).already_done
    assert content(tmp_path) == content(built.data_dir)


@pytest.mark.parametrize("fate", [_KILLED, _DISK_FULL], ids=["killed", "disk full"])
def test_an_overwrite_that_dies_leaves_the_old_dataset(built, source, other, tmp_path, fate):
    build(source, tmp_path)
    before = tree(tmp_path)
    done = python(fate, other, tmp_path)
    if fate is _DISK_FULL:
        assert done.returncode == 0, done.stderr
        assert "nothing changed: " in done.stdout and len(done.stdout.splitlines()) == 1
        assert tree(tmp_path) == before
    assert content(tmp_path)[1] == content(built.data_dir)[1]
    assert build(source, tmp_path).already_done
    assert tree(tmp_path) == before


def test_a_build_killed_between_its_two_renames_is_undone_by_the_next(source, tmp_path):
    build(source, tmp_path)
    before = tree(tmp_path)
    folder = tmp_path / "medcasereasoning"
    (folder / ".mcr-build-killed").mkdir()
    (folder / "1.0.0").rename(folder / ".mcr-build-killed/replaced")
    assert build(source, tmp_path).already_done
    assert tree(tmp_path) == before


def test_two_builds_at_once_do_not_mix(built, source, other, tmp_path):
    refused = []

    def meanwhile(done: int, total: int) -> None:
        if done == total:
            with pytest.raises(errors.McrError, match="another build writes to") as caught:
                build(other, tmp_path)
            refused.append(caught)

    build(source, tmp_path, progress=meanwhile)
    assert len(refused) == 1 and content(tmp_path) == content(built.data_dir)


@pytest.mark.promise("and writes nothing half-prepared")
def test_bad_cases_leave_no_trace(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"pmcid": "PMC1"}\n')
    with pytest.raises(errors.McrError, match="3 problems"):
        build(str(tmp_path / "train.jsonl"), tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_a_data_dir_that_cannot_be_one_is_refused_in_one_line(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.McrError, match="could not be written") as caught:
        build(source, tmp_path / "file")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(errors.UsageError, match="not a local folder"):
        build(source, "gs://bucket/tfds")
