"""What machines beside the device are told, such as a dispenser: one JSON object for each event.

    identify   the decisions on a photo            enrol    photos were added to a pill
    check      a tray against its list             forget   a pill was taken out of the gallery
    action     what a person did about a check     update   a bundle was switched to, or not

Live pictures give no events: they are for the eye, and a machine asks for a photo or a check.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pilltrack.edge.answers import CheckLine, PillAnswer
from pilltrack.edge.happenings import Kind


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(
        default_factory=lambda: uuid4().hex, description="the same if an event is sent twice"
    )
    time: datetime = Field(description="UTC")
    bundle: str = Field(description="name of the open bundle")


class IdentifyEvent(_Event):
    """The decisions on the pills of a photo."""

    event: Literal["identify"] = "identify"
    pills: list[PillAnswer]


class CheckEvent(_Event):
    """A checked tray; `number` is its decision's on record, `indices` are places in `pills`."""

    event: Literal["check"] = "check"
    number: int
    ok: bool
    full: bool
    lines: list[CheckLine]
    pills: list[PillAnswer]


class ActionEvent(_Event):
    """What a person did about the decision of that number."""

    event: Literal["action"] = "action"
    number: int
    action: str


class EnrolEvent(_Event):
    """A pill has so many references, of which so many are new, in spite of so many faults."""

    event: Literal["enrol"] = "enrol"
    pill: str
    references: int
    new: int
    overridden: int


class ForgetEvent(_Event):
    """So many references of a pill were removed."""

    event: Literal["forget"] = "forget"
    pill: str
    removed: int


class UpdateEvent(_Event):
    """What an update came to, as `pilltrack update status` lists it; `time` is when that was."""

    event: Literal["update"] = "update"
    kind: Kind
    reason: str
    manifest: str | None
    detail: str


Event = IdentifyEvent | CheckEvent | ActionEvent | EnrolEvent | ForgetEvent | UpdateEvent
# Reads what a broker passed on: EVENT.validate_json(payload).
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
