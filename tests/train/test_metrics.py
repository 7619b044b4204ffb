"""metrics.jsonl survives kills: whole lines up to the step a run goes on from."""

import json

import pytest

from mcr_jax.errors import McrError
from mcr_jax.train.metrics import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        log.write(step, loss=1 / step)
    log.write(3, val_loss=0.5)
    return tmp_path / "metrics.jsonl"


def test_lines_come_back_as_they_were_written(path):
    written = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 1 / 3}]
    assert lines(path) == [*written, {"step": 3, "val_loss": 0.5}]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4])
def test_reopening_drops_what_lies_beyond_the_step(path, step):
    before = lines(path)
    log = MetricsLog(path, step)
    assert lines(path) == [line for line in before if line["step"] <= step]
    log.write(step + 1, loss=0.1)
    assert lines(path)[-1] == {"step": step + 1, "loss": 0.1}


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_cut_short_by_a_kill_is_dropped(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    MetricsLog(path, 3).write(4, loss=0.1)
    kept = whole.decode().splitlines()[: 4 if cut == 1 else 3]
    assert path.read_text().splitlines()[:-1] == kept


def test_a_file_of_rubbish_starts_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\0 not json\n" + b'{"step": 1}\n')
    MetricsLog(path, 5)
    assert path.read_bytes() == b""


def test_a_metric_that_cannot_be_written_is_one_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        McrError, match=r"^\S+metrics\.jsonl: cannot write metrics: Is a directory$"
    ):
        log.write(1, loss=0.1)


def test_a_full_disk_is_one_line(small_disk):
    log = MetricsLog(small_disk / "metrics.jsonl", 0)
    with pytest.raises(McrError, match="cannot write metrics: No space left on device"):
        for step in range(20_000):
            log.write(step, note="x" * 100)
