"""What a device lacks falls to XLA, and is told in one line."""

import dataclasses

import jax
import pytest

from mcr_jax.generate.engine import kernels
from mcr_jax.generate.engine.state import Shape

SHAPE = Shape(slots=8, prompt_tokens=64, max_tokens=64)


@pytest.fixture
def told(monkeypatch, caplog):
    """Chooses as on a device of the kind; what was said."""

    def choose(config, device: str, shape: Shape = SHAPE) -> tuple[str, list[str]]:
        monkeypatch.setattr(jax, "default_backend", lambda: device)
        kernels._log_once.cache_clear()
        kernels._fault.cache_clear()
        caplog.clear()
        with caplog.at_level("INFO", "mcr_jax"):
            kernels.choose(config, shape)
            chosen = kernels.choose(config, shape)
        return chosen, caplog.messages

    return choose


def test_a_cpu_has_xla_without_a_word(told, tiny_shape):
    assert told(tiny_shape, "cpu") == ("xla", [])


@pytest.mark.parametrize(
    ("device", "changes", "says"),
    [
        ("gpu", {"dtype": "float32"}, "float32 arithmetic"),
        ("gpu", {"dtype": "bfloat16", "head_dim": 16}, "it needs an NVIDIA GPU"),
        ("tpu", {"dtype": "bfloat16", "head_dim": 64}, "a head size of 64"),
        ("tpu", {"dtype": "float16", "head_dim": 128}, "float16 arithmetic"),
    ],
)
def test_what_a_kernel_cannot_do_is_said_once(told, tiny_shape, device, changes, says):
    config = dataclasses.replace(tiny_shape, **changes)
    assert told(config, device) == (
        "xla",
        [f"decoding attention: xla (pallas on {device}: {says})"],
    )


def test_a_kernel_that_the_compiler_refuses_is_not_used(told, tiny_shape):
    """The compiler here is a CPU's, which takes no kernel of a TPU."""
    config = dataclasses.replace(tiny_shape, dtype="bfloat16", head_dim=128)
    chosen, (line,) = told(config, "tpu")
    assert chosen == "xla"
    assert line.startswith("decoding attention: xla (pallas on tpu: ")
    assert "CPU" in line


def test_xla_is_used_where_the_config_names_it(told, tiny_shape):
    config = dataclasses.replace(tiny_shape, dtype="bfloat16", head_dim=128, attention="xla")
    assert told(config, "tpu") == ("xla", [])
