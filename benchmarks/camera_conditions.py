"""How well a model names new pills under several simulated cameras, and on average.

    python benchmarks/camera_conditions.py artifacts/convert/model.tflite \\
        artifacts/distill/student.safetensors --split validation

Every pill that is not a stranger is enrolled with one studio photo for each side; each photo
of a new pill of the split, and of a stranger, is captured under each camera. `counter` is
`capture` of params.yaml, all pills near and flat; the other cameras change what their name says.
Another draw of captures moves recall by up to four points: compare models by several, in one run.
Models are chosen by the average on validation pills, never by one camera or by test pills. Scores
are plain cosines: a background belongs to a bundle.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.image import read_image
from pilltrack.core.metrics import auroc, fnir_at_fpir
from pilltrack.pipeline.cohorts import cohort_of
from pilltrack.pipeline.params import CaptureParams, load_params
from pilltrack.pipeline.protocol import search, single_views, two_sided
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
Embeddings = NDArray[np.float32]
FIGURES = ("recall_at_1", "recall_at_1_two_sided", "auroc", "fnir_at_fpir_5")


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prepared", type=Path, default=Path("artifacts/prepare"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--draws", type=int, default=1, help="captures of each photo, pooled (1)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.draws < 1:
        parser.error(f"--draws {arguments.draws}: expected at least 1")
    rows = load_images(arguments.prepared)
    figures = under_cameras(
        [_open(model) for model in arguments.models],
        rows,
        arguments.prepared,
        arguments.split,
        load_params(arguments.params).capture,
        CAMERAS,
        arguments.draws,
    )
    found = dict(zip(map(str, arguments.models), figures, strict=True))
    print(json.dumps(found, indent=1) if arguments.json else as_table(found))


def under_cameras(
    embedders: Sequence[Embedder],
    rows: list[ImageRow],
    prepared: Path,
    split: str,
    capture: CaptureParams,
    cameras: dict[str, dict[str, Any]],
    draws: int = 1,
) -> list[dict[str, dict[str, float]]]:
    """FIGURES for each camera, and their mean, of each embedder; all see the same captures."""
    enrolled = [row for row in rows if row.role != "stranger"]
    pills = [row.pill for row in enrolled]
    references = [embedded_references(embedder, enrolled, prepared) for embedder in embedders]
    shots = [
        Shot(row, draw * len(rows) + place)
        for draw in range(draws)
        for place, row in enumerate(rows)
        if row.split == split and cohort_of(row) in ("new", "strangers")
    ]
    found: list[dict[str, dict[str, float]]] = [{} for _ in embedders]
    for name, changes in cameras.items():
        camera = capture.model_copy(update={"distant": 0.0, "body": 0.0, **changes})
        embedded = embed_shots(embedders, shots, prepared, camera, name)
        for figures, known, embeddings in zip(found, references, embedded, strict=True):
            figures[name] = _figures(known, pills, shots, embeddings)
    for figures in found:
        figures["mean"] = {
            figure: float(np.mean([of_camera[figure] for of_camera in figures.values()]))
            for figure in FIGURES
        }
    return found


def embedded_references(embedder: Embedder, rows: list[ImageRow], prepared: Path) -> Embeddings:
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


def _figures(
    references: Embeddings, pills: list[str], shots: list[Shot], embeddings: Embeddings
) -> dict[str, float]:
    """FIGURES of embedded shots among embedded references."""
    mated = np.array([shot.row.role != "stranger" for shot in shots])
    shown = [shot.row.pill for shot in shots if shot.row.role != "stranger"]
    sides = [shot.row.side for shot in shots if shot.row.role != "stranger"]
    odd = [shot.row.pill for shot in shots if shot.row.role == "stranger"]
    found = search(references, pills, single_views(embeddings[mated], shown))
    strangers = search(references, pills, single_views(embeddings[~mated], odd))
    pairs = two_sided(embeddings[mated], shown, sides)
    both = None if pairs is None else search(references, pills, pairs)
    hits = np.array(found.rank) == 1
    return {
        "recall_at_1": float(hits.mean()),
        "recall_at_1_two_sided": float((both.rank == 1).mean()) if both else float("nan"),
        "auroc": auroc(found.best, strangers.best),
        "fnir_at_fpir_5": fnir_at_fpir(found.best, hits, strangers.best, 0.05)[0],
    }


def _open(model: Path) -> Embedder:
    return open_torch_embedder(model) if model.suffix == ".safetensors" else open_embedder(model)


if __name__ == "__main__":
    main()
