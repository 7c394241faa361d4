"""Studies: trials of distill that are comparable, kept through kills, and on record in MLflow."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from pilltrack.cli import main
from pilltrack.pipeline import train, tune
from pilltrack.pipeline.distill import teach
from pilltrack.pipeline.params import Params, load_params
from pilltrack.pipeline.spool import waiting
from pilltrack.pipeline.tracking import spool_of
from pilltrack.pipeline.tune_storage import open_storage, queue_again
from tests.pipeline.mlflow_server import free_port
from tests.pipeline.study_place import VARIABLES, environment, study_place

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def begun(
    tiny_artifacts: Path, tiny_params: Params, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkout whose teacher is trained; it is copied for each test."""
    directory = tmp_path_factory.mktemp("begun")
    results = directory / "results"
    shutil.copytree(tiny_artifacts / "prepare", results / "prepare")
    train.main(tiny_params, results)
    return study_place(directory / "checkout", results, tiny_params)


@pytest.fixture
def checkout(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which we stand, without tracking."""
    shutil.copytree(begun, tmp_path / "checkout", symlinks=True)
    monkeypatch.chdir(tmp_path / "checkout")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PILLTRACK_TRACKING", "off")
    return tmp_path / "checkout"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command; what it prints with --json."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = main(["tune", "--json", *arguments])
        said = capsys.readouterr()
        assert code == 0, said.err
        answer: Answer = json.loads(said.out)
        return answer

    return run


def study(name: str = "distill", url: str = "sqlite:///tune.db") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(url))


def drawn(of: optuna.Study) -> list[tuple[dict[str, float], float | None]]:
    return [(trial.params, trial.value) for trial in of.get_trials(deepcopy=False)]


# --- what a study is -----------------------------------------------------------------------------


def test_the_first_trial_is_params_yaml_and_the_best_is_told_with_its_command(
    checkout: Path, told: Callable[..., Answer]
) -> None:
    answer = told("--trials", "3")
    first, *others = study().get_trials(deepcopy=False)
    distill = load_params(Path("params.yaml")).distill
    names = ("temperature", "alpha", "learning_rate")
    assert first.params == {name: getattr(distill, name) for name in names}
    assert answer["first"] == first.value
    assert answer["counts"] == {"finished": 3}
    scores = [trial.value for trial in [first, *others]]
    assert answer["score"] == max(score for score in scores if score is not None)
    assert answer["best"] == scores.index(answer["score"])
    best = study().trials[answer["best"]].params
    assert answer["values"] == {name: float(f"{best[name]:.4g}") for name in best}
    command = answer["command"].split()
    assert command[:3] == ["dvc", "exp", "run"]
    assert f"distill.alpha={answer['values']['alpha']:g}" in command
    assert not (checkout / "artifacts" / "distill").exists()
    assert list(first.intermediate_values) == [1, 2, 3]


def test_a_trial_scores_what_distill_would_have_made(
    checkout: Path, told: Callable[..., Answer]
) -> None:
    from pilltrack.pipeline import distill
    from pilltrack.pipeline.models import load_network

    values = {"temperature": 0.2, "alpha": 0.25, "learning_rate": 0.003}
    ranges = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    answer = told("--trials", "1", *ranges)
    assert answer["values"] == values
    params = load_params(Path("params.yaml"))
    with_values = params.model_copy(update={"distill": params.distill.model_copy(update=values)})
    distill.main(with_values, checkout / "artifacts")
    net, size_px = load_network(checkout / "artifacts" / "distill" / "student.safetensors")
    probes = distill.validation_probes(params, checkout / "artifacts" / "prepare", size_px)
    assert answer["score"] == probes.recall_at_1(net)


def test_only_validation_pills_are_looked_at(checkout: Path) -> None:
    from pilltrack.pipeline.distill import validation_probes
    from pilltrack.pipeline.table import load_images

    prepared = checkout / "artifacts" / "prepare"
    probes = validation_probes(load_params(Path("params.yaml")), prepared, 32)
    split_of = {row.pill: row.split for row in load_images(prepared)}
    assert {split_of[pill] for pill in probes.pills} == {"validation"}


def test_a_study_that_is_interrupted_between_trials_ends_as_one_that_is_not(
    checkout: Path, told: Callable[..., Answer]
) -> None:
    told("--trials", "4", "--study", "whole")
    for trials in "2344":
        told("--trials", trials, "--study", "parts")
    assert drawn(study("parts")) == drawn(study("whole"))
    told("--trials", "2", "--study", "other", "--seed", "7")
    assert drawn(study("other"))[1] != drawn(study("whole"))[1]


def add_good_trials(of: optuna.Study) -> None:
    """Trials that told of no error at all, so that any other lags behind."""
    [like, *_] = of.get_trials(deepcopy=False)
    for _ in range(tune.STARTUP_TRIALS):
        of.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                value=1.0,
                params=like.params,
                distributions=like.distributions,
                intermediate_values={1: 1.0, 2: 1.0, 3: 1.0},
            )
        )


def test_a_trial_that_lags_behind_is_pruned(checkout: Path, told: Callable[..., Answer]) -> None:
    told("--trials", "1")
    add_good_trials(study())
    answer = told("--trials", str(tune.STARTUP_TRIALS + 2))
    assert answer["counts"] == {"finished": tune.STARTUP_TRIALS + 1, "pruned": 1}
    last = study().trials[-1]
    assert last.state == TrialState.PRUNED
    assert list(last.intermediate_values) == [1]  # of three epochs


# --- workers -------------------------------------------------------------------------------------


def start(checkout: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pilltrack", "tune", *arguments],
        cwd=checkout,
        env=environment(**{"PILLTRACK_TRACKING": "off", **variables}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.05)


def states(name: str = "distill") -> list[str]:
    """Of all trials, read from the file as another program would."""
    if not Path("tune.db").is_file():
        return []
    with sqlite3.connect("tune.db", timeout=30) as database:
        query = (
            "select state from trials join studies using (study_id) where study_name = ? "
            "order by number"
        )
        try:
            return [row[0] for row in database.execute(query, (name,))]
        except sqlite3.OperationalError:  # no tables yet
            return []


def slow(epochs: int = 20) -> None:
    """Give each trial so many epochs that it can be met at work."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["distill"]["epochs"] = epochs
    Path("params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.e2e
def test_a_killed_worker_loses_one_trial_which_is_tried_again(checkout: Path) -> None:
    slow()
    killed = start(checkout, "--trials", "2")
    until(lambda: states()[1:] == ["RUNNING"] and "session" in study().trials[1].user_attrs)
    killed.kill()
    killed.wait()
    assert states() == ["COMPLETE", "RUNNING"]
    again = start(checkout, "--trials", "2", "--json")
    said, complaints = again.communicate(timeout=120)
    assert again.returncode == 0, complaints
    assert "trial 1 failed: its process is gone" in complaints
    assert json.loads(said)["counts"] == {"finished": 2, "failed": 1}
    assert states() == ["COMPLETE", "FAIL", "COMPLETE"]
    first, lost, repeated = study().trials
    assert repeated.user_attrs["again"] == 1
    assert repeated.params == lost.params != first.params


def test_a_trial_that_kills_its_process_is_not_tried_for_ever(
    checkout: Path, told: Callable[..., Answer]
) -> None:
    told("--trials", "1")
    deadly = study()
    for again in (1, 2, 3):
        trial = deadly.trials[-1]
        queue_again(deadly, trial)
        assert [t.user_attrs.get("again") for t in deadly.trials[1:]] == [1, 2, 2][: min(again, 2)]


@pytest.mark.e2e
def test_two_workers_share_a_study_in_sqlite(checkout: Path) -> None:
    work = start(checkout, "--trials", "6", "--workers", "2", "--json")
    said, complaints = work.communicate(timeout=180)
    assert work.returncode == 0, complaints
    counts = json.loads(said)["counts"]
    assert set(counts) <= {"finished", "pruned"}
    assert 6 <= sum(counts.values()) <= 7  # a worker that is busy ends its trial
    trials = study().trials
    assert len({trial.user_attrs["session"]["pid"] for trial in trials}) == 2
    assert len({tuple(trial.params.values()) for trial in trials}) == len(trials)
    assert [trial.number for trial in trials] == list(range(len(trials)))


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_ends_all_workers_and_keeps_what_ended(
    checkout: Path, number: signal.Signals
) -> None:
    slow()
    work = start(checkout, "--trials", "50", "--workers", "2")
    until(lambda: "COMPLETE" in states() and states().count("RUNNING") == 2)
    work.send_signal(number)
    said, complaints = work.communicate(timeout=120)
    assert work.returncode == 130, complaints
    assert said == ""
    assert "Traceback" not in complaints
    kept = states()
    assert kept.count("RUNNING") == 0
    time.sleep(2)
    assert states() == kept  # nobody is left at work
    for log in Path("artifacts/.tune").glob("worker-*.log"):
        assert "interrupted" in log.read_text()


def test_a_worker_taken_for_dead_drops_its_trial_and_goes_on(
    checkout: Path, told: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    told("--trials", "1")
    given_up: list[int] = []

    def losing(*arguments: Any, **named: Any) -> Any:
        if not given_up:
            study().tell(1, state=TrialState.FAIL)  # as another machine would
            given_up.append(1)
        return teach(*arguments, **named)

    monkeypatch.setattr("pilltrack.pipeline.tune.teach", losing)
    assert told("--trials", "2")["counts"] == {"finished": 2, "failed": 1}
    assert states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_trial_of_another_machine_that_fell_silent_is_tried_again(
    checkout: Path, told: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    told("--trials", "1")
    monkeypatch.setattr("pilltrack.pipeline.tune_storage.GRACE_S", 1)
    theirs = study()
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = theirs.ask()
    trial.suggest_float("alpha", 0.0, 1.0)
    session = theirs.trials[0].user_attrs["session"]
    trial.set_user_attr("session", {**session, "host": "elsewhere"})
    open_storage("sqlite:///tune.db").record_heartbeat(trial._trial_id)
    time.sleep(2.5)  # the database counts whole seconds
    assert told("--trials", "2")["counts"] == {"finished": 2, "failed": 1}
    assert states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study().trials[2].params["alpha"] == trial.params["alpha"]


# --- MLflow --------------------------------------------------------------------------------------


def runs(uri: str) -> list[Run]:
    client = MlflowClient(uri, uri)
    found = client.get_experiment_by_name("pilltrack")
    return list(client.search_runs([found.experiment_id])) if found else []


def test_each_trial_is_a_run_below_the_run_of_its_study(
    checkout: Path, told: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{checkout}/mlflow.db"
    monkeypatch.setenv("PILLTRACK_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told("--trials", "2")
    add_good_trials(study())
    told("--trials", str(3 + tune.STARTUP_TRIALS))
    trials = {run.data.tags["trial"]: run for run in runs(uri) if "trial" in run.data.tags}
    assert sorted(trials) == ["0", "1", "7"]
    [parent] = {run.data.tags["mlflow.parentRunId"] for run in trials.values()}
    assert len(runs(uri)) == 4
    whole = MlflowClient(uri, uri).get_run(parent)
    assert whole.info.run_name == "pilltrack tune --study distill"
    assert whole.info.status == "FINISHED"
    assert trials["0"].info.run_name == "trial 0"
    assert [trials[n].info.status for n in ("0", "1", "7")] == ["FINISHED", "FINISHED", "KILLED"]
    assert [trials[n].data.tags["trial_state"] for n in ("0", "7")] == ["finished", "pruned"]
    for number, optuna_trial in ((0, study().trials[0]), (1, study().trials[1])):
        run = trials[str(number)]
        alpha = float(run.data.params["distill.alpha"])
        assert alpha == float(f"{optuna_trial.params['alpha']:.4g}")
        history = MlflowClient(uri, uri).get_metric_history(run.info.run_id, "recall_at_1")
        assert [point.step for point in history] == [1, 2, 3]
        assert history[-1].value == optuna_trial.value
    curve = MlflowClient(uri, uri).get_metric_history(parent, "recall_at_1")
    values = {point.step: point.value for point in curve}
    assert values == {number: study().trials[number].value for number in (0, 1)}
    assert waiting(spool_of(Path("artifacts"))) == []


def test_a_server_that_is_down_costs_no_trial_and_gets_all_later(
    checkout: Path,
    told: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PILLTRACK_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert told("--trials", "2")["counts"] == {"finished": 2}
    assert "`pilltrack track sync` sends it later" in caplog.text
    assert len(waiting(spool_of(Path("artifacts")))) == 2
    uri = f"sqlite:///{checkout}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["track", "sync"]) == 0
    assert sum("trial" in run.data.tags for run in runs(uri)) == 2


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["no data", "no teacher", "other data", "other params"])
def test_results_that_dvc_does_not_know_are_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    if what == "no data":
        shutil.rmtree("artifacts/prepare")
    elif what == "no teacher":
        Path("artifacts/train/teacher.safetensors").unlink()
    elif what == "other data":
        audit = Path("artifacts/prepare/audit.json")
        audit.write_text(audit.read_text() + " ")
    else:
        params = yaml.safe_load(Path("params.yaml").read_text())
        params["train"]["epochs"] += 1
        Path("params.yaml").write_text(yaml.safe_dump(params))
    assert main(["tune", "--trials", "1"]) == 1
    said = capsys.readouterr().err
    assert "not as dvc.lock has it" in said
    assert "Run `dvc repro train`." in said
    assert not Path("tune.db").exists()


@pytest.mark.parametrize(
    ("what", "named"),
    [("epochs", "settings of distill"), ("code", "code"), ("ranges", "ranges")],
)
def test_a_study_takes_no_trial_that_cannot_be_compared(
    checkout: Path,
    told: Callable[..., Answer],
    capsys: pytest.CaptureFixture[str],
    what: str,
    named: str,
) -> None:
    told("--trials", "1")
    more = []
    if what == "epochs":
        slow(epochs=4)
    elif what == "code":
        Path("distill.py").write_text("# other code")
    else:
        more = ["--alpha", "0:0.5"]
    assert main(["tune", "--trials", "2", *more]) == 1
    said = capsys.readouterr().err
    assert f"begun with other {named};" in said
    assert "--study" in said
    assert len(states()) == 1


def test_trials_that_fail_one_after_the_other_end_the_study(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--trials", "9", "--learning-rate", "1e30"]) == 1
    said = capsys.readouterr().err
    assert "expected a finite loss" in said
    assert states() == ["FAIL"] * tune.MAX_FAILURES


def test_a_study_without_a_finished_trial_is_an_error(
    checkout: Path, told: Callable[..., Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    told("--trials", "1")
    with sqlite3.connect("tune.db") as database:
        database.execute("update trials set state = 'PRUNED'")
    assert main(["tune", "--trials", "1"]) == 1
    assert "no trial finished" in capsys.readouterr().err


def test_a_teacher_that_distill_would_refuse_is_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["distill"]["min_teacher_recall_at_1"] = 1.0
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert main(["tune", "--trials", "1"]) == 3
    assert "distill: the teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:hidden@127.0.0.1:1/pills", "postgresql://127.0.0.1:1/pills"),
        ("postgres://me:hidden@127.0.0.1:1/pills?sslpassword=hidden", "the options sslpassword"),
        ("postgresql://me:hidden@127.0.0.1:1/pills?sslmode=verify-full", "127.0.0.1"),
        ("postgresql//me:hidden@127.0.0.1/pills", "no URL of a database"),
        ("mysql://me:hidden@127.0.0.1/pills", "a URL of kind 'mysql'"),
        ("sqlite://", "a URL of kind 'sqlite'"),
        ("sqlite:////nowhere/hidden/tune.db", "unable to open database file"),
        ("sqlite:///params.yaml", "not a database"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(
    checkout: Path, capsys: pytest.CaptureFixture[str], url: str, words: str
) -> None:
    assert main(["tune", "--trials", "1", "--storage", url]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    if not url.startswith("sqlite"):
        assert "hidden" not in said.out + said.err


@pytest.mark.parametrize("range_", ["1:2", "-1:0.5"])
def test_a_range_that_distill_does_not_take_is_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str], range_: str
) -> None:
    assert main(["tune", "--trials", "1", f"--alpha={range_}"]) == 1
    assert "--alpha" in capsys.readouterr().err
    assert not Path("tune.db").exists()


@pytest.mark.parametrize("range_", ["0.5:0.1", "nan", "0:inf", "a:b", ""])
def test_what_is_no_range_is_wrong_usage(
    checkout: Path, capsys: pytest.CaptureFixture[str], range_: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "--trials", "1", f"--alpha={range_}"])
    assert "--alpha" in capsys.readouterr().err
