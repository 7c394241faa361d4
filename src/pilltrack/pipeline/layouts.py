"""Recognise how a data set is laid out, and list its photos.

    <pill>/<image>                             one folder per pill
    train|val|valid|validation|test/<pill>/<image>
    images.csv + images anywhere               the table says which pill an image shows
    data.yaml + images/<split>/ + labels/<split>/    YOLO boxes, cropped here

`pills.csv` beside any of them adds what is known about the pills. Everything that is found is
accounted for: a file is a photo, is named in `ignored`, or stops the reading with an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import cv2

from pilltrack.core.errors import DatasetRejected, ImageRejected
from pilltrack.pipeline.archive import files_outside, is_document, unwrapped
from pilltrack.pipeline.table import (
    CAPTURES,
    IMAGES_CSV,
    PILL_COLUMNS,
    PILLS_CSV,
    SIDES,
    Capture,
    PillRow,
    Side,
    Split,
    check_choice,
    check_facts,
    check_pill_names,
    duplicate_row,
    read_table,
)
from pilltrack.pipeline.yolo import (
    DATA_YAML,
    SPLIT_FOLDERS,
    TOP_NAMES,
    base_and_copy,
    crops_of,
    read_yolo,
    short_names,
)

Kind = Literal["folders", "split folders", "table", "yolo"]

ACCEPTED = (
    "<pill>/<image>, train|val|test/<pill>/<image>, images.csv beside the images, "
    "or data.yaml with images/<split>/ and labels/<split>/"
)


@dataclass(frozen=True, slots=True)
class Photo:
    """One image file of the data set, not yet decoded.

    `path` is where it lies now, `source` how the user knows it (path in the archive, or label
    file and line of a crop), `session` is unique to (pill, capture session).
    """

    path: Path
    source: str
    pill: str
    side: Side
    session: str
    capture: Capture
    given_split: Split | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set as found: `photos` sorted by source, `pills` the rows of pills.csv.

    `ignored` names the files that are no part of it, those beside a wrapping folder first.
    `unreadable` pairs a YOLO photo that could not be cropped with the reason.
    """

    kind: Kind
    photos: tuple[Photo, ...]
    pills: dict[str, PillRow]
    unreadable: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_layout(directory: Path, crops: Path) -> Layout:
    """List the photos below `directory`; one wrapping top folder is accepted.

    `crops` is a folder that receives the crops of a YOLO set, as
    `<pill>/<base>_<copy>_<number>.png`; other layouts leave it untouched. Images are not decoded,
    except those of a YOLO set.

    Raises DatasetRejected naming file, line and remedy for: an unknown or mixed layout, tables
    with unknown columns, bad values, repeated rows, images or pills that do not exist, images
    missing from images.csv, pill names that cannot be folder names, malformed YOLO labels, photos
    of a YOLO set outside its split folders, and a data set without photos.
    """
    root = unwrapped(directory, keep=TOP_NAMES)
    if (root / DATA_YAML).is_file():
        layout = _read_yolo(root, crops)
    elif (root / IMAGES_CSV).is_file():
        layout = _read_listed(root)
    else:
        layout = _read_folders(root)
    if not layout.photos and not layout.unreadable:
        raise DatasetRejected(
            "the data set", found="no photos", expected=ACCEPTED, remedy="Add photos of pills."
        )
    check_pill_names({photo.pill: photo.source for photo in layout.photos})
    photos = tuple(sorted(layout.photos, key=lambda photo: photo.source))
    ignored = (*files_outside(directory, root), *layout.ignored)
    return replace(layout, photos=photos, pills=_read_pills(root, photos), ignored=ignored)


def side_of(name: str) -> Side:
    """Read the side from a file name: `front`, or `front` next to `_` or `-` at either end.

    >>> side_of("front.jpg"), side_of("12_Back.png"), side_of("front-2.jpg")
    ('front', 'back', 'front')
    >>> side_of("backlit.jpg"), side_of("front_back.jpg")
    ('', '')
    """
    stem = Path(name).stem.casefold()
    found: list[Side] = []
    sides: tuple[Side, ...] = ("front", "back")
    for side in sides:
        starts = stem.startswith((f"{side}_", f"{side}-"))
        if stem == side or starts or stem.endswith((f"_{side}", f"-{side}")):
            found.append(side)
    return found[0] if len(found) == 1 else ""


def _read_folders(root: Path) -> Layout:
    files, ignored = _walk(root)
    depths = {len(file.parts) for file in files}
    kind: Kind = "split folders" if depths == {3} else "folders"
    found: list[tuple[str, Path, Split | None]] = []
    for file in files:
        top_is_split = file.parts[0] in SPLIT_FOLDERS
        if len(file.parts) == 3 and top_is_split and depths == {3}:
            split, pill = SPLIT_FOLDERS[file.parts[0]], file.parts[1]
        elif len(file.parts) == 2 and not top_is_split and depths == {2}:
            split, pill = None, file.parts[0]
        else:
            mixed = depths <= {2, 3} and len(depths) == 2
            raise DatasetRejected(
                file.as_posix(),
                found="a mixture of layouts" if mixed else "an image in an unexpected place",
                expected=ACCEPTED,
                remedy="Move it into the folder of its pill.",
            )
        found.append((pill, file, split))
    sessions = _sessions((pill, file) for pill, file, _ in found)
    photos = tuple(
        Photo(
            path=root / file,
            source=file.as_posix(),
            pill=pill,
            side=side_of(file.name),
            session=sessions[file],
            capture="real",
            given_split=split,
        )
        for pill, file, split in found
    )
    return Layout(kind, photos, {}, ignored=ignored)


def _read_listed(root: Path) -> Layout:
    table = Path(IMAGES_CSV)
    files, ignored = _walk(root)
    on_disk = {file.as_posix(): file for file in files}
    known = _pill_names(root)
    photos: dict[str, Photo] = {}
    records = read_table(
        root / table, required=("image", "pill"), optional=("side", "session", "capture")
    )
    for line, record in records:
        name, pill = record["image"], record["pill"]
        side, capture = record.get("side", ""), record.get("capture") or "real"
        check_choice(table, line, "side", side, SIDES)
        check_choice(table, line, "capture", capture, CAPTURES)
        if name in photos:
            raise duplicate_row(table, line, "image", name)
        if name not in on_disk:
            raise DatasetRejected(
                f"{table}:{line}",
                found=f"image {name!r}, which does not exist",
                expected="a path relative to images.csv, with '/'",
                remedy="Correct the path, add the image or delete the line.",
            )
        if not pill or (known is not None and pill not in known):
            raise DatasetRejected(
                f"{table}:{line}",
                found=f"pill {pill!r}, which {PILLS_CSV} does not name" if pill else "no pill",
                expected="the name of a pill",
                remedy=f"Correct the name or add the pill to {PILLS_CSV}.",
            )
        file = on_disk[name]
        photos[name] = Photo(
            path=root / file,
            source=name,
            pill=pill,
            side=cast("Side", side),
            session=record.get("session", ""),
            capture=cast("Capture", capture),
            given_split=SPLIT_FOLDERS.get(file.parts[0]) if len(file.parts) > 1 else None,
        )
    unlisted = sorted(on_disk.keys() - photos.keys())
    if unlisted:
        raise DatasetRejected(
            str(table),
            found=f"{len(unlisted)} images are not listed: {_few(unlisted)}",
            expected="one line per image",
            remedy="List them, delete them, or delete images.csv to go by folders.",
        )
    sessions = _sessions((photo.pill, on_disk[name]) for name, photo in photos.items())
    photos = {
        name: replace(photo, session=photo.session or sessions[on_disk[name]])
        for name, photo in photos.items()
    }
    given = {photo.given_split for photo in photos.values()}
    if None in given:  # only some images lie in split folders: the folders mean nothing
        photos = {name: replace(photo, given_split=None) for name, photo in photos.items()}
    return Layout("table", tuple(photos.values()), {}, ignored=ignored)


def _read_yolo(root: Path, crops: Path) -> Layout:
    if (root / IMAGES_CSV).exists():
        raise DatasetRejected(
            IMAGES_CSV,
            found="both images.csv and data.yaml",
            expected="one description of the photos",
            remedy="Delete images.csv for YOLO boxes, or data.yaml for whole images.",
        )
    yolo = read_yolo(root)
    check_pill_names(dict.fromkeys(yolo.pills, DATA_YAML))
    photos: list[Photo] = []
    unreadable: list[tuple[str, str]] = []
    sessions = short_names(boxed.base for boxed in yolo.photos)
    for boxed in yolo.photos:
        session = sessions[boxed.base]
        stem = f"{session.replace('/', '_')}_{boxed.copy}"
        try:
            for box, crop in crops_of(boxed):
                target = crops / box.pill / f"{stem}_{box.number}.png"
                if target.exists():  # one Roboflow copy in several splits
                    target = target.with_stem(f"{target.stem}_{boxed.folder}")
                target.parent.mkdir(parents=True, exist_ok=True)
                done, data = cv2.imencode(".png", crop[:, :, ::-1])
                assert done
                target.write_bytes(data.tobytes())
                photos.append(Photo(target, box.source, box.pill, "", session, "real", boxed.split))
        except ImageRejected as error:
            unreadable.append((boxed.path.relative_to(root).as_posix(), error.found))
    return Layout(
        "yolo",
        tuple(photos),
        {},
        unreadable=tuple(unreadable),
        ignored=tuple(name for name in yolo.ignored if name != PILLS_CSV),  # which is read later
        notes=yolo.notes,
    )


def _read_pills(root: Path, photos: tuple[Photo, ...]) -> dict[str, PillRow]:
    table = Path(PILLS_CSV)
    if not (root / table).exists():
        return {}
    with_photos = {photo.pill for photo in photos}
    rows: dict[str, PillRow] = {}
    for line, record in read_table(root / table, required=("pill",), optional=PILL_COLUMNS[1:]):
        pill = record["pill"]
        if pill in rows:
            raise duplicate_row(table, line, "pill", pill)
        if pill not in with_photos:
            raise DatasetRejected(
                f"{table}:{line}",
                found=f"pill {pill!r}, of which there is no photo",
                expected="pills with photos",
                remedy="Correct the name, add photos or delete the line.",
            )
        check_facts(table, line, record)
        rows[pill] = PillRow(**record)
    return dict(sorted(rows.items()))


def _pill_names(root: Path) -> set[str] | None:
    if not (root / PILLS_CSV).exists():
        return None
    table = read_table(root / PILLS_CSV, required=("pill",), optional=PILL_COLUMNS[1:])
    return {record["pill"] for _, record in table}


def _walk(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return all files that should be images, sorted, and the names of those passed over."""
    files: list[Path] = []
    ignored: list[str] = []
    for file in _files_below(root):
        name = file.name.casefold()
        if file.as_posix() in (IMAGES_CSV, PILLS_CSV):
            continue
        if name.endswith(".csv"):
            raise DatasetRejected(
                file.as_posix(),
                found="an unknown table",
                expected=f"{IMAGES_CSV} and {PILLS_CSV} at the top, and no other .csv",
                remedy="Move, rename or delete it.",
            )
        if is_document(name) or name.startswith("."):
            ignored.append(file.as_posix())
        else:
            files.append(file)
    return files, tuple(ignored)


def _files_below(root: Path) -> Iterator[Path]:
    return iter(sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()))


def _sessions(photos: Iterable[tuple[str, Path]]) -> dict[Path, str]:
    """Make every file its own session, Roboflow's copies of one photo of a pill excepted."""
    bases: dict[str, dict[Path, str]] = {}
    for pill, file in photos:
        bases.setdefault(pill, {})[file] = base_and_copy(file.name, file.parent.as_posix())[0]
    sessions: dict[Path, str] = {}
    for pill, of_pill in bases.items():
        names = short_names(of_pill.values())
        sessions |= {file: f"{pill}/{names[base]}" for file, base in of_pill.items()}
    return sessions


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
