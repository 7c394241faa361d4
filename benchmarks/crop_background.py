"""Which crop of a found pill is identified best: its background kept, or painted over?

    python benchmarks/crop_background.py PHONE_PILLS.zip [--bundle DIR]

Takes a set of photos with YOLO boxes and runs `evaluate-folder` on four kinds of crops of the same
pills: cut by the labels (as `pilltrack crop-boxes` does), cut by the locator with the background
kept, and with it painted black or grey. Boxes that the locator misses, or that are smaller than an
image may be, are left out of all four. The mean over several draws of strangers and references is
printed. Needs the training install.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import cv2
import numpy as np

from pilltrack.core.identify import STARTER_BUNDLE, open_locator
from pilltrack.core.image import MIN_SIDE_PX, read_image
from pilltrack.core.locate import Found, Locator, crop
from pilltrack.pipeline.detections import MIN_IOU, box_ious, boxes_of
from pilltrack.pipeline.evaluate_folder import evaluate_folder
from pilltrack.pipeline.yolo import first_copies, opened, short_names, split_folders

Frame = np.ndarray
Crop = Callable[[Frame, Found], Frame]
CROPS: dict[str, Crop | None] = {
    "labels, background kept": None,
    "locator, background kept": crop,
    "locator, black background": lambda frame, pill: crop(painted(frame, pill, 0), pill),
    "locator, grey background": lambda frame, pill: crop(painted(frame, pill, 128), pill),
}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, metavar="ZIP")
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--strangers", type=int, default=5, help="pills")
    parser.add_argument("--draws", type=int, default=6)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        finds = finds_of(arguments.photos, open_locator(arguments.bundle, threads=2))
        for seed in range(1, arguments.draws + 1):
            labelled = directory / f"labels-{seed}"
            split_folders(arguments.photos, labelled, references=arguments.references,
                          strangers=arguments.strangers, seed=seed)  # fmt: skip
            for kind, cut in CROPS.items():
                folder = directory / f"{seed}-{len(found)}-{kind.replace(' ', '')}"
                n_kept, n_all = rewrite(labelled, folder, finds, cut)
                report = evaluate_folder(
                    arguments.bundle, folder / "gallery", folder / "probes", folder / "strangers"
                )
                found[kind].append({key: value_of(value) for key, value in report.items()})
                print(seed, kind, f"{n_kept} of {n_all} crops", report, flush=True)
    names = list(next(iter(found.values()))[0])
    print("| crop | " + " | ".join(names) + " |\n|---" + "|---:" * len(names) + "|")
    for kind, draws in found.items():
        cells = " | ".join(f"{mean(draw[key] for draw in draws):.3f}" for key in names)
        print(f"| {kind} | {cells} |")


def painted(frame: Frame, pill: Found, grey: int) -> Frame:
    """A frame in which everything but one pill is of one grey."""
    x, y, width, height = pill.box
    empty = np.full_like(frame, grey)
    part = (slice(y, y + height), slice(x, x + width))
    empty[part][pill.mask] = frame[part][pill.mask]
    return empty


def value_of(value: object) -> float:
    """The number in a figure of the report."""
    inner = value.get("value") if isinstance(value, dict) else value
    return float(inner) if isinstance(inner, int | float) else float("nan")


def finds_of(source: Path, locator: Locator) -> dict[str, tuple[Frame, Found]]:
    """Name of each labelled box's crop -> its photo and what the locator found there."""
    finds = {}
    with opened(source) as yolo:
        photos = first_copies(yolo)
        names = short_names(photo.base for photo in photos)
        for photo in photos:
            frame = read_image(photo.path)
            found = locator.locate(frame)
            boxes = photo.boxes_px(*frame.shape[:2])
            shares = box_ious(boxes_of(found)[0], boxes)  # (F, N)
            for column, box in enumerate(photo.boxes):
                if not len(found) or shares[:, column].max() < MIN_IOU:
                    continue
                pill = found[int(shares[:, column].argmax())]
                if min(len(crop(frame, pill)), boxes[column, 2:].max()) >= MIN_SIDE_PX:
                    name = f"{names[photo.base].replace('/', '_')}_{box.number}.png"
                    finds[name] = frame, pill
    return finds


def rewrite(
    labelled: Path, to: Path, finds: dict[str, tuple[Frame, Found]], cut: Crop | None
) -> tuple[int, int]:
    """Write the crops of the found pills anew; returns how many of how many there are."""
    files = sorted(labelled.rglob("*.png"))
    kept = [file for file in files if file.name in finds]
    for file in kept:
        target = to / file.relative_to(labelled)
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = read_image(file) if cut is None else cut(*finds[file.name])
        cv2.imwrite(str(target), picture[:, :, ::-1])
    for pill in (to / "probes").iterdir():
        if not (to / "gallery" / pill.name).is_dir():
            shutil.rmtree(pill)  # none of its references was found
    return len(kept), len(files)


if __name__ == "__main__":
    main()
