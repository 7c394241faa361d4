"""Probes promise what a bundle answers on any processor; what answers otherwise is named."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from pilltrack.core.background import Background
from pilltrack.core.decide import Rule, decide
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.locate import Locator
from pilltrack.core.probes import (
    MAX_CROPS,
    MAX_FRAME_PX,
    MAX_FRAMES,
    MIN_COSINE,
    Probes,
    Promised,
    broken_promises,
    clear_decision,
    promise,
    read_probes,
    save_probes,
)
from tests.tiny_bundle import COLOURED, MODEL

Parts = dict[str, Any]
RED, BLUE = (200, 30, 30), (30, 30, 200)
NAMED = Rule(threshold=0.9, margin=0.0)  # for the golden model noise is like red by 0.94


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The parts of a bundle in which the red pill is enrolled."""
    embedder = open_embedder(MODEL)
    gallery = Gallery.create(embedder.space, embedder.dim)
    gallery.enrol([Reference("red", "", "r.png")], embedder.embed([plain(RED)]))
    locator = Locator(COLOURED, min_confidence=0.5)
    return {"locator": locator, "embedder": embedder, "gallery": gallery, "rule": NAMED}


@pytest.fixture
def probes(parts: Parts) -> Probes:
    return promise([plain(RED), noise()], [tray()], **parts)


def test_parts_keep_what_they_promised(probes: Probes, parts: Parts) -> None:
    red, close_call = probes.decisions
    assert red is not None
    assert (red.kind, red.pill, round(red.score, 3)) == ("known", "red", 1.0)
    assert close_call is None
    assert probes.boxes == (((40, 30, 40, 40),),)
    assert broken_promises(probes, **parts) == ()


def test_written_probes_read_back_as_they_were(probes: Probes, tmp_path: Path) -> None:
    save_probes(probes, tmp_path / "probes.safetensors")
    read = read_probes(tmp_path / "probes.safetensors")
    assert (read.space, read.decisions, read.boxes) == (
        probes.space,
        probes.decisions,
        probes.boxes,
    )
    assert read.embeddings.dtype == np.float32
    for ours, theirs in (
        (read.embeddings, probes.embeddings),
        *zip((*read.crops, *read.frames), (*probes.crops, *probes.frames), strict=True),
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_same_pictures_give_the_same_bytes(parts: Parts, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_probes(promise([plain(RED), noise()], [tray()], **parts), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_model_breaks_the_promise_of_its_embeddings(probes: Probes, parts: Parts) -> None:
    other = open_embedder(MODEL.with_name("tiny.tflite"))
    found = broken_promises(probes, **{**parts, "embedder": other})
    assert len(found) == 1  # of noise both give the same
    assert "probe 1: its embedding has a cosine of 0.968 to the promised one" in found[0]


def test_embeddings_of_another_direction_are_named_each(probes: Probes, parts: Parts) -> None:
    turned = replace(probes, embeddings=probes.embeddings[:, ::-1].copy())
    assert len(broken_promises(turned, **parts)) == 2


def test_a_changed_rule_breaks_the_promised_decision(probes: Probes, parts: Parts) -> None:
    strict = {**parts, "rule": Rule(threshold=1.5, margin=0.0)}
    assert broken_promises(probes, **strict) == (
        "probe 1: decided as unknown, promised known, red",
    )


def test_a_pill_under_another_name_breaks_the_promised_decision(
    probes: Probes, parts: Parts
) -> None:
    embedder = parts["embedder"]
    with Gallery.create(embedder.space, embedder.dim) as other:
        other.enrol([Reference("blue", "", "r.png")], embedder.embed([plain(RED)]))
        found = broken_promises(probes, **{**parts, "gallery": other})
    assert found == ("probe 1: decided as known, blue, promised known, red",)


def test_a_missing_background_breaks_the_promised_score(parts: Parts) -> None:
    embedder = parts["embedder"]
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        red = embedder.embed([plain(RED)])
        gallery.background = Background(red, ["trained"])
        gallery.enrol([Reference("red", "", "r.png")], red)
        lenient = {**parts, "gallery": gallery, "rule": Rule(threshold=0.3, margin=0.0)}
        probes = promise([plain(RED)], [], **lenient)
        gallery.background = Background(red[:0], [])
        found = broken_promises(probes, **lenient)
    assert found == ("probe 1: its score is 1.000, promised 0.600 to within 0.28",)


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        (((40, 30, 40, 40), (100, 90, 9, 9)), "frame 1: 1 pills found, promised 2"),
        (((60, 30, 40, 40),), r"frame 1: the pill promised at \(60, 30, 40, 40\) is found at "
         r"\(40, 30, 40, 40\), an overlap \(IoU\) of 0.33"),
    ],
)  # fmt: skip
def test_pills_found_elsewhere_are_named(
    boxes: Any, sentence: str, probes: Probes, parts: Parts
) -> None:
    (found,) = broken_promises(replace(probes, boxes=(boxes,)), **parts)
    assert re.match(sentence, found)


def test_of_a_close_call_only_the_embedding_is_promised(parts: Parts) -> None:
    for threshold, promised in ((0.999, False), (0.985, False), (0.95, True)):
        rule = Rule(threshold=threshold, margin=0.0)
        probes = promise([plain(RED)], [], **{**parts, "rule": rule})
        assert (probes.decisions[0] is not None) is promised
        assert broken_promises(probes, **{**parts, "rule": rule}) == ()


def test_without_pills_all_are_unknown(parts: Parts) -> None:
    embedder = parts["embedder"]
    with Gallery.create(embedder.space, embedder.dim) as empty:
        probes = promise([plain(RED)], [], **{**parts, "gallery": empty})
    assert probes.decisions == (Promised("unknown", None, 0.0),)


def test_frames_of_close_calls_and_without_pills_are_left_out(parts: Parts) -> None:
    empty = np.full((120, 160, 3), 128, np.uint8)
    probes = promise([plain(RED)], [empty, tray(), empty, tray(), tray()], **parts)
    assert len(probes.frames) == MAX_FRAMES
    confidence = parts["locator"].locate(tray())[0].confidence
    close = Locator(COLOURED, min_confidence=confidence - 0.05)
    assert promise([plain(RED)], [tray()], **{**parts, "locator": close}).frames == ()


def test_a_frame_that_a_second_look_would_change_is_left_out(parts: Parts) -> None:
    frame = np.zeros((96, 128, 3), np.uint8)
    frame[40:52, 60:72] = 255
    spots = COLOURED.with_name("spots_locator.tflite")
    for least, frames in ((0.5, 0), (0.005, 1)):  # all that it looks at again comes to 0.02
        locator = Locator(spots, min_confidence=least)
        assert [pill.box for pill in locator.locate(frame)] == [(60, 40, 12, 12)]
        promised = promise([plain(RED)], [frame], **{**parts, "locator": locator})
        assert len(promised.frames) == frames


def test_frames_are_asked_for_until_there_are_enough(parts: Parts) -> None:
    asked = []

    def frames() -> Any:
        for number in range(10):
            asked.append(number)
            yield tray()

    promise([plain(RED)], frames(), **parts)
    assert asked == [0, 1]


def test_no_embedding_within_the_tolerance_changes_a_promised_decision() -> None:
    rng = np.random.default_rng(1)
    with Gallery.create("s", 3) as gallery:
        promised = [promised_and_kept(gallery, rng) for _ in range(150)]
    assert promised.count("known") >= 30
    assert promised.count("unknown") >= 15


def promised_and_kept(gallery: Gallery, rng: np.random.Generator) -> str | None:
    """What is promised for a random probe, pills and rule; 40 embeddings that are off agree."""
    n_pills, n_background = int(rng.integers(1, 4)), int(rng.integers(0, 5))
    embedding, references = unit(1, rng)[0], unit(n_pills, rng)
    if rng.random() < 0.6:
        references[0] = embedding
    rule = Rule(threshold=float(rng.uniform(-0.5, 1)), margin=float(rng.uniform(0, 0.2)))
    # Pills are in the background too, and left out of it where they are nearest.
    around = [f"pill-{number}" for number in range(n_background)]
    gallery.background = Background(unit(n_background, rng), around)
    for pill in gallery.pills():
        gallery.remove(pill)
    gallery.enrol([Reference(f"pill-{n}", "", "") for n in range(n_pills)], references)
    promised = clear_decision(embedding, gallery, rule)
    if promised is None:
        return None
    for candidates in gallery.search(turned(embedding, unit(40, rng)), 2):
        decision = decide(candidates, rule)
        assert (decision.kind, decision.pill) == (promised.kind, promised.pill)
    return promised.kind


def turned(embedding: NDArray[np.float32], towards: NDArray[np.float32]) -> NDArray[np.float32]:
    """An embedding (D,) turned towards directions (N, D), as far as the tolerance allows."""
    across = towards - (towards @ embedding)[:, None] * embedding
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    moved = MIN_COSINE * embedding + math.sqrt(1 - MIN_COSINE**2) * across
    return np.asarray(moved, np.float32)


def test_a_gallery_of_another_space_promises_nothing(parts: Parts) -> None:
    with Gallery.create("other", 8) as other, pytest.raises(SpaceMismatch):
        promise([plain(RED)], [], **{**parts, "gallery": other})


@pytest.mark.parametrize(
    ("crops", "found"),
    [
        ([], "0 crops; expected 1 to 16"),
        ([np.zeros((8, 8, 3), np.uint8)] * (MAX_CROPS + 1), "17 crops"),
        ([np.zeros((321, 8, 3), np.uint8)], "a crop of 8 x 321 px; at most 320 px"),
        ([np.zeros((8, 8), np.uint8)], "a crop of shape"),
    ],
)
def test_crops_that_cannot_be_probes_are_refused(crops: Any, found: str, parts: Parts) -> None:
    with pytest.raises(ValueError, match=found):
        promise(crops, [], **parts)


def test_a_frame_that_is_too_large_is_refused(parts: Parts) -> None:
    large = np.full((MAX_FRAME_PX, MAX_FRAME_PX + 1, 3), 128, np.uint8)
    large[100:400, 100:400] = RED
    with pytest.raises(ValueError, match="a frame of 641 x 640 px"):
        promise([plain(RED)], [large], **parts)


def change_metadata(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors, metadata = contents(path)
        save_file(tensors, path, {**metadata, name: json.dumps(value)})

    return change


def change_tensor(name: str, value: NDArray[Any] | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors, metadata = contents(path)
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
        save_file(tensors, path, metadata)

    return change


def other_format(path: Path) -> None:
    tensors, metadata = contents(path)
    save_file(tensors, path, {**metadata, "format": "pilltrack-gallery-2"})


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.unlink(), "cannot be read|damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"\xff" * 100), "damaged"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "damaged"),
        (lambda path: os.truncate(path, 9 * 1024 * 1024), "9437184 bytes; expected at most"),
        (other_format, "format 'pilltrack-gallery-2'"),
        (change_metadata("surprise", 1), "metadata .*'surprise'"),
        (change_metadata("decisions", "x"), "decisions that are not such a table"),
        (change_metadata("decisions", [None]), "tensors .* for 1 crops, 1 frames"),
        (change_metadata("decisions", [["known", None, 1.0], None]), "a decision"),
        (change_metadata("decisions", [["unknown", "x", 1.0], None]), "a decision"),
        (change_metadata("decisions", [["maybe", "x", 1.0], None]), "decisions that are not"),
        (change_metadata("decisions", [["known", "x" * 2000, 1.0], None]), "a decision"),
        (change_metadata("boxes", []), "tensors .* for 2 crops, 0 frames"),
        (change_metadata("boxes", [[]]), "0 boxes"),
        (change_metadata("boxes", [[[150, 0, 20, 20]]]), "not in its frame"),
        (change_metadata("boxes", [[[0, 0, 0, 9]]]), "not in its frame"),
        (change_metadata("boxes", [[[0, 0, 9, 9]] * 65]), "65 boxes"),
        (change_tensor("crops.01", None), "tensors"),
        (change_tensor("crops.02", np.zeros((4, 4, 3), np.uint8)), "tensors"),
        (change_tensor("crops.01", np.zeros((4, 4, 3), np.int64)), "crops.01 of type I64"),
        (change_tensor("crops.01", np.zeros((4, 4), np.uint8)), "a crop of shape"),
        (change_tensor("crops.01", np.zeros((4, 0, 3), np.uint8)), "a crop of shape"),
        (change_tensor("crops.01", np.zeros((4, 400, 3), np.uint8)), "a crop of 400 x 4 px"),
        (change_tensor("embeddings", np.zeros((2, 8), np.float32)), "not of unit length"),
        (change_tensor("embeddings", np.full((2, 8), np.nan, np.float32)), "not of unit length"),
        (change_tensor("embeddings", np.eye(3, 8, dtype=np.float32)), "3 embeddings for 2 crops"),
        (change_tensor("embeddings", np.zeros((2, 8), np.uint8)), "embeddings have shape"),
    ],
)
def test_damaged_probes_are_refused_by_name(
    damage: Callable[[Path], object], found: str, probes: Probes, tmp_path: Path
) -> None:
    path = tmp_path / "probes.safetensors"
    save_probes(probes, path)
    damage(path)
    with pytest.raises(BundleRejected, match=rf"probes\.safetensors: .*({found})"):
        read_probes(path)


def contents(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def unit(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random directions (n, 3)."""
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def plain(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((40, 40, 3), colour, np.uint8)


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def tray() -> NDArray[np.uint8]:
    frame = np.full((120, 160, 3), 128, np.uint8)
    frame[30:70, 40:80] = RED
    return frame
