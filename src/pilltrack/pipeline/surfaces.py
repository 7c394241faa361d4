"""What a pill lies on: drawn counter tops, paper, cloth, palms, trays.

Each surface is a base colour, a few layers of smooth noise enlarged from small arrays, and the
marks that make it what it is (grain, ruled lines, weave, creases, speckles). Nothing is loaded
from disk, and one surface of 160 px takes about a millisecond, so training can draw a new one
for every photo.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

# How often a capture lies on what: paper, counters and hands are where people put pills.
SURFACE_SHARES = {
    "ruled_paper": 0.17,
    "paper": 0.12,
    "granite": 0.16,
    "palm": 0.16,
    "mat": 0.13,
    "wood": 0.09,
    "cloth": 0.06,
    "tray": 0.06,
    "counter": 0.05,
}


def draw_surface(size_px: int, rng: np.random.Generator, kind: str | None = None) -> Field:
    """A surface without a pill, evenly lit: (size_px, size_px, 3) float32 RGB, 0 to 255.

    `kind` is a key of SURFACE_SHARES; without one it is drawn by those shares. Raises KeyError
    for an unknown kind.

    >>> draw_surface(32, np.random.default_rng(0), "wood").shape
    (32, 32, 3)
    """
    if kind is None:
        kinds, shares = list(SURFACE_SHARES), np.array(list(SURFACE_SHARES.values()))
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    draw = {
        "ruled_paper": _ruled_paper,
        "paper": _paper,
        "granite": _granite,
        "palm": _palm,
        "mat": _mat,
        "wood": _wood,
        "cloth": _cloth,
        "tray": _tray,
        "counter": _counter,
    }[kind]
    surface: Field = np.clip(draw(size_px, rng), 0, 255)
    return surface


def cloud(size_px: int, cells: int, rng: np.random.Generator) -> Field:
    """Smooth noise (size_px, size_px) float32, about zero mean and unit spread, `cells` across."""
    coarse = rng.standard_normal((cells + 2, cells + 2), dtype=np.float32)
    large = cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    field: Field = large
    return field


def _paper(size_px: int, rng: np.random.Generator) -> Field:
    base = rng.uniform(175, 238) * np.array([1, rng.uniform(0.97, 1), rng.uniform(0.9, 1.0)])
    tone = 3 * cloud(size_px, 3, rng) + rng.uniform(0.5, 3) * cloud(size_px, size_px // 2, rng)
    page = _tinted(base, tone)
    if rng.random() < 0.3:
        _write(page, rng, ink=base * rng.uniform(0.25, 0.6))
    return page


def _ruled_paper(size_px: int, rng: np.random.Generator) -> Field:
    page = _paper(size_px, rng)
    base = page.mean((0, 1))
    ink = base * np.array([rng.uniform(0.45, 0.75), rng.uniform(0.5, 0.78), rng.uniform(0.6, 0.95)])
    angle, spacing = rng.uniform(0, math.pi), size_px * rng.uniform(0.25, 0.75)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    middle = np.array([size_px / 2, size_px / 2]) + across * rng.uniform(0, spacing)
    thickness = max(1, round(size_px * rng.uniform(0.004, 0.016)))
    for line in range(-4, 5):
        centre = middle + across * spacing * line
        _stroke(
            page,
            np.array([centre - along * 2 * size_px, centre + along * 2 * size_px]),
            ink,
            thickness,
        )
    if rng.random() < 0.55:
        _write(page, rng, ink=base * rng.uniform(0.2, 0.5), angle=angle)
    return page


def _granite(size_px: int, rng: np.random.Generator) -> Field:
    base = rng.uniform(120, 205) * np.array([1, rng.uniform(0.94, 0.99), rng.uniform(0.82, 0.98)])
    tone = rng.uniform(1, 5) * cloud(size_px, 4, rng)
    for cells, depth in ((size_px // 8, 12), (size_px // 4, 16), (size_px // 2, 12)):
        grain = cloud(size_px, max(2, int(cells * rng.uniform(0.6, 1.4))), rng)
        tone += rng.uniform(0.3, 1) * depth * np.clip(np.abs(grain) - 0.9, 0, 1.2) * np.sign(grain)
    return _tinted(base, tone)


def _palm(size_px: int, rng: np.random.Generator) -> Field:
    depth = rng.beta(1.2, 2.2)  # 0 light skin, 1 dark skin
    light, dark = np.array([222, 168, 140]), np.array([128, 82, 60])
    base = (light * (1 - depth) + dark * depth) * rng.uniform(0.85, 1.08)
    pores = rng.uniform(1, 2.5) * cloud(size_px, size_px // 3, rng)
    skin = _tinted(base, 4 * cloud(size_px, 2, rng) + pores)
    flush = 2.5 * cloud(size_px, 3, rng)
    skin[..., 1:] -= flush[..., None]
    for _ in range(int(rng.integers(1, 6))):
        start = rng.uniform(-0.2, 1.2, 2) * size_px
        path = _wander(start, rng.uniform(0, 2 * math.pi), size_px * 0.16, 8, 0.18, rng)
        crease = np.zeros((size_px, size_px), np.float32)
        _stroke(crease, path, 1.0, max(1, round(size_px * rng.uniform(0.006, 0.02))))
        crease = cv2.GaussianBlur(crease, (0, 0), size_px * rng.uniform(0.004, 0.012))
        depth = rng.uniform(6, 26) / max(float(crease.max()), 0.3)
        skin -= (depth * crease)[..., None] * np.array([0.7, 1, 1], np.float32)
    return skin


def _mat(size_px: int, rng: np.random.Generator) -> Field:
    base = rng.uniform(35, 110) * np.array([rng.uniform(0.88, 1.03), 1, rng.uniform(0.98, 1.15)])
    fuzz = rng.uniform(2, 7) * cloud(size_px, size_px // 2, rng)
    return _tinted(base, fuzz + 4 * cloud(size_px, size_px // 8, rng))


def _wood(size_px: int, rng: np.random.Generator) -> Field:
    base = np.array([[196, 152, 104], [150, 104, 66], [104, 70, 46], [214, 184, 146]], np.float64)
    colour = base[int(rng.integers(4))] * rng.uniform(0.85, 1.1)
    across, _ = _coordinates(size_px, rng.uniform(0, math.pi))
    bent = across + rng.uniform(0.004, 0.02) * cloud(size_px, 2, rng)
    streaks = cv2.GaussianBlur(rng.standard_normal((512, 1), dtype=np.float32), (1, 3), 0)[:, 0]
    grain = streaks[((bent + 1.5) * rng.uniform(60, 150)).astype(np.int32) % 512]
    rings = np.sin(2 * math.pi * (rng.uniform(1, 5) * bent + 0.3 * cloud(size_px, 2, rng)))
    fibres = 1.5 * cloud(size_px, size_px // 3, rng)
    return _tinted(colour, 10 * grain + 3 * rings + fibres)


def _cloth(size_px: int, rng: np.random.Generator) -> Field:
    base = rng.uniform(70, 215) * rng.uniform(0.75, 1.0, 3)
    warp, weft = _coordinates(size_px, rng.uniform(0, math.pi))
    threads = 2 * math.pi * rng.uniform(14, 45)
    weave = np.sin(threads * warp) * np.sin(threads * weft)
    folds = 12 * cloud(size_px, 3, rng)
    return _tinted(base, 6 * weave + 4 * cloud(size_px, size_px // 3, rng) + folds)


def _tray(size_px: int, rng: np.random.Generator) -> Field:
    colours = [(84, 120, 172), (104, 150, 132), (225, 225, 228), (170, 172, 176), (176, 112, 104)]
    base = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.8, 1.05)
    tray = _tinted(base, 5 * cloud(size_px, 2, rng) + 0.8 * cloud(size_px, size_px // 2, rng))
    if rng.random() < 0.4:  # the rim
        across, _ = _coordinates(size_px, rng.uniform(0, 2 * math.pi))
        rim = np.clip((across - rng.uniform(0.3, 0.48)) * 30, 0, 1)
        tray *= 1 - rng.uniform(-0.15, 0.4) * rim[..., None]
    return tray


def _counter(size_px: int, rng: np.random.Generator) -> Field:
    base = rng.uniform(60, 235) * rng.uniform(0.86, 1.0, 3)
    return _tinted(base, 6 * cloud(size_px, 2, rng) + 1.2 * cloud(size_px, size_px // 2, rng))


def _tinted(base: NDArray[np.float64], tone: Field) -> Field:
    """A base colour made lighter and darker by `tone` grey levels, keeping its hue."""
    gain = 1 + tone / np.float32(max(40.0, float(base.mean())))
    return gain[..., None] * base.astype(np.float32)


def _write(
    page: Field, rng: np.random.Generator, ink: NDArray[np.float64], angle: float | None = None
) -> None:
    """A line or two of illegible handwriting."""
    size_px = page.shape[0]
    heading = rng.uniform(0, 2 * math.pi) if angle is None else angle
    letter = size_px * rng.uniform(0.04, 0.09)
    n_knots = int(rng.integers(14, 36))
    knots = np.stack([np.cumsum(rng.uniform(-0.15, 0.75, n_knots)), rng.beta(0.5, 0.9, n_knots)])
    knots[1] *= np.where(rng.random(n_knots) < 0.2, 1.7, 0.8)  # l, t, h
    smooth = cv2.resize(knots, (n_knots * 5, 2), interpolation=cv2.INTER_CUBIC) * letter
    along, height = smooth
    x, y = math.cos(heading), math.sin(heading)
    start = rng.uniform(-0.1, 0.9, 2) * size_px
    path = np.stack([start[0] + along * x - height * y, start[1] + along * y + height * x], 1)
    for word in np.array_split(path, int(rng.integers(2, 5))):
        _stroke(page, word, ink, max(1, round(size_px * 0.008)))


def _stroke(
    canvas: Field, path: NDArray[np.float64], colour: float | NDArray[np.float64], thickness: int
) -> None:
    """An antialiased polyline; cv2 antialiases only uint8, so it is blended through a mask."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    points = np.round(path * 16).astype(np.int32)[:, None]
    cv2.polylines(mask, [points], False, 255, thickness, cv2.LINE_AA, 4)
    touched = mask > 0
    weight = mask[touched].astype(np.float32) / 255
    if canvas.ndim == 3:
        ink = np.asarray(colour, np.float32)
        canvas[touched] += weight[:, None] * (ink - canvas[touched])
    else:
        canvas[touched] += weight * (np.float32(colour) - canvas[touched])


def _wander(
    start: NDArray[np.float64],
    heading: float,
    step: float,
    n_steps: int,
    turn: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    headings = heading + np.cumsum(rng.normal(0, turn, n_steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * step
    return start + np.cumsum(moves, axis=0)


def _coordinates(size_px: int, angle: float) -> tuple[Field, Field]:
    """Centred coordinates in frames (-0.5 to 0.5 at no rotation), turned by `angle` radians."""
    x, y = _grid(size_px)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


@lru_cache(maxsize=8)
def _grid(size_px: int) -> tuple[Field, Field]:
    line = ((np.arange(size_px) + 0.5) / size_px - 0.5).astype(np.float32)
    x: Field = np.tile(line, (size_px, 1))
    y: Field = np.ascontiguousarray(x.T)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y
