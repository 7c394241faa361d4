"""A comparison in words: for the terminal, for a pull request, for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from pilltrack.pipeline.cohorts import Cohort
from pilltrack.pipeline.compare import Change, Comparison, Contender
from pilltrack.pipeline.words import at_most, escaped_markdown, percent

NAMES: dict[Cohort, str] = {"new": "new", "seen": "seen", "strangers": "stranger pills"}
HEAD = ("", "A", "B", "B - A", "B is")
UNCOUNTED = "also measured, not counted:"


def to_json(comparison: Comparison) -> str:
    """One JSON object on one line, its keys the fields of `Comparison`; shares in 0..1."""
    return json.dumps(asdict(comparison), allow_nan=False, ensure_ascii=False)


def to_text(comparison: Comparison) -> str:
    """An aligned table between what was compared and the verdict."""
    rows = [HEAD, *_rows(comparison)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    promises = [*_promise_lines("A", comparison.a), *_promise_lines("B", comparison.b)]
    notes = [f"note: {note}" for note in comparison.notes]
    return "\n".join(
        [*_head_lines(comparison), "", *table, "", *promises, *notes, "", conclusion(comparison)]
    )


def to_markdown(comparison: Comparison) -> str:
    """The same for a comment on a pull request."""
    rule = ("---", "---:", "---:", "---:", "---")
    table = [f"| {' | '.join(row)} |" for row in (HEAD, rule, *_rows(comparison))]
    lines = [
        *_head_lines(comparison),
        *_promise_lines("A", comparison.a),
        *_promise_lines("B", comparison.b),
        *(f"Note: {note}" for note in comparison.notes),
    ]
    bullets = [f"- {escaped_markdown(line)}" for line in lines]
    return "\n".join([f"**{conclusion(comparison)}**", "", *table, "", *bullets, ""])


def conclusion(comparison: Comparison) -> str:
    """The verdict, and the promises that the challenger breaks on this test set."""
    because = "; ".join(comparison.because)
    verdict = {
        "better": f"B is better than A: {because}. Nothing is shown to be worse.",
        "worse": f"B is worse than A: {because}.",
        "no difference": "No difference between A and B is shown.",
        "cannot tell": f"Cannot tell, too few pills: {because}. Nothing is shown to be worse.",
    }[comparison.verdict]
    broken = [p.harm for p in comparison.b.promises if p.state == "broken here"]
    return f"{verdict} B breaks its promise: {'; '.join(broken)}." if broken else verdict


def _head_lines(comparison: Comparison) -> list[str]:
    sizes = {change.cohort: change for change in comparison.changes}
    cohorts = ", ".join(
        f"{sizes[cohort].n_photos:,} of {sizes[cohort].n_pills:,} {name}"
        for cohort, name in NAMES.items()
    )
    return [
        *(
            f"{side}         {contender.source} ({contender.name}, made at commit "
            f"{contender.git_commit[:10]})"
            for side, contender in (("A", comparison.a), ("B", comparison.b))
        ),
        f"test set  {comparison.captures} photos: {cohorts}; "
        f"gallery of {comparison.gallery_pills:,} pills",
    ]


def _rows(comparison: Comparison) -> list[Sequence[str]]:
    gates = [_row(change) for change in comparison.changes if change.gate]
    others = [_row(change) for change in comparison.changes if not change.gate]
    return [*gates, (UNCOUNTED, "", "", "", ""), *others]


def _row(change: Change) -> Sequence[str]:
    is_share = change.metric != "auroc"
    a, b = (percent(v) if is_share else f"{v:.3f}" for v in (change.a, change.b))
    unit = " points" if is_share else ""
    text = f"{_signed(change.difference, is_share=is_share)}{unit}"
    if change.low is not None and change.low == change.high:
        text += " (the same for every pill)"  # not an interval without width: nothing varied
    elif change.low is not None and change.high is not None:
        ends = (_signed(end, is_share=is_share) for end in (change.low, change.high))
        text += f" ({' to '.join(ends)})"
    return change.label, a, b, text, change.verdict


def _signed(value: float, *, is_share: bool) -> str:
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(100 * value, 2) + 0.0:+.2f}" if is_share else f"{round(value, 3) + 0.0:+.3f}"


def _promise_lines(side: str, contender: Contender) -> list[str]:
    return [
        f"{side} promises at most {percent(promise.promised)} {promise.harm}: "
        f"{percent(promise.measured)} here, at most {at_most(promise.upper, 100)} % with "
        f"{100 * promise.confidence:g} % confidence: {promise.state}"
        for promise in contender.promises
    ]
