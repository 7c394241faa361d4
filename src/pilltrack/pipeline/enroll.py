"""Stage `enroll`: the gallery, embedded by the exported int8 student.

Every pill that is not a stranger is enrolled: train pills with photos the model was trained on,
validation and test pills with their reference photos, up to `references_per_side` each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.image import read_image
from pilltrack.pipeline.data import appearance_of
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import ImageRow, load_images

log = logging.getLogger(__name__)
BATCH = 64


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `convert/`, write `enroll/gallery.safetensors`."""
    embedder = open_embedder(artifacts / "convert" / "model.tflite", threads=2)
    rows = choose_references(load_images(artifacts / "prepare"), params.enroll.references_per_side)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        enrol_rows(gallery, embedder, artifacts / "prepare", rows)
        gallery.save(artifacts / "enroll" / "gallery.safetensors")
        log.info("enrolled %d references of %d pills", len(gallery), len(gallery.pills()))


def choose_references(rows: Sequence[ImageRow], per_side: int) -> list[ImageRow]:
    """The first photo of up to `per_side` duplicate groups of each appearance, in row order."""
    looks: dict[str, dict[str, ImageRow]] = {}
    for row in rows:
        if row.role in ("fit", "reference"):
            looks.setdefault(appearance_of(row), {}).setdefault(row.group, row)
    return [row for groups in looks.values() for row in list(groups.values())[:per_side]]


def require_prescribed(gallery: Gallery, rows: Sequence[ImageRow], per_side: int) -> None:
    """Raise StageFailed unless the gallery holds just the references that `rows` prescribe."""
    chosen = choose_references(rows, per_side)
    wanted = {Reference(row.pill, row.side, row.image) for row in chosen}
    found = set(gallery.references())
    if found != wanted or len(gallery) != len(wanted):
        raise StageFailed(
            "the gallery",
            found=f"{len(gallery)} references, of which {len(found - wanted)} should not be there "
            f"and {len(wanted - found)} others are missing",
            expected=f"the {len(wanted)} references that the prepared data prescribes",
            remedy="Run `dvc repro enroll`.",
        )


def enrol_rows(
    gallery: Gallery, embedder: Embedder, directory: Path, rows: Sequence[ImageRow]
) -> None:
    """Embed the photos of `rows` and add them as references; progress is shown on a terminal."""
    with tqdm(total=len(rows), desc="enroll", unit="photo", disable=None) as bar:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            photos = [read_image(directory / row.image) for row in batch]
            references = [Reference(row.pill, row.side, row.image) for row in batch]
            gallery.enrol(references, embedder.embed(photos))
            bar.update(len(batch))
