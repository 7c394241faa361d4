"""Where the light comes from, the shadows it casts, and how a relief looks in it."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from pilltrack.pipeline.placing import moved
from pilltrack.pipeline.surfaces import Field

_AMBIENT = 0.5  # share of the light that comes from everywhere


class Light(NamedTuple):
    """Where the light comes from: unit vector (x, y) in the image plane, and its height.

    `height` is the tangent of the elevation: 0.5 is low evening light with long shadows, 3 a
    lamp overhead.
    """

    x: float
    y: float
    height: float


def draw_light(rng: np.random.Generator) -> Light:
    """A light from any side, between 30 and 75 degrees high."""
    angle = rng.uniform(0, 2 * math.pi)
    return Light(math.cos(angle), math.sin(angle), math.tan(math.radians(rng.uniform(30, 75))))


def cast_shadows(
    surface: Field, alpha: Field, light: Light, thickness_px: float, darkness: float
) -> None:
    """Darken `surface` (S, S, 3) in place below and behind a pill.

    `alpha` (S, S) float32, 0 to 1. A tight contact shadow surrounds the pill; a softer one falls
    away from the light, as long as the pill's `thickness_px` and the light's height make it.
    `darkness` is the share of light the deepest shadow takes, 0 to 1.
    """
    if darkness <= 0:
        return
    reach = min(thickness_px / light.height, 0.2 * surface.shape[0])
    softness = max(0.6, 0.3 * thickness_px)
    cast = moved(alpha, -light.x * reach, -light.y * reach)
    cast = cv2.GaussianBlur(cast, (0, 0), softness)
    near = 0.25 * thickness_px
    contact = moved(alpha, -light.x * near, -light.y * near)
    contact = cv2.GaussianBlur(contact, (0, 0), max(0.5, 0.12 * thickness_px))
    taken = np.float32(darkness) * np.maximum(0.75 * cast, contact)
    surface *= (1 - taken)[..., None]


def shade_unevenly(scene: Field, light: Light, unevenness: float, rng: np.random.Generator) -> None:
    """Light `scene` (S, S, 3) unevenly, in place: brighter towards the light, at times a shadow.

    `unevenness` is the largest relative difference between the middle and an edge, 0 to 1.
    """
    if unevenness <= 0:
        return
    slope = rng.uniform(0, unevenness)
    corners = np.array([-1.0, 0.0, 1.0])
    coarse = 1 + slope * (light.x * corners[None, :] + light.y * corners[:, None]) * 0.7
    coarse += rng.normal(0, 0.08 * unevenness, (3, 3))
    gain: Field = cv2.resize(
        coarse.astype(np.float32), scene.shape[1::-1], interpolation=cv2.INTER_LINEAR
    )
    scene *= gain[..., None]


def lit_relief(
    height_px: Field,
    opacity: Field,
    light: Light,
    sharpness: float,
    eye: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> tuple[Field, Field]:
    """A height map (H, W) in pixels, lit: diffuse (1 on a level surface) and mirrored (0 to 1).

    `opacity` (H, W), 0 to 1, is where there is a pill; `sharpness`, an exponent: how small the
    mirror image of the lamp is; `eye`, a unit vector, is where the camera is.
    """
    slope_x = cv2.Sobel(height_px, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height_px, cv2.CV_32F, 0, 1, scale=0.125)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)  # z of the normal
    length = math.sqrt(1 + light.height**2)
    lx, ly, lz = light.x / length, light.y / length, light.height / length
    towards = (lz - lx * slope_x - ly * slope_y) * up
    direct = towards.clip(0) / np.float32(0.35 + 0.65 * lz)
    level = lz / (0.35 + 0.65 * lz)
    diffuse = (_AMBIENT * (0.55 + 0.45 * up) + (1 - _AMBIENT) * direct) / (
        _AMBIENT + (1 - _AMBIENT) * level
    )
    # Hollows see less of the sky.
    hollow = cv2.GaussianBlur(height_px, (0, 0), 2.2) - height_px
    diffuse *= 1 - (0.10 * hollow).clip(-0.04, 0.3) * (opacity > 0.98)
    # Blinn's half vector between the lamp and the camera.
    hx, hy, hz = lx + eye[0], ly + eye[1], lz + eye[2]
    half = math.sqrt(hx**2 + hy**2 + hz**2)
    facing = ((hz - hx * slope_x - hy * slope_y) * up / half).clip(0, 1)
    lamp = facing**sharpness
    window = ((lamp - 0.35) * 2.2).clip(0, 1)  # a lamp has an edge
    mirror = 0.35 * lamp + 0.65 * window
    return diffuse.astype(np.float32), mirror.astype(np.float32)
