"""State of the engine on the devices: its shapes and their sharding.

Everything has the shards of the mesh's data axis one after the other on its first axis. A shard is
an engine of its own: its jobs, slots and prompts name one another by places within it.

Dimensions of a shard: B slots, P prompts, R slots that share one, Q jobs waiting, O rows of output,
S places of an answer, T of a prompt, K key heads, D head size, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcr_jax.generate.engine.decode_attention import Kept, Layer, kernel_of, room, strip_of
from mcr_jax.generate.engine.sampling import Options
from mcr_jax.model.shape import DecoderConfig

WAITING, ENDED, AT_LIMIT = 0, 1, 2  # of a row of output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The fixed sizes of a run, of one shard: everything compiles once for them.

    Attributes:
      slots: B, samples decoded together; a multiple of 8. Products of matrices come out the same,
        bit for bit, for every row of a whole tile, but not always for those of a tile cut short.
      share: R, most samples that read one prompt's keys together; those of a case that has more are
        given its prompt more than once. Prompts with fewer samples leave slots without work.
      prompt_tokens: T, room for a prompt.
      max_tokens: S, room for an answer, its end token included.
      kv_dtype: of keys and values: "float32", "bfloat16", "int8", or "" for the model's.
      chunk: most steps between two looks of the host; 0 is a quarter of the longest answer, 64 at
        most, so that few slots run dry before the host sees it.
    """

    slots: int = 64
    share: int = 10
    prompt_tokens: int
    max_tokens: int
    kv_dtype: str = ""
    chunk: int = 0

    @property
    def steps(self) -> int:
        """Most steps between two looks of the host."""
        return self.chunk or min(64, max(8, self.max_tokens // 4))

    @property
    def prompts(self) -> int:
        """P: what fills the slots three times, as a prompt stays until its last sample ends.

        Half as many more are for samples that wait.
        """
        filling = -(-self.slots // self.share)
        return filling * min(self.share, 3) + -(-filling // 2)

    @property
    def jobs(self) -> int:
        """Q: so many that every slot can be given another one in each of two chunks.

        The host learns of what one took while the next is under way.
        """
        return 2 * self.slots + self.share

    @property
    def rows(self) -> int:
        """O: of the jobs that wait, those in slots, and those whose end the host has yet to see."""
        return 2 * self.slots + self.jobs


class Jobs(NamedTuple):
    """Samples to draw.

    Attributes:
      prompt: int32, place of its prompt.
      rank: int32, of those that share the prompt now.
      row: int32, of the output.
      key: uint32 [..., 2], what it is drawn with.
      limit: int32, most tokens.
      options: how to draw.
    """

    prompt: jax.Array
    rank: jax.Array
    row: jax.Array
    key: jax.Array
    limit: jax.Array
    options: Options


class Output(NamedTuple):
    """Output buffers, by row.

    Attributes:
      tokens: int32 [O, S].
      logprobs: float32 [O, S], nats.
      counts: int32 [O], tokens written.
      status: int32 [O]: WAITING, also while it is written, ENDED with an end token, or AT_LIMIT.
    """

    tokens: jax.Array
    logprobs: jax.Array
    counts: jax.Array
    status: jax.Array


class State(NamedTuple):
    """All that changes on the devices; donated to every program that takes it.

    Attributes:
      layers: a `Layer` each.
      first: float32 [P, V], logits of the first token after each prompt.
      prompt_lengths: int32 [P].
      queue: `Jobs` [Q], a ring.
      head, tail: int32 [1], how many jobs were taken from it and put into it so far.
      slots: `Jobs` [B], what each slot is at.
      alive: bool [B].
      lengths: int32 [B], tokens drawn.
      last: int32 [B], the newest of them.
      output: by row.
      steps, drawn: int32 [1], steps made and tokens drawn so far.
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
    """A state without work, laid out on `mesh`."""
    return _empty(c, shape, mesh, kernel)()


@functools.cache
def _empty(*sizes) -> Callable[[], State]:
    like = blueprint(*sizes)

    def zeros() -> State:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    return jax.jit(zeros, out_shardings=jax.tree.map(lambda x: x.sharding, like))


def blueprint(c: DecoderConfig, shape: Shape, mesh: Mesh, kernel: str) -> State:
    """The shapes, dtypes and shardings of a state, allocating nothing."""
    shards = mesh.shape["data"]
    B, P, Q, rows = shape.slots, shape.prompts, shape.jobs, shape.rows
    by_head = "tensor" if c.kv_heads % mesh.shape["tensor"] == 0 else None

    def array(dtype: Any, n: int, *rest: int, spec: tuple = ()) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec("data", *spec))
        return jax.ShapeDtypeStruct((shards * n, *rest), dtype, sharding=sharding)

    def kept(n: int, length: int, kernel: str) -> tuple[Kept, Kept]:
        dtype, S = shape.kv_dtype or c.dtype, room(length, kernel)
        scale = array("float32", n, c.kv_heads, S, spec=(by_head,)) if dtype == "int8" else None

        def of(*size: int) -> Kept:
            return Kept(array(dtype, n, c.kv_heads, *size, spec=(by_head,)), scale)

        if kernel != "xla":
            return of(S, c.head_dim), of(S, c.head_dim)
        strip = strip_of(S)
        return of(S // strip, c.head_dim, strip), of(S, c.head_dim)

    def layer(index: int) -> Layer:
        of_layer = layer_kernel(c, shape, kernel, index)
        prompt, own = kept(P, shape.prompt_tokens, of_layer), kept(B, shape.max_tokens, of_layer)
        return Layer(*prompt, *own)

    def jobs(n: int) -> Jobs:
        number, real = array("int32", n), array("float32", n)
        key = array("uint32", n, 2)
        return Jobs(number, number, number, key, number, Options(real, number, real))

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
    """The kernel that layer `index` is kept for, where the engine's is `kernel`."""
    window = c.window if c.is_local(index) else None
    return kernel_of(kernel, c.dtype, shape.kv_dtype or c.dtype, window, c.head_dim)
