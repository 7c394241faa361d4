"""Composed training scenes: cut-out pills on a drawn table, and a label for every pixel.

    backdrop -> clutter -> pills, one by one: turned, sized, lit, beside or upon each other
    -> uneven light -> camera -> frame, labels, boxes

Nobody drew a box: the labels are where the pills were put. Touching pills, heaps, capsules in
hands, pills half outside the frame and frames without any are as frequent as they are hard, not
as they are common. Same generator, same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.pipeline.capture import photograph
from pilltrack.pipeline.clutter import Mask, add_clutter, draw_backdrop
from pilltrack.pipeline.laid_pill import clearness, lit, turned
from pilltrack.pipeline.light import Light, cast_shadows, draw_light, shade_unevenly
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.surfaces import Field

MAX_PILLS = 32
PILL_SHARES = (0.04, 0.8)  # length of a typical pill, of the frame's longer side
MIN_SHARE = 0.028  # of any: one in a hundred of those on the phone photos is shorter
MIN_PILL_PX = 9  # nor is any shorter than this
MIN_VISIBLE = 0.4  # of a pill's area; one that would show less is not put there
ALIKE = 0.15  # of the scenes: pills as bright as what they lie on, white ones on paper
METERED = 0.8  # of the scenes are exposed so that white paper is not blown out
MAX_OVERLAP = 0.15  # of the smaller pill's area, where pills lie upon each other
CAMERA = CaptureParams(
    background_share=1.0,
    scale=(1.0, 1.0),
    perspective=0.0,
    shadow=0.75,
    light=0.4,
    colour_cast=0.1,
    blur_px=1.3,
    noise=0.025,
    jpeg_quality=(50, 95),
    clip=0.0,
    distant=0.0,
    body=0.0,
)


@dataclass(frozen=True)
class Scene:
    """A frame and what is in it; pill k of N has label k (1 to N) and box k - 1."""

    frame: Photo  # (H, W, 3) uint8 RGB
    labels: Mask  # (H, W) uint8: 0 for no pill
    boxes: NDArray[np.int64]  # (N, 4) x, y, width, height of the visible part, in pixels


def compose(
    cutouts: Sequence[Photo],
    height_px: int,
    width_px: int,
    rng: np.random.Generator,
    n_pills: int | None = None,
    crowd: int = 1,
) -> Scene:
    """Compose one scene of (height_px, width_px) from `cutouts`, each (h, w, 4) uint8 RGBA.

    `n_pills` is how many are put there, 0 to MAX_PILLS, drawn if None; fewer come out when there
    is no room. Of other things there are `crowd` times as many as usual. Raises ValueError for
    more pills, or without cut-outs to draw from.
    """
    if n_pills is None:
        n_pills = _draw_count(rng)
    if not 0 <= n_pills <= MAX_PILLS or (n_pills and not cutouts):
        raise ValueError(
            f"{n_pills} pills from {len(cutouts)} cut-outs; expected 0 to {MAX_PILLS} from some"
        )
    side = max(height_px, width_px)
    top, left = (side - height_px) // 2, (side - width_px) // 2
    window = (slice(top, top + height_px), slice(left, left + width_px))
    light = draw_light(rng)
    scene, room = draw_backdrop(side, light, rng)
    pill_px = _draw_length(side, n_pills, rng)
    add_clutter(scene, crowd * int(rng.choice([0, 1, 3, 6, 9])), pill_px, light, rng)
    labels = np.zeros((side, side), np.uint8)
    heap = _Heap(scene, labels, room, window, light, rng)
    shortest = max(MIN_PILL_PX, MIN_SHARE * side)
    for kind, relative in _draw_kinds(len(cutouts), n_pills, rng):
        heap.add(cutouts[kind], max(shortest, pill_px * relative))
    shade_unevenly(scene, light, CAMERA.light, rng)
    if rng.random() < METERED:
        bright = float(np.quantile(scene[::4, ::4].max(axis=2), 0.97))
        scene *= np.float32(min(1.0, rng.uniform(215, 245) / max(bright, 1.0)))
    frame = photograph(scene, CAMERA, rng)
    visible = np.ascontiguousarray(labels[window])
    boxes = [cv2.boundingRect((visible == n).astype(np.uint8)) for n in range(1, heap.count + 1)]
    return Scene(
        np.ascontiguousarray(frame[window]), visible, np.array(boxes, np.int64).reshape(-1, 4)
    )


class _Heap:
    """The pills put into a scene so far."""

    def __init__(
        self,
        scene: Field,
        labels: Mask,
        room: Mask,
        window: tuple[slice, slice],
        light: Light,
        rng: np.random.Generator,
    ) -> None:
        self.scene, self.labels, self.light, self.rng = scene, labels, light, rng
        self.inside = np.zeros_like(labels)
        self.inside[window] = 1
        places = np.argwhere((room > 0) & (self.inside > 0))
        self.places = places if len(places) else np.argwhere(self.inside > 0)
        self.centres: list[tuple[float, float, float]] = []  # x, y, length
        self.areas: list[int] = []  # visible so far, in pixels
        self.touching = float(rng.choice([0.0, 0.3, 0.8]))  # share of pills laid against others
        self.overlap = MAX_OVERLAP if rng.random() < 0.4 else 0.0
        self.squeeze = rng.uniform(0.75, 1.0)  # the camera looks down at a slant
        self.alike = 0.8 * (rng.random() < ALIKE)  # share of pills
        self.shadow = CAMERA.shadow * rng.uniform(0.1, 1)
        self.lift = rng.uniform(1.0, 1.9)  # studio photos are exposed for their background

    @property
    def count(self) -> int:
        return len(self.centres)

    def add(self, cutout: Photo, length_px: float) -> None:
        """Turn a pill, find a place for it and paint it; leave it out when there is none."""
        pill = turned(cutout, length_px, self.squeeze, self.rng)
        solid = (pill[..., 3] > 0.5).astype(np.uint8)
        area = int(solid.sum())
        if area < 12:
            return
        for _ in range(8):
            by_another = self.centres and self.rng.random() < self.touching
            place = self._beside(solid, length_px) if by_another else self._anywhere()
            patch = self._fits(solid, area, place)
            if patch is not None:
                self._paint(pill, solid, patch, length_px)
                self.centres.append((*place, length_px))
                return

    def _anywhere(self) -> tuple[float, float]:
        y, x = self.places[int(self.rng.integers(len(self.places)))]
        return float(x), float(y)

    def _beside(self, solid: Mask, length_px: float) -> tuple[float, float]:
        """Slide towards another pill until both touch."""
        x, y, other_px = self.centres[int(self.rng.integers(self.count))]
        way = self.rng.uniform(0, 2 * math.pi)
        ahead = (math.cos(way), math.sin(way))
        distance = (length_px + other_px) / 2 + 2
        place = (x + ahead[0] * distance, y + ahead[1] * distance)
        while distance > 0:
            closer = (x + ahead[0] * distance, y + ahead[1] * distance)
            if self._covered(solid, closer)[1].any():
                break
            place, distance = closer, distance - 1
        if self.overlap:
            into = self.rng.uniform(0, 0.15) * length_px
            place = (place[0] - ahead[0] * into, place[1] - ahead[1] * into)
        return place

    def _covered(
        self, solid: Mask, place: tuple[float, float]
    ) -> tuple[tuple[slice, slice, slice, slice], NDArray[np.uint8]]:
        """Where a patch lies, in frame and in itself, and the labels below its solid part."""
        height, width = solid.shape
        top, left = round(place[1] - height / 2), round(place[0] - width / 2)
        size = self.labels.shape[0]
        rows = slice(min(max(top, 0), size), min(max(top + height, 0), size))
        columns = slice(min(max(left, 0), size), min(max(left + width, 0), size))
        own_rows = slice(rows.start - top, rows.stop - top)
        own_columns = slice(columns.start - left, columns.stop - left)
        part = solid[own_rows, own_columns]
        return (rows, columns, own_rows, own_columns), self.labels[rows, columns] * part

    def _fits(
        self, solid: Mask, area: int, place: tuple[float, float]
    ) -> tuple[slice, slice, slice, slice] | None:
        patch, covered = self._covered(solid, place)
        rows, columns, own_rows, own_columns = patch
        seen = int((self.inside[rows, columns] * solid[own_rows, own_columns]).sum())
        if seen < MIN_VISIBLE * area:
            return None
        for number in np.unique(covered[covered > 0]).tolist():
            taken = int(np.count_nonzero(covered == number))
            smaller = min(area, self.areas[number - 1])
            if taken > max(self.overlap * smaller, 2):
                return None
        for number in np.unique(covered[covered > 0]).tolist():
            self.areas[number - 1] -= int(np.count_nonzero(covered == number))
        self.areas.append(seen)
        return patch

    def _paint(
        self, pill: Field, solid: Mask, patch: tuple[slice, slice, slice, slice], length_px: float
    ) -> None:
        rows, columns, own_rows, own_columns = patch
        rng, light = self.rng, self.light
        opacity = np.ascontiguousarray(pill[..., 3])
        area = float(opacity.sum())
        thickness = 0.35 * min(area / length_px, length_px) * rng.uniform(0.7, 1.3)
        pad = math.ceil(2 * thickness + 3)
        around = (
            slice(max(0, rows.start - pad), rows.stop + pad),
            slice(max(0, columns.start - pad), columns.stop + pad),
        )
        under: Field = self.scene[around]
        alpha = np.zeros(under.shape[:2], np.float32)
        inner = (
            slice(rows.start - around[0].start, rows.stop - around[0].start),
            slice(columns.start - around[1].start, columns.stop - around[1].start),
        )
        alpha[inner] = opacity[own_rows, own_columns]
        below = self.scene[rows, columns].copy()
        cast_shadows(under, alpha, light, thickness, self.shadow)
        colour = lit(pill[..., :3], opacity, light, self.lift, length_px, rng)
        colour, cover = colour[own_rows, own_columns], opacity[own_rows, own_columns, None]
        if rng.random() < self.alike:
            own = float(colour.sum()) / max(3 * float(cover.sum()), 1.0)
            tone = np.float32(np.median(below) * rng.uniform(0.9, 1.15) / max(own, 1.0))
            colour = np.minimum(colour * tone, 255 * cover).astype(np.float32)
        if rng.random() < 0.12:  # a clear gel: the table shows through
            share = clearness(opacity, rng)[own_rows, own_columns]
            tint = 0.35 + 0.65 * colour / np.maximum(cover * 255, 1)
            colour = (colour + share * (cover * tint * below - colour)).astype(np.float32)
        part = self.scene[rows, columns]
        part *= 1 - cover
        part += colour
        self.labels[rows, columns][solid[own_rows, own_columns] > 0] = self.count + 1


def _draw_count(rng: np.random.Generator) -> int:
    """None in a sixth of the scenes, one in a quarter, few or many in the others."""
    kind = rng.random()
    if kind < 0.17:
        return 0
    if kind < 0.4:
        return 1
    return int(rng.integers(2, 9) if kind < 0.7 else rng.integers(9, MAX_PILLS + 1))


def _draw_length(side_px: int, n_pills: int, rng: np.random.Generator) -> float:
    """Length of a typical pill: many pills are photographed from farther away."""
    low, high = PILL_SHARES
    high = min(high, 0.75 / math.sqrt(max(n_pills, 1)))
    return side_px * math.exp(rng.uniform(math.log(low), math.log(max(high, 1.5 * low))))


def _draw_kinds(n_cutouts: int, n_pills: int, rng: np.random.Generator) -> list[tuple[int, float]]:
    """Which cut-outs, and how long each is beside a typical one: of one kind, a few, or many."""
    n_kinds = int(rng.choice([1, 3, MAX_PILLS], p=[0.3, 0.2, 0.5]))
    kinds = rng.integers(0, max(n_cutouts, 1), n_kinds)
    lengths = np.exp(rng.normal(0, 0.28, n_kinds))
    order = np.arange(n_pills) % n_kinds
    jitter = rng.normal(1, 0.02, n_pills)
    return [(int(kinds[n]), float(lengths[n] * j)) for n, j in zip(order, jitter, strict=True)]
