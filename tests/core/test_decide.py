import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pilltrack.core.decide import REJECT_EVERYTHING, Calibration, decide, threshold_at_fpir
from pilltrack.core.gallery import Candidate

scores = st.floats(-1, 1)


def test_best_candidate_clearly_ahead_is_known() -> None:
    decision = decide([Candidate("a", 0.9), Candidate("b", 0.7)], calibration())
    assert (decision.kind, decision.pill, decision.score) == ("known", "a", 0.9)
    assert decision.candidates == (Candidate("a", 0.9), Candidate("b", 0.7))


def test_score_equal_to_the_threshold_is_accepted() -> None:
    assert decide([Candidate("a", 0.5)], calibration()).kind == "known"
    assert decide([Candidate("a", np.nextafter(0.5, 0))], calibration()).kind == "unknown"


def test_two_pills_too_close_are_ambiguous_and_name_none() -> None:
    decision = decide([Candidate("a", 0.9), Candidate("b", 0.8125)], calibration(margin=0.125))
    assert (decision.kind, decision.pill, decision.score) == ("ambiguous", None, 0.9)


def test_lead_of_exactly_the_margin_is_known() -> None:
    found = decide([Candidate("a", 0.75), Candidate("b", 0.625)], calibration(margin=0.125))
    assert found.kind == "known"


def test_exact_tie_is_ambiguous_even_without_a_margin() -> None:
    tie = [Candidate("a", 0.75), Candidate("b", 0.75)]
    assert decide(tie, calibration(margin=0)).kind == "ambiguous"


def test_below_the_threshold_even_close_pills_are_unknown() -> None:
    found = decide([Candidate("a", 0.4), Candidate("b", 0.4)], calibration())
    assert (found.kind, found.pill) == ("unknown", None)


def test_no_candidates_are_unknown() -> None:
    decision = decide([], calibration())
    assert (decision.kind, decision.pill, decision.score, decision.candidates) == (
        "unknown", None, 0.0, ()
    )  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_is_unknown_and_not_passed_on(bad: float) -> None:
    alone = decide([Candidate("a", bad)], calibration())
    assert (alone.kind, alone.score, alone.candidates) == ("unknown", 0.0, ())
    among = decide([Candidate("a", 0.9), Candidate("b", bad)], calibration())
    assert (among.kind, among.pill, among.score) == ("unknown", None, 0.9)


def test_order_of_candidates_does_not_matter() -> None:
    candidates = [Candidate("b", 0.3), Candidate("a", 0.9), Candidate("c", 0.5)]
    assert decide(candidates, calibration()) == decide(candidates[::-1], calibration())


@given(scores, scores, scores, st.floats(0, 1), scores)
def test_raising_the_best_score_never_turns_known_into_unknown(
    best: float, rival: float, raised: float, margin: float, threshold: float
) -> None:
    limits = calibration(threshold=threshold, margin=margin)
    if decide([Candidate("a", best), Candidate("b", rival)], limits).pill == "a" and raised > best:
        higher = decide([Candidate("a", raised), Candidate("b", rival)], limits)
        assert (higher.kind, higher.pill) == ("known", "a")


@given(scores, scores, scores, st.floats(0, 1), scores)
def test_raising_the_rival_never_turns_ambiguous_into_its_better_being_known(
    best: float, rival: float, raised: float, margin: float, threshold: float
) -> None:
    limits = calibration(threshold=threshold, margin=margin)
    before = decide([Candidate("a", best), Candidate("b", rival)], limits)
    if before.kind == "ambiguous" and rival <= raised <= best:
        assert decide([Candidate("a", best), Candidate("b", raised)], limits).kind == "ambiguous"


@pytest.mark.parametrize(
    "wrong",
    [{"margin": -0.1}, {"threshold": math.nan}, {"fpir": 0.0}, {"fpir": 1.0}, {"surplus": 1}],
)
def test_calibration_refuses_wrong_values(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Calibration(**(calibration().model_dump() | wrong))


def test_calibration_survives_json_to_the_last_bit() -> None:
    before = calibration(threshold=threshold_at_fpir([0.1, 0.2, 0.3], 0.3))
    assert Calibration.model_validate_json(before.model_dump_json()) == before


def test_threshold_lies_just_above_the_kth_smallest_score() -> None:
    strangers = [0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.4, 0.6, 0.5]  # n = 9; k = ceil(10 * 0.8) = 8
    threshold = threshold_at_fpir(strangers, 0.2)
    assert 0.8 < threshold < 0.8 + 1e-6


def test_ranks_are_counted_in_decimals() -> None:
    strangers = [i / 32 for i in range(19)]  # 20 * (1 - 0.05) = 19: exactly enough
    assert threshold_at_fpir(strangers, 0.05) == pytest.approx(18 / 32, abs=1e-6)


def test_scores_equal_to_the_kth_are_rejected_in_float32_too() -> None:
    strangers = np.full(99, 0.7, dtype=np.float32)
    threshold = threshold_at_fpir(strangers, 0.01)
    assert not (strangers >= threshold).any()


def test_too_few_strangers_cannot_support_the_promise() -> None:
    assert threshold_at_fpir([0.1] * 98, 0.01) == REJECT_EVERYTHING
    assert threshold_at_fpir([0.1] * 99, 0.01) < 0.11
    best = decide([Candidate("a", 1.0)], calibration(threshold=REJECT_EVERYTHING))
    assert best.kind == "unknown"


def test_promise_holds_on_average_for_new_strangers() -> None:
    random = np.random.default_rng(0)
    draws = random.uniform(size=(4000, 40))
    accepted = [row[39] >= threshold_at_fpir(row[:39], 0.1) for row in draws]
    assert np.mean(accepted) == pytest.approx(0.1, abs=0.015)  # k = 36 of 39: exactly 4 / 40


@pytest.mark.parametrize(
    ("strangers", "fpir"),
    [([], 0.1), ([0.1, math.nan], 0.1), ([[0.1]], 0.1), ([0.1], 0.0), ([0.1], 1.0)],
)
def test_threshold_refuses_unusable_input(strangers: list[float], fpir: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        threshold_at_fpir(strangers, fpir)


def calibration(threshold: float = 0.5, margin: float = 0.1) -> Calibration:
    return Calibration(
        space="s",
        threshold=threshold,
        margin=margin,
        fpir=0.01,
        n_stranger_probes=100,
        n_stranger_pills=20,
        gallery_size=3,
        captures="simulated",
    )
