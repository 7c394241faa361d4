"""A serving device follows its state, watches what it switched to, and drops nobody meanwhile."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pytest

from pilltrack.core.bundle import PROBES_FILE
from pilltrack.core.errors import StageFailed
from pilltrack.core.identify import Identifier
from pilltrack.edge import follow
from pilltrack.edge.follow import Follower, Following, Timer
from pilltrack.edge.happenings import Happening, utc_now
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings
from pilltrack.edge.slots import Slots, digest_of_manifest
from pilltrack.edge.source import UpdateSource, join
from pilltrack.edge.updater import Outcome
from tests.edge.conftest import red
from tests.edge.fleet import fleet, make_bundles
from tests.edge.server import as_png, serving

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def home_is_damaged() -> StageFailed:
    return StageFailed("crops/1.png", found="missing", expected="a photo", remedy="Add it.")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_bundles(tmp_path_factory.mktemp("bundles"), 3)


@pytest.fixture
def slots(tmp_path: Path, bundles: list[Path]) -> Slots:
    slots = Slots(tmp_path / "home", bundles[0])
    slots.begin()
    for bundle in bundles[1:]:
        shutil.copytree(bundle, slots.slot(digest_of_manifest(bundle)))
    return slots


@pytest.fixture
def digests(bundles: list[Path]) -> list[str]:
    return [digest_of_manifest(bundle) for bundle in bundles[1:]]


@pytest.fixture
def service(slots: Slots) -> Iterator[Service]:
    service = Service(slots.install, slots.root.parent, threads=1)
    yield service
    service.close()


class Clock:
    now_s = 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[Happening]:
    return []


@pytest.fixture
def follower(service: Service, slots: Slots, clock: Clock, told: list[Happening]) -> Follower:
    return Follower(service, slots, told.append, lambda: clock.now_s)


def test_whatever_becomes_active_is_opened_and_confirmed_after_its_watch(
    follower: Follower, slots: Slots, digests: list[str], clock: Clock, told: list[Happening]
) -> None:
    slots.switch(digests[0], NOW)
    follower.step()
    assert pills(follower) == ["pill-1"]
    clock.now_s = 599.0
    follower.step()
    assert slots.state().trial is not None
    clock.now_s = 600.0
    follower.step()
    assert slots.state().trial is None
    assert [(h.kind, h.manifest) for h in told] == [
        ("switched", digests[0]),
        ("confirmed", digests[0]),
    ]


def test_a_bundle_that_cannot_be_opened_is_given_up(
    follower: Follower, slots: Slots, digests: list[str], told: list[Happening]
) -> None:
    slots.switch(digests[0], NOW)
    (slots.slot(digests[0]) / "model.tflite").write_bytes(b"")
    follower.step()
    assert pills(follower) == ["pill-0"]
    assert slots.state().active is None
    assert slots.state().refuses(digests[0], utc_now()) == "cannot be opened"
    assert told[-1].kind == "rolled back"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), home_is_damaged()])
def test_what_is_not_the_bundles_fault_does_not_condemn_it(
    error: Exception, follower: Follower, slots: Slots, digests: list[str],
    monkeypatch: pytest.MonkeyPatch, clock: Clock,
) -> None:  # fmt: skip
    slots.switch(digests[0], NOW)
    tries = []

    def failing(*_: object) -> None:
        tries.append(1)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("pilltrack.edge.service.open_identifier", failing)
        for _ in range(5):
            follower.step()
            clock.now_s += 1000.0
    assert len(tries) == 1
    assert (slots.state().active, slots.state().trial) == (None, None)
    assert slots.state().refuses(digests[0], utc_now()) == ""
    slots.switch(digests[0], NOW)  # the next update does
    follower.step()
    assert pills(follower) == ["pill-1"]


def test_only_what_is_open_is_confirmed(
    follower: Follower, slots: Slots, digests: list[str], clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A disk on which the way back cannot be written, and an update that tries once more."""
    slots.switch(digests[0], NOW)

    def failing(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pilltrack.edge.service.open_identifier", failing)
        patch.setattr(slots, "roll_back", failing)
        with pytest.raises(OSError, match="No space"):
            follower.step()
        clock.now_s = 10_000.0
        with pytest.raises(OSError, match="No space"):
            follower.step()
    assert slots.state().trial is not None
    assert pills(follower) == ["pill-0"]
    follower.step()
    assert pills(follower) == ["pill-1"]
    assert slots.state().trial is not None


def test_a_watch_goes_on_after_a_restart(
    follower: Follower, slots: Slots, digests: list[str], clock: Clock, service: Service
) -> None:
    slots.switch(digests[0], NOW)
    slots.start()
    follower.step()
    clock.now_s = 31.0
    follower.step()
    trial = slots.state().trial
    assert trial is not None
    assert (trial.starts, trial.watched_s) == (0, 31.0)
    clock.now_s = 40.0
    follower.close()
    trial = slots.state().trial
    assert trial is not None
    assert trial.watched_s == 40.0
    again = Follower(service, slots, clock=lambda: clock.now_s)
    clock.now_s = 599.0
    again.step()
    assert slots.state().trial is not None
    clock.now_s = 600.0
    again.step()
    assert slots.state().trial is None


def test_looks_that_fail_lead_back(
    follower: Follower, slots: Slots, digests: list[str], told: list[Happening],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slots.switch(digests[0], NOW)
    slots.confirm(digests[0])
    follower.step()
    slots.switch(digests[1], NOW)
    follower.step()

    def broken(*_: object) -> None:
        raise RuntimeError("the model broke")

    monkeypatch.setattr(type(follower.service.identifier), "identify_crop", broken)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            follower.service.look(red(), is_crop=True)
    monkeypatch.undo()
    follower.step()
    assert (told[-1].kind, told[-1].reason) == ("rolled back", "failed its watch")
    assert "3 of 3 looks failed" in told[-1].detail
    follower.step()
    assert pills(follower) == ["pill-1"]
    assert follower.service.health.fault(1000.0) == ""


def test_looks_that_take_too_long_lead_back(
    follower: Follower, slots: Slots, digests: list[str], tmp_path: Path
) -> None:
    with fleet(tmp_path / "other", [slots.install]) as other:
        root = (other.directory / "keys" / "1.root.json").read_bytes()
    join(slots, UpdateSource(url="https://pills.example.org", max_frame_ms=50.0), root)
    slots.switch(digests[0], NOW)
    follower.step()
    for _ in range(20):
        follower.service.health.looked(51.0)
    follower.step()
    assert slots.state().active is None
    assert "a look takes 51 ms" in slots.happenings(1)[0].detail


def test_a_bundle_that_breaks_its_promises_while_nobody_looks_is_given_up(
    follower: Follower, slots: Slots, digests: list[str], clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slots.switch(digests[0], NOW)
    follower.step()
    monkeypatch.setattr(Identifier, "broken_promises", lambda *_, **__: ("probe 1: cosine 0.1",))
    clock.now_s = 601.0
    follower.step()
    assert slots.state().active is None
    assert "probe 1: cosine 0.1" in slots.happenings(1)[0].detail


def test_a_bundle_whose_probes_are_damaged_while_it_is_watched_is_given_up(
    follower: Follower, slots: Slots, digests: list[str], clock: Clock
) -> None:
    slots.switch(digests[0], NOW)
    follower.step()
    probes = follower.service.bundle / PROBES_FILE
    probes.write_bytes(probes.read_bytes()[:-1])
    clock.now_s = 601.0
    follower.step()
    assert slots.state().active is None
    assert PROBES_FILE in slots.happenings(1)[0].detail


def test_a_bundle_of_the_install_that_is_gone_leaves_the_open_one(
    follower: Follower, slots: Slots, digests: list[str], told: list[Happening], tmp_path: Path
) -> None:
    slots.switch(digests[0], NOW)
    follower.step()
    slots.install = tmp_path / "gone"
    slots.roll_back(digests[0], "an operator went back")
    for _ in range(3):
        follower.step()
    assert pills(follower) == ["pill-1"]
    assert [h.reason for h in told] == ["published", "an operator went back", "cannot be opened"]


def test_what_others_put_on_record_is_told_once(
    follower: Follower, slots: Slots, told: list[Happening]
) -> None:
    for number in range(3):
        slots.record("failed", "no answer", None, str(number))
        follower.step()
        follower.step()
    assert [happening.detail for happening in told] == ["0", "1", "2"]


def test_a_fleet_does_not_come_at_once(slots: Slots) -> None:
    waits = [Timer(slots, slots.root.parent, random.Random(n)).first_wait_s() for n in range(300)]
    assert min(waits) < 5.0
    assert 295.0 < max(waits) <= 300.0


def test_the_timer_waits_longer_after_each_failure_and_asks_nobody_when_it_follows_nobody(
    slots: Slots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timer = Timer(slots, slots.root.parent, random.Random(0))
    assert timer.look() == follow.NOBODY_S
    with fleet(tmp_path / "other", [slots.install]) as other:
        root = (other.directory / "keys" / "1.root.json").read_bytes()
    join(slots, UpdateSource(url="http://127.0.0.1:9", interval_s=3600), root)
    monkeypatch.setattr(follow, "update_apart", lambda *_, **__: Outcome("failed", "no answer"))
    for expected_s in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        assert expected_s / 2 <= timer.look() <= 1.5 * expected_s
    monkeypatch.setattr(follow, "update_apart", lambda *_, **__: Outcome("current"))
    assert 1800 <= timer.look() <= 5400


def test_a_damaged_source_is_complained_of_once_and_nothing_stops(
    slots: Slots, follower: Follower, digests: list[str], clock: Clock
) -> None:
    timer = Timer(slots, slots.root.parent, random.Random(0))
    (slots.root / "source.json").write_text('{"url": null}')
    slots.switch(digests[0], NOW)
    follower.step()
    for _ in range(3):
        assert timer.look() == follow.NOBODY_S
    assert [h.reason for h in slots.happenings(9)] == ["published", "source is damaged"]
    clock.now_s = 601.0
    follower.step()
    assert slots.state().trial is None


def test_a_device_serves_on_when_its_updates_break(
    follower: Follower, slots: Slots, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(follow, "STEP_S", 0.01)
    steps = threading.Semaphore(0)

    def broken() -> None:
        steps.release()
        raise ZeroDivisionError

    monkeypatch.setattr(follower, "step", broken)
    following = Following(follower, Timer(slots, slots.root.parent, random.Random(0)))
    for _ in range(5):
        assert steps.acquire(timeout=10)
    following.close()
    assert [record.exc_text for record in caplog.records].count(None) == 0
    assert len(caplog.records) == 1  # the same error is said once


def test_no_request_is_dropped_while_updates_come_and_go(
    tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way over HTTP: publish, update, follow, under load."""
    monkeypatch.setattr(follow, "STEP_S", 0.02)
    with fleet(tmp_path, bundles) as device:
        settings = Settings(
            bundle=bundles[0], home=device.home, max_waiting=16, requests_per_s=1e6, burst=10**6
        )
        answers: list[Answer] = []
        over = threading.Event()
        with serving(settings, device.slots) as address:
            askers = [
                threading.Thread(target=_ask, args=(address, answers, over)) for _ in range(6)
            ]
            for asker in askers:
                asker.start()
            for number in (1, 2):
                _wait(lambda: len(answers) > 20)
                device.publish(number)
                assert device.update().kind == "switched"
                seen = len(answers)
                _wait(partial(_knows, answers, seen, f"pill-{number}"))
            over.set()
            for asker in askers:
                asker.join()
    assert {status for status, _ in answers} == {200}
    assert {pill for _, pill in answers} == {"pill-0", "pill-1", "pill-2"}


Answer = tuple[int, str]  # status, the enrolled pill that is nearest


def _knows(answers: list[Answer], since: int, pill: str) -> bool:
    return pill in {named for _, named in answers[since:]}


def _ask(address: str, answers: list[Answer], over: threading.Event) -> None:
    files = {"image": ("red.png", as_png(red()), "image/png")}
    with httpx.Client(base_url=address, timeout=30) as client:
        while not over.is_set():
            answer = client.post("/api/v1/identify", params={"crop": "true"}, files=files)
            found = answer.json()
            [pill] = found["pills"]
            answers.append((answer.status_code, pill["candidates"][0]["pill"]))


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def pills(follower: Follower) -> list[str]:
    return follower.service.identifier.gallery.pills()
