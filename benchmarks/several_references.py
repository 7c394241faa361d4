"""How surely a few pills, each enrolled with five captures, are named, and strangers refused.

    python benchmarks/several_references.py src/pilltrack/starter/bundle other/bundle

What the user of a device does, in simulation: each new pill of the split is enrolled with one
capture by each of five cameras, three of the front and two of the back, the cameras in turn from
pill to pill, and compared by looks, against the bundle's background. Probes are other captures, one
of each side by each camera, of the first photo of each side. Galleries are draws from the new
pills, the strangers are always all those of the split; means over draws, no intervals.
`camera_conditions.py` enrols studio photos instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.background import Background
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

CAMERAS: dict[str, dict[str, Any]] = {
    "flat": {"distant": 0.0, "body": 0.0},
    "bodies": {"distant": 0.0, "body": 1.0},
    "dim": {"distant": 0.0, "body": 0.5, "light": 0.5, "noise": 0.07, "colour_cast": 0.15},
    "far": {"distant": 1.0, "body": 0.5},
    "out of focus": {"distant": 0.0, "body": 0.5, "blur_px": 6.0},
}
OF_FRONT = 3  # of the five references; the others are of the back, if there is one
DRAWS = {12: 25, 40: 4}  # galleries of so many pills: how many are drawn; beside that of all
SEED = 0  # of the draws
FIGURES = ("recall_at_1", "auroc", "fnir_at_fpir_5", "fnir_at_fpir_1")


class Capture(NamedTuple):
    """One embedded capture: the pill and the side it shows."""

    pill: str
    side: str
    embedding: NDArray[np.float32]  # (D,)


class Captures(NamedTuple):
    """All captures of the pills of one split."""

    references: list[Capture]
    probes: list[Capture]
    strangers: list[Capture]


class _Opened(NamedTuple):
    """The parts of a bundle that captures are embedded and scored with."""

    embedder: Embedder
    background: Background


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
    opened = [_open(bundle, rows) for bundle in arguments.bundles]
    captures = photograph([one.embedder for one in opened], rows, arguments.prepared, capture)
    if not all(taken.references and taken.strangers for taken in captures):
        sys.exit(f"{arguments.prepared}: expected new pills and strangers in this split")
    found = {
        str(bundle): measure(taken, one.background)
        for bundle, one, taken in zip(arguments.bundles, opened, captures, strict=True)
    }
    print(json.dumps(found, indent=1) if arguments.json else as_table(found))


def measure(captures: Captures, background: Background) -> dict[str, dict[str, float]]:
    """FIGURES for galleries of each size; the keys are the sizes."""
    names = sorted({reference.pill for reference in captures.references})
    rng = np.random.default_rng(SEED)
    report = {}
    sizes = {size: draws for size, draws in DRAWS.items() if size < len(names)}
    for size, draws in {**sizes, len(names): 1}.items():
        drawn = [set(rng.choice(names, size, replace=False).tolist()) for _ in range(draws)]
        means = np.mean([_figures(captures, pills, background) for pills in drawn], axis=0)
        report[str(size)] = dict(zip(FIGURES, means.tolist(), strict=True))
    return report


def photograph(
    embedders: Sequence[Embedder], rows: list[ImageRow], prepared: Path, capture: CaptureParams
) -> list[Captures]:
    """Photograph all pills of `rows` and embed the same captures by each embedder."""
    photos: dict[str, dict[str, ImageRow]] = {}
    for row in rows:
        photos.setdefault(row.pill, {}).setdefault(row.side, row)
    cameras = [capture.model_copy(update=changes) for changes in CAMERAS.values()]
    found = [Captures([], [], []) for _ in embedders]
    for pill, sides in sorted(photos.items()):
        studio = {side: read_image(prepared / sides[side].image) for side in sides}
        front, *others = sorted(studio, reverse=True)  # front before back
        cohort = cohort_of(sides[front])
        seed = zlib.crc32(pill.encode())
        for number in range(len(cameras)):
            camera = cameras[(number + seed) % len(cameras)]
            if cohort == "new":
                side = front if number < OF_FRONT or not others else others[0]
                view = captured(studio[side], CAPTURE_PX, camera, seed + number)
                for embedder, taken in zip(embedders, found, strict=True):
                    [embedding] = embed_references(embedder, [view])
                    taken.references.append(Capture(pill, side, embedding))
            for place, side in enumerate([front, *others], 1):
                view = captured(studio[side], CAPTURE_PX, camera, seed + 100 * place + number)
                for embedder, taken in zip(embedders, found, strict=True):
                    probes = {"new": taken.probes, "strangers": taken.strangers}[cohort]
                    probes.append(Capture(pill, side, embedder.embed([view])[0]))
    return found


def _open(bundle: Path, rows: list[ImageRow]) -> _Opened:
    embedder = open_embedder(bundle / read_bundle(bundle).model.file, threads=2)
    background = read_background(bundle / GALLERY_FILE, embedder.dim)
    if set(background.pills) & {row.pill for row in rows}:
        sys.exit(
            f"{bundle}: trained on pills of this split; measure it on the pills it was split by"
        )
    return _Opened(embedder, background)


def _figures(captures: Captures, pills: set[str], background: Background) -> list[float]:
    """FIGURES of a gallery of `pills`."""
    references = [reference for reference in captures.references if reference.pill in pills]
    mated, strangers = (
        search(
            np.stack([reference.embedding for reference in references]),
            [reference.pill for reference in references],
            single_views(
                np.stack([probe.embedding for probe in probes]), [probe.pill for probe in probes]
            ),
            background,
            [reference.side for reference in references],
        )
        for probes in (
            [probe for probe in captures.probes if probe.pill in pills],
            captures.strangers,
        )
    )
    hits = mated.rank == 1
    fnirs = [fnir_at_fpir(mated.best, hits, strangers.best, fpir)[0] for fpir in (0.05, 0.01)]
    return [float(hits.mean()), auroc(mated.best, strangers.best), *fnirs]


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
