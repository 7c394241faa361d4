"""Photos with YOLO boxes -> one square crop per box, and folders made of them.

A set has `data.yaml` and either `images/<split>/` beside `labels/<split>/` or `<split>/images/`
beside `<split>/labels/`. Roboflow stores several augmented copies of one photo as
`<base>.rf.<hash>.jpg`; all copies of a base photo count as one capture session here. Any other
photo is a base photo of its own, even if another split has a file of the same name.
"""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from pilltrack.core.errors import DatasetRejected
from pilltrack.core.image import SUFFIXES, read_image
from pilltrack.pipeline.archive import extract, files_outside, unwrapped
from pilltrack.pipeline.table import Split, check_pill_names

CROP_SCALE = 1.2  # side of the square crop relative to the longer side of the box
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
DATA_YAML = "data.yaml"
TOP_NAMES = frozenset({*SPLIT_FOLDERS, DATA_YAML})  # what lies at the top of a data set


@dataclass(frozen=True, slots=True)
class Box:
    """One line of a label file; centre and size are relative to the photo, 0..1."""

    pill: str
    x: float
    y: float
    width: float
    height: float
    number: int  # among the boxes of its photo, from 0
    source: str  # label file and line


@dataclass(frozen=True, slots=True)
class BoxedPhoto:
    """A photo and its boxes; `base` is common to all augmented copies of one photo."""

    path: Path
    folder: str  # the split folder as it is called in the set
    base: str
    copy: str
    split: Split
    boxes: tuple[Box, ...]

    def boxes_px(self, height_px: int, width_px: int) -> NDArray[np.float64]:
        """The boxes as (N, 4) x, y, width, height in the pixels of the photo."""
        boxes = [(b.x - b.width / 2, b.y - b.height / 2, b.width, b.height) for b in self.boxes]
        return np.array(boxes, np.float64).reshape(-1, 4) * (2 * (width_px, height_px))


@dataclass(frozen=True, slots=True)
class YoloSet:
    """A whole set, photos sorted by path; `ignored` names all other files."""

    root: Path
    pills: tuple[str, ...]
    photos: tuple[BoxedPhoto, ...]
    notes: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CropReport:
    """What `crop_boxes` wrote; `n_copies_left_out` counts Roboflow copies of photos used."""

    n_photos: int
    n_copies_left_out: int
    crops: dict[str, int]  # pill -> number of crops
    notes: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What `split_folders` wrote: pill -> number of crops, per folder.

    `n_copies_left_out` counts Roboflow copies of photos used, `n_left_out` crops that stand on
    the photo of a reference of the same pill; `short` names the pills that have fewer references
    than asked for.
    """

    gallery: dict[str, int]
    probes: dict[str, int]
    strangers: dict[str, int]
    n_copies_left_out: int
    n_left_out: int
    short: tuple[str, ...]
    notes: tuple[str, ...]
    ignored: tuple[str, ...]


def base_and_copy(name: str, folder: str) -> tuple[str, str]:
    """Split a file name into its base photo and a short id of this copy (8 hex digits).

    Only Roboflow's mark makes files copies of one photo; without it, the folder belongs to the
    base.

    >>> base_and_copy("IMG_1_jpeg.rf.0f11bccc1ec758cc.jpg", "train")[0]
    'IMG_1_jpeg'
    >>> base_and_copy("IMG_1.jpg", "train")[0]
    'train/IMG_1'
    """
    stem = Path(name).stem
    base, found, rest = stem.partition(".rf.")
    copy = hashlib.sha256(name.encode()).hexdigest()[:8]
    return (base if found and base and rest else f"{folder}/{stem}"), copy


def short_names(bases: Iterable[str]) -> dict[str, str]:
    """Name each base photo without its folder where that is unambiguous, else in full.

    >>> short_names(["train/1", "train/2", "val/2"])
    {'train/1': '1', 'train/2': 'train/2', 'val/2': 'val/2'}
    """
    last = {base: base.rpartition("/")[2] for base in bases}
    uses = Counter(last.values())
    return {base: name if uses[name] == 1 else base for base, name in last.items()}


def crop_boxes(source: Path, out: Path, *, max_bytes: int = 8 * 10**9) -> CropReport:
    """Write one PNG per box to the new folder `out` as `<pill>/<base photo>_<number>.png`.

    `source` is a YOLO set, as a directory or a zip. Of Roboflow's copies of one photo only the
    first by path is used. `number` counts the boxes of the photo from 0. Photos of one name in
    several splits are written as `<split folder>_<name>_<number>.png`.

    Raises ArchiveRejected, DatasetRejected (naming file and line), ImageRejected for a photo
    that cannot be read; `out` must not exist or be empty. Nothing is left behind on failure.
    """
    with opened(source, max_bytes=max_bytes) as yolo, _new_folder(out) as folder:
        photos = first_copies(yolo)
        names = short_names(photo.base for photo in photos)
        counts = dict.fromkeys(sorted(yolo.pills), 0)
        for photo in photos:
            for box, crop in crops_of(photo):
                _write_crop(folder / box.pill, names[photo.base], box, crop)
                counts[box.pill] += 1
    n_copies = len(yolo.photos) - len(photos)
    return CropReport(len(photos), n_copies, counts, yolo.notes, yolo.ignored)


def split_folders(
    source: Path,
    out: Path,
    *,
    references: int,
    strangers: int,
    seed: int,
    max_bytes: int = 8 * 10**9,
) -> FolderReport:
    """Write `gallery/`, `probes/` and `strangers/` below the new folder `out`, to try out a device.

    `strangers` pills, drawn by `seed`, go to `strangers/` only. Of every other pill, crops from
    `references` base photos, one from each, go to `gallery/`, and all crops from its remaining
    base photos to `probes/`: no probe shares a photo with a reference of its pill. A pill with
    too few photos keeps one of them for probes (if it has two) and is named in `short`.

    Raises as `crop_boxes` does, and DatasetRejected when there are not more pills with boxes
    than `strangers`, or `references` is below 1.
    """
    with opened(source, max_bytes=max_bytes) as yolo, _new_folder(out) as folder:
        photos = {photo.base: photo for photo in first_copies(yolo)}
        names = short_names(photos)
        bases: dict[str, list[str]] = {}  # pill -> its base photos
        for photo in photos.values():
            for pill in {box.pill for box in photo.boxes}:
                bases.setdefault(pill, []).append(photo.base)
        if references < 1 or not 0 <= strangers < len(bases):
            raise DatasetRejected(
                str(source),
                found=f"{len(bases)} pills with boxes, {strangers} strangers asked for, "
                f"{references} references per pill",
                expected="more pills than strangers, and at least 1 reference per pill",
                remedy="Ask for fewer strangers, or add photos of more pills.",
            )
        draw = random.Random(seed)  # noqa: S311 - a choice of examples, no secret
        stranger_pills = set(draw.sample(sorted(bases), strangers))
        chosen: dict[str, set[str]] = {}
        for pill in sorted(bases.keys() - stranger_pills):
            n = min(references, max(1, len(bases[pill]) - 1))
            chosen[pill] = set(draw.sample(sorted(bases[pill]), n))
        report = FolderReport(
            gallery=dict.fromkeys(sorted(chosen), 0),
            probes=dict.fromkeys(sorted(chosen), 0),
            strangers=dict.fromkeys(sorted(stranger_pills), 0),
            n_copies_left_out=len(yolo.photos) - len(photos),
            n_left_out=0,
            short=tuple(pill for pill in sorted(chosen) if len(chosen[pill]) < references),
            notes=yolo.notes,
            ignored=yolo.ignored,
        )
        n_left_out = 0
        for base in sorted(photos):
            taken: set[str] = set()  # pills whose reference this photo has given
            for box, crop in crops_of(photos[base]):
                if box.pill in stranger_pills:
                    part, counts = "strangers", report.strangers
                elif base not in chosen[box.pill]:
                    part, counts = "probes", report.probes
                elif box.pill not in taken:
                    part, counts = "gallery", report.gallery
                    taken.add(box.pill)
                else:
                    n_left_out += 1
                    continue
                counts[box.pill] += 1
                _write_crop(folder / part / box.pill, names[base], box, crop)
    return replace(report, n_left_out=n_left_out)


def first_copies(yolo: YoloSet) -> list[BoxedPhoto]:
    """Return one of Roboflow's copies of each base photo, the first by path, sorted by base."""
    first: dict[str, BoxedPhoto] = {}
    for photo in yolo.photos:
        first.setdefault(photo.base, photo)
    return [first[base] for base in sorted(first)]


def crops_of(photo: BoxedPhoto) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """Yield the boxes of a photo with their crops, (S, S, 3) RGB uint8.

    Raises ImageRejected when the photo cannot be read; a photo without boxes is not opened.
    """
    if not photo.boxes:
        return
    image = read_image(photo.path)
    for box in photo.boxes:
        yield box, square_crop(image, box.x, box.y, box.width, box.height)


def square_crop(
    image: NDArray[np.uint8], x: float, y: float, width: float, height: float
) -> NDArray[np.uint8]:
    """Cut the square of 1.2 x the longer side of a box around its centre.

    `image` is (H, W, 3); centre and size are relative to it, 0..1. Where the square leaves the
    photo, the nearest edge pixel is repeated. The side is at least 1 pixel.

    >>> image = np.arange(100, dtype=np.uint8).reshape(10, 10)[..., None].repeat(3, axis=2)
    >>> square_crop(image, 0.5, 0.5, 0.5, 0.2)[:, :, 0].shape
    (6, 6)
    """
    photo_height, photo_width = image.shape[:2]
    longer_px = max(width * photo_width, height * photo_height)
    side = max(1, math.floor(CROP_SCALE * longer_px + 0.5))
    left = math.floor(x * photo_width - side / 2 + 0.5)
    top = math.floor(y * photo_height - side / 2 + 0.5)
    columns = np.clip(np.arange(left, left + side), 0, photo_width - 1)
    rows = np.clip(np.arange(top, top + side), 0, photo_height - 1)
    return np.ascontiguousarray(image[rows[:, None], columns[None, :]])


def read_yolo(root: Path) -> YoloSet:
    """Read classes and boxes of the YOLO set in `root`; no image is opened.

    Raises DatasetRejected naming file and line: no class names, no photos, a label line that is
    not `class x y width height` within 0..1, a class number out of range, a label file without
    its photo, photos below an `images` folder that belong to no split. A photo without a label
    file has no boxes, as in YOLO training, and is noted.
    """
    pills, notes = _read_names(root / DATA_YAML)
    photos: list[BoxedPhoto] = []
    visited = {root / DATA_YAML}
    n_bare = 0
    for folder, images, labels in _split_folders_of(root):
        texts = sorted(labels.glob("*.txt")) if labels.is_dir() else []
        label_files = {path.stem: path for path in texts if path.name[0] != "."}
        visited.update(label_files.values())
        stems: dict[str, Path] = {}
        for path in sorted(p for p in images.iterdir() if p.is_file() and p.name[0] != "."):
            if path.suffix.casefold() not in SUFFIXES:
                raise DatasetRejected(
                    str(path.relative_to(root)),
                    found=f"a file of type {path.suffix or 'unknown'}",
                    expected=f"photos ({', '.join(sorted(SUFFIXES))})",
                    remedy="Convert or delete it.",
                )
            if path.stem in stems:
                raise DatasetRejected(
                    str(path.relative_to(root)),
                    found=f"the same name as {stems[path.stem].name}, so one label file for two",
                    expected="one photo per label file",
                    remedy="Rename one of the photos and its label file.",
                )
            stems[path.stem] = path
            visited.add(path)
            label = label_files.pop(path.stem, None)
            boxes = _read_boxes(label, root, pills) if label else ()
            n_bare += not boxes
            base, copy = base_and_copy(path.name, folder)
            photos.append(BoxedPhoto(path, folder, base, copy, SPLIT_FOLDERS[folder], boxes))
        for orphan in label_files.values():
            raise DatasetRejected(
                str(orphan.relative_to(root)),
                found=f"no photo {orphan.stem} in {images.relative_to(root)}/",
                expected="one photo per label file",
                remedy="Add the photo or delete the label file.",
            )
    others = sorted(path for path in root.rglob("*") if path.is_file() and path not in visited)
    ignored = [path.relative_to(root) for path in others]
    _check_strays(ignored)
    if not any(photo.boxes for photo in photos):
        raise DatasetRejected(
            str(root),
            found=f"{len(photos)} photos and no box",
            expected="photos in images/<split>/ and boxes in labels/<split>/",
            remedy="Check that the label files lie in labels/, not beside the photos.",
        )
    if n_bare:
        notes = [*notes, f"{n_bare} photos have no box and were left out"]
    return YoloSet(
        root,
        pills,
        tuple(sorted(photos, key=lambda p: str(p.path))),
        tuple(notes),
        tuple(file.as_posix() for file in ignored),
    )


def _check_strays(ignored: list[Path]) -> None:
    strays = [
        file
        for file in ignored
        if "images" in file.parts[:-1]
        and file.suffix.casefold() in SUFFIXES
        and not file.name.startswith(".")
    ]
    if strays:
        raise DatasetRejected(
            strays[0].as_posix(),
            found=f"{len(strays)} photos in a folder that is no split",
            expected=f"photos in images/<split>/, <split> being {', '.join(SPLIT_FOLDERS)}",
            remedy="Rename the folder, or delete it to leave its photos out.",
        )


def _split_folders_of(root: Path) -> list[tuple[str, Path, Path]]:
    found: list[tuple[str, Path, Path]] = []
    for folder in SPLIT_FOLDERS:
        if (root / "images" / folder).is_dir() and (root / folder / "images").is_dir():
            raise DatasetRejected(
                f"{folder}/images",
                found=f"photos here and in images/{folder}/",
                expected="one of the two arrangements",
                remedy="Move all photos and labels of the split into one place.",
            )
        for images, labels in (
            (root / "images" / folder, root / "labels" / folder),
            (root / folder / "images", root / folder / "labels"),
        ):
            if images.is_dir():
                found.append((folder, images, labels))
            elif labels.is_dir():
                raise DatasetRejected(
                    str(labels.relative_to(root)),
                    found=f"labels without {images.relative_to(root)}/",
                    expected="a folder of photos for each folder of labels",
                    remedy="Add the photos or delete the labels.",
                )
    if not found:
        raise DatasetRejected(
            str(root / DATA_YAML),
            found="no images/<split>/ and no <split>/images/ beside it",
            expected=f"photos in one of these, <split> being {', '.join(SPLIT_FOLDERS)}",
            remedy="Export the set in YOLO format again, or rename the folders.",
        )
    return found


def _read_names(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """Read the class names; text after the names that is not YAML is noted, not fatal."""
    notes: list[str] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetRejected(
            str(path),
            found=f"cannot be read ({error})",
            expected="a YAML file with the class names",
            remedy="Export the set in YOLO format again.",
        ) from error
    content: Any
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Exports in the wild carry free text below the keys; the names above it are whole.
        mark: Any = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
        try:
            content = yaml.safe_load("\n".join(text.splitlines()[: mark.line])) if mark else None
        except yaml.YAMLError:
            content = None
        if not isinstance(content, dict) or "names" not in content:
            raise DatasetRejected(
                f"{path}:{mark.line + 1}" if mark else str(path),
                found="not YAML",
                expected="a YAML file with the class names",
                remedy="Correct the line.",
            ) from error
        notes.append(f"{path.name}: not YAML from line {mark.line + 1} on; that part was ignored")
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise DatasetRejected(
            f"{path}: names",
            found=repr(names)[:80],
            expected="a list of different class names",
            remedy="Write `names: [first pill, second pill]`.",
        )
    if content.get("nc", len(names)) != len(names):
        raise DatasetRejected(
            f"{path}: nc",
            found=f"{content['nc']}",
            expected=f"{len(names)}, the number of names",
            remedy="Correct nc or names.",
        )
    return tuple(str(name).strip() for name in names), notes


def _read_boxes(path: Path, root: Path, pills: tuple[str, ...]) -> tuple[Box, ...]:
    boxes: list[Box] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetRejected(
            str(path.relative_to(root)),
            found=f"cannot be read ({error})",
            expected="a text file of boxes",
            remedy="Export the set in YOLO format again.",
        ) from error
    for number, text in enumerate(lines, start=1):
        if text.strip():
            source = f"{path.relative_to(root)}:{number}"
            boxes.append(_parse_box(text, source, pills, len(boxes)))
    return tuple(boxes)


def _parse_box(text: str, source: str, pills: tuple[str, ...], number: int) -> Box:
    try:
        name, *rest = text.split()
        index = int(name)
        x, y, width, height = (float(value) for value in rest)
    except ValueError:
        index = -1
        x = y = width = height = math.nan
    centred = 0 <= x <= 1 and 0 <= y <= 1
    if not (0 <= index < len(pills) and centred and 0 < width <= 1 and 0 < height <= 1):
        raise DatasetRejected(
            source,
            found=repr(text.strip()[:80]),
            expected=f"`class x y width height`, class below {len(pills)}, the others 0..1, "
            "width and height above 0",
            remedy="Correct the line; polygons and rotated boxes must be exported as boxes.",
        )
    return Box(pills[index], x, y, width, height, number, source)


def _write_crop(folder: Path, photo: str, box: Box, crop: NDArray[np.uint8]) -> None:
    path = folder / f"{photo.replace('/', '_')}_{box.number}.png"
    if path.exists():  # train/1 beside train/train_1
        raise DatasetRejected(
            box.source,
            found=f"a crop that would be called {path.name}, as another one is",
            expected="photos whose names differ also with the name of the split before them",
            remedy="Rename the photo and its label file.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", crop[:, :, ::-1])
    assert done
    path.write_bytes(data.tobytes())


@contextmanager
def opened(source: Path, *, max_bytes: int = 8 * 10**9) -> Iterator[YoloSet]:
    """A YOLO set in a directory or zip, unpacked for as long as the block lasts.

    Raises ArchiveRejected, and DatasetRejected as `read_yolo`.
    """
    with tempfile.TemporaryDirectory(prefix="pilltrack-yolo-") as temporary:
        root = source
        if not source.is_dir():
            root = extract(source, Path(temporary) / "zip", max_bytes=max_bytes).directory
        top, root = root, unwrapped(root, keep=TOP_NAMES)
        if not (root / DATA_YAML).is_file():
            raise DatasetRejected(
                str(source),
                found="no data.yaml",
                expected="a YOLO set: data.yaml, images/<split>/, labels/<split>/",
                remedy="Name the folder or zip that holds data.yaml.",
            )
        yolo = read_yolo(root)
        check_pill_names(dict.fromkeys(yolo.pills, DATA_YAML))
        yield replace(yolo, ignored=(*files_outside(top, root), *yolo.ignored))


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` if all goes well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetRejected(
            str(out),
            found="already there and not empty",
            expected="a new folder",
            remedy="Delete it or choose another name.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
