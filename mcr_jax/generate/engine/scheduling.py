"""Schedule of a run: the prompts to prefill, and the jobs and output rows of samples."""

import collections
import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from mcr_jax.generate.engine.programs import Feed, Report
from mcr_jax.generate.engine.sampling import Options
from mcr_jax.generate.engine.state import ENDED, WAITING, Jobs, Shape

Stop = Callable[[np.ndarray], int | None]  # all tokens so far -> number of tokens to keep, or None

_SHORTEST_TOKENS = 48  # shortest padded prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Prompt with its wanted samples.

    Attributes:
      tokens: int32 [1 … shape.prompt_tokens].
      case: 32-bit number; with the index of the sample and the seed it determines the draws.
      samples: indices of the samples, each once.
      limits: most tokens of each sample, at most shape.max_tokens.
      temperature, top_k, top_p: see `sampling.Options`.
      stop: called after a chunk with all tokens of a sample to end it early; None never does.
    """

    tokens: np.ndarray
    case: int
    samples: tuple[int, ...]
    limits: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Stop | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Finished sample.

    Attributes:
      prompt: index of the prompt in the run.
      index: index of the sample.
      tokens: int32 [count], end token included.
      logprobs: float32 [count], log-probability of each token under the model, in nats.
      ended: True if an end token or `stop` ended it, False at its limit.
    """

    prompt: int
    index: int
    tokens: np.ndarray
    logprobs: np.ndarray
    ended: bool


@dataclasses.dataclass
class _Job:
    """Sample that waits or has a slot on the devices."""

    prompt: int  # index in the run
    index: int
    limit: int
    spec: Prompt
    entry: int  # of the prompt in the KV cache
    chunk: int = 0  # that fed it to the devices
    checked: int = 0  # tokens that `stop` has read


class Run:
    """Schedule of one run over all shards.

    Attributes:
      open: True until all wanted samples are finished.
    """

    def __init__(self, shape: Shape, shards: int, prompts: Iterable[Prompt]):
        self._shape = shape
        self._groups = _groups(shape, prompts)
        self._next = next(self._groups, None)
        self._shards = [_Shard(shape) for _ in range(shards)]

    @property
    def open(self) -> bool:
        return self._next is not None or any(shard.open for shard in self._shards)

    def prefills(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields tokens [D, T], lengths [D], entries [D] and wanted [D] of prompts to prefill now.

        Every shard takes prompts until its waiting samples suffice for its slots.
        """
        while self._next is not None:
            taken: dict[int, tuple[int, np.ndarray]] = {}  # by shard: entry and tokens
            for i, shard in enumerate(self._shards):
                if self._next is not None and shard.wants(len(self._next[2])):
                    number, prompt, samples = self._next
                    taken[i] = shard.take(number, prompt, samples), prompt.tokens
                    self._next = next(self._groups, None)
            if not taken:
                return
            # One batch per size: the padding of a prompt must not depend on the other shards.
            for size in sorted({self._padded_size(len(tokens)) for _, tokens in taken.values()}):
                yield self._batch(taken, size)

    def _padded_size(self, length: int) -> int:
        """Returns the padded length of a prompt: 2^n or 3 * 2^n, at most T."""
        power = 1 << (max(length, _SHORTEST_TOKENS) - 1).bit_length()
        between = power * 3 // 4
        return min(between if length <= between else power, self._shape.prompt_tokens)

    def _batch(self, taken, size: int) -> tuple[np.ndarray, ...]:
        shards = len(self._shards)
        tokens = np.zeros((shards, size), np.int32)
        lengths, entries = np.ones(shards, np.int32), np.zeros(shards, np.int32)
        wanted = np.zeros(shards, bool)
        for i, (entry, prompt) in taken.items():
            if self._padded_size(len(prompt)) == size:
                tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
                entries[i], wanted[i] = entry, True
        return tokens, lengths, entries, wanted

    def feed(self, chunk: int) -> Feed:
        """Collects the input of every shard for a chunk."""
        feeds = [shard.feed(chunk) for shard in self._shards]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *feeds)

    def finished(self, chunk: int, report: Report) -> Iterator[Sample]:
        """Yields the samples that are finished by the report of a chunk."""
        for i, shard in enumerate(self._shards):
            part = jax.tree.map(lambda x, i=i: np.split(x, len(self._shards))[i], report)
            yield from shard.finished(chunk, part)


class _Shard:
    """Schedule of one shard of the data axis."""

    def __init__(self, shape: Shape):
        self._shape = shape
        self._free_entries = list(range(shape.prompts))  # a heap: low ones first
        self._free_rows = list(range(shape.rows))[::-1]
        self._unfinished = collections.Counter()  # samples of each prompt entry
        self._new: collections.deque[tuple[_Job, int]] = collections.deque()  # jobs with ranks
        self._jobs: dict[int, _Job] = {}  # on the devices, by row
        self._fed = self._taken = 0  # jobs put into the device queue, and reported as taken
        self._stopped: list[int] = []  # rows that `stop` ended

    @property
    def open(self) -> bool:
        return bool(self._new or self._jobs)

    def wants(self, samples: int) -> bool:
        """Returns whether to prefill a prompt with this number of samples now."""
        waiting = self._fed - self._taken + len(self._new)
        return bool(self._free_entries) and waiting + samples <= self._shape.jobs

    def take(self, number: int, prompt: Prompt, samples: Sequence[tuple[int, int]]) -> int:
        """Creates jobs for samples with limits; returns the KV cache entry of their prompt."""
        entry = heapq.heappop(self._free_entries)
        self._unfinished[entry] = len(samples)
        for rank, (index, limit) in enumerate(samples):
            self._new.append((_Job(number, index, limit, prompt, entry), rank))
        return entry

    def feed(self, chunk: int) -> Feed:
        """Moves as many jobs to the devices as fit into the queue."""
        size, rows = self._shape.jobs, self._shape.rows
        ints = {name: np.zeros(size, np.int32) for name in ("prompt", "rank", "row", "limit")}
        options = Options(
            temperature=np.zeros(size, np.float32),
            top_k=np.zeros(size, np.int32),
            top_p=np.ones(size, np.float32),
        )
        cases, samples = np.zeros(size, np.uint32), np.zeros(size, np.int32)
        stopped = np.zeros(rows, bool)
        stopped[self._stopped] = True
        self._stopped.clear()
        count = 0
        while self._new and self._free_rows and self._fed - self._taken < size:
            job, rank = self._new.popleft()
            job.chunk, row = chunk, self._free_rows.pop()
            self._jobs[row] = job
            spec = job.spec
            ints["prompt"][count], ints["rank"][count] = job.entry, rank
            ints["row"][count], ints["limit"][count] = row, job.limit
            options.temperature[count] = spec.temperature
            options.top_k[count], options.top_p[count] = spec.top_k, spec.top_p
            cases[count], samples[count] = spec.case, job.index
            count += 1
            self._fed += 1
        jobs = Jobs(key=np.zeros((size, 2), np.uint32), options=options, **ints)
        return Feed(jobs, cases, samples, np.array([count], np.int32), stopped)

    def finished(self, chunk: int, report: Report) -> Iterator[Sample]:
        self._taken = int(report.taken[0])
        output = report.output
        for row, job in list(self._jobs.items()):
            if job.chunk > chunk:
                continue  # at the time of the report the row belonged to another job
            count, status = int(output.counts[row]), int(output.status[row])
            tokens, stop = output.tokens[row, :count], None
            if job.spec.stop is not None and count > job.checked:
                job.checked, stop = count, job.spec.stop(tokens)
            if stop is None and status == WAITING:
                continue
            if status == WAITING:
                self._stopped.append(row)
            self._release(row, job)
            kept = count if stop is None else stop
            yield Sample(
                prompt=job.prompt,
                index=job.index,
                tokens=tokens[:kept].copy(),
                logprobs=output.logprobs[row, :kept].copy(),
                ended=status == ENDED or stop is not None,
            )

    def _release(self, row: int, job: _Job) -> None:
        del self._jobs[row]
        self._free_rows.append(row)
        self._unfinished[job.entry] -= 1
        if not self._unfinished[job.entry]:
            heapq.heappush(self._free_entries, job.entry)


def _groups(shape: Shape, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Prompt, tuple]]:
    """Yields index, prompt and up to `share` (sample, limit) pairs, until all samples are in."""
    for number, prompt in enumerate(prompts):
        length, samples = len(prompt.tokens), prompt.samples
        if not 1 <= length <= shape.prompt_tokens:
            raise ValueError(f"a prompt of {length} tokens, room for {shape.prompt_tokens}")
        if any(not 1 <= limit <= shape.max_tokens for limit in prompt.limits):
            raise ValueError(f"limits of {prompt.limits} tokens, room for {shape.max_tokens}")
        if not (prompt.temperature >= 0 and prompt.top_k >= 0 and 0 < prompt.top_p <= 1):
            raise ValueError(
                f"temperature {prompt.temperature} and top_k {prompt.top_k} must be at least 0, "
                f"top_p {prompt.top_p} above 0 and at most 1"
            )
        if not 0 <= prompt.case < 2**32 or any(index < 0 for index in samples):
            raise ValueError(f"case {prompt.case} must fit in 32 bits, samples {samples} from 0 on")
        if len(set(samples)) != len(samples):
            raise ValueError(f"samples {samples} must be different")
        wanted = list(zip(samples, prompt.limits, strict=True))
        for first in range(0, len(wanted), shape.share):
            yield number, prompt, wanted[first : first + shape.share]
