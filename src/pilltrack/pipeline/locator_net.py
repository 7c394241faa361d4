"""The locator's network: a small encoder and decoder with six maps at a quarter of the size.

For every cell of 4 x 4 pixels it answers: is this the middle of a pill, is this a pill at all,
and how far is it from here to the left, top, right and bottom side of that pill's box. Middles
are found as in CenterNet (Zhou, Wang and Kraehenbuehl 2019), boxes are regressed from every cell
as in FCOS (Tian et al. 2019); `core.locate` turns the maps into pills. All outputs pass a sigmoid,
so that one int8 scale of 1/256 fits all six.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from pilltrack.core.locate import N_MAPS, STRIDE

_WIDTHS, _DEPTHS = (32, 56, 112, 192), (2, 3, 4, 2)  # at stride 4, 8, 16, 32
_JOINED = 48  # channels of the decoder
_EXPANSION = 3
_RARE = math.log(0.03 / 0.97)  # what most cells answer before any training
_SHORT = math.log(0.2 / 0.8)  # a box of 8 % of the frame


class LocatorNet(nn.Module):
    """(N, S, S, 3) float32 pixels in 0..255, S a multiple of 32 -> (N, S/4, S/4, 6) in 0..1.

    The maps are: middle, pill, then left, top, right, bottom as square roots of shares of S.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 3, 2), _separable(16, _WIDTHS[0], 2))
        stages, width = [], _WIDTHS[0]
        for index, (wider, depth) in enumerate(zip(_WIDTHS, _DEPTHS, strict=True)):
            blocks = [_Inverted(width, wider, 1 if index == 0 else 2)]
            blocks += [_Inverted(wider, wider, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            width = wider
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(_conv(w, _JOINED, 1, 1) for w in _WIDTHS)
        self.joints = nn.ModuleList(_separable(_JOINED, _JOINED, 1, 5) for _ in _WIDTHS[1:])
        self.head = nn.Sequential(_separable(_JOINED, 64, 1, 5), nn.Conv2d(64, N_MAPS, 1))
        bias = torch.tensor([_RARE, _RARE] + [_SHORT] * 4)
        nn.init.normal_(self.head[1].weight, std=0.01)  # type: ignore[arg-type]
        self.head[1].bias.data.copy_(bias)  # type: ignore[operator]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All maps, after the sigmoid."""
        return torch.sigmoid(self.logits(images)).permute(0, 2, 3, 1)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The maps before the sigmoid, (N, 6, S/4, S/4)."""
        values = self.stem((images.permute(0, 3, 1, 2) - 127.5) / 64.0)
        levels = []
        for stage in self.stages:
            values = stage(values)
            levels.append(values)
        joined = self.laterals[-1](levels[-1])
        for level in (2, 1, 0):
            finer = self.laterals[level](levels[level])
            larger = functional.interpolate(joined, scale_factor=2.0, mode="nearest")
            joined = self.joints[level](finer + larger)
        maps: torch.Tensor = self.head(joined)
        return maps


def targets_of(
    labels: NDArray[np.uint8], boxes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the network should answer for a scene: maps (S/4, S/4, 6) and weights (S/4, S/4).

    `labels` (S, S) uint8 and `boxes` (N, 4) as in `scenes.Scene`. Middles are Gaussian bumps
    with 1 at the cell of the box's middle and a spread of an eighth of the pill's size; `pill`
    is the share of the cell that is covered. The weights of a pill's cells sum to 1: every pill
    counts alike for the boxes.

    >>> maps, weights = targets_of(np.ones((8, 8), np.uint8), np.array([[0, 0, 8, 8]]))
    >>> maps.shape, float(maps[..., 0].max()), float(weights.sum())
    ((2, 2, 6), 1.0, 1.0)
    """
    side = labels.shape[0]
    cells = side // STRIDE
    maps = np.zeros((cells, cells, N_MAPS), np.float32)
    maps[..., 1] = cv2.resize(
        (labels > 0).astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA
    )
    owner = labels[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    weights = np.zeros((cells, cells), np.float32)
    at = (np.arange(cells) + 0.5) * STRIDE
    for number, (left, top, width, height) in enumerate(boxes.tolist(), 1):
        own = owner == number
        spread = max(0.7, math.sqrt(np.count_nonzero(labels == number)) / STRIDE / 8)
        x, y = (left + width / 2) / STRIDE - 0.5, (top + height / 2) / STRIDE - 0.5
        column, row = (min(max(math.floor(v + 0.5), 0), cells - 1) for v in (x, y))
        across = np.arange(cells) - column
        down = np.arange(cells) - row
        bump = np.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * spread**2))
        np.maximum(maps[..., 0], bump, out=maps[..., 0])
        own[row, column] = True
        sides = (at - left, at - top, left + width - at, top + height - at)
        for channel, distance in enumerate(sides, 2):
            line = np.sqrt((distance / side).clip(0, 1)).astype(np.float32)
            grid = line[None, :] if channel % 2 == 0 else line[:, None]
            maps[..., channel] = np.where(own, grid, maps[..., channel])
        weights[own] = 1 / np.count_nonzero(own)
    return maps, weights


def locator_loss(logits: torch.Tensor, maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Loss of a batch: logits (N, 6, C, C), targets (N, C, C, 6), weights (N, C, C).

    The penalty-reduced focal loss of CenterNet (its equation 1) for middles, cross entropy for
    pill cells, and 1 - GIoU (Rezatofighi et al. 2019) for boxes, each mean over pills.
    """
    logits, targets = logits.float(), maps.permute(0, 3, 1, 2)
    n_pills = targets[:, 0].eq(1).sum().clamp(min=1)
    middle = torch.sigmoid(logits[:, 0])
    found = (1 - middle) ** 2 * functional.logsigmoid(logits[:, 0])
    spared = (1 - targets[:, 0]) ** 4 * middle**2 * functional.logsigmoid(-logits[:, 0])
    middles = -torch.where(targets[:, 0].eq(1), found, spared).sum() / n_pills
    covered = functional.binary_cross_entropy_with_logits(
        logits[:, 1], targets[:, 1], reduction="sum"
    )
    # Pills cover a twentieth of the cells. Weighting those would make masks too large.
    cover = covered / targets[:, 1].sum().clamp(min=0.02 * targets[:, 1].numel())
    boxes = _giou(torch.sigmoid(logits[:, 2:]) ** 2, targets[:, 2:] ** 2)
    box = ((1 - boxes) * weights).sum() / weights.sum().clamp(min=1)
    return middles + cover + 2 * box


def _giou(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """GIoU of boxes given as distances (N, 4, C, C) from one common point."""
    smaller, larger = torch.minimum(found, wanted), torch.maximum(found, wanted)
    both = (smaller[:, 0] + smaller[:, 2]) * (smaller[:, 1] + smaller[:, 3])
    hull = (larger[:, 0] + larger[:, 2]) * (larger[:, 1] + larger[:, 3])
    areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (found, wanted)]
    union = (areas[0] + areas[1] - both).clamp(min=1e-7)
    return both / union - (hull - union) / hull.clamp(min=1e-7)


class _Inverted(nn.Module):
    """An inverted residual (Sandler et al. 2018): widen, filter each channel, narrow."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        hidden = width * _EXPANSION
        self.body = nn.Sequential(
            _conv(width, hidden, 1, 1),
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, wider, 1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.adds = stride == 1 and width == wider

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = self.body(values)
        return values + changed if self.adds else changed


def _separable(width: int, wider: int, stride: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(_conv(width, width, size, stride, groups=width), _conv(width, wider, 1, 1))


def _conv(width: int, wider: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, wider, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU6(),
    )
