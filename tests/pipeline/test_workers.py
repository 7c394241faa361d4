"""Several workers at once: what tells them to stop, and when."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilltrack.pipeline.workers import run_workers


@pytest.fixture(autouse=True)
def _started_by_hand() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_never_ends_a_look_half_way(tmp_path: Path, number: signal.Signals) -> None:
    looks: list[str] = []

    def look() -> None:
        looks.append("begun")
        os.kill(os.getpid(), number)
        looks.append("ended")

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_workers(["serve", "--help"], tmp_path, 1, variables={}, meanwhile=look)
    assert looks == ["begun", "ended"]
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def look() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the look went on")

    with pytest.raises(KeyboardInterrupt):
        run_workers(["serve", "--help"], tmp_path, 1, variables={}, meanwhile=look)
