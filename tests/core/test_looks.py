"""Looks: what a probe is compared with."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.looks import ALL_PAIRS, ENOUGH_TO_PAIR, all_looks, looks_of

AXES = np.eye(60, dtype=np.float32)


def made_of(looks: NDArray[np.float32]) -> set[tuple[int, ...]]:
    """The axes that each look is the mean of."""
    np.testing.assert_allclose(np.linalg.norm(looks, axis=1), 1, atol=1e-6)
    return {tuple(np.flatnonzero(look).tolist()) for look in looks}


@pytest.mark.parametrize("count", [0, 1, ENOUGH_TO_PAIR - 1])
def test_few_references_are_looks_as_they_are(count: int) -> None:
    np.testing.assert_array_equal(looks_of(AXES[:count], [""] * count), AXES[:count])


@pytest.mark.parametrize("count", [ENOUGH_TO_PAIR, ALL_PAIRS])
def test_several_references_are_paired_each_with_each(count: int) -> None:
    looks = looks_of(AXES[:count], [""] * count)
    assert made_of(looks) == set(combinations(range(count), 2))
    assert len(looks) == count * (count - 1) / 2


def test_of_many_references_each_is_paired_with_the_one_most_like_it() -> None:
    """Five of one side and two of the other, no side named: no look mixes them."""
    rng = np.random.default_rng(0)
    middles = np.repeat(AXES[:2, :8], [ALL_PAIRS - 1, 2], axis=0)
    references = middles + 0.2 * rng.normal(size=middles.shape).astype(np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    looks = looks_of(references, [""] * len(references))
    assert 4 <= len(looks) <= len(references)
    likeness = looks @ AXES[:2, :8].T
    assert (likeness.max(axis=1) > 0.8).all()
    assert (likeness.min(axis=1) < 0.4).all()
    assert (likeness[:, 1] > 0.8).sum() == 1


@given(st.integers(ALL_PAIRS + 1, 60))
def test_many_references_have_no_more_looks(count: int) -> None:
    rng = np.random.default_rng(count)
    references = abs(rng.normal(size=(count, 8))).astype(np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    looks = looks_of(references, [""] * count)
    assert count / 2 <= len(looks) <= count


def test_only_references_of_one_side_are_paired_and_a_lone_one_stays() -> None:
    looks = looks_of(AXES[:6], ["front", "back", "front", "", "front", ""])
    assert made_of(looks) == {(0, 2), (0, 4), (2, 4), (1,), (3, 5)}


def test_references_that_point_apart_are_no_pair() -> None:
    axes = np.array([[1, 0, 0], [-1, 0, 0], [-0.6, 0.8, 0], [0, 0, 1]], np.float32)
    opposite = looks_of(axes, ["front", "front", "back", "back"])
    expected = np.array([[-0.4243, 0.5657, 0.7071], [1, 0, 0], [-1, 0, 0]])
    np.testing.assert_allclose(opposite, expected, atol=1e-4)


@given(st.integers(4, 20))
def test_the_order_of_references_does_not_matter(count: int) -> None:
    rng = np.random.default_rng(count)
    references = rng.normal(size=(count, 8)).astype(np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    sides = [("front", "back", "")[n % 3] for n in range(count)]
    order = rng.permutation(count)
    looks = looks_of(references, sides)
    again = looks_of(references[order], [sides[n] for n in order])
    np.testing.assert_allclose(
        looks[np.lexsort(looks.round(4).T)], again[np.lexsort(again.round(4).T)], atol=1e-6
    )


def test_looks_of_all_pills_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    references = abs(rng.normal(size=(11, 3))).astype(np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    pills, sides = [*"abababab", "c", "a", "c"], [*"xyxyxyxyx", "z", "y"]
    looks, names = all_looks(references, pills, sides)
    for pill, count in (("a", 7), ("b", 6), ("c", 2)):  # "a" has a lone side
        of_pill = [look for look, name in zip(looks, names, strict=True) if name == pill]
        rows = [row for row, name in enumerate(pills) if name == pill]
        np.testing.assert_array_equal(
            of_pill, looks_of(references[rows], [sides[row] for row in rows])
        )
        assert len(of_pill) == count
    looks, names = all_looks(references[:0], [], [])
    assert (looks.shape, names) == ((0, 3), [])
