"""The bytes that `memory` tells are those that XLA allocates for the real step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from quick import quick

from mcr_jax.model.abstract import abstract_decoder, parts
from mcr_jax.model.shape import DecoderConfig, LoraConfig
from mcr_jax.model.sharding import AXES, abstract, make_mesh, shardings
from mcr_jax.plan.training_bytes import memory, parameters
from mcr_jax.train.mesh import batch_sharding
from mcr_jax.train.optimizer import optimizer
from mcr_jax.train.step import init_state, train_step

OPTIM = {"learning_rate": 1e-2, "warmup_steps": 0, "steps": 8, "weight_decay": 0.1}
OPTIM |= {"clip_norm": 1.0, "b1": 0.9, "b2": 0.95}
# Large enough that what a step computes outweighs what the compiler adds to any program.
SHAPE = DecoderConfig(
    vocab_size=1024,
    layers=6,
    width=256,
    heads=8,
    kv_heads=4,
    head_dim=32,
    mlp_width=1024,
    tied=False,
)
TINY = dataclasses.replace(SHAPE, vocab_size=48, layers=2, width=16, mlp_width=32, tied=True)
ADAPTERS = LoraConfig(rank=4, alpha=8)
REMATS = ("none", "dots", "full")


def compiled(shape, axes, rows, row_tokens, accumulate=1, mu_dtype="float32"):
    """XLA's memory of the step, each device's."""
    mesh = make_mesh(*axes)
    tx, schedule = optimizer(**OPTIM, mu_dtype=mu_dtype)
    graph, params = abstract_decoder(shape)
    ids = jax.ShapeDtypeStruct((rows, row_tokens), jnp.int32, sharding=batch_sharding(mesh))
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), ids)
    batch["weights"] = jax.ShapeDtypeStruct(ids.shape, jnp.float32, sharding=ids.sharding)
    trained, frozen = parts(params) if shape.lora else (params, {})
    state = jax.eval_shape(lambda params: init_state(params, tx), trained)
    state, frozen = (abstract(x, shardings(mesh, x)) for x in (state, frozen))
    step = train_step(graph, tx, schedule, accumulate=accumulate)
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch, frozen)
        return lowered.compile().memory_analysis()


def told(shape, axes, rows, row_tokens, accumulate=1, mu_dtype="float32"):
    return memory(
        *(shape, AbstractMesh(axes, AXES)),
        rows=rows,
        row_tokens=row_tokens,
        accumulate=accumulate,
        compute="float32",
        tx=optimizer(**OPTIM, mu_dtype=mu_dtype)[0],
        fused=False,
    )


def between_steps(made):
    return made.parameters + made.optimizer + made.batch


def added(analysis, made):
    """What a step needs beyond what lies there between steps: as told, over XLA's."""
    return (made.total - between_steps(made)) / analysis.temp_size_in_bytes


@pytest.mark.parametrize(("axes", "lora"), [((2, 2, 2), None), ((1, 4, 2), ADAPTERS)])
def test_what_lies_on_a_device_between_steps_is_exact_to_the_byte(axes, lora):
    shape = dataclasses.replace(TINY, lora=lora, qkv_bias=True, qk_norm=True)
    analysis = compiled(shape, axes, 8, 16)
    assert analysis.argument_size_in_bytes == between_steps(told(shape, axes, 8, 16))


@pytest.mark.slow
def test_weights_and_means_in_bfloat16_are_counted_as_such():
    shape = dataclasses.replace(TINY, dtype="bfloat16")
    analysis = compiled(shape, (2, 4, 1), 8, 16, mu_dtype="bfloat16")
    made = told(shape, (2, 4, 1), 8, 16, mu_dtype="bfloat16")
    assert analysis.argument_size_in_bytes == between_steps(made)


# (2, 1, 4) cuts rows and layers, (8, 1, 1) holds all gradients whole.
@pytest.mark.parametrize(
    ("axes", "remat"),
    quick(2, [((2, 1, 4), "full"), ((8, 1, 1), "full"), ((2, 1, 4), "none"), ((1, 8, 1), "dots")]),
)
def test_what_a_step_adds_is_told_within_a_half_and_hardly_too_small(axes, remat):
    shape = dataclasses.replace(SHAPE, remat=remat)
    ratio = added(compiled(shape, axes, 32, 256), told(shape, axes, 32, 256))
    assert 0.9 < ratio < 1.5


# Then the loss outweighs the layers. (8, 1, 1) sums the whole head's gradient, (1, 8, 1) gathers.
@pytest.mark.parametrize(
    ("axes", "tied", "accumulate"),
    quick(1, [((1, 4, 2), False, 2), ((1, 8, 1), False, 1), ((8, 1, 1), True, 1)]),
)
def test_so_it_is_with_a_vocabulary_many_times_the_width(axes, tied, accumulate):
    wide = {"vocab_size": 32768, "width": 512, "mlp_width": 512, "layers": 2}
    shape = dataclasses.replace(SHAPE, **wide, tied=tied, remat="full")
    sizes = (shape, axes, 32, 128, accumulate)
    assert 0.9 < added(compiled(*sizes), told(*sizes)) < 1.5


def test_remat_keeps_less_and_accumulation_too():
    policies = [told(dataclasses.replace(SHAPE, remat=r), (8, 1, 1), 16, 512) for r in REMATS]
    none, dots, full = (made.activations for made in policies)
    assert none > dots > full
    whole, parts = (told(SHAPE, (1, 8, 1), 16, 512, accumulate=n) for n in (1, 2))
    assert parts.activations < whole.activations
    assert parts.gradients > whole.gradients  # the sums stand beside those of a part


def test_adapters_alone_have_gradients_and_moments():
    made = told(dataclasses.replace(SHAPE, lora=ADAPTERS), (1, 1, 1), 8, 16)
    laid = parameters(dataclasses.replace(SHAPE, lora=ADAPTERS), AbstractMesh((1, 1, 1), AXES))
    adapters = sum(one.size for one in laid if one.trained)
    assert {one.name for one in laid if one.trained} == {
        f"layers.{name}_lora_{half}" for name in ADAPTERS.targets for half in "ab"
    }
    assert made.gradients == 4 * adapters
    counters = made.optimizer - 8 * adapters
    assert 0 < counters <= 16


def test_the_forward_pass_copies_the_head_alone_and_only_into_another_dtype():
    def copies(dtype, compute):
        shape = dataclasses.replace(TINY, dtype=dtype)
        options = {"rows": 8, "row_tokens": 16, "accumulate": 1, "tx": optimizer(**OPTIM)[0]}
        mesh = AbstractMesh((1, 1, 1), AXES)
        return memory(shape, mesh, **options, compute=compute, fused=True).copies

    assert copies("float32", "bfloat16") == 2 * TINY.vocab_size * TINY.width
    assert copies("bfloat16", "bfloat16") == 0


def test_attention_in_a_kernel_needs_less():
    options = {"rows": 8, "row_tokens": 512, "accumulate": 1, "tx": optimizer(**OPTIM)[0]}
    fused, scores = (
        memory(SHAPE, AbstractMesh((1, 8, 1), AXES), **options, compute="bfloat16", fused=fused)
        for fused in (True, False)
    )
    assert fused.work < scores.work
    assert fused.activations == scores.activations
