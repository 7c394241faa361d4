"""What evaluation looks at: photos as they are, or new captures of studio photos.

A shot is reproducible: the same row and seed give the same pixels, whichever model looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pilltrack.core.embedder import Embedder
from pilltrack.core.image import read_image
from pilltrack.pipeline.cohorts import choose_references, photos_to_identify
from pilltrack.pipeline.data import CAPTURE_PX, captured
from pilltrack.pipeline.params import CaptureParams, Params
from pilltrack.pipeline.table import SPLITS, ImageRow, Split

BATCH = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shot:
    """One photo to look at; `seed` is that of a new capture, None for the photo itself."""

    row: ImageRow
    seed: int | None


def shots_to_identify(
    params: Params, rows: Sequence[ImageRow], split: Split, captures: str
) -> list[Shot]:
    """The probes and strangers of a split, in row order.

    Augmented probes are captures of the photos that are enrolled, `augmented_per_photo` of each,
    and of all photos of strangers.
    """
    photos = photos_to_identify(rows, split, captures)
    if captures != "augmented":
        return [Shot(row, None) for row in photos]
    enrolled = set(choose_references(rows, params.enroll.references_per_side))
    seeds = np.random.default_rng([params.evaluate.seed, SPLITS.index(split)])
    return [
        Shot(row, int(seeds.integers(2**62)))
        for row in photos
        if row.role == "stranger" or row in enrolled
        for _ in range(params.evaluate.augmented_per_photo)
    ]


def seeds_of(row: ImageRow, seed: int, *salts: int) -> np.random.Generator:
    """Seeds for captures of one photo, by its name: what other photos there are changes nothing.

    `salts` tell apart captures for different ends under the same `seed`.
    """
    name = int.from_bytes(hashlib.sha256(row.image.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, *salts, name])


def photo_of(shot: Shot, prepared: Path, capture: CaptureParams) -> NDArray[np.uint8]:
    """The RGB image (H, W, 3) of a shot; `prepared` is the directory of its table."""
    photo = read_image(prepared / shot.row.image)
    return photo if shot.seed is None else captured(photo, CAPTURE_PX, capture, shot.seed)


def embed_shots(
    embedders: Sequence[Embedder],
    shots: Sequence[Shot],
    prepared: Path,
    capture: CaptureParams,
    title: str,
) -> list[NDArray[np.float32]]:
    """Embeddings (N, D) of the shots by each embedder; each photo is made once.

    Progress is shown on a terminal. Raises ImageRejected for a photo that cannot be read.
    """
    parts: list[list[NDArray[np.float32]]] = [[] for _ in embedders]
    bar = tqdm(shots, desc=title, unit="photo", disable=None)
    for batch in _batches(iter(bar)):
        photos = [photo_of(shot, prepared, capture) for shot in batch]
        for embedder, found in zip(embedders, parts, strict=True):
            found.append(embedder.embed(photos))
    return [
        np.concatenate(found) if found else np.empty((0, embedder.dim), np.float32)
        for embedder, found in zip(embedders, parts, strict=True)
    ]


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
