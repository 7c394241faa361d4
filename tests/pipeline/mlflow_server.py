"""A real MLflow server on a free port, and a proxy before it that can fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.proxy import Passing, listening


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

    def __init__(self) -> None:
        self.passes: int | None = None
        self.seen = 0


@contextmanager
def proxy_before(server: str) -> Iterator[tuple[str, Proxy]]:
    proxy = Proxy()

    class Handler(Passing):
        behind = server.removeprefix("http://")

        def blocked(self) -> bool:
            proxy.seen += 1
            if proxy.passes is None or proxy.seen <= proxy.passes:
                return False
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = b"the disk is full"
            self.send_response(500)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return True

    with listening(Handler) as address:
        yield address, proxy
