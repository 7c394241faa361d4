"""The tables that pass between stages: `images.csv` and `pills.csv` below `artifacts/prepare/`.

`prepare` writes them, every later stage reads them through `load_images` and `load_pills`, so
the columns of docs/adr/0001-contracts.md stand here once. Reading is strict: an unknown column,
a missing column or a value outside the vocabulary is refused with file and line.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Literal, cast, get_args

from pilltrack.core.errors import DatasetRejected
from pilltrack.core.files import write_atomically

Side = Literal["front", "back", ""]
Capture = Literal["real", "rendered"]
Split = Literal["train", "validation", "test"]
Role = Literal["fit", "reference", "probe", "stranger"]

SIDES: tuple[Side, ...] = get_args(Side)
CAPTURES: tuple[Capture, ...] = get_args(Capture)
SPLITS: tuple[Split, ...] = get_args(Split)
ROLES: tuple[Role, ...] = get_args(Role)

FORMULA_STARTS = ("=", "+", "-", "@")  # of a cell that a spreadsheet computes
MAX_TEXT = 200
IMAGES_CSV = "images.csv"
PILLS_CSV = "pills.csv"


@dataclass(frozen=True, order=True, slots=True)
class ImageRow:
    """One accepted image; `image` is its path below the directory of the table, with `/`."""

    image: str
    pill: str
    side: Side
    session: str
    capture: Capture
    group: str
    split: Split
    role: Role


def appearance_of(row: ImageRow) -> str:
    """The visual class of an image: its pill, and its side where that is known."""
    return f"{row.pill}\t{row.side}"


@dataclass(frozen=True, order=True, slots=True)
class PillRow:
    """What is known about one pill besides its photos; unknown fields are empty.

    `imprint` lists both faces with `;` between them, `size_mm` is the longest extent.
    """

    pill: str
    name: str = ""
    ndc: str = ""
    strength: str = ""
    maker: str = ""
    shape: str = ""
    colour: str = ""
    imprint: str = ""
    size_mm: str = ""


IMAGE_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(ImageRow))
PILL_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(PillRow))


def load_images(directory: Path) -> list[ImageRow]:
    """Read `images.csv` of a prepared directory, sorted by `image`.

    The image files themselves are not opened: `directory / row.image` is where each one lies.

    Raises DatasetRejected, naming file and line, when the table is missing or empty, has other
    columns than the contract, names an image twice or outside the directory, or holds a value
    outside the vocabulary.
    """
    path = directory / IMAGES_CSV
    rows: dict[str, ImageRow] = {}
    for line, record in read_table(path, required=IMAGE_COLUMNS, strip=False):
        check_choice(path, line, "side", record["side"], SIDES)
        check_choice(path, line, "capture", record["capture"], CAPTURES)
        check_choice(path, line, "split", record["split"], SPLITS)
        check_choice(path, line, "role", record["role"], ROLES)
        row = ImageRow(
            image=record["image"],
            pill=record["pill"],
            side=cast("Side", record["side"]),
            session=record["session"],
            capture=cast("Capture", record["capture"]),
            group=record["group"],
            split=cast("Split", record["split"]),
            role=cast("Role", record["role"]),
        )
        if row.image in rows:
            raise duplicate_row(path, line, "image", row.image)
        inside = PurePosixPath(row.image)
        if inside.is_absolute() or ".." in inside.parts or "\\" in row.image:
            raise DatasetRejected(
                f"{path}:{line}",
                found=f"image {row.image!r}",
                expected="a path below the directory of the table",
                remedy="Run the prepare stage again.",
            )
        rows[row.image] = row
    if not rows:
        raise DatasetRejected(
            str(path),
            found="no rows",
            expected="one row per image",
            remedy="Run the prepare stage again.",
        )
    return [rows[image] for image in sorted(rows)]


def load_pills(directory: Path) -> dict[str, PillRow]:
    """Read `pills.csv` of a prepared directory: pill -> its row, sorted by pill.

    Raises DatasetRejected like `load_images`; an empty table is an empty dict.
    """
    path = directory / PILLS_CSV
    rows: dict[str, PillRow] = {}
    records = read_table(path, required=("pill",), optional=PILL_COLUMNS[1:], strip=False)
    for line, record in records:
        check_facts(path, line, record)
        row = PillRow(**record)
        if row.pill in rows:
            raise duplicate_row(path, line, "pill", row.pill)
        rows[row.pill] = row
    return dict(sorted(rows.items()))


def write_images(directory: Path, rows: Iterable[ImageRow]) -> Path:
    """Write `images.csv`, sorted by image, with Unix line ends; returns its path."""
    return write_csv(directory / IMAGES_CSV, IMAGE_COLUMNS, [astuple(row) for row in sorted(rows)])


def write_pills(directory: Path, rows: Iterable[PillRow]) -> Path:
    """Write `pills.csv`, sorted by pill, with Unix line ends; returns its path."""
    return write_csv(directory / PILLS_CSV, PILL_COLUMNS, [astuple(row) for row in sorted(rows)])


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV with Unix line ends, whole or not at all; returns its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
    return path


def read_table(
    path: Path, *, required: Sequence[str], optional: Sequence[str] = (), strip: bool = True
) -> list[tuple[int, dict[str, str]]]:
    """Read a UTF-8 CSV file with a header: a list of (line number, column -> value).

    `strip` removes spaces around values, which people type; a table written by a stage is read
    exactly as it was written, because a name may end in a space.
    Line numbers count from 1, the header being line 1 of the usual file; blank lines are passed
    over. A column of `optional` that the file lacks is absent from the dictionaries.

    Raises DatasetRejected for a missing or undecodable file, a missing, unknown or repeated
    column, a row with too many or too few values, or an empty value in the first column.
    """
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, dict[str, str]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, required, [*required, *optional])
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            line = reader.line_num
            if len(values) != len(header):
                raise DatasetRejected(
                    f"{path}:{line}",
                    found=f"{len(values)} values",
                    expected=f"{len(header)}, one per column of the header",
                    remedy="Correct the line; a value with a comma needs double quotes.",
                )
            if strip:
                values = [value.strip() for value in values]
            record = dict(zip(header, values, strict=True))
            if not record[required[0]].strip():
                raise DatasetRejected(
                    f"{path}:{line}",
                    found=f"an empty {required[0]}",
                    expected=f"a value in column {required[0]}",
                    remedy="Fill it in or delete the line.",
                )
            records.append((line, record))
    except csv.Error as error:
        raise DatasetRejected(
            f"{path}:{reader.line_num}",
            found=f"not CSV ({error})",
            expected="comma-separated values",
            remedy="Correct the line; quotes inside a quoted value are doubled.",
        ) from error
    return records


def check_choice(path: Path, line: int, column: str, value: str, choices: Sequence[str]) -> None:
    """Raise DatasetRejected unless `value` is one of `choices`."""
    if value not in choices:
        raise DatasetRejected(
            f"{path}:{line}",
            found=f"{column} {value!r}",
            expected=", ".join(choice or "an empty value" for choice in choices),
            remedy="Correct the value.",
        )


def check_facts(path: Path, line: int, facts: Mapping[str, str]) -> None:
    """Raise DatasetRejected for a value of pills.csv that people could not read as it stands.

    `size_mm` is empty or a positive decimal number; a text has at most 200 characters, none of
    them a control character (some turn the text beside them around), and no spreadsheet takes it
    for a formula.
    """
    size = facts.get("size_mm", "")
    if size and (not re.fullmatch(r"[0-9]+(\.[0-9]+)?", size) or float(size) == 0):
        raise DatasetRejected(
            f"{path}:{line}",
            found=f"size_mm {size!r}",
            expected="millimetres such as 12 or 12.5, or an empty value",
            remedy="Correct the value.",
        )
    for column, value in facts.items():
        odd = any(unicodedata.category(c)[0] == "C" for c in value)
        if odd or len(value) > MAX_TEXT or value.startswith(FORMULA_STARTS):
            raise DatasetRejected(
                f"{path}:{line}",
                found=f"{column} {value!r:.80}",
                expected=f"at most {MAX_TEXT} characters, no control character, and none of "
                f"{' '.join(FORMULA_STARTS)} at the start",
                remedy="Correct the value.",
            )


def check_pill_names(sources: Mapping[str, str]) -> None:
    """Check that pill names can be folder names everywhere; `sources`: pill -> where it stands.

    Raises DatasetRejected, naming that place, for an empty name, a slash or control character,
    a leading dot, a trailing dot or space, a start that spreadsheets take for a formula, more than
    100 bytes, and two names that differ only by case or by Unicode form.
    """
    seen: dict[str, str] = {}
    for pill, source in sources.items():
        plain = pill.strip() == pill and not pill.endswith(".")
        plain = plain and not pill.startswith((".", *FORMULA_STARTS))
        odd = any(unicodedata.category(c)[0] == "C" or c in "/\\" for c in pill)
        if not pill or odd or not plain or len(pill.encode()) > 100:
            raise DatasetRejected(
                source,
                found=f"pill name {pill!r}",
                expected="1 to 100 bytes, no slash or control character, no dot or space at an "
                f"end, none of {' '.join(FORMULA_STARTS)} at the start",
                remedy="Rename the pill.",
            )
        key = unicodedata.normalize("NFC", pill).casefold()
        if key in seen:
            raise DatasetRejected(
                source,
                found=f"pill {pill!r} beside {seen[key]!r}",
                expected="names that differ by more than case",
                remedy="Merge the two pills or rename one.",
            )
        seen[key] = pill


def duplicate_row(path: Path, line: int, column: str, value: str) -> DatasetRejected:
    """Return the error for a value that stands in a table twice."""
    return DatasetRejected(
        f"{path}:{line}",
        found=f"{column} {value!r} a second time",
        expected=f"each {column} once",
        remedy="Delete one of the two lines.",
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise DatasetRejected(
            str(path),
            found=f"not UTF-8 text ({error.reason} at byte {error.start})",
            expected="a CSV file in UTF-8",
            remedy="Save it again as 'CSV UTF-8'.",
        ) from error
    except OSError as error:
        raise DatasetRejected(
            str(path),
            found=f"cannot be read ({error.strerror})",
            expected="a table written by the prepare stage or by you",
            remedy="Run `pilltrack prepare` first, or check the path.",
        ) from error


def _check_header(
    path: Path, header: list[str], required: Sequence[str], known: Sequence[str]
) -> None:
    columns = ", ".join(known)
    for name in header:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise DatasetRejected(
                f"{path}:1",
                found=f"unknown column {name!r}",
                expected=f"columns out of {columns}",
                remedy=f"{hint}Rename or delete the column.",
            )
        if header.count(name) > 1:
            raise DatasetRejected(
                f"{path}:1",
                found=f"column {name!r} {header.count(name)} times",
                expected="each column once",
                remedy="Delete the repeated column.",
            )
    missing = [name for name in required if name not in header]
    if missing:
        raise DatasetRejected(
            f"{path}:1",
            found=f"no column {', '.join(missing)}",
            expected=f"columns {columns}",
            remedy="Add the column to the first line.",
        )
