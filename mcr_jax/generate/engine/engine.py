"""Draws many samples of many prompts: feeds the devices, and hands out what is finished.

The host looks at the devices between chunks of steps only, and while it looks at one chunk the next
is under way. Prompts are prefilled one by one as places in the store come free; their samples wait
in a queue on the devices, from which slots help themselves in the middle of a chunk.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcr_jax.generate.engine import programs
from mcr_jax.generate.engine.kernels import choose
from mcr_jax.generate.engine.programs import Program, Report
from mcr_jax.generate.engine.scheduling import Prompt, Run, Sample
from mcr_jax.generate.engine.state import Shape, blueprint, empty, layer_kernel
from mcr_jax.generate.engine.weights import Weights
from mcr_jax.model.shape import DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pulse:
    """Progress of the engine.

    Attributes:
      tokens: drawn so far in this run.
      steps: of decoding made so far.
      slots: there are.
    """

    tokens: int = 0
    steps: int = 0
    slots: int = 0


class Engine:
    """A decoder on the devices of a mesh, ready to draw.

    Attributes:
      pulse: of the run under way or the last one.

    Args:
      config: of the decoder.
      weights: of the decoder, laid out on `mesh`; replicated over its data axis.
      shape: the sizes, of each shard of the data axis.
      eos: ids of the tokens that end a sample.
      seed: root of all keys.
      mesh: with axes data and tensor.

    Raises:
      ValueError: shape.slots is not a multiple of 8.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        shape: Shape,
        eos: tuple[int, ...],
        seed: int,
        mesh: Mesh,
    ):
        if shape.slots < 1 or shape.slots % 8:
            raise ValueError(f"slots={shape.slots} is not a multiple of 8")
        self._program = Program(config, shape, mesh, choose(config, shape))
        self._weights, self._shape, self._mesh = weights, shape, mesh
        self._eos, self._seed = np.asarray(eos, np.int32), np.int32(seed)
        self._shards = mesh.shape["data"]
        self._state = None
        self.pulse = Pulse()

    def run(self, prompts: Iterable[Prompt]) -> Iterator[Sample]:
        """Yields every wanted sample once, as they finish.

        Leaving it early is fine: close the iterator, and the next run starts anew. Prompts are
        looked at when their turn comes.

        Raises:
          ValueError: a prompt, a limit or an option is none or beyond the shape, or a sample is
            asked for twice.
          RuntimeError: another run is open.
        """
        if self._state is not None:
            raise RuntimeError("the engine is drawing; close that run first")
        self._state, self.pulse = empty(*self._program), Pulse()
        try:
            yield from self._run(Run(self._shape, self._shards, prompts))
        finally:
            self._state = None

    def _run(self, run: Run) -> Iterator[Sample]:
        reports: collections.deque[tuple[int, Report]] = collections.deque()
        chunk = 0
        while run.open:
            for batch in run.prefills():
                self._prefill(*batch)
            feed = self._put(run.feed(chunk))
            self._state, report = programs.decode(
                self._program, self._weights, self._state, feed, self._eos, self._seed
            )
            jax.tree.map(lambda x: x.copy_to_host_async(), report)
            reports.append((chunk, report))
            chunk += 1
            if len(reports) > 1:
                yield from self._seen(run, *reports.popleft())

    def traced(self) -> jax.stages.Traced:
        """The decoding program: `lower().compile().memory_analysis()` and so on."""
        state = blueprint(*self._program)
        feed = self._put(Run(self._shape, self._shards, ()).feed(0))
        return programs.decode.trace(
            self._program, self._weights, state, feed, self._eos, self._seed
        )

    def _seen(self, run: Run, chunk: int, report: Report) -> Iterator[Sample]:
        report = jax.tree.map(np.asarray, report)
        self.pulse = Pulse(
            tokens=int(report.drawn.sum()),
            steps=int(report.steps.max()),
            slots=self._shards * self._shape.slots,
        )
        yield from run.finished(chunk, report)

    def _prefill(self, tokens, length, entry, wanted) -> None:
        c, program, state = self._program.config, self._program, self._state
        tokens, length, entry, wanted = self._put((tokens, length, entry, wanted))
        x = programs.prefill_start(program, self._weights, tokens)
        layers = []
        for index, (layer, kept) in enumerate(zip(self._weights.layers, state.layers, strict=True)):
            kernel = layer_kernel(c, self._shape, program.kernel, index)
            x, kept = programs.prefill_layer(
                program, c.is_local(index), kernel, layer, x, kept, entry, wanted
            )
            layers.append(kept)
        first, lengths = programs.prefill_end(
            program, self._weights, x, state.first, state.prompt_lengths, entry, wanted, length
        )
        self._state = state._replace(layers=tuple(layers), first=first, prompt_lengths=lengths)

    def _put(self, tree):
        placed = NamedSharding(self._mesh, PartitionSpec("data"))
        return jax.tree.map(lambda x: jax.device_put(x, placed), tree)
