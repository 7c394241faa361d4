"""What `evaluate` wrote, typed: metrics.json and the tables beside it, now or at a git revision.

The files are specified in docs/adr/0002-evaluation.md. Only what a reader of figures needs is
typed here; a value of another kind than specified is refused with file and key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.lookalikes import LookAlike, load_lookalikes
from pilltrack.pipeline.outcomes import OutcomeRow, load_outcomes
from pilltrack.pipeline.table import read_table

Curve = dict[str, list[float]]  # column -> values
DET_COLUMNS = ("fpir", "seen", "new")
REFERENCES_COLUMNS = ("references", "seen", "new")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Measure(_Part):
    """A number with its 95 % interval, or how many stranger pills that would need.

    Without `low` and `high` there are too few pills for an interval; with `needs_stranger_pills`
    the strangers are too few to say anything about others than these.
    """

    value: float
    low: float | None = None
    high: float | None = None
    needs_stranger_pills: int | None = None


class Decisions(_Part):
    """What the device would have said to enrolled pills."""

    fnir: Measure
    misnamed: Measure
    misnamed_upper: float
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

    n_probes: int
    n_pills: int


class TwoSided(Recall, Counted):
    """Probes of a front and a back photo each."""


class Mated(Recall, Counted):
    """One cohort of enrolled pills."""

    decisions: Decisions
    by_references: dict[int, Recall]
    two_sided: TwoSided | None = None


class Strangers(Counted):
    """Pills that are not enrolled."""

    fpir: Measure
    fpir_upper: float
    named: Measure


class Parity(_Part):
    """The int8 file against the float student, each with its own rule; shares."""

    n_probes: int
    flips: float
    fpir_int8: float
    fpir_float: float
    fnir_int8: float
    fnir_float: float


class Test(_Part):
    """One kind of captures of the test pills."""

    seen: Mated | None = None
    new: Mated | None = None
    strangers: Strangers | None = None
    parity: Parity | None = None


class GallerySize(_Part):
    """How much is enrolled."""

    pills: int
    references: int


class RuleSet(_Part):
    """The rule, and how many validation photos and pills set it."""

    threshold: float
    margin: float
    n_stranger_probes: int
    n_stranger_pills: int
    n_mated_probes: int
    n_mated_pills: int


class ModelSize(_Part):
    """The shipped file."""

    int8_bytes: int


class Metrics(_Part):
    """metrics.json; `test` by kind of captures."""

    gallery: GallerySize
    calibration: RuleSet
    model: ModelSize
    test: dict[str, Test]


@dataclass(frozen=True)
class Results:
    """All that `evaluate` wrote; `passed`: its gate let a calibration through."""

    metrics: Metrics
    raw_metrics: Mapping[str, Any]
    outcomes: Sequence[OutcomeRow]
    lookalikes: Sequence[LookAlike]
    det: Curve
    references: Curve
    passed: bool


def load_results(directory: Path) -> Results:
    """Read `artifacts/evaluate/`.

    Raises StageFailed for a missing or unreadable metrics.json or a value in a curve that is no
    number, DatasetRejected for a damaged or missing table.
    """
    return Results(
        metrics=load_metrics(directory / "metrics.json"),
        raw_metrics=json.loads((directory / "metrics.json").read_bytes()),
        outcomes=load_outcomes(directory / "outcomes.csv"),
        lookalikes=load_lookalikes(directory / "lookalikes.csv"),
        det=_load_curve(directory / "det.csv", DET_COLUMNS),
        references=_load_curve(directory / "references.csv", REFERENCES_COLUMNS),
        passed=(directory / "calibration.json").is_file(),
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
    return _parse_metrics(text, str(path), "Run `dvc repro`.")


def load_metrics_at(revision: str, path: Path) -> Metrics:
    """Read the metrics.json at `path` as it was at a git revision, through DVC.

    `path` lies in the working tree; it may be tracked by git or by DVC, whose cache or remote
    then holds it. Raises StageFailed, naming the revision, when it is unknown, has no such file,
    when the file is of another schema, or `path` is not inside a DVC repository.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import RevError

    subject = f"--against {revision}"
    try:
        root = Path(Repo.find_root(str(path.parent))).resolve()
        name = path.resolve().relative_to(root).as_posix()
        text: str = DVCFileSystem(str(root), rev=revision).read_text(name, encoding="utf-8")
    except NotDvcRepoError as error:
        raise StageFailed(
            subject,
            found=f"{path} is not inside a DVC repository",
            expected="artifacts below the root of a repository with git and DVC",
            remedy="Run from the repository, or leave out --against.",
        ) from error
    except RevError as error:
        raise StageFailed(
            subject,
            found=str(error),
            expected="a branch, tag or commit of this repository",
            remedy="`git fetch --tags` may bring it; `git log` shows what there is.",
        ) from error
    except FileNotFoundError as error:
        raise StageFailed(
            subject,
            found=f"no {name} at that revision",
            expected="the metrics of a finished run",
            remedy="Name a revision at which `dvc repro` ran and its metrics were committed.",
        ) from error
    except (DvcException, OSError, UnicodeDecodeError) as error:
        raise StageFailed(
            subject,
            found=f"{name} cannot be read ({error})",
            expected="metrics in git, in the DVC cache or in its remote",
            remedy="`dvc fetch` brings what a remote holds.",
        ) from error
    remedy = "Name a later revision: this one wrote its metrics in another form."
    return _parse_metrics(text, f"{subject}: {name}", remedy)


def _parse_metrics(text: str, subject: str, remedy: str) -> Metrics:
    try:
        return Metrics.model_validate_json(text)
    except ValidationError as error:
        raise StageFailed(
            subject,
            found=f"another schema ({_first(error)})",
            expected="metrics as in docs/adr/0002-evaluation.md",
            remedy=remedy,
        ) from error


def _load_curve(path: Path, columns: Sequence[str]) -> Curve:
    curve: Curve = {name: [] for name in columns}
    for line, record in read_table(path, required=columns, strip=False):
        for name in columns:
            try:
                curve[name].append(float(record[name]))
            except ValueError as error:
                raise _bad_value(path, line, f"{name}: {error}") from error
    return curve


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


def _bad_value(path: Path, line: int, found: str) -> StageFailed:
    return StageFailed(
        f"{path}:{line}",
        found=found,
        expected="a table as in docs/adr/0002-evaluation.md",
        remedy="Run `dvc repro`.",
    )
