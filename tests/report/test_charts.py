"""Charts and evidence show exactly their data."""

import itertools
import math
import sys
import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.metrics import Chart
from mcr_jax.quotes import find
from mcr_jax.report import charts, svg
from mcr_jax.report.evidence import segments, visible

METRIC = {"value": 0.5, "low": 0.4, "high": 0.6}
NOTHING = {"value": None, "low": None, "high": None}


def _curve(models):
    names = [f"accuracy@{k}" for k in (1, 5, 10)]
    named = {m: {f"accuracy@{k}": v for k, v in at_k.items()} for m, at_k in models.items()}
    return charts.of_metrics(Chart("curve", "Title", "", "axis"), names, named, {})


def _histogram(models):
    by_case = {m: [{"recall": value} for value in values] for m, values in models.items()}
    return charts.of_metrics(Chart("histogram", "Title", "", "axis"), ["recall"], {}, by_case)


def _texts(drawing, tag):
    return [element.text for element in ElementTree.fromstring(str(drawing)).iter(tag)]


def test_every_chart_is_well_formed_whatever_a_model_is_called():
    name = "<script>&'\"</script>"
    drawings = [
        _curve({name: {"1": METRIC, "5": METRIC}, "empty": {"1": NOTHING}}),
        _histogram({name: [0, 0.5, 1], "empty": []}),
        charts.recall_accuracy(name, 0, [(0.5, 0.5), (0, 1)]),
        charts.loss([{"step": 1, "loss": 2.0}]),
        charts.intervals([METRIC, NOTHING, None]),
        charts.share_bar(0.5, 2),
    ]
    for drawing in drawings:
        ElementTree.fromstring(str(drawing))
        assert "<script>" not in drawing


def test_the_accuracy_chart_tells_value_and_interval_on_hover():
    titles = _texts(_curve({"sft": {"1": METRIC, "5": METRIC, "10": NOTHING}}), "title")
    assert titles == [
        f"sft, accuracy@{k}: 50.0\xa0%, interval 40.0\xa0% to 60.0\xa0%" for k in (1, 5)
    ]


def test_every_marker_stands_on_the_tick_of_its_k_and_figures_are_clear_of_each_other_and_axis():
    low, alike = {"value": 0.0, "low": 0.0, "high": 0.1}, {"value": 0.01, "low": 0.0, "high": 0.1}
    models = {name: {"1": m, "5": METRIC} for name, m in (("a", low), ("b", alike), ("c", low))}
    root = ElementTree.fromstring(str(_curve(models)))
    ticks = sorted(float(line.get("x1")) for line in root.findall("line[@class='tick']"))
    whiskers = [line for line in root.findall("line") if "whisker" in line.get("class")]
    upright = [float(line.get("x1")) for line in whiskers if line.get("x1") == line.get("x2")]
    assert sorted(upright) == sorted(3 * ticks)
    assert sorted(float(e.get("cx")) for e in root.findall("circle")) == ticks
    axis = float(root.find("line[@class='axis']").get("y1"))
    values = [e for e in root.findall("text") if "value" in e.get("class")]
    for x in {e.get("x") for e in values}:
        lines = sorted(float(e.get("y")) for e in values if e.get("x") == x)
        assert len(lines) == 3 and lines[-1] < axis
        assert min(b - a for a, b in itertools.pairwise(lines)) >= 12


def test_a_plot_without_variation_is_not_drawn():
    assert _curve({"a": {"1": METRIC}, "b": {"1": METRIC, "5": NOTHING}}) is None
    assert _histogram({"a": [0.01, 0.05], "b": [0.0], "c": []}) is None
    for points in ([], [(0.5, 0.5)], [(0, 0), (0, 1)], [(0, 1), (0.5, 1)]):
        assert charts.recall_accuracy("a", 0, points) is None


def test_intervals_of_all_models_stand_on_one_axis_each_in_its_lane():
    other = {"value": 0.5, "low": 0.1, "high": 0.9}
    root = ElementTree.fromstring(str(charts.intervals([METRIC, None, other])))
    bars = [e for e in root.findall("line") if "wide" in e.get("class")]
    (a, b), (c, d) = ([float(e.get(name)) for name in ("x1", "x2")] for e in bars)
    assert a + b == pytest.approx(c + d) and (d - c) == pytest.approx(4 * (b - a))
    assert len({e.get("y1") for e in bars}) == 2


def test_the_histogram_counts_every_case_once_and_tenths_in_their_bin():
    recalls = [i / 10 for i in range(11)] + [0.1 + 0.2, 2 / 3]
    titles = _texts(_histogram({"m": recalls}), "title")
    counts = [int(title.split(": ")[1].split()[0]) for title in titles]
    assert sum(counts) == len(recalls)
    assert counts == [1, 1, 1, 2, 1, 1, 2, 1, 1, 2]


def test_bubbles_count_the_cases_at_one_place():
    titles = _texts(charts.recall_accuracy("m", 0, [(0.5, 1), (0.5, 1), (0, 0)]), "title")
    assert [title.split(":")[0] for title in titles] == ["2 cases", "1 case"]


def test_no_bubble_hides_another():
    tenths = [i / 10 for i in range(11)]
    points = [(x + 0.03, y) for x in tenths for y in tenths for _ in range(9)] + [(0, 0)]
    circles = ElementTree.fromstring(str(charts.recall_accuracy("m", 0, points))).findall("circle")
    places = [tuple(float(e.get(name)) for name in ("cx", "cy", "r")) for e in circles]
    assert len(places) == 121
    for (x, y, r), (u, v, s) in itertools.combinations(places, 2):
        assert math.hypot(x - u, y - v) >= r + s - 0.5


def test_a_step_trained_twice_after_a_restart_counts_once_and_nan_not_at_all():
    rows = [{"step": 1, "loss": 9.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]
    path = ElementTree.fromstring(str(charts.loss(rows))).find("path")
    assert path.get("d").count("L") == 0
    assert charts.loss([]) is None
    assert charts.loss([{"step": 1, "tokens": 8}]) is None


def test_a_long_curve_is_thinned():
    rows = [{"step": step, "loss": 1.0 + step % 7} for step in range(100_000)]
    assert len(charts.loss(rows)) < 20_000


def test_correlation_is_pearsons_or_not_defined():
    assert charts.correlation([(0, 0), (0.5, 0.5), (1, 1)]) == pytest.approx(1)
    assert charts.correlation([(0, 0), (1, 1)]) is None
    assert charts.correlation([(0.5, 0), (0.5, 1), (0.5, 0.3)]) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within_range(low, span):
    found = svg.ticks(low, low + span)
    assert 1 <= len(found) <= 12
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)


words = st.lists(st.sampled_from(["ab", "b", "ab b", " ", "\n"]), max_size=9).map(" ".join)


@given(st.text(max_size=60) | words, st.lists(st.lists(st.text(max_size=8) | words), max_size=3))
def test_segments_together_are_the_trace_and_have_the_statements_that_quote_them(trace, quotes):
    place = 0
    for text, numbers in segments(trace, quotes):
        end = place + len(text)
        assert trace[place:end] == text and numbers == [
            number
            for number, quoted in enumerate(quotes, start=1)
            if any(a <= place and end <= b for quote in quoted for a, b in find(quote, trace))
        ]
        place = end
    assert place == len(trace)


def test_quotes_are_found_by_their_words_and_may_overlap():
    trace = "There were “chalk–white\n nails” and CO₂ was high."
    quotes = [['"Chalk-white nails"'], ["nails” and CO2"], ["never said"], ["…"], ["halk"]]
    found = segments(trace, quotes)
    assert [(text, numbers) for text, numbers in found if numbers] == [
        ("chalk–white\n ", [1]),
        ("nails", [1, 2]),
        ("” and CO₂", [2]),
    ]


def test_hidden_characters_become_visible():
    assert visible("a\u202eb\0c\r\nd\te") == "a⟨U+202E⟩b⟨U+0000⟩c\nd\te"
    assert visible("Ünï “cöde” 😀") == "Ünï “cöde” 😀"
    assert visible("\ufeffn\u200bo\U000e0041") == "⟨U+FEFF⟩n⟨U+200B⟩o⟨U+E0041⟩"
    assert visible("❤\ufe0f क\u200d") == "❤⟨U+FE0F⟩ क⟨U+200D⟩"


# Format characters that show, or shape what shows: Arabic signs, hieroglyphs' places.
SHOWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
SHOWN |= {*range(0x13430, 0x13456)}


def test_every_control_format_character_and_selector_is_shown_and_no_letter_is():
    for code in range(sys.maxunicode + 1):
        character, kind = chr(code), unicodedata.category(chr(code))
        name = unicodedata.name(character, "")
        if character in "\t\n" or code in SHOWN:
            assert visible(character) == character
        elif kind in ("Cc", "Cf", "Cs", "Zl", "Zp") or "VARIATION SELECTOR" in name:
            hidden = "\n" if character == "\r" else f"⟨U+{code:04X}⟩"
            assert visible(character) == hidden, hex(code)
        elif "FILLER" not in name and kind != "Mn" and kind != "Cn":
            assert visible(character) == character, hex(code)


@pytest.mark.parametrize(
    "code", [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, 0xFFF0, 0xE0FFF]
)
def test_default_ignorable_marks_fillers_and_unassigned_are_shown(code):
    assert visible(f"a{chr(code)}b") == f"a⟨U+{code:04X}⟩b"
