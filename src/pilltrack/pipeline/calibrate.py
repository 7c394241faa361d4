"""Validation pills -> the rule by which the device accepts, and how alike photos to enrol must be.

The threshold is set on strangers, the margin on enrolled pills, the agreement on good sets of
photos, all by the same method: split conformal prediction in which each pill has one vote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from pilltrack.core.decide import REJECT_EVERYTHING, Rule
from pilltrack.core.errors import StageFailed
from pilltrack.core.metrics import just_above
from pilltrack.pipeline.protocol import Outcomes

NEVER_NAMED_WRONGLY = -1.0  # as a gap: below every margin


def calibrate(strangers: Outcomes, mated: Outcomes, *, fpir: float, misnamed: float) -> Rule:
    """The most accepting rule that keeps both errors of the next photo at their aims.

    `strangers`, `mated`: outcomes of validation pills in one gallery. The threshold accepts a
    stranger with probability at most `fpir`; given it, the margin lets an enrolled pill be named
    as another with probability at most `misnamed`.

    Raises StageFailed when there are too few pills for an aim, or no enrolled pill scores above any
    stranger: the model sees the same in everything.
    """
    for who, outcomes, key, aim in (
        ("strangers", strangers, "evaluate.fpir", fpir),
        ("enrolled pills", mated, "evaluate.misnamed", misnamed),
    ):
        if len(set(outcomes.truth)) < pills_for_aim(aim):
            raise _too_few(who, outcomes, key, aim)
    threshold = conformal_threshold(strangers.best, strangers.truth, fpir)
    if threshold >= REJECT_EVERYTHING or not (mated.best > strangers.best.min()).any():
        raise StageFailed(
            "calibration",
            found="no photo of an enrolled pill that scores above any stranger",
            expected="a model that tells pills apart",
            remedy="Look at the teacher's and the student's history.csv; train again.",
        )
    at_risk = (mated.rank > 1) & (mated.best >= threshold)
    gaps = np.where(at_risk, mated.best - mated.second, NEVER_NAMED_WRONGLY)
    margin = conformal_threshold(gaps, mated.truth, misnamed)
    return Rule(threshold=threshold, margin=max(0.0, margin))


def agreement_limit(agreements: Sequence[float], pills: Sequence[str], share: float) -> float:
    """Below what agreement a set of photos is refused: with P <= `share` the next good one is.

    `agreements` (N,), -1 to 1, and `pills` (N,): how much the photos of each good set of validation
    pills agree, and of which pill they are. It is `conformal_threshold` of their negatives. With
    too few pills for the aim it is -1, which refuses nothing.
    """
    limit = -conformal_threshold(-np.asarray(agreements, np.float64), pills, share)
    return min(1.0, max(-1.0, limit))


def conformal_threshold(
    scores: ArrayLike, pills: Sequence[str], share: float, chances: ArrayLike | None = None
) -> float:
    """Lowest threshold that the next photo of the next pill reaches with P <= `share`.

    `scores` (N,) and `pills` (N,): the pill of each score; reached means score >= threshold. A
    photo whose score is a matter of chance has several, (N, C), each with its chance: `chances`
    (N, C), of which a row has a sum of at most 1, and none at all counts as below any threshold.
    With K pills, a photo of a pill with n photos weighs 1 / (n (K + 1)), and the pill to come
    1 / (K + 1); the threshold lies just above the highest score at which the weight of the
    scores reaching it, and of the pill to come, exceeds `share`. This is hierarchical conformal
    prediction: Lee, Barber & Willett, "Distribution-free inference with hierarchical data"
    (2023), section 3; with one photo per pill it is split conformal prediction, Vovk, Gammerman &
    Shafer, "Algorithmic Learning in a Random World" (2005). Chances make it conformal risk control:
    Angelopoulos, Bates, Fisch, Lei & Schuster, "Conformal Risk Control" (2022), theorem 1.

    The guarantee is an average over draws of the K pills, and needs them and the next one to be
    exchangeable: it does not hold for pills or cameras unlike these. It asks for at least
    1 / share - 1 pills; with fewer, REJECT_EVERYTHING (just above 1) is returned. Where chances are
    so small that no threshold is needed, it is -inf.

    Raises ValueError for scores that are not finite, or a share outside 0 < share < 1.

    >>> pills = [f"pill {i}" for i in range(4)]
    >>> conformal_threshold([0.1, 0.2, 0.3, 0.5], pills, 0.4) > 0.3  # 2 of 5 may reach it
    True
    >>> conformal_threshold([0.1, 0.2, 0.3, 0.5], pills, 0.1) == REJECT_EVERYTHING
    True
    """
    values = np.asarray(scores, np.float64)
    of_photo = np.ones_like(values) if chances is None else np.asarray(chances, np.float64)
    right = values.ndim == (1 if chances is None else 2) and values.shape == of_photo.shape
    if not right or len(values) != len(pills) or not np.isfinite(values).all():
        raise ValueError(f"scores {values.shape}: expected ({len(pills)},) finite scores")
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected 0 < share < 1")
    names, pill_of = np.unique(np.asarray(pills, dtype=object), return_inverse=True)
    if len(names) < pills_for_aim(share):
        return REJECT_EVERYTHING
    photos = np.bincount(pill_of, minlength=len(names))[pill_of]
    weights = (of_photo.T / (photos * (len(names) + 1))).T.ravel()
    values = values.ravel()
    falling = np.argsort(-values, kind="stable")
    reaching = 1.0 / (len(names) + 1) + np.cumsum(weights[falling])
    too_many = reaching > share + 1e-12
    if not too_many.any():
        return -math.inf
    return just_above(values[falling][int(np.argmax(too_many))])


def pills_for_aim(share: float) -> int:
    """Pills below which no threshold keeps an aim: 1 / share - 1, rounded up.

    >>> pills_for_aim(0.01)
    99
    """
    return math.ceil(1 / Fraction(str(float(share)))) - 1


def _too_few(who: str, outcomes: Outcomes, key: str, aim: float) -> StageFailed:
    return StageFailed(
        f"calibration for {key} {aim:g}",
        found=f"{len(set(outcomes.truth))} {who} in the validation split",
        expected=f"at least {pills_for_aim(aim)}",
        remedy="Add pills, raise `prepare.validation_share` (or change `prepare.stranger_share`), "
        f"or aim lower with a higher `{key}`.",
    )
