"""The limit of agreement is set on good sets of photos, and tried on good and on wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.pipeline.agreement import PHOTOS, Sets, embed_sets, measure_agreement, sets_of
from pilltrack.pipeline.calibrate import agreement_limit
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.shots import Shot, photo_of
from pilltrack.pipeline.table import ImageRow, appearance_of, load_images
from tests.tiny_bundle import MODEL


@pytest.fixture(scope="module")
def rows(tiny_artifacts: Path) -> list[ImageRow]:
    return load_images(tiny_artifacts / "prepare")


def _of_captures(params: Params, captures: str) -> Params:
    evaluate = params.evaluate.model_copy(update={"captures": captures})
    return params.model_copy(update={"evaluate": evaluate})


def _at(*degrees: float) -> NDArray[np.float32]:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


# Which photos


def test_sets_are_photos_of_one_side_of_a_pill(
    tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    sets = sets_of(_of_captures(tiny_params, "rendered"), rows, "test")
    assert {shots[0].row.role for shots in sets} >= {"reference", "stranger"}
    for shots in sets:
        assert len({appearance_of(shot.row) for shot in shots}) == 1
        assert len({shot.row.group for shot in shots}) == len(shots)
        assert 2 <= len(shots) <= PHOTOS
        assert {(shot.row.split, shot.row.capture, shot.seed) for shot in shots} == {
            ("test", "rendered", None)
        }
    assert {len(shots) for shots in sets} >= {PHOTOS}
    assert sets_of(_of_captures(tiny_params, "real"), rows, "test") == []


def test_simulated_sets_are_new_captures_of_one_photo(
    tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    augmented = _of_captures(tiny_params, "augmented")
    sets = sets_of(augmented, rows, "test")
    assert sets == sets_of(augmented, rows, "test")
    assert {len(shots) for shots in sets} == {PHOTOS}
    assert all(len({shot.row for shot in shots}) == 1 for shots in sets)
    sets += sets_of(augmented, rows, "validation")
    seeds = [shot.seed for shots in sets for shot in shots]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


def test_captures_are_of_no_probe_and_kinds_are_not_mixed(
    tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    first = replace(
        rows[0], split="test", pill="p", side="", role="probe", capture="rendered", group="1"
    )
    second = replace(first, image="2", role="reference", capture="real", group="1")
    third = replace(second, image="3", group="3")
    mixed = [first, second, third]
    (shots,) = sets_of(_of_captures(tiny_params, "augmented"), mixed, "test")
    assert {shot.row for shot in shots} == {second}
    (shots,) = sets_of(_of_captures(tiny_params, "real"), mixed, "test")
    assert [shot.row for shot in shots] == [second, third]
    assert sets_of(_of_captures(tiny_params, "rendered"), mixed, "test") == []


def test_duplicates_do_not_make_a_set(tiny_params: Params, rows: Sequence[ImageRow]) -> None:
    alike = [replace(row, group=appearance_of(row)) for row in rows]
    assert sets_of(_of_captures(tiny_params, "rendered"), alike, "test") == []


def test_sets_are_embedded_as_the_device_enrols(
    tiny_artifacts: Path, tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    prepared, capture, embedder = (
        tiny_artifacts / "prepare",
        tiny_params.capture,
        open_embedder(MODEL),
    )
    shots = [Shot(rows[0], seed) for seed in (1, 2)]
    sets = embed_sets(embedder, [shots], prepared, capture)
    assert sets.pills == [rows[0].pill]
    photos = [photo_of(shot, prepared, capture) for shot in shots]
    assert np.allclose(sets.embeddings[0], embed_references(embedder, photos))


# The limit


def test_of_good_sets_at_most_the_aim_is_refused() -> None:
    agreements = [n / 32 for n in range(19)]  # the pill to come is one of 20
    pills = [f"pill {n}" for n in range(19)]
    limit = agreement_limit(agreements, pills, 0.1)
    assert sum(agreement < limit for agreement in agreements) == 1
    assert limit == pytest.approx(1 / 32, abs=1e-6)
    assert agreement_limit(agreements, pills, 0.05) == pytest.approx(0, abs=1e-6)


def test_a_limit_is_a_cosine() -> None:
    pills = [f"pill {n}" for n in range(19)]
    assert agreement_limit([-1.0] * 19, pills, 0.05) == -1
    assert agreement_limit([1.000001] * 19, pills, 0.05) == 1  # of equal photos, by rounding


def test_too_few_pills_for_the_aim_set_no_limit() -> None:
    assert agreement_limit([0.5] * 9, [f"pill {n}" for n in range(9)], 0.1) > 0
    assert agreement_limit([0.5] * 16, [f"pill {n}" for n in range(8)] * 2, 0.1) == -1
    assert agreement_limit([], [], 0.1) == -1


def test_each_pill_has_one_vote_on_good_and_on_wrong_sets() -> None:
    good = Sets(
        ["a", "a", "b", "c"],
        [_at(0, 0, 10), _at(0, 0, -80), _at(90, 95), _at(180, 185, 180)],
    )
    measured = measure_agreement(0.5, good, seed=0)
    assert measured == {
        "agreement": 0.5,
        "refused": pytest.approx(1 / 6, abs=1e-4),
        "caught": 1.0,
        "n_pills": 3,
        "n_sets": 4,
    }


def test_the_wrong_photo_is_the_last_and_of_another_pill() -> None:
    good = Sets(["a", "a", "b"], [_at(0, 1, 2), _at(3, 4, 5), _at(90, 91, 92)])
    wrong = good.with_wrong_photos(0)
    assert wrong.pills == good.pills
    for pill, before, after in zip(good.pills, good.embeddings, wrong.embeddings, strict=True):
        assert np.array_equal(before[:2], after[:2])
        of_others = [
            s[-1] for name, s in zip(good.pills, good.embeddings, strict=True) if name != pill
        ]
        assert any(np.array_equal(after[-1], other) for other in of_others)
    with pytest.raises(ValueError, match="1 pills"):
        Sets(["a"], [_at(0, 1)]).with_wrong_photos(0)
