"""What a decision rests on, complete enough to make it again, and what people did about it.

A record names the bundle, the embedding space, the gallery and the rule by their digests and
values, each pill by the digest of the crop that was decided about, and all that was decided. An
override names what was wrong with the photos of a pill that was enrolled all the same, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from pilltrack.core.bundle import Manifest, Sha256
from pilltrack.core.decide import Rule
from pilltrack.core.device_gallery import DeviceGallery
from pilltrack.core.gallery import Gallery
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.local import digest_of
from pilltrack.edge.check import Check, as_json
from pilltrack.edge.prescription import Expected

MAX_ACTION_LENGTH = 100
MAX_NOTE_LENGTH = 2000
MAX_REASON_LENGTH = 2000


def require_utc(time: datetime) -> datetime:
    """The same time; ValueError unless it says that it is in UTC."""
    if time.utcoffset() != timedelta(0):
        raise ValueError("a time that is not in UTC")
    return time.astimezone(UTC)


Utc = Annotated[datetime, AfterValidator(require_utc)]


# The limit has pydantic refuse what is not UTF-8, which a database could not hold.
Text = Annotated[str, Field(max_length=1024)]


class Part(BaseModel):
    """What is on record: never changed, nothing unknown, nothing that JSON could not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RecordedCandidate(Part):
    """A pill that the crop resembled, and how much."""

    pill: Text
    score: float


class RecordedPill(Part):
    """One pill of the tray; `crop` is the digest of what was decided about."""

    box: tuple[int, int, int, int]
    confidence: float
    crop: Sha256
    decision: Literal["known", "unknown", "ambiguous"]
    pill: Text | None
    score: float
    candidates: tuple[RecordedCandidate, ...]

    @model_validator(mode="after")
    def _named_if_known(self) -> RecordedPill:
        if (self.pill is None) == (self.decision == "known"):
            raise ValueError(f"decision {self.decision} with pill {self.pill!r}")
        return self


class RecordedExpected(Part):
    """So many of a pill were expected."""

    pill: Text
    count: int = Field(ge=1)


class DecisionRecord(Part):
    """Everything a decision rests on, and the decision; `gallery` is a `gallery_digest`.

    `expected` and `check`, in the form of `check.as_json`, are set if a tray was checked.
    """

    time: Utc
    bundle: Text
    git_commit: Text
    space: Text
    threshold: float
    margin: float
    gallery: Sha256
    pills: tuple[RecordedPill, ...]
    expected: tuple[RecordedExpected, ...] | None = None
    check: dict[str, JsonValue] | None = None


class Action(Part):
    """What an operator did about a decision, whose number is `decision`."""

    time: Utc
    decision: int
    action: str = Field(min_length=1, max_length=MAX_ACTION_LENGTH)
    note: str = Field(max_length=MAX_NOTE_LENGTH)


class RecordedPhoto(Part):
    """A photo that was enrolled; `crop` is the digest of what is kept of it."""

    image: Text
    side: Literal["", "front", "back"]
    crop: Sha256


class RecordedFault(Part):
    """What was wrong, in the words that were said; `image` is empty for all photos together."""

    image: Text
    kind: Text
    found: str = Field(max_length=10_000)
    expected: Text
    other: Text


class Override(Part):
    """Photos of a pill that were enrolled in spite of faults, and the reason for it."""

    time: Utc
    pill: Text
    bundle: Text
    space: Text
    photos: tuple[RecordedPhoto, ...] = Field(min_length=1)
    faults: tuple[RecordedFault, ...] = Field(min_length=1)
    reason: str = Field(min_length=1, max_length=MAX_REASON_LENGTH)


def decision_record(
    *,
    time: datetime,
    manifest: Manifest,
    rule: Rule,
    gallery: str,
    pills: Sequence[IdentifiedPill],
    crops: Sequence[NDArray[np.uint8]],
    expected: Sequence[Expected] | None = None,
    checked: Check | None = None,
) -> DecisionRecord:
    """Put a decision on record: `pills` of a tray and their `crops`, decided with a bundle.

    `time` is in UTC; `rule` that of a gallery of this size; `gallery` the `gallery_digest` of what
    was searched.
    """
    return DecisionRecord(
        time=time,
        bundle=manifest.name,
        git_commit=manifest.git_commit,
        space=manifest.space,
        threshold=rule.threshold,
        margin=rule.margin,
        gallery=gallery,
        pills=tuple(
            recorded_pill(pill, digest_of(crop)) for pill, crop in zip(pills, crops, strict=True)
        ),
        expected=None
        if expected is None
        else tuple(RecordedExpected(pill=entry.pill, count=entry.count) for entry in expected),
        check=None if checked is None else as_json(checked),
    )


def recorded_pill(pill: IdentifiedPill, digest: str) -> RecordedPill:
    """One identified pill and the digest of its crop, as they go on record."""
    decision = pill.decision
    return RecordedPill(
        box=pill.box,
        confidence=pill.confidence,
        crop=digest,
        decision=decision.kind,
        pill=decision.pill,
        score=decision.score,
        candidates=tuple(
            RecordedCandidate(pill=candidate.pill, score=candidate.score)
            for candidate in decision.candidates
        ),
    )


def gallery_digest(gallery: Gallery | DeviceGallery, rows: Sequence[bytes] | None = None) -> str:
    """Name what is searched: SHA-256 of space, references and background, 64 hex digits.

    The order of enrolling, the names of photos, and whether bundle or device enrolled a pill do
    not matter, as they do not for a search. It reads every embedding, a second for
    100,000, unless `rows` are the `row_digests` of all its parts, in any order.
    """
    if rows is None:
        parts = (gallery,) if isinstance(gallery, Gallery) else (gallery.bundled, gallery.local)
        rows = [row for part in parts for row in row_digests(part)]
    background = gallery.background
    head = f"pilltrack looks\0{gallery.space}\0{gallery.dim}\0{len(rows)}\0{len(background)}\0"
    digest = hashlib.sha256(head.encode())
    for row in sorted(rows):
        digest.update(row)
    for pill, embedding in zip(background.pills, background.embeddings, strict=True):
        digest.update(_row_digest(pill, "", embedding))
    return digest.hexdigest()


def row_digests(gallery: Gallery, pill: str | None = None) -> list[bytes]:
    """What a `gallery_digest` is made of: one for each reference of a pill, or of all."""
    references, embeddings = gallery.references(pill), gallery.embeddings(pill)
    return [
        _row_digest(reference.pill, reference.side, embedding)
        for reference, embedding in zip(references, embeddings, strict=True)
    ]


def _row_digest(pill: str, side: str, embedding: NDArray[np.float32]) -> bytes:
    """Of an embedding, whose length is fixed, a side, which is a word, and a name."""
    named = f"{side}\0{pill}".encode()
    return hashlib.sha256(embedding.astype("<f4").tobytes() + named).digest()
