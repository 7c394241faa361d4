"""What lies around pills and is none: hands, sheets, keyboards, coins, buttons, pens, print.

`draw_backdrop` draws where the pills will lie; `add_clutter` puts things between them. Sizes are
given in lengths of the scene's typical pill, so that a coin is a coin beside any pill. Colours
are float32 RGB, 0 to 255; everything is drawn in place and lit flat, the caller photographs it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.light import Light, cast_shadows
from pilltrack.pipeline.surfaces import Field, draw_surface

Mask = NDArray[np.uint8]
Point = NDArray[np.float64]  # (2,) x, y in pixels

HAND_SHARE = 0.35  # of scenes whose pills lie in a hand
SHEET_SHARE = 0.4  # of scenes with a sheet, a cloth or a plate on the table
PLATE_SHARE = 0.2  # of those


def draw_backdrop(size_px: int, light: Light, rng: np.random.Generator) -> tuple[Field, Mask]:
    """A table, and on it at times a sheet, a device, a hand: (S, S, 3), and where pills may lie.

    The second array is (S, S) uint8, 255 where a pill would be put: on the hand if there is one.
    """
    scene = draw_surface(size_px, rng)
    if rng.random() < 0.25:  # the far side of the table, the floor, a sleeve
        lay(scene, _half_plane(size_px, rng), draw_surface(size_px, rng), light, 4, 0.4)
    if rng.random() < SHEET_SHARE:
        _add_sheet(scene, light, rng)
    if rng.random() < 0.2:
        _add_device(scene, light, rng)
    room: Mask = np.full((size_px, size_px), 255, np.uint8)
    if rng.random() < HAND_SHARE:
        room = _add_hand(scene, light, rng)
    return scene, room


def add_clutter(
    scene: Field, n_things: int, pill_px: float, light: Light, rng: np.random.Generator
) -> None:
    """Put `n_things` things that are no pills into the scene, in place."""
    draws = (
        _add_coin, _add_button, _add_pen, _add_print, _add_finger, _add_ruler, _add_cap,
        _add_cable, _add_glare, _add_crumbs, _add_card, _add_key, _add_ring,
    )  # fmt: skip
    for _ in range(n_things):
        draws[int(rng.integers(len(draws)))](scene, pill_px, light, rng)


def lay(
    scene: Field,
    mask: Mask,
    texture: Field | NDArray[np.float64],
    light: Light,
    thickness_px: float,
    darkness: float,
) -> None:
    """Lay a thing over `scene` (S, S, 3) in place, with its shadow.

    `mask` (S, S) uint8 is its outline, `texture` a surface (S, S, 3) or one colour (3,).
    """
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return
    pad = math.ceil(2 * thickness_px + 4)
    rows = slice(max(0, top - pad), top + height + pad)
    columns = slice(max(0, left - pad), left + width + pad)
    part: Field = scene[rows, columns]
    opacity = mask[rows, columns].astype(np.float32) / np.float32(255)
    cast_shadows(part, opacity, light, thickness_px, darkness)
    over = texture[rows, columns] if texture.ndim == 3 else texture.astype(np.float32)
    part += opacity[..., None] * (over - part)


def round_off(scene: Field, mask: Mask, light: Light, softness_px: float, strength: float) -> None:
    """Brighten a thing's side towards the light and darken the other, in place."""
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return
    window = (slice(top, top + height), slice(left, left + width))
    opacity = mask[window].astype(np.float32) / np.float32(255)
    dome = cv2.GaussianBlur(opacity, (0, 0), max(0.6, softness_px), borderType=cv2.BORDER_CONSTANT)
    step = max(1.0, 0.6 * softness_px)
    move = np.array([[1, 0, -light.x * step], [0, 1, -light.y * step]], np.float32)
    slope = dome - cv2.warpAffine(dome, move, dome.shape[1::-1])
    scene[window] *= (1 - np.float32(strength) * slope * opacity)[..., None]


def _add_hand(scene: Field, light: Light, rng: np.random.Generator) -> Mask:
    """An open hand, seen on its palm, reaching in from one side; returns the palm and fingers."""
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    width = size * rng.uniform(0.42, 0.95)  # of the palm
    heading = rng.uniform(0, 2 * math.pi)
    middle = size * (0.5 + rng.uniform(-0.15, 0.15, 2))
    ahead = np.array([math.cos(heading), math.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]]) * (1 if rng.random() < 0.5 else -1)
    gaps = np.zeros((size, size), np.uint8)
    palm = [(-0.62, -0.4), (-0.5, 0.42), (0.1, 0.5), (0.5, 0.46), (0.52, -0.46), (0.0, -0.5)]
    points = [middle + width * (a * ahead + b * aside) for a, b in palm]
    _smooth_polygon(mask, points, width * 0.16)
    wrist = middle - ahead * width
    _limb(mask, middle - ahead * 0.3 * width, wrist - ahead * width, width * 0.62)
    spread = rng.uniform(0.02, 0.16)
    roots = []
    for finger, reach in enumerate((0.72, 0.86, 0.8, 0.6)):
        offset = (finger - 1.5) * 0.25
        root = middle + width * (0.48 * ahead + offset * aside)
        way = heading + (finger - 1.5) * spread * _sign(aside, ahead)
        tip = root + width * reach * np.array([math.cos(way), math.sin(way)])
        _limb(mask, root, tip, width * 0.215)
        roots.append((root, tip))
    for (root, tip), (other_root, other_tip) in itertools.pairwise(roots):
        _limb(gaps, (root + other_root) / 2, (tip + other_tip) / 2, max(1.0, width * 0.015))
    thumb = middle + width * (-0.2 * ahead - 0.5 * aside)
    _limb(mask, thumb, thumb + width * (0.55 * ahead - rng.uniform(0.2, 0.5) * aside), width * 0.25)
    skin = draw_surface(size, rng, "palm")
    lay(scene, mask, skin, light, width * 0.12, rng.uniform(0.2, 0.7))
    round_off(scene, mask, light, width * 0.07, rng.uniform(0.1, 0.5))
    crease = cv2.GaussianBlur(gaps, (0, 0), max(0.8, width * 0.012)).astype(np.float32) / 255
    scene *= 1 - (crease * np.float32(rng.uniform(0.3, 0.7)) * (mask > 127))[..., None]
    inner = round(width * 0.06)
    cv2.erode(mask, np.ones((2 * inner + 1, 2 * inner + 1), np.uint8), mask)
    return mask


def _add_sheet(scene: Field, light: Light, rng: np.random.Generator) -> None:
    """A page, a cloth, a tray, perhaps with print or rings; round, it is a plate or a bowl."""
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    middle, heading = size * rng.uniform(0.2, 0.8, 2), rng.uniform(0, math.pi)
    half = size * rng.uniform(0.25, 0.7, 2)
    corners = _rectangle(middle, half, heading) + rng.uniform(-0.04, 0.04, (4, 2)) * size
    if rng.random() < PLATE_SHARE:
        _add_plate(scene, middle, size * rng.uniform(0.14, 0.45), light, rng)
        return
    cv2.fillPoly(mask, [_fixed(corners)], 255, cv2.LINE_AA, 4)
    kind = ("paper", "ruled_paper", "cloth", "mat", "tray")[int(rng.integers(5))]
    lay(scene, mask, draw_surface(size, rng, kind), light, rng.uniform(0.5, 5), 0.4)
    if rng.random() < 0.25:  # the wire of a notebook
        count, start, end = int(rng.integers(12, 30)), corners[0], corners[1]
        for place in np.linspace(0.02, 0.98, count):
            at = start + place * (end - start)
            cv2.ellipse(
                scene, _pixel(at), (max(1, size // 90), max(1, size // 160)),
                math.degrees(heading) + 90, 0, 300, [30.0, 30.0, 32.0], max(1, size // 200),
            )  # fmt: skip


def _add_plate(
    scene: Field, middle: Point, radius: float, light: Light, rng: np.random.Generator
) -> None:
    """A plate, a bowl, a cup from above: a rim, a hollow, at times with something in it."""
    size = scene.shape[0]
    mask, hollow, rest = (np.zeros((size, size), np.uint8) for _ in range(3))
    cv2.circle(mask, _pixel(middle), round(radius), 255, -1, cv2.LINE_AA)
    colour = _any_colour(rng) if rng.random() < 0.4 else np.full(3, rng.uniform(190, 250))
    lay(scene, mask, colour, light, radius * 0.1, rng.uniform(0.2, 0.6))
    inner = round(radius * rng.uniform(0.6, 0.9))
    cv2.circle(hollow, _pixel(middle), inner, 255, -1, cv2.LINE_AA)
    edge = max(1, round(radius * 0.03))  # a small white plate without one would be a pill
    cv2.circle(scene, _pixel(middle), inner, (colour * 0.85).tolist(), edge, cv2.LINE_AA)
    if rng.random() < 0.5:
        around = np.sort(rng.uniform(0, 2 * math.pi, 9))
        far = rng.uniform(0.2, 0.65, 9) * radius
        blob = middle + np.stack([np.cos(around) * far, np.sin(around) * far], 1)
        cv2.fillPoly(rest, [_fixed(blob)], 255, cv2.LINE_AA, 4)
        lay(scene, rest, draw_surface(size, rng), light, 1, 0.2)
    round_off(scene, hollow, light, radius * 0.08, rng.uniform(0.2, 1.0))
    round_off(scene, mask, light, radius * 0.05, -rng.uniform(0.2, 1.0))


def _add_device(scene: Field, light: Light, rng: np.random.Generator) -> None:
    """A phone or a keyboard at the border: dark, with round corners, with keys or a screen."""
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    heading = rng.uniform(0, 2 * math.pi)
    away = np.array([math.cos(heading), math.sin(heading)])
    half = size * np.array([rng.uniform(0.16, 0.3), rng.uniform(0.3, 0.6)])
    middle = size / 2 + away * size * rng.uniform(0.4, 0.65)
    _smooth_polygon(mask, list(_rectangle(middle, half * 0.94, heading)), size * 0.02)
    shade = rng.uniform(15, 60) if rng.random() < 0.7 else rng.uniform(150, 210)
    lay(scene, mask, np.full(3, shade), light, size * 0.01, 0.5)
    if rng.random() < 0.6:
        key = size * rng.uniform(0.025, 0.05)
        keys = np.zeros((size, size), np.uint8)
        across = np.array([-away[1], away[0]])
        for row in np.arange(-half[0] + key, half[0] - key, key * 1.15):
            for column in np.arange(-half[1] + key, half[1] - key, key * 1.15):
                at = middle + row * away + column * across
                cv2.fillPoly(
                    keys, [_fixed(_rectangle(at, np.full(2, key * 0.45), heading))], 255,
                    cv2.LINE_AA, 4,
                )  # fmt: skip
        lay(scene, keys, np.full(3, shade + rng.uniform(-25, 25)).clip(5), light, 1, 0.3)
    elif rng.random() < 0.5:
        screen = np.zeros((size, size), np.uint8)
        cv2.fillPoly(screen, [_fixed(_rectangle(middle, half * 0.85, heading))], 255)
        lay(scene, screen, draw_surface(size, rng), light, 0, 0)


def _add_coin(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    metals = [(176, 110, 74), (186, 182, 172), (196, 166, 96), (150, 148, 144), (110, 72, 50)]
    colour = np.array(metals[int(rng.integers(len(metals)))]) * rng.uniform(0.6, 1.15)
    radius = pill_px * rng.uniform(0.55, 1.1)
    mask, middle = _disc(scene, radius, rng)
    lay(scene, mask, colour, light, radius * 0.12, rng.uniform(0.3, 0.7))
    line = max(1, round(radius * 0.06))
    cv2.circle(scene, _pixel(middle), round(radius * 0.88), (colour * 0.7).tolist(), line)
    relief = np.zeros_like(mask)
    for _ in range(int(rng.integers(2, 5))):  # a head, an eagle, a number
        around = rng.uniform(0, 2 * math.pi, int(rng.integers(4, 8)))
        far = rng.uniform(0.1, 0.6, len(around)) * radius
        blob = middle + np.stack([np.cos(np.sort(around)) * far, np.sin(np.sort(around)) * far], 1)
        cv2.fillPoly(relief, [_fixed(blob)], 255, cv2.LINE_AA, 4)
    for angle in np.linspace(0, 2 * math.pi, int(rng.integers(10, 24)), endpoint=False):
        letter = middle + 0.75 * radius * np.array([math.cos(angle), math.sin(angle)])
        cv2.circle(relief, _pixel(letter), max(1, round(radius * 0.05)), 255, 1)
    round_off(scene, relief, light, radius * 0.06, -1.2)
    round_off(scene, mask, light, radius * 0.05, -rng.uniform(0.2, 1.0))


def _add_button(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    radius = pill_px * rng.uniform(0.35, 0.8)
    mask, middle = _disc(scene, radius, rng)
    colour = _any_colour(rng)
    lay(scene, mask, colour, light, radius * 0.25, rng.uniform(0.3, 0.7))
    hollow = np.zeros_like(mask)
    cv2.circle(hollow, _pixel(middle), round(radius * rng.uniform(0.55, 0.75)), 255, -1)
    round_off(scene, hollow, light, radius * 0.1, 0.8)
    count, turn = (2 if rng.random() < 0.4 else 4), rng.uniform(0, math.pi)
    for angle in np.arange(count) * 2 * math.pi / count + turn:
        hole = middle + 0.3 * radius * np.array([math.cos(angle), math.sin(angle)])
        cv2.circle(scene, _pixel(hole), max(1, round(radius * 0.13)), (colour * 0.2).tolist(), -1)


def _add_pen(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    start, heading = rng.uniform(-0.1, 1.1, 2) * size, rng.uniform(0, 2 * math.pi)
    ahead = np.array([math.cos(heading), math.sin(heading)])
    thickness = pill_px * rng.uniform(0.3, 0.7)
    end = start + ahead * pill_px * rng.uniform(7, 12)
    _limb(mask, start, end, thickness)
    colour = _any_colour(rng)
    lay(scene, mask, colour, light, thickness * 0.8, rng.uniform(0.3, 0.7))
    band = np.zeros_like(mask)
    cut = start + (end - start) * rng.uniform(0.2, 0.8)
    half = np.array([rng.uniform(0.15, 1.5), 0.5]) * thickness  # with round ends it would be a pill
    cv2.fillPoly(band, [_fixed(_rectangle(cut, half, heading))], 255, cv2.LINE_AA, 4)
    lay(scene, np.minimum(band, mask), _any_colour(rng), light, 0, 0)
    round_off(scene, mask, light, thickness * 0.3, rng.uniform(-0.8, -0.2))


def _add_print(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A few lines of print, and at times a printed disc or bar: flat, so without a shadow."""
    size = scene.shape[0]
    start, turn = rng.uniform(-0.1, 0.8, 2) * size, rng.uniform(-25, 25) + 90 * rng.integers(4)
    ink = _any_colour(rng) * (0.4 if rng.random() < 0.8 else 1.0)
    page = np.zeros((size, size), np.uint8)
    letter = pill_px * rng.uniform(0.15, 0.7)
    for line in range(int(rng.integers(1, 6))):
        codes = rng.integers(65, 91, int(rng.integers(3, 18)))
        text = "".join(chr(c) if rng.random() < 0.85 else " " for c in codes)
        at = (start[0], start[1] + line * letter * 1.7)
        face, weight = int(rng.integers(0, 8)), max(1, round(letter * rng.uniform(0.06, 0.2)))
        cv2.putText(page, text, _pixel(np.array(at)), face, letter / 22, 255, weight, cv2.LINE_AA)
    if rng.random() < 0.3:
        radius = max(2, round(pill_px * rng.uniform(0.2, 0.6)))
        line_px = max(1, round(radius * rng.uniform(0.1, 0.4)))
        cv2.circle(page, _pixel(rng.uniform(0, size, 2)), radius, 255, line_px)
    middle = (float(start[0]), float(start[1]))
    page = np.asarray(
        cv2.warpAffine(page, cv2.getRotationMatrix2D(middle, turn, 1), (size, size)), np.uint8
    )
    lay(scene, page, ink, light, 0, 0)


def _add_finger(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A finger pointing in from the border, with its nail."""
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    thickness = pill_px * rng.uniform(0.9, 1.8)
    heading = rng.uniform(0, 2 * math.pi)
    ahead = np.array([math.cos(heading), math.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]])
    tip = size / 2 + ahead * size * rng.uniform(0.15, 0.5) + aside * rng.uniform(-0.5, 0.5) * size
    _limb(mask, tip, tip + ahead * 2 * size, thickness)
    skin = draw_surface(size, rng, "palm")
    lay(scene, mask, skin, light, thickness * 0.4, rng.uniform(0.2, 0.6))
    round_off(scene, mask, light, thickness * 0.25, rng.uniform(-0.6, 0.4))
    if rng.random() < 0.7:
        nail = np.zeros_like(mask)
        at, axes = tip + ahead * thickness * 0.02, thickness * np.array([0.42, 0.3])
        turn = math.degrees(heading)
        cv2.ellipse(nail, _pixel(at), _pixel(axes), turn, 0, 360, 255, -1, cv2.LINE_AA)
        tone = skin.mean((0, 1)) * rng.uniform(0.95, 1.2) + np.array([12.0, 4.0, 6.0])
        if rng.random() < 0.15:
            tone = _any_colour(rng)
        lay(scene, np.minimum(nail, mask), tone, light, 0.5, 0.3)


def _add_ruler(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    size = scene.shape[0]
    middle, heading = rng.uniform(0, 1, 2) * size, rng.uniform(0, math.pi)
    half = pill_px * np.array([rng.uniform(5, 10), rng.uniform(0.6, 1.2)])
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [_fixed(_rectangle(middle, half, heading))], 255, cv2.LINE_AA, 4)
    base = _any_colour(rng) * 0.3 + 165
    lay(scene, mask, base, light, pill_px * 0.05, 0.4)
    ticks = np.zeros_like(mask)
    ahead = np.array([math.cos(heading), math.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]])
    for n, along in enumerate(np.arange(-half[0], half[0], max(2.0, pill_px * 0.08))):
        length = half[1] * (0.8 if n % 10 == 0 else 0.55 if n % 5 == 0 else 0.35)
        start = middle + along * ahead - half[1] * aside
        cv2.line(ticks, _pixel(start), _pixel(start + length * aside), 255, 1, cv2.LINE_AA)
    lay(scene, ticks, base * 0.25, light, 0, 0)


def _add_cap(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A bottle's cap or a small jar from above: large, with a ridged rim."""
    radius = pill_px * rng.uniform(1.1, 2.2)
    mask, middle = _disc(scene, radius, rng)
    colour = _any_colour(rng)
    lay(scene, mask, colour, light, radius * 0.4, rng.uniform(0.3, 0.7))
    inner = np.zeros_like(mask)
    cv2.circle(inner, _pixel(middle), round(radius * 0.82), 255, -1, cv2.LINE_AA)
    strength = rng.uniform(-0.8, 0.8)
    n_ridges = int(rng.integers(30, 70))
    for angle in np.linspace(0, 2 * math.pi, n_ridges, endpoint=False):
        way = np.array([math.cos(angle), math.sin(angle)])
        ends = _pixel(middle + way * radius * 0.86), _pixel(middle + way * radius * 0.98)
        cv2.line(scene, *ends, (colour * 0.7).tolist(), 1)
    if rng.random() < 0.4:  # upside down: an open cap, dark inside
        lay(scene, inner, colour * rng.uniform(0.4, 0.8), light, 0, 0)
    round_off(scene, inner, light, radius * 0.08, strength)


def _add_cable(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A cable, a hair, a thread: a long smooth curve."""
    size = scene.shape[0]
    headings = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.35, 14))
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * size * 0.12
    path = rng.uniform(-0.1, 1.1, 2) * size + np.cumsum(moves, 0)
    smooth = cv2.resize(path, (2, 80), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((size, size), np.uint8)
    thickness = max(1, round(pill_px * rng.choice([0.03, 0.15, 0.3])))
    cv2.polylines(mask, [_fixed(smooth)], False, 255, thickness, cv2.LINE_AA, 4)
    lay(scene, mask, _any_colour(rng), light, thickness * 0.7, 0.5)
    round_off(scene, mask, light, thickness * 0.3, -0.4)


def _add_glare(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A lamp's mirror image on the table, or a dark stain; soft or hard."""
    size = scene.shape[0]
    spot = np.zeros((size, size), np.float32)
    axes = _pixel(np.maximum(1, pill_px * rng.uniform(0.2, 2.5, 2)))
    at = _pixel(rng.uniform(0, size, 2))
    cv2.ellipse(spot, at, axes, rng.uniform(0, 180), 0, 360, [1.0], -1)
    spot = cv2.GaussianBlur(spot, (0, 0), pill_px * rng.uniform(0.12, 0.6))[..., None]
    if rng.random() < 0.6:
        scene += spot * np.float32(rng.uniform(30, 160))
    else:
        scene *= 1 - spot * np.float32(rng.uniform(0.15, 0.6))


def _add_crumbs(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """Crumbs and grains, smaller than any pill: one as large, out of focus, looks like one."""
    size = scene.shape[0]
    spread = min(pill_px * 0.07, size * 0.006)
    mask = np.zeros((size, size), np.uint8)
    where, colour = rng.uniform(0, 1, 2) * size, _any_colour(rng)
    for _ in range(int(rng.integers(3, 25))):
        at = where + rng.normal(0, 2 * pill_px, 2)
        outline = at + rng.normal(0, 1, (5, 2)).clip(-1.6, 1.6) * spread
        cv2.fillConvexPoly(mask, cv2.convexHull(_fixed(outline)), 255, cv2.LINE_AA, 4)
    lay(scene, mask, colour, light, spread * 0.9, 0.5)


def _add_card(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A carton, a card, a rubber, a chip: a rectangle with sharp or round corners."""
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    long = rng.uniform(0.8, 4)
    half = pill_px * np.array([long, long * rng.uniform(0.15, 0.9)])
    corners = _rectangle(rng.uniform(0, size, 2), half, rng.uniform(0, math.pi))
    if rng.random() < 0.4 and half.min() > 0.9 * pill_px:
        _smooth_polygon(mask, list(corners), pill_px * 0.1)
    else:
        cv2.fillPoly(mask, [_fixed(corners)], 255, cv2.LINE_AA, 4)
    texture = draw_surface(size, rng) if rng.random() < 0.4 else _any_colour(rng)
    lay(scene, mask, texture, light, pill_px * rng.uniform(0.02, 0.4), rng.uniform(0.2, 0.6))


def _add_key(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A key or a spoon: a round head with a hole or a hollow, and a straight shaft."""
    size = scene.shape[0]
    mask, middle = _disc(scene, pill_px * rng.uniform(0.5, 0.9), rng)
    radius = cv2.boundingRect(mask)[2] / 2
    way = rng.uniform(0, 2 * math.pi)
    tip = middle + radius * rng.uniform(3, 5) * np.array([math.cos(way), math.sin(way)])
    _limb(mask, middle, tip, radius * rng.uniform(0.4, 0.7))
    hole = np.zeros((size, size), np.uint8)
    cv2.circle(hole, _pixel(middle), max(1, round(radius * 0.35)), 255, -1, cv2.LINE_AA)
    grey = np.array([1.0, 0.98, 0.93]) * rng.uniform(110, 200)
    lay(scene, cv2.subtract(mask, hole).astype(np.uint8), grey, light, radius * 0.15, 0.5)
    round_off(scene, mask, light, radius * 0.1, -rng.uniform(0.2, 1))


def _add_ring(scene: Field, pill_px: float, light: Light, rng: np.random.Generator) -> None:
    """A ring, a washer, a cup, a plate's rim: a circle with an open middle."""
    radius = pill_px * rng.uniform(0.3, 4)
    mask, middle = _disc(scene, radius, rng)
    inner = max(1, round(radius * rng.uniform(0.5, 0.92)))
    cv2.circle(mask, _pixel(middle), inner, 0, -1, cv2.LINE_AA)
    lay(scene, mask, _any_colour(rng), light, min(radius, pill_px) * 0.3, rng.uniform(0.2, 0.6))
    round_off(scene, mask, light, max(1.0, (radius - inner) * 0.3), -rng.uniform(0, 0.8))


def _any_colour(rng: np.random.Generator) -> Point:
    """Any colour, greys and muted ones most often: (3,) 0 to 255."""
    grey = rng.uniform(20, 245)
    colour: Point = grey * (1 - rng.beta(0.6, 1.6) * rng.permutation([0, rng.uniform(0, 1), 1]))
    return colour


def _disc(scene: Field, radius: float, rng: np.random.Generator) -> tuple[Mask, Point]:
    size = scene.shape[0]
    mask = np.zeros((size, size), np.uint8)
    middle = rng.uniform(-0.03, 1.03, 2) * size
    cv2.circle(mask, _pixel(middle * 16), round(radius * 16), 255, -1, cv2.LINE_AA, 4)
    return mask, middle


def _limb(mask: Mask, start: Point, end: Point, thickness: float) -> None:
    """A thick line with round ends."""
    cv2.line(mask, _pixel(start), _pixel(end), 255, max(1, round(thickness)), cv2.LINE_AA)


def _smooth_polygon(mask: Mask, points: list[Point], radius: float) -> None:
    """A filled polygon grown by `radius`, which rounds its corners."""
    outline = _fixed(np.array(points))
    cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA, 4)
    cv2.polylines(mask, [outline], True, 255, max(1, round(2 * radius)), cv2.LINE_AA, 4)


def _half_plane(size_px: int, rng: np.random.Generator) -> Mask:
    mask = np.zeros((size_px, size_px), np.uint8)
    heading = rng.uniform(0, 2 * math.pi)
    ahead = np.array([math.cos(heading), math.sin(heading)])
    middle = size_px / 2 + ahead * size_px * rng.uniform(0.9, 1.4)
    corners = _rectangle(middle, np.array([1.0, 2.0]) * size_px, heading)
    cv2.fillPoly(mask, [_fixed(corners)], 255, cv2.LINE_AA, 4)
    return mask


def _rectangle(middle: Point, half: Point, heading: float) -> NDArray[np.float64]:
    ahead = np.array([math.cos(heading), math.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]])
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return np.array([middle + a * half[0] * ahead + b * half[1] * aside for a, b in signs])


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Points as cv2 takes them with four fractional bits: (N, 1, 2)."""
    return np.round(points * 16).astype(np.int32)[:, None]


def _pixel(point: Any) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _sign(aside: Point, ahead: Point) -> float:
    """+1 when `aside` lies a quarter turn ahead of `ahead`."""
    return 1.0 if ahead[0] * aside[1] - ahead[1] * aside[0] > 0 else -1.0
