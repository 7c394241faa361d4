"""How much a photo resembles pills in general.

A plain white tablet is like a hundred others: a cosine of 0.9 to its nearest reference says
little. A red and blue capsule is like nothing else, and 0.7 says much. A gallery therefore carries
a background, embeddings of pills that the model was trained on, and a score is the cosine to the
best look less a share of the photo's mean cosine to its nearest background embeddings. One
threshold then fits plain and striking pills.

This is test normalisation of speaker verification (Auckenthaler, Carey and Lloyd-Thomas 2000,
section 3.2) with the nearest of the cohort (Sturim and Reynolds 2005), without its division by a
deviation. Only the threshold sees it: all pills of one photo lose the same, so their order and
the gaps between them stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# Chosen on validation pills (docs/lab-log.md). Every threshold ever shipped was set with these two:
# whoever changes one must change the gallery's FORMAT.
NEAREST = 10  # background embeddings that count
WEIGHT = 0.4


@dataclass(frozen=True, eq=False)
class Background:
    """Embeddings (M, D) float32 of unit length, and the pill (M,) that each shows."""

    embeddings: NDArray[np.float32]
    pills: Sequence[str]

    def __len__(self) -> int:
        return len(self.pills)

    def share(
        self, probes: NDArray[np.float32], nearest_pills: Sequence[str]
    ) -> NDArray[np.float64]:
        """What to take off the scores of probes (N, D) float32: (N,), 0..WEIGHT; 0 without any.

        `nearest_pills` (N,): each probe's best candidate. What the background holds under that
        name is left out, or a pill that the model was trained on would stand in its own way.
        Each probe is compared alone: what else is asked in the same call changes no bit.

        >>> plain, other = [1.0, 0.0], [0.0, 1.0]
        >>> background = Background(np.array([plain, other], np.float32), ["a", "b"])
        >>> background.share(np.array([plain, plain], np.float32), ["new", "a"]).tolist()
        [0.2, 0.0]
        """
        return np.array(
            [self._share(probe, pill) for probe, pill in zip(probes, nearest_pills, strict=True)],
            np.float64,
        )

    def _share(self, probe: NDArray[np.float32], nearest_pill: str) -> float:
        own = self._rows_of.get(nearest_pill, [])
        n_others = len(self) - len(own)
        if not n_others:
            return 0.0
        similarities = self.embeddings @ probe  # (M,)
        similarities[own] = -np.inf
        kept = min(NEAREST, n_others)
        top = np.partition(similarities, len(self) - kept)[len(self) - kept :]
        return WEIGHT * min(max(float(top.mean()), 0.0), 1.0)

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, pill in enumerate(self.pills):
            rows.setdefault(pill, []).append(row)
        return rows


def no_background(dim: int) -> Background:
    """None: scores are then plain cosines."""
    return Background(np.empty((0, dim), np.float32), [])
