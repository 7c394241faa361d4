"""How long a frame with ten pills takes from pixels to decisions, step by step.

    python benchmarks/identify_frame.py [--bundle DIR] [--json FILE]

A composed frame of 640 x 480 with ten rendered pills, the bundle's gallery filled up to 10,000
references, one and two threads. `locate` is `maps`, `read` and a second look at finds in doubt.
Needs the training install.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from locate import SEED

from pilltrack.core.bench import fill_up, this_machine
from pilltrack.core.decide import decide
from pilltrack.core.identify import STARTER_BUNDLE, Identifier, open_identifier
from pilltrack.core.locate import crop, find_pills
from pilltrack.core.second_look import LEAST_LOOKED_AT
from pilltrack.pipeline.locator_data import rendered_cut_outs, scene_of

N_PILLS, N_REFERENCES, N_RUNS = 10, 10_000, 200
FRAME = (640, 480)
STEPS = ("maps", "read", "locate", "crop", "embed", "search", "decide", "identify")
Frame = np.ndarray
T = TypeVar("T")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    frame = frame_of_pills()
    report: dict[str, object] = {"machine": this_machine().model_dump()}
    print("| threads | pills found | " + " | ".join(f"{step}, ms" for step in STEPS) + " |")
    print("|---:" * (len(STEPS) + 2) + "|")
    for threads in (1, 2):
        cv2.setNumThreads(threads)
        with open_identifier(arguments.bundle, threads=threads) as identifier:
            fill_up(identifier.gallery.bundled, N_REFERENCES)
            n_found = len(identifier.locator.locate(frame))
            times_ms = 1000 * np.array([timed(identifier, frame) for _ in range(N_RUNS + 20)])[20:]
        p50, p99 = np.quantile(times_ms, (0.5, 0.99), axis=0)
        report[f"threads_{threads}"] = {"found": n_found, "p50": dict(zip(STEPS, p50, strict=True)),
                                        "p99": dict(zip(STEPS, p99, strict=True))}  # fmt: skip
        cells = " | ".join(f"{a:.1f} ({b:.1f})" for a, b in zip(p50, p99, strict=True))
        print(f"| {threads} | {n_found} | {cells} |")
    print("\np50 (p99); `identify` is the whole path, measured by itself")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def frame_of_pills() -> Frame:
    """Ten pills on a table, 640 x 480, the same each time."""
    for number in range(100):
        scene = scene_of(rendered_cut_outs(20, SEED), FRAME[0], (SEED, 98, number), N_PILLS)
        if len(scene.boxes) == N_PILLS and scene.frame.shape[:2] == FRAME[::-1]:
            return scene.frame
    raise AssertionError("no such scene")


def timed(identifier: Identifier, frame: Frame) -> list[float]:
    """Seconds of each of STEPS."""
    locator, gallery = identifier.locator, identifier.gallery
    height, width = frame.shape[:2]
    maps, maps_s = seconds_of(lambda: locator.maps(frame))
    _, read_s = seconds_of(lambda: find_pills(maps, height, width, LEAST_LOOKED_AT))
    found, locate_s = seconds_of(lambda: locator.locate(frame))
    crops, crop_s = seconds_of(lambda: [crop(frame, pill) for pill in found])
    embeddings, embed_s = seconds_of(lambda: identifier.embedder.embed(crops))
    candidates, search_s = seconds_of(lambda: gallery.search(embeddings, 5))
    _, decide_s = seconds_of(lambda: [decide(c, identifier.calibration) for c in candidates])
    _, whole_s = seconds_of(lambda: identifier.identify(frame))
    return [maps_s, read_s, locate_s, crop_s, embed_s, search_s, decide_s, whole_s]


def seconds_of(step: Callable[[], T]) -> tuple[T, float]:
    """What a step returns and how long it took."""
    start = time.perf_counter()
    result = step()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
