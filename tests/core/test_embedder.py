import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from pilltrack.core import embedder as module
from pilltrack.core.embedder import (
    Embedder,
    LiteRTEmbedder,
    OnnxEmbedder,
    embedding_space,
    l2_normalise,
    open_embedder,
)
from pilltrack.core.errors import BundleRejected, StageFailed
from pilltrack.core.preprocess import PREPROCESS_VERSION, to_model_input

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT = GOLDEN / "tiny.tflite"
INT8 = GOLDEN / "tiny_int8.tflite"
ONNX = GOLDEN / "tiny.onnx"
MODELS = [FLOAT, INT8, ONNX]


@pytest.mark.parametrize("model", MODELS)
def test_embeddings_have_unit_length_and_one_row_per_crop(model: Path) -> None:
    embedder: Embedder = open_embedder(model)
    embeddings = embedder.embed(crops(40))  # more than one ONNX batch
    assert (embedder.input_size_px, embedder.dim) == (32, 8)
    assert embeddings.shape == (40, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_no_crops_give_no_rows(model: Path) -> None:
    embeddings = open_embedder(model).embed([])
    assert embeddings.shape == (0, 8)
    assert embeddings.dtype == np.float32


@pytest.mark.parametrize("model", MODELS)
def test_a_crop_embeds_alike_alone_and_among_others(model: Path) -> None:
    embedder = open_embedder(model)
    together = embedder.embed(crops(5))
    alone = np.concatenate([embedder.embed([crop]) for crop in crops(5)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_threads_may_share_an_embedder(model: Path) -> None:
    embedder = open_embedder(model)
    photos = crops(100)
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda crop: embedder.embed([crop])[0], photos))
    np.testing.assert_allclose(shared, embedder.embed(photos), atol=1e-6)


def test_the_backends_agree() -> None:
    floating, quantised, onnx = (open_embedder(model).embed(crops(10)) for model in MODELS)
    np.testing.assert_allclose(onnx, floating, atol=1e-5)
    assert ((floating * quantised).sum(axis=1) > 0.98).all()


def test_float_model_gets_pixels_in_0_to_255() -> None:
    crop = crops(1)[0]
    raw = invoke(FLOAT, to_model_input(crop, 32).astype(np.float32))
    expected = raw / np.linalg.norm(raw)
    np.testing.assert_allclose(LiteRTEmbedder(FLOAT).embed([crop])[0], expected, atol=1e-6)


def test_int8_model_gets_quantised_pixels_and_its_output_is_dequantised() -> None:
    crop = crops(1)[0]
    pixels = to_model_input(crop, 32).astype(np.int16) - 128  # the model's scale 1, zero point -128
    output = invoke(INT8, pixels.astype(np.int8)).astype(np.float64) + 28  # its zero point -28
    expected = output / np.linalg.norm(output)  # its scale cancels
    np.testing.assert_allclose(LiteRTEmbedder(INT8).embed([crop])[0], expected, atol=1e-6)


def test_zero_output_stays_zero_and_tiny_output_gets_unit_length() -> None:
    rows = np.array([[0, 0], [3e-30, 4e-30], [3e30, 4e30]], dtype=np.float32)
    expected = np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]], dtype=np.float32)
    np.testing.assert_allclose(l2_normalise(rows), expected, atol=1e-6)


def test_output_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BundleRejected, match="not finite"):
        l2_normalise(np.array([[1, np.nan]], dtype=np.float32))


def test_embedding_space_is_the_documented_digest() -> None:
    head = f"pilltrack embedding space\0{PREPROCESS_VERSION}\0{32}\0".encode()
    expected = hashlib.sha256(head + INT8.read_bytes()).hexdigest()
    assert embedding_space(INT8) == expected == open_embedder(INT8).space


def test_each_export_of_one_student_has_its_own_space() -> None:
    assert len({embedding_space(model) for model in MODELS}) == 3


def test_another_preprocessing_version_is_another_space(monkeypatch: pytest.MonkeyPatch) -> None:
    before = embedding_space(INT8)
    monkeypatch.setattr(module, "PREPROCESS_VERSION", PREPROCESS_VERSION + "x")
    assert embedding_space(INT8) != before


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("keep", [0, 100, 4000])
def test_truncated_model_is_refused_by_name(model: Path, keep: int, tmp_path: Path) -> None:
    broken = tmp_path / f"broken{model.suffix}"
    broken.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(BundleRejected, match="broken"):
        open_embedder(broken)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_missing_model_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(BundleRejected, match=r"absent.*cannot be read"):
        open_embedder(tmp_path / f"absent{suffix}")


def test_unknown_suffix_is_refused() -> None:
    with pytest.raises(BundleRejected, match=r"suffix '\.pt'"):
        open_embedder(Path("model.pt"))


def test_missing_onnxruntime_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes its import fail
    with pytest.raises(StageFailed, match=r"pip install pilltrack\[train\]"):
        OnnxEmbedder(ONNX)


def crops(n: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (20 + i, 45, 3), dtype=np.uint8) for i in range(n)]


def invoke(model: Path, image: NDArray[Any]) -> NDArray[Any]:
    """Run a LiteRT model without our code."""
    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    index = interpreter.get_output_details()[0]["index"]
    output: NDArray[Any] = interpreter.get_tensor(index)[0]
    return output
