"""What the device does, apart from how it is asked: the open bundle, its home, and their use.

    look        frame -> pills
    check       frame and expected list -> what is missing, extra, unknown; put on record
    enrol       photos -> a pill that is searchable from now on, or what is wrong with the photos
    forget      a pill this device enrolled

One service owns one open bundle, and can change to another while it is asked: who began with one
ends with it. Its methods may be called from any thread; enrolling, forgetting, checking and
changing the bundle take turns. What `enrol` has returned for is on the disk. What another program
enrols or removes in the home, the next look sees.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.identify import (
    IdentifiedPill,
    Identifier,
    identified,
    identify_crops,
    open_identifier,
)
from pilltrack.core.local import Kept, LocalReferences, Stamp, is_store, last_written
from pilltrack.core.locate import crop
from pilltrack.edge.audit import CROPS_DIRECTORY, DATABASE_FILE, AuditLog, Entry
from pilltrack.edge.check import Check, check
from pilltrack.edge.enrol import Enrolled, enrol
from pilltrack.edge.health import Health
from pilltrack.edge.prescription import Expected, read_expected
from pilltrack.edge.record import decision_record, gallery_digest, row_digests

log = logging.getLogger(__name__)

AGAIN_S = 10.0  # until the same home is read again after that failed
WAITED_S = 1.0  # a failure that took longer waited for the database: so would the next
SETTLED_S = 2.0  # until a change of the home is surely seen whole

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """What was seen in a frame, by which bundle, and how long its steps took.

    `crops[i]` shows `pills[i]`.
    """

    bundle: str  # its name
    pills: list[IdentifiedPill]
    crops: list[Frame]
    locate_ms: float
    identify_ms: float


@dataclass(frozen=True)
class Checked:
    """A checked tray: its number on record, what was seen, and what is to be said."""

    number: int
    look: Look
    check: Check


@dataclass(frozen=True)
class EnrolledPill:
    """One pill of the gallery: `local` counts the references that this device enrolled."""

    pill: str
    references: int
    local: int
    metadata: dict[str, str]


class Service:
    """The open bundle and home of a device. Use `close` when done."""

    def __init__(self, bundle: Path, home: Path, threads: int = 2) -> None:
        """Open both; errors as `open_identifier`."""
        self.bundle, self.home, self._threads = bundle, home, threads
        self.started_s = time.monotonic()
        self.health = Health()  # of the open bundle
        self._home_was: Stamp | None = None  # when it was last caught up with
        self._failed_at: Stamp | None = None  # what could not be caught up with,
        self._again_at_s = 0.0  # and when to try that again
        self._enrolled = self._photos_of_pills()  # of the home, as it was last read
        self._opened = _Opened(open_identifier(bundle, threads, home))
        self._writing = threading.Lock()
        self._digest = ""  # of the gallery, while nothing is enrolled or forgotten
        self._bundled_rows: list[bytes] = []  # what it is made of, once it was asked for
        self._local_rows: dict[str, list[bytes]] = {}  # by pill
        self._since_opening: set[str] = set()  # pills enrolled or forgotten

    @property
    def identifier(self) -> Identifier:
        """The open bundle, to read what it says of itself; it may be closed soon."""
        return self._opened.identifier

    def change(self, bundle: Path) -> None:
        """Open another bundle for all who ask from now on; errors as `open_identifier`.

        The old one stays when that fails, else it is closed when the last who began with it ends.
        One thread at a time.
        """
        with self._writing:
            self._since_opening = set()
        identifier = open_identifier(bundle, self._threads, self.home)
        try:
            with self._writing:
                # It knows what was enrolled before it was opened, and perhaps not what was since.
                for pill in self._since_opening:
                    self._enrol_again(identifier, pill)
                old, self._opened, self.bundle = self._opened, _Opened(identifier), bundle
                self.health = Health(self.health.median_ms())
                self._digest, self._bundled_rows, self._local_rows = "", [], {}
        except BaseException:
            identifier.close()
            raise
        old.retire()

    def look(self, frame: Frame, *, is_crop: bool = False, n_candidates: int = 5) -> Look:
        """Find and identify the pills in an RGB frame (H, W, 3) uint8.

        `is_crop`: the frame is nothing but one pill.
        """
        self._try_to_catch_up()
        return self._look(frame, is_crop, n_candidates)

    def _look(self, frame: Frame, is_crop: bool = False, n_candidates: int = 5) -> Look:
        health = self.health
        try:
            with self._using() as identifier:
                look = _look(identifier, frame, is_crop, n_candidates)
        except InputRejected:
            raise
        except Exception:
            health.failed()
            raise
        health.looked(look.locate_ms + look.identify_ms)
        return look

    def check(self, frame: Frame, expected: Sequence[Expected], time: datetime) -> Checked:
        """Check a tray against an expected list and put the decision on record.

        `time` is in UTC.
        """
        with self._writing:  # what is searched must be what the record names
            self._catch_up()
            look = self._look(frame)
            manifest = self.identifier.manifest
            result = check(expected, look.pills, manifest.pills)
            record = decision_record(
                time=time,
                manifest=manifest,
                rule=self.identifier.rule,
                gallery=self._gallery_digest(),
                pills=look.pills,
                crops=look.crops,
                expected=expected,
                checked=result,
            )
            with AuditLog(self.home) as audit:
                return Checked(audit.append(record, look.crops), look, result)

    def expected(self, data: bytes, name: str) -> list[Expected]:
        """Read an expected list of any form; InputRejected as `read_expected`."""
        return read_expected(data, name=name, pills={p.pill: p.metadata for p in self.pills()})

    def act(self, decision: int, action: str, note: str, time: datetime) -> int:
        """Put on record what an operator did about a decision; errors as `add_action`."""
        with AuditLog(self.home, create=False) as audit:
            return audit.add_action(decision, action, note, time=time)

    def history(self, limit: int, before: int | None = None) -> list[Entry]:
        """The newest decisions on record, or those before a number."""
        if not (self.home / DATABASE_FILE).exists():
            return []
        with AuditLog(self.home, create=False) as audit:
            return audit.records(limit, before)

    def is_recorded(self, decision: int) -> bool:
        """Whether there is a decision of that number."""
        return any(entry.id == decision for entry in self.history(1, before=decision + 1))

    def recorded_crop(self, digest: str) -> Frame | None:
        """A crop of a decision on record, None if there is none; errors as `AuditLog.crop`."""
        if not (self.home / CROPS_DIRECTORY / f"{digest}.png").exists():
            return None
        with AuditLog(self.home, create=False) as audit:
            return audit.crop(digest)

    def enrol(
        self,
        pill: str,
        photos: Iterable[tuple[str, Frame]],
        sides: Sequence[str],
        time: datetime,
        *,
        crops: bool = False,
        reason: str = "",
    ) -> Enrolled:
        """Enrol photos (name, frame) of one pill, all or none; as `edge.enrol.enrol`."""
        with self._writing:  # what is judged against the gallery must be what joins it
            self._catch_up()
            self._changed(pill)
            done = enrol(
                self.identifier, self.home, pill, photos, sides, time, crops=crops, reason=reason
            )
        log.info("enrolled %d photos of %r, %d are new", len(sides), pill, done.new)
        if done.overridden:
            log.info("in spite of %d faults, as is on record", len(done.overridden))
        return done

    def forget(self, pill: str) -> int:
        """Forget what this device enrolled of a pill and delete its photos; how many there were."""
        with self._writing:
            self._catch_up()
            self._changed(pill)
            n_removed = 0
            if self.kept(pill):
                with self._store() as local:
                    n_removed = local.remove(pill)
            self.identifier.gallery.remove(pill)
        if n_removed:
            log.info("forgot %r, %d photos", pill, n_removed)
        return n_removed

    def pills(self) -> list[EnrolledPill]:
        """All enrolled pills in order of name."""
        self._try_to_catch_up()
        identifier = self.identifier
        gallery, known = identifier.gallery, identifier.manifest.pills
        n_bundled, n_local = gallery.bundled.counts(), gallery.local.counts()
        return [
            EnrolledPill(
                pill,
                n_bundled.get(pill, 0) + n_local.get(pill, 0),
                n_local.get(pill, 0),
                dict(known.get(pill, {})),
            )
            for pill in sorted({*n_bundled, *n_local})
        ]

    def kept(self, pill: str | None = None) -> list[Kept]:
        """The references that this device keeps photos of, of one pill or of all."""
        if not is_store(self.home):
            return []
        with self._store() as local:
            return local.kept(pill)

    def photo(self, digest: str) -> Frame | None:
        """A photo this device keeps, None when there is none of that digest."""
        if not is_store(self.home):
            return None
        try:
            with self._store() as local:
                return local.photo(digest)
        except InputRejected:
            return None

    def close(self) -> None:
        """Release the bundle. Harmless when repeated."""
        self._opened.retire()

    @contextmanager
    def _using(self) -> Iterator[Identifier]:
        """The open bundle, held open."""
        opened = self._opened
        while not opened.take():
            if opened is self._opened:
                raise RuntimeError("the service is closed")
            opened = self._opened  # it was changed in this very moment
        try:
            yield opened.identifier
        finally:
            opened.give_back()

    def _catch_up(self) -> None:
        """Let the gallery hold what the home holds; whoever calls it holds `_writing`."""
        stamp = last_written(self.home)
        if stamp == self._home_was:
            return
        if stamp == self._failed_at and time.monotonic() < self._again_at_s:
            return
        try:
            now = self._photos_of_pills()
        except (StageFailed, OSError) as error:
            self._put_off(stamp, error)
            return
        failed = False
        with self._using() as identifier:
            counts = identifier.gallery.local.counts()
            for pill in sorted({*self._enrolled, *now, *counts}):
                photos = now.get(pill, [])
                if photos == self._enrolled.get(pill, []) and len(photos) == counts.get(pill, 0):
                    continue
                start_s = time.monotonic()
                try:
                    self._enrol_again(identifier, pill)
                except (StageFailed, OSError) as error:
                    self._put_off(stamp, error)
                    failed = True
                    if time.monotonic() - start_s > WAITED_S:
                        break
                    continue
                self._enrolled[pill] = photos
                self._changed(pill)
        # SQLite shows a change a moment after it has written it.
        if not failed and stamp.is_older_than(SETTLED_S):
            self._home_was = stamp

    def _try_to_catch_up(self) -> None:
        """Do so unless someone is writing: nobody waits for a look."""
        if last_written(self.home) != self._home_was and self._writing.acquire(blocking=False):
            try:
                self._catch_up()
            finally:
                self._writing.release()

    def _put_off(self, stamp: Stamp, error: Exception) -> None:
        """What is in memory still serves."""
        log.warning("%s", error)
        self._failed_at, self._again_at_s = stamp, time.monotonic() + AGAIN_S

    def _changed(self, pill: str) -> None:
        self._digest = ""
        self._local_rows.pop(pill, None)
        self._since_opening.add(pill)

    def _photos_of_pills(self) -> dict[str, list[tuple[str, str]]]:
        """Of each pill that is enrolled in the home its photos and what they show."""
        photos: dict[str, list[tuple[str, str]]] = {}
        for kept in self.kept():
            photos.setdefault(kept.pill, []).append((kept.crop, kept.side))
        return photos

    def _enrol_again(self, identifier: Identifier, pill: str) -> None:
        """Let a gallery hold of a pill what the home holds."""
        if not is_store(self.home):
            identifier.gallery.remove(pill)
            return
        with self._store() as local:
            references, embeddings = local.embedded(identifier.embedder, pill)
        identifier.gallery.replace(pill, references, embeddings)

    def _store(self) -> LocalReferences:
        return LocalReferences(self.home, check=False)  # it was checked with the bundle

    def _gallery_digest(self) -> str:
        if not self._digest:
            gallery, rows_of = self.identifier.gallery, self._local_rows
            self._bundled_rows = self._bundled_rows or row_digests(gallery.bundled)
            for pill in gallery.local.counts().keys() - rows_of.keys():
                rows_of[pill] = row_digests(gallery.local, pill)
            local_rows = [row for rows in rows_of.values() for row in rows]
            self._digest = gallery_digest(gallery, self._bundled_rows + local_rows)
        return self._digest


class _Opened:
    """An open bundle and how many use it; closed when it is retired and nobody does."""

    def __init__(self, identifier: Identifier) -> None:
        self.identifier = identifier
        self._lock = threading.Lock()
        self._users, self._retired = 0, False

    def take(self) -> bool:
        """Use it; False when it is retired."""
        with self._lock:
            if not self._retired:
                self._users += 1
            return not self._retired

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            self._close_if_over()

    def retire(self) -> None:
        with self._lock:
            self._retired = True
            self._close_if_over()

    def _close_if_over(self) -> None:
        if self._retired and not self._users:
            self.identifier.close()


def _look(identifier: Identifier, frame: Frame, is_crop: bool, n_candidates: int) -> Look:
    start_s = time.perf_counter()
    if is_crop:
        pills = identifier.identify_crop(frame, n_candidates)
        return Look(identifier.manifest.name, pills, [frame], 0.0, _ms_since(start_s))
    found = identifier.locator.locate(frame)
    located_s = time.perf_counter()
    crops = [crop(frame, pill) for pill in found]
    decisions = identify_crops(
        crops, identifier.embedder, identifier.gallery, identifier.calibration, n_candidates
    )
    pills = identified(found, decisions)
    locate_ms = 1000 * (located_s - start_s)
    return Look(identifier.manifest.name, pills, crops, locate_ms, _ms_since(located_s))


def _ms_since(start_s: float) -> float:
    return 1000 * (time.perf_counter() - start_s)
