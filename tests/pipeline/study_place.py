"""A checkout in which `pilltrack tune` can work: data, a teacher, DVC in step with both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pilltrack.pipeline.params import Params
from tests.imports import ROOT

STAGES: dict[str, dict[str, Any]] = {
    "prepare": {"params": ["prepare"], "outs": ["artifacts/prepare"]},
    "train": {
        "deps": ["artifacts/prepare"],
        "params": ["capture", "train"],
        "outs": ["artifacts/train"],
    },
    "distill": {"deps": ["artifacts/train", "distill.py"], "params": ["distill"]},
}
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PILLTRACK_TUNE_STORAGE", "RANK")


def study_place(directory: Path, results: Path, params: Params) -> Path:
    """`results` holds `prepare/` and `train/` of these parameters."""
    directory.mkdir(parents=True, exist_ok=True)
    for stage in ("prepare", "train"):
        shutil.copytree(results / stage, directory / "artifacts" / stage)
    (directory / "distill.py").write_text("# stands for the code of distill\n")
    (directory / ".gitignore").write_text("/artifacts/\n/tune.db\n/mlflow.db\n/mlruns/\n")
    (directory / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    stages = {name: {"cmd": f"pilltrack {name}", **entry} for name, entry in STAGES.items()}
    (directory / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for command in (
        ("git", "init", "--quiet"),
        (sys.executable, "-m", "dvc", "init", "--quiet"),
        (sys.executable, "-m", "dvc", "commit", "--quiet", "--force", "prepare", "train"),
        ("git", "add", "--all"),
        ("git", "-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "-qm", "Begin"),
    ):
        subprocess.run(command, cwd=directory, check=True, env=environment())
    return directory


def environment(**more: str) -> dict[str, str]:
    """For commands in such a checkout: this code, no settings of whoever runs the tests."""
    bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**bare, "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1", **more}
