"""Agreement of two judges against statsmodels, hand-made tables and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mcr_jax import agreement

DRAWING = {"confidence": 0.95, "resamples": 1000, "seed": 0}
tables = st.lists(st.integers(0, 60), min_size=4, max_size=4)


def test_pairs_are_counted_by_who_says_yes():
    pairs = [(True, True)] * 4 + [(True, False)] * 3 + [(False, True)] * 2 + [(False, False)]
    assert agreement.tabulated(pairs).tolist() == [4, 3, 2, 1]
    assert agreement.tabulated([]).tolist() == [0, 0, 0, 0]


def test_a_table_worked_out_by_hand():
    """40 both, 10 the first alone, 5 the second alone, 45 neither.

    Agreement 85/100. Yes: 50 and 45 of 100. Chance of kappa 0.5 x 0.45 + 0.5 x 0.55 = 0.5, of AC1
    2 x 0.475 x 0.525 = 0.49875.
    """
    counts = [40, 10, 5, 45]
    assert agreement.agreement(counts) == pytest.approx(0.85)
    assert agreement.prevalence(counts) == pytest.approx((0.5, 0.45))
    assert agreement.kappa(counts) == pytest.approx(0.35 / 0.5)
    assert agreement.ac1(counts) == pytest.approx((0.85 - 0.49875) / (1 - 0.49875))
    assert agreement.hit_rates(counts) == pytest.approx((0.8, 0.9))


def test_where_almost_all_verdicts_are_yes_kappa_falls_and_ac1_stays():
    """118 both, 5 and 2 alone, 0 neither: the paradox of Feinstein and Cicchetti (1990)."""
    counts = [118, 5, 2, 0]
    assert agreement.kappa(counts) == pytest.approx(-0.0234, abs=1e-3)
    assert agreement.ac1(counts) == pytest.approx(0.9405, abs=1e-3)


@given(tables)
def test_kappa_is_that_of_statsmodels(counts):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    ours = agreement.kappa(counts)
    if np.isnan(ours):
        both, first, second, neither = counts
        assert first == second == 0 and 0 in (both, neither)
    else:
        theirs = inter_rater.cohens_kappa(np.reshape(counts, (2, 2)), return_results=False)
        assert ours == pytest.approx(theirs, abs=1e-12)


@given(tables)
def test_agreement_is_symmetric_in_judges_and_in_yes_and_no(counts):
    both, first, second, neither = counts
    for other in ([both, second, first, neither], [neither, second, first, both]):
        for statistic in (agreement.kappa, agreement.ac1, agreement.agreement):
            assert statistic(other) == pytest.approx(statistic(counts), nan_ok=True)


@given(st.lists(st.integers(1, 40), min_size=4, max_size=4), st.floats(0.1, 1.0))
def test_on_the_sample_that_both_judged_the_estimate_is_the_first_judges_accuracy(counts, judged):
    first, second = agreement.prevalence(counts)
    sensitivity, specificity = agreement.hit_rates(counts)
    found = agreement.carried(second * judged, judged, counts)
    if sensitivity + specificity - 1 > 1e-9:
        assert found == pytest.approx(first * judged)
    elif sensitivity + specificity - 1 < -1e-9:
        assert np.isnan(found)


def test_a_judge_who_guesses_carries_nothing():
    assert np.isnan(agreement.carried(0.5, 1.0, [25, 25, 25, 25]))
    assert np.isnan(agreement.carried(0.5, 1.0, [0, 0, 5, 5]))


def test_intervals_hold_the_value_and_depend_on_the_seed_alone():
    by_case = np.random.default_rng(0).multinomial(10, [0.4, 0.1, 0.1, 0.4], 40)
    value = agreement.kappa(by_case.sum(axis=0))
    low, high = agreement.interval(by_case, agreement.kappa, **DRAWING)
    assert low < value < high
    assert (low, high) == agreement.interval(by_case, agreement.kappa, **DRAWING)


def test_the_interval_of_a_ratio_is_that_of_scipy_within_monte_carlo_error():
    by_case = np.random.default_rng(1).multinomial(10, [0.3, 0.1, 0.2, 0.4], 50)
    theirs = stats.bootstrap(
        tuple(by_case.T),
        lambda *cells, axis=-1: agreement.ac1(
            np.stack([cell.sum(axis=axis) for cell in cells], -1)
        ),
        n_resamples=20_000,
        paired=True,
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = agreement.interval(by_case, agreement.ac1, confidence=0.95, resamples=20_000, seed=0)
    np.testing.assert_allclose(ours, theirs, atol=0.04 * (theirs.high - theirs.low))


def test_total_agreement_does_not_claim_certainty():
    by_case = np.array([[2, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0]] * 10)
    found = agreement.agreements(by_case, **DRAWING)
    least = 0.025 ** (1 / 20)  # Clopper-Pearson of 20 of 20
    ends = {name: (of["value"], of["low"], of["high"]) for name, of in found.items()}
    assert ends["agreement"] == pytest.approx((1.0, least, 1.0))
    assert ends["kappa"] == ends["ac1"] == pytest.approx((1.0, 2 * least - 1, 1.0))


def test_agreements_are_the_statistics_with_their_intervals():
    by_case = np.random.default_rng(3).multinomial(5, [0.4, 0.1, 0.1, 0.4], 30)
    for name, found in agreement.agreements(by_case, **DRAWING).items():
        of = getattr(agreement, name)
        assert found["value"] == of(by_case.sum(axis=0))
        assert (found["low"], found["high"]) == agreement.interval(by_case, of, **DRAWING)


NOTHING = {"value": None, "low": None, "high": None}


def test_what_is_undefined_is_none():
    assert set(map(str, agreement.agreements([], **DRAWING).values())) == {str(NOTHING)}
    one_label = agreement.agreements(np.array([[2, 0, 0, 0]] * 9), **DRAWING)
    assert one_label["kappa"] == NOTHING and one_label["ac1"]["value"] == 1.0
    assert agreement.interval(np.zeros((3, 4)), agreement.ac1, **DRAWING) is None
    one_disagrees = np.array([[3, 0, 0, 0]] * 20 + [[0, 0, 0, 1]])
    assert agreement.interval(one_disagrees, agreement.kappa, **DRAWING) is None


@pytest.mark.parametrize("cases", [1, 20])
def test_cases_that_are_all_alike_have_values_and_no_intervals(cases):
    found = agreement.agreements([[3, 1, 0, 2]] * cases, **DRAWING)
    for name, of in found.items():
        assert of == {**NOTHING, "value": float(getattr(agreement, name)([3, 1, 0, 2]))}


def test_strata_keep_their_sizes_in_every_resample():
    by_case = np.eye(2)[[0] * 5 + [1] * 30]
    sums = agreement._resampled(by_case, 50, 0, [0] * 5 + [1] * 30)
    assert np.all(sums == [5, 30])


def _cases(rng, cases, items, accuracy, sensitivity, specificity):
    """Verdicts of two judges on `items` completions of each case, cases of unequal difficulty."""
    easy = rng.beta(4 * accuracy, 4 * (1 - accuracy), (cases, 1))
    first = rng.random((cases, items)) < easy
    second = rng.random((cases, items)) < np.where(first, sensitivity, 1 - specificity)
    return first, second


def _tables(first, second):
    return np.stack(
        [
            agreement.tabulated(list(zip(a, b, strict=True)))
            for a, b in zip(first, second, strict=True)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.15, 0.5])
def test_kappa_and_ac1_cover_the_truth_about_as_often_as_they_say(accuracy):
    sensitivity, specificity = 0.85, 0.93
    cells = [accuracy * sensitivity, accuracy * (1 - sensitivity)]
    cells += [(1 - accuracy) * (1 - specificity), (1 - accuracy) * specificity]
    trials, covered = 400, {"kappa": 0, "ac1": 0, "agreement": 0}
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        by_case = _tables(*_cases(rng, 80, 3, accuracy, sensitivity, specificity))
        found = agreement.agreements(by_case, **DRAWING)
        for name in covered:
            low, high = found[name]["low"], found[name]["high"]
            covered[name] += low <= getattr(agreement, name)(cells) <= high
    for name, count in covered.items():
        assert 0.92 <= count / trials <= 0.98, (name, count / trials)


@pytest.mark.slow
@pytest.mark.parametrize("calibrating, accuracy", [(40, 0.3), (150, 0.3), (40, 0.05)])
def test_the_carried_accuracy_covers_the_truth_about_as_often_as_it_says(calibrating, accuracy):
    """Cases of the first sample go to both judges, those of the second to the second judge."""
    trials, covered, target = 400, 0, 120

    def statistic(sums):
        return agreement.carried(sums[..., 4] / sums[..., 5], 1.0, sums[..., :4])

    for trial in range(trials):
        rng = np.random.default_rng(trial)
        both = _tables(*_cases(rng, calibrating, 3, 0.5, 0.85, 0.9))
        _, second = _cases(rng, target, 3, accuracy, 0.85, 0.9)
        by_case = np.zeros((calibrating + target, 6))
        by_case[:calibrating, :4] = both
        by_case[calibrating:, 4], by_case[calibrating:, 5] = second.mean(axis=1), 1
        strata = [0] * calibrating + [1] * target
        low, high = agreement.interval(by_case, statistic, strata=strata, **DRAWING)
        covered += low <= accuracy <= high
    assert 0.90 <= covered / trials <= 0.98, covered / trials
