"""A data set that evaluate could not measure is refused before anything is trained."""

from __future__ import annotations

import pytest

from pilltrack.core.errors import DatasetRejected
from pilltrack.pipeline.cohorts import (
    choose_references,
    cohort_of,
    photos_to_identify,
    require_captures,
)
from pilltrack.pipeline.params import EvaluateParams, load_params
from pilltrack.pipeline.table import ImageRow
from tests.imports import ROOT


def _row(pill: str, split: str, role: str, capture: str = "real", n: int = 0) -> ImageRow:
    name = f"images/{pill}/{n}.png"
    return ImageRow(name, pill, "", "s", capture, f"g-{name}", split, role)  # type: ignore[arg-type]


WHOLE = [
    _row("a", "train", "fit"),
    _row("a", "train", "probe", n=1),
    _row("b", "validation", "stranger"),
    _row("v", "validation", "reference"),
    _row("v", "validation", "probe", n=1),
    _row("c", "test", "reference"),
    _row("c", "test", "probe", n=1),
    _row("d", "test", "stranger"),
]
STUDIO = [row for row in WHOLE if row.role != "probe"]


def _settings(captures: str, augmented_per_photo: int = 1) -> EvaluateParams:
    settings = load_params(ROOT / "params.yaml").evaluate
    change = {"captures": captures, "augmented_per_photo": augmented_per_photo}
    return settings.model_copy(update=change)


def test_photos_of_every_cohort_are_accepted() -> None:
    require_captures(WHOLE, _settings("real"))
    require_captures(STUDIO, _settings("augmented"))


@pytest.mark.parametrize(
    ("rows", "captures", "per_photo", "absent"),
    [
        (STUDIO, "real", 1, "new pills in the validation"),
        ([r for r in WHOLE if r.role != "probe" or r.pill == "v"], "real", 1, "new and seen"),
        (WHOLE, "rendered", 1, "strangers"),
        (WHOLE, "augmented", 0, "strangers"),
        ([row for row in WHOLE if row.split != "test"], "real", 1, "pills in the test split"),
        ([row for row in WHOLE if row.pill != "b"], "real", 1, "strangers pills in the validation"),
    ],
)
def test_an_absent_cohort_is_named_with_the_remedy(
    rows: list[ImageRow], captures: str, per_photo: int, absent: str
) -> None:
    with pytest.raises(DatasetRejected, match=absent) as caught:
        require_captures(rows, _settings(captures, per_photo))
    assert "The photos of this data set are real" in caught.value.remedy


def test_the_test_split_brings_seen_pills_but_no_validation_pills() -> None:
    found = {(row.pill, cohort_of(row)) for row in photos_to_identify(WHOLE, "test", "real")}
    assert found == {("a", "seen"), ("c", "new"), ("d", "strangers")}


def test_augmented_captures_are_made_of_enrolled_photos_and_strangers_only() -> None:
    roles = {row.role for row in photos_to_identify(WHOLE, "test", "augmented")}
    assert roles == {"fit", "reference", "stranger"}


def test_references_are_one_of_each_duplicate_group_and_never_probes_or_strangers() -> None:
    copies = [
        ImageRow(f"images/e/{n}", "e", "front", "s", "real", group, "test", "reference")
        for n, group in enumerate(["g1", "g1", "g2", "g3"])
    ]
    chosen = choose_references([*WHOLE, *copies], per_side=2)
    assert {row.role for row in chosen} == {"fit", "reference"}
    assert [row.image for row in chosen if row.pill == "e"] == ["images/e/0", "images/e/2"]
