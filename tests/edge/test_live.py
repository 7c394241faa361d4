"""Live pictures and large photos, frame after frame: what is late is dropped, no memory is kept."""

from __future__ import annotations

import contextlib
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

from pilltrack.edge.app import create_app
from pilltrack.edge.live import MAX_SIDE_PX
from pilltrack.edge.service import Look, Service
from pilltrack.edge.settings import Settings
from tests.edge.conftest import BASE, noise, png

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


def test_a_frame_that_is_too_large_is_refused_by_its_header(client: TestClient) -> None:
    large = png(np.zeros((16, MAX_SIDE_PX + 1, 3), np.uint8))
    with client.websocket_connect(LIVE) as socket:
        socket.send_bytes(large[:60])  # nothing to decode
        assert f"at most {MAX_SIDE_PX} on a side" in socket.receive_json()["error"]
        socket.send_bytes(png(noise()))
        assert socket.receive_json()["frame"] == 2


def test_many_sockets_look_at_no_more_pictures_at_once_than_may_be(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, inside, most = Service.look, 0, 0
    counting = threading.Lock()

    def counted(self: Service, frame: np.ndarray, **more: bool) -> Look:
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        time.sleep(0.2)
        with counting:
            inside -= 1
        return look(self, frame, **more)

    monkeypatch.setattr(Service, "look", counted)
    settings = Settings(bundle=bundle, home=tmp_path / "home", max_at_once=1)
    app = create_app(Service(bundle, settings.home, threads=1), settings)
    with TestClient(app, base_url=BASE) as client, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(client.websocket_connect(LIVE)) for _ in range(3)]
        for socket in sockets:
            socket.send_bytes(png(noise()))
        assert [socket.receive_json()["frame"] for socket in sockets] == [1, 1, 1]
    assert most == 1


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
