"""Live pictures of five pills: frames a second, delay and memory of a device, over minutes.

    python benchmarks/device_live.py [--bundle DIR] [--minutes 10] [--rate 30] [--json FILE]

A page sends frames of 640 x 480 over its socket to a `pilltrack serve` on the same machine, as a
camera gives them, whether or not the last has been answered: what the device cannot look at in
time it must drop. The scene shakes and has noise of its own in each frame. The delay is that
from sending a frame to its answer. Memory is read each second; it is flat if that of the last
tenth of the time is within 10 MB of that of the second tenth. Exit code 1 if a promise is broken.
Needs the training install.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from running_device import Frame, jpeg, rss_mb, running_device, scene_with
from websockets.asyncio.client import ClientConnection, connect

from pilltrack.core.bench import this_machine
from pilltrack.core.identify import STARTER_BUNDLE

N_PILLS, N_FRAMES = 5, 60
MIN_RATE, MAX_GROWTH_MB = 15.0, 10.0
WARM_UP_S = 3.0
SHAKE_PX, NOISE = 6, 3.0


@dataclass
class Seen:
    """What came back, and when."""

    sent_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    delay_ms: list[float] = field(default_factory=list)
    n_pills: list[int] = field(default_factory=list)
    dropped: int = 0
    rss_mb: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE, help="(the starter)")
    parser.add_argument("--references", type=int, default=10_000, help="of its gallery (10000)")
    parser.add_argument("--minutes", type=float, default=10.0, help="(10)")
    parser.add_argument("--rate", type=float, default=30.0, help="frames sent a second (30)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    frames = shaken(scene_with(N_PILLS, arguments.bundle))
    with running_device(arguments.bundle, arguments.references) as (address, pid):
        seen = asyncio.run(watched(address, pid, frames, 60 * arguments.minutes, arguments.rate))
    report = {"machine": this_machine().model_dump(), **vars(arguments), **summary(seen)}
    print("| sent/s | answered/s | delay, ms | pills a frame | dropped | memory, MB | grown, MB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {arguments.rate:.0f} | {report['answered_per_s']:.1f} "
        f"| {report['delay_ms']['p50']:.0f} ({report['delay_ms']['p99']:.0f}) "
        f"| {report['pills']:.2f} | {100 * report['dropped_share']:.0f} % "
        f"| {report['rss_mb'][-1]:.0f} | {report['grown_mb']:+.1f} |\n\np50 (p99)"
    )
    if arguments.json:
        text = json.dumps(report, indent=1, default=str) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    if report["answered_per_s"] < MIN_RATE or report["grown_mb"] > MAX_GROWTH_MB:
        sys.exit(f"promised: {MIN_RATE:.0f} frames a second and at most {MAX_GROWTH_MB:.0f} MB")


def shaken(scene: Frame) -> list[bytes]:
    """A second or two of the scene as JPEG, in a hand that is not quite still."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(N_FRAMES):
        x, y = rng.uniform(-SHAKE_PX, SHAKE_PX, 2)
        moved = cv2.warpAffine(
            scene, np.array([[1, 0, x], [0, 1, y]]), scene.shape[1::-1],
            borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        noisy = moved + rng.normal(0, NOISE, moved.shape)
        frames.append(jpeg(noisy.round().clip(0, 255).astype(np.uint8)))
    return frames


async def watched(address: str, pid: int, frames: list[bytes], seconds: float, rate: float) -> Seen:
    """Send `rate` frames a second, without waiting for answers, and gather what comes back."""
    seen = Seen()
    async with connect(f"ws://{address}/api/v1/live", compression=None) as socket:
        gathering = [asyncio.create_task(answers(socket, seen)),
                     asyncio.create_task(memory(pid, seen))]  # fmt: skip
        start_s = time.perf_counter()
        for number, frame in enumerate(itertools.cycle(frames)):
            due_s = start_s + number / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if due_s > start_s + seconds:
                break
            seen.sent_s.append(time.perf_counter())
            await socket.send(frame)
        await asyncio.sleep(1)  # the last answers
        for task in gathering:
            if task.done():
                task.result()  # what went wrong
            task.cancel()
    return seen


async def answers(socket: ClientConnection, seen: Seen) -> None:
    """Note each answer; frames looked at and frames dropped before it say which frame it is for."""
    async for message in socket:
        now_s = time.perf_counter()
        answer = json.loads(message)
        seen.dropped = answer["dropped"]
        which = answer["frame"] + answer["dropped"] - 1
        seen.answered_s.append(now_s)
        seen.delay_ms.append(1000 * (now_s - seen.sent_s[which]))
        seen.n_pills.append(len(answer["pills"]))


async def memory(pid: int, seen: Seen) -> None:
    """Read it each second."""
    while True:
        seen.rss_mb.append(rss_mb(pid))
        await asyncio.sleep(1)


def summary(seen: Seen) -> dict[str, Any]:
    """Figures after the first seconds."""
    begin_s = seen.answered_s[0] + WARM_UP_S
    first = next(n for n, at_s in enumerate(seen.answered_s) if at_s >= begin_s)
    p50, p99, most = np.quantile(seen.delay_ms[first:], (0.5, 0.99, 1.0))
    tenth = max(1, len(seen.rss_mb) // 10)
    grown_mb = np.median(seen.rss_mb[-tenth:]) - np.median(seen.rss_mb[tenth : 2 * tenth])
    return {
        "answered_per_s": (len(seen.answered_s) - first) / (seen.answered_s[-1] - begin_s),
        "delay_ms": {"p50": float(p50), "p99": float(p99), "max": float(most)},
        "pills": float(np.mean(seen.n_pills[first:])),
        "dropped_share": seen.dropped / len(seen.sent_s),
        "grown_mb": float(grown_mb),
        "rss_mb": [round(value, 1) for value in seen.rss_mb],
    }


if __name__ == "__main__":
    main()
