"""Several photos of one simulated capture, taken on the training device.

A capture is drawn by the processor, some hundred a second on each core; a GPU trains on thousands.
So each capture is photographed several times: turned, zoomed and tilted, in other light, through
another lens, on a coarser sensor. What the simulated captures of `capture` do to a whole scene, a
view does once more to its picture. Harder views than these were tried, and did not help
(docs/lab-log.md).

All views of one batch come from torch's generator, which `fit` seeds at each step.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

LENSES = 8  # of a batch: a blur and a number of pixels, each for every eighth view
_ZOOM = 0.2  # the pill becomes up to e^0.2 times larger or smaller
_SQUEEZE = 0.2  # of the length across the axis of tilt, at most
_SHIFT = 0.06  # of the frame
_EXPOSURE, _GAMMA, _CAST = 0.35, 0.25, 0.04  # as logarithms
_NOISE = 10.0  # grey levels
_BLUR = 0.012  # sigma, of the frame
_COARSE_SHARE = 0.25  # of the lenses: fewer pixels than the network takes
_COARSEST = 4.0  # pixels of the frame to one of the sensor


def several_views(images: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """`count` views of each capture: (N, S, S, 3) -> (N * count, S, S, 3), 0..255, float32.

    `images` holds the same N captures, once for each input size S; the views of one capture stand
    together, and are the same photo at each size but for the noise.
    """
    (n, *_), device = images[0].shape, images[0].device
    n *= count
    places = _placements(n, device)
    shots = Shots(n, device)
    views = []
    for captures in images:
        pixels = captures.float().permute(0, 3, 1, 2).repeat_interleave(count, dim=0)
        grid = functional.affine_grid(places, list(pixels.shape), align_corners=False)
        pixels = functional.grid_sample(
            pixels, grid, padding_mode="reflection", align_corners=False
        )
        views.append(shots.take(pixels))
    return views


class Shots:
    """The light, lens and noise of `n` views, drawn when made.

    `strength` is how much they may change: 1 as for a capture of one pill, less for a frame in
    which pills are small, and lit already.
    """

    def __init__(self, n: int, device: torch.device, strength: float = 1.0) -> None:
        gains, gammas = _light(n, device)
        self._gains, self._gammas = gains**strength, gammas**strength
        lenses = [_lens() for _ in range(min(LENSES, n))]
        self._lenses = [(strength * sigma, coarse**strength) for sigma, coarse in lenses]
        self._noise = _NOISE * torch.rand(n, 1, 1, 1, device=device) ** 3

    def take(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) 0..255 as these views show it: (n, S, S, 3) float32, whole numbers."""
        pixels = 255 * ((pixels / 255).clamp(1e-3, 1) ** self._gammas * self._gains).clamp(0, 1)
        for number, (sigma, coarseness) in enumerate(self._lenses):
            taken = slice(number, None, LENSES)
            pixels[taken] = _through(pixels[taken], sigma, coarseness)
        pixels = pixels + self._noise * torch.randn_like(pixels)
        return pixels.clamp(0, 255).round().permute(0, 2, 3, 1).contiguous()


def _placements(n: int, device: torch.device) -> torch.Tensor:
    """(N, 2, 3): where in the capture each point of a view is taken from."""
    turn, axis = (2 * math.pi * torch.rand(n, device=device) for _ in range(2))
    zoom = torch.exp(_ZOOM * (2 * torch.rand(n, device=device) - 1))
    squeeze = 1 / (1 - _SQUEEZE * torch.rand(n, device=device) ** 2)
    stretched = torch.diag_embed(torch.stack([squeeze, torch.ones_like(squeeze)], dim=1))
    matrix = _rotation(turn) @ _rotation(axis) @ stretched @ _rotation(-axis)
    shift = _SHIFT * (2 * torch.rand(n, 2, 1, device=device) - 1)
    return torch.cat([matrix / zoom[:, None, None], shift], dim=2)


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _light(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Gains (N, 3, 1, 1) of the channels and gammas (N, 1, 1, 1)."""
    exposure = _EXPOSURE * (1.6 * torch.rand(n, 1, 1, 1, device=device) - 0.9)
    cast = _CAST * torch.randn(n, 3, 1, 1, device=device)
    gamma = _GAMMA * (2 * torch.rand(n, 1, 1, 1, device=device) - 1)
    return torch.exp(exposure + cast), torch.exp(gamma)


def _lens() -> tuple[float, float]:
    """Sigma of the blur as a share of the frame, and frame pixels to a sensor pixel."""
    sharp, coarse, often = torch.rand(3).tolist()
    coarseness = math.exp(coarse * math.log(_COARSEST)) if often < _COARSE_SHARE else 1.0
    return _BLUR * sharp**2, coarseness


def _through(pixels: torch.Tensor, sigma: float, coarseness: float) -> torch.Tensor:
    """(N, 3, S, S) blurred, then taken with fewer pixels and enlarged again."""
    size = pixels.shape[2]
    if sigma * size > 0.3:
        reach = math.ceil(2.5 * sigma * size)
        offsets = torch.arange(-reach, reach + 1, device=pixels.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / (sigma * size)) ** 2)
        kernel = (kernel / kernel.sum()).repeat(3, 1, 1)
        padded = functional.pad(pixels, [reach] * 4, mode="replicate")
        across = functional.conv2d(padded, kernel[:, :, None], groups=3)
        pixels = functional.conv2d(across, kernel[..., None], groups=3)
    sensor = max(8, round(size / coarseness))
    if sensor < size:
        coarse = functional.interpolate(pixels, (sensor, sensor), mode="area")
        pixels = functional.interpolate(coarse, (size, size), mode="bilinear")
    return pixels
