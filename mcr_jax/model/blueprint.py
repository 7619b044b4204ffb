"""A decoder before its weights: its graph, its parameters' shapes, and fresh ones."""

from typing import Any

import jax
from flax import nnx

from mcr_jax.model.config import DecoderConfig
from mcr_jax.model.decoder import Decoder


def blueprint(config: DecoderConfig) -> tuple[Any, Any]:
    """The graph definition of a decoder and its parameters' shapes, allocating nothing."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0))))
    shapes = nnx.to_pure_dict(state)
    return graph, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype), shapes)


def initial_params(config: DecoderConfig, seed: int) -> Any:
    """Fresh parameters as a nested dict; jit it with out_shardings to draw them in place."""
    model = Decoder(config, rngs=nnx.Rngs(params=seed))
    return jax.tree.map(
        lambda x: x.astype(config.dtype), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    )
