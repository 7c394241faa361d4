"""A model, its gallery and its rule, put before the same shots as any other.

`evaluate` tries the shipped file and the float student, `compare` the models of two bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Decision, Rule, decide
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline.calibrate import calibrate
from pilltrack.pipeline.cohorts import COHORTS, Cohort, cohort_of
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.protocol import Drawn, Outcomes, drawn, search, single_views
from pilltrack.pipeline.shots import Shot


@dataclass(frozen=True)
class Tried:
    """The shots of one cohort, their embeddings (N, D), and what was made of each."""

    shots: Sequence[Shot]
    embeddings: NDArray[np.float32]
    drawn: Drawn
    decisions: Sequence[Decision]

    @property
    def outcomes(self) -> Outcomes:
        """What the gallery answers, before the rule."""
        return self.drawn.outcomes

    @property
    def pills(self) -> list[str]:
        """The pill of each shot."""
        return [shot.row.pill for shot in self.shots]


def try_shots(
    gallery: Gallery, rule: Rule, shots: Sequence[Shot], embeddings: NDArray[np.float32], seed: int
) -> dict[Cohort, Tried]:
    """Search and decide as the device does; cohorts without shots are absent.

    `embeddings` (N, D) of the shots, in the space of `gallery`; `seed` of the bootstrap, with draws
    of its own for each cohort.
    """
    references, pills = gallery.embeddings(), [r.pill for r in gallery.references()]
    tried: dict[Cohort, Tried] = {}
    for number, (cohort, chosen) in enumerate(_by_cohort(shots).items()):
        own = embeddings[chosen]
        some = [shots[index] for index in chosen]
        found = search(references, pills, single_views(own, [shot.row.pill for shot in some]))
        decisions = [decide(candidates, rule) for candidates in gallery.search(own, n_pills=2)]
        tried[cohort] = Tried(some, own, drawn(found, seed=seed + number), decisions)
    return tried


def calibrate_on(
    gallery: Gallery,
    shots: Sequence[Shot],
    embeddings: NDArray[np.float32],
    settings: EvaluateParams,
) -> tuple[Rule, dict[Cohort, Outcomes]]:
    """The rule from validation shots and their embeddings (N, D), and the outcomes behind it.

    Raises StageFailed when there are too few validation pills for the aims of `settings`.
    """
    references, pills = gallery.embeddings(), [r.pill for r in gallery.references()]
    found = {
        cohort: search(
            references,
            pills,
            single_views(embeddings[chosen], [shots[index].row.pill for index in chosen]),
        )
        for cohort, chosen in _by_cohort(shots).items()
    }
    rule = calibrate(
        found["strangers"], found["new"], fpir=settings.fpir, misnamed=settings.misnamed
    )
    return rule, found


def _by_cohort(shots: Sequence[Shot]) -> dict[Cohort, list[int]]:
    found: dict[Cohort, list[int]] = {}
    for index, shot in enumerate(shots):
        found.setdefault(cohort_of(shot.row), []).append(index)
    return {cohort: found[cohort] for cohort in COHORTS if cohort in found}
