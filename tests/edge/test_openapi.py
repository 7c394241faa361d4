"""/openapi.json says what the device does: requests are invented from it, answers held against it.

schemathesis asks every operation with valid, invalid and half-valid input and with methods that
are not documented. An answer of 5xx, one that is not documented, one of another type or shape than
documented, a valid request refused and an invalid one accepted each fail the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pilltrack.edge.settings import Settings
from tests.edge.conftest import noise, png, red
from tests.edge.server import serving

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

ROOT = Path(__file__).parents[2]
LIMIT_S = 180  # it takes 20 s alone
# What cannot be said in a schema: that bytes are a photo, and a text a list of enrolled pills.
CONTENT = ("/api/v1/identify", "/api/v1/gallery", "/api/v1/check")


def test_requests_invented_from_the_schema_are_answered_as_it_says(
    bundle: Path, tmp_path: Path
) -> None:
    settings = Settings(bundle=bundle, home=tmp_path / "home", burst=1_000_000, requests_per_s=1e6)
    with serving(settings) as address, httpx.Client(base_url=f"{address}/api/v1") as client:
        files = [("photos", ("1.png", png(noise())))]
        form = {"name": "noise", "override_reason": "drawn by a test"}
        client.post("gallery", data=form, files=files).raise_for_status()
        tray = {"image": ("tray.png", png(red()))}
        client.post("check", data={"expected": "1 red-pill"}, files=tray).raise_for_status()
        [record] = client.get("history").json()["records"]
        gallery = client.get("gallery").json()["pills"]
        [photo] = [address for pill in gallery for address in pill["photos"]]
        there = {
            "pill": ["noise", "red-pill"],
            "number": [record["number"]],
            "digest": [Path(address).stem for address in (*record["crops"], photo)],
        }
        config = tmp_path / "schemathesis.toml"
        config.write_text(configuration(there), encoding="utf-8")
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), f"--config-file={config}",
                "run", f"{address}/openapi.json", "--seed=7", "--max-examples=40", "--no-color",
            ],
            check=False, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )  # fmt: skip
        looked = client.get("status").json()["frames"]
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "15 selected" in done.stdout
    assert looked > 10  # some photos were real


def configuration(there: dict[str, list[object]]) -> str:
    """Have half of the requests name what is there."""
    hooks = json.dumps(str(Path(__file__).with_name("invented_requests.py")))
    lines = [f"hooks = {hooks}", "warnings = false"]
    for name, values in there.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines += ["[parameters]"]
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = 0.5 }}' for name in there]
    accepted = json.dumps(["2xx", "404", "422"])
    for path in CONTENT:
        lines += ["[[operations]]", f'include-path = "{path}"']
        lines += [f"checks.positive_data_acceptance.expected-statuses = {accepted}"]
    return "\n".join(lines) + "\n"
