"""The rule keeps its aims for the next pill, and refuses what too few pills cannot support."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.decide import REJECT_EVERYTHING
from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.calibrate import calibrate, conformal_threshold, pills_for_aim
from pilltrack.pipeline.protocol import Outcomes


def _names(count: int, photos: int = 1) -> list[str]:
    return [f"pill {n}" for n in range(count) for _ in range(photos)]


def _outcomes(
    truth: Sequence[str],
    best: Sequence[float],
    second: Sequence[float] | None = None,
    rank: Sequence[int] | None = None,
) -> Outcomes:
    n = len(truth)
    return Outcomes(
        truth=truth,
        best=np.array(best, np.float64),
        best_pill=["x"] * n,
        second=np.zeros(n) if second is None else np.array(second, np.float64),
        second_pill=["y"] * n,
        rank=np.array(rank or [0] * n, np.intp),
        average_precision=np.zeros(n),
    )


def test_one_photo_per_pill_is_split_conformal_prediction() -> None:
    scores = [0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.4, 0.6, 0.5]  # n = 9; k = ceil(10 * 0.8) = 8
    threshold = conformal_threshold(scores, _names(9), 0.2)
    assert 0.8 < threshold < 0.8 + 1e-6


def test_weights_are_counted_in_decimals() -> None:
    scores = [i / 32 for i in range(19)]  # 1 / 20 = 0.05: exactly enough
    assert conformal_threshold(scores, _names(19), 0.05) == pytest.approx(18 / 32, abs=1e-6)


def test_a_pill_with_many_photos_has_one_vote() -> None:
    # Pill 0 has 90 high photos, the nine others one low photo each: 9 pills of 10 are below 0.5.
    scores = [0.9] * 90 + [0.5] * 9
    names = ["pill 0"] * 90 + _names(10)[1:]
    assert 0.5 < conformal_threshold(scores, names, 0.2) < 0.51  # 1/11 + 1/11 may reach it
    assert conformal_threshold(scores, names, 0.15) > 0.9
    assert conformal_threshold(scores, _names(99), 0.2) > 0.9  # as if all photos were of pills


def test_equal_scores_are_rejected_in_float32_too() -> None:
    scores = np.full(99, 0.7, dtype=np.float32)
    assert not (scores >= conformal_threshold(scores, _names(99), 0.01)).any()


def test_too_few_pills_support_no_threshold_however_many_photos() -> None:
    assert conformal_threshold([0.1] * 980, _names(98, 10), 0.01) == REJECT_EVERYTHING
    assert conformal_threshold([0.1] * 99, _names(99), 0.01) < 0.11


@pytest.mark.parametrize("photos", [1, 6])
def test_the_next_photo_of_the_next_pill_is_accepted_as_often_as_aimed_at(photos: int) -> None:
    random = np.random.default_rng(0)
    accepted = []
    for _ in range(3000):
        centres = random.normal(0, 1, 30)
        scores = np.repeat(centres, photos) + random.normal(0, 0.5, 30 * photos)
        threshold = conformal_threshold(scores[photos:], _names(29, photos), 0.1)
        accepted.append(scores[0] >= threshold)
    assert 0.06 <= np.mean(accepted) <= 0.1 + 0.015


@given(st.lists(st.floats(-1, 1), min_size=30, max_size=30), st.floats(0.05, 0.9))
def test_a_higher_aim_never_raises_the_threshold(scores: list[float], share: float) -> None:
    names = _names(30)
    looser = min(0.95, share * 1.3)
    assert conformal_threshold(scores, names, looser) <= conformal_threshold(scores, names, share)


@pytest.mark.parametrize(
    ("scores", "share"),
    [([0.1, np.nan], 0.1), ([[0.1, 0.2]], 0.1), ([0.1], 0.1), ([0.1, 0.2], 0.0), ([0.1, 0.2], 1.0)],
)
def test_threshold_refuses_unusable_input(scores: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        conformal_threshold(scores, ["a", "b"], share)


def test_margin_is_set_on_wrong_names_above_the_threshold_only() -> None:
    strangers = _outcomes(_names(9), [0.5] * 9)
    mated = _outcomes(
        [f"mated {n}" for n in range(9)],
        best=[0.9, 0.9, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
        second=[0.7, 0.85, 0.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
        rank=[2, 2, 2, 1, 1, 1, 1, 1, 1],
    )
    # Wrong above the threshold: gaps 0.2 and 0.05; the third is below it. 1 of 10 is the pill to
    # come; an aim of 0.1 leaves room for none, of 0.2 for one, of 0.3 for both.
    assert calibrate(strangers, mated, fpir=0.1, misnamed=0.1).margin == pytest.approx(0.2)
    assert calibrate(strangers, mated, fpir=0.1, misnamed=0.2).margin == pytest.approx(0.05)
    assert calibrate(strangers, mated, fpir=0.1, misnamed=0.3).margin == 0.0
    assert 0.5 < calibrate(strangers, mated, fpir=0.1, misnamed=0.1).threshold < 0.51


def test_too_few_pills_stop_the_stage_and_say_which() -> None:
    few, enough = _outcomes(_names(8, 50), [0.5] * 400), _outcomes(_names(9), [0.5] * 9)
    with pytest.raises(StageFailed, match=r"8 strangers in the validation.*at least 9"):
        calibrate(few, enough, fpir=0.1, misnamed=0.1)
    with pytest.raises(StageFailed, match=r"8 enrolled pills in the validation.*at least 9"):
        calibrate(enough, few, fpir=0.1, misnamed=0.1)
    calibrate(enough, _outcomes(_names(9), [0.6] * 9), fpir=0.1, misnamed=0.1)


def test_pills_for_an_aim_are_counted_in_decimals() -> None:
    assert [pills_for_aim(share) for share in (0.5, 0.1, 0.07, 0.05)] == [1, 9, 14, 19]


def test_strangers_as_near_as_a_pill_itself_stop_the_stage_for_another_reason() -> None:
    collapsed, mated = _outcomes(_names(40), [1.0] * 40), _outcomes(_names(40), [1.0] * 40)
    with pytest.raises(StageFailed, match="no photo of an enrolled pill"):
        calibrate(collapsed, mated, fpir=0.1, misnamed=0.1)
