"""Several photos of one composed scene, taken on the training device.

A scene takes a processor 30 ms to compose, a GPU less than one to learn from. So each scene is
seen several times: turned by quarters and mirrored, which moves its answers along exactly, and in
other light, through other lenses (`views.Shots`).
"""

from __future__ import annotations

import torch

from pilltrack.pipeline.views import Shots

WAYS = 8  # to lay a square upon itself
STRENGTH = 0.4  # of the views: a scene was photographed once, and pills in it are small
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def several_scenes(
    images: torch.Tensor, maps: torch.Tensor, weights: torch.Tensor, count: int
) -> Batch:
    """`count` (1 to WAYS) views of each scene, each laid another way, drawn from torch's generator.

    Images (N, S, S, 3) 0..255, maps (N, C, C, 6) and weights (N, C, C) as `locator_data.example`
    makes them -> the same with N * count, images float32.
    """
    laid = [
        laid_another_way(images, maps, weights, way)
        for way in torch.randperm(WAYS)[:count].tolist()
    ]
    images, maps, weights = (torch.cat(parts) for parts in zip(*laid, strict=True))
    shots = Shots(len(images), images.device, STRENGTH)
    return shots.take(images.float().permute(0, 3, 1, 2)), maps, weights


def laid_another_way(
    images: torch.Tensor, maps: torch.Tensor, weights: torch.Tensor, way: int
) -> Batch:
    """The batch mirrored left to right (bit 0 of `way`), top to bottom (bit 1), transposed (2)."""
    channels = [0, 1, 2, 3, 4, 5]  # middle, pill, left, top, right, bottom
    if way & 1:
        images, maps, weights = (values.flip(2) for values in (images, maps, weights))
        channels = [channels[i] for i in (0, 1, 4, 3, 2, 5)]
    if way & 2:
        images, maps, weights = (values.flip(1) for values in (images, maps, weights))
        channels = [channels[i] for i in (0, 1, 2, 5, 4, 3)]
    if way & 4:
        images, maps, weights = (values.transpose(1, 2) for values in (images, maps, weights))
        channels = [channels[i] for i in (0, 1, 3, 2, 5, 4)]
    return images, maps[..., channels], weights
