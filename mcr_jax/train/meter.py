"""How fast training goes: tokens per second, MFU, and where the time went that was not training."""

import collections
import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from mcr_jax.model import flops
from mcr_jax.model.shape import DecoderConfig

WINDOW = 20  # steps that a rate is taken over


class Meter:
    """Counts work and time of the steps of one call of `mcr train`.

    A step lasts from the end of the one before to its own, less what stood between them: measuring
    the validation loss, waiting for a checkpoint. The first step, which compiles, gives no rate.

    Goodput is the share of all the time since the call began that went into steps, the first one
    left out; data wait is the share of the steps' time that the loop waited for a batch.
    """

    def __init__(self, config: DecoderConfig):
        """Starts the clock. `config` is of the decoder; the devices are all there are."""
        self._config, self._began = config, time.monotonic()
        devices = jax.devices()
        one = flops.peak(devices[0].device_kind)
        self._peak = one * len(devices) if one else None
        self._last: float | None = None  # when the step before ended
        self._apart = self._waited = 0.0  # since then
        self._in_steps = self._in_waits = 0.0
        self._recent: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=WINDOW)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What happens inside is no part of a step."""
        start = time.monotonic()
        yield
        self._apart += time.monotonic() - max(start, self._last or start)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is a wait for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def step(self, segment_ids: np.ndarray, trained: int) -> dict[str, float]:
        """Tells of the step that has just ended.

        Args:
          segment_ids: int [rows, row_tokens] of its batch; 0 is padding.
          trained: tokens of it that the loss counted.

        Returns:
          tokens (real ones), seconds since the call began; from the second step on also
          tokens_per_second, data_wait, goodput and, on a known device, mfu.
        """
        now = time.monotonic()
        lengths = segment_lengths(segment_ids)
        told = {"tokens": int(lengths.sum()), "seconds": round(now - self._began, 3)}
        if self._last is not None:
            seconds = max(now - self._last - self._apart, 1e-9)
            work = flops.step_flops(self._config, lengths, trained)
            self._recent.append((seconds, told["tokens"], work))
            self._in_steps += seconds
            self._in_waits += min(self._waited, seconds)
            told |= self.rates()
        self._last, self._apart, self._waited = now, 0.0, 0.0
        return told

    def rates(self) -> dict[str, float]:
        """tokens_per_second, mfu on a known device, data_wait and goodput; {} before any step."""
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
    """Tokens of each segment of a batch, int [segments], from segment_ids int [rows, tokens]."""
    rows, most = np.arange(len(segment_ids))[:, None], int(segment_ids.max()) + 1
    counts = np.bincount((rows * most + segment_ids).ravel(), minlength=len(segment_ids) * most)
    counts = counts.reshape(-1, most)[:, 1:].ravel()
    return counts[counts > 0]
