"""A way to a server that a test can block."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

OF_THE_CONNECTION = {"connection", "expect", "transfer-encoding", "content-length"}


class Passing(BaseHTTPRequestHandler):
    """Passes every request on to `behind` (HOST:PORT), unless `blocked` answers it."""

    protocol_version = "HTTP/1.1"
    behind: ClassVar[str]

    def blocked(self) -> bool:
        """Is this request not passed on, but answered here, or its connection ended?"""
        raise NotImplementedError

    def pass_on(self) -> None:
        if self.blocked():
            return
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in OF_THE_CONNECTION}
        with contextlib.closing(http.client.HTTPConnection(self.behind, timeout=60)) as upstream:
            upstream.request(self.command, self.path, data, headers)
            answer = upstream.getresponse()
            text = answer.read()
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else len(text)
        self.send_response_only(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in OF_THE_CONNECTION:
                self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def listening(handler: type[Passing]) -> Iterator[str]:
    """The address of a proxy with this handler."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
