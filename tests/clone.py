"""A clone of this repository in which the whole pipeline takes a minute."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TRACKING = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PILLTRACK_TRACKING")


def tiny(params: dict[str, Any]) -> dict[str, Any]:
    """The committed small-machine setting, cut down to a minute; every gate still bites."""
    fit: dict[str, Any] = {"input_size_px": 64, "epochs": 80}
    fit |= {"pills_per_batch": 16, "photos_per_pill": 2}
    fit |= {"backbone_options": {}, "weights": "none", "frozen": [], "batch_norm": "train"}
    fit |= {"learning_rate": 0.002}
    params["prepare"] |= {"validation_share": 0.3, "test_share": 0.3}
    params["capture"] |= {"shadow": 0.2, "light": 0.15, "colour_cast": 0.05, "blur_px": 0.8}
    params["train"] |= {**fit, "backbone": "resnet10t", "pixels": "imagenet", "embedding_dim": 32}
    params["distill"] |= {**fit, "backbone": "mobilenetv4_conv_small", "int8_rounding": False}
    params["convert"] |= {"calibration_images": 60, "parity_images": 60, "min_mean_cosine": 0.95}
    params["enroll"] |= {"references_per_side": 3, "background_photos": 20}
    params["evaluate"] |= {"fpir": 0.2, "misnamed": 0.2, "promised_fpir": 0.9}
    params["evaluate"] |= {"refused_sets": 0.2}
    params["evaluate"] |= {"promised_misnamed": 0.9, "max_fnir": 1, "max_flips": 0.4}
    params["evaluate"] |= {"min_recall_at_1_seen": 0.25, "min_recall_at_1_new": 0.1}
    params["locate"] |= {"rendered_pills": 10, "calibration_scenes": 10, "validation_scenes": 10}
    params["locate"] |= {
        "false_finds": 0.8,
        "min_ap50": 0.2,
        "min_recall": 0.2,
        "max_false_finds": 0.8,
    }  # of ten scenes
    return params


def run(
    repository: Path,
    *command: str,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the clone's own code; `environment` is added to ours."""
    variables = {
        **{name: value for name, value in os.environ.items() if name not in TRACKING},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(repository / "src"),
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "1",
        **(environment or {}),
    }
    done = subprocess.run(
        command, cwd=repository, env=variables, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done
