"""A decoder's parameters as decoding reads them: each layer's in arrays of their own.

Training keeps the layers stacked. A step of decoding that took its layer out of the stack would
copy it, which takes as long as to read it; so the stack is taken apart once, one kind of parameter
after the other, and given up as that goes: never are there two copies of all.
"""

import functools
from typing import NamedTuple

import jax

from mcr_jax.model.decoder import Decoder, Layer


class Weights(NamedTuple):
    """Attributes: embedding [V, E]; layers, by name each; final_norm [E]; head [V, E].

    head is None where the embedding makes the logits.
    """

    embedding: jax.Array
    layers: tuple[Layer, ...]
    final_norm: jax.Array
    head: jax.Array | None


def take(model: Decoder, *, keep: bool = False) -> Weights:
    """The weights of `model`, which is of no use after it unless `keep`.

    Adapters are not applied: merge them before.
    """
    stacked, of_layers = model.stacked(), [{} for _ in range(model.config.layers)]
    for name, stack in stacked.items():
        for layer, part in zip(of_layers, _apart(stack), strict=True):
            layer[name] = part
        if not keep:
            jax.block_until_ready(of_layers[-1][name])
            stack.delete()
    head = None if model.config.tied else model.head[...]
    return Weights(model.embedding[...], tuple(of_layers), model.final_norm[...], head)


def _apart(stack: jax.Array) -> tuple[jax.Array, ...]:
    sharding = stack.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
        return _split(jax.sharding.NamedSharding(sharding.mesh, spec))(stack)
    return _split(sharding)(stack)


@functools.cache
def _split(sharding):
    return jax.jit(
        lambda stack: tuple(stack[i] for i in range(stack.shape[0])), out_shardings=sharding
    )
