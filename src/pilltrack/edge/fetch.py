"""Bytes from a publisher's address: bounded in size, time and bandwidth, and resumed.

The address is a directory (a stick, a share) or that of any static web server. Nothing that comes
from there is trusted here: whoever asks checks it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface
from urllib3.connection import HTTPConnection, HTTPSConnection

from pilltrack import __version__
from pilltrack.core.files import sync_directory

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
TRIES = 4
PAUSE_S = 1.0  # before the second try; each further one waits twice as long
# Whoever sends less than this over a window holds the line open, and no more.
MIN_BYTES_PER_S, WINDOW_S = 256, 60.0
ANSWER_S = 30.0  # until the headers of an answer are there
PARTIAL, OK, NOT_SATISFIABLE = 206, 200, 416


class Damaged(DownloadError):
    """What arrived is not what was promised."""


class TooSlow(DownloadError):
    """The line is held open, and next to nothing arrives."""


class Fetcher(FetcherInterface):
    """Fetches for The Update Framework, and files of known SHA-256 onto the disk.

    `bytes_per_s` bounds the bandwidth, 0 does not. `progress` is told of bytes as they arrive.
    Clock and pause are arguments.
    """

    def __init__(
        self,
        bytes_per_s: int = 0,
        progress: Callable[[int], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_s, self._progress = bytes_per_s, progress
        self._clock, self._pause = clock, pause
        self.received = 0  # bytes, of all that was fetched

    def fetch_file(self, url: str, to: Path, sha256: str, length: int) -> None:
        """Put a file of that SHA-256 and length onto the disk.

        What arrives lies in `<to>.part` until it is whole: an interrupted fetch goes on from
        there, in this process or a later one.

        Raises Damaged, and deletes the part, when it is another file; DownloadError when it cannot
        be had, OSError when it cannot be written.
        """
        part = to.with_name(f"{to.name}.part")
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in reversed(range(TRIES)):
            try:
                self._fetch_rest(url, part, length)
                break
            except DownloadError as error:
                if not left or isinstance(error, (DownloadHTTPError, Damaged, TooSlow)):
                    raise
                self._pause(PAUSE_S * 2 ** (TRIES - 1 - left))
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise Damaged(f"{url} has SHA-256 {found}, expected {sha256}")
        part.replace(to)
        sync_directory(to.parent)

    def _fetch_rest(self, url: str, part: Path, length: int) -> None:
        has = part.stat().st_size if part.exists() else 0
        if has > length:
            part.unlink()
            has = 0
        if has == length and part.exists():
            return
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file, self._opened(url, has) as (start, chunks):
            file.truncate(start)
            file.seek(start)
            for chunk in chunks:
                if file.tell() + len(chunk) > length:
                    file.truncate(0)
                    raise Damaged(f"{url} is longer than {length} bytes")
                file.write(chunk)
            arrived = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if arrived < length:
            raise DownloadError(f"{url} ended after {arrived} of {length} bytes")

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self._opened(url, 0) as (_, chunks):
            yield from chunks

    @contextmanager
    def _opened(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the bytes begin that a URL gives, at `start` or 0, and these bytes."""
        size = min(CHUNK_BYTES, self.bytes_per_s) if self.bytes_per_s else CHUNK_BYTES
        if urlsplit(url).scheme == "file":
            with _opened_file(url) as file:
                file.seek(start)
                yield start, self._paced(iter(lambda: file.read(size), b""))
            return
        least = min(MIN_BYTES_PER_S, self.bytes_per_s / 2 or MIN_BYTES_PER_S)
        with _Watch(least) as watch, _pool(url, watch) as pool:
            headers = {"Accept-Encoding": "identity", "User-Agent": f"pilltrack/{__version__}"}
            if start:
                headers["Range"] = f"bytes={start}-"
            with _said(url, watch):  # a static host has no reason to send us elsewhere
                answer = pool.request(
                    "GET", url, headers=headers, redirect=False, preload_content=False
                )
            try:
                if answer.status == NOT_SATISFIABLE and start:
                    raise DownloadError(f"{url} has no byte {start}")
                if answer.status not in (OK, PARTIAL):
                    raise DownloadHTTPError(f"{url} answers {answer.status}", answer.status)
                from_ = start if answer.status == PARTIAL else 0
                yield from_, self._paced(_chunks(answer, size, url, watch))
            finally:
                answer.close()

    def _paced(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        began, n_bytes = self._clock(), 0
        for chunk in chunks:
            yield chunk
            self.received += len(chunk)
            self._progress(len(chunk))
            n_bytes += len(chunk)
            if self.bytes_per_s:
                early_s = n_bytes / self.bytes_per_s - (self._clock() - began)
                if early_s > 0:
                    self._pause(early_s)


def address_of(source: str) -> str:
    """A publisher's address as a URL: http, https, or file for a directory; "" for others.

    >>> address_of("https://pills.example.org/releases/")
    'https://pills.example.org/releases'
    >>> address_of("ftp://pills.example.org"), address_of("/media/stick")
    ('', 'file:///media/stick')
    """
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        fits = parts.hostname and not parts.query and not parts.fragment and "@" not in parts.netloc
        return source.rstrip("/") if fits else ""
    if parts.scheme == "file":
        return source.rstrip("/") if not parts.netloc else ""
    return "" if "://" in source or not source else Path(source).resolve().as_uri()


class _Watch:
    """Cuts the connections of a request that does not begin in time, or brings too little.

    Time limits of a socket do not: each byte that drips in, of a header or between chunks, begins
    them anew.
    """

    def __init__(self, least_bytes_per_s: float) -> None:
        self.arrived = 0  # bytes of the body
        self.complaint = ""  # once it has cut
        self._least = least_bytes_per_s
        self._lock, self._over = threading.Lock(), threading.Event()
        self._answered = threading.Event()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def add(self, opened: socket.socket) -> None:
        """Watch a socket, also after TLS has taken it over."""
        with self._lock:
            self._sockets.append(opened.dup())

    def answered(self) -> None:
        """From now on bytes of the body count."""
        self._answered.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._answered.set()
        self._thread.join()
        for opened in self._sockets:
            opened.close()

    def _look(self) -> None:
        if not self._answered.wait(ANSWER_S):
            self._cut(f"no answer within {ANSWER_S:g} s")
        before = self.arrived
        while not self._over.wait(WINDOW_S):
            if self.arrived - before < self._least * WINDOW_S:
                self._cut(f"{self.arrived - before} bytes in {WINDOW_S:g} s")
            before = self.arrived

    def _cut(self, complaint: str) -> None:
        with self._lock:
            self.complaint = self.complaint or complaint
            for opened in self._sockets:
                with contextlib.suppress(OSError):  # the other side was faster
                    opened.shutdown(socket.SHUT_RDWR)


def _chunks(
    answer: urllib3.BaseHTTPResponse, size: int, url: str, watch: _Watch
) -> Iterator[bytes]:
    watch.answered()
    with _said(url, watch):
        # Not `stream`: it waits until a chunk is full, however slowly it fills.
        while chunk := answer.read1(size):
            watch.arrived += len(chunk)
            yield chunk
    if watch.complaint:
        raise TooSlow(f"{_host(url)}: {watch.complaint}")


@contextmanager
def _said(url: str, watch: _Watch) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        if watch.complaint:
            raise TooSlow(f"{_host(url)}: {watch.complaint}") from error
        raise DownloadError(f"{_host(url)} does not answer ({_plain(error)})") from error


@contextmanager
def _opened_file(url: str) -> Iterator[BinaryIO]:
    path = Path(unquote(urlsplit(url).path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for ever
    except FileNotFoundError as error:
        raise DownloadHTTPError(f"{path} is missing", 404) from error
    except OSError as error:
        raise DownloadError(f"{path} cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DownloadError(f"{path} is no file")
        yield file


def _pool(url: str, watch: _Watch) -> urllib3.PoolManager:
    """Connections that are watched from their first byte on."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            opened = super()._new_conn()
            watch.add(opened)
            return opened

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            opened = super()._new_conn()
            watch.add(opened)
            return opened

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    scheme, host = urlsplit(url).scheme, _host(url)
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host):
        pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, timeout=timeout, retries=False)
    else:
        pool = urllib3.PoolManager(timeout=timeout, retries=False)
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pool


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _plain(error: Exception) -> str:
    """The last cause of an error of urllib3, without addresses of objects."""
    reason = getattr(error, "reason", None)
    return type(reason or error).__name__
