"""Unzip a stranger's archive without trusting it.

All names and declared sizes are checked before the first byte is written; then members are
streamed and real bytes counted. Files go to a temporary directory beside the target, which is
renamed at the end, so a refused archive leaves nothing behind.
"""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from pilltrack.core.errors import ArchiveRejected

MAX_MEMBERS = 500_000
MAX_RATIO = 200  # photos are compressed already; text tables reach about 20
RATIO_FROM_BYTES = 1024 * 1024  # smaller members may compress as well as they like
MAX_PART_BYTES = 200  # of one folder or file name; most file systems stop at 255
MAX_NAME_BYTES = 1000
DOCUMENTS = frozenset({".txt", ".md", ".rst", ".pdf", ".html", ".json", ".xml", ".yaml", ".yml"})
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_CHUNK = 1024 * 1024
# zipfile on damaged members; RuntimeError covers NotImplementedError, ValueError a wrong name
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flag bits: traditional, strong, masked headers


@dataclass(frozen=True, slots=True)
class Extraction:
    """What `extract` did: `skipped` names the harmless junk left out, in archive order."""

    directory: Path
    n_files: int
    n_bytes: int
    skipped: tuple[str, ...]


def extract(
    archive: Path, directory: Path, *, max_bytes: int, max_members: int = MAX_MEMBERS
) -> Extraction:
    """Unzip `archive` into the new directory `directory`.

    `max_bytes` limits the sum of all unzipped bytes, declared and real. `__MACOSX/`, `._*`,
    `.DS_Store`, `Thumbs.db` and `desktop.ini` are left out and reported. Permissions and times
    of the archive are not restored.

    Raises ArchiveRejected, naming archive and member, for a file that is not a zip, is truncated
    or damaged; for encrypted members, unknown compression, names that leave the directory or do
    not fit a file system, links and devices, names given twice (also if only by case), too many
    members, and more bytes than `max_bytes`. Raises FileExistsError when `directory` exists.
    """
    if directory.exists():
        raise FileExistsError(directory)
    try:
        with zipfile.ZipFile(archive) as opened:
            members, skipped = _check(archive, opened.infolist(), max_bytes, max_members)
            directory.parent.mkdir(parents=True, exist_ok=True)
            _check_disk(archive, members, directory.parent)
            temporary = Path(tempfile.mkdtemp(prefix=".unzip-", dir=directory.parent))
            try:
                n_bytes = _write(archive, opened, members, temporary, max_bytes)
                temporary.chmod(0o755)
                temporary.rename(directory)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # Unicode's too
        raise ArchiveRejected(
            str(archive),
            found=f"not a whole zip ({error})",
            expected="a complete .zip file",
            remedy="Download or zip it again; a truncated copy is the usual cause.",
        ) from error
    except OSError as error:
        raise ArchiveRejected(
            str(archive),
            found=f"cannot be unpacked ({error.strerror or error})",
            expected="a readable .zip file and room to unpack it",
            remedy="Check the path, its permissions and the free disk space.",
        ) from error
    n_files = sum(not info.is_dir() for info, _ in members)
    return Extraction(directory, n_files, n_bytes, tuple(skipped))


def unwrapped(directory: Path, *, keep: Container[str] = ()) -> Path:
    """Return the one folder that wraps all of `directory`, or `directory` itself.

    A folder counts as a wrapper when it holds folders or tables (.csv, .yaml) and nothing lies
    beside it but documents, hidden files and junk of the desktop. What is named in `keep` belongs
    to a data set: such a folder is no wrapper, and neither is one beside such a file.
    """
    entries = [
        path for path in directory.iterdir() if path.name in keep or not _may_lie_beside(path)
    ]
    if len(entries) != 1 or not entries[0].is_dir() or entries[0].name in keep:
        return directory
    inner = entries[0].iterdir()
    wraps = any(path.is_dir() or path.suffix in (".csv", ".yaml") for path in inner)
    return entries[0] if wraps else directory


def files_outside(directory: Path, root: Path) -> tuple[str, ...]:
    """Name the files below `directory` that `unwrapped` left outside `root`, sorted."""
    outside = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_relative_to(root)
    )
    return tuple(outside)


def is_document(name: str) -> bool:
    """Say whether a file tells about a data set and is no part of it, by its name.

    >>> is_document("README.txt"), is_document("LICENSE"), is_document("1.png")
    (True, True, False)
    """
    return Path(name).suffix.casefold() in DOCUMENTS or name.casefold() in ("license", "readme")


def is_junk(parts: tuple[str, ...]) -> bool:
    """Say whether a path is what desktop systems leave in folders and archives.

    >>> is_junk(("a", "Thumbs.db")), is_junk(("__MACOSX", "1.png")), is_junk(("a", "1.png"))
    (True, True, False)
    """
    return (
        "__MACOSX" in parts
        or parts[-1].startswith("._")
        or parts[-1].casefold() in (".ds_store", "thumbs.db", "desktop.ini")
    )


def _may_lie_beside(path: Path) -> bool:
    hidden = path.name.startswith(".") or is_junk((path.name,))
    return hidden or (path.is_file() and is_document(path.name))


Member = tuple[zipfile.ZipInfo, tuple[str, ...]]  # and the parts of its path


def _check(
    archive: Path, infos: list[zipfile.ZipInfo], max_bytes: int, max_members: int
) -> tuple[list[Member], list[str]]:
    if len(infos) > max_members:
        raise ArchiveRejected(
            str(archive),
            found=f"{len(infos)} members",
            expected=f"at most {max_members}",
            remedy="Split the data set into several archives.",
        )
    members: list[Member] = []
    skipped: list[str] = []
    declared = 0
    for info in infos:
        parts = _safe_parts(archive, info)
        _check_kind(archive, info)
        if is_junk(parts):
            skipped.append(info.filename)
            continue
        declared += info.file_size
        if declared > max_bytes:
            raise _too_large(archive, declared, max_bytes)
        members.append((info, parts))
    _check_unique(archive, members)
    return members, skipped


def _safe_parts(archive: Path, info: zipfile.ZipInfo) -> tuple[str, ...]:
    name = info.orig_filename  # before zipfile cuts it at a NUL or turns separators round
    problem = None
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        problem = "a control character in its name"
    elif "\\" in name:
        problem = "a backslash in its name"
    elif name.startswith("/") or re.match(r"[A-Za-z]:", name):
        problem = "an absolute name"
    elif ".." in parts:
        problem = "a name that climbs out with '..'"
    elif not parts:
        problem = "an empty name"
    elif len(name.encode()) > MAX_NAME_BYTES or any(
        len(part.encode()) > MAX_PART_BYTES for part in parts
    ):
        problem = f"a name of {len(name.encode())} bytes"
    if problem:
        raise _refused(
            archive,
            name,
            found=problem,
            expected=f"relative names with '/', at most {MAX_PART_BYTES} bytes per folder or file",
            remedy="Rename the file and zip the folder again.",
        )
    return parts


def _check_kind(archive: Path, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        raise _refused(
            archive,
            info.orig_filename,
            found="a symbolic link" if stat.S_ISLNK(kind) else "not a regular file",
            expected="files and folders only",
            remedy="Put the file itself into the archive (zip without --symlinks).",
        )
    if info.flag_bits & _ENCRYPTED:
        raise _refused(
            archive,
            info.orig_filename,
            found="encrypted",
            expected="an archive without a password",
            remedy="Zip it again without a password.",
        )
    if info.compress_type not in METHODS:
        raise _refused(
            archive,
            info.orig_filename,
            found=f"compression method {info.compress_type}",
            expected=" or ".join(METHODS.values()),
            remedy="Zip it again with the default method.",
        )
    large = info.file_size > RATIO_FROM_BYTES
    if (large and info.file_size > MAX_RATIO * info.compress_size) or (
        info.is_dir() and info.file_size
    ):
        raise _refused(
            archive,
            info.orig_filename,
            found=f"{info.compress_size} bytes that unpack to {info.file_size}",
            expected=f"at most {MAX_RATIO} times the compressed size",
            remedy="This looks like a zip bomb; delete the member if it is not.",
        )


def _check_unique(archive: Path, members: list[Member]) -> None:
    """Refuse names that are one file on a case-insensitive disk, and files used as folders."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for info, parts in members:
        keys = [unicodedata.normalize("NFC", part).casefold() for part in parts]
        n_folders = len(keys) if info.is_dir() else len(keys) - 1
        for depth in range(1, n_folders + 1):
            folders.setdefault("/".join(keys[:depth]), info.filename)
        if not info.is_dir():
            key = "/".join(keys)
            if key in files:
                raise _clash(archive, info.filename, files[key])
            files[key] = info.filename
    for key in files.keys() & folders.keys():
        raise _clash(archive, files[key], folders[key])


def _check_disk(archive: Path, members: list[Member], parent: Path) -> None:
    needed = sum(info.file_size for info, _ in members)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ArchiveRejected(
            str(archive),
            found=f"{needed / 1e9:.1f} GB unzipped",
            expected=f"at most {free / 1e9:.1f} GB, the free space in {parent}",
            remedy="Free some disk space.",
        )


def _write(
    archive: Path,
    opened: zipfile.ZipFile,
    members: list[Member],
    directory: Path,
    max_bytes: int,
) -> int:
    n_bytes = 0
    for info, parts in members:
        target = directory.joinpath(*parts)
        if info.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with opened.open(info) as source, target.open("xb") as sink:
                n_bytes += _copy(archive, source, sink, max_bytes - n_bytes, max_bytes)
        except _DAMAGE as error:
            raise _refused(
                archive,
                info.filename,
                found=f"damaged ({' '.join(str(error).split()) or 'cut off'})",
                expected="a whole member with a matching checksum",
                remedy="Download or zip the archive again.",
            ) from error
    return n_bytes


def _copy(
    archive: Path,
    source: IO[bytes],
    sink: BinaryIO,
    left: int,
    max_bytes: int,
) -> int:
    copied = 0
    while chunk := source.read(_CHUNK):
        copied += len(chunk)
        if copied > left:
            raise _too_large(archive, max_bytes - left + copied, max_bytes)
        sink.write(chunk)
    return copied


def _refused(
    archive: Path, member: str, *, found: str, expected: str, remedy: str
) -> ArchiveRejected:
    shown = member if len(member) <= 120 else f"{member[:117]}..."
    return ArchiveRejected(
        f"{archive}: member {shown!r}", found=found, expected=expected, remedy=remedy
    )


def _clash(archive: Path, member: str, other: str) -> ArchiveRejected:
    return _refused(
        archive,
        member,
        found=f"the same name as {other!r} (upper and lower case count as the same)",
        expected="each name once",
        remedy="Rename one of the two.",
    )


def _too_large(archive: Path, found: int, max_bytes: int) -> ArchiveRejected:
    return ArchiveRejected(
        str(archive),
        found=f"at least {found / 1e9:.3g} GB unzipped",
        expected=f"at most {max_bytes / 1e9:.3g} GB",
        remedy="Raise prepare.max_unzipped_gb if the archive is really that large.",
    )
