"""A config is whole, typed and plain; what does not belong is refused in one line."""

import importlib.util
import json
import pathlib

import pytest
from ml_collections import ConfigDict

from mcr_jax import config as configs
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
    "An unknown field or a value of another type is refused, with the name that is closest."
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**31),
        ("train.steps", 0),
        ("train.eval_every", 0),
        ("train.checkpoint_every", 0),
        ("train.keep", 0),
        ("train.rows", 0),
        ("sample.n", -1),
        ("lora.rank", 100_000),
        ("lora.alpha", 0.0),
        ("lora.alpha", float("nan")),
        ("optim.learning_rate", float("inf")),
        ("optim.learning_rate", float("nan")),
        ("optim.learning_rate", -1e-3),
        ("optim.warmup_steps", -1),
        ("optim.weight_decay", -0.1),
        ("optim.clip_norm", 0.0),
        ("optim.b1", 1.0),
        ("optim.b2", 1.0),
        ("train.epochs", float("inf")),
        ("sample.temperature", float("inf")),
        ("stitch.temperature", float("nan")),
        ("judge.timeout", float("inf")),
        ("model.norm_eps", float("nan")),
        ("stitch.attempts", 0),
        ("stitch.coverage", 1.5),
        ("stitch.shortest", -0.1),
        ("stitch.longest", 0.9),
    ],
)
def test_a_number_that_no_stage_can_work_with_is_refused(name, value):
    message = refusal(name, value)
    assert name in message
    assert str(value) in message


@pytest.mark.parametrize("name", ["train.traces", "stitch.model", "stitch.judge"])
def test_a_word_that_is_no_choice_is_refused_with_those_that_are(name):
    message = refusal(name, "embroidered")
    assert name in message and "'embroidered'" in message
    assert configs.default()[name.split(".")[0]][name.split(".")[1]] in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sample.top_k", -1), ("sample.tensor", -1), ("sample.slots", 0)),
        *(("sample.dtype", "int8"), ("sample.kv_dtype", "float16")),
        *(("sample.stop", ("",)), ("sample.stop", ("a", "a")), ("sample.stop", ("\ufffd",))),
        *(("sample.stop", (1,)),),
    ],
)
def test_what_nothing_can_be_sampled_with_is_refused(name, value):
    assert name in refusal(name, value)


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


def test_every_frozen_name_is_a_field_or_a_section():
    for name in configs.FROZEN:
        assert any(field == name or field.startswith(f"{name}.") for field in FIELDS)
    frozen = configs.frozen(configs.default())
    assert {"seed", "model.width", "train.steps", "train.traces"} <= frozen.keys()
    assert not {"sample.n", "stitch.model", "judge.name", "mesh.fsdp", "name"} & frozen.keys()


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.dtype", "float8"),
        ("tokenizer.date", "yesterday"),
        ("tokenizer.date", ""),
        ("attention", "flash"),
        ("lora.targets", ("q", "x")),
        ("lora.targets", ("q", "q")),
        ("lora.targets", ()),
    ],
)
def test_a_text_that_no_stage_knows_is_refused(name, value):
    message = refusal(name, value)
    assert name in message
    assert repr(value) in message
