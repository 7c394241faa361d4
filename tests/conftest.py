"""The repository in which the whole pipeline has run once, shared by the tests that need it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.clone import run, tiny
from tests.imports import ROOT


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
