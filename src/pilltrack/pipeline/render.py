"""A photo of an invented pill: relief, material and light, through the camera of `capture`.

Each face of a pill is a height map and a colour map in millimetres, made once. For a photo both
are turned and placed in the frame; the slopes of the turned height map give the normals, so an
imprint pressed into the pill catches the same light that casts its shadow:

    face -> placed -> normals -> diffuse + hollows + gloss -> on a surface with shadows -> camera
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.capture import photograph
from pilltrack.pipeline.invented import InventedPill
from pilltrack.pipeline.light import Light, cast_shadows, draw_light, lit_relief, shade_unevenly
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.pillshape import (
    PX_PER_MM,
    SEAM_SHARE,
    body_grid,
    depth_inside,
    face_relief,
    imprint_mask,
)
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.surfaces import Field, draw_surface

SIZE_JITTER = 0.04  # the hand that holds the camera
CAMERA = CaptureParams(
    background_share=1.0,
    scale=(1.0, 1.0),
    perspective=0.03,
    shadow=0.6,
    light=0.3,
    colour_cast=0.07,
    blur_px=1.6,
    noise=0.02,
    jpeg_quality=(80, 95),
    clip=0.0,
    distant=0.0,
    body=0.0,
)


@dataclass(frozen=True)
class RenderedFace:
    """One face, flat on the table, at PX_PER_MM."""

    height_mm: Field  # (H, W)
    colour: Field  # (H, W, 4) RGB 0 to 255, premultiplied, and opacity 0 to 1
    gloss: float  # strength of the mirror image of the light, 0 to 1
    sharpness: float  # exponent: how small that image is
    see_through: float  # share of the surface that shows through
    thickness_mm: float
    frame_mm: float  # what the camera sees


@dataclass(frozen=True)
class Setting:
    """A place and its light: what the photos of one session share."""

    surface_seed: int
    light: Light
    shadow: float


def draw_setting(rng: np.random.Generator) -> Setting:
    """Draw a surface and a light."""
    return Setting(
        surface_seed=int(rng.integers(2**31)),
        light=draw_light(rng),
        shadow=CAMERA.shadow * float(rng.uniform(0.55, 1)),
    )


def render_face(
    pill: InventedPill, side: Literal["front", "back"], rng: np.random.Generator
) -> RenderedFace:
    """Relief and colours of one side of a pill; `rng` scatters the grains of this one tablet."""
    body, face = pill.body, pill.front if side == "front" else pill.back
    height = face_relief(body, face)
    x, _ = body_grid(body)
    opacity = (depth_inside(body) * np.float32(PX_PER_MM) + 0.5).clip(0, 1)
    colour = np.empty((*x.shape, 3), np.float32)
    colour[:] = np.float32(255) * np.array(_layer(pill, side), np.float32)
    if pill.finish == "shell":
        colour[x < body.length_mm * SEAM_SHARE] = np.float32(255) * np.array(
            pill.colours[1], np.float32
        )
    if pill.speckles > 0:
        _speckle(colour, pill.speckles, rng)
    if pill.finish == "matte":  # pressed powder
        grain = cv2.GaussianBlur(rng.standard_normal(x.shape, dtype=np.float32), (0, 0), 0.9)
        height = height + 0.012 * grain
        colour *= 1 + 0.012 * grain[..., None]
    if face.technique == "printed":
        ink = imprint_mask(body, face)[..., None] * np.float32(0.88)
        colour += ink * (255 * np.array(pill.ink, np.float32) - colour)
    gloss, sharpness = {
        "matte": (0.05, 8.0), "coated": (0.22, 28.0), "shell": (0.6, 70.0), "gel": (0.8, 90.0),
    }[pill.finish]  # fmt: skip
    see_through = 0.0
    if pill.finish == "gel":
        see_through = 0.45
    return RenderedFace(
        height_mm=np.ascontiguousarray(height * (opacity > 0), np.float32),
        colour=np.dstack([colour * opacity[..., None], opacity]).astype(np.float32),
        gloss=gloss,
        sharpness=sharpness,
        see_through=see_through,
        thickness_mm=body.thickness_mm,
        frame_mm=pill.frame_mm,
    )


def photograph_pill(
    face: RenderedFace, setting: Setting, size_px: int, rng: np.random.Generator
) -> Photo:
    """One photo of a face in a setting, turned and placed anew: (size_px, size_px, 3) uint8 RGB.

    The camera stands still: within SIZE_JITTER, look-alikes of two sizes keep their ratio.
    """
    place = _placement(face, size_px, rng)
    px_per_mm = size_px / face.frame_mm
    height: Field = cv2.warpPerspective(face.height_mm, place, (size_px, size_px)) * px_per_mm
    colour = cv2.warpPerspective(face.colour, place, (size_px, size_px))
    opacity: Field = np.ascontiguousarray(colour[..., 3])
    scene = draw_surface(size_px, np.random.default_rng(setting.surface_seed))
    light = setting.light
    thickness_px = face.thickness_mm * px_per_mm

    left, top, width, breadth = cv2.boundingRect((opacity > 0).astype(np.uint8))
    window = (slice(max(0, top - 8), top + breadth + 8), slice(max(0, left - 8), left + width + 8))
    below = scene[window].copy()
    cast_shadows(scene, opacity, light, thickness_px, setting.shadow * (1 - face.see_through / 2))
    if face.see_through:
        _focus_light(scene, colour, light, thickness_px, face.see_through)
    # From here on only the window around the pill matters; `scene[window]` is a view.
    height, opacity, pill = height[window], opacity[window], colour[window][..., :3]
    diffuse, mirror = lit_relief(height, opacity, light, face.sharpness)
    if face.see_through:
        pill = _see_through(pill, height, below, light, face.see_through)
    pill *= diffuse[..., None]
    pill += (mirror * np.float32(255 * face.gloss) * opacity)[..., None]
    scene[window] *= (1 - opacity)[..., None]
    scene[window] += pill
    shade_unevenly(scene, light, CAMERA.light, rng)
    return photograph(scene, CAMERA, rng)


def _layer(pill: InventedPill, side: str) -> tuple[float, float, float]:
    """A tablet in two colours is made of two layers, one for each face."""
    return pill.colours[0] if side == "front" or pill.finish == "shell" else pill.colours[1]


def _speckle(colour: Field, share: float, rng: np.random.Generator) -> None:
    """Grains darker or stronger in colour than the rest, covering about `share`."""
    noise = cv2.GaussianBlur(rng.standard_normal(colour.shape[:2], dtype=np.float32), (0, 0), 1.1)
    noise /= float(noise.std())
    limit = float(np.quantile(noise, 1 - share))
    grains = ((noise - limit) * 2).clip(0, 1)[..., None]
    mean = colour.mean((0, 1))
    saturated = mean - 0.55 * (mean.max() - mean) - 28
    colour += grains * (saturated.clip(0, 255) - colour) * np.float32(0.7)


def _placement(face: RenderedFace, size_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Face -> frame: homography (3, 3)."""
    height, width = face.height_mm.shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    centred = (corners - np.array([width, height]) / 2) / PX_PER_MM  # mm
    reach = math.hypot(*centred[0])
    scale = size_px / face.frame_mm * (1 + rng.uniform(-SIZE_JITTER, SIZE_JITTER))
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    jitter = rng.uniform(-1, 1, (4, 2)) * CAMERA.perspective * 0.5 * reach
    room = max(0.0, face.frame_mm / 2 - reach) * 0.6
    middle = size_px / 2 + rng.uniform(-room, room, 2) * scale
    target = (centred @ turn.T + jitter) * scale + middle
    matrix: NDArray[np.float64] = cv2.getPerspectiveTransform(
        corners.astype(np.float32), target.astype(np.float32)
    )
    return matrix


def _focus_light(
    scene: Field, colour: Field, light: Light, thickness_px: float, share: float
) -> None:
    """A gel is a lens: inside its shadow lies a bright spot of its own colour."""
    size_px = scene.shape[0]
    reach = 0.55 * thickness_px / max(light.height, 0.8)
    move = np.array([[1, 0, -light.x * reach], [0, 1, -light.y * reach]], np.float32)
    spot = cv2.warpAffine(colour, move, (size_px, size_px))
    core = cv2.GaussianBlur(spot, (0, 0), 0.22 * thickness_px)
    core *= (core[..., 3:] ** 2).clip(0, 1)
    scene += np.float32(0.5 * share) * core[..., :3]


def _see_through(pill: Field, height_px: Field, below: Field, light: Light, share: float) -> Field:
    """A gel: some of the table shows through, and the far side glows."""
    tint = pill / 255
    shown = cv2.GaussianBlur(below, (0, 0), 2.2) * tint
    dome = cv2.GaussianBlur(height_px, (0, 0), 4.5)
    slope_x = cv2.Sobel(dome, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(dome, cv2.CV_32F, 0, 1, scale=0.125)
    glow = 1 + 0.6 * (slope_x * light.x + slope_y * light.y).clip(-0.6, 1.2)
    mixed: Field = (1 - share) * pill + share * shown
    mixed *= glow[..., None]
    return mixed.astype(np.float32)
