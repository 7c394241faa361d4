"""A decision on record, made again: the proof that the record is what the device did.

The crops of the record are embedded, searched and decided as they were then. That says something
only with the same embedding space, gallery and rule, so any other is refused and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pilltrack.core.decide import Calibration, Decision
from pilltrack.core.device_gallery import DeviceGallery
from pilltrack.core.embedder import Embedder
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.gallery import Gallery
from pilltrack.core.identify import IdentifiedPill, identify_crops
from pilltrack.edge.audit import AuditLog, Entry
from pilltrack.edge.check import as_json, check
from pilltrack.edge.prescription import Expected
from pilltrack.edge.record import RecordedPill, gallery_digest, recorded_pill

SCORE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Replay:
    """A decision made again, and in what it differs from the one on record, in sentences."""

    entry: Entry
    decisions: tuple[Decision, ...]
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """The decision is the same again."""
        return not self.differences


def replay(
    log: AuditLog,
    number: int,
    embedder: Embedder,
    gallery: Gallery | DeviceGallery,
    calibration: Calibration,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> Replay:
    """Decide a recorded tray again, from its crops, and compare; scores may differ by 1e-6.

    With `metadata` of the pills the check against the expected list is made again as well.

    Raises InputRejected when there is no such decision, StageFailed for a crop that is missing or
    changed, and BundleRejected (SpaceMismatch for a space) when the bundle at hand, with what is
    enrolled on this device, is not the one that decided.
    """
    entry = log.entry(number)
    record = entry.record
    _require_same_bundle(entry, embedder, gallery, calibration)
    crops = [log.crop(pill.crop) for pill in record.pills]
    n_candidates = max([1, *(len(pill.candidates) for pill in record.pills)])
    decisions = identify_crops(crops, embedder, gallery, calibration, n_candidates)
    pills = [
        IdentifiedPill(was.box, was.confidence, decision)
        for was, decision in zip(record.pills, decisions, strict=True)
    ]
    differences = [
        f"pill {place}: {difference}"
        for place, (was, pill) in enumerate(zip(record.pills, pills, strict=True))
        for difference in _differences(was, recorded_pill(pill, was.crop))
    ]
    if metadata is not None and record.check is not None and record.expected is not None:
        expected = [Expected(line.pill, line.count) for line in record.expected]
        if as_json(check(expected, pills, metadata)) != record.check:
            differences.append("check: other lines than on record")
    return Replay(entry, tuple(decisions), tuple(differences))


def _differences(was: RecordedPill, now: RecordedPill) -> Iterator[str]:
    if (was.decision, was.pill) != (now.decision, now.pill):
        yield f"now {now.decision} {now.pill or ''}".rstrip() + (
            f", was {was.decision} {was.pill or ''}".rstrip()
        )
    if abs(was.score - now.score) > SCORE_TOLERANCE:
        yield f"now score {now.score}, was {was.score}"
    before, after = ([c.pill for c in pill.candidates] for pill in (was, now))
    if before != after:
        yield f"now candidates {', '.join(after)}, were {', '.join(before)}"
        return
    for old, new in zip(was.candidates, now.candidates, strict=True):
        if abs(old.score - new.score) > SCORE_TOLERANCE:
            yield f"candidate {old.pill} now {new.score}, was {old.score}"


def _require_same_bundle(
    entry: Entry, embedder: Embedder, gallery: Gallery | DeviceGallery, calibration: Calibration
) -> None:
    record, subject = entry.record, f"decision {entry.id}"
    remedy = f"Replay it with the bundle {record.bundle} of commit {record.git_commit}"
    for space in (embedder.space, gallery.space, calibration.space):
        if space != record.space:
            raise SpaceMismatch(
                subject,
                found=f"embedding space {space} at hand",
                expected=f"embedding space {record.space} of the record",
                remedy=f"{remedy}.",
            )
    digest = gallery_digest(gallery)
    if digest != record.gallery:
        raise BundleRejected(
            subject,
            found=f"a gallery of digest {digest} at hand",
            expected=f"the gallery {record.gallery} of the record",
            remedy=f"{remedy}, and the pills that were enrolled on the device then.",
        )
    now = calibration.rule_for(gallery.n_pills)
    rule = now.threshold, now.margin
    if rule != (record.threshold, record.margin):
        raise BundleRejected(
            subject,
            found=f"threshold {rule[0]} and margin {rule[1]} at hand",
            expected=f"threshold {record.threshold} and margin {record.margin} of the record",
            remedy=f"{remedy}.",
        )
