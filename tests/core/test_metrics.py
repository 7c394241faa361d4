import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.metrics import (
    auroc,
    average_precision,
    best_per_pill,
    fnir_at_fpir,
    just_above,
    recall_at_k,
)


def test_best_reference_speaks_for_its_pill() -> None:
    similarities = [[0.1, 0.5, 0.3, 0.2], [0.9, -0.2, 0.8, -0.1]]
    scores, pills = best_per_pill(similarities, ["z", "m", "z", "m"])
    assert pills == ["m", "z"]
    assert scores.tolist() == [[0.5, 0.3], [-0.1, 0.9]]


SCORES = [
    [0.9, 0.5, 0.1],  # truth a: rank 1
    [0.9, 0.5, 0.1],  # truth b: rank 2
    [0.9, 0.5, 0.1],  # truth c: rank 3
    [0.4, 0.4, 0.1],  # truth a: tied with b, rank 2
]
TRUTH = ["a", "b", "c", "a"]


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.75), (3, 1.0), (9, 1.0)])
def test_recall_counts_ties_against_us(k: int, expected: float) -> None:
    assert recall_at_k(SCORES, ["a", "b", "c"], TRUTH, k) == expected


def test_recall_refuses_a_stranger() -> None:
    with pytest.raises(ValueError, match="'d' is not enrolled"):
        recall_at_k(SCORES, ["a", "b", "c"], ["a", "b", "c", "d"], 1)


def test_fnir_counts_misses_and_wrong_names() -> None:
    strangers = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    # 2 of 10 may pass: 0.95 and 0.9; the threshold lies just above 0.8.
    # Of the mated, 0.8 is too low (equal is not above), 0.97 has the wrong name.
    fnir, threshold, actual = fnir_at_fpir(
        [0.99, 0.85, 0.97, 0.8], [True, True, False, True], strangers, fpir=0.2
    )
    assert fnir == 0.5
    assert 0.8 < threshold < 0.8 + 1e-6
    assert actual == 0.2


def test_ties_among_strangers_keep_fpir_below_its_limit() -> None:
    fnir, threshold, actual = fnir_at_fpir([0.9], [True], [0.5, 0.5, 0.5, 0.1], fpir=0.5)
    assert (fnir, actual) == (0.0, 0.0)
    assert threshold > 0.5


def test_zero_fpir_lies_above_every_stranger() -> None:
    fnir, _, actual = fnir_at_fpir([0.9, 0.6], [True, True], [0.7, 0.2], fpir=0)
    assert (fnir, actual) == (0.5, 0.0)


def test_allowed_strangers_are_counted_in_decimals() -> None:
    strangers = [i / 128 for i in range(100)]  # 0.29 * 100 is 28.999... in binary
    assert fnir_at_fpir([0.9], [True], strangers, fpir=0.29)[2] == 0.29


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
)
def test_fpir_is_kept_and_a_lower_threshold_would_break_it(
    strangers: list[float], fpir: float
) -> None:
    _, threshold, actual = fnir_at_fpir([0.0], [True], strangers, fpir)
    assert actual <= fpir
    lower = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    accepted = int(np.sum(np.array(strangers) >= lower))
    # A third of nine is more than 0.3333333333333333, as it is written.
    assert Fraction(accepted, len(strangers)) > Fraction(str(fpir))


def test_auroc_counts_pairs_with_ties_as_half() -> None:
    # pairs: 3>1, 3>2, 2>1 won, 2=2 half: 3.5 of 4
    assert auroc([3, 2], [1, 2]) == 3.5 / 4
    assert auroc([1, 2], [3]) == 0.0
    assert auroc([5, 5, 5], [5, 5]) == 0.5


def test_average_precision_counts_ties_against_us() -> None:
    # Relevant at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    found = average_precision([0.9, 0.8, 0.7, 0.6, 0.1], [True, False, True, True, False])
    assert found == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert average_precision([0.5, 0.5], [True, False]) == 0.5  # the other one counts as ahead
    assert average_precision([0.5, 0.5], [True, True]) == 1.0


@given(st.floats(-1, 1))
def test_just_above_rejects_the_score_in_both_precisions(score: float) -> None:
    assert not score >= just_above(score)
    assert not np.float32(score) >= just_above(score)
    assert just_above(score) - score <= 2e-7


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: best_per_pill([bad], ["a"] * len(bad)),
        lambda bad: recall_at_k([bad], ["a"] * len(bad), ["a"], 1),
        lambda bad: fnir_at_fpir(bad, [True] * len(bad), [0.1], 0.1),
        lambda bad: fnir_at_fpir([0.1], [True], bad, 0.1),
        lambda bad: auroc(bad, [0.1]),
        lambda bad: auroc([0.1], bad),
        lambda bad: average_precision(bad, [True] * len(bad)),
    ],
)
@pytest.mark.parametrize("bad", [[], [math.nan]])
def test_empty_and_nan_input_is_refused(
    call: Callable[[list[float]], object], bad: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"none empty|not finite"):
        call(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: best_per_pill([[0.1, 0.2]], ["a"]),
        lambda: recall_at_k([[0.1, 0.2]], ["a", "a"], ["a"], 1),
        lambda: recall_at_k([[0.1]], ["a"], ["a", "a"], 1),
        lambda: recall_at_k([[0.1]], ["a"], ["a"], 0),
        lambda: fnir_at_fpir([0.1], [True, False], [0.1], 0.1),
        lambda: fnir_at_fpir([0.1], [1], [0.1], 0.1),
        lambda: fnir_at_fpir([0.1], [True], [0.1], 1.0),
        lambda: average_precision([0.1], [True, False]),
        lambda: average_precision([0.1], [False]),
    ],
)
def test_input_that_does_not_fit_together_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"for|expected"):
        call()
