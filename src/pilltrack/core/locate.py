"""Frame -> the pills in it: a box, a mask and a confidence for each, and a crop to identify.

A small network looks at the whole frame once and answers for every cell of 4 x 4 of its pixels:
is here the middle of a pill; is here a pill; where are the sides of its box. `find_pills` reads
these maps: peaks of the first are pills, every pill cell joins the peak in the middle of the box
it sees, and a pill's box is the median of what its cells say. Touching pills part because their
cells point to different middles. Finds in doubt are then looked at again, closer
(`core.second_look`). What a pill is, the locator neither knows nor asks.

The same frame always gives the same pills in the same order. Time is bounded whatever the frame:
there are at most MAX_PILLS finds, and their boxes together are at most seven squares of its longer
side large, since each is a seventh full of cells that no other has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pilltrack.core.errors import BundleRejected
from pilltrack.core.litert import LiteRTModel, read_model
from pilltrack.core.preprocess import square_around, to_model_input
from pilltrack.core.second_look import LEAST_LOOKED_AT, SIGNATURE, SURE, SecondLook

STRIDE = 4  # pixels of the model's input in a cell
N_MAPS = 6  # middle, pill, and the square roots of the distances left, top, right, bottom
MAX_PILLS = 64  # in one frame
PILL_SHARE = 0.75  # of the crop's side that the pill's length takes
MAX_CROP_PX = 640  # a larger one is shrunk: no embedder looks at so many pixels
_MAX_PEAKS = 2 * MAX_PILLS  # some turn out to be none
_LEAST_MIDDLE = 0.1  # of a peak; so which cells are whose does not hang on min_confidence
_PILL_CELL = 0.15  # of the pill map: small pills fill no cell, faint ones are never sure
_IN_MASK = 0.5  # of the highest value of the pill map in the pill's cells
_SAME_PILL = 0.5  # IoU from which two boxes are one pill
_BELONGS = 0.35  # how far a cell's middle may lie from its peak, in the box's diagonal
_LEAST_FILLED = 0.15  # of a box; a slim capsule that lies askew fills 0.4 of its own
_NEIGHBOURS = np.ones((3, 3), np.uint8)

Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the frame


class LocatorCard(BaseModel):
    """What belongs to a locator's file: from which confidence on a find is a pill."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    min_confidence: float = Field(gt=0, lt=1)


@dataclass(frozen=True, eq=False)
class Found:
    """A pill in a frame: `box` is (x, y, width, height) in its pixels, inside it, not empty."""

    box: Box
    mask: NDArray[np.bool_]  # (height, width): which pixels of the box are the pill
    confidence: float  # 0 to 1, of `find_pills` or, after a second look, of both

    @property
    def length_px(self) -> float:
        """The pill's longer side, however it is turned."""
        outlines, _ = cv2.findContours(
            self.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        if not outlines:
            return float(max(self.box[2:]))
        return float(max(cv2.minAreaRect(np.concatenate(outlines))[1])) + 1


class Locator:
    """An open locator `.tflite`: input (1, S, S, 3), output (1, S/4, S/4, 6), float32 or 8 bits.

    A network under the signature "look" in the same file looks at finds in doubt again; a file
    without one is believed at once. `min_confidence` (0 to 1) is what a find must have to be a
    pill. Safe to share between threads: they take turns. Raises BundleRejected when the file is
    missing, damaged or not a locator.
    """

    def __init__(self, model: Path, *, min_confidence: float, threads: int = 1) -> None:
        self.min_confidence = min_confidence
        content = read_model(model)
        self._model = LiteRTModel(model, content, fits=_fits, refusal=_no_locator, threads=threads)
        self._second = None
        if SIGNATURE in self._model.signatures:
            self._second = SecondLook(model, content, threads=threads)
        self.input_size_px = self._model.input_size_px

    def locate(self, frame: NDArray[np.uint8]) -> list[Found]:
        """Find the pills in an RGB frame (H, W, 3) uint8 of any size, in reading order.

        At most MAX_PILLS: so many may be more. Raises ValueError for another shape or dtype, or
        an empty frame.
        """
        return in_reading_order(self.find(frame, self.min_confidence))

    def find(
        self, frame: NDArray[np.uint8], min_confidence: float, sure: float = SURE
    ) -> list[Found]:
        """Finds of at least so much confidence, most confident first; errors as `locate`.

        Of what the first look is `sure` (0 to 1) there is no second, away from the border.
        """
        if self._second is None:
            return self.first_look(frame, min_confidence)
        found = self.first_look(frame, LEAST_LOOKED_AT)
        confidences = self._second.confidences(frame, found, sure)
        return most_confident_first(
            replace(pill, confidence=confidence)
            for pill, confidence in zip(found, confidences, strict=True)
            if confidence >= min_confidence
        )

    def first_look(self, frame: NDArray[np.uint8], min_confidence: float) -> list[Found]:
        """Finds of which the first look alone is so sure; errors as `locate`.

        The second look is asked about those from LEAST_LOOKED_AT on.
        """
        height, width = frame.shape[:2]
        return find_pills(self.maps(frame), height, width, min_confidence)

    def maps(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network answers for a frame: (S/4, S/4, 6) float32, 0 to 1."""
        square = to_model_input(frame, self.input_size_px)
        maps: NDArray[np.float32] = self._model.run(square[None])[0]
        return maps


def find_pills(
    maps: NDArray[np.float32],
    height_px: int,
    width_px: int,
    min_confidence: float,
) -> list[Found]:
    """Read the locator's maps (C, C, 6) for a frame of (height_px, width_px).

    Most confident first; at most MAX_PILLS. A confidence is the root of how sure the find's middle
    is, times how sure most of its cells are, times how much of its box they fill: a disc 0.8, a
    slim capsule that lies askew 0.4.

    >>> find_pills(np.zeros((8, 8, 6), np.float32), 32, 32, 0.3)
    []
    """
    if maps.ndim != 3 or maps.shape[0] != maps.shape[1] or maps.shape[2] != N_MAPS:
        raise ValueError(f"maps have shape {maps.shape}; expected (C, C, {N_MAPS})")
    placing = _Placing(maps.shape[0], height_px, width_px)
    boxes = _boxes_of_cells(maps)  # (C, C, 4) left, top, right, bottom in cells
    rows, columns = _peaks(maps[..., 0], boxes)
    cells_of = _cells_of_peaks(maps[..., 1], boxes, boxes[rows, columns])
    pill = np.ascontiguousarray(maps[..., 1]).ravel()
    nobodys = pill.copy()
    for cells in cells_of:
        nobodys[cells] = 0
    boxes = boxes.reshape(-1, 4)
    found = []
    for row, column, cells in zip(rows, columns, cells_of, strict=True):
        n_cells = len(cells)
        if not n_cells:
            continue
        shares = pill[cells]
        ends = _median(boxes[cells])
        box, n_in_box = placing.box(ends), (ends[2:] - ends[:2]).prod()
        if box is None or n_cells < _LEAST_FILLED * n_in_box:
            continue
        filled = min(float(shares.sum() / n_in_box), 1.0)
        solid = float(np.sort(shares)[3 * (n_cells - 1) // 4])  # the third quartile
        confidence = math.sqrt(float(maps[row, column, 0]) * solid * filled)
        if confidence < min_confidence:
            continue
        covered = nobodys.copy()
        covered[cells] = shares
        mask = placing.mask(covered.reshape(maps.shape[:2]), box, _IN_MASK * float(shares.max()))
        if mask.any():
            found.append(Found(box, mask, confidence))
    return most_confident_first(found)[:MAX_PILLS]


def most_confident_first(found: Iterable[Found]) -> list[Found]:
    """Of equals the upper, then the left one first."""
    return sorted(found, key=lambda pill: (-pill.confidence, pill.box[1], pill.box[0]))


def in_reading_order(found: Sequence[Found]) -> list[Found]:
    """Rows from top to bottom, each from left to right.

    Pills are in one row when their middles differ by less than half the height of a typical pill.

    >>> boxes = [(50, 1, 9, 9), (20, 30, 9, 9), (10, 0, 9, 9)]
    >>> found = [Found(box, np.ones((9, 9), bool), 0.9) for box in boxes]
    >>> [pill.box for pill in in_reading_order(found)]
    [(10, 0, 9, 9), (50, 1, 9, 9), (20, 30, 9, 9)]
    """
    by_middle = sorted(found, key=lambda pill: (pill.box[1] + pill.box[3] / 2, pill.box))
    height = float(np.median([pill.box[3] for pill in found])) if found else 0.0
    rows: list[list[Found]] = []
    last = 0.0
    for pill in by_middle:
        middle = pill.box[1] + pill.box[3] / 2
        if not rows or middle - last > height / 2:
            rows.append([])
        rows[-1].append(pill)
        last = middle
    return [pill for row in rows for pill in sorted(row, key=lambda pill: pill.box)]


def iou(some: Box, other: Box) -> float:
    """Intersection over union of two boxes.

    >>> iou((0, 0, 2, 2), (1, 0, 2, 2))
    0.3333333333333333
    """
    width = min(some[0] + some[2], other[0] + other[2]) - max(some[0], other[0])
    height = min(some[1] + some[3], other[1] + other[3]) - max(some[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / max(some[2] * some[3] + other[2] * other[3] - both, 1)


def crop(frame: NDArray[np.uint8], found: Found) -> NDArray[np.uint8]:
    """Cut a found pill out of its frame (H, W, 3): a square (L, L, 3) uint8 around its middle.

    L is at most MAX_CROP_PX. The square is upright as the frame is; the pill's length takes
    PILL_SHARE of its side, so a pill is as large in its crop however it is turned. Its surroundings
    stay: painted over they cost 4 of 100 pills (docs/results/locate.md). Beyond the frame's
    border its outermost pixels are repeated.
    """
    side = max(1, round(found.length_px / PILL_SHARE))
    return square_around(frame, found.box, side, min(side, MAX_CROP_PX))


def _fits(shape_in: list[int], shape_out: list[int]) -> bool:
    """True for the shapes (1, S, S, 3) and (1, S/4, S/4, 6)."""
    match shape_in, shape_out:
        case [1, side, width, 3], [1, rows, columns, maps]:
            cells = side // STRIDE if side == width and side % STRIDE == 0 else 0
            return maps == N_MAPS and 1 <= cells == rows == columns
    return False


def _no_locator(model: Path, found: str) -> BundleRejected:
    return BundleRejected(
        str(model),
        found=found,
        expected="one input (1, S, S, 3) and one output (1, S/4, S/4, 6)",
        remedy="Take the locator.tflite that `pilltrack locate` writes.",
    )


def _boxes_of_cells(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The box that every cell sees: (C, C, 4) left, top, right, bottom in cells."""
    cells = maps.shape[0]
    distances = maps[..., 2:] ** 2 * np.float32(cells)
    at = np.arange(cells, dtype=np.float32) + np.float32(0.5)
    boxes = np.empty_like(distances)
    boxes[..., 0] = at[None] - distances[..., 0]
    boxes[..., 1] = at[:, None] - distances[..., 1]
    boxes[..., 2] = at[None] + distances[..., 2]
    boxes[..., 3] = at[:, None] + distances[..., 3]
    return boxes


def _peaks(
    middles: NDArray[np.float32], boxes: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the local maxima, one for each pill, best first."""
    highest = cv2.dilate(middles, _NEIGHBOURS)
    rows, columns = np.nonzero((middles >= highest) & (middles >= _LEAST_MIDDLE))
    order = np.argsort(-middles[rows, columns], kind="stable")[: 2 * _MAX_PEAKS]
    rows, columns = rows[order], columns[order]
    doubles = _ious(boxes[rows, columns]) > _SAME_PILL  # (P, P)
    kept: list[int] = []
    for index in range(len(rows)):
        if len(kept) < _MAX_PEAKS and not doubles[index, kept].any():
            kept.append(index)
    return rows[kept], columns[kept]


def _ious(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU of each with each of boxes (N, 4), left, top, right, bottom: (N, N)."""
    ends = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(
        boxes[:, None, :2], boxes[:, :2]
    )
    both = ends.clip(0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    shares: NDArray[np.float32] = both / np.maximum(areas + areas[:, None] - both, 1e-6)
    return shares


def _cells_of_peaks(
    covered: NDArray[np.float32], boxes: NDArray[np.float32], of_peaks: NDArray[np.float32]
) -> list[NDArray[np.intp]]:
    """The cells of each of P peaks, by their places in the flattened map, rising."""
    if not len(of_peaks):
        return []
    cells = np.flatnonzero(covered >= _PILL_CELL)
    own = boxes.reshape(-1, 4)[cells]  # (M, 4)
    middles = (own[:, :2] + own[:, 2:]) / 2  # (M, 2)
    peaks = (of_peaks[:, :2] + of_peaks[:, 2:]) / 2  # (P, 2)
    reach = np.hypot(*(of_peaks[:, 2:] - of_peaks[:, :2]).T) + 1e-6  # (P,)
    across, down = (middles[:, axis, None] - peaks[:, axis] for axis in (0, 1))  # (M, P)
    away = (across * across + down * down) / (reach * reach)  # squared
    nearest = away.argmin(axis=1)
    near = away[np.arange(len(cells)), nearest] <= _BELONGS * _BELONGS
    cells, owners = cells[near], nearest[near]
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=len(of_peaks)))
    return np.split(cells[order], ends[:-1])


def _median(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median of each column of (M, 4), M at least one; `np.median` takes four times as long."""
    in_order = np.sort(rows, axis=0)
    median: NDArray[np.float32] = (in_order[(len(rows) - 1) // 2] + in_order[len(rows) // 2]) / 2
    return median


class _Placing:
    """Where a cell of the letterboxed input lies in the frame; the inverse of `to_model_input`."""

    def __init__(self, cells: int, height_px: int, width_px: int) -> None:
        self.height_px, self.width_px = height_px, width_px
        side = cells * STRIDE
        scale = side / max(height_px, width_px)
        scaled = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
        # Frame pixels for each cell, and the input's empty margin in cells.
        self.step = (STRIDE * width_px / scaled[0], STRIDE * height_px / scaled[1])
        self.margin = tuple((side - length) // 2 / STRIDE for length in scaled)

    def box(self, ends: NDArray[np.float32]) -> Box | None:
        """Left, top, right, bottom in cells -> a box in the frame; None when nothing is left."""
        left, right = (self._pixel(float(end), 0, self.width_px) for end in ends[::2])
        top, bottom = (self._pixel(float(end), 1, self.height_px) for end in ends[1::2])
        if right <= left or bottom <= top:
            return None
        return left, top, right - left, bottom - top

    def _pixel(self, end: float, axis: int, limit: int) -> int:
        return min(max(round((end - self.margin[axis]) * self.step[axis]), 0), limit)

    def mask(self, covered: NDArray[np.float32], box: Box, least: float) -> NDArray[np.bool_]:
        """Where the pill map (C, C) is at least `least`, at the pixels of a box."""
        x, y, width, height = box
        matrix = np.array(
            [
                [1 / self.step[0], 0, (x + 0.5) / self.step[0] + self.margin[0] - 0.5],
                [0, 1 / self.step[1], (y + 0.5) / self.step[1] + self.margin[1] - 0.5],
            ]
        )
        shares = cv2.warpAffine(
            covered, matrix, (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        mask: NDArray[np.bool_] = shares >= least
        return mask
