"""Decoding attention falls back to XLA where no kernel is available, and logs one line."""

import dataclasses

import jax
import pytest

from mcr_jax.generate.engine import kernels
from mcr_jax.generate.engine.state import Shape

SHAPE = Shape(slots=8, prompt_tokens=64, max_tokens=64)


@pytest.fixture
def choose(monkeypatch, caplog):
    """Chooses the kernel as on a device of another kind; also returns the log."""

    def choose(config, device: str, shape: Shape = SHAPE) -> tuple[str, list[str]]:
        monkeypatch.setattr(jax, "default_backend", lambda: device)
        kernels._log_once.cache_clear()
        kernels._compile_error.cache_clear()
        caplog.clear()
        with caplog.at_level("INFO", "mcr_jax"):
            kernels.choose(config, shape)
            chosen = kernels.choose(config, shape)
        return chosen, caplog.messages

    return choose


def test_a_cpu_uses_xla_and_logs_nothing(choose, tiny_shape):
    assert choose(tiny_shape, "cpu") == ("xla", [])


@pytest.mark.promise("one line reports each fallback to XLA")
@pytest.mark.parametrize(
    ("device", "changes", "says"),
    [
        ("gpu", {"dtype": "float32"}, "float32 arithmetic"),
        ("gpu", {"dtype": "bfloat16", "head_dim": 16}, "it needs an NVIDIA GPU"),
        ("tpu", {"dtype": "bfloat16", "head_dim": 64}, "a head size of 64"),
        ("tpu", {"dtype": "float16", "head_dim": 128}, "float16 arithmetic"),
    ],
)
def test_a_fallback_is_logged_once_with_its_reason(choose, tiny_shape, device, changes, says):
    config = dataclasses.replace(tiny_shape, **changes)
    assert choose(config, device) == (
        "xla",
        [f"decoding attention: xla (pallas on {device}: {says})"],
    )


def test_a_kernel_that_the_compiler_refuses_is_not_used(choose, tiny_shape):
    """The compiler of this CPU refuses kernels of a TPU."""
    config = dataclasses.replace(tiny_shape, dtype="bfloat16", head_dim=128)
    chosen, (line,) = choose(config, "tpu")
    assert chosen == "xla"
    assert line.startswith("decoding attention: xla (pallas on tpu: ")
    assert "tpu_custom_call" in line


@pytest.mark.parametrize(
    ("refused", "chosen", "says"),
    [
        (0, "gpu", []),
        (1, "gpu-32", ["pallas on gpu, 32 keys at a time (Shared memory size limit exceeded)"]),
        (2, "gpu-16", ["pallas on gpu, 16 keys at a time (Shared memory size limit exceeded)"]),
        (3, "xla", ["xla (pallas on gpu: Shared memory size limit exceeded)"]),
    ],
)
def test_a_gpu_without_the_shared_memory_reads_smaller_blocks(
    choose, tiny_shape, monkeypatch, refused, chosen, says
):
    """The kernel is lowered for an NVIDIA GPU; the errors of its compiler are simulated."""
    tried = []

    def compile(lowered):
        tried.append(lowered.as_text())
        if len(tried) <= refused:
            raise jax.errors.JaxRuntimeError("Shared memory size limit exceeded\nrequested 131072")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    monkeypatch.setattr(kernels, "_missing", lambda device: None)
    config = dataclasses.replace(tiny_shape, dtype="bfloat16", head_dim=256)
    assert choose(config, "gpu") == (chosen, [f"decoding attention: {line}" for line in says])
    assert len(tried) == len(set(tried)) == min(refused + 1, 3)  # another kernel each time


def test_xla_is_used_where_the_config_names_it(choose, tiny_shape):
    config = dataclasses.replace(tiny_shape, dtype="bfloat16", head_dim=128, attention="xla")
    assert choose(config, "tpu") == ("xla", [])
