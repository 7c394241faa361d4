"""Photos of train pills -> the background that every score is held against.

It holds photos as they are taken to be identified, not references: a photo that shows little, taken
from afar, is like all others that show little, and only a background with such photos lowers its
scores enough (docs/adr/0003-background.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pilltrack.core.background import Background
from pilltrack.core.embedder import Embedder
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.shots import Shot, embed_shots, seeds_of
from pilltrack.pipeline.table import ImageRow

FROM_AFAR = 0.5  # of the captures, whatever `capture.distant` says; chosen on validation pills
_SALT = 1  # other seeds than those of a reference's captures


def background_of(
    embedder: Embedder, prepared: Path, references: Sequence[ImageRow], params: Params
) -> Background:
    """Embeddings of photos of train pills, up to `enroll.background_photos`, drawn by the seed.

    Of those `references` that are of train pills: where `evaluate.captures` is augmented, a new
    capture of each, FROM_AFAR of them of few pixels; else the photos as they are, of whatever kind.
    Progress is shown on a terminal. Raises ImageRejected for a photo that cannot be read.
    """
    fit = [row for row in references if row.role == "fit"]
    drawn = np.random.default_rng(params.enroll.seed).permutation(len(fit))
    rows = [fit[n] for n in np.sort(drawn[: params.enroll.background_photos])]
    if params.evaluate.captures == "augmented":
        shots = [
            Shot(row, int(seeds_of(row, params.enroll.seed, _SALT).integers(2**62))) for row in rows
        ]
    else:
        shots = [Shot(row, None) for row in rows]
    capture = params.capture.model_copy(update={"distant": FROM_AFAR})
    [embeddings] = embed_shots([embedder], shots, prepared, capture, "background")
    return Background(embeddings, [row.pill for row in rows])
