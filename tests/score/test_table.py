"""Terminal table of results.json: nothing is cropped, whatever the width and the names."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from workdirs import cases, scored

from mcr_jax import artifacts
from mcr_jax.cli.score import show
from mcr_jax.metrics import METRICS, of_model
from mcr_jax.score.table import table

NAME_CHARS = 80
LETTERS = "JQWXYZ"  # in no other word of the table


@pytest.fixture(scope="module", params=[2, 3, 6])
def models(request, tmp_path_factory):
    """results.json of models with five samples per case, named by one long word each."""
    rng = np.random.default_rng(request.param)
    made = {
        letter * NAME_CHARS: cases((rng.random((12, 10)) < 0.5).astype(int).tolist())
        for letter in LETTERS[: request.param]
    }
    first = next(iter(made.values()))
    first["0" * 64][0] = None  # so that a cell has all of its lines
    workdir = scored(tmp_path_factory.mktemp("table"), made)
    return workdir.read_json(workdir.results)


def _printed(results, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(results))
    return console.export_text()


def _refuse_cropped(text, results):
    """Asserts that every number is whole and that every name is whole wherever it stands."""
    assert "…" not in text
    for model in results["models"].values():
        for found in of_model(model).values():
            assert f"{found['value']:.3f}" in text
            assert f"[{found['low']:.3f}, {found['high']:.3f}]" in text
    for entry in results["comparisons"]:
        assert f"{entry['difference']:+.3f}" in text
        assert f"[{entry['low']:+.3f}, {entry['high']:+.3f}]" in text
    words = set(text.split())
    assert {word for m in METRICS for word in m.short.split()} <= words
    for name in results["models"]:
        assert text.count(name[0]) % NAME_CHARS == 0 and text.count(name[0]) >= 4 * NAME_CHARS


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_no_number_and_no_name_is_cropped(models, width):
    text = _printed(models, width)
    assert max(map(len, text.splitlines())) <= width
    _refuse_cropped(text, models)


def test_a_pipe_gets_everything(models, capsys):
    show(models)
    _refuse_cropped(capsys.readouterr().out, models)


def test_models_are_rows_in_the_order_of_the_config_with_differences_of_neighbours_below(tmp_path):
    made = scored(tmp_path, {"sft": cases([1, 0, 1]), "base": cases([0] * 3), "o3": cases([1] * 3)})
    text = _printed(artifacts.results(made), 80)
    rows = re.findall(r"^(\w+(?: − \w+)?) +[+-]?\d\.\d{3} ", text, re.MULTILINE)
    assert rows == ["sft", "base", "o3", "base − sft", "o3 − base"]
    assert "Pairs are of neighbours in the list: `mcr compare` has all." in " ".join(text.split())


def test_two_models_stand_side_by_side_with_the_difference_in_80_columns(tmp_path):
    made = scored(tmp_path, {"base": cases([0, 1, 1]), "sft": cases([1, 1, 1])})
    lines = _printed(made.read_json(made.results), 80).splitlines()
    assert lines[1].split() == ["metric", "base", "sft", "sft", "−", "base"]
    assert lines[3].split() == ["accuracy@1", "0.667", "1.000", "+0.333"]
    assert "neighbours" not in " ".join(lines)


def test_the_title_names_the_judge_and_nothing_in_it_acts_on_a_terminal(tmp_path):
    made = scored(tmp_path, {"m": cases([1, 0])})
    results = made.read_json(made.results)
    assert _printed(results, 80).splitlines()[0].endswith("interval], judge offline")
    results["judge"]["name"] = "openai:\x1b[2J"
    results["judge"]["note"] = "several versions (\x1b]0;v1\x07)"
    text = _printed(results, 80)
    assert "judge openai:?[2J" in text and "(?]0;v1?)" in text and "\x1b" not in text


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1, 0, 1], [1, 0, 1], "equal in all 3 cases"),
        ([1], [1], "equal in the only case"),
        ([1, 0, 1], [0, 1, 1], ""),
    ],
)
def test_models_that_are_equal_in_all_cases_have_a_line_beside_the_interval(tmp_path, a, b, words):
    made = scored(tmp_path, {"a": cases(a), "b": cases(b)})
    results = made.read_json(made.results)
    (entry,) = (c for c in results["comparisons"] if c["metric"] == "accuracy@1")
    assert entry["equal"] == sum(x == y for x, y in zip(a, b, strict=True))
    assert entry["difference"] == 0.0 and entry["low"] < 0.0 < entry["high"]
    text = _printed(results, 80)
    assert "+0.000" in text and (words in text if words else "equal in" not in text)
    for c in results["comparisons"]:
        del c["equal"]  # as an older version wrote it
    assert "equal in" not in _printed(results, 80)
