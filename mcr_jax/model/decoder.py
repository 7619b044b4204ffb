"""The decoder: pre-norm blocks with rotary grouped-head attention and a gated MLP, as flax.nnx.

One decoder covers all families: they differ in their `DecoderConfig` only. Every parameter of the
blocks is stored once, stacked over layers on its first axis: the same layout for training,
checkpoints and sampling. `block` alone defines what a layer computes; training, prefill and decode
pass it different `attend` functions.

Dimensions: B batch, T tokens, V vocabulary, E width, H heads, K key heads, D head size, F MLP.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mcr_jax.model.attention import attention
from mcr_jax.model.shape import PROJECTIONS, DecoderConfig

# (q, k, v) -> (attention output [..., H, D], anything the caller keeps of the layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
Layer = dict[str, jax.Array]
Turn = tuple[jax.Array, jax.Array]  # cosines and sines, each [..., 1, D / 2]

_REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
_cheap = functools.partial(jax.checkpoint, prevent_cse=False)
_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


class Layers(nnx.Module):
    """Parameters of all blocks, stacked: axis 0 of each is the layer."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        def normal(*shape: int, fan_in: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (c.layers, *shape)) * fan_in**-0.5)

        def norm(size: int) -> nnx.Param:
            return nnx.Param(jnp.full((c.layers, size), 1 - c.norm_offset))

        def bias(heads: int) -> nnx.Param:
            return nnx.Param(jnp.zeros((c.layers, heads, c.head_dim)))

        attended, depth = c.heads * c.head_dim, 2 * c.layers  # residual writes shrink with depth
        self.attention_norm = norm(c.width)
        self.q = normal(c.width, c.heads, c.head_dim, fan_in=c.width)
        self.k = normal(c.width, c.kv_heads, c.head_dim, fan_in=c.width)
        if c.qk_norm:
            self.q_norm, self.k_norm = norm(c.head_dim), norm(c.head_dim)
        self.v = normal(c.width, c.kv_heads, c.head_dim, fan_in=c.width)
        if c.qkv_bias:
            self.q_bias, self.k_bias, self.v_bias = map(bias, (c.heads, c.kv_heads, c.kv_heads))
        self.o = normal(c.heads, c.head_dim, c.width, fan_in=attended * depth)
        self.mlp_norm = norm(c.width)
        self.gate = normal(c.width, c.mlp_width, fan_in=c.width)
        self.up = normal(c.width, c.mlp_width, fan_in=c.width)
        self.down = normal(c.mlp_width, c.width, fan_in=c.mlp_width * depth)
        if c.sandwich_norm:
            self.attention_post_norm, self.mlp_post_norm = norm(c.width), norm(c.width)
        for name in c.lora.targets if c.lora else ():
            inputs, outputs = c.projection(name)
            # PEFT's start: Kaiming-uniform with a = sqrt(5), which is ±1/sqrt(fan in), and zero.
            shape, bound = (c.layers, *inputs, c.lora.rank), math.prod(inputs) ** -0.5
            a = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
            setattr(self, f"{name}_lora_a", nnx.LoRAParam(a))
            b = jnp.zeros((c.layers, c.lora.rank, *outputs))
            setattr(self, f"{name}_lora_b", nnx.LoRAParam(b))


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
        self.final_norm = nnx.Param(jnp.full(config.width, 1 - config.norm_offset))
        if not config.tied:
            self.head = nnx.Param(jax.random.normal(rngs.params(), shape) * config.width**-0.5)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Next-token logits.

        Args:
          tokens: int [B, T].
          positions: int [B, T], each token's place in its sequence, counting up by one within a
            segment; None is 0 … T-1.
          segment_ids: int [B, T]; tokens attend within their segment only, a run of tokens. None is
            one segment.
          dropout_key: draws the dropout masks of the adapters, in training; None drops nothing.

        Returns:
          float32 [B, T, V].
        """
        hidden, _ = self.hidden(tokens, positions, segment_ids, dropout_key=dropout_key)
        return self.logits(hidden)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        *,
        keep_kv: bool = False,
        dropout_key: jax.Array | None = None,
        compute: str | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Computes hidden states [B, T, E]; with `keep_kv` also K and V, [L, B, T, K, D].

        Activations have dtype `compute`, None for the embedding's own; every weight is cast to it
        where it is used, so that its gradient is summed and returned in the weight's own dtype.
        """
        c = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        kinds = sorted({c.is_local(layer) for layer in range(c.layers)})
        turns = [turn(c, positions, local=kind) for kind in kinds]

        def attend_by(local: bool) -> Callable[..., jax.Array]:
            options = {"scale": c.attention_scale, "backend": c.attention}
            window = c.window if local else None
            return lambda q, k, v: attention(
                q, k, v, segment_ids=segment_ids, window=window, **options
            )

        def body(
            x: jax.Array, xs: tuple[Layer, jax.Array, jax.Array | None]
        ) -> tuple[jax.Array, Any]:
            layer, kind, key = xs
            if len(kinds) == 1:
                turned, attended = turns[0], attend_by(kinds[0])
            else:
                turned = jax.tree.map(lambda *of_kind: jnp.stack(of_kind)[kind], *turns)

                def attended(q, k, v):
                    return jax.lax.cond(kind, attend_by(True), attend_by(False), q, k, v)

            def attend(q, k, v):
                return attended(q, k, v), ((k, v) if keep_kv else None)

            return block(c, layer, x, turned, attend, key)

        if c.remat != "none":
            body = jax.checkpoint(body, policy=_REMAT[c.remat], prevent_cse=False)
        which = jnp.asarray([c.is_local(layer) for layer in range(c.layers)], jnp.int32)
        drops = dropout_key is not None and c.lora is not None and c.lora.dropout > 0
        keys = jax.random.split(dropout_key, c.layers) if drops else None
        x, kv = jax.lax.scan(body, self.embed(tokens, compute), (self.stacked(), which, keys))
        return rms_norm(x, self.final_norm[...], c.norm_eps, c.norm_offset), kv

    def embed(self, tokens: jax.Array, compute: str | None = None) -> jax.Array:
        """Embeds token ids [...] as [..., E] of dtype `compute`, None for the table's own."""
        return embed(self.config, self.embedding[...], tokens, compute)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes float32 logits [..., V] of hidden states [..., E]."""
        head = self.unembedding()
        return jnp.einsum("...e,ve->...v", hidden, head, preferred_element_type=jnp.float32)

    def unembedding(self) -> jax.Array:
        """Returns the head's matrix [V, E], which is the embedding where they are tied."""
        return (self.embedding if self.config.tied else self.head)[...]

    def stacked(self) -> Layer:
        """Returns the blocks' parameters by name, axis 0 the layer."""
        return {name: p[...] for name, p in vars(self.layers).items() if isinstance(p, nnx.Param)}


def embed(
    c: DecoderConfig, table: jax.Array, tokens: jax.Array, compute: str | None = None
) -> jax.Array:
    """Embeds token ids [...] by table [V, E] as [..., E] of dtype `compute` (the table's own)."""
    x = _rows(table, tokens).astype(compute or table.dtype)
    return x if c.embedding_scale == 1 else x * jnp.asarray(c.embedding_scale, x.dtype)


@jax.custom_vjp
def _rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns table[tokens]; its gradient is summed in float32, whatever the table's dtype.

    Thousands of tokens of a batch share a row. A sum in bfloat16 would lose a tenth of it.
    """
    return table[tokens]


def _rows_forward(table, tokens):
    return table[tokens], (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _rows_backward(kept, d_x):
    tokens, like = kept
    d_table = jnp.zeros((like.shape[0], d_x.shape[-1]), jnp.float32)
    return narrow(d_table.at[tokens].add(d_x.astype(jnp.float32)), like.dtype), None


_rows.defvjp(_rows_forward, _rows_backward)


def narrow(gradient: jax.Array, dtype: Any) -> jax.Array:
    """Casts a summed float32 gradient to the dtype of its weight.

    XLA would move the cast before the sum over devices, to send less. The barrier prevents that.
    """
    if gradient.dtype == dtype:
        return gradient
    return jax.lax.optimization_barrier(gradient).astype(dtype)


def block(
    c: DecoderConfig,
    layer: Layer,
    x: jax.Array,
    turned: Turn,
    attend: Attend,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Applies one layer to [..., E]; returns the new residual and what `attend` keeps."""

    def norm(x: jax.Array, name: str) -> jax.Array:
        return rms_norm(x, layer[name], c.norm_eps, c.norm_offset)

    def linear(h: jax.Array, name: str) -> jax.Array:
        y = project(h, layer[name], len(c.projection(name)[0]))
        if c.lora is None or name not in c.lora.targets:
            return y
        return (y + low_rank(c, layer, h, name, dropout_key)).astype(y.dtype)

    def heads(h: jax.Array, name: str) -> jax.Array:
        y = linear(h, name)
        if c.qkv_bias:  # added in float32, or its gradient over all tokens is summed in bfloat16
            y = y + layer[f"{name}_bias"].astype(jnp.float32)
        return y.astype(h.dtype)

    # Cheap results of x, and of gate and up, are not stored for the backward pass but computed
    # again there: storing them would take longer.
    @_cheap
    def queries_keys_values(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        h = norm(x, "attention_norm")
        return heads(h, "q"), heads(h, "k"), heads(h, "v")

    @_cheap
    def gate_and_up(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = norm(x, "mlp_norm")
        return linear(h, "gate"), linear(h, "up")

    @_cheap
    def down(gate: jax.Array, up: jax.Array) -> jax.Array:
        return linear(_ACTIVATIONS[c.activation](gate) * up, "down")

    q, k, v = queries_keys_values(x)
    if c.qk_norm:
        q, k = norm(q, "q_norm"), norm(k, "k_norm")
    attended, leaves = attend(rope(q, turned), rope(k, turned), v)
    out = linear(attended, "o")
    # Files may mix dtypes; the residual keeps the embedding's.
    x = x + (norm(out, "attention_post_norm") if c.sandwich_norm else out).astype(x.dtype)
    out = down(*gate_and_up(x))
    return x + (norm(out, "mlp_post_norm") if c.sandwich_norm else out).astype(x.dtype), leaves


def project(x: jax.Array, weight: jax.Array, axes: int) -> jax.Array:
    """Multiplies x [..., *in] by weight [*in, *out]: [..., *out] in x's dtype.

    The weight is cast to x's dtype. Its gradient is summed in float32, over tokens and devices, and
    then cast to the weight's dtype. It is computed as [*in, *out]: JAX would compute the transpose,
    for which a CPU transposes the activations, slowly.

    Args:
      x, weight: the factors.
      axes: number of axes in `in`.
    """
    return _project(x, weight, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x, weight, axes):
    return jnp.tensordot(x, weight.astype(x.dtype), axes)


def _project_forward(x, weight, axes):
    kept = x.value if weight.perturbed else None, weight.value if x.perturbed else None
    like = jnp.zeros(0, weight.value.dtype)
    return jnp.tensordot(x.value, weight.value.astype(x.value.dtype), axes), (*kept, like)


def _project_backward(axes, kept, d_y):
    (x, weight, like), d_x, d_weight = kept, None, None
    if weight is not None:
        outs = tuple(range(axes - weight.ndim, 0))
        d_x = jnp.tensordot(d_y, weight.astype(d_y.dtype), (outs, outs))
    if x is not None:
        inputs, outputs = x.shape[x.ndim - axes :], d_y.shape[x.ndim - axes :]
        # As one matrix product: XLA:CPU has no other from bfloat16 to float32.
        flat = x.reshape(-1, math.prod(inputs)), d_y.reshape(-1, math.prod(outputs))
        total = jnp.tensordot(*flat, (0, 0), preferred_element_type=jnp.float32)
        d_weight = narrow(total.reshape(*inputs, *outputs), like.dtype)
    return d_x, d_weight


_project.defvjp(_project_forward, _project_backward, symbolic_zeros=True)


def low_rank(
    c: DecoderConfig, layer: Layer, h: jax.Array, name: str, dropout_key: jax.Array | None
) -> jax.Array:
    """Computes the low-rank update of the projection `name` of h, in h's dtype."""
    a, b = (layer[f"{name}_lora_{half}"] for half in "ab")
    if dropout_key is not None:
        kept = 1 - c.lora.dropout
        key = jax.random.fold_in(dropout_key, PROJECTIONS.index(name))
        h = jnp.where(jax.random.bernoulli(key, kept, h.shape), h / kept, 0)
    return project(project(h, a, a.ndim - 1) * c.lora.scale, b, 1)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float = 0.0) -> jax.Array:
    """Normalizes the last axis by its root mean square in float32 (Zhang & Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * (offset + scale.astype(jnp.float32))).astype(x.dtype)


def turn(c: DecoderConfig, positions: jax.Array, *, local: bool) -> Turn:
    """Computes cosines and sines of positions, int [...], for local or global layers."""
    rotary = (local and c.local_rope) or c.rope
    angles = positions[..., None, None].astype(jnp.float32) * rotary.frequencies(c.head_dim)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rotary.attention_factor == 1:
        return cos, sin
    return cos * rotary.attention_factor, sin * rotary.attention_factor


def rope(x: jax.Array, turned: Turn) -> jax.Array:
    """Rotates [..., heads, D] by its positions, in half-split pairing (Su et al., 2021)."""
    cos, sin = turned
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned_x = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned_x.astype(x.dtype)
