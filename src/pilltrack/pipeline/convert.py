"""Stage `convert`: the student as int8 LiteRT and fp32 ONNX, and proof that decisions survive.

Activation ranges come from captures of train pills only. The parity report compares the int8
file, run as on the device, with the torch network on captures of validation pills: cosine
between embeddings, and the share of enrolled pills and of strangers for which the two decide
differently, each with a gallery and a threshold of its own. Outside the limits in params.yaml the
stage fails and leaves no model behind.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Decision, decide
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.image import read_image
from pilltrack.pipeline.calibrate import calibrate
from pilltrack.pipeline.data import captured
from pilltrack.pipeline.export import export_int8, export_onnx
from pilltrack.pipeline.models import load_network
from pilltrack.pipeline.params import CaptureParams, Params
from pilltrack.pipeline.table import ImageRow, load_images
from pilltrack.pipeline.torch_embedder import open_torch_embedder

log = logging.getLogger(__name__)
Photo = NDArray[np.uint8]


@dataclass(frozen=True)
class ParitySet:
    """Photos on which two models must decide alike."""

    references: Sequence[Reference]
    reference_photos: Sequence[Photo]
    mated: Sequence[Photo]
    strangers: Sequence[Photo]
    stranger_pills: Sequence[str]


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `distill/`, write `convert/{model.tflite,model.onnx,parity.json}`."""
    settings, out = params.convert, artifacts / "convert"
    student = artifacts / "distill" / "student.safetensors"
    net, size_px = load_network(student)
    rows = load_images(artifacts / "prepare")
    fit_rows = [row for row in rows if row.role == "fit"]

    def captures(rows: Sequence[ImageRow], count: int, seed: int) -> list[Photo]:
        return _captures(artifacts / "prepare", rows, count, size_px, params.capture, seed)

    with tempfile.TemporaryDirectory() as directory:
        int8, onnx = Path(directory) / "model.tflite", Path(directory) / "model.onnx"
        calibration = captures(fit_rows, settings.calibration_images, settings.seed)
        export_int8(net, size_px, np.stack(calibration), int8)
        export_onnx(net, size_px, onnx)
        embedders: dict[str, Embedder] = {
            "torch": open_torch_embedder(student),
            "int8": open_embedder(int8),
            "onnx": open_embedder(onnx),
        }
        validation = [row for row in rows if row.split == "validation"]
        references = [row for row in validation if row.role == "reference"]
        strangers = [row for row in validation if row.role == "stranger"]
        half = settings.parity_images // 2
        photos = ParitySet(
            references=[Reference(row.pill, row.side, row.image) for row in references],
            reference_photos=[read_image(artifacts / "prepare" / row.image) for row in references],
            mated=captures(references, half, settings.seed + 1),
            strangers=captures(strangers, half, settings.seed + 2),
            stranger_pills=[row.pill for row in strangers],
        )
        report = parity(embedders, photos, params.evaluate.fpir, params.evaluate.margin)
        report |= {"int8_bytes": int8.stat().st_size, "onnx_bytes": onnx.stat().st_size}
        text = json.dumps(report, indent=1, sort_keys=True)
        write_atomically(out / "parity.json", text.encode())
        log.info("parity with torch: %s", report)
        _gate(report, settings.min_mean_cosine, settings.max_changed_decisions)
        for model in (int8, onnx):
            write_atomically(out / model.name, model.read_bytes())


def parity(
    embedders: Mapping[str, Embedder], photos: ParitySet, fpir: float, margin: float
) -> dict[str, float]:
    """Compare the embedders "int8" and "onnx" with "torch" on the same photos.

    Each embedder enrols the references in a gallery of its own and takes its own threshold at
    `fpir` from the strangers, as a released model would. Returns mean, 1st-percentile and
    minimal cosine of the probes' embeddings, and the shares of mated probes and of strangers
    decided otherwise. Raises StageFailed when the strangers are too few for a threshold.
    """
    n_mated = len(photos.mated)
    probes = [*photos.mated, *photos.strangers]
    embedded = {name: embedder.embed(probes) for name, embedder in embedders.items()}
    decided = {
        name: _decisions(embedder, photos, embedded[name], fpir, margin)
        for name, embedder in embedders.items()
    }
    report: dict[str, float] = {"n_mated": n_mated, "n_strangers": len(photos.strangers)}
    for name in ("int8", "onnx"):
        cosines = np.sum(embedded["torch"] * embedded[name], axis=1)
        changed = [
            (a.kind, a.pill) != (b.kind, b.pill)
            for a, b in zip(decided["torch"], decided[name], strict=True)
        ]
        figures = {
            "mean_cosine": cosines.mean(),
            "p1_cosine": np.quantile(cosines, 0.01),
            "min_cosine": cosines.min(),
            "changed_mated": np.mean(changed[:n_mated]),
            "changed_strangers": np.mean(changed[n_mated:]),
        }
        report |= {f"{name}_{key}": round(float(value), 5) for key, value in figures.items()}
    return report


def _decisions(
    embedder: Embedder,
    photos: ParitySet,
    probes: NDArray[np.float32],
    fpir: float,
    margin: float,
) -> list[Decision]:
    n_mated = len(photos.mated)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        gallery.enrol(photos.references, embedder.embed(photos.reference_photos))
        found = gallery.search(probes, n_pills=2)
        calibration = calibrate(
            gallery,
            np.array([candidates[0].score for candidates in found[n_mated:]]),
            photos.stranger_pills,
            fpir=fpir,
            margin=margin,
            captures="augmented",
        )
    return [decide(candidates, calibration) for candidates in found]


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


def _gate(report: dict[str, float], min_mean_cosine: float, max_changed: float) -> None:
    for name in ("int8", "onnx"):
        cosine = report[f"{name}_mean_cosine"]
        changed = max(report[f"{name}_changed_mated"], report[f"{name}_changed_strangers"])
        if cosine < min_mean_cosine or changed > max_changed:
            raise GateFailed(
                f"convert: {name} model",
                found=f"mean cosine {cosine:.4f}, decisions changed {changed:.2%}",
                expected=f"at least {min_mean_cosine:.4f} and at most {max_changed:.2%}",
                remedy="Raise `convert.calibration_images`, or train longer; see parity.json.",
            )
