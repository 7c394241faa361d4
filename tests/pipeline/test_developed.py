"""Frames as other cameras store them: other pixels, the same picture."""

import numpy as np
import pytest

from pilltrack.pipeline.developed import developed


def frame_with_a_pill() -> np.ndarray:
    frame = np.full((60, 80, 3), 60, np.uint8)
    frame[20:40, 30:54] = (230, 200, 190)
    return frame


@pytest.mark.parametrize("seed", range(40))
def test_everything_stays_in_its_place(seed: int) -> None:
    frame = frame_with_a_pill()
    picture = developed(frame, np.random.default_rng(seed))
    assert picture.shape == frame.shape
    assert picture.dtype == np.uint8
    rows, columns = np.nonzero(picture[..., 0] > 140)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx(
        (20, 39, 30, 53), abs=2
    )


def test_same_generator_same_pixels_and_another_one_others() -> None:
    frame = frame_with_a_pill()
    one, same = (developed(frame, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, same)
    changed = sum(
        not np.array_equal(developed(frame, np.random.default_rng(seed)), frame)
        for seed in range(100)
    )
    assert 70 <= changed < 100  # 0.7 x 0.6^3 = 15 of 100 stay as they are


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (7, 2, 3)])
def test_the_smallest_frames_are_developed_too(shape: tuple[int, int, int]) -> None:
    for seed in range(30):
        assert developed(np.zeros(shape, np.uint8), np.random.default_rng(seed)).shape == shape
