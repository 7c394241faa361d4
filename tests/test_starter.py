"""The starter model as it ships: whole, small, licensed, and what its card says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pilltrack.core.bundle import LOCATOR_FILE, PROBES_FILE, read_bundle
from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.identify import STARTER_BUNDLE, open_identifier, open_locator
from pilltrack.core.image import read_image
from pilltrack.core.locate import Locator
from pilltrack.core.metrics import best_per_pill, recall_at_k
from pilltrack.core.preprocess import to_model_input
from pilltrack.core.probes import read_probes
from pilltrack.edge.selftest import self_test
from pilltrack.pipeline.detections import boxes_of, score_frame, summary
from pilltrack.pipeline.invented import invent_pills
from pilltrack.pipeline.locate import STARTER as STARTER_LOCATOR
from pilltrack.pipeline.locate import TwoLooks, load_locator, score_scenes
from pilltrack.pipeline.locator_data import rendered_cut_outs, scene_of
from pilltrack.pipeline.models import STARTER, EmbeddingNet, load_starting_weights
from pilltrack.pipeline.probe_pictures import probe_crops, probe_frames
from pilltrack.pipeline.render import draw_setting, photograph_pill, render_face
from pilltrack.pipeline.torch_embedder import open_torch_embedder
from pilltrack.pipeline.yolo import first_copies, opened

REAL_DATA = Path(os.environ.get("PILLTRACK_REAL_DATA", "no-real-data"))
CARD = (STARTER_BUNDLE.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
Photo = np.ndarray


@pytest.fixture(scope="module")
def photos() -> list[tuple[str, list[Photo]]]:
    """Fronts of 24 invented pills, two photos of each, in two settings."""
    rng = np.random.default_rng(5)
    return [
        (
            pill.pill,
            [photograph_pill(render_face(pill, "front", rng), draw_setting(rng), 224, rng)
             for _ in range(2)],
        )
        for pill in invent_pills(24, seed=99)
    ]  # fmt: skip


def test_it_is_small_holds_no_pill_and_stands_by_a_promise() -> None:
    manifest = read_bundle(STARTER_BUNDLE)
    sizes = {file.name: file.stat().st_size for file in STARTER_BUNDLE.iterdir()}
    assert sizes.pop(LOCATOR_FILE) <= 2_000_000
    assert sizes.pop(PROBES_FILE) <= 700_000
    assert sum(sizes.values()) <= 4_000_000
    assert manifest.name == "starter"
    assert manifest.pills == {}
    assert manifest.model.quantisation in ("int8", "float32")
    assert manifest.calibration.evidence.n_stranger_pills >= 100
    with open_identifier(STARTER_BUNDLE) as identifier:
        assert len(identifier.gallery) == 0


def test_it_keeps_its_promises_here() -> None:
    assert self_test(STARTER_BUNDLE, None, max_frame_ms=5000).failures == ()


def test_its_probes_are_the_rendered_ones_and_no_photo() -> None:
    probes = read_probes(STARTER_BUNDLE / PROBES_FILE)
    with open_identifier(STARTER_BUNDLE) as opened:
        parts = opened.embedder, opened.gallery.bundled, opened.calibration
        rendered = [*probe_crops(Path(), [], *parts), *probe_frames()]
    assert len(probes.crops) == 8
    assert len(probes.frames) == 2
    for picture in (*probes.crops, *probes.frames):
        nearest = min(difference(picture, other) for other in rendered)
        assert nearest <= 2  # grey levels: other processors round otherwise


def test_licence_and_card_lie_beside_it() -> None:
    licence = STARTER_BUNDLE.parent / "LICENSE.mobilenetv2"
    assert "Apache License" in licence.read_text(encoding="utf-8")
    assert "U.S. National Library of Medicine" in CARD
    assert "not a medical device" in CARD.lower()


def test_it_tells_invented_pills_apart_that_it_never_saw(
    photos: list[tuple[str, list[Photo]]],
) -> None:
    embedder = open_embedder(STARTER_BUNDLE / "model.tflite")
    pills = [pill for pill, _ in photos]
    references = embed_references(embedder, [first for _, (first, _) in photos])
    probes = embedder.embed([second for _, (_, second) in photos])
    recall = recall_at_k(*best_per_pill(probes @ references.T, pills), pills, k=1)
    assert recall >= 0.6  # by chance 0.04


def test_the_network_to_train_on_from_is_the_one_in_the_bundle(
    photos: list[tuple[str, list[Photo]]],
) -> None:
    crops = [first for _, (first, _) in photos]
    int8 = open_embedder(STARTER_BUNDLE / "model.tflite").embed(crops)
    half = open_torch_embedder(STARTER).embed(crops)
    assert float((int8 * half).sum(axis=1).mean()) >= 0.98


def test_training_can_start_from_it() -> None:
    net = EmbeddingNet(
        "mobilenetv2_100", 128, options={"pad_type": "same"}, pixels="minus_one_to_one"
    )
    before = net.head.weight.detach().clone()
    assert "student.safetensors" in load_starting_weights(net, "starter")
    assert not np.allclose(before.numpy(), net.head.weight.detach().numpy())


def difference(picture: Photo, other: Photo) -> float:
    """Mean difference in grey levels; infinite for another shape."""
    if picture.shape != other.shape:
        return float("inf")
    return float(np.abs(picture.astype(float) - other).mean())


@pytest.fixture(scope="module")
def locator() -> Locator:
    return open_locator(STARTER_BUNDLE, threads=2)


def test_its_locator_finds_pills_of_any_kind_on_tables_it_never_saw(locator: Locator) -> None:
    cutouts = rendered_cut_outs(30, seed=321)
    found = score_scenes(locator, (scene_of(cutouts, 320, (55, n)) for n in range(40)))
    assert found["ap50"] >= 0.9
    assert found["recall"] >= 0.85
    assert found["precision"] >= 0.85


def test_its_locator_finds_nothing_where_nothing_is(locator: Locator) -> None:
    frames = [scene_of([], 320, (56, n), 0).frame for n in range(40)]
    assert sum(bool(locator.locate(frame)) for frame in frames) <= 6
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for flat in (np.zeros_like(noise), np.full_like(noise, 255), noise):
        assert locator.locate(flat) == []


@pytest.mark.real
def test_its_locator_finds_the_pills_of_real_phone_photos(locator: Locator) -> None:
    archive = REAL_DATA / "phone_pills.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is absent; set PILLTRACK_REAL_DATA")
    scores = []
    with opened(archive) as yolo:
        for photo in first_copies(yolo):
            if photo.folder in ("val", "test"):
                frame = read_image(photo.path)
                found = boxes_of(locator.locate(frame))
                scores.append(score_frame(*found, photo.boxes_px(*frame.shape[:2])))
    assert len(scores) == 21
    assert summary(scores)["recall"] >= 0.9
    assert summary(scores)["precision"] >= 0.9


def test_the_locator_to_train_on_from_is_the_one_in_the_bundle(locator: Locator) -> None:
    nets = TwoLooks().eval()
    load_locator(nets, STARTER_LOCATOR)
    frame = scene_of(rendered_cut_outs(5, seed=4), locator.input_size_px, (57, 0), 5).frame
    pixels = to_model_input(frame, locator.input_size_px)
    with torch.no_grad():
        maps = nets.first(torch.from_numpy(pixels)[None].float())[0].numpy()
    assert np.corrcoef(maps.ravel(), locator.maps(frame).ravel())[0, 1] > 0.97
