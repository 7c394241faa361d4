"""A bundle as a model that a model registry can load: encoded images in, named pills out.

A registry names this module as the loader of a model whose data is a bundle. Nothing is unpickled:
the bundle is verified and opened as on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pilltrack.core.errors import InputRejected
from pilltrack.core.identify import Identifier, open_identifier, to_json
from pilltrack.core.image import decode_image

COLUMN = "image"


class BundleModel:
    """An open bundle that answers `predict`."""

    def __init__(self, identifier: Identifier) -> None:
        self.identifier = identifier

    def predict(
        self, model_input: Any, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Find and name the pills in images: one answer, as of `pilltrack identify --json`, each.

        `model_input`: the bytes of a JPEG or PNG, a sequence of them, or a table with the column
        `image`. Never a path: whoever may ask a served model must not read its disk. `params` may
        hold `crop`: each image is nothing but one pill.

        Raises InputRejected for other input, ImageRejected as `decode_image`.
        """
        crop = bool((params or {}).get("crop", False))
        answers = []
        for number, data in enumerate(_images(model_input)):
            name = f"image {number}"
            photo = decode_image(data, name=name)
            pills = (self.identifier.identify_crop if crop else self.identifier.identify)(photo)
            answers.append(to_json(name, pills))
        return answers


def _load_pyfunc(bundle: str) -> BundleModel:
    """Verify and open a bundle; the name is the one that MLflow calls."""
    return BundleModel(open_identifier(Path(bundle)))


def _images(model_input: Any) -> list[bytes]:
    if isinstance(model_input, bytes):
        return [model_input]
    if hasattr(model_input, "columns"):  # a pandas table, without importing pandas
        if list(model_input.columns) != [COLUMN]:
            raise _rejected(f"columns {list(model_input.columns)}")
        model_input = list(model_input[COLUMN])
    if isinstance(model_input, str) or not isinstance(model_input, Iterable):
        raise _rejected(type(model_input).__name__)
    images = list(model_input)
    for image in images:
        if not isinstance(image, bytes):
            raise _rejected(f"a {type(image).__name__} among the images")
    return images


def _rejected(found: str) -> InputRejected:
    return InputRejected(
        "model input",
        found=found,
        expected=f"bytes of JPEG or PNG files, or a table with the one column {COLUMN!r}",
        remedy="Read the files and hand over their bytes.",
    )
