"""Which bundle a device runs: slots, one small file that says which is active, and what happened.

    home/updates/               mode 0700
      state.json                which slot is active, which was before, what is on trial
      slots/<digest>/           a bundle, named by the SHA-256 of its manifest
      events.jsonl              the last switches, refusals and failures

What else lies there belongs to `edge.updater`.

A switch is one rename of state.json: a kill or a power cut before it leaves the old bundle, after
it the new one. A bundle that was switched to is on trial until it is confirmed; when it cannot be
opened, fails its watch, or does not survive its starts, the device goes back to the last bundle
that was confirmed, and in the end to the one of the install, so that it never has none. Several
processes may use the slots of one home.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack import __version__
from pilltrack.core.bundle import MANIFEST_FILE, Sha256, read_bundle
from pilltrack.core.errors import BundleRejected
from pilltrack.core.files import sync_directory, write_durably

log = logging.getLogger(__name__)

FORMAT: Final = 1
MAX_STARTS = 3  # of a bundle on trial: who needs a fourth crashes
MAX_TRIES = 2  # of a bundle that fails its self-test: the device may have been busy
MAX_REFUSED = 50
MAX_EVENTS_BYTES = 256 * 1024
MAX_STATE_BYTES = 1024 * 1024

UPDATES, STATE, SLOTS, EVENTS = "updates", "state.json", "slots", "events.jsonl"

Kind = Literal[
    "switched",  # a new bundle is active, on trial
    "confirmed",  # it has kept its promises
    "rolled back",  # it has not: the one before is active again
    "refused",  # a bundle was not switched to
    "failed",  # nobody can say what to run: no answer, no proof, no room
    "mended",  # something on the disk was damaged
    "collision",  # a pill enrolled here is like another one, with the new bundle
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Part):
    """A bundle that is active and not confirmed."""

    since: datetime
    starts: int = Field(default=0, ge=0)


class Refusal(_Part):
    """Why this version of PillTrack does not run a bundle, and how often it tried."""

    reason: str
    tries: int = Field(ge=1)
    pilltrack: str


class State(_Part):
    """The content of state.json; a slot of None is the bundle of the install."""

    format: Literal[1] = FORMAT
    active: Sha256 | None = None
    previous: Sha256 | None = None  # the last that was confirmed
    trial: Trial | None = None
    refused: dict[Sha256, Refusal] = {}  # by manifest

    def refuses(self, manifest: Sha256) -> str:
        """Why a bundle is not tried again; empty if it may be."""
        refusal = self.refused.get(manifest)
        if refusal is None or refusal.tries < MAX_TRIES or refusal.pilltrack != __version__:
            return ""
        return refusal.reason


class Happening(_Part):
    """A line of events.jsonl: something about the bundle with this manifest, or about none."""

    time: datetime
    kind: Kind
    reason: Annotated[str, Field(max_length=100)]  # a word or two that never change
    manifest: Sha256 | None = None
    detail: Annotated[str, Field(max_length=2000)] = ""


class Slots:
    """The slots of a home; `install` is the bundle that is used while no slot is."""

    def __init__(self, home: Path, install: Path) -> None:
        self.root, self.install = home / UPDATES, install

    def state(self) -> State:
        """What state.json says; a device that never updated has a fresh state.

        A damaged file counts as a fresh state: it is put aside, and the next update finds the
        device's slots again.
        """
        try:
            return self._read()
        except _Damaged as error:
            with self._locked():
                try:
                    return self._read()  # another process may have mended it
                except _Damaged:
                    self._path(STATE).replace(self._path(f"{STATE}.damaged"))
                    self._record("mended", "state.json was damaged", None, str(error))
                    self._write(State())
            return State()

    def slot(self, manifest: Sha256 | None) -> Path:
        """Where a bundle lies, whether or not it does."""
        return self.install if manifest is None else self._path(SLOTS) / manifest

    def active(self) -> Path:
        """The bundle to open, unchecked."""
        return self.slot(self.state().active)

    def start(self) -> State:
        """Count a start, and settle which bundle to open: one that is whole.

        A bundle on trial that was started `MAX_STARTS` times is given up, and so is a damaged
        one. Raises BundleRejected when even the bundle of the install is damaged.
        """
        state = self.state()
        if state.trial and state.trial.starts >= MAX_STARTS:
            starts = f"{state.trial.starts} starts"
            state = self.roll_back(state.active, "did not survive its starts", starts)
        while state.active is not None:
            try:
                require_whole(self.slot(state.active), state.active)
                break
            except (BundleRejected, OSError) as error:
                state = self.roll_back(state.active, "damaged", str(error), again=True)
        else:
            read_bundle(self.install)
        if state.trial:
            with self._changing() as (now, write):
                if now == state:
                    starts_now = state.trial.starts + 1
                    trial = state.trial.model_copy(update={"starts": starts_now})
                    state = state.model_copy(update={"trial": trial})
                    write(state)
        return state

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
            before = now.previous if now.previous != manifest else None
            refused = now.refused if again else _refused(now, manifest, reason, MAX_TRIES)
            state = State(active=before, previous=None, refused=refused)
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
            write(now.model_copy(update={"refused": _refused(now, manifest, reason, 1)}))
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
        """The newest `limit` lines of the record, oldest first; torn ones are left out."""
        found: list[Happening] = []
        for line in reversed(self._lines()):
            if len(found) == limit:
                break
            try:
                found.append(Happening.model_validate_json(line))
            except ValidationError:
                continue
        return found[::-1]

    def _read(self) -> State:
        path = self._path(STATE)
        try:
            with path.open("rb") as file:
                return State.model_validate_json(file.read(MAX_STATE_BYTES))
        except FileNotFoundError:
            return State()
        except ValidationError as error:
            raise _Damaged(error.errors()[0]["msg"]) from error

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
        happening = Happening(
            time=time or utc_now(),
            kind=kind,
            reason=reason[:100],
            manifest=manifest,
            detail=" ".join(detail.split())[:2000],
        )
        path = self._path(EVENTS)
        lines = [*self._lines(), happening.model_dump_json().encode()]
        if path.exists() and path.stat().st_size > MAX_EVENTS_BYTES:
            lines = lines[len(lines) // 2 :]
        try:
            write_durably(path, b"\n".join(lines) + b"\n")
        except OSError as error:  # what is on record must not decide what is served
            log.warning("%s cannot be written (%s)", path, error.strerror)
        level = logging.INFO if kind in ("switched", "confirmed") else logging.WARNING
        log.log(level, "update: %s: %s%s", kind, reason, f" ({detail})" if detail else "")

    def _lines(self) -> list[bytes]:
        try:
            return self._path(EVENTS).read_bytes().splitlines()
        except FileNotFoundError:
            return []

    def _slots(self) -> list[Path]:
        try:
            return sorted(self._path(SLOTS).iterdir())
        except FileNotFoundError:
            return []

    def _path(self, name: str) -> Path:
        return self.root / name


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process. BlockingIOError unless `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def utc_now() -> datetime:
    """The time of the system's clock."""
    return datetime.now(UTC)


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


def _refused(state: State, manifest: Sha256, reason: str, tries: int) -> dict[Sha256, Refusal]:
    """The refusals with one more; the oldest make room."""
    known = dict(state.refused)
    before = known.pop(manifest, None)
    if before is not None and before.pilltrack == __version__:
        tries += before.tries
    known[manifest] = Refusal(reason=reason, tries=tries, pilltrack=__version__)
    return dict(list(known.items())[-MAX_REFUSED:])
