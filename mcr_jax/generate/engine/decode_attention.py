"""Attention of one decoding step: samples that share their prompt's keys and values.

The keys of a prompt are read once for all samples of it, those of its own answer by each sample;
both parts end with their softmax's maximum and sum, by which they are put together in float32. (The
GPU's kernel rounds its part to the model's dtype before.)

Dimensions: B slots, P prompts, R slots that share a prompt, H query heads, K key heads, G = H / K,
D head size, T places of a prompt, S of an answer, W of a strip; N and M stand for either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcr_jax.generate.engine import _gpu, _tpu
from mcr_jax.model.blockwise_attention import MASKED

_F32 = {"preferred_element_type": jnp.float32}
_LATER = 2**30  # a place that no sequence reaches
TILE = 4  # prompts that XLA reads at a time on a CPU
BLOCK = 512  # keys that XLA reads at a time; blocks beyond the longest sequence are not read
STRIP = 64  # keys that XLA multiplies at a time on a CPU


class Kept(NamedTuple):
    """Keys or values of many sequences.

    Attributes:
      values: [N, K, S, D], of the model's dtype or int8; keys that XLA reads are in strips of W
        places, [N, K, S / W, D, W], which a CPU multiplies four to ten times as fast.
      scale: float32 [N, K, S]; what int8 values are multiplied by, else None.
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
    """Who reads what in a step, the same for all layers.

    Attributes:
      prompt: int32 [B], the prompt of a slot.
      rank: int32 [B], below R; slots of one prompt have different ones.
      members: int32 [P, R], the slot of each prompt and rank; B where there is none.
      prompt_lengths: int32 [P]; 0 where no slot reads the prompt.
      lengths: int32 [B], places of its answer that a slot sees, at least 1; the newest is its own.
    """

    prompt: jax.Array
    rank: jax.Array
    members: jax.Array
    prompt_lengths: jax.Array
    lengths: jax.Array


class _Part(NamedTuple):
    """Unnormalised output [..., D] of a softmax, its maximum and its sum [...], all float32."""

    out: jax.Array
    top: jax.Array
    total: jax.Array


class _Sight(NamedTuple):
    """The places that the queries of sequence n see: from begins[n, m], if any, up to ends[n].

    Attributes:
      ends: int32 [N].
      begins: int32 [N, M] or None.
    """

    ends: jax.Array
    begins: jax.Array | None


def places(prompt, rank, alive, prompt_lengths, lengths, ranks: int) -> Places:
    """The `Places` of slots; those that are not `alive`, bool [B], are nobody's members."""
    slots = prompt.shape[0]
    nobody = jnp.full((prompt_lengths.shape[0], ranks), slots, jnp.int32)
    row = jnp.where(alive, prompt, prompt_lengths.shape[0])  # beyond the end: dropped
    members = nobody.at[row, rank].set(jnp.arange(slots, dtype=jnp.int32), mode="drop")
    prompt_lengths = jnp.where(members.min(axis=1) < slots, prompt_lengths, 0)
    return Places(prompt, rank, members, prompt_lengths, lengths)


def keep(x: jax.Array, like: Kept) -> Kept:
    """x [..., D] as it is kept in `like`. int8 is symmetric, one scale to a vector of D.

    What is no number becomes 0: it would reach those that are given the place after it, since
    even a weight of 0 does not hide it.
    """
    x = jnp.where(jnp.isfinite(x), x, 0)
    if like.scale is None:
        return Kept(x.astype(like.values.dtype), None)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-30) / 127
    return Kept(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def put(layer: Layer, k: jax.Array, v: jax.Array, place: jax.Array, kernel: str) -> Layer:
    """The layer with k, v [B, K, D] at each slot's place, int32 [B], in its answer."""
    # By heads, too: else XLA turns the whole store of a TPU round, and back, to write to it.
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
    """The layer with k, v [1, T, K, D] as the prompt at `entry`, int32 [], if `wanted`, bool []."""
    k, v = (
        keep(x.swapaxes(1, 2), store)
        for x, store in ((k, layer.prompt_keys), (v, layer.prompt_values))
    )
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
    """Attention of one query per slot, its own key already among those that are kept.

    Args:
      q: [B, H, D].
      layer: what is kept.
      at: who reads what.
      window: a token sees its `window` newest keys, its own included; None is all. Static.
      scale: multiplies the scores. Static.
      kernel: that the layer is kept for: "xla"; "gpu", an NVIDIA one, and "gpu-32", where it reads
        32 keys at a time; "tpu"; "gpu-interpret" and "tpu-interpret" are those two in Pallas'
        interpreter, on any device. Static.

    Returns:
      [B, H, D] in the dtype of q.
    """
    B, H, D = q.shape
    K = layer.values.values.shape[1]
    q_BxKx1xGxD = q.reshape(B, K, 1, H // K, D)
    grouped = jnp.take(q.reshape(B, K, H // K, D), at.members, axis=0, mode="fill", fill_value=0)
    q_PxKxRxGxD = grouped.swapaxes(1, 2)
    whole = layer.prompt_keys, layer.prompt_values
    own = layer.keys, layer.values
    of_prompt, of_answer = _sights(at, window)
    if kernel == "xla":
        to_prompt = _in_tiles(q_PxKxRxGxD, *whole, of_prompt, scale)
        to_own = _xla(q_BxKx1xGxD, *own, of_answer, scale)
    else:
        to_prompt = _by_kernel(kernel, q_PxKxRxGxD, *whole, of_prompt, scale)
        to_own = _by_kernel(kernel, q_BxKx1xGxD, *own, of_answer, scale)
    shared = jax.tree.map(lambda x: x[at.prompt, :, at.rank], to_prompt)
    to_own = jax.tree.map(lambda x: x[:, :, 0], to_own)
    return _merged(shared, to_own).astype(q.dtype).reshape(B, H, D)


def kernel_of(kernel: str, dtype: str, kept: str, window: int | None, head_dim: int) -> str:
    """The kernel of a layer where `kernel` is that of the engine: itself, or "xla"."""
    return "xla" if refusal(kernel, dtype, kept, window, head_dim) else kernel


def refusal(kernel: str, dtype: str, kept: str, window: int | None, head_dim: int) -> str | None:
    """Why a kernel cannot do this, or None if it can; dtypes by name."""
    if kernel == "xla":
        return None
    return _of_device(kernel).refusal(dtype, kept, window, head_dim)


def _of_device(kernel: str):
    return _gpu if kernel.startswith("gpu") else _tpu


def room(places: int, kernel: str) -> int:
    """Rounds a number of places up to whole blocks."""
    if kernel != "xla":
        return _even(places, _of_device(kernel).EVEN)
    return _even(places, BLOCK if places > BLOCK else strip_of(places))


def strip_of(places: int) -> int:
    """W: how many of so many places XLA multiplies at a time."""
    return min(places, STRIP if jax.default_backend() == "cpu" else BLOCK)


def _even(places: int, of: int) -> int:
    return -(-places // of) * of


def _in_strips(keys: jax.Array, strip: int) -> jax.Array:
    """Keys [N, K, S, D] as [N, K, S / W, D, W]; places that a last strip lacks are 0."""
    N, K, S, D = keys.shape
    keys = jnp.pad(keys, ((0, 0), (0, 0), (0, -S % strip), (0, 0)))
    return keys.reshape(N, K, -1, strip, D).swapaxes(3, 4)


def _merged(a: _Part, b: _Part) -> jax.Array:
    top = jnp.maximum(a.top, b.top)
    share_a, share_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    out = a.out * share_a[..., None] + b.out * share_b[..., None]
    return out / (a.total * share_a + b.total * share_b)[..., None]


def _sights(at: Places, window: int | None) -> tuple[_Sight, _Sight]:
    """Returns the keys that slots see, of their prompts and of their answers."""
    if window is None:
        return _Sight(at.prompt_lengths, None), _Sight(at.lengths, None)
    after = at.prompt_lengths[at.prompt] + at.lengths - window
    of_member = jnp.take(after, at.members, mode="fill", fill_value=_LATER)
    seen = jnp.any(of_member < at.prompt_lengths[:, None], axis=1)
    of_prompt = _Sight(jnp.where(seen, at.prompt_lengths, 0), of_member)
    return of_prompt, _Sight(at.lengths, (at.lengths - window)[:, None])


def _by_kernel(kernel: str, q, keys: Kept, values: Kept, sight: _Sight, scale: float) -> _Part:
    """Computes `_xla` in a kernel."""
    device, *options = kernel.split("-")
    asked = {"interpret": "interpret" in options}
    if options and options[0].isdecimal():
        asked["block"] = int(options[0])
    attend = _of_device(device).attention
    return _Part(*attend(q, keys, values, sight.begins, sight.ends, scale, **asked))


def _in_tiles(q: jax.Array, keys: Kept, values: Kept, sight: _Sight, scale: float) -> _Part:
    """Computes `_xla` in tiles; a CPU skips sequences of which no key is seen."""
    N = q.shape[0]
    if jax.default_backend() != "cpu" or N <= TILE:
        return _xla(q, keys, values, sight, scale)
    seen = sight.ends > 0
    order = jnp.argsort(~seen)

    def tile(i, parts: _Part) -> _Part:
        # A start too near to the end is moved back: some are computed twice.
        rows = jax.lax.dynamic_slice_in_dim(order, i * TILE, TILE)
        cut = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), (q, keys, values, sight))
        made = _xla(*jax.lax.optimization_barrier(cut), scale)
        return jax.tree.map(lambda all_, x: all_.at[rows].set(x, mode="clip"), parts, made)

    return jax.lax.fori_loop(0, -(-jnp.sum(seen) // TILE), tile, _nothing(q))


def _nothing(q: jax.Array) -> _Part:
    """The part of queries [..., D] that have seen no key."""
    zero = jnp.zeros(q.shape[:-1], jnp.float32)
    return _Part(jnp.zeros(q.shape, jnp.float32), zero + MASKED, zero)


def _xla(q: jax.Array, keys: Kept, values: Kept, sight: _Sight, scale: float) -> _Part:
    """q [N, K, M, G, D] over S keys."""
    S = values.values.shape[2]
    size = min(S, BLOCK)
    strip = keys.values.shape[-1]
    strips = size // strip

    def block(first, part: _Part) -> _Part:
        k, v = _cut(keys, first, size, strip), _cut(values, first, size, 1)
        of_strips = jnp.broadcast_to(q[:, :, None], (*q.shape[:2], strips, *q.shape[2:]))
        scores = jnp.einsum("nkbmgd,nkbdw->nkbmgw", of_strips, k.values.astype(q.dtype), **_F32)
        scores = scores * scale
        if k.scale is not None:
            scores = scores * k.scale.reshape(*q.shape[:2], strips, 1, 1, strip)
        place = first + jnp.arange(size).reshape(strips, 1, strip)
        seen = place < sight.ends[:, None, None, None]
        if sight.begins is not None:
            seen = seen & (place >= sight.begins[:, None, :, None])
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
        return block(0, _nothing(q))
    first, behind = 0, -(-sight.ends.max() // size)
    if sight.begins is not None:
        seen = sight.begins < sight.ends[:, None]
        first = jnp.maximum(jnp.where(seen, sight.begins, _LATER).min(), 0) // size
    return jax.lax.fori_loop(first, behind, lambda i, part: block(i * size, part), _nothing(q))


def _cut(x: Kept, first, size: int, strip: int) -> Kept:
    """`size` places from `first`, of which `strip` have one index of the values' third axis."""
    if size == x.values.shape[2] * strip:
        return x
    values = jax.lax.dynamic_slice_in_dim(x.values, first // strip, size // strip, axis=2)
    if x.scale is None:
        return Kept(values, None)
    return Kept(values, jax.lax.dynamic_slice_in_dim(x.scale, first, size, axis=2))
