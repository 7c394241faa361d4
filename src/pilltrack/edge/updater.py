"""Fetch a channel's bundle, prove it, try it, make it the active one: all of it, or nothing.

    metadata (The Update Framework) -> the channel's release -> files that are not here yet
    -> a slot, whole -> self-test in a process of its own -> state.json names the slot

    home/updates/
      metadata/      what the publisher said last, so that it cannot be asked to say less
      files/         downloads; a part is gone on with by the next update

What fails, fails before state.json changes, and the bundle that was active stays so. Every failure
is one `Happening` with a reason that never changes, and a sentence. Serving goes on meanwhile;
who serves follows state.json (`edge.follow`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from pilltrack.core.bundle import (
    MANIFEST_FILE,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    READABLE,
    FileRecord,
    PlainName,
    read_bundle,
)
from pilltrack.core.channels import (
    MAX_FILE_BYTES,
    METADATA,
    TARGETS,
    NewerFormat,
    Release,
    release_in,
    releases_in,
)
from pilltrack.core.errors import BundleRejected, PillTrackError, StageFailed
from pilltrack.core.files import sync_directory
from pilltrack.core.local import LocalReferences, is_store
from pilltrack.edge.fetch import Damaged, Fetcher, TooSlow
from pilltrack.edge.selftest import SelfTest
from pilltrack.edge.slots import SLOTS, Slots, locked, require_whole
from pilltrack.edge.source import LOCK, ROOT, UpdateSource

log = logging.getLogger(__name__)

FILES, NEW = "files", "new"
RESERVE_BYTES = 32 * 1024 * 1024  # that an update leaves free
CLOCK_TOLERANCE = timedelta(days=1)

Reason = Literal[
    "another update is running",
    "no answer",
    "too slow",
    "not signed by whom this device trusts",
    "older than what was seen",
    "expired",
    "clock is wrong",
    "damaged",
    "too long",
    "does not fit together",
    "no release in this channel",
    "disk is full",
    "disk fails",
    "bundle rejected",
    "needs a newer PillTrack",
    "self-test failed",
    "home is damaged",
]


@dataclass(frozen=True)
class Outcome:
    """What an update came to.

    switched   a new bundle is active
    current    the channel's bundle is the active one
    available  there is another one (and it was only asked for)
    refused    there is another one, and this device does not run it
    failed     nobody can say what there is
    """

    kind: Literal["switched", "current", "available", "refused", "failed"]
    reason: str = ""
    detail: str = ""
    release: Release | None = None
    received_bytes: int = 0
    tried: SelfTest | None = None


def update(
    slots: Slots,
    source: UpdateSource,
    self_test: Callable[[Path], SelfTest],
    now: datetime,
    fetcher: Fetcher,
    *,
    only_ask: bool = False,
) -> Outcome:
    """Bring a device to the bundle of its channel; what fails is on record, and changes nothing.

    `self_test` tries a slot; `now` is the device's clock in UTC. With `only_ask` nothing but
    metadata is fetched.
    """
    job = _Job(slots, source, self_test, now, fetcher)
    try:
        with _explained(now), _alone(slots):
            return _update(job, only_ask)
    except _Refused as refused:
        kind: Literal["refused", "failed"] = "failed" if refused.release is None else "refused"
        try:
            if refused.release is not None:
                slots.refuse(refused.release.manifest, refused.reason, refused.detail)
            else:
                slots.record("failed", refused.reason, None, refused.detail, now)
        except OSError as error:
            log.warning("update: %s (%s); it cannot be put on record (%s)",
                        refused.reason, refused.detail, error)  # fmt: skip
        return Outcome(
            kind,
            refused.reason,
            refused.detail,
            refused.release,
            fetcher.received,
            refused.tried,
        )


@dataclass(frozen=True)
class _Job:
    """What an update works with."""

    slots: Slots
    source: UpdateSource
    self_test: Callable[[Path], SelfTest]
    now: datetime
    fetcher: Fetcher


def _update(job: _Job, only_ask: bool) -> Outcome:
    client = _Client(job.slots.root, job.source.url, job.fetcher)
    releases = client.releases()
    _require_clock(releases, job.now)
    release = release_in(job.source.channel, releases)
    if only_ask:
        return _asked(job, release)
    yanked = {release.manifest: release.yanked for release in releases if release.yanked}
    try:
        return _taken(job, client, release, yanked)
    finally:
        _leave_yanked(job.slots, yanked)


def _asked(job: _Job, release: Release | None) -> Outcome:
    """Whether there is a release to be taken."""
    if release is None:
        found = f"{job.source.url} has none in {job.source.channel}"
        raise _Refused("no release in this channel", found)
    kind: Literal["current", "refused", "available"] = "available"
    detail, state = "", job.slots.state()
    why = state.refuses(release.manifest, job.now)
    if state.active == release.manifest:
        kind, why = "current", ""
    elif why:
        kind, detail = "refused", f"release {release.number} was tried before: {why}"
    return Outcome(kind, why, detail, release, job.fetcher.received)


def _taken(job: _Job, client: _Client, release: Release | None, yanked: dict[str, str]) -> Outcome:
    """Take a release, if it is another one than the active and not refused."""
    asked, slots = _asked(job, release), job.slots
    assert release is not None
    if asked.kind == "current":
        _clear(slots)  # what a killed update left
    if asked.kind != "available":
        return asked
    manifest, slot = release.manifest, _staged(job, client, release)
    tried = job.self_test(slot)
    if not tried.passed:
        slots.prune()
        blamed = None if tried.of_home else release
        reason: Reason = "home is damaged" if tried.of_home else "self-test failed"
        raise _Refused(reason, "; ".join(tried.failures), blamed, tried)
    slots.switch(manifest, job.now, yanked)
    for collision in tried.collisions:
        slots.record("collision", "enrolled pills look alike", manifest, str(collision), job.now)
    _clear(slots)
    return Outcome("switched", release=release, received_bytes=job.fetcher.received, tried=tried)


def _leave_yanked(slots: Slots, yanked: dict[str, str]) -> None:
    """What was yanked is nothing to go back to, nor to stay with where nothing took its place."""
    state = slots.state()
    if state.previous in yanked:
        slots.forget_previous()
    if state.active in yanked:
        slots.roll_back(state.active, "yanked", yanked[state.active])


def _clear(slots: Slots) -> None:
    """Delete what no bundle needs that is here: slots, downloads, embeddings of other spaces."""
    slots.prune()
    for name in (FILES, NEW):
        shutil.rmtree(slots.root / name, ignore_errors=True)
    home, spaces = slots.root.parent, set[str]()
    for bundle in slots.bundles():
        with contextlib.suppress(BundleRejected):
            spaces.add(read_bundle(bundle).space)
    if is_store(home):
        # Who cannot clean up has switched all the same.
        with (
            contextlib.suppress(StageFailed),
            LocalReferences(home, check=False) as local,
        ):
            local.keep_spaces(spaces)


class _Client:
    """What the publisher says, by The Update Framework's rules."""

    def __init__(self, root: Path, url: str, fetcher: Fetcher) -> None:
        self.directory, self.url, self.fetcher, self._root = root / METADATA, url, fetcher, root

    def releases(self) -> list[Release]:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        for path in self.directory.iterdir():  # of an update that was killed
            if path.is_file() and path.suffix != ".json":
                path.unlink()
        self._client = Updater(
            str(self.directory),
            f"{self.url}/{METADATA}/",
            fetcher=self.fetcher,
            config=UpdaterConfig(prefix_targets_with_hash=False),
            bootstrap=(self._root / ROOT).read_bytes(),
        )
        self._client.refresh()
        _sync_files(self.directory)
        # The refresh has just proven and written this file.
        targets = Metadata[Targets].from_file(str(self.directory / "targets.json")).signed.targets
        return releases_in({path: target.custom for path, target in targets.items()})

    def target(self, sha256: str, length: int | None = None) -> TargetFile:
        """A file that the publisher has signed."""
        target = self._client.get_targetinfo(sha256)
        if target is None:
            raise _Refused("does not fit together", f"no file {sha256} is published")
        if target.hashes.get("sha256") != sha256:
            raise _Refused("does not fit together", f"the file {sha256} has another hash")
        if length is not None and target.length != length:
            found = f"the file {sha256} has {target.length} bytes"
            raise _Refused("does not fit together", f"{found}, its manifest says {length}")
        return target


class _Listing(BaseModel):
    """What of a manifest of any format says which files there are."""

    model_config = ConfigDict(extra="ignore")

    format: int
    files: dict[PlainName, FileRecord] = Field(max_length=MAX_FILES)


def _staged(job: _Job, client: _Client, release: Release) -> Path:
    """The slot of a release: fetched, complete and proven."""
    slots = job.slots
    slot = slots.slot(release.manifest)
    try:
        require_whole(slot, release.manifest)
        return slot
    except (BundleRejected, OSError):
        pass  # not there, or damaged
    files = slots.root / FILES
    manifest = client.target(release.manifest)
    if manifest.length > MAX_MANIFEST_BYTES:
        raise _Refused("too long", f"a manifest of {manifest.length} bytes", release)
    _require_room(slots.root, manifest.length)
    fetched = _fetched(client, files, release.manifest, manifest.length)
    listing = _listing(fetched, release)
    here = _files_here(slots)
    missing = {
        record.sha256: record.bytes
        for record in listing.files.values()
        if record.sha256 not in here
    }
    for sha256, length in missing.items():
        client.target(sha256, length)
    _keep_only(files, {release.manifest, *missing})
    total = manifest.length + sum(record.bytes for record in listing.files.values())
    arriving = sum(length - _arrived(files, sha256) for sha256, length in missing.items())
    _require_room(slots.root, total + arriving)
    for sha256, length in missing.items():
        here[sha256] = _fetched(client, files, sha256, length)
    with _new_slot(slots, release.manifest) as new:
        shutil.copyfile(fetched, new / MANIFEST_FILE)
        for name, record in listing.files.items():
            shutil.copyfile(here[record.sha256], new / name)
        try:
            require_whole(new, release.manifest)
        except BundleRejected as error:
            shutil.rmtree(files, ignore_errors=True)
            raise _Refused("bundle rejected", str(error), release) from error
    return slot


def _fetched(client: _Client, files: Path, sha256: str, length: int) -> Path:
    path = files / sha256
    if not path.exists():
        client.fetcher.fetch_file(f"{client.url}/{TARGETS}/{sha256}", path, sha256, length)
    return path


def _keep_only(files: Path, names: set[str]) -> None:
    """Delete downloads for releases that were refused."""
    for path in files.iterdir():
        if path.name.removesuffix(".part") not in names:
            path.unlink()


def _listing(manifest: Path, release: Release) -> _Listing:
    try:
        listing = _Listing.model_validate(json.loads(manifest.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise _Refused("bundle rejected", f"its manifest is none ({error})", release) from error
    if listing.format < READABLE[0]:
        found = f"of format {listing.format}, which has to be built again as {READABLE[-1]}"
        raise _Refused("bundle rejected", found, release)
    if listing.format not in READABLE:
        found = f"a bundle of format {listing.format}, this version reads up to {READABLE[-1]}"
        raise _Refused("needs a newer PillTrack", found, release)
    if any(record.bytes > MAX_FILE_BYTES for record in listing.files.values()):
        raise _Refused("too long", f"a file of more than {MAX_FILE_BYTES} bytes", release)
    return listing


def _files_here(slots: Slots) -> dict[str, Path]:
    """SHA-256 -> a file of a bundle on this device; `read_bundle` proves it once it is copied."""
    found: dict[str, Path] = {}
    for bundle in slots.bundles():
        try:
            listing = _Listing.model_validate(json.loads((bundle / MANIFEST_FILE).read_bytes()))
            read_bundle(bundle)
        except (OSError, ValueError, RecursionError, BundleRejected):
            continue  # a damaged bundle lends nothing
        found |= {record.sha256: bundle / name for name, record in listing.files.items()}
    return found


@contextmanager
def _new_slot(slots: Slots, manifest: str) -> Iterator[Path]:
    """An empty directory that becomes the slot, once what lies in it is on the disk."""
    new, slot = slots.root / NEW, slots.slot(manifest)
    for leftover in (new, slot):
        shutil.rmtree(leftover, ignore_errors=True)
    (slots.root / SLOTS).mkdir(mode=0o700, exist_ok=True)
    new.mkdir(mode=0o700)
    try:
        yield new
        _sync_files(new)
        new.rename(slot)
        sync_directory(slots.root / SLOTS)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _require_room(directory: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < n_bytes + RESERVE_BYTES:
        found = f"{free / 1e6:.1f} MB are free, the update takes {n_bytes / 1e6:.1f} MB"
        raise _Refused("disk is full", f"{found} and leaves {RESERVE_BYTES / 1e6:.1f} MB")


def _require_clock(releases: list[Release], now: datetime) -> None:
    newest = max((release.time for release in releases if not release.yanked), default=now)
    if now < newest - CLOCK_TOLERANCE:
        found = f"this device's clock says {now:%Y-%m-%d}, releases are from {newest:%Y-%m-%d}"
        raise _Refused("clock is wrong", f"{found}: set the clock")


def _arrived(files: Path, sha256: str) -> int:
    for path in (files / sha256, files / f"{sha256}.part"):
        if path.exists():
            return path.stat().st_size
    return 0


def _sync_files(directory: Path) -> None:
    """Put files and names below a directory onto the disk."""
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        elif not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_directory(directory)


class _Refused(Exception):
    """Why an update ends; `release` is set where it is the release's own fault."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        release: Release | None = None,
        tried: SelfTest | None = None,
    ) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.release, self.tried = reason, detail, release, tried


@contextmanager
def _alone(slots: Slots) -> Iterator[None]:
    try:
        with locked(slots.root / LOCK, wait=False):
            yield
    except BlockingIOError as error:
        raise _Refused("another update is running", "wait for it to end") from error


_REASONS: dict[type[Exception], Reason] = {  # the first that fits
    NewerFormat: "needs a newer PillTrack",
    ExpiredMetadataError: "expired",
    BadVersionNumberError: "older than what was seen",
    UnsignedMetadataError: "not signed by whom this device trusts",
    LengthOrHashMismatchError: "damaged",
    RepositoryError: "not signed by whom this device trusts",
    Damaged: "damaged",
    TooSlow: "too slow",
    DownloadLengthMismatchError: "too long",
    DownloadHTTPError: "no answer",
    DownloadError: "no answer",
    PillTrackError: "does not fit together",
}


@contextmanager
def _explained(now: datetime) -> Iterator[None]:
    """Turn what went wrong into why the update ends."""
    try:
        yield
    except (RepositoryError, DownloadError, PillTrackError) as error:
        reason = next(_REASONS[kind] for kind in _REASONS if isinstance(error, kind))
        detail = str(error) or type(error).__name__
        if reason == "expired":
            clock = f"this device's clock ({now:%Y-%m-%d}) is wrong"
            detail += f": nothing newer is published, or {clock}"
        raise _Refused(reason, detail) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise _Refused("disk is full" if full else "disk fails", str(error)) from error


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as `pilltrack update --json` prints it."""
    release = outcome.release
    return {
        "outcome": outcome.kind,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "release": None if release is None else release.number,
        "name": None if release is None else release.name,
        "manifest": None if release is None else release.manifest,
        "received_bytes": outcome.received_bytes,
    }
