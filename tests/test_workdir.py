"""Files of a workdir are written atomically, by one `mcr` at a time."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax import workdir as module
from mcr_jax.errors import McrError, UsageError
from mcr_jax.model.hf.safetensors_files import refuse_taken
from mcr_jax.paths import local_folder
from mcr_jax.workdir import Workdir, digest, read_json, storage_path

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("abé☃", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "runs" / "one")


def test_a_workdir_is_made_with_its_parents_and_opened_again(workdir):
    assert workdir.path.is_dir()
    workdir.write_json(workdir.results, {"schema": 1})
    assert Workdir(workdir.path).read_json(workdir.results) == {"schema": 1}


def test_a_path_that_cannot_be_a_workdir_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    for path in (file, file / "below", tmp_path / ("n" * 300)):
        with pytest.raises(McrError) as refused:
            Workdir(path)
        assert str(refused.value).startswith(f"{path}: cannot use this workdir: ")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["gs://b/run", pathlib.Path("gs://b/run"), "gs:/b/run"])
def test_an_address_makes_no_folder_of_its_name(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for use in (local_folder, Workdir, lambda out: refuse_taken(pathlib.Path(out))):
        with pytest.raises(UsageError, match="gs://b/run is not a local folder"):
            use(path)
    assert not os.listdir(tmp_path)
    assert local_folder("a:b/c") == pathlib.Path("a:b/c")


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(small_disk):
    workdir = Workdir(small_disk / "run")
    workdir.write_json(workdir.results, {"kept": True})
    with pytest.raises(McrError, match=r"results\.json: cannot write: No space left on device"):
        workdir.write_text(workdir.results, "x" * 600_000)
    assert workdir.read_json(workdir.results) == {"kept": True}
    assert os.listdir(workdir.path) == ["results.json"]


def test_a_write_that_fails_at_its_last_moment_leaves_no_rubbish(workdir):
    (workdir.report / "in the way").mkdir(parents=True)
    with pytest.raises(McrError, match=r"report\.html: cannot write: "):
        workdir.write_text(workdir.report, "<p>")
    assert os.listdir(workdir.path) == ["report.html"]


def test_a_written_file_can_be_read_by_others(workdir):
    workdir.write_text(workdir.report, "<p>é☃")
    assert workdir.report.stat().st_mode & 0o777 == 0o644
    assert workdir.report.read_text(encoding="utf-8") == "<p>é☃"


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    workdir = Workdir(tmp_path_factory.getbasetemp() / "json")
    workdir.write_json(workdir.scores, value)
    assert workdir.read_json(workdir.scores) == value


def test_reading_what_is_missing_or_broken_is_one_line(workdir):
    with pytest.raises(McrError, match=r"scores\.json: not there; run the stage"):
        workdir.read_json(workdir.scores)
    workdir.scores.write_bytes(b'{"\xff')
    with pytest.raises(McrError, match=r"scores\.json: unreadable"):
        workdir.read_json(workdir.scores)
    workdir.results.mkdir()
    with pytest.raises(McrError, match=r"results\.json: unreadable"):
        read_json(workdir.results)


def test_notes_of_all_sections_are_kept_and_the_newest_of_a_section_counts(workdir):
    workdir.note("data", {"cases": 3, "split": "test"})
    workdir.note("train", {"step": 6})
    workdir.note("data", {"cases": 4})
    manifest = workdir.read_json(workdir.manifest)
    assert manifest["data"] == {"cases": 4}
    assert manifest["train"] == {"step": 6}
    assert {"jax", "numpy"} <= manifest["environment"]["packages"].keys()


def test_a_command_reads_the_manifest_once_writes_changes_only_and_asks_git_once(
    workdir, monkeypatch
):
    counts = collections.Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(*name, call)

    counted((module, "read_json"), module.read_json)
    counted((module, "write_text"), module.write_text)
    counted((module.subprocess, "run"), module.subprocess.run)
    module.environment.cache_clear()
    workdir.note("data", {"cases": 1})
    counts.clear()
    with workdir.locked():
        for cases in (2, 2, 2):
            workdir.note("data", {"cases": cases})
            assert workdir.sections()["data"] == {"cases": cases}
    assert set(counts.values()) == {1} and (module.subprocess, "run") not in counts
    other = Workdir(workdir.path)  # another process, once the lock is free
    with other.locked():
        other.note("data", {"cases": 3})
    with workdir.locked():
        assert workdir.sections()["data"] == {"cases": 3}


def test_the_commit_and_whether_it_is_changed_are_those_of_git(monkeypatch, tmp_path):
    def git(*words):
        call = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "mcr_jax").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "mcr_jax" / "workdir.py"))
    module.environment.cache_clear()
    assert module.environment()["git"] is None
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=one")
    for dirty in (False, True):
        module.environment.cache_clear()
        assert module.environment()["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
        (tmp_path / "new").write_text("x")
    module.environment.cache_clear()


def test_one_that_does_not_write_leaves_nothing_reads_and_holds_nothing_up(workdir):
    workdir.note("train", {"step": 6})
    other = Workdir(workdir.path, writes=False)
    before = {path: path.read_bytes() for path in workdir.path.iterdir()}
    with workdir.locked(), other.locked():
        other.note("train", {"step": 7})
        other.write_text(other.report, "<p>")
        other.write_json(other.manifest, {})
        assert other.read_json(other.manifest)["train"] == {"step": 6}
    assert {p: p.read_bytes() for p in workdir.path.iterdir() if p.name != ".lock"} == before


def test_a_storage_path_is_an_absolute_folder_or_the_address_as_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for local in ("runs/one", pathlib.Path("runs/one"), tmp_path / "runs" / "one"):
        assert str(storage_path(local)) == str(tmp_path / "runs" / "one")
    assert str(storage_path("gs://bucket/run/one") / "3") == "gs://bucket/run/one/3"


def test_a_second_holder_of_the_lock_is_refused_until_the_first_lets_go(workdir):
    with workdir.locked():
        with (
            pytest.raises(McrError, match="another mcr is at work in this workdir"),
            Workdir(workdir.path).locked(),
        ):
            pass
        code = (
            "import sys; from mcr_jax.workdir import Workdir\nwith Workdir(sys.argv[1]).locked(): 0"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(workdir.path)], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "another mcr is at work" in done.stderr
    with workdir.locked():
        pass


def test_the_lock_is_let_go_when_the_work_fails(workdir):
    with pytest.raises(ZeroDivisionError), workdir.locked():
        raise ZeroDivisionError
    with workdir.locked():
        pass


def test_a_lock_that_cannot_be_made_is_one_line(workdir):
    (workdir.path / ".lock").mkdir()
    with pytest.raises(McrError, match="cannot use this workdir"), workdir.locked():
        pass


@given(st.dictionaries(st.text("abc", min_size=1), plain))
def test_a_digest_follows_from_the_value_not_from_the_order_of_its_keys(value):
    backwards = dict(reversed(list(value.items())))
    assert digest(value) == digest(backwards) == digest(json.loads(json.dumps(value)))
    assert digest(value) != digest({**value, "another": 1})
