"""Stage `package`: everything a device needs, in one directory with a manifest."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

from pilltrack.core.bundle import LOCATOR_FILE, write_bundle
from pilltrack.core.decide import Calibration
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery
from pilltrack.core.locate import LocatorCard
from pilltrack.pipeline.audit import archive_digest
from pilltrack.pipeline.checkout import git_commit
from pilltrack.pipeline.cohorts import choose_references
from pilltrack.pipeline.enroll import require_prescribed
from pilltrack.pipeline.params import EvaluateParams, Params
from pilltrack.pipeline.probe_pictures import probe_crops, probe_frames
from pilltrack.pipeline.table import load_images, load_pills

log = logging.getLogger(__name__)


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, `convert/`, `enroll/`, `evaluate/`, `locate/`; write `package/bundle/`."""
    model = artifacts / "convert" / "model.tflite"
    gallery_file = artifacts / "enroll" / "gallery.safetensors"
    rows = load_images(artifacts / "prepare")
    with Gallery.load(gallery_file) as gallery:
        require_prescribed(gallery, rows, params.enroll)
        enrolled = gallery.pills()
        space, dim, background = gallery.space, gallery.dim, gallery.background
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
    _require_settings(calibration, params.evaluate, len(enrolled))
    references = choose_references(rows, params.enroll.references_per_side)
    with tempfile.TemporaryDirectory() as directory:
        if params.package.gallery == "empty":  # rule and background stay those of the full one
            gallery_file, pills, references = Path(directory) / "gallery.safetensors", {}, []
            with Gallery.create(space, dim) as empty:
                empty.background = background
                empty.save(gallery_file)
        with Gallery.load(gallery_file) as gallery:
            parts = open_embedder(model), gallery, calibration
            crops = probe_crops(artifacts / "prepare", references, *parts)
        write_bundle(
            artifacts / "package" / "bundle",
            name=params.package.name,
            locator=artifacts / "locate" / LOCATOR_FILE,
            min_confidence=_min_confidence(artifacts / "locate" / "locator.json"),
            model=model,
            gallery=gallery_file,
            probe_crops=crops,
            probe_frames=probe_frames(),
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


def _min_confidence(card: Path) -> float:
    try:
        return LocatorCard.model_validate_json(card.read_bytes()).min_confidence
    except (OSError, ValueError) as error:
        raise StageFailed(
            str(card),
            found=f"not what `locate` writes ({error})",
            expected="the locator's least confidence",
            remedy="Run `dvc repro`.",
        ) from error


def _require_settings(
    calibration: Calibration, settings: EvaluateParams, gallery_size: int
) -> None:
    found = (
        calibration.fpir,
        calibration.misnamed,
        calibration.confidence,
        calibration.captures,
        calibration.gallery_size,
    )
    expected = (
        settings.promised_fpir,
        settings.promised_misnamed,
        settings.confidence,
        settings.captures,
        gallery_size,
    )
    if found != expected:
        raise StageFailed(
            "calibration.json",
            found=f"promises, confidence, captures and gallery size {found}",
            expected=f"those of params.yaml and of the gallery: {expected}",
            remedy="Run `dvc repro evaluate`.",
        )
