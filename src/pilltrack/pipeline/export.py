"""One network -> two files: int8 LiteRT for the device, fp32 ONNX for everything else.

Preprocessing (pixels 0..255, NHWC) is inside both graphs. In a student's int8 file two kinds of
layers are spared: the head has int8 weights and float32 output, since 8 bits for each coordinate
of the embedding would only add error; depthwise convolutions stay in fp32.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilltrack.core.files import write_atomically
from pilltrack.pipeline.litert_edits import edit
from pilltrack.pipeline.models import EmbeddingNet

log = logging.getLogger(__name__)

# A function: ai-edge-quantizer is slow to import and prints a lot.
Recipe = Callable[[], list[dict[str, Any]]]


def export_int8(
    net: EmbeddingNet, input_size_px: int, calibration: NDArray[np.uint8], path: Path
) -> None:
    """Write a `.tflite` with int8 weights per channel and static int8 activation ranges.

    `calibration` (N, S, S, 3) uint8: photos whose extremes set the activation ranges.
    """
    part = Part(net, input_size_px, calibration)
    export_litert({"serving_default": part}, _student_recipe, path)


def export_onnx(net: EmbeddingNet, input_size_px: int, path: Path) -> None:
    """Write a float32 `.onnx` with a free batch size; it does not say where it was made."""
    import onnx

    sample = torch.zeros(2, input_size_px, input_size_px, 3)
    with tempfile.TemporaryDirectory() as directory, _quiet():
        file = Path(directory) / "model.onnx"
        torch.onnx.export(
            net.eval(),
            (sample,),
            file,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: "n"},),
            input_names=["image"],
            output_names=["embedding"],
            verbose=False,
        )
        model = onnx.load(file)
        for node in model.graph.node:
            del node.metadata_props[:]  # the stack below each layer, with its files' paths
        write_atomically(path, model.SerializeToString())


@dataclass(frozen=True)
class Part:
    """A network with input (1, S, S, 3), and the (N, S, S, 3) uint8 images that set its ranges.

    With `open_batch` the file takes several images at once.
    """

    net: torch.nn.Module
    input_size_px: int
    calibration: NDArray[np.uint8]
    open_batch: bool = False


def export_litert(parts: Mapping[str, Part], recipe: Recipe, path: Path) -> None:
    """Write networks as one quantised `.tflite`, each under its signature.

    The extremes of its calibration images, of a black and of a white one set a network's
    activation ranges. `recipe` returns what ai-edge-quantizer is to do, a later step overruling
    an earlier one.
    """
    with tempfile.TemporaryDirectory() as directory, _quiet():
        import litert_torch
        from ai_edge_quantizer import calibrator, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils

        floating = Path(directory) / "float.tflite"
        converter: Any = litert_torch
        for signature, part in parts.items():
            sample = torch.zeros(1, part.input_size_px, part.input_size_px, 3)
            converter = converter.signature(signature, part.net.eval(), (sample,))
        converter.convert().export(str(floating))
        steps = recipe()
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(steps)
        names = _input_names(floating)
        samples = {
            signature: [
                {names[signature]: image[None].astype(np.float32)}
                for image in _spanning(part.calibration)
            ]
            for signature, part in parts.items()
        }
        # By default ranges are moving averages of each image's extremes, and brighter images
        # saturate: mean cosine 0.989 instead of 0.999 (docs/lab-log.md).
        ranges = calibrator.Calibrator(str(floating), qsv_update_func=qsv_utils.min_max_update)
        ranges.calibrate(samples, manager)
        quantised = Path(directory) / "int8.tflite"
        quantiser = quantizer.Quantizer(str(floating), steps)
        quantiser.quantize(ranges.get_model_qsvs()).export_model(str(quantised))
        edit(quantised, [signature for signature, part in parts.items() if part.open_batch])
        write_atomically(path, quantised.read_bytes())


def whole_int8() -> list[dict[str, Any]]:
    """The recipe for int8 everywhere: weights per channel, activations, input and output."""
    from ai_edge_quantizer import recipe

    steps: list[dict[str, Any]] = recipe.static_wi8_ai8()
    return steps


def _spanning(calibration: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Calibration images plus one black and one white, so that input codes mean pixels exactly."""
    shape = calibration.shape[1:]
    black, white = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    return np.concatenate([calibration, np.stack([black, white])])


def _student_recipe() -> list[dict[str, Any]]:
    return [*whole_int8(), _float_head(), float_depthwise()]


def _float_head() -> dict[str, Any]:
    from ai_edge_quantizer import recipe

    (dynamic,) = recipe.dynamic_wi8_afp32()
    return {**dynamic, "operation": "FULLY_CONNECTED"}


def float_depthwise(scope: str = "") -> dict[str, Any]:
    """Depthwise layers in fp32: in a MobileNetV2 they hold most of the int8 error, and few of
    the operations (mean cosine 0.956 -> 0.988 for a tenth more time; docs/lab-log.md).

    `scope` is the class of the network whose layers are meant, any if empty."""
    return {
        "regex": f".*{scope}.*", "operation": "DEPTHWISE_CONV_2D", "algorithm_key": "no_quantize",
    }  # fmt: skip


def _input_names(model: Path) -> dict[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(str(model)).get_signature_list()
    return {name: tensors["inputs"][0] for name, tensors in signatures.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters and their C++ parts print a lot: keep it for the debug log, or for an error."""
    with tempfile.TemporaryFile() as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in saved:
            os.dup2(printed.fileno(), number)
        level = logging.WARNING  # unless all goes well
        try:
            yield
            level = logging.DEBUG
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            printed.seek(0)
            log.log(level, "%s", printed.read().decode(errors="replace"))
