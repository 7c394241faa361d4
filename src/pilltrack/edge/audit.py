"""The record of decisions: what this device said, on what grounds, and what people did with it.

    home/                mode 0700; every file in it 0600
      audit.sqlite       one row for each decision, action and override, only ever added
      audit/<digest>.png the crops that were decided, losslessly; named by `core.local.digest_of`

A row's hash is the SHA-256 of its number, the hash of the row before it and its own content,
canonical JSON. So every row vouches for all before it, and `verify` names the first one that was
changed, deleted, put elsewhere or slipped in. What a chain cannot show by itself: that its end was
cut off, or that all of it was written anew. Against that its `head` must be known elsewhere, on
paper or on another machine: `verify(head)` then proves that everything up to it still stands.

A row counts once its crops and then the row itself are on the disk, so what `append` has returned
for survives a kill or a power cut. Several processes may write into one home: they take turns, and
the chain stays one. An open log may be shared between threads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError, model_validator

from pilltrack.core.database import Database
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.files import sync_directory, write_durably
from pilltrack.core.image import as_png
from pilltrack.core.local import digest_of
from pilltrack.edge.record import (
    MAX_ACTION_LENGTH,
    MAX_NOTE_LENGTH,
    Action,
    DecisionRecord,
    Override,
    Part,
    require_utc,
)

DATABASE_FILE = "audit.sqlite"
CROPS_DIRECTORY = "audit"
FIRST = "0" * 64  # what the first row has instead of a hash before it
BUSY_TIMEOUT_S = 30.0
VERIFY_ROWS = 500  # bounds memory: so many rows at once

SCHEMA_VERSION = 1
SCHEMA = (
    """
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        previous TEXT NOT NULL,
        hash TEXT NOT NULL,
        content TEXT NOT NULL
    ) STRICT
    """,
    # Against mistakes, not against people: those who can write the file can drop a trigger.
    """
    CREATE TRIGGER entry_stays BEFORE UPDATE ON entry
    BEGIN SELECT RAISE(ABORT, 'the record of decisions is only added to'); END
    """,
    """
    CREATE TRIGGER entry_is_kept BEFORE DELETE ON entry
    BEGIN SELECT RAISE(ABORT, 'the record of decisions is only added to'); END
    """,
    "CREATE INDEX entry_action ON entry (json_extract(content, '$.action.decision'))",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


@dataclass(frozen=True)
class Entry:
    """A decision as it stands in the log, and the actions about it, oldest first."""

    id: int
    hash: str
    record: DecisionRecord
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Head:
    """The last row of a log, 0 if it is empty; `str` and `parse_head` put it on paper and back."""

    id: int
    hash: str

    def __str__(self) -> str:
        return f"{self.id}:{self.hash}"


class AuditLog:
    """The record in a home directory. Use it as a context manager, or call `close`.

    Every method raises StageFailed when the database is damaged, or another process keeps it
    locked for `BUSY_TIMEOUT_S`; those that read rows also for a row that does not have its hash.
    """

    def __init__(self, home: Path, *, create: bool = True) -> None:
        """Open the log, and make it if there is none and `create` is set.

        Raises InputRejected when there is none, StageFailed for a schema version other than
        `SCHEMA_VERSION`, and for crops whose database is gone.
        """
        self._database = home / DATABASE_FILE
        self._crops = home / CROPS_DIRECTORY
        if not create and not self._database.exists():
            found, remedy = "no record of decisions", "Name the home that was written to."
            raise _refused(str(self._database), found, "the record of a device", remedy)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._crops.mkdir(mode=0o700, exist_ok=True)
        self._data = Database(
            self._database,
            schema=SCHEMA,
            version=SCHEMA_VERSION,
            timeout_s=BUSY_TIMEOUT_S,
            damaged=_damaged,
            orphaned=lambda: f"{self._crops} holds crops" if any(self._crops.glob("*.png")) else "",
            shared=True,
        )

    def append(self, record: DecisionRecord, crops: Sequence[NDArray[np.uint8]]) -> int:
        """Add a decision and its crops, one (H, W, 3) uint8 for each pill; return its number.

        Raises ValueError for crops that are not those of the record.
        """
        digests = [digest_of(crop) for crop in crops]
        if digests != [pill.crop for pill in record.pills]:
            raise ValueError(f"the digests of {len(crops)} crops are not those of the record")
        pngs = {digest: as_png(crop) for digest, crop in zip(digests, crops, strict=True)}
        with self._data.transaction():
            for digest, png in pngs.items():
                write_durably(self._crop_file(digest), png)
            if pngs:
                sync_directory(self._crops)
            return self._add({"decision": record.model_dump(mode="json")})

    def add_action(self, decision: int, action: str, note: str = "", *, time: datetime) -> int:
        """Add what an operator did about a decision; return the number of the new row.

        Raises InputRejected when there is no such decision, or for an action or note that is
        empty, too long or no text; ValueError for a time that is not in UTC.
        """
        require_utc(time)
        try:
            added = Action(time=time, decision=decision, action=action, note=note)
        except ValidationError as error:
            first = error.errors()[0]
            expected = f"an action of at most {MAX_ACTION_LENGTH} characters and a note of at "
            expected += f"most {MAX_NOTE_LENGTH}"
            found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise _refused("action", found, expected, "Shorten it.") from error
        with self._data.transaction():
            self._decision(decision)
            return self._add({"action": added.model_dump(mode="json")})

    def add_override(self, override: Override) -> int:
        """Add why photos were enrolled in spite of their faults; return the number of the row."""
        with self._data.transaction():
            return self._add({"override": override.model_dump(mode="json")})

    def entry(self, number: int) -> Entry:
        """The decision of that number; InputRejected when there is none."""
        digest, record = self._decision(number)
        return Entry(number, digest, record, self._actions(number))

    def records(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        """At most `limit` decisions, the newest first; `before` a number: only those below it."""
        rows = self._data.rows(
            "SELECT id, previous, hash, content FROM entry WHERE (?1 IS NULL OR id < ?1)"
            " AND json_type(content, '$.decision') = 'object' ORDER BY id DESC LIMIT ?2",
            (before, max(0, limit)),
        )
        found = [(row, self._content(*row).decision) for row in rows]
        return [
            Entry(row[0], row[2], record, self._actions(row[0])) for row, record in found if record
        ]

    def overrides(self, limit: int = 50) -> list[tuple[int, Override]]:
        """At most `limit` overrides with the numbers of their rows, the newest first."""
        rows = self._data.rows(
            "SELECT id, previous, hash, content FROM entry"
            " WHERE json_type(content, '$.override') = 'object' ORDER BY id DESC LIMIT ?",
            (max(0, limit),),
        )
        found = [(row[0], self._content(*row).override) for row in rows]
        return [(number, override) for number, override in found if override]

    def crop(self, digest: str) -> NDArray[np.uint8]:
        """Read a crop (H, W, 3) uint8 of a record.

        Raises InputRejected for what is no digest, StageFailed for a missing or changed file.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            expected = "64 hexadecimal digits"
            raise _refused("crop", f"{digest!r:.80}", expected, "Take it from a decision.")
        file = self._crop_file(digest)
        try:
            with Image.open(file, formats=("PNG",)) as image:
                photo = np.ascontiguousarray(np.asarray(image.convert("RGB")))
        except Exception as error:  # Pillow's parsers raise many kinds on damaged bytes
            raise _lost(file, f"cannot be read ({error})") from error
        if digest_of(photo) != digest:
            raise _lost(file, "another photo")
        return photo

    def head(self) -> Head:
        """The last row: keep it elsewhere, and `verify` can prove that nothing was cut off."""
        rows = self._data.rows("SELECT id, hash FROM entry ORDER BY id DESC LIMIT 1")
        return Head(*rows[0]) if rows else Head(0, FIRST)

    def verify(self, head: Head | None = None) -> Head:
        """Check every row, and that the log still holds `head`; return the head it has now.

        Raises StageFailed, naming the first row that is not as it was written, or the row of
        `head` if the log ends before it or has another row in its place. Without a head, rows
        cut off at the end and a log written anew go unnoticed.
        """
        self._data.require_integrity()
        last, after = Head(0, FIRST), -(2**63)
        while rows := self._data.rows(
            "SELECT id, previous, hash, content FROM entry WHERE id > ? ORDER BY id LIMIT ?",
            (after, VERIFY_ROWS),
        ):
            for row in rows:
                last = self._next(last, row)
                if head and head.id == last.id and head.hash != last.hash:
                    raise _broken(self._database, head.id, f"hash {last.hash}", f"{head.hash}")
            after = last.id
        if head and head.id > last.id:
            raise _broken(self._database, head.id, "cut off with all after it", "a row")
        return last

    def close(self) -> None:
        """Release the database. Harmless when repeated."""
        self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, content: dict[str, Any]) -> int:
        last, text = self.head(), canonical_json(content)
        number = last.id + 1
        self._data.connection.execute(
            "INSERT INTO entry (id, previous, hash, content) VALUES (?, ?, ?, ?)",
            (number, last.hash, _hash(number, last.hash, text), text),
        )
        return number

    def _next(self, last: Head, row: tuple[int, str, str, str]) -> Head:
        """The head after a row, if that is the one that follows."""
        number, previous, digest, content = row
        if number != last.id + 1:
            if number <= last.id:
                raise _broken(self._database, number, "slipped in", "no such row")
            raise _broken(self._database, last.id + 1, f"gone, {number} is next", "a row")
        if previous != last.hash:
            found = f"follows a row of hash {previous}"
            raise _broken(self._database, number, found, f"the row before it, {last.hash}")
        self._content(number, previous, digest, content)
        return Head(number, digest)

    def _content(self, number: int, previous: str, digest: str, content: str) -> _Content:
        """What a row holds, if it is what was written."""
        if _hash(number, previous, content) != digest:
            raise _broken(self._database, number, "changed", f"content of hash {digest}")
        try:
            return _Content.model_validate_json(content)
        except ValidationError as error:
            found = f"no record ({error.errors()[0]['msg']})"
            expected = "a decision, an action or an override"
            raise _broken(self._database, number, found, expected) from error

    def _decision(self, number: int) -> tuple[str, DecisionRecord]:
        """The hash and the content of a decision."""
        query = "SELECT id, previous, hash, content FROM entry WHERE id = ?"
        for row in self._data.rows(query, (number,)) if 0 < number < 2**63 else []:
            if record := self._content(*row).decision:
                return row[2], record
        expected = f"the number of a decision in {self._database}"
        raise _refused(
            f"decision {number}", "not on record", expected, "See `pilltrack audit list`."
        )

    def _actions(self, number: int) -> tuple[Action, ...]:
        rows = self._data.rows(
            "SELECT id, previous, hash, content FROM entry"
            " WHERE json_extract(content, '$.action.decision') = ? ORDER BY id",
            (number,),
        )
        actions = [self._content(*row).action for row in rows]
        return tuple(action for action in actions if action)

    def _crop_file(self, digest: str) -> Path:
        return self._crops / f"{digest}.png"


def parse_head(text: str) -> Head:
    """Read what `str(head)` wrote.

    >>> parse_head("3:" + "0" * 64).id
    3
    """
    match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text.strip())
    if not match:
        expected = "the number of a row, a colon and its hash"
        raise _refused("head", f"{text!r:.80}", expected, "Copy it as `audit verify` printed it.")
    return Head(int(match[1]), match[2])


def canonical_json(value: object) -> str:
    """The one way to write a JSON value: sorted keys, no spaces, floats that read back equal.

    >>> canonical_json({"b": 0.1, "a": "é"})
    '{"a":"é","b":0.1}'
    """
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


class _Content(Part):
    decision: DecisionRecord | None = None
    action: Action | None = None
    override: Override | None = None

    @model_validator(mode="after")
    def _just_one(self) -> _Content:
        if [self.decision, self.action, self.override].count(None) != 2:
            raise ValueError("a decision, an action and an override, several of them or none")
        return self


def _hash(number: int, previous: str, content: str) -> str:
    return hashlib.sha256(f"{number}\n{previous}\n{content}".encode()).hexdigest()


def _refused(subject: str, found: str, expected: str, remedy: str) -> InputRejected:
    return InputRejected(subject, found=found, expected=expected, remedy=remedy)


def _broken(database: Path, number: int, found: str, expected: str) -> StageFailed:
    return StageFailed(
        f"{database}, row {number}",
        found=found,
        expected=expected,
        remedy="Keep the file as it is: from this row on the record cannot be trusted. Compare it "
        "with a backup.",
    )


def _damaged(database: Path, found: str) -> StageFailed:
    return StageFailed(
        str(database),
        found=found,
        expected="the record of decisions, whole and writable",
        remedy="Free the disk if it is full. Else restore the folder from a backup.",
    )


def _lost(file: Path, found: str) -> StageFailed:
    return StageFailed(
        str(file),
        found=found,
        expected="the crop that was decided about",
        remedy="Restore the folder from a backup.",
    )
