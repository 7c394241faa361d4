"""Intervals count pills, not photos, and bounds hold as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.metrics import auroc, fnir_at_fpir
from pilltrack.pipeline.intervals import (
    auroc_interval,
    clean_bound,
    difference_interval,
    fnir_interval,
    mean_interval,
    pill_means,
    pills_needed,
    resample_pills,
    upper_bound,
)


def _names(count: int, photos: int = 1) -> list[str]:
    return [f"pill {n}" for n in range(count) for _ in range(photos)]


def test_photos_of_one_pill_share_one_vote() -> None:
    values = [1] * 10 + [0] * 10  # ten pills right, ten wrong
    alone = mean_interval(values, resample_pills(_names(20), seed=0))
    many = mean_interval(np.repeat(values, 50), resample_pills(_names(20, 50), seed=0))
    assert alone == many


def test_pills_with_more_photos_weigh_more() -> None:
    names = ["big"] * 50 + _names(50)
    low, high = mean_interval([1] * 50 + [0] * 50, resample_pills(names, seed=0)) or (0, 0)
    assert low == 0.0  # some resamples lack the big pill
    assert high > 0.6  # and some hold it more than once


def test_means_by_pill_give_each_pill_one_vote() -> None:
    names = ["b"] * 8 + ["a", "c"]
    assert pill_means([1] * 8 + [0, 0], names).tolist() == [0, 1, 0]
    draws = resample_pills(names, seed=0)
    assert draws.per_pill().weights(0).tolist() == draws.counts[0].tolist()


def test_no_interval_from_fewer_than_ten_pills() -> None:
    assert mean_interval([0, 1] * 45, resample_pills(_names(9, 10), seed=0)) is None
    assert mean_interval([0, 1] * 5, resample_pills(_names(10), seed=0)) is not None


def test_all_right_is_bounded_by_the_rule_of_three_and_not_certain() -> None:
    low, high = mean_interval([1] * 100, resample_pills(_names(50, 2), seed=0)) or (0, 0)
    assert high == 1.0
    assert low == pytest.approx(1 - (1 - 0.025 ** (1 / 50)))


def test_a_constant_that_is_no_rate_has_no_width() -> None:
    assert mean_interval([0.5] * 20, resample_pills(_names(20), seed=0)) == (0.5, 0.5)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        rates = random.beta(2, 2, size=40)  # pills differ; their mean is 0.5
        values = random.binomial(1, np.repeat(rates, 5))
        low, high = mean_interval(
            values, resample_pills(_names(40, 5), seed=trial, n_resamples=300)
        ) or (1, 0)
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrapped_auroc_and_fnir_are_those_of_the_resampled_photos() -> None:
    random = np.random.default_rng(2)
    mated, strangers = random.normal(1, 1, 40), random.normal(0, 1, 30)
    right = random.random(40) < 0.8
    m = resample_pills(_names(20, 2), seed=3, n_resamples=50)
    s = resample_pills(_names(15, 2), seed=4, n_resamples=50)
    aurocs, fnirs = [], []
    for b in range(50):
        m_index = np.repeat(np.arange(40), m.weights(b).astype(int))
        s_index = np.repeat(np.arange(30), s.weights(b).astype(int))
        aurocs.append(auroc(mated[m_index], strangers[s_index]))
        fnirs.append(fnir_at_fpir(mated[m_index], right[m_index], strangers[s_index], 0.1)[0])
    assert auroc_interval(mated, m, strangers, s) == pytest.approx(
        np.quantile(aurocs, [0.025, 0.975])
    )
    assert fnir_interval(mated, right, m, strangers, s, 0.1) == pytest.approx(
        np.quantile(fnirs, [0.025, 0.975])
    )


def test_perfect_separation_is_bounded_by_the_rule_of_three() -> None:
    draws = resample_pills(_names(20), seed=0)
    fewer = resample_pills(_names(12), seed=0)
    sure = auroc_interval([0.9] * 20, draws, [0.1] * 12, fewer)
    assert sure == pytest.approx((0.025 ** (1 / 12), 1.0))  # 12 pairs of pills, none lost
    low, high = fnir_interval([0.9] * 20, [True] * 20, draws, [0.1] * 20, draws, 0.05) or (1, 1)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    random = np.random.default_rng(5)
    hard = random.random(60) < 0.5
    second = hard.copy()
    second[np.flatnonzero(~hard)[:8]] = True  # eight more right, none lost
    draws = resample_pills(_names(60), seed=0)
    low, high = difference_interval(hard, second, draws) or (0, 0)
    assert 0 < low < 8 / 60 < high
    first, then = mean_interval(hard, draws) or (0, 0), mean_interval(second, draws) or (0, 0)
    assert then[0] < first[1]  # side by side they overlap


@pytest.mark.parametrize(
    ("n_pills", "n_wrong", "expected"),
    # 95 % Clopper-Pearson upper limits from the definition: P(Bin(n, p) <= x) = 0.05.
    [(30, 0, 0.09503), (30, 1, 0.14860), (100, 5, 0.10225), (10, 10, 1.0)],
)
def test_one_photo_per_pill_is_clopper_pearson(n_pills: int, n_wrong: int, expected: float) -> None:
    errors = [1] * n_wrong + [0] * (n_pills - n_wrong)
    assert upper_bound(errors, _names(n_pills), 0.95) == pytest.approx(expected, abs=1e-5)


def test_many_photos_of_a_pill_do_not_tighten_the_bound() -> None:
    one = upper_bound([0] * 30, _names(30), 0.95)
    assert upper_bound([0] * 3000, _names(30, 100), 0.95) == one
    some = upper_bound([1] + [0] * 29, _names(30), 0.95)
    assert upper_bound(([1] + [0] * 9) * 30, _names(30, 10), 0.95) > some  # 3 pills' worth


@pytest.mark.parametrize(("a", "b"), [(0.5, 4.5), (0.1, 0.9), (50, 450)])
def test_upper_bound_holds_for_any_mixture_of_pills(a: float, b: float) -> None:
    """True error rate 0.1, from pills that are all alike to pills that always or never err."""
    random = np.random.default_rng(6)
    names = _names(40, 8)
    bounds = [
        upper_bound(random.binomial(1, np.repeat(random.beta(a, b, size=40), 8)), names, 0.95)
        for _ in range(400)
    ]
    assert np.mean(np.array(bounds) >= 0.1) >= 0.95


@given(st.integers(1, 40), st.data())
def test_another_error_never_lowers_the_bound(n_pills: int, data: st.DataObject) -> None:
    errors = data.draw(st.lists(st.integers(0, 1), min_size=2 * n_pills, max_size=2 * n_pills))
    worse = list(errors)
    worse[data.draw(st.integers(0, 2 * n_pills - 1))] = 1
    names = _names(n_pills, 2)
    assert upper_bound(worse, names, 0.9) >= upper_bound(errors, names, 0.9)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_bound_refuses_a_confidence_that_is_none(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        upper_bound([0], ["a"], confidence)


def test_bound_refuses_no_photos() -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        upper_bound([], [], 0.95)


@pytest.mark.parametrize("rate", [0.5, 0.05, 0.01, 0.001])
def test_pills_needed_are_just_enough_clean_ones(rate: float) -> None:
    needed = pills_needed(rate)
    assert clean_bound(needed) <= rate < clean_bound(needed - 1)
