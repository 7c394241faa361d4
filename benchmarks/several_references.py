"""How surely a few pills, each enrolled with five captures, are named, and strangers refused.

    python benchmarks/several_references.py src/pilltrack/starter/bundle other/bundle

What the user of a device does, in simulation: each new pill of the split is enrolled with one
capture by each of five cameras, three of one side and two of the other, and compared by looks,
against the bundle's background. Probes are other captures, one of each side by each camera.
Galleries are draws from the new pills, the strangers are always all those of the split; means over
draws, no intervals.
`camera_conditions.py` enrols studio photos instead.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.bundle import GALLERY_FILE, read_bundle
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.gallery import read_background
from pilltrack.core.image import read_image
from pilltrack.core.metrics import auroc, fnir_at_fpir
from pilltrack.pipeline.cohorts import cohort_of
from pilltrack.pipeline.data import CAPTURE_PX, captured
from pilltrack.pipeline.params import CaptureParams, load_params
from pilltrack.pipeline.protocol import search, single_views
from pilltrack.pipeline.table import ImageRow, load_images

CAMERAS: tuple[dict[str, Any], ...] = (
    {"distant": 0.0, "body": 0.0},
    {"distant": 0.0, "body": 1.0},
    {"distant": 0.0, "body": 0.5, "light": 0.5, "noise": 0.07, "colour_cast": 0.15},  # dim
    {"distant": 1.0, "body": 0.5},
    {"distant": 0.0, "body": 0.5, "blur_px": 6.0},
)
OF_ONE_SIDE = 3  # of the five references; the others are of the other side, if there is one
DRAWS = {12: 25, 40: 4}  # galleries of so many pills: how many are drawn; beside that of all
FIGURES = ("recall_at_1", "auroc", "fnir_at_fpir_5", "fnir_at_fpir_1")


class Photo(NamedTuple):
    """An embedded capture: what it shows."""

    pill: str
    side: str
    embedding: NDArray[np.float32]  # (D,)


class Captured(NamedTuple):
    """All captures of the pills of one split."""

    references: list[Photo]
    probes: list[Photo]
    strangers: list[Photo]


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prepared", type=Path, default=Path("artifacts/prepare"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row for row in load_images(arguments.prepared) if row.split == arguments.split]
    capture = load_params(arguments.params).capture
    found = {
        str(bundle): measure(bundle, rows, arguments.prepared, capture)
        for bundle in arguments.bundles
    }
    print(json.dumps(found, indent=1) if arguments.json else as_table(found))


def measure(
    bundle: Path, rows: list[ImageRow], prepared: Path, capture: CaptureParams
) -> dict[str, dict[str, float]]:
    """FIGURES for galleries of each size."""
    embedder = open_embedder(bundle / read_bundle(bundle).model.file, threads=2)
    background = read_background(bundle / GALLERY_FILE, embedder.dim)
    captures = take(embedder, rows, prepared, capture)
    names = sorted({photo.pill for photo in captures.references})

    def figures(pills: set[str]) -> tuple[float, ...]:
        references = [photo for photo in captures.references if photo.pill in pills]
        outcomes = [
            search(
                np.stack([photo.embedding for photo in references]),
                [photo.pill for photo in references],
                single_views(
                    np.stack([photo.embedding for photo in probes]),
                    [photo.pill for photo in probes],
                ),
                background,
                [photo.side for photo in references],
            )
            for probes in (
                [photo for photo in captures.probes if photo.pill in pills],
                captures.strangers,
            )
        ]
        mated, foreign = outcomes
        hits = mated.rank == 1
        return (
            float(hits.mean()),
            auroc(mated.best, foreign.best),
            fnir_at_fpir(mated.best, hits, foreign.best, 0.05)[0],
            fnir_at_fpir(mated.best, hits, foreign.best, 0.01)[0],
        )

    rng = np.random.default_rng(0)
    report = {}
    for size, draws in {**DRAWS, len(names): 1}.items():
        drawn = [set(rng.choice(names, size, replace=False).tolist()) for _ in range(draws)]
        means = np.mean([figures(pills) for pills in drawn], axis=0)
        report[str(size)] = dict(zip(FIGURES, means.tolist(), strict=True))
    return report


def take(
    embedder: Embedder, rows: list[ImageRow], prepared: Path, capture: CaptureParams
) -> Captured:
    """Photograph all pills: the same captures for every model."""
    sides: dict[str, dict[str, ImageRow]] = {}
    for row in rows:
        sides.setdefault(row.pill, {})[row.side] = row
    cameras = [capture.model_copy(update=changes) for changes in CAMERAS]
    found = Captured([], [], [])
    for pill, of_pill in sorted(sides.items()):
        photos = {side: read_image(prepared / row.image) for side, row in sorted(of_pill.items())}
        cohort = cohort_of(next(iter(of_pill.values())))
        first_seed = zlib.crc32(pill.encode())
        for number, camera in enumerate(cameras):
            if cohort == "new":
                side = min(photos) if number >= OF_ONE_SIDE else max(photos)
                view = captured(photos[side], CAPTURE_PX, camera, first_seed + number)
                found.references.append(Photo(pill, side, embed_references(embedder, [view])[0]))
            for place, (side, photo) in enumerate(photos.items()):
                seed = first_seed + 100 + number + place * len(cameras)
                (embedding,) = embedder.embed([captured(photo, CAPTURE_PX, camera, seed)])
                probes = found.probes if cohort == "new" else found.strangers
                probes.append(Photo(pill, side, embedding))
    return found


def as_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row for each bundle and size of gallery."""
    lines = ["| bundle | pills | recall@1 | AUROC | FNIR at FPIR 5 % | at 1 % |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for bundle, sizes in found.items():
        for size, figures in sizes.items():
            recall, area, five, one = (figures[figure] for figure in FIGURES)
            lines.append(
                f"| {bundle} | {size} | {recall:.1%} | {area:.3f} | {five:.1%} | {one:.1%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
