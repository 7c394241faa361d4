"""A device that listens on a free port of this machine, for clients that need a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from pilltrack.edge.app import create_app
from pilltrack.edge.mqtt import Events
from pilltrack.edge.serve import listen
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The address of a running device, until the block ends; the settings' port does not count."""
    service = Service(settings.bundle, settings.home, threads=1)
    with listen("127.0.0.1", 0) as listening:
        events = Events(settings.mqtt) if settings.mqtt is not None else None
        app = create_app(service, settings, events=events)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
