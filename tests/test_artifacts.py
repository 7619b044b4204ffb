"""A changed or damaged JSON file of a workdir is one line that names file and field."""

import copy
import json

import pytest

from mcr_jax import artifacts, completion, config
from mcr_jax.cases import Case
from mcr_jax.cli.score import show
from mcr_jax.compare import forest, terminal
from mcr_jax.compare.chosen import chosen, described, differences
from mcr_jax.compare.pairs import numbers
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment import seal
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.report import page
from mcr_jax.score.results import score
from mcr_jax.score.verify import verify
from mcr_jax.stitch import stage as stitching
from mcr_jax.workdir import Workdir

CASE = Case(
    case_prompt="A lamplighter came with humming knees.",
    diagnostic_reasoning="The humming knees suggest it.",
    final_diagnosis="Harrow fever",
    split="test",
)
FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "cases": 3}
STITCHING = {
    "model": "base",
    "confidence": 0.95,
    "cases": {"train": 3},
    "first": {"coverage": FIGURE, "length_ratio": {"value": 1.0, "cases": 3}},
    "kept": {"coverage": FIGURE},
    "joined": {"share": FIGURE, "reasons": {"coverage": 1}},
    "distortion": {
        "judge": "offline",
        "first": {"with_turned": FIGURE},
        "kept": {"with_added": FIGURE},
    },
    "traces": "t",
}
OTHERS = (None, True, -1, 1e308, 10**40, float("nan"), "x", [0], {"x": []})


def _config():
    c = config.default()
    c.sample.n = 1
    c.score.resamples = 20
    c.data.data_dir = "workdir"
    return config.check(c, "test")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two models with one completion each, judged, scored and reported."""
    workdir = Workdir(tmp_path_factory.mktemp("artifacts"))
    verdicts = {
        "diagnosis": ('{"same": true}', {"same": True}),
        "reasons": (
            '[{"number": 1, "quotes": []}]',
            {"found": [False], "verified": [False], "quotes": [[]]},
        ),
    }
    with Ledger(workdir.ledger) as ledger:
        for model in _config().sample.models:
            row = RowKey(stage="sample", case=CASE.fingerprint, model=model, sample=0)
            said = {row: (completion.render("why", "Harrow fever"), None)}
            said |= {row.judged(stage, "offline"): given for stage, given in verdicts.items()}
            for at, (text, verdict) in said.items():
                ledger.declare(Scope(at.stage, model, at.judge), {at: "d"})
                fields = {"outcome": Outcome.OK, "text": text, "verdict": verdict}
                ledger.write(Attempt(row=at, digest="d", attempt=1, **fields))
    workdir.write_json(workdir.config, json.loads(_config().to_json()))
    for name in ("data", "judge", "train", "stitch", "eval", "sample.base"):
        workdir.note(name, {"identity": "i", "inputs": {"a": 1}, "dataset": "d", "step": 3})
    workdir.write_json(workdir.stitching, STITCHING)
    workdir.metrics.write_text(
        '{"step": 1, "loss": 2.5, "val_loss": NaN}\n{"step": 2, "loss": 1}\n'
    )
    score(workdir, _config())
    page.report(workdir, _config(), [CASE])
    return workdir


@pytest.fixture
def kept(workdir, capsys):
    """Puts back every file that a test changes."""
    files = {path: path.read_bytes() for path in workdir.path.iterdir() if path.is_file()}
    yield
    for path, content in files.items():
        path.write_bytes(content)
    capsys.readouterr()  # tables


def _scored(w):
    score(w, _config())


def _verified(w):
    verify(w, _config(), [CASE])


def _reported(w):
    page.report(w, _config(), [CASE])


def _shown(w):
    show(artifacts.results(w))


def _opened(w):
    seal.finished(Experiment(_config(), w), "eval")


def _resumed(w):
    Experiment(_config(), w).refuse_other({"dataset": "d"})


def _stitched(w):
    experiment = Experiment(_config(), w)
    stitching._done(experiment, {"a": 1})
    stitching._refuse_to_replace(experiment, {"a": 1})
    stitching._show(artifacts.stitching(w))


def _compared(w):
    models = chosen([str(w.path)])
    found = numbers(models)
    lines = [described(name, values, models) for name, values in differences(models).items()]
    terminal.table(found)
    forest.page(found, lines, {})


READERS = {
    "manifest.json": (_scored, _verified, _opened, _resumed, _stitched, _compared),
    "config.json": (_opened,),
    "results.json": (_verified, _reported, _shown, _compared),
    "scores.json": (_verified, _reported, _compared),
    "stitch.json": (_stitched,),
}


def _places(value, place=()):
    """Every place in plain data, but for the items of a list after the first."""
    yield place
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if (isinstance(value, list))
        else ()
    )
    for key, inner in inside:
        yield from _places(inner, (*place, key))


def _replaced(value, place, other):
    if not place:
        return other
    changed = copy.deepcopy(value)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = other
    return changed


@pytest.mark.parametrize("name", READERS)
def test_a_value_of_another_form_is_one_line_or_no_harm_to_every_reader(workdir, name, kept):
    path, refused = workdir.path / name, 0
    stored = json.loads(path.read_bytes())
    stored.pop("environment", None)
    for number, place in enumerate(_places(stored)):
        # Every value at what stands near the top, some of them further in.
        for other in OTHERS if len(place) < 2 else OTHERS[number % 5 :: 5]:
            changed = json.dumps(_replaced(stored, place, other))
            for read in READERS[name]:
                path.write_text(changed)
                try:
                    read(workdir)
                except McrError as error:
                    refused += 1
                    assert "\n" not in str(error)
                    other_file = isinstance(error, UsageError) or read is _reported
                    assert other_file or name in str(error), (place, other)
    assert refused > 20


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"a": "\\ud800"}', "[" * 5000, '{"a": ' + "9" * 5000]
)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_no_object_is_one_line_that_names_it(workdir, name, text, kept):
    (workdir.path / name).write_text(text)
    for read in READERS[name]:
        with pytest.raises(McrError, match=name) as refused:
            read(workdir)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "row, field",
    [
        ("[1]", "it is not an object"),
        ('"step"', "it is not an object"),
        ('{"step": "1"}', "field step is not a number"),
        ('{"step": 1, "loss": []}', "field loss is not a number"),
        ('{"step": 1, "val_loss": "nan"}', "field val_loss is not a number"),
        ('{"step": 1, "loss": 1e999}', "field loss is not a number"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_a_row_of_the_training_log_of_another_form_is_named(workdir, row, field, kept):
    workdir.metrics.write_text(f'{{"step": 1}}\n{row}\n')
    with pytest.raises(McrError, match=rf"metrics\.jsonl, row 2: {field}"):
        _reported(workdir)


def test_the_line_names_the_field_by_its_place(workdir):
    results = workdir.read_json(workdir.results)
    results["models"]["sft"]["accuracy"]["1"]["low"] = "0.1"
    with pytest.raises(McrError, match=r"f: field models\.sft\.accuracy\.1\.low is not a number"):
        artifacts.check("f", results, artifacts.RESULTS)
    with pytest.raises(McrError, match=r"f: field a\.b is missing"):
        artifacts.check("f", {"a": {}}, {"a": {"b": str}})
