"""What one device has learnt, in a zip that another device can learn from.

    pills.zip
      references.json      {"format": 1, "references": [{pill, side, image, photo}, ...]}
      photos/<digest>.png  each photo, losslessly; named by SHA-256 of size and pixels

Embeddings are not in it: they belong to one model, and are made again from the photos.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.errors import ArchiveRejected
from pilltrack.core.files import written_atomically
from pilltrack.core.image import MAX_BYTES, decode_image
from pilltrack.core.local import MAX_REFERENCES, LocalReferences, digest_of

LIST = "references.json"
MAX_LIST_BYTES = 64 * 1024 * 1024
MAX_ZIP_BYTES = 4 * 1024**3
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same bytes

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Row(_Part):
    pill: str
    side: str
    image: str
    photo: Digest


class _List(_Part):
    format: Literal[1]
    references: list[_Row] = Field(max_length=MAX_REFERENCES)


def export_references(local: LocalReferences, to: Path) -> int:
    """Write all references of a home to a zip; return how many.

    Raises StageFailed for a photo whose file is missing or changed.
    """
    kept = local.kept()
    rows = [_Row(pill=k.pill, side=k.side, image=k.image, photo=k.crop) for k in kept]
    with written_atomically(to) as part, zipfile.ZipFile(part, "w") as archive:
        listing = _List(format=1, references=rows).model_dump_json(indent=1)
        archive.writestr(zipfile.ZipInfo(LIST, _EPOCH), listing, zipfile.ZIP_DEFLATED)
        for reference in kept:
            png = io.BytesIO()
            Image.fromarray(local.photo(reference.crop)).save(png, "png")
            name = f"photos/{reference.crop}.png"
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), png.getvalue())
    return len(rows)


def import_references(local: LocalReferences, source: Path) -> dict[str, int]:
    """Add the references of a zip to a home; return for each pill how many are new.

    Every photo is checked before the first is added. A pill that is there already gets the photos
    it lacks. In memory are the photos of one side of one pill at a time. Raises ArchiveRejected
    for a zip that `export_references` cannot have written, and InputRejected as
    `LocalReferences.add`; pills before the refused one then stay added.
    """
    added: dict[str, int] = {}
    with _readable(source):
        archive, rows = _open(source)
    with archive:
        with _readable(source):
            for digest in dict.fromkeys(row.photo for row in rows):
                _photo(source, archive, digest)
        for (pill, side), of_one in _by_pill(rows).items():
            with _readable(source):
                photos = [(row.image, _photo(source, archive, row.photo)) for row in of_one]
            added[pill] = added.get(pill, 0) + local.add(pill, photos, side)
    return added


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Within this context, what is wrong with a zip is ArchiveRejected."""
    try:
        yield
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        ValidationError,
        EOFError,
        NotImplementedError,
        UnicodeDecodeError,
    ) as error:
        found = " ".join(str(error).split())[:200]
        raise _rejected(source, found, "a zip of `pilltrack gallery export`") from error


def _open(source: Path) -> tuple[zipfile.ZipFile, list[_Row]]:
    """The zip, open, and its list."""
    size = source.stat().st_size
    if size > MAX_ZIP_BYTES:
        raise _rejected(source, f"{size} bytes", f"at most {MAX_ZIP_BYTES} bytes")
    archive = zipfile.ZipFile(source)
    try:
        data = _bytes(source, archive, LIST, MAX_LIST_BYTES)
        return archive, _List.model_validate_json(data).references
    except BaseException:
        archive.close()
        raise


def _by_pill(rows: Sequence[_Row]) -> dict[tuple[str, str], list[_Row]]:
    """(pill, side) -> its rows, each in the order of the list; a photo named twice counts once."""
    content: dict[tuple[str, str], dict[str, _Row]] = {}
    for row in rows:
        content.setdefault((row.pill, row.side), {}).setdefault(row.photo, row)
    return {key: list(photos.values()) for key, photos in content.items()}


def _photo(source: Path, archive: zipfile.ZipFile, digest: str) -> NDArray[np.uint8]:
    name = f"photos/{digest}.png"
    photo = decode_image(_bytes(source, archive, name, MAX_BYTES), name=f"{source}: {name}")
    if digest_of(photo) != digest:
        raise _rejected(source, f"{name}: other pixels than its name says", "an unchanged photo")
    return photo


def _bytes(source: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    try:
        with archive.open(name) as file:
            data = file.read(limit + 1)
    except (KeyError, RuntimeError) as error:
        raise _rejected(source, f"{name}: {error}", "the file, readable") from error
    if len(data) > limit:
        raise _rejected(source, f"{name}: more than {limit} bytes", f"at most {limit} bytes")
    return data


def _rejected(source: Path, found: str, expected: str) -> ArchiveRejected:
    remedy = "Export it again with `pilltrack gallery export`."
    return ArchiveRejected(str(source), found=found, expected=expected, remedy=remedy)
