"""The device as it listens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx
import pytest

from pilltrack.edge import serve
from pilltrack.edge.settings import Settings
from pilltrack.edge.slots import Slots
from pilltrack.edge.source import SOURCE
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


@pytest.mark.parametrize(
    ("limits", "status"),
    [({"max_upload_bytes": 1000}, 413), ({"burst": 1, "requests_per_s": 0.001}, 429)],
)
def test_a_refusal_reaches_a_client_that_still_sends_and_closes_the_connection(
    bundle: Path, tmp_path: Path, limits: dict[str, float], status: int
) -> None:
    """Were the connection closed on what it still sends, it would see that, and no answer."""
    settings = Settings(bundle=bundle, home=tmp_path / "home", **limits)  # type: ignore[arg-type]
    with serving(settings) as address:
        urlopen(f"{address}/healthz").close()
        for _ in range(3):
            with pytest.raises(HTTPError) as refused:
                urlopen(f"{address}/api/v1/identify", data=bytes(20_000_000))
            assert refused.value.code == status
            assert json.load(refused.value)["remedy"]


def test_who_follows_and_names_a_bundle_is_told_that_no_updates_come(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    source = Slots(tmp_path, bundle).root / SOURCE
    source.parent.mkdir(parents=True)
    source.write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "_opened", stop)
        for follow in (False, True):
            caplog.clear()
            with pytest.raises(Stopped):
                serve.serve(Settings(bundle=bundle, home=tmp_path, port=0, follow=follow))
            assert ("takes no updates" in caplog.text) is not follow
