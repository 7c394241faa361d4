"""The facts of a run as Markdown for a pull request: short, no pictures."""

from __future__ import annotations

from collections.abc import Sequence

from pilltrack.pipeline.report_facts import Facts
from pilltrack.pipeline.verdict import Promise, at_most, difference, percent


def markdown(facts: Facts) -> str:
    """The report as GitHub Markdown, fewer than 80 lines."""
    lines = [
        f"# {'✔' if facts.verdict.passed else '✘'} {facts.verdict.title}",
        "",
        f"Model {facts.name}, test pills only, {facts.captures_in_words}, gallery of "
        f"{facts.metrics.gallery.pills:,} pills. 95 % intervals by bootstrap over pills.",
        "",
        *(f"- {promise_line(promise)}" for promise in facts.promises),
        *(f"- ✘ {reason}" for reason in facts.verdict.reasons),
        "",
        *_headline(facts),
        "",
        *(f"Then ({_cell(facts.against or '')}) and now: {n}." for n in facts.comparison_notes),
        *([""] if facts.comparison_notes else []),
        "Limits of the gate: "
        + ", ".join(f"{name} {limit:g}" for name, limit in facts.limits.items())
        + ".",
        "",
        *_table(["", ""], [[label, figure] for label, figure in facts.speed_and_size]),
        "",
        *_table(["digest", ""], [[label, f"`{value}`"] for label, value in facts.digests]),
    ]
    return "\n".join(lines) + "\n"


def promise_line(promise: Promise) -> str:
    """One promise, kept or broken, and on how many pills it was verified."""
    word = "✔ kept" if promise.kept else "✘ BROKEN"
    return (
        f"{promise.harm}: promise of at most {percent(promise.promised)} **{word}**. Measured "
        f"{percent(promise.measured)}, at most {at_most(promise.upper, 100)} % with "
        f"{100 * promise.confidence:g} % confidence, on {promise.n_photos:,} photos of "
        f"{promise.n_pills:,} pills."
    )


def _headline(facts: Facts) -> list[str]:
    head = ["pills", "figure", *(["then", "now", "difference"] if facts.against else ["now"])]
    rows = []
    for row in facts.headline:
        change = ", ".join(part for part in difference(row) if part)
        compared = [row.then_in_words, row.now_in_words, change]
        rows.append([row.cohort, row.label, *(compared if facts.against else [row.now_in_words])])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows),
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
