"""State of the engine on the devices: shapes and sharding.

The first axis of every array concatenates the shards of the mesh's data axis. A shard is an
independent engine: indices of its jobs, slots and prompts are local to it.

Dimensions of a shard: B slots, P prompts, R slots that share a prompt, Q waiting jobs, O output
rows, S places of an answer, T places of a prompt, K key heads, D head size, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcr_jax.generate.engine.decode_attention import Kept, Layer, refusal, room, strip_of
from mcr_jax.generate.engine.sampling import Options
from mcr_jax.model.shape import DecoderConfig

WAITING, ENDED, AT_LIMIT = 0, 1, 2  # status of an output row
SLOT_MULTIPLE = 8  # the slot count is a multiple of the smallest efficient matmul tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Fixed sizes of one shard; programs compile once for them.

    Attributes:
      slots: B, samples decoded together; a multiple of 8. A matmul gives bitwise the same result
        for every row of a full tile, but not always for a row of a partial tile.
      share: R, most samples that share one copy of a prompt. A case with more samples has its
        prompt prefilled more than once; prompts with fewer samples leave slots idle.
      prompt_tokens: T, most tokens of a prompt.
      max_tokens: S, most tokens of an answer, end token included.
      kv_dtype: dtype of the KV cache: "float32", "bfloat16", "int8", or "" for the model's.
      chunk: most decode steps per program call; 0 takes a quarter of `max_tokens`, at most 64, so
        that few slots run out of work before the host refills the queue.
    """

    slots: int = 64
    share: int = 10
    prompt_tokens: int
    max_tokens: int
    kv_dtype: str = ""
    chunk: int = 0

    @property
    def steps(self) -> int:
        """Most decode steps per program call."""
        return self.chunk or min(64, max(8, self.max_tokens // 4))

    @property
    def prompts(self) -> int:
        """P: enough to fill the slots three times, as a prompt stays until its last sample ends.

        Half a filling more is for waiting samples.
        """
        filling = -(-self.slots // self.share)
        return filling * min(self.share, 3) + -(-filling // 2)

    @property
    def jobs(self) -> int:
        """Q: a new job for every slot in each of two chunks.

        The host reads the report of one chunk while the next one runs.
        """
        return 2 * self.slots + self.share

    @property
    def rows(self) -> int:
        """O: rows for waiting jobs, for jobs in slots, and for ended jobs not yet reported."""
        return 2 * self.slots + self.jobs


class Jobs(NamedTuple):
    """Samples to draw.

    Attributes:
      prompt: int32, entry of the prompt in the KV cache.
      rank: int32, index among the samples that share the prompt entry.
      row: int32, output row.
      key: uint32 [..., 2], random key.
      limit: int32, most tokens.
      options: sampling options.
    """

    prompt: jax.Array
    rank: jax.Array
    row: jax.Array
    key: jax.Array
    limit: jax.Array
    options: Options


class Output(NamedTuple):
    """Output buffers.

    Attributes:
      tokens: int32 [O, S].
      logprobs: float32 [O, S], nats.
      counts: int32 [O], number of tokens.
      status: int32 [O]: WAITING until the sample is complete, then ENDED (end token) or AT_LIMIT.
    """

    tokens: jax.Array
    logprobs: jax.Array
    counts: jax.Array
    status: jax.Array


class State(NamedTuple):
    """Mutable arrays on the devices; donated to every program that takes them.

    Attributes:
      layers: KV cache, a `Layer` each.
      first: float32 [P, V], logits of the first token after each prompt.
      prompt_lengths: int32 [P].
      queue: `Jobs` [Q], a ring buffer.
      head, tail: int32 [1], number of jobs taken from the queue and put into it so far.
      slots: `Jobs` [B], job of each slot.
      alive: bool [B], True for slots with an unfinished job.
      lengths: int32 [B], number of tokens drawn.
      last: int32 [B], newest token.
      output: output buffers.
      steps, drawn: int32 [1], number of decode steps and of tokens drawn so far.
    """

    layers: tuple[Layer, ...]
    first: jax.Array
    prompt_lengths: jax.Array
    queue: Jobs
    head: jax.Array
    tail: jax.Array
    slots: Jobs
    alive: jax.Array
    lengths: jax.Array
    last: jax.Array
    output: Output
    steps: jax.Array
    drawn: jax.Array


def empty(c: DecoderConfig, shape: Shape, mesh: Mesh, kernel: str) -> State:
    """Returns a state without jobs, sharded on `mesh`."""
    return _zeros(c, shape, mesh, kernel)()


@functools.cache
def _zeros(*sizes) -> Callable[[], State]:
    like = blueprint(*sizes)

    def zeros() -> State:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    return jax.jit(zeros, out_shardings=jax.tree.map(lambda x: x.sharding, like))


def blueprint(c: DecoderConfig, shape: Shape, mesh: Mesh, kernel: str) -> State:
    """Returns the abstract shapes of a state, with their shardings."""
    shards = mesh.shape["data"]
    B, P, Q, rows = shape.slots, shape.prompts, shape.jobs, shape.rows
    by_head = "tensor" if c.kv_heads % mesh.shape["tensor"] == 0 else None

    def array(dtype: Any, n: int, *rest: int, spec: tuple = ()) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec("data", *spec))
        return jax.ShapeDtypeStruct((shards * n, *rest), dtype, sharding=sharding)

    def kept(n: int, length: int, kernel: str) -> tuple[Kept, Kept]:
        dtype, S = shape.kv_dtype or c.dtype, room(length, kernel)
        scale = array("float32", n, c.kv_heads, S, spec=(by_head,)) if dtype == "int8" else None

        def sized(*size: int) -> Kept:
            return Kept(array(dtype, n, c.kv_heads, *size, spec=(by_head,)), scale)

        if kernel != "xla":
            return sized(S, c.head_dim), sized(S, c.head_dim)
        strip = strip_of(S)
        return sized(S // strip, c.head_dim, strip), sized(S, c.head_dim)

    def layer(index: int) -> Layer:
        used = layer_kernel(c, shape, kernel, index)
        return Layer(*kept(P, shape.prompt_tokens, used), *kept(B, shape.max_tokens, used))

    def jobs(n: int) -> Jobs:
        int_, float_, key = array("int32", n), array("float32", n), array("uint32", n, 2)
        return Jobs(int_, int_, int_, key, int_, Options(float_, int_, float_))

    of_slot, one = array("int32", B), array("int32", 1)
    return State(
        layers=tuple(map(layer, range(c.layers))),
        first=array("float32", P, c.vocab_size),
        prompt_lengths=array("int32", P),
        queue=jobs(Q),
        head=one,
        tail=one,
        slots=jobs(B),
        alive=array("bool", B),
        lengths=of_slot,
        last=of_slot,
        output=Output(
            tokens=array("int32", rows, shape.max_tokens),
            logprobs=array("float32", rows, shape.max_tokens),
            counts=array("int32", rows),
            status=array("int32", rows),
        ),
        steps=one,
        drawn=one,
    )


def layer_kernel(c: DecoderConfig, shape: Shape, kernel: str, index: int) -> str:
    """Returns the kernel of layer `index` if the engine has `kernel`: itself or "xla"."""
    window = c.window if c.is_local(index) else None
    refused = refusal(kernel, c.dtype, shape.kv_dtype or c.dtype, window, c.head_dim)
    return "xla" if refused else kernel
