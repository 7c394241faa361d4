"""What an update costs: bytes that are fetched, seconds of its steps, and looks that notice it.

    python benchmarks/update.py [--json FILE]

A device with the starter bundle follows a directory. Three bundles are published one after another:
one whose gallery holds 300 more pills, one whose rule alone differs, and one whose locator does.
Then a device serves 6 clients that ask without a pause, for some seconds each while nothing
happens, while an update's self-test runs beside it, and while it changes bundles all the time.
Exit code 1 if any request failed. Needs the training install.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from device_gallery import SPREAD, filled_bundle, made_up
from running_device import JPEG_QUALITY, scene_with, serving

from pilltrack.core.bench import this_machine
from pilltrack.core.bundle import (
    GALLERY_FILE,
    LOCATOR_FILE,
    PROBES_FILE,
    read_bundle,
    write_bundle,
)
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.core.probes import read_probes
from pilltrack.edge.fetch import Fetcher
from pilltrack.edge.selftest import SelfTest, self_test_apart
from pilltrack.edge.slots import Slots, digest_of_manifest
from pilltrack.edge.source import UpdateSource, join
from pilltrack.edge.updater import update
from pilltrack.pipeline import keys
from pilltrack.pipeline.publish import Publisher
from pilltrack.pipeline.store import DirectoryStore

SEED = 40_000
N_CLIENTS, PHASE_S = 6, 8.0
EVERY_S = 1.0  # a follower looks as often


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        bundles = make_bundles(place)
        report: dict[str, Any] = {
            "machine": this_machine().model_dump(),
            "updates": [*measured_updates(place, bundles)],
            "under_load": measured_load(place, bundles["gallery"]),
        }
    for row in report["updates"]:
        sys.stdout.write(
            f"{row['changed']:8} {row['received_bytes'] / 1e6:5.2f} of {row['bytes'] / 1e6:.2f} MB,"
            f" {row['self_test_s']:.2f} s of {row['seconds']:.2f} s self-test\n"
        )
    for phase, row in report["under_load"].items():
        sys.stdout.write(
            f"{phase:10} {row['answers']:5} answers, {row['failed']} failed,"
            f" {row['p50_ms']:.0f} ms p50, {row['p99_ms']:.0f} ms p99, {row['max_ms']:.0f} ms max\n"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(any(row["failed"] for row in report["under_load"].values()))


def make_bundles(place: Path) -> dict[str, Path]:
    """Changed part -> a bundle that differs from the one before in that part."""
    rng = np.random.default_rng(SEED)
    dim = read_bundle(STARTER_BUNDLE).model.embedding_dim
    (place / "filled").mkdir()
    filled = filled_bundle(STARTER_BUNDLE, place / "filled", *made_up(1200, 300, dim, SPREAD, rng))
    rule = changed(filled, place / "rule", threshold=0.001)
    locator = place / "locator.tflite"
    content = bytearray((filled / LOCATOR_FILE).read_bytes())
    content += bytes(16)  # LiteRT reads what the header says
    locator.write_bytes(content)
    return {
        "gallery": filled,
        "rule": rule,
        "locator": changed(rule, place / "located", locator=locator),
    }


def changed(bundle: Path, to: Path, *, threshold: float = 0.0, locator: Path | None = None) -> Path:
    """A bundle that differs in its rule, or its locator."""
    manifest = read_bundle(bundle)
    probes = read_probes(bundle / PROBES_FILE)
    rule = manifest.calibration
    rule = rule.model_copy(update={"threshold": rule.threshold + threshold})
    write_bundle(
        to,
        name=manifest.name,
        locator=locator or bundle / LOCATOR_FILE,
        min_confidence=manifest.locator.min_confidence,
        model=bundle / manifest.model.file,
        gallery=bundle / GALLERY_FILE,
        probe_crops=probes.crops,
        probe_frames=probes.frames,
        calibration=rule,
        pills=manifest.pills,
        git_commit=manifest.git_commit,
        data_digest=manifest.data_digest,
        params_digest=manifest.params_digest,
    )
    return to


def measured_updates(place: Path, bundles: dict[str, Path]) -> list[dict[str, Any]]:
    """Publish and update, one bundle after another."""
    now = datetime.now(UTC)
    keys.init(place / "keys", now=now, passphrase=None, root_keys=1, threshold=1)
    publisher = Publisher(DirectoryStore(place / "releases"), place / "keys")
    slots = Slots(place / "home", STARTER_BUNDLE)
    source = UpdateSource(url=str(place / "releases"))
    join(slots, source, (place / "keys" / "1.root.json").read_bytes())
    rows = []
    for part, bundle in bundles.items():
        publisher.publish(bundle, "stable")
        took: list[float] = []
        start_s = time.perf_counter()
        outcome = update(slots, source, partial(_timed, took, place / "home"), now, Fetcher())
        assert outcome.kind == "switched", outcome
        slots.confirm(digest_of_manifest(bundle))
        rows.append(
            {
                "changed": part,
                "bytes": sum(path.stat().st_size for path in bundle.iterdir()),
                "received_bytes": outcome.received_bytes,
                "seconds": round(time.perf_counter() - start_s, 3),
                "self_test_s": round(took[0], 3),
            }
        )
    return rows


def _timed(took: list[float], home: Path, slot: Path) -> SelfTest:
    start_s = time.perf_counter()
    tested = self_test_apart(slot, home)
    took.append(time.perf_counter() - start_s)
    return tested


def measured_load(place: Path, bundle: Path) -> dict[str, dict[str, float]]:
    """Ask a device in three phases."""
    home = place / "served"
    slots = Slots(home, STARTER_BUNDLE)
    digest = digest_of_manifest(bundle)
    shutil.copytree(bundle, slots.slot(digest))
    over = threading.Event()

    def test_all_the_time() -> None:
        while not over.is_set():
            self_test_apart(bundle, None)

    def change_all_the_time() -> None:
        while not over.wait(EVERY_S):
            slots.switch(digest, datetime.now(UTC))
            over.wait(EVERY_S)
            slots.roll_back(digest, "benchmark", again=True)

    phases: dict[str, Callable[[], object]] = {
        "idle": over.wait,
        "self-test": test_all_the_time,
        "changing": change_all_the_time,
    }
    found = {}
    frame = cv2.imencode(
        ".jpg", scene_with(5, STARTER_BUNDLE)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )[1].tobytes()
    with serving(home, None) as (address, _):
        for phase, meanwhile in phases.items():
            over.clear()
            beside = threading.Thread(target=meanwhile)
            beside.start()
            found[phase] = _asked(f"http://{address}", frame)
            over.set()
            beside.join()
    return found


def _asked(address: str, frame: bytes) -> dict[str, float]:
    times_ms: list[float] = []
    failed: list[str] = []
    until_s = time.perf_counter() + PHASE_S

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            while time.perf_counter() < until_s:
                start_s = time.perf_counter()
                files = {"image": ("frame.jpg", frame, "image/jpeg")}
                try:
                    status = client.post("/api/v1/identify", files=files).status_code
                except httpx.HTTPError as error:
                    failed.append(str(error))
                    continue
                if status == 429:  # more than this device can look at: that is an answer
                    time.sleep(0.05)
                elif status != 200:
                    failed.append(str(status))
                else:
                    times_ms.append(1000 * (time.perf_counter() - start_s))

    askers = [threading.Thread(target=ask) for _ in range(N_CLIENTS)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    p50, p99 = np.percentile(times_ms, [50, 99])
    return {
        "answers": len(times_ms),
        "failed": len(failed),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(max(times_ms), 1),
    }


if __name__ == "__main__":
    main()
