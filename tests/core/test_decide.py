import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pilltrack.core.decide import (
    REJECT_EVERYTHING,
    RESERVE,
    Calibration,
    Rule,
    SmallerGallery,
    decide,
)
from pilltrack.core.gallery import Candidate
from pilltrack.core.metrics import just_above
from tests.calibrations import calibration

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
    before = calibration(threshold=just_above(0.1))
    assert Calibration.model_validate_json(before.model_dump_json()) == before


def test_a_threshold_above_every_cosine_accepts_nothing() -> None:
    best = decide([Candidate("a", 1.0)], calibration(threshold=REJECT_EVERYTHING))
    assert best.kind == "unknown"


@pytest.mark.parametrize("harm", ["fpir", "misnamed"])
def test_a_calibration_whose_evidence_breaks_its_promise_cannot_be_made(harm: str) -> None:
    content = calibration().model_dump()
    content["evidence"][f"{harm}_upper"] = content[harm] + 0.001
    with pytest.raises(ValidationError, match=f"{harm} of up to"):
        Calibration(**content)


@pytest.mark.parametrize(
    "evidence",
    [
        {"fpir": 0.0081},  # more than its own upper bound
        {"misnamed": 0.011},
        {"n_stranger_pills": 300},  # without an error these prove 0.00994, not 0.008
        {"n_mated_pills": 200},
    ],
)
def test_evidence_that_cannot_prove_its_bound_is_refused(evidence: dict[str, float]) -> None:
    content = calibration().model_dump()
    content["evidence"] |= evidence
    with pytest.raises(ValidationError, match="pills cannot prove at most"):
        Calibration(**content)


def _smaller(gallery_size: int, threshold: float, upper: float = 0.01) -> SmallerGallery:
    return SmallerGallery(
        gallery_size=gallery_size, threshold=threshold, fpir_upper=upper, misnamed_upper=upper
    )


def test_rule_is_that_of_the_next_gallery_proven_that_is_larger_by_the_reserve() -> None:
    content = calibration().model_dump() | {"gallery_size": 800}
    sizes = _smaller(5 * RESERVE, 0.2), _smaller(20 * RESERVE, 0.3)
    limits = Calibration(**content | {"smaller": sizes})
    asked = {n: limits.rule_for(n).threshold for n in (0, 1, 5, 6, 20, 21, 800, 801, 5000)}
    assert asked == {
        0: 0.2, 1: 0.2, 5: 0.2, 6: 0.3, 20: 0.3, 21: 0.5, 800: 0.5, 801: 0.5, 5000: 0.5
    }  # fmt: skip
    assert limits.rule_for(5).margin == limits.margin
    assert calibration().rule_for(1) == Rule(threshold=0.5, margin=0.1)
    assert Calibration.model_validate_json(limits.model_dump_json()) == limits


@pytest.mark.parametrize(
    ("smaller", "message"),
    [
        ([_smaller(20, 0.3), _smaller(5, 0.2)], "not in order of size"),
        ([_smaller(5, 0.3), _smaller(20, 0.2)], "not in order of size"),
        ([_smaller(5, 0.6)], "not in order of size"),
        ([_smaller(100, 0.2)], "not in order of size"),
        (
            [_smaller(5, 0.2, upper=0.011)],
            "fpir with 5 pills enrolled: up to 0.01100 against 0.01",
        ),
        (
            [_smaller(5, 0.2, upper=0.001)],
            "fpir with 5 pills enrolled: 400 pills cannot prove",
        ),
    ],
)
def test_thresholds_of_smaller_galleries_out_of_order_or_unproven_are_refused(
    smaller: list[SmallerGallery], message: str
) -> None:
    content = calibration().model_dump() | {"gallery_size": 100, "smaller": tuple(smaller)}
    with pytest.raises(ValidationError, match=message):
        Calibration(**content)
