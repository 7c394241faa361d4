"""What a probe is compared with: the looks of a pill, made of its references.

A pill with many references gives a stranger as many chances to resemble one of them. Of four
references or more, therefore, each look is the mean of two, and a stranger must resemble both.
Means beat sets here as they do for a single reference, the mean of a photo's quarter turns. Fewer
references than that may well be one for each side, which have nothing in common: they are looks
as they are. Figures: docs/lab-log.md, 2026-11-30.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Chosen on validation pills. Every threshold since bundle format 8 was set with these two: whoever
# changes one must change the bundle's FORMAT.
ENOUGH_TO_PAIR = 4
PARTNERS = 4  # of each reference: all others up to nine references, then the next four in order


def looks_of(references: NDArray[np.float32]) -> NDArray[np.float32]:
    """The looks (L, D) float32, unit length, of one pill with references (N, D), unit length.

    L is N below `ENOUGH_TO_PAIR`, N (N - 1) / 2 up to nine references, and 4 N for more.

    >>> looks_of(np.eye(2, dtype=np.float32)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> looks_of(np.eye(5, dtype=np.float32)).shape
    (10, 5)
    """
    if len(references) < ENOUGH_TO_PAIR:
        return references
    first, second = _pairs(len(references))
    sums = references[first] + references[second]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    # Two that are opposite have no mean.
    looks: NDArray[np.float32] = np.where(
        lengths > 1e-3, sums / np.maximum(lengths, 1e-3), references[first]
    )
    return looks


def all_looks(
    references: NDArray[np.float32], pills: Sequence[str]
) -> tuple[NDArray[np.float32], list[str]]:
    """The looks (L, D) of all pills, and whose each is, from references (R, D) of `pills` (R,).

    The references of a pill are taken in the order given.
    """
    rows_of: dict[str, list[int]] = {}
    for row, pill in enumerate(pills):
        rows_of.setdefault(pill, []).append(row)
    found = [(pill, looks_of(references[rows])) for pill, rows in rows_of.items()]
    if not found:
        return references, []
    return (
        np.concatenate([looks for _, looks in found]),
        [pill for pill, looks in found for _ in looks],
    )


@cache
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    pairs = {
        tuple(sorted((one, (one + step) % count)))
        for one in range(count)
        for step in range(1, min(PARTNERS, count - 1) + 1)
    }
    first, second = np.array(sorted(pairs), np.intp).T
    return first, second
