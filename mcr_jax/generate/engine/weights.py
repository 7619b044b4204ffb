"""Parameters of a decoder for decoding: separate arrays for each layer.

Training stacks the layers. Slicing a layer out of the stack in every decode step would copy it, as
slow as reading it. So the stacks are split once, one parameter after the other, and each stack is
deleted at once: there are never two copies of all parameters.
"""

import functools
from typing import NamedTuple

import jax

from mcr_jax.model.decoder import Decoder, Layer


class Weights(NamedTuple):
    """Parameters of a decoder.

    Attributes:
      embedding: [V, E].
      layers: arrays of each layer by name.
      final_norm: [E].
      head: [V, E]; None for tied embeddings.
    """

    embedding: jax.Array
    layers: tuple[Layer, ...]
    final_norm: jax.Array
    head: jax.Array | None


def take(model: Decoder, *, keep: bool = False) -> Weights:
    """Takes the weights of `model`, which must not be used again unless `keep`.

    Adapters are not applied: merge them first.
    """
    layers = [{} for _ in range(model.config.layers)]
    for name, stack in model.stacked().items():
        sharding = stack.sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
            sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
        for layer, part in zip(layers, _split(sharding)(stack), strict=True):
            layer[name] = part
        if not keep:
            jax.block_until_ready(layers[-1][name])
            stack.delete()
    head = None if model.config.tied else model.head[...]
    return Weights(model.embedding[...], tuple(layers), model.final_norm[...], head)


@functools.cache
def _split(sharding):
    return jax.jit(
        lambda stack: tuple(stack[i] for i in range(stack.shape[0])), out_shardings=sharding
    )
