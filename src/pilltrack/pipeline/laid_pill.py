"""A cut-out pill as it lies in a scene: at its size and angle, with its near side, in the light.

Studio photos and rendered faces show a pill from straight above in even light. Here it is turned,
foreshortened, given the side wall that a slanted look shows, and lit like the scene around it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from pilltrack.pipeline.light import Light
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.surfaces import Field

DYED = 0.45  # share of pills in other dyes than their cut-out's: most of those are white
GELS = 0.25  # share of pills lit like glossy gels
LONG = 1.4  # times as long as wide: mostly a capsule, which may have two colours
CUTOUT_PX = 112  # longer side of a kept cut-out: as large as most pills in a scene become


def trimmed(cutout: Photo) -> Photo:
    """A cut-out (H, W, 4) as scenes take it: no empty border, at most CUTOUT_PX long."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(cutout[..., 3]))
    tight = cutout[top : top + height, left : left + width]
    scale = CUTOUT_PX / max(width, height, 1)
    if scale >= 1:
        return np.ascontiguousarray(tight)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Photo = cv2.resize(tight, size, interpolation=cv2.INTER_AREA)
    return small


def turned(cutout: Photo, length_px: float, squeeze: float, rng: np.random.Generator) -> Field:
    """A cut-out at its size and angle: (h, w, 4) float32, colours premultiplied, opacity 0 to 1."""
    height, width = cutout.shape[:2]
    scale = length_px / max(height, width)
    alpha = cutout[..., 3:].astype(np.float32) / np.float32(255)
    colours = cutout[..., :3].astype(np.float32)
    if rng.random() < DYED:
        colours = _dyed(colours, alpha, rng)
    source = np.concatenate([colours * alpha, alpha], axis=2).astype(np.float32)
    if scale < 0.75:
        small = (max(2, round(width * scale * 1.3)), max(2, round(height * scale * 1.3)))
        source = cv2.resize(source, small, interpolation=cv2.INTER_AREA).astype(np.float32)
    height_s, width_s = source.shape[:2]
    scale = length_px / max(height_s, width_s)
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.diag([1, squeeze]) @ turn * scale
    reach = np.abs(matrix) @ np.array([width_s, height_s]) / 2 + 1.5
    size = np.ceil(2 * reach).astype(int)
    middle = (size - 1) / 2 - matrix @ np.array([width_s - 1, height_s - 1]) / 2
    placed: Field = cv2.warpAffine(
        source, np.hstack([matrix, middle[:, None]]), (int(size[0]), int(size[1]))
    ).astype(np.float32)
    return _with_wall(placed, length_px, squeeze, rng)


def lit(
    colours: Field,
    opacity: Field,
    light: Light,
    lift: float,
    length_px: float,
    rng: np.random.Generator,
) -> Field:
    """Premultiplied colours in the scene's light: a bright and a dark side, at times glare.

    A gel gathers the light: its far side is the bright one, and a streak runs along it.
    """
    dome = cv2.GaussianBlur(opacity, (0, 0), max(0.7, length_px * rng.uniform(0.04, 0.1)))
    step = max(1.0, 0.05 * length_px)
    move = np.array([[1, 0, -light.x * step], [0, 1, -light.y * step]], np.float32)
    slope = dome - cv2.warpAffine(dome, move, dome.shape[1::-1])
    is_gel = rng.random() < GELS
    relief = rng.uniform(-0.9, 0.3) if is_gel else rng.uniform(0.1, 1)
    brightest = float(colours.sum((0, 1)).max()) / max(float(opacity.sum()), 1.0)
    lift = min(lift, 235 / max(brightest, 1.0)) * rng.uniform(0.85, 1.1)
    gain = np.float32(lift) * (1 - np.float32(relief) * slope)
    lit = colours * gain[..., None]
    if is_gel or rng.random() < 0.4:
        glare = _glare(opacity, light, length_px, is_gel, rng)
        lit += (glare * opacity * np.float32(rng.uniform(40, 230)))[..., None]
    result: Field = np.minimum(lit, 255 * opacity[..., None]).astype(np.float32)
    return result


def axis_of(opacity: Field) -> float:
    """The angle of a pill's long axis, in radians."""
    moments = cv2.moments(opacity)
    return math.atan2(2 * moments["mu11"], moments["mu20"] - moments["mu02"]) / 2


def clearness(opacity: Field, rng: np.random.Generator) -> Field:
    """How clear a gel is at each pixel, (h, w, 1) 0 to 1: all of it, or a half with beads in it."""
    height, width = opacity.shape
    share = np.full((height, width), rng.uniform(0.2, 0.7), np.float32)
    if rng.random() < 0.5:
        angle = axis_of(opacity)
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        along = (columns - width / 2) * math.cos(angle) + (rows - height / 2) * math.sin(angle)
        share *= along > 0
        if rng.random() < 0.5:
            coarse = rng.random((max(2, height // 2), max(2, width // 2)), dtype=np.float32)
            share *= cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST) > 0.5
    return share[..., None]


def _glare(
    opacity: Field, light: Light, length_px: float, is_gel: bool, rng: np.random.Generator
) -> Field:
    """Where a lamp is mirrored, 0 to 1: a spot, or along a gel a streak."""
    height, width = opacity.shape
    spot = np.zeros((height, width), np.float32)
    off = rng.uniform(0.05, 0.25) * length_px
    long, wide, angle = rng.uniform(0.03, 0.3), rng.uniform(0.03, 0.12), rng.uniform(0, 180)
    if is_gel:
        angle = math.degrees(axis_of(opacity))
        long, wide, off = rng.uniform(0.1, 0.42), rng.uniform(0.01, 0.05), 0.4 * off
    at = (round(width / 2 + light.x * off), round(height / 2 + light.y * off))
    axes = (max(1, round(length_px * long)), max(1, round(length_px * wide)))
    cv2.ellipse(spot, at, axes, angle, 0, 360, [1.0], -1)
    blurred: Field = cv2.GaussianBlur(spot, (0, 0), max(0.5, 0.03 * length_px))
    return blurred


def _dyed(colours: Field, alpha: Field, rng: np.random.Generator) -> Field:
    """The shading of a pill in other dyes: one, or two halves, at times with a band between."""
    grey = colours.mean(axis=2, keepdims=True)
    shading = grey / max(float((grey * alpha).sum() / max(float(alpha.sum()), 1.0)), 1.0)
    height, width = grey.shape[:2]
    is_long = max(height, width) > LONG * min(height, width)
    along = np.linspace(0, 1, max(height, width), dtype=np.float32)
    dyes = np.tile(_dye(rng), (len(along), 1))
    if rng.random() < (0.6 if is_long else 0.05):
        seam = rng.uniform(0.35, 0.65)
        dyes[along > seam] = _dye(rng)
        if rng.random() < 0.3:
            dyes[np.abs(along - seam) < rng.uniform(0.02, 0.15)] = _dye(rng)
    painted = dyes[None, :, :] if width >= height else dyes[:, None, :]
    result: Field = np.clip(shading, 0, 2) * painted
    return np.minimum(result, np.float32(255)).astype(np.float32)


def _dye(rng: np.random.Generator) -> Field:
    """Any colour: white and pale to dark and strong; (3,) 0 to 255."""
    hue = rng.dirichlet([0.5, 0.5, 0.5])
    strength, value = rng.uniform(0, 1), 255 * rng.uniform(0.1, 1)
    mixed = (1 - strength) + strength * hue / hue.max()
    return np.asarray(value * mixed, np.float32)


def _with_wall(face: Field, length_px: float, squeeze: float, rng: np.random.Generator) -> Field:
    """The near side of a pill seen at a slant: its outline drawn out downwards, darker."""
    wall_px = round(0.3 * length_px * math.sqrt(1 - squeeze**2) * rng.uniform(0, 1))
    if wall_px < 1:
        return face
    face = np.pad(face, ((0, wall_px), (0, 0), (0, 0)))
    wall = face[..., 3]
    for step in range(1, wall_px + 1):
        wall = np.maximum(wall, np.roll(face[..., 3], step, axis=0))
    colour = face.sum((0, 1)) / max(float(face[..., 3].sum()), 1.0)
    colour[:3] *= rng.uniform(0.5, 0.95)
    rest = (wall * (1 - face[..., 3]))[..., None]
    whole: Field = (face + rest * colour).astype(np.float32)
    return whole
