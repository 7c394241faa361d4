"""Cases A and B of docs/mlops.md, line by line: a developer's clone, a remote, CI's clone.

What GitHub would run in CI's clone are the make targets of .github/workflows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilltrack.core.bundle import read_bundle
from tests.clone import run
from tests.imports import ROOT
from tests.pipeline.fake_github import TOKEN, FakeGitHub, serving_github

pytestmark = pytest.mark.e2e
TEXT = (ROOT / "docs" / "mlops.md").read_text(encoding="utf-8")
ZIP = Path("data/pills_dataset_resnet.zip")
# main is protected: only whoever merges pull requests may push it.
HOOK = (
    '#!/bin/sh\n[ "$1" != refs/heads/main ] || [ -n "$MERGES" ] || { echo protected >&2; exit 1; }'
)


class Team:
    """A remote for git, one for DVC, and a developer's clone of them, below one directory."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root
        self.storage = root / "storage"
        self.origin = root / "origin.git"
        run(root, "git", "clone", "--quiet", "--bare", str(repository), str(self.origin))
        (branch,) = run(self.origin, "git", "branch", "--format=%(refname:short)").stdout.split()
        run(self.origin, "git", "branch", "--move", branch, "main")
        hook = self.origin / "hooks" / "update"
        hook.write_text(HOOK)
        hook.chmod(0o755)
        self.developer = self.clone("developer")
        shutil.copytree(repository / ".dvc" / "cache", self.developer / ".dvc" / "cache")
        remote = ("dvc", "remote", "modify", "--local", "local", "url", str(self.storage))
        run(self.developer, *remote)
        run(self.developer, "dvc", "checkout")
        run(self.developer, "dvc", "push")

    def clone(self, name: str, branch: str = "main") -> Path:
        where = self.root / name
        shutil.rmtree(where, ignore_errors=True)
        run(self.root, "git", "clone", "-q", "--branch", branch, str(self.origin), str(where))
        return where

    def merge(self, branch: str) -> None:
        maintainer = self.clone("maintainer")
        message = f"Merge {branch}"
        run(maintainer, "git", "merge", "--no-ff", "--message", message, f"origin/{branch}")
        run(maintainer, "git", "push", "--quiet", environment={"MERGES": "1"})

    def make(self, clone: Path, target: str, check: bool = True, **settings: str) -> str:
        """Run a step of the workflow; its output, and the exit code in the last line."""
        command = ("make", "--no-print-directory", "-o", "install", target)
        done = run(clone, *command, check=check, environment=settings)
        return f"{done.stdout}{done.stderr}\n{done.returncode}"


@pytest.fixture
def team(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.org")
    return Team(tmp_path, repository)


def blocks(heading: str) -> list[list[str]]:
    """The commands of each console block of a section of docs/mlops.md."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in found]


def execute(clone: Path, lines: list[str], **environment: str) -> str:
    return "".join(run(clone, "bash", "-c", line, environment=environment).stdout for line in lines)


def editor(root: Path, program: str) -> str:
    path = root / "editor"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o755)
    return str(path)


def brief(team: Team) -> None:
    """Let main train for seconds and without limits: what follows is about the flow."""
    path = team.developer / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for stage in ("train", "distill"):
        params[stage] |= {"input_size_px": 32, "epochs": 6}
    params["distill"]["min_teacher_recall_at_1"] = 0.0
    params["convert"]["min_mean_cosine"] = 0.5
    params["evaluate"] |= {"promised_fpir": 0.999, "promised_misnamed": 0.999, "max_flips": 1.0}
    params["evaluate"] |= {"min_recall_at_1_seen": 0.0, "min_recall_at_1_new": 0.0}
    path.write_text(yaml.safe_dump(params))
    run(team.developer, "git", "commit", "--quiet", "--all", "--message", "Train in seconds")
    run(team.developer, "git", "push", "--quiet", environment={"MERGES": "1"})


def pull_request(team: Team, branch: str, fake: FakeGitHub) -> str:
    """What CI does with a pull request; the body of the comment."""
    ci = team.clone("ci", branch)
    head = run(ci, "git", "rev-parse", "HEAD").stdout.strip()
    team.make(ci, "pull", REMOTE=str(team.storage))
    assert "Running stage" not in team.make(ci, "repro")
    team.make(ci, "report", AGAINST="origin/main")
    compared = team.make(ci, "compare", check=False, AGAINST="origin/main")
    assert "test set" in compared, compared
    team.make(ci, "committed")
    url = "https://github.com/o/r/actions/runs/1"
    team.make(ci, "note", PULL_REQUEST="7", COMMIT=head, RUN_URL=url)
    fake.head = head
    event = ci / "build" / "event.json"
    workflow_run = {"head_sha": head, "head_repository": {"full_name": "o/r"}}
    event.write_text(json.dumps({"workflow_run": workflow_run, "repository": {"full_name": "o/r"}}))
    settings = {"API_URL": fake.url, "TOKEN": TOKEN, "REPOSITORY": "o/r"}
    settings |= {"EVENT_PATH": str(event)}
    # The comment's job has the code of main and the note, nothing else of the pull request.
    main = team.clone("main")
    (main / "build").mkdir()
    shutil.copy(ci / "build" / "note.json", main / "build")
    (main / ".venv" / "bin").mkdir(parents=True)
    (main / ".venv" / "bin" / "pilltrack").symlink_to(Path(sys.executable).with_name("pilltrack"))
    named: dict[str, Any] = {f"GITHUB_{name}": value for name, value in settings.items()}
    team.make(main, "comment", **named)
    (comment,) = fake.comments
    body = str(comment["body"])
    assert head in body
    assert f"[run]({url})" in body
    assert "## Against the main branch" in body
    return body


def test_case_a_parameters_changed(team: Team) -> None:
    work, after = blocks("Case A: code or parameters changed")
    change = "sed -i 's/misnamed: 0.2$/misnamed: 0.25/' \"$1\""
    said = execute(team.developer, work, EDITOR=editor(team.root, change))
    assert "Running stage 'evaluate'" in said
    assert "Running stage 'train'" not in said
    with serving_github("0" * 40) as fake:
        first = pull_request(team, "other-rule", fake)
        assert "No figures" not in first
        assert "Then: origin/main" in first or "Then (origin/main)" in first
        # A second push renews the comment.
        message = ("--allow-empty", "--message", "Say it again")
        run(team.developer, "git", "commit", "--quiet", *message)
        run(team.developer, "git", "push", "--quiet")
        assert pull_request(team, "other-rule", fake) != first
    pushed = run(team.developer, "git", "push", "origin", "HEAD:main", check=False)
    assert pushed.returncode != 0
    assert "protected" in pushed.stderr
    team.merge("other-rule")
    assert "up to date" in execute(team.developer, after)
    params = yaml.safe_load((team.developer / "params.yaml").read_text())
    assert params["evaluate"]["misnamed"] == 0.25
    # The tag of the merged main becomes a release.
    run(team.developer, "git", "tag", "v0.1.0")
    run(team.developer, "pilltrack", "report")
    run(team.developer, "pilltrack", "release", "v0.1.0", "--out", "dist")
    assert (team.developer / "dist" / "pilltrack-bundle-0.1.0.tar.gz").is_file()


def test_case_b_data_changed(team: Team) -> None:
    brief(team)
    photos = ("synth", "--pills", "46", "--photos", "12", "--seed", "3", "--out")
    run(team.developer, "pilltrack", *photos, str(team.root / "pills_of_may.zip"))
    before = read_bundle(team.developer / "artifacts/package/bundle").data_digest
    (lines,) = blocks("Case B: data changed")
    push = next(line for line in lines if line.startswith("dvc push"))
    said = execute(team.developer, [line for line in lines if line != push])
    assert "Running stage 'prepare'" in said
    # Whoever forgets `dvc push` is told by CI.
    ci = team.clone("ci", "pills-of-may")
    failed = team.make(ci, "pull", check=False, REMOTE=str(team.storage))
    assert failed.endswith("\n2")
    assert "pills_dataset_resnet.zip" in failed
    execute(team.developer, [push])
    with serving_github("0" * 40) as fake:
        body = pull_request(team, "pills-of-may", fake)
    assert "No figures" not in body
    assert "trained on other data" in body
    team.merge("pills-of-may")
    main = team.clone("main")
    team.make(main, "pull", REMOTE=str(team.storage))
    assert "up to date" in run(main, "dvc", "status").stdout
    assert read_bundle(main / "artifacts/package/bundle").data_digest != before


def test_results_that_are_not_committed_fail(team: Team) -> None:
    params = team.developer / "params.yaml"
    params.write_text(params.read_text().replace("misnamed: 0.2\n", "misnamed: 0.25\n"))
    run(team.developer, "git", "switch", "--quiet", "--create", "no-repro")
    run(team.developer, "git", "commit", "--quiet", "--all", "--message", "Forget dvc repro")
    run(team.developer, "git", "push", "--quiet", "origin", "no-repro")
    ci = team.clone("ci", "no-repro")
    team.make(ci, "pull", REMOTE=str(team.storage))
    head = run(ci, "git", "rev-parse", "HEAD").stdout.strip()
    # Results of main's parameters: no figures for this commit.
    (ci / "artifacts" / "report").mkdir(exist_ok=True)
    text = f"# ✔ Test passed\n\n| this report: git commit | `{head}` |\n"
    (ci / "artifacts" / "report" / "report.md").write_text(text)
    noted = team.make(ci, "note", check=False, PULL_REQUEST="7", COMMIT=head)
    assert noted.endswith("\n2")
    body = json.loads((ci / "build" / "note.json").read_text())["body"]
    assert "# ✘ No figures for this commit" in body
    assert "passed" not in body
    assert "Running stage 'evaluate'" in team.make(ci, "repro")
    failed = team.make(ci, "committed", check=False)
    assert failed.endswith("\n2")
    assert "These results are not committed" in failed


def test_without_a_remote_the_embedded_pills_are_rendered(team: Team) -> None:
    ci = team.clone("ci")
    assert not (ci / ZIP).exists()
    command = ["make", "-n", "-o", "install", "pull"]
    environment = {key: value for key, value in os.environ.items() if key != "REMOTE"}
    done = subprocess.run(
        command, cwd=ci, env=environment, capture_output=True, text=True, check=True
    )
    assert re.search(rf"pilltrack synth .* --out {ZIP}", done.stdout)
