"""A static web server over a directory, which can be told to misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = Callable[["Handler", bytes], None]


@dataclass
class Files:
    """What is served and asked for; `answers[path]` answers in place of the file there."""

    directory: Path
    url: str = ""
    ranges: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)  # path, range
    answers: dict[str, Answer] = field(default_factory=dict)

    def fetched(self) -> list[str]:
        """The targets that were asked for."""
        return [path for path, _ in self.asked if path.startswith("/targets/")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Files

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.files.asked.append((self.path, asked))
        path = self.files.directory / self.path.lstrip("/")
        content = path.read_bytes() if path.is_file() else None
        answer = self.files.answers.get(self.path) or self.files.answers.get("*")
        if answer is not None:
            answer(self, content or b"")
        elif content is None:
            self.send(404, b"")
        elif asked and self.files.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send(416, b"")
            else:
                self.send(206, content[start:])
        else:
            self.send(200, content)

    def send(self, status: int, content: bytes, length: int | None = None) -> None:
        """Answer; `length` is what the header says, which need not be true."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def cut_off(after: int) -> Answer:
    """Close the line after so many bytes."""

    def answer(handler: Handler, content: bytes) -> None:
        asked = handler.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        rest = content[start:]
        handler.send(206 if start else 200, rest[:after], length=len(rest))
        handler.close_connection = True

    return answer


def endless(handler: Handler, content: bytes) -> None:
    """Send the file, and then more and more."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    try:
        handler.wfile.write(content)
        for _ in range(100_000):
            handler.wfile.write(b"\0" * 65_536)
    except OSError:
        return


def dripping(seconds: float) -> Answer:
    """Send a byte now and then."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        try:
            for place in range(len(content)):
                handler.wfile.write(content[place : place + 1])
                time.sleep(seconds)
        except OSError:
            return

    return answer


def saying(status: int) -> Answer:
    """Answer with a status and nothing else."""
    return lambda handler, _: handler.send(status, b"")


def giving(content: bytes) -> Answer:
    """Answer with other content."""
    return lambda handler, _: handler.send(200, content)


@contextmanager
def serving_files(directory: Path) -> Iterator[Files]:
    """Serve a directory on a free port of this machine until the block ends."""
    files = Files(directory)
    handler = type("_Handler", (Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
