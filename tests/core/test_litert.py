"""An open LiteRT model: its input table, its output's numbers, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilltrack.core import litert as module
from pilltrack.core.errors import BundleRejected
from pilltrack.core.litert import BATCH, LiteRTModel, byte_table, read_model, scale_and_zero_point

GOLDEN = Path(__file__).parents[1] / "golden"
FLOAT = GOLDEN / "tiny.tflite"
INT8 = GOLDEN / "tiny_int8.tflite"


def test_quantisation_of_pixels_rounds_and_saturates() -> None:
    table = byte_table(quantised(np.int8, scale=2.0, zero_point=-20))
    # 1 / 2 = 0.5 -> 1; 4 / 2 = 2; 5 / 2 = 2.5 -> 3; 255 / 2 -> 128, less 20 = 108
    assert table[[0, 1, 4, 5, 255]].tolist() == [-20, -19, -18, -17, 108]
    saturated = byte_table(quantised(np.uint8, scale=0.5, zero_point=3))
    assert saturated[[0, 1, 126, 127, 255]].tolist() == [3, 5, 255, 255, 255]


def test_pixels_of_a_float_model_stay_what_they_are() -> None:
    table = byte_table({"dtype": np.float32})
    assert table.dtype == np.float32
    assert table.tolist() == list(range(256))


@pytest.mark.parametrize(
    ("dtype", "scales", "found"),
    [
        (np.int8, [1.0, 1.0, 1.0], "int8 with 3 scales"),
        (np.int8, [], "int8 with 0 scales"),
        (np.uint8, [0.0], "uint8 with 1 scales"),
        (np.int16, [1.0], "int16 with 1 scales"),
    ],
)
def test_tensor_without_one_scale_of_its_own_is_refused(
    dtype: type, scales: list[float], found: str
) -> None:
    parameters = {"scales": np.array(scales), "zero_points": np.zeros(len(scales))}
    with pytest.raises(ValueError, match=found):
        byte_table({"dtype": dtype, "quantization_parameters": parameters})


def test_output_codes_become_numbers_near_those_of_the_float_model() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    floating, eight_bit = (opened(model).run(pixels[None])[0] for model in (FLOAT, INT8))
    assert floating.shape == eight_bit.shape == (8,)
    assert eight_bit.dtype == np.float32
    assert np.corrcoef(floating, eight_bit)[0, 1] > 0.98
    assert np.linalg.norm(eight_bit) == pytest.approx(np.linalg.norm(floating), rel=0.2)


def test_several_images_go_through_at_once_where_the_file_leaves_that_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.random.default_rng(2).integers(0, 256, (2 * BATCH + 3, 32, 32, 3), dtype=np.uint8)
    for name, sizes in (("spots", [BATCH, BATCH, 3]), ("closed_spots", [1] * len(images))):
        model = opened(GOLDEN / f"{name}_locator.tflite", "look")
        seen: list[int] = []
        invoke = model._invoke

        def counting(codes: np.ndarray, invoke: Any = invoke, seen: list[int] = seen) -> Any:
            seen.append(len(codes))
            return invoke(codes)

        monkeypatch.setattr(model, "_invoke", counting)
        answers = model.run(images)
        assert seen == sizes
        assert answers.shape == (len(images), 1)
        np.testing.assert_allclose(answers[:, 0], images.mean((1, 2, 3)) / 32 - 16, atol=1e-4)


def test_a_size_that_the_file_does_not_leave_open_is_refused_and_the_next_image_answered() -> None:
    for file in (INT8, GOLDEN / "coloured_pill_locator.tflite"):
        model = opened(file)
        side = model.input_size_px
        with pytest.raises(BundleRejected, match=r"no answer to \(1, .*cats"):
            model.run(np.zeros((1, 2 * side, 2 * side, 3), np.uint8))
        assert len(model.run(np.zeros((2, side, side, 3), np.uint8))) == 2


def test_an_answer_is_the_callers_own() -> None:
    model = opened(FLOAT)
    first = model.run(np.zeros((1, 32, 32, 3), np.uint8))
    kept = first.copy()
    model.run(np.full((1, 32, 32, 3), 255, np.uint8))
    assert (first == kept).all()


@pytest.mark.parametrize(("model", "quantisation"), [(FLOAT, "float32"), (INT8, "int8")])
def test_the_caller_sees_shapes_and_type(model: Path, quantisation: str) -> None:
    some = opened(model)
    assert (some.input_shape, some.output_shape) == ([1, 32, 32, 3], [1, 8])
    assert (some.input_size_px, some.quantisation) == (32, quantisation)


def test_shapes_that_do_not_fit_raise_the_callers_error() -> None:
    with pytest.raises(BundleRejected, match=r"input \[1, 32, 32, 3\] and output \[1, 8\]; .*cats"):
        LiteRTModel(INT8, read_model(INT8), fits=lambda *_: False, refusal=no_cat)


def test_an_odd_tensor_raises_the_callers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUANTISED_RANGES", {})
    with pytest.raises(BundleRejected, match=r"tensor of int8 with 1 scales; .*cats"):
        opened(INT8)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(BundleRejected, match=r"x\.tflite.*a LiteRT model.*damaged"):
        LiteRTModel(Path("x.tflite"), b"no model", fits=lambda *_: True, refusal=no_cat)


def test_a_file_above_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 10)
    with pytest.raises(BundleRejected, match="at most 10 bytes"):
        read_model(INT8)


def test_scale_and_zero_point_are_those_of_the_tensor() -> None:
    scale, zero_point = scale_and_zero_point(quantised(np.int8, scale=0.5, zero_point=-7))
    assert (float(scale), zero_point) == (0.5, -7)


def opened(model: Path, signature: str | None = None) -> LiteRTModel:
    return LiteRTModel(
        model, read_model(model), fits=lambda *_: True, refusal=no_cat, signature=signature
    )


def no_cat(model: Path, found: str) -> BundleRejected:
    return BundleRejected(str(model), found=found, expected="a model of cats", remedy="Look.")


def quantised(dtype: type, *, scale: float, zero_point: int) -> dict[str, object]:
    parameters = {"scales": np.array([scale]), "zero_points": np.array([zero_point])}
    return {"dtype": dtype, "quantization_parameters": parameters}
