"""Decoders with adapters for tests, and the specs of their parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from mcr_jax.model import lora
from mcr_jax.model.abstract import abstract_decoder
from mcr_jax.model.shape import LoraConfig
from mcr_jax.model.sharding import make_mesh, shardings

TOKENS = np.array([[5, 9, 2, 7, 11, 3, 8, 1], [3, 3, 40, 6, 30, 2, 0, 9]])
SPECS = {
    **{f"{name}_lora_a": P(None, "fsdp", None) for name in ("q", "k", "v", "gate", "up")},
    **{f"{name}_lora_b": P(None, None, "tensor", None) for name in ("q", "k", "v")},
    **{f"{name}_lora_b": P(None, None, "tensor") for name in ("gate", "up")},
    "o_lora_a": P(None, "tensor", None, None),
    "down_lora_a": P(None, "tensor", None),
    **{f"{name}_lora_b": P(None, None, "fsdp") for name in ("o", "down")},
}


def random_adapters(model, config=None, dtype="float32"):
    """Returns `model` with adapters whose two halves are random."""
    config = config or LoraConfig(rank=3, alpha=4.0)
    graph, adapters, frozen = lora.split(lora.add(model, config, 0))
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda x: jax.device_put(
            (np.asarray(x) + 0.3 * rng.standard_normal(x.shape)).astype(dtype), x.sharding
        ),
        adapters,
    )
    return nnx.merge(graph, adapters, frozen)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def spread(model):
    """Spreads the model over a mesh of eight devices."""
    params = params_of(model)
    placed = shardings(make_mesh(2, 2, 2), params)
    return nnx.merge(abstract_decoder(model.config)[0], jax.device_put(params, placed))


def halved(model):
    """Casts the model to bfloat16."""
    graph = abstract_decoder(dataclasses.replace(model.config, dtype="bfloat16"))[0]
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(model)))


def run(model, tokens=TOKENS, **options):
    """Computes the model's logits, jitted."""
    graph, params = nnx.split(model)
    forward = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens, **options))
    return np.asarray(forward(params, jnp.asarray(tokens)))
