"""The device's web service: pages, the API under /api/v1, live pictures, health and metrics.

Errors are problem+json (RFC 9457) with what to do next. Photos are looked at by a bounded number
of requests at a time; the others are told to come back (429) and never queue without end.
"""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import anyio
import numpy as np
from anyio import to_thread
from fastapi import FastAPI, File, Form, Query, Request, Response, UploadFile, WebSocket
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from pilltrack import __version__
from pilltrack.core.errors import InputRejected, PillTrackError
from pilltrack.core.image import decode_image
from pilltrack.edge import live
from pilltrack.edge.answers import (
    CheckAnswer,
    EnrolledAnswer,
    EnrolmentProblem,
    GalleryAnswer,
    GalleryPill,
    HistoryAnswer,
    LookAnswer,
    Problem,
    StatusAnswer,
    fault_answers,
    gallery_pill,
    look_answer,
    recorded_answer,
    update_answer,
)
from pilltrack.edge.camera import Camera
from pilltrack.edge.check import as_json
from pilltrack.edge.enrol import Enrolled, PhotosRefused
from pilltrack.edge.events import (
    ActionEvent,
    CheckEvent,
    EnrolEvent,
    Event,
    ForgetEvent,
    IdentifyEvent,
)
from pilltrack.edge.guard import COOKIE, HEADERS, Guard, cookie_of, is_token, problem
from pilltrack.edge.mqtt import EventMetrics, Events
from pilltrack.edge.record import MAX_ACTION_LENGTH, MAX_NOTE_LENGTH, MAX_REASON_LENGTH
from pilltrack.edge.service import Look, Service
from pilltrack.edge.settings import Settings
from pilltrack.edge.slots import Slots

STATIC = Path(__file__).parent / "static"
API = "/api/v1"
T = TypeVar("T")
MAX_PHOTOS = 20  # of one enrolment
MAX_LIST = 200_000  # characters of an expected list
PROBLEM = "application/problem+json"
PROBLEMS: dict[int | str, dict[str, Any]] = {  # what any request may be answered with
    code: {"model": Problem} for code in (401, 403, 421, 422, 429, 500, 503)
}
UPLOAD: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 408, 413)}
NAMED: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}
FAULTY: dict[int | str, dict[str, Any]] = {422: {"model": EnrolmentProblem | Problem}}


def create_app(
    service: Service,
    settings: Settings,
    camera: Camera | None = None,
    events: Events | None = None,
    slots: Slots | None = None,
) -> FastAPI:
    """The app around an open service; it closes all of them when it stops.

    `slots`: where the service's bundle comes from, if it is followed.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if camera is not None:
            camera.close()
        if events is not None:
            await to_thread.run_sync(events.close)
        service.close()

    app = FastAPI(
        title="PillTrack device",
        version=__version__,
        description="Finds and names pills; says unknown when it does not know.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    desk = _Desk(service, settings, events)
    _explain_errors(app)
    _add_health(app, service, desk)
    _add_session(app, settings)
    _add_looking(app, service, desk, camera, slots)
    _add_gallery(app, service, desk)
    _add_checking(app, service, desk)
    app.frontend("/", directory=STATIC, fallback=None)
    app.add_middleware(Guard, settings=settings)
    _describe_problems(app)
    return app


class Picture(Response):
    """A PNG."""

    media_type = "image/png"


class Metrics(Response):
    """What Prometheus reads."""

    media_type = "text/plain; version=0.0.4"


class _Desk:
    """Where looks are counted and told of, and more than `max_waiting` of them turned away."""

    def __init__(self, service: Service, settings: Settings, events: Events | None) -> None:
        self.events = events
        self.free = anyio.Semaphore(settings.max_waiting)
        self.hands = anyio.CapacityLimiter(settings.max_at_once)
        self.live = anyio.CapacityLimiter(settings.max_at_once)  # no enrolment holds these
        self.registry = CollectorRegistry()
        self.frames = 0
        labels = ["decision"]
        self.pills = Counter("pilltrack_pills", "Pills seen", labels, registry=self.registry)
        self.ms = Histogram(
            "pilltrack_look_seconds",
            "From a decoded frame to decisions",
            buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2),
            registry=self.registry,
        )
        self.refused = Counter("pilltrack_busy", "Requests told to wait", registry=self.registry)
        references = Gauge("pilltrack_references", "Enrolled references", registry=self.registry)
        references.set_function(lambda: float(len(service.identifier.gallery)))
        if events is not None:
            self.registry.register(EventMetrics(events))

    def seen(self, look: Look, _: float = 0.0) -> None:
        """Count a look."""
        self.frames += 1
        self.ms.observe((look.locate_ms + look.identify_ms) / 1000)
        for pill in look.pills:
            self.pills.labels(pill.decision.kind).inc()

    def tell(self, event: Event) -> None:
        """Send an event, where there is someone to be told."""
        if self.events is not None:
            self.events.publish(event)

    async def work(self, call: Callable[[], T]) -> T:
        """Run a call in a thread, or refuse with 429 when as many are at it as may."""
        try:
            self.free.acquire_nowait()
        except anyio.WouldBlock as error:
            self.refused.inc()
            raise HTTPException(429, "as many photos as this device can look at") from error
        try:
            return await to_thread.run_sync(call, limiter=self.hands)
        finally:
            self.free.release()


def _add_health(app: FastAPI, service: Service, desk: _Desk) -> None:
    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="A bundle is open and answers")
    async def readyz() -> dict[str, str]:
        return {"status": "ok", "bundle": service.identifier.manifest.name}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Metrics)
    async def metrics() -> Response:
        return Metrics(generate_latest(desk.registry))


def _add_session(app: FastAPI, settings: Settings) -> None:
    @app.post(f"{API}/session", status_code=204, responses=UPLOAD, summary="Sign in")
    async def sign_in(token: Annotated[str, Form(min_length=1, max_length=1000)]) -> Response:
        if settings.token and not is_token(settings, token):
            raise HTTPException(401, "another device's token")
        answer = Response(status_code=204)
        answer.set_cookie(
            COOKIE, cookie_of(settings.token), httponly=True, samesite="strict", max_age=86_400
        )
        return answer


def _add_looking(
    app: FastAPI, service: Service, desk: _Desk, camera: Camera | None, slots: Slots | None
) -> None:
    @app.get(f"{API}/status", summary="The device and its bundle")
    async def status() -> StatusAnswer:
        identifier = service.identifier
        rule, promise = identifier.rule, identifier.calibration
        return StatusAnswer(
            version=__version__,
            uptime_s=round(time.monotonic() - service.started_s, 1),
            bundle=identifier.manifest.name,
            git_commit=identifier.manifest.git_commit,
            space=identifier.manifest.space,
            pills=identifier.gallery.n_pills,
            references=len(identifier.gallery),
            local_references=len(identifier.gallery.local),
            threshold=rule.threshold,
            margin=rule.margin,
            promised_fpir=promise.fpir,
            promised_misnamed=promise.misnamed,
            calibrated_for_pills=promise.gallery_size,
            captures=promise.captures,
            camera=camera is not None and camera.gives_frames,
            frames=desk.frames,
            events=_connection(desk.events),
            events_waiting=desk.events.n_waiting if desk.events else 0,
            events_dropped=desk.events.n_dropped if desk.events else 0,
            update=None if slots is None else await to_thread.run_sync(update_answer, slots),
        )

    @app.post(f"{API}/identify", responses=UPLOAD, summary="Find and name the pills in a photo")
    async def identify(
        image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, BMP or TIFF")],
        crop: Annotated[bool, Query(description="the photo is nothing but one pill")] = False,
    ) -> LookAnswer:
        data, name = await image.read(), image.filename or "image"

        def look() -> LookAnswer:
            frame, decode_ms = _decoded(data, name)
            seen = service.look(frame, is_crop=crop)
            desk.seen(seen)
            answer = look_answer(seen, frame.shape[1], frame.shape[0], decode_ms)
            desk.tell(IdentifyEvent(**_now(seen.bundle), pills=answer.pills))
            return answer

        return await desk.work(look)

    @app.websocket(f"{API}/live")
    async def watch(socket: WebSocket, source: str = "browser") -> None:
        await socket.accept()
        if source == "browser":
            await live.from_browser(socket, service, desk.seen, desk.live)
        elif camera is not None:
            await live.from_device(socket, service, camera, desk.seen, desk.live)
        else:
            await socket.close(1008, "this device has no camera of its own")


def _add_gallery(app: FastAPI, service: Service, desk: _Desk) -> None:
    @app.get(f"{API}/gallery", summary="All enrolled pills")
    async def gallery() -> GalleryAnswer:
        return await to_thread.run_sync(_gallery, service)

    @app.get(f"{API}/gallery/{{pill:path}}", responses=NAMED, summary="One enrolled pill")
    async def gallery_of(pill: str) -> GalleryPill:
        answer = await to_thread.run_sync(_gallery, service, pill)
        for row in answer.pills:
            return row
        raise HTTPException(404, f"{pill!r} is not enrolled")

    @app.get(f"{API}/photos/{{digest}}.png", responses=NAMED, response_class=Picture,
             summary="A photo that this device keeps")  # fmt: skip
    async def photo(digest: str) -> Response:
        photo = await to_thread.run_sync(service.photo, digest)
        if photo is None:
            raise HTTPException(404, "no such photo")
        return _picture(photo)

    @app.post(f"{API}/gallery", status_code=201, responses=UPLOAD | FAULTY, summary="Enrol a pill")
    async def enrol(
        name: Annotated[str, Form(min_length=1, max_length=200)],
        photos: Annotated[list[UploadFile], File(min_length=1, max_length=MAX_PHOTOS)],
        side: Annotated[
            list[Literal["", "front", "back"]],
            Form(
                default_factory=list,
                max_length=MAX_PHOTOS,
                description="shown by the photos: one for all, or one for each",
            ),
        ],
        crop: Annotated[bool, Form(description="photos are nothing but the pill")] = False,
        override_reason: Annotated[
            str,
            Form(
                max_length=MAX_REASON_LENGTH,
                description="why the pill is enrolled in spite of faults; goes on record",
            ),
        ] = "",
    ) -> EnrolledAnswer:
        data = [(photo.filename or f"photo-{n}", await photo.read())
                for n, photo in enumerate(photos, 1)]  # fmt: skip
        sides = _sides(side, len(data))

        def add() -> Enrolled:
            # One at a time: twenty of a phone are 700 MB.
            decoded = ((file, decode_image(content, name=file)) for file, content in data)
            now = datetime.now(UTC)
            return service.enrol(name, decoded, sides, now, crops=crop, reason=override_reason)

        done = await desk.work(add)
        answer = EnrolledAnswer(
            pill=name,
            references=done.references,
            new=done.new,
            overridden=len(done.overridden),
        )
        desk.tell(EnrolEvent(**_now(service.identifier.manifest.name), **answer.model_dump()))
        return answer

    @app.delete(f"{API}/gallery/{{pill:path}}", responses=UPLOAD | NAMED, summary="Forget a pill")
    async def forget(pill: str) -> dict[str, int]:
        n_removed = await to_thread.run_sync(service.forget, pill)
        if not n_removed:
            raise HTTPException(404, f"{pill!r} was not enrolled on this device")
        desk.tell(
            ForgetEvent(**_now(service.identifier.manifest.name), pill=pill, removed=n_removed)
        )
        return {"removed": n_removed}


def _add_checking(app: FastAPI, service: Service, desk: _Desk) -> None:
    @app.post(f"{API}/check", responses=UPLOAD, summary="Check a tray against an expected list")
    async def check(
        image: Annotated[UploadFile, File(description="a photo of the tray")],
        expected: Annotated[
            str,
            Form(
                min_length=1,
                max_length=MAX_LIST,
                description="typed lines, CSV, JSON, or FHIR JSON",
            ),
        ],
    ) -> CheckAnswer:
        data, name = await image.read(), image.filename or "image"

        def checked() -> CheckAnswer:
            wanted = service.expected(expected.encode(), "expected list")
            frame, decode_ms = _decoded(data, name)
            done = service.check(frame, wanted, datetime.now(UTC))
            desk.seen(done.look)
            look = look_answer(done.look, frame.shape[1], frame.shape[0], decode_ms)
            content = {"number": done.number, **as_json(done.check)}
            told = {**_now(done.look.bundle), **content, "pills": look.pills}
            desk.tell(CheckEvent.model_validate(told))
            return CheckAnswer.model_validate({**content, "look": look})

        return await desk.work(checked)

    @app.post(f"{API}/history/{{number}}/actions", status_code=201, responses=UPLOAD | NAMED,
              summary="What the operator did about a decision")  # fmt: skip
    async def act(
        number: Annotated[int, PathParameter(ge=1, le=2**62)],
        action: Annotated[str, Form(min_length=1, max_length=MAX_ACTION_LENGTH)],
        note: Annotated[str, Form(max_length=MAX_NOTE_LENGTH)] = "",
    ) -> dict[str, int]:
        def act() -> int:
            if not service.is_recorded(number):
                raise HTTPException(404, f"decision {number} is not on record")
            return service.act(number, action, note, datetime.now(UTC))

        row = await to_thread.run_sync(act)
        desk.tell(
            ActionEvent(**_now(service.identifier.manifest.name), number=number, action=action)
        )
        return {"number": row}

    @app.get(f"{API}/history", summary="Decisions on record, newest first")
    async def history(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    ) -> HistoryAnswer:
        entries = await to_thread.run_sync(service.history, limit, before)
        return HistoryAnswer(records=[recorded_answer(entry, f"{API}/crops") for entry in entries])

    @app.get(f"{API}/crops/{{digest}}.png", responses=NAMED, response_class=Picture,
             summary="A crop of a decision on record")  # fmt: skip
    async def crop(digest: Annotated[str, PathParameter(pattern="^[0-9a-f]{64}$")]) -> Response:
        photo = await to_thread.run_sync(service.recorded_crop, digest)
        if photo is None:
            raise HTTPException(404, "no such crop")
        return _picture(photo)


def _sides(sides: Sequence[str], n_photos: int) -> Sequence[str]:
    """What each photo shows."""
    if len(sides) == n_photos:
        return sides
    if len(sides) > 1:
        raise InputRejected(
            "side",
            found=f"{len(sides)} for {n_photos} photos",
            expected="one for all photos, or one for each",
            remedy="Send as many sides as photos, in their order.",
        )
    return [*sides, ""][:1] * n_photos


def _now(bundle: str) -> Any:
    """What every event says."""
    return {"time": datetime.now(UTC), "bundle": bundle}


def _connection(events: Events | None) -> Literal["off", "connected", "disconnected"]:
    if events is None:
        return "off"
    return "connected" if events.connected else "disconnected"


def _decoded(data: bytes, name: str) -> tuple[NDArray[np.uint8], float]:
    """A photo, and the milliseconds that decoding took."""
    start_s = time.perf_counter()
    return decode_image(data, name=name), 1000 * (time.perf_counter() - start_s)


def _picture(photo: NDArray[np.uint8]) -> Response:
    written = io.BytesIO()
    Image.fromarray(photo).save(written, "png")
    headers = {"cache-control": "private, max-age=31536000, immutable"}
    return Picture(written.getvalue(), headers=headers)


def _gallery(service: Service, name: str | None = None) -> GalleryAnswer:
    """All enrolled pills, or the one of that name."""
    photos: dict[str, list[str]] = {}
    for kept in service.kept(name):
        photos.setdefault(kept.pill, []).append(f"{API}/photos/{kept.crop}.png")
    pills = [pill for pill in service.pills() if name in (None, pill.pill)]
    return GalleryAnswer(pills=[gallery_pill(pill, photos.get(pill.pill, [])) for pill in pills])


def _explain_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        remedies = {
            404: "See the gallery and the history for what there is.",
            429: "Wait a second and ask again.",
        }
        remedy = remedies.get(error.status_code, "See /openapi.json for what can be asked.")
        answer = _problem(error.status_code, str(error.detail), remedy)
        if error.status_code == 405:
            answer.headers["allow"] = ", ".join(_methods(app.routes, request)) or "GET, HEAD"
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem(422, f"{where}: {first['msg']}", "See /openapi.json for what is expected.")

    @app.exception_handler(PhotosRefused)
    async def faulty(_: Request, error: PhotosRefused) -> Response:
        judged, faults = error.judged, fault_answers(error.judged, f"{API}/photos")
        detail = f"{error.subject}: {error.found}; expected {error.expected}"
        return _problem(
            422,
            detail,
            error.remedy,
            faults=[fault.model_dump() for fault in faults],
            boxes=judged.boxes,
            can_override=judged.can_override,
        )

    @app.exception_handler(PillTrackError)
    async def explained(_: Request, error: PillTrackError) -> Response:
        status = 422 if isinstance(error, InputRejected) else 503
        detail = f"{error.subject}: {error.found}; expected {error.expected}"
        return _problem(status, detail, error.remedy)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:  # it is logged by the server
        answer = _problem(500, "a mistake in this device's program", "Report it with its log.")
        answer.headers.update(HEADERS)  # the guard never sees this answer
        return answer

    @app.middleware("http")
    async def failed(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await call(request)
        except OSError as error:
            found = error.strerror or str(error)
            return _problem(503, found, "Check the disk and its permissions.")


def _problem(status: int, detail: str, remedy: str, **more: object) -> Response:
    headers = {"retry-after": "1"} if status == 429 else {}
    return Response(problem(status, detail, remedy, **more), status, headers, media_type=PROBLEM)


def _methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """What may be asked of the address of a request."""
    found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})


def _describe_problems(app: FastAPI) -> None:
    """Have /openapi.json name the media type that problems are sent as; FastAPI says JSON."""

    describe = app.openapi

    def described() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = describe()
        operations = (o for path in document["paths"].values() for o in path.values())
        for operation in operations if is_new else ():
            for code, answer in operation["responses"].items():
                if code >= "400":
                    answer["content"] = {PROBLEM: answer["content"].popitem()[1]}
        return document

    app.openapi = described  # type: ignore[method-assign]
