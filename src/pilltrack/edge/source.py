"""Whom a device follows, and the root by which it knows him: joined once, by hand.

home/updates/
  source.json    where from, which channel, how fast
  root.json      the publisher's first root, handed over with the device: all trust begins here
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from pilltrack.core.channels import METADATA, Channel
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.files import sync_directory, write_durably
from pilltrack.edge.fetch import address_of
from pilltrack.edge.slots import Slots, locked

SOURCE, ROOT, LOCK = "source.json", "root.json", "update.lock"
MAX_ROOT_BYTES = 512 * 1024


class UpdateSource(BaseModel):
    """The content of source.json: what this device follows, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    url: str
    channel: Channel = "stable"
    interval_s: int = Field(default=6 * 3600, ge=60, le=30 * 86_400)  # between two looks, about
    bytes_per_s: int = Field(default=0, ge=0)  # 0: as fast as the line is
    max_frame_ms: float = Field(default=1000.0, gt=0)  # from frame to decisions
    watch_s: int = Field(default=600, ge=1, le=7 * 86_400)  # a new bundle is on trial so long

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        found = address_of(url)
        if not found:
            raise ValueError("not a directory, nor an address that begins with https:// or http://")
        return found


def join(slots: Slots, source: UpdateSource, root: bytes) -> None:
    """Have a device follow a publisher, whose root (the bytes of a root.json) it shall trust.

    What an earlier publisher said is forgotten; slots stay. Raises InputRejected for bytes that
    are no root, StageFailed while an update is running.
    """
    if len(root) > MAX_ROOT_BYTES:
        raise _no_root(f"{len(root)} bytes")
    try:
        signed = Metadata[Root].from_bytes(root)
        signed.verify_delegate(Root.type, signed)
    except (RepositoryError, ValueError) as error:
        raise _no_root(str(error) or "something else") from error
    with _alone(slots):
        shutil.rmtree(slots.root / METADATA, ignore_errors=True)
        write_durably(slots.root / ROOT, root)
        write_durably(slots.root / SOURCE, source.model_dump_json(indent=1).encode())
        sync_directory(slots.root)
        slots.begin()


def leave(slots: Slots) -> None:
    """Follow nobody any more; the active bundle stays, and so does an update that is running."""
    (slots.root / SOURCE).unlink(missing_ok=True)


def source_of(slots: Slots) -> UpdateSource | None:
    """Whom a device follows, None if nobody. StageFailed for a source.json that says nothing."""
    path = slots.root / SOURCE
    try:
        return UpdateSource.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise StageFailed(
            str(path),
            found=why,
            expected="where updates come from",
            remedy="Run `pilltrack update join` again.",
        ) from error


@contextmanager
def _alone(slots: Slots) -> Iterator[None]:
    try:
        with locked(slots.root / LOCK, wait=False):
            yield
    except BlockingIOError as error:
        raise StageFailed(
            str(slots.root),
            found="another update is running",
            expected="no update meanwhile",
            remedy="Try again when it has ended.",
        ) from error


def _no_root(found: str) -> InputRejected:
    return InputRejected(
        "root",
        found=" ".join(found.split())[:200],
        expected="the publisher's root.json, signed by its own keys",
        remedy="Ask the publisher for it (docs/fleet.md, Keys).",
    )
