"""Candidates + calibration -> known, unknown or ambiguous.

A probe is *known* when its best candidate's score reaches the threshold and is clearly ahead of
the second pill's. The threshold is not chosen by eye: `threshold_at_fpir` sets it on the scores
of strangers, so that the share of strangers accepted stays below a promised FPIR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from pilltrack.core.gallery import Candidate
from pilltrack.core.metrics import just_above

# Above every cosine of the gallery, which clips scores to 1.
REJECT_EVERYTHING = just_above(1.0)


class Calibration(BaseModel):
    """When to accept, and on what evidence that was decided.

    `threshold` and `margin` are cosines; `fpir` is the promised share of strangers accepted, for
    a gallery of `gallery_size` pills; `captures` tells whether the strangers were real or
    simulated captures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    space: str = Field(min_length=1)
    threshold: float
    margin: float = Field(ge=0)
    fpir: float = Field(gt=0, lt=1)
    n_stranger_probes: int = Field(ge=0)
    n_stranger_pills: int = Field(ge=0)
    gallery_size: int = Field(ge=0)
    captures: str = Field(min_length=1)


@dataclass(frozen=True)
class Decision:
    """What a probe is taken for.

    `pill` is set only if `kind` is "known". `score` is the best candidate's, 0 without any.
    `candidates` are best first.
    """

    kind: Literal["known", "unknown", "ambiguous"]
    pill: str | None
    score: float
    candidates: tuple[Candidate, ...]


def decide(candidates: Sequence[Candidate], calibration: Calibration) -> Decision:
    """Decide what a probe is, from its candidates in any order.

    unknown     no candidates, a score that is not finite, or the best score < threshold
    ambiguous   the best score - the best score of another pill < margin, or an exact tie
    known       otherwise; a single enrolled pill has no rival

    A higher best score never turns known into unknown, and a stronger rival never turns ambiguous
    into known.

    >>> calibration = Calibration(space="s", threshold=0.5, margin=0.1, fpir=0.01,
    ...     n_stranger_probes=100, n_stranger_pills=20, gallery_size=2, captures="simulated")
    >>> decide([Candidate("a", 0.9), Candidate("b", 0.3)], calibration).kind
    'known'
    >>> decide([Candidate("a", 0.9), Candidate("b", 0.85)], calibration).kind
    'ambiguous'
    >>> decide([Candidate("a", 0.4)], calibration).kind
    'unknown'
    """
    finite = [candidate for candidate in candidates if math.isfinite(candidate.score)]
    ranked = tuple(sorted(finite, key=lambda candidate: (-candidate.score, candidate.pill)))
    if not ranked:
        return Decision("unknown", None, 0.0, ())
    best = ranked[0]
    if len(finite) < len(candidates) or not best.score >= calibration.threshold:
        return Decision("unknown", None, best.score, ranked)
    rival = max((c.score for c in ranked if c.pill != best.pill), default=-math.inf)
    if best.score - rival < calibration.margin or best.score == rival:
        return Decision("ambiguous", None, best.score, ranked)
    return Decision("known", best.pill, best.score, ranked)


def threshold_at_fpir(stranger_scores: ArrayLike, fpir: float) -> float:
    """Lowest threshold that keeps the promise: a new stranger is accepted with P <= fpir.

    `stranger_scores` (n,): best score of each stranger probe; accepted means score >= threshold.
    With k = ceil((n + 1)(1 - fpir)), the threshold lies just above the k-th smallest score, so
    that equal scores are rejected. This is split conformal prediction: Vovk, Gammerman & Shafer,
    "Algorithmic Learning in a Random World" (2005); Angelopoulos & Bates, "A Gentle Introduction
    to Conformal Prediction" (2023), section 1. If k > n, the strangers are too few to support
    the promise at any threshold, and REJECT_EVERYTHING (just above 1) is returned: fpir = 0.01
    needs at least 99 strangers.

    The promise is an average over draws of the calibration strangers, and holds if these and the
    new stranger are exchangeable. Photos of one pill are not independent, so the number of
    stranger pills, not of photos, tells how far to trust it; nor does it hold for pills or
    cameras unlike those calibrated on.

    Raises ValueError without scores, for scores that are not finite, or fpir outside 0 < fpir < 1.

    >>> threshold_at_fpir([0.1, 0.2, 0.3, 0.5], 0.4) > 0.3  # k = ceil(5 * 0.6) = 3
    True
    >>> threshold_at_fpir([0.1, 0.2, 0.3, 0.5], 0.1) == REJECT_EVERYTHING  # k = 5 > 4
    True
    """
    scores = np.sort(np.asarray(stranger_scores, dtype=np.float64))
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(f"stranger_scores {scores.shape}: expected (n,) finite scores, n >= 1")
    if not 0 < fpir < 1:
        raise ValueError(f"fpir is {fpir}; expected 0 < fpir < 1")
    # Exact decimals: in binary, 20 * (1 - 0.05) could come out above 19 and cost a rank.
    k = math.ceil((len(scores) + 1) * (1 - Fraction(str(float(fpir)))))
    return just_above(scores[k - 1]) if k <= len(scores) else REJECT_EVERYTHING
