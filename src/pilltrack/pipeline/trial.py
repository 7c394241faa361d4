"""A model, its gallery and its rule, put before the same shots as any other.

`evaluate` tries the shipped file and the float student, `compare` the models of two bundles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Decision, Rule, decide
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Candidate, Gallery
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
    of its own for each cohort. Raises StageFailed when a probe's pill is not enrolled or a
    stranger's is.
    """
    return {
        cohort: Tried(
            shots=[shots[index] for index in chosen],
            embeddings=embeddings[chosen],
            drawn=drawn(found, seed=seed + number),
            decisions=[decide(candidates, rule) for candidates in candidates_of],
        )
        for number, (cohort, chosen, found, candidates_of) in enumerate(
            _look(gallery, shots, embeddings)
        )
    }


def calibrate_on(
    gallery: Gallery,
    shots: Sequence[Shot],
    embeddings: NDArray[np.float32],
    settings: EvaluateParams,
) -> tuple[Rule, dict[Cohort, Outcomes]]:
    """The rule from validation shots and their embeddings (N, D), and the outcomes behind it.

    Raises StageFailed as `try_shots`, and when there are too few validation pills for the aims of
    `settings`.
    """
    found = {cohort: outcomes for cohort, _, outcomes, _ in _look(gallery, shots, embeddings)}
    rule = calibrate(
        found["strangers"], found["new"], fpir=settings.fpir, misnamed=settings.misnamed
    )
    return rule, found


def of_cohort(
    shots: Sequence[Shot], embeddings: NDArray[np.float32], cohort: Cohort
) -> tuple[NDArray[np.float32], list[str]]:
    """The embeddings of a cohort's shots, and the pill of each."""
    chosen = _by_cohort(shots)[cohort]
    return embeddings[chosen], [shots[index].row.pill for index in chosen]


def _look(
    gallery: Gallery, shots: Sequence[Shot], embeddings: NDArray[np.float32]
) -> Iterator[tuple[Cohort, list[int], Outcomes, list[list[Candidate]]]]:
    """Search each cohort; the two best scores are the device's own, to the last bit."""
    enrolled_photos, references = gallery.references(), gallery.embeddings()
    pills, sides = [r.pill for r in enrolled_photos], [r.side for r in enrolled_photos]
    enrolled = set(pills)
    for cohort, chosen in _by_cohort(shots).items():
        shown = [shots[index].row.pill for index in chosen]
        odd = sorted({pill for pill in shown if (pill in enrolled) == (cohort == "strangers")})
        if odd:
            raise StageFailed(
                f"the gallery, for {cohort} pills",
                found=f"{len(odd)} that are {'' if cohort == 'strangers' else 'not '}enrolled, "
                f"such as {odd[0]}",
                expected="seen and new pills enrolled, and no stranger",
                remedy="Run `dvc repro enroll`.",
            )
        outcomes = search(references, pills, single_views(embeddings[chosen], shown), sides=sides)
        candidates = gallery.search(embeddings[chosen], n_pills=2)
        yield (
            cohort,
            chosen,
            replace(
                outcomes,
                best=np.array([found[0].score for found in candidates]),
                second=np.array(
                    [found[1].score if len(found) > 1 else -1.0 for found in candidates]
                ),
            ),
            candidates,
        )


def _by_cohort(shots: Sequence[Shot]) -> dict[Cohort, list[int]]:
    found: dict[Cohort, list[int]] = {}
    for index, shot in enumerate(shots):
        found.setdefault(cohort_of(shot.row), []).append(index)
    return {cohort: found[cohort] for cohort in COHORTS if cohort in found}
