"""Live pictures and large photos, frame after frame: what is late is dropped, no memory is kept."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from websockets.sync.client import connect

from pilltrack.edge.service import Look, Service
from tests.edge.conftest import noise, png

LIVE = "ws://127.0.0.1:8000/api/v1/live"


def test_frames_that_come_while_one_is_looked_at_are_dropped_but_the_newest(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    look, widths = Service.look, []

    def slow(self: Service, frame: np.ndarray, **more: bool) -> Look:
        widths.append(frame.shape[1])
        inside.set()
        assert go_on.wait(10)
        return look(self, frame, **more)

    monkeypatch.setattr(Service, "look", slow)
    with client.websocket_connect(LIVE) as socket:
        socket.send_bytes(png(noise()))
        assert inside.wait(10)
        for width in (30, 31, 32, 33):
            socket.send_bytes(png(noise()[:, :width]))
        time.sleep(0.3)  # all have arrived
        go_on.set()
        answers = [socket.receive_json() for _ in range(2)]
    assert widths == [42, 33]
    # Frames looked at and dropped before it say which frame an answer is for: the first, the fifth.
    assert [(answer["frame"], answer["dropped"]) for answer in answers] == [(1, 0), (2, 3)]


@pytest.fixture
def device(bundle: Path, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a `pilltrack serve`."""
    command = [str(Path(sys.executable).with_name("pilltrack")), "serve", "--port=0"]
    command += [f"--bundle={bundle}", f"--home={tmp_path / 'home'}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("the service did not start")
        yield found[0], process.pid
        process.terminate()
        process.wait(timeout=20)


def test_hundreds_of_live_frames_leave_no_memory_behind(device: tuple[str, int]) -> None:
    address, pid = device
    random = np.random.default_rng(0)
    frames = [
        jpeg(random.integers(0, 256, (480, 640, 3), dtype=np.uint8) // 4 + 96) for _ in range(8)
    ]
    with connect(f"ws://{address}/api/v1/live") as socket:

        def watch(n_frames: int) -> None:
            for number in range(n_frames):
                socket.send(frames[number % 8])
                assert "pills" in json.loads(socket.recv())

        watch(50)
        before_mb = rss_mb(pid)
        watch(250)  # of 0.9 MB each, as pixels
        assert rss_mb(pid) - before_mb < 8


def test_photos_of_a_phone_leave_no_memory_behind(device: tuple[str, int]) -> None:
    """One after another they once left 130 MB by the fiftieth, eight at a time 1.3 GB."""
    address, pid = device
    photo = jpeg(np.full((3000, 4000, 3), 128, np.uint8))

    def send() -> None:
        answer = httpx.post(f"http://{address}/api/v1/identify", files={"image": photo}, timeout=60)
        assert answer.status_code == 200

    send()
    before_mb = rss_mb(pid)
    for _ in range(8):
        send()
    assert rss_mb(pid) - before_mb < 30


def jpeg(photo: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(photo).save(written, "jpeg", quality=80)
    return written.getvalue()


def rss_mb(pid: int) -> float:
    """Memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
