"""A config is complete and typed; unknown fields and wrong values are refused in one line."""

import importlib.util
import json
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from mcr_jax import config as configs
from mcr_jax.cli.main import main
from mcr_jax.config_fields import FIELDS as RECORDS
from mcr_jax.config_fields import FREEZING_ARTIFACTS, RESUME_MUTABLE, Field
from mcr_jax.errors import McrError, UsageError
from mcr_jax.model.shape import PROJECTIONS

FIELDS = dict(configs.fields(configs.default()))
SHIPPED = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py"))


def with_field(name: str, value) -> ConfigDict:
    """A config that says nothing but `name`."""
    made = section = ConfigDict()
    *parents, last = name.split(".")
    for parent in parents:
        section[parent] = ConfigDict()
        section = section[parent]
    section[last] = value
    return made


def refusal(name: str, value) -> str:
    with pytest.raises(UsageError) as refused:
        configs.check(with_field(name, value), "mine.py")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.promise(
    "An unknown field or a value of another type is refused, with the closest name."
)
@pytest.mark.parametrize("name", FIELDS)
def test_a_misspelt_field_is_refused_with_the_name_that_was_meant(name):
    assert refusal(name + "x", 1) == (
        f"mine.py: unknown config field {name}x; did you mean {name}?"
    )
    with pytest.raises(UsageError, match=f"^unknown config field {name}x; did you mean "):
        configs.check_field(name + "x")
    configs.check_field(name)


def test_a_field_like_no_other_is_refused_without_a_guess():
    assert refusal("train.qqq", 1) == "mine.py: unknown config field train.qqq"
    assert refusal("qqq.steps", 1) == "mine.py: unknown config field qqq"


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_refused(name):
    kind = type(FIELDS[name])
    wrong = {int: [1.5, "1", None, True, (1,)], float: ["1", None, True, (1.0,)]}
    wrong |= {str: [1, None, True, ("a",)], tuple: ["a", 1, None, True], bool: [1, "yes", None]}
    for value in wrong[kind]:
        assert refusal(name, value) == (
            f"mine.py: config field {name} takes {kind.__name__}, not {value!r}"
        )


def test_a_section_is_no_value_and_a_value_no_section():
    assert "a section or a value" in refusal("train", 3)
    assert "a section or a value" in refusal("seed.of", 3)


@pytest.mark.parametrize("stop", [("",), ("a", "a"), ("\ufffd",), (1,)])
def test_a_stop_that_can_never_end_a_completion_is_refused(stop):
    assert "sample.stop" in refusal("sample.stop", stop)


@pytest.mark.parametrize(
    ("kept", "compute", "asked", "expected"),
    [
        ("float32", "float32", "", "float32"),
        ("float32", "bfloat16", "", "bfloat16"),
        ("bfloat16", "float32", "", "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "float32"),
    ],
)
def test_weights_are_sampled_as_training_computes_unless_the_config_says_otherwise(
    kept, compute, asked, expected
):
    config = configs.default()
    config.model.dtype, config.train.compute, config.sample.dtype = kept, compute, asked
    assert configs.sampling_dtype(configs.check(config, "mine.py")) == expected


def test_an_integer_stands_for_a_float_and_compares_as_one():
    resolved = configs.check(with_field("optim.weight_decay", 0), "mine.py")
    assert isinstance(resolved.optim.weight_decay, float)


def test_the_targets_of_adapters_are_those_that_the_decoder_knows():
    for targets in (PROJECTIONS, *((name,) for name in PROJECTIONS)):
        resolved = configs.check(with_field("lora.targets", targets), "mine.py")
        assert resolved.lora.targets == targets


def test_a_resolved_config_takes_no_further_field():
    resolved = configs.check(ConfigDict(), "mine.py")
    with pytest.raises(AttributeError):
        resolved.train.stepz = 3


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_one_record_with_a_default_that_it_accepts_and_a_meaning(name):
    field = RECORDS[name]
    assert field.accepts(field.default) and field.default == FIELDS[name]
    words = field.meaning.split()
    assert len(words) > 1 or "|" in field.meaning
    assert words[0] not in {"What", "Where", "How", "Of"} and not field.meaning.endswith(".")


def outside(field: Field) -> list:
    """Values of the field's type that are next to those allowed."""
    kind = type(field.default)
    if field.choices:
        known = field.choices
        if kind is tuple:
            return [(), (known[0], known[0]), (*known, "no such")]
        return [f"{known[-1]}x", "no such"]
    low, high = field.within
    ends = [(low, -1), (high, 1)]
    found = [
        math.nextafter(end, way * math.inf) if kind is float else end + way
        for end, way in ends
        if math.isfinite(end)
    ]
    return found + ([math.nan, math.inf, -math.inf] if kind is float else [])


@pytest.mark.parametrize("name", [n for n, field in RECORDS.items() if outside(field)])
def test_every_choice_and_every_end_of_a_range_is_enforced(name):
    field = RECORDS[name]
    for value in outside(field):
        assert refusal(name, value) == (
            f"mine.py: config field {name} is {field.allowed}, not {value!r}"
        )
    right = [end for end in field.within if math.isfinite(end)]
    if field.choices:
        several = isinstance(field.default, tuple)
        right = [(choice,) if several else choice for choice in field.choices]
    for value in right:
        value = type(field.default)(value)
        assert dict(configs.fields(configs.check(with_field(name, value), "")))[name] == value


def test_a_new_field_is_declared_in_one_place(monkeypatch, capsys):
    field = Field(3, "rounds of a fictional game", within=(1, 5), frozen="results")
    monkeypatch.setitem(RECORDS, "train.rounds", field)
    assert configs.default().train.rounds == 3
    assert configs.frozen(configs.default())["train.rounds"] == 3
    assert configs.identity(configs.default())["train.rounds"] == 3
    configs.check_field("train.rounds")
    assert refusal("train.rounds", 6) == ("mine.py: config field train.rounds is 1 to 5, not 6")
    main(["configs", "--fields"])
    lines = capsys.readouterr().out.splitlines()
    assert "train.rounds = 3  rounds of a fictional game (1 to 5; frozen by results)" in lines
    assert [line.split()[0] for line in lines] == list(RECORDS)


def test_a_field_is_frozen_by_what_rests_on_it_and_a_resume_may_change_the_rest():
    assert {field.frozen for field in RECORDS.values()} == {RESUME_MUTABLE, *FREEZING_ARTIFACTS}
    frozen = configs.frozen(configs.default())
    assert {"seed", "model.width", "train.steps", "train.traces"} <= frozen.keys()
    assert not {"sample.n", "stitch.model", "judge.name", "mesh.fsdp", "name"} & frozen.keys()
    assert not {"train.keep", "train.patience", "train.remat", "train.accumulate"} & frozen.keys()
    by_content = {n for n, field in RECORDS.items() if field.by_content}
    assert by_content == frozen.keys() - configs.identity(configs.default()).keys() != set()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_is_whole_and_survives_its_record(path, tmp_path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    resolved = configs.check(module.get_config(), path.name)
    recorded = tmp_path / "config.json"
    recorded.write_text(json.dumps(json.loads(resolved.to_json())))
    assert dict(configs.fields(configs.load(recorded))) == dict(configs.fields(resolved))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"train"', "{'seed': 1}"])
def test_a_broken_record_is_one_line_that_names_the_file(text, tmp_path):
    recorded = tmp_path / "config.json"
    recorded.write_text(text)
    with pytest.raises(McrError) as refused:
        configs.load(recorded)
    assert str(refused.value).startswith(f"{recorded}: unreadable: ")
    assert "\n" not in str(refused.value)


def test_a_missing_record_is_one_line(tmp_path):
    with pytest.raises(McrError, match="unreadable"):
        configs.load(tmp_path / "config.json")


def test_a_record_of_fewer_fields_gets_the_defaults(tmp_path):
    recorded = tmp_path / "config.json"
    recorded.write_text('{"seed": 7, "sample": {"models": ["sft"]}}')
    loaded = configs.load(recorded)
    assert (loaded.seed, loaded.sample.models) == (7, ("sft",))
    assert loaded.train.steps == configs.default().train.steps


@pytest.mark.parametrize("models", [(), ("sft", "sft")])
def test_a_model_is_sampled_once(models):
    message = refusal("sample.models", models)
    assert message.endswith(f"sample.models is some models, each once, not {models!r}")


@pytest.mark.parametrize("day", ["yesterday", ""])
def test_a_date_that_is_no_day_is_refused(day):
    message = refusal("tokenizer.date", day)
    assert message.endswith(f"tokenizer.date is a day such as 2024-07-26, not {day!r}")
