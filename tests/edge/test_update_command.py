"""`pilltrack update`: what an operator sees, and that a serving device follows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pilltrack.cli import main
from pilltrack.core.bundle import read_bundle
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.edge.slots import Slots
from tests.edge.fleet import Fleet, fleet, make_bundles

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [STARTER_BUNDLE, *make_bundles(tmp_path_factory.mktemp("bundles"), 2)]


@pytest.fixture
def joined(tmp_path: Path, bundles: list[Path]) -> Iterator[Fleet]:
    """A device that has joined by the command line; two releases may be published."""
    with fleet(tmp_path, bundles) as made:
        root = tmp_path / "keys" / "1.root.json"
        assert run(made, "join", "--from", made.files.url, "--root", str(root)) == 0
        yield made


def run(device: Fleet, action: str, *arguments: str) -> int:
    return main(["update", action, "--home", str(device.home), *arguments])


def test_from_joining_to_going_back(joined: Fleet, capsys: Captured) -> None:
    root = joined.directory / "keys" / "1.root.json"
    assert run(joined, "join", "--from", joined.files.url, "--root", str(root)) == 0
    assert f"follows {joined.files.url}, stable" in capsys.readouterr().err
    assert run(joined, "now") == 1
    said = capsys.readouterr()
    assert said.out.startswith("failed: no answer\n")  # there is nothing yet
    assert f"{STARTER_BUNDLE} stays active." in said.err
    joined.publish(1)
    assert run(joined, "check") == 0
    assert capsys.readouterr().out == "release 1 (tiny) can be had: `pilltrack update now`\n"
    assert run(joined, "now") == 0
    assert re.fullmatch(
        r"release 1 \(tiny\) is active, on trial; \d+\.\d MB came\n", capsys.readouterr().out
    )
    assert run(joined, "now") == 0
    assert capsys.readouterr().out == "release 1 (tiny) is active: nothing to do\n"
    assert run(joined, "status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("active  tiny (manifest ")
    assert "on trial since" in lines[0]
    assert lines[1].startswith("before  ")
    assert lines[1].endswith("(of the install)")
    assert lines[2] == f"follows {joined.files.url}, stable"
    assert "switched" in lines[-1]
    assert run(joined, "back") == 0
    assert str(STARTER_BUNDLE) in capsys.readouterr().err
    assert run(joined, "now") == 1
    assert "an operator went back" in capsys.readouterr().out
    assert run(joined, "now", "--retry") == 0
    assert run(joined, "leave") == 0
    assert run(joined, "now") == 1
    assert "follows nobody" in capsys.readouterr().err


def test_everything_can_be_read_by_programs(joined: Fleet, capsys: Captured) -> None:
    joined.publish(1)
    capsys.readouterr()
    assert run(joined, "now", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["outcome"], said["release"], said["name"]) == ("switched", 1, "tiny")
    assert said["received_bytes"] > 0
    assert run(joined, "status", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["state"]["active"] == said["manifest"]
    assert status["source"]["channel"] == "stable"
    assert status["happenings"][-1]["kind"] == "switched"


def test_commands_use_the_bundle_that_is_active(joined: Fleet, capsys: Captured) -> None:
    joined.publish(1)
    run(joined, "now")
    capsys.readouterr()
    assert main(["gallery", "list", "--home", str(joined.home)]) == 0
    photo = joined.directory / "noise.png"
    from PIL import Image

    from tests.edge.conftest import noise

    Image.fromarray(noise(0)).save(photo)
    assert main(["identify", "--crop", str(photo), "--home", str(joined.home)]) == 0
    assert "pill-0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--from", "ftp://pills.example.org"], "--from: ftp://pills.example.org; expected https"),
        (["--from", "https://ann:secret@pills.example.org"], "without a login"),
        (["--every-hours", "0.001"], "--every-hours: 0.001; expected one minute to 30 days"),
        (["--every-hours", "nan"], "--every-hours: nan; expected"),
        (["--max-frame-ms", "-1"], "--max-frame-ms: -1.0; expected a number above 0"),
        (["--max-frame-ms", "inf"], "--max-frame-ms: inf; expected a number above 0"),
        (["--watch-s", "1000000"], "--watch-s: 1000000; expected at most 7 days"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    wrong: list[str], said: str, joined: Fleet, capsys: Captured
) -> None:
    capsys.readouterr()
    root = joined.directory / "keys" / "1.root.json"
    given = ["--from", "https://pills.example.org", "--root", str(root), *wrong]
    assert run(joined, "join", *given) == 1
    assert said in capsys.readouterr().err


def test_a_root_that_is_missing_is_named(joined: Fleet, capsys: Captured) -> None:
    missing = str(joined.directory / "missing.json")
    assert run(joined, "join", "--from", "/media/stick", "--root", missing) == 1
    assert missing in capsys.readouterr().err


def test_a_home_that_never_updated_has_a_status(tmp_path: Path, capsys: Captured) -> None:
    assert main(["update", "status", "--home", str(tmp_path / "home")]) == 0
    assert "follows nobody" in capsys.readouterr().out
    assert main(["update", "back", "--home", str(tmp_path / "home")]) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.e2e
def test_a_device_that_serves_takes_an_update_that_is_published_without_a_restart(
    joined: Fleet, tmp_path: Path
) -> None:
    """The commands as they are typed, and the device's own timer."""
    joined.publish(1)
    with (tmp_path / "log").open("wb") as log:
        device = subprocess.Popen(
            [sys.executable, "-m", "pilltrack", "serve", "--port=0", f"--home={joined.home}"],
            stderr=log,
            env={**os.environ, "PILLTRACK_TOKEN": ""},
        )
        try:
            address = _address(tmp_path / "log")
            assert _bundle(address) == read_bundle(STARTER_BUNDLE).name
            assert run(joined, "now") == 0
            deadline = time.monotonic() + 30
            while _bundle(address) != "tiny":
                assert time.monotonic() < deadline
                time.sleep(0.2)
            status = httpx.get(f"{address}/api/v1/status").json()["update"]
            assert status["on_trial"]
            assert status["active"] == Slots(joined.home, STARTER_BUNDLE).state().active
            device.kill()  # as if the power failed
            device.wait()
            device = subprocess.Popen(
                [sys.executable, "-m", "pilltrack", "serve", "--port=0", f"--home={joined.home}"],
                stderr=(tmp_path / "again").open("wb"),
            )
            assert _bundle(_address(tmp_path / "again")) == "tiny"
            trial = Slots(joined.home, STARTER_BUNDLE).state().trial
            assert trial is not None
            assert trial.starts == 1
        finally:
            device.terminate()
            device.wait(timeout=30)


def _address(log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _bundle(address: str) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            return str(httpx.get(f"{address}/readyz", timeout=10).json()["bundle"])
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
