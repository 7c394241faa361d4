"""`outcomes.csv`: what the shipped file answered to each test probe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pilltrack.core.errors import DatasetRejected
from pilltrack.pipeline.cohorts import ALL_CAPTURES, COHORTS
from pilltrack.pipeline.table import check_choice, read_table, write_csv

DECISIONS = ("known", "unknown", "ambiguous")


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One probe. `capture_seed` is empty for a photo as it is, `rank` 0 for a stranger.

    `flipped`: "1" when the float student decides otherwise, "0" when alike, empty when unasked.
    """

    captures: str
    cohort: str
    image: str
    capture_seed: str
    pill: str
    side: str
    best_pill: str
    best_score: float
    second_pill: str
    second_score: float
    rank: int
    decision: str
    flipped: str


COLUMNS = tuple(field.name for field in fields(OutcomeRow))


def write_outcomes(path: Path, rows: Iterable[OutcomeRow]) -> Path:
    """Write the table in the order given; returns its path."""
    return write_csv(path, COLUMNS, [astuple(row) for row in rows])


def load_outcomes(path: Path) -> list[OutcomeRow]:
    """Read the table in file order.

    Raises DatasetRejected, naming file and line, for another schema or a value out of range.
    """
    rows = []
    for line, record in read_table(path, required=COLUMNS, strip=False):
        check_choice(path, line, "captures", record["captures"], ALL_CAPTURES)
        check_choice(path, line, "cohort", record["cohort"], COHORTS)
        check_choice(path, line, "decision", record["decision"], DECISIONS)
        check_choice(path, line, "flipped", record["flipped"], ("", "0", "1"))
        try:
            numbers = {
                "best_score": float(record["best_score"]),
                "second_score": float(record["second_score"]),
                "rank": int(record["rank"]),
            }
            seed = int(record["capture_seed"] or 0)
            scores = (numbers["best_score"], numbers["second_score"])
            if not all(map(math.isfinite, scores)) or min(seed, numbers["rank"]) < 0:
                raise ValueError("not finite, or negative")
        except ValueError as error:
            raise DatasetRejected(
                f"{path}:{line}",
                found=f"not a number ({error})",
                expected="finite scores, a rank and a capture_seed of 0 or more",
                remedy="Run `dvc repro evaluate`.",
            ) from error
        rows.append(OutcomeRow(**(record | numbers)))  # type: ignore[arg-type]
    return rows
