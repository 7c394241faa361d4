"""Publish bundles for a fleet: a repository of The Update Framework, in a directory or on S3.

What a repository holds is said in `core.channels`. Every change goes one way (`Publisher._change`):

    1. read     what is there, and verify it as a device would, from the roots of the key folder;
                nothing is ever signed on top of what is not genuine, or older than was seen before
    2. change   the list of releases
    3. write    files, then N.targets.json, then N.snapshot.json, each only where nothing is; a
                number that a publisher left who died is skipped
    4. commit   replace timestamp.json if it is still the one that was read

A reader follows from timestamp.json to what it names, so it sees all of a change or nothing. Who
loses the race for timestamp.json begins anew, from what the winner wrote.

A new root makes the signatures of replaced keys worthless. Where those keys are still here, the
commit is signed by old and new keys and the root follows it, so no reader ever finds what it cannot
verify. Where they are lost, the root goes first: from then until the commit, readers are refused.

The key folder remembers the versions that it saw published (`published.json`). A repository that
is older, or gone, is refused until a person says that it was lost; then all versions continue above
what devices may have seen.

Nothing is signed by a clock that does not fit what was signed last: it would be expired when it is
written, or devices would wait for a day that is far away. Until a person says whose clock is right.
"""

from __future__ import annotations

import hashlib
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from pilltrack.core.bundle import MANIFEST_FILE, Manifest, read_bundle
from pilltrack.core.channels import (
    MAX_REASON_LENGTH,
    METADATA,
    TARGETS,
    Channel,
    Release,
)
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.pipeline.keys import KeyMissing, adopt, private_key
from pilltrack.pipeline.prove import private_copy, require_proven
from pilltrack.pipeline.repository import (
    MAX_METADATA_BYTES,
    MAX_TIMESTAMP_BYTES,
    MEMORY,
    TARGETS_FILE,
    TIMESTAMP,
    Repository,
    RepositoryRejected,
    Seen,
    T,
    TargetFiles,
    read_repository,
    recall,
    releases_among,
    remember,
    turns_of,
)
from pilltrack.pipeline.roots import (
    ROLES,
    Role,
    SignedRoot,
    read_chain,
)
from pilltrack.pipeline.store import Store

log = logging.getLogger(__name__)
MAX_ROOTS = 256  # that a client follows at once
MAX_NUMBERS_TAKEN = 10_000  # by publishers that died
ATTEMPTS = 60
MAX_PAUSE_S = 2.0
JUMP = 1000  # above what was seen, where a repository was lost
MAX_AFTER_LOSS = 1_000_000_000
CLOCK_TOLERANCE = timedelta(days=1)  # as much as devices allow
MAX_PAUSE = timedelta(days=90)  # after what was signed has ended; longer is a clock that is ahead
EARLY = 1 / 3  # of its days before a signature ends it is renewed


class Publisher:
    """One key folder and one repository; every method is one change, and verified when it returns.

    `place` is the name under which the key folder remembers the repository. `after_loss` accepts a
    repository that is gone or older than it was, and continues `JUMP` above the versions that are
    known, or above `after_loss` itself if that is more. `clock_is_right` accepts signatures that,
    by this clock, were made in the future or ended long ago, and sets the times of releases that
    have not come yet to now. `prove` raises for a bundle that devices would not run.
    """

    def __init__(
        self,
        store: Store,
        keys: Path,
        *,
        passphrase: bytes | None = None,
        place: str = "",
        after_loss: int | None = None,
        clock_is_right: bool = False,
        prove: Callable[[Path], None] = require_proven,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
        draw: random.Random | None = None,
    ) -> None:
        if after_loss is not None and not 0 <= after_loss <= MAX_AFTER_LOSS:
            raise InputRejected(
                "--after-loss",
                found=str(after_loss),
                expected=f"0 to {MAX_AFTER_LOSS}",
                remedy="Take ten times the days since the first release.",
            )
        self._store = store
        self._keys = keys
        self._passphrase = passphrase
        self._place = place or str(store)
        self._after_loss = after_loss
        self._clock_is_right = clock_is_right
        self._prove = prove
        self._now = now
        self._sleep = sleep
        self._draw = draw or random.Random()  # noqa: S311  only pauses
        self._opened_keys: dict[str, CryptoSigner] = {}

    def publish(
        self, bundle: Path, channel: Channel, progress: Callable[[int], None] = lambda _: None
    ) -> Release:
        """Publish a bundle and assign it to a channel; `progress` is told of bytes as they arrive.

        The same bundle again is the same release, assigned anew. Raises BundleRejected for a
        damaged bundle, GateFailed for one that does not keep its promises, InputRejected for one
        whose release was yanked or whose name is no text.
        """
        with private_copy(bundle) as copy:
            manifest = read_bundle(copy)
            if not manifest.name.isprintable():
                raise InputRejected(
                    str(bundle),
                    found=f"the name {manifest.name!r:.200}",
                    expected="a name without control characters",
                    remedy="Correct package.name in params.yaml, and run `dvc repro`.",
                )
            self._prove(copy)
            return self._published(copy, manifest, channel, progress)

    def _published(
        self, bundle: Path, manifest: Manifest, channel: Channel, progress: Callable[[int], None]
    ) -> Release:
        files = {record.sha256: bundle / name for name, record in manifest.files.items()}
        described = TargetFile.from_file("", str(bundle / MANIFEST_FILE))
        digest = described.hashes["sha256"]
        files[digest] = bundle / MANIFEST_FILE

        def change(files_before: TargetFiles, floor: Seen) -> TargetFiles:
            now = self._now().replace(microsecond=0)
            found = releases_among(files_before)
            release = next((one for one in found if one.manifest == digest), None) or Release(
                number=max([floor.release, *(one.number for one in found)]) + 1,
                manifest=digest,
                name=manifest.name[:200],
                time=now,
            )
            after = dict(files_before)
            for sha256, path in files.items():
                size = path.stat().st_size
                after.setdefault(sha256, TargetFile(size, {"sha256": sha256}, sha256))
            return _assigned(after, release, channel, floor)

        return _with_manifest(self._change(change, files, progress), digest)

    def set_channel(self, channel: Channel, number: int) -> list[Release]:
        """Assign a release to a channel, such as one proven on beta to stable.

        Returns all releases. Raises InputRejected for a number that is none, or a yanked release.
        """

        def change(files: TargetFiles, floor: Seen) -> TargetFiles:
            return _assigned(files, _release(files, number), channel, floor)

        return self._change(change)

    def yank(self, number: int, reason: str) -> list[Release]:
        """Take a release back for good: devices that run it go back to their channel's one before.

        A release yanked again keeps its first reason. Returns all releases. Raises InputRejected
        for a number that is none, or without a reason.
        """
        reason = " ".join(reason.split())
        if not 1 <= len(reason) <= MAX_REASON_LENGTH or not reason.isprintable():
            raise InputRejected(
                "--reason",
                found=f"{len(reason)} characters: {reason!r:.60}",
                expected=f"1 to {MAX_REASON_LENGTH}, none of them a control character",
                remedy="Say in a sentence why no device shall run it; devices keep it.",
            )

        def change(files: TargetFiles, _floor: Seen) -> TargetFiles:
            release = _release(files, number)
            yanked = release.yanked or reason
            return _with(files, release.model_copy(update={"yanked": yanked}))

        return self._change(change)

    def renew(self) -> list[Release]:
        """Sign snapshot and timestamp again, so that devices know that nothing is withheld.

        The targets are signed again when they end soon or a new root asks for it, if their key is
        here; if it is not and they have not ended, a warning says until when.
        """
        return self._change(None)

    def _change(
        self,
        change: Callable[[TargetFiles, Seen], TargetFiles] | None,
        files: Mapping[str, Path] | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Release]:
        """Read, change, write, commit; again from the start when another publisher was faster."""
        files = files or {}
        chain = read_chain(self._keys)
        self._store.check()
        for attempt in range(ATTEMPTS):
            found, chain, floor = self._read(chain)
            self._require_valid(chain[-1])
            self._require_clock(found, chain)
            after = change(found.files, floor) if change else found.files
            if self._clock_is_right:
                after = _until(after, self._now())
            is_changed = change is not None or after != found.files
            signers = self._signers(found, chain, is_changed=is_changed)
            if attempt == 0:
                for sha256, path in files.items():
                    self._upload(sha256, path)
                    progress(path.stat().st_size)
            if not signers.of_readers_root_too:
                self._spread(chain, found)
            written, timestamp = self._write(found, after, floor, chain[-1], signers)
            if self._commit(found, timestamp):
                if signers.of_readers_root_too:
                    self._spread(chain, found)
                self._confirm(chain, files, written.seen.timestamp)
                self._note(written, chain)
                return written.releases
            pause_s = min(MAX_PAUSE_S, 0.05 * 2**attempt) * self._draw.random()
            log.debug("another publisher was faster; again in %.2f s", pause_s)
            self._sleep(pause_s)
        raise StageFailed(
            str(self._store),
            found=f"{ATTEMPTS} times another publisher that was faster",
            expected="a moment without others",
            remedy="Try again; nothing was published.",
        )

    def _read(self, chain: list[SignedRoot]) -> tuple[Repository, list[SignedRoot], Seen]:
        """The repository, all roots known, and what new versions must be above beside its own."""
        memory = recall(self._keys)
        seen = memory.get(self._place, Seen())
        found, chain = read_repository(self._store, chain, seen.root)
        is_older = any(
            getattr(found.seen, name) < getattr(seen, name)
            for name in Seen.model_fields
            if name != "root"
        )
        if is_older and self._after_loss is None:
            raise RepositoryRejected(
                str(self._store),
                found="nothing" if found.tag is None else f"older files ({found.seen})",
                expected=f"what {self._keys / MEMORY} says was there ({seen})",
                remedy="Find out who put older files there. If the repository was lost, publish "
                "its bundles again with --after-loss (docs/fleet.md).",
            )
        if found.tag is not None and self._after_loss is None:
            return found, chain, Seen()
        jump = JUMP if is_older else 0
        floor = {
            name: max(
                max((getattr(one, name) for one in memory.values()), default=0) + jump,
                self._after_loss or 0,
            )
            for name in Seen.model_fields
        }
        return found, chain, Seen(**floor)

    def _note(self, written: Repository, chain: list[SignedRoot]) -> None:
        """Keep in the key folder what it must know the next time; it may be read-only."""
        try:
            adopt(self._keys, chain)
            remember(self._keys, self._place, written.seen)
        except OSError as error:
            log.warning(
                "published, but %s cannot be written (%s): older files put there later would not "
                "be noticed",
                self._keys,
                error.strerror,
            )

    def _require_valid(self, root: SignedRoot) -> None:
        if root.is_expired(self._now()):
            raise StageFailed(
                f"root {root.version}",
                found=f"it ended on {root.root.expires:%Y-%m-%d}, devices refuse everything",
                expected="a root that has not ended",
                remedy="Run `pilltrack keys renew`, and have enough root keys sign.",
            )

    def _require_clock(self, found: Repository, chain: list[SignedRoot]) -> None:
        """Raise StageFailed for a clock that what was signed last contradicts."""
        if found.timestamp is None or self._clock_is_right:
            return
        now, until = self._now(), found.timestamp.expires
        # Whichever root said for how long it holds: it was not signed before that.
        signed = until - timedelta(days=max(root.days.online for root in chain))
        if signed - CLOCK_TOLERANCE <= now <= until + MAX_PAUSE:
            return
        raise StageFailed(
            "this machine's clock",
            found=f"{now:%Y-%m-%d %H:%M} UTC",
            expected=f"a time that fits what was signed last, from {signed:%Y-%m-%d} "
            f"until {until:%Y-%m-%d}",
            remedy="Set the clock. If it is right, the clock of who signed last was wrong, or "
            "nobody signed for long: say so with --clock-is-right (docs/fleet.md).",
        )

    def _signers(self, found: Repository, chain: list[SignedRoot], *, is_changed: bool) -> _Signers:
        """Open the keys that have to sign; raises KeyMissing."""
        newest = chain[-1]
        roots = {root.version: root for root in chain}
        before = roots.get(found.verified_root)
        online = self._open("online", newest)
        targets: list[CryptoSigner] = []
        if is_changed or before is None or _ids(before, "targets") != _ids(newest, "targets"):
            targets = self._open("targets", newest)
        elif found.targets is not None:
            targets = self._open_early(found.targets, newest)
        readers = roots.get(found.published_root)
        if readers is None:
            return _Signers(targets, online, of_readers_root_too=False)
        if targets:
            targets += self._open_old("targets", readers, newest)
        online += self._open_old("online", readers, newest)
        is_enough = _can_sign("online", online, readers) and (
            not targets or _can_sign("targets", targets, readers)
        )
        return _Signers(targets, online, of_readers_root_too=is_enough)

    def _open(self, role: Role, root: SignedRoot) -> list[CryptoSigner]:
        found = [self._opened(key) for key in root.keys(role)]
        signers = [signer for signer in found if signer is not None]
        if _can_sign(role, signers, root):
            return signers
        lacking = [key.keyid for key, one in zip(root.keys(role), found, strict=True) if not one]
        raise KeyMissing(
            str(self._keys),
            found=f"no private key for the role {role}",
            expected=f"{role}-{lacking[0][:8]}.pem",
            remedy="Do it where that key lies, or copy the key; a lost one is replaced by "
            f"`pilltrack keys rotate {role}`.",
        )

    def _open_early(self, targets: Targets, root: SignedRoot) -> list[CryptoSigner]:
        """The targets' keys where their signature ends soon and they are here."""
        if targets.expires > self._now() + timedelta(days=root.days.targets) * EARLY:
            return []
        try:
            return self._open("targets", root)
        except KeyMissing:
            if targets.is_expired(self._now()):
                raise
            log.warning(
                "the list of releases ends on %s, and its key is not here: run `pilltrack renew` "
                "where it lies before that day",
                f"{targets.expires:%Y-%m-%d}",
            )
            return []

    def _open_old(self, role: Role, readers: SignedRoot, newest: SignedRoot) -> list[CryptoSigner]:
        """Keys that only the root of the readers names, if they are still here."""
        gone = [key for key in readers.keys(role) if key.keyid not in _ids(newest, role)]
        try:
            found = [self._opened(key, retired=True) for key in gone]
        except KeyMissing as error:
            log.warning("the new root will be seen before what its keys signed: %s", error)
            return []
        return [signer for signer in found if signer is not None]

    def _opened(self, key: Key, *, retired: bool = False) -> CryptoSigner | None:
        if key.keyid not in self._opened_keys:
            found = private_key(self._keys, key, self._passphrase, retired=retired)
            if found is None:
                return None
            self._opened_keys[key.keyid] = found
        return self._opened_keys[key.keyid]

    def _upload(self, sha256: str, path: Path) -> None:
        """Put a file there, or find it there; either way read it back."""
        name = f"{TARGETS}/{sha256}"
        is_new = self._store.create(name, path)
        found = self._store.digest(name, path.stat().st_size)
        if found == sha256:
            return
        raise RepositoryRejected(
            f"{self._store}: {name}",
            found=f"SHA-256 {found}" if found else "nothing",
            expected=f"the content of {path}",
            remedy="Try again." if is_new else "Find out who changed it, delete it, try again.",
        )

    def _spread(self, chain: list[SignedRoot], found: Repository) -> None:
        """Put the roots there that readers do not find yet, oldest first."""
        for root in chain:
            if root.version > found.published_root:
                self._store.create(f"{METADATA}/{root.version}.root.json", root.data)

    def _write(
        self,
        found: Repository,
        after: TargetFiles,
        floor: Seen,
        root: SignedRoot,
        signers: _Signers,
    ) -> tuple[Repository, bytes]:
        """Write targets and snapshot, and make the timestamp that will name them."""
        now, days = self._now(), root.days
        until = now + timedelta(days=days.online)
        targets = found.targets
        targets_meta = found.snapshot.meta[TARGETS_FILE] if found.snapshot else None
        if signers.targets or targets is None or targets_meta is None:
            expires = now + timedelta(days=days.targets)
            targets, targets_meta = self._create_next(
                max(found.seen.targets, floor.targets),
                lambda version: Targets(version, expires=expires, targets=after),
                signers.targets,
            )
        meta = {TARGETS_FILE: targets_meta}
        snapshot, snapshot_meta = self._create_next(
            max(found.seen.snapshot, floor.snapshot),
            lambda version: Snapshot(version, expires=until, meta=meta),
            signers.online,
        )
        timestamp = Timestamp(
            max(found.seen.timestamp, floor.timestamp) + 1,
            expires=until,
            snapshot_meta=snapshot_meta,
        )
        written = Repository(
            published_root=root.version,
            verified_root=root.version,
            timestamp=timestamp,
            snapshot=snapshot,
            targets=targets,
        )
        return written, _signed(timestamp, signers.online)

    def _create_next(
        self, version: int, build: Callable[[int], T], signers: list[CryptoSigner]
    ) -> tuple[T, MetaFile]:
        """Write metadata under the next version that nobody has taken."""
        for taken in range(version, version + MAX_NUMBERS_TAKEN):
            signed = build(taken + 1)
            data = _signed(signed, signers)
            name = f"{METADATA}/{signed.version}.{signed.type}.json"
            digest = hashlib.sha256(data).hexdigest()
            if self._store.create(name, data) or self._store.digest(name, len(data)) == digest:
                return signed, MetaFile(signed.version, len(data), {"sha256": digest})
        raise StageFailed(
            f"{self._store}: {name}",
            found=f"{MAX_NUMBERS_TAKEN} versions that are taken",
            expected="a free one",
            remedy="Find out who writes there.",
        )

    def _commit(self, found: Repository, timestamp: bytes) -> bool:
        """The one write that readers notice; an answer that was lost is looked up."""
        if found.tag is None:
            is_done = self._store.create(TIMESTAMP, timestamp)
        else:
            is_done = self._store.replace(TIMESTAMP, timestamp, found.tag)
        return is_done or self._store.read(TIMESTAMP, MAX_TIMESTAMP_BYTES) == timestamp

    def _confirm(self, chain: list[SignedRoot], files: Iterable[str], version: int) -> None:
        """Follow from the oldest root known here as a device does, to this timestamp or a later."""
        with tempfile.TemporaryDirectory(prefix="pilltrack-reader-") as directory:
            try:
                reader = Updater(
                    directory,
                    f"{METADATA}/",
                    fetcher=_StoreFetcher(self._store),
                    config=UpdaterConfig(
                        max_root_rotations=MAX_ROOTS, prefix_targets_with_hash=False
                    ),
                    bootstrap=chain[0].data,
                )
                reader.refresh()
                missing = [path for path in files if reader.get_targetinfo(path) is None]
                kept = Path(directory) / "timestamp.json"
                found = Metadata[Timestamp].from_file(str(kept)).signed.version
            except (RepositoryError, DownloadError) as error:
                raise RepositoryRejected(
                    str(self._store),
                    found=f"written, but a reader refuses it ({error})",
                    expected="what was written",
                    remedy="Find out who else writes there, and publish again.",
                ) from error
        if found < version:
            raise RepositoryRejected(
                str(self._store),
                found=f"written, but readers still find timestamp {found}",
                expected=f"timestamp {version}",
                remedy="It says that it stores what it does not, or a cache answers for it: ask "
                "who runs it. Devices know nothing of this change.",
            )
        if missing:
            raise RepositoryRejected(
                str(self._store),
                found=f"written, but readers do not find {missing[0]}",
                expected="all files of the bundle",
                remedy="Find out who else writes there, and publish again.",
            )


@dataclass(frozen=True)
class _Signers:
    targets: list[CryptoSigner]  # empty: the targets stay as they are
    online: list[CryptoSigner]
    of_readers_root_too: bool  # what they sign, readers accept before the newest root comes


class _StoreFetcher(FetcherInterface):
    """What a device's HTTP client does, on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _fetch(self, url: str) -> Iterator[bytes]:
        content = self._store.read(url, MAX_METADATA_BYTES)
        if content is None:
            raise DownloadHTTPError(f"no {url}", 404)
        yield content


def _signed(signed: Targets | Snapshot | Timestamp, signers: list[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _ids(root: SignedRoot, role: Role) -> list[str]:
    return sorted(key.keyid for key in root.keys(role))


def _can_sign(role: Role, signers: list[CryptoSigner], root: SignedRoot) -> bool:
    able = {signer.public_key.keyid for signer in signers} & set(_ids(root, role))
    return len(able) >= root.root.roles[ROLES[role][0]].threshold


def _release(files: TargetFiles, number: int) -> Release:
    found = releases_among(files)
    for release in found:
        if release.number == number:
            return release
    raise InputRejected(
        f"release {number}",
        found="no such release",
        expected=f"one of {', '.join(str(release.number) for release in found) or 'none'}",
        remedy="`pilltrack releases` lists them.",
    )


def _with_manifest(releases: list[Release], manifest: str) -> Release:
    return next(release for release in releases if release.manifest == manifest)


def _assigned(files: TargetFiles, release: Release, channel: Channel, floor: Seen) -> TargetFiles:
    if release.yanked:
        raise InputRejected(
            f"release {release.number}",
            found=f"it was yanked ({release.yanked})",
            expected="a release that devices may run",
            remedy="Choose another, or build another bundle.",
        )
    turn = max([floor.assignment, *turns_of(releases_among(files))]) + 1
    return _with(
        files, release.model_copy(update={"channels": {**release.channels, channel: turn}})
    )


def _until(files: TargetFiles, now: datetime) -> TargetFiles:
    """The targets, and every release's time that has not come yet set to now."""
    for release in releases_among(files):
        if release.time > now:
            time = now.replace(microsecond=0)
            files = _with(files, release.model_copy(update={"time": time}))
    return files


def _with(files: TargetFiles, release: Release) -> TargetFiles:
    """The targets with a release put in, or replaced; what was given stays as it is."""
    file = deepcopy(files[release.manifest])
    file.unrecognized_fields["custom"] = release.model_dump(mode="json")
    return {**files, release.manifest: file}
