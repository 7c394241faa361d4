"""Metrics -> verdict: may it be trusted, what was promised, and the headline figures.

Whether a figure is good or bad is decided here; how it is said, in `words`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.results import (
    Counted,
    Mated,
    Measure,
    Metrics,
    Parity,
    Recall,
    Strangers,
    Test,
)
from pilltrack.pipeline.words import Counts, at_most, in_words, out_of, percent

NOT_SHARES = ("mAP", "AUROC")
FEW_NAMES = 0.5  # of new pills named rightly: below it the model is called weak
MANY_WRONG = 0.25  # of the names given to new pills: above it as well
Better = Literal["higher", "lower", "neither"]
State = Literal["passed", "weak", "failed"]
SYMBOLS: dict[State, str] = {"passed": "✔", "weak": "⚠", "failed": "✘"}


@dataclass(frozen=True)
class Verdict:
    """May the bundle be used: a state, a line for it, what the device does, and why not."""

    state: State
    title: str
    subtitle: str
    reasons: Sequence[str]

    @property
    def symbol(self) -> str:
        """What stands before the title: the state without its colour."""
        return SYMBOLS[self.state]


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
    """One figure of a table; `then` and what follows are empty where nothing is compared."""

    cohort: str
    label: str
    now: str
    then: str = ""
    change: str = ""
    judgement: str = ""  # better, worse, higher, lower, within chance, or why there is none


def measured_test(
    metrics: Metrics, settings: EvaluateParams
) -> tuple[Test, Mated, Mated, Strangers]:
    """The test of the captures that the gate looks at: itself, seen, new, strangers.

    Raises StageFailed when a cohort was not measured: `evaluate` refuses such data.
    """
    test = metrics.test.get(settings.captures, Test())
    if test.seen is None or test.new is None or test.strangers is None:
        raise StageFailed(
            f"metrics.json, test.{settings.captures}",
            found=f"captures {', '.join(metrics.test) or 'none'}, or a cohort is missing",
            expected=f"seen, new and stranger pills in {settings.captures} captures "
            "(evaluate.captures)",
            remedy="Run `dvc repro`.",
        )
    return test, test.seen, test.new, test.strangers


def judge(has_calibration: bool, broken: Sequence[str], new: Mated) -> Verdict:
    """The verdict from what evaluate left behind, the limits that are broken, and the new pills.

    A model that keeps every limit may still be of little use, or name wrongly most of what it
    names: then it is weak.
    """
    said = subtitle(new)
    if broken:
        title = "GATE FAILED: no bundle was made"
        if has_calibration:
            title = "LIMITS BROKEN: do not use the bundle"
        return Verdict("failed", title, said, list(broken))
    if not has_calibration:
        missing = "no limit is broken, but calibration.json is missing: run `dvc repro`"
        return Verdict("failed", "GATE FAILED: no bundle was made", said, [missing])
    weaknesses = _weaknesses(new)
    if weaknesses:
        return Verdict("weak", "Test passed, but the model is weak", said, weaknesses)
    return Verdict("passed", "Test passed: errors stay below the stated limits", said, [])


def subtitle(new: Mated) -> str:
    """What the device does with enrolled pills that it was not trained on, in natural numbers."""
    counts = mated_counts(new)
    right, wrong, silent = counts.parts
    rest = "; the rest get no name" if silent else ""
    return (
        f"Of {counts.of:,} photos of enrolled pills it names {right:,} rightly and "
        f"{wrong:,} wrongly{rest}."
    )


def _weaknesses(new: Mated) -> list[str]:
    found = []
    right, correct = 1 - new.decisions.fnir.value, right_when_named(new)
    if round(right, 4) < FEW_NAMES:  # metrics.json has five digits
        found.append(
            f"Fewer than half of the photos of new pills get the right name: {percent(right)}."
        )
    if correct is not None and round(1 - correct, 4) > MANY_WRONG:
        wrong = percent(1 - correct)
        found.append(f"More than a quarter of the names it gives to new pills are wrong: {wrong}.")
    return found


def right_when_named(mated: Mated) -> float | None:
    """Of the photos of enrolled pills that get a name, the share that get the right one.

    None when none gets a name.
    """
    right, wrong = 1 - mated.decisions.fnir.value, mated.decisions.misnamed.value
    return right / (right + wrong) if right + wrong > 0 else None


def promises(metrics: Metrics, settings: EvaluateParams) -> list[Promise]:
    """The two promises of the bundle, verified on test pills that were not trained on."""
    _, _, new, strangers = measured_test(metrics, settings)
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


def stranger_counts(strangers: Strangers) -> Counts:
    """Of so many photos of strangers: refused, given a name, too close between two pills."""
    accepted, named = strangers.fpir.value, strangers.named.value
    return out_of([1 - accepted, named, accepted - named])


def mated_counts(mated: Mated) -> Counts:
    """Of so many photos of enrolled pills: named rightly, given a wrong name, not named."""
    missed, misnamed = mated.decisions.fnir.value, mated.decisions.misnamed.value
    return out_of([1 - missed, misnamed, missed - misnamed])


@dataclass(frozen=True)
class _Figure:
    cohort: str
    label: str
    measure: Measure
    better: Better
    is_ratio: bool = False  # of two measures: without an interval of its own

    @property
    def is_share(self) -> bool:
        return self.label not in NOT_SHARES


def headline(now: Test, then: Test | None = None, *, alike: bool = True) -> list[Row]:
    """The figures of one kind of captures, strangers first; `then` may be another release.

    A change is judged only when both tests are `alike`: same data, settings and gallery.
    """
    before = {(f.cohort, f.label): f for f in _figures(then)} if then else {}
    rows = []
    for figure in _figures(now):
        old = before.get((figure.cohort, figure.label))
        text = _say(figure, now)
        if old is None or then is None:
            missing = "not measured" if then else ""
            rows.append(Row(figure.cohort, figure.label, text, missing))
            continue
        change, judgement = difference(
            figure.measure, old.measure, figure.better, is_share=figure.is_share
        )
        if not alike or figure.is_ratio:
            judgement = ""
        rows.append(Row(figure.cohort, figure.label, text, _say(old, then), change, judgement))
    return rows


def difference(now: Measure, then: Measure, better: Better, *, is_share: bool) -> tuple[str, str]:
    """How a figure changed, and whether the change is more than chance.

    The second is better, worse, higher or lower when each value lies outside the other's
    interval, else "within chance". Both are empty where one of them is not supported.

    >>> now, then = Measure(value=0.8, low=0.7, high=0.9), Measure(value=0.95, low=0.91, high=0.97)
    >>> difference(now, then, "higher", is_share=True)
    ('−15.0 points', 'worse')
    >>> difference(now, Measure(value=0.95, low=0.75, high=0.97), "higher", is_share=True)
    ('−15.0 points', 'within chance')
    """
    if now.needs_stranger_pills is not None or then.needs_stranger_pills is not None:
        return "", ""
    change = now.value - then.value
    text = f"{100 * change:+.1f} points" if is_share else f"{change:+.3f}"
    text = text.replace("-", "−")
    if now.low is None or now.high is None or then.low is None or then.high is None:
        return text, "too few pills to tell"
    if now.low <= then.value <= now.high or then.low <= now.value <= then.high:
        return text, "within chance"
    direction = "higher" if change > 0 else "lower"
    if better == "neither":
        return text, direction
    return text, "better" if direction == better else "worse"


def every_measure(test: Test) -> list[Row]:
    """All that metrics.json says about one kind of captures."""
    figures, n_strangers = headline(test), _n_strangers(test)
    rows = []
    if test.strangers:
        rows += [
            Row("strangers", "photos", _counted(test.strangers)),
            Row("strangers", "accepted, upper bound", _bound(test.strangers.fpir_upper)),
            *(row for row in figures if row.cohort == "strangers"),
        ]
    for cohort, mated in (("new", test.new), ("seen", test.seen)):
        if mated is None:
            continue
        rows += [
            Row(cohort, "photos", _counted(mated)),
            Row(cohort, "given a wrong name, upper bound", _bound(mated.decisions.misnamed_upper)),
            *(row for row in figures if row.cohort == cohort),
        ]
        for count, recall in sorted(mated.by_references.items()):
            per_side = f"{count} reference{'s' if count != 1 else ''} per side"
            rows += _recall_rows(cohort, per_side, recall, n_strangers)
        if mated.two_sided:
            rows.append(Row(cohort, "front and back together: pairs", _counted(mated.two_sided)))
            rows += _recall_rows(cohort, "front and back together", mated.two_sided, n_strangers)
    return rows + [Row("int8", label, figure) for label, figure in parity_lines(test.parity)]


def _bound(upper: float) -> str:
    return f"at most {at_most(upper, 100)} %"


def _counted(counted: Counted) -> str:
    return f"{counted.n_probes:,} of {counted.n_pills:,} pills"


def _recall_rows(cohort: str, how: str, recall: Recall, n_strangers: int) -> Iterator[Row]:
    for label, measure, _ in _recall_figures(recall):
        text = in_words(measure, n_strangers, is_share=label not in NOT_SHARES)
        yield Row(cohort, f"{how}: {label}", text)


def parity_lines(parity: Parity | None) -> list[tuple[str, str]]:
    """What int8 costs against the float student: (label, figure)."""
    if parity is None:
        return []
    recall = []
    if parity.recall_at_1_int8 is not None and parity.recall_at_1_float is not None:
        figures = f"{percent(parity.recall_at_1_int8)} against {percent(parity.recall_at_1_float)}"
        recall = [("recall@1, int8 against float", figures)]
    return [
        *recall,
        (
            "decisions that int8 changes",
            f"{percent(parity.flips)} of {parity.n_probes:,} photos; "
            f"{percent(parity.flips_of_accepted)} of the {parity.n_accepted:,} that either accepts",
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


def _say(figure: _Figure, test: Test) -> str:
    if figure.is_ratio:
        return percent(figure.measure.value)
    return in_words(figure.measure, _n_strangers(test), is_share=figure.is_share)


def _n_strangers(test: Test) -> int:
    return test.strangers.n_pills if test.strangers else 0


def _figures(test: Test) -> list[_Figure]:
    figures = []
    if test.strangers:
        figures += [
            _Figure("strangers", "accepted (FPIR)", test.strangers.fpir, "lower"),
            _Figure("strangers", "given a name", test.strangers.named, "lower"),
        ]
    for cohort, mated in (("new", test.new), ("seen", test.seen)):
        if mated:
            figures += _decided(cohort, mated)
            figures += [_Figure(cohort, *figure) for figure in _recall_figures(mated)]
    return figures


def _decided(cohort: str, mated: Mated) -> list[_Figure]:
    decisions, correct = mated.decisions, right_when_named(mated)
    figures = [
        _Figure(cohort, "named rightly (1 − FNIR)", one_minus(decisions.fnir), "higher"),
        _Figure(cohort, "given a wrong name", decisions.misnamed, "lower"),
        _Figure(cohort, "ambiguous: no name", decisions.ambiguous, "neither"),
    ]
    if correct is not None:
        label = "right, of the photos it names"
        ratio = _Figure(cohort, label, Measure(value=correct), "higher", is_ratio=True)
        figures.insert(2, ratio)
    return figures


def _recall_figures(recall: Recall) -> list[tuple[str, Measure, Better]]:
    figures: list[tuple[str, Measure | None, Better]] = [
        ("right pill is nearest (recall@1)", recall.recall_at_1, "higher"),
        ("right pill among 5 (recall@5)", recall.recall_at_5, "higher"),
        ("mAP", recall.map, "higher"),
        ("AUROC", recall.auroc, "higher"),
        ("FNIR at FPIR 5 %", recall.fnir_at_fpir_5pct, "lower"),
        ("FNIR at FPIR 1 %", recall.fnir_at_fpir_1pct, "lower"),
        ("FNIR at FPIR 0.1 %", recall.fnir_at_fpir_01pct, "lower"),
    ]
    return [(label, measure, better) for label, measure, better in figures if measure]


def one_minus(measure: Measure) -> Measure:
    """The complement of a share, with its interval.

    >>> in_words(one_minus(Measure(value=0.25, low=0.125, high=0.5)), 16)
    '75.0 % (50.0 to 87.5)'
    """
    if measure.low is None or measure.high is None:
        return Measure(value=1 - measure.value)
    return Measure(value=1 - measure.value, low=1 - measure.high, high=1 - measure.low)
