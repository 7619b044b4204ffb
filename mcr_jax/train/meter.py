"""Training speed: tokens per second, MFU, goodput and time spent waiting for data."""

import collections
import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from mcr_jax.model import flops
from mcr_jax.model.shape import DecoderConfig

WINDOW_STEPS = 20  # steps that rates are averaged over


class Meter:
    """Counts work and time of the steps of one call of `mcr train`.

    The time of a step runs from the end of the step before to its own end, without validation and
    checkpoints. The first step, which compiles, has no rate.

    Goodput is the share of the time since the call began that went into steps, without the first.
    Data wait is the share of the steps' time spent waiting for a batch.
    """

    def __init__(self, config: DecoderConfig):
        """Starts the clock. `config` is the decoder's; MFU counts all devices."""
        self._config, self._began = config, time.monotonic()
        devices = jax.devices()
        one = flops.peak(devices[0].device_kind)
        self._peak = one * len(devices) if one else None
        self._last: float | None = None  # end of the step before
        self._apart = self._waited = 0.0  # seconds since then
        self._in_steps = self._in_waits = 0.0
        self._recent = collections.deque[tuple[float, int, float]](maxlen=WINDOW_STEPS)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Leaves the block's time out of all steps."""
        start = time.monotonic()
        yield
        self._apart += time.monotonic() - max(start, self._last or start)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the block's time as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def step(self, segment_ids: np.ndarray, trained: int) -> dict[str, float]:
        """Returns metrics of the step that has just ended.

        Args:
          segment_ids: int [rows, row_tokens] of its batch; 0 is padding.
          trained: number of its tokens in the loss.

        Returns:
          tokens without padding, seconds since the call began; from the second step on `rates`.
        """
        now = time.monotonic()
        lengths = segment_lengths(segment_ids)
        metrics = {"tokens": int(lengths.sum()), "seconds": round(now - self._began, 3)}
        if self._last is not None:
            seconds = max(now - self._last - self._apart, 1e-9)
            work = flops.step_flops(self._config, lengths, trained)
            self._recent.append((seconds, metrics["tokens"], work))
            self._in_steps += seconds
            self._in_waits += min(self._waited, seconds)
            metrics |= self.rates()
        self._last, self._apart, self._waited = now, 0.0, 0.0
        return metrics

    def rates(self) -> dict[str, float]:
        """Returns tokens_per_second, mfu on a known device, data_wait and goodput; {} at first."""
        if not self._recent:
            return {}
        seconds, tokens, work = (sum(column) for column in zip(*self._recent, strict=True))
        mfu = {"mfu": round(work / seconds / self._peak, 4)} if self._peak else {}
        elapsed = time.monotonic() - self._began
        return {
            "tokens_per_second": round(tokens / seconds, 1),
            **mfu,
            "data_wait": round(self._in_waits / self._in_steps, 4),
            "goodput": round(self._in_steps / elapsed, 4),
        }


def segment_lengths(segment_ids: np.ndarray) -> np.ndarray:
    """Returns the length of each segment, int [segments], from segment_ids int [rows, tokens]."""
    rows, most = np.arange(len(segment_ids))[:, None], int(segment_ids.max()) + 1
    counts = np.bincount((rows * most + segment_ids).ravel(), minlength=len(segment_ids) * most)
    counts = counts.reshape(-1, most)[:, 1:].ravel()
    return counts[counts > 0]
