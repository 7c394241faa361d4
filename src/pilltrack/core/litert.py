"""An open LiteRT model: images in, an array of real numbers out for each.

What embedder and locator have in common: the file is read within a limit, pixels become codes of
the input tensor by a table of 256 entries, and codes of the output become numbers again. What the
two tensors must look like is the caller's to say, and so is the error when they do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from pilltrack.core.errors import BundleRejected

MAX_MODEL_BYTES = 1024 * 1024 * 1024
BATCH = 16  # images that a model takes at once, if it takes several: bounds memory, not results

# What a byte of a quantised tensor can hold.
QUANTISED_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


class LiteRTModel:
    """A `.tflite` with input (1, S, S, 3), float32 in 0..255 or quantised to 8 bits.

    Its one output is float32 or quantised to 8 bits. `quantisation` is the dtype of the input:
    "float32", "int8" or "uint8". Where the file leaves open how many images it takes, it is given
    up to BATCH at once. Safe to share between threads: they take turns.
    """

    def __init__(
        self,
        model: Path,
        model_bytes: bytes,
        *,
        fits: Callable[[list[int], list[int]], bool],
        refusal: Callable[[Path, str], BundleRejected],
        threads: int = 1,
        signature: str | None = None,
    ) -> None:
        """Open `model_bytes`, as `read_model` read them from the file `model`.

        `signature` names the network where the file holds several; None takes the first.
        `fits` tells whether the shapes of input and output are right; the input's must be
        (1, S, S, 3). `refusal` makes the error for a model of another kind from what was found.
        Bytes that are no LiteRT model raise BundleRejected.
        """
        try:
            self._interpreter = Interpreter(model_content=model_bytes, num_threads=threads)
            self._invoke: Callable[[NDArray[Any]], Any]
            self.signatures = tuple(self._interpreter.get_signature_list())
            inputs, outputs = self._open(signature)
        except (ValueError, RuntimeError) as error:
            raise damaged(model, str(error), "a LiteRT model") from error
        if len(inputs) != 1 or len(outputs) != 1:
            raise refusal(model, f"{len(inputs)} inputs and {len(outputs)} outputs")
        self.input_shape: list[int] = inputs[0]["shape"].tolist()
        self.output_shape: list[int] = outputs[0]["shape"].tolist()
        if not fits(self.input_shape, self.output_shape):
            raise refusal(model, f"input {self.input_shape} and output {self.output_shape}")
        open_shape: list[int] = inputs[0]["shape_signature"].tolist()
        if not _opens(open_shape, self.input_shape):
            raise refusal(model, f"input {self.input_shape}, left open as {open_shape}")
        try:
            self._input_table = byte_table(inputs[0])
            self._output_scale, self._output_zero_point = scale_and_zero_point(outputs[0])
        except ValueError as error:
            raise refusal(model, str(error)) from error
        self.input_size_px = self.input_shape[1]
        self._batch = BATCH if open_shape[0] == -1 else 1
        self._file, self._refusal = model, refusal
        self.quantisation = np.dtype(inputs[0]["dtype"]).name
        self._lock = threading.Lock()
        # A signature prepares at its first run only, and what a file leaves open may be a lie: let
        # neither be a user's.
        if signature is not None or self._batch > 1:
            self.run(np.zeros((min(2, self._batch), *self.input_shape[1:]), np.uint8))

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the model answers for images (N, S, S, 3), at least one: its outputs (N, ...).

        Raises the caller's refusal for images of another size, and when the file cannot take as
        many as its shape signature says.
        """
        pixels = np.ascontiguousarray(images)
        codes = cv2.LUT(pixels.reshape(len(pixels), -1), self._input_table).reshape(pixels.shape)
        starts = range(0, len(codes), self._batch)
        try:
            with self._lock:
                outputs = [self._invoke(codes[start : start + self._batch]) for start in starts]
        except (ValueError, RuntimeError) as error:
            raise self._refusal(self._file, f"no answer to {pixels.shape} ({error})") from error
        answers: NDArray[np.float32] = np.concatenate(outputs).astype(np.float32)
        if len(answers) != len(images):
            raise self._refusal(self._file, f"{len(answers)} answers to {len(images)} images")
        answers -= self._output_zero_point
        answers *= self._output_scale
        return answers

    def _open(self, signature: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Details of all inputs and outputs; from now on `_invoke` runs this network."""
        if signature is not None:
            runner: Any = self._interpreter.get_signature_runner(signature)
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
            (name, *_), (answer, *_) = inputs, outputs
            self._invoke = lambda codes: runner(**{name: codes})[answer]
            return list(inputs.values()), list(outputs.values())
        interpreter: Any = self._interpreter
        interpreter.allocate_tensors()
        first, last = interpreter.get_input_details(), interpreter.get_output_details()
        shape: tuple[int, ...] = tuple(first[0]["shape"])

        def invoke(codes: NDArray[Any]) -> Any:
            nonlocal shape
            if codes.shape != shape:
                shape = ()  # should this fail, the next call begins anew
                interpreter.resize_tensor_input(first[0]["index"], codes.shape, strict=True)
                interpreter.allocate_tensors()
                shape = codes.shape
            interpreter.set_tensor(first[0]["index"], codes)
            interpreter.invoke()
            return interpreter.get_tensor(last[0]["index"])

        self._invoke = invoke
        return first, last


def _opens(open_shape: list[int], shape: list[int]) -> bool:
    """True for a shape, of which at most the first length is -1 for open.

    >>> _opens([-1, 8, 8, 3], [1, 8, 8, 3]), _opens([-1], [1, 8, 8, 3])
    (True, False)
    """
    return open_shape[:1] in ([-1], shape[:1]) and open_shape[1:] == shape[1:]


def read_model(model: Path) -> bytes:
    """Read a model file of any format; raises BundleRejected when it is missing or too large."""
    try:
        size = model.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise damaged(model, f"{size} bytes", f"at most {MAX_MODEL_BYTES} bytes")
        return model.read_bytes()
    except OSError as error:
        raise damaged(model, f"cannot be read ({error.strerror})", "a model file") from error


def damaged(model: Path, found: str, expected: str) -> BundleRejected:
    """The error for a model file that cannot be used at all."""
    return BundleRejected(
        str(model),
        found=found,
        expected=expected,
        remedy="The file is damaged or incomplete: fetch or export it again.",
    )


def byte_table(tensor: dict[str, Any]) -> NDArray[Any]:
    """Pixel value 0..255 -> value of the input tensor with these details: (256,) of its dtype.

    Raises ValueError as `scale_and_zero_point` does.

    >>> parameters = {"scales": np.array([2.0]), "zero_points": np.array([-20])}
    >>> table = byte_table({"dtype": np.int8, "quantization_parameters": parameters})
    >>> table[[0, 1, 4, 255]].tolist()
    [-20, -19, -18, 108]
    """
    values = np.arange(256)
    dtype = np.dtype(tensor["dtype"])
    if dtype == np.float32:
        return values.astype(np.float32)
    scale, zero_point = scale_and_zero_point(tensor)
    lowest, highest = QUANTISED_RANGES[dtype.name]
    rounded = np.floor(values / scale + 0.5) + zero_point  # halves go up, as in TFLite's Quantize
    table: NDArray[Any] = np.clip(rounded, lowest, highest).astype(dtype)
    return table


def scale_and_zero_point(tensor: dict[str, Any]) -> tuple[np.float32, int]:
    """How a tensor with these details is quantised: real = (stored - zero point) * scale.

    A float32 tensor has scale 1 and zero point 0. Raises ValueError for any other that is not of
    8 bits with one finite positive scale for all of it.

    >>> scale_and_zero_point({"dtype": np.float32})
    (np.float32(1.0), 0)
    """
    dtype = np.dtype(tensor["dtype"])
    if dtype == np.float32:
        return np.float32(1), 0
    parameters = tensor["quantization_parameters"]
    scales, zero_points = parameters["scales"], parameters["zero_points"]
    one_scale = len(scales) == len(zero_points) == 1 and np.isfinite(scales[0]) and scales[0] > 0
    if dtype.name not in QUANTISED_RANGES or not one_scale:
        raise ValueError(f"tensor of {dtype.name} with {len(scales)} scales")
    return np.float32(scales[0]), int(zero_points[0])
