"""Metrics -> words: may it be trusted, and the headline figures, each with its interval.

HTML, Markdown and `pilltrack summary` all say a figure through this file, so that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.results import Mated, Measure, Metrics, Parity, Strangers, Test

COHORTS = {
    "strangers": "Pills that are not enrolled (strangers)",
    "new": "New pills: enrolled, never trained on",
    "seen": "Seen pills: enrolled and trained on",
}
CAPTURES = {
    "real": "real photos",
    "rendered": "computer-rendered pictures",
    "augmented": "studio photos altered to look like counter-top photos",
}
NOT_SHARES = ("mAP", "AUROC")
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Promise:
    """One promise of params.yaml and what the test pills say about it; shares in 0..1."""

    harm: str
    promised: float
    measured: float
    upper: float  # with `confidence`
    confidence: float
    n_pills: int
    n_photos: int

    @property
    def kept(self) -> bool:
        """Even the upper bound is within the promise."""
        return self.upper <= self.promised


@dataclass(frozen=True)
class Row:
    """One figure of the headline table, now and, when compared, then."""

    cohort: str
    label: str
    now: Measure
    then: Measure | None
    better: Better
    is_share: bool
    now_in_words: str
    then_in_words: str


@dataclass(frozen=True)
class Counts:
    """Shares as whole photos out of `of`, which add up to it."""

    of: int
    parts: tuple[int, ...]


def measured_test(metrics: Metrics, captures: str) -> tuple[Test, Mated, Mated, Strangers]:
    """The test of the captures that the gate looks at: itself, seen, new, strangers.

    Raises StageFailed when a cohort was not measured: `evaluate` refuses such data.
    """
    test = metrics.test.get(captures, Test())
    if test.seen is None or test.new is None or test.strangers is None:
        raise StageFailed(
            f"metrics.json, test.{captures}",
            found=f"captures {', '.join(metrics.test) or 'none'}, or a cohort is missing",
            expected=f"seen, new and stranger pills in {captures} captures (evaluate.captures)",
            remedy="`evaluate.captures` changed since? Run `dvc repro`.",
        )
    return test, test.seen, test.new, test.strangers


@dataclass(frozen=True)
class Verdict:
    """May the bundle be used, in one line; `reasons` when not."""

    passed: bool
    title: str
    reasons: Sequence[str]


def judge(has_calibration: bool, broken: Sequence[str]) -> Verdict:
    """The verdict from what evaluate left behind and the limits that are broken, in words.

    >>> judge(True, []).title
    'Both promises kept'
    >>> judge(False, ["recall@1 of new pills is 0.1000, not >= 0.2500"]).title
    'GATE FAILED: no bundle was made'
    """
    if has_calibration and not broken:
        return Verdict(True, "Both promises kept", [])
    if has_calibration:
        changed = "params.yaml asks for more than when the gate ran: run `dvc repro`"
        return Verdict(False, "LIMITS BROKEN: do not use the bundle", [*broken, changed])
    missing = "no limit is broken now, but calibration.json is missing: run `dvc repro`"
    return Verdict(False, "GATE FAILED: no bundle was made", list(broken) or [missing])


def promises(metrics: Metrics, settings: EvaluateParams) -> list[Promise]:
    """The two promises of the bundle, verified on test pills that were not trained on."""
    _, _, new, strangers = measured_test(metrics, settings.captures)
    return [
        Promise(
            harm="not enrolled, yet accepted",
            promised=settings.promised_fpir,
            measured=strangers.fpir.value,
            upper=strangers.fpir_upper,
            confidence=settings.confidence,
            n_pills=strangers.n_pills,
            n_photos=strangers.n_probes,
        ),
        Promise(
            harm="enrolled, yet given a wrong name",
            promised=settings.promised_misnamed,
            measured=new.decisions.misnamed.value,
            upper=new.decisions.misnamed_upper,
            confidence=settings.confidence,
            n_pills=new.n_pills,
            n_photos=new.n_probes,
        ),
    ]


def gate_limits(settings: EvaluateParams) -> dict[str, float]:
    """Every limit of params.yaml at which the gate looks: key -> limit."""
    prefixes = ("promised_", "min_", "max_")
    return {
        name: value for name, value in settings.model_dump().items() if name.startswith(prefixes)
    }


def headline(now: Test, then: Test | None) -> list[Row]:
    """The figures of one kind of captures, strangers first; `then` may be another release."""
    earlier = then or Test()
    before = {(cohort, label): measure for cohort, label, measure, _ in _figures(earlier)}
    rows = []
    for cohort, label, measure, better in _figures(now):
        is_share, old = label not in NOT_SHARES, before.get((cohort, label))
        now_in_words = in_words(measure, _n_strangers(now), is_share=is_share)
        then_in_words = in_words(old, _n_strangers(earlier), is_share=is_share)
        rows.append(Row(cohort, label, measure, old, better, is_share, now_in_words, then_in_words))
    return rows


def _n_strangers(test: Test) -> int:
    return test.strangers.n_pills if test.strangers else 0


def _figures(test: Test) -> list[tuple[str, str, Measure, Better]]:
    figures: list[tuple[str, str, Measure, Better]] = []
    if test.strangers:
        figures += [
            ("strangers", "accepted (FPIR)", test.strangers.fpir, "lower"),
            ("strangers", "given a name", test.strangers.named, "lower"),
        ]
    for cohort, mated in (("new", test.new), ("seen", test.seen)):
        if mated:
            figures += [(cohort, *figure) for figure in _mated_figures(mated)]
    return figures


def _mated_figures(mated: Mated) -> list[tuple[str, Measure, Better]]:
    decisions = mated.decisions
    decided: list[tuple[str, Measure, Better]] = [
        ("named rightly (1 − FNIR)", one_minus(decisions.fnir), "higher"),
        ("given a wrong name", decisions.misnamed, "lower"),
        ("ambiguous: no name", decisions.ambiguous, "neither"),
    ]
    ranked: list[tuple[str, Measure | None, Better]] = [
        ("right pill is nearest (recall@1)", mated.recall_at_1, "higher"),
        ("right pill among 5 (recall@5)", mated.recall_at_5, "higher"),
        ("mAP", mated.map, "higher"),
        ("AUROC", mated.auroc, "higher"),
        ("FNIR at FPIR 5 %", mated.fnir_at_fpir_5pct, "lower"),
        ("FNIR at FPIR 1 %", mated.fnir_at_fpir_1pct, "lower"),
        ("FNIR at FPIR 0.1 %", mated.fnir_at_fpir_01pct, "lower"),
    ]
    return decided + [(label, measure, better) for label, measure, better in ranked if measure]


def one_minus(measure: Measure) -> Measure:
    """The complement of a share, with its interval.

    >>> in_words(one_minus(Measure(value=0.25, low=0.125, high=0.5)), 16)
    '75.0 % (50.0 to 87.5)'
    """
    if measure.low is None or measure.high is None:
        return Measure(value=1 - measure.value)
    return Measure(value=1 - measure.value, low=1 - measure.high, high=1 - measure.low)


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


def percent(share: float) -> str:
    """A share in per cent: one decimal, two below 1 %.

    >>> percent(0.8194), percent(0.0), percent(0.00123)
    ('81.9 %', '0.0 %', '0.12 %')
    """
    decimals = 2 if 0 < share < 0.0095 else 1
    return f"{100 * share:.{decimals}f} %"


def difference(row: Row) -> tuple[str, str]:
    """How a figure changed, and whether the change is more than chance.

    The second is better, worse, higher or lower when the old value lies outside today's interval,
    and "within chance" when inside. Both are empty without two figures to compare.

    >>> now, then = Measure(value=0.8, low=0.7, high=0.9), Measure(value=0.95)
    >>> difference(Row("new", "recall@1", now, then, "higher", True, "", ""))
    ('−15.0 points', 'worse')
    """
    now, then = row.now, row.then
    if then is None:
        return "", ""
    if now.needs_stranger_pills is not None or then.needs_stranger_pills is not None:
        return "", ""
    change = now.value - then.value
    text = f"{100 * change:+.1f} points" if row.is_share else f"{change:+.3f}"
    text = text.replace("-", "−")
    if now.low is None or now.high is None:
        return text, "too few pills to tell"
    if now.low <= then.value <= now.high:
        return text, "within chance"
    direction = "higher" if change > 0 else "lower"
    if row.better == "neither":
        return text, direction
    return text, "better" if direction == row.better else "worse"


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


def stranger_counts(strangers: Strangers) -> Counts:
    """Of so many photos of strangers: refused, accepted with a name, accepted without one."""
    accepted, named = strangers.fpir.value, strangers.named.value
    return out_of([1 - accepted, named, accepted - named])


def mated_counts(mated: Mated) -> Counts:
    """Of so many photos of enrolled pills: named rightly, given a wrong name, not named."""
    missed, misnamed = mated.decisions.fnir.value, mated.decisions.misnamed.value
    return out_of([1 - missed, misnamed, missed - misnamed])


def at_most(share: float, of: int) -> str:
    """An upper bound as photos out of `of`, rounded up: it never says less than it is.

    >>> at_most(0.39984, 100), at_most(0.40001, 100)
    ('40.0', '40.1')
    """
    return f"{math.ceil(share * of * 10 - 1e-9) / 10:,.1f}"


def parity_lines(parity: Parity | None) -> list[tuple[str, str]]:
    """What int8 costs against the float student: (label, figure)."""
    if parity is None:
        return []
    return [
        (
            "decisions that int8 changes",
            f"{percent(parity.flips)} of {parity.n_probes:,} photos",
        ),
        (
            "strangers accepted, int8 against float",
            f"{percent(parity.fpir_int8)} against {percent(parity.fpir_float)}",
        ),
        (
            "FNIR, int8 against float",
            f"{percent(parity.fnir_int8)} against {percent(parity.fnir_float)}",
        ),
    ]
