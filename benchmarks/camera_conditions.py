"""How well a model names new pills under several simulated cameras, and on average.

    python benchmarks/camera_conditions.py artifacts/convert/model.tflite \\
        artifacts/distill/student.safetensors --split validation

Every pill that is not a stranger is enrolled with one studio photo for each side; each photo
of a new pill of the split, and of a stranger, is captured once under each camera. `counter` is
`capture` of params.yaml, all pills near and flat; the other cameras change what their name says.
Models are chosen by the average on validation pills, never by one camera or by test pills. Scores
are plain cosines: a background belongs to a bundle.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.image import read_image
from pilltrack.core.metrics import auroc, fnir_at_fpir
from pilltrack.pipeline.cohorts import cohort_of
from pilltrack.pipeline.params import CaptureParams, load_params
from pilltrack.pipeline.protocol import Outcomes, search, single_views, two_sided
from pilltrack.pipeline.shots import BATCH, Shot, embed_shots
from pilltrack.pipeline.table import ImageRow, load_images
from pilltrack.pipeline.torch_embedder import open_torch_embedder

CAMERAS: dict[str, dict[str, Any]] = {
    "counter": {},
    "station": {  # fixed above a plain tray, in good light
        "perspective": 0.02, "light": 0.15, "colour_cast": 0.04, "blur_px": 1.0, "noise": 0.01,
        "jpeg_quality": (80, 95), "clip": 0.0, "scale": (0.75, 0.85),
    },
    "dim": {"light": 0.5, "noise": 0.07, "colour_cast": 0.15, "shadow": 0.7},
    "out of focus": {"blur_px": 6.0},
    "far": {"distant": 1.0},
    "far and tilted": {"scale": (0.4, 0.65), "perspective": 0.14, "clip": 0.15},
    "bodies": {"body": 1.0},
}  # fmt: skip
FIGURES = ("recall_at_1", "recall_at_1_two_sided", "auroc", "fnir_at_fpir_5")


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prepared", type=Path, default=Path("artifacts/prepare"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = load_images(arguments.prepared)
    capture = load_params(arguments.params).capture
    found = {
        str(model): under_all_cameras(
            _open(model), rows, arguments.prepared, arguments.split, capture
        )
        for model in arguments.models
    }
    print(json.dumps(found, indent=1) if arguments.json else as_table(found))


def under_all_cameras(
    embedder: Embedder, rows: list[ImageRow], prepared: Path, split: str, capture: CaptureParams
) -> dict[str, dict[str, float]]:
    """FIGURES for each camera, and their mean."""
    found = {
        name: under_camera(embedder, rows, prepared, split, capture, changes)
        for name, changes in CAMERAS.items()
    }
    found["mean"] = {
        figure: float(np.mean([of_camera[figure] for of_camera in found.values()]))
        for figure in FIGURES
    }
    return found


def under_camera(
    embedder: Embedder,
    rows: list[ImageRow],
    prepared: Path,
    split: str,
    capture: CaptureParams,
    changes: dict[str, Any],
) -> dict[str, float]:
    """FIGURES for captures by one camera."""
    enrolled = [row for row in rows if row.role != "stranger"]
    references = embedded_references(embedder, enrolled, prepared)
    pills = [row.pill for row in enrolled]
    shots = [
        Shot(row, seed)
        for seed, row in enumerate(rows)
        if row.split == split and cohort_of(row) in ("new", "strangers")
    ]
    camera = capture.model_copy(update={"distant": 0.0, "body": 0.0, **changes})
    (embeddings,) = embed_shots([embedder], shots, prepared, camera, "captures")
    mated = [n for n, shot in enumerate(shots) if shot.row.role != "stranger"]
    odd = [n for n, shot in enumerate(shots) if shot.row.role == "stranger"]
    shown = [shots[n].row.pill for n in mated]
    outcomes = search(references, pills, single_views(embeddings[mated], shown))
    strangers = search(
        references, pills, single_views(embeddings[odd], [shots[n].row.pill for n in odd])
    )
    pairs = two_sided(embeddings[mated], shown, [shots[n].row.side for n in mated])
    both = None if pairs is None else search(references, pills, pairs)
    return _figures(outcomes, strangers, both)


def embedded_references(embedder: Embedder, rows: list[ImageRow], prepared: Path) -> Any:
    """Embeddings (N, D) to enrol the photos with."""
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    return np.concatenate(
        [
            embed_references(embedder, [read_image(prepared / row.image) for row in batch])
            for batch in batches
        ]
    )


def as_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row for each model and camera."""
    lines = ["| model | camera | recall@1 | two-sided | AUROC | FNIR at FPIR 5 % |",
             "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for model, cameras in found.items():
        for camera, figures in cameras.items():
            one, two, area, fnir = (figures[figure] for figure in FIGURES)
            lines.append(
                f"| {Path(model).name} | {camera} | {one:.1%} | {two:.1%} | {area:.3f} "
                f"| {fnir:.1%} |"
            )
    return "\n".join(lines)


def _figures(mated: Outcomes, strangers: Outcomes, both: Outcomes | None) -> dict[str, float]:
    hits = np.array(mated.rank) == 1
    return {
        "recall_at_1": float(hits.mean()),
        "recall_at_1_two_sided": float((both.rank == 1).mean()) if both else float("nan"),
        "auroc": auroc(mated.best, strangers.best),
        "fnir_at_fpir_5": fnir_at_fpir(mated.best, hits, strangers.best, 0.05)[0],
    }


def _open(model: Path) -> Embedder:
    return open_torch_embedder(model) if model.suffix == ".safetensors" else open_embedder(model)


if __name__ == "__main__":
    main()
