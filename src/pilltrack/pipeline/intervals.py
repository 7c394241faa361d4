"""How far a figure can be trusted: bootstrap over pills, and exact bounds on rare errors.

Photos of one pill resemble each other, so the unit of chance is the pill: intervals come from
drawing whole pills with replacement, bounds count pills. What too few pills cannot support is
said, not computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

N_RESAMPLES = 1000
LEVEL = 0.95
MIN_PILLS = 10  # a bootstrap over fewer is a guess
Interval = tuple[float, float]


@dataclass(frozen=True)
class Resamples:
    """Draws of pills with replacement: how often each pill was drawn, and whose each value is."""

    counts: NDArray[np.float64]  # (n_resamples, n_pills)
    pill_of: NDArray[np.intp]  # (N,)

    def weights(self, resample: int) -> NDArray[np.float64]:
        """How often each value (N,) counts in one resample."""
        weights: NDArray[np.float64] = self.counts[resample][self.pill_of]
        return weights

    def per_pill(self) -> Resamples:
        """The same draws for one value per pill, as `pill_means` orders them."""
        return Resamples(self.counts, np.arange(self.n_pills))

    @property
    def n_pills(self) -> int:
        """How many pills can be drawn."""
        return int(self.counts.shape[1])


def resample_pills(pills: Sequence[str], *, seed: int, n_resamples: int = N_RESAMPLES) -> Resamples:
    """Draw as many pills as there are, with replacement, `n_resamples` times.

    `pills` (N,): the pill of each value. The same seed gives the same draws. Raises ValueError
    for no values.
    """
    if not len(pills):
        raise ValueError("no pills to resample")
    names, pill_of = np.unique(np.asarray(pills, dtype=object), return_inverse=True)
    n = len(names)
    random = np.random.default_rng(seed)
    drawn = random.integers(0, n, size=(n_resamples, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
    return Resamples(counts, pill_of)


def pill_means(values: ArrayLike, pills: Sequence[str]) -> NDArray[np.float64]:
    """Mean value of each pill, in sorted order of the pills, whatever its number of photos.

    `values` (N,) and `pills` (N,); returns (n_pills,).

    >>> pill_means([1, 0, 1], ["b", "b", "a"]).tolist()
    [1.0, 0.5]
    """
    _, pill_of = np.unique(np.asarray(pills, dtype=object), return_inverse=True)
    means: NDArray[np.float64] = np.bincount(
        pill_of, weights=np.asarray(values, np.float64)
    ) / np.bincount(pill_of)
    return means


def mean_interval(values: ArrayLike, draws: Resamples) -> Interval | None:
    """95 % interval for the mean of `values` (N,): percentile bootstrap over pills.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; by clusters:
    Davison & Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8. When all
    values are 0, or all are 1, the bootstrap knows nothing else, and the far end comes from
    `clean_bound` instead. None below `MIN_PILLS` pills.

    >>> draws = resample_pills([f"pill {i}" for i in range(20)], seed=0)
    >>> mean_interval([1] * 15 + [0] * 5, draws)
    (0.55, 0.9)
    >>> low, high = mean_interval([0] * 20, draws)
    >>> low, round(high, 3)  # 1 - 0.025 ** (1 / 20)
    (0.0, 0.168)
    """
    numbers = np.asarray(values, np.float64)
    if draws.n_pills < MIN_PILLS:
        return None
    if numbers.min() == numbers.max() and numbers[0] in (0, 1):
        return _one_sided(float(numbers[0]), draws.n_pills)
    sums = np.bincount(draws.pill_of, weights=numbers, minlength=draws.n_pills)
    sizes = np.bincount(draws.pill_of, minlength=draws.n_pills)
    return _percentiles((draws.counts @ sums) / (draws.counts @ sizes))


def auroc_interval(
    mated: ArrayLike, mated_draws: Resamples, strangers: ArrayLike, stranger_draws: Resamples
) -> Interval | None:
    """95 % interval for `metrics.auroc`, resampling pills of both sides.

    When every mated probe scores above every stranger, the lower end is `clean_bound` for as many
    pairs of a mated and a stranger pill as there are without using one twice. None below
    `MIN_PILLS` pills on a side.
    """
    if min(mated_draws.n_pills, stranger_draws.n_pills) < MIN_PILLS:
        return None
    order = np.argsort(strangers, kind="stable")
    ranked = np.asarray(strangers, np.float64)[order]
    below = np.searchsorted(ranked, mated, side="left")
    below_or_equal = np.searchsorted(ranked, mated, side="right")

    def one(resample: int) -> float:
        weights = mated_draws.weights(resample)
        mass = np.concatenate([[0.0], np.cumsum(stranger_draws.weights(resample)[order])])
        wins = weights @ (mass[below] + mass[below_or_equal])
        return float(wins / (2 * weights.sum() * mass[-1]))

    if np.min(mated) > ranked[-1]:
        return _one_sided(1.0, min(mated_draws.n_pills, stranger_draws.n_pills))
    return _percentiles(_each(one, mated_draws))


def fnir_interval(
    best: ArrayLike,
    correct: ArrayLike,
    mated_draws: Resamples,
    strangers: ArrayLike,
    stranger_draws: Resamples,
    fpir: float,
) -> Interval | None:
    """95 % interval for the FNIR of `metrics.fnir_at_fpir`, resampling pills of both sides.

    The threshold is found anew in each resample. `best` (M,), `correct` (M,) bool,
    `strangers` (S,): scores. When all resamples agree on 0 or on 1, as `mean_interval`.
    """
    if min(mated_draws.n_pills, stranger_draws.n_pills) < MIN_PILLS:
        return None
    falling = np.argsort(-np.asarray(strangers, np.float64), kind="stable")
    ranked = np.asarray(strangers, np.float64)[falling]
    rising = np.argsort(best, kind="stable")
    right = np.asarray(correct, bool)[rising]
    # Mated probes up to this rank do not pass a threshold just above the stranger's score.
    not_passing = np.searchsorted(np.asarray(best, np.float64)[rising], ranked, side="right")

    def one(resample: int) -> float:
        mass = np.cumsum(stranger_draws.weights(resample)[falling])
        last = int(np.searchsorted(mass, fpir * mass[-1] * (1 + 1e-12), side="right"))
        weights = mated_draws.weights(resample)[rising]
        passing = slice(not_passing[min(last, len(ranked) - 1)], None)
        return float(1 - weights[passing] @ right[passing] / weights.sum())

    values = _each(one, mated_draws)
    if values.min() == values.max() and values[0] in (0, 1):
        return _one_sided(float(values[0]), mated_draws.n_pills)
    return _percentiles(values)


def difference_interval(first: ArrayLike, second: ArrayLike, draws: Resamples) -> Interval | None:
    """95 % interval for mean(second) - mean(first) of paired values (N,), by pills.

    >>> draws = resample_pills([f"pill {i}" for i in range(20)], seed=0)
    >>> mean = difference_interval([0] * 20, [1] * 10 + [0] * 10, draws)
    >>> 0 < mean[0] < 0.5 < mean[1] < 1
    True
    """
    change = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    if draws.n_pills < MIN_PILLS:
        return None
    sums = np.bincount(draws.pill_of, weights=change, minlength=draws.n_pills)
    sizes = np.bincount(draws.pill_of, minlength=draws.n_pills)
    return _percentiles((draws.counts @ sums) / (draws.counts @ sizes))


def upper_bound(
    errors: ArrayLike, pills: Sequence[str], confidence: float, *, chances: bool = False
) -> float:
    """Largest error rate per pill that these pills do not refute, with `confidence`.

    `errors` (N,): 1 for an error, 0 for none, of one photo each, or the chance of an error;
    `pills` (N,). With n pills, each with a share of erring photos, and s the sum of these shares,
    the bound is the Clopper-Pearson one, Beta^-1(1 - d; ceil(s) + 1, n - ceil(s)), with
    d = 1 - confidence if every pill has one photo and no error is a chance, or s = 0, and
    d = (1 - confidence) / e otherwise, and if errors could have been `chances`, so that fewer
    errors never have a higher bound: P(S <= s) <= e P(Bin(n, p) <= ceil(s)) for a sum S of n
    independent shares of mean p. It holds for every n and every distribution, if the pills are
    independent draws. Without errors it is about 3 / n.

    Sources: Clopper & Pearson, Biometrika 26 (1934), 404-413; Bentkus, Annals of Probability 32
    (2004), 1650-1673, as used by Bates et al., Journal of the ACM 68 (2021), section 3.1.
    At s = 0, P(S = 0) <= (1 - p)^n holds for shares as well.

    >>> round(upper_bound([0] * 30, [f"pill {i}" for i in range(30)], 0.95), 3)
    0.095
    >>> round(upper_bound([1] + [0] * 29, [f"pill {i}" for i in range(30)], 0.95), 3)
    0.149
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected 0 < confidence < 1")
    numbers = np.asarray(errors, np.float64)
    if numbers.ndim != 1 or len(numbers) != len(pills) or not len(numbers):
        raise ValueError(f"errors {numbers.shape} for {len(pills)} photos; expected 1 or more")
    shares = pill_means(numbers, pills)
    n, total = len(shares), math.ceil(float(shares.sum()) - 1e-9)
    miss = 1 - confidence
    if total > 0 and (chances or len(numbers) > n or not np.isin(numbers, (0, 1)).all()):
        miss /= math.e
    return 1.0 if total >= n else float(beta.ppf(1 - miss, total + 1, n - total))


def clean_bound(n_pills: int, confidence: float = LEVEL) -> float:
    """Error rate that `n_pills` pills without any error bound: 1 - (1 - confidence)^(1/n).

    About 3 / n at 95 %: Hanley & Lippman-Hand, JAMA 249 (1983), 1743-1745.

    >>> round(clean_bound(300), 4)
    0.0099
    """
    return float(1 - (1 - confidence) ** (1 / n_pills))


def pills_needed(rate: float, confidence: float = LEVEL) -> int:
    """Pills without any error that it takes to bound an error rate: the inverse of `clean_bound`.

    >>> pills_needed(0.05), pills_needed(0.001)
    (59, 2995)
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def _one_sided(value: float, n_pills: int) -> Interval:
    bound = clean_bound(n_pills, (1 + LEVEL) / 2)
    return (0.0, bound) if value == 0 else (1 - bound, 1.0)


def _each(one: Callable[[int], float], draws: Resamples) -> NDArray[np.float64]:
    return np.array([one(resample) for resample in range(len(draws.counts))])


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
