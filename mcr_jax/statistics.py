"""Means over cases with intervals, tests of paired differences, Holm. The unit is the case.

Intervals are BCa, not percentile bootstrap: case values pile up at 0, most of all for an untrained
model, and there the percentile interval covers too rarely. In a simulation (1,200 trials, 80 cases
of 10 samples, mean 0.04) 95 % intervals covered the truth in 91 % (percentile) and 94 % (BCa) of
trials; with means near one half both covered 95 %.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

EXACT_UP_TO = 16  # non-zero differences up to which all 2^n sign patterns are enumerated
_CHUNK = 2_000_000  # numbers in memory at once while resampling
_TIE = 1e-12  # two means closer than this differ by rounding only


def mean(values: Sequence[float]) -> float:
    """Returns the mean, rounded once: the same on every machine."""
    return math.fsum(values) / len(values)


def interval(
    values: Sequence[float],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """Returns a two-sided confidence interval of the mean of `values`, one per case.

    Bias-corrected and accelerated bootstrap over cases (Efron 1987). If all values are equal, every
    resample is the same and the bootstrap would claim certainty: `_all_equal` is used instead.

    Args:
      values: one number per case within `bounds`, at least one.
      confidence: nominal coverage, in (0, 1).
      resamples: number of bootstrap means.
      seed: of the draws.
      bounds: smallest and largest possible value of a case.
    """
    x = np.asarray(values, np.float64)
    alpha = 1.0 - confidence
    if x.max() - x.min() <= _TIE:
        return _all_equal(float(x[0]), len(x), alpha, bounds)
    means = _bootstrap_means(x, resamples, seed)
    low, high = np.quantile(means, bca_levels(x.mean(), means, x - x.mean(), alpha))
    return float(low), float(high)


def _all_equal(
    value: float, cases: int, alpha: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Returns the exact interval after `cases` draws that all gave `value`.

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


def bca_levels(value: float, draws: np.ndarray, deviations: np.ndarray, alpha: float) -> np.ndarray:
    """Returns the two quantile levels of BCa, in place of alpha/2 and 1 - alpha/2.

    The bias correction counts ties half: means of discrete values have many. The jackknife's
    acceleration is sum d^3 / (6 (sum d^2)^(3/2)), with d the deviations; for a mean these are
    proportional to the cases' deviations from it.

    Args:
      value: the statistic of all cases.
      draws: the statistic of each resample, float64 [resamples].
      deviations: per case, mean of the leave-one-out values minus the value without the case, up
        to a positive factor: float64 [cases], not all 0.
      alpha: one minus the confidence.
    """
    below = np.mean(draws < value - _TIE)
    tied = np.mean(np.abs(draws - value) <= _TIE)
    share = np.clip(below + tied / 2.0, 0.5 / len(draws), 1.0 - 0.5 / len(draws))
    bias = special.ndtri(share)
    acceleration = np.sum(deviations**3) / (6.0 * np.sum(deviations**2) ** 1.5)
    z = bias + special.ndtri([alpha / 2.0, 1.0 - alpha / 2.0])
    return special.ndtr(bias + z / (1.0 - acceleration * z))


def sign_flip_test(differences: Sequence[float], *, draws: int, seed: int) -> tuple[float, str]:
    """Tests paired differences against equally likely signs, two-sided, by their mean.

    Exact for up to `EXACT_UP_TO` non-zero differences; beyond, Monte Carlo with the valid p-value
    (r + 1) / (draws + 1) (Phipson and Smyth 2010).

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


def mcnemar_test(first_only: int, second_only: int) -> float:
    """Returns McNemar's exact two-sided p-value of paired answers that are right or wrong.

    Under the null each discordant case is equally likely to be right in the first alone or in the
    second alone: twice the smaller tail of a binomial with probability 1/2, at most 1.

    Args:
      first_only: number of cases that the first alone gets right.
      second_only: number of cases that the second alone gets right.
    """
    discordant = first_only + second_only
    return min(1.0, 2.0 * float(special.bdtr(min(first_only, second_only), discordant, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values (1979), in the order given.

    Rejecting those at most alpha keeps the chance of any false rejection at most alpha, whatever
    the dependence of the tests. The i-th smallest (from 0) of m is multiplied by m - i; none is
    below a smaller one's, nor above 1.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for i, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        least = max(least, min(1.0, (len(p_values) - i) * p_values[at]))
        adjusted[at] = least
    return adjusted
