"""The background that `enroll` takes from the gallery: train pills only, as many as asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pilltrack.core.background import Background
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.pipeline.enroll import background_of, require_prescribed
from pilltrack.pipeline.params import EnrollParams, load_params
from pilltrack.pipeline.table import ImageRow
from tests.imports import ROOT

ROLES = {"a": ("train", "fit"), "b": ("train", "fit"), "c": ("test", "reference")}
ROWS = [
    ImageRow(f"{pill}/{n}", pill, "", "s", "real", f"{pill}{n}", split, role)  # type: ignore[arg-type]
    for pill, (split, role) in ROLES.items()
    for n in range(2)
]


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with Gallery.create("space", 6) as made:
        made.enrol([Reference(r.pill, r.side, r.image) for r in ROWS], np.eye(6, dtype=np.float32))
        yield made


def settings(background_photos: int, seed: int = 0) -> EnrollParams:
    enroll = load_params(ROOT / "params.yaml").enroll
    return enroll.model_copy(update={"background_photos": background_photos, "seed": seed})


def test_it_holds_train_pills_and_no_other(gallery: Gallery) -> None:
    around = background_of(gallery, ROWS, settings(100))
    assert list(around.pills) == ["a", "a", "b", "b"]
    np.testing.assert_array_equal(around.embeddings, np.eye(6, dtype=np.float32)[:4])


def test_of_more_than_asked_for_the_seed_draws(gallery: Gallery) -> None:
    drawn = {
        background_of(gallery, ROWS, settings(2, seed)).embeddings.tobytes() for seed in range(9)
    }
    again = background_of(gallery, ROWS, settings(2, 3)).embeddings.tobytes()
    assert again in drawn
    assert len(drawn) > 1
    assert len(background_of(gallery, ROWS, settings(2))) == 2
    assert len(background_of(gallery, ROWS, settings(0))) == 0


def test_a_gallery_with_another_background_is_refused(gallery: Gallery) -> None:
    gallery.background = background_of(gallery, ROWS, settings(3))
    require_prescribed(gallery, ROWS, settings(3))
    with pytest.raises(StageFailed, match="background of 3"):
        require_prescribed(gallery, ROWS, settings(2))
    gallery.background = Background(np.eye(3, 6, dtype=np.float32), ["a", "b", "c"])
    with pytest.raises(StageFailed, match="train pills"):
        require_prescribed(gallery, ROWS, settings(3))
