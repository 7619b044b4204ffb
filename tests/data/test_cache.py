"""What is kept in a file comes back whole or is made anew, whoever wrote it, however it ended."""

import subprocess
import sys

import numpy as np
import pytest

from mcr_jax.data.cache import cached
from mcr_jax.errors import McrError

ARRAYS = {
    "ids": np.arange(1000, dtype=np.int32),
    "mask": np.arange(77) % 3 == 0,
    "none": np.empty((0, 32), np.uint8),
    "table": np.arange(12, dtype=np.int64).reshape(3, 4),
}
WRITER = """
import pathlib, sys
import numpy as np
from mcr_jax.data.cache import cached
path, size, times = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for _ in range(times):
    path.unlink(missing_ok=True)
    print("at work", flush=True)
    made = cached(path, lambda: {"ids": np.arange(size)})
    assert made["ids"].sum() == size * (size - 1) // 2
"""


def refuse():
    raise AssertionError("made again")


def writer(path, size: int, times: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), str(size), str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_arrays_come_back_as_they_were_made_and_are_not_made_again(tmp_path):
    check(cached(tmp_path / "new" / "file", lambda: ARRAYS))
    found = cached(tmp_path / "new" / "file", refuse)
    check(found)
    assert not any(array.flags.writeable for array in found.values())
    assert all(array.flags.aligned for array in found.values())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(cached(None, lambda: ARRAYS))
    assert not list(tmp_path.iterdir())


def test_a_file_cut_short_changed_or_foreign_is_made_anew_in_one_line(tmp_path, capsys):
    path = tmp_path / "file"
    cached(path, lambda: ARRAYS)
    whole = path.read_bytes()
    cut = [whole[:end] for end in (0, 1, 31, 32, 200, len(whole) // 2, len(whole) - 1)]
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for at in (0, 31, 32, 50, 200, len(whole) // 2, len(whole) - 1)
    ]
    for content in (*cut, *flipped, whole + b"\0", b"{}\n", b"\x93NUMPY" * 40):
        path.write_bytes(content)
        capsys.readouterr()
        check(cached(path, lambda: ARRAYS))
        (said,) = capsys.readouterr().out.splitlines()
        assert str(path) in said
        assert "made anew" in said
        check(cached(path, refuse))


def test_processes_that_write_the_same_file_never_see_it_half_written(tmp_path):
    path = tmp_path / "file"
    writers = [writer(path, 50_000, 30) for _ in range(3)]
    said = [w.communicate()[0].splitlines() for w in writers]
    assert said == [["at work"] * 30] * 3  # and none that a file is half there and made anew
    assert [w.returncode for w in writers] == [0] * 3
    np.testing.assert_array_equal(cached(path, refuse)["ids"], np.arange(50_000))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_killed_writer_leaves_a_whole_file_or_none(tmp_path):
    path = tmp_path / "file"
    at_work = writer(path, 2_000_000, 1000)
    for _ in range(5):  # lines: it is between a removal and a rename
        at_work.stdout.readline()
    at_work.kill()
    at_work.communicate()
    found = cached(path, refuse if path.exists() else lambda: {"ids": np.arange(2_000_000)})
    np.testing.assert_array_equal(found["ids"], np.arange(2_000_000))


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk):
    with pytest.raises(McrError, match=r"/file: cannot write: No space left on device$"):
        cached(small_disk / "file", lambda: {"ids": np.zeros(10**6)})
    assert not list(small_disk.iterdir())


def test_a_folder_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(McrError, match=r"/file: cannot write: Is a directory$"):
        cached(tmp_path / "file", lambda: ARRAYS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
