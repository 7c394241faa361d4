"""What a probe is compared with: the looks of a pill, made of its references.

A pill with many references gives a stranger as many chances to resemble one of them. Of four
references or more, therefore, each look is the mean of two of one side, which a stranger seldom
resembles by luck. Means beat sets here as they do for a single reference, the mean of a photo's
quarter turns. Fewer references than that may well be one for each side, even where no side is
named; they are looks as they are, and so is what has no other to be paired with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Why these: docs/adr/0007-looks.md. Every threshold since bundle format 8 was set with them:
# whoever changes one must change the bundle's FORMAT.
ENOUGH_TO_PAIR = 4
ALL_PAIRS = 6  # references of a side; of more, each is paired with the one most like it


def looks_of(references: NDArray[np.float32], sides: Sequence[str]) -> NDArray[np.float32]:
    """The looks (L, D) float32, unit length, of one pill with references (N, D), unit length.

    `sides` (N,), "front", "back" or empty. In whatever order they come, the looks are the same.
    Two references that point apart (cosine below 0) are no pair. L is N below `ENOUGH_TO_PAIR`,
    and at most 15 or N, whichever is more, for each side.

    >>> looks_of(np.eye(2, dtype=np.float32), ["", ""]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> looks_of(np.eye(5, dtype=np.float32), ["front"] * 3 + ["back"] * 2).shape
    (4, 5)
    """
    if len(references) < ENOUGH_TO_PAIR:
        return references
    pairs = [
        _pairs(references, np.flatnonzero(np.array(sides) == side)) for side in sorted(set(sides))
    ]
    first, second = np.concatenate(pairs, axis=1)
    agree = np.einsum("pd,pd->p", references[first], references[second]) >= 0
    first, second = first[agree], second[agree]
    sums = references[first] + references[second]
    alone = np.setdiff1d(np.arange(len(references)), np.concatenate([first, second]))
    means = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return np.concatenate([means, references[alone]])


def all_looks(
    references: NDArray[np.float32], pills: Sequence[str], sides: Sequence[str]
) -> tuple[NDArray[np.float32], list[str]]:
    """The looks (L, D) of all pills, and whose each is, from references (R, D).

    `pills` (R,) and `sides` (R,): what each reference shows.
    """
    rows_of: dict[str, list[int]] = {}
    for row, pill in enumerate(pills):
        rows_of.setdefault(pill, []).append(row)
    if not rows_of:
        return references, []
    found = [
        (pill, looks_of(references[rows], [sides[row] for row in rows]))
        for pill, rows in rows_of.items()
    ]
    names = [pill for pill, looks in found for _ in looks]
    return np.concatenate([looks for _, looks in found]), names


def _pairs(references: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of these rows are paired: (2, P)."""
    if len(rows) <= ALL_PAIRS:
        first, second = np.triu_indices(len(rows), 1)
        return np.stack([rows[first], rows[second]])
    cosines = references[rows] @ references[rows].T
    np.fill_diagonal(cosines, -np.inf)
    pairs = np.sort(np.stack([rows, rows[cosines.argmax(axis=1)]]), axis=0)
    return np.unique(pairs, axis=1)
