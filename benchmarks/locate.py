"""The locator on real photos, composed scenes and clutter, beside a classical baseline.

    PILLTRACK_REAL_DATA=<folder of phone_pills.zip> \\
    python benchmarks/locate.py [--bundle DIR] [--prepared DIR] [--json FILE]

Prints a Markdown table and, with --json, writes the figures. Real photos are those of the splits
val and test, which no training or choice has seen; without the variable they are left out.
Composed scenes hold validation pills of DIR (artifacts/prepare), or rendered pills if there is
none. The baseline is what OpenCV alone does: difference from the local background, adaptive
threshold, distance transform, watershed. Needs the training install.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.bundle import LOCATOR_FILE
from pilltrack.core.identify import STARTER_BUNDLE, open_locator
from pilltrack.core.image import read_image
from pilltrack.pipeline.detections import (
    Boxes,
    FrameScore,
    score_frame,
    score_locator,
    summary,
)
from pilltrack.pipeline.locator_data import cut_outs, rendered_cut_outs, scene_of
from pilltrack.pipeline.table import load_images
from pilltrack.pipeline.yolo import first_copies, opened

Frame = NDArray[np.uint8]
Finder = Callable[[Frame, Boxes], tuple[FrameScore, FrameScore]]  # sure finds, every find
LONGER_SIDE_PX = 640
SEED = 20_000  # no training run uses these scenes


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE, help="(the starter)")
    parser.add_argument("--prepared", type=Path, default=Path("artifacts/prepare"))
    parser.add_argument("--scenes", type=int, default=500, help="of each kind (500)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    locator = open_locator(arguments.bundle, threads=2)

    def learned(frame: Frame, pills: Boxes) -> tuple[FrameScore, FrameScore]:
        return score_locator(locator, frame, pills)

    def baseline(frame: Frame, pills: Boxes) -> tuple[FrameScore, FrameScore]:
        score = score_frame(*classical(frame), pills)
        return score, score

    finders: dict[str, Finder] = {"locator": learned, "OpenCV": baseline}
    results: list[dict[str, Any]] = []
    for name, frames in _test_sets(arguments.prepared, arguments.scenes):
        kept = list(frames)
        for finder, find in finders.items():
            scores = [find(frame, boxes) for frame, boxes in kept]
            figures = summary(*zip(*scores, strict=True))
            results.append({"set": name, "finder": finder, **figures})
    size = (arguments.bundle / LOCATOR_FILE).stat().st_size
    report = {"results": results, "bytes": size}
    print(_markdown(results))
    print(json.dumps(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def classical(frame: Frame) -> tuple[Boxes, list[float]]:
    """Find convex things that differ from their surroundings; touching ones by watershed."""
    scale = LONGER_SIDE_PX / max(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    differs = np.asarray(cv2.absdiff(lab, cv2.medianBlur(lab, 151)), np.uint8).max(axis=2)
    differs = cv2.GaussianBlur(differs, (0, 0), 1.5)
    lowest = cv2.threshold(differs, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]
    local = cv2.adaptiveThreshold(
        differs, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 151, -2
    )
    mask = np.where((local > 0) & (differs > 0.7 * lowest), 255, 0).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), cv2.MORPH_OPEN, disc)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    ridge = cv2.dilate(depth, np.ones((25, 25), np.uint8))
    seeds = ((depth > 0.7 * ridge) & (depth > 4)).astype(np.uint8)
    count, parts = cv2.connectedComponents(seeds)
    markers = np.where(mask > 0, np.asarray(parts), count).astype(np.int32)
    markers = cv2.watershed(small, markers)
    boxes, sure = [], []
    for number in range(1, count):
        part = (markers == number).astype(np.uint8)
        contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        if not contours:
            continue
        outline = max(contours, key=cv2.contourArea)
        area = cv2.contourArea(outline)
        solid = area / max(cv2.contourArea(cv2.convexHull(outline)), 1)
        if 0.0004 < area / part.size < 0.15 and solid > 0.88:
            boxes.append([side / scale for side in cv2.boundingRect(outline)])
            sure.append(float(solid))
    return np.array(boxes, np.float64).reshape(-1, 4), sure


def _test_sets(
    prepared: Path, n_scenes: int
) -> Iterator[tuple[str, Iterable[tuple[Frame, Boxes]]]]:
    folder = os.environ.get("PILLTRACK_REAL_DATA")
    if folder:
        photos = [_photos(Path(folder) / "phone_pills.zip", part) for part in ("val", "test")]
        yield "phone val", photos[0]
        yield "phone test", photos[1]
        yield "phone val+test", photos[0] + photos[1]
    cutouts = []
    if (prepared / "images.csv").is_file():
        rows = [row for row in load_images(prepared) if row.split == "validation"]
        cutouts = cut_outs(prepared, rows)
    cutouts = cutouts or rendered_cut_outs(100, SEED)
    for name, n_pills in (("composed", None), ("composed, 32 pills", 32), ("clutter", 0)):
        scenes = (
            scene_of(
                cutouts,
                LONGER_SIDE_PX,
                (SEED, 0 if n_pills is None else 1 + n_pills, n),
                n_pills,
            )
            for n in range(n_scenes)
        )
        yield name, ((scene.frame, scene.boxes.astype(np.float64)) for scene in scenes)


def _photos(archive: Path, split: str) -> list[tuple[Frame, Boxes]]:
    """Photos of a split (train, val or test folder) and their boxes."""
    with opened(archive) as yolo:
        photos = [photo for photo in first_copies(yolo) if photo.folder == split]
        frames = [read_image(photo.path) for photo in photos]
    return [
        (frame, photo.boxes_px(*frame.shape[:2]))
        for frame, photo in zip(frames, photos, strict=True)
    ]


def _markdown(results: list[dict[str, Any]]) -> str:
    lines = [
        "| frames | finder | n | pills | recall | precision | AP50 | exact count | false finds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        shares = [row[k] for k in ("recall", "precision", "ap50", "exact_count", "false_finds")]
        figures = " | ".join(f"{100 * share:.1f} %" for share in shares)
        lines.append(
            f"| {row['set']} | {row['finder']} | {row['frames']} | {row['pills']} | {figures} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
