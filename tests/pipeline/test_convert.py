"""The parity gate notices a model that decides otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.gallery import Reference
from pilltrack.pipeline.convert import ParitySet, _gate, parity


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


def _photo(*colour: int) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), colour, np.uint8)


def _photos(n_strangers: int = 20) -> ParitySet:
    return ParitySet(
        references=[Reference("red", "", "1"), Reference("green", "", "2")],
        reference_photos=[_photo(200, 0, 0), _photo(0, 200, 0)],
        mated=[_photo(190, 10, 0), _photo(10, 190, 0), _photo(200, 5, 5), _photo(0, 180, 9)],
        strangers=[_photo(0, n, 200) for n in range(n_strangers)],
        stranger_pills=[f"blue {n}" for n in range(n_strangers)],
    )


def test_equal_models_change_no_decision() -> None:
    report = parity({n: Colours() for n in ("torch", "int8", "onnx")}, _photos(), 0.1, 0.0)
    assert report["int8_mean_cosine"] == 1.0
    assert report["int8_changed_mated"] == report["int8_changed_strangers"] == 0.0
    assert (report["n_mated"], report["n_strangers"]) == (4, 20)
    _gate(report, 1.0, 0.0)


def test_a_model_that_swaps_pills_on_some_photos_fails_the_gate() -> None:
    swapped = Colours([0, 0, 90, 90])  # turns red into green in photos 3, 4, 7, 8, ...
    models = {"torch": Colours(), "int8": swapped, "onnx": Colours()}
    report = parity(models, _photos(), 0.1, 0.0)
    assert report["int8_min_cosine"] < 0.2
    assert report["int8_changed_mated"] == 0.5
    assert report["onnx_changed_mated"] == 0.0
    with pytest.raises(GateFailed, match="convert: int8 model"):
        _gate(report, 0.0, 0.4)
    with pytest.raises(GateFailed, match="mean cosine"):
        _gate(report, 0.99, 1.0)


def test_too_few_strangers_for_a_threshold_stop_the_stage() -> None:
    models = {n: Colours() for n in ("torch", "int8", "onnx")}
    with pytest.raises(StageFailed, match="8 photos of strangers; expected at least 9"):
        parity(models, _photos(n_strangers=8), 0.1, 0.0)
    parity(models, _photos(n_strangers=9), 0.1, 0.0)
