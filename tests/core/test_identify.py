import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core import bundle as bundle_module
from pilltrack.core.bundle import write_bundle
from pilltrack.core.decide import RESERVE, Decision, SmallerGallery
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import BundleRejected, SpaceMismatch, StageFailed
from pilltrack.core.gallery import Candidate, Gallery, Reference
from pilltrack.core.identify import (
    IdentifiedPill,
    identify,
    identify_crops,
    open_identifier,
    open_locator,
    to_json,
)
from pilltrack.core.local import LocalReferences
from pilltrack.core.locate import Found, Locator
from tests.calibrations import calibration

INT8 = Path(__file__).parents[1] / "golden" / "tiny_int8.tflite"
LOCATOR = INT8.with_name("whole_frame_locator.tflite")
PLANE = "plane"  # the embedding space of Compass


class Compass:
    """An embedder whose embedding is the colour of the first pixel: red east, green north."""

    dim = 2
    input_size_px = 1
    space = PLANE

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        colours = np.array([crop[0, 0, :2] for crop in crops], dtype=np.float32).reshape(-1, 2)
        lengths = np.linalg.norm(colours, axis=1, keepdims=True)
        unit: NDArray[np.float32] = colours / np.maximum(lengths, 1e-6)
        return unit


class MiddleCompass(Compass):
    """The same with the pixel in the middle."""

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        middles = [crop[crop.shape[0] // 2 :, crop.shape[1] // 2 :] for crop in crops]
        return super().embed(middles)


class Scripted(Locator):
    """Finds what it was told."""

    def __init__(self, found: list[Found]) -> None:
        self.found = found

    def locate(self, frame: NDArray[np.uint8]) -> list[Found]:
        return self.found


@pytest.mark.parametrize(
    ("colour", "kind", "pill"),
    [
        ((200, 0, 0), "known", "east"),
        ((0, 200, 0), "known", "north"),
        ((100, 100, 0), "ambiguous", None),
        ((0, 0, 200), "unknown", None),  # no red, no green: similar to nothing
    ],
)
def test_crop_is_decided_by_its_nearest_pills(
    colour: tuple[int, int, int], kind: str, pill: str | None
) -> None:
    with plane_gallery() as gallery:
        [decision] = identify_crops([frame(colour)], Compass(), gallery, calibration(PLANE))
    assert (decision.kind, decision.pill) == (kind, pill)
    assert {candidate.pill for candidate in decision.candidates} == {"east", "north"}


def test_every_pill_in_a_frame_is_decided_by_itself() -> None:
    tray = np.full((100, 200, 3), 90, dtype=np.uint8)
    tray[20:40, 30:50] = (200, 0, 0)
    tray[50:80, 120:160] = (0, 200, 0)
    boxes = [(120, 50, 40, 30), (30, 20, 20, 20)]
    locator = Scripted([Found(box, np.ones(box[:1:-1], bool), 0.8) for box in boxes])
    with plane_gallery() as gallery:
        pills = identify(tray, locator, MiddleCompass(), gallery, calibration(PLANE))
        assert identify(tray, Scripted([]), Compass(), gallery, calibration(PLANE)) == []
    assert [(pill.box, pill.decision.pill) for pill in pills] == list(
        zip(boxes, ("north", "east"), strict=True)
    )
    assert {pill.confidence for pill in pills} == {0.8}


def test_few_pills_are_decided_by_the_rule_for_few() -> None:
    few = SmallerGallery(
        gallery_size=2 * RESERVE, threshold=0.5, fpir_upper=0.01, misnamed_upper=0.01
    )
    limits = calibration(PLANE, threshold=0.99).model_copy(update={"smaller": (few,)})
    reddish = frame((200, 60, 0))
    with plane_gallery() as gallery:
        [decision] = identify_crops([reddish], Compass(), gallery, limits)
        assert (decision.kind, decision.pill) == ("known", "east")
        assert decision.score < 0.99
        gallery.enrol([Reference("west", "", "w.png")], np.array([[-1, 0]], np.float32))
        [decision] = identify_crops([reddish], Compass(), gallery, limits)
        assert decision.kind == "unknown"


def test_one_listed_candidate_still_sees_its_rival() -> None:
    with plane_gallery() as gallery:
        [decision] = identify_crops(
            [frame((100, 100, 0))], Compass(), gallery, calibration(PLANE), 1
        )
    assert decision.kind == "ambiguous"
    assert len(decision.candidates) == 1


def test_empty_gallery_knows_nothing() -> None:
    with Gallery.create(PLANE, 2) as gallery:
        [decision] = identify_crops([frame((200, 0, 0))], Compass(), gallery, calibration(PLANE))
    assert decision == Decision("unknown", None, 0.0, ())


def test_gallery_of_another_space_is_refused() -> None:
    with (
        Gallery.create("other", 2) as gallery,
        pytest.raises(SpaceMismatch, match=r"gallery: .*other.*plane"),
    ):
        identify_crops([frame((1, 1, 1))], Compass(), gallery, calibration(PLANE))


def test_calibration_of_another_space_is_refused() -> None:
    with plane_gallery() as gallery, pytest.raises(SpaceMismatch, match=r"calibration: .*other"):
        identify_crops([frame((1, 1, 1))], Compass(), gallery, calibration("other"))


def test_opened_bundle_knows_the_enrolled_photos_and_learns_a_new_pill(bundle: Path) -> None:
    with open_identifier(bundle) as identifier:
        for pill, photo in photos().items():
            [found] = identifier.identify_crop(photo)
            assert (found.decision.kind, found.decision.pill) == ("known", pill)
            assert found.decision.score == pytest.approx(1, abs=1e-5)
            assert len(found.decision.candidates) == 3
        checked = np.zeros((50, 50, 3), dtype=np.uint8)
        checked[::2] = 255
        assert identifier.identify_crop(checked)[0].decision.kind == "unknown"
        embedding = identifier.embedder.embed([checked])
        identifier.gallery.enrol([Reference("checked", "", "new.jpg")], embedding)
        assert identifier.identify_crop(checked)[0].decision.pill == "checked"
    with open_identifier(bundle) as identifier:  # the bundle itself has not changed
        assert identifier.gallery.pills() == ["black", "noise", "white"]


def test_what_is_enrolled_on_the_device_is_searched_with_the_bundle(
    bundle: Path, tmp_path: Path
) -> None:
    checked = np.zeros((50, 50, 3), dtype=np.uint8)  # alike in all turns, as references are
    checked[15:35, 15:35] = 255
    with LocalReferences(tmp_path / "home") as local:
        local.add("checked", [("c.png", checked)])
        local.add("black", [("w.png", checked // 2)])  # one more of a pill of the bundle
    with open_identifier(bundle, local=tmp_path / "home") as identifier:
        assert identifier.gallery.pills() == ["black", "checked", "noise", "white"]
        assert len(identifier.gallery) == 5
        for photo, pill in ((checked, "checked"), (photos()["white"], "white")):
            [found] = identifier.identify_crop(photo)
            assert (found.decision.kind, found.decision.pill) == ("known", pill)
            assert found.decision.score == pytest.approx(1, abs=1e-5)
            assert len(found.decision.candidates) == 4  # each pill once
        for photo in (photos()["black"], checked // 2):
            best = identifier.identify_crop(photo)[0].decision.candidates[0]
            assert best.pill == "black"
            assert best.score == pytest.approx(1, abs=1e-5)
    with open_identifier(bundle) as identifier:
        assert identifier.gallery.pills() == ["black", "noise", "white"]


def test_pills_of_bundle_and_device_that_tie_come_in_order_of_name(
    bundle: Path, tmp_path: Path
) -> None:
    with LocalReferences(tmp_path / "home") as local:
        for pill, size_px in (("zinc", 20), ("aspirin", 40)):  # all white, as the bundle's "white"
            local.add(pill, [("p.png", np.full((size_px, size_px, 3), 255, dtype=np.uint8))])
    with open_identifier(bundle, local=tmp_path / "home") as identifier:
        [found] = identifier.identify_crop(photos()["white"])
    names = [candidate.pill for candidate in found.decision.candidates[:3]]
    assert names == ["aspirin", "white", "zinc"]
    assert len({candidate.score for candidate in found.decision.candidates[:3]}) == 1
    assert found.decision.kind == "ambiguous"


def test_home_where_nothing_was_enrolled_adds_nothing_and_is_not_made(
    bundle: Path, tmp_path: Path
) -> None:
    with open_identifier(bundle, local=tmp_path / "home") as identifier:
        assert len(identifier.gallery) == 3
    assert not (tmp_path / "home").exists()


def test_damaged_home_is_not_passed_over(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "references.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(StageFailed, match=r"references\.sqlite"):
        open_identifier(bundle, local=tmp_path)


def test_frame_of_another_type_is_refused(bundle: Path) -> None:
    with open_identifier(bundle) as identifier, pytest.raises(ValueError, match="uint8"):
        identifier.identify_crop(np.zeros((9, 9), dtype=np.uint8))


def test_bundle_whose_gallery_has_other_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRejected, match=r"shape \(0, 5\).*expected \(N, 8\)"):
        open_identifier(make_bundle(tmp_path, gallery_dim=5))


def test_tampered_bundle_is_not_opened(bundle: Path) -> None:
    (bundle / "model.tflite").write_bytes(b"x")
    for opened in (open_identifier, open_locator):
        with pytest.raises(BundleRejected, match=r"model\.tflite"):
            opened(bundle)


def test_opened_bundle_finds_with_its_own_locator(bundle: Path) -> None:
    photo = photos()["white"]
    with open_identifier(bundle) as identifier:
        [pill] = identifier.identify(photo)
        [found] = open_locator(bundle).locate(photo)
        assert pill.box == found.box == (0, 0, 50, 30)
        assert pill.confidence == found.confidence == pytest.approx(np.sqrt(0.9), abs=1e-3)
        identifier.locator.min_confidence = 0.95
        assert identifier.identify(photo) == []


def test_json_has_exactly_the_promised_shape() -> None:
    candidates = (Candidate("a", 0.9), Candidate("b", 0.1))
    pills = [IdentifiedPill((1, 2, 3, 4), 0.75, Decision("known", "a", 0.9, candidates))]
    expected = {
        "image": "tray.jpg",
        "pills": [
            {
                "box": [1, 2, 3, 4],
                "confidence": 0.75,
                "decision": "known",
                "pill": "a",
                "score": 0.9,
                "candidates": [{"pill": "a", "score": 0.9}, {"pill": "b", "score": 0.1}],
            }
        ],
    }
    assert to_json("tray.jpg", pills) == expected
    assert json.loads(json.dumps(to_json("tray.jpg", pills), allow_nan=False)) == expected


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


def make_bundle(tmp_path: Path, gallery_dim: int = 8) -> Path:
    embedder = open_embedder(INT8)
    with Gallery.create(embedder.space, gallery_dim) as gallery:
        if gallery_dim == embedder.dim:
            references = [Reference(pill, "", f"{pill}.png") for pill in photos()]
            gallery.enrol(references, embedder.embed(list(photos().values())))
        gallery.save(tmp_path / "gallery")
    write_bundle(
        tmp_path / "bundle",
        name="test",
        locator=LOCATOR,
        min_confidence=0.5,
        model=INT8,
        gallery=tmp_path / "gallery",
        probe_crops=list(photos().values()),
        probe_frames=[],
        calibration=calibration(embedder.space, threshold=0.9995, margin=0.0),
        pills={pill: {} for pill in photos()},
        git_commit="",
        data_digest="",
        params_digest="",
    )
    assert bundle_module.read_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def photos() -> dict[str, NDArray[np.uint8]]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return {
        "black": np.zeros((50, 30, 3), dtype=np.uint8),
        "noise": noise,
        "white": np.full((30, 50, 3), 255, dtype=np.uint8),
    }


def plane_gallery() -> Gallery:
    gallery = Gallery.create(PLANE, 2)
    gallery.enrol(
        [Reference("east", "", "e"), Reference("north", "", "n")], np.eye(2, dtype=np.float32)
    )
    return gallery


def frame(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((40, 60, 3), colour, dtype=np.uint8)
