"""A threshold for each size of gallery: the fewer pills are enrolled, the lower it may be.

A stranger is accepted when it resembles any of the enrolled pills enough. One threshold for a
thousand pills therefore refuses nearly everything when five are enrolled. Here the enrolled pills
that were not trained on stand for what a device enrols: from a photo's scores for each of them
follows, for every size, how likely its best score in a gallery drawn from them reaches a threshold.
Nothing is drawn, all draws count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.gallery import Gallery
from pilltrack.core.metrics import best_per_pill
from pilltrack.pipeline.calibrate import conformal_threshold
from pilltrack.pipeline.intervals import pill_means, upper_bound
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.protocol import Measures, rounded, rounded_up

SIZES = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Ranking:
    """The scores of each of N photos for the other pills of a pool, most alike first.

    For a stranger these are all P pills of the pool. For one of the pool they are P - 1, and its
    own score stands beside them.
    """

    pills: Sequence[str]  # (N,) that the photos show
    others: NDArray[np.float64]  # (N, P or P - 1), falling along each row
    own: NDArray[np.float64] | None = None  # (N,); None for strangers

    def chance_of_error(self, n_pills: int) -> NDArray[np.float64]:
        """Chance of each of `others` to be what a gallery of `n_pills` takes the photo for.

        The pill itself is enrolled too, unless it is a stranger; what scores like it counts as
        ahead of it.
        """
        n_others = self.others.shape[1]
        if self.own is None:
            return np.broadcast_to(chance_of_first(n_others, n_pills), self.others.shape)
        return np.where(
            self.others >= self.own[:, None], chance_of_first(n_others, n_pills - 1), 0.0
        )

    def chance_of_lead(self, n_pills: int, margin: float) -> NDArray[np.float64]:
        """Chance (N,) that a pill of the pool is ahead of all others by `margin`, and not tied."""
        assert self.own is not None, "strangers lead nowhere"
        own, n_others = self.own[:, None], self.others.shape[1]
        close = (own - self.others < margin) | (self.others >= own)
        chances = np.where(close, chance_of_first(n_others, n_pills - 1), 0.0)
        lead: NDArray[np.float64] = 1.0 - chances.sum(axis=1)
        return lead


def rank_pills(
    gallery: Gallery, pool: Collection[str], embeddings: NDArray[np.float32], pills: Sequence[str]
) -> Ranking:
    """Rank the pills of `pool`, all enrolled in `gallery`, for each photo (N, D) of `pills` (N,).

    Scores are those of `Gallery.search` but for the last digits of a float32. Raises ValueError
    when some of the photos are of the pool and others are not, and for a pool that the background
    knows: the score of such a pill depends on whether it is the nearest.
    """
    if set(pool) & set(gallery.background.pills):
        raise ValueError("pills of the background in the pool")
    references = [(row, r.pill) for row, r in enumerate(gallery.references()) if r.pill in pool]
    rows, pill_of = zip(*references, strict=True)
    cosines, names = best_per_pill(embeddings @ gallery.embeddings()[list(rows)].T, pill_of)
    shares = gallery.background.share(embeddings, [""] * len(pills))
    scores = np.clip(cosines, -1, 1) - shares[:, None]
    column_of = {name: column for column, name in enumerate(names)}
    columns = [column_of[pill] for pill in pills if pill in column_of]
    if not columns:
        return Ranking(pills, -np.sort(-scores, axis=1))
    if len(columns) < len(pills):
        raise ValueError("photos of the pool and of strangers in one ranking")
    is_own = np.arange(len(names)) == np.array(columns)[:, None]
    others = scores[~is_own].reshape(len(pills), len(names) - 1)
    return Ranking(pills, -np.sort(-others, axis=1), scores[is_own])


def chance_of_first(n_pills: int, n_drawn: int) -> NDArray[np.float64]:
    """Chance (n_pills,) that each place of a ranking is the first of `n_drawn` places drawn.

    Raises ValueError for more draws than places.

    >>> chance_of_first(4, 2).round(3).tolist()
    [0.5, 0.333, 0.167, 0.0]
    """
    if not 0 <= n_drawn <= n_pills:
        raise ValueError(f"{n_drawn} of {n_pills} pills cannot be drawn")
    chance = np.zeros(n_pills)
    left = n_drawn / max(n_pills, 1)
    for place in range(n_pills - n_drawn + 1 if n_drawn else 0):
        chance[place] = left
        left *= (n_pills - n_drawn - place) / max(n_pills - place - 1, 1)
    return chance


def thresholds_by_size(
    strangers: Ranking, mated: Ranking, settings: EvaluateParams
) -> dict[int, float]:
    """The lowest threshold that keeps both aims of `settings` in a gallery of each size.

    Sizes are those of `SIZES` below the number of pills in the pool; rankings are of validation
    photos. An ambiguity margin, which only takes names away, is left out of account.
    """
    found: dict[int, float] = {}
    for size in (size for size in SIZES if size < strangers.others.shape[1]):
        needed = [
            conformal_threshold(ranking.others, ranking.pills, aim, ranking.chance_of_error(size))
            for ranking, aim in ((strangers, settings.fpir), (mated, settings.misnamed))
        ]
        found[size] = max([*needed, *found.values()])  # never lower than a smaller gallery's
    return found


def measure_sizes(
    thresholds: dict[int, float],
    margin: float,
    strangers: Ranking,
    mated: Ranking,
    confidence: float,
) -> dict[str, Measures]:
    """What each threshold does in galleries of its size, on test photos; keys are the sizes.

    Shares are means over pills; `fpir_upper` and `misnamed_upper`, in which the margin is left
    out, hold with `confidence`.
    """
    report: dict[str, Measures] = {}
    for size, threshold in thresholds.items():
        report[str(size)] = measures = {"threshold": rounded(threshold)}
        for harm, ranking in (("fpir", strangers), ("misnamed", mated)):
            errors = ranking.chance_of_error(size) * (ranking.others >= threshold)
            of_photo = errors.sum(axis=1).clip(0, 1)
            measures[harm] = rounded(pill_means(of_photo, ranking.pills).mean())
            measures[f"{harm}_upper"] = rounded_up(upper_bound(of_photo, ranking.pills, confidence))
        assert mated.own is not None
        named = np.where(mated.own >= threshold, mated.chance_of_lead(size, margin), 0.0)
        measures["fnir"] = rounded(1 - pill_means(named, mated.pills).mean())
    return report
