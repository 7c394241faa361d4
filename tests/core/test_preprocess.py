from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.image import read_image
from pilltrack.core.preprocess import to_model_input

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("size_px", [24, 56])  # shrunk and enlarged
def test_model_input_of_the_golden_crop_is_the_same_to_the_bit(size_px: int) -> None:
    expected = read_image(GOLDEN / f"crop_as_{size_px}px.png")
    found = to_model_input(read_image(GOLDEN / "crop.png"), size_px)
    np.testing.assert_array_equal(found, expected)


def test_shrinking_to_half_averages_four_pixels() -> None:
    crop = grey([[0, 4, 8, 8], [8, 4, 8, 8], [100, 100, 0, 2], [100, 100, 4, 2]])
    assert to_model_input(crop, 2)[:, :, 0].tolist() == [[4, 8], [100, 2]]


def test_wide_crop_is_centred_and_filled_with_its_own_border() -> None:
    crop = grey([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    expected = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [6, 7, 8, 9, 10],
                [6, 7, 8, 9, 10]]  # fmt: skip
    assert to_model_input(crop, 5)[:, :, 0].tolist() == expected


def test_channels_keep_their_order() -> None:
    crop = np.full((4, 4, 3), (10, 20, 30), dtype=np.uint8)
    assert to_model_input(crop, 2)[0, 0].tolist() == [10, 20, 30]


def test_crop_of_the_right_size_is_returned_itself() -> None:
    crop = grey([[1, 2], [3, 4]])
    assert to_model_input(crop, 2) is crop


def test_crop_may_be_a_view_with_negative_strides() -> None:
    crop = grey([[0, 4, 8, 8], [8, 4, 8, 8]])[:, ::-1]
    assert to_model_input(crop, 2)[:, :, 0].tolist() == [[8, 4], [8, 4]]


@pytest.mark.parametrize("shape", [(1, 200_000, 3), (200_000, 1, 3)])
def test_extremely_long_crop_gives_an_ordinary_input(shape: tuple[int, ...]) -> None:
    found = to_model_input(np.full(shape, 7, dtype=np.uint8), 96)
    assert found.shape == (96, 96, 3)
    assert (found == 7).all()


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(0, 255))
def test_uniform_crop_of_any_shape_stays_uniform(
    height: int, width: int, size_px: int, value: int
) -> None:
    found = to_model_input(np.full((height, width, 3), value, dtype=np.uint8), size_px)
    assert found.shape == (size_px, size_px, 3)
    assert found.dtype == np.uint8
    assert (found == value).all()


@pytest.mark.parametrize(
    "crop",
    [
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(crop: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected \\(H, W, 3\\) uint8"):
        to_model_input(crop, 8)


def test_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="size_px is 0"):
        to_model_input(grey([[1]]), 0)


def grey(rows: list[list[int]]) -> NDArray[np.uint8]:
    return np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2)
