"""`dvc exp run` and `dvc exp show`, as `pilltrack tune` and docs/mlops.md hand them over."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilltrack.pipeline.tune import command
from tests.clone import run
from tests.imports import ROOT

pytestmark = pytest.mark.e2e
METRICS = "artifacts/evaluate/metrics.json"
# Seconds instead of minutes, and no limits: what is tested is what DVC makes of it.
BRIEF = {
    "distill.epochs": 4,
    "convert.min_mean_cosine": 0.1,
    "evaluate.promised_fpir": 0.999,
    "evaluate.promised_misnamed": 0.999,
    "evaluate.max_flips": 1.0,
    "evaluate.min_recall_at_1_seen": 0.0,
    "evaluate.min_recall_at_1_new": 0.0,
}


@pytest.fixture(scope="module")
def clone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A developer's clone, with the results of the last commit."""
    clone = tmp_path_factory.mktemp("experiments") / "pilltrack"
    run(repository, "git", "clone", "--quiet", str(repository), str(clone))
    shutil.copytree(repository / ".dvc" / "cache", clone / ".dvc" / "cache")
    run(clone, "dvc", "checkout")
    for key, value in (("user.name", "t"), ("user.email", "t@example.org")):
        run(clone, "git", "config", key, value)
    return clone


def brief(values: dict[str, float]) -> list[str]:
    """The command that `pilltrack tune` prints, made short."""
    return [*command(values).split(), *(f"-S{name}={value}" for name, value in BRIEF.items())]


def experiments(clone: Path) -> dict[str, Any]:
    """Name -> what `dvc exp show` tells of it."""
    shown = json.loads(run(clone, "dvc", "exp", "show", "--json").stdout)
    found: dict[str, Any] = {}
    for commit in shown:
        for experiment in commit["experiments"] or []:
            [one] = experiment["revs"]
            found[one["name"]] = one["data"]
    return found


def test_an_experiment_runs_with_other_values_and_is_shown_with_its_figures(clone: Path) -> None:
    values = {"temperature": 0.2, "alpha": 0.45}
    done = run(clone, *brief(values), "--name", "softer")
    assert "Running stage 'distill'" in done.stdout
    assert "Running stage 'train'" not in done.stdout
    shown = experiments(clone)
    assert list(shown) == ["softer"]
    distill = shown["softer"]["params"]["params.yaml"]["data"]["distill"]
    assert {name: distill[name] for name in values} == values
    metrics = shown["softer"]["metrics"][METRICS]["data"]
    assert metrics == json.loads((clone / METRICS).read_text())
    text = (ROOT / "docs" / "mlops.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^\$ (dvc exp show .*)$", text, re.MULTILINE)
    table = run(clone, *shlex.split(line), "--csv").stdout.splitlines()
    columns = table[0].split(",")
    assert {"Experiment", "distill.alpha", "distill.temperature"} < set(columns)
    assert len(columns) == 5
    [row] = [row.split(",") for row in table if row.startswith("softer")]
    recall = metrics["test"]["rendered"]["new"]["recall_at_1"]["value"]
    assert row[columns.index("distill.alpha")] == "0.45"
    assert abs(float(row[1]) - recall) < 1e-4


def test_an_experiment_can_be_left_and_taken_up_again(clone: Path) -> None:
    run(clone, "git", "checkout", "--", ".")
    run(clone, "dvc", "checkout")
    before = yaml.safe_load((clone / "params.yaml").read_text())["distill"]
    assert before["temperature"] == 0.1
    run(clone, "dvc", "exp", "apply", "softer")
    after = yaml.safe_load((clone / "params.yaml").read_text())["distill"]
    assert after["temperature"] == 0.2
    assert "up to date" in run(clone, "dvc", "status").stdout


def test_a_queued_experiment_runs_beside_the_working_directory(clone: Path) -> None:
    before = (clone / "params.yaml").read_bytes()
    run(clone, *brief({"temperature": 0.15}), "--temp", "--name", "beside", "distill")
    assert (clone / "params.yaml").read_bytes() == before
    distill = experiments(clone)["beside"]["params"]["params.yaml"]["data"]["distill"]
    assert distill["temperature"] == 0.15
