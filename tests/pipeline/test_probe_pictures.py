"""A bundle is probed with crops of its own pills and with rendered ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pilltrack.core.decide import Rule
from pilltrack.core.embedder import LiteRTEmbedder
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.probes import MAX_CROPS, MAX_FRAME_PX, clear_decision
from pilltrack.pipeline.probe_pictures import (
    CROP_PX,
    FRAME_PX,
    N_RENDERED,
    probe_crops,
    probe_frames,
)
from pilltrack.pipeline.table import ImageRow
from tests.tiny_bundle import MODEL

COLOURS = {"blue": (30, 30, 200), "red": (200, 30, 30), "white": (255, 255, 255)}
RULE = Rule(threshold=0.95, margin=0.0)


@pytest.fixture(scope="module")
def embedder() -> LiteRTEmbedder:
    return LiteRTEmbedder(MODEL)


@pytest.fixture
def gallery(embedder: LiteRTEmbedder) -> Iterator[Gallery]:
    """Blue, red and white, two photos of each."""
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        for pill, colour in COLOURS.items():
            photos = [np.full((CROP_PX, CROP_PX, 3), colour, np.uint8)] * 2
            gallery.enrol([Reference(pill, "", "x.png")] * 2, embedder.embed(photos))
        yield gallery


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    for pill, colour in COLOURS.items():
        for number in range(2):
            Image.fromarray(np.full((50, 60, 3), colour, np.uint8)).save(
                tmp_path / f"{pill}_{number}.png"
            )
    return tmp_path


def test_pills_that_are_named_by_far_come_first_each_once(
    prepared: Path, embedder: LiteRTEmbedder, gallery: Gallery
) -> None:
    crops = probe_crops(prepared, rows(), embedder, gallery, RULE)
    assert len(crops) == 3 + N_RENDERED <= MAX_CROPS
    assert {crop.shape for crop in crops} == {(CROP_PX, CROP_PX, 3)}
    for crop, colour in zip(crops, COLOURS.values(), strict=False):
        assert (crop == colour).all()


def test_photos_that_are_close_calls_or_named_wrong_are_no_probes(
    prepared: Path, embedder: LiteRTEmbedder, gallery: Gallery
) -> None:
    close = Rule(threshold=0.99, margin=0.0)
    assert len(probe_crops(prepared, rows(), embedder, gallery, close)) == N_RENDERED
    Image.fromarray(np.full((20, 20, 3), COLOURS["red"], np.uint8)).save(prepared / "blue_0.png")
    first, *others = probe_crops(prepared, rows(), embedder, gallery, RULE)
    assert (first == COLOURS["red"]).all()
    assert len(others) == 2 + N_RENDERED  # white, and blue by its other photo


def test_the_same_photos_give_the_same_probes(
    prepared: Path, embedder: LiteRTEmbedder, gallery: Gallery
) -> None:
    first, second = (
        [*probe_crops(prepared, rows(), embedder, gallery, RULE), next(probe_frames())]
        for _ in "ab"
    )
    assert same(first, second)


def test_rendered_pills_are_clearly_unknown_where_there_are_enough(
    embedder: LiteRTEmbedder, gallery: Gallery
) -> None:
    strict = Rule(threshold=0.995, margin=0.0)
    chosen = probe_crops(Path(), [], embedder, gallery, strict)
    decisions = [clear_decision(row, gallery, strict) for row in embedder.embed(chosen)]
    clear = [decision is not None for decision in decisions]
    assert clear == sorted(clear, reverse=True)  # the others, if any, are last


def test_without_pills_no_photo_is_read(embedder: LiteRTEmbedder) -> None:
    with Gallery.create(embedder.space, embedder.dim) as empty:
        crops = probe_crops(Path("/nowhere"), [], embedder, empty, RULE)
    assert len(crops) == N_RENDERED
    assert not any(same([one], [other]) for one, other in pairwise(crops))


def test_scenes_are_small() -> None:
    frame = next(probe_frames())
    assert max(frame.shape) == FRAME_PX <= MAX_FRAME_PX


def rows() -> list[ImageRow]:
    return [
        ImageRow(
            image=f"{pill}_{number}.png",
            pill=pill,
            side="",
            session="",
            capture="rendered",
            group=f"{pill}{number}",
            split="test",
            role="reference",
        )
        for pill in COLOURS
        for number in range(2)
    ]


def same(some: list[NDArray[np.uint8]], others: list[NDArray[np.uint8]]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)
