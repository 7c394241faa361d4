"""A find of the locator -> is it a pill after all: a closer look at finds in doubt.

The locator sees a whole frame, a pill in it in a few cells. The second network sees one find with
what lies around it, as large as all others, and says by how much the odds that it is a pill rise
or fall. Both belong together: it is taught on what a first network finds. What the first one is
sure of needs no second look, unless the frame's border may have cut it off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.errors import BundleRejected
from pilltrack.core.litert import LiteRTModel
from pilltrack.core.preprocess import square_around

SIGNATURE = "look"  # of the network in the locator's file
LEAST_LOOKED_AT = 0.1  # confidence of the first look; less sure finds are dropped unseen
SURE = 0.6  # of the first look: surer finds are believed unseen, away from the border
BELIEVED = 2.0  # log-odds that stand for the second look there: about what it says of right finds
LOOK_SHARE = 0.6  # of the look's side that the find's length takes
FIRST_WEIGHT = 2.0  # of the first network's log-odds beside the second's
TRUST = 0.5  # share of what the second says that counts: it learned from composed scenes alone
CUT = 1.5  # log-odds less for a find at the frame's border: a pen cut off there ends like a pill
CUT_WITHIN = 0.02  # of the frame's longer side, from the border, where less and less is taken off


class Find(Protocol):
    """What a first look found: a `core.locate.Found`."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) in pixels of the frame."""
        ...

    @property
    def confidence(self) -> float:
        """How sure (0 to 1) the first look is."""
        ...

    @property
    def length_px(self) -> float:
        """The longer side, however it is turned."""
        ...


class SecondLook:
    """The network under SIGNATURE in a locator's file: (1, S, S, 3) -> (1, 1), float32 or 8 bits.

    Safe to share between threads: they take turns. Raises BundleRejected for another shape.
    """

    def __init__(self, model: Path, model_bytes: bytes, *, threads: int = 1) -> None:
        self._model = LiteRTModel(
            model, model_bytes, fits=_fits, refusal=_no_look, threads=threads, signature=SIGNATURE
        )

    def confidences(
        self, frame: NDArray[np.uint8], finds: Sequence[Find], sure: float = SURE
    ) -> list[float]:
        """How sure (0 to 1) both looks together are of each find in a frame (H, W, 3).

        Away from the border, finds of which the first look is `sure` (0 to 1) are not looked at;
        with math.inf all are.
        """
        cuts = [cut_off(find.box, *frame.shape[:2]) for find in finds]
        doubtful = [n for n, find in enumerate(finds) if cuts[n] > 0 or find.confidence < sure]
        seconds = [BELIEVED] * len(finds)
        if doubtful:
            crops = [self._closer(frame, finds[n]) for n in doubtful]
            answers = self._model.run(np.stack(crops))[:, 0].tolist()
            for n, second in zip(doubtful, answers, strict=True):
                seconds[n] = second
        return [
            weighed(find.confidence, second, cut)
            for find, second, cut in zip(finds, seconds, cuts, strict=True)
        ]

    def _closer(self, frame: NDArray[np.uint8], find: Find) -> NDArray[np.uint8]:
        return closer(frame, find.box, find.length_px / LOOK_SHARE, self._model.input_size_px)


def closer(
    frame: NDArray[np.uint8], box: tuple[int, int, int, int], side_px: float, size_px: int
) -> NDArray[np.uint8]:
    """The square of `side_px` around a box's middle, (size_px, size_px, 3) uint8.

    Beyond the frame's border it is black: what the border cuts shall look cut.
    """
    return square_around(frame, box, max(1, round(side_px)), size_px, cv2.BORDER_CONSTANT)


def cut_off(box: tuple[int, int, int, int], height_px: int, width_px: int) -> float:
    """How close a box (x, y, width, height) is to its frame's border.

    1 for one that touches it, so more of it may lie beyond; falls to 0 at CUT_WITHIN.

    >>> cut_off((0, 30, 9, 9), 100, 100), cut_off((30, 90, 9, 9), 100, 100)
    (1.0, 0.5)
    """
    x, y, width, height = box
    gap_px = min(x, y, width_px - x - width, height_px - y - height)
    return min(max(1 - gap_px / (CUT_WITHIN * max(height_px, width_px)), 0.0), 1.0)


def log_odds(confidence: float) -> float:
    """The logarithm of the odds; those of 0 and 1 are taken for nearly so.

    >>> log_odds(0.5)
    0.0
    """
    certain = min(max(confidence, 1e-4), 1 - 1e-4)
    return math.log(certain / (1 - certain))


def weighed(first: float, second: float, cut: float = 0.0) -> float:
    """A confidence (0 to 1) and the log-odds of the second look -> the confidence of both.

    `cut` (0 to 1) is what `cut_off` says of the find.

    >>> weighed(0.5, 0.0), round(weighed(0.7, -1.0), 2), round(weighed(0.7, -1.0, cut=1.0), 2)
    (0.5, 0.77, 0.42)
    """
    return 1 / (1 + math.exp(-FIRST_WEIGHT * log_odds(first) - TRUST * second + CUT * cut))


def _fits(shape_in: list[int], shape_out: list[int]) -> bool:
    """True for the shapes (1, S, S, 3) and (1, 1)."""
    match shape_in, shape_out:
        case [1, side, width, 3], [1, 1]:
            return side == width >= 1
    return False


def _no_look(model: Path, found: str) -> BundleRejected:
    return BundleRejected(
        str(model),
        found=f"a signature {SIGNATURE} with {found}",
        expected="one input (1, S, S, 3) and one output (1, 1)",
        remedy="Take the locator.tflite that `pilltrack locate` writes.",
    )
