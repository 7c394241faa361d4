"""The chain of signed roots: who may sign releases, from the first root to the newest.

Root N says which keys sign for each role and how many must. Root N+1 counts only if enough keys of
root N and enough of its own have signed it, so whoever trusts root 1 can follow to the newest, and
nobody else can lead them. Only ed25519 keys are accepted.

A root file is never changed, but two machines may hold one with different sets of signatures; what
was signed must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TOP_LEVEL_ROLE_NAMES, Metadata, Root, RootVerificationResult

from pilltrack.core.errors import StageFailed

MAX_ROOT_BYTES = 512_000  # what clients take
SCHEME = "ed25519"
DAYS_FIELD = "x-pilltrack-days"  # of a root, signed with it
ROOT_NAME = re.compile(r"([1-9][0-9]*)\.root\.json")
Role = Literal["root", "targets", "online"]
ROLES: dict[Role, tuple[str, ...]] = {  # and what they are called in metadata
    "root": ("root",),
    "targets": ("targets",),
    "online": ("snapshot", "timestamp"),
}


class RootRejected(StageFailed):
    """A root is damaged, not signed by enough keys, or does not follow its predecessor."""


class Days(BaseModel):
    """How long signatures of each role hold, in days; signed with the root."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    root: int = Field(default=730, ge=1, le=3650)
    targets: int = Field(default=365, ge=1, le=3650)
    online: int = Field(default=30, ge=1, le=365)


@dataclass(frozen=True)
class SignedRoot:
    """A root that was verified, and the bytes that were."""

    data: bytes
    root: Root

    @property
    def version(self) -> int:
        """The number of the root; each replaces the one before."""
        return self.root.version

    @property
    def days(self) -> Days:
        """How long what is signed under this root holds."""
        return days_of(self.root, f"root {self.version}")

    def keys(self, role: Role) -> list[Key]:
        """Who may sign for a role."""
        ids = self.root.roles[ROLES[role][0]].keyids
        return [self.root.keys[key_id] for key_id in ids]

    def is_expired(self, now: datetime) -> bool:
        """Whether devices refuse everything until a newer root comes."""
        return self.root.is_expired(now)


def read_chain(folder: Path) -> list[SignedRoot]:
    """The roots in a folder, verified from the oldest, which is trusted as it is, to the newest.

    Raises RootRejected when there is none, one is missing between others, or one is not genuine.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("*.root.json")
        if (match := ROOT_NAME.fullmatch(path.name))
    }
    if not found:
        raise RootRejected(
            str(folder),
            found="no N.root.json",
            expected="a folder of keys",
            remedy="Name it with --keys, or begin with `pilltrack keys init`.",
        )
    chain: list[SignedRoot] = []
    for version in range(min(found), max(found) + 1):
        if version not in found:
            raise RootRejected(
                str(folder),
                found=f"no {version}.root.json",
                expected="all roots from the oldest to the newest",
                remedy="Copy it from another copy of the folder, or from the repository.",
            )
        chain.append(follow(chain[-1] if chain else None, _bytes_of(found[version])))
        if chain[-1].version != version:
            raise RootRejected(
                str(found[version]),
                found=f"root {chain[-1].version}",
                expected=f"root {version}",
                remedy="Copy it again from another copy of the folder.",
            )
    return chain


def read_root(path: Path) -> SignedRoot:
    """One root file that is trusted as it is, such as a device's."""
    return follow(None, _bytes_of(path))


def follow(previous: SignedRoot | None, data: bytes) -> SignedRoot:
    """Verify a root that comes after `previous`, or the first one, which is trusted as it is.

    Raises RootRejected.
    """
    metadata = parse(data)
    root = metadata.signed
    subject = f"root {root.version}"
    if previous is not None and root.version != previous.version + 1:
        raise _rejected(subject, f"it follows root {previous.version}", "numbers without gaps")
    result = signatures(metadata, previous)
    for part, of in ((result.first, previous), (result.second, None)):
        if not part.verified:
            whose = f"root {of.version}" if of else "its own"
            raise _rejected(
                subject,
                f"{len(part.signed)} valid signatures by keys of {whose}",
                f"at least {part.threshold}",
            )
    return SignedRoot(data, root)


def parse(data: bytes) -> Metadata[Root]:
    """A root file whose signatures were not looked at yet.

    Raises RootRejected for what is no root, or one that we would never make.
    """
    try:
        metadata = Metadata[Root].from_bytes(data)
    except RepositoryError as error:
        raise _rejected("root", str(error), "a root's metadata") from error
    root: Any = metadata.signed
    if not isinstance(root, Root):
        raise _rejected("root", f"metadata of the type {metadata.signed.type}", "a root's metadata")
    subject = f"root {root.version}"
    others = {key.scheme for key in root.keys.values()} - {SCHEME}
    if others:
        raise _rejected(subject, f"keys of the kind {', '.join(sorted(others))}", f"only {SCHEME}")
    for name in sorted(TOP_LEVEL_ROLE_NAMES):
        role = root.roles[name]
        if not 1 <= role.threshold <= len(role.keyids) or not set(role.keyids) <= set(root.keys):
            raise _rejected(subject, f"a {name} that nobody can sign", "as many keys as it needs")
    if not root.consistent_snapshot:
        raise _rejected(subject, "metadata without versions", "consistent snapshots")
    days_of(root, subject)
    return metadata


def signatures(metadata: Metadata[Root], previous: SignedRoot | None) -> RootVerificationResult:
    """Which keys of the previous root, and of this one, have signed it."""
    return metadata.signed.get_root_verification_result(
        previous.root if previous else None, metadata.signed_bytes, metadata.signatures
    )


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two root files say the same, whoever signed them."""
    return parse(one).signed_bytes == parse(other).signed_bytes


def days_of(root: Root, subject: str) -> Days:
    """How long signatures hold, from the root's own field; the defaults where it has none."""
    try:
        return Days.model_validate(root.unrecognized_fields.get(DAYS_FIELD, {}))
    except ValidationError as error:
        raise _rejected(subject, f"{DAYS_FIELD}: {error.errors()[0]['msg']}", "days") from error


def changes(previous: Root, new: Root) -> list[str]:
    """What a new root changes, one line each: what its signers agree to.

    >>> changes(Root(), Root(version=2, expires=datetime(2028, 11, 25)))
    ['holds until 2028-11-25']
    """
    lines = []
    for role, (name, *_) in ROLES.items():
        before, after = previous.roles[name], new.roles[name]
        lines += [f"{role}: key {gone[:8]} goes" for gone in _without(before, after)]
        lines += [f"{role}: key {come[:8]} comes" for come in _without(after, before)]
        if before.threshold != after.threshold:
            lines.append(f"{role}: {after.threshold} must sign instead of {before.threshold}")
    return [*lines, f"holds until {new.expires:%Y-%m-%d}"]


def _without(one: Any, other: Any) -> Sequence[str]:
    return [key_id for key_id in one.keyids if key_id not in other.keyids]


def _bytes_of(path: Path) -> bytes:
    with path.open("rb") as opened:
        data = opened.read(MAX_ROOT_BYTES + 1)
    if len(data) > MAX_ROOT_BYTES:
        raise _rejected(str(path), "more", f"at most {MAX_ROOT_BYTES} bytes")
    return data


def _rejected(subject: str, found: str, expected: str) -> RootRejected:
    return RootRejected(
        subject,
        found=found,
        expected=expected,
        remedy="Copy it again from another copy of the key folder; if it is the same there, "
        "somebody made it who may not.",
    )
