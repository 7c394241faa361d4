"""The table of outcomes is read back as written, and refused when it is something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilltrack.core.errors import DatasetRejected
from pilltrack.pipeline.outcomes import OutcomeRow, load_outcomes, write_outcomes

ROWS = [
    OutcomeRow(
        "augmented", "new", "images/a/1.jpg", "17", "a", "front", "b", 0.9, "a", 0.8, 2,
        "ambiguous", "1",
    ),
    OutcomeRow(
        "real", "strangers", "images/x,y/1.jpg", "", "x,y", "", "b", -0.1, "", -1.0, 0,
        "unknown", "",
    ),
]  # fmt: skip


def test_table_survives_a_round_trip(tmp_path: Path) -> None:
    assert load_outcomes(write_outcomes(tmp_path / "outcomes.csv", ROWS)) == ROWS


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        (",ambiguous,", ",perhaps,", "decision 'perhaps'"),
        (",new,", ",old,", "cohort 'old'"),
        (",0.9,", ",high,", "not a number"),
        (",17,", ",x17,", "not a number"),
        (",0.9,", ",nan,", "not a number"),
        (",17,", ",-17,", "not a number"),
        (",2,", ",-2,", "not a number"),
        ("augmented,", "imagined,", "captures 'imagined'"),
        ("flipped", "turned", "unknown column 'turned'"),
    ],
)
def test_another_value_is_refused_with_its_line(
    tmp_path: Path, good: str, bad: str, named: str
) -> None:
    path = write_outcomes(tmp_path / "outcomes.csv", ROWS)
    path.write_text(path.read_text().replace(good, bad, 1))
    with pytest.raises(DatasetRejected, match=named) as caught:
        load_outcomes(path)
    assert caught.value.subject.startswith(str(path))
