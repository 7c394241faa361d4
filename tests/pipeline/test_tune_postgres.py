"""Studies that several machines share, against a real PostgreSQL."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest

from pilltrack.cli import main
from pilltrack.pipeline.tune_storage import STORAGE_VARIABLE, open_storage
from tests.imports import ROOT
from tests.pipeline.mlflow_server import free_port
from tests.pipeline.test_tune import begun, checkout, slow, start, until

__all__ = ["begun", "checkout"]  # fixtures

pytestmark = pytest.mark.postgres
SCRIPT = ROOT / "tests" / "postgres_server.sh"
USER, PASSWORD = "ann", "p%s{ }@w/o:rd"


@contextmanager
def serving() -> Iterator[tuple[str, Path]]:
    """Host and port of a server with an empty database `pills`, and its folder."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    # For root it runs as another user, who may not enter pytest's folders.
    directory = Path(tempfile.mkdtemp(prefix="pilltrack-postgres-"))
    port = free_port()
    started = subprocess.run(
        [SCRIPT, "start", directory, str(port), USER, PASSWORD], check=False, timeout=120
    )
    try:
        assert started.returncode == 0, (directory / "start.log").read_text()
        yield f"127.0.0.1:{port}", directory
    finally:
        subprocess.run([SCRIPT, "stop", directory], check=False, timeout=60)
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as (address, _):
        yield address


def url_of(server: str, password: str = PASSWORD) -> str:
    return f"postgresql://{USER}:{quote(password, safe='')}@{server}/pills"


@pytest.mark.e2e
def test_two_machines_begin_a_study_at_once_and_share_it(server: str, checkout: Path) -> None:
    other = checkout.with_name("other machine")
    shutil.copytree(checkout, other, symlinks=True)
    by_url = start(checkout, "--trials", "6", "--json", **{STORAGE_VARIABLE: url_of(server)})
    by_password = start(
        other,
        *("--trials", "6", "--json", "--storage", f"postgresql://{USER}@{server}/pills"),
        PGPASSWORD=PASSWORD,
    )
    answers = []
    for machine in (by_url, by_password):
        said, complaints = machine.communicate(timeout=300)
        assert machine.returncode == 0, complaints
        assert PASSWORD not in said + complaints
        answers.append(json.loads(said))
    assert {answer["storage"] for answer in answers} == {f"postgresql://{server}/pills"}
    study = optuna.load_study(study_name="distill", storage=open_storage(url_of(server)))
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert len(study.trials) in (6, 7)
    assert len({trial.user_attrs["session"]["pid"] for trial in study.trials}) == 2
    assert len({tuple(trial.params.values()) for trial in study.trials}) == len(study.trials)


def test_a_wrong_password_is_told_without_it(
    server: str,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = time.monotonic()
    monkeypatch.setenv(STORAGE_VARIABLE, url_of(server, "not the password"))
    assert main(["tune", "--trials", "1"]) == 1
    said = capsys.readouterr()
    assert f"postgresql://{server}/pills" in said.err
    assert "password authentication failed" in said.err
    assert "not the password" not in said.out + said.err
    assert "not%20the" not in said.out + said.err
    assert time.monotonic() - began < 60


@pytest.mark.e2e
def test_a_server_that_goes_away_ends_the_command_and_loses_no_trial_that_ended(
    checkout: Path,
) -> None:
    slow()
    with serving() as (address, directory):
        work = start(checkout, "--trials", "50", **{STORAGE_VARIABLE: url_of(address)})
        study = None

        def at_work() -> bool:
            nonlocal study
            storage = open_storage(url_of(address))
            if "distill" not in optuna.get_all_study_names(storage):
                return False
            study = optuna.load_study(study_name="distill", storage=storage)
            return any("session" in trial.user_attrs for trial in study.trials[-1:])

        until(at_work)
        subprocess.run([SCRIPT, "stop", directory], check=True, timeout=60)
        said, complaints = work.communicate(timeout=120)
    assert work.returncode == 1, complaints
    assert f"tune storage postgresql://{address}/pills" in complaints
    assert PASSWORD not in said + complaints
    assert "Check address, login and network" in complaints
