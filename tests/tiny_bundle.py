"""A bundle around the golden int8 model, for tests of what stands on top of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.background import Background
from pilltrack.core.bundle import write_bundle
from pilltrack.core.decide import RESERVE, Calibration, Evidence, SmallerGallery
from pilltrack.core.embedder import open_embedder
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.preprocess import to_model_input

MODEL = Path(__file__).parent / "golden" / "tiny_int8.tflite"
PROBE_PX = 64
LOCATOR = MODEL.with_name("whole_frame_locator.tflite")
COLOURED = MODEL.with_name("coloured_pill_locator.tflite")


def tiny_bundle(
    directory: Path,
    pill: str,
    photo: NDArray[np.uint8],
    background: Background | None = None,
    locator: Path = LOCATOR,
    threshold: float = 0.99,
    frames: Sequence[NDArray[np.uint8]] = (),
    alone: float | None = None,
) -> Path:
    """Write `directory/bundle` with one enrolled pill; accepts only what is nearly its photo.

    `alone`: a lower threshold as long as no other pill is enrolled.

    Its probes are that photo, for which no decision can be promised with so high a threshold, and
    `frames`.
    """
    embedder = open_embedder(MODEL)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        if background:
            gallery.background = background
        gallery.enrol([Reference(pill, "", "reference.png")], embedder.embed([photo]))
        gallery.save(directory / "gallery.safetensors")
    write_bundle(
        directory / "bundle",
        name="tiny",
        locator=locator,
        min_confidence=0.5,
        model=MODEL,
        gallery=directory / "gallery.safetensors",
        probe_crops=[to_model_input(photo, PROBE_PX)],
        probe_frames=frames,
        calibration=tiny_calibration(
            embedder.space,
            threshold=threshold,
            background_size=len(background or ()),
            alone=alone,
        ),
        pills={pill: {}},
        git_commit="c",
        data_digest="d",
        params_digest="p",
    )
    return directory / "bundle"


def tiny_calibration(
    space: str,
    *,
    threshold: float = 0.99,
    margin: float = 0.0,
    gallery_size: int = 1,
    background_size: int = 0,
    alone: float | None = None,
) -> Calibration:
    """A rule that promises at most 5 % of either harm, on made-up evidence."""
    one = SmallerGallery(
        gallery_size=RESERVE, threshold=alone or threshold, fpir_upper=0.0487, misnamed_upper=0.0487
    )
    return Calibration(
        space=space,
        threshold=threshold,
        margin=margin,
        fpir=0.05,
        misnamed=0.05,
        confidence=0.95,
        gallery_size=gallery_size if alone is None else RESERVE + 1,
        smaller=() if alone is None else (one,),
        background_size=background_size,
        captures="rendered",
        agreement=0.3,
        evidence=Evidence(
            n_stranger_pills=60,
            n_stranger_photos=120,
            fpir=0.0,
            fpir_upper=0.0487,
            n_mated_pills=60,
            n_mated_photos=120,
            misnamed=0.0,
            misnamed_upper=0.0487,
            fnir=0.5,
        ),
    )
