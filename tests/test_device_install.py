"""The base install is the device: small, without torch, and able to identify."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT

pytestmark = pytest.mark.e2e
LIMIT_MB = 450


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    command = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    lock = ["--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run([*command, *lock, str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stderr[-3000:])
    return environment


def test_the_device_install_is_small_and_has_no_training_packages(environment: Path) -> None:
    size_mb = sum(p.stat().st_size for p in environment.rglob("*") if p.is_file()) / 1e6
    assert size_mb < LIMIT_MB
    listed = subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = {package["name"].lower() for package in json.loads(listed)}
    assert not names & {"torch", "timm", "dvc", "mlflow", "litert-torch", "pyyaml"}
    assert {"pilltrack", "numpy", "ai-edge-litert", "qdrant-edge-py"} <= names


def test_the_device_install_is_consistent(environment: Path) -> None:
    subprocess.run([environment / "bin" / "python", "-m", "pip", "check"], check=True)


def test_the_device_install_runs_the_command_line(environment: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [environment / "bin" / "pilltrack", "identify", "x.jpg", f"--bundle={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "manifest.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_training_command_on_the_device_says_what_to_install(
    environment: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [environment / "bin" / "pilltrack", "train"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "pip install 'pilltrack[train]'" in done.stderr
    assert "Traceback" not in done.stderr
