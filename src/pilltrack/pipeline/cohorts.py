"""Which photos answer which question: the cohorts of the open-set evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pilltrack.core.errors import DatasetRejected
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.table import CAPTURES, ImageRow, appearance_of

Cohort = Literal["seen", "new", "strangers"]
COHORTS: tuple[Cohort, ...] = get_args(Cohort)
ALL_CAPTURES = (*CAPTURES, "augmented")  # never mixed in one number


def cohort_of(row: ImageRow) -> Cohort:
    """seen: its pill was trained on; new: enrolled without training; strangers: never enrolled."""
    if row.role == "stranger":
        return "strangers"
    return "seen" if row.split == "train" else "new"


def choose_references(rows: Sequence[ImageRow], per_side: int) -> list[ImageRow]:
    """The first photo of up to `per_side` duplicate groups of each appearance, in row order."""
    looks: dict[str, dict[str, ImageRow]] = {}
    for row in rows:
        if row.role in ("fit", "reference"):
            looks.setdefault(appearance_of(row), {}).setdefault(row.group, row)
    return [row for groups in looks.values() for row in list(groups.values())[:per_side]]


def photos_to_identify(rows: Sequence[ImageRow], split: str, captures: str) -> list[ImageRow]:
    """The photos of `split` that evaluate looks at for one kind of capture.

    `real` and `rendered`: probes and strangers as they are. `augmented`: enrollable photos and
    strangers, each to be captured anew (for seen pills these are photos of the training set).
    The test split brings the seen pills along.
    """
    splits = (split, "train") if split == "test" else (split,)
    wanted = [row for row in rows if row.split in splits]
    if captures == "augmented":
        return [row for row in wanted if row.role != "probe"]
    return [row for row in wanted if row.capture == captures and row.role in ("probe", "stranger")]


def require_captures(rows: Sequence[ImageRow], settings: EvaluateParams) -> None:
    """Refuse now a data set that `evaluate` could not measure hours later.

    Raises DatasetRejected when a cohort has no captures of the kind named by
    `evaluate.captures`.
    """
    needed: dict[str, set[Cohort]] = {
        "validation": {"new", "strangers"},
        "test": {"seen", "new", "strangers"},
    }
    kinds = sorted({row.capture for row in rows})
    for split, cohorts in needed.items():
        photos = photos_to_identify(rows, split, settings.captures)
        if settings.captures == "augmented" and settings.augmented_per_photo == 0:
            photos = []
        absent = sorted(cohorts - {cohort_of(row) for row in photos})
        if absent:
            raise DatasetRejected(
                f"evaluate.captures: {settings.captures}",
                found=f"no such captures of {' and '.join(absent)} pills in the {split} split",
                expected="photos of every cohort that evaluate measures",
                remedy=f"The photos of this data set are {' and '.join(kinds)}: set "
                f"`evaluate.captures` to {' or '.join(kinds)}; with only one photo per side, to "
                "`augmented` with `augmented_per_photo` 1 or more.",
            )
