"""How long the locator alone takes for frames of 640 x 480 with ten and with twenty pills.

    python benchmarks/locate_time.py [--bundle DIR] [FRAME.png ...]
    python benchmarks/locate_time.py --save DIR

The second form writes the composed frames, to measure another revision on the same ones: check it
out elsewhere, and run both in turns, this one with `PYTHONPATH=ELSEWHERE/src`. One process does
nothing but locate; among other steps it takes longer (identify_frame.py). Needs the training
install for the frames.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from pilltrack.core.identify import STARTER_BUNDLE, open_locator
from pilltrack.core.image import read_image

FRAME = (640, 480)
N_RUNS = 200


def main() -> None:
    """Measure and print, or write the frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, nargs="*", metavar="FRAME.png")
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE)
    parser.add_argument("--save", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        for name, frame in composed().items():
            cv2.imwrite(str(arguments.save / name), frame[:, :, ::-1])
        return
    given = {file.name: read_image(file) for file in arguments.frames}
    print("| frame | threads | pills found | locate, ms: p50 (p99) |\n|---|---:|---:|---:|")
    for name, frame in (given or composed()).items():
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            locator = open_locator(arguments.bundle, threads=threads)
            times_ms = []
            for _ in range(N_RUNS + 20):
                start_s = time.perf_counter()
                found = locator.locate(frame)
                times_ms.append(1000 * (time.perf_counter() - start_s))
            p50, p99 = np.quantile(times_ms[20:], (0.5, 0.99))
            print(f"| {name} | {threads} | {len(found)} | {p50:.1f} ({p99:.1f}) |")


def composed() -> dict[str, np.ndarray]:
    """The frames by name: composed scenes, the same each time."""
    from identify_frame import frame_of_pills
    from locate import LONGER_SIDE_PX, SEED

    from pilltrack.pipeline.locator_data import rendered_cut_outs, scene_of

    many = scene_of(rendered_cut_outs(20, SEED), LONGER_SIDE_PX, (SEED, 99), 20).frame
    shrunk = cv2.resize(many, FRAME, interpolation=cv2.INTER_AREA)
    return {"10 pills.png": frame_of_pills(), "20 pills.png": np.asarray(shrunk)}


if __name__ == "__main__":
    main()
