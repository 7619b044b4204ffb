"""A full disk at any stage is one line and loses no work: with more space the demo resumes."""

import os
import pathlib
import shutil
import subprocess

import pytest
from processes import said

pytestmark = pytest.mark.slow

PAGE = os.sysconf("SC_PAGE_SIZE")
_ROOMY = 8 << 20  # bytes; the ledger's write-ahead log takes several pages a row until it closes


class Disk:
    """A file system in memory whose size a test sets."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._mount("-t", "tmpfs", "-o", f"size={PAGE}", "tmpfs")

    def leave(self, free: int) -> None:
        """Resizes it so that `free` bytes are left, in whole pages."""
        held = shutil.disk_usage(self.path).used
        self._mount("-o", f"remount,size={held + free - free % PAGE}")

    def _mount(self, *options: str) -> None:
        subprocess.run(
            ["mount", *options, str(self.path)], check=True, capture_output=True, text=True
        )


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mounted = Disk(path)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"a file system of limited size cannot be mounted here: {error}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def _size(*paths: pathlib.Path) -> int:
    """Bytes of the pages that hold the files in `paths`."""
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


def test_a_disk_full_at_any_stage_is_one_line_and_enlarged_the_demo_goes_on(
    mcr, finished, tiny, disk
):
    workdir, done = disk.path / "demo", finished.path
    command = ("demo", f"--workdir={workdir}", *tiny)

    def fails_for_want_of_space(free: int, *args: object) -> str:
        disk.leave(free)
        line = mcr.fails(1, *(args or command))
        assert "No space left" in line or "no space left" in line or "disk is full" in line, line
        assert str(workdir) in line
        return line

    assert "/cases" in fails_for_want_of_space(2 * PAGE)
    assert "medcasereasoning" in fails_for_want_of_space(_size(done / "cases") + 4 * PAGE)
    data = _size(done / "data", done / "tokenizer")
    assert "/checkpoints" in fails_for_want_of_space(data + _size(done / "checkpoints") // 3)
    disk.leave(2 * _size(done / "checkpoints"))
    mcr.ok("train", f"--workdir={workdir}")

    for quarters in range(4, 12):  # how many rows a transaction holds depends on the machine
        line = fails_for_want_of_space(quarters * _size(done / "ledger.sqlite") // 4)
        if drawn := said(workdir):
            break
    assert "ledger.sqlite" in line or "manifest.json" in line
    assert 0 < len(drawn) < len(said(done))
    disk.leave(_ROOMY)
    mcr.ok("eval", f"--workdir={workdir}")
    (workdir / "report.html").unlink()
    little = _size(done / "report.html") - PAGE
    line = fails_for_want_of_space(little, "report", f"--workdir={workdir}")
    assert "report.html" in line

    disk.leave(_ROOMY)
    mcr.ok(*command)
    assert drawn.items() <= said(workdir).items()
    assert said(workdir) == said(done)
    assert (workdir / "results.json").read_bytes() == finished.results
