"""Stage `evaluate`: what the shipped int8 file does on pills it never saw, and the gate.

The threshold comes from strangers of the validation split, the report from the test split; real,
rendered and augmented captures are reported apart. `seen` pills were trained on, `new` pills were
not; both stand in the gallery together. Real and rendered probes are photos that were neither
trained on nor enrolled; augmented ones are new captures of enrolled photos.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pilltrack.core.decide import Calibration, decide
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import GateFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.gallery import Gallery
from pilltrack.core.image import read_image
from pilltrack.pipeline.calibrate import calibrate
from pilltrack.pipeline.cohorts import cohort_of, photos_to_identify, require_captures
from pilltrack.pipeline.data import captured
from pilltrack.pipeline.enroll import choose_references
from pilltrack.pipeline.params import EvaluateParams, Params
from pilltrack.pipeline.protocol import (
    Probes,
    det_curve,
    first_references,
    measure_decisions,
    measure_mated,
    measure_open_set,
    top_scores,
)
from pilltrack.pipeline.report import markdown_report
from pilltrack.pipeline.table import ImageRow, load_images, write_csv

log = logging.getLogger(__name__)
BATCH = 64
REFERENCE_COUNTS = (1, 3, 5)
Cohorts = dict[str, Probes]  # seen, new, strangers -> probes
Photo = NDArray[np.uint8]


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, `convert/`, `enroll/`; write metrics, calibration, report and curves."""
    out = artifacts / "evaluate"
    embedder = open_embedder(artifacts / "convert" / "model.tflite", threads=2)
    with Gallery.load(artifacts / "enroll" / "gallery.safetensors") as gallery:
        gallery.require_space(embedder.space)
        calibration, metrics, curve = evaluate(params, artifacts / "prepare", embedder, gallery)
    metrics["model"] = {"int8_bytes": (artifacts / "convert" / "model.tflite").stat().st_size}
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True).encode())
    write_csv(out / "det.csv", ("cohort", "fpir", "fnir"), curve)
    write_atomically(out / "report.md", markdown_report(metrics, params.evaluate).encode())
    gate(metrics, params.evaluate)  # the figures above can be read either way
    write_atomically(out / "calibration.json", calibration.model_dump_json(indent=1).encode())


def evaluate(
    params: Params, prepared: Path, embedder: Embedder, gallery: Gallery
) -> tuple[Calibration, dict[str, Any], list[tuple[str, float, float]]]:
    """Calibrate on validation pills and measure on test pills.

    Returns the calibration, the metrics (as in metrics.json), and the DET curve of the captures
    that the gate looks at, as rows (cohort, FPIR, FNIR).
    """
    settings = params.evaluate
    rows = load_images(prepared)
    require_captures(rows, settings)
    probes = {
        split: _embed_all(params, prepared, rows, split, embedder)
        for split in ("validation", "test")
    }
    strangers = probes["validation"][settings.captures]["strangers"]
    references, pills = gallery.embeddings(), [r.pill for r in gallery.references()]
    calibration = calibrate(
        gallery,
        (strangers.embeddings @ references.T).max(axis=1),
        strangers.pills,
        fpir=settings.fpir,
        margin=settings.margin,
        captures=settings.captures,
    )
    test = {
        captures: _measure(cohorts, gallery, calibration, settings.seed)
        for captures, cohorts in probes["test"].items()
        if "seen" in cohorts or "new" in cohorts  # strangers alone measure nothing
    }
    metrics = {
        "gallery": {"pills": len(gallery.pills()), "references": len(gallery)},
        "calibration": {
            "threshold": round(calibration.threshold, 5),
            "n_stranger_probes": calibration.n_stranger_probes,
            "n_stranger_pills": calibration.n_stranger_pills,
        },
        "test": test,
    }
    cohorts = probes["test"][settings.captures]
    foreign = (cohorts["strangers"].embeddings @ references.T).max(axis=1)
    curve = [
        (name, fpir, fnir)
        for name in ("seen", "new")
        for fpir, fnir in det_curve(*top_scores(references, pills, cohorts[name]), foreign)
    ]
    return calibration, metrics, curve


def gate(metrics: dict[str, Any], settings: EvaluateParams) -> None:
    """Raise GateFailed naming every measure that is outside its limit in params.yaml."""
    measured = metrics["test"][settings.captures]
    limits = [
        (
            "recall@1 of seen pills",
            measured["seen"]["recall_at_1"],
            ">=",
            settings.min_recall_at_1_seen,
        ),
        (
            "recall@1 of new pills",
            measured["new"]["recall_at_1"],
            ">=",
            settings.min_recall_at_1_new,
        ),
        ("FPIR", measured["decisions"]["fpir"], "<=", settings.max_fpir),
        ("FNIR", measured["decisions"]["fnir"], "<=", settings.max_fnir),
    ]
    broken = [
        f"{name} is {value:.3f}, not {sign} {limit:.3f}"
        for name, value, sign, limit in limits
        if not (value >= limit if sign == ">=" else value <= limit)
    ]
    if broken:
        raise GateFailed(
            f"evaluate ({settings.captures} captures, test pills)",
            found="; ".join(broken),
            expected="every measure within the limits of params.yaml",
            remedy="Look at artifacts/evaluate/report.md; train longer or add photos.",
        )


def _measure(
    cohorts: Cohorts, gallery: Gallery, calibration: Calibration, seed: int
) -> dict[str, Any]:
    references, enrolled = gallery.embeddings(), gallery.references()
    pills = [reference.pill for reference in enrolled]
    report: dict[str, Any] = {}
    for name in ("seen", "new"):
        if name in cohorts:
            report[name] = measure_mated(references, pills, cohorts[name], seed=seed)
            report[name]["by_references"] = _by_references(gallery, cohorts[name], seed)
    mated = [cohorts[name] for name in ("seen", "new") if name in cohorts]
    if not mated or "strangers" not in cohorts:
        return report
    both = Probes(
        np.concatenate([p.embeddings for p in mated]), [pill for p in mated for pill in p.pills]
    )
    strangers = cohorts["strangers"]
    report["open_set"] = measure_open_set(references, pills, both, strangers)
    decided = [
        [decide(candidates, calibration) for candidates in gallery.search(p.embeddings, n_pills=5)]
        for p in (both, strangers)
    ]
    report["decisions"] = measure_decisions(
        list(zip(both.pills, decided[0], strict=True)), decided[1]
    )
    return report


def _by_references(gallery: Gallery, probes: Probes, seed: int) -> dict[str, Any]:
    embeddings, enrolled = gallery.embeddings(), gallery.references()
    most = max(Counter((r.pill, r.side) for r in enrolled).values())
    result: dict[str, Any] = {}
    for per_side in (count for count in REFERENCE_COUNTS if count <= most):
        kept = first_references(enrolled, per_side)
        pills = [enrolled[index].pill for index in kept]
        measured = measure_mated(embeddings[kept], pills, probes, seed=seed)
        result[str(per_side)] = {k: measured[k] for k in ("recall_at_1", "recall_at_5")}
    return result


@dataclass(frozen=True)
class _Shot:
    row: ImageRow
    seed: int | None  # None: the photo itself, else the seed of a simulated capture


def _shots(params: Params, rows: Sequence[ImageRow], split: str, captures: str) -> list[_Shot]:
    photos = photos_to_identify(rows, split, captures)
    if captures != "augmented":
        return [_Shot(row, None) for row in photos]
    enrolled = set(choose_references(rows, params.enroll.references_per_side))
    seeds = np.random.default_rng([params.evaluate.seed, len(split)])
    return [
        _Shot(row, int(seeds.integers(2**62)))
        for row in photos
        if row.role == "stranger" or row in enrolled
        for _ in range(params.evaluate.augmented_per_photo)
    ]


def _embed_all(
    params: Params, prepared: Path, rows: Sequence[ImageRow], split: str, embedder: Embedder
) -> dict[str, Cohorts]:
    def photo(shot: _Shot) -> Photo:
        image = read_image(prepared / shot.row.image)
        if shot.seed is None:
            return image
        return captured(image, embedder.input_size_px, params.capture, shot.seed)

    kinds: dict[str, Cohorts] = {}
    for captures in ("real", "rendered", "augmented"):
        shots = _shots(params, rows, split, captures)
        if not shots:
            continue
        bar = tqdm(shots, desc=f"{split}, {captures}", unit="photo", disable=None)
        embeddings = np.concatenate(
            [embedder.embed([photo(shot) for shot in batch]) for batch in _batches(bar)]
        )
        kinds[captures] = {
            cohort: Probes(
                embeddings[[cohort_of(shot.row) == cohort for shot in shots]],
                [shot.row.pill for shot in shots if cohort_of(shot.row) == cohort],
            )
            for cohort in sorted({cohort_of(shot.row) for shot in shots})
        }
    return kinds


def _batches(shots: Iterator[_Shot]) -> Iterator[list[_Shot]]:
    iterator = iter(shots)
    while batch := list(islice(iterator, BATCH)):
        yield batch
