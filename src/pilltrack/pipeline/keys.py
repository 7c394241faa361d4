"""The keys that sign releases: a folder of private keys and of the roots that name them.

    keys/                      readable by its owner only
      root-3f9a12c4.pem        private keys, encrypted; may lie on other media instead
      targets-9d01be77.pem     signs what releases there are
      online-51c0aa3e.pem      signs snapshot and timestamp, again and again
      1.root.json 2.root.json  who may sign, signed by root keys
      3.root.json.part         the next root, waiting for more signatures
      retired/                 keys that sign no more
      published.json           what this folder has seen published (`publish`)

A key is named by its role and the beginning of its id. A root that not enough keys have signed has
no effect: keys of the old root sign until it is complete, and then `retired/` takes those that it
no longer names.

The passphrase comes from the environment and goes nowhere else. PKCS 8 as the cryptography package
writes it stretches a passphrase by only 2048 rounds, so a short one is refused.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Metadata, Root

from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.files import replaced_directory, sync_directory, write_durably
from pilltrack.pipeline.roots import (
    DAYS_FIELD,
    ROLES,
    Days,
    Role,
    RootRejected,
    SignedRoot,
    changes,
    follow,
    parse,
    read_chain,
    signatures,
)

log = logging.getLogger(__name__)
PASSPHRASE = "PILLTRACK_KEY_PASSPHRASE"  # noqa: S105  the name of the variable
MIN_PASSPHRASE_LENGTH = 20
MAX_PASSPHRASE_LENGTH = 1023  # what PKCS 8 is written and read with
RETIRED = "retired"
SHORT = 8  # digits of a key's id in names
MAX_PEM_BYTES = 16_384
MAX_ROOT_KEYS = 16


class KeyMissing(StageFailed):
    """A private key that has to sign is not on this machine, or cannot be opened."""


@dataclass(frozen=True)
class Proposal:
    """A root that was made, and how many signatures it lacks; in force when none."""

    version: int
    changes: list[str]
    signed: list[str]  # ids of the keys that have signed
    missing: int

    def __str__(self) -> str:
        lines = [f"root {self.version}: {change}" for change in self.changes]
        if self.missing:
            lines.append(
                f"root {self.version} waits for {self.missing} more signatures: "
                "`pilltrack keys sign --with FOLDER` where a root key lies"
            )
        else:
            lines.append(f"root {self.version} is in force; the next publish or renew spreads it")
        return "\n".join(lines)


def passphrase_from(environment: Mapping[str, str]) -> bytes | None:
    """The passphrase of the environment; None where it is empty or unset.

    Raises InputRejected for one that no key was ever encrypted with.
    """
    try:
        passphrase = environment.get(PASSPHRASE, "").encode()
    except UnicodeEncodeError:  # it is not quoted: it is a secret, and so is the error
        raise InputRejected(
            PASSPHRASE,
            found="bytes that are not UTF-8",
            expected="a passphrase in UTF-8",
            remedy="Set the terminal to UTF-8, or take letters without accents.",
        ) from None
    if len(passphrase) > MAX_PASSPHRASE_LENGTH:
        raise InputRejected(
            PASSPHRASE,
            found=f"a passphrase of {len(passphrase)} bytes",
            expected=f"at most {MAX_PASSPHRASE_LENGTH}",
            remedy="Six random words are enough.",
        )
    return passphrase or None


def init(
    folder: Path,
    *,
    now: datetime,
    passphrase: bytes | None,
    root_keys: int = 3,
    threshold: int = 2,
    days: Days | None = None,
) -> SignedRoot:
    """Make a folder with new keys and root 1, signed by all root keys; None encrypts nothing.

    Raises InputRejected for numbers that make no sense, a short passphrase, or a folder that
    holds anything: keys are never replaced.
    """
    if not 1 <= threshold <= root_keys <= MAX_ROOT_KEYS:
        raise InputRejected(
            f"{threshold} of {root_keys} root keys",
            found="a threshold that cannot be",
            expected=f"1 to N of N root keys, at most {MAX_ROOT_KEYS}",
            remedy="Correct --root-keys and --threshold.",
        )
    if folder.exists() and any(folder.iterdir()):
        raise InputRejected(
            str(folder),
            found="a folder that is not empty",
            expected="none, or an empty one",
            remedy="Keys are never replaced: choose another folder, or `pilltrack keys rotate`.",
        )
    _check_passphrase(passphrase)
    days = days or Days()
    root = Root(
        expires=_in(days.root, now),
        unrecognized_fields={DAYS_FIELD: days.model_dump()},
    )
    made: list[tuple[Role, CryptoSigner]] = [
        *(("root", CryptoSigner.generate_ed25519()) for _ in range(root_keys)),
        ("targets", CryptoSigner.generate_ed25519()),
        ("online", CryptoSigner.generate_ed25519()),
    ]
    for role, signer in made:
        for name in ROLES[role]:
            root.add_key(signer.public_key, name)
    root.roles["root"].threshold = threshold
    metadata = Metadata(root)
    for role, signer in made:
        if role == "root":
            metadata.sign(signer, append=True)
    with replaced_directory(folder) as new:
        new.chmod(0o700)
        for role, signer in made:
            _write_key(new, role, signer, passphrase)
        _write_root(new / "1.root.json", metadata.to_bytes())
        sync_directory(new)
    sync_directory(folder.absolute().parent)
    return read_chain(folder)[-1]


def rotate(
    folder: Path,
    role: Role,
    *,
    now: datetime,
    passphrase: bytes | None,
    is_encrypted: bool = True,
    key: str = "",
) -> Proposal:
    """Replace a key: make a new one, and the next root, signed by the root keys that are here.

    `key` is the beginning of the id of the key to replace, needed where a role has several; its
    private half need not be here, so a lost key can be replaced. The root is in force once enough
    keys of the old and of the new root have signed.

    `passphrase` opens root keys, and encrypts the new key if it is to be encrypted.

    Raises InputRejected where no or several keys are meant, or a short passphrase; StageFailed
    while another root waits.
    """
    current = _newest(folder)
    old = _chosen(current, role, key)
    new_passphrase = passphrase if is_encrypted else None
    _check_passphrase(new_passphrase)
    signer = CryptoSigner.generate_ed25519()
    root = deepcopy(current.root)
    for name in ROLES[role]:
        root.revoke_key(old.keyid, name)
        root.add_key(signer.public_key, name)
    _write_key(folder, role, signer, new_passphrase)
    return _propose(folder, root, current, now, passphrase)


def renew_root(
    folder: Path, *, now: datetime, passphrase: bytes | None, days: Days | None = None
) -> Proposal:
    """Make the next root with the same keys, valid from now on; `days` changes for how long."""
    current = _newest(folder)
    root = deepcopy(current.root)
    if days is not None:
        root.unrecognized_fields[DAYS_FIELD] = days.model_dump()
    return _propose(folder, root, current, now, passphrase)


def sign(folder: Path, holder: Path, *, passphrase: bytes | None) -> Proposal:
    """Sign the root that waits in `folder` with the root keys that lie in the folder `holder`.

    Raises StageFailed when no root waits, RootRejected for one of another number than its name
    says, KeyMissing when no key there may sign it and has not.
    """
    current = read_chain(folder)[-1]
    part = _part(folder, current)
    if not part.is_file():
        raise StageFailed(
            str(folder),
            found=f"no root that waits; root {current.version} is in force",
            expected=f"{part.name}",
            remedy="Make one with `pilltrack keys rotate` or `pilltrack keys renew`.",
        )
    metadata = parse(part.read_bytes())
    if metadata.signed.version != current.version + 1:
        raise RootRejected(
            str(part),
            found=f"root {metadata.signed.version}",
            expected=f"root {current.version + 1}",
            remedy="Copy it again from where it was made; sign nothing that is not what it says.",
        )
    n_added = _signed_by(metadata, current, holder, passphrase)
    if not n_added and not signatures(metadata, current).verified:  # all of a `rotate` that died
        raise KeyMissing(
            str(holder),
            found="no root key that may sign and has not",
            expected="one of " + ", ".join(sorted(_unsigned(metadata, current))),
            remedy="Name the folder of another root key with --with.",
        )
    return _settle(folder, metadata, current)


def adopt(folder: Path, chain: Sequence[SignedRoot]) -> None:
    """Keep roots that came from a repository, so that the next root follows the newest."""
    new = [root for root in chain if not (folder / f"{root.version}.root.json").exists()]
    for root in new:
        _write_root(folder / f"{root.version}.root.json", root.data)
        (folder / f"{root.version}.root.json.part").unlink(missing_ok=True)
    if new:
        _retire(folder)


def private_key(
    folder: Path, key: Key, passphrase: bytes | None, *, retired: bool = False
) -> CryptoSigner | None:
    """The private half of a key, from a folder, or also from what is retired there; None without.

    Raises KeyMissing for one that the passphrase does not open, or that is another key.
    """
    places = [folder, *([folder / RETIRED] if retired else [])]
    for path in (path for place in places for path in _key_files(place)):
        if _short(path) == key.keyid[:SHORT]:
            return _opened(path, key, passphrase)
    return None


def describe(folder: Path, now: datetime) -> dict[str, Any]:
    """Who may sign, until when, which private keys are here, and what a waiting root lacks."""
    current = read_chain(folder)[-1]
    here = {_short(path): path.name for path in _key_files(folder)}
    roles = {
        role: {
            "threshold": current.root.roles[ROLES[role][0]].threshold,
            "days": getattr(current.days, role),
            "keys": [
                {"id": key.keyid, "file": here.get(key.keyid[:SHORT])} for key in current.keys(role)
            ],
        }
        for role in ROLES
    }
    told = {
        "root": current.version,
        "expires": current.root.expires.isoformat(),
        "expired": current.is_expired(now),
        "roles": roles,
        "waiting": None,
    }
    part = _part(folder, current)
    if part.is_file():
        metadata = parse(part.read_bytes())
        result = signatures(metadata, current)
        told["waiting"] = {
            "root": metadata.signed.version,
            "changes": changes(current.root, metadata.signed),
            "signed": sorted(result.signed),
            "may_sign": sorted(_unsigned(metadata, current)),
            "missing_of_old": result.first.missing,
            "missing_of_new": result.second.missing,
        }
    return told


def as_text(told: Mapping[str, Any]) -> str:
    """What `describe` found, for a person."""
    expired = ": EXPIRED, devices refuse everything" if told["expired"] else ""
    lines = [f"root {told['root']}, until {told['expires'][:10]}{expired}"]
    for role, of in told["roles"].items():
        lines.append(f"{role}: {of['threshold']} of {len(of['keys'])}, for {of['days']} days each")
        lines += [f"  {key['id'][:SHORT]}  {key['file'] or 'not here'}" for key in of["keys"]]
    waiting = told["waiting"]
    if waiting:
        lines.append(
            f"root {waiting['root']} waits for {waiting['missing_of_old']} signatures by keys of "
            f"root {told['root']} and {waiting['missing_of_new']} by its own"
        )
        lines += [f"  {change}" for change in waiting["changes"]]
        lines += [f"  signed by {key_id[:SHORT]}" for key_id in waiting["signed"]]
        lines += [f"  may be signed by {key_id[:SHORT]}" for key_id in waiting["may_sign"]]
    return "\n".join(lines)


def _newest(folder: Path) -> SignedRoot:
    """The root to replace; refuses while its successor waits."""
    current = read_chain(folder)[-1]
    part = _part(folder, current)
    if part.exists():
        raise StageFailed(
            str(part),
            found="a root that waits for signatures",
            expected="none",
            remedy="Sign it with `pilltrack keys sign`, or delete it to give it up.",
        )
    return current


def _chosen(current: SignedRoot, role: Role, key: str) -> Key:
    keys = current.keys(role)
    chosen = [found for found in keys if found.keyid.startswith(key.lower())]
    if len(chosen) == 1:
        return chosen[0]
    raise InputRejected(
        f"{role} key {key!r}" if key else f"{role} keys",
        found=f"{len(chosen)} keys",
        expected="the beginning of one of " + ", ".join(key.keyid[:SHORT] for key in keys),
        remedy="Say with --key which one is to be replaced; `pilltrack keys show` lists them.",
    )


def _propose(
    folder: Path, root: Root, current: SignedRoot, now: datetime, passphrase: bytes | None
) -> Proposal:
    root.version = current.version + 1
    root.expires = _in(SignedRoot(b"", root).days.root, now)
    metadata = Metadata(root)
    _signed_by(metadata, current, folder, passphrase)
    return _settle(folder, metadata, current)


def _signed_by(
    metadata: Metadata[Root], current: SignedRoot, holder: Path, passphrase: bytes | None
) -> int:
    """Add the signatures of root keys in a folder; how many were added."""
    signers = [
        signer
        for key in _unsigned(metadata, current).values()
        if (signer := private_key(holder, key, passphrase)) is not None
    ]
    for signer in signers:
        metadata.sign(signer, append=True)
    return len(signers)


def _unsigned(metadata: Metadata[Root], current: SignedRoot) -> dict[str, Key]:
    result = signatures(metadata, current)
    return {key_id: key for key_id, key in result.unsigned.items() if key_id not in result.signed}


def _settle(folder: Path, metadata: Metadata[Root], current: SignedRoot) -> Proposal:
    """Keep a root as it is signed by now, and put it in force if that is enough."""
    part = _part(folder, current)
    _write_root(part, metadata.to_bytes())
    result = signatures(metadata, current)
    missing = max(result.first.missing, result.second.missing)
    if not missing:
        follow(current, part.read_bytes())
        part.replace(part.with_suffix(""))
        sync_directory(folder)
        _retire(folder)
    return Proposal(
        version=metadata.signed.version,
        changes=changes(current.root, metadata.signed),
        signed=sorted(result.signed),
        missing=missing,
    )


def _retire(folder: Path) -> None:
    """Put aside the private keys that the newest root does not name."""
    named = {key_id[:SHORT] for key_id in read_chain(folder)[-1].root.keys}
    gone = [path for path in _key_files(folder) if _short(path) not in named]
    if gone:
        (folder / RETIRED).mkdir(mode=0o700, exist_ok=True)
        for path in gone:
            path.rename(folder / RETIRED / path.name)
        sync_directory(folder / RETIRED)
        sync_directory(folder)


def _part(folder: Path, current: SignedRoot) -> Path:
    return folder / f"{current.version + 1}.root.json.part"


def _key_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*-*.pem")) if path.is_file())


def _short(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _opened(path: Path, key: Key, passphrase: bytes | None) -> CryptoSigner:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("%s can be read by others: chmod 600 it", path)
    with path.open("rb") as opened:
        data = opened.read(MAX_PEM_BYTES)
    try:
        private = _loaded(data, passphrase)
    except (TypeError, ValueError) as error:
        raise KeyMissing(
            str(path),
            found="a private key that the passphrase does not open"
            if passphrase
            else "an encrypted private key and no passphrase",
            expected=f"its passphrase in {PASSPHRASE}",
            remedy=f"Set {PASSPHRASE} in the environment.",
        ) from error
    if not isinstance(private, Ed25519PrivateKey) or not isinstance(key, SSlibKey):
        raise _other_key(path, key)
    try:
        return CryptoSigner(private, key)
    except ValueError as error:
        raise _other_key(path, key) from error


def _other_key(path: Path, key: Key) -> KeyMissing:
    return KeyMissing(
        str(path),
        found="another key",
        expected=f"the private half of {key.keyid}",
        remedy="Copy it again from another copy of the folder.",
    )


def _loaded(data: bytes, passphrase: bytes | None) -> Any:
    if b"ENCRYPTED" not in data.partition(b"\n")[0]:
        return load_pem_private_key(data, None)
    return load_pem_private_key(data, passphrase)


def _write_key(folder: Path, role: Role, signer: CryptoSigner, passphrase: bytes | None) -> None:
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        encryption = BestAvailableEncryption(passphrase)
    private = load_pem_private_key(signer.private_bytes, None)
    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    write_durably(folder / f"{role}-{signer.public_key.keyid[:SHORT]}.pem", data)
    sync_directory(folder)


def _write_root(path: Path, data: bytes) -> None:
    write_durably(path, data)
    path.chmod(0o644)  # it goes to devices
    sync_directory(path.parent)


def _check_passphrase(passphrase: bytes | None) -> None:
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE_LENGTH:
        raise InputRejected(
            PASSPHRASE,
            found=f"a passphrase of {len(passphrase)} bytes",
            expected=f"at least {MIN_PASSPHRASE_LENGTH}",
            remedy="Take six random words.",
        )


def _in(days: int, now: datetime) -> datetime:
    return now + timedelta(days=days)
