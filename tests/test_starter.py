"""The starter model as it ships: whole, small, licensed, and what its card says."""

from __future__ import annotations

import numpy as np
import pytest

from pilltrack.core.bundle import read_bundle
from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.identify import STARTER_BUNDLE, open_identifier
from pilltrack.core.metrics import best_per_pill, recall_at_k
from pilltrack.pipeline.invented import invent_pills
from pilltrack.pipeline.models import STARTER, EmbeddingNet, load_starting_weights
from pilltrack.pipeline.render import draw_setting, photograph_pill, render_face
from pilltrack.pipeline.torch_embedder import open_torch_embedder

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
    assert sum(file.stat().st_size for file in STARTER_BUNDLE.iterdir()) <= 4_000_000
    assert manifest.name == "starter"
    assert manifest.pills == {}
    assert manifest.model.quantisation in ("int8", "float32")
    assert manifest.calibration.evidence.n_stranger_pills >= 100
    with open_identifier(STARTER_BUNDLE) as identifier:
        assert len(identifier.gallery) == 0


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
