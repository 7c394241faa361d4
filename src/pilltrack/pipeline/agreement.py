"""How alike photos of one side of a pill are, and below what likeness enrolment refuses them.

A good set is what a careful person hands in for one side; in a wrong one the last photo shows
another pill. The limit is set on good sets of validation pills; sets of test pills tell what it
does (docs/adr/0008-agreement.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pilltrack.core.embedder import Embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.quality import least_agreement
from pilltrack.pipeline.intervals import pill_means
from pilltrack.pipeline.params import CaptureParams, Params
from pilltrack.pipeline.protocol import Measures, rounded
from pilltrack.pipeline.shots import Shot, photo_of
from pilltrack.pipeline.table import SPLITS, ImageRow, Split, appearance_of

PHOTOS = 3  # of a set, where there are so many


@dataclass(frozen=True)
class Sets:
    """Good sets: the pill of each, and its photos' embeddings (2 or 3, D), as enrolled."""

    pills: Sequence[str]
    embeddings: Sequence[NDArray[np.float32]]

    def agreements(self) -> list[float]:
        """`least_agreement` of each."""
        return [least_agreement(photos) for photos in self.embeddings]

    def with_wrong_photos(self, seed: int) -> Sets:
        """The same, with the last photo of each replaced by one of another pill.

        Raises ValueError where all sets are of one pill.
        """
        if len(set(self.pills)) < 2:
            raise ValueError(f"sets of {len(set(self.pills))} pills; expected two or more")
        rng, wrong = np.random.default_rng(seed), []
        for pill, photos in zip(self.pills, self.embeddings, strict=True):
            other = int(rng.integers(len(self.pills)))
            while self.pills[other] == pill:
                other = int(rng.integers(len(self.pills)))
            wrong.append(np.stack([*photos[:-1], self.embeddings[other][-1]]))
        return Sets(self.pills, wrong)


def sets_of(params: Params, rows: Sequence[ImageRow], split: Split) -> list[list[Shot]]:
    """Two or three photos of each side of the pills of a split that is not trained on.

    They are of the kind `evaluate.captures`: photos as they are, no two of them duplicates, or
    three new captures of one photo that is no probe. A side with too few photos makes no set.
    """
    wanted = params.evaluate.captures
    simulated = wanted == "augmented"
    sides: dict[str, dict[str, ImageRow]] = {}
    for row in rows:
        fits = row.role != "probe" if simulated else row.capture == wanted
        if row.split == split and fits:
            sides.setdefault(appearance_of(row), {}).setdefault(row.group, row)
    seeds = np.random.default_rng([params.evaluate.seed, SPLITS.index(split), PHOTOS])
    sets = []
    for photo, *others in (list(groups.values()) for groups in sides.values()):
        if simulated:
            sets.append([Shot(photo, int(seeds.integers(2**62))) for _ in range(PHOTOS)])
        else:
            sets.append([Shot(row, None) for row in [photo, *others][:PHOTOS]])
    return [shots for shots in sets if len(shots) > 1]


def embed_sets(
    embedder: Embedder, sets: Sequence[Sequence[Shot]], prepared: Path, capture: CaptureParams
) -> Sets:
    """Embed each set as the device does; progress is shown on a terminal.

    Raises ImageRejected for a photo that cannot be read.
    """
    bar = tqdm(sets, desc="agreement", unit="set", disable=None)
    embeddings = [
        embed_references(embedder, [photo_of(shot, prepared, capture) for shot in shots])
        for shots in bar
    ]
    return Sets([shots[0].row.pill for shots in sets], embeddings)


def measure_agreement(limit: float, sets: Sets, seed: int) -> Measures:
    """The limit, and which shares of good sets and of wrong ones it refuses.

    Each pill has one vote. `n_pills` and `n_sets` are those of either kind. Raises ValueError where
    all sets are of one pill.
    """
    wrong = sets.with_wrong_photos(seed)
    return {
        "agreement": rounded(limit),
        "refused": rounded(_share_below(limit, sets)),
        "caught": rounded(_share_below(limit, wrong)),
        "n_pills": len(set(sets.pills)),
        "n_sets": len(sets.pills),
    }


def _share_below(limit: float, sets: Sets) -> float:
    return float(pill_means(np.array(sets.agreements()) < limit, sets.pills).mean())
