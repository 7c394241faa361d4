"""Bytes from a publisher's address: bounded in size, time and bandwidth, and resumed.

The address is a directory (a stick, a share) or that of any static web server. Nothing that comes
from there is trusted here: whoever asks checks it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from pilltrack import __version__
from pilltrack.core.files import sync_directory

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
TRIES = 4
PAUSE_S = 1.0  # before the second try; each further one waits twice as long
# Whoever sends less than this over a window holds the line open, and no more.
MIN_BYTES_PER_S, WINDOW_S = 256, 60.0
PARTIAL, OK, NOT_SATISFIABLE = 206, 200, 416
SHA256_LENGTH = 64


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
        if urlsplit(url).scheme == "file":
            with _opened_file(url) as file:
                file.seek(start)
                yield start, self._paced(iter(lambda: file.read(CHUNK_BYTES), b""))
            return
        try:
            with _pool(url) as pool:
                headers = {"Accept-Encoding": "identity", "User-Agent": f"pilltrack/{__version__}"}
                if start:
                    headers["Range"] = f"bytes={start}-"
                # The URL is the publisher's address, of a scheme that `require_address` knows.
                answer = pool.request("GET", url, headers=headers, preload_content=False)
                try:
                    if answer.status == NOT_SATISFIABLE and start:
                        raise DownloadError(f"{url} has no byte {start}")
                    if answer.status not in (OK, PARTIAL):
                        raise DownloadHTTPError(f"{url} answers {answer.status}", answer.status)
                    from_ = start if answer.status == PARTIAL else 0
                    # Not `stream`: it waits until a chunk is full, however slowly it fills.
                    yield from_, self._paced(iter(lambda: answer.read1(CHUNK_BYTES), b""))
                finally:
                    answer.close()
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{_host(url)} does not answer ({_plain(error)})") from error

    def _paced(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        began = window = self._clock()
        n_bytes = n_window = 0
        for chunk in chunks:
            yield chunk
            self.received += len(chunk)
            self._progress(len(chunk))
            n_bytes += len(chunk)
            n_window += len(chunk)
            if self.bytes_per_s:
                early = n_bytes / self.bytes_per_s - (self._clock() - began)
                if early > 0:
                    self._pause(early)
            if self._clock() - window > WINDOW_S:
                least = MIN_BYTES_PER_S
                if self.bytes_per_s:
                    least = min(least, self.bytes_per_s // 2)
                if n_window < least * WINDOW_S:
                    raise TooSlow(f"{n_window} bytes in {WINDOW_S:.0f} s")
                window, n_window = self._clock(), 0


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


@contextmanager
def _opened_file(url: str) -> Iterator[BinaryIO]:
    path = Path(unquote(urlsplit(url).path))
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise DownloadHTTPError(f"{path} is missing", 404) from error
    except OSError as error:
        raise DownloadError(f"{path} cannot be read ({error.strerror})") from error


def _pool(url: str) -> urllib3.PoolManager:
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    retries = urllib3.Retry(total=3, connect=0, read=0, status=0, other=0, redirect=3)
    scheme, host = urlsplit(url).scheme, _host(url)
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host):
        return urllib3.ProxyManager(proxy, timeout=timeout, retries=retries)
    return urllib3.PoolManager(timeout=timeout, retries=retries)


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _plain(error: Exception) -> str:
    """The last cause of an error of urllib3, without addresses of objects."""
    reason = getattr(error, "reason", None)
    return type(reason or error).__name__
