"""Arrays -> a safetensors file; the same content, the same bytes.

Written by hand: the safetensors library orders the metadata at random, run by run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.files import write_atomically

MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_CODES = {np.dtype("<f2"): "F16", np.dtype("<f4"): "F32", np.dtype("u1"): "U8"}


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write float16, float32 or uint8 arrays one after another in the order given.

    The file appears under its name only when it is complete. Raises ValueError for names and
    metadata that take more than MAX_HEADER_BYTES.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, end = [], 0
    for name, tensor in tensors.items():
        little = tensor.dtype.newbyteorder("<")
        parts.append(tensor.astype(little).tobytes())
        begin, end = end, end + len(parts[-1])
        code = _CODES[little]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = as_json(header).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER_BYTES:
        raise ValueError(f"the names take {len(head)} bytes; the limit is 100 MB")
    write_atomically(path, struct.pack("<Q", len(head)) + head + b"".join(parts))


def as_json(value: object) -> str:
    """JSON without spaces, its keys sorted."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
