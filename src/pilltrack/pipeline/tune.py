"""`pilltrack tune`: which temperature, alpha and learning rate teach the student best.

    params.yaml, artifacts/prepare, artifacts/train -> trials -> a study in a database

A trial is the stage `distill` with other values. Its score is recall@1 of captures of validation
pills, after each epoch; test pills are never looked at. A trial that is worse than the median of
the others after the same epoch is pruned. The first trial has the values of params.yaml, so that
the best one is never worse than what is there.

A study is a name in a database: whoever names it works on it, one process or many, until it has
the wanted number of trials that ended (finished or pruned); those that are busy then end theirs.
All its trials must be comparable: with other data, another teacher, other code or settings it is
refused. A trial whose process died is failed and tried again. One worker alone draws the same
values each time: the draw of a trial follows from the seed, its number and the trials before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.exceptions import DuplicatedStudyError, TrialPruned, UpdateFinishedTrialError
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from tqdm import tqdm

from pilltrack.core.errors import InputRejected, PillTrackError, StageFailed
from pilltrack.pipeline.checkout import out_of_step
from pilltrack.pipeline.distill import (
    Probes,
    Teacher,
    open_teacher,
    student_of,
    teach,
    validation_probes,
)
from pilltrack.pipeline.fit import Process
from pilltrack.pipeline.params import DistillParams, Params
from pilltrack.pipeline.spool import TRIAL, Session, Trial, find_session, is_running, sha256
from pilltrack.pipeline.tracking import SCORE, send_waiting, tracked
from pilltrack.pipeline.tune_storage import (
    STORAGE_VARIABLE,
    Heartbeat,
    open_storage,
    queue_again,
    shown,
    speaking_to,
)
from pilltrack.pipeline.workers import run_workers

log = logging.getLogger(__name__)

SEARCHED = ("temperature", "alpha", "learning_rate")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS = 5  # that nothing is pruned against
MAX_FAILURES = 3  # one after the other
LOGS = ".tune"  # below artifacts
Range = tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """What to search, where it is kept, and until when."""

    storage: str  # a URL; may hold a password
    study: str
    trials: int  # that must have ended, in all
    ranges: dict[str, Range]  # of each of SEARCHED
    seed: int


@dataclass(frozen=True)
class Outcome:
    """A study as it stands; `first` is the score with the values of params.yaml, if known."""

    study: str
    storage: str
    counts: dict[str, int]  # state -> trials
    best: int  # its number
    score: float
    values: dict[str, float]
    first: float | None


def ranges_of(settings: DistillParams, given: dict[str, Range]) -> dict[str, Range]:
    """The ranges to search: those `given`, else wide ones, for the rate around that of params.yaml.

    Raises InputRejected for a range that `distill` would not take.
    """
    rate = settings.learning_rate
    ranges = {
        "temperature": (0.02, 0.5),
        "alpha": (0.0, 1.0),
        "learning_rate": (rate / 10, rate * 10),
        **given,
    }
    for name, ends in ranges.items():
        try:
            for end in ends:
                DistillParams.model_validate({**settings.model_dump(), name: end})
        except ValidationError as error:
            raise InputRejected(
                f"--{name.replace('_', '-')}",
                found=f"{ends[0]:g}:{ends[1]:g}",
                expected=str(error.errors()[0]["msg"]),
                remedy="Correct the range.",
            ) from error
    return ranges


def tune(params: Params, artifacts: Path, plan: Plan, workers: int = 1) -> Outcome:
    """Work on a study until it has the planned trials.

    Raises StageFailed when the results of prepare or train are missing or of other parameters,
    data or code; when the study is of others; when trials fail one after the other; when the
    database does not answer. Raises GateFailed for a teacher that `distill` would refuse.
    """
    _require_in_step()
    basis = _basis(params, artifacts, plan.ranges)
    with speaking_to(plan.storage):
        storage = open_storage(plan.storage)
        study = _opened(plan, storage, params.distill, basis)
        if workers == 1:
            _work(params, artifacts, plan, study, storage)
        else:
            _oversee(artifacts, plan, study, workers)
        send_waiting(artifacts)
        return _outcome(plan, study, params.distill)


def as_text(outcome: Outcome) -> str:
    """A study and its best trial, for a person, and how to use it."""
    counts = ", ".join(f"{count} {state}" for state, count in outcome.counts.items())
    first = "" if outcome.first is None else f"; {_percent(outcome.first)} as in params.yaml"
    lines = [
        f"study {outcome.study} in {outcome.storage}: {counts}",
        f"best: trial {outcome.best}, recall@1 {_percent(outcome.score)} on validation pills"
        f"{first}",
        *(f"  distill.{name}: {value:g}" for name, value in outcome.values.items()),
        "run the pipeline with it:",
        f"  {command(outcome.values)}",
    ]
    return "\n".join(lines)


def command(values: dict[str, float]) -> str:
    """What runs the pipeline with these values.

    >>> command({"alpha": 0.25})
    'dvc exp run -S distill.alpha=0.25'
    """
    return " ".join(["dvc exp run", *(f"-S distill.{name}={v:g}" for name, v in values.items())])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _require_in_step() -> None:
    """Refuse to search beside results that dvc.lock does not know."""
    others = sorted(
        name
        for name in out_of_step()
        if name.split(":")[-1] in ("prepare", "train") or name.endswith(".dvc")
    )
    if others:
        raise StageFailed(
            ", ".join(others),
            found="not as dvc.lock has it: missing, or of other parameters, data or code",
            expected="the finished stages prepare and train",
            remedy="Run `dvc repro train`.",
        )


def _basis(params: Params, artifacts: Path, ranges: dict[str, Range]) -> dict[str, str]:
    """What all trials of a study have in common: each part by its digest."""
    fixed = params.distill.model_dump(mode="json", exclude=set(SEARCHED) | {"workers"})
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    code = [Path(name) for name in stages["distill"]["deps"] if Path(name).suffix == ".py"]
    prepared = artifacts / "prepare"
    return {
        "data": _digest([sha256(prepared / name) for name in ("audit.json", "images.csv")]),
        "teacher": sha256(artifacts / "train" / "teacher.safetensors"),
        "code": _digest([sha256(file) for file in code]),
        "settings of distill": _digest([fixed, params.digest("capture")]),
        "ranges": json.dumps(ranges),
    }


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _opened(
    plan: Plan, storage: RDBStorage, settings: DistillParams, basis: dict[str, str]
) -> optuna.Study:
    """The study, begun if there is none. Raises StageFailed when it is of another basis."""
    pruner = MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1)
    try:
        study = optuna.create_study(
            storage=storage, study_name=plan.study, direction="maximize", pruner=pruner
        )
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=plan.study, pruner=pruner)
    else:
        study.set_user_attr("id", uuid.uuid4().hex)
        now = {name: getattr(settings, name) for name in SEARCHED}
        if all(low <= now[name] <= high for name, (low, high) in plan.ranges.items()):
            study.enqueue_trial(now)
    before = study.user_attrs.get("basis")
    if before is None:
        study.set_user_attr("basis", basis)
    elif before != basis:
        others = [name for name, value in basis.items() if before.get(name) != value]
        raise StageFailed(
            f"study {plan.study}",
            found=f"begun with other {', '.join(others)}",
            expected="what its trials can be compared under",
            remedy="Give another name with --study, or go back to what it was begun with.",
        )
    return study


@dataclass(frozen=True)
class _Inputs:
    """What every trial of a process works with."""

    artifacts: Path
    process: Process
    teacher: Teacher
    probes: Probes


def _work(
    params: Params, artifacts: Path, plan: Plan, study: optuna.Study, storage: RDBStorage
) -> None:
    """Run trials in this process until the study has enough."""
    if _n_ended(study) >= plan.trials:
        return
    process = Process(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    size_px = params.distill.input_size_px
    inputs = _Inputs(
        artifacts,
        process,
        open_teacher(params, artifacts, process),
        validation_probes(params, artifacts / "prepare", size_px),
    )
    session = find_session()
    ours = session.model_copy(
        update={
            "id": uuid.uuid5(uuid.NAMESPACE_OID, str(study.user_attrs.get("id"))).hex,
            "command": f"pilltrack tune --study {plan.study}",
        }
    )

    def run(trial: optuna.Trial) -> float:
        trial.set_user_attr("session", session.model_dump(mode="json"))
        study.sampler = _sampler(plan.seed, trial.number)
        settings = params.distill.model_copy(update=_drawn(trial, plan.ranges))
        told = Trial(plan.study, trial.number, ours)
        with_values = params.model_copy(update={"distill": settings})
        with tracked(TRIAL, with_values, artifacts, told):
            return _tried(trial, told, with_values, inputs)

    n_failures = 0
    with tqdm(total=plan.trials, desc=f"study {plan.study}", unit="trial", disable=None) as bar:
        while (ended := _n_ended(study)) < plan.trials:
            bar.update(ended - bar.n)
            _give_up_dead(study)
            failure = _run_one(study, storage, run)
            n_failures = n_failures + 1 if failure else 0
            if failure and n_failures == MAX_FAILURES:
                raise failure
        bar.update(ended - bar.n)


def _run_one(
    study: optuna.Study, storage: RDBStorage, run: Callable[[optuna.Trial], float]
) -> PillTrackError | None:
    """Begin a trial, keep it alive, and tell how it ended; return what it failed of, if it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna would rather beat the heart itself
        optuna.storages.fail_stale_trials(study)
        trial = study.ask()
    with Heartbeat(storage, trial):
        try:
            told = study.tell(trial, run(trial), skip_if_finished=True)
        except TrialPruned:
            told = study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        except PillTrackError as error:
            log.warning("trial %d failed: %s", trial.number, error)
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return error
        except UpdateFinishedTrialError:
            told = study.trials[trial.number]
        except BaseException:
            with suppress(Exception):  # a process that is gone is noticed, too
                study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
    if told.state == TrialState.FAIL:
        log.warning("trial %d: another process took this one for dead; dropped", trial.number)
    return None


def _tried(trial: optuna.Trial, told: Trial, params: Params, inputs: _Inputs) -> float:
    """Teach a student as `distill` would, and score it. Raises TrialPruned when it lags behind."""
    student = student_of(inputs.teacher, params.distill)

    def after_epoch(row: dict[str, float]) -> None:
        score = inputs.probes.recall_at_1(student)
        told.history.append({**row, SCORE: score})
        trial.report(score, int(row["epoch"]))
        if row["epoch"] < params.distill.epochs and trial.should_prune():
            told.pruned = True
            raise TrialPruned

    teach(
        student,
        inputs.teacher,
        params,
        inputs.artifacts,
        inputs.process,
        checkpoint=None,
        title=f"trial {trial.number}",
        after_epoch=after_epoch,
    )
    score = inputs.probes.recall_at_1(student)  # its weights settled, as `distill` writes them
    told.history[-1][SCORE] = score
    log.info("trial %d: recall@1 %s on validation pills", trial.number, _percent(score))
    return score


def _sampler(seed: int, number: int) -> TPESampler:
    """A sampler for one trial: several processes draw differently, and a study goes on alike."""
    return TPESampler(seed=int(_digest([seed, number])[:8], 16))


def _drawn(trial: optuna.Trial, ranges: dict[str, Range]) -> dict[str, float]:
    """Values for a trial, of four digits: what is printed is what was tried."""
    drawn = {
        name: trial.suggest_float(name, *ranges[name], log=name != "alpha") for name in SEARCHED
    }
    return {name: _short(value) for name, value in drawn.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _n_ended(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=ENDED))


def _give_up_dead(study: optuna.Study) -> None:
    """Fail the trials of processes of this machine that are gone, and queue them again.

    Those of other machines are found by their heartbeat.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "session" not in trial.user_attrs:
            continue
        session = Session.model_validate(trial.user_attrs["session"])
        if session.host != platform.node() or is_running(session):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):  # somebody else was faster
            continue
        log.warning("trial %d failed: its process is gone", trial.number)
        queue_again(study, trial)


def _oversee(artifacts: Path, plan: Plan, study: optuna.Study, workers: int) -> None:
    """Start this command several times over. Raises StageFailed when the study stays short."""
    arguments = [f"--study={plan.study}", f"--trials={plan.trials}", f"--seed={plan.seed}"]
    for name, (low, high) in plan.ranges.items():
        arguments.append(f"--{name.replace('_', '-')}={low!r}:{high!r}")
    folder = artifacts / LOGS
    bar = tqdm(total=plan.trials, desc=f"study {plan.study}", unit="trial", disable=None)
    with bar:
        failed = run_workers(
            ["tune", *arguments],
            folder,
            workers,
            # Not as an argument: everybody reads those.
            variables={STORAGE_VARIABLE: plan.storage},
            meanwhile=lambda: bar.update(_n_ended(study) - bar.n),
        )
    for file, code, said in failed:
        log.warning("%s ended with code %d: %s", file, code, said)
    if _n_ended(study) < plan.trials:
        raise StageFailed(
            f"study {plan.study}",
            found=f"{_n_ended(study)} trials ended; {len(failed)} of {workers} workers failed",
            expected=f"{plan.trials} trials",
            remedy=f"Look at {folder}/worker-*.log, then repeat the command: it goes on.",
        )


def _outcome(plan: Plan, study: optuna.Study, settings: DistillParams) -> Outcome:
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not finished:
        raise StageFailed(
            f"study {plan.study}",
            found=f"no trial finished ({len(trials)} were begun)",
            expected="at least one score",
            remedy="Widen the ranges, or look at what the trials failed of.",
        )
    names = {
        "finished": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
        "waiting": TrialState.WAITING,
    }
    counts = {name: sum(t.state == state for t in trials) for name, state in names.items()}
    best = max(finished, key=lambda trial: (trial.value or 0.0, -trial.number))
    now = {name: _short(getattr(settings, name)) for name in SEARCHED}
    first = [trial for trial in finished if _values(trial) == now]
    return Outcome(
        study=plan.study,
        storage=shown(plan.storage),
        counts={name: count for name, count in counts.items() if count},
        best=best.number,
        score=_value(best),
        values=_values(best),
        first=_value(first[0]) if first else None,
    )


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None  # it is complete
    return trial.value


def _values(trial: FrozenTrial) -> dict[str, float]:
    return {name: _short(trial.params[name]) for name in SEARCHED}
