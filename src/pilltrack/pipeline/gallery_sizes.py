"""A threshold for each size of gallery: the fewer pills are enrolled, the lower it may be.

A stranger is accepted when it resembles any of the enrolled pills enough. One threshold for a
thousand pills therefore refuses nearly everything when five are enrolled. Here the enrolled pills
that were not trained on, the pool, stand for what a device enrols; galleries larger than the pool
hold all of it and pills that were trained on. From a photo's scores for each pill follows, for
every size, how likely its best score in such a gallery reaches a threshold. Nothing is drawn, all
draws count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.gallery import Gallery
from pilltrack.core.metrics import best_per_pill, just_above
from pilltrack.pipeline.calibrate import conformal_threshold
from pilltrack.pipeline.intervals import pill_means, upper_bound
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.protocol import Measures, rounded, rounded_up

LAST_DIGITS = 1e-6  # a device's scores may be higher than those here by so much
NO_SCORE = -2.0  # below every score
SIZES = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Ranking:
    """What a gallery of C pills, besides the photo's own, has to say of each of N photos.

    Pills stand in the order of their cosines, most alike first.
    """

    pills: Sequence[str]  # (N,) that the photos show
    others: NDArray[np.float64]  # (N, C): the score of each, were it the nearest
    of_pool: NDArray[np.bool_]  # (N, C): not trained on
    own: NDArray[np.float64] | None = None  # (N,) score of the photo's own pill; None for strangers
    gaps: NDArray[np.float64] | None = None  # (N, C): own cosine less that of each other pill

    def chance_of_error(self, n_pills: int) -> NDArray[np.float64]:
        """Chance of each of `others` to be what a gallery of `n_pills` takes the photo for.

        The pill itself is enrolled too, unless it is a stranger; what scores like it counts as
        ahead of it.
        """
        if self.gaps is None:
            return self._chance_of_first(n_pills)
        return np.where(self.gaps <= 0, self._chance_of_first(n_pills - 1), 0.0)

    def chance_of_lead(self, n_pills: int, margin: float) -> NDArray[np.float64]:
        """Chance (N,) that the photo's own pill is ahead of all others by `margin`, not tied."""
        assert self.gaps is not None, "strangers lead nowhere"
        close = (self.gaps < margin) | (self.gaps <= 0)
        chances = np.where(close, self._chance_of_first(n_pills - 1), 0.0)
        lead: NDArray[np.float64] = 1.0 - chances.sum(axis=1)
        return lead

    def share_of_errors(self, n_pills: int, threshold: float) -> NDArray[np.float64]:
        """Chance (N,) of each photo to be taken for another pill in a gallery of `n_pills`."""
        return self._reaching(self.chance_of_error(n_pills), threshold)

    def bound_of_errors(self, n_pills: int, confidence: float) -> Callable[[float], float]:
        """By threshold, the upper bound of errors in a gallery of `n_pills`; it only falls."""
        chances = self.chance_of_error(n_pills)

        def bound(threshold: float) -> float:
            errors = self._reaching(chances, threshold)
            return upper_bound(errors, self.pills, confidence, chances=True)

        return bound

    def _reaching(self, chances: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
        share: NDArray[np.float64] = np.where(self.others >= threshold, chances, 0.0).sum(axis=1)
        return share.clip(0, 1)

    def _chance_of_first(self, n_drawn: int) -> NDArray[np.float64]:
        """Chance (N, C) of each pill to be the first of `n_drawn`: of the pool while it lasts."""
        before = np.cumsum(self.of_pool, axis=1)  # of the pool, up to and with each place
        n_pool = int(before[0, -1]) if before.size else 0
        if n_drawn <= n_pool:
            # Place -1, before the first of the pool, has no chance.
            chances = np.append(chance_of_first(n_pool, n_drawn), 0.0)[before - 1]
            return np.where(self.of_pool, chances, 0.0)
        n_trained = self.others.shape[1] - n_pool
        rank = np.cumsum(~self.of_pool, axis=1) - 1
        chances = np.append(chance_of_first(n_trained, n_drawn - n_pool), 0.0)[rank]
        chances = np.where(before == 0, chances, 0.0)
        nearest_of_pool = self.of_pool & (before == 1)  # enrolled in any case
        return np.where(nearest_of_pool, 1 - chances.sum(axis=1, keepdims=True), chances)


def rank_pills(
    gallery: Gallery, pool: Collection[str], embeddings: NDArray[np.float32], pills: Sequence[str]
) -> Ranking:
    """Rank the pills of `gallery` for each photo (N, D) of `pills` (N,).

    `pool`: those of them that were not trained on. The photos show only pills of the pool, or
    none. Scores are those of `Gallery.search`, were the pill the nearest, but for the last digits
    of a float32 and for two kinds of trained pills. Those behind the first of the pool, which
    cannot be the nearest, lose their own part of the background too. One ahead of it scores at
    least as much as those behind it that may be the nearest, so that no photo is safer in a larger
    gallery. Raises ValueError when some of the photos are of the pool and others are not, and when
    the background knows some of the pool.
    """
    if set(pool) & set(gallery.background.pills):
        raise ValueError("pills of the background in the pool")
    columns = [n for n, pill in enumerate(pills) if pill in pool]
    if columns and len(columns) < len(pills):
        raise ValueError("photos of the pool and of strangers in one ranking")
    looks, pill_of = gallery.looks()
    found, names = best_per_pill(embeddings @ looks.T, pill_of)
    cosines = np.clip(found, -1, 1).astype(np.float64)
    own = None
    if columns:
        is_own = np.array(names) == np.array(pills)[:, None]
        own = cosines[is_own]
        cosines[is_own] = -np.inf  # last of its row, and then cut off
    order = np.argsort(-cosines, axis=1, kind="stable")
    if own is not None:
        order = order[:, :-1]
    cosines = np.take_along_axis(cosines, order, axis=1)
    of_pool = np.array([name in pool for name in names])[order]
    background = gallery.background
    shares = background.share(embeddings, [""] * len(pills))
    scores = cosines - shares[:, None]
    for row, first in enumerate((np.cumsum(of_pool, axis=1) == 0).sum(axis=1)):
        ahead = [names[column] for column in order[row, :first]]
        repeated = np.repeat(embeddings[row : row + 1], len(ahead), axis=0)
        scores[row, :first] = cosines[row, :first] - background.share(repeated, ahead)
        nearest = scores[row, : first + 1]
        nearest[:] = np.maximum.accumulate(nearest[::-1])[::-1]
    if own is None:
        return Ranking(pills, scores, of_pool)
    return Ranking(pills, scores, of_pool, own - shares, own[:, None] - cosines)


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

    Sizes are those of `SIZES` below the number of enrolled pills; rankings are of validation
    photos. An ambiguity margin, which only takes names away, is left out of account.
    """
    found: dict[int, float] = {}
    for size in (size for size in SIZES if size < strangers.others.shape[1]):
        needed = [
            conformal_threshold(ranking.others, ranking.pills, aim, ranking.chance_of_error(size))
            for ranking, aim in ((strangers, settings.fpir), (mated, settings.misnamed))
        ]
        # Never lower than a smaller gallery's, and a number where none is needed.
        found[size] = max([NO_SCORE, *needed, *found.values()])
    return found


def raised_until_proven(
    thresholds: dict[int, float], strangers: Ranking, mated: Ranking, settings: EvaluateParams
) -> dict[int, float]:
    """Each threshold, or the lowest above it at which test photos prove both promises.

    Errors, and so their upper bounds, only fall as a threshold rises. Of a threshold so found the
    bound holds with the same confidence although the photos chose it: risk-controlling prediction
    sets, Bates et al., Journal of the ACM 68 (2021), theorem 1. What is measured on them is a
    little flattered. Where nothing is proven it is above every score.
    """
    found: dict[int, float] = {}
    for size, threshold in thresholds.items():
        needed = [
            _lowest_proven(ranking, size, threshold, promise, settings.confidence)
            for ranking, promise in (
                (strangers, settings.promised_fpir),
                (mated, settings.promised_misnamed),
            )
        ]
        found[size] = max([*needed, *found.values()])
    return found


def _lowest_proven(
    ranking: Ranking, size: int, threshold: float, promise: float, confidence: float
) -> float:
    """The lowest of the threshold and those just above a score at risk that keeps the promise."""
    at_risk = ranking.others[ranking.chance_of_error(size) > 0]
    scores = np.unique(at_risk[at_risk >= threshold]).tolist()
    levels = [threshold, *(just_above(score + LAST_DIGITS) for score in scores)]
    bound = ranking.bound_of_errors(size, confidence)
    place = bisect_left(levels, True, hi=len(levels) - 1, key=lambda level: bound(level) <= promise)
    return levels[place]


def measure_sizes(
    aimed: dict[int, float],
    thresholds: dict[int, float],
    margin: float,
    strangers: Ranking,
    mated: Ranking,
    confidence: float,
) -> dict[str, Measures]:
    """What each threshold does in galleries of its size, on test photos; keys are the sizes.

    `raised_by`: how much higher it is than that `aimed` at, which these photos then chose. Shares
    are means over pills; `fpir_upper` and `misnamed_upper`, in which the margin is left
    out, hold with `confidence`.
    """
    report: dict[str, Measures] = {}
    for size, threshold in thresholds.items():
        report[str(size)] = measures = {
            "threshold": rounded(threshold),
            "raised_by": rounded(threshold - aimed[size]),
        }
        for harm, ranking in (("fpir", strangers), ("misnamed", mated)):
            errors = ranking.share_of_errors(size, threshold)
            measures[harm] = rounded(pill_means(errors, ranking.pills).mean())
            bound = ranking.bound_of_errors(size, confidence)
            measures[f"{harm}_upper"] = rounded_up(bound(threshold))
        assert mated.own is not None
        named = np.where(mated.own >= threshold, mated.chance_of_lead(size, margin), 0.0)
        measures["fnir"] = rounded(1 - pill_means(named, mated.pills).mean())
    return report
