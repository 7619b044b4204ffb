"""metrics.jsonl survives kills, whole lines up to where a run goes on; TensorBoard has the same."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from mcr_jax.errors import McrError
from mcr_jax.train.metrics_log import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(path, step, **more):
    log = MetricsLog(path, **more)
    log.go_on(step)
    return log


def events(folder):
    """What TensorBoard's files hold, file by file in the order they were begun."""
    found = []
    for file in sorted(folder.iterdir(), key=lambda p: (p.stat().st_mtime_ns, p.name)):
        content, at = file.read_bytes(), 0
        while at < len(content):  # TFRecord: length, its checksum, the record, its checksum
            (size,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


@pytest.fixture
def path(tmp_path):
    log = opened(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        log.write(step, loss=1 / step)
    log.write(3, val_loss=0.5)
    return tmp_path / "metrics.jsonl"


def test_lines_come_back_as_they_were_written(path):
    written = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 1 / 3}]
    assert lines(path) == [*written, {"step": 3, "val_loss": 0.5}]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4])
def test_going_on_drops_what_lies_beyond_the_step(path, step):
    before = lines(path)
    log = opened(path, step)
    assert lines(path) == [line for line in before if line["step"] <= step]
    log.write(step + 1, loss=0.1)
    assert lines(path)[-1] == {"step": step + 1, "loss": 0.1}


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_cut_short_by_a_kill_is_dropped(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    opened(path, 3).write(4, loss=0.1)
    kept = whole.decode().splitlines()[: 4 if cut == 1 else 3]
    assert path.read_text().splitlines()[:-1] == kept


def test_a_file_of_rubbish_starts_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\0 not json\n" + b'{"step": 1}\n')
    opened(path, 5)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", ["[1]", "3", '{"loss": 1}', '{"step": "x"}'])
def test_a_line_that_is_no_metric_ends_what_is_kept(path, line):
    with open(path, "a") as file:
        file.write(line + '\n{"step": 3, "loss": 9.0}\n')
    opened(path, 9)
    assert len(lines(path)) == 4


def test_a_folder_in_the_way_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(McrError, match=r"metrics\.jsonl: cannot read metrics: Is a directory"):
        opened(tmp_path / "metrics.jsonl", 0)


def test_tensorboard_gets_the_same_values_and_forgets_what_a_kill_undid(tmp_path):
    first = opened(tmp_path / "metrics.jsonl", 0, tensorboard=tmp_path / "tb")
    first.write(1, loss=2.0)
    first.write(2, loss=1.5)  # killed here
    again = opened(tmp_path / "metrics.jsonl", 1, tensorboard=tmp_path / "tb")
    again.write(2, loss=1.25)
    again.write(2, val_loss=3.0)
    again.close()
    told = events(tmp_path / "tb")
    values = [(e.step, v.tag, v.simple_value) for e in told for v in e.summary.value]
    expected = [(1, "train/loss", 2.0), (2, "train/loss", 1.5), (2, "train/loss", 1.25)]
    assert values == [*expected, (2, "val/loss", 3.0)]
    assert [e.step for e in told if e.HasField("session_log")] == [1, 2]


def test_a_metric_that_cannot_be_written_is_one_line(tmp_path):
    log = opened(tmp_path / "metrics.jsonl", 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        McrError, match=r"^\S+metrics\.jsonl: cannot write metrics: Is a directory$"
    ):
        log.write(1, loss=0.1)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_one_line(small_disk, tensorboard):
    folder = small_disk / "tb" if tensorboard else None
    log = opened(small_disk / "metrics.jsonl", 0, tensorboard=folder)
    with pytest.raises(McrError, match="cannot write metrics: No space left on device"):
        for step in range(20_000):
            log.write(step, **{f"loss{n}": 1.0 for n in range(8)})
    log.close()
