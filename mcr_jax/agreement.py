"""Agreement of judges on the same items, and accuracy carried from one judge to another.

Two judges who say yes or no make a table of counts, an array [..., 4] in the order of `CELLS`.
Every statistic is a function of numbers summed over cases: `interval` takes any, also one of more
judges or of more labels.

Items of one case are not independent, so resampling draws whole cases (Davison and Hinkley 1997,
section 3.8). Intervals are BCa (Efron 1987), as in `statistics`. Kappa and AC1 are ratios: their
intervals lean to one side, most of all where one label is rare, which a standard error misses.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from mcr_jax import statistics

CELLS = ("both", "first_only", "second_only", "neither")  # judge or judges that say yes
_DEFINED = 0.95  # share of resamples in which a statistic must be defined to get an interval
_TIE = 1e-12
_CHUNK = 2_000_000  # numbers in memory at once while summing resamples

Statistic = Callable[[np.ndarray], np.ndarray]  # counts [..., n] to values [...]


def tabulated(pairs: Sequence[tuple[bool, bool]]) -> np.ndarray:
    """Counts (first, second) verdicts by `CELLS`: int64 [4]."""
    cells = [(1 - first) * 2 + (1 - second) for first, second in pairs]
    return np.bincount(np.asarray(cells, np.int64), minlength=4)


def agreement(counts: np.ndarray) -> np.ndarray:
    """Returns the share of items on which the judges agree; NaN without items."""
    counts = np.asarray(counts, np.float64)
    return _ratio(counts[..., 0] + counts[..., 3], counts.sum(axis=-1))


def prevalence(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of yes of the first and of the second judge; NaN without items."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(axis=-1)
    first, second = (counts[..., 0] + counts[..., place] for place in (1, 2))
    return _ratio(first, total), _ratio(second, total)


def kappa(counts: np.ndarray) -> np.ndarray:
    """Returns Cohen's kappa; NaN if both judges say the same to everything.

    (po - pe) / (1 - pe): agreement beyond that of two judges who say yes independently, each as
    often as measured (Cohen, Educ. Psychol. Meas. 1960, 20: 37-46).
    """
    return _beyond(agreement(counts), _kappa_chance(counts))


def _kappa_chance(counts: np.ndarray) -> np.ndarray:
    first, second = prevalence(counts)
    return first * second + (1.0 - first) * (1.0 - second)


def ac1(counts: np.ndarray) -> np.ndarray:
    """Returns Gwet's AC1; NaN without items.

    As kappa with chance agreement 2 p (1 - p), p the mean prevalence (Gwet, Br. J. Math. Stat.
    Psychol. 2008, 61: 29-48). It stays near the share of agreement if almost all verdicts are the
    same.
    """
    return _beyond(agreement(counts), _ac1_chance(counts))


def _ac1_chance(counts: np.ndarray) -> np.ndarray:
    mean = sum(prevalence(counts)) / 2.0
    return 2.0 * mean * (1.0 - mean)


def hit_rates(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often the second judge repeats the first's yes, and the first's no.

    With the first as the reference these are sensitivity and specificity; NaN without such items.
    """
    counts = np.asarray(counts, np.float64)
    return (
        _ratio(counts[..., 0], counts[..., 0] + counts[..., 1]),
        _ratio(counts[..., 3], counts[..., 2] + counts[..., 3]),
    )


def carried(share: np.ndarray, judged: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Estimates the accuracy under the first judge from the second's verdicts.

    Rogan and Gladen's estimate (1978), (share + specificity - 1) / (sensitivity + specificity - 1),
    for completions of which a share `judged` goes to a judge and the others are wrong under both.

    Args:
      share: accuracy under the second judge.
      judged: share of the completions that a judge decides on.
      counts: table of items that both judged.

    Returns:
      The unbiased estimate, which chance may put below 0 or above `judged`: clip it and the ends of
      its interval, not the resamples, which would pile up at the bound. NaN where the second
      judge's yes is no more frequent after the first's yes than after its no, so that nothing can
      be carried over.
    """
    sensitivity, specificity = hit_rates(counts)
    informedness = sensitivity + specificity - 1.0
    usable = np.where(informedness > _TIE, informedness, np.nan)
    return (share - (1.0 - specificity) * judged) / usable


def figure(value: float, ends: tuple[float, float] | None) -> dict[str, float | None]:
    """Returns {"value", "low", "high"} with None for what is undefined."""
    low, high = ends or (None, None)
    return {"value": float(value) if np.isfinite(value) else None, "low": low, "high": high}


def agreements(
    by_case: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """Returns "agreement", "kappa" and "ac1" of two judges, each with an interval over cases.

    Without a single disagreement every resample agrees and the bootstrap would claim certainty: the
    lower ends then follow from the exact bound of the share of agreement, at the measured chance.

    Args:
      by_case: tables of the cases, [cases, 4]; cases without items may be there.
      confidence: nominal coverage, in (0, 1).
      resamples: number of draws.
      seed: of the draws.

    Returns:
      {"value", "low", "high"} by name; None where a number is undefined.
    """
    drawing = {"confidence": confidence, "resamples": resamples, "seed": seed}
    by_case = np.asarray(by_case, np.float64).reshape(-1, len(CELLS))
    by_case = by_case[by_case.sum(axis=1) > 0]
    counts = by_case.sum(axis=0)
    chances = {"agreement": 0.0, "kappa": _kappa_chance(counts), "ac1": _ac1_chance(counts)}
    agreed = len(by_case) and counts[1] + counts[2] == 0
    least = statistics.interval([1.0] * len(by_case), **drawing)[0] if agreed else None
    found = {}
    for name, of in (("agreement", agreement), ("kappa", kappa), ("ac1", ac1)):
        value, chance = float(of(counts)), float(chances[name])
        if least is None:
            ends = interval(by_case, of, **drawing)
        else:
            ends = ((least - chance) / (1.0 - chance), 1.0) if np.isfinite(value) else None
        found[name] = figure(value, ends)
    return found


def interval(
    by_case: np.ndarray,
    statistic: Statistic,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    strata: Sequence[int] | None = None,
) -> tuple[float, float] | None:
    """Returns a BCa interval of a statistic of summed numbers, by resampling cases.

    Args:
      by_case: numbers of each case, [cases, n]; the statistic takes their sums.
      statistic: maps [..., n] to [...].
      confidence: nominal coverage, in (0, 1).
      resamples: number of draws.
      seed: of the draws.
      strata: a label per case; every resample has as many cases of each label as the sample. It
        holds the sizes of two samples that are not of the same cases.

    Returns:
      The two ends; None if the statistic is undefined, undefined in over 5 % of the resamples, or
      the same in all of them, such as of one case: that says nothing of its spread.
    """
    by_case = np.asarray(by_case, np.float64)
    total = by_case.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may lack one kind of item
        value = float(statistic(total))
        if not np.isfinite(value):
            return None
        draws = statistic(_resampled(by_case, resamples, seed, strata))
        without = statistic(total - by_case)
    draws = draws[np.isfinite(draws)]
    if len(draws) < _DEFINED * resamples or np.ptp(draws) <= _TIE:
        return None
    deviations = np.where(np.isfinite(without), without, value)
    deviations = deviations.mean() - deviations
    if np.all(np.abs(deviations) <= _TIE):
        return float(draws.min()), float(draws.max())
    levels = statistics.bca_levels(value, draws, deviations, 1.0 - confidence)
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _resampled(
    by_case: np.ndarray, resamples: int, seed: int, strata: Sequence[int] | None
) -> np.ndarray:
    """Returns sums over cases drawn with replacement, within each stratum: [resamples, n]."""
    labels = np.zeros(len(by_case), np.int64) if strata is None else np.asarray(strata)
    order = np.argsort(labels, kind="stable")
    sizes = tuple(np.unique(labels, return_counts=True)[1].tolist())
    weights, ordered = _weights(sizes, resamples, seed), by_case[order]
    rows = max(1, _CHUNK // len(by_case))
    return np.concatenate(
        [weights[start : start + rows] @ ordered for start in range(0, resamples, rows)]
    )


@functools.lru_cache(maxsize=2)
def _weights(sizes: tuple[int, ...], resamples: int, seed: int) -> np.ndarray:
    """Returns how often each case is drawn, strata one after another: int16 [resamples, cases].

    They are kept: models have the same cases, and drawing takes most of the time.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(n, np.full(n, 1.0 / n), resamples).astype(np.int16) for n in sizes]
    return np.concatenate(drawn, axis=1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return numerator / np.where(denominator > 0, denominator, np.nan)


def _beyond(observed: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return _ratio(observed - chance, np.where(1.0 - chance > _TIE, 1.0 - chance, 0.0))
