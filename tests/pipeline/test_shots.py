"""Shots are the same pictures whoever looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.embedder import open_embedder
from pilltrack.pipeline.data import CAPTURE_PX
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.shots import Shot, embed_shots, photo_of, shots_to_identify
from pilltrack.pipeline.table import load_images
from tests.tiny_bundle import MODEL


def test_photos_stand_as_they_are_and_captures_are_seeded(
    tiny_artifacts: Path, tiny_params: Params
) -> None:
    prepared, capture = tiny_artifacts / "prepare", tiny_params.capture
    rows = load_images(prepared)
    (photo, *_) = shots_to_identify(tiny_params, rows, "test", "rendered")
    assert photo.seed is None
    again = [photo_of(Shot(photo.row, seed), prepared, capture) for seed in (1, 1, 2)]
    assert again[0].shape == (CAPTURE_PX, CAPTURE_PX, 3)
    assert (again[0] == again[1]).all()
    assert (again[0] != again[2]).any()


def test_augmented_shots_have_seeds_of_their_own_and_do_not_move(
    tiny_artifacts: Path, tiny_params: Params
) -> None:
    rows = load_images(tiny_artifacts / "prepare")
    shots = shots_to_identify(tiny_params, rows, "test", "augmented")
    assert shots == shots_to_identify(tiny_params, rows, "test", "augmented")
    seeds = [shot.seed for shot in shots]
    assert len(set(seeds)) == len(seeds)
    assert None not in seeds
    other = shots_to_identify(tiny_params, rows, "validation", "augmented")
    assert not {shot.seed for shot in other} & set(seeds)


class Counting:
    """The golden embedder, counting the photos it is shown."""

    def __init__(self) -> None:
        self._inner = open_embedder(MODEL)
        self.dim, self.space = self._inner.dim, self._inner.space
        self.input_size_px, self.photos = self._inner.input_size_px, 0

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.photos += len(crops)
        return self._inner.embed(crops)


def test_every_embedder_sees_every_shot_in_order(tiny_artifacts: Path, tiny_params: Params) -> None:
    prepared = tiny_artifacts / "prepare"
    shots = shots_to_identify(tiny_params, load_images(prepared), "test", "rendered")
    shots = (shots * 20)[:70]  # more than a batch
    first, second = Counting(), Counting()
    a, b = embed_shots([first, second], shots, prepared, tiny_params.capture, "test")
    assert first.photos == second.photos == 70
    assert a.shape == (70, first.dim)
    assert np.array_equal(a, b)
    alone = first.embed([photo_of(shots[69], prepared, tiny_params.capture)])
    assert np.allclose(a[69], alone[0], atol=1e-6)


def test_no_shots_make_no_embeddings(tiny_artifacts: Path, tiny_params: Params) -> None:
    prepared = tiny_artifacts / "prepare"
    (none,) = embed_shots([open_embedder(MODEL)], [], prepared, tiny_params.capture, "none")
    assert none.shape == (0, open_embedder(MODEL).dim)
