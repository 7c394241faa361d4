"""What goes on record reads back equal, and its gallery digest names exactly what is searched."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from pilltrack.core.background import Background
from pilltrack.core.bundle import read_bundle
from pilltrack.core.decide import Decision
from pilltrack.core.device_gallery import DeviceGallery
from pilltrack.core.gallery import Candidate, Gallery, Reference
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.local import digest_of
from pilltrack.edge.check import check
from pilltrack.edge.prescription import Expected
from pilltrack.edge.record import DecisionRecord, decision_record, gallery_digest
from tests.edge.records import NOON, noise, record
from tests.tiny_bundle import tiny_bundle

EAST, NORTH, DIAGONAL = (np.array([row], np.float32) for row in ((1, 0), (0, 1), (0.6, 0.8)))


def test_record_names_bundle_rule_gallery_crops_and_what_was_decided(tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle(tmp_path, "aspirin", np.zeros((20, 20, 3), np.uint8)))
    known = Decision("known", "aspirin", 0.995, (Candidate("aspirin", 0.995),))
    pills = [
        IdentifiedPill((1, 2, 3, 4), 0.5, known),
        IdentifiedPill((5, 6, 7, 8), 0.25, Decision("unknown", None, 0.0, ())),
    ]
    expected = [Expected("aspirin", 1)]
    made = decision_record(
        time=NOON,
        manifest=manifest,
        rule=manifest.calibration.rule_for(1),
        gallery="b" * 64,
        pills=pills,
        crops=[noise(1), noise(2)],
        expected=expected,
        checked=check(expected, pills, manifest.pills),
    )
    assert made.model_dump(mode="json") == {
        "time": "2026-01-31T12:00:00.000250Z",
        "bundle": "tiny",
        "git_commit": "c",
        "space": manifest.space,
        "threshold": 0.99,
        "margin": 0.0,
        "gallery": "b" * 64,
        "pills": [
            {
                "box": [1, 2, 3, 4],
                "confidence": 0.5,
                "crop": digest_of(noise(1)),
                "decision": "known",
                "pill": "aspirin",
                "score": 0.995,
                "candidates": [{"pill": "aspirin", "score": 0.995}],
            },
            {
                "box": [5, 6, 7, 8],
                "confidence": 0.25,
                "crop": digest_of(noise(2)),
                "decision": "unknown",
                "pill": None,
                "score": 0.0,
                "candidates": [],
            },
        ],
        "expected": [{"pill": "aspirin", "count": 1}],
        "check": {
            "ok": False,
            "full": False,
            "lines": [
                {"verdict": "ok", "pill": "aspirin", "expected": 1, "found": 1,
                 "indices": [0], "instead_of": []},
                {"verdict": "unknown", "pill": None, "expected": 0, "found": 1,
                 "indices": [1], "instead_of": []},
            ],
        },
    }  # fmt: skip


def test_pills_and_crops_must_be_as_many(tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle(tmp_path, "aspirin", np.zeros((20, 20, 3), np.uint8)))
    with pytest.raises(ValueError, match="zip"):
        decision_record(
            time=NOON,
            manifest=manifest,
            rule=manifest.calibration,
            gallery="b" * 64,
            pills=[],
            crops=[noise(1)],
        )


@settings(max_examples=100, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.datetimes(), st.text())
def test_record_reads_back_equal(score: float, time: datetime, name: str) -> None:
    made = record(noise(1)).model_copy(update={"threshold": score, "bundle": name})
    made = DecisionRecord.model_validate(
        {**dict(made), "time": time.replace(tzinfo=timezone(timedelta(0)))}
    )
    again = DecisionRecord.model_validate_json(made.model_dump_json())
    assert again == made
    assert math.copysign(1, again.threshold) == math.copysign(1, score)


@pytest.mark.parametrize(
    "changed",
    [
        {"time": datetime(2026, 1, 1)},
        {"time": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))},
        {"threshold": math.nan},
        {"margin": math.inf},
        {"gallery": "x"},
        {"bundle": "\udcff"},
        {"operator": "me"},
        {"check": {"score": math.nan}},
    ],
)
def test_what_json_could_not_hold_is_not_recorded(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DecisionRecord.model_validate({**dict(record(noise(1))), **changed})


@pytest.mark.parametrize(("decision", "pill"), [("known", None), ("unknown", "a")])
def test_pill_is_named_exactly_if_known(decision: str, pill: str | None) -> None:
    [recorded] = record(noise(1)).pills
    with pytest.raises(ValidationError, match=f"decision {decision} with pill"):
        type(recorded).model_validate({**dict(recorded), "decision": decision, "pill": pill})


def test_digest_knows_neither_order_nor_names_of_photos_nor_who_enrolled() -> None:
    with gallery(("a", EAST), ("a", NORTH), ("b", DIAGONAL)) as whole:
        digest = gallery_digest(whole)
    with gallery(("b", DIAGONAL), ("a", NORTH), ("a", EAST), image="other") as shuffled:
        assert gallery_digest(shuffled) == digest
    with DeviceGallery(gallery(("a", NORTH))) as device:
        device.enrol(references("b", "a"), np.concatenate([DIAGONAL, EAST]))
        assert gallery_digest(device) == digest
        device.remove("b")
        assert gallery_digest(device) != digest
    assert len(digest) == 64


def test_digest_changes_with_everything_a_search_depends_on() -> None:
    background = Background(EAST, ["x"])
    nearly_east = np.array([[np.nextafter(np.float32(1), np.float32(0)), 0]], np.float32)
    digests = []
    for made in (
        gallery(("a", EAST)),
        gallery(("b", EAST)),
        gallery(("a", NORTH)),
        gallery(("a", nearly_east)),
        gallery(("a", EAST), ("a", EAST)),
        gallery(),
        gallery(("a", EAST), space="t"),
        gallery(("a", EAST), side="back"),
        gallery(("a", EAST), background=background),
        gallery(("a", EAST), background=Background(EAST, ["y"])),
        gallery(("a", EAST), background=Background(NORTH, ["x"])),
        gallery(background=Background(EAST, ["a"])),
    ):
        with made:
            digests.append(gallery_digest(made))
    assert len(set(digests)) == len(digests)


def test_digest_of_a_saved_gallery_is_that_of_the_open_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = [(f"pill-{i % 3}", row[None]) for i, row in enumerate(rows)]
    with gallery(*made, background=Background(rows[:4], list("wxyz"))) as opened:
        opened.save(tmp_path / "gallery")
        with Gallery.load(tmp_path / "gallery") as loaded:
            assert gallery_digest(loaded) == gallery_digest(opened)


def gallery(
    *rows: tuple[str, NDArray[np.float32]],
    space: str = "s",
    image: str = "i",
    side: str = "",
    background: Background | None = None,
) -> Gallery:
    made = Gallery.create(space, 2)
    if background:
        made.background = background
    for pill, embedding in rows:
        made.enrol([Reference(pill, side, image)], embedding)
    return made


def references(*pills: str) -> list[Reference]:
    return [Reference(pill, "", "photo") for pill in pills]
