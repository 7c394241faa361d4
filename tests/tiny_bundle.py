"""A bundle around the golden int8 model, for tests of what stands on top of a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.bundle import write_bundle
from pilltrack.core.decide import Calibration
from pilltrack.core.embedder import open_embedder
from pilltrack.core.gallery import Gallery, Reference

MODEL = Path(__file__).parent / "golden" / "tiny_int8.tflite"


def tiny_bundle(directory: Path, pill: str, photo: NDArray[np.uint8]) -> Path:
    """Write `directory/bundle` with one enrolled pill; accepts only what is nearly its photo."""
    embedder = open_embedder(MODEL)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        gallery.enrol([Reference(pill, "", "reference.png")], embedder.embed([photo]))
        gallery.save(directory / "gallery.safetensors")
    calibration = Calibration(
        space=embedder.space,
        threshold=0.99,
        margin=0.0,
        fpir=0.05,
        n_stranger_probes=20,
        n_stranger_pills=5,
        gallery_size=1,
        captures="rendered",
    )
    write_bundle(
        directory / "bundle",
        name="tiny",
        model=MODEL,
        gallery=directory / "gallery.safetensors",
        calibration=calibration,
        pills={pill: {}},
        git_commit="c",
        data_digest="d",
        params_digest="p",
    )
    return directory / "bundle"
