"""The embedded data set: rendered photos of invented pills, zipped like a user's own.

`synth` invents pills (`invented`), renders and photographs both sides of each (`render`), and
writes one zip:

    synth-0001/front_01.jpg ...   photos, 224 px
    pills.csv                     pill,name,ndc,strength,maker,shape,colour,imprint
    images.csv                    image,pill,side,session,capture

Every pill has its own random stream, so the same seed gives the same bytes on one machine,
however many processes share the work. The zip appears under its name only when it is whole.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pilltrack.core.errors import InputRejected
from pilltrack.core.files import write_atomically
from pilltrack.pipeline.invented import InventedPill, invent_pills
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.render import draw_setting, photograph_pill, render_face

PHOTO_PX = 224
_JPEG_QUALITY = 90
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first day: no clock in the bytes
_WORTH_A_POOL = 60  # photos; below, starting processes takes longer than rendering

Side = Literal["front", "back"]


def synth(
    out: Path,
    *,
    pills: int,
    photos: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> None:
    """Render `photos` photos of each of `pills` invented pills into the zip `out`.

    Half of a pill's photos show the front (one more when `photos` is odd). The nth photo of the
    front and the nth of the back form a session: same surface, same light. `progress` is called
    with the number of finished pills; `workers` is the number of processes, None for one per
    core. Raises InputRejected when `out` is not named .zip, lies in no directory or is one, there
    would be nothing to learn from (pills < 1, photos < 2), or the disk refuses.
    """
    _check(out, pills, photos)
    catalogue = invent_pills(pills, seed)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as archive:
            rows = []
            for done, (pill, jpegs) in enumerate(
                zip(catalogue, _render_all(catalogue, photos, seed, workers), strict=True), 1
            ):
                for (side, number), jpeg in zip(_shots(photos), jpegs, strict=True):
                    image = f"{pill.pill}/{side}_{number:02d}.jpg"
                    _store(archive, image, jpeg)
                    rows.append([image, pill.pill, side, f"{pill.pill}-s{number:02d}", "rendered"])
                if progress is not None:
                    progress(done)
            _store(archive, "pills.csv", _pills_csv(catalogue))
            _store(archive, "images.csv", _table(_IMAGE_COLUMNS, sorted(rows)))
        temporary.replace(out)
    except OSError as error:
        raise InputRejected(
            str(out),
            found=f"cannot be written ({error.strerror})",
            expected="a directory with room and the right to write",
            remedy="Free some space, or choose another directory.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def render_pill(pill: InventedPill, photos: int, seed: int, number: int) -> list[bytes]:
    """All JPEG files of one pill, in the order of its shots; `number` is its random stream."""
    rng = np.random.default_rng([seed, 1, number])
    settings = [draw_setting(rng) for _ in range((photos + 1) // 2)]
    jpegs = []
    for side, shot in _shots(photos):
        face = render_face(pill, side, rng)  # each photo shows another tablet of the batch
        jpegs.append(_jpeg(photograph_pill(face, settings[shot - 1], PHOTO_PX, rng)))
    return jpegs


def contact_sheet(
    zip_path: Path, out_png: Path, *, columns: int = 12, rows: int = 8, tile_px: int = 128
) -> None:
    """A sheet of photos from a data set's zip, drawn evenly from its images.

    Writes a .png or .jpg of at most `columns` x `rows` tiles.
    """
    with zipfile.ZipFile(zip_path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        n_tiles = min(columns * rows, len(names))
        chosen = np.random.default_rng(0).permutation(len(names))[:n_tiles]
        sheet = np.full((-(-n_tiles // columns) * tile_px, columns * tile_px, 3), 255, np.uint8)
        for index, which in enumerate(sorted(chosen.tolist())):
            data = np.frombuffer(archive.read(names[which]), np.uint8)
            tile = cv2.resize(
                cv2.imdecode(data, cv2.IMREAD_COLOR),
                (tile_px, tile_px),
                interpolation=cv2.INTER_AREA,
            )
            top, left = index // columns * tile_px, index % columns * tile_px
            sheet[top : top + tile_px, left : left + tile_px] = tile
    options = [] if out_png.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 82]
    coded = cv2.imencode(out_png.suffix, sheet, options)[1]
    write_atomically(out_png, coded.tobytes())


_PILL_COLUMNS = ("pill", "name", "ndc", "strength", "maker", "shape", "colour", "imprint")
_IMAGE_COLUMNS = ("image", "pill", "side", "session", "capture")


def _check(out: Path, pills: int, photos: int) -> None:
    if out.suffix.lower() != ".zip":
        raise InputRejected(
            str(out),
            found=f"the name ends in {out.suffix or 'nothing'}",
            expected="a name ending in .zip",
            remedy=f"Try {out.with_suffix('.zip')}.",
        )
    if out.is_dir():
        raise InputRejected(
            str(out),
            found="it is a directory",
            expected="a file to write",
            remedy="Choose another name.",
        )
    if pills < 1:
        raise InputRejected(
            "pills",
            found=str(pills),
            expected="at least 1",
            remedy="Ask for more pills; 20 make a data set worth training on.",
        )
    if photos < 2:
        raise InputRejected(
            "photos",
            found=f"{photos} per pill",
            expected="at least 2, one of each side",
            remedy="Ask for more photos per pill; 8 are enough for references and probes.",
        )


def _shots(photos: int) -> list[tuple[Side, int]]:
    """(side, number) of each photo: fronts first, numbered from 1 on each side."""
    fronts = (photos + 1) // 2
    front: list[tuple[Side, int]] = [("front", number) for number in range(1, fronts + 1)]
    back: list[tuple[Side, int]] = [("back", number) for number in range(1, photos - fronts + 1)]
    return front + back


def _render_all(
    catalogue: list[InventedPill], photos: int, seed: int, workers: int | None
) -> Iterator[list[bytes]]:
    """The photos of each pill, in order."""
    n_workers = workers if workers is not None else os.cpu_count() or 1
    small = workers is None and len(catalogue) * photos < _WORTH_A_POOL
    numbers = range(len(catalogue))
    if n_workers == 1 or small:
        for number in numbers:
            yield render_pill(catalogue[number], photos, seed, number)
        return
    # Spawned, not forked: safe beside the threads of torch and OpenCV.
    with ProcessPoolExecutor(
        n_workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    ) as pool:
        try:
            yield from pool.map(
                render_pill,
                catalogue,
                [photos] * len(catalogue),
                [seed] * len(catalogue),
                numbers,
                chunksize=4,
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    cv2.setNumThreads(1)


def _pills_csv(catalogue: list[InventedPill]) -> bytes:
    return _table(
        _PILL_COLUMNS,
        [
            [p.pill, p.name, p.ndc, p.strength, p.maker, p.body.shape, p.colour_name, p.imprint]
            for p in catalogue
        ],
    )


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix, wherever it is written
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _jpeg(photo: Photo) -> bytes:
    coded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    data: bytes = coded.tobytes()
    return data
