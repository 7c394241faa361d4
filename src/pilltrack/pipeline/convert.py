"""Stage `convert`: the student as int8 LiteRT and fp32 ONNX, and proof that they embed alike.

Activation ranges come from captures of train pills only. The parity report compares the exported
files, run as on the device, with the torch network on captures of validation pills. Below the
mean cosine in params.yaml the stage fails and leaves no model behind. Whether decisions survive
is for `evaluate` to say.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.image import read_image
from pilltrack.pipeline.data import captured
from pilltrack.pipeline.export import export_int8, export_onnx
from pilltrack.pipeline.models import load_network
from pilltrack.pipeline.params import CaptureParams, Params
from pilltrack.pipeline.table import ImageRow, load_images
from pilltrack.pipeline.torch_embedder import open_torch_embedder

log = logging.getLogger(__name__)
Photo = NDArray[np.uint8]
MODELS = ("model.tflite", "model.onnx")


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `distill/`, write `convert/{model.tflite,model.onnx,parity.json}`."""
    settings, out = params.convert, artifacts / "convert"
    for older in MODELS:
        (out / older).unlink(missing_ok=True)  # a broken gate must not leave one behind
    student = artifacts / "distill" / "student.safetensors"
    net, size_px = load_network(student)
    rows = load_images(artifacts / "prepare")
    fit_rows = [row for row in rows if row.role == "fit"]

    def captures(rows: Sequence[ImageRow], count: int, seed: int) -> list[Photo]:
        return _captures(artifacts / "prepare", rows, count, size_px, params.capture, seed)

    with tempfile.TemporaryDirectory() as directory:
        int8, onnx = (Path(directory) / name for name in MODELS)
        calibration = captures(fit_rows, settings.calibration_images, settings.seed)
        export_int8(net, size_px, np.stack(calibration), int8)
        export_onnx(net, size_px, onnx)
        embedders: dict[str, Embedder] = {
            "torch": open_torch_embedder(student),
            "int8": open_embedder(int8),
            "onnx": open_embedder(onnx),
        }
        validation = [row for row in rows if row.split == "validation"]
        photos = captures(validation, settings.parity_images, settings.seed + 1)
        report = parity(embedders, photos)
        report |= {"int8_bytes": int8.stat().st_size, "onnx_bytes": onnx.stat().st_size}
        text = json.dumps(report, indent=1, sort_keys=True)
        write_atomically(out / "parity.json", text.encode())
        log.info("parity with torch: %s", report)
        _gate(report, settings.min_mean_cosine)
        for model in (int8, onnx):
            write_atomically(out / model.name, model.read_bytes())


def parity(embedders: Mapping[str, Embedder], photos: Sequence[Photo]) -> dict[str, float]:
    """Compare the embedders "int8" and "onnx" with "torch" on the same photos.

    Returns mean, 1st-percentile and minimal cosine between the embeddings of one photo.
    """
    embedded = {name: embedder.embed(photos) for name, embedder in embedders.items()}
    report: dict[str, float] = {"n_photos": len(photos)}
    for name in ("int8", "onnx"):
        cosines = np.sum(embedded["torch"] * embedded[name], axis=1)
        figures = {
            "mean_cosine": cosines.mean(),
            "p1_cosine": np.quantile(cosines, 0.01),
            "min_cosine": cosines.min(),
        }
        report |= {f"{name}_{key}": round(float(value), 5) for key, value in figures.items()}
    return report


def _captures(
    prepared: Path,
    rows: Sequence[ImageRow],
    count: int,
    size_px: int,
    settings: CaptureParams,
    seed: int,
) -> list[Photo]:
    """`count` captures, going round the rows in a seeded order."""
    if not rows:
        raise StageFailed(
            str(prepared / "images.csv"),
            found="no images for this step of convert",
            expected="train, validation and stranger pills",
            remedy="Run `dvc repro prepare`.",
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return [
        captured(
            read_image(prepared / rows[order[n % len(rows)]].image),
            size_px,
            settings,
            seed + 7919 * (n + 1),
        )
        for n in range(count)
    ]


def _gate(report: dict[str, float], min_mean_cosine: float) -> None:
    for name in ("int8", "onnx"):
        cosine = report[f"{name}_mean_cosine"]
        if not cosine >= min_mean_cosine:
            raise GateFailed(
                f"convert: {name} model",
                found=f"mean cosine {cosine:.4f} with the torch network",
                expected=f"at least {min_mean_cosine:.4f}",
                remedy="Raise `convert.calibration_images`, or train longer; see parity.json.",
            )
