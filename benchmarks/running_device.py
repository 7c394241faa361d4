"""A `pilltrack serve` of its own process, and scenes to show it: what device benchmarks share."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
from device_gallery import SPREAD, filled_bundle, made_up
from numpy.typing import NDArray

from pilltrack.core.bundle import read_bundle
from pilltrack.core.identify import open_locator
from pilltrack.edge.serve import listen
from pilltrack.pipeline.locator_data import rendered_cut_outs, scene_of

Frame = NDArray[np.uint8]
SEED = 20_000  # no training run uses these scenes
FRAME = (640, 480)
START_S = 60.0
JPEG_QUALITY = 85  # as the page sends


@contextmanager
def running_device(bundle: Path, n_references: int) -> Iterator[tuple[str, int]]:
    """The address, such as 127.0.0.1:1234, and the process of a device.

    Its home is empty; its gallery has `n_references` made-up references, twenty of each pill.
    """
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(SEED)
        dim, n_pills = read_bundle(bundle).model.embedding_dim, max(1, n_references // 20)
        references, embeddings = made_up(n_references, n_pills, dim, SPREAD, rng)
        filled = filled_bundle(bundle, Path(directory), references, embeddings)
        with serving(Path(directory) / "home", filled) as (address, pid):
            yield address, pid


@contextmanager
def serving(home: Path, bundle: Path | None) -> Iterator[tuple[str, int]]:
    """Address and process of a device with this home; without a bundle it follows updates."""
    with listen("127.0.0.1", 0) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(Path(sys.executable).with_name("pilltrack")), "serve",
               f"--home={home}", f"--port={address.rpartition(':')[2]}"]  # fmt: skip
    command += [] if bundle is None else [f"--bundle={bundle}"]
    with subprocess.Popen(command) as process:
        try:
            _wait(f"http://{address}/readyz", process)
            yield address, process.pid
        finally:
            process.terminate()


def rss_mb(pid: int) -> float:
    """Memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def scene_with(n_pills: int, bundle: Path) -> Frame:
    """Rendered pills on a table, 640 x 480: the first scene in which the locator finds them all.

    The same each time for the same locator. Raises AssertionError when there is none in 200.
    """
    locator = open_locator(bundle, threads=2)
    cutouts = rendered_cut_outs(20, SEED)
    for number in range(200):
        scene = scene_of(cutouts, FRAME[0], (SEED, 97, number), n_pills)
        fits = scene.frame.shape[:2] == FRAME[::-1] and len(scene.boxes) == n_pills
        if fits and len(locator.locate(scene.frame)) == n_pills:
            return scene.frame
    raise AssertionError("no such scene")


def jpeg(frame: Frame) -> bytes:
    """A frame as the page sends it."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[:, :, ::-1]), quality)
    assert done
    return data.tobytes()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx.get(address).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the device did not start")
