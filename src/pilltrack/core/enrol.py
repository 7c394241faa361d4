"""Photos of a pill -> the embeddings it is enrolled with.

A probe lies in any turn, so a reference is not the embedding of one photo but the mean of several
views of it: at least its four quarter turns. Enrolling takes four times as long for it, and
searching no longer (recall@1 of new pills 77 % -> 81 %, docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.embedder import Embedder, l2_normalise
from pilltrack.core.locate import Found, Locator
from pilltrack.core.preprocess import to_model_input

Photo = NDArray[np.uint8]  # (H, W, 3)
_CLOSE = 0.5  # of the photo's longer side: smaller pills are found without more room


def pills_to_enrol(locator: Locator, photo: Photo) -> list[Found]:
    """Find the pills in a photo (H, W, 3) uint8 to enrol, also one that nearly fills it.

    Where the locator finds nothing, it looks once more at the photo amid its repeated border,
    three times as large; then only pills count that are longer than half of the photo. A locator
    sees few so large while it learns.

    Raises as `Locator.locate`.
    """
    return locator.locate(photo) or _close_up(locator, photo)


def embed_references(embedder: Embedder, photos: Sequence[Photo]) -> NDArray[np.float32]:
    """Unit embeddings (N, D) float32 to enrol N photos with; errors as `Embedder.embed`."""
    return mean_embeddings(embedder, map(quarter_turns, photos))


def quarter_turns(photo: Photo) -> list[Photo]:
    """The photo turned by 0, 90, 180 and 270 degrees."""
    return [np.ascontiguousarray(np.rot90(photo, turn)) for turn in range(4)]


def mean_embeddings(embedder: Embedder, views: Iterable[Sequence[Photo]]) -> NDArray[np.float32]:
    """For each of N sets of views the direction of the mean of their embeddings, (N, D) float32.

    Sets are taken one by one: four turns of a phone's photo are 150 MB. Views that the model sees
    nothing in take no part; a set of nothing else stays zero.
    """
    sums = [embedder.embed(views_of_one).sum(axis=0) for views_of_one in views]
    return l2_normalise(np.array(sums, np.float32).reshape(len(sums), embedder.dim))


def _close_up(locator: Locator, photo: Photo) -> list[Found]:
    size_px, (height, width) = locator.input_size_px, photo.shape[:2]
    small = to_model_input(photo, size_px)
    wide = np.pad(small, ((size_px, size_px), (size_px, size_px), (0, 0)), mode="edge")
    rows, columns = (max(1, round(side * size_px / max(height, width))) for side in (height, width))
    left, top = size_px + (size_px - columns) // 2, size_px + (size_px - rows) // 2
    found = locator.find(wide, locator.min_confidence)
    inside = [_cut(pill, left, top, columns, rows) for pill in found]
    return [
        _enlarged(part, columns, rows, width, height)
        for pill, part in zip(found, inside, strict=True)
        if part and max(part.box[2:]) > _CLOSE * size_px and 4 * part.mask.size > pill.mask.size
    ]


def _enlarged(pill: Found, columns: int, rows: int, width: int, height: int) -> Found:
    """A find in a frame (rows, columns), in the same frame at (height, width)."""
    x, y, across, down = pill.box
    left, right = round(x * width / columns), round((x + across) * width / columns)
    top, bottom = round(y * height / rows), round((y + down) * height / rows)
    left, top = min(left, width - 1), min(top, height - 1)
    size = max(right - left, 1), max(bottom - top, 1)
    mask = cv2.resize(pill.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return Found((left, top, *size), mask > 0, pill.confidence)


def _cut(pill: Found, left: int, top: int, width: int, height: int) -> Found | None:
    """The part of a find that lies in a window of its frame, there."""
    x, y, columns, rows = pill.box
    x_from, x_to = max(x, left), min(x + columns, left + width)
    y_from, y_to = max(y, top), min(y + rows, top + height)
    mask = pill.mask[max(y_from - y, 0) : max(y_to - y, 0), max(x_from - x, 0) : max(x_to - x, 0)]
    if not mask.any():
        return None
    box = (x_from - left, y_from - top, x_to - x_from, y_to - y_from)
    return Found(box, mask, pill.confidence)
