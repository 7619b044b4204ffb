"""Shipped configs load from a checkout and from a wheel, and fit the hardware that they name."""

import importlib
import re
from pathlib import Path

import pytest

from mcr_jax import config as configs
from mcr_jax.cli.flags import Flags
from mcr_jax.errors import UsageError
from mcr_jax.model.devices import devices
from mcr_jax.plan.training import plan

FOLDER = Path(configs.__file__).parents[1] / "configs"
SFT = sorted(path.stem for path in FOLDER.glob("sft_*.py"))
# full   8 x H100   26.4 GB of 80   --config.a.b=VALUE
PROMISE = re.compile(
    r"^    (full|lora)   (\d+ x \S+) +([\d.]+) GB of (\d+)(?:   --config\.(\S+)=(\d+))?$", re.M
)


def promises():
    for name in SFT:
        for match in PROMISE.finditer((FOLDER / f"{name}.py").read_text(encoding="utf-8")):
            yield pytest.param(name, *match.groups(), id=f"{name}-{match[1]}-{match[2]}")


def get_config(name, arg):
    return importlib.import_module(f"mcr_jax.configs.{name}").get_config(arg)


def from_flags(spec, *more):
    flags = Flags("train", "")
    flags.experiment()
    flags.parse([f"--config={spec}", "--config.model.folder=elsewhere", *more])
    return flags.config()


def test_there_are_five_with_two_variants_each_and_each_names_hardware():
    assert len(SFT) == 5
    named = {param.values[:2] for param in promises()}
    assert named == {(name, arg) for name in SFT for arg in ("full", "lora")}


@pytest.mark.parametrize(("name", "arg", "hardware", "needed", "has", "field", "value"), promises())
def test_a_variant_fits_the_hardware_that_its_docstring_names(
    name, arg, hardware, needed, has, field, value
):
    c = get_config(name, arg)
    if field:
        c.update_from_flattened_dict({field: int(value)})
    made = plan(c, devices(hardware))
    assert made.problem == ""
    # What the docstring says may round, and lag behind the estimate a little.
    assert made.memory.total / 1e9 == pytest.approx(float(needed), rel=0.05)
    assert made.devices.bytes == int(has) * 10**9


@pytest.mark.parametrize("name", SFT)
@pytest.mark.parametrize("arg", ["full", "lora"])
def test_a_config_is_the_same_by_its_path_and_installed(name, arg):
    by_path = from_flags(f"{FOLDER / name}.py:{arg}")
    installed = configs.check(get_config(name, arg), name)
    assert by_path.model.folder == "elsewhere"
    with by_path.unlocked():
        by_path.model.folder = ""
    assert by_path == installed
    assert bool(installed.lora.rank) == (arg == "lora")


@pytest.mark.parametrize("name", SFT)
def test_without_an_argument_all_weights_are_trained(name):
    assert from_flags(f"{FOLDER / name}.py").lora.rank == 0


@pytest.mark.parametrize("name", SFT)
def test_another_argument_is_refused_in_a_line(name):
    with pytest.raises(UsageError, match="takes full or lora after its colon, not 'qlora'"):
        from_flags(f"{FOLDER / name}.py:qlora")


def test_steps_are_not_set_where_epochs_count():
    spec = f"{FOLDER / SFT[0]}.py"
    with pytest.raises(UsageError, match=r"^config.train.epochs=3 sets the steps; add --config"):
        from_flags(spec, "--config.train.steps=10")
    alone = from_flags(spec, "--config.train.steps=10", "--config.train.epochs=0")
    assert (alone.train.steps, alone.train.epochs) == (10, 0)


@pytest.mark.parametrize("text", ["q,v", "('q', 'v')", "q, v"])
def test_a_tuple_of_words_may_be_written_with_commas(text):
    config = from_flags(f"{FOLDER / SFT[0]}.py:lora", f"--config.lora.targets={text}")
    assert config.lora.targets == ("q", "v")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def get_config():\n    return 1", "takes no :ARG"),
        ("def get_config(arg):\n    raise RuntimeError('no such day')", "no such day"),
        ("def get_config(arg):\n    raise TypeError('no such type')", "no such type"),
    ],
)
def test_a_config_file_that_fails_is_refused_in_a_line_with_its_reason(tmp_path, code, told):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UsageError, match=told) as refused:
        from_flags(f"{tmp_path}/mine.py:full")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SFT)
def test_checkpoints_fall_on_steps_with_a_validation_loss_or_none_is_the_best(name):
    c = get_config(name, "full")
    assert c.train.keep_best and c.sample.checkpoint == "best"
    assert c.train.checkpoint_every % c.train.eval_every == 0
