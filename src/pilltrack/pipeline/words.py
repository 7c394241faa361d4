"""Figures -> text: how a share, an interval and a count are said, in every place the same.

The report, `summary`, `compare` and the gate all speak through this file. A rounded figure never
says more than is known: a bound is rounded up, and a share that is not 0 is not called 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pilltrack.pipeline.results import Measure

COHORT_WORDS = {
    "strangers": "Pills that are not enrolled (strangers)",
    "new": "New pills: enrolled, never trained on",
    "seen": "Seen pills: enrolled and trained on",
}
CAPTURE_WORDS = {
    "real": "real photos",
    "rendered": "computer-rendered pictures",
    "augmented": "studio photos altered to look like counter-top photos",
}


@dataclass(frozen=True)
class Counts:
    """Shares as whole photos out of `of`, which add up to it."""

    of: int
    parts: tuple[int, ...]


def percent(share: float) -> str:
    """A share in per cent: one decimal, two below 1 %; neither 0 nor 100 % unless it is.

    >>> percent(0.8194), percent(0.0), percent(0.00123)
    ('81.9 %', '0.0 %', '0.12 %')
    >>> percent(0.00001), percent(0.99999)
    ('<0.01 %', '>99.9 %')
    """
    if 0 < share < 0.00005:
        return "<0.01 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    decimals = 2 if 0 < share < 0.0095 else 1
    return f"{100 * share:.{decimals}f} %"


def at_most(share: float, of: int) -> str:
    """An upper bound as photos out of `of`, rounded up: it never says less than it is.

    >>> at_most(0.39984, 100), at_most(0.40001, 100)
    ('40.0', '40.1')
    """
    return f"{math.ceil(share * of * 10 - 1e-9) / 10:,.1f}"


def in_words(measure: Measure | None, n_stranger_pills: int, *, is_share: bool = True) -> str:
    """A measure with its interval, or why there is none.

    >>> in_words(Measure(value=0.8194, low=0.741, high=0.912), 16)
    '81.9 % (74.1 to 91.2)'
    >>> in_words(Measure(value=0.729, needs_stranger_pills=59), 16)
    '72.9 % (not supported: needs 59 stranger pills, there are 16)'
    >>> in_words(Measure(value=0.5), 16, is_share=False)
    '0.500 (too few pills for an interval)'
    """
    if measure is None:
        return "not measured"
    value = percent(measure.value) if is_share else f"{measure.value:.3f}"
    needed = measure.needs_stranger_pills
    if needed is not None:
        there = f"there are {n_stranger_pills:,}"
        return f"{value} (not supported: needs {needed:,} stranger pills, {there})"
    if measure.low is None or measure.high is None:
        return f"{value} (too few pills for an interval)"
    ends = (f"{100 * end:.1f}" if is_share else f"{end:.3f}" for end in (measure.low, measure.high))
    return f"{value} ({' to '.join(ends)})"


def out_of(shares: Sequence[float]) -> Counts:
    """Shares that add up to 1 as whole photos out of 100, or of more when one would vanish.

    Rounded by largest remainder, so that the counts add up.

    >>> out_of([0.425, 0.055, 0.52])
    Counts(of=100, parts=(42, 6, 52))
    >>> out_of([0.997, 0.003, 0.0])
    Counts(of=1000, parts=(997, 3, 0))
    """
    assert math.isclose(sum(shares), 1.0, abs_tol=1e-4), shares
    for of in (100, 1000, 10000):
        exact = [max(0.0, round(share * of, 6)) for share in shares]
        parts = [math.floor(value) for value in exact]
        by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], -i))
        for index in by_remainder[: of - sum(parts)]:
            parts[index] += 1
        if all(part > 0 or share <= 0 for part, share in zip(parts, shares, strict=True)):
            break
    return Counts(of, tuple(parts))


def told_apart(share: float, limit: float) -> tuple[str, str]:
    """Two different shares in per cent, with as many decimals as it takes to see which is larger.

    >>> told_apart(0.096, 0.005), told_apart(0.40004, 0.4)
    (('9.6 %', '0.5 %'), ('40.004 %', '40.000 %'))
    """
    for decimals in range(1, 5):
        texts = [f"{100 * value:.{decimals}f} %" for value in (share, limit)]
        if texts[0] != texts[1]:
            break
    return texts[0], texts[1]


def escaped_markdown(text: str) -> str:
    """A name as one line of plain text in Markdown, also inside a table.

    >>> print(escaped_markdown("a|b`c<i>\\n*d*"))
    a\\|b\\`c\\<i> \\*d\\*
    """
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\|`<*_[]~" else letter for letter in line)
