"""Candidates + calibration -> known, unknown or ambiguous.

A probe is *known* when its best candidate's score reaches the threshold and is clearly ahead of
the second pill's. Neither number is chosen by eye: the pipeline sets the threshold on strangers
and the margin on enrolled pills, proves on other pills what they promise, and the calibration
carries rule, promise and evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pilltrack.core.gallery import Candidate
from pilltrack.core.metrics import just_above

# Above every score: the gallery clips cosines to 1, and its background only lowers them.
REJECT_EVERYTHING = just_above(1.0)
# A device's gallery is judged like one of so many times as many pills drawn from the run's: what
# people enrol and meet is more alike, and their photos are harder, than what the thresholds were
# set on (docs/adr/0006-gallery-size.md).
RESERVE = 12


class Rule(BaseModel):
    """When to accept: `threshold` is a score, `margin` the gap between two."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    threshold: float
    margin: float = Field(ge=0)


class Evidence(BaseModel):
    """What the rule did on test pills, which neither training nor the rule itself had seen.

    Shares in 0..1, each pill having one vote: `fpir` of strangers accepted, `misnamed` and `fnir`
    of enrolled pills that were not trained on. Each upper bound holds with the confidence of the
    calibration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    n_stranger_pills: int = Field(ge=1)
    n_stranger_photos: int = Field(ge=1)
    fpir: float = Field(ge=0, le=1)
    fpir_upper: float = Field(ge=0, le=1)
    n_mated_pills: int = Field(ge=1)
    n_mated_photos: int = Field(ge=1)
    misnamed: float = Field(ge=0, le=1)
    misnamed_upper: float = Field(ge=0, le=1)
    fnir: float = Field(ge=0, le=1)


class SmallerGallery(BaseModel):
    """The threshold for galleries of at most `gallery_size` pills, with the same margin.

    Few pills are few that a stranger can be taken for, so a lower threshold keeps the same
    promises, on average over galleries drawn from pills that were not trained on, and, where these
    are too few, from others besides. The upper bounds are what test pills prove of galleries of
    `gallery_size` pills; in smaller ones, drawn alike, both errors are rarer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    gallery_size: int = Field(ge=1)
    threshold: float
    fpir_upper: float = Field(ge=0, le=1)
    misnamed_upper: float = Field(ge=0, le=1)


class Calibration(Rule):
    """The rule, what it promises, and on what evidence.

    Promised, each with `confidence`: of photos of the next stranger at most the share `fpir` is
    accepted; of photos of the next enrolled pill, trained on or not, at most the share `misnamed`
    gets another pill's name. Both are for a gallery of `gallery_size` pills, and with the
    thresholds of `smaller`, in order of size, for the average smaller one; `captures` tells whether
    they were measured on real or simulated captures. The rule is for scores held against a
    background of `background_size` embeddings: with another, all three are void.

    `agreement`, a mean cosine, is no promise: photos to enrol of one side that are less like each
    other are refused, unless somebody gives a reason. -1 refuses none.

    Raises ValidationError for evidence that does not bear out a promise: a bound above it, below
    what was measured, or below what so few pills can prove; and for thresholds that fall as
    galleries grow.
    """

    space: str = Field(min_length=1)
    fpir: float = Field(gt=0, lt=1)
    misnamed: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    gallery_size: int = Field(ge=0)
    background_size: int = Field(ge=0, default=0)
    captures: str = Field(min_length=1)
    agreement: float = Field(ge=-1, le=1)
    evidence: Evidence
    smaller: tuple[SmallerGallery, ...] = ()

    @model_validator(mode="after")
    def _borne_out(self) -> Calibration:
        found = self.evidence
        for harm, promised, measured, upper, n_pills in (
            ("fpir", self.fpir, found.fpir, found.fpir_upper, found.n_stranger_pills),
            ("misnamed", self.misnamed, found.misnamed, found.misnamed_upper, found.n_mated_pills),
        ):
            provable = 1 - (1 - self.confidence) ** (1 / n_pills)  # by n pills without an error
            if upper > promised:
                raise ValueError(f"{harm} of up to {upper:.5f} against a promise of {promised:.5f}")
            for size in self.smaller:
                bound: float = getattr(size, f"{harm}_upper")
                of = f"{harm} with {size.gallery_size} pills enrolled"
                if bound > promised:
                    raise ValueError(f"{of}: up to {bound:.5f} against {promised:.5f} promised")
                if bound < provable - 1e-5:
                    raise ValueError(f"{of}: {n_pills} pills cannot prove at most {bound:.5f}")
            if upper < measured or upper < provable - 1e-5:
                raise ValueError(f"{harm}: {n_pills} pills cannot prove at most {upper:.5f}")
        sizes: list[SmallerGallery | Calibration] = [*self.smaller, self]
        for less, more in pairwise(sizes):
            if less.gallery_size >= more.gallery_size or less.threshold > more.threshold:
                raise ValueError(f"threshold of {less.gallery_size} pills: not in order of size")
        return self

    def rule_for(self, n_pills: int) -> Rule:
        """The rule of a device on which `n_pills` pills are enrolled.

        It is that of the first size that holds `RESERVE` times as many. Of a gallery of more than
        `gallery_size` pills nothing is promised.
        """
        sizes: tuple[SmallerGallery | Calibration, ...] = (*self.smaller, self)
        fitting = next((size for size in sizes if size.gallery_size >= RESERVE * n_pills), self)
        return Rule(threshold=fitting.threshold, margin=self.margin)


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


def decide(candidates: Sequence[Candidate], rule: Rule) -> Decision:
    """Decide what a probe is, from its candidates in any order.

    unknown     no candidates, a score that is not finite, or the best score < threshold
    ambiguous   the best score - the best score of another pill < margin, or an exact tie
    known       otherwise; a single enrolled pill has no rival

    A higher best score never turns known into unknown, and a stronger rival never turns ambiguous
    into known.

    >>> rule = Rule(threshold=0.5, margin=0.1)
    >>> decide([Candidate("a", 0.9), Candidate("b", 0.3)], rule).kind
    'known'
    >>> decide([Candidate("a", 0.9), Candidate("b", 0.85)], rule).kind
    'ambiguous'
    >>> decide([Candidate("a", 0.4)], rule).kind
    'unknown'
    """
    finite = [candidate for candidate in candidates if math.isfinite(candidate.score)]
    ranked = tuple(sorted(finite, key=lambda candidate: (-candidate.score, candidate.pill)))
    if not ranked:
        return Decision("unknown", None, 0.0, ())
    best = ranked[0]
    if len(finite) < len(candidates) or not best.score >= rule.threshold:
        return Decision("unknown", None, best.score, ranked)
    rival = max((c.score for c in ranked if c.pill != best.pill), default=-math.inf)
    if best.score - rival < rule.margin or best.score == rival:
        return Decision("ambiguous", None, best.score, ranked)
    return Decision("known", best.pill, best.score, ranked)
