"""The parity gate notices a model that embeds otherwise; a file does not say where it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.pipeline.convert import _gate, main, parity
from pilltrack.pipeline.export import export_onnx
from pilltrack.pipeline.models import EmbeddingNet
from pilltrack.pipeline.params import load_params
from tests.imports import ROOT


class Colours:
    """Embeds a photo by its mean colour, turned by `degrees` in the red-green plane."""

    dim, input_size_px = 3, 8

    def __init__(self, degrees: Sequence[float] = (0.0,)) -> None:
        self.space = f"colours {degrees}"
        self._degrees = degrees

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        means = np.array([crop.mean(axis=(0, 1)) for crop in crops]).reshape(-1, 3) + 1.0
        angles = np.radians(np.resize(self._degrees, len(means)))
        turned = means.copy()
        turned[:, 0] = np.cos(angles) * means[:, 0] - np.sin(angles) * means[:, 1]
        turned[:, 1] = np.sin(angles) * means[:, 0] + np.cos(angles) * means[:, 1]
        unit: NDArray[np.float32] = (turned / np.linalg.norm(turned, axis=1)[:, None]).astype(
            np.float32
        )
        return unit


# Hardly any blue, which the turn leaves alone.
PHOTOS = [np.full((8, 8, 3), (shade, 255 - shade, 0), np.uint8) for shade in (10, 90, 160, 250)]


def test_equal_models_embed_alike() -> None:
    report = parity({n: Colours() for n in ("torch", "int8", "onnx")}, PHOTOS)
    assert report["int8_mean_cosine"] == report["int8_min_cosine"] == 1.0
    assert report["n_photos"] == 4
    _gate(report, 1.0)


def test_a_model_that_turns_one_photo_of_four_fails_the_gate() -> None:
    models = {"torch": Colours(), "int8": Colours([0, 0, 60, 0]), "onnx": Colours()}
    report = parity(models, PHOTOS)
    assert report["int8_mean_cosine"] == pytest.approx((3 + 0.5) / 4, abs=1e-4)
    assert report["int8_min_cosine"] == pytest.approx(0.5, abs=1e-4)
    assert report["onnx_mean_cosine"] == 1.0
    _gate(report, 0.87)
    with pytest.raises(GateFailed, match=r"convert: int8 model: mean cosine 0\.8750"):
        _gate(report, 0.88)


def test_a_cosine_that_is_no_number_fails_the_gate() -> None:
    with pytest.raises(GateFailed, match="nan"):
        _gate({"int8_mean_cosine": float("nan"), "onnx_mean_cosine": 1.0}, 0.0)


def test_an_exported_file_holds_no_paths(tmp_path: Path) -> None:
    net = EmbeddingNet("mobilenetv4_conv_small", 16, options={}, pixels="minus_one_to_one")
    export_onnx(net, 32, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"embedding" in content
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content


def test_an_older_model_is_gone_when_the_stage_fails(tmp_path: Path) -> None:
    older = tmp_path / "convert" / "model.tflite"
    older.parent.mkdir()
    older.write_bytes(b"older")
    with pytest.raises(StageFailed, match="student"):
        main(load_params(ROOT / "params.yaml"), tmp_path)
    assert not older.exists()
