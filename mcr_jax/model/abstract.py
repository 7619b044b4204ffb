"""Abstract shapes of a decoder, its graph, and fresh parameters."""

from typing import Any

import jax
from flax import nnx

from mcr_jax.model.decoder import Decoder
from mcr_jax.model.shape import DecoderConfig

ADAPTERS = ("_lora_a", "_lora_b")  # ends of the names of adapters


def abstract_decoder(config: DecoderConfig) -> tuple[Any, Any]:
    """Returns the graph definition of a decoder and its parameters' shapes; allocates nothing.

    Weights are of config.dtype, adapters of float32.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(params=0))))

    def shape(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, _dtype(config, path))

    return graph, jax.tree_util.tree_map_with_path(shape, nnx.to_pure_dict(state))


def initial_params(config: DecoderConfig, seed: int) -> Any:
    """Draws parameters as a nested dict; under jit with out_shardings, in place."""
    drawn = nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(params=seed)), nnx.Param))
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(_dtype(config, path)), drawn)


def parts(params: Any) -> tuple[Any, Any]:
    """Splits a decoder's parameters into adapters and the rest, both nested dicts."""
    layers = params["layers"].items()
    adapters = {name: x for name, x in layers if name.endswith(ADAPTERS)}
    rest = {name: x for name, x in layers if name not in adapters}
    return {"layers": adapters}, params | {"layers": rest}


def _dtype(config: DecoderConfig, path: Any) -> str:
    return "float32" if path[-1].key.endswith(ADAPTERS) else config.dtype
