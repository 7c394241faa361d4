"""A threshold for each size of gallery: the fewer pills are enrolled, the lower it may be.

A stranger is accepted when it resembles any of the enrolled pills enough. One threshold for a
thousand pills therefore refuses nearly everything when five are enrolled. Here the enrolled pills
of the run stand for all that a device may enrol: of a photo's scores for each of them follows, for
every size, how likely its best score in a gallery drawn from them reaches a threshold. Nothing is
drawn, all draws count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.background import NEAREST, Background
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline.calibrate import conformal_threshold
from pilltrack.pipeline.intervals import pill_means, upper_bound
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.protocol import Measures, rounded, rounded_up

SIZES = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Ranking:
    """The other pills that each of N photos could be taken for, most alike first.

    All P enrolled pills for a stranger, P - 1 for an enrolled pill, whose own score and place among
    the others (how many are as much alike or more) stand beside them.
    """

    pills: Sequence[str]  # (N,) that the photos show
    scores: NDArray[np.float64]  # (N, P or P - 1), of each pill if it were the most alike
    own: NDArray[np.float64]  # (N,) score of the pill itself; -inf for strangers
    ahead: NDArray[np.intp]  # (N,) others at least as much alike; all of them for strangers

    def wrong(self, n_pills: int) -> NDArray[np.float64]:
        """Chance (N, P or P - 1) that each other pill is the most alike in a gallery of `n_pills`.

        The pill itself is enrolled too, unless it is a stranger.
        """
        n_others = self.scores.shape[1]
        n_drawn = n_pills - (1 if np.isfinite(self.own).all() else 0)
        chance = chance_of_first(n_others, n_drawn)
        return np.where(np.arange(n_others) < self.ahead[:, None], chance, 0.0)


def rank_pills(gallery: Gallery, embeddings: NDArray[np.float32], pills: Sequence[str]) -> Ranking:
    """Rank the enrolled pills for each photo (N, D); `pills` (N,) are all enrolled, or none is."""
    references = gallery.references()
    names, pill_of = np.unique([reference.pill for reference in references], return_inverse=True)
    starts = np.searchsorted(pill_of, np.arange(len(names)))  # references come in order of pill
    cosines = np.maximum.reduceat(embeddings @ gallery.embeddings().T, starts, axis=1)
    column_of = {str(name): column for column, name in enumerate(names)}
    scores = cosines.astype(np.float64)
    for row, probe in enumerate(embeddings):
        shares = _shares(gallery.background, probe)
        scores[row] -= shares.pop("")
        for pill in shares.keys() & column_of.keys():
            scores[row, column_of[pill]] = cosines[row, column_of[pill]] - shares[pill]
    order = np.argsort(-cosines, axis=1, kind="stable")
    columns = [column_of.get(pill) for pill in pills]
    n, rows = len(pills), np.arange(len(pills))
    if None in columns:
        ranked = np.take_along_axis(scores, order, axis=1)
        return Ranking(pills, ranked, np.full(n, -np.inf), np.full(n, len(names)))
    own = np.array(columns, np.intp)
    others = order[order != own[:, None]].reshape(n, len(names) - 1)
    ahead = (cosines >= cosines[rows, own][:, None]).sum(axis=1) - 1
    return Ranking(pills, np.take_along_axis(scores, others, axis=1), scores[rows, own], ahead)


def chance_of_first(n_pills: int, n_drawn: int) -> NDArray[np.float64]:
    """Chance (n_pills,) that each place of a ranking is the first of `n_drawn` places drawn.

    >>> chance_of_first(4, 2).round(3).tolist()
    [0.5, 0.333, 0.167, 0.0]
    """
    chance = np.zeros(n_pills)
    left = min(n_drawn, n_pills) / max(n_pills, 1)
    for place in range(n_pills - n_drawn + 1 if n_drawn else 0):
        chance[place] = left
        left *= (n_pills - n_drawn - place) / max(n_pills - place - 1, 1)
    return chance


def thresholds_by_size(
    n_pills: int, strangers: Ranking, mated: Ranking, settings: EvaluateParams
) -> dict[int, float]:
    """The lowest threshold that keeps both aims of `settings` in a gallery of each size.

    Sizes are those of `SIZES` below `n_pills`; rankings are of validation pills.
    """
    found: dict[int, float] = {}
    for size in (size for size in SIZES if size < n_pills):
        accepted = conformal_threshold(
            strangers.scores, strangers.pills, settings.fpir, strangers.wrong(size)
        )
        misnamed = conformal_threshold(
            mated.scores, mated.pills, settings.misnamed, mated.wrong(size)
        )
        found[size] = max([accepted, misnamed, *found.values()])  # never lower than a smaller one's
    return found


def measure_sizes(
    thresholds: dict[int, float], strangers: Ranking, mated: Ranking, confidence: float
) -> dict[str, Measures]:
    """What each threshold does in galleries of its size, on test pills; keys are the sizes.

    Shares are means over pills; `fpir_upper` and `misnamed_upper` hold with `confidence`. An
    ambiguity margin, which turns names into none, is left out of account.
    """
    return {
        str(size): _measured(size, threshold, strangers, mated, confidence)
        for size, threshold in thresholds.items()
    }


def _measured(
    size: int, threshold: float, strangers: Ranking, mated: Ranking, confidence: float
) -> Measures:
    report: Measures = {"threshold": rounded(threshold)}
    for harm, ranking in (("fpir", strangers), ("misnamed", mated)):
        errors = (ranking.wrong(size) * (ranking.scores >= threshold)).sum(axis=1).clip(0, 1)
        report[harm] = rounded(pill_means(errors, ranking.pills).mean())
        report[f"{harm}_upper"] = rounded_up(upper_bound(errors, ranking.pills, confidence))
    first = 1 - mated.wrong(size).sum(axis=1)
    named = np.where(mated.own >= threshold, first, 0.0)
    report["fnir"] = rounded(1 - pill_means(named, mated.pills).mean())
    return report


def _shares(background: Background, probe: NDArray[np.float32]) -> dict[str, float]:
    """The share that each pill takes off if it is the nearest; under "" that of all not named."""
    if not len(background):
        return {"": 0.0}
    nearest = np.argsort(-(background.embeddings @ probe), kind="stable")[:NEAREST]
    pills = ["", *sorted({background.pills[row] for row in nearest})]
    taken = background.share(np.repeat(probe[None], len(pills), axis=0), pills)
    return dict(zip(pills, taken.tolist(), strict=True))
