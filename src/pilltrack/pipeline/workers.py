"""This program several times at once, as if it were started by hand in as many windows.

Each worker writes what it says to a file of its own and gets its share of the processor's cores.
Ctrl-C reaches all of them, and so does a SIGTERM to this program alone, as by `kill`. Either is
answered between two looks at them, never in the middle of one: a library that is interrupted while
it reads its database complains.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

POLL_S = 2.0
LISTEN_EVERY_S = 0.1
LISTEN_S, PUT_DOWN_S = 3.0, 30.0  # after Ctrl-C

Failed = tuple[Path, int, str]  # its log, its exit code, its last line


def run_workers(
    arguments: Sequence[str],
    folder: Path,
    count: int,
    *,
    variables: Mapping[str, str],
    meanwhile: Callable[[], object],
) -> list[Failed]:
    """Run `pilltrack ARGUMENTS` in `count` processes until all have ended; return the failed ones.

    `folder` gets `worker-1.log` and so on, `variables` are added to the environment, `meanwhile`
    is called now and then. Call it in the main thread: Ctrl-C and SIGTERM raise KeyboardInterrupt
    there, a second one at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"worker-{number}.log" for number in range(1, count + 1)]
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}
    workers: list[subprocess.Popen[bytes]] = []
    with _told_to_stop() as told:
        try:
            for log in logs:
                workers.append(_start(arguments, log, environment))
            while not told and any(worker.poll() is None for worker in workers):
                look_at = time.monotonic() + POLL_S
                while not told and time.monotonic() < look_at:
                    time.sleep(LISTEN_EVERY_S)
                if not told:
                    meanwhile()
            if told:
                raise KeyboardInterrupt
        except BaseException:
            _interrupt(workers)
            raise
    return [
        (log, worker.returncode, _last_line(log))
        for worker, log in zip(workers, logs, strict=True)
        if worker.returncode
    ]


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """The signals that came within this context; the second raises KeyboardInterrupt."""
    told: list[int] = []

    def note(number: int, _: object) -> None:
        told.append(number)
        if len(told) > 1:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] == signal.SIG_IGN:  # as a shell starts what goes on in the background
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, note)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _start(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - this program again
            [sys.executable, "-m", "pilltrack", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _interrupt(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let the workers put down what they do; a terminal has told them already."""
    until = time.monotonic() + LISTEN_S
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGINT)
    for worker in workers:
        try:
            worker.wait(PUT_DOWN_S)
        except subprocess.TimeoutExpired:
            worker.kill()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word"
