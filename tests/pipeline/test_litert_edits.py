"""What is edited in an exported file changes no answer."""

import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch.nn import functional

from pilltrack.core.errors import BundleRejected
from pilltrack.core.litert import BATCH, LiteRTModel, read_model
from pilltrack.core.locate import Locator
from pilltrack.pipeline import export
from pilltrack.pipeline.export import Part, export_litert, whole_int8
from pilltrack.pipeline.litert_edits import edit

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE_PX = 16


class Enlarging(torch.nn.Module):
    """(N, 16, 16, 3) -> (N, 4): maps are doubled, then made three times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 5, 3, 2, 1)
        self.second = torch.nn.Conv2d(5, 4, 3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.first(images.permute(0, 3, 1, 2) / 255)
        values = self.second(functional.interpolate(values, scale_factor=2.0, mode="nearest"))
        larger = functional.interpolate(values, scale_factor=3.0, mode="nearest")
        means: torch.Tensor = larger.relu().mean((2, 3))
        return means


@pytest.fixture(scope="module")
def before_and_after(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    before, after = (tmp_path_factory.mktemp("edits") / name for name in ("b.tflite", "a.tflite"))

    def keeping(model: Path, open_batches: Collection[str]) -> None:
        shutil.copy(model, before)
        edit(model, open_batches)

    torch.manual_seed(0)
    part = Part(Enlarging(), SIZE_PX, pictures(4), open_batch=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export, "edit", keeping)
        export_litert({"serving_default": part, "again": part}, whole_int8, after)
    return before, after


def test_only_what_doubles_is_laid_out_anew(before_and_after: tuple[Path, Path]) -> None:
    before, after = (kinds(file) for file in before_and_after)
    assert before["RESIZE_NEAREST_NEIGHBOR"] == 2
    assert (after["RESIZE_NEAREST_NEIGHBOR"], after["DEPTH_TO_SPACE"]) == (1, 1)
    assert before["CONV_2D"] == after["CONV_2D"] == 2


@pytest.mark.parametrize("signature", [None, "again"])
def test_answers_are_the_same_to_the_bit_one_by_one_and_together(
    before_and_after: tuple[Path, Path], signature: str | None
) -> None:
    before, after = (opened(file, signature) for file in before_and_after)
    images = pictures(2 * BATCH + 3)
    answers = before.run(images)
    assert answers.std() > 0
    assert (after.run(images) == answers).all()
    assert (after.run(images[:1]) == answers[:1]).all()
    assert (after.run(images[:5]) == answers[:5]).all()


def test_what_cannot_take_several_images_though_it_says_so_is_refused_at_once(
    tmp_path: Path,
) -> None:
    model = tmp_path / "locator.tflite"
    shutil.copy(GOLDEN / "looking_twice_locator.tflite", model)
    Locator(model, min_confidence=0.5)
    edit(model, ["look"])
    with pytest.raises(BundleRejected, match=r"locator\.tflite.*(no answer to|answers to)"):
        Locator(model, min_confidence=0.5)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def kinds(model: Path) -> Counter[str]:
    """How often each kind of layer is in the first network of a file."""
    interpreter = Interpreter(str(model))
    return Counter(operator["op_name"] for operator in interpreter._get_ops_details())


def opened(model: Path, signature: str | None) -> LiteRTModel:
    def refusal(file: Path, found: str) -> BundleRejected:
        return BundleRejected(str(file), found=found, expected="any", remedy="none")

    return LiteRTModel(
        model, read_model(model), fits=lambda *_: True, refusal=refusal, signature=signature
    )
