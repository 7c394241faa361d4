"""A real MLflow server on a free port, and a proxy before it that can fail."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DROPPED = {"connection", "transfer-encoding", "content-length", "host", "content-encoding"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def mlflow_server(directory: Path) -> Iterator[str]:
    """Its URI; runs and artifacts are kept below `directory`."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += [f"--backend-store-uri=sqlite:///{directory}/server.db", "--workers=1"]
    command += [f"--artifacts-destination={directory}/kept"]
    off = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = directory / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **off},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


class Proxy:
    """Passes requests on to a server; answers 500 once `passes` requests have gone through."""

    def __init__(self, server: str) -> None:
        self.server = server.removeprefix("http://")
        self.passes: int | None = None
        self.seen = 0


@contextmanager
def proxy_before(server: str) -> Iterator[tuple[str, Proxy]]:
    proxy = Proxy(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.seen += 1
            if proxy.passes is not None and proxy.seen > proxy.passes:
                self.reply(500, [], b"the disk is full")
                return
            upstream = http.client.HTTPConnection(proxy.server, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in DROPPED}
            headers["Accept-Encoding"] = "identity"
            upstream.request(self.command, self.path, data, headers)
            answer = upstream.getresponse()
            self.reply(answer.status, answer.getheaders(), answer.read())
            upstream.close()

        def reply(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response(status)
            for key, value in headers:
                if key.lower() not in DROPPED:
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", proxy
    finally:
        listening.shutdown()
        listening.server_close()
