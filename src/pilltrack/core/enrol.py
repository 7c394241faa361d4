"""Photos of a pill -> the embeddings it is enrolled with.

A probe lies in any turn, so a reference is not the embedding of one photo but the mean of several
views of it: at least its four quarter turns. Enrolling takes four times as long for it, and
searching no longer (recall@1 of new pills 77 % -> 81 %, docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.embedder import Embedder, l2_normalise
from pilltrack.core.errors import ImageRejected
from pilltrack.core.image import MIN_SIDE_PX
from pilltrack.core.locate import Locator, crop

Photo = NDArray[np.uint8]  # (H, W, 3)


def lone_pill(locator: Locator, image: str, photo: Photo) -> Photo:
    """Cut the one pill out of a photo, as `identify` will see it: a square (L, L, 3) uint8.

    Raises ImageRejected, naming `image`, when the photo shows no pill or several.
    """
    found = locator.locate(photo)
    if len(found) != 1:
        raise ImageRejected(
            image,
            found=f"{len(found)} pills" if found else "no pill",
            expected="a photo that shows one pill",
            remedy="Photograph the pill alone on a plain surface; --crop takes a photo that is "
            "nothing but the pill as it is.",
        )
    square = crop(photo, found[0])
    if len(square) < MIN_SIDE_PX:
        raise ImageRejected(
            image,
            found=f"a pill {found[0].length_px:.0f} pixels long",
            expected="one that the camera shows larger",
            remedy="Go closer to the pill.",
        )
    return square


def embed_references(embedder: Embedder, photos: Sequence[Photo]) -> NDArray[np.float32]:
    """Unit embeddings (N, D) float32 to enrol N photos with; errors as `Embedder.embed`."""
    return mean_embeddings(embedder, [quarter_turns(photo) for photo in photos])


def quarter_turns(photo: Photo) -> list[Photo]:
    """The photo turned by 0, 90, 180 and 270 degrees."""
    return [np.ascontiguousarray(np.rot90(photo, turn)) for turn in range(4)]


def mean_embeddings(embedder: Embedder, views: Sequence[Sequence[Photo]]) -> NDArray[np.float32]:
    """For each of N sets of views the direction of the mean of their embeddings, (N, D) float32.

    Views that the model sees nothing in take no part; a set of nothing else stays zero.
    """
    embedded = embedder.embed([view for views_of_one in views for view in views_of_one])
    ends = np.cumsum([len(views_of_one) for views_of_one in views], dtype=int)
    sums = [part.sum(axis=0) for part in np.split(embedded, ends[:-1])] if views else []
    return l2_normalise(np.array(sums, np.float32).reshape(len(views), embedder.dim))
