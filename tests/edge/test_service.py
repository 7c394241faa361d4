"""The open bundle and home of a device, however they are asked."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilltrack.core.errors import BundleRejected
from pilltrack.core.identify import Identifier, open_identifier
from pilltrack.core.local import DATABASE_FILE, LocalReferences
from pilltrack.edge.audit import AuditLog
from pilltrack.edge.enrol import PhotosRefused
from pilltrack.edge.prescription import Expected
from pilltrack.edge.record import DecisionRecord, gallery_digest
from pilltrack.edge.replay import replay
from pilltrack.edge.service import Service
from tests.edge.conftest import noise, red
from tests.tiny_bundle import tiny_bundle

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def service(bundle: Path, tmp_path: Path) -> Iterator[Service]:
    service = Service(bundle, tmp_path / "home", threads=1)
    yield service
    service.close()


def test_a_record_names_the_gallery_that_was_searched_after_whatever_was_enrolled_or_forgotten(
    service: Service, bundle: Path
) -> None:
    seen = []

    def check() -> None:
        service.check(red(), [Expected("red-pill", 1)], NOW)
        recorded = service.history(1)[0].record
        assert isinstance(recorded, DecisionRecord)
        assert recorded.gallery == gallery_digest(service.identifier.gallery)
        seen.append(recorded.gallery)

    check()
    enrol(service, "one", noise(1))
    check()
    enrol(service, "one", noise(2))  # one more photo of it
    enrol(service, "two", noise(3))
    check()
    assert service.forget("one") == 2
    check()
    assert service.forget("two") == 1
    check()
    assert seen[-1] == seen[0]
    assert len(set(seen)) == 4


def test_checks_are_decided_recorded_and_replayed_by_the_rule_for_what_is_enrolled(
    tmp_path: Path,
) -> None:
    bundle = tiny_bundle(tmp_path, "red-pill", red(), alone=0.5)
    service = Service(bundle, tmp_path / "home", threads=1)
    numbers, thresholds = [], []
    for _ in range(2):
        service.check(red(), [Expected("red-pill", 1)], NOW)
        [entry] = service.history(1)
        assert isinstance(entry.record, DecisionRecord)
        numbers.append(entry.id)
        thresholds.append(entry.record.threshold)
        enrol(service, "another", noise(1))
    assert thresholds == [0.5, 0.99]
    parts = service.identifier.embedder, service.identifier.gallery, service.identifier.calibration
    with AuditLog(tmp_path / "home", create=False) as log:
        assert replay(log, numbers[1], *parts).equal
        service.forget("another")
        assert replay(log, numbers[0], *parts).equal
    service.close()


def test_photos_collide_by_the_rule_that_holds_once_their_pill_is_enrolled(tmp_path: Path) -> None:
    service = Service(
        tiny_bundle(tmp_path, "red-pill", red(), alone=-1.0), tmp_path / "home", threads=1
    )
    enrol(service, "another", noise(1))  # alone, the red pill would be taken for anything
    assert service.forget("another") == 1
    service.close()


def test_nobody_is_turned_away_while_the_bundle_is_changed(
    service: Service, bundle: Path, tmp_path: Path
) -> None:
    other = tiny_bundle(tmp_path, "blue-pill", red())
    named: list[str | None] = []
    ended: list[bool] = []
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                named.append(service.look(red(), is_crop=True).pills[0].decision.pill)
        finally:
            ended.append(over.is_set())

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    for turn in range(10):
        service.change(other if turn % 2 == 0 else bundle)
    over.set()
    for looker in lookers:
        looker.join()
    assert ended == [True] * 4
    assert set(named) == {"red-pill", "blue-pill"}
    assert service.look(red(), is_crop=True).pills[0].decision.pill == "red-pill"


def test_an_old_bundle_is_closed_when_the_last_who_began_with_it_ends(
    service: Service, tmp_path: Path
) -> None:
    other = tiny_bundle(tmp_path, "blue-pill", red())
    old = service.identifier.gallery.bundled
    with service._using() as identifier:
        service.change(other)
        assert len(identifier.gallery.search(identifier.embedder.embed([red()]), 1)) == 1
    with pytest.raises(Exception, match="Shard is not initialized"):
        old.search(identifier.embedder.embed([red()]), 1)


def test_what_was_enrolled_here_is_known_with_another_bundle_too(
    service: Service, tmp_path: Path
) -> None:
    enrol(service, "mine", noise(7))
    service.change(tiny_bundle(tmp_path, "blue-pill", red()))
    [pill] = service.look(noise(7), is_crop=True).pills
    assert pill.decision.candidates[0].pill == "mine"
    service.check(noise(7), [Expected("mine", 1)], NOW)
    recorded = service.history(1)[0].record
    assert isinstance(recorded, DecisionRecord)
    assert recorded.gallery == gallery_digest(service.identifier.gallery)


def test_what_is_enrolled_or_forgotten_while_a_bundle_opens_is_so_in_it(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody waits for the opening."""
    enrol(service, "old", noise(8))

    def slowly(*arguments: Any) -> Identifier:
        identifier = open_identifier(*arguments)
        enrol(service, "mine", noise(7))
        service.forget("old")
        service.check(red(), [Expected("red-pill", 1)], NOW)
        return identifier

    monkeypatch.setattr("pilltrack.edge.service.open_identifier", slowly)
    service.change(tiny_bundle(tmp_path, "blue-pill", red()))
    assert service.identifier.gallery.pills() == ["blue-pill", "mine"]
    [pill] = service.look(noise(7), is_crop=True).pills
    assert pill.decision.candidates[0].pill == "mine"


def test_a_bundle_is_as_slow_as_the_one_before_with_the_photos_of_this_place(
    service: Service, tmp_path: Path
) -> None:
    for _ in range(20):
        service.health.looked(2000.0)
    service.change(tiny_bundle(tmp_path, "blue-pill", red()))
    for _ in range(20):
        service.health.looked(5900.0)
    assert service.health.fault(1000.0) == ""
    for _ in range(50):
        service.health.looked(6100.0)
    assert service.health.fault(1000.0) == "a look takes 6100 ms, expected at most 6000 ms"


def test_a_bundle_that_cannot_be_opened_leaves_the_old_one(
    service: Service, bundle: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "model.tflite").write_bytes(b"x")
    with pytest.raises(BundleRejected):
        service.change(damaged)
    assert service.bundle == bundle
    assert service.look(red(), is_crop=True).pills[0].decision.pill == "red-pill"


def test_looks_that_fail_count_against_the_bundle_and_bad_photos_do_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the model broke")

    monkeypatch.setattr(type(service.identifier), "identify_crop", broken)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            service.look(red(), is_crop=True)
    assert service.health.fault(1000.0) == "3 of 3 looks failed"


@pytest.mark.parametrize("looked", [False, True])
def test_what_another_program_removes_is_no_longer_named(service: Service, looked: bool) -> None:
    enrol(service, "mine", noise(7))
    if looked:
        assert seen(service, noise(7))[0] == "mine"
    with LocalReferences(service.home) as local:
        local.remove("mine")
    assert "mine" not in seen(service, noise(7))
    assert [row.pill for row in service.pills()] == ["red-pill"]


def test_what_another_program_enrols_is_searched(service: Service) -> None:
    with LocalReferences(service.home) as local:
        local.add("theirs", [("a.png", noise(7))])
        assert seen(service, noise(7))[0] == "theirs"
        local.add("theirs", [("b.png", noise(8))])
    assert seen(service, noise(8))[0] == "theirs"
    service.check(noise(7), [Expected("theirs", 1)], NOW)
    recorded = service.history(1)[0].record
    assert isinstance(recorded, DecisionRecord)
    assert recorded.gallery == gallery_digest(service.identifier.gallery)


def test_what_was_forgotten_here_and_is_added_again_elsewhere_is_searched(
    service: Service,
) -> None:
    enrol(service, "mine", noise(7))
    seen(service, noise(7))
    service.forget("mine")
    with LocalReferences(service.home) as local:
        local.add("mine", [("crop.png", noise(7))], "front")
    assert seen(service, noise(7))[0] == "mine"


def test_a_pill_that_cannot_be_read_keeps_no_other_from_being_removed(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(service, "zeta", noise(7))
    with LocalReferences(service.home) as local:
        local.add("alpha", [("a.png", noise(8))])
        photo = service.home / "crops" / f"{local.kept('alpha')[0].crop}.png"
        content = photo.read_bytes()
        photo.unlink()
        local.remove("zeta")
    assert seen(service, noise(7)) == ["red-pill"]
    assert "alpha" in caplog.text
    with LocalReferences(service.home) as local:  # nor does it hold up what comes after it
        local.add("beta", [("b.png", noise(9))])
        assert seen(service, noise(9))[0] == "beta"
    seen(service, noise(9))  # to keep an embedding is a change, too
    photo.write_bytes(content)
    assert "alpha" not in seen(service, noise(8))  # it is not tried at every look
    monkeypatch.setattr(service, "_again_at_s", 0.0)
    assert seen(service, noise(8))[0] == "alpha"


def test_a_list_may_expect_and_a_new_pill_collides_with_what_another_program_enrolled(
    service: Service,
) -> None:
    with LocalReferences(service.home) as local:
        local.add("theirs", [("a.png", noise(7))])
    assert [row.pill for row in service.expected(b"1 theirs", "list")] == ["theirs"]
    with LocalReferences(service.home) as local:
        local.add("third", [("b.png", red())])
    with pytest.raises(PhotosRefused, match="collides"):
        service.enrol("new", [("c.png", red() ^ np.uint8(1))], ["front"], NOW, crops=True)


def test_a_check_names_the_gallery_that_was_searched_after_another_program_wrote(
    service: Service,
) -> None:
    enrol(service, "mine", noise(7))
    service.check(noise(7), [Expected("mine", 1)], NOW)
    with LocalReferences(service.home) as local:
        local.remove("mine")
    service.check(noise(7), [Expected("mine", 1)], NOW)
    recorded = service.history(1)[0].record
    assert isinstance(recorded, DecisionRecord)
    assert recorded.gallery == gallery_digest(service.identifier.gallery)
    assert service.identifier.gallery.pills() == ["red-pill"]


def test_a_home_that_breaks_is_told_of_and_what_was_read_still_serves(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    enrol(service, "mine", noise(7))
    seen(service, noise(7))
    (service.home / DATABASE_FILE).write_bytes(b"no database" * 1000)
    assert seen(service, noise(7))[0] == "mine"
    assert "references.sqlite" in caplog.text


def seen(service: Service, crop: np.ndarray) -> list[str]:
    """The pills that a crop is most like, the nearest first."""
    [pill] = service.look(crop, is_crop=True).pills
    return [candidate.pill for candidate in pill.decision.candidates]


def enrol(service: Service, pill: str, crop: np.ndarray) -> None:
    service.enrol(pill, [("crop.png", crop)], ["front"], NOW, crops=True, reason="a test")
