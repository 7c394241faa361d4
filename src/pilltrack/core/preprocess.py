"""RGB crop -> model input, frame -> crop: the only resizes of what a model sees.

The longer side is scaled to the model's input size, the shorter one keeps its proportion and is
filled up by repeating its outermost pixels, so that a pill is never stretched and no artificial
edge appears beside it. Training, evaluation and the device all call this one function; whoever
changes what it returns must change `PREPROCESS_VERSION`, which changes every embedding space.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

PREPROCESS_VERSION = "1"


def to_model_input(crop: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Fit an RGB crop (H, W, 3) uint8 into a square (size_px, size_px, 3) uint8.

    Shrinking averages areas (cv2.INTER_AREA), enlarging is bilinear; the scaled crop is centred
    (an odd pixel of filling goes to the bottom or right). A crop that already has the size is
    returned itself, not copied. Memory beyond the crop stays proportional to the result, however
    long and thin the crop is.

    Raises ValueError for another shape or dtype, an empty crop, or size_px < 1.

    >>> tall = np.array([[[10, 10, 10]], [[20, 20, 20]]], dtype=np.uint8)  # (2, 1, 3)
    >>> to_model_input(tall, 2)[:, :, 0].tolist()
    [[10, 10], [20, 20]]
    """
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or crop.size == 0:
        raise ValueError(
            f"crop has shape {crop.shape} and dtype {crop.dtype}; expected (H, W, 3) uint8, "
            "not empty"
        )
    if size_px < 1:
        raise ValueError(f"size_px is {size_px}; expected at least 1")
    height, width = crop.shape[:2]
    if (height, width) == (size_px, size_px):
        return crop

    scale = size_px / max(height, width)
    scaled_height = max(1, round(height * scale))
    scaled_width = max(1, round(width * scale))
    scaled = cv2.resize(
        np.ascontiguousarray(crop),
        (scaled_width, scaled_height),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    missing_rows, missing_columns = size_px - scaled_height, size_px - scaled_width
    top, left = missing_rows // 2, missing_columns // 2
    return np.pad(
        scaled,
        ((top, missing_rows - top), (left, missing_columns - left), (0, 0)),
        mode="edge",
    )


def square_around(
    frame: NDArray[np.uint8],
    box: tuple[int, int, int, int],
    side_px: int,
    size_px: int,
    border: int = cv2.BORDER_REPLICATE,
) -> NDArray[np.uint8]:
    """The square of `side_px` around the middle of a box, (size_px, size_px, 3) uint8.

    `box` is (x, y, width, height) in pixels of the frame (H, W, 3) and reaches into it. Beyond the
    frame its outermost pixels are repeated, or what `border` of OpenCV says. What lies in the
    frame is scaled first: memory stays proportional to the result and that part.
    """
    x, y, width, height = box
    left, top = round(x + (width - side_px) / 2), round(y + (height - side_px) / 2)
    inside = frame[max(0, top) : max(0, top + side_px), max(0, left) : max(0, left + side_px)]
    if not inside.size:
        raise ValueError(f"the box {box} lies outside the frame of shape {frame.shape}")
    scale = size_px / side_px
    ends = (max(0, -top), max(0, -top) + inside.shape[0], max(0, -left))
    above, below, before, after = (
        min(max(round(end * scale), 0), size_px) for end in (*ends, ends[2] + inside.shape[1])
    )
    above, before = min(above, size_px - 1), min(before, size_px - 1)
    across, down = max(1, after - before), max(1, below - above)
    scaled = np.ascontiguousarray(inside)
    if (down, across) != inside.shape[:2]:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = np.asarray(
            cv2.resize(scaled, (across, down), interpolation=interpolation), np.uint8
        )
    square = cv2.copyMakeBorder(
        scaled, above, size_px - above - down, before, size_px - before - across, border
    )
    return np.asarray(square, np.uint8)
