"""The facts of a run as Markdown for a pull request: short, no pictures."""

from __future__ import annotations

from collections.abc import Sequence

from pilltrack.pipeline.releases import shortened
from pilltrack.pipeline.report_facts import Comparison, Facts
from pilltrack.pipeline.verdict import Promise
from pilltrack.pipeline.words import at_most, escaped_markdown, percent


def markdown(facts: Facts) -> str:
    """The report as GitHub Markdown, fewer than 80 lines."""
    lines = [
        f"# {facts.verdict.symbol} {facts.verdict.title}",
        "",
        f"{facts.verdict.subtitle}",
        "",
        f"Model {facts.name}, test pills only, {facts.captures_in_words}, gallery of "
        f"{facts.metrics.gallery.pills:,} pills. 95 % intervals by bootstrap over pills.",
        "",
        *(f"- {promise_line(promise)}" for promise in facts.promises),
        *(f"- {facts.verdict.symbol} {reason}" for reason in facts.verdict.reasons),
        "",
        *_headline(facts),
        "",
        *_comparison(facts.comparison),
        "Limits of the gate: "
        + ", ".join(f"{name} {limit:g}" for name, limit in facts.limits.items())
        + ".",
        "",
        *_table(["", ""], [[label, figure] for label, figure in facts.speed_and_size]),
        "",
        *_table(["digest", ""], [[label, _code(value)] for label, value in facts.digests]),
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


def _comparison(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    revision = escaped_markdown(shortened(comparison.revision))
    if comparison.no_metrics:
        return [f"⚠ No comparison with {revision}: {escaped_markdown(comparison.no_metrics)}.", ""]
    if comparison.notes:
        return [f"⚠ Then ({revision}) and now: {'; '.join(comparison.notes)}.", ""]
    return [f"Then: {revision}.", ""]


def _headline(facts: Facts) -> list[str]:
    compared = facts.against is not None
    head = ["pills", "figure", *(["then", "now", "difference"] if compared else ["now"])]
    rows = []
    for row in facts.headline:
        change = ", ".join(part for part in (row.change, row.judgement) if part)
        figures = [row.then, row.now, change] if compared else [row.now]
        rows.append([row.cohort, row.label, *figures])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows),
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
