"""What `evaluate` wrote, typed: metrics.json and the files beside it, which must agree.

The files are specified in docs/adr/0002-evaluation.md. Only what a reader of figures needs is
typed here; a value of another kind than specified is refused with file and key.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pilltrack.core.decide import Calibration
from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.cohorts import COHORTS
from pilltrack.pipeline.lookalikes import LookAlike, load_lookalikes
from pilltrack.pipeline.outcomes import OutcomeRow, load_outcomes
from pilltrack.pipeline.table import read_table

Captures = Literal["real", "rendered", "augmented"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Curve = dict[str, list[float]]  # column -> values
DET_COLUMNS = ("fpir", "seen", "new")
REFERENCES_COLUMNS = ("references", "seen", "new")
SAME_SHARE = 1e-4  # a share counted again
SAME_NUMBER = 1.01e-5  # metrics.json is rounded to five digits, calibration.json is not


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Measure(_Part):
    """A number in 0..1 with its 95 % interval, or how many stranger pills that would need.

    Without `low` and `high` there are too few pills for an interval; with `needs_stranger_pills`
    the strangers are too few to say anything about others than these.
    """

    value: Share
    low: Share | None = None
    high: Share | None = None
    needs_stranger_pills: Count | None = None

    @model_validator(mode="after")
    def _both_ends(self) -> Measure:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval with one end")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"an interval from {self.low} down to {self.high}")
        return self


class Decisions(_Part):
    """What the device would have said to enrolled pills; each pill has one vote."""

    fnir: Measure
    misnamed: Measure
    misnamed_upper: Share
    ambiguous: Measure


class Recall(_Part):
    """How well the gallery finds the right pill; the last four need strangers."""

    recall_at_1: Measure
    recall_at_5: Measure
    map: Measure | None = None
    auroc: Measure | None = None
    fnir_at_fpir_5pct: Measure | None = None
    fnir_at_fpir_1pct: Measure | None = None
    fnir_at_fpir_01pct: Measure | None = Field(None, alias="fnir_at_fpir_0.1pct")


class Counted(_Part):
    """On how much a measurement stands."""

    n_probes: Count
    n_pills: Count


class TwoSided(Recall, Counted):
    """Probes of a front and a back photo each."""


class Mated(Recall, Counted):
    """One cohort of enrolled pills."""

    decisions: Decisions
    by_references: dict[Count, Recall]
    two_sided: TwoSided | None = None


class Strangers(Counted):
    """Pills that are not enrolled; each has one vote."""

    fpir: Measure
    fpir_upper: Share
    named: Measure


class Parity(_Part):
    """The int8 file against the float student, each with its own rule; shares."""

    n_probes: Count
    n_accepted: Annotated[int, Field(ge=0)]  # by either
    flips: Share
    flips_of_accepted: Share
    fpir_int8: Share
    fpir_float: Share
    fnir_int8: Share
    fnir_float: Share
    # Older results lack these two.
    recall_at_1_int8: Share | None = None
    recall_at_1_float: Share | None = None


class Test(_Part):
    """One kind of captures of the test pills."""

    seen: Mated | None = None
    new: Mated | None = None
    strangers: Strangers | None = None
    parity: Parity | None = None


class GallerySize(_Part):
    """How much is enrolled."""

    pills: Count
    references: Count
    background: Annotated[int, Field(ge=0)]


class RuleSet(_Part):
    """The rule, and how many validation photos and pills set it."""

    threshold: Annotated[float, Field(ge=-2, le=1)]  # a score
    margin: Annotated[float, Field(ge=0, le=2)]  # a difference of scores
    n_stranger_probes: Count
    n_stranger_pills: Count
    n_mated_probes: Count
    n_mated_pills: Count


class Enrolment(_Part):
    """How much photos of one side must agree, and which sets of test pills that refuses: shares."""

    agreement: Annotated[float, Field(ge=-1, le=1)]
    refused: Share  # of good sets
    caught: Share  # of sets with another pill's photo
    n_pills: Count
    n_sets: Count


class SmallerGalleries(_Part):
    """A threshold for galleries of one size, and what it does on test pills: shares."""

    threshold: Annotated[float, Field(ge=-2, le=1)]  # a score
    raised_by: Annotated[float, Field(ge=0)] = 0.0  # until these pills prove it
    fpir: Share
    fpir_upper: Share
    misnamed: Share
    misnamed_upper: Share
    fnir: Share


class ModelSize(_Part):
    """The shipped file."""

    int8_bytes: Count


class Origin(_Part):
    """What was measured, as SHA-256: the zip, and the settings of capture, enroll and evaluate."""

    data: Sha256
    settings: Sha256


class Metrics(_Part):
    """metrics.json; `test` by kind of captures."""

    origin: Origin
    gallery: GallerySize
    calibration: RuleSet
    enrolment: Enrolment | None = None  # absent where photos were too few, and in older results
    model: ModelSize
    test: dict[Captures, Test]
    smaller_galleries: dict[Annotated[int, Field(ge=1)], SmallerGalleries] = {}


@dataclass(frozen=True)
class Results:
    """All that `evaluate` wrote; `calibration` is None when its gate let nothing through."""

    metrics: Metrics
    outcomes: Sequence[OutcomeRow]
    lookalikes: Sequence[LookAlike]
    det: Curve
    references: Curve
    calibration: Calibration | None


def load_results(directory: Path) -> Results:
    """Read `artifacts/evaluate/`.

    Raises StageFailed for a missing or unreadable file, a value in a curve that is no number, and
    files that are not of one run: outcomes.csv or calibration.json that say something else than
    metrics.json. Raises DatasetRejected for a damaged or missing table.
    """
    metrics = load_metrics(directory / "metrics.json")
    outcomes = load_outcomes(directory / "outcomes.csv")
    calibration = _load_calibration(directory / "calibration.json")
    differences = [*_other_outcomes(metrics, outcomes)]
    if calibration:
        differences += _other_calibration(metrics, calibration)
    if differences:
        raise StageFailed(
            str(directory),
            found=f"files that are not of one run: {'; '.join(differences)}",
            expected="metrics.json, outcomes.csv and calibration.json that say the same",
            remedy="Run `dvc repro`.",
        )
    return Results(
        metrics=metrics,
        outcomes=outcomes,
        lookalikes=load_lookalikes(directory / "lookalikes.csv"),
        det=_load_curve(directory / "det.csv", DET_COLUMNS),
        references=_load_curve(directory / "references.csv", REFERENCES_COLUMNS),
        calibration=calibration,
    )


def load_metrics(path: Path) -> Metrics:
    """Read a metrics.json.

    Raises StageFailed when it cannot be read or does not hold what evaluate writes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageFailed(
            str(path),
            found=f"cannot be read ({error})",
            expected="the metrics of a finished run",
            remedy="Run `dvc repro`.",
        ) from error
    try:
        return Metrics.model_validate_json(text)
    except ValidationError as error:
        raise StageFailed(
            str(path),
            found=f"another schema ({first_problem(error)})",
            expected="metrics as in docs/adr/0002-evaluation.md",
            remedy="Run `dvc repro`.",
        ) from error


def _load_calibration(path: Path) -> Calibration | None:
    if not path.is_file():
        return None
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        found = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise StageFailed(
            str(path),
            found=f"not a calibration ({found})",
            expected="the rule, its promises and their evidence",
            remedy="Run `dvc repro`.",
        ) from error


def _other_outcomes(metrics: Metrics, outcomes: Sequence[OutcomeRow]) -> Iterator[str]:
    """In what outcomes.csv says something else than metrics.json."""
    rows: dict[tuple[str, str], list[OutcomeRow]] = {}
    for row in outcomes:
        rows.setdefault((row.captures, row.cohort), []).append(row)
    measured: dict[tuple[str, str], Mated | Strangers] = {
        (captures, cohort): found
        for captures, test in metrics.test.items()
        for cohort in COHORTS
        if (found := getattr(test, cohort)) is not None
    }
    for captures, cohort in sorted(rows.keys() ^ measured.keys()):
        there = "outcomes.csv" if (captures, cohort) in rows else "metrics.json"
        yield f"{captures} captures of {cohort} pills stand only in {there}"
    for key in sorted(rows.keys() & measured.keys()):
        for name, told, counted in _pairs(measured[key], rows[key]):
            if abs(told - counted) > SAME_SHARE:
                yield f"{' '.join(key)}: {name} {told:g} in metrics.json, {counted:g} in the rows"


def _pairs(
    measured: Mated | Strangers, rows: Sequence[OutcomeRow]
) -> list[tuple[str, float, float]]:
    """(name, value of metrics.json, the same counted in the rows) of one cohort."""
    photos = Counter(row.pill for row in rows)

    def pill_share(chosen: Callable[[OutcomeRow], bool]) -> float:
        found = Counter(row.pill for row in rows if chosen(row))
        return sum(found[pill] / n for pill, n in photos.items()) / len(photos)

    pairs: list[tuple[str, float, float]] = [
        ("n_probes", measured.n_probes, len(rows)),
        ("n_pills", measured.n_pills, len(photos)),
    ]
    if isinstance(measured, Strangers):
        return [
            *pairs,
            ("fpir", measured.fpir.value, pill_share(lambda row: row.decision != "unknown")),
            ("named", measured.named.value, pill_share(lambda row: row.decision == "known")),
        ]
    decisions = measured.decisions
    wrong = pill_share(lambda row: row.decision == "known" and row.best_pill != row.pill)
    right = pill_share(lambda row: row.decision == "known" and row.best_pill == row.pill)
    return [
        *pairs,
        ("fnir", decisions.fnir.value, 1 - right),
        ("misnamed", decisions.misnamed.value, wrong),
        (
            "ambiguous",
            decisions.ambiguous.value,
            pill_share(lambda row: row.decision == "ambiguous"),
        ),
        (
            "recall_at_1",
            measured.recall_at_1.value,
            sum(row.rank == 1 for row in rows) / len(rows),
        ),
    ]


def _other_calibration(metrics: Metrics, calibration: Calibration) -> Iterator[str]:
    """In what calibration.json says something else than metrics.json."""
    test = metrics.test.get(calibration.captures)  # type: ignore[call-overload]
    if test is None or test.new is None or test.strangers is None:
        yield f"metrics.json lacks the {calibration.captures} captures of calibration.json"
        return
    new, strangers, evidence = test.new, test.strangers, calibration.evidence
    pairs: list[tuple[str, float, float]] = []
    for size in calibration.smaller:
        measured = metrics.smaller_galleries.get(size.gallery_size)
        if measured is None:
            yield f"metrics.json lacks the threshold of {size.gallery_size} pills"
            continue
        for key in ("threshold", "fpir_upper", "misnamed_upper"):
            name = f"{key} of {size.gallery_size} pills"
            pairs.append((name, getattr(measured, key), getattr(size, key)))
    if metrics.enrolment:
        pairs.append(("agreement", metrics.enrolment.agreement, calibration.agreement))
    for name, told, shipped in (
        *pairs,
        ("threshold", metrics.calibration.threshold, calibration.threshold),
        ("margin", metrics.calibration.margin, calibration.margin),
        ("gallery_size", metrics.gallery.pills, calibration.gallery_size),
        ("background_size", metrics.gallery.background, calibration.background_size),
        ("n_stranger_pills", strangers.n_pills, evidence.n_stranger_pills),
        ("n_stranger_photos", strangers.n_probes, evidence.n_stranger_photos),
        ("fpir", strangers.fpir.value, evidence.fpir),
        ("fpir_upper", strangers.fpir_upper, evidence.fpir_upper),
        ("n_mated_pills", new.n_pills, evidence.n_mated_pills),
        ("n_mated_photos", new.n_probes, evidence.n_mated_photos),
        ("misnamed", new.decisions.misnamed.value, evidence.misnamed),
        ("misnamed_upper", new.decisions.misnamed_upper, evidence.misnamed_upper),
        ("fnir", new.decisions.fnir.value, evidence.fnir),
    ):
        if not math.isclose(told, shipped, rel_tol=0, abs_tol=SAME_NUMBER):
            yield f"{name} {told:g} in metrics.json, {shipped:g} in calibration.json"


def _load_curve(path: Path, columns: Sequence[str]) -> Curve:
    curve: Curve = {name: [] for name in columns}
    for line, record in read_table(path, required=columns, strip=False):
        for name in columns:
            curve[name].append(_number(path, line, name, record[name]))
    if not curve[columns[0]]:
        raise _bad_value(path, 1, "no rows")
    return curve


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise _bad_value(path, line, f"{name} {text!r}")
    return value


def first_problem(error: ValidationError) -> str:
    """Where a file leaves its schema first, and how."""
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


def _bad_value(path: Path, line: int, found: str) -> StageFailed:
    return StageFailed(
        f"{path}:{line}",
        found=found,
        expected="a table as in docs/adr/0002-evaluation.md",
        remedy="Run `dvc repro`.",
    )
