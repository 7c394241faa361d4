"""Photos -> training batches: which images meet in a batch, and how each one is photographed.

A batch holds P appearances (pill and side) with m photos each. Every photo is a fresh simulated
capture whose random generator is seeded by (seed, epoch, position), so that a resumed run, more
workers or more processes see the same images.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from pilltrack.core.image import read_image
from pilltrack.core.preprocess import to_model_input
from pilltrack.pipeline.capture import cut_out, simulate_capture
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.table import ImageRow, appearance_of
from pilltrack.pipeline.variants import variant_of

CAPTURE_PX = 224  # like a crop from a camera; the embedder resizes it as on the device

Item = tuple[int, int]  # (index of a photo among the captures, capture seed)
Label = tuple[int, int]  # (pill number, appearance number)
Batch = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]  # images by size, pills, appearances


def batch_plan(
    labels: Sequence[Label],
    *,
    pills_per_batch: int,
    photos_per_pill: int,
    seed: int,
    epoch: int,
) -> list[list[Item]]:
    """All batches of one epoch: each appearance once, with `photos_per_pill` photos of it.

    `labels` are those of `Captures`. Photos of an appearance are drawn without repetition while
    there are enough, else repeated (each time captured anew). The last, smaller batch is dropped
    unless it is the only one.
    """
    rng = np.random.default_rng([seed, epoch])
    indices: dict[int, list[int]] = {}
    for index, (_, appearance) in enumerate(labels):
        indices.setdefault(appearance, []).append(index)
    appearances = sorted(indices)
    rng.shuffle(appearances)
    full = len(appearances) - len(appearances) % pills_per_batch
    starts = range(0, max(full, 1), pills_per_batch)
    return [
        [
            (int(index), int(rng.integers(2**62)))
            for appearance in appearances[start : start + pills_per_batch]
            for index in _draw(indices[appearance], photos_per_pill, rng)
        ]
        for start in starts
    ]


def _draw(indices: list[int], count: int, rng: np.random.Generator) -> list[int]:
    rounds = -(-count // len(indices))
    return [int(i) for _ in range(rounds) for i in rng.permutation(indices)][:count]


class Captures(torch.utils.data.Dataset[tuple[list[torch.Tensor], int, int]]):
    """Simulated captures of prepared photos, addressed by (index, capture seed).

    Of `variants` looks of each pill (see `pipeline.variants`) the first is the pill itself, the
    others are pills of their own: photo `index` is row `index // variants`, in the look
    `index % variants`. `labels` holds (pill number, appearance number) of each. An item is (one
    uint8 tensor (S, S, 3) for each size, pill number, appearance number). The first size is the
    one photographed; others are made from it by the device's own resize.
    """

    def __init__(
        self,
        directory: Path,
        rows: Sequence[ImageRow],
        sizes_px: Sequence[int],
        settings: CaptureParams,
        variants: int = 1,
    ) -> None:
        self.directory, self.rows, self.variants = directory, rows, variants
        self.sizes_px, self.settings = sizes_px, settings
        pills = {pill: n for n, pill in enumerate(sorted({row.pill for row in rows}))}
        looks = {look: n for n, look in enumerate(sorted({appearance_of(r) for r in rows}))}
        self.labels: list[Label] = [
            (pills[row.pill] * variants + variant, looks[appearance_of(row)] * variants + variant)
            for row in rows
            for variant in range(variants)
        ]

    def __getitem__(self, item: Item) -> tuple[list[torch.Tensor], int, int]:
        index, seed = item
        photo = read_image(self.directory / self._row(index).image)
        variant = (self._row(index).pill, index % self.variants)
        view = captured(photo, self.sizes_px[0], self.settings, seed, variant=variant)
        views = [torch.from_numpy(to_model_input(view, size_px)) for size_px in self.sizes_px]
        return views, *self.labels[index]

    def photo(self, index: int) -> NDArray[np.uint8]:
        """The photo (H, W, 3) uint8 itself, in its look."""
        row = self._row(index)
        return variant_of(read_image(self.directory / row.image), row.pill, index % self.variants)

    def _row(self, index: int) -> ImageRow:
        return self.rows[index // self.variants]


def captured(
    photo: NDArray[np.uint8],
    size_px: int,
    settings: CaptureParams,
    seed: int,
    *,
    variant: tuple[str, int] = ("", 0),
) -> NDArray[np.uint8]:
    """One simulated capture (size_px, size_px, 3) of a photo; the same seed, the same pixels.

    `variant`: the pill's name and which of its variants is photographed (0: the pill itself).
    """
    pill = cut_out(photo)
    if pill is None:
        colours, alpha = variant_of(photo, *variant), None
    else:
        look = variant_of(pill, *variant)
        colours, alpha = look[..., :3], look[..., 3]
    return simulate_capture(colours, alpha, size_px, settings, np.random.default_rng(seed))


def shares_of_rank(plan: list[list[Item]], rank: int, world: int) -> list[list[Item]]:
    """The part of every batch that one of `world` processes computes: every world-th photo."""
    return [batch[rank::world] for batch in plan]


def load_batches(captures: Captures, plan: list[list[Item]], workers: int) -> Iterator[Batch]:
    """Yield ([images (B, S, S, 3) uint8 for each size], pills (B,), appearances (B,)) in order."""
    loader = torch.utils.data.DataLoader(
        captures, batch_sampler=plan, num_workers=workers, worker_init_fn=begin_worker
    )
    yield from loader


def begin_worker(worker: int) -> None:
    """Keep a loading process to one core, after the training's threads, and quiet at Ctrl-C."""
    import cv2

    # The network's threads wait for one another: a core taken from one of them stalls all.
    os.nice(19)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's to answer
    sys.excepthook = _unless_left


def _unless_left(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """Print a traceback, but not that of a thread whose training takes no more tensors.

    What a dataset raises travels to the training and does not come here.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, where)
