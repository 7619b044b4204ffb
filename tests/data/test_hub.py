"""The published cases come from the Hub, whole, or one line says why not; real client, local Hub.

Every disease, patient and article here is invented.
"""

import json
import os
import pathlib
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from mcr_jax.cases import read_cases
from mcr_jax.data.hub import REPOSITORY

# What `mcr build` does, without what TFDS takes to import.
DOWNLOAD = """
import json, sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # what is kept of a download that is cut comes in these
from mcr_jax.data import hub
from mcr_jax.errors import McrError
seen = []
try:
    made = hub.download(sys.argv[1], lambda done, total: seen.append((done, total)))
    print(json.dumps([str(made.folder), made.origin, seen[-1:]]))
except McrError as error:
    print(type(error).__name__, error, sep=": ")
"""


def table(folder: pathlib.Path, split: str, size: int) -> bytes:
    rows = [
        {
            "Unnamed: 0": n,
            "pmcid": f"PMC{split}{n}",
            "title": "A fictional report of Quillfever",
            "text": os.urandom(2_000).hex(),  # of which no compression makes a small file
            "case_prompt": f"Patient {n} of a fictional clinic had {split} nails.",
            "diagnostic_reasoning": "1. No moss. \n2. Blue nails → Quillfever.",
            "final_diagnosis": "Quillfever",
            **({"license": "CC BY-NC 4.0"} if n == 0 else {"license": None}),
        }
        for n in range(size)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return (folder / f"{split}.parquet").read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tables")
    sizes = {"train": 200, "val": 2, "test": 3}
    made = {f"data/{s}-00000-of-00001.parquet": table(folder, s, n) for s, n in sizes.items()}
    return {
        **made,
        "README.md": b"---\nlicense: mit\n---\nfictional",
        "other.txt": b"not asked for",
    }


@pytest.fixture
def hub(files, hub_server):
    with hub_server(REPOSITORY, files) as server:
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }


@pytest.fixture
def download(environment):
    def call(revision="main", **changes: str):
        command = [sys.executable, "-c", DOWNLOAD, revision]
        env = {**environment, **changes}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return call


def test_what_comes_is_what_is_there_and_the_second_time_it_is_there_already(hub, files, download):
    folder, origin, ((done, total),) = json.loads(download())
    assert origin == f"hf://datasets/{REPOSITORY}@{hub.commit}"
    tables = sum(len(content) for name, content in files.items() if name.endswith(".parquet"))
    assert tables <= done == total <= tables + 100
    assert {c.split for c in read_cases(folder)} == {"train", "val", "test"}
    assert {c.license for c in read_cases(folder)} == {"", "CC BY-NC 4.0"}
    assert not (pathlib.Path(folder) / "other.txt").exists()
    hub.refuse = (500, "")
    for revision, changes in (("main", {}), (hub.commit, {"HF_HUB_OFFLINE": "1"})):
        again, same, _ = json.loads(download(revision, **changes))
        assert (again, same) == (folder, origin)


@pytest.mark.promise(
    "The download is compared with the Hub's checksums, resumes after an interruption, and "
    "stays in the Hub's cache."
)
def test_a_download_that_was_cut_goes_on_where_it_was(hub, files, download):
    (name,) = (name for name in files if "train" in name)
    hub.cut = name
    folder, *_ = json.loads(download())
    assert (pathlib.Path(folder) / name).read_bytes() == files[name]
    assert any(not wanted.startswith("bytes=0-") for wanted in hub.ranges)


def test_a_file_with_another_checksum_is_refused_and_comes_anew_the_next_time(hub, files, download):
    (hub.spoil,) = (name for name in files if "test" in name)
    line = download()
    assert line.startswith("McrError") and hub.spoil in line and "checksum" in line
    hub.spoil = ""
    folder, *_ = json.loads(download())
    assert len(read_cases(folder)) == 205


@pytest.mark.parametrize(
    ("refuse", "says"),
    [
        ((401, ""), "HF_TOKEN"),
        ((404, "RepoNotFound"), "check HF_ENDPOINT"),
        ((403, "GatedRepo"), "accept its terms"),
        ((503, ""), "cannot be reached"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(hub, download, refuse, says):
    hub.refuse = refuse
    line = download()
    assert line.startswith("McrError") and says in line and "\n" not in line
    assert "--source=PATH" in line


def test_without_a_network_or_without_such_a_revision_it_is_one_line(download):
    line = download(HF_ENDPOINT="http://127.0.0.1:1")
    assert line.startswith("McrError") and "check the network" in line and "\n" not in line
    line = download(HF_HUB_OFFLINE="1")
    assert line.startswith("McrError") and "HF_HUB_OFFLINE is set" in line
    line = download("v9")
    assert line.startswith("UsageError") and "--revision=v9" in line


def test_mcr_build_without_a_source_ends_with_the_line_that_loads_what_it_made(
    hub, environment, tmp_path
):
    env = {**environment, "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    build = [sys.executable, "-m", "mcr_jax", "build"]
    done = subprocess.run(build, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"--revision={hub.commit}" in done.stdout
    load = done.stdout.strip().splitlines()[-1].partition("in Python: ")[2]
    code = f"{load}; print(len(cases), cases[0]['final_diagnosis'].decode())"
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    read = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd="/", timeout=100
    )
    assert read.stdout.split() == ["200", "Quillfever"], read.stderr
    (info,) = (tmp_path / "tfds").rglob("metadata.json")
    assert json.loads(info.read_text())["origin"].endswith(hub.commit)
