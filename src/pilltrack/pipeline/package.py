"""Stage `package`: everything a device needs, in one directory with a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from dataclasses import asdict
from pathlib import Path

from pilltrack.core.bundle import write_bundle
from pilltrack.core.decide import Calibration
from pilltrack.core.gallery import Gallery
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import load_pills

log = logging.getLogger(__name__)


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, `convert/`, `enroll/`, `evaluate/`; write `package/bundle/`."""
    model = artifacts / "convert" / "model.tflite"
    gallery_file = artifacts / "enroll" / "gallery.safetensors"
    with Gallery.load(gallery_file) as gallery:
        enrolled = set(gallery.pills())
    known = load_pills(artifacts / "prepare")
    metadata = {
        pill: {k: v for k, v in asdict(known[pill]).items() if v and k != "pill"}
        for pill in sorted(enrolled)
    }
    calibration = (artifacts / "evaluate" / "calibration.json").read_text(encoding="utf-8")
    audit = (artifacts / "prepare" / "audit.json").read_text(encoding="utf-8")
    write_bundle(
        artifacts / "package" / "bundle",
        name=params.package.name,
        model=model,
        gallery=gallery_file,
        calibration=Calibration.model_validate_json(calibration),
        pills=metadata,
        git_commit=git_commit(),
        data_digest=json.loads(audit)["archive_sha256"],
        params_digest=hashlib.sha256(params.model_dump_json().encode()).hexdigest(),
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
