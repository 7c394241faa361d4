"""The device as it listens."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from pilltrack.edge.settings import Settings
from tests.edge.server import serving


def test_answers_on_a_kept_connection_are_sent_at_once(bundle: Path, tmp_path: Path) -> None:
    """Headers and body are two writes: the second must not wait for the first's receipt, 40 ms."""
    with (
        serving(Settings(bundle=bundle, home=tmp_path / "home")) as address,
        httpx.Client(base_url=address) as client,
    ):
        client.get("/healthz")
        times_s = []
        for _ in range(20):
            start_s = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            times_s.append(time.perf_counter() - start_s)
    assert min(times_s) < 0.02
