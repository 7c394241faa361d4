"""Photos per second: rendering the embedded data set, and simulating captures.

PYTHONPATH=src python benchmarks/synth_throughput.py
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from pilltrack.pipeline.capture import cut_out, simulate_capture
from pilltrack.pipeline.invented import invent_pills
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.pillshape import depth_inside
from pilltrack.pipeline.synth import synth

HARD = CaptureParams(
    background_share=1.0,
    scale=(0.65, 0.92),
    perspective=0.08,
    shadow=0.55,
    light=0.35,
    colour_cast=0.1,
    blur_px=5.0,
    noise=0.03,
    jpeg_quality=(35, 92),
    clip=0.08,
    distant=0.0,
    body=0.0,
)


def main() -> None:
    """Print one line per measurement."""
    for pills, photos in ((100, 8), (40, 20)):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            synth(Path(folder) / "pills.zip", pills=pills, photos=photos, seed=1)
            seconds = time.perf_counter() - start
        rate = pills * photos / seconds
        print(
            f"synth, {pills} pills x {photos}, 224 px, {os.cpu_count()} cores: {rate:.0f} photos/s"
        )

    cv2.setNumThreads(1)
    photo = _studio_photo()
    cut = cut_out(photo)
    assert cut is not None
    start = time.perf_counter()
    for _ in range(200):
        cut_out(photo)
    print(f"cut_out at 224 px: {(time.perf_counter() - start) / 200 * 1e3:.2f} ms")
    for size_px, body in ((128, 0.0), (128, 1.0), (160, 0.0), (160, 1.0)):
        settings = HARD.model_copy(update={"body": body})
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        for _ in range(400):
            simulate_capture(photo, cut[..., 3], size_px, settings, rng)
        milliseconds = (time.perf_counter() - start) / 400 * 1e3
        kind = "a body" if body else "flat"
        print(f"simulate_capture at {size_px} px, {kind}, one core: {milliseconds:.2f} ms")


def _studio_photo() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A white pill on black, 224 px, its longer side filling the frame."""
    depth = depth_inside(invent_pills(1, seed=0)[0].body)
    mask = (depth > 0).astype(np.uint8) * 200
    left, top, width, height = cv2.boundingRect(mask)
    side = max(width, height)
    square = np.zeros((side, side), np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = mask[top : top + height, left : left + width]
    large = cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)
    return np.dstack([large] * 3)


if __name__ == "__main__":
    main()
