"""How long it takes from three photos of a pill to a pill that is searched and named.

    python benchmarks/enrol_time.py [--bundle DIR] [--references 10000] [--runs N] [--json FILE]

Three rendered photos of a pill, two of its front and one of its back, as a phone stores them (JPEG
of 4000 x 3000) and as the page's camera takes them (PNG of 1920 x 1080). Times begin with the bytes
of the files: decoding, every check of enrolment, the photos and their rows on the disk, embeddings,
gallery. `named` is the search that follows, in a fourth photo without its decoding; `CPU` is the
computing time of `all`, which a busy machine does not stretch. Pills that enrolment refuses are
enrolled with a reason, so that a row of the record is written too; how many, the last column says.
The gallery is filled up to --references. Needs the training install.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from pilltrack.core.bench import fill_up, this_machine
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.core.image import decode_image
from pilltrack.edge.enrol import PhotosRefused
from pilltrack.edge.service import Service
from pilltrack.pipeline.invented import InventedPill, invent_pills
from pilltrack.pipeline.render import draw_setting, photograph_pill, render_face

CAMERAS = {"JPEG 4000 x 3000": (4000, 3000, "jpeg"), "PNG 1920 x 1080": (1920, 1080, "png")}
PILL_SHARE = 0.4  # of the photo's height that the rendered close-up takes
SIDES: tuple[Literal["front", "back"], ...] = ("front", "front", "back")
STEPS = ("decode", "enrol", "named", "all", "CPU")
SEED = 20


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE, help="(the starter)")
    parser.add_argument("--references", type=int, default=10_000, help="(10000)")
    parser.add_argument("--runs", type=int, default=20, help="pills, for each camera (20)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    report: dict[str, object] = {"machine": this_machine().model_dump(), "runs": arguments.runs}
    print("| photos | threads | " + " | ".join(f"{step}, ms" for step in STEPS) + " | refused |")
    print("|---|---:" + "|---:" * (len(STEPS) + 1) + "|")
    for camera in CAMERAS:
        pills = invent_pills(arguments.runs, SEED)
        files = [photos_of(pill, camera, number) for number, pill in enumerate(pills)]
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            times_ms, n_refused = measured(arguments.bundle, arguments.references, threads, files)
            p50, worst = np.median(times_ms, axis=0), times_ms.max(axis=0)
            report[f"{camera}, {threads} threads"] = {
                "p50": dict(zip(STEPS, p50, strict=True)),
                "worst": dict(zip(STEPS, worst, strict=True)),
                "refused": n_refused,
            }
            cells = " | ".join(f"{a:.0f} ({b:.0f})" for a, b in zip(p50, worst, strict=True))
            print(f"| {camera} | {threads} | {cells} | {n_refused} |", flush=True)
    print(f"\nmedian (worst) of {arguments.runs} pills, {arguments.references} references")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def photos_of(pill: InventedPill, camera: str, number: int) -> list[bytes]:
    """Three to enrol and one to name, as files."""
    width, height, form = CAMERAS[camera]
    rng = np.random.default_rng([SEED, number])
    close_px = round(PILL_SHARE * height)
    files = []
    for side in (*SIDES, "front"):
        face = render_face(pill, side, rng)
        close = photograph_pill(face, draw_setting(rng), min(close_px, 480), rng)
        close = cv2.resize(close, (close_px, close_px), interpolation=cv2.INTER_CUBIC)
        above, left = (height - close_px) // 2, (width - close_px) // 2
        room = ((above, height - close_px - above), (left, width - close_px - left), (0, 0))
        written = io.BytesIO()
        Image.fromarray(np.pad(close, room, mode="edge")).save(written, form, quality=92)
        files.append(written.getvalue())
    return files


def measured(
    bundle: Path, n_references: int, threads: int, files: list[list[bytes]]
) -> tuple[np.ndarray, int]:
    """Milliseconds (runs, STEPS), and how many pills needed a reason."""
    rows, n_refused = [], 0
    with tempfile.TemporaryDirectory() as home:
        service = Service(bundle, Path(home), threads)
        fill_up(service.identifier.gallery.bundled, n_references)
        for number, (*photos, probe) in enumerate(files):
            start_s, cpu_s = time.perf_counter(), time.process_time()
            named = [(f"{n}", decode_image(data, name=f"{n}")) for n, data in enumerate(photos)]
            decoded_s = time.perf_counter()
            try:
                done = service.enrol(
                    f"pill-{number}", named, SIDES, datetime.now(UTC), reason="measured"
                )
            except PhotosRefused:  # the locator finds no pill, or several: nothing is enrolled
                n_refused += 1
                continue
            enrolled_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
            n_refused += bool(done.overridden)
            frame = decode_image(probe, name="probe")
            probe_s, probe_cpu_s = time.perf_counter(), time.process_time()
            service.look(frame)
            named_s, cpu_s = time.perf_counter(), cpu_s + time.process_time() - probe_cpu_s
            steps_s = (decoded_s - start_s, enrolled_s - decoded_s, named_s - probe_s)
            rows.append([*steps_s, sum(steps_s), cpu_s])
        service.close()
    return 1000 * np.array(rows), n_refused


if __name__ == "__main__":
    main()
