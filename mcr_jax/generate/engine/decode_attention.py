"""Attention of one decode step, with the keys and values of a prompt shared by its samples.

Keys of a prompt are read once for all its samples, keys of an answer by its sample. Each part has
the maximum and the sum of its softmax; with these the parts are merged in float32. (The GPU kernel
rounds its part to the model's dtype first.)

Dimensions: B slots, P prompts, R slots that share a prompt, H query heads, K key heads, G = H / K,
D head size, T places of a prompt, S of an answer, W of a strip. N is P or B, M is R or 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcr_jax.generate.engine import _gpu, _tpu
from mcr_jax.model.blockwise_attention import MASKED

_F32 = {"preferred_element_type": jnp.float32}
_BEYOND = 2**30  # a place that no sequence reaches
TILE = 4  # prompts that XLA reads at a time on a CPU
BLOCK = 512  # keys that XLA reads at a time; blocks beyond the longest sequence are skipped
STRIP = 64  # keys that XLA multiplies at a time on a CPU


class Kept(NamedTuple):
    """Keys or values of many sequences.

    Attributes:
      values: [N, K, S, D], in the model's dtype or int8. Keys for XLA are in strips of W places,
        [N, K, S / W, D, W], which a CPU multiplies four to ten times as fast.
      scale: float32 [N, K, S], factor of int8 values, else None.
    """

    values: jax.Array
    scale: jax.Array | None


class Layer(NamedTuple):
    """KV cache of a layer: for prompts N is P and S is T; for answers N is B."""

    prompt_keys: Kept
    prompt_values: Kept
    keys: Kept
    values: Kept


class Places(NamedTuple):
    """Visible places of all slots in a step, the same for all layers.

    Attributes:
      prompt: int32 [B], prompt of each slot.
      rank: int32 [B], below R; slots of one prompt have different ranks.
      members: int32 [P, R], slot of each prompt and rank; B without a slot.
      prompt_lengths: int32 [P]; 0 if no slot reads the prompt.
      lengths: int32 [B], visible places of each answer, at least 1; the last is the newest token.
    """

    prompt: jax.Array
    rank: jax.Array
    members: jax.Array
    prompt_lengths: jax.Array
    lengths: jax.Array


class _Part(NamedTuple):
    """Unnormalized output [..., D] of a softmax, its maximum and its sum [...], all float32."""

    out: jax.Array
    top: jax.Array
    total: jax.Array


class _Visible(NamedTuple):
    """Places that the queries of sequence n see: from begins[n, m], or 0, up to ends[n].

    Attributes:
      ends: int32 [N].
      begins: int32 [N, M] or None.
    """

    ends: jax.Array
    begins: jax.Array | None


def places(prompt, rank, alive, prompt_lengths, lengths, ranks: int) -> Places:
    """Returns the `Places` of slots. Slots that are not `alive`, bool [B], are not members."""
    slots = prompt.shape[0]
    empty = jnp.full((prompt_lengths.shape[0], ranks), slots, jnp.int32)
    row = jnp.where(alive, prompt, prompt_lengths.shape[0])  # beyond the end: dropped
    members = empty.at[row, rank].set(jnp.arange(slots, dtype=jnp.int32), mode="drop")
    prompt_lengths = jnp.where(members.min(axis=1) < slots, prompt_lengths, 0)
    return Places(prompt, rank, members, prompt_lengths, lengths)


def keep(x: jax.Array, like: Kept) -> Kept:
    """Converts x [..., D] to the form of `like`. int8 is symmetric, with one scale per vector of D.

    NaN and infinity become 0: they would reach later sequences at the same place, since a weight of
    0 does not cancel them.
    """
    x = jnp.where(jnp.isfinite(x), x, 0)
    if like.scale is None:
        return Kept(x.astype(like.values.dtype), None)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-30) / 127
    return Kept(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def put(layer: Layer, k: jax.Array, v: jax.Array, place: jax.Array, kernel: str) -> Layer:
    """Writes k, v [B, K, D] at each slot's place, int32 [B], of its answer."""
    # Indexes heads, too: without, XLA on a TPU transposes the whole cache and back for each write.
    slot, head, place = jnp.arange(k.shape[0])[:, None], jnp.arange(k.shape[1]), place[:, None]
    k, v = keep(k, layer.keys), keep(v, layer.values)

    def at_place(old, new):
        return old.at[slot, head, place].set(new)

    values = jax.tree.map(at_place, layer.values, v)
    if kernel != "xla":
        return layer._replace(keys=jax.tree.map(at_place, layer.keys, k), values=values)
    strip = layer.keys.values.shape[-1]
    keys = layer.keys.values.at[slot, head, place // strip, :, place % strip].set(k.values)
    scale = jax.tree.map(at_place, layer.keys.scale, k.scale)
    return layer._replace(keys=Kept(keys, scale), values=values)


def put_prompt(layer: Layer, k: jax.Array, v: jax.Array, entry, wanted, kernel: str) -> Layer:
    """Writes k, v [1, T, K, D] as the prompt at `entry`, int32 [], if `wanted`, bool []."""
    k, v = keep(k.swapaxes(1, 2), layer.prompt_keys), keep(v.swapaxes(1, 2), layer.prompt_values)
    if kernel == "xla":
        k = k._replace(values=_in_strips(k.values, layer.prompt_keys.values.shape[-1]))

    def at_entry(old, new):
        start = (entry, *(0,) * (old.ndim - 1))
        before = jax.lax.dynamic_slice(old, start, new.shape)
        return jax.lax.dynamic_update_slice(old, jnp.where(wanted, new, before), start)

    return layer._replace(
        prompt_keys=jax.tree.map(at_entry, layer.prompt_keys, k),
        prompt_values=jax.tree.map(at_entry, layer.prompt_values, v),
    )


def attention(
    q: jax.Array, layer: Layer, at: Places, *, window: int | None, scale: float, kernel: str
) -> jax.Array:
    """Computes attention of one query per slot; the key of the query is already in the cache.

    Args:
      q: [B, H, D].
      layer: KV cache of the layer.
      at: visible places.
      window: number of newest keys that a token sees, its own included; None is all. Static.
      scale: factor of the scores. Static.
      kernel: kernel that the cache is laid out for: "xla"; "gpu" for NVIDIA, or "gpu-32" to read 32
        keys at a time; "tpu"; "gpu-interpret" and "tpu-interpret" run in Pallas' interpreter, on
        any device. Static.

    Returns:
      [B, H, D] in the dtype of q.
    """
    B, H, D = q.shape
    K = layer.values.values.shape[1]
    q_BxKx1xGxD = q.reshape(B, K, 1, H // K, D)
    grouped = jnp.take(q.reshape(B, K, H // K, D), at.members, axis=0, mode="fill", fill_value=0)
    q_PxKxRxGxD = grouped.swapaxes(1, 2)
    prompts = layer.prompt_keys, layer.prompt_values
    answers = layer.keys, layer.values
    of_prompt, of_answer = _visible(at, window)
    if kernel == "xla":
        in_prompt = _in_tiles(q_PxKxRxGxD, *prompts, of_prompt, scale)
        in_answer = _xla(q_BxKx1xGxD, *answers, of_answer, scale)
    else:
        in_prompt = _by_kernel(kernel, q_PxKxRxGxD, *prompts, of_prompt, scale)
        in_answer = _by_kernel(kernel, q_BxKx1xGxD, *answers, of_answer, scale)
    in_prompt = jax.tree.map(lambda x: x[at.prompt, :, at.rank], in_prompt)
    in_answer = jax.tree.map(lambda x: x[:, :, 0], in_answer)
    return _merged(in_prompt, in_answer).astype(q.dtype).reshape(B, H, D)


def refusal(
    kernel: str, dtype: str, kv_dtype: str, window: int | None, head_dim: int
) -> str | None:
    """Returns the argument that a kernel does not support, or None; dtypes by name."""
    if kernel == "xla":
        return None
    return _device_module(kernel).refusal(dtype, kv_dtype, window, head_dim)


def _device_module(kernel: str):
    return _gpu if kernel.startswith("gpu") else _tpu


def room(places: int, kernel: str) -> int:
    """Rounds a number of places up to whole blocks."""
    if kernel != "xla":
        multiple = _device_module(kernel).PLACES_MULTIPLE
    else:
        multiple = BLOCK if places > BLOCK else strip_of(places)
    return -(-places // multiple) * multiple


def strip_of(places: int) -> int:
    """Returns W, the places of a sequence that XLA multiplies at a time."""
    return min(places, STRIP if jax.default_backend() == "cpu" else BLOCK)


def _in_strips(keys: jax.Array, strip: int) -> jax.Array:
    """Rearranges keys [N, K, S, D] to [N, K, S / W, D, W], padded with 0 to whole strips."""
    N, K, S, D = keys.shape
    keys = jnp.pad(keys, ((0, 0), (0, 0), (0, -S % strip), (0, 0)))
    return keys.reshape(N, K, -1, strip, D).swapaxes(3, 4)


def _merged(a: _Part, b: _Part) -> jax.Array:
    top = jnp.maximum(a.top, b.top)
    share_a, share_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    out = a.out * share_a[..., None] + b.out * share_b[..., None]
    return out / (a.total * share_a + b.total * share_b)[..., None]


def _visible(at: Places, window: int | None) -> tuple[_Visible, _Visible]:
    """Returns the places that slots see, of their prompts and of their answers."""
    if window is None:
        return _Visible(at.prompt_lengths, None), _Visible(at.lengths, None)
    begins = at.prompt_lengths[at.prompt] + at.lengths - window
    of_members = jnp.take(begins, at.members, mode="fill", fill_value=_BEYOND)
    seen = jnp.any(of_members < at.prompt_lengths[:, None], axis=1)
    of_prompt = _Visible(jnp.where(seen, at.prompt_lengths, 0), of_members)
    return of_prompt, _Visible(at.lengths, (at.lengths - window)[:, None])


def _by_kernel(kernel: str, q, keys: Kept, values: Kept, visible: _Visible, scale: float) -> _Part:
    """Computes `_xla` by a kernel."""
    _, *names = kernel.split("-")
    options = {"interpret": "interpret" in names}
    if names and names[0].isdecimal():
        options["block"] = int(names[0])
    attend = _device_module(kernel).attention
    return _Part(*attend(q, keys, values, visible.begins, visible.ends, scale, **options))


def _in_tiles(q: jax.Array, keys: Kept, values: Kept, visible: _Visible, scale: float) -> _Part:
    """Computes `_xla` in tiles; a CPU skips sequences without a visible key."""
    N = q.shape[0]
    if jax.default_backend() != "cpu" or N <= TILE:
        return _xla(q, keys, values, visible, scale)
    seen = visible.ends > 0
    order = jnp.argsort(~seen)

    def tile(i, parts: _Part) -> _Part:
        # The slice stays within the array, so the last tile may compute some sequences again.
        rows = jax.lax.dynamic_slice_in_dim(order, i * TILE, TILE)
        inputs = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), (q, keys, values, visible))
        part = _xla(*jax.lax.optimization_barrier(inputs), scale)
        return jax.tree.map(lambda all_, x: all_.at[rows].set(x, mode="clip"), parts, part)

    return jax.lax.fori_loop(0, -(-jnp.sum(seen) // TILE), tile, _empty_part(q))


def _empty_part(q: jax.Array) -> _Part:
    """Returns the part of queries [..., D] before their first key."""
    zero = jnp.zeros(q.shape[:-1], jnp.float32)
    return _Part(jnp.zeros(q.shape, jnp.float32), zero + MASKED, zero)


def _xla(q: jax.Array, keys: Kept, values: Kept, visible: _Visible, scale: float) -> _Part:
    """Computes attention of q [N, K, M, G, D] over S keys with a running softmax over blocks."""
    S = values.values.shape[2]
    size = min(S, BLOCK)
    strip = keys.values.shape[-1]
    strips = size // strip

    def block(first, part: _Part) -> _Part:
        k, v = _slice(keys, first, size, strip), _slice(values, first, size, 1)
        per_strip = jnp.broadcast_to(q[:, :, None], (*q.shape[:2], strips, *q.shape[2:]))
        scores = jnp.einsum("nkbmgd,nkbdw->nkbmgw", per_strip, k.values.astype(q.dtype), **_F32)
        scores = scores * scale
        if k.scale is not None:
            scores = scores * k.scale.reshape(*q.shape[:2], strips, 1, 1, strip)
        place = first + jnp.arange(size).reshape(strips, 1, strip)
        seen = place < visible.ends[:, None, None, None]
        if visible.begins is not None:
            seen = seen & (place >= visible.begins[:, None, :, None])
        scores = jnp.where(seen[:, None, :, :, None], scores, MASKED)
        top = jnp.maximum(part.top, scores.max(axis=(2, 5)))
        p = jnp.exp(scores - top[:, :, None, ..., None])
        old = jnp.exp(part.top - top)
        total = part.total * old + p.sum(axis=(2, 5))
        if v.scale is not None:
            p = p * v.scale.reshape(*q.shape[:2], strips, 1, 1, strip)
        v = v.values.astype(q.dtype).reshape(*q.shape[:2], strips, strip, -1)
        out = jnp.einsum("nkbmgw,nkbwd->nkmgd", p.astype(q.dtype), v, **_F32)
        return _Part(part.out * old[..., None] + out, top, total)

    if size == S:
        return block(0, _empty_part(q))
    first, stop = 0, -(-visible.ends.max() // size)
    if visible.begins is not None:
        seen = visible.begins < visible.ends[:, None]
        first = jnp.maximum(jnp.where(seen, visible.begins, _BEYOND).min(), 0) // size
    return jax.lax.fori_loop(first, stop, lambda i, part: block(i * size, part), _empty_part(q))


def _slice(x: Kept, first, size: int, strip: int) -> Kept:
    """Slices `size` places from `first`; the third axis of the values counts strips of `strip`."""
    if size == x.values.shape[2] * strip:
        return x
    values = jax.lax.dynamic_slice_in_dim(x.values, first // strip, size // strip, axis=2)
    if x.scale is None:
        return Kept(values, None)
    return Kept(values, jax.lax.dynamic_slice_in_dim(x.scale, first, size, axis=2))
