"""Frames of a camera at the device, or of a video file in its place: always the newest only.

A thread reads as fast as the source gives and keeps one frame. Whoever looks later sees what is
now before the lens; what was not looked at in time is dropped and never queued. A camera that is
unplugged gives nothing until it is there again.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.errors import InputRejected

log = logging.getLogger(__name__)

Frame = NDArray[np.uint8]  # (H, W, 3) RGB
STALE_S = 2.0  # a frame that is older is not what is before the lens
GONE_S = 5.0  # without a frame: the camera is opened again
PAUSE_S = 0.1  # between reads without a frame
RETRY_S = 2.0  # between attempts to open it again


class Camera:
    """An open source of frames. Use it as a context manager, or call `close`.

    `source` is the number of a camera ("0"), its device file, or a video file, which is played at
    its own speed and begins again at its end. Raises InputRejected when it gives no frame.
    """

    def __init__(self, source: str, *, width_px: int = 640, height_px: int = 480) -> None:
        self.source, self._size_px = source, (width_px, height_px)
        self._is_file = Path(source).is_file()
        self._capture = self._open()
        frame = self._read()
        if frame is None:
            self._capture.release()
            raise InputRejected(
                f"camera {source!r}",
                found="no frame",
                expected="the number or device file of a camera, or a video file",
                remedy="Plug the camera in, name another with --camera, and check that this user "
                "may read the device.",
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS) if self._is_file else 0.0
        self._pause_s = 1 / min(rate, 60.0) if rate > 0 else 0.0  # a file's own speed
        self._stale_s = max(STALE_S, 2 * self._pause_s)
        self._newest, self._number, self._at_s = frame, 1, time.monotonic()
        self._stopped = False
        self._fresh = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    @property
    def gives_frames(self) -> bool:
        """False while it is gone."""
        return time.monotonic() - self._at_s < self._stale_s

    def newest(self, after: int, timeout_s: float) -> tuple[int, Frame] | None:
        """Wait for a frame with a number above `after`; None when none came in time."""
        with self._fresh:
            self._fresh.wait_for(
                lambda: (self._number > after and self.gives_frames) or self._stopped, timeout_s
            )
            if self._stopped or self._number <= after or not self.gives_frames:
                return None
            return self._number, self._newest

    def close(self) -> None:
        """Stop reading. Harmless when repeated."""
        with self._fresh:
            self._stopped = True
            self._fresh.notify_all()
        self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._read_on()
        finally:
            self._capture.release()

    def _read_on(self) -> None:
        is_gone = False
        while not self._stopped:
            start_s = time.monotonic()
            frame = self._read()
            if frame is not None:
                if is_gone:
                    log.info("the camera %s is there again", self.source)
                is_gone = False
                with self._fresh:
                    self._newest, self._number = frame, self._number + 1
                    self._at_s = time.monotonic()
                    self._fresh.notify_all()
                time.sleep(max(0.0, self._pause_s - (time.monotonic() - start_s)))
            elif time.monotonic() - self._at_s < GONE_S:
                time.sleep(PAUSE_S)
            else:
                if not is_gone:
                    log.warning("the camera %s gives no frames", self.source)
                is_gone = True
                self._open_again()

    def _open_again(self) -> None:
        """Wait, and open a source that is gone once more."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._stopped, RETRY_S)
        if not self._stopped:
            self._capture.release()
            self._capture = self._open()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(int(self.source) if self.source.isdecimal() else self.source)
        if not self._is_file:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size_px[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size_px[1])
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    def _read(self) -> Frame | None:
        done, frame = self._capture.read()
        if not done and self._is_file:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            done, frame = self._capture.read()
        return np.ascontiguousarray(frame[:, :, ::-1]) if done else None
