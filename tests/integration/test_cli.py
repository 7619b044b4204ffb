"""Command line: help, exit statuses, and one line per error."""

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from mcr_jax import synthetic
from mcr_jax.cases import write_jsonl
from mcr_jax.cli.main import COMMANDS

HEAVY = ("jax", "numpy", "tensorflow_datasets", "tensorflow", "google.genai", "pyarrow", "rich")
SMALL = ("--config.synthetic.train=8", "--config.model.kv_heads=2", "--config.synthetic.test=1")
DESIGNED = {"demo", "build", "train", "eval", "sample", "judge", "score", "report", "verify"}


def test_help_lists_every_command(here):
    said = here.ok("--help")
    assert COMMANDS.keys() >= {*DESIGNED, "doctor"}
    for name, what in COMMANDS.items():
        assert name in said and what in said
    assert "not for patient care" in said


def test_help_imports_nothing_heavy(mcr):
    code = (
        "import sys\nfrom mcr_jax.cli.main import main\n"
        f"main(['--help'])\nprint('imported:', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=mcr.env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_and_names_its_flags(here, command):
    said = here.ok(command, "--help")
    assert said.startswith(f"mcr {command}: ")
    flags = {
        "build": "--source",
        "doctor": "",
        "configs": "",
        "launch": "--dry-run",
        "compare": "--out",
    }
    assert flags.get(command, "--workdir") in said


def test_mcr_alone_is_a_wrong_call(mcr):
    assert mcr().returncode == 2


@pytest.mark.promise("2 the call is invalid")
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["trian"], "no command 'trian'; did you mean train?"),
        (["frobnicate"], "no command 'frobnicate'"),
        (["train", "--wrkdir=w"], "did you mean --workdir?"),
        (["train", "--config.train.stepz=3", "--workdir=w"], "did you mean train.steps?"),
        (["demo", "--workdir=w", "--config.train.steps=many"], "train.steps"),
        (["demo", "--workdir=w", "--config.train.steps"], "train.steps"),
        (["demo", "--workdir=w", "--config.train=3"], "train"),
        (["demo", "--workdir=w", "again"], "'again' is not a flag"),
        (["train", "--config=nowhere.py", "--workdir=w"], "nowhere.py: no such config file"),
        (["train", "--config=broken.py", "--workdir=w"], "broken.py"),
        (["train", "--config=broken.py:arg", "--workdir=w"], "broken.py"),
        (["train", "--config=typo.py", "--workdir=w"], "did you mean train.steps?"),
        (["train", "--config=empty.py", "--workdir=w"], "get_config"),
        (["train", "--config=nothing.py", "--workdir=w"], "nothing.py"),
        (["train", "--config=good.py"], "--workdir=DIR is missing"),
        (["train", "--workdir=w"], "w: no such workdir; a new one needs --config=NAME or"),
        (["build", "--source=good.jsonl", "--revision=main"], "--revision needs the Hub"),
        (["build", "--source=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["build", "--source=good.py"], "good.py ends in none of .jsonl, .parquet"),
        (["demo", "--workdir=w", "--judge=astrology"], "astrology"),
        (["demo", "--workdir=w", *SMALL, "--config.model.heads=3"], "kv_heads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call_is_status_2_and_one_line(here, argv, told):
    config = "from mcr_jax import config\ndef get_config():\n    c = config.default()\n    {}\n"
    sources = {
        "good.py": config.format("return c"),
        "typo.py": "from ml_collections import ConfigDict\ndef get_config():\n"
        "    return ConfigDict({'train': {'stepz': 3}})\n",
        "broken.py": "def get_config(:\n",
        "empty.py": "",
        "nothing.py": config.format("pass"),
    }
    for name, source in sources.items():
        (here.folder / name).write_text(source)
    assert told in here.fails(2, *argv)
    assert not list(here.folder.glob("w/*.sqlite"))


def test_doctor_tells_devices_and_never_a_key(mcr):
    said = mcr.ok("doctor", GEMINI_API_KEY="fictional-key-98765")
    assert "GEMINI_API_KEY" in said and "cpu" in said
    assert "98765" not in said


@pytest.fixture
def source(here):
    """A JSONL file of eight good fictional cases, and its rows."""
    path = here.folder / "clinic.jsonl"
    write_jsonl(synthetic.cases(5, {"train": 6, "test": 2}), path)
    return path, path.read_text().splitlines()


def _build(here):
    return here("build", "--source=clinic.jsonl", "--data_dir=tfds")


@pytest.mark.promise("`mcr build` reports all bad rows, with file, row and field")
@pytest.mark.promise("Errors are one line that names the file, row or field.")
def test_build_names_file_row_and_field_of_every_bad_row(here, source):
    path, lines = source
    lines[1] = lines[1][:-5]
    lines[3] = json.dumps({**json.loads(lines[3]), "final_diagnosis": " "})
    without = json.loads(lines[4])
    del without["case_prompt"]
    lines[4] = json.dumps(without)
    lines[6] = lines[0]
    path.write_text("\n".join(lines))
    done = _build(here)
    assert done.returncode == 1
    summary, *rows = done.stderr.splitlines()
    assert summary.startswith("mcr build: 4 problems in 1 file")
    wanted = ("row 2: is not JSON", "row 4, field final_diagnosis: is empty")
    wanted += ("row 5, field case_prompt: is missing", "row 7: is the same case as")
    for line, problem in zip(rows, wanted, strict=True):
        assert f"clinic.jsonl, {problem}" in line
    assert not (here.folder / "tfds").exists()


@pytest.mark.parametrize("text", ["", "\n\n", "not JSON at all\n", "[1, 2]\n", "\x00\xff\n"])
def test_build_refuses_what_holds_no_cases(here, text):
    (here.folder / "clinic.jsonl").write_bytes(text.encode("latin-1"))
    line = here.fails(1, "build", "--source=clinic.jsonl", "--data_dir=tfds")
    assert "clinic.jsonl" in line


def test_an_empty_split_is_named(here, source, tiny_config):
    here.ok("build", "--source=clinic.jsonl", "--data_dir=tfds")
    flags = (f"--config={tiny_config}", "--config.data.data_dir=tfds", "--config.data.source=")
    line = here.fails(1, "sample", *flags, "--workdir=w", "--config.data.eval_split=val")
    assert "split val" in line and "holds no cases" in line
    line = here.fails(2, "sample", *flags, "--workdir=w", "--config.data.eval_split=tset")
    assert "data.eval_split" in line and "'tset'" in line


def test_stages_that_lack_what_they_read_name_the_stage_to_run(here, tiny_config):
    flags = (f"--config={tiny_config}", "--workdir=w")
    assert "mcr build" in here.fails(1, "train", *flags)
    assert "mcr build" in here.fails(1, "sample", *flags)
    assert "mcr sample" in here.fails(1, "score", *flags)
    assert "mcr sample" in here.fails(1, "verify", *flags)


def test_a_workdir_that_is_a_file_is_refused(here, tiny):
    (here.folder / "w").write_text("I am a file")
    for command in ("demo", "verify"):
        assert here.fails(1, command, "--workdir=w", *tiny[:1] * (command == "demo")).startswith(
            f"mcr {command}: w: cannot use this workdir"
        )
    assert (here.folder / "w").read_text() == "I am a file"


@pytest.mark.parametrize("damage", ["", "[1]", '{"seed": "seven"}', '{"sed": 7}'])
def test_a_damaged_config_json_is_named(here, workdir, damage):
    (workdir / "config.json").write_text(damage)
    done = here("verify", f"--workdir={workdir}")
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert "config.json" in line


@pytest.mark.parametrize("command", ["verify", "demo"])
@pytest.mark.parametrize("damage", ["{", "[1]"])
def test_a_damaged_manifest_json_is_named(here, workdir, tiny, damage, command):
    (workdir / "manifest.json").write_text(damage)
    flags = tiny if command == "demo" else ()
    line = here.fails(1, command, f"--workdir={workdir}", *flags)
    assert "manifest.json" in line


def test_a_ledger_of_garbage_is_named_by_every_stage_that_opens_it(here, workdir, tiny):
    (workdir / "ledger.sqlite").write_bytes(b"this is no database at all\n" * 999)
    for command in ("sample", "judge", "verify", "report"):
        assert "ledger.sqlite" in here.fails(1, command, f"--workdir={workdir}")
    (workdir / "results.json").unlink()
    assert "ledger.sqlite" in here.fails(1, "demo", f"--workdir={workdir}", *tiny)


def test_a_ledger_torn_in_the_middle_is_named(here, workdir):
    ledger = workdir / "ledger.sqlite"
    content = ledger.read_bytes()
    ledger.write_bytes(content[: len(content) // 2])
    assert "ledger.sqlite" in here.fails(1, "score", f"--workdir={workdir}")


def test_a_ledger_of_a_later_schema_is_refused(here, workdir):
    with sqlite3.connect(workdir / "ledger.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    line = here.fails(1, "score", f"--workdir={workdir}")
    assert "ledger.sqlite" in line and "99" in line


@pytest.mark.parametrize("damage", ["", "[1]"])
def test_verify_names_a_damaged_results_json(here, workdir, damage):
    (workdir / "results.json").write_text(damage)
    done = here("verify", f"--workdir={workdir}")
    assert done.returncode == 1
    assert "results.json" in done.stdout + done.stderr


def test_a_damaged_checkpoint_is_named(here, workdir):
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for file in newest.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"garbage")
    (workdir / "ledger.sqlite").unlink()
    line = here.fails(1, "sample", f"--workdir={workdir}", "--config.sample.models=('sft',)")
    assert "checkpoint" in line and str(workdir) in line


def test_a_damaged_dataset_and_tokenizer_are_named(here, workdir):
    shutil.copy(workdir / "config.json", workdir / "tokenizer" / "tokenizer.model")
    assert "tokenizer.model" in here.fails(1, "sample", f"--workdir={workdir}")
    for file in (workdir / "data").rglob("*-test.parquet-*"):
        file.write_bytes(b"garbage")
    assert "test" in (line := here.fails(1, "report", f"--workdir={workdir}")) and "data" in line
