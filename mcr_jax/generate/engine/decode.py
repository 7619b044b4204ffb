"""Samples N answers for each of P prompts in one compiled program: prefill once, decode together.

The prompt's keys and values are computed once and read by all its samples; each sample owns only
the suffix it writes. Shapes are fixed for a run, so a (case, sample) pair gives the same tokens
whatever its batch mates, the order of cases, or a resume.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mcr_jax.generate.engine.sampling import draw, sample_keys
from mcr_jax.model.attention import shared_prefix_attention
from mcr_jax.model.decoder import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The fixed sizes of a run: one compilation each.

    Attributes:
      prompts: P, prompts decoded together.
      samples: N, answers per prompt.
      prompt_tokens: T, room for a prompt.
      max_tokens: S, room for an answer, its end token included.
    """

    prompts: int
    samples: int
    prompt_tokens: int
    max_tokens: int


class Prompts(NamedTuple):
    """One batch of work, padded to the run's `Shape`.

    Attributes:
      tokens: int32 [P, T], padded on the right.
      lengths: int32 [P], at least 1.
      cases: uint32 [P], what the keys are folded from.
      samples: int32 [P, N], sample indices.
      wanted: bool [P, N]; the rest stay idle.
      temperature, top_p: float32 [P].
      limits: int32 [P], most new tokens, at most S.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    cases: np.ndarray
    samples: np.ndarray
    wanted: np.ndarray
    temperature: np.ndarray
    top_p: np.ndarray
    limits: np.ndarray


class Answers(NamedTuple):
    """What was written.

    Attributes:
      tokens: int32 [P, N, S]; beyond `counts` it holds nothing.
      counts: int32 [P, N], tokens written, the end token included.
      ended: bool [P, N], whether the last token written is an end token.
    """

    tokens: jax.Array
    counts: jax.Array
    ended: jax.Array


class _Loop(NamedTuple):
    written: jax.Array  # tokens drawn so far by those alive
    last: jax.Array  # int32 [P, N], newest token
    alive: jax.Array  # bool [P, N]
    out: jax.Array  # int32 [P, N, S]
    counts: jax.Array
    ended: jax.Array
    suffix: tuple  # per layer (keys, values), each [P, N, S, K, D]


def sampler(
    model: Decoder, shape: Shape, eos_ids: tuple[int, ...], seed: int
) -> Callable[[Prompts], Answers]:
    """The function that answers batches of `shape`; models of one kind share its compilation."""
    graph, params = nnx.split(model)
    eos = jnp.asarray(eos_ids, jnp.int32)
    return lambda prompts: _answer(graph, shape, params, prompts, eos, seed)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(graph, shape: Shape, params, prompts: Prompts, eos, seed) -> Answers:
    model = nnx.merge(graph, params)
    P, N, S = shape.prompts, shape.samples, shape.max_tokens
    real = jnp.arange(shape.prompt_tokens) < prompts.lengths[:, None]
    hidden, (keys, values) = model.hidden(prompts.tokens, keep_kv=True)
    last = hidden[jnp.arange(P), prompts.lengths - 1]
    first_logits = jnp.broadcast_to(model.logits(last)[:, None], (P, N, model.config.vocab_size))
    prefix = tuple((keys[i], values[i]) for i in range(model.config.layers))
    rng = sample_keys(seed, prompts.cases, prompts.samples)

    def emit(state: _Loop, logits: jax.Array) -> _Loop:
        token = draw(rng, state.written, logits, prompts.temperature, prompts.top_p)
        out = jnp.where(state.alive, token, state.out[:, :, state.written])
        counts = state.counts + state.alive
        ended = state.ended | (state.alive & jnp.any(token[..., None] == eos, axis=-1))
        return state._replace(
            written=state.written + 1,
            last=token,
            alive=state.alive & ~ended & (counts < prompts.limits[:, None]),
            out=state.out.at[:, :, state.written].set(out),
            counts=counts,
            ended=ended,
        )

    def step(state: _Loop) -> _Loop:
        place = state.written - 1  # of `last` among the answer's tokens

        def attend(q, k, v, cache, window):
            prefix_kv, suffix_kv = cache
            scale = model.config.attention_scale
            out = shared_prefix_attention(
                q, prefix_kv, real, suffix_kv, (k, v), place, window=window, scale=scale
            )
            return out, (k, v)

        positions = jnp.broadcast_to(prompts.lengths[:, None] + place, (P, N))
        caches = tuple(zip(prefix, state.suffix, strict=True))
        logits, fresh = model.step(state.last, positions, attend, caches)
        suffix = tuple(
            tuple(old.at[:, :, place].set(new) for old, new in zip(olds, news, strict=True))
            for olds, news in zip(state.suffix, fresh, strict=True)
        )
        return emit(state._replace(suffix=suffix), logits)

    room = (P, N, S, model.config.kv_heads, model.config.head_dim)
    empty = tuple((jnp.zeros(room, keys.dtype),) * 2 for _ in prefix)
    none = jnp.zeros((P, N), jnp.int32)
    state = _Loop(
        written=jnp.int32(0),
        last=none,
        alive=jnp.asarray(prompts.wanted),
        out=jnp.zeros((P, N, S), jnp.int32),
        counts=none,
        ended=jnp.zeros((P, N), bool),
        suffix=empty,
    )
    state = jax.lax.while_loop(
        lambda s: jnp.any(s.alive) & (s.written < S), step, emit(state, first_logits)
    )
    return Answers(tokens=state.out, counts=state.counts, ended=state.ended)
