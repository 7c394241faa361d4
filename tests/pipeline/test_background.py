"""The background holds photos of train pills as they are taken to be identified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pilltrack.core.background import Background
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.pipeline.background import background_of
from pilltrack.pipeline.cohorts import choose_references
from pilltrack.pipeline.enroll import require_prescribed
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.shots import Shot, photo_of, seeds_of
from pilltrack.pipeline.table import ImageRow, load_images
from tests.tiny_bundle import MODEL


@pytest.fixture(scope="module")
def rows(tiny_artifacts: Path, tiny_params: Params) -> list[ImageRow]:
    return choose_references(load_images(tiny_artifacts / "prepare"), 2)


def _with(params: Params, captures: str, n_photos: int, seed: int = 0) -> Params:
    enroll = {"background_photos": n_photos, "seed": seed, "references_per_side": 2}
    return params.model_copy(
        update={
            "enroll": params.enroll.model_copy(update=enroll),
            "evaluate": params.evaluate.model_copy(update={"captures": captures}),
        }
    )


def test_it_holds_photos_of_train_pills_as_they_are_and_no_other(
    tiny_artifacts: Path, tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    prepared, embedder = tiny_artifacts / "prepare", open_embedder(MODEL)
    around = background_of(embedder, prepared, rows, _with(tiny_params, "rendered", 1000))
    fit = [row for row in rows if row.role == "fit"]
    assert list(around.pills) == [row.pill for row in fit]
    photo = photo_of(Shot(fit[0], None), prepared, tiny_params.capture)
    assert np.allclose(around.embeddings[0], embedder.embed([photo])[0], atol=1e-6)


def test_simulated_ones_are_new_captures_half_of_them_from_afar(
    tiny_artifacts: Path, tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    prepared, embedder = tiny_artifacts / "prepare", open_embedder(MODEL)
    augmented = _with(tiny_params, "augmented", 1000)
    around = background_of(embedder, prepared, rows, augmented)
    fit = [row for row in rows if row.role == "fit"]
    assert list(around.pills) == [row.pill for row in fit]
    fewer = background_of(embedder, prepared, fit[1:], augmented)
    assert np.allclose(fewer.embeddings, around.embeddings[1:], atol=1e-6)  # seeded by the photo
    seeds = [int(seeds_of(row, augmented.enroll.seed, 1).integers(2**62)) for row in fit]
    assert len(set(seeds)) == len(seeds)
    near = [  # the distance is drawn last: near captures are those of a camera that is always near
        photo_of(Shot(row, seed), prepared, augmented.capture.model_copy(update={"distant": 0.0}))
        for row, seed in zip(fit, seeds, strict=True)
    ]
    same = np.abs(embedder.embed(near) - around.embeddings).max(axis=1) < 1e-6
    assert 0.25 < same.mean() < 0.75
    of_reference = [int(seeds_of(row, augmented.enroll.seed).integers(2**62)) for row in fit]
    assert not set(seeds) & set(of_reference)  # no capture that a reference averages


def test_of_more_than_asked_for_the_seed_draws(
    tiny_artifacts: Path, tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    embedder = open_embedder(MODEL)

    def drawn(n_photos: int, seed: int = 0) -> Background:
        params = _with(tiny_params, "rendered", n_photos, seed)
        return background_of(embedder, tiny_artifacts / "prepare", rows, params)

    of_seeds = {drawn(2, seed).embeddings.tobytes() for seed in range(9)}
    assert drawn(2, 3).embeddings.tobytes() in of_seeds
    assert len(of_seeds) > 1
    assert len(drawn(2)) == 2
    assert len(drawn(0)) == 0


def test_a_gallery_with_another_background_is_refused(
    tiny_artifacts: Path, tiny_params: Params, rows: Sequence[ImageRow]
) -> None:
    three, two = (_with(tiny_params, "rendered", n).enroll for n in (3, 2))
    embedder = open_embedder(MODEL)
    enrolled = [Reference(row.pill, row.side, row.image) for row in rows]
    noise = np.random.default_rng(0).normal(size=(len(rows), embedder.dim)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        gallery.enrol(enrolled, noise)
        gallery.background = background_of(
            embedder, tiny_artifacts / "prepare", rows, _with(tiny_params, "rendered", 3)
        )
        require_prescribed(gallery, rows, three)
        with pytest.raises(StageFailed, match="background of 3"):
            require_prescribed(gallery, rows, two)
        strangers = [row.pill for row in rows if row.role != "fit"][:1]
        pills = [*gallery.background.pills[:2], *strangers]
        gallery.background = replace(gallery.background, pills=pills)
        with pytest.raises(StageFailed, match="train pills"):
            require_prescribed(gallery, rows, three)
