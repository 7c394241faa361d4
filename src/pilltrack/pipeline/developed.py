"""What a phone makes of a frame: fewer pixels, smooth surfaces, hard edges, another tone curve.

Composed scenes are developed like this to train the first look alone. They are composed from
studio photos and drawn things, whose surfaces and edges a phone's processor has not touched.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray


def developed(frame: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A frame (H, W, 3) as another camera may have stored it; everything stays in its place.

    Each of the four happens in three or four of ten frames. Same generator, same pixels.
    """
    height, width = frame.shape[:2]
    picture = frame.astype(np.float32)
    if rng.random() < 0.3:
        share = rng.uniform(0.45, 0.9)
        few = (max(1, round(width * share)), max(1, round(height * share)))
        picture = cv2.resize(picture, few, interpolation=cv2.INTER_AREA).astype(np.float32)
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC).astype(
            np.float32
        )
    picture = smoothed(picture, rng)
    if rng.random() < 0.4:
        soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.7, 2))
        picture += np.float32(rng.uniform(0.2, 1.5)) * (picture - soft)
    if rng.random() < 0.4:
        tones = (picture / 255).clip(0, 1)
        if rng.random() < 0.5:
            contrast = np.float32(rng.uniform(0, 0.6))
            tones += contrast * (3 * tones**2 - 2 * tones**3 - tones)
        else:
            tones **= np.float32(math.exp(rng.normal(0, 0.25)))
        picture = 255 * tones
    return np.asarray(picture.round().clip(0, 255), np.uint8)


def smoothed(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Four of ten pictures (H, W, 3), 0 to 255, with smooth surfaces and the edges they had."""
    if rng.random() >= 0.4:
        return picture
    alike, near = rng.uniform(8, 40), rng.uniform(1, 3)  # grey levels, pixels
    return np.asarray(cv2.bilateralFilter(picture, 5, alike, near), np.float32)
