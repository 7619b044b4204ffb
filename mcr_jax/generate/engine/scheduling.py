"""Schedule of a run: the prompts, and the slot and row of each sample."""

import collections
import dataclasses
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from mcr_jax.generate.engine.programs import Feed, Report
from mcr_jax.generate.engine.sampling import Options
from mcr_jax.generate.engine.state import ENDED, WAITING, Jobs, Shape

Stop = Callable[[np.ndarray], int | None]  # tokens so far -> how many of them are kept, or None

_SHORTEST = 48  # tokens; prompts are padded to at least as many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and the samples that are wanted of it.

    Attributes:
      tokens: int32 [1 … shape.prompt_tokens].
      case: in 32 bits; with the sample's index and the seed it fixes what is drawn.
      samples: their indices, each once.
      limits: most tokens of each of these samples, at most shape.max_tokens.
      temperature, top_k, top_p: as in `sampling.Options`.
      stop: ends a sample early; asked now and then with all its tokens so far. None never does.
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
    """A finished sample.

    Attributes:
      prompt: its place among the prompts of the run.
      index: of the sample.
      tokens: int32 [count], the end token included.
      logprobs: float32 [count], of each token under the model, in nats.
      ended: with an end token or by `stop`; else at its limit.
    """

    prompt: int
    index: int
    tokens: np.ndarray
    logprobs: np.ndarray
    ended: bool


@dataclasses.dataclass
class _Job:
    """A sample on the devices: its prompt's place in the run and in the store, and since when."""

    prompt: int
    index: int
    limit: int
    spec: Prompt
    entry: int
    fed: int
    looked: int = 0  # tokens that `stop` has seen


class Run:
    """The bookkeeping of one run: which prompt, sample and row is where.

    Attributes:
      open: whether anything is wanted that has not been handed out.
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
        """Tokens [D, T], lengths, entries and whether wanted [D] of the prompts to prefill now.

        Every shard takes prompts until the samples that wait would keep its slots busy.
        """
        while self._next is not None:
            taken: list[tuple[int, np.ndarray] | None] = []
            for shard in self._shards:
                if self._next is None or not shard.wants(len(self._next[2])):
                    taken.append(None)
                    continue
                number, prompt, samples = self._next
                taken.append((shard.take(number, prompt, samples), prompt.tokens))
                self._next = next(self._groups, None)
            sizes = {self._padded_size(len(t[1])) for t in taken if t}
            if not sizes:
                return
            # A prompt's padding must not follow from what other shards are given.
            for size in sorted(sizes):
                yield self._batch(taken, size)

    def _padded_size(self, length: int) -> int:
        """The least size that holds a prompt: powers of two, and half-way between, up to T."""
        power = 1 << (max(length, _SHORTEST) - 1).bit_length()
        between = power * 3 // 4
        return min(between if length <= between else power, self._shape.prompt_tokens)

    def _batch(self, taken, size: int) -> tuple[np.ndarray, ...]:
        tokens = np.zeros((len(taken), size), np.int32)
        lengths, entries = np.ones(len(taken), np.int32), np.zeros(len(taken), np.int32)
        wanted = np.zeros(len(taken), bool)
        for i, t in enumerate(taken):
            if t and self._padded_size(len(t[1])) == size:
                tokens[i, : len(t[1])], lengths[i], entries[i] = t[1], len(t[1]), t[0]
                wanted[i] = True
        return tokens, lengths, entries, wanted

    def feed(self, chunk: int) -> Feed:
        """Collects the input of every shard for a chunk."""
        feeds = [shard.feed(chunk) for shard in self._shards]
        return jax.tree.map(lambda *of_shard: np.concatenate(of_shard), *feeds)

    def finished(self, chunk: int, report: Report) -> Iterator[Sample]:
        """The samples that a chunk's report shows finished."""
        for number, shard in enumerate(self._shards):

            def part(x, number=number):
                size = x.shape[0] // len(self._shards)
                return x[number * size : (number + 1) * size]

            yield from shard.finished(chunk, jax.tree.map(part, report))


class _Shard:
    """Queue and slots of one shard of the data axis."""

    def __init__(self, shape: Shape):
        self._shape = shape
        self._entries = list(range(shape.prompts))  # of the store, free; a heap: low ones first
        self._rows = list(range(shape.rows))[::-1]  # of output, free
        self._left = collections.Counter()  # samples of each entry that are not finished
        self._new: collections.deque[tuple[_Job, int]] = collections.deque()  # with their ranks
        self._jobs: dict[int, _Job] = {}  # by row
        self._fed = self._taken = 0  # jobs given to the queue, and known to be taken from it
        self._stopped: list[int] = []  # rows

    @property
    def open(self) -> bool:
        return bool(self._new or self._jobs)

    def wants(self, samples: int) -> bool:
        """Whether a prompt with so many samples should be prefilled now."""
        waiting = self._fed - self._taken + len(self._new)
        return bool(self._entries) and waiting + samples <= self._shape.jobs

    def take(self, number: int, prompt: Prompt, samples: Sequence[tuple[int, int]]) -> int:
        """Makes jobs of samples and their limits; returns the entry that their prompt is put at."""
        entry = heapq.heappop(self._entries)
        self._left[entry] = len(samples)
        for rank, (index, limit) in enumerate(samples):
            self._new.append((_Job(number, index, limit, prompt, entry, 0), rank))
        return entry

    def feed(self, chunk: int) -> Feed:
        """The jobs that there is room for."""
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
        while self._new and self._rows and self._fed - self._taken < size:
            job, rank = self._new.popleft()
            job.fed, row = chunk, self._rows.pop()
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
            if job.fed > chunk:
                continue  # the row is another job's since that report
            count, status = int(output.counts[row]), int(output.status[row])
            tokens, stop = output.tokens[row, :count], None
            if job.spec.stop is not None and count > job.looked:
                job.looked, stop = count, job.spec.stop(tokens)
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
        self._rows.append(row)
        self._left[job.entry] -= 1
        if not self._left[job.entry]:
            heapq.heappush(self._entries, job.entry)


def _groups(shape: Shape, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Prompt, tuple]]:
    """The number of each prompt, the prompt, and its samples with limits, `share` at a time."""
    for number, prompt in enumerate(prompts):
        length, samples = len(prompt.tokens), prompt.samples
        if not 1 <= length <= shape.prompt_tokens:
            raise ValueError(f"a prompt of {length} tokens, room for {shape.prompt_tokens}")
        if any(not 1 <= limit <= shape.max_tokens for limit in prompt.limits):
            raise ValueError(f"limits of {prompt.limits} tokens, room for {shape.max_tokens}")
        if not (prompt.temperature >= 0 and prompt.top_k >= 0 and 0 < prompt.top_p <= 1):
            raise ValueError(
                f"temperature {prompt.temperature}, top_k {prompt.top_k}, top_p {prompt.top_p}: at "
                "least 0, at least 0, and above 0 up to 1"
            )
        if not 0 <= prompt.case < 2**32 or any(index < 0 for index in samples):
            raise ValueError(
                f"case {prompt.case}, samples {samples}: not counted from 0 in 32 bits"
            )
        if len(set(samples)) != len(samples):
            raise ValueError(f"samples {samples} are not each wanted once")
        wanted = list(zip(samples, prompt.limits, strict=True))
        for first in range(0, len(wanted), shape.share):
            yield number, prompt, wanted[first : first + shape.share]
