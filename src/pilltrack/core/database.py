"""A SQLite file of the device that survives a kill or a power cut, and explains what is wrong.

Only its owner may read it. What a transaction has committed is on the disk. Several processes may
use one file: they take turns, and wait for each other no longer than they are told to.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilltrack.core.errors import StageFailed
from pilltrack.core.files import sync_directory

Damaged = Callable[[Path, str], StageFailed]  # file, what was found -> the error of its owner


class Database:
    """An open file, made with `schema` when it is empty; its last statement sets `version`.

    `orphaned` says what lies beside an empty file that cannot have been written without it, or
    nothing. `shared`: several threads may use it, and take turns. Every method raises StageFailed
    when the file is locked for `timeout_s`, or, as `damaged` makes it, when it is damaged.
    """

    def __init__(
        self,
        file: Path,
        *,
        schema: Sequence[str],
        version: int,
        timeout_s: float,
        damaged: Damaged,
        orphaned: Callable[[], str],
        shared: bool = False,
    ) -> None:
        """Open; StageFailed also for another version of the schema."""
        self.file, self._timeout_s, self._damaged = file, timeout_s, damaged
        self._lock = threading.RLock()
        # SQLite would make it readable for all; its other files take over this one's mode.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        self.connection = sqlite3.connect(
            file, timeout=timeout_s, isolation_level=None, check_same_thread=not shared
        )
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self.rows(f"PRAGMA {pragma}")
            if self._version() == 0:
                self._create(schema, orphaned)
            if self._version() != version:
                raise StageFailed(
                    str(file),
                    found=f"schema version {self._version()}",
                    expected=f"schema version {version}",
                    remedy="Update PillTrack, or name another home.",
                )
        except BaseException:
            self.close()
            raise

    def rows(self, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[Any]:
        """All rows that a query gives."""
        with self._explained():
            return self.connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock; commit when the block ends well, else roll back."""
        with self._explained():
            self.connection.execute("BEGIN IMMEDIATE")
            with self.connection:
                yield

    def require_integrity(self) -> None:
        """Raise what `damaged` makes unless SQLite finds the whole file in order."""
        [(verdict,), *_] = self.rows("PRAGMA integrity_check(1)")
        if verdict != "ok":
            raise self._damaged(self.file, " ".join(str(verdict).split()))

    def close(self) -> None:
        """Release the file. Harmless when repeated."""
        with self._lock:
            self.connection.close()

    def _version(self) -> int:
        [(version,)] = self.rows("PRAGMA user_version")
        return int(version)

    def _create(self, schema: Sequence[str], orphaned: Callable[[], str]) -> None:
        with self.transaction():
            if self.rows("SELECT 1 FROM sqlite_master"):
                return  # another process was faster, or the file is none of ours
            if left := orphaned():
                raise self._damaged(self.file, f"empty, though {left}")
            for statement in schema:
                self.connection.execute(statement)
        for directory in (self.file.parent, self.file.parent.absolute().parent):
            sync_directory(directory)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.ProgrammingError:
            raise  # a mistake of the caller, not in the file
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", 0)  # not set for text that is not UTF-8
            if code & 0xFF == sqlite3.SQLITE_BUSY:
                raise StageFailed(
                    str(self.file),
                    found=f"locked for {self._timeout_s:.0f} s",
                    expected="another process to finish writing",
                    remedy="Try again.",
                ) from error
            raise self._damaged(self.file, str(error)) from error
