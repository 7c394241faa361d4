"""References are means of views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references, mean_embeddings, quarter_turns
from tests.imports import ROOT

MODEL = ROOT / "tests" / "golden" / "tiny_int8.tflite"


class Corner:
    """Looks at the first pixel alone: red, green and blue are the three directions."""

    dim, input_size_px, space = 3, 1, "corner"

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        rows = [crop[0, 0] / max(np.linalg.norm(crop[0, 0].astype(float)), 1) for crop in crops]
        return np.array(rows, np.float32).reshape(-1, 3)


def photo(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """2 x 2 pixels, row by row."""
    return np.array(colours, np.uint8).reshape(2, 2, 3)


RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def test_every_corner_comes_first_in_one_of_the_turns() -> None:
    turns = quarter_turns(photo(RED, GREEN, BLUE, BLACK))
    assert {tuple(turn[0, 0].tolist()) for turn in turns} == {RED, GREEN, BLUE, BLACK}


def test_a_reference_is_the_unit_mean_of_its_turns() -> None:
    (found,) = embed_references(Corner(), [photo(RED, RED, GREEN, RED)])
    np.testing.assert_allclose(found, np.array([3, 1, 0]) / np.sqrt(10), rtol=1e-6)


def test_each_set_of_views_has_its_own_mean() -> None:
    red, green, black = (photo(*[colour] * 4) for colour in (RED, GREEN, BLACK))
    found = mean_embeddings(Corner(), [[red], [red, green, black], [black]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[1, 0, 0], [half, half, 0], [0, 0, 0]], rtol=1e-6)


def test_no_photos_no_embeddings() -> None:
    assert embed_references(Corner(), []).shape == (0, 3)


def test_a_turned_photo_is_enrolled_alike() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    turned = np.ascontiguousarray(np.rot90(image))
    first, second = embed_references(open_embedder(MODEL), [image, turned])
    assert first @ second == pytest.approx(1.0, abs=1e-5)
