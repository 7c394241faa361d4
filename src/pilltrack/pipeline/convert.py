"""Stage `convert`: the student as int8 LiteRT and fp32 ONNX, and proof that decisions survive.

Activation ranges come from captures of train pills only. The parity report compares the int8
file, run as on the device, with the torch network on captures of validation pills: cosine
between embeddings, and the share of probes for which the two decide differently, each with a
gallery and a threshold of its own. Above the limits in params.yaml the stage fails.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Calibration, Decision, decide, threshold_at_fpir
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.image import read_image
from pilltrack.pipeline.data import captured
from pilltrack.pipeline.export import export_int8, export_onnx
from pilltrack.pipeline.models import load_network
from pilltrack.pipeline.params import CaptureParams, Params
from pilltrack.pipeline.table import ImageRow, load_images
from pilltrack.pipeline.torch_embedder import open_torch_embedder

log = logging.getLogger(__name__)
Photo = NDArray[np.uint8]


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `distill/`, write `convert/{model.tflite,model.onnx,parity.json}`."""
    settings, prepared, out = params.convert, artifacts / "prepare", artifacts / "convert"
    student = artifacts / "distill" / "student.safetensors"
    net, size_px = load_network(student)
    rows = load_images(prepared)
    fit_rows = [row for row in rows if row.role == "fit"]
    calibration = _captures(
        prepared, fit_rows, settings.calibration_images, size_px, params.capture, settings.seed
    )
    export_int8(net, size_px, np.stack(calibration), out / "model.tflite")
    export_onnx(net, size_px, out / "model.onnx")

    embedders: dict[str, Embedder] = {
        "torch": open_torch_embedder(student),
        "int8": open_embedder(out / "model.tflite"),
        "onnx": open_embedder(out / "model.onnx"),
    }
    validation = [row for row in rows if row.split == "validation"]
    references = [row for row in validation if row.role == "reference"]
    seed = settings.seed + 1
    half = settings.parity_images // 2
    mated = _captures(prepared, references, half, size_px, params.capture, seed)
    strangers = [row for row in validation if row.role == "stranger"]
    foreign = _captures(prepared, strangers, half, size_px, params.capture, seed + 1)
    photos = [read_image(prepared / row.image) for row in references]
    report = parity(
        embedders, references, photos, mated, foreign, params.evaluate.fpir, params.evaluate.margin
    )
    report["int8_bytes"] = (out / "model.tflite").stat().st_size
    report["onnx_bytes"] = (out / "model.onnx").stat().st_size
    write_atomically(out / "parity.json", json.dumps(report, indent=1, sort_keys=True).encode())
    log.info("parity with torch: %s", report)
    _gate(report, settings.min_mean_cosine, settings.max_changed_decisions)


def parity(
    embedders: dict[str, Embedder],
    references: Sequence[ImageRow],
    reference_photos: Sequence[Photo],
    mated: Sequence[Photo],
    strangers: Sequence[Photo],
    fpir: float,
    margin: float,
) -> dict[str, float]:
    """Compare the embedders "int8" and "onnx" with "torch" on the same photos.

    Each embedder enrols the references in a gallery of its own and takes its own threshold at
    `fpir` from the strangers, as a released model would. Returns mean, 1st-percentile and
    minimal cosine of the probes' embeddings, and the share of probes decided otherwise.
    """
    probes = [*mated, *strangers]
    embedded = {name: embedder.embed(probes) for name, embedder in embedders.items()}
    decided = {
        name: _decisions(
            embedder, references, reference_photos, embedded[name], len(mated), fpir, margin
        )
        for name, embedder in embedders.items()
    }
    report: dict[str, float] = {"n_probes": len(probes)}
    for name in ("int8", "onnx"):
        cosines = np.sum(embedded["torch"] * embedded[name], axis=1)
        changed = [
            (a.kind, a.pill) != (b.kind, b.pill)
            for a, b in zip(decided["torch"], decided[name], strict=True)
        ]
        report[f"{name}_mean_cosine"] = round(float(cosines.mean()), 5)
        report[f"{name}_p1_cosine"] = round(float(np.quantile(cosines, 0.01)), 5)
        report[f"{name}_min_cosine"] = round(float(cosines.min()), 5)
        report[f"{name}_changed_decisions"] = round(float(np.mean(changed)), 5)
    return report


def _decisions(
    embedder: Embedder,
    references: Sequence[ImageRow],
    reference_photos: Sequence[Photo],
    probes: NDArray[np.float32],
    n_mated: int,
    fpir: float,
    margin: float,
) -> list[Decision]:
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        enrolled = [Reference(row.pill, row.side, row.image) for row in references]
        gallery.enrol(enrolled, embedder.embed(reference_photos))
        found = gallery.search(probes, n_pills=2)
        stranger_scores = np.array([candidates[0].score for candidates in found[n_mated:]])
        calibration = Calibration(
            space=embedder.space,
            threshold=threshold_at_fpir(stranger_scores, fpir),
            margin=margin,
            fpir=fpir,
            n_stranger_probes=len(stranger_scores),
            n_stranger_pills=0,
            gallery_size=len(gallery),
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
        cosine, changed = report[f"{name}_mean_cosine"], report[f"{name}_changed_decisions"]
        if cosine < min_mean_cosine or changed > max_changed:
            raise GateFailed(
                f"convert: {name} model",
                found=f"mean cosine {cosine:.4f}, changed decisions {changed:.2%}",
                expected=f"at least {min_mean_cosine:.4f} and at most {max_changed:.2%}",
                remedy="Raise `convert.calibration_images`, or train longer; see parity.json.",
            )
