"""Engine that draws many samples of many prompts with continuous batching.

The host talks to the devices once per chunk of decode steps and reads the report of one chunk while
the next one runs. Prompts are prefilled one by one as entries of the KV cache become free. Their
samples wait in a queue on the devices, from which free slots take jobs in the middle of a chunk.
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
from mcr_jax.generate.engine.state import SLOT_MULTIPLE, Shape, blueprint, empty, layer_kernel
from mcr_jax.generate.engine.weights import Weights
from mcr_jax.model.shape import DecoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pulse:
    """Progress of the engine.

    Attributes:
      tokens: number of tokens drawn in this run.
      steps: number of decode steps in this run.
      slots: number of slots of all shards.
    """

    tokens: int = 0
    steps: int = 0
    slots: int = 0


class Engine:
    """Decoder on the devices of a mesh, ready to sample.

    Attributes:
      pulse: progress of the current run or the last one.

    Args:
      config: shape of the decoder.
      weights: parameters, sharded on `mesh` and replicated over its data axis.
      shape: sizes of each shard of the data axis.
      eos: ids of the tokens that end a sample.
      seed: root of all random keys.
      mesh: mesh with axes data and tensor.

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
        if shape.slots < 1 or shape.slots % SLOT_MULTIPLE:
            raise ValueError(f"slots={shape.slots} is not a multiple of {SLOT_MULTIPLE}")
        self._program = Program(config, shape, mesh, choose(config, shape))
        self._weights, self._shape, self._mesh = weights, shape, mesh
        self._eos, self._seed = np.asarray(eos, np.int32), np.int32(seed)
        self._shards = mesh.shape["data"]
        self._state = None
        self.pulse = Pulse()

    def run(self, prompts: Iterable[Prompt]) -> Iterator[Sample]:
        """Yields every wanted sample once, as it finishes.

        To end a run early, close the iterator. Prompts are read lazily.

        Raises:
          ValueError: a prompt, a limit or an option is invalid or exceeds the shape, or a sample is
            wanted twice.
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
                yield from self._finished(run, *reports.popleft())

    def traced(self) -> jax.stages.Traced:
        """Traces the decode program, for `lower().compile().memory_analysis()` and the like."""
        state = blueprint(*self._program)
        feed = self._put(Run(self._shape, self._shards, ()).feed(0))
        return programs.decode.trace(
            self._program, self._weights, state, feed, self._eos, self._seed
        )

    def _finished(self, run: Run, chunk: int, report: Report) -> Iterator[Sample]:
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
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec("data")))
