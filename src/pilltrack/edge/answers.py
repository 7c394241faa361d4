"""What the API answers, as typed models: the OpenAPI page shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pilltrack.core.errors import StageFailed
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.quality import FaultKind
from pilltrack.edge.audit import Entry
from pilltrack.edge.enrol import Judged
from pilltrack.edge.service import EnrolledPill, Look
from pilltrack.edge.slots import Slots
from pilltrack.edge.source import source_of
from pilltrack.edge.tracking import TrackedPill


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CandidateAnswer(_Answer):
    """An enrolled pill and its score."""

    pill: str
    score: float


class PillAnswer(_Answer):
    """A pill in a frame; `box` is x, y, width, height in its pixels."""

    box: tuple[int, int, int, int]
    confidence: float = Field(
        description="0 to 1: how sure this is a pill; at best 0.9 of a round, 0.65 of a slim one"
    )
    decision: Literal["known", "unknown", "ambiguous"]
    pill: str | None = Field(description="set only if the decision is known")
    score: float
    candidates: list[CandidateAnswer] = Field(description="best first")


class TrackedAnswer(_Answer):
    """A pill followed over frames; `checking` until enough frames agree."""

    track: int
    box: tuple[int, int, int, int]
    confidence: float
    decision: Literal["known", "unknown", "ambiguous", "checking"]
    pill: str | None
    score: float
    candidates: list[CandidateAnswer]


class Milliseconds(_Answer):
    """How long the device took for a frame."""

    decode: float
    locate: float
    identify: float


class LookAnswer(_Answer):
    """A frame and the pills in it."""

    width: int
    height: int
    ms: Milliseconds
    pills: list[PillAnswer]


class LiveAnswer(_Answer):
    """A live frame; `frame` counts those looked at, `dropped` those that came too fast."""

    frame: int
    dropped: int
    width: int
    height: int
    ms: Milliseconds
    pills: list[TrackedAnswer]


class EnrolledAnswer(_Answer):
    """A pill after enrolment."""

    pill: str
    references: int
    new: int
    overridden: int = Field(description="faults that a reason on record outweighed")


class GalleryPill(_Answer):
    """An enrolled pill; `photos` are those that this device keeps."""

    pill: str
    references: int
    local: int = Field(description="references that this device enrolled")
    metadata: dict[str, str]
    photos: list[str] = Field(description="addresses of pictures")


class GalleryAnswer(_Answer):
    """All enrolled pills, in order of name."""

    pills: list[GalleryPill]


class CheckLine(_Answer):
    """What is to be said about one pill; `indices` are places in the tray's list of pills."""

    verdict: Literal["ok", "missing", "extra", "wrong strength", "uncertain", "unknown"]
    pill: str | None
    expected: int
    found: int
    indices: list[int]
    instead_of: list[str]


class CheckAnswer(_Answer):
    """A checked tray; `number` is that of the decision on record."""

    number: int
    ok: bool
    full: bool = Field(description="as many pills as can be seen: there may be more")
    lines: list[CheckLine]
    look: LookAnswer


class ExpectedPill(_Answer):
    """So many of a pill."""

    pill: str
    count: int


class ActionAnswer(_Answer):
    """What an operator did about a decision."""

    time: str
    action: str
    note: str


class RecordedAnswer(_Answer):
    """A decision on record."""

    number: int
    time: str
    bundle: str
    ok: bool | None = Field(description="of the check, if there was one")
    expected: list[ExpectedPill]
    lines: list[CheckLine]
    pills: list[PillAnswer]
    crops: list[str] = Field(description="addresses of pictures, one for each pill")
    actions: list[ActionAnswer]


class HistoryAnswer(_Answer):
    """Decisions on record, the newest first."""

    records: list[RecordedAnswer]


class UpdateAnswer(_Answer):
    """Which bundle is active, and what became of updates."""

    follows: str = Field(description="address and channel of the publisher; empty for nobody")
    active: str | None = Field(description="SHA-256 of its manifest; null: the install's own")
    on_trial: bool
    last: str = Field(description="what happened last, empty if nothing ever did")
    last_time: datetime | None


class StatusAnswer(_Answer):
    """The device and its bundle."""

    version: str
    uptime_s: float
    bundle: str
    git_commit: str
    space: str
    pills: int
    references: int
    local_references: int
    threshold: float
    margin: float
    promised_fpir: float
    promised_misnamed: float
    calibrated_for_pills: int
    captures: str
    camera: bool
    frames: int
    events: Literal["off", "connected", "disconnected"] = Field(description="to an MQTT broker")
    events_waiting: int
    events_dropped: int
    update: UpdateAnswer | None = Field(description="null: this device follows no updates")


class Problem(_Answer):
    """What went wrong (RFC 9457), and what to do about it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    remedy: str = ""


class FaultAnswer(_Answer):
    """A reason not to enrol."""

    photo: int | None = Field(description="its place among the photos sent; null for all of them")
    kind: FaultKind
    found: str
    expected: str
    remedy: str
    other: str | None = Field(description="the enrolled pill it collides with")
    picture: str | None = Field(description="address of that pill's picture, if there is one")


class EnrolmentProblem(Problem):
    """Why photos were not enrolled; with an override_reason they can be if `can_override`."""

    faults: list[FaultAnswer]
    boxes: list[tuple[int, int, int, int] | None] = Field(
        description="of the pill in each photo; null where none or several were found"
    )
    can_override: bool


def fault_answers(judged: Judged, address: str) -> list[FaultAnswer]:
    """What is wrong with photos; `address` is where photos that the device keeps are."""
    picture = f"{address}/{judged.alike}.png" if judged.alike else None
    return [
        FaultAnswer(
            photo=judged.names.index(fault.image) if fault.image else None,
            kind=fault.kind,
            found=fault.found,
            expected=fault.expected,
            remedy=fault.remedy,
            other=fault.other or None,
            picture=picture if fault.other else None,
        )
        for fault in judged.faults
    ]


def milliseconds(look: Look, decode_ms: float) -> Milliseconds:
    """How long a look took."""
    return Milliseconds(
        decode=round(decode_ms, 2),
        locate=round(look.locate_ms, 2),
        identify=round(look.identify_ms, 2),
    )


def tracked_answer(pill: TrackedPill) -> TrackedAnswer:
    """A tracked pill."""
    return TrackedAnswer(
        track=pill.track,
        box=pill.box,
        confidence=round(pill.confidence, 4),
        decision=pill.kind,
        pill=pill.pill,
        score=pill.score,
        candidates=[CandidateAnswer(pill=name, score=score) for name, score in pill.candidates],
    )


def look_answer(look: Look, width: int, height: int, decode_ms: float) -> LookAnswer:
    """A photo that was looked at."""
    ms = milliseconds(look, decode_ms)
    pills = [_pill_answer(pill) for pill in look.pills]
    return LookAnswer(width=width, height=height, ms=ms, pills=pills)


def recorded_answer(entry: Entry, address: str) -> RecordedAnswer:
    """A decision on record; `address` is where crops are."""
    record = entry.record
    checked = record.check or {"ok": None, "lines": []}
    return RecordedAnswer.model_validate(
        {
            "number": entry.id,
            "time": record.time.isoformat(),
            "bundle": record.bundle,
            "ok": checked["ok"],
            "expected": [line.model_dump() for line in record.expected or ()],
            "lines": checked["lines"],
            "pills": [pill.model_dump(exclude={"crop"}) for pill in record.pills],
            "crops": [f"{address}/{pill.crop}.png" for pill in record.pills],
            "actions": [
                {"time": a.time.isoformat(), "action": a.action, "note": a.note}
                for a in entry.actions
            ],
        }
    )


def gallery_pill(pill: EnrolledPill, photos: list[str]) -> GalleryPill:
    """An enrolled pill."""
    return GalleryPill(
        pill=pill.pill,
        references=pill.references,
        local=pill.local,
        metadata=pill.metadata,
        photos=photos,
    )


def update_answer(slots: Slots) -> UpdateAnswer:
    """What the slots of a device say."""
    state, last = slots.state(), slots.happenings(1)
    try:
        source = source_of(slots)
        follows = f"{source.url}, {source.channel}" if source else ""
    except StageFailed as error:
        follows = str(error)
    return UpdateAnswer(
        follows=follows,
        active=state.active,
        on_trial=state.trial is not None,
        last=f"{last[0].kind}: {last[0].reason}" if last else "",
        last_time=last[0].time if last else None,
    )


def _pill_answer(pill: IdentifiedPill) -> PillAnswer:
    decision = pill.decision
    return PillAnswer(
        box=pill.box,
        confidence=round(pill.confidence, 4),
        decision=decision.kind,
        pill=decision.pill,
        score=decision.score,
        candidates=[CandidateAnswer(pill=c.pill, score=c.score) for c in decision.candidates],
    )
