"""Means over cases with intervals, and tests of paired differences. The unit is the case.

Why BCa and not the plain percentile bootstrap: case values heap at 0, above all those of an
untrained model, and there the percentile interval covers too rarely. Simulated (1,200 trials) with
80 cases of 10 samples and a mean of 0.04, 95 % intervals covered the truth in 91 % of trials
(percentile) and 94 % (BCa); with means near one half both covered 95 %.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

EXACT_UP_TO = 16  # non-zero differences whose 2^n sign patterns are enumerated
_CHUNK = 2_000_000  # numbers held at once while resampling
_TIE = 1e-12  # below this, two means differ by rounding only


def mean(values: Sequence[float]) -> float:
    """The mean, rounded once: the same on every machine."""
    return math.fsum(values) / len(values)


def interval(
    values: Sequence[float],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """A two-sided confidence interval of the mean of `values`, one per case.

    The bias-corrected and accelerated bootstrap over cases (Efron 1987). Where all values are equal
    no resample differs and the bootstrap would claim certainty; `_all_equal` says what is known.

    Args:
      values: one number per case within `bounds`, at least one.
      confidence: coverage aimed at, in (0, 1).
      resamples: bootstrap means drawn.
      seed: fixes the draws.
      bounds: the least and the greatest value a case can have.
    """
    x = np.asarray(values, np.float64)
    alpha = 1.0 - confidence
    if x.max() - x.min() <= _TIE:
        return _all_equal(float(x[0]), len(x), alpha, bounds)
    means = _bootstrap_means(x, resamples, seed)
    low, high = np.quantile(means, _bca_levels(x, means, alpha))
    return float(low), float(high)


def _all_equal(
    value: float, cases: int, alpha: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """The exact interval after `cases` draws that all gave `value`.

    If a draw differed from `value` with probability over q = 1 - (alpha/2)^(1/N), N equal draws
    would have had a probability below alpha/2. The mean lies within [value - q (value - lower),
    value + q (upper - value)] for every smaller one. At 0 and 1 this is Clopper-Pearson's bound.
    """
    q = 1.0 - (alpha / 2.0) ** (1.0 / cases)
    lower, upper = bounds
    return value - q * (value - lower), value + q * (upper - value)


def _bootstrap_means(x: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws of len(x) cases with replacement: float64 [resamples]."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(x))
    chunks = [
        x[rng.integers(0, len(x), (min(rows, resamples - start), len(x)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(chunks)


def _bca_levels(x: np.ndarray, means: np.ndarray, alpha: float) -> np.ndarray:
    """The two quantiles of the bootstrap means that BCa reports, instead of alpha/2 and its twin.

    The bias correction counts ties half, as the means of discrete values have many. For a mean the
    jackknife's acceleration is sum d^3 / (6 (sum d^2)^(3/2)), d the deviations.
    """
    deviations = x - x.mean()
    below = np.mean(means < x.mean() - _TIE)
    tied = np.mean(np.abs(means - x.mean()) <= _TIE)
    share = np.clip(below + tied / 2.0, 0.5 / len(means), 1.0 - 0.5 / len(means))
    bias = special.ndtri(share)
    acceleration = np.sum(deviations**3) / (6.0 * np.sum(deviations**2) ** 1.5)
    z = bias + special.ndtri([alpha / 2.0, 1.0 - alpha / 2.0])
    return special.ndtr(bias + z / (1.0 - acceleration * z))


def sign_flip_test(differences: Sequence[float], *, draws: int, seed: int) -> tuple[float, str]:
    """Tests paired differences against "either sign is as likely", two-sided, by their mean.

    Exact over all sign patterns up to `EXACT_UP_TO` non-zero differences, else Monte Carlo with
    p = (r + 1) / (draws + 1), which is valid (Phipson and Smyth 2010).

    Returns:
      The p-value and the name of the test.
    """
    x = np.asarray([d for d in differences if abs(d) > _TIE], np.float64)
    observed = abs(x.sum()) - _TIE * max(1, len(x))
    if len(x) <= EXACT_UP_TO:
        sums = np.zeros(1)
        for difference in x:
            sums = np.concatenate((sums + difference, sums - difference))
        return float(np.mean(np.abs(sums) >= observed)), "paired sign-flip permutation, exact"
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(x))
    extreme = 0
    for start in range(0, draws, rows):
        signs = rng.integers(0, 2, (min(rows, draws - start), len(x)), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ x) >= observed))
    return (extreme + 1) / (draws + 1), f"paired sign-flip permutation, {draws} draws"
