"""Strangers' scores -> the calibration that a bundle carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import REJECT_EVERYTHING, Calibration, threshold_at_fpir
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery


def calibrate(
    gallery: Gallery,
    stranger_scores: NDArray[np.floating],
    stranger_pills: Sequence[str],
    *,
    fpir: float,
    margin: float,
    captures: str,
) -> Calibration:
    """The threshold that accepts a share `fpir` of strangers, with the evidence for it.

    `stranger_scores` (n,): best score of each stranger photo in `gallery`; `stranger_pills` (n,):
    the pill each one shows. Raises StageFailed when there are too few photos to support the
    promise: such a bundle would answer "unknown" to everything.
    """
    needed = math.ceil(1 / Fraction(str(fpir))) - 1
    threshold = threshold_at_fpir(stranger_scores, fpir) if len(stranger_scores) else math.inf
    if threshold >= REJECT_EVERYTHING:
        raise StageFailed(
            f"calibration for fpir {fpir:g}",
            found=f"{len(stranger_scores)} photos of strangers",
            expected=f"at least {needed}",
            remedy="Add pills, raise `prepare.stranger_share`, `evaluate.augmented_per_photo` or "
            "`convert.parity_images`, or promise less with a higher `evaluate.fpir`.",
        )
    return Calibration(
        space=gallery.space,
        threshold=threshold,
        margin=margin,
        fpir=fpir,
        n_stranger_probes=len(stranger_scores),
        n_stranger_pills=len(set(stranger_pills)),
        gallery_size=len(gallery.pills()),
        captures=captures,
    )
