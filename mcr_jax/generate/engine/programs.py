"""Device programs: prefill of prompts into the KV cache, and decode steps.

Every program runs on all shards of the mesh's data axis at once, each with its own work; what lies
over the tensor axis, XLA partitions.

Dimensions: D shards, T tokens of a prompt as padded, E width; of a shard as in `state`.
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

_OURS = PartitionSpec("data")


class Program(NamedTuple):
    """Static arguments of the compiled programs; hashable.

    Attributes:
      config: of the decoder.
      shape: of a shard.
      mesh: with axes data and tensor.
      kernel: of decoding attention, as `decode_attention.attention` takes it; falls back to XLA in
        layers that it cannot serve.
    """

    config: DecoderConfig
    shape: Shape
    mesh: Mesh
    kernel: str


class Feed(NamedTuple):
    """Input of a chunk from the host: `count` jobs, and rows of output whose samples stop.

    Attributes:
      jobs: [Q] of a shard; their keys are made here and may be anything.
      cases: uint32 [Q].
      samples: int32 [Q].
      count: int32 [1].
      stopped: bool [O].
    """

    jobs: Jobs
    cases: jax.Array
    samples: jax.Array
    count: jax.Array
    stopped: jax.Array


class Report(NamedTuple):
    """Output of a chunk for the host.

    Attributes:
      output: the rows.
      taken: int32 [1], jobs taken from the queue so far.
      steps, drawn: int32 [1], steps made and tokens drawn so far.
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
        check_vma=False,  # loops start from constants and then differ between shards
    )


@functools.partial(jax.jit, static_argnums=0)
def prefill_start(program: Program, weights: Weights, tokens: jax.Array) -> jax.Array:
    """Vectors of tokens, int32 [D, T]: [D, T, E]."""
    c = program.config
    return _sharded(
        lambda table, tokens: embed(c, table, tokens), program.mesh, (PartitionSpec(), _OURS), _OURS
    )(weights.embedding, tokens)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def prefill_layer(program: Program, local: bool, kernel: str, layer, x, kept, entry, wanted):
    """One layer of prefill: x [D, T, E] and what the layer keeps, with the prompt's at `entry`.

    Args:
      program, local, kernel: what it is, whether it sees its window only, what it is kept for.
      layer: its weights.
      x: [D, T, E], donated.
      kept: its `Layer`, donated.
      entry: int32 [D], places in the store.
      wanted: bool [D]; a shard without a prompt keeps what it has.
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

    return _sharded(
        one, program.mesh, (PartitionSpec(), _OURS, _OURS, _OURS, _OURS), (_OURS, _OURS)
    )(layer, x, kept, entry, wanted)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(3, 4))
def prefill_end(program: Program, weights: Weights, x, first, lengths, entry, wanted, length):
    """The logits behind each prompt into `first`, [D * P, V], and its length into `lengths`."""
    c = program.config

    def one(norm, head, x, first, lengths, entry, wanted, length):
        last = jax.lax.dynamic_slice_in_dim(x, length[0] - 1, 1, axis=1)[0]
        logits = _logits(c, norm, head, last)
        row = jnp.where(wanted, entry, first.shape[0])  # beyond the end: dropped
        return first.at[row].set(logits, mode="drop"), lengths.at[row].set(length, mode="drop")

    whole = PartitionSpec()
    return _sharded(one, program.mesh, (whole, whole, *(_OURS,) * 6), (_OURS, _OURS))(
        weights.final_norm, _head(weights), x, first, lengths, entry, wanted, length
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    program: Program, weights: Weights, state: State, feed: Feed, eos: jax.Array, seed: jax.Array
) -> tuple[State, Report]:
    """Adds the feed's jobs and makes up to `shape.steps` steps, fewer where nothing is left to do.

    In a step every slot that writes draws one token. One that has none to write first takes a job
    and draws its first token from the logits kept with the prompt, so that slots never wait for one
    another, nor for the host.

    Args:
      program: static.
      weights: of the decoder.
      state: donated.
      feed: what is new.
      eos: int32 [any], the tokens that end a sample.
      seed: int scalar, of the run.
    """

    def one(weights, state, feed, eos, seed):
        state = _fed(state, feed, seed)
        until = state.steps + program.shape.steps

        def busy(state: State) -> jax.Array:
            here = jnp.any(state.alive) | (state.head < state.tail)[0]
            # Shards step together, or their programs would meet at different places.
            return jax.lax.pmax(here.astype(jnp.int32), "data") > 0

        def goes_on(carry) -> jax.Array:
            state, busy_ = carry
            return busy_ & (state.steps < until)[0]

        def step(carry):
            state = _step(program, weights, carry[0], eos)
            return state, busy(state)

        state, _ = jax.lax.while_loop(goes_on, step, (state, busy(state)))
        return state, Report(state.output, state.head, state.steps, state.drawn)

    whole = PartitionSpec()
    return _sharded(one, program.mesh, (whole, _OURS, _OURS, whole, whole), (_OURS, _OURS))(
        weights, state, feed, eos, seed
    )


def _fed(state: State, feed: Feed, seed: jax.Array) -> State:
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
    token, logprob = draw(slots.key, state.lengths, logits, _of_living(slots.options, state.alive))
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
    """Logits [B, V] in which slots that are `fresh`, bool [B], have their prompts' row of `first`.

    One by one, as few are fresh in a step.
    """
    order = jnp.argsort(~fresh)

    def replaced(i, logits):
        slot = order[i]
        return logits.at[slot].set(first[prompt[slot]])

    return jax.lax.fori_loop(0, jnp.sum(fresh), replaced, logits)


def _of_living(options: Options, alive: jax.Array) -> Options:
    """Slots that write nothing take the likeliest token: the cheapest, and nobody reads it."""
    return Options(
        temperature=jnp.where(alive, options.temperature, 0),
        top_k=jnp.where(alive, options.top_k, 0),
        top_p=jnp.where(alive, options.top_p, 1),
    )


def _by_slot(mesh: Mesh, logits: jax.Array) -> jax.Array:
    """Logits [B, V] with each device of the tensor axis drawing for its share of the slots."""
    if mesh.shape["tensor"] == 1 or logits.shape[0] % mesh.shape["tensor"]:
        return logits
    return jax.lax.with_sharding_constraint(logits, PartitionSpec("tensor"))


def _refilled(state: State) -> tuple[State, jax.Array]:
    """Gives the oldest waiting jobs to the slots that have none; also tells which slots, [B]."""
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
    """Logits [B, V] behind each slot's newest token, and the layers with its keys and values.

    A slot without one writes to a place that its first token's will take.
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
    """Attention of the step, and what is kept with k, v [B, K, D] of its tokens.

    A device of the tensor axis has its heads, if they come out even.
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
    whole = PartitionSpec()
    heads = whole if c.kv_heads % mesh.shape["tensor"] else PartitionSpec(None, "tensor")
    return jax.shard_map(
        attend,
        in_specs=(heads, heads, heads, heads, whole),
        out_specs=(heads, heads),
        axis_names=set(mesh.axis_names) - {"data"},  # all: XLA cannot partition a kernel
        check_vma=False,
    )(q, k, v, kept, at)


def _head(weights: Weights) -> jax.Array:
    return weights.embedding if weights.head is None else weights.head


def _logits(c: DecoderConfig, norm, head, x):
    x = rms_norm(x, norm, c.norm_eps, c.norm_offset)
    return jnp.einsum("...e,ve->...v", x, head, preferred_element_type=jnp.float32)
