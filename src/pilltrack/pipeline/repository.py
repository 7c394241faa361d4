"""What lies in a repository of releases: read, and verified as a device would.

It is followed from the roots that are known here to timestamp.json and to what that names; nothing
is believed that is not signed by the keys of the newest root. Expired metadata are returned, too:
whoever holds the keys may renew them.

A key folder remembers the versions that it saw at each place (`published.json`), so that older
files put there again are noticed.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from pilltrack.core.channels import CHANNELS, METADATA, TARGETS, Release, release_in, releases_in
from pilltrack.core.errors import StageFailed
from pilltrack.core.files import sync_directory, write_durably
from pilltrack.pipeline.roots import MAX_ROOT_BYTES, SignedRoot, follow, is_same
from pilltrack.pipeline.store import Store

log = logging.getLogger(__name__)
MAX_TIMESTAMP_BYTES = 16_384
MAX_METADATA_BYTES = 50_000_000
TIMESTAMP = f"{METADATA}/timestamp.json"
TARGETS_FILE = "targets.json"  # as a snapshot names it
MEMORY = "published.json"
T = TypeVar("T", Targets, Snapshot, Timestamp)
TargetFiles = dict[str, TargetFile]


class RepositoryRejected(StageFailed):
    """What lies there is not genuine, damaged, or older than it was."""


class Seen(BaseModel):
    """The highest versions that a key folder saw at one place."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    root: int = 0
    targets: int = 0
    snapshot: int = 0
    timestamp: int = 0
    release: int = 0
    assignment: int = 0


@dataclass(frozen=True)
class Repository:
    """A verified repository, or the empty one that is to be begun."""

    published_root: int = 0  # the newest root that readers find there
    verified_root: int = 0  # the root that its metadata were verified with
    tag: str | None = None  # of timestamp.json; None where there is none to replace
    timestamp: Timestamp | None = None
    snapshot: Snapshot | None = None
    targets: Targets | None = None

    @property
    def files(self) -> TargetFiles:
        """The targets: files of bundles, by their SHA-256."""
        return dict(self.targets.targets) if self.targets else {}

    @property
    def releases(self) -> list[Release]:
        """All releases, by number."""
        return releases_among(self.files)

    @property
    def seen(self) -> Seen:
        """The versions to remember."""
        return Seen(
            root=self.published_root,
            targets=self.targets.version if self.targets else 0,
            snapshot=self.snapshot.version if self.snapshot else 0,
            timestamp=self.timestamp.version if self.timestamp else 0,
            release=max((release.number for release in self.releases), default=0),
            assignment=max(turns_of(self.releases), default=0),
        )

    def expired(self, now: datetime) -> list[str]:
        """Which metadata devices refuse for their age."""
        parts = (self.timestamp, self.snapshot, self.targets)
        return [part.type for part in parts if part and part.is_expired(now)]


def read_repository(
    store: Store, chain: list[SignedRoot], last_root: int = 0
) -> tuple[Repository, list[SignedRoot]]:
    """Read and verify what a reader with these roots finds, and return it with all roots known.

    Also what has expired is returned. While the newest root is not published yet, metadata may
    still be signed by the keys of the root before; only of `last_root`, the one with which a key
    folder saw the repository last, so that keys once replaced never count again.

    Raises RepositoryRejected or RootRejected for what is not genuine.
    """
    chain = list(chain)
    while data := store.read(f"{METADATA}/{chain[-1].version + 1}.root.json", MAX_ROOT_BYTES):
        chain.append(follow(chain[-1], data))
    published_root = 0
    for root in reversed(chain):
        data = store.read(f"{METADATA}/{root.version}.root.json", MAX_ROOT_BYTES)
        if data is None:
            continue
        if not is_same(data, root.data):
            raise RepositoryRejected(
                f"{store}: root {root.version}",
                found="another root of the same number",
                expected="the root of the key folder",
                remedy="Find out who made the other; only one of them can be right.",
            )
        published_root = root.version
        break
    tagged = store.tagged(TIMESTAMP, MAX_TIMESTAMP_BYTES)
    if tagged is None:
        return Repository(published_root=published_root), chain
    before = [root for root in chain if root.version == last_root != chain[-1].version]
    for root in (chain[-1], *before):
        try:
            return _verified(store, *tagged, root, published_root), chain
        except _NotSigned as error:
            refused = error
            log.debug("not signed by keys of root %d", root.version)
    raise RepositoryRejected(
        f"{store}",
        found=f"metadata that are not genuine ({refused})",
        expected=f"signatures by keys of root {chain[-1].version}",
        remedy="Find out who wrote them. After a rotation of keys, publish first with the key "
        "folder that published last.",
    )


def bundle_bytes(store: Store, repository: Repository) -> dict[int, int]:
    """The size of each release's bundle, from its manifest; by number of the release."""
    sizes = {}
    for release in repository.releases:
        file = repository.files[release.manifest]
        data = store.read(f"{TARGETS}/{release.manifest}", file.length) or b""
        try:
            file.verify_length_and_hashes(data)
            described = json.loads(data)["files"].values()
            sizes[release.number] = file.length + sum(int(one["bytes"]) for one in described)
        except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RepositoryRejected(
                f"{store}: {TARGETS}/{release.manifest}",
                found="not the manifest that was published",
                expected=f"the manifest of release {release.number}",
                remedy="Publish its bundle again, after deleting this file.",
            ) from error
    return sizes


def as_rows(repository: Repository, sizes: Mapping[int, int]) -> list[dict[str, Any]]:
    """All releases as JSON values; `current` names the channels whose devices run it."""
    releases = repository.releases
    running = {channel: release_in(channel, releases) for channel in CHANNELS}
    return [
        {
            **release.model_dump(mode="json"),
            "bytes": sizes[release.number],
            "current": [name for name, current in running.items() if current == release],
        }
        for release in releases
    ]


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `as_rows` for a person; `*` marks what devices of a channel run.

    >>> print(as_text([{"number": 1, "name": "pills", "time": "2026-11-26T09:30:00Z",
    ...     "bytes": 5_250_000, "channels": {"beta": 1}, "current": ["beta"], "yanked": ""}]))
    number  time              size     name     channels
         1  2026-11-26 09:30  5.2 MB   pills    beta*
    """
    width = max([7, *(len(row["name"]) for row in rows)])
    lines = [f"number  time              size     {'name':{width}}  channels"]
    for row in rows:
        channels = [name + "*" * (name in row["current"]) for name in row["channels"]]
        size = f"{row['bytes'] / 1e6:.1f} MB"
        yanked = f"  yanked: {row['yanked']}" if row["yanked"] else ""
        when = row["time"][:16].replace("T", " ")
        lines.append(
            f"{row['number']:6}  {when}  {size:7}  {row['name']:{width}}  "
            f"{', '.join(channels) or '-'}{yanked}"
        )
    return "\n".join(lines)


def recall(keys: Path) -> dict[str, Seen]:
    """The versions that a key folder saw, by place."""
    path = keys / MEMORY
    try:
        content = json.loads(path.read_bytes())
        return {place: Seen.model_validate(seen) for place, seen in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, ValidationError) as error:
        raise StageFailed(
            str(path),
            found="a file that cannot be read",
            expected="the versions that were published",
            remedy="Copy it from another copy of the folder; or delete it, and publish with "
            "--after-loss and a number above all versions.",
        ) from error


def remember(keys: Path, place: str, seen: Seen) -> None:
    """Keep the highest versions of a place; several publishers may do so at once."""
    with (keys / f"{MEMORY}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        memory = recall(keys)
        old = memory.get(place, Seen())
        highest = {name: max(getattr(old, name), at) for name, at in seen.model_dump().items()}
        content = {
            **{name: one.model_dump() for name, one in memory.items()},
            place: highest,
        }
        write_durably(keys / MEMORY, json.dumps(content, indent=1, sort_keys=True).encode())
        sync_directory(keys)


def releases_among(files: TargetFiles) -> list[Release]:
    """The releases among targets, by number."""
    return releases_in({path: file.custom for path, file in files.items()})


def turns_of(releases: Iterable[Release]) -> list[int]:
    """The numbers of all assignments."""
    return [turn for release in releases for turn in release.channels.values()]


class _NotSigned(Exception):
    """Metadata that the keys of one root did not sign; another root may have others."""


def _verified(
    store: Store, data: bytes, tag: str, root: SignedRoot, published_root: int
) -> Repository:
    timestamp = _parsed(Timestamp, data, root, store)
    meta = timestamp.snapshot_meta
    snapshot = _parsed(Snapshot, _named_by(meta, store, Snapshot.type), root, store)
    meta_of_targets = snapshot.meta.get(TARGETS_FILE)
    if meta_of_targets is None:
        raise _damaged(store, Snapshot.type, f"no {TARGETS_FILE} in it")
    targets = _parsed(Targets, _named_by(meta_of_targets, store, Targets.type), root, store)
    for part, named in ((snapshot, meta), (targets, meta_of_targets)):
        if part.version != named.version:
            raise _damaged(store, part.type, f"version {part.version} instead of {named.version}")
    return Repository(
        published_root=published_root,
        verified_root=root.version,
        tag=tag,
        timestamp=timestamp,
        snapshot=snapshot,
        targets=targets,
    )


def _named_by(meta: MetaFile, store: Store, kind: str) -> bytes:
    name = f"{METADATA}/{meta.version}.{kind}.json"
    data = store.read(name, min(meta.length or MAX_METADATA_BYTES, MAX_METADATA_BYTES))
    if data is None:
        raise _damaged(store, kind, f"no {name}")
    try:
        meta.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise _damaged(store, kind, str(error)) from error
    return data


def _parsed(kind: type[T], data: bytes, root: SignedRoot, store: Store) -> T:
    try:
        metadata = Metadata[T].from_bytes(data)
    except RepositoryError as error:
        raise _damaged(store, kind.type, str(error)) from error
    if not isinstance(metadata.signed, kind):
        raise _damaged(store, kind.type, f"metadata of the type {metadata.signed.type}")
    try:
        root.root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise _NotSigned(str(error)) from error
    return metadata.signed


def _damaged(store: Store, kind: str, found: str) -> RepositoryRejected:
    return RepositoryRejected(
        f"{store}: {kind}",
        found=found,
        expected="what its signed predecessor names",
        remedy="Find out who changed it. Bring back that file from a copy, or treat the "
        "repository as lost (docs/fleet.md).",
    )
