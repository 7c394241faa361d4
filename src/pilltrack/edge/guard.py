"""Who may ask, how much and how fast: checked before any route sees a request.

    host      a name that this device answers to: no foreign page that resolves to 127.0.0.1
    origin    a request that changes something, and every socket, must come from this device's page
    token     where others can reach the device: as a bearer token, or as the page's cookie
    rate      a bucket of requests for each client
    size      bodies are counted while they arrive, not believed
    time      a request that trickles in is given up

Every answer carries headers that let the page load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pilltrack.edge.settings import Settings

COOKIE = "pilltrack"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset(
    {"/healthz", "/readyz", "/api/v1/session"}
)  # asked before any token is known
MAX_CLIENTS = 10_000  # buckets kept; the oldest goes first
LINGER_S = 5.0  # for the rest of a request that is refused
HEADERS: Final = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with limits on what arrives and headers on what leaves."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        hosts = self.settings.hosts
        if hosts != ["*"] and host.rpartition(":")[0] not in hosts and host not in hosts:
            return 421, f"host {host!r}", "Ask for http://127.0.0.1 or http://localhost."
        changes = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        origin = headers.get("origin")
        if changes and origin is not None and urlsplit(origin).netloc != host:
            return 403, f"a request from {origin}", "Use the page that this device serves."
        if not self._take(scope):
            return 429, "too many requests", "Wait a second and ask again."
        if self.settings.token and self._needs_token(scope["path"]):
            sent = _bearer(headers) or _cookie(headers)
            if not hmac.compare_digest(sent.encode(), cookie_of(self.settings.token).encode()):
                return 401, "no token, or another device's", "Sign in with the device's token."
        return None

    def _needs_token(self, path: str) -> bool:
        return path.startswith(("/api/", "/metrics", "/openapi", "/docs")) and (
            path not in OPEN_PATHS
        )

    def _take(self, scope: Scope) -> bool:
        """Take one request from the client's bucket, if there is one left."""
        client = (scope.get("client") or ("", 0))[0]
        now_s = time.monotonic()
        left, at_s = self._buckets.pop(client, (float(self.settings.burst), now_s))
        left = min(self.settings.burst, left + (now_s - at_s) * self.settings.requests_per_s)
        granted = left >= 1
        self._buckets[client] = (left - 1 if granted else left, now_s)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return granted

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self.settings
        limit, deadline_s = settings.max_upload_bytes, time.monotonic() + settings.timeout_s
        refusal: tuple[int, str, str] | None = None
        n_bytes, still_sends = 0, True
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            await _refuse(scope, receive, send, *_too_large(limit))
            return

        async def counted() -> Message:
            nonlocal n_bytes, refusal, still_sends
            try:
                left_s = max(0.01, deadline_s - time.monotonic())
                message = await asyncio.wait_for(receive(), left_s)
            except TimeoutError:
                found = f"not all of the request after {settings.timeout_s:g} s"
                refusal, still_sends = (408, found, "Send it again."), False
                return {"type": "http.disconnect"}
            n_bytes += len(message.get("body", b""))
            still_sends = message.get("more_body", False)
            if n_bytes > limit:
                refusal = _too_large(limit)
                return {"type": "http.disconnect"}
            return message

        async def dressed(message: Message) -> None:
            if refusal is not None:
                return  # whatever the app makes of a body that ended early
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            bodyless = scope["method"] in SAFE_METHODS
            await self.app(scope, receive if bodyless else counted, dressed)
        except Exception:
            if refusal is None:
                raise
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal, still_sends=still_sends)


def is_token(settings: Settings, token: str) -> bool:
    """Whether this is the device's token; takes as long for any."""
    return hmac.compare_digest(cookie_of(token), cookie_of(settings.token))


def cookie_of(token: str) -> str:
    """What the page keeps instead of the token itself, and what a bearer token is compared by."""
    return hashlib.sha256(b"pilltrack session\0" + token.encode()).hexdigest()


def problem(status: int, detail: str, remedy: str, **more: object) -> bytes:
    """An error as RFC 9457 has it, with `more` members of its own."""
    titles = {400: "Refused", 401: "Sign in", 403: "Forbidden", 404: "Not found",
              405: "Not so", 408: "Too slow", 409: "Conflict", 413: "Too large",
              421: "Another host", 422: "Refused", 429: "Too many requests",
              500: "Failed", 503: "Not ready"}  # fmt: skip
    content = {"type": "about:blank", "title": titles.get(status, "Error"), "status": status,
               "detail": detail, "remedy": remedy, **more}  # fmt: skip
    return json.dumps(content, ensure_ascii=False).encode()


async def _refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    detail: str,
    remedy: str,
    *,
    still_sends: bool = True,
) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connect message
        await send({"type": "websocket.close", "code": 1008, "reason": detail[:100]})
        return
    extra: Iterable[tuple[bytes, bytes]] = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
    if status == 429:
        extra = [*extra, (b"retry-after", b"1")]
    if status == 401:
        extra = [*extra, (b"www-authenticate", b"Bearer")]
    body = problem(status, detail, remedy)
    headers = [(b"content-type", b"application/problem+json"), *extra,
               (b"content-length", str(len(body)).encode())]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if still_sends:
        await _take_the_rest(receive)
    await send({"type": "http.response.body"})


async def _take_the_rest(receive: Receive) -> None:
    """Let a client finish sending: where a connection closes before, it never sees the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass


def _too_large(limit: int) -> tuple[int, str, str]:
    return 413, f"more than {limit} bytes", "Send smaller or fewer photos."


def _bearer(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return cookie_of(token.strip()) if kind.lower() == "bearer" and token.strip() else ""


def _cookie(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
