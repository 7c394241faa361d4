"""What was enrolled on this device: references that outlive the bundle they were enrolled with.

    home/                  mode 0700; every file in it 0600
      references.sqlite    which photo shows which pill, and embeddings already computed
      crops/<digest>.png   the photos, losslessly; named by SHA-256 of size and pixels

The photos are kept because the next bundle has another embedding space, in which everything is
embedded again; the stored embeddings only save time. A reference counts once its photo and then
its row are on the disk, so that what `add` has returned for survives a kill or a power cut. A
crash may leave a photo without a row; the next `remove` deletes it. Several processes may use one
home; an open store belongs to one thread.
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.database import Database
from pilltrack.core.embedder import Embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.errors import ImageRejected, InputRejected, StageFailed
from pilltrack.core.files import sync_directory, write_durably
from pilltrack.core.gallery import MAX_NAME_LENGTH, UNIT_TOLERANCE, Reference
from pilltrack.core.image import MAX_BYTES, as_png, decode_image, read_image

DATABASE_FILE = "references.sqlite"
CROPS_DIRECTORY = "crops"
SIDES = ("", "front", "back")
MAX_REFERENCES = 100_000  # all are loaded whenever a bundle is opened
MAX_PILL_LENGTH = 200
EMBED_BATCH = 8  # bounds memory: so many decoded photos at once
BUSY_TIMEOUT_S = 30.0

SCHEMA_VERSION = 1
SCHEMA = (
    """
    CREATE TABLE reference (
        id INTEGER PRIMARY KEY,
        pill TEXT NOT NULL,
        side TEXT NOT NULL,
        image TEXT NOT NULL,
        crop TEXT NOT NULL UNIQUE,
        added_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    ) STRICT
    """,
    """
    CREATE TABLE embedding (
        crop TEXT NOT NULL REFERENCES reference (crop) ON DELETE CASCADE,
        space TEXT NOT NULL,
        embedding BLOB NOT NULL,
        PRIMARY KEY (crop, space)
    ) STRICT
    """,  # the blob: float32, little-endian
    "CREATE INDEX reference_pill ON reference (pill)",  # a name stands twice: damage shows
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


@dataclass(frozen=True)
class Kept:
    """A reference as it is kept: whose it is, and the digest that names its photo."""

    pill: str
    side: str
    image: str
    crop: str
    added_at: str  # UTC, as 2026-01-31T12:00:00Z


class LocalReferences:
    """The references in a home directory, which is made when it is not there yet.

    Use it as a context manager, or call `close`. Every method raises StageFailed when the
    database is damaged, or another process keeps it locked for `BUSY_TIMEOUT_S`.
    """

    def __init__(self, home: Path, *, check: bool = True) -> None:
        """Open the store.

        `check`: look for damage in all of the database, 2 ms for 1,000 references; without it,
        damage shows when it is met. Raises StageFailed also for a schema version other than
        `SCHEMA_VERSION`, and for photos whose database is gone.
        """
        self._database = home / DATABASE_FILE
        self._crops = home / CROPS_DIRECTORY
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._crops.mkdir(mode=0o700, exist_ok=True)
        self._data = Database(
            self._database,
            schema=SCHEMA,
            version=SCHEMA_VERSION,
            timeout_s=BUSY_TIMEOUT_S,
            damaged=_damaged,
            orphaned=lambda: f"{self._crops} holds photos" if any(self._photo_files()) else "",
        )
        try:
            if check:
                self._data.require_integrity()
        except BaseException:
            self.close()
            raise

    def add(
        self, pill: str, photos: Sequence[tuple[str, NDArray[np.uint8]]], side: str = ""
    ) -> int:
        """Add photos of one pill that all show one side; return how many are new; as `adding`."""
        with self.adding(pill, photos, [side] * len(photos)) as n_new:
            return n_new

    @contextmanager
    def adding(
        self, pill: str, photos: Sequence[tuple[str, NDArray[np.uint8]]], sides: Sequence[str]
    ) -> Iterator[int]:
        """Add photos (name, RGB (H, W, 3) uint8) of one pill and their sides, all or none.

        Yields how many are new; they count once the block has ended well, else none is added. A
        photo the pill already has is not added again: it takes the new side, if one is given, and
        its file is written anew, which mends a lost one.

        Raises InputRejected for a name or side that cannot be, a photo that belongs to another
        pill, or too many references; ImageRejected for a photo outside the limits of
        `core.image`; ValueError for another shape or dtype, or not one side for each photo.
        """
        _check_name("name of the pill", pill, MAX_PILL_LENGTH)
        crops: dict[str, tuple[str, str, bytes]] = {}  # digest -> name of the photo, side, PNG
        for (image, photo), side in zip(photos, sides, strict=True):
            if side not in SIDES:
                raise _refused("side", repr(side), "front, back or nothing", "Name the side again.")
            _check_name("name of the photo", image, MAX_NAME_LENGTH)
            crops[digest_of(photo)] = image, side, _kept_png(image, photo)
        with self._data.transaction():
            n_before = self._count()
            for crop, (image, _, _) in crops.items():
                self._require_free(crop, image, pill)
            for crop, (image, side, png) in crops.items():
                write_durably(self._crop_file(crop), png)
                self._data.connection.execute(
                    "INSERT INTO reference (pill, side, image, crop) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (crop) DO UPDATE SET side = excluded.side"
                    " WHERE excluded.side != ''",
                    (pill, side, image, crop),
                )
            n_after = self._count()
            if n_after > MAX_REFERENCES:
                found = f"{n_after} references with the new ones"
                expected, remedy = f"at most {MAX_REFERENCES}", "Remove pills, or build a bundle."
                raise _refused(str(self._database), found, expected, remedy)
            sync_directory(self._crops)
            yield n_after - n_before

    def remember(self, space: str, crops: Sequence[str], embeddings: NDArray[np.float32]) -> None:
        """Keep what `core.enrol.embed_references` made of photos, so that `embedded` need not.

        `crops` are their digests; embeddings (N, D) float32. Of a photo that is not kept, or has
        one in that space, nothing changes. Within `adding` it is part of what is added.
        """
        for crop, embedding in zip(crops, embeddings, strict=True):
            self._data.rows(
                "INSERT OR IGNORE INTO embedding SELECT crop, ?, ? FROM reference WHERE crop = ?",
                (space, embedding.astype("<f4").tobytes(), crop),
            )

    def pills(self) -> dict[str, int]:
        """Map each pill to how many references it has, in order of name."""
        return dict(
            self._data.rows("SELECT pill, count(*) FROM reference GROUP BY pill ORDER BY pill")
        )

    def kept(self, pill: str | None = None) -> list[Kept]:
        """List the references in order of adding, of one pill or of all."""
        rows = self._data.rows(
            f"""
            SELECT pill, side, image, crop, added_at FROM reference
            WHERE {_whose(pill)} ORDER BY id
            """,  # noqa: S608 - no value is written into it
            {"pill": pill},
        )
        return [Kept(*row) for row in rows]

    def photo(self, crop: str) -> NDArray[np.uint8]:
        """Read the photo (H, W, 3) uint8 that a reference keeps under `crop`.

        Raises InputRejected when there is none, StageFailed when its file is missing or changed.
        """
        for pill, image in self._data.rows(
            "SELECT pill, image FROM reference WHERE crop = ?", (crop,)
        ):
            return self._read_crop(crop, pill, image)
        raise _refused(
            "photo", crop, "a photo of an enrolled pill", "See `pilltrack gallery list`."
        )

    def remove(self, pill: str) -> int:
        """Remove a pill and its photos; return how many there were (0 if not enrolled).

        Raises InputRejected for a name that no pill can have.
        """
        _check_name("name of the pill", pill, MAX_PILL_LENGTH)
        with self._data.transaction():
            cursor = self._data.connection.execute("DELETE FROM reference WHERE pill = ?", (pill,))
        with self._data.transaction():  # files only now: a crash must not leave rows without photos
            kept = {f"{crop}.png" for (crop,) in self._data.rows("SELECT crop FROM reference")}
            for file in set(self._photo_files()) - kept:
                (self._crops / file).unlink()
        return cursor.rowcount

    def embedded(
        self, embedder: Embedder, pill: str | None = None
    ) -> tuple[list[Reference], NDArray[np.float32]]:
        """Return all references in order of adding, and their embeddings (N, D) float32.

        With `pill` only its own. What has no embedding in this space yet is embedded now, and
        remembered.

        Raises StageFailed for a photo whose file is missing or changed, or that the model turns
        into zeros.
        """
        wanted = {"space": embedder.space, "pill": pill}
        missing = self._data.rows(
            f"""
            SELECT crop, pill, image FROM reference
            WHERE {_whose(pill)} AND NOT EXISTS
                (SELECT 1 FROM embedding WHERE crop = reference.crop AND space = :space)
            ORDER BY id
            """,  # noqa: S608
            wanted,
        )
        for start in range(0, len(missing), EMBED_BATCH):
            self._embed(missing[start : start + EMBED_BATCH], embedder)
        rows = self._data.rows(
            f"""
            SELECT pill, side, image, embedding FROM reference JOIN embedding USING (crop)
            WHERE space = :space AND {_whose(pill)} ORDER BY id
            """,  # noqa: S608
            wanted,
        )
        blobs = [row[3] for row in rows]
        if any(len(blob) != 4 * embedder.dim for blob in blobs):
            raise _damaged(self._database, f"an embedding that is not {embedder.dim} float32")
        embeddings = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, embedder.dim)
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():
            raise _damaged(self._database, "an embedding that is not of unit length")
        return [Reference(*row[:3]) for row in rows], embeddings.astype(np.float32)

    def keep_spaces(self, spaces: Collection[str]) -> None:
        """Forget embeddings of all other spaces; the photos from which they are made stay."""
        with self._data.transaction():
            found = {space for (space,) in self._data.rows("SELECT DISTINCT space FROM embedding")}
            for space in found.difference(spaces):
                self._data.connection.execute("DELETE FROM embedding WHERE space = ?", (space,))

    def close(self) -> None:
        """Release the database. Harmless when repeated."""
        self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _count(self) -> int:
        [(n_references,)] = self._data.rows("SELECT count(*) FROM reference")
        return int(n_references)

    def _require_free(self, crop: str, image: str, pill: str) -> None:
        for other, its_image in self._data.rows(
            "SELECT pill, image FROM reference WHERE crop = ? AND pill != ?", (crop, pill)
        ):
            found = f"the same photo as {its_image} of the pill {other!r}"
            remedy = f"Take another photo, or remove {other!r} first."
            raise _refused(image, found, f"a photo of {pill!r} alone", remedy)

    def _embed(self, missing: list[tuple[str, str, str]], embedder: Embedder) -> None:
        photos: dict[tuple[str, str, str], NDArray[np.uint8]] = {}
        for row in missing:
            try:
                photos[row] = self._read_crop(*row)
            except StageFailed:
                if self._data.rows("SELECT 1 FROM reference WHERE crop = ?", row[:1]):
                    raise  # else another process has just removed it
        embeddings = embed_references(embedder, list(photos.values()))
        for (crop, pill, image), embedding in zip(photos, embeddings, strict=True):
            if not embedding.any():
                raise _unusable(self._crop_file(crop), "nothing the model sees", pill, image)
        with self._data.transaction():
            self.remember(embedder.space, [crop for crop, _, _ in photos], embeddings)

    def _read_crop(self, crop: str, pill: str, image: str) -> NDArray[np.uint8]:
        file = self._crop_file(crop)
        try:
            photo = read_image(file)
        except ImageRejected as error:
            raise _unusable(file, error.found, pill, image) from error
        if digest_of(photo) != crop:
            raise _unusable(file, "a changed photo", pill, image)
        return photo

    def _crop_file(self, crop: str) -> Path:
        return self._crops / f"{crop}.png"

    def _photo_files(self) -> Iterator[str]:
        """Names of files, also of those that a crash left half-written; paths would be slow."""
        with os.scandir(self._crops) as entries:
            yield from (entry.name for entry in entries if ".png" in entry.name)


def digest_of(photo: NDArray[np.uint8]) -> str:
    """Name a photo (H, W, 3) uint8 by its pixels: a PNG's bytes change with the encoder."""
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or photo.size == 0:
        raise ValueError(
            f"photo has shape {photo.shape} and dtype {photo.dtype}; expected (H, W, 3) uint8, "
            "not empty"
        )
    digest = hashlib.sha256(f"{photo.shape[0]} {photo.shape[1]}\0".encode())
    digest.update(photo.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Stamp:
    """When a home's files were written, and their sizes: another one after every change."""

    files: tuple[tuple[int, int], ...]  # time (ns since 1970) and size (bytes) of each

    def is_older_than(self, seconds: float) -> bool:
        """Whether the last change was made before that."""
        newest_ns = max(time_ns for time_ns, _ in self.files)
        return abs(time.time_ns() - newest_ns) > 1e9 * seconds


def last_written(home: Path) -> Stamp:
    """When something was last added to a home or removed; costs microseconds, and never raises.

    The files are the database and what SQLite has still to write into it.
    """
    found = []
    for name in (DATABASE_FILE, f"{DATABASE_FILE}-wal"):
        try:
            status = (home / name).stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_size) if status.st_size else (0, 0))
    return Stamp(tuple(found))


def is_store(home: Path) -> bool:
    """Tell whether a home holds a store, without making one."""
    return (home / DATABASE_FILE).exists()


def _whose(pill: str | None) -> str:
    """The condition that takes the references of one pill, from the index, or of all."""
    return ":pill IS NULL" if pill is None else "pill = :pill"


def _check_name(what: str, name: str, longest: int) -> None:
    kinds = {unicodedata.category(character) for character in name}
    if not 1 <= len(name) <= longest or name != name.strip() or kinds & {"Cc", "Cs", "Zl", "Zp"}:
        expected = f"1 to {longest} characters on one line, no space at either end"
        raise _refused(what, f"{name[:longest]!r}", expected, "Choose another.")


def _kept_png(image: str, photo: NDArray[np.uint8]) -> bytes:
    png = as_png(photo)
    if len(png) > MAX_BYTES:
        raise ImageRejected(
            image,
            found=f"{len(png)} bytes without loss",
            expected=f"at most {MAX_BYTES} bytes",
            remedy="Cut the photo down to the pill.",
        )
    decode_image(png, name=image)  # whatever would refuse it later refuses it now
    return png


def _refused(subject: str, found: str, expected: str, remedy: str) -> InputRejected:
    return InputRejected(subject, found=found, expected=expected, remedy=remedy)


def _damaged(database: Path, found: str) -> StageFailed:
    return StageFailed(
        str(database),
        found=found,
        expected="the database of enrolled references, whole and writable",
        remedy="Free the disk if it is full. Else restore the folder from a backup, or move it "
        "away and enrol the pills again.",
    )


def _unusable(file: Path, found: str, pill: str, image: str) -> StageFailed:
    return StageFailed(
        str(file),
        found=found,
        expected=f"the photo {image} of the pill {pill!r}, as it was added",
        remedy=f"Add the photo again, or give the pill up: `pilltrack gallery remove {pill!r}`.",
    )
