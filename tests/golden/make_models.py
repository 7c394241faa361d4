"""Makes the models that the tests use.

tiny.tflite, tiny_int8.tflite and tiny.onnx are one small untrained network in three exports;
whole_frame_locator.tflite finds one pill in every frame, as large as the frame;
coloured_pill_locator.tflite takes all that is not grey for one pill, and nothing where all is;
looking_twice_locator.tflite finds what the first does, and then believes in bright finds alone;
bad_look_locator.tflite has a second look with two answers;
spots_locator.tflite finds squares of 12 px, the surer the brighter, and doubts all that it looks at
again, several finds at once; closed_spots_locator.tflite is the same, for one find at a time.

    python tests/golden/make_models.py [locators]

It needs the extra [train]; the tests need only its results, which are committed. Running it again
may give other bytes (the exporters are not deterministic), and then other golden embeddings.
"""

from __future__ import annotations

import sys
from pathlib import Path

import litert_torch
import numpy as np
import onnx
import torch
from ai_edge_quantizer import quantizer, recipe

from pilltrack.pipeline.litert_edits import edit

HERE = Path(__file__).parent
INPUT_SIZE_PX = 32
EMBEDDING_DIM = 8
COLOURED_PX = 128  # input of the locator of coloured pills


class TinyStudent(torch.nn.Module):
    """(n, 32, 32, 3) float32 in 0..255 -> (n, 8) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, kernel_size=3, stride=4, padding=1)
        self.second = torch.nn.Conv2d(8, 8, kernel_size=3, stride=2, padding=1)
        self.head = torch.nn.Linear(8 * 4 * 4, EMBEDDING_DIM)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = (images.permute(0, 3, 1, 2) - 127.5) / 127.5
        values = torch.relu(self.second(torch.relu(self.first(values))))
        embeddings: torch.Tensor = self.head(values.flatten(1))
        return embeddings


class WholeFrame(torch.nn.Module):
    """(1, 32, 32, 3) -> (1, 8, 8, 6): a peak in the middle, each cell sees the frame's sides."""

    maps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        cells = INPUT_SIZE_PX // 4
        at = (torch.arange(cells) + 0.5) / cells
        maps = torch.ones(1, cells, cells, 6)
        maps[..., 0] = 0
        maps[0, cells // 2, cells // 2, 0] = 0.9
        for channel, distance in enumerate((at, at[:, None], 1 - at, 1 - at[:, None]), 2):
            maps[0, ..., channel] = distance.sqrt().expand(cells, cells)
        self.register_buffer("maps", maps)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps + 1e-12 * images.mean()  # else there would be no input


class ColouredPill(torch.nn.Module):
    """(1, 128, 128, 3) -> (1, 32, 32, 6): every cell sees the box of all coloured cells."""

    at: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cells = COLOURED_PX // 4
        self.register_buffer("at", torch.arange(self.cells) + 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spread = images.amax(dim=3) - images.amin(dim=3)  # (1, S, S), 0 where all is grey
        spread = torch.nn.functional.avg_pool2d(spread[:, None], 4)[:, 0]  # (1, C, C)
        pill = ((spread - 40) * 100).clamp(0, 1)
        ends = []
        for lines in (pill.amax(dim=1), pill.amax(dim=2)):  # columns, rows
            first = self.cells - (lines * (self.cells - self.at + 0.5)).amax()
            ends += [first, (lines * (self.at + 0.5)).amax()]
        left, right, top, bottom = ends
        x, y = (line.expand(self.cells, self.cells) for line in (self.at, self.at[:, None]))
        away = ((x - (left + right) / 2) ** 2 + (y - (top + bottom) / 2) ** 2).sqrt()
        middle = (0.9 - 0.02 * away).clamp(0, 1) * pill.amax()
        distances = [
            (distance / self.cells).clamp(0, 1).sqrt()
            for distance in (x - left, y - top, right - x, bottom - y)
        ]
        return torch.stack([middle, pill[0], *distances], dim=2)[None]


class BrightOnly(torch.nn.Module):
    """(1, 32, 32, 3) -> (1, answers): positive where the mean of all pixels is above 128."""

    def __init__(self, answers: int = 1) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean().reshape(1, 1) / 8 - 16).expand(1, self.answers)


class Spots(torch.nn.Module):
    """(1, 128, 128, 3) -> (1, 32, 32, 6): each cell sees a box of 3 x 3 cells around it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pool = torch.nn.functional.avg_pool2d
        bright = pool(images.permute(0, 3, 1, 2).mean(1, keepdim=True) / 255, 4)
        middle = 0.9 * pool(bright, 3, 1, 1)
        side = torch.full_like(bright, (1.5 * 4 / COLOURED_PX) ** 0.5)
        return torch.cat([middle, bright, *[side] * 4], dim=1).permute(0, 2, 3, 1)


class Doubting(torch.nn.Module):
    """(N, 32, 32, 3) -> (N, 1): never sure, the less the darker."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = images.mean((1, 2)).mean(1, keepdim=True)
        return means / 32 - 16


def main() -> None:
    """Write all models, or only the locators."""
    example = torch.zeros(1, INPUT_SIZE_PX, INPUT_SIZE_PX, 3)
    for name, locator in (("whole_frame", WholeFrame()), ("coloured_pill", ColouredPill())):
        side = COLOURED_PX if isinstance(locator, ColouredPill) else INPUT_SIZE_PX
        file = HERE / f"{name}_locator.tflite"
        litert_torch.convert(locator.eval(), (torch.zeros(1, side, side, 3),)).export(str(file))
        file.chmod(0o644)
    for name, answers in (("looking_twice", 1), ("bad_look", 2)):
        two = litert_torch.signature("locate", WholeFrame().eval(), (example,))
        two = two.signature("look", BrightOnly(answers).eval(), (example,))
        file = HERE / f"{name}_locator.tflite"
        two.convert().export(str(file))
        file.chmod(0o644)
    two = litert_torch.signature("locate", Spots().eval(), (torch.zeros(1, 128, 128, 3),))
    two = two.signature("look", Doubting().eval(), (example,))
    for name, several in (("closed_spots", []), ("spots", ["look"])):
        file = HERE / f"{name}_locator.tflite"
        two.convert().export(str(file))
        edit(file, open_batches=several)
        file.chmod(0o644)
    if sys.argv[1:] == ["locators"]:
        return

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    shape = (1, INPUT_SIZE_PX, INPUT_SIZE_PX, 3)
    model = TinyStudent().eval()

    floating = HERE / "tiny.tflite"
    litert_torch.convert(model, (example,)).export(str(floating))

    quantiser = quantizer.Quantizer(str(floating))
    quantiser.load_quantization_recipe(recipe.static_wi8_ai8())
    images = [random.integers(0, 256, shape).astype(np.float32) for _ in range(16)]
    ranges = quantiser.calibrate({"serving_default": [{"args_0": image} for image in images]})
    quantised = HERE / "tiny_int8.tflite"
    quantised.unlink(missing_ok=True)
    quantiser.quantize(ranges).export_model(str(quantised))
    quantised.chmod(0o644)

    onnx_file = HERE / "tiny.onnx"
    torch.onnx.export(
        model,
        (example,),
        str(onnx_file),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: "n"},),
        verbose=False,
    )
    exported = onnx.load(onnx_file)
    for node in exported.graph.node:
        del node.metadata_props[:]  # paths of the machine that made it
    onnx.save(exported, onnx_file)


if __name__ == "__main__":
    main()
