"""References are means of views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references, mean_embeddings, pills_to_enrol, quarter_turns
from pilltrack.core.locate import Found, Locator
from tests.drawn import empty_table, pill_photo
from tests.imports import ROOT
from tests.tiny_bundle import COLOURED

MODEL = ROOT / "tests" / "golden" / "tiny_int8.tflite"


class FromAfar(Locator):
    """Finds a coloured pill, but none that is longer than 0.6 of the frame."""

    def maps(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps = super().maps(frame)
        rows, columns = np.nonzero(maps[..., 1] >= 0.5)
        if len(rows) and max(np.ptp(rows), np.ptp(columns)) > 0.6 * len(maps):
            maps[..., 0] = 0
        return maps


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


def test_the_turns_of_one_photo_at_a_time_are_in_memory() -> None:
    sizes: list[int] = []

    class Counting(Corner):
        def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            sizes.append(len(crops))
            return super().embed(crops)

    embed_references(Counting(), [photo(RED, RED, GREEN, RED)] * 3)
    assert sizes == [4, 4, 4]


def test_no_photos_no_embeddings() -> None:
    assert embed_references(Corner(), []).shape == (0, 3)


def test_a_turned_photo_is_enrolled_alike() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    turned = np.ascontiguousarray(np.rot90(image))
    first, second = embed_references(open_embedder(MODEL), [image, turned])
    assert first @ second == pytest.approx(1.0, abs=1e-5)


@pytest.fixture(scope="module")
def locator() -> FromAfar:
    return FromAfar(COLOURED, min_confidence=0.5)


def test_a_pill_that_fills_the_photo_is_found_where_it_lies(locator: FromAfar) -> None:
    for near in (pill_photo(length_px=220), np.rot90(pill_photo(length_px=220))):
        near = np.ascontiguousarray(near)
        assert locator.locate(near) == []
        (found,) = pills_to_enrol(locator, near)
        height, width = near.shape[:2]
        box = np.array([width / 2 - 110, height / 2 - 110, 220, 220])
        np.testing.assert_allclose(found.box, box, atol=20)  # a cell is 30 pixels now
        assert found.mask.shape == found.box[3:1:-1]
        assert found.mask[110, 110]
        assert found.length_px == pytest.approx(220, abs=20)


def test_a_pill_cut_off_by_the_frame_ends_at_its_border(locator: FromAfar) -> None:
    (found,) = pills_to_enrol(locator, pill_photo(length_px=220, at=(100, 120)))
    x, y, width, height = found.box
    assert x == 0
    assert width == pytest.approx(210, abs=20)
    assert found.mask.shape == (height, width)
    assert 0 <= y < y + height <= 240


def test_the_look_amid_a_border_is_for_close_ups_alone(
    locator: FromAfar, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pills_to_enrol(locator, empty_table()) == []
    small = pill_photo(length_px=100)
    assert len(pills_to_enrol(locator, small)) == 1
    monkeypatch.setattr(FromAfar, "locate", lambda self, frame: [])
    assert pills_to_enrol(locator, small) == []


def test_a_find_that_is_mostly_beyond_the_photo_is_none() -> None:
    class WholeFrame(Locator):
        """Takes the whole frame for a pill, if looked at amid its border."""

        def locate(self, frame: NDArray[np.uint8]) -> list[Found]:
            return []

    whole = WholeFrame(COLOURED.with_name("whole_frame_locator.tflite"), min_confidence=0.5)
    assert pills_to_enrol(whole, pill_photo()) == []
