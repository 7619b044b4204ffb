"""A stop string ends an answer at the fewest tokens that hold it, whenever the finder is called."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr_jax.generate.stops import StopFinder, cut

EOS = 7
# By id: ASCII letters, single bytes of "é" and "€", some longer pieces, and one without text.
PIECES = [b"", b"a", b"b", b"<", b">", b"</an", b"swer>", b"", b"\xc3", b"\xa9", b"\xe2", b"\x82"]
PIECES += [b"\xac", b" ", b"ab", b"bab", b"\xff"]
STOPS = st.sampled_from(["a", "ab", "</answer>", "é", "€b", "b€", " ab", "><", "aé€b", "bbbbbbbb"])
IDS = st.lists(st.integers(0, len(PIECES) - 1).filter(lambda i: i != EOS), max_size=70)


def decode(ids):
    """Decodes as a byte-level tokenizer."""
    return b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")


def first(ids, stops):
    """Returns the expected number of tokens by trying every prefix."""
    counts = range(1, len(ids) + 1)
    return next((n for n in counts if any(s in decode(ids[:n]) for s in stops)), None)


def search(ids, stops, moments=()):
    """Calls a finder at these moments and at the end; returns the first result that is not None.

    In between, the finder is called with another answer that begins alike.
    """
    finder = StopFinder(decode, tuple(stops), (EOS,))
    for moment in sorted({*moments, len(ids)}):
        tokens = np.array(ids[:moment], np.int32)
        found = finder(tokens)
        if found is not None:
            return found
        finder(np.append(tokens[: moment // 2], np.int32(1)))
    return None


@settings(max_examples=400)
@given(IDS, st.sets(STOPS, min_size=1, max_size=3), st.sets(st.integers(0, 70), max_size=5))
def test_the_fewest_tokens_that_hold_a_stop_string_are_found_at_any_moment(ids, stops, moments):
    assert search(ids, stops, moments) == search(ids, stops) == first(ids, stops)


def test_the_end_token_is_no_part_of_the_text():
    assert search([1, EOS], ["a"]) == 1
    assert search([2, EOS], ["a"]) is None
    assert search([EOS], ["a"]) is None


def test_real_pieces_are_found_where_they_stand(clinic_tokenizer):
    text = "<think>\nviolet nails, ≥ 38.5 °C — “rime”\n</think>\n<answer>blue rime</answer>" * 3
    ids = clinic_tokenizer.encode(text)
    for stop in ("</answer>", "≥ 3", "”\n</th", "rime</a", " °", "e"):
        finder = StopFinder(clinic_tokenizer.decode, (stop,), clinic_tokenizer.eos_ids)
        counts = range(1, len(ids) + 1)
        expected = next(n for n in counts if stop in clinic_tokenizer.decode(ids[:n]))
        for step in (1, 7, 64):
            found = (finder(np.array(ids[:n])) for n in range(step, len(ids) + step, step))
            assert next(n for n in found if n) == expected
        kept = cut(clinic_tokenizer.decode(ids[:expected]), (stop,))
        assert kept == text[: text.index(stop) + len(stop)]


@pytest.mark.parametrize("step", [16, 64])
def test_repeated_calls_decode_each_token_only_a_few_times(step):
    decoded = 0

    def counting(ids):
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    finder, tokens = StopFinder(counting, ("</answer>",), (EOS,)), np.ones(4096, np.int32)
    for count in range(step, 4097, step):
        assert finder(tokens[:count]) is None
    assert decoded < 8 * 4096


@pytest.mark.promise("A completion keeps the stop string that ends it.")
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", ("two",), "one two"),
        ("one two three", ("three", "two"), "one two"),
        ("one two", ("four",), "one two"),
        ("abcd", ("abcd", "bc"), "abc"),
        ("", ("a",), ""),
        ("one", (), "one"),
    ],
)
def test_a_text_is_cut_behind_the_stop_string_that_ends_first(text, stops, expected):
    assert cut(text, stops) == expected
