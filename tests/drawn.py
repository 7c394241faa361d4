"""Photos of pills drawn by hand, for tests that look for one: coloured, on a grey table."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREEN, RED, BLUE = (40, 160, 80), (200, 40, 40), (50, 80, 210)
TABLE = (150, 150, 150)
Photo = NDArray[np.uint8]


def pill_photo(
    colour: tuple[int, int, int] = GREEN,
    *,
    length_px: int = 120,
    at: tuple[int, int] = (160, 120),
    blur_px: float = 0,
    light: float = 1,
) -> Photo:
    """A round tablet with a bright ring, its middle at (x, y) of a photo of 320 x 240 pixels."""
    photo = np.full((240, 320, 3), TABLE, np.uint8)
    cv2.circle(photo, at, length_px // 2, colour, -1, cv2.LINE_AA)
    cv2.circle(photo, at, length_px // 4, tuple(min(255, c + 60) for c in colour), 4, cv2.LINE_AA)
    if blur_px:
        photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), blur_px), np.uint8)
    return np.round(photo * light).clip(0, 255).astype(np.uint8)


def empty_table() -> Photo:
    """No pill."""
    return np.full((240, 320, 3), TABLE, np.uint8)


def saved(photo: Photo, path: Path) -> str:
    """The name of the file it is now."""
    Image.fromarray(photo).save(path)
    return str(path)
