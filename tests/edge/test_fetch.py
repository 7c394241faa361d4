"""Files from a publisher's address: resumed, bounded, and proven by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError

from pilltrack.edge import fetch
from pilltrack.edge.fetch import Damaged, Fetcher, TooSlow, address_of
from tests.edge.files_server import (
    Files,
    Handler,
    cut_off,
    dripping,
    endless,
    giving,
    saying,
    serving_files,
)

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(CONTENT)
    with serving_files(tmp_path / "served") as files:
        yield files


@pytest.fixture
def fetcher() -> Fetcher:
    return Fetcher(pause=lambda _: None)


def test_a_file_arrives_whole_and_its_part_is_gone(
    files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    get(fetcher, files, tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert fetcher.received == len(CONTENT)


def test_an_interrupted_fetch_goes_on_where_it_was(
    files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:123_456])  # of a process that was killed
    get(fetcher, files, tmp_path / "file")
    assert files.asked == [("/file", "bytes=123456-")]
    assert fetcher.received == len(CONTENT) - 123_456
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_line_that_breaks_again_and_again_is_taken_up_again(
    files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    files.answers["/file"] = cut_off(after=100_000)
    get(fetcher, files, tmp_path / "file")
    assert [asked for _, asked in files.asked] == ["", "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_arrived_before_a_line_broke_for_good_is_kept(
    files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    files.answers["/file"] = cut_off(after=10_000)
    with pytest.raises(DownloadError):
        get(fetcher, files, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[: 10_000 * fetch.TRIES]
    del files.answers["/file"]
    get(fetcher, files, tmp_path / "file")
    assert files.asked[-1] == ("/file", f"bytes={10_000 * fetch.TRIES}-")


def test_a_server_that_knows_no_ranges_sends_all_again(
    files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    files.ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:123_456])
    get(fetcher, files, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_a_part_that_is_whole_or_too_long_does_no_harm(
    part: bytes, files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(part)
    get(fetcher, files, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(files.asked) == (0 if part == CONTENT else 1)


@pytest.mark.parametrize("part", [b"", CONTENT[:1000], b"x" * 1000])
def test_another_file_is_refused_and_deleted(
    part: bytes, files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / "served" / "file").write_bytes(CONTENT[:-1] + b"x")
    (tmp_path / "file.part").write_bytes(part)
    with pytest.raises(Damaged, match="SHA-256"):
        get(fetcher, files, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert not (tmp_path / "file.part").exists()


def test_a_file_that_never_ends_is_cut_off_at_its_length(
    files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    files.answers["/file"] = endless
    with pytest.raises(Damaged, match="longer than 300000 bytes"):
        get(fetcher, files, tmp_path / "file")
    assert len(files.asked) == 1
    assert not (tmp_path / "file").exists()


def test_who_holds_the_line_open_is_given_up(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WINDOW_S", 0.2)
    (tmp_path / "served" / "file").write_bytes(CONTENT[:200])
    files.answers["/file"] = dripping(0.02)
    with pytest.raises(TooSlow, match=r"127\.0\.0\.1: \d+ bytes in 0\.2 s"):
        get(Fetcher(pause=lambda _: None), files, tmp_path / "file")
    assert len(files.asked) == 1


def header_by_header(line: socket.socket) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
    while True:
        line.sendall(b"a")
        time.sleep(0.02)


def continue_for_ever(line: socket.socket) -> None:
    while True:
        line.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def chunk_without_end(line: socket.socket) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    while True:
        line.sendall(b"a")
        time.sleep(0.02)


@pytest.mark.parametrize("answer", [header_by_header, continue_for_ever, chunk_without_end])
def test_an_answer_that_never_begins_is_given_up(
    answer: Callable[[socket.socket], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "ANSWER_S", 0.3)
    monkeypatch.setattr(fetch, "WINDOW_S", 0.3)
    with answering(answer) as url, pytest.raises(TooSlow, match=r"no answer within|0 bytes in"):
        Fetcher().fetch_file(f"{url}/file", tmp_path / "file", SHA256, len(CONTENT))


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does with each line what it is told, until the line breaks."""

    def serve() -> None:
        line, _ = listening.accept()
        with line, contextlib.suppress(OSError):
            line.settimeout(2)  # to one that is gone it could send for ever
            line.recv(65_536)
            answer(line)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("place", ["/file", "http://[::1", "ftp://127.0.0.1/file"])
def test_nobody_is_followed_elsewhere(
    place: str, files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    def elsewhere(handler: Handler, _: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    files.answers["/other"] = elsewhere
    with pytest.raises(DownloadHTTPError, match="answers 302"):
        fetcher.fetch_file(f"{files.url}/other", tmp_path / "file", SHA256, len(CONTENT))


def test_a_pipe_on_a_stick_is_no_file(fetcher: Fetcher, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DownloadError, match="is no file"):
        fetcher.download_bytes((tmp_path / "pipe").as_uri(), 10)


def test_a_server_that_falls_silent_is_given_up(
    files: Files, fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "READ_TIMEOUT_S", 0.1)
    files.answers["/file"] = dripping(0.5)
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 does not answer \(ReadTimeoutError\)"):
        get(fetcher, files, tmp_path / "file")
    assert len(files.asked) == fetch.TRIES


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_refusal_is_not_asked_again(
    status: int, files: Files, fetcher: Fetcher, tmp_path: Path
) -> None:
    files.answers["/file"] = saying(status)
    with pytest.raises(DownloadHTTPError) as caught:
        get(fetcher, files, tmp_path / "file")
    assert caught.value.status_code == status
    assert len(files.asked) == 1


def test_nobody_there(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 does not answer"):
        fetcher.fetch_file("http://127.0.0.1:9/file", tmp_path / "file", SHA256, 5)


def test_bandwidth_is_bounded(files: Files, tmp_path: Path) -> None:
    clock = Clock()
    fetcher = Fetcher(bytes_per_s=50_000, clock=lambda: clock.now, pause=clock.wait)
    get(fetcher, files, tmp_path / "file")
    assert clock.now == pytest.approx(len(CONTENT) / 50_000)


def test_a_small_limit_is_not_taken_for_a_slow_server(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "WINDOW_S", 0.3)
    (tmp_path / "served" / "file").write_bytes(CONTENT[:100])
    sha256 = hashlib.sha256(CONTENT[:100]).hexdigest()
    fetcher = Fetcher(bytes_per_s=100, pause=lambda wait_s: time.sleep(min(wait_s, 0.1)))
    fetcher.fetch_file(f"{files.url}/file", tmp_path / "file", sha256, 100)


def test_a_directory_is_an_address_too(fetcher: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "a stick").mkdir()
    (tmp_path / "a stick" / "file").write_bytes(CONTENT)
    (tmp_path / "file.part").write_bytes(CONTENT[:9])
    address = address_of(str(tmp_path / "a stick"))
    fetcher.fetch_file(f"{address}/file", tmp_path / "file", SHA256, len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert fetcher.received == len(CONTENT) - 9
    with pytest.raises(DownloadHTTPError, match="is missing"):
        fetcher.download_bytes(f"{address}/other", 10)


def test_metadata_is_bounded_too(files: Files, fetcher: Fetcher) -> None:
    files.answers["/endless"] = endless
    with pytest.raises(DownloadError, match="maximum allowed length"):
        fetcher.download_bytes(f"{files.url}/endless", 1000)
    files.answers["/file"] = giving(b"abc")
    assert fetcher.download_bytes(f"{files.url}/file", 3) == b"abc"


@pytest.mark.parametrize(
    "source",
    ["ftp://host/x", "http://", "https://user:secret@host/x", "https://host/x?key=1", "",
     "file://host/share", "https://host/#x"],
)  # fmt: skip
def test_what_is_no_address(source: str) -> None:
    assert address_of(source) == ""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


def get(fetcher: Fetcher, files: Files, to: Path) -> None:
    fetcher.fetch_file(f"{files.url}/file", to, SHA256, len(CONTENT))
