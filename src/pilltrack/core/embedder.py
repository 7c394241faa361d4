"""RGB crops -> unit embeddings, with LiteRT (the default) or ONNX Runtime.

Both backends preprocess with `core.preprocess`, run the exported graph and L2-normalise its
output; the caller cannot tell them apart. An embedder names its embedding space: a digest of the
model file, the preprocessing version and the input size. Embeddings of different spaces must
never be compared, not even those of the int8 and the float export of one student.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.errors import BundleRejected, StageFailed
from pilltrack.core.litert import LiteRTModel, damaged, read_model
from pilltrack.core.preprocess import PREPROCESS_VERSION, to_model_input

MAX_INPUT_SIZE_PX = 2048
MAX_EMBEDDING_DIM = 8192
ONNX_BATCH = 32  # bounds memory, not results


class Embedder(Protocol):
    """What the rest of the project needs from a model."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        ...

    @property
    def input_size_px(self) -> int:
        """Side of the square model input."""
        ...

    @property
    def space(self) -> str:
        """Name of the embedding space (see `embedding_space`)."""
        ...

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed RGB crops of any size (H, W, 3) uint8 as (N, D) float32 of unit length.

        No crops give (0, D). A crop on which the model outputs exact zero stays a zero row,
        which is similar to nothing. Raises ValueError for a crop of another shape or dtype.
        """
        ...


def open_embedder(model: Path, threads: int = 1) -> LiteRTEmbedder | OnnxEmbedder:
    """Open an exported model; its suffix chooses the backend.

    Raises BundleRejected when the file is missing, damaged or not such a model, and StageFailed
    when its runtime is not installed.
    """
    if model.suffix == ".tflite":
        return LiteRTEmbedder(model, threads=threads)
    if model.suffix == ".onnx":
        return OnnxEmbedder(model, threads=threads)
    raise BundleRejected(
        str(model),
        found=f"suffix {model.suffix!r}",
        expected="a model ending in .tflite or .onnx",
        remedy="Export the student with `pilltrack convert`.",
    )


def embedding_space(model: Path) -> str:
    """Name the embedding space of a model: 64 hex digits.

    SHA-256 over PREPROCESS_VERSION, the model's input size and its bytes: equal exactly if every
    crop gets the same embedding. The model is opened for its input size; errors as in
    `open_embedder`.
    """
    return open_embedder(model).space


def space_of(model_bytes: bytes, input_size_px: int) -> str:
    """Name the embedding space of a model whose input size is already known, without opening it.

    >>> len(space_of(b"model", 96)), space_of(b"model", 96) == space_of(b"model", 97)
    (64, False)
    """
    head = f"pilltrack embedding space\0{PREPROCESS_VERSION}\0{input_size_px}\0"
    digest = hashlib.sha256(head.encode())
    digest.update(model_bytes)
    return digest.hexdigest()


class LiteRTEmbedder:
    """A `.tflite` model with input (1, S, S, 3), float32 in 0..255 or quantised to 8 bits.

    Its output (1, D) is float32 or quantised to 8 bits. `quantisation` is the dtype of the input:
    "float32", "int8" or "uint8". Safe to share between threads: they take turns.
    """

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        model_bytes = read_model(model)
        self._model = LiteRTModel(
            model, model_bytes, fits=_fits, refusal=_wrong_shape, threads=threads
        )
        self.input_size_px, self.dim = self._model.input_size_px, self._model.output_shape[1]
        self.quantisation = self._model.quantisation
        self.space = space_of(model_bytes, self.input_size_px)

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed RGB crops as (N, D) float32 of unit length; see `Embedder.embed`."""
        raw = np.empty((len(crops), self.dim), dtype=np.float32)
        for row, crop in zip(raw, crops, strict=True):
            row[:] = self._model.run(to_model_input(crop, self.input_size_px)[None])[0]
        return l2_normalise(raw)


class OnnxEmbedder:
    """An `.onnx` model with input (n, S, S, 3) float32 in 0..255 and output (n, D) float32.

    The first axis is free or 1. Needs onnxruntime, which the device install does not have.
    """

    quantisation = "float32"

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        try:
            import onnxruntime  # an extra: only .onnx models need it
        except ImportError as error:
            raise StageFailed(
                str(model),
                found="onnxruntime is not installed",
                expected="it, to run an .onnx model",
                remedy="`pip install pilltrack[train]` or `pip install onnxruntime`, "
                "or use the .tflite model.",
            ) from error
        model_bytes = read_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model_bytes, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no other base class
            raise damaged(model, str(error), "an ONNX model") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise _wrong_shape(model, f"{len(inputs)} inputs and {len(outputs)} outputs")
        types = {inputs[0].type, outputs[0].type}
        if types != {"tensor(float)"}:
            raise _wrong_shape(model, f"input or output of type {sorted(types)}")
        batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else ONNX_BATCH
        if batch not in (1, ONNX_BATCH):
            raise _wrong_shape(model, f"input {inputs[0].shape}")
        shape_in, shape_out = [1, *inputs[0].shape[1:]], [1, *outputs[0].shape[1:]]
        if not _fits(shape_in, shape_out):
            raise _wrong_shape(model, f"input {shape_in} and output {shape_out}")
        self.input_size_px, self.dim = int(shape_in[1]), int(shape_out[1])
        self.space = space_of(model_bytes, self.input_size_px)
        self._input_name: str = inputs[0].name
        self._batch = batch

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed RGB crops as (N, D) float32 of unit length; see `Embedder.embed`."""
        raw = np.empty((len(crops), self.dim), dtype=np.float32)
        for start in range(0, len(crops), self._batch):
            batch = crops[start : start + self._batch]
            model_input = np.stack([to_model_input(crop, self.input_size_px) for crop in batch])
            feed = {self._input_name: model_input.astype(np.float32)}
            raw[start : start + len(batch)] = self._session.run(None, feed)[0]
        return l2_normalise(raw)


def l2_normalise(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row of (N, D) float32 to unit length; zero rows stay zero.

    Raises BundleRejected for values that are not finite: the model is damaged, and a NaN would
    compare as neither near nor far.

    >>> l2_normalise(np.array([[3, 4], [0, 0]], dtype=np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    if not np.isfinite(raw).all():
        raise BundleRejected(
            "model output",
            found="values that are not finite",
            expected="finite numbers",
            remedy="Export the model again and look at its parity report.",
        )
    wide = raw.astype(np.float64)  # squares of tiny or huge float32 values leave float32
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    unit: NDArray[np.float32] = (wide / lengths).astype(np.float32)
    return unit


def _fits(shape_in: list[Any], shape_out: list[Any]) -> bool:
    """True for the shapes (1, S, S, 3) and (1, D)."""
    match shape_in, shape_out:
        case [1, int(height), int(width), 3], [1, int(dim)]:
            right_input = height == width and 1 <= height <= MAX_INPUT_SIZE_PX
            return right_input and 1 <= dim <= MAX_EMBEDDING_DIM
    return False


def _wrong_shape(model: Path, found: str) -> BundleRejected:
    return BundleRejected(
        str(model),
        found=found,
        expected="one input (1, S, S, 3) of float32 0..255 or 8-bit values, one output (1, D)",
        remedy="Export the student with `pilltrack convert`.",
    )
