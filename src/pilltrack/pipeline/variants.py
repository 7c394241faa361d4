"""New pills made of old ones: another colour, other proportions, perhaps mirrored.

A network that has seen two thousand pills learns what tells those apart. A white round tablet
dyed green, drawn out to an oval and seen in a mirror is a pill that nobody makes, but telling it
from all others asks for the same skill: colour, shape and imprint. Each variant is a pill of its
own, with the same change on both sides. A photo that no pill can be cut out of is changed as a
whole, surroundings and all. (Classes made by transforming classes: Lee, Hwang and Shin 2020,
"Self-supervised label augmentation via input transformations", section 3.)
"""

from __future__ import annotations

import colorsys
import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

Photo = NDArray[np.uint8]

_SATURATION, _BRIGHTNESS = (0.2, 0.65), (0.7, 1.1)  # of the dye
_PROPORTION = 1.3  # drawn out or shortened at most so many times


def variant_of(photo: Photo, pill: str, number: int) -> Photo:
    """Variant `number` of a photo (H, W, 3) or cut-out (H, W, 4) uint8 of `pill`.

    Number 0 is the photo itself. A variant depends on the pill's name and the number alone, so
    that all photos of a pill become photos of one other pill.

    >>> white = np.full((4, 8, 3), 200, np.uint8)
    >>> variant_of(white, "a", 0) is white
    True
    >>> dyed = variant_of(white, "a", 1)
    >>> dyed.shape[2], len(set(dyed[0, 0].tolist())) > 1
    (3, True)
    """
    if number == 0:
        return photo
    digest = hashlib.sha256(f"{pill}\t{number}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    dye = np.array(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(*_SATURATION), rng.uniform(*_BRIGHTNESS))
    )
    channels = rng.permutation(3)
    mirrored = rng.random() < 0.5
    proportion = _PROPORTION ** rng.uniform(-1, 1)
    table = np.clip(np.arange(256)[:, None] * dye, 0, 255).astype(np.uint8)[None]  # (1, 256, 3)
    changed: Photo = cv2.LUT(np.ascontiguousarray(photo[..., channels]), table)
    if photo.shape[2] == 4:
        changed = np.dstack([changed, photo[..., 3]])
    height, width = photo.shape[:2]
    changed = cv2.resize(changed, (width, max(1, round(height * proportion))))
    return np.ascontiguousarray(changed[:, ::-1]) if mirrored else changed
