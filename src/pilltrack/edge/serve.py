"""Run the device's web service until it is told to stop."""

from __future__ import annotations

import ctypes
import logging
import random
import socket
from functools import partial

import uvicorn

from pilltrack.core.errors import BundleRejected, StageFailed
from pilltrack.edge.app import create_app
from pilltrack.edge.camera import Camera
from pilltrack.edge.events import UpdateEvent
from pilltrack.edge.follow import Follower, Following, Timer
from pilltrack.edge.happenings import Happening
from pilltrack.edge.mqtt import Events
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings
from pilltrack.edge.slots import Slots
from pilltrack.edge.source import SOURCE

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 4 * 1024 * 1024  # of one message on a socket
IDLE_S = 30
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
LARGE_BYTES = 2 * 1024 * 1024  # a live frame is smaller


def serve(settings: Settings) -> None:
    """Open bundle, home and camera, and answer requests.

    Raises StageFailed when the address is taken or not this machine's; BundleRejected,
    InputRejected and StageFailed as `Service` and `Camera`.
    """
    return_large_memory()
    listening = listen(settings.host, settings.port)
    slots = Slots(settings.home, settings.bundle) if settings.follow else None
    _warn_of_missed_updates(settings)
    following: Following | None = None
    try:
        camera = Camera(settings.camera) if settings.camera is not None else None
        events = Events(settings.mqtt) if settings.mqtt is not None else None
        # Last: what is wrong with camera or broker must not count against a bundle on trial.
        service = _opened(settings, slots)
        if slots is not None:
            follower = Follower(service, slots, partial(_tell, service, events))
            chance = random.Random()  # noqa: S311 - when to look is no secret
            following = Following(follower, Timer(slots, settings.home, chance))
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(service, settings, camera, events, slots),
                log_level="warning",
                access_log=False,  # addresses of the page may hold names of pills
                server_header=False,
                timeout_keep_alive=IDLE_S,
                ws_max_size=MAX_FRAME_BYTES,
                timeout_graceful_shutdown=5,
            )
        )
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info("the page is at http://%s:%d (Ctrl-C ends)", shown, listening.getsockname()[1])
        server.run(sockets=[listening])
    finally:
        listening.close()
        if following is not None:
            following.close()


def _warn_of_missed_updates(settings: Settings) -> None:
    source = Slots(settings.home, settings.bundle).root / SOURCE
    if not settings.follow and source.exists():
        log.warning(
            "%s says whom this device follows, but --bundle names what is served: it takes no "
            "updates; leave --bundle out to follow",
            source,
        )


def _opened(settings: Settings, slots: Slots | None) -> Service:
    """The service of the bundle that is active, or of the one before where it cannot be opened."""
    while slots is not None:
        active = slots.start().active
        try:
            return Service(slots.slot(active), settings.home, settings.threads)
        except BundleRejected as error:
            if active is None:
                raise
            slots.roll_back(active, "cannot be opened", str(error))
    return Service(settings.bundle, settings.home, settings.threads)


def _tell(service: Service, events: Events | None, happening: Happening) -> None:
    if events is not None:
        said = happening.model_dump()
        events.publish(UpdateEvent(bundle=service.identifier.manifest.name, **said))


def return_large_memory() -> None:
    """Have what a photo took given back to the system as soon as it is freed.

    glibc keeps freed memory for each thread and learns to keep ever larger pieces: with photos of
    12 megapixels, one after another, the process grew by 64 MB every fifty.
    """
    c = ctypes.CDLL(None)
    if hasattr(c, "mallopt"):  # other C libraries keep nothing
        c.mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; StageFailed when the address is taken or not this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        # Only if its protocol is named does asyncio send at once; else answers wait for 40 ms.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # who asks before the service is ready waits a moment
    except OSError as error:
        raise StageFailed(
            f"address {host}:{port}",
            found=error.strerror or str(error),
            expected="an address of this machine whose port is free",
            remedy="Name another --port or --host.",
        ) from error
    return listening
