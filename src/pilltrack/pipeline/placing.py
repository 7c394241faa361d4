"""A cut-out pill in its place in the frame, before anything lies under it.

Flat or as a body, every pill is laid by a homography from its photo to the frame, and comes out
as one layer with its opacity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.surfaces import Field

Photo = NDArray[np.uint8]


class Laid(NamedTuple):
    """A pill in its place in the frame (S, S), lit, without what it lies on."""

    colours: Field  # (S, S, 3) from 0, premultiplied; above 255 is blown out
    opacity: Field  # (S, S) 0 to 1
    foot: Field  # (S, S) 0 to 1: what touches the surface
    thickness_px: float  # how high its top is above the surface


def warped(
    photo: Photo, alpha: Photo, homography: NDArray[np.float64], scale: float, size_px: int
) -> tuple[Field, Field]:
    """A cut-out in its place: colours (S, S, 3) 0 to 255, premultiplied, and opacity (S, S).

    `photo` (H, W, 3) and `alpha` (H, W) uint8; `homography` (3, 3) from its pixels to the frame's,
    which makes it about `scale` times as large.
    """
    cutout = np.dstack([cv2.multiply(photo, cv2.merge([alpha] * 3), scale=1 / 255), alpha])
    cutout, homography = reduced(cutout, homography, scale)
    layer = cv2.warpPerspective(cutout, homography, (size_px, size_px)).astype(np.float32)
    opacity: Field = layer[..., 3] / np.float32(255)
    return np.ascontiguousarray(layer[..., :3]), opacity


def reduced(
    photo: Photo, homography: NDArray[np.float64], scale: float
) -> tuple[Photo, NDArray[np.float64]]:
    """Shrink a photo by area before a warp would skip its pixels; the warp then ends the same."""
    if scale > 0.75:
        return photo, homography
    height, width = photo.shape[:2]
    small = (max(1, round(width * scale * 1.3)), max(1, round(height * scale * 1.3)))
    shrunk: Photo = cv2.resize(photo, small, interpolation=cv2.INTER_AREA)
    back = np.diag([width / small[0], height / small[1], 1.0])
    return shrunk, homography @ back


def shift_in_frame(share: float, clip: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the middle of a pill is, from the frame's, in frames (2,).

    `share` of the frame is the pill; three in ten are pushed out of it by up to `clip` of the pill.
    """
    room = max(0.0, 0.5 - share / 2)
    shift = rng.uniform(-0.5, 0.5, 2) * room
    if rng.random() < 0.3:
        out = rng.uniform(0, clip)
        if out > 0:
            way = rng.uniform(0, 2 * math.pi)
            shift = np.array([math.cos(way), math.sin(way)]) * (room + out * share)
    return shift


def moved(field: Field, x: float, y: float) -> Field:
    """A field (H, W) or (H, W, C) moved right by `x` and down by `y` pixels; nothing comes in.

    >>> moved(np.ones((1, 3), np.float32), 1, 0).tolist()
    [[0.0, 1.0, 1.0]]
    """
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    there: Field = cv2.warpAffine(field, matrix, field.shape[1::-1])
    return there
