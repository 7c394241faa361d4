"""Stage `package`: everything a device needs, in one directory with a manifest."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import asdict
from pathlib import Path

from pilltrack.core.bundle import write_bundle
from pilltrack.core.decide import Calibration
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline.audit import archive_digest
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import load_pills

log = logging.getLogger(__name__)


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, `convert/`, `enroll/`, `evaluate/`; write `package/bundle/`."""
    model = artifacts / "convert" / "model.tflite"
    gallery_file = artifacts / "enroll" / "gallery.safetensors"
    with Gallery.load(gallery_file) as gallery:
        enrolled = gallery.pills()
    known = load_pills(artifacts / "prepare")
    try:
        pills = {pill: asdict(known[pill]) for pill in enrolled}
        calibration = Calibration.model_validate_json(
            (artifacts / "evaluate" / "calibration.json").read_bytes()
        )
    except (KeyError, OSError, ValueError) as error:
        raise StageFailed(
            str(artifacts),
            found=f"results that do not fit together ({error})",
            expected="prepare, enroll and evaluate of one run",
            remedy="Run `dvc repro`.",
        ) from error
    write_bundle(
        artifacts / "package" / "bundle",
        name=params.package.name,
        model=model,
        gallery=gallery_file,
        calibration=calibration,
        pills={
            pill: {key: value for key, value in row.items() if value and key != "pill"}
            for pill, row in pills.items()
        },
        git_commit=git_commit(),
        data_digest=archive_digest(artifacts / "prepare"),
        params_digest=params.digest(),
    )
    log.info("bundle written to %s", artifacts / "package" / "bundle")


def git_commit() -> str:
    """The commit of the working directory; `unversioned` outside a repository with commits."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607 - git of the user's PATH is meant
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else "unversioned"
