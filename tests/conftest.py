"""The repository in which the whole pipeline has run once, shared by the tests that need it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clone import run, tiny
from tests.imports import ROOT

# Threads that compute together wait for one another: one each, where several processes share cores.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

WITH_REPOSITORY = (
    "tests/pipeline/test_tracking.py",
    "tests/test_e2e.py",
    "tests/test_experiments.py",
    "tests/test_git_flow.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests of `make test` one process runs: a file's, and all that share the repository.

    Not by marks of groups: pytest-xdist 3.8.0 overlooks them under pytest 9.2 (its issue 1386).
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "repository" if file in WITH_REPOSITORY else file

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The repository's tests first: they take one process about as long as all others the other."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in WITH_REPOSITORY)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with tiny parameters after one `dvc repro`."""
    repository = tmp_path_factory.mktemp("clone") / "pilltrack"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, repository / name)
    (repository / "dvc.lock").unlink(missing_ok=True)
    params = yaml.safe_load((repository / "params.yaml").read_text())
    (repository / "params.yaml").write_text(yaml.safe_dump(tiny(params)))
    run(repository, "git", "init", "--quiet")
    data = "data/pills_dataset_resnet.zip"
    run(
        repository,
        "pilltrack",
        "synth",
        "--pills",
        "44",
        "--photos",
        "12",
        "--seed",
        "3",
        "--out",
        data,
    )
    run(repository, "dvc", "add", "--force", data)
    run(repository, "dvc", "repro")
    run(repository, "git", "add", "--all")
    run(
        repository,
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "commit",
        "--quiet",
        "--message",
        "Run the pipeline",
    )
    return repository


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What this machine's own device has learnt or was updated to is nobody's business here."""
    monkeypatch.setenv("PILLTRACK_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))
