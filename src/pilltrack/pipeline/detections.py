"""Scores of a locator: which finds are pills, how many pills are found, average precision.

A find is right when its box has an IoU of at least 0.5 with a pill that no more confident find
took (the rule of PASCAL VOC, Everingham et al. 2010, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.locate import Found, Locator

Boxes = NDArray[np.float64]  # (N, 4) x, y, width, height
MIN_IOU = 0.5
ANY_CONFIDENCE = 0.01  # whose finds AP50 counts


@dataclass(frozen=True)
class FrameScore:
    """One frame: how sure each find was, whether it was right, and how many pills there were."""

    confidences: NDArray[np.float64]  # (F,)
    right: NDArray[np.bool_]  # (F,)
    n_pills: int

    @property
    def exact(self) -> bool:
        """As many finds as pills."""
        return len(self.right) == self.n_pills


def boxes_of(found: Sequence[Found]) -> tuple[Boxes, list[float]]:
    """What `score_frame` takes of a locator's finds: their boxes (F, 4) and confidences."""
    boxes = np.array([pill.box for pill in found], np.float64).reshape(-1, 4)
    return boxes, [pill.confidence for pill in found]


def score_frame(found: Boxes, confidences: Sequence[float], pills: Boxes) -> FrameScore:
    """Match the finds (F, 4) of a frame with its pills (N, 4), the most confident find first.

    >>> pills = np.array([[0.0, 0, 10, 10]])
    >>> found = np.array([[0.0, 0, 9, 10], [1, 0, 10, 10]])
    >>> score_frame(found, [0.5, 0.9], pills).right.tolist()
    [False, True]
    """
    scores = np.asarray(confidences, np.float64)
    right = np.zeros(len(scores), bool)
    shares = box_ious(found, pills)  # (F, N)
    for index in np.argsort(-scores, kind="stable"):
        if len(pills) and shares[index].max() >= MIN_IOU:
            right[index] = True
            shares[:, shares[index].argmax()] = 0
    return FrameScore(scores, right, len(pills))


def box_ious(some: Boxes, others: Boxes) -> NDArray[np.float64]:
    """IoU of every box (F, 4) with every other (N, 4): (F, N).

    >>> box_ious(np.array([[0.0, 0, 2, 1]]), np.array([[1.0, 0, 2, 1]])).round(3).tolist()
    [[0.333]]
    """
    a, b = np.reshape(some, (-1, 1, 4)), np.reshape(others, (1, -1, 4))
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    both = (high - low).clip(0).prod(axis=2)
    union = a[..., 2:].prod(axis=2) + b[..., 2:].prod(axis=2) - both
    shares: NDArray[np.float64] = both / np.maximum(union, 1e-9)
    return shares


def score_locator(
    locator: Locator, frame: NDArray[np.uint8], pills: Boxes
) -> tuple[FrameScore, FrameScore]:
    """Match what a locator finds in a frame (H, W, 3), and its finds of any confidence."""
    found = locator.find(frame, min(ANY_CONFIDENCE, locator.min_confidence))
    limits = (locator.min_confidence, ANY_CONFIDENCE)
    sure, every = (
        score_frame(*boxes_of([pill for pill in found if pill.confidence >= least]), pills)
        for least in limits
    )
    return sure, every


def summary(
    frames: Sequence[FrameScore], every: Sequence[FrameScore] | None = None
) -> dict[str, float]:
    """Recall, precision, AP50, share of frames counted exactly, and share with a false find.

    AP50 is that of `every`: the same frames with finds of any confidence, as its curve runs
    through all of them; of `frames` if None. Recall is 1 without pills, precision 1 without finds.

    >>> frame = FrameScore(np.array([0.9, 0.8]), np.array([True, False]), 2)
    >>> [summary([frame])[key] for key in ("recall", "precision", "ap50", "exact_count")]
    [0.5, 0.5, 0.5, 1.0]
    """
    n_pills = sum(frame.n_pills for frame in frames)
    n_finds = sum(len(frame.right) for frame in frames)
    n_right = sum(int(frame.right.sum()) for frame in frames)
    return {
        "frames": len(frames),
        "pills": n_pills,
        "recall": n_right / n_pills if n_pills else 1.0,
        "precision": n_right / n_finds if n_finds else 1.0,
        "ap50": average_precision(frames if every is None else every),
        "exact_count": float(np.mean([frame.exact for frame in frames])),
        "false_finds": float(np.mean([not frame.right.all() for frame in frames])),
    }


def average_precision(frames: Sequence[FrameScore]) -> float:
    """Area below the precision-recall curve at IoU 0.5, at all points, precision made monotone.

    Everingham et al. 2010, with every recall as a sampling point (VOC since 2010). 1 without
    pills.
    """
    n_pills = sum(frame.n_pills for frame in frames)
    if not n_pills:
        return 1.0
    confidences = np.concatenate([frame.confidences for frame in frames])
    right = np.concatenate([frame.right for frame in frames])
    right = right[np.argsort(-confidences, kind="stable")]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[right].sum() / n_pills)
