"""The locator's second look: a small network taught on what the first one finds.

Scenes are composed as for the first, half of them crowded with clutter and without any pill, so
that there is something to mistake. What the exported first look finds there, right or wrong, is
cut out and kept; the second network learns to tell the one from the other. It begins with the
first layers of a MobileNetV2, and is taught by how much to correct the first look's odds, not to
judge anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from pilltrack.core.errors import StageFailed
from pilltrack.core.locate import Locator, iou
from pilltrack.core.second_look import (
    FIRST_WEIGHT,
    LEAST_LOOKED_AT,
    LOOK_SHARE,
    closer,
    log_odds,
)
from pilltrack.core.tensors import write_tensors
from pilltrack.pipeline.data import begin_worker
from pilltrack.pipeline.developed import smoothed
from pilltrack.pipeline.locator_data import scene_of
from pilltrack.pipeline.models import STARTER, load_network, place
from pilltrack.pipeline.params import LocateParams
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.steps import Steps
from pilltrack.pipeline.torchvision_import import ensure_torchvision

log = logging.getLogger(__name__)

LOOK_PX = 64  # the network's input
CROWDED = 4  # times as many things as in other scenes, in every second scene
STREAM = 99  # of the scenes' seeds: none that the locator is taught or measured on
FRAME_PX = (400, 480, 640, 800)  # a frame's longer side
SHARD = 500  # scenes whose finds are in one file
_LAYERS, _FROZEN = 5, 4  # blocks of the MobileNetV2: all, and those that keep their weights
_WIDTH, _JOINED = 96, 192
_KEPT_PX, _KEPT_SHARE = 96, 0.4  # a crop as kept: room to turn it and to move the window
_RIGHT, _WRONG = 0.5, 0.35  # IoU with a pill from which, and up to which, a find is called so
_BATCH = 48


class SecondLookNet(nn.Module):
    """(N, 64, 64, 3) float32 pixels in 0..255 -> (N, 1) log-odds to add to the first look's.

    `start` is whose layers it begins with: "starter", those of the shipped student, of which the
    first stay as they are; "none", random ones.
    """

    def __init__(self, start: str = "none") -> None:
        super().__init__()
        self.frozen = 2 + _FROZEN if start == "starter" else 0
        if start == "starter":
            backbone = load_network(STARTER)[0].backbone
        else:
            ensure_torchvision()
            import timm

            backbone = timm.create_model("mobilenetv2_100", num_classes=0, pad_type="same")
        blocks = list(backbone.blocks[:_LAYERS])
        self.body = nn.Sequential(backbone.conv_stem, backbone.bn1, *blocks)
        self.joint = nn.Sequential(
            nn.Conv2d(_WIDTH, _JOINED, 1, bias=False), nn.BatchNorm2d(_JOINED), nn.ReLU6()
        )
        cells = LOOK_PX // 16  # a side of the last maps
        middle = torch.zeros(1, 1, cells, cells)
        quarter = cells // 4
        middle[:, :, quarter:-quarter, quarter:-quarter] = 4  # half of each side: a quarter of all
        self.register_buffer("middle", middle, persistent=False)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * _JOINED, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for parameter in self.body[: self.frozen].parameters():
            parameter.requires_grad = False

    def train(self, mode: bool = True) -> SecondLookNet:
        """Batch norms of layers that were trained elsewhere keep their statistics."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The find and what lies around it weigh apart: means of the middle and of all."""
        values = self.joint(self.body((images.permute(0, 3, 1, 2) - 127.5) / 127.5))
        # Cutting the middle out would fix how many finds the exported network takes at once.
        middle = values * self.middle
        both = torch.cat([values.mean((2, 3)), middle.mean((2, 3))], dim=1)
        logits: torch.Tensor = self.head(self.drop(both))
        return logits


@dataclass(frozen=True)
class Finds:
    """What a first look found in scenes: N finds."""

    crops: NDArray[np.uint8]  # (N, 96, 96, 3)
    right: NDArray[np.bool_]  # (N,)
    first: NDArray[np.float32]  # (N,) log-odds of the first look


def gather(
    model: Path, cutouts: Sequence[Photo], settings: LocateParams, kept: Path, identity: str
) -> Finds:
    """Run the first look of an exported locator over `look_scenes` scenes.

    What was found is kept in the directory `kept`, SHARD scenes in a file; files of the same
    `identity` are read instead. A find that takes a pill which a surer find has is a wrong one.
    """
    shards = []
    bar = tqdm(total=settings.look_scenes, desc="finds", unit="scene", disable=None)
    for start in range(0, settings.look_scenes, SHARD):
        numbers = range(start, min(start + SHARD, settings.look_scenes))
        file = kept / f"{start:07d}.safetensors"
        shard = _read(file, identity)
        if shard is None:
            shard = _found(model, cutouts, settings, numbers, bar)
            kept.mkdir(parents=True, exist_ok=True)
            tensors = {"crops": shard.crops, "right": shard.right.astype(np.uint8)}
            write_tensors(file, tensors | {"first": shard.first}, {"identity": identity})
        else:
            bar.update(len(numbers))
        shards.append(shard)
    bar.close()
    return _joined([(shard.crops, shard.right, shard.first) for shard in shards])


def train_second_look(
    net: SecondLookNet, finds: Finds, settings: LocateParams, checkpoint: Path, identity: str
) -> list[dict[str, float]]:
    """Train `net` in place and return the history, a row for every ROW_STEPS.

    Half of a batch are pills, the unsure ones more often, half are none, the sure ones more
    often. Goes on from `checkpoint` when that belongs to the same `identity`. Raises StageFailed
    when all finds are right, or all wrong, or the loss is not finite.
    """
    if not 0 < finds.right.sum() < len(finds.right):
        raise StageFailed(
            "locate",
            found=f"{finds.right.sum()} pills among {len(finds.right)} finds",
            expected="pills and other things to tell apart",
            remedy="Raise `locate.look_scenes`, or set `look_scenes` and `look_steps` to 0.",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place(net, device)
    new = [*net.joint.parameters(), *net.head.parameters()]
    old = [parameter for parameter in net.body.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": new}, {"params": old}],
        lr=settings.look_learning_rate,
        weight_decay=settings.weight_decay,
    )
    steps = Steps(
        "locate, second look", net, optimiser, settings.look_steps, settings, checkpoint, identity,
        setting="look_learning_rate", shares=(1.0, 0.3 if net.frozen else 1.0),
    )  # fmt: skip
    net.train()
    batches = torch.utils.data.DataLoader(
        _Batches(finds, settings, steps.done),
        batch_size=None,
        num_workers=settings.workers,
        worker_init_fn=begin_worker,
    )
    bar = tqdm(
        batches, initial=steps.done, total=settings.look_steps, desc="second look", disable=None
    )
    for images, right, first in bar:
        steps.begin()
        torch.manual_seed(settings.seed + steps.done)  # of the dropout
        logits = net(images.to(device).float())[:, 0] + FIRST_WEIGHT * first.to(device)
        wanted = 0.02 + 0.96 * right.to(device).float()
        loss = steps.end(functional.binary_cross_entropy_with_logits(logits, wanted))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    net.cpu().eval()
    return steps.history


def _found(
    model: Path, cutouts: Sequence[Photo], settings: LocateParams, numbers: range, bar: tqdm[Any]
) -> Finds:
    scenes = torch.utils.data.DataLoader(
        _Finds(model, cutouts, settings),
        batch_size=None,
        sampler=numbers,
        num_workers=settings.workers,
        worker_init_fn=begin_worker,
    )
    parts = []
    for part in scenes:  # copied: a worker's arrays hold a file each
        parts.append(tuple(np.array(values.numpy()) for values in part))
        bar.update()
    return _joined(parts)


def _joined(parts: Sequence[tuple[NDArray[Any], ...]]) -> Finds:
    crops, right, first = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return Finds(crops, right, first)


class _Finds(
    torch.utils.data.Dataset[tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32]]]
):
    """Scene by scene, what the first look finds there."""

    def __init__(self, model: Path, cutouts: Sequence[Photo], settings: LocateParams) -> None:
        self.model, self.cutouts, self.settings = model, cutouts, settings
        self.locator: Locator | None = None  # each worker opens its own

    def __len__(self) -> int:
        return self.settings.look_scenes

    def __getitem__(
        self, number: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32]]:
        if number >= len(self):
            raise IndexError(number)
        self.locator = self.locator or Locator(self.model, min_confidence=0.5)
        seed = (self.settings.seed, STREAM, number)
        size_px = FRAME_PX[number // 2 % len(FRAME_PX)]
        crowded = number % 2 == 0
        scene = scene_of(
            self.cutouts, size_px, seed, 0 if crowded else None, CROWDED if crowded else 1
        )
        crops, right, first = [], [], []
        left = [tuple(box) for box in scene.boxes.tolist()]
        for find in self.locator.first_look(scene.frame, LEAST_LOOKED_AT):
            overlaps = [iou(find.box, box) for box in left]
            best = max(overlaps, default=0.0)
            if best >= _RIGHT:
                del left[overlaps.index(best)]
            elif best > _WRONG:
                continue
            side_px = find.length_px / _KEPT_SHARE
            crops.append(closer(scene.frame, find.box, side_px, _KEPT_PX))
            right.append(best >= _RIGHT)
            first.append(log_odds(find.confidence))
        shape = (len(crops), _KEPT_PX, _KEPT_PX, 3)
        return (
            np.array(crops, np.uint8).reshape(shape), np.array(right, bool),
            np.array(first, np.float32),
        )  # fmt: skip


class _Batches(
    torch.utils.data.Dataset[tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32]]]
):
    """Batch by batch from step `done` on: finds turned, mirrored, in other light, less sharp."""

    def __init__(self, finds: Finds, settings: LocateParams, done: int) -> None:
        self.finds, self.settings, self.done = finds, settings, done
        sure = 1 / (1 + np.exp(-finds.first.astype(np.float64)))
        self.drawn_from = []
        for kind, weights in ((True, (1.15 - sure).clip(0.1)), (False, sure + 0.1)):
            places = np.nonzero(finds.right == kind)[0]
            self.drawn_from.append((places, weights[places] / weights[places].sum()))

    def __len__(self) -> int:
        return self.settings.look_steps - self.done

    def __getitem__(
        self, number: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32]]:
        if number >= len(self):
            raise IndexError(number)
        rng = np.random.default_rng((self.settings.seed, STREAM + 1, self.done + number))
        chosen = np.concatenate(
            [rng.choice(places, _BATCH // 2, p=shares) for places, shares in self.drawn_from]
        )
        crops = np.stack([_varied(self.finds.crops[place], rng) for place in chosen])
        return crops, self.finds.right[chosen], self.finds.first[chosen]


def _varied(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another look of a kept crop: (96, 96, 3) -> (64, 64, 3)."""
    turn = rng.uniform(0, 2 * math.pi) if rng.random() < 0.5 else rng.integers(4) * math.pi / 2
    scale = math.exp(rng.normal(0, 0.12))
    across, down = scale * math.cos(turn), scale * math.sin(turn)
    matrix = np.array([[across, -down], [down, across]]) @ np.diag([rng.choice([-1, 1]), 1])
    varied: Any = _window(crop, matrix, rng.normal(0, 0.03 * LOOK_PX, 2)).astype(np.float32)
    varied = smoothed(varied, rng)
    varied *= (math.exp(rng.normal(0, 0.15)) * np.exp(rng.normal(0, 0.05, 3))).astype(np.float32)
    if rng.random() < 0.3:
        varied = cv2.GaussianBlur(varied, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < 0.3:
        varied += rng.normal(0, rng.uniform(0, 8), varied.shape).astype(np.float32)
    return np.asarray(varied.clip(0, 255), np.uint8)


def _window(
    crop: NDArray[np.uint8], matrix: NDArray[np.float64], moved: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """What the network is shown of a kept crop, turned and scaled by `matrix`, then moved."""
    matrix = matrix * (LOOK_PX * LOOK_SHARE) / (_KEPT_PX * _KEPT_SHARE)
    shift = (LOOK_PX - 1) / 2 + moved - matrix @ np.full(2, (_KEPT_PX - 1) / 2)
    window = cv2.warpAffine(crop, np.column_stack([matrix, shift]), (LOOK_PX, LOOK_PX))
    return np.asarray(window, np.uint8)


def _read(kept: Path, identity: str) -> Finds | None:
    try:
        with safe_open(kept, framework="numpy") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return None
            crops, right, first = (file.get_tensor(name) for name in ("crops", "right", "first"))
    except (OSError, SafetensorError):
        return None  # none, or one that was cut off
    log.info("%d finds of an interrupted run from %s", len(crops), kept)
    return Finds(crops, right > 0, first)
