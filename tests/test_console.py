"""Progress in a log: sparse lines, and a remaining time without the slow first unit."""

import io
import re
import threading

import pytest

from mcr_jax import console


@pytest.fixture
def clock(clock_of):
    return clock_of(console)


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_rest_is_told_from_the_pace_after_the_first_unit(clock, capsys):
    with console.track("train", 10) as progress:
        clock.now += 500
        progress.update(1, "loss 3")
        for done in (2, 3, 4):
            clock.now += 12
            progress.update(done)
    assert lines(capsys) == [
        "  train: 1/10  loss 3",
        "  train: 2/10, 96 s left",
        "  train: 3/10, 84 s left",
        "  train: 4/10, 72 s left",
    ]


def test_what_was_done_before_a_resume_makes_no_pace(clock, capsys):
    with console.track("train", 100, done=90) as progress:
        progress.update(90, "compiling")
        clock.now += 60
        progress.update(91)
        clock.now += 20
        progress.update(93)
    assert lines(capsys) == ["  train: 91/100", "  train: 93/100, 70 s left"]


def test_at_most_a_line_in_ten_seconds_and_one_at_the_total(clock, capsys):
    with console.track("x", 54, status=lambda: "") as progress:
        for _ in range(54):
            clock.now += 1
            progress.advance()
        clock.now += 60
        progress.refresh()
    said = lines(capsys)
    assert [line.split()[1].rstrip(",") for line in said] == [
        f"{done}/54" for done in (10, 20, 30, 40, 50, 54)
    ]
    assert said[-1] == "  x: 54/54"


def test_work_that_is_done_within_ten_seconds_or_was_done_before_says_nothing(clock, capsys):
    with console.track("x", 2) as progress:
        clock.now += 9
        progress.advance(2)
    with console.track("x", 2, done=2) as progress:
        clock.now += 60
        progress.refresh()
    with console.track("x", 0) as progress:  # a total that is known later
        progress.total = 3
        clock.now += 60
        progress.update(3)
    assert lines(capsys) == ["  x: 3/3"]


def test_a_status_stands_in_place_of_notes_and_is_shown_while_nothing_ends(clock, capsys):
    told = iter(["none yet", "5 tokens/s", "7 tokens/s"])
    with console.track("sample", 10, status=lambda: next(told, "")) as progress:
        for _ in range(2):
            clock.now += 11
            progress.refresh()
        clock.now += 11
        progress.advance(1)
    assert lines(capsys) == [
        "  sample: 0/10  none yet",
        "  sample: 0/10  5 tokens/s",
        "  sample: 1/10  7 tokens/s",
    ]


def test_refreshing_from_a_thread_loses_no_unit():
    with console.track("sample", 10_000, status=lambda: "") as progress:
        over = threading.Event()

        def refresh():
            while not over.is_set():
                progress.refresh()

        thread = threading.Thread(target=refresh)
        thread.start()
        for _ in range(5000):
            progress.advance()
        over.set()
        thread.join()
    assert progress.done == 5000


def test_a_silent_process_prints_nothing_until_it_is_to_speak_again(clock, capsys):
    console.silence(True)
    try:
        console.say("twice")
        with console.track("train", 10) as progress:
            clock.now += 60
            progress.update(3)
    finally:
        console.silence(False)
    console.say("once")
    assert lines(capsys) == ["once"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_cuts_the_note_and_no_count_or_time(width, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    note = "loss 1.234, epoch 0.52, 12,345 tokens/s, MFU 0.42"
    with console.track("reasons of sft", 13_092) as progress:
        progress.update(1200, note)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    (line,) = {line.rstrip() for line in re.split(r"[\r\n]+", shown) if "1200/13092" in line}
    assert len(line) <= width and " -:--:-- " in line
    assert line.endswith(note) if width == 120 else line.endswith("…")


def test_on_a_terminal_a_total_that_is_known_only_later_is_shown(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    with console.track("download", 0) as progress:
        progress.update(3, "MB", 7)
    assert "3/7" in screen.getvalue()
