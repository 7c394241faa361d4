"""What a stage did, kept in a local folder until a tracking server has it.

    artifacts/.tracking/
      20261126T101502-train-1f0c…/   one finished stage or trial, whole or not there
        run.json                     a StageRun
        files/                       what it wrote for people, and charts of it
      sessions/<id>.json             one `dvc repro` whose last dvc.lock is still to come

A trial of `pilltrack tune` is kept like a stage; its session is the study.

Stages know nothing of this: a stage writes its results as files, and these are read when it has
ended. Only files written since it began count, so that results of another commit never stand in a
run.
"""

from __future__ import annotations

import csv
import getpass
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pilltrack.core.errors import StageFailed
from pilltrack.core.files import replaced_directory, write_atomically
from pilltrack.pipeline.checkout import git_commit
from pilltrack.pipeline.machine_load import Sample
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import write_csv

log = logging.getLogger(__name__)

DIRECTORY = ".tracking"
RUN_FILE, FILES, SESSIONS = "run.json", "files", "sessions"
BUNDLE = "bundle"  # below FILES
TRIAL = "tune"  # the stage of a trial, though none of dvc.yaml
MAX_FILE_BYTES = 5_000_000  # larger tables stay with DVC
CLOCK_SLACK_S = 2.0  # file systems round times
SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}

# What people read of each stage, and which file holds its figures.
READ_FILES: dict[str, tuple[str, ...]] = {
    "prepare": ("audit.json", "audit.md"),
    "train": ("history.csv",),
    "distill": ("history.csv",),
    "convert": ("parity.json",),
    "enroll": (),
    "evaluate": (
        "metrics.json",
        "calibration.json",
        "det.csv",
        "scores.csv",
        "references.csv",
        "lookalikes.csv",
    ),
    "locate": ("history.csv", "look_history.csv", "metrics.json", "locator.json"),
    "package": (),
    TRIAL: (),
}
FIGURES = {"convert": "parity.json", "evaluate": "metrics.json", "locate": "metrics.json"}
CHARTS: dict[str, tuple[str, tuple[str, ...]]] = {  # file -> x and ys
    "history.csv": ("step", ("loss",)),
    "det.csv": ("fpir", ("seen", "new")),
    "scores.csv": ("score", ("seen", "new", "strangers")),
    "references.csv": ("references", ("seen", "new")),
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Session(_Record):
    """What started the stages of one run of the pipeline: a `dvc repro`, or one stage alone."""

    id: str
    command: str
    host: str
    pid: int
    started_ms: int


class Point(_Record):
    """One value of a metric."""

    key: str
    value: float
    step: int
    at_ms: int


class Data(_Record):
    """The data set behind a run."""

    name: str
    sha256: str
    n_images: int


class StageRun(_Record):
    """One stage that ran; `files` maps each file below `files/` to its SHA-256."""

    format: Literal[1] = 1
    id: str
    stage: str
    status: Literal["FINISHED", "FAILED", "KILLED"]
    error: str
    session: Session
    started_ms: int
    ended_ms: int
    git_commit: str
    user: str
    params_sha256: str
    dvc_lock_sha256: str  # as it was when the stage ended: what the stage read; empty: none
    data: Data | None
    params: dict[str, str]
    points: tuple[Point, ...]
    files: dict[str, str]
    tags: dict[str, str] = {}


class Ending(_Record):
    """A session whose parent run still lacks the dvc.lock that `dvc repro` leaves."""

    session: Session
    git_commit: str
    ended_ms: int


@dataclass
class Trial:
    """What a trial of a study is, and what it tells while it runs."""

    study: str
    number: int
    session: Session  # of the study
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch
    pruned: bool = False


class Started:
    """The moment a stage or trial begins: its session, commit and time."""

    def __init__(self, stage: str, trial: Trial | None = None) -> None:
        self.stage, self.trial = stage, trial
        self.session = trial.session if trial else find_session()
        self.git_commit = git_commit()
        self.at_s = time.time()


def record(
    started: Started,
    params: Params,
    artifacts: Path,
    *,
    error: BaseException | None,
    load: Sequence[Sample],
) -> Path:
    """Put a stage that has just ended into the spool; return its folder there.

    `error`: what ended it, None when it ended well.
    """
    run_id = uuid.uuid4().hex
    stamp = datetime.fromtimestamp(started.at_s, UTC).strftime("%Y%m%dT%H%M%S")
    folder = artifacts / DIRECTORY / f"{stamp}-{started.stage}-{run_id}"
    ended_ms = int(time.time() * 1000)
    with replaced_directory(folder) as new:
        files = new / FILES
        files.mkdir()
        for name in READ_FILES[started.stage]:
            _copy_fresh(artifacts / started.stage / name, files, started.at_s)
        trial = started.trial
        if trial and trial.history:
            columns = list(trial.history[0])
            rows = [[row[name] for name in columns] for row in trial.history]
            write_csv(files / "history.csv", columns, rows)
        for name, (x, ys) in CHARTS.items():
            if (files / name).is_file():
                _draw(files / name, x, ys)
        lock = Path("dvc.lock")
        if lock.is_file():
            shutil.copyfile(lock, files / lock.name)
        write_atomically(files / "params.json", f"{params.model_dump_json(indent=1)}\n".encode())
        if started.stage == "package" and error is None:
            shutil.copytree(artifacts / "package" / BUNDLE, files / BUNDLE)
            _copy_fresh(artifacts / "evaluate" / "metrics.json", files, since_s=0)
        run = StageRun(
            id=run_id,
            stage=started.stage,
            status="KILLED" if trial and trial.pruned else _status(error),
            error=str(error or "")[:4000],
            session=started.session,
            started_ms=int(started.at_s * 1000),
            ended_ms=ended_ms,
            git_commit=started.git_commit,
            user=user_name(),
            params_sha256=params.digest(),
            dvc_lock_sha256=sha256(files / lock.name) if (files / lock.name).is_file() else "",
            data=_data(artifacts / "prepare" / "audit.json"),
            tags=_tags(trial, error) if trial else {},
            params=dict(_flat_params(params, started.stage)),
            points=tuple(_points(started, files, load, ended_ms)),
            files={
                file.relative_to(files).as_posix(): sha256(file)
                for file in sorted(files.rglob("*"))
                if file.is_file()
            },
        )
        write_atomically(new / RUN_FILE, run.model_dump_json(indent=1).encode())
    return folder


def waiting(spool: Path) -> list[Path]:
    """Folders of the stages that no server has yet, in the order in which they ran."""
    return sorted(file.parent for file in spool.glob(f"*/{RUN_FILE}") if file.parent.name[0] != ".")


def read_run(folder: Path) -> StageRun:
    """Read a spooled stage and check every file of it. Raises StageFailed for a damaged one."""
    try:
        run = StageRun.model_validate_json((folder / RUN_FILE).read_bytes())
        files = folder / FILES
        found = {
            file.relative_to(files).as_posix(): sha256(file)
            for file in files.rglob("*")
            if file.is_file()
        }
    except (OSError, ValidationError) as error:
        raise _damaged(
            folder, f"not what a stage left ({' '.join(str(error).split())[:200]})"
        ) from (error)
    if found != run.files:
        odd = {name for name, _ in found.items() ^ run.files.items()}
        raise _damaged(folder, f"files changed, added or missing ({', '.join(sorted(odd)[:3])})")
    return run


def keep_ending(spool: Path, run: StageRun) -> None:
    """Remember that the parent run of this stage lacks its last dvc.lock."""
    ending = Ending(session=run.session, git_commit=run.git_commit, ended_ms=run.ended_ms)
    file = spool / SESSIONS / f"{run.session.id}.json"
    if file.is_file():
        try:
            if _read_ending(file).ended_ms > ending.ended_ms:
                return
        except StageFailed as error:
            log.warning("%s It is written anew.", error)
    write_atomically(file, ending.model_dump_json(indent=1).encode())


def endings(spool: Path) -> tuple[dict[Path, Ending], list[StageFailed]]:
    """Sessions whose `dvc repro` is over, by their file; and what is wrong with the other files."""
    found, damaged = {}, []
    for file in sorted((spool / SESSIONS).glob("*.json")):
        try:
            ending = _read_ending(file)
        except StageFailed as error:
            damaged.append(error)
            continue
        if not is_running(ending.session):
            found[file] = ending
    return found, damaged


def find_session() -> Session:
    """The `dvc repro` that started this process, else this process itself.

    Stages of one `dvc repro` are separate processes with one ancestor: the first that is no shell.
    A process is told from a later one with its number by the time it began.
    """
    owner = psutil.Process()
    if os.environ.get("DVC_STAGE"):
        ancestors = [process for process in owner.parents() if process.name() not in SHELLS]
        owner = ancestors[0] if ancestors else owner
    host, started_ms = platform.node(), int(owner.create_time() * 1000)
    name = f"{host} {owner.pid} {started_ms}"
    words = [Path(word).name if number < 2 else word for number, word in enumerate(owner.cmdline())]
    return Session(
        id=uuid.uuid5(uuid.NAMESPACE_OID, name).hex,
        command=" ".join(words[1:] if words[:1] and words[0].startswith("python") else words),
        host=host,
        pid=owner.pid,
        started_ms=started_ms,
    )


def user_name() -> str:
    """Who works here: git's user.name, else the name of the account."""
    try:
        found = subprocess.run(
            ["git", "config", "user.name"],  # noqa: S607 - git of the user's PATH is meant
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        return found or getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def flat_figures(values: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested dictionary, keys joined by `/`; lists, words and `origin` left out.

    >>> dict(flat_figures({"new": {"recall": 0.5, "by": [1]}, "name": "x", "origin": {"a": 1}}))
    {'new/recall': 0.5}
    """
    if isinstance(values, dict):
        for key, value in values.items():
            if key != "origin":
                yield from flat_figures(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(values, (int, float)) and not isinstance(values, bool):
        yield prefix, float(values)


def sha256(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _tags(trial: Trial, error: BaseException | None) -> dict[str, str]:
    state = "pruned" if trial.pruned else "finished" if error is None else "failed"
    return {"study": trial.study, "trial": str(trial.number), "trial_state": state}


def _status(error: BaseException | None) -> Literal["FINISHED", "FAILED", "KILLED"]:
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _copy_fresh(file: Path, target: Path, since_s: float) -> None:
    if not file.is_file():
        return
    about = file.stat()
    if about.st_mtime >= since_s - CLOCK_SLACK_S and about.st_size <= MAX_FILE_BYTES:
        shutil.copyfile(file, target / file.name)


def _data(audit: Path) -> Data | None:
    if not audit.is_file():
        return None
    found = json.loads(audit.read_bytes())
    return Data(
        name=found["archive"],
        sha256=found["archive_sha256"],
        n_images=sum(found["captures"].values()),
    )


def _flat_params(params: Params, stage: str) -> Iterator[tuple[str, str]]:
    for section in ("distill" if stage == TRIAL else stage, "capture"):
        for key, value in getattr(params, section).model_dump(mode="json").items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{section}.{key}", text


def _points(
    started: Started, files: Path, load: Sequence[Sample], ended_ms: int
) -> Iterator[Point]:
    for row in _rows(files / "history.csv"):
        step = int(float(row.get("epoch") or row["step"]))
        for key in row.keys() - {"epoch"}:
            yield Point(key=key, value=float(row[key]), step=step, at_ms=ended_ms)
    figures = files / FIGURES.get(started.stage, "none")
    if figures.is_file():
        for key, value in flat_figures(json.loads(figures.read_bytes())):
            yield Point(key=key, value=value, step=0, at_ms=ended_ms)
    for step, (at_ms, values) in enumerate(load):
        for key, value in values.items():
            yield Point(key=key, value=value, step=step, at_ms=at_ms)
    seconds = ended_ms / 1000 - started.at_s
    yield Point(key="stage_seconds", value=seconds, step=0, at_ms=ended_ms)


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _draw(table: Path, x: str, ys: Sequence[str]) -> None:
    from matplotlib.figure import Figure

    rows = _rows(table)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for y in ys:
        axes.plot([float(row[x]) for row in rows], [float(row[y]) for row in rows], label=y)
    axes.set_xlabel(x)
    axes.legend()
    figure.savefig(table.with_suffix(".png"), dpi=100)


def _read_ending(file: Path) -> Ending:
    try:
        return Ending.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(file, "not a session") from error


def is_running(session: Session) -> bool:
    """Whether the process that began a session runs; one of another machine is not known here."""
    if session.host != platform.node():
        return False
    try:
        return int(psutil.Process(session.pid).create_time() * 1000) == session.started_ms
    except psutil.Error:
        return False


def _damaged(where: Path, found: str) -> StageFailed:
    return StageFailed(
        str(where),
        found=found,
        expected="a stage as it was recorded",
        remedy="Move it away if it cannot be restored.",
    )
