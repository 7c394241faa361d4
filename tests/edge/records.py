"""Records and crops for tests of the log and of replaying it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.local import digest_of
from pilltrack.edge.record import (
    DecisionRecord,
    Override,
    RecordedCandidate,
    RecordedFault,
    RecordedPhoto,
    RecordedPill,
)

NOON = datetime(2026, 1, 31, 12, 0, 0, 250, tzinfo=UTC)


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)


def record(*crops: NDArray[np.uint8], bundle: str = "test") -> DecisionRecord:
    """A decision about crops, each taken for aspirin."""
    pills = tuple(
        RecordedPill(
            box=(1, 2, 30, 40),
            confidence=0.75,
            crop=digest_of(crop),
            decision="known",
            pill="aspirin",
            score=0.1 + 0.2,  # 0.30000000000000004
            candidates=(RecordedCandidate(pill="aspirin", score=0.1 + 0.2),),
        )
        for crop in crops
    )
    return DecisionRecord(
        time=NOON,
        bundle=bundle,
        git_commit="c0ffee",
        space="s",
        threshold=0.3,
        margin=0.0,
        gallery="a" * 64,
        pills=pills,
    )


def override(pill: str) -> Override:
    """One blurred photo of a pill, enrolled all the same."""
    return Override(
        time=NOON,
        pill=pill,
        bundle="test",
        space="s",
        photos=(RecordedPhoto(image="1.jpg", side="front", crop="b" * 64),),
        faults=(
            RecordedFault(
                image="1.jpg",
                kind="blurred",
                found="edges are blurred by 3.0% of the pill's length",
                expected="at most 2.0%",
                other="",
            ),
        ),
        reason="the last one",
    )
