"""A studio photo as the top of a body: seen at a slant, with its near side, lit anew.

A studio photo shows a pill from straight above, and its light is part of the picture. A network
that knows a pill by one such photo learns that light with it; a phone sees the pill lit otherwise,
and thick tablets from the side. So here the photo is only the colour of a body's top:

    shape guessed -> slant -> placed -> studio's light off -> lit -> drawn out down to its foot

Shape and polish are a guess: domed, flat with a bevel, or round like a capsule, matt or shiny. They
follow from the photo's pixels alone, since a pill keeps them from capture to capture. Another photo
of the pill, of its other side too, has its own.
"""

from __future__ import annotations

import math
import zlib
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.light import Light, lit_relief
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.placing import Laid, Photo, moved, shift_in_frame, warped
from pilltrack.pipeline.surfaces import Field

_STEEPEST = math.radians(58)  # slant of the camera; half of all bodies are seen at less than 21
_LONG = 1.7  # times as long as wide: more often than not a capsule or a caplet, round across
_RINGS = 8  # of equal depth inside the outline, on which the studio's light is measured
_GLOSS = {0.0: 0.3, 0.08: 0.3, 0.25: 0.25, 0.6: 0.15}  # how strong: how often


class _Outline(NamedTuple):
    """Of a photo's pill, in pixels of the photo."""

    points: NDArray[np.float64]  # (P, 2)
    length: float
    width: float


class _Guess(NamedTuple):
    """What the photo does not show: how a body rises from its outline, and how it shines."""

    kind: Literal["round", "domed", "flat"]
    rise: float  # from its outline to its top, in halves of its width
    bevel: float  # of flat ones: how far inside the outline it ends
    thickness: float  # of the side below, of round ones of all, in widths
    gloss: float  # 0 matt
    sharpness: float  # of the lamp's mirror image, an exponent

    def thickness_seen(self, slant: float) -> float:
        """So much of the side shows at a slant, in widths; what is round shows its roundness."""
        return math.tan(slant / 2) if self.kind == "round" else self.thickness


class _View(NamedTuple):
    """A photo's place in the frame, seen at a slant."""

    homography: NDArray[np.float64]  # (3, 3), photo -> frame
    scale: float
    drop: tuple[float, float]  # from the top to the foot, in frame pixels
    eye: tuple[float, float, float]  # unit vector towards the camera


def lay_body(
    photo: Photo,
    alpha: Photo,
    size_px: int,
    light: Light,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> Laid:
    """A studio photo (H, W, 3) with `alpha` (H, W) as the top of a body in a frame of `size_px`.

    Its length, with the side that shows, fills a share of the frame drawn from `settings.scale`.
    `settings.clip` says how far out of the frame it may be, `perspective` how far its corners
    move beside the slant, `light` how much brighter than in the studio it may be.
    """
    outline = _outline(alpha)
    return _laid_as(_guess(photo, outline), photo, alpha, outline, size_px, light, settings, rng)


def _laid_as(
    shape: _Guess,
    photo: Photo,
    alpha: Photo,
    outline: _Outline,
    size_px: int,
    light: Light,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> Laid:
    slant = _STEEPEST * rng.uniform(0, 1) ** 1.5
    thickness = shape.thickness_seen(slant) * outline.width
    view = _view(outline.points, size_px, slant, thickness, settings, rng)
    top, opacity = warped(photo, alpha, view.homography, view.scale, size_px)
    half_px = 0.5 * outline.width * view.scale
    _take_off_light(top, _depth(opacity, half_px), rng.uniform(0.3, 1))
    # Studio photos are exposed for the background: white pills are grey there.
    top *= np.float32(1 + settings.light * rng.uniform(0, 1.3))
    is_round = shape.kind == "round"
    side = _side(top, opacity, view.drop, is_round, light, rng)
    foot = moved(opacity, *view.drop)
    if is_round:  # no edge parts its side from its top
        top, opacity = _over(top, opacity, side)
    relief = half_px * _height(_depth(opacity, half_px), shape)
    softness = max(0.8, 0.06 * half_px)
    relief = cv2.GaussianBlur(relief, (0, 0), softness)
    _light_anew(top, opacity, relief, shape, light, view.eye, rng.uniform(0.4, 1))
    if not is_round:
        top, opacity = _over(top, opacity, side)
    return Laid(top, opacity, foot, shape.thickness * outline.width * view.scale)


def _depth(opacity: Field, half_px: float) -> Field:
    """How far inside the outline each pixel is (S, S), in halves of the pill's width, at most 1."""
    inside = (opacity > 0.5).astype(np.uint8)
    depth_px = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    depth: Field = (np.minimum(depth_px, half_px) / half_px).astype(np.float32)
    return depth


def _over(top: Field, opacity: Field, side: Field) -> tuple[Field, Field]:
    """A top (S, S, 3) with its opacity over a side (S, S, 4)."""
    seen = side * (1 - opacity)[..., None]
    return top + seen[..., :3], opacity + seen[..., 3]


def _outline(alpha: Photo) -> _Outline:
    """Of what is solid, or else of the photo."""
    solid = (alpha > 127).astype(np.uint8)
    lines, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    height, width = alpha.shape
    frame = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    points = np.concatenate([line[:, 0] for line in lines] or [frame]).astype(np.float64)
    sides = sorted(cv2.minAreaRect(points.astype(np.float32))[1])
    return _Outline(points + 0.5, float(sides[1]) + 1, float(sides[0]) + 1)


def _guess(photo: Photo, outline: _Outline) -> _Guess:
    """Always the same for the same pixels."""
    rng = np.random.default_rng(zlib.crc32(photo.tobytes()))
    kind, thickness, bevel = rng.random(), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.3)
    gloss = float(rng.choice(list(_GLOSS), p=list(_GLOSS.values())))
    sharpness = rng.uniform(10, 90)
    if outline.length > _LONG * outline.width and kind < 0.6:
        return _Guess("round", rng.uniform(0.7, 1), bevel, 1.0, gloss, sharpness)
    if kind < 0.75:
        return _Guess("domed", rng.uniform(0.1, 0.5), bevel, thickness, gloss, sharpness)
    return _Guess("flat", rng.uniform(0.05, 0.15), bevel, thickness, gloss, sharpness)


def _height(depth: Field, shape: _Guess) -> Field:
    """The height map (S, S) of a shape, in halves of its width, from its `depth`, 0 to 1."""
    if shape.kind == "round":
        profile = np.sqrt(np.maximum(0, 1 - (1 - depth) ** 2))
    elif shape.kind == "domed":
        profile = 1 - (1 - depth) ** 2
    else:
        profile = np.minimum(1, depth / np.float32(shape.bevel))
    height: Field = (np.float32(shape.rise) * profile).astype(np.float32)
    return height


def _view(
    points: NDArray[np.float64],
    size_px: int,
    slant: float,
    thickness: float,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> _View:
    """Where a body with this outline (P, 2) lies; `thickness` in pixels of its photo."""
    share = rng.uniform(*settings.scale)
    angle, axis_angle = rng.uniform(0, 2 * math.pi, 2)
    axis = np.array([math.cos(axis_angle), math.sin(axis_angle)])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    seen = (np.eye(2) - (1 - math.cos(slant)) * np.outer(axis, axis)) @ turn
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    reach = float((points.max(axis=0) - points.min(axis=0)).max()) + 1
    rim = (points - middle) @ seen.T
    drop = thickness * math.sin(slant) * axis
    body = np.concatenate([rim, rim + drop])
    length = max(cv2.minAreaRect(body.astype(np.float32))[1]) + 1
    scale = share * size_px / length
    off = scale * (body.min(axis=0) + body.max(axis=0)) / 2
    place = (0.5 + shift_in_frame(share, settings.clip, rng)) * size_px - off
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * reach
    jitter = rng.uniform(-1, 1, (4, 2)) * settings.perspective * 0.25 * reach
    target = (corners @ seen.T + jitter) * scale + place
    homography: NDArray[np.float64] = cv2.getPerspectiveTransform(
        (corners + middle).astype(np.float32), target.astype(np.float32)
    )
    return _View(
        homography,
        float(scale),
        (float(scale * drop[0]), float(scale * drop[1])),
        (math.sin(slant) * axis[0], math.sin(slant) * axis[1], math.cos(slant)),
    )


def _take_off_light(top: Field, depth: Field, share: float) -> None:
    """Even out, in place, by how much rings of equal `depth`, 0 to 1, differ in brightness.

    `share`, 0 to 1: how much of the difference goes. What changes along the pill stays, so a ring's
    brightness is its mean: the median of two colours is now one and now the other. Rings of the
    pill itself go with the light.
    """
    solid = depth > 0.02
    ring = np.minimum((depth * _RINGS).astype(np.uint8), _RINGS - 1)
    brightness = top.sum(axis=2)
    levels = np.full(_RINGS, np.nan)
    for number in range(_RINGS):
        inside = brightness[solid & (ring == number)]
        if len(inside) > 12:
            levels[number] = inside.mean()
    if np.isnan(levels).all():
        return
    usual = float(np.nanmedian(levels))
    levels = np.where(np.isnan(levels), usual, levels)
    gains = (usual / np.maximum(levels, 0.3 * usual + 1e-3)).clip(0.6, 1.8) ** share
    steps = np.interp(np.arange(256) / 255 * _RINGS - 0.5, np.arange(_RINGS), gains)
    top *= steps.astype(np.float32)[(depth * 255).astype(np.uint8)][..., None]


def _side(
    top: Field,
    opacity: Field,
    drop: tuple[float, float],
    is_round: bool,
    light: Light,
    rng: np.random.Generator,
) -> Field:
    """The side (S, S, 4) of a body, premultiplied: its unlit top, drawn out nearly to the foot.

    The nearer lies over the farther; darker towards the surface, and away from the lamp.
    """
    length = math.hypot(*drop)
    facing = (light.x * drop[0] + light.y * drop[1]) / max(length, 1e-6)
    facing /= math.sqrt(1 + light.height**2)
    shade = float(np.clip(0.72 + 0.35 * facing, 0.5, 1.05)) * rng.uniform(0.85, 1.05)
    side = np.dstack([top, opacity])
    side[..., :3] *= np.float32(1 if is_round else shade)
    np.minimum(side[..., :3], 255 * side[..., 3:], out=side[..., :3])  # blown out
    below = 0.75 * (shade if is_round else 1)  # at the foot, of the brightness at the rim
    # Each time twice as many copies: so many that none is a pixel from the next.
    doublings = math.ceil(math.log2(length)) if length > 1 else 0
    for number in range(doublings):
        part = 2.0 ** (number - doublings)
        copy = moved(side, drop[0] * part, drop[1] * part)
        copy[..., :3] *= np.float32(below**part)
        side += copy * (1 - side[..., 3:])
    return side


def _light_anew(
    top: Field,
    opacity: Field,
    height_px: Field,
    shape: _Guess,
    light: Light,
    eye: tuple[float, float, float],
    share: float,
) -> None:
    """The scene's light on a premultiplied top (S, S, 3), in place.

    `share`, 0 to 1: how much of the light's shading the top takes on.
    """
    diffuse, mirror = lit_relief(height_px, opacity, light, shape.sharpness, eye)
    top *= (1 + np.float32(share) * (diffuse - 1))[..., None]
    top += (mirror * np.float32(255 * shape.gloss) * opacity)[..., None]
    np.minimum(top, 255 * opacity[..., None], out=top)
