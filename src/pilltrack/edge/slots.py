"""Which bundle a device runs: slots, and one small file that says which of them is active.

    home/updates/               mode 0700
      state.json                which slot is active, which was before, what is on trial
      slots/<digest>/           a bundle, named by the SHA-256 of its manifest
      events.jsonl              the last switches, refusals and failures (`edge.happenings`)

What else lies there belongs to `edge.updater`.

A switch is one rename of state.json: a kill or a power cut before it leaves the old bundle, after
it the new one. A bundle that was switched to is on trial until it is confirmed; when it cannot be
opened, fails its watch, or does not survive its starts, the device goes back to the last bundle
that was confirmed, and in the end to the one of the install, so that it never has none. Where the
disk cannot be written or state.json is lost, what to open is decided all the same. Several
processes may use the slots of one home.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack import __version__
from pilltrack.core.bundle import MANIFEST_FILE, Sha256, read_bundle
from pilltrack.core.errors import BundleRejected, StageFailed
from pilltrack.core.files import sync_directory, write_durably
from pilltrack.edge.happenings import Happening, Kind, newest, put_on_record, utc_now

log = logging.getLogger(__name__)

FORMAT: Final = 1
MAX_STARTS = 3  # of a bundle on trial that it did not survive
MAX_TRIES = 2  # of a bundle that fails its self-test: the device may have been busy
REFUSED_FOR = timedelta(days=7)  # then it is tried again: what was wrong may be mended
MAX_REFUSED = 50
MAX_STATE_BYTES = 1024 * 1024

UPDATES, STATE, SLOTS, EVENTS = "updates", "state.json", "slots", "events.jsonl"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Part):
    """A bundle that is active and not confirmed: `starts` that it has not survived yet."""

    since: datetime
    starts: int = Field(default=0, ge=0)
    watched_s: float = Field(default=0.0, ge=0)


class Refusal(_Part):
    """Why this version of PillTrack does not run a bundle, and how often it tried.

    One that was active and failed is refused for good; others for `REFUSED_FOR`.
    """

    reason: str
    tries: int = Field(ge=1)
    pilltrack: str
    time: datetime
    for_good: bool = False

    def holds(self, now: datetime) -> bool:
        """Whether it counts still."""
        fresh = self.for_good or abs(now - self.time) < REFUSED_FOR
        return fresh and self.pilltrack == __version__


class State(_Part):
    """The content of state.json; a slot of None is the bundle of the install."""

    format: Literal[1] = FORMAT
    active: Sha256 | None = None
    previous: Sha256 | None = None  # the last that was confirmed
    trial: Trial | None = None
    refused: dict[Sha256, Refusal] = {}  # by manifest

    def refuses(self, manifest: Sha256, now: datetime) -> str:
        """Why a bundle is not tried again; empty if it may be."""
        refusal = self.refused.get(manifest)
        if refusal is None or refusal.tries < MAX_TRIES or not refusal.holds(now):
            return ""
        return refusal.reason


class Slots:
    """The slots of a home; `install` is the bundle that is used while no slot is."""

    def __init__(self, home: Path, install: Path) -> None:
        self.root, self.install = home / UPDATES, install

    def begin(self) -> None:
        """Write a fresh state where there is none: from then on its loss is noticed."""
        with self._changing() as (now, write):
            if not self._path(STATE).exists():
                write(now)

    def state(self) -> State:
        """What state.json says; a device that never updated has a fresh state.

        Where it is damaged or lost, the newest slot that is whole is active, on trial: that is
        written down, and what was damaged is put aside.
        """
        try:
            return self._read()
        except _Damaged:
            with self._locked():
                try:
                    return self._read()  # another process may have mended it
                except _Damaged as error:
                    state = self._recovered()
                    with contextlib.suppress(FileNotFoundError):
                        self._path(STATE).replace(self._path(f"{STATE}.damaged"))
                    self._record("mended", "state.json was damaged", state.active, str(error))
                    self._write(state)
            return state

    def slot(self, manifest: Sha256 | None) -> Path:
        """Where a bundle lies, whether or not it does."""
        return self.install if manifest is None else self._path(SLOTS) / manifest

    def active(self) -> Path:
        """The bundle to open, unchecked."""
        return self.slot(self.state().active)

    def start(self) -> State:
        """Count a start, and settle which bundle to open: one that is whole.

        A bundle on trial that did not survive `MAX_STARTS` of them is given up, and so is a
        damaged one. Where that cannot be written down it counts all the same, until the next
        start. Raises BundleRejected when even the bundle of the install is damaged.
        """
        try:
            state = self.state()
        except OSError as error:
            _warn(error)
            state = self._recovered()
        if state.trial and state.trial.starts >= MAX_STARTS:
            starts = f"{state.trial.starts} starts"
            state = self._left(state, "did not survive its starts", starts)
        while state.active is not None:
            try:
                require_whole(self.slot(state.active), state.active)
                break
            except (BundleRejected, OSError) as error:
                state = self._left(state, "damaged", str(error), again=True)
        else:
            read_bundle(self.install)
        if state.trial:
            trial = state.trial.model_copy(update={"starts": state.trial.starts + 1})
            state = self._on_trial(state, trial)
        return state

    def survived(self, manifest: Sha256 | None, seconds: float) -> State:
        """Count seconds for which a bundle on trial has served; its starts so far were no harm."""
        state = self.state()
        if state.trial is None or state.active != manifest:
            return state
        watched_s = state.trial.watched_s + seconds
        trial = state.trial.model_copy(update={"starts": 0, "watched_s": watched_s})
        return self._on_trial(state, trial)

    def switch(self, manifest: Sha256, time: datetime, yanked: Collection[Sha256] = ()) -> State:
        """Make a slot the active one, on trial; a refusal of it is forgotten.

        What is `yanked` is nothing to go back to.
        """
        with self._changing() as (now, write):
            if now.active == manifest:
                return now
            # What was never confirmed is nothing to go back to.
            previous = now.previous if now.trial else now.active
            state = State(
                active=manifest,
                previous=None if previous in yanked else previous,
                trial=Trial(since=time),
                refused={key: why for key, why in now.refused.items() if key != manifest},
            )
            write(state)
        self.record("switched", "published", manifest, time=time)
        return state

    def confirm(self, manifest: Sha256 | None) -> State:
        """End a bundle's trial well, if it is the active one."""
        with self._changing() as (now, write):
            if now.trial is None or now.active != manifest:
                return now
            state = now.model_copy(update={"trial": None})
            write(state)
        self.record("confirmed", "kept its promises", manifest)
        return state

    def roll_back(
        self, manifest: Sha256 | None, reason: str, detail: str = "", *, again: bool = False
    ) -> State:
        """Give a bundle up for the last confirmed one, if it is the active one.

        It is not tried again, unless `again`: a damaged slot can be fetched anew.
        """
        with self._changing() as (now, write):
            if manifest is None or now.active != manifest:
                return now
            state = _rolled_back(now, manifest, reason, again)
            write(state)
        self.record("rolled back", reason, manifest, detail)
        return state

    def forget_previous(self) -> None:
        """Go back to the bundle of the install, when it comes to that."""
        with self._changing() as (now, write):
            write(now.model_copy(update={"previous": None}))

    def refuse(self, manifest: Sha256, reason: str, detail: str = "") -> None:
        """Count that a bundle was tried and not switched to."""
        with self._changing() as (now, write):
            refusal = Refusal(reason=reason, tries=1, pilltrack=__version__, time=utc_now())
            write(now.model_copy(update={"refused": _refused(now, manifest, refusal)}))
        self.record("refused", reason, manifest, detail)

    def forgive(self) -> None:
        """Let every bundle be tried again."""
        with self._changing() as (now, write):
            write(now.model_copy(update={"refused": {}}))

    def prune(self) -> None:
        """Delete all slots but the active and the previous one."""
        with self._changing() as (now, _):
            for slot in self._slots():
                if slot.name not in (now.active, now.previous):
                    shutil.rmtree(slot, ignore_errors=True)

    def bundles(self) -> list[Path]:
        """Every bundle that lies here, the install's too; unchecked."""
        return [*self._slots(), self.install]

    def record(
        self,
        kind: Kind,
        reason: str,
        manifest: Sha256 | None = None,
        detail: str = "",
        time: datetime | None = None,
    ) -> None:
        """Put on record what happened; the oldest lines make room."""
        with self._locked():
            self._record(kind, reason, manifest, detail, time)

    def happenings(self, limit: int) -> list[Happening]:
        """The newest `limit` lines of the record, oldest first."""
        return newest(self._path(EVENTS), limit)

    def _read(self) -> State:
        path = self._path(STATE)
        try:
            with path.open("rb") as file:
                return State.model_validate_json(file.read(MAX_STATE_BYTES))
        except FileNotFoundError:
            if self._slots():
                raise _Damaged("missing") from None
            return State()
        except IsADirectoryError as error:
            raise _Damaged("a directory") from error
        except ValidationError as error:
            raise _Damaged(error.errors()[0]["msg"]) from error

    def _recovered(self) -> State:
        for slot in sorted(self._slots(), key=lambda path: path.stat().st_mtime, reverse=True):
            with contextlib.suppress(BundleRejected, OSError):
                require_whole(slot, slot.name)
                return State(active=slot.name, trial=Trial(since=utc_now()))
        return State()

    def _left(self, state: State, reason: str, detail: str, *, again: bool = False) -> State:
        """Roll back, on the disk if it can be written."""
        assert state.active is not None
        try:
            return self.roll_back(state.active, reason, detail, again=again)
        except OSError as error:
            _warn(error)
            return _rolled_back(state, state.active, reason, again)

    def _on_trial(self, state: State, trial: Trial) -> State:
        """Change a trial, on the disk if that still has this state and can be written."""
        after = state.model_copy(update={"trial": trial})
        try:
            with self._changing() as (now, write):
                if now == state:
                    write(after)
        except OSError as error:
            _warn(error)
        return after

    def _write(self, state: State) -> None:
        write_durably(self._path(STATE), state.model_dump_json(indent=1).encode())
        sync_directory(self.root)

    @contextmanager
    def _changing(self) -> Iterator[tuple[State, _Write]]:
        self.state()  # mends a damaged one
        with self._locked():
            yield self._read(), self._write

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._path("state.lock")):
            yield

    def _record(
        self,
        kind: Kind,
        reason: str,
        manifest: Sha256 | None,
        detail: str = "",
        time: datetime | None = None,
    ) -> None:
        put_on_record(self._path(EVENTS), kind, reason, manifest, detail, time)

    def _slots(self) -> list[Path]:
        try:
            return sorted(self._path(SLOTS).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _path(self, name: str) -> Path:
        return self.root / name


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process. BlockingIOError unless `wait`.

    Raises StageFailed for root in another user's home, who could not read what root writes.
    """
    updates, home = path.parent, path.parent.parent
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = home.stat().st_uid
    if os.geteuid() == 0 != owner:
        raise StageFailed(
            str(home),
            found=f"a home of user {owner}, asked by root",
            expected="the user who serves from it",
            remedy=f"Run it as that user: `sudo --user='#{owner}' pilltrack ...`.",
        )
    updates.mkdir(exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def digest_of_manifest(bundle: Path) -> str:
    """What a bundle is called in slots and releases; OSError if it has no manifest."""
    return hashlib.sha256((bundle / MANIFEST_FILE).read_bytes()).hexdigest()


def require_whole(slot: Path, manifest: Sha256) -> None:
    """BundleRejected or OSError unless a slot holds the bundle of that manifest, whole."""
    found = digest_of_manifest(slot)
    if found != manifest:
        raise BundleRejected(
            str(slot / MANIFEST_FILE),
            found=f"SHA-256 {found}",
            expected=f"SHA-256 {manifest}",
            remedy="The next update fetches it again.",
        )
    read_bundle(slot)


_Write = Callable[[State], None]


class _Damaged(Exception):
    """state.json is there and says nothing."""


def _rolled_back(state: State, manifest: Sha256, reason: str, again: bool) -> State:
    before = state.previous if state.previous != manifest else None
    refused = state.refused
    if not again:
        refusal = Refusal(
            reason=reason, tries=MAX_TRIES, pilltrack=__version__, time=utc_now(), for_good=True
        )
        refused = _refused(state, manifest, refusal)
    return State(active=before, previous=None, refused=refused)


def _refused(state: State, manifest: Sha256, refusal: Refusal) -> dict[Sha256, Refusal]:
    """The refusals with one more; the oldest make room."""
    known = dict(state.refused)
    before = known.pop(manifest, None)
    if before is not None and before.holds(refusal.time):
        update = {"tries": before.tries + refusal.tries, "for_good": before.for_good}
        refusal = refusal.model_copy(update=update)
    known[manifest] = refusal
    return dict(list(known.items())[-MAX_REFUSED:])


def _warn(error: OSError) -> None:
    log.warning("update: %s; what is decided now counts until the next start", error)
