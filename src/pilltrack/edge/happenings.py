"""What became of a device's bundles: lines of JSON, the oldest of which make room.

What is on record never decides what is served: a disk that cannot be written costs lines only.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.bundle import Sha256
from pilltrack.core.files import write_durably

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024

Kind = Literal[
    "switched",  # a new bundle is active, on trial
    "confirmed",  # it has kept its promises
    "rolled back",  # it has not: the one before is active again
    "refused",  # a bundle was not switched to
    "failed",  # nobody can say what to run: no answer, no proof, no room
    "mended",  # something on the disk was damaged
    "collision",  # a pill enrolled here is like another one, with the new bundle
]


class Happening(BaseModel):
    """Something about the bundle with this manifest, or about none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    kind: Kind
    reason: Annotated[str, Field(max_length=100)]  # a word or two that never change
    manifest: Sha256 | None = None
    detail: Annotated[str, Field(max_length=2000)] = ""


def put_on_record(
    path: Path,
    kind: Kind,
    reason: str,
    manifest: Sha256 | None = None,
    detail: str = "",
    time: datetime | None = None,
) -> None:
    """Add a line, and say it to the log; who calls holds the lock of the slots."""
    happening = Happening(
        time=time or utc_now(),
        kind=kind,
        reason=reason[:100],
        manifest=manifest,
        detail=" ".join(detail.split())[:2000],
    )
    lines = [*_lines(path), happening.model_dump_json().encode()]
    if sum(map(len, lines)) > MAX_BYTES:
        lines = lines[len(lines) // 2 :]
    try:
        write_durably(path, b"\n".join(lines) + b"\n")
    except OSError as error:
        log.warning("%s cannot be written (%s)", path, error.strerror)
    level = logging.INFO if kind in ("switched", "confirmed") else logging.WARNING
    log.log(level, "update: %s: %s%s", kind, reason, f" ({detail})" if detail else "")


def newest(path: Path, limit: int) -> list[Happening]:
    """The newest `limit` lines, oldest first; torn ones are left out."""
    found: list[Happening] = []
    for line in reversed(_lines(path)):
        if len(found) == limit:
            break
        try:
            found.append(Happening.model_validate_json(line))
        except ValidationError:
            continue
    return found[::-1]


def utc_now() -> datetime:
    """The time of the system's clock."""
    return datetime.now(UTC)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be read (%s)", path, error.strerror)
        return []
