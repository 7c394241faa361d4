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
from pilltrack.core.enrol import Photo, mean_embeddings, quarter_turns
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.image import read_image
from pilltrack.pipeline.background import background_of
from pilltrack.pipeline.cohorts import choose_references
from pilltrack.pipeline.data import CAPTURE_PX, captured
from pilltrack.pipeline.params import EnrollParams, Params
from pilltrack.pipeline.shots import seeds_of
from pilltrack.pipeline.table import ImageRow, load_images

log = logging.getLogger(__name__)
BATCH = 16


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `convert/`, write `enroll/gallery.safetensors`."""
    embedder = open_embedder(artifacts / "convert" / "model.tflite", threads=2)
    rows = choose_references(load_images(artifacts / "prepare"), params.enroll.references_per_side)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        enrol_rows(gallery, embedder, artifacts / "prepare", rows, params)
        gallery.background = background_of(embedder, artifacts / "prepare", rows, params)
        gallery.save(artifacts / "enroll" / "gallery.safetensors")
        log.info("enrolled %d references of %d pills", len(gallery), len(gallery.pills()))


def require_prescribed(gallery: Gallery, rows: Sequence[ImageRow], settings: EnrollParams) -> None:
    """Raise StageFailed unless the gallery holds just the references that the others prescribe.

    Of its background only the size and the pills are looked at.
    """
    chosen = choose_references(rows, settings.references_per_side)
    wanted = {Reference(row.pill, row.side, row.image) for row in chosen}
    found = set(gallery.references())
    trained = [row.pill for row in chosen if row.role == "fit"]
    around, background = min(settings.background_photos, len(trained)), gallery.background
    right = len(background) == around and set(background.pills) <= set(trained)
    if found != wanted or len(gallery) != len(wanted) or not right:
        raise StageFailed(
            "the gallery",
            found=f"{len(gallery)} references, of which {len(found - wanted)} should not be there "
            f"and {len(wanted - found)} others are missing; a background of {len(background)}",
            expected=f"the {len(wanted)} references, and the background of {around} embeddings of "
            "train pills, that the prepared data and params.yaml prescribe",
            remedy="Run `dvc repro enroll`.",
        )


def enrol_rows(
    gallery: Gallery,
    embedder: Embedder,
    directory: Path,
    rows: Sequence[ImageRow],
    params: Params,
) -> None:
    """Embed the photos of `rows` and add them as references; progress is shown on a terminal.

    A reference is the mean of the photo's quarter turns, as on the device, and of
    `captures_per_photo` new captures of it: how else should a studio photo resemble one taken at
    a counter?
    """
    with tqdm(total=len(rows), desc="enroll", unit="photo", disable=None) as bar:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            photos = [read_image(directory / row.image) for row in batch]
            references = [Reference(row.pill, row.side, row.image) for row in batch]
            views = [
                quarter_turns(photo) + _captures(photo, row, params)
                for photo, row in zip(photos, batch, strict=True)
            ]
            gallery.enrol(references, mean_embeddings(embedder, views))
            bar.update(len(batch))


def _captures(photo: Photo, row: ImageRow, params: Params) -> list[Photo]:
    """Seeded by the photo's name: what else is enrolled changes nothing."""
    seeds = seeds_of(row, params.enroll.seed)
    return [
        captured(photo, CAPTURE_PX, params.capture, int(seeds.integers(2**62)))
        for _ in range(params.enroll.captures_per_photo)
    ]
