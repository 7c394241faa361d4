"""The geometry of a pill's face: outline, relief and imprint, in millimetres.

A `Body` says what the pill is shaped like. `face_relief` turns it, and what is pressed into one
`Face`, into a height map seen from above; `imprint_mask` draws the letters that are pressed or
printed. Height maps share one resolution, so a bigger pill is a bigger array.
The arrays are read-only and kept for the next photo of the same pill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.surfaces import Field

Shape = Literal[
    "round", "oval", "caplet", "capsule", "softgel", "diamond",
    "triangle", "square", "pentagon", "hexagon",
]  # fmt: skip
Profile = Literal["flat", "bevel", "convex", "roll"]  # roll: a half cylinder with round ends
Score = Literal["none", "half", "cross"]
Technique = Literal["debossed", "printed"]

PX_PER_MM = 13.0
MARGIN_MM = 0.4
CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
SEAM_SHARE = 0.04  # where a capsule's cap ends, right of the middle, of its length
LOGOS = ("ring", "triangle", "diamond", "chevron", "bars", "wave", "cross", "hexagon", "arch")


@dataclass(frozen=True)
class Body:
    """A pill without imprint: outline, size and how its face is curved."""

    shape: Shape
    length_mm: float
    width_mm: float
    profile: Profile
    edge_mm: float  # width of the rounded or bevelled edge
    dome_mm: float  # how much higher the middle stands than the edge

    @property
    def thickness_mm(self) -> float:
        """Height above the table."""
        rolled = self.shape in ("capsule", "softgel")
        return self.width_mm if rolled else min(0.45 * self.width_mm, 2.2 + 2 * self.dome_mm)


@dataclass(frozen=True)
class Face:
    """What one side carries."""

    lines: tuple[str, ...] = ()  # at most two lines of letters and digits
    logo: str = ""  # one of LOGOS, or none; stands in front of or above the lines
    technique: Technique = "debossed"
    score: Score = "none"
    weight: int = 400  # of the letters, 250 to 800
    depth_mm: float = 0.16

    @property
    def text(self) -> str:
        """The imprint as a table would give it."""
        return " ".join([*([f"[{self.logo}]"] if self.logo else []), *self.lines])


@lru_cache(maxsize=8)
def depth_inside(body: Body) -> Field:
    """Distance from the outline in mm, positive inside: (H, W) float32 at PX_PER_MM."""
    x, y = body_grid(body)
    half_length, half_width = body.length_mm / 2, body.width_mm / 2
    depth: NDArray[Any]
    if body.shape == "round":
        depth = half_length - np.hypot(x, y)
    elif body.shape in ("oval", "softgel"):
        rim = np.hypot(x / half_length, y / half_width) + 1e-4
        depth = rim * (1 - rim) / np.hypot(x / half_length**2, y / half_width**2).clip(1e-6)
        depth = np.minimum(depth, half_width)
    elif body.shape in ("caplet", "capsule"):
        radius = np.full_like(x, half_width)
        if body.shape == "capsule":  # the body of the shell slides into its cap
            radius -= 0.035 * half_width * _ramp(-(x - body.length_mm * SEAM_SHARE) / 0.12 + 0.5)
        straight = half_length - half_width
        depth = radius - np.hypot(np.maximum(np.abs(x) - straight, 0), y)
    else:
        depth = _inside_sides(x, y, body)
    return _kept(depth)


@lru_cache(maxsize=8)
def face_relief(body: Body, face: Face) -> Field:
    """Height of one face above its rim in mm: (H, W) float32, 0 outside the outline."""
    depth = depth_inside(body)
    inside = depth.clip(0)
    middle = float(inside.max())
    share = (inside / middle).clip(0, 1)  # 0 at the rim, 1 in the middle
    rim = 1 - (inside / body.edge_mm).clip(0, 1)
    if body.profile == "roll":
        height = np.sqrt((middle**2 - (middle - inside) ** 2).clip(0))
    elif body.profile == "bevel":
        height = body.edge_mm * (1 - rim) + body.dome_mm * (1 - (1 - share) ** 2)
    else:
        height = body.edge_mm * np.sqrt(1 - rim**2) + body.dome_mm * (1 - (1 - share) ** 2)
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), 0.09 * PX_PER_MM)
    if face.technique == "debossed":
        height -= face.depth_mm * _pressed(imprint_mask(body, face))
    height -= min(0.35, 0.12 * body.width_mm) * _score(body, face)
    return _kept(height)


@lru_cache(maxsize=8)
def imprint_mask(body: Body, face: Face) -> Field:
    """Where the imprint is, (H, W) float32, 0 to 1; all 0 for a face without letters or logo."""
    x, _ = body_grid(body)
    canvas = np.zeros(x.shape, np.uint8)
    for (left, top, width, height), item in zip(_boxes(body, face), _items(face), strict=True):
        box = (left * PX_PER_MM, top * PX_PER_MM, width * PX_PER_MM, height * PX_PER_MM)
        _draw_item(canvas, item, box, face.weight)
    return _kept(canvas.astype(np.float32) / np.float32(255))


@lru_cache(maxsize=8)
def body_grid(body: Body) -> tuple[Field, Field]:
    """Coordinates in mm from the pill's middle, x along its length: two (H, W) float32."""
    axes = []
    for extent in (body.length_mm, body.width_mm):
        n_px = math.ceil((extent + 2 * MARGIN_MM) * PX_PER_MM)
        axes.append((np.arange(n_px, dtype=np.float32) + 0.5 - n_px / 2) / np.float32(PX_PER_MM))
    x, y = np.meshgrid(axes[0], axes[1])
    return _kept(x), _kept(y)


def _inside_sides(x: Field, y: Field, body: Body) -> NDArray[Any]:
    """Inside of straight sides with round corners: a smooth minimum of the sides' distances."""
    if body.shape == "diamond":
        slope = math.atan2(body.length_mm, body.width_mm)
        angles = [slope, math.pi - slope, math.pi + slope, -slope]
        reach = body.length_mm / 2 * math.cos(slope) * 1.06
    else:
        n = CORNERS[body.shape]
        # A pentagon and a triangle stand on a side; the outline fills its box in length.
        angles = [math.pi / 2 + 2 * math.pi * k / n for k in range(n)]
        reach = body.length_mm / 2 * {3: 0.62, 4: 0.99, 5: 0.88, 6: 0.93}[n]
        if n == 3:
            y = y + 0.12 * body.length_mm
    sharpness = 9.0 / body.length_mm * (1.6 if body.shape == "square" else 1.0)
    total = np.zeros_like(x)
    for angle in angles:
        outward = x * math.cos(angle) + y * math.sin(angle) - reach
        total += np.exp(np.minimum(sharpness * outward, 60))
    return -np.log(total) / sharpness


def _pressed(mask: Field) -> Field:
    """Round the walls and the floor of a pressed imprint."""
    pressed: Field = cv2.GaussianBlur(mask, (0, 0), 0.075 * PX_PER_MM)
    return pressed


def _score(body: Body, face: Face) -> Field:
    """V-shaped break lines, 0 to 1: across the length; a cross on the second."""
    x, y = body_grid(body)
    half = 0.045 * body.width_mm + 0.12
    groove = np.zeros_like(x)
    if face.score != "none":
        across = x if body.length_mm > 1.15 * body.width_mm else y
        groove = (1 - np.abs(across) / half).clip(0)
        if face.score == "cross":
            groove = np.maximum(groove, (1 - np.abs(x if across is y else y) / half).clip(0))
    result: Field = groove.astype(np.float32)
    return result


def _items(face: Face) -> list[str]:
    return [*([f"logo:{face.logo}"] if face.logo else []), *face.lines]


def _boxes(body: Body, face: Face) -> list[tuple[float, float, float, float]]:
    """Where each item of an imprint stands: (left, top, width, height) in mm.

    On long pills the items stand side by side, on round ones above each other; a score line
    keeps its strip free.
    """
    items = _items(face)
    if not items:
        return []
    middle_x, middle_y = body.length_mm / 2 + MARGIN_MM, body.width_mm / 2 + MARGIN_MM
    wide, high = {
        "round": (0.66, 0.62), "oval": (0.64, 0.5), "softgel": (0.55, 0.42),
        "caplet": (0.76, 0.52), "capsule": (0.74, 0.46), "diamond": (0.5, 0.42),
        "triangle": (0.42, 0.4), "square": (0.7, 0.66), "pentagon": (0.58, 0.52),
        "hexagon": (0.62, 0.56),
    }[body.shape]  # fmt: skip
    if face.score != "none" and body.length_mm < 1.15 * body.width_mm:
        high *= 1.15  # above and below the break line
    width, height = wide * body.length_mm, high * body.width_mm
    if body.shape == "triangle":
        middle_y -= 0.05 * body.length_mm
    long = body.length_mm > 1.5 * body.width_mm
    apart = face.score != "none" or body.shape == "capsule"
    slots = max(len(items), 2) if apart else len(items)
    gap = 0.16 if apart else 0.07
    boxes = []
    for index in range(len(items)):
        if long:
            each = width * (1 - gap * (slots - 1)) / slots
            left = middle_x - width / 2 + index * (each + gap * width)
            boxes.append((left, middle_y - height / 2, each, height))
        else:
            each = height * (1 - gap * (slots - 1)) / slots
            top = middle_y - height / 2 + index * (each + gap * height)
            boxes.append((middle_x - width / 2, top, width, each))
    return boxes


def _draw_item(
    canvas: NDArray[np.uint8], item: str, box: tuple[float, float, float, float], weight: int
) -> None:
    left, top, width, height = box
    if item.startswith("logo:"):
        side = min(width, height)
        _draw_logo(canvas, item[5:], (left + width / 2, top + height / 2), side * 0.48, weight)
        return
    text = item.replace("0", "O")  # the font's zero is slashed, a pill's is not
    font = _font()
    size = 100
    ink = cv2.getTextSize((0, 0), text, (0, 0), font, size, weight, cv2.PUT_TEXT_ALIGN_LEFT)
    size = max(6, int(min(size * width / max(ink[2], 1), size * height / max(ink[3], 1))))
    ink = cv2.getTextSize((0, 0), text, (0, 0), font, size, weight, cv2.PUT_TEXT_ALIGN_LEFT)
    origin = (
        round(left + (width - ink[2]) / 2 - ink[0]),
        round(top + (height - ink[3]) / 2 - ink[1]),
    )
    cv2.putText(canvas, text, origin, 255, font, size, weight, cv2.PUT_TEXT_ALIGN_LEFT)


def _draw_logo(
    canvas: NDArray[np.uint8], logo: str, centre: tuple[float, float], radius: float, weight: int
) -> None:
    stroke = max(1, round(radius * (0.12 + weight / 4000)))
    turn = {"triangle": -90.0, "diamond": 0.0, "hexagon": 30.0}
    corners = {"triangle": 3, "diamond": 4, "hexagon": 6, "ring": 40}
    u = np.linspace(-1, 1, 24)
    paths: list[NDArray[np.float64]]
    if logo in corners:
        angles = np.radians(
            turn.get(logo, 0.0) + np.arange(corners[logo] + 1) * 360 / corners[logo]
        )
        paths = [np.stack([np.cos(angles), np.sin(angles)], 1)]
    elif logo == "chevron":
        paths = [np.array([[-0.8, 0.1 + k], [0.0, -0.7 + k], [0.8, 0.1 + k]]) for k in (0.0, 0.6)]
    elif logo == "bars":
        paths = [np.array([[k, -0.8], [k - 0.3, 0.8]]) for k in (-0.5, 0.15, 0.8)]
    elif logo == "wave":
        paths = [np.stack([u, 0.3 * np.sin(u * math.pi) + k], 1) for k in (-0.35, 0.35)]
    elif logo == "arch":
        paths = [np.stack([k * u, 0.7 - k * 1.4 * np.sqrt(1 - u**2)], 1) for k in (0.55, 1.0)]
    else:
        paths = [np.array([[-0.8, 0.0], [0.8, 0.0]]), np.array([[0.0, -0.8], [0.0, 0.8]])]
    for path in paths:
        points = np.round((path * radius + np.array(centre)) * 16).astype(np.int32)[:, None]
        cv2.polylines(canvas, [points], False, 255, stroke, cv2.LINE_AA, 4)


def _kept(field: NDArray[Any]) -> Field:
    """A float32 array that may lie in a cache: nobody writes to it."""
    kept: Field = np.ascontiguousarray(field, np.float32)
    kept.setflags(write=False)
    return kept


def _ramp(value: NDArray[Any]) -> NDArray[Any]:
    return value.clip(0, 1)


@lru_cache(maxsize=1)
def _font() -> Any:
    return cv2.FontFace("sans")
