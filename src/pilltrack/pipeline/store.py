"""Where a repository of releases lies: a directory, or a prefix of an S3 bucket.

A publisher needs three things of it: to read, to write what is not there yet, and to replace one
small file only if it is still the one that was read. Everything else is built on these
(`publish`). What a killed publisher was writing is never seen under its name.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from pilltrack.core.channels import METADATA
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.files import sync_directory
from pilltrack.pipeline.doctor import S3_REMEDIES
from pilltrack.pipeline.remote import Remote, s3_address, s3_client, without_login

RELEASES = "PILLTRACK_RELEASES"
INCOMING = ".incoming"  # of a directory: what is being written; never referred to
STALE_S = 86_400.0
CHUNK_BYTES = 1 << 20
MAX_REPLACED_BYTES = 65_536
PROBE = f"{METADATA}/conditions"  # an object that is only there to see whether S3 obeys
UNCACHED, FOREVER = "no-cache", "public, max-age=31536000, immutable"


class Unreachable(StageFailed):
    """The place of the repository does not answer, or refuses."""


class Store(Protocol):
    """A place for files under names such as `metadata/1.root.json`."""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """The content of a file, None where there is none; StageFailed for a longer one."""

    def digest(self, name: str, max_bytes: int) -> str | None:
        """The SHA-256 of a file of any size, None where there is none; at most `max_bytes` count.

        A longer file gives the digest of something else.
        """

    def create(self, name: str, content: bytes | Path) -> bool:
        """Write a file where there is none; False, and nothing changed, where there is one."""

    def tagged(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """The content of a file with a tag that names this content; None where there is none."""

    def replace(self, name: str, content: bytes, tag: str) -> bool:
        """Replace a file if its tag is still this one; else False, and nothing changed.

        False is also what a publisher gets whose answer was lost on the way: read again.
        """

    def check(self) -> None:
        """Raise StageFailed where `create` and `replace` cannot be relied on."""


def open_store(address: str, environment: Mapping[str, str]) -> Store:
    """The store that an address names: a directory, or s3://BUCKET/PREFIX.

    S3's keys, region and endpoint come from the AWS_* variables. Raises InputRejected for another
    kind of address.
    """
    if address.startswith("s3://"):
        remote = s3_address(address, environment, RELEASES)
        with _in_words(str(remote)):
            patient = s3_client(remote, environment, attempts=5)
            return S3Store(patient, remote, hasty=s3_client(remote, environment))
    if not address or "://" in address:
        raise InputRejected(
            "releases",
            found=repr(without_login(address)) if address else "no place",
            expected="a directory, or s3://BUCKET/PREFIX",
            remedy=f"Name it with --to or in {RELEASES}; a static host gets a copy of a directory.",
        )
    directory = Path(address)
    if directory.exists() and not directory.is_dir():
        raise InputRejected(
            address,
            found="a file",
            expected="a directory, or nothing yet",
            remedy="Choose another place with --to.",
        )
    return DirectoryStore(directory)


class DirectoryStore:
    """A directory, such as one that a web server shows or rsync copies to one.

    Files and names are on the disk when a method returns. Publishers on one machine are kept apart
    by a lock; on a network file system that does not lock, use S3.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __str__(self) -> str:
        """One name for one directory, by whatever way it was reached."""
        return os.path.realpath(self._directory)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        try:
            with (self._directory / name).open("rb") as opened:
                return _within(opened.read(max_bytes + 1), max_bytes, name)
        except FileNotFoundError:
            return None

    def digest(self, name: str, max_bytes: int) -> str | None:
        """See `Store`."""
        try:
            with (self._directory / name).open("rb") as opened:
                return _digest(iter(lambda: opened.read(CHUNK_BYTES), b""), max_bytes)
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes | Path) -> bool:
        """See `Store`."""
        path = self._directory / name
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._written(content) as part:
            try:
                os.link(part, path)
            except FileExistsError:
                return False
        self._sync(path.parent)
        return True

    def tagged(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """See `Store`."""
        content = self.read(name, max_bytes)
        return None if content is None else (content, hashlib.sha256(content).hexdigest())

    def replace(self, name: str, content: bytes, tag: str) -> bool:
        """See `Store`."""
        path = self._directory / name
        with self._written(content) as part, self._locked():
            if self.digest(name, path.stat().st_size if path.exists() else 0) != tag:
                return False
            part.replace(path)
        self._sync(path.parent)
        return True

    def check(self) -> None:
        """Try a hard link, which some file systems lack, and delete what killed publishers left."""
        incoming = self._directory / INCOMING
        if incoming.is_dir():
            for path in incoming.iterdir():
                with suppress(FileNotFoundError):  # another publisher's, just done
                    if path.name != "lock" and time.time() - path.stat().st_mtime > STALE_S:
                        path.unlink()
        with self._written(b"") as part:
            other = part.with_name(f"{part.name}.link")
            try:
                os.link(part, other)
            except OSError as error:
                raise StageFailed(
                    str(self),
                    found=f"a file system without hard links ({error.strerror})",
                    expected="one on which a file can be created only where none is",
                    remedy="Publish to a directory on a local disk, or to S3.",
                ) from error
            other.unlink()

    @contextmanager
    def _written(self, content: bytes | Path) -> Iterator[Path]:
        """A file on the disk under a name of its own, that is gone or renamed afterwards."""
        incoming = self._directory / INCOMING
        incoming.mkdir(parents=True, exist_ok=True)
        part = incoming / uuid.uuid4().hex
        try:
            with part.open("xb") as opened:
                for chunk in _chunks(content):
                    opened.write(chunk)
                opened.flush()
                os.fsync(opened.fileno())
            yield part
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / INCOMING / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _sync(self, directory: Path) -> None:
        sync_directory(directory)
        sync_directory(self._directory)


class S3Store:
    """A prefix of a bucket; `If-None-Match` and `If-Match` keep publishers apart."""

    def __init__(self, client: Any, remote: Remote, *, hasty: Any = None) -> None:
        """`hasty` is a client that does not repeat what failed, for `replace`."""
        self._client, self._hasty = client, hasty or client
        self._remote = remote
        self._quoted = True  # how this server wants If-Match; Ceph 16 compares it with the bare tag

    def __str__(self) -> str:
        return str(self._remote)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        found = self.tagged(name, max_bytes)
        return None if found is None else found[0]

    def digest(self, name: str, max_bytes: int) -> str | None:
        """See `Store`."""
        with _in_words(str(self)):
            answer = self._get(name)
            if answer is None:
                return None
            with closing(answer["Body"]) as body:
                return _digest(body.iter_chunks(CHUNK_BYTES), max_bytes)

    def create(self, name: str, content: bytes | Path) -> bool:
        """See `Store`."""
        return self._put(name, content, IfNoneMatch="*")

    def tagged(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """See `Store`."""
        with _in_words(str(self)):
            answer = self._get(name)
            if answer is None:
                return None
            with closing(answer["Body"]) as body:
                content = _within(body.read(max_bytes + 1), max_bytes, name)
            return content, str(answer["ETag"])

    def replace(self, name: str, content: bytes, tag: str) -> bool:
        """See `Store`."""
        if self._put(name, content, IfMatch=self._form(tag)):
            return True
        found = self.tagged(name, MAX_REPLACED_BYTES)
        if found is None or found[1] != tag:
            return False
        self._quoted = not self._quoted
        return self._put(name, content, IfMatch=self._form(tag))

    def check(self) -> None:
        """Put one small object under conditions that do not hold: S3 must refuse."""
        self._put(PROBE, b"", IfNoneMatch="*")
        created = self._put(PROBE, b"", IfNoneMatch="*")
        other = "0" * 32
        replaced = any(self._put(PROBE, b"", IfMatch=tag) for tag in (other, f'"{other}"'))
        if created or replaced:
            raise StageFailed(
                str(self),
                found="an S3 server that writes in spite of "
                + ("If-None-Match" if created else "If-Match"),
                expected="conditional writes, which keep two publishers apart",
                remedy="Use another server or a newer version, or publish to a directory and copy.",
            )

    def _form(self, tag: str) -> str:
        bare = tag.strip('"')
        return f'"{bare}"' if self._quoted else bare

    def _get(self, name: str) -> Any:
        from botocore.exceptions import ClientError

        try:
            return self._client.get_object(Bucket=self._remote.bucket, Key=self._key(name))
        except ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return None
            raise

    def _put(self, name: str, content: bytes | Path, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        digest = hashlib.sha256()
        for chunk in _chunks(content):
            digest.update(chunk)
        is_json = name.endswith(".json")
        with _in_words(str(self)), _body(content) as body:
            client = self._hasty if "IfMatch" in condition else self._client
            try:
                client.put_object(
                    Bucket=self._remote.bucket,
                    Key=self._key(name),
                    Body=body,
                    ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                    ContentType="application/json" if is_json else "application/octet-stream",
                    CacheControl=UNCACHED if name == f"{METADATA}/timestamp.json" else FOREVER,
                    **condition,
                )
            except ClientError as error:
                if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    return False
                if "IfMatch" in condition and (
                    _code(error) in ("NoSuchKey", "404") or _status(error) >= 500
                ):  # Ceph answers 500 to a replacement that lost a race
                    return False
                raise
        return True

    def _key(self, name: str) -> str:
        return f"{self._remote.prefix}{name}"


@contextmanager
def _in_words(subject: str) -> Iterator[None]:
    """Say what goes wrong with S3; nothing that an answer quotes, which may be a secret."""
    from botocore import exceptions as wrong

    expected = "a bucket that these keys may read and write"
    try:
        yield
    except wrong.ClientError as error:
        code = _code(error)
        raise Unreachable(
            subject,
            found=f"it refuses {error.operation_name}: {code}",
            expected=expected,
            remedy=S3_REMEDIES.get(code, "Ask who runs this S3."),
        ) from None
    except (wrong.NoCredentialsError, wrong.PartialCredentialsError):
        raise Unreachable(
            subject,
            found="no keys",
            expected=expected,
            remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (see .env.example).",
        ) from None
    except (wrong.BotoCoreError, wrong.HTTPClientError, OSError) as error:
        raise Unreachable(
            subject,
            found=f"it does not answer ({type(error).__name__})",
            expected=expected,
            remedy="Check AWS_ENDPOINT_URL and the network.",
        ) from None


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as opened:
        yield from iter(lambda: opened.read(CHUNK_BYTES), b"")


@contextmanager
def _body(content: bytes | Path) -> Iterator[Any]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as opened:
        yield opened


def _digest(chunks: Iterator[bytes], max_bytes: int) -> str:
    digest, left = hashlib.sha256(), max_bytes + 1
    for chunk in chunks:
        digest.update(chunk[:left])
        left -= len(chunk)
        if left <= 0:
            break
    return digest.hexdigest()


def _within(content: bytes, max_bytes: int, name: str) -> bytes:
    if len(content) <= max_bytes:
        return content
    raise StageFailed(
        name,
        found="a longer file",
        expected=f"at most {max_bytes} bytes",
        remedy="Find out who wrote it.",
    )
