"""The locator's decoding and crops on maps made by hand, and its file on hostile frames."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.errors import BundleRejected
from pilltrack.core.locate import (
    MAX_CROP_PX,
    MAX_PILLS,
    N_MAPS,
    STRIDE,
    Found,
    Locator,
    crop,
    find_pills,
)

CELLS = 40
SIDE = CELLS * STRIDE
LEAST = 0.3  # confidence
GOLDEN = Path(__file__).parents[1] / "golden"


def test_two_touching_discs_are_two_pills() -> None:
    found = find_pills(maps_of([(60, 80, 20), (100, 80, 20)]), SIDE, SIDE, LEAST)
    assert len(found) == 2
    assert sorted(pill.box[0] for pill in found) == pytest.approx([40, 80], abs=1)
    for pill in found:
        assert pill.box[2:] == pytest.approx((40, 40), abs=2)
        assert np.count_nonzero(pill.mask) == pytest.approx(np.pi * 20**2, rel=0.12)


def test_masks_of_touching_discs_do_not_overlap_by_more_than_their_seam() -> None:
    left, right = find_pills(maps_of([(60, 80, 20), (100, 80, 20)]), SIDE, SIDE, LEAST)
    both = in_frame(left) & in_frame(right)
    assert np.count_nonzero(both) < 0.05 * np.pi * 20**2


def test_most_confident_pill_comes_first() -> None:
    maps = maps_of([(40, 40, 16), (110, 110, 24)])
    maps[:20, :20, 0] *= 0.6
    confidences = [pill.confidence for pill in find_pills(maps, SIDE, SIDE, LEAST)]
    filled = np.pi / 4  # of a disc's box
    assert confidences == pytest.approx([np.sqrt(filled), np.sqrt(0.6 * filled)], rel=0.02)


def test_a_pill_that_is_not_sure_enough_is_no_find() -> None:
    maps = maps_of([(80, 80, 20)])
    (pill,) = find_pills(maps, SIDE, SIDE, LEAST)
    maps[..., 0] *= (0.99 * LEAST / pill.confidence) ** 2
    assert find_pills(maps, SIDE, SIDE, LEAST) == []
    maps[..., 0] *= (1.02 / 0.99) ** 2
    assert len(find_pills(maps, SIDE, SIDE, LEAST)) == 1


def test_a_faint_pill_is_found_and_its_mask_is_where_the_pill_map_is_high() -> None:
    maps = maps_of([(80, 80, 20)])
    maps[..., 1] *= 0.3
    (pill,) = find_pills(maps, SIDE, SIDE, 0.15)
    assert np.count_nonzero(pill.mask) == pytest.approx(np.pi * 20**2, rel=0.12)


def test_a_bright_cell_that_belongs_to_nobody_does_not_take_the_mask() -> None:
    maps = maps_of([(80, 80, 20)])
    maps[..., 1] *= 0.3
    maps[16, 16] = (0, 1, 0, 0, 0.9, 0.9)  # in a corner of the box, of something far away
    (pill,) = find_pills(maps, SIDE, SIDE, 0.15)
    assert np.count_nonzero(pill.mask) == pytest.approx(np.pi * 20**2, rel=0.12)


def test_a_weak_second_middle_changes_nothing_that_hangs_on_the_threshold() -> None:
    maps = maps_of([(80, 80, 20)])
    maps[17, 17, 0] = 0.13
    low, high = (find_pills(maps, SIDE, SIDE, least) for least in (0.1, 0.5))
    assert [pill.box for pill in high] == [pill.box for pill in low if pill.confidence >= 0.5]


def test_a_middle_whose_box_is_hardly_pill_is_less_sure() -> None:
    whole = maps_of([(80, 80, 20)])
    speck = whole.copy()
    away = np.hypot(*(np.mgrid[:CELLS, :CELLS] - 19.5))
    speck[away > 3.2, 1] = 0
    (found,), (doubtful,) = (find_pills(maps, SIDE, SIDE, 0.1) for maps in (whole, speck))
    assert doubtful.confidence < 0.75 * found.confidence


@pytest.mark.parametrize("solid", [0.3, 0.6])
def test_a_faint_pill_is_less_sure(solid: float) -> None:
    maps = maps_of([(80, 80, 20)])
    (sure,) = find_pills(maps, SIDE, SIDE, 0.15)
    maps[..., 1] *= solid
    (faint,) = find_pills(maps, SIDE, SIDE, 0.15)
    assert faint.confidence < (solid + 0.1) * sure.confidence


def test_two_peaks_on_one_pill_are_one_find() -> None:
    maps = maps_of([(80, 80, 30)])
    maps[20, 23, 0] = maps[20, 17, 0] = 1.0
    assert len(find_pills(maps, SIDE, SIDE, LEAST)) == 1


def test_boxes_and_masks_are_in_the_pixels_of_a_larger_frame() -> None:
    # 1280 x 960 is letterboxed to 160 x 120: eight frame pixels for one, 20 rows of margin.
    (pill,) = find_pills(maps_of([(80, 80, 20)]), 960, 1280, LEAST)
    assert pill.box == pytest.approx((480, 320, 320, 320), abs=8)
    assert pill.mask.shape == (pill.box[3], pill.box[2])
    assert bool(pill.mask[160, 160])
    assert not pill.mask[2, 2]


def test_a_pill_half_outside_keeps_its_box_inside_the_frame() -> None:
    (pill,) = find_pills(maps_of([(2, 80, 20)]), SIDE, SIDE, LEAST)
    assert pill.box[0] == 0
    assert pill.box[2] == pytest.approx(22, abs=2)


def test_a_field_of_peaks_gives_no_more_than_the_limit() -> None:
    discs = [(x, y, 5) for x in range(8, 160, 13) for y in range(8, 160, 13)]
    assert len(discs) > MAX_PILLS
    assert len(find_pills(maps_of(discs), SIDE, SIDE, LEAST)) == MAX_PILLS


def test_peaks_that_are_no_pills_take_no_place_from_pills() -> None:
    discs = [(x, y, 5) for x in range(8, 160, 13) for y in range(8, 160, 13)]
    maps = maps_of(discs)
    maps[: CELLS // 3, :, 1] = 0  # nothing but middles, surer than the pills below
    maps[CELLS // 3 :, :, 0] *= 0.9
    assert len(find_pills(maps, SIDE, SIDE, LEAST)) == MAX_PILLS


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.integers(1, 3000))
def test_any_maps_give_boxes_inside_the_frame(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    maps = np.repeat(np.repeat(rng.random((4, 4, N_MAPS), dtype=np.float32), 4, 0), 4, 1)
    maps[..., 2:] *= rng.uniform(0, 1)
    for pill in find_pills(maps, height, width, LEAST):
        x, y, w, h = pill.box
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
        assert pill.mask.shape == (h, w)
        assert pill.mask.any()


def test_maps_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(C, C, 6\)"):
        find_pills(np.zeros((8, 9, 6), np.float32), 32, 32, LEAST)


@pytest.mark.parametrize("turn_degrees", [0, 30, 45, 90])
def test_a_pill_takes_the_same_share_of_its_crop_however_it_is_turned(turn_degrees: int) -> None:
    frame, found = capsule_frame(turn_degrees)
    square = crop(frame, found)
    assert square.shape[0] == square.shape[1]
    lit = cv2.findNonZero((square[..., 0] > 127).astype(np.uint8))
    assert lit is not None
    (x, y), size, _ = cv2.minAreaRect(lit)
    assert max(size) / square.shape[0] == pytest.approx(0.75, abs=0.03)
    middle = (square.shape[0] - 1) / 2
    assert (x, y) == pytest.approx((middle, middle), abs=1.5)


def test_a_crop_beyond_the_border_repeats_the_outermost_pixels() -> None:
    frame = np.zeros((50, 50, 3), np.uint8)
    frame[:, 0] = (9, 8, 7)
    found = Found((0, 20, 10, 10), np.ones((10, 10), bool), 1.0)
    square = crop(frame, found)
    assert (square[:, 0] == (9, 8, 7)).all()


def test_a_pill_as_large_as_a_photo_gives_a_crop_of_bounded_size() -> None:
    frame = np.full((1500, 2000, 3), 200, np.uint8)
    found = Found((0, 0, 2000, 1500), np.ones((1500, 2000), bool), 1.0)
    assert crop(frame, found).shape == (MAX_CROP_PX, MAX_CROP_PX, 3)


@pytest.mark.parametrize("turn_degrees", [0, 20, 45, 110])
def test_the_length_of_a_pill_is_that_of_its_mask_however_it_is_turned(turn_degrees: int) -> None:
    _, found = capsule_frame(turn_degrees)
    assert found.length_px == pytest.approx(80, abs=2.5)


def test_an_embedder_is_no_locator() -> None:
    with pytest.raises(BundleRejected, match="one output"):
        Locator(GOLDEN / "tiny_int8.tflite", min_confidence=LEAST)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "locator.tflite"
    file.write_bytes(b"not a model")
    with pytest.raises(BundleRejected, match="damaged"):
        Locator(file, min_confidence=LEAST)


def maps_of(discs: list[tuple[int, int, int]]) -> NDArray[np.float32]:
    """What a perfect network answers for discs (x, y, radius) in the input's pixels."""
    maps = np.zeros((CELLS, CELLS, N_MAPS), np.float32)
    at = (np.arange(CELLS) + 0.5) * STRIDE
    for x, y, radius in discs:
        ends = (
            max(x - radius, 0),
            max(y - radius, 0),
            min(x + radius, SIDE),
            min(y + radius, SIDE),
        )
        away = np.hypot(at[None] - x, at[:, None] - y)
        own = away <= radius
        maps[own, 1] = 1
        row, column = (min(int((a + b) / 2 // STRIDE), CELLS - 1) for a, b in
                       ((ends[1], ends[3]), (ends[0], ends[2])))  # fmt: skip
        maps[row, column, 0] = 1
        sides = (
            at[None] - ends[0],
            at[:, None] - ends[1],
            ends[2] - at[None],
            ends[3] - at[:, None],
        )
        for channel, distance in enumerate(sides, 2):
            whole = np.broadcast_to(np.sqrt(np.clip(distance / SIDE, 0, 1)), (CELLS, CELLS))
            maps[own, channel] = whole[own]
    return maps


def in_frame(pill: Found) -> NDArray[np.bool_]:
    """The pill's mask in a frame of SIDE x SIDE."""
    x, y, width, height = pill.box
    frame = np.zeros((SIDE, SIDE), bool)
    frame[y : y + height, x : x + width] = pill.mask
    return frame


def capsule_frame(turn_degrees: int) -> tuple[NDArray[np.uint8], Found]:
    """A white capsule of 80 x 30 pixels in the middle of a black frame, and where it is."""
    angle = np.radians(turn_degrees)
    arm = 25 * np.array([np.cos(angle), np.sin(angle)])
    mask = np.zeros((200, 200), np.uint8)
    start, end = (tuple(int(v) for v in np.round(100 + s * arm)) for s in (-1, 1))
    cv2.line(mask, start, end, 255, 30)
    x, y, width, height = cv2.boundingRect(mask)
    found = Found((x, y, width, height), mask[y : y + height, x : x + width] > 0, 1.0)
    return np.dstack([mask] * 3), found
