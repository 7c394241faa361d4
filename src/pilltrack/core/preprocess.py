"""RGB crop -> model input: the only resize in the project.

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
