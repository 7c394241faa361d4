"""A decision on record is made again from its crops, and everything that differs is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.decide import RESERVE, Calibration, SmallerGallery
from pilltrack.core.errors import BundleRejected, InputRejected, SpaceMismatch, StageFailed
from pilltrack.core.gallery import Reference
from pilltrack.core.identify import IdentifiedPill, Identifier, identify_crops, open_identifier
from pilltrack.edge.audit import AuditLog
from pilltrack.edge.check import check
from pilltrack.edge.prescription import Expected
from pilltrack.edge.record import DecisionRecord, decision_record, gallery_digest
from pilltrack.edge.replay import Replay, replay
from tests.edge.records import NOON
from tests.tiny_bundle import tiny_bundle

PHOTO = np.random.default_rng(7).integers(0, 256, (40, 30, 3), dtype=np.uint8)
STRANGER = np.zeros((50, 50, 3), dtype=np.uint8)
STRANGER[::2] = 255
CROPS = [PHOTO, STRANGER]
EXPECTED = [Expected("aspirin", 1)]


@pytest.fixture
def identifier(tmp_path: Path) -> Iterator[Identifier]:
    with open_identifier(tiny_bundle(tmp_path, "aspirin", PHOTO)) as opened:
        yield opened


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog(tmp_path / "home") as opened:
        yield opened


def test_same_bundle_decides_the_same_again(identifier: Identifier, log: AuditLog) -> None:
    made = recorded(identifier)
    assert [(pill.decision, pill.pill) for pill in made.pills] == [
        ("known", "aspirin"),
        ("unknown", None),
    ]
    log.append(made, CROPS)
    again = replayed(log, 1, identifier)
    assert again.equal
    assert again.differences == ()
    assert [decision.pill for decision in again.decisions] == ["aspirin", None]
    assert again.entry.record == made


def test_photo_of_one_pill_is_replayed_from_the_file(
    tmp_path: Path, identifier: Identifier, log: AuditLog
) -> None:
    pills = identifier.identify_crop(PHOTO)
    log.append(recorded(identifier, pills, [PHOTO]), [PHOTO])
    with open_identifier(tmp_path / "bundle") as opened_again:
        assert replayed(log, 1, opened_again).equal


def test_record_of_one_candidate_among_several_is_replayed_as_one(
    identifier: Identifier, log: AuditLog
) -> None:
    embedding = identifier.embedder.embed([STRANGER])
    identifier.gallery.enrol([Reference("zebra", "", "z.png")], embedding)
    pills = identifier.identify_crop(PHOTO, 1)
    assert len(pills[0].decision.candidates) == 1
    log.append(recorded(identifier, pills, [PHOTO]), [PHOTO])
    assert replayed(log, 1, identifier).equal


def test_tray_without_pills_is_replayed(identifier: Identifier, log: AuditLog) -> None:
    log.append(recorded(identifier, [], []), [])
    assert replayed(log, 1, identifier).equal


def test_every_difference_is_said(identifier: Identifier, log: AuditLog) -> None:
    made = recorded(identifier)
    known, unknown = made.pills
    [candidate] = known.candidates
    other = candidate.model_copy(update={"pill": "ibuprofen"})
    nearly, less = candidate.score + 5e-7, candidate.score - 0.01
    changes = [
        (known.model_copy(update={"score": nearly}), ()),  # within 1e-6
        (known.model_copy(update={"score": less}), ("pill 0: now score .*, was ",)),
        (known.model_copy(update={"decision": "unknown", "pill": None}),
         ("pill 0: now known aspirin, was unknown",)),
        (known.model_copy(update={"pill": "ibuprofen"}),
         ("pill 0: now known aspirin, was known ibuprofen",)),
        (known.model_copy(update={"candidates": (other,)}),
         ("pill 0: now candidates aspirin, were ibuprofen",)),
        (known.model_copy(update={"candidates": (candidate.model_copy(update={"score": less}),)}),
         ("pill 0: candidate aspirin now .*, was ",)),
    ]  # fmt: skip
    for number, (pill, patterns) in enumerate(changes, 1):
        log.append(made.model_copy(update={"pills": (pill, unknown)}), CROPS)
        again = replayed(log, number, identifier)
        assert again.equal is (patterns == ())
        assert len(again.differences) == len(patterns)
        for difference, pattern in zip(again.differences, patterns, strict=True):
            assert re.match(pattern, difference)


def test_check_is_made_again_with_the_metadata(identifier: Identifier, log: AuditLog) -> None:
    made = recorded(identifier)
    assert made.check is not None
    log.append(made, CROPS)
    log.append(made.model_copy(update={"check": {**made.check, "ok": True}}), CROPS)
    metadata = identifier.manifest.pills
    assert replayed(log, 1, identifier, metadata).equal
    assert replayed(log, 2, identifier, metadata).differences == (
        "check: other lines than on record",
    )
    assert replayed(log, 2, identifier).equal  # without metadata the check cannot be made


def test_gallery_with_another_pill_is_refused_and_both_are_named(
    identifier: Identifier, log: AuditLog
) -> None:
    log.append(recorded(identifier), CROPS)
    before = gallery_digest(identifier.gallery)
    embedding = identifier.embedder.embed([STRANGER])
    identifier.gallery.enrol([Reference("zebra", "", "z.png")], embedding)
    now = gallery_digest(identifier.gallery)
    with pytest.raises(BundleRejected, match=f"decision 1: .*{now}.*{before}.*bundle tiny"):
        replayed(log, 1, identifier)
    identifier.gallery.remove("zebra")
    assert replayed(log, 1, identifier).equal


def test_another_space_is_refused_and_both_are_named(identifier: Identifier, log: AuditLog) -> None:
    made = recorded(identifier)
    log.append(made.model_copy(update={"space": "other"}), CROPS)
    with pytest.raises(SpaceMismatch, match=f"decision 1: .*{made.space} at hand.*space other"):
        replayed(log, 1, identifier)


IN_SMALL = SmallerGallery(
    gallery_size=RESERVE, threshold=0.5, fpir_upper=0.049, misnamed_upper=0.049
)


@pytest.mark.parametrize(
    "changed",
    [{"threshold": 0.5}, {"margin": 0.25}, {"gallery_size": RESERVE + 1, "smaller": (IN_SMALL,)}],
)
def test_another_rule_is_refused_and_both_are_named(
    changed: dict[str, Any], identifier: Identifier, log: AuditLog
) -> None:
    log.append(recorded(identifier), CROPS)
    rule: Calibration = identifier.calibration.model_copy(update=changed)
    with pytest.raises(BundleRejected, match=r"threshold .* at hand; .*threshold 0\.99 and marg"):
        replay(log, 1, identifier.embedder, identifier.gallery, rule)


def test_missing_crop_is_named(tmp_path: Path, identifier: Identifier, log: AuditLog) -> None:
    made = recorded(identifier)
    log.append(made, CROPS)
    (tmp_path / "home" / "audit" / f"{made.pills[1].crop}.png").unlink()
    with pytest.raises(StageFailed, match=made.pills[1].crop):
        replayed(log, 1, identifier)


def test_decision_that_is_not_on_record_is_refused(identifier: Identifier, log: AuditLog) -> None:
    with pytest.raises(InputRejected, match="decision 1: not on record"):
        replayed(log, 1, identifier)


def recorded(
    identifier: Identifier,
    pills: list[IdentifiedPill] | None = None,
    crops: list[NDArray[np.uint8]] | None = None,
) -> DecisionRecord:
    """The tray of CROPS, or another, as decided by a bundle and checked for one aspirin."""
    crops = CROPS if crops is None else crops
    parts = identifier.embedder, identifier.gallery, identifier.calibration
    if pills is None:
        decisions = identify_crops(crops, *parts)
        pills = [IdentifiedPill((0, 0, 9, 9), 0.5, decision) for decision in decisions]
    return decision_record(
        time=NOON,
        manifest=identifier.manifest,
        rule=identifier.rule,
        gallery=gallery_digest(identifier.gallery),
        pills=pills,
        crops=crops,
        expected=EXPECTED,
        checked=check(EXPECTED, pills, identifier.manifest.pills),
    )


def replayed(
    log: AuditLog,
    number: int,
    identifier: Identifier,
    metadata: dict[str, dict[str, str]] | None = None,
) -> Replay:
    parts = identifier.embedder, identifier.gallery, identifier.calibration
    return replay(log, number, *parts, metadata)
