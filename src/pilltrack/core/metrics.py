"""How good identification is: pure functions, each with its definition, formula and source.

Probes are rows, pills or references columns, similarities higher when more alike. Equal scores
never count in our favour. Nothing is estimated from nothing: empty input raises ValueError, and
so does NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_per_pill(
    similarities: ArrayLike, reference_pills: Sequence[str]
) -> tuple[NDArray[np.float64], list[str]]:
    """Reduce similarities to references (P, R) to the best one per pill (P, n_pills).

    score(p, pill) = max over the references r of the pill of similarity(p, r): the nearest
    reference speaks for its pill, as in `Gallery.search`. Columns are in sorted order of the
    pills, which are returned beside the scores.

    >>> best_per_pill([[0.1, 0.9, 0.4]], ["b", "a", "b"])
    (array([[0.9, 0.4]]), ['a', 'b'])
    """
    values = _finite("similarities", similarities, ndim=2)
    if values.shape[1] != len(reference_pills):
        raise ValueError(f"similarities {values.shape} for {len(reference_pills)} references")
    pills, columns = np.unique(np.asarray(reference_pills, dtype=object), return_inverse=True)
    order = np.argsort(columns, kind="stable")
    starts = np.searchsorted(columns[order], np.arange(len(pills)))
    return np.maximum.reduceat(values[:, order], starts, axis=1), pills.tolist()


def true_ranks(scores: ArrayLike, pills: Sequence[str], truth: Sequence[str]) -> NDArray[np.intp]:
    """Rank of the true pill of each mated probe, 1 for the best: (P,) integers.

    rank(p) = 1 + |{pill != truth(p) : score >= the true pill's}|: a wrong pill with an equal
    score counts as ahead.

    `scores` (P, n_pills) with columns `pills`, each once; `truth` (P,). Raises ValueError when a
    true pill has no column: such a probe is a stranger.

    >>> true_ranks([[0.9, 0.1], [0.5, 0.5]], ["a", "b"], ["a", "a"]).tolist()
    [1, 2]
    """
    values = _finite("scores", scores, ndim=2)
    column_of = {pill: column for column, pill in enumerate(pills)}
    if values.shape != (len(truth), len(pills)) or len(column_of) != len(pills):
        raise ValueError(
            f"scores {values.shape} for {len(truth)} probes and {len(column_of)} distinct pills"
        )
    strangers = sorted(set(truth) - set(column_of))
    if strangers:
        raise ValueError(f"true pill {strangers[0]!r} is not enrolled: its probes are strangers")
    columns = np.array([column_of[pill] for pill in truth])
    own = values[np.arange(len(values)), columns]
    ranks: NDArray[np.intp] = (values >= own[:, None]).sum(axis=1)  # the true pill is the 1
    return ranks


def recall_at_k(scores: ArrayLike, pills: Sequence[str], truth: Sequence[str], k: int) -> float:
    """Share of mated probes whose true pill is among the k best, in 0..1.

    recall@k = |{p : rank(p) <= k}| / P, with the ranks of `true_ranks`. Also called the
    cumulative match characteristic, CMC(k): Grother, Ngan & Hanaoka, NISTIR 8271 (2019),
    section 3.1; with k = 1, rank-1 identification.

    >>> recall_at_k([[0.9, 0.1], [0.5, 0.5]], ["a", "b"], ["a", "a"], k=1)
    0.5
    >>> recall_at_k([[0.9, 0.1], [0.5, 0.5]], ["a", "b"], ["a", "a"], k=2)
    1.0
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    return float(np.mean(true_ranks(scores, pills, truth) <= k))


def fnir_at_fpir(
    mated_top: ArrayLike, mated_correct: ArrayLike, stranger_top: ArrayLike, fpir: float
) -> tuple[float, float, float]:
    """Miss rate at the operating point with at most `fpir` false alarms: (fnir, threshold, fpir).

    threshold t = the lowest with FPIR(t) <= fpir, where
    FPIR(t) = |{stranger : top score >= t}| / strangers,
    FNIR(t) = |{mated : top score < t, or the top pill is wrong}| / mated.
    Definitions: ISO/IEC 19795-1:2021, open-set identification; Grother, Ngan & Hanaoka,
    NISTIR 8271 (2019), section 3.2. Report both with the gallery size.

    `mated_top` (M,) and `stranger_top` (S,): best score per probe; `mated_correct` (M,) bool:
    whether it belongs to the true pill (a tie with a wrong one is not correct). 0 <= fpir < 1.
    The third value is the FPIR reached, at most `fpir`. The threshold fits these strangers; a
    promise about new ones needs `decide.threshold_at_fpir`.

    >>> fnir, threshold, actual = fnir_at_fpir(
    ...     [0.9, 0.8, 0.3], [True, False, True], [0.1, 0.2, 0.4, 0.6], fpir=0.25)
    >>> round(fnir, 3), round(threshold, 3), actual  # 0.8 is wrong, 0.3 too low
    (0.667, 0.4, 0.25)
    """
    mated = _finite("mated_top", mated_top, ndim=1)
    correct = np.asarray(mated_correct)
    strangers = _finite("stranger_top", stranger_top, ndim=1)
    if correct.shape != mated.shape or correct.dtype != np.bool_:
        raise ValueError(
            f"mated_correct {correct.shape} {correct.dtype}; expected {mated.shape} bool"
        )
    if not 0 <= fpir < 1:
        raise ValueError(f"fpir is {fpir}; expected 0 <= fpir < 1")
    # Exact decimals: 0.29 * 100 is 28.999... in binary.
    n_allowed = math.floor(len(strangers) * Fraction(str(float(fpir))))
    threshold = just_above(np.sort(strangers)[::-1][n_allowed])
    fnir = float(np.mean(~correct | (mated < threshold)))
    return fnir, threshold, float(np.mean(strangers >= threshold))


def auroc(mated_scores: ArrayLike, stranger_scores: ArrayLike) -> float:
    """Chance that a random mated probe scores above a random stranger, in 0..1 (0.5: no better).

    AUROC = (|{(m, s) : m > s}| + |{(m, s) : m = s}| / 2) / (M S), the Mann-Whitney statistic:
    Hanley & McNeil, Radiology 143 (1982), 29-36. Inputs (M,) and (S,).

    >>> auroc([0.9, 0.5], [0.5, 0.1])
    0.875
    """
    mated = _finite("mated_scores", mated_scores, ndim=1)
    strangers = np.sort(_finite("stranger_scores", stranger_scores, ndim=1))
    below = np.searchsorted(strangers, mated, side="left")
    below_or_equal = np.searchsorted(strangers, mated, side="right")
    return float((below + below_or_equal).sum() / (2 * len(mated) * len(strangers)))


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[str],
    n_resamples: int = 1000,
    level: float = 0.95,
    *,
    seed: int,
) -> tuple[float, float]:
    """Interval (low, high) for the mean of `values`, resampling whole groups (pills).

    Photos of one pill resemble each other, so pills, not photos, are drawn with replacement; the
    mean over all values of the drawn pills is taken, and the interval lies between the
    (1 - level) / 2 and (1 + level) / 2 quantiles of these means. Percentile bootstrap: Efron &
    Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; by clusters: Davison &
    Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.

    `values` (P,) (0 or 1 for a rate) and `groups` (P,). The same seed gives the same interval.
    It is too narrow for few pills, and has no width for a single one or when all values agree.

    >>> bootstrap_interval([1, 1, 0, 1], ["a", "a", "b", "b"], seed=0)
    (0.5, 1.0)
    """
    numbers = _finite("values", values, ndim=1)
    if len(groups) != len(numbers):
        raise ValueError(f"{len(groups)} groups for {len(numbers)} values")
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"n_resamples {n_resamples}, level {level}; expected >= 1 and 0 < level < 1"
        )
    _, group_of = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    sums = np.bincount(group_of, weights=numbers)
    counts = np.bincount(group_of)
    random = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    for i in range(n_resamples):
        drawn = random.integers(0, len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def just_above(score: float) -> float:
    """Next float32 value above `score` rounded to float32, as a Python float.

    As a threshold for "score >= threshold" it rejects `score` itself, in float64 and in float32
    (in which NumPy compares a float32 score with a Python float).

    >>> just_above(1.0)
    1.0000001192092896
    """
    return float(np.nextafter(np.float32(score), np.float32(np.inf)))


def _finite(name: str, values: ArrayLike, *, ndim: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected {ndim} axes, none empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array
