"""Looks: what a probe is compared with."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.looks import ENOUGH_TO_PAIR, all_looks, looks_of


@pytest.mark.parametrize("count", [0, 1, ENOUGH_TO_PAIR - 1])
def test_few_references_are_looks_as_they_are(count: int) -> None:
    references = np.eye(5, dtype=np.float32)[:count]
    np.testing.assert_array_equal(looks_of(references), references)


@pytest.mark.parametrize("count", [ENOUGH_TO_PAIR, 7, 9])
def test_up_to_nine_references_are_paired_each_with_each(count: int) -> None:
    references = np.eye(12, dtype=np.float32)[:count]
    found = {tuple(np.flatnonzero(look).tolist()) for look in looks_of(references)}
    assert found == set(combinations(range(count), 2))
    assert len(looks_of(references)) == len(found)
    assert looks_of(references).max() == pytest.approx(0.5**0.5)


@given(st.integers(10, 60))
def test_more_have_four_looks_each(count: int) -> None:
    references = np.eye(60, dtype=np.float32)[:count]
    looks = looks_of(references)
    assert len(looks) == 4 * count
    assert ((looks > 0).sum(axis=0)[:count] == 8).all()  # no reference counts more than another
    assert looks.dtype == np.float32


def test_opposite_references_give_a_look_of_unit_length() -> None:
    axis = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    assert np.linalg.norm(looks_of(axis), axis=1) == pytest.approx(1)


def test_looks_of_all_pills_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    references = rng.normal(size=(11, 3)).astype(np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    pills = [*"abababab", "c", "a", "c"]
    looks, names = all_looks(references, pills)
    for pill, count in (("a", 10), ("b", 6), ("c", 2)):
        of_pill = [look for look, name in zip(looks, names, strict=True) if name == pill]
        own = references[[name == pill for name in pills]]
        np.testing.assert_array_equal(of_pill, looks_of(own))
        assert len(of_pill) == count
    looks, names = all_looks(references[:0], [])
    assert (looks.shape, names) == ((0, 3), [])
