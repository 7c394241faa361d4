"""A device that listens on a free port of this machine, for clients that need a real one."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from pilltrack.edge.app import create_app
from pilltrack.edge.follow import Follower, Following, Timer
from pilltrack.edge.mqtt import Events
from pilltrack.edge.serve import listen
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings
from pilltrack.edge.slots import Slots


@contextmanager
def serving(settings: Settings, slots: Slots | None = None) -> Iterator[str]:
    """The address of a running device, until the block ends; the settings' port does not count.

    It follows `slots`, and looks for no updates itself.
    """
    service = Service(settings.bundle, settings.home, threads=1)
    following: Following | None = None
    if slots is not None:
        timer = Timer(slots, settings.home, random.Random(0))
        timer.first_wait_s = lambda: 1e6  # type: ignore[method-assign]
        following = Following(Follower(service, slots), timer)
    with listen("127.0.0.1", 0) as listening:
        events = Events(settings.mqtt) if settings.mqtt is not None else None
        app = create_app(service, settings, events=events, slots=slots)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            if following is not None:
                following.close()


def as_png(photo: NDArray[np.uint8]) -> bytes:
    """A photo as it is uploaded."""
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "png")
    return buffer.getvalue()
