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
    """Reduce similarities to references, or to looks, (P, R) to the best per pill (P, n_pills).

    score(p, pill) = max over the references r of the pill of similarity(p, r): the nearest speaks
    for its pill, as the best look does in `Gallery.search`. Columns are in sorted order of the
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
    promise about new ones needs a conformal threshold.

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


def average_precision(similarities: ArrayLike, relevant: ArrayLike) -> float:
    """Average precision of one probe over all references, in 0..1; its mean over probes is mAP.

    AP = (1 / n) sum over i = 1..n of i / rank_i, where rank_i is the rank of the i-th best of the
    n relevant references among all: |{r : similarity >= that one's}|, so that a reference of
    another pill with an equal similarity counts as ahead. Manning, Raghavan & Schuetze,
    "Introduction to Information Retrieval" (2008), section 8.4.

    `similarities` (R,) and `relevant` (R,) bool. Raises ValueError without a relevant reference.

    >>> average_precision([0.9, 0.8, 0.7, 0.1], [True, False, True, False])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    values = _finite("similarities", similarities, ndim=1)
    mask = np.asarray(relevant, np.bool_)
    if mask.shape != values.shape or not mask.any():
        raise ValueError(f"relevant {mask.shape}: expected some true of {values.shape}")
    own = np.sort(values[mask])[::-1]
    rising = np.sort(values)
    ranks = len(values) - np.searchsorted(rising, own, side="left")
    found = np.searchsorted(-own, -own, side="right")  # equal ones share the later place
    return float(np.mean(found / ranks))


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
