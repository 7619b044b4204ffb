"""The decoder: pre-norm blocks with rotary grouped-head attention and a gated MLP, as flax.nnx.

Every parameter of the blocks is stored once, stacked over layers on its first axis: the same layout
for training, checkpoints and sampling. `block` is the only place that knows what a layer computes;
training, prefill and decoding differ in the `attend` they hand to it.

Dimensions: B batch, T tokens, V vocabulary, E width, H heads, K key heads, D head size, F MLP.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mcr_jax.model.attention import attention, causal_mask
from mcr_jax.model.config import DecoderConfig

# (q, k, v, cache of the layer) -> (attention output [..., H, D], what the layer leaves behind)
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class Layers(nnx.Module):
    """The parameters of all blocks, stacked: axis 0 of each is the layer."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        def normal(*shape: int, fan_in: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (c.layers, *shape)) * fan_in**-0.5)

        attended, depth = c.heads * c.head_dim, 2 * c.layers  # residual writes shrink with depth
        self.attention_norm = nnx.Param(jnp.ones((c.layers, c.width)))
        self.q = normal(c.width, c.heads, c.head_dim, fan_in=c.width)
        self.k = normal(c.width, c.kv_heads, c.head_dim, fan_in=c.width)
        if c.qk_norm:
            self.q_norm = nnx.Param(jnp.ones((c.layers, c.head_dim)))
            self.k_norm = nnx.Param(jnp.ones((c.layers, c.head_dim)))
        self.v = normal(c.width, c.kv_heads, c.head_dim, fan_in=c.width)
        self.o = normal(c.heads, c.head_dim, c.width, fan_in=attended * depth)
        self.mlp_norm = nnx.Param(jnp.ones((c.layers, c.width)))
        self.gate = normal(c.width, c.mlp_width, fan_in=c.width)
        self.up = normal(c.width, c.mlp_width, fan_in=c.width)
        self.down = normal(c.mlp_width, c.width, fan_in=c.mlp_width * depth)


class Decoder(nnx.Module):
    """A causal language model.

    Args:
      config: its shape.
      rngs: stream "params" draws the initial parameters.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape) * config.width**-0.5)
        self.layers = Layers(config, rngs)
        self.final_norm = nnx.Param(jnp.ones(config.width))
        if not config.tied:
            self.head = nnx.Param(jax.random.normal(rngs.params(), shape) * config.width**-0.5)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Next-token logits.

        Args:
          tokens: int [B, T].
          positions: int [B, T], each token's place in its sequence; None is 0 … T-1.
          segment_ids: int [B, T]; tokens attend within their segment only. None is one segment.

        Returns:
          float32 [B, T, V].
        """
        return self.logits(self.hidden(tokens, positions, segment_ids)[0])

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        keep_kv: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """What the head reads, [B, T, E]; with `keep_kv` also keys and values, [L, B, T, K, D]."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.zeros_like(tokens)
        mask = causal_mask(segment_ids)

        def attend(q, k, v, cache):
            return attention(q, k, v, mask), ((k, v) if keep_kv else None)

        def body(x, layer):
            return block(self.config, layer, x, positions, attend, None)

        x, kv = jax.lax.scan(body, self.embed(tokens), self.stacked())
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), kv

    def step(
        self, tokens: jax.Array, positions: jax.Array, attend: Attend, caches: tuple
    ) -> tuple[jax.Array, tuple]:
        """One token for each of any batch of sequences, layers unrolled.

        Args:
          tokens: int [...]; positions: the same shape.
          attend: reads the layer's entry of `caches`.
          caches: one entry per layer.

        Returns:
          Logits [..., V] and, per layer, what `attend` left.
        """
        x, left = self.embed(tokens), []
        for index, cache in enumerate(caches):
            layer = jax.tree.map(lambda stacked, i=index: stacked[i], self.stacked())
            x, leaves = block(self.config, layer, x, positions, attend, cache)
            left.append(leaves)
        x = rms_norm(x, self.final_norm[...], self.config.norm_eps)
        return self.logits(x), tuple(left)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [...] to vectors [..., E]; scaled so that a tied table starts at unit size."""
        return self.embedding[...][tokens] * self.config.width**0.5

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., E] -> float32 [..., V]."""
        head = self.embedding if self.config.tied else self.head
        return jnp.einsum("...e,ve->...v", hidden, head[...], preferred_element_type=jnp.float32)

    def stacked(self) -> dict[str, jax.Array]:
        """The blocks' parameters by name, axis 0 the layer."""
        return {name: p[...] for name, p in vars(self.layers).items() if isinstance(p, nnx.Param)}


def block(
    config: DecoderConfig,
    layer: dict[str, jax.Array],
    x: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Any,
) -> tuple[jax.Array, Any]:
    """One layer on [..., E], any leading dimensions; returns the new residual and `attend`'s."""
    h = rms_norm(x, layer["attention_norm"], config.norm_eps)
    q = jnp.einsum("...e,ehd->...hd", h, layer["q"])
    k = jnp.einsum("...e,ekd->...kd", h, layer["k"])
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.norm_eps)
        k = rms_norm(k, layer["k_norm"], config.norm_eps)
    q, k = rope(q, positions, config.rope_theta), rope(k, positions, config.rope_theta)
    v = jnp.einsum("...e,ekd->...kd", h, layer["v"])
    attended, leaves = attend(q, k, v, cache)
    x = x + jnp.einsum("...hd,hde->...e", attended, layer["o"])
    h = rms_norm(x, layer["mlp_norm"], config.norm_eps)
    gated = jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])
    return x + gated @ layer["down"], leaves


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis in float32 (Zhang & Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, half-split pairing (Su et al., 2021).

    Args:
      x: [..., heads, D].
      positions: int [...].
      theta: base of the frequencies theta^(-2i/D).
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
