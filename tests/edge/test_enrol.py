"""Photos are enrolled, or refused with every reason why; an override is on record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from pilltrack.core.errors import ImageRejected, InputRejected, StageFailed
from pilltrack.core.local import LocalReferences, digest_of
from pilltrack.core.locate import MAX_CROP_PX, Found, Locator
from pilltrack.edge.app import create_app
from pilltrack.edge.audit import AuditLog
from pilltrack.edge.enrol import PhotosRefused
from pilltrack.edge.record import MAX_REASON_LENGTH, Override
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings
from tests.drawn import BLUE, GREEN, RED, Photo, empty_table, pill_photo
from tests.edge.conftest import BASE, noise, png
from tests.tiny_bundle import COLOURED, tiny_bundle

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
BOTH = ("front", "back")
HERE, THERE = (140, 118), (180, 122)  # places in a photo


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds what is coloured; the red tablet is enrolled in it."""
    crop = pill_photo(RED, length_px=120)[40:200, 80:240]
    return tiny_bundle(tmp_path_factory.mktemp("enrol"), "red-pill", crop, locator=COLOURED)


@pytest.fixture
def service(bundle: Path, tmp_path: Path) -> Iterator[Service]:
    service = Service(bundle, tmp_path / "home", threads=1)
    yield service
    service.close()


@pytest.fixture
def client(bundle: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=bundle, home=tmp_path / "home")
    app = create_app(Service(bundle, settings.home, threads=1), settings)
    with TestClient(app, base_url=BASE) as client:
        yield client


# What is enrolled


def test_three_photos_of_both_sides_are_searchable_at_once(service: Service) -> None:
    assert service.look(pill_photo()).pills[0].decision.kind == "unknown"
    photos = named(pill_photo(), pill_photo(at=HERE), pill_photo(at=THERE))
    done = service.enrol("green", photos, ["front", "front", "back"], NOW)
    assert (done.references, done.new, done.overridden) == (3, 3, ())
    [pill] = service.look(pill_photo(at=(150, 120))).pills
    assert (pill.decision.kind, pill.decision.pill) == ("known", "green")
    assert [kept.side for kept in service.kept("green")] == ["front", "front", "back"]
    assert overrides(service) == []


def test_the_other_side_may_come_later_and_a_pill_does_not_collide_with_itself(
    service: Service,
) -> None:
    service.enrol("green", named(pill_photo()), ["front"], NOW, reason="the back comes later")
    done = service.enrol("green", [("back.png", pill_photo(at=HERE))], ["back"], NOW)
    assert (done.references, done.new, done.overridden) == (2, 1, ())


def test_photos_of_one_name_are_told_apart(service: Service) -> None:
    photos = [("image.jpg", pill_photo()), ("image.jpg", pill_photo(at=HERE))]
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("green", [*photos, ("image.jpg", pill_photo(blur_px=6))], [""] * 3, NOW)
    assert [
        refused.value.judged.names.index(f.image) for f in refused.value.judged.faults if f.image
    ] == [2]
    service.enrol("green", photos, BOTH, NOW)
    assert [kept.image for kept in service.kept("green")] == ["image.jpg", "image.jpg (2)"]


# What is refused


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("blurred", pill_photo(blur_px=6)),
        ("clipped", pill_photo(at=(58, 120))),
        ("too dark", pill_photo(light=0.4)),
        ("no pill", empty_table()),
    ],
)
def test_a_bad_photo_is_named_and_none_is_enrolled(
    kind: str, bad: Photo, service: Service, tmp_path: Path
) -> None:
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("new", named(pill_photo(), bad), BOTH, NOW)
    [fault] = refused.value.judged.faults
    assert (fault.kind, fault.image) == (kind, "2.png")
    assert fault.found
    assert fault.expected
    assert fault.remedy
    assert not (tmp_path / "home").exists()
    assert [pill.pill for pill in service.pills()] == ["red-pill"]


def test_all_faults_are_said_at_once(service: Service) -> None:
    photos = named(pill_photo(blur_px=6), pill_photo(light=0.4), pill_photo(RED), pill_photo(RED))
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("new", photos, ["front"] * 4, NOW)
    said = {(fault.image, fault.kind) for fault in refused.value.judged.faults}
    assert said >= {
        ("1.png", "blurred"), ("2.png", "too dark"), ("", "one side"), ("3.png", "collides"),
    }  # fmt: skip
    assert "1.png: blurred; 2.png: too dark" in str(refused.value)


@pytest.mark.parametrize("agreement", [0.6, 0.7])
def test_photos_of_two_pills_disagree_by_the_limit_of_the_bundle(
    bundle: Path, tmp_path: Path, agreement: float
) -> None:
    # All pills are alike to the golden model: two have a cosine of 0.67.
    strict = shutil.copytree(bundle, tmp_path / "strict")
    manifest = json.loads((strict / "manifest.json").read_text())
    manifest["calibration"]["agreement"] = agreement
    (strict / "manifest.json").write_text(json.dumps(manifest))
    service = Service(strict, tmp_path / "home", threads=1)
    photos = named(pill_photo(BLUE), pill_photo(RED, at=HERE), pill_photo(BLUE, at=THERE))
    with closing(service), pytest.raises(PhotosRefused) as refused:
        service.enrol("blue", [*photos, *named(pill_photo(BLUE))], ["front"] * 3 + ["back"], NOW)
    said = [(fault.kind, fault.image) for fault in refused.value.judged.faults]
    assert (("disagrees", "2.png") in said) == (agreement > 0.67)


def test_a_pill_of_the_bundle_collides_without_a_picture(service: Service) -> None:
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("rosy", named(pill_photo(RED), pill_photo(RED, at=HERE)), BOTH, NOW)
    [fault] = refused.value.judged.faults
    assert (fault.kind, fault.other, refused.value.judged.alike) == ("collides", "red-pill", "")


def test_a_collision_shows_the_enrolled_photo_that_is_most_alike(service: Service) -> None:
    sides = named(pill_photo(BLUE), pill_photo(GREEN))
    service.enrol("two-faced", sides, BOTH, NOW)
    shown = {kept.side: kept.crop for kept in service.kept("two-faced")}
    for colour, side in ((GREEN, "back"), (BLUE, "front")):
        with pytest.raises(PhotosRefused) as refused:
            service.enrol("other", named(*[pill_photo(colour, at=HERE)] * 2), BOTH, NOW)
        assert [fault.other for fault in refused.value.judged.faults] == ["two-faced"]
        assert refused.value.judged.alike == shown[side]


def test_several_pills_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [Found((x, 60, 50, 50), np.ones((50, 50), bool), 0.9) for x in (40, 160)]
    monkeypatch.setattr(Locator, "locate", lambda self, frame: two)
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("new", named(pill_photo()), ["front"], NOW, reason="both are it")
    assert [fault.kind for fault in refused.value.judged.faults] == ["several pills", "one side"]


def test_a_photo_of_nothing_but_the_pill_may_fill_its_frame_but_not_be_blurred(
    service: Service,
) -> None:
    sharp, soft = (pill_photo(blur_px=blur)[55:185, 95:225] for blur in (0, 6))
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("green", named(sharp, soft), BOTH, NOW, crops=True)
    assert [(f.kind, f.image) for f in refused.value.judged.faults] == [("blurred", "2.png")]
    assert service.enrol("green", named(sharp, sharp[::-1]), BOTH, NOW, crops=True).new == 2
    [first, _] = service.kept("green")
    assert first.crop == digest_of(sharp)


def test_a_phones_photo_of_nothing_but_the_pill_is_kept_no_larger_than_a_crop(
    service: Service,
) -> None:
    large = noise(5).repeat(20, axis=0).repeat(20, axis=1)
    assert max(large.shape) > MAX_CROP_PX
    service.enrol("green", [("large.png", large)], [""], NOW, crops=True, reason="a test")
    [kept] = service.kept("green")
    photo = service.photo(kept.crop)
    assert photo is not None
    assert photo.shape == (MAX_CROP_PX, MAX_CROP_PX, 3)
    [pill] = service.look(large, is_crop=True).pills
    assert pill.decision.candidates[0].pill == "green"


# What is enrolled all the same


def test_an_override_is_on_record_with_its_reason(service: Service, bundle: Path) -> None:
    photos = named(pill_photo(blur_px=6), pill_photo(blur_px=6, at=HERE))
    done = service.enrol("green", photos, BOTH, NOW, reason="  the camera is broken\n")
    assert [fault.kind for fault in done.overridden] == ["blurred", "blurred"]
    [(number, record)] = overrides(service)
    assert (number, record.time, record.pill, record.bundle) == (1, NOW, "green", "tiny")
    assert record.reason == "the camera is broken"
    assert [(f.image, f.kind) for f in record.faults] == [
        ("1.png", "blurred"), ("2.png", "blurred"),
    ]  # fmt: skip
    assert [(p.image, p.side, p.crop) for p in record.photos] == [
        (kept.image, kept.side, kept.crop) for kept in service.kept("green")
    ]
    assert service.history(10) == []
    with AuditLog(service.home, create=False) as log:
        assert log.verify().id == 1


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_without_a_reason_nothing_is_enrolled(reason: str, service: Service) -> None:
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("green", named(pill_photo(blur_px=6)), ["front"], NOW, reason=reason)
    assert refused.value.judged.can_override
    assert "give a reason" in refused.value.remedy


def test_a_reason_that_a_terminal_would_obey_is_refused(service: Service) -> None:
    with pytest.raises(InputRejected, match="reason"):
        service.enrol("green", named(pill_photo()), ["front"], NOW, reason="ok\x1b[1A")


def test_no_reason_enrols_a_photo_without_a_pill(service: Service, tmp_path: Path) -> None:
    photos = named(pill_photo(), empty_table())
    with pytest.raises(PhotosRefused) as refused:
        service.enrol("green", photos, BOTH, NOW, reason="it is there, look closer")
    assert not refused.value.judged.can_override
    assert "nothing to enrol, whatever the reason" in refused.value.remedy
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("reason", ["x" * (MAX_REASON_LENGTH + 1), "broken \udc80 text"])
def test_a_reason_that_cannot_be_kept_is_refused(reason: str, service: Service) -> None:
    with pytest.raises(InputRejected, match=r"reason: .*Say it in other words"):
        service.enrol("green", named(pill_photo(blur_px=6)), ["front"], NOW, reason=reason)


def test_what_cannot_be_put_on_record_is_not_enrolled(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: AuditLog, override: Override) -> int:
        raise StageFailed("audit.sqlite", found="disk full", expected="room", remedy="Free some.")

    monkeypatch.setattr(AuditLog, "add_override", full)
    with pytest.raises(StageFailed, match="disk full"):
        service.enrol("green", named(pill_photo()), ["front"], NOW, reason="no back")
    assert [pill.pill for pill in service.pills()] == ["red-pill"]
    with LocalReferences(tmp_path / "home") as local:
        assert local.pills() == {}


def test_a_photo_of_another_pill_is_not_on_record_as_enrolled(service: Service) -> None:
    service.enrol("green", named(pill_photo(), pill_photo(at=HERE)), BOTH, NOW)
    with pytest.raises(InputRejected, match=r"1\.png of the pill 'green'"):
        service.enrol("other", named(pill_photo()), ["front"], NOW, reason="surely another")
    assert overrides(service) == []


def test_a_photo_the_model_sees_nothing_in_never_reaches_the_home(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    embedder = service.identifier.embedder
    zeros = np.zeros((4, embedder.dim), np.float32)
    monkeypatch.setattr(embedder, "embed", lambda crops: zeros[: len(crops)])
    with pytest.raises(ImageRejected, match=r"1\.png: nothing that the model sees"):
        service.enrol("green", named(pill_photo()), ["front"], NOW, reason="no back")
    assert not (tmp_path / "home").exists()


# Over HTTP


def test_each_photo_may_say_its_side(client: TestClient) -> None:
    answer = post(client, "green", [pill_photo(), pill_photo(at=HERE)], sides=BOTH)
    assert (answer.status_code, answer.json()) == (
        201, {"pill": "green", "references": 2, "new": 2, "overridden": 0},
    )  # fmt: skip
    larger = [pill_photo(length_px=length_px) for length_px in (124, 130)]
    more = post(client, "green", larger, sides=["back"])
    assert (more.status_code, more.json()["references"]) == (201, 4)


def test_other_numbers_of_sides_than_photos_are_refused(client: TestClient) -> None:
    photos = [pill_photo(), pill_photo(at=HERE), pill_photo(at=THERE)]
    answer = post(client, "green", photos, sides=BOTH)
    assert answer.status_code == 422
    assert "side: 2 for 3 photos" in answer.json()["detail"]


def test_faults_are_a_problem_that_lists_them_for_each_photo(client: TestClient) -> None:
    answer = post(client, "green", [pill_photo(), pill_photo(blur_px=6)], sides=["front"])
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["can_override"]) == (422, True)
    sharp, _ = problem["boxes"]
    assert sharp == [100, 60, 120, 120]
    assert [(fault["photo"], fault["kind"]) for fault in problem["faults"]] == [
        (1, "blurred"), (None, "one side"),
    ]  # fmt: skip
    for fault in problem["faults"]:
        assert fault["found"]
        assert fault["expected"]
        assert fault["remedy"]
        assert (fault["other"], fault["picture"]) == (None, None)
    assert [pill["pill"] for pill in client.get("/api/v1/gallery").json()["pills"]] == ["red-pill"]


def test_a_collision_names_the_other_pill_and_its_picture(client: TestClient) -> None:
    photos = [pill_photo(), pill_photo(at=HERE)]
    assert post(client, "green", photos, sides=BOTH).status_code == 201
    [fault] = post(client, "copy", [pill_photo(at=THERE)] * 2, sides=BOTH).json()["faults"]
    assert (fault["kind"], fault["other"]) == ("collides", "green")
    assert client.get(fault["picture"]).headers["content-type"] == "image/png"


def test_a_reason_enrols_all_the_same(client: TestClient, tmp_path: Path) -> None:
    answer = post(client, "green", [pill_photo()], override_reason="both sides are alike")
    assert (answer.status_code, answer.json()["overridden"]) == (201, 1)
    with AuditLog(tmp_path / "home", create=False) as log:
        [(_, record)] = log.overrides()
    assert (record.reason, [fault.kind for fault in record.faults]) == (
        "both sides are alike", ["one side"],
    )  # fmt: skip


def test_a_reason_is_no_help_without_a_pill(client: TestClient) -> None:
    answer = post(client, "green", [empty_table()], override_reason="it is there")
    problem = answer.json()
    assert (answer.status_code, problem["can_override"]) == (422, False)
    assert problem["boxes"] == [None]
    assert [fault["kind"] for fault in problem["faults"]] == ["no pill", "one side"]
    assert "whatever the reason" in problem["remedy"]


def test_a_reason_has_an_end(client: TestClient) -> None:
    reason = "x" * (MAX_REASON_LENGTH + 1)
    answer = post(client, "green", [pill_photo()], override_reason=reason)
    assert answer.status_code == 422
    assert "override_reason" in answer.json()["detail"]


def named(*photos: Photo) -> list[tuple[str, Photo]]:
    return [(f"{number}.png", photo) for number, photo in enumerate(photos, 1)]


def overrides(service: Service) -> list[tuple[int, Override]]:
    try:
        with AuditLog(service.home, create=False) as log:
            return log.overrides()
    except InputRejected:  # nothing was ever put on record
        return []


def post(
    client: TestClient, pill: str, photos: Sequence[Photo], sides: Sequence[str] = (), **form: str
) -> Any:
    data: dict[str, Any] = {"name": pill, "side": list(sides), **form}
    files = [("photos", (name, png(photo))) for name, photo in named(*photos)]
    return client.post("/api/v1/gallery", data=data, files=files)
