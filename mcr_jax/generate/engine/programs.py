"""Device programs: prefill of prompts into the KV cache, and decode steps.

Every program runs on all shards of the mesh's data axis at once, each with its own jobs. XLA
partitions the computation over the tensor axis.

Dimensions: D shards, T tokens of a padded prompt, E width; those of a shard: see `state`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mcr_jax.generate.engine import decode_attention
from mcr_jax.generate.engine.sampling import Options, draw, sample_keys
from mcr_jax.generate.engine.state import (
    AT_LIMIT,
    ENDED,
    WAITING,
    Jobs,
    Output,
    Shape,
    State,
    layer_kernel,
)
from mcr_jax.generate.engine.weights import Weights
from mcr_jax.model.attention import attention
from mcr_jax.model.decoder import block, embed, rms_norm, turn
from mcr_jax.model.shape import DecoderConfig

_SHARDED, _REPLICATED = PartitionSpec("data"), PartitionSpec()


class Program(NamedTuple):
    """Static, hashable arguments of the compiled programs.

    Attributes:
      config: shape of the decoder.
      shape: sizes of a shard.
      mesh: mesh with axes data and tensor.
      kernel: kernel of decoding attention, see `decode_attention.attention`. Layers that it cannot
        compute fall back to XLA.
    """

    config: DecoderConfig
    shape: Shape
    mesh: Mesh
    kernel: str


class Feed(NamedTuple):
    """Input of a chunk from the host.

    Attributes:
      jobs: [Q] of a shard; their keys are ignored, `decode` derives them.
      cases: uint32 [Q], numbers of the cases.
      samples: int32 [Q], indices of the samples.
      count: int32 [1], number of jobs.
      stopped: bool [O], output rows whose samples end now.
    """

    jobs: Jobs
    cases: jax.Array
    samples: jax.Array
    count: jax.Array
    stopped: jax.Array


class Report(NamedTuple):
    """Output of a chunk for the host.

    Attributes:
      output: output buffers.
      taken: int32 [1], number of jobs taken from the queue so far.
      steps, drawn: int32 [1], number of decode steps and of tokens drawn so far.
    """

    output: Output
    taken: jax.Array
    steps: jax.Array
    drawn: jax.Array


def _sharded(function, mesh: Mesh, in_specs, out_specs):
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={"data"},
        check_vma=False,  # loop carries start as constants and then differ between shards
    )


@functools.partial(jax.jit, static_argnums=0)
def prefill_start(program: Program, weights: Weights, tokens: jax.Array) -> jax.Array:
    """Embeds tokens, int32 [D, T], to [D, T, E]."""
    start = functools.partial(embed, program.config)
    return _sharded(start, program.mesh, (_REPLICATED, _SHARDED), _SHARDED)(
        weights.embedding, tokens
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def prefill_layer(program: Program, local: bool, kernel: str, layer, x, kept, entry, wanted):
    """Computes one layer of prefill; returns x and the KV cache with the prompt at `entry`.

    Args:
      program: static arguments.
      local: True for a layer with a sliding window.
      kernel: kernel of the layer.
      layer: weights of the layer.
      x: [D, T, E], donated.
      kept: KV cache of the layer, donated.
      entry: int32 [D], entry of each shard's prompt.
      wanted: bool [D]; the cache of a shard without a prompt does not change.
    """
    c = program.config

    def one(layer, x, kept, entry, wanted):
        positions = jnp.arange(x.shape[1])[None]

        def attend(q, k, v):
            window = c.window if local else None
            scale = c.attention_scale
            return attention(q, k, v, window=window, scale=scale, backend=c.attention), (k, v)

        x, (k, v) = block(c, layer, x, turn(c, positions, local=local), attend)
        return x, decode_attention.put_prompt(kept, k, v, entry[0], wanted[0], kernel)

    inputs, outputs = (_REPLICATED, *(_SHARDED,) * 4), (_SHARDED, _SHARDED)
    return _sharded(one, program.mesh, inputs, outputs)(layer, x, kept, entry, wanted)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(3, 4))
def prefill_end(program: Program, weights: Weights, x, first, lengths, entry, wanted, length):
    """Writes the logits after each prompt to `first`, [D * P, V], and its length to `lengths`."""
    c = program.config

    def one(norm, head, x, first, lengths, entry, wanted, length):
        last = jax.lax.dynamic_slice_in_dim(x, length[0] - 1, 1, axis=1)[0]
        logits = _logits(c, norm, head, last)
        row = jnp.where(wanted, entry, first.shape[0])  # beyond the end: dropped
        return first.at[row].set(logits, mode="drop"), lengths.at[row].set(length, mode="drop")

    inputs, outputs = (_REPLICATED, _REPLICATED, *(_SHARDED,) * 6), (_SHARDED, _SHARDED)
    return _sharded(one, program.mesh, inputs, outputs)(
        weights.final_norm, _head(weights), x, first, lengths, entry, wanted, length
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    program: Program, weights: Weights, state: State, feed: Feed, eos: jax.Array, seed: jax.Array
) -> tuple[State, Report]:
    """Queues the feed's jobs and makes up to `shape.steps` decode steps, fewer without work.

    In a step every busy slot draws one token. An idle slot first takes a job and draws its first
    token from the logits stored with the prompt: slots wait neither for one another nor for the
    host.

    Args:
      program: static arguments.
      weights: parameters of the decoder.
      state: state, donated.
      feed: input of the chunk.
      eos: int32 [any], tokens that end a sample.
      seed: int scalar, seed of the run.
    """

    def one(weights, state, feed, eos, seed):
        state = _queued(state, feed, seed)
        until = state.steps + program.shape.steps

        def busy(state: State) -> jax.Array:
            here = jnp.any(state.alive) | (state.head < state.tail)[0]
            # All shards make the same number of steps, as collectives need all of them.
            return jax.lax.pmax(here.astype(jnp.int32), "data") > 0

        def goes_on(carry) -> jax.Array:
            state, busy_ = carry
            return busy_ & (state.steps < until)[0]

        def step(carry):
            state = _step(program, weights, carry[0], eos)
            return state, busy(state)

        state, _ = jax.lax.while_loop(goes_on, step, (state, busy(state)))
        return state, Report(state.output, state.head, state.steps, state.drawn)

    inputs = _REPLICATED, _SHARDED, _SHARDED, _REPLICATED, _REPLICATED
    return _sharded(one, program.mesh, inputs, (_SHARDED, _SHARDED))(
        weights, state, feed, eos, seed
    )


def _queued(state: State, feed: Feed, seed: jax.Array) -> State:
    size = state.queue.row.shape[0]
    jobs = feed.jobs._replace(key=sample_keys(seed, feed.cases, feed.samples))
    new = jnp.arange(size)
    place = jnp.where(new < feed.count, (state.tail + new) % size, size)  # beyond the end: dropped
    queue = jax.tree.map(lambda old, x: old.at[place].set(x, mode="drop"), state.queue, jobs)
    row = jnp.where(new < feed.count, feed.jobs.row, state.output.status.shape[0])
    output = state.output._replace(
        counts=state.output.counts.at[row].set(0, mode="drop"),
        status=state.output.status.at[row].set(WAITING, mode="drop"),
    )
    return state._replace(
        queue=queue,
        tail=state.tail + feed.count,
        alive=state.alive & ~feed.stopped[state.slots.row],
        output=output,
    )


def _step(program: Program, weights: Weights, state: State, eos: jax.Array) -> State:
    state, fresh = _refilled(state)
    slots = state.slots
    at = decode_attention.places(
        slots.prompt,
        slots.rank,
        state.alive,
        state.prompt_lengths,
        jnp.maximum(state.lengths, 1),
        program.shape.share,
    )
    logits, layers = _forward(program, weights, state, at)
    logits = _by_slot(program.mesh, _with_first(logits, fresh, state.first, slots.prompt))
    options = Options(  # idle slots are greedy, the cheapest; their tokens are dropped
        temperature=jnp.where(state.alive, slots.options.temperature, 0),
        top_k=jnp.where(state.alive, slots.options.top_k, 0),
        top_p=jnp.where(state.alive, slots.options.top_p, 1),
    )
    token, logprob = draw(slots.key, state.lengths, logits, options)
    written = state.output
    row = jnp.where(state.alive, slots.row, written.status.shape[0])  # beyond the end: dropped
    lengths = state.lengths + state.alive
    ended = jnp.any(token[:, None] == eos, axis=-1)
    status = jnp.where(ended, ENDED, jnp.where(lengths >= slots.limit, AT_LIMIT, WAITING))
    output = Output(
        tokens=written.tokens.at[row, state.lengths].set(token, mode="drop"),
        logprobs=written.logprobs.at[row, state.lengths].set(logprob, mode="drop"),
        counts=written.counts.at[row].set(lengths, mode="drop"),
        status=written.status.at[row].set(status, mode="drop"),
    )
    return state._replace(
        layers=layers,
        alive=state.alive & (status == WAITING),
        lengths=lengths,
        last=token,
        output=output,
        steps=state.steps + 1,
        drawn=state.drawn + jnp.sum(state.alive, dtype=jnp.int32),
    )


def _with_first(logits, fresh, first, prompt) -> jax.Array:
    """Replaces the logits [B, V] of `fresh` slots, bool [B], by their prompts' rows of `first`.

    A loop over the slots, as few are fresh in a step.
    """
    order = jnp.argsort(~fresh)

    def replaced(i, logits):
        slot = order[i]
        return logits.at[slot].set(first[prompt[slot]])

    return jax.lax.fori_loop(0, jnp.sum(fresh), replaced, logits)


def _by_slot(mesh: Mesh, logits: jax.Array) -> jax.Array:
    """Shards logits [B, V] by slots over the tensor axis, so that each device samples its share."""
    if mesh.shape["tensor"] == 1 or logits.shape[0] % mesh.shape["tensor"]:
        return logits
    return jax.lax.with_sharding_constraint(logits, PartitionSpec("tensor"))


def _refilled(state: State) -> tuple[State, jax.Array]:
    """Gives the oldest waiting jobs to idle slots; also returns which slots got one, [B]."""
    free = ~state.alive
    order = jnp.cumsum(free, dtype=jnp.int32) - 1
    takes = free & (order < state.tail - state.head)
    place = (state.head + order) % state.queue.row.shape[0]

    def taken(mine, queue):
        shape = (-1, *(1,) * (mine.ndim - 1))
        return jnp.where(takes.reshape(shape), queue[place], mine)

    state = state._replace(
        head=state.head + jnp.sum(takes, dtype=jnp.int32),
        slots=jax.tree.map(taken, state.slots, state.queue),
        alive=state.alive | takes,
        lengths=jnp.where(takes, 0, state.lengths),
    )
    return state, takes


def _forward(program: Program, weights: Weights, state: State, at: decode_attention.Places):
    """Returns the logits [B, V] after each slot's newest token, and the KV cache with that token.

    A slot without a token writes to the place that its first token will overwrite.
    """
    c = program.config
    positions = state.prompt_lengths[state.slots.prompt] + at.lengths - 1
    x = embed(c, weights.embedding, state.last)
    turns = {local: turn(c, positions, local=local) for local in {*c.local_layers, False}}
    layers = []
    for index, (layer, kept) in enumerate(zip(weights.layers, state.layers, strict=True)):
        window = c.window if c.is_local(index) else None
        kernel = layer_kernel(c, program.shape, program.kernel, index)

        def attend(q, k, v, kept=kept, window=window, kernel=kernel):
            return _attended(program, q, k, v, kept, at, window, kernel)

        x, kept = block(c, layer, x, turns[c.is_local(index)], attend)
        layers.append(kept)
    return _logits(c, weights.final_norm, _head(weights), x), tuple(layers)


def _attended(program: Program, q, k, v, kept, at: decode_attention.Places, window, kernel: str):
    """Writes k, v [B, K, D] to the KV cache; returns the attention of the step, and the cache.

    Heads are sharded over the tensor axis if it divides the key heads.
    """
    c, mesh = program.config, program.mesh
    scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale

    def attend(q, k, v, kept, at):
        kept = decode_attention.put(kept, k, v, at.lengths - 1, kernel)
        return decode_attention.attention(
            q, kept, at, window=window, scale=scale, kernel=kernel
        ), kept

    if kernel == "xla" and mesh.shape["tensor"] == 1:
        return attend(q, k, v, kept, at)
    heads = _REPLICATED if c.kv_heads % mesh.shape["tensor"] else PartitionSpec(None, "tensor")
    return jax.shard_map(
        attend,
        in_specs=(heads, heads, heads, heads, _REPLICATED),
        out_specs=(heads, heads),
        axis_names=set(mesh.axis_names) - {"data"},  # all: XLA cannot partition a kernel
        check_vma=False,
    )(q, k, v, kept, at)


def _head(weights: Weights) -> jax.Array:
    return weights.embedding if weights.head is None else weights.head


def _logits(c: DecoderConfig, norm, head, x):
    x = rms_norm(x, norm, c.norm_eps, c.norm_offset)
    return jnp.einsum("...e,ve->...v", x, head, preferred_element_type=jnp.float32)
