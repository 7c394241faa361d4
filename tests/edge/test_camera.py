"""A camera gives the newest frame, nothing while it is unplugged, and frames once it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from pilltrack.core.errors import InputRejected
from pilltrack.edge import camera as module
from pilltrack.edge.camera import Camera


class Plug:
    """What stands in for every capture: its frames are of one blue, and it can be pulled."""

    def __init__(self) -> None:
        self.is_in, self.opened, self.blue = True, 0, 1

    def open(self, _: object) -> Plug:
        self.opened += 1
        self.was_in = self.is_in  # a device that was opened while it was gone stays dead
        return self

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.005)
        if not self.is_in:
            self.was_in = False
        if not self.was_in:
            return False, None
        return True, np.full((4, 6, 3), (self.blue, 0, 0), np.uint8)

    def set(self, _: int, __: float) -> bool:
        return True

    def release(self) -> None:
        pass


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    plug = Plug()
    monkeypatch.setattr(cv2, "VideoCapture", plug.open)
    monkeypatch.setattr(module, "STALE_S", 0.3)
    monkeypatch.setattr(module, "GONE_S", 0.5)
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    return plug


@pytest.fixture
def camera(plug: Plug) -> Iterator[Camera]:
    with Camera("0") as camera:
        yield camera


def test_each_frame_is_newer_and_rgb(camera: Camera) -> None:
    first = camera.newest(0, 5)
    assert first is not None
    second = camera.newest(first[0], 5)
    assert second is not None
    assert second[0] > first[0]
    assert second[1][0, 0].tolist() == [0, 0, 1]


def test_nobody_sees_what_was_before_the_lens_of_a_camera_that_is_gone(
    camera: Camera, plug: Plug
) -> None:
    plug.is_in = False
    until(lambda: not camera.gives_frames)
    assert camera.newest(0, 0.1) is None


def test_a_camera_that_comes_back_is_opened_again(camera: Camera, plug: Plug) -> None:
    plug.is_in = False
    until(lambda: not camera.gives_frames and plug.opened >= 3)
    plug.is_in, plug.blue = True, 9
    found = camera.newest(0, 5)
    assert found is not None
    assert found[1][0, 0].tolist() == [0, 0, 9]
    assert camera.gives_frames


def test_a_camera_that_gives_nothing_at_the_start_is_refused(plug: Plug) -> None:
    plug.is_in = False
    with pytest.raises(InputRejected, match="camera '0': no frame"):
        Camera("0")


def test_closing_does_not_wait_for_a_camera_that_is_gone_nor_open_it(
    plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 30.0)
    camera = Camera("0")
    plug.is_in = False
    time.sleep(0.7)  # it is to be opened again
    start_s = time.monotonic()
    camera.close()
    assert time.monotonic() - start_s < 4
    assert plug.opened == 1
    assert camera.newest(0, 0) is None


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")
