"""Notices about models behind a network: shutdown dates, and other models under the same name."""

import datetime

import pytest

from mcr_jax.generate import notices

TODAY = datetime.date(2026, 11, 27)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("shuts down 2027-01-14", "warning: o shuts down on 2027-01-14, in 48 days"),
        ("DEPRECATED; retires 2026-11-27; Use another.", "on 2026-11-27, in 0 days"),
        ("shuts down 2026-10-23", "was to shut down on 2026-10-23, 35 days ago"),
        ("shuts down 2027-02-25", ""),  # in 90 days
        ("shuts down 2027-02-24", "in 89 days"),
        ("shuts down 2027-13-40", ""),
        ("DEPRECATED", ""),
        ("", ""),
    ],
)
def test_a_shutdown_within_90_days_is_a_warning(status, words):
    line = notices.warning("o", status, TODAY)
    assert words in line and bool(line) is bool(words)


@pytest.mark.parametrize(
    ("asked", "observed", "same"),
    [
        ("gpt-4o-mini", "gpt-4o-mini", True),
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", True),
        ("openai/gpt-4o-mini", "gpt-4o-mini-2024-07-18", True),
        ("models/gemini-2.5-flash", "gemini-2.5-flash-001", True),
        ("gemini-2.5-flash", "gemini-2.5-flash-preview-09-2025", True),
        ("Qwen/Qwen3-8B", "qwen/qwen3-8b", True),
        ("/models/tiny/", "tiny@main", True),
        ("any", "", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gemini-2.5-flash", "gemini-3.5-flash-lite", False),
        ("deepseek-v4-pro", "deepseek-v4.1-flash", False),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
    ],
)
def test_a_dated_snapshot_is_the_model_and_another_name_is_not(asked, observed, same):
    assert notices.is_snapshot(asked, observed) is same


def test_each_notice_is_one_line_without_control_characters():
    reported = {
        ("other\x1b[2J", "ends\x07 2026-12-01"),
        ("m-001", ""),
        ("m", "ends\x07 2026-12-01"),
    }
    lines = notices.lines("name", "m", reported, TODAY)
    assert lines == [
        "the service says of name: ends? 2026-12-01",
        "warning: name shuts down on 2026-12-01, in 4 days: no number of it can be repeated then",
        "name was asked for m, and the service reports other?[2J",
    ]
