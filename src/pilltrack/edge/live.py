"""Live pictures over a socket: each is looked at once, the newest first, stale ones are dropped.

A browser sends JPEG frames of its own camera and gets one JSON answer for each that was looked at.
Where the device has a camera, the socket sends what that sees: a JPEG, then its answer. Names are
steadied over frames by one tracker for each socket. However many sockets there are, `hands` says
how many pictures are decoded and looked at at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import cv2
import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import WebSocket, WebSocketDisconnect
from numpy.typing import NDArray

from pilltrack.core.errors import ImageRejected
from pilltrack.core.image import decode_image
from pilltrack.edge.answers import LiveAnswer, milliseconds, tracked_answer
from pilltrack.edge.camera import Camera
from pilltrack.edge.service import Look, Service
from pilltrack.edge.tracking import Tracker

Frame = NDArray[np.uint8]
Seen = Callable[[Look, float], None]  # a look and the ms its decoding took
MAX_SIDE_PX = 1920
JPEG_QUALITY = 80
NEXT_FRAME_S = 5.0


async def from_browser(
    socket: WebSocket, service: Service, seen: Seen, hands: CapacityLimiter
) -> None:
    """Answer the frames of a browser until it leaves."""
    newest: list[bytes] = []
    arrived, n_dropped, left = asyncio.Event(), 0, False

    async def receive() -> None:
        nonlocal n_dropped, left
        try:
            while True:
                data = await socket.receive_bytes()
                n_dropped += len(newest)
                newest[:] = [data]
                arrived.set()
        except (WebSocketDisconnect, KeyError, RuntimeError):
            left = True
            arrived.set()

    receiving = asyncio.create_task(receive())
    tracker, number = Tracker(), 0
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            if left:
                return
            data, newest[:], before = newest[0], [], n_dropped
            number += 1
            try:
                frame, decode_ms = await to_thread.run_sync(_decoded, data, limiter=hands)
            except ImageRejected as error:
                await socket.send_json({"error": str(error)})
                continue
            look = await to_thread.run_sync(service.look, frame, limiter=hands)
            seen(look, decode_ms)
            answer = _answer(tracker, look, frame, decode_ms, number, before)
            await socket.send_text(answer.model_dump_json())
    except (WebSocketDisconnect, RuntimeError):
        return
    finally:
        receiving.cancel()


async def from_device(
    socket: WebSocket, service: Service, camera: Camera, seen: Seen, hands: CapacityLimiter
) -> None:
    """Send what the device's camera sees, and what it is, until the browser leaves."""
    tracker, number, last = Tracker(), 0, 0
    leaving = asyncio.create_task(_until_left(socket))
    try:
        while not leaving.done():
            found = await to_thread.run_sync(camera.newest, last, NEXT_FRAME_S)
            if found is None:
                await socket.send_json({"error": "the camera gives no frames"})
                return
            dropped, (last, frame) = max(0, found[0] - last - 1), found
            number += 1
            look = await to_thread.run_sync(service.look, frame, limiter=hands)
            seen(look, 0.0)
            jpeg = await to_thread.run_sync(_as_jpeg, frame, limiter=hands)
            await socket.send_bytes(jpeg)
            answer = _answer(tracker, look, frame, 0.0, number, dropped)
            await socket.send_text(answer.model_dump_json())
    except (WebSocketDisconnect, RuntimeError):
        return
    finally:
        leaving.cancel()


async def _until_left(socket: WebSocket) -> None:
    try:
        while True:
            await socket.receive_bytes()
    except (WebSocketDisconnect, KeyError, RuntimeError):
        return


def _answer(
    tracker: Tracker, look: Look, frame: Frame, decode_ms: float, number: int, dropped: int
) -> LiveAnswer:
    return LiveAnswer(
        frame=number,
        dropped=dropped,
        width=frame.shape[1],
        height=frame.shape[0],
        ms=milliseconds(look, decode_ms),
        pills=[tracked_answer(pill) for pill in tracker.update(look.pills)],
    )


def _decoded(data: bytes) -> tuple[Frame, float]:
    start_s = time.perf_counter()
    frame = decode_image(data, name="live frame", max_side_px=MAX_SIDE_PX)
    return frame, 1000 * (time.perf_counter() - start_s)


def _as_jpeg(frame: Frame) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, data = cv2.imencode(".jpg", frame[:, :, ::-1], quality)
    assert done
    return data.tobytes()
