"""Views of one scene: the pills move with the picture, and so do the answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pilltrack.core.locate import find_pills
from pilltrack.pipeline.locator_data import example, rendered_cut_outs, scene_of
from pilltrack.pipeline.locator_views import WAYS, Batch, laid_another_way, several_scenes

SIZE_PX = 160


@pytest.fixture(scope="module")
def batch() -> Batch:
    cutouts = rendered_cut_outs(4, 1)
    examples = [example(scene_of(cutouts, SIZE_PX, (2, n), 4), SIZE_PX) for n in range(3)]
    images, maps, weights = (np.stack(parts) for parts in zip(*examples, strict=True))
    return torch.from_numpy(images), torch.from_numpy(maps), torch.from_numpy(weights)


@pytest.mark.parametrize("way", range(WAYS))
def test_boxes_read_from_the_answers_move_with_the_picture(batch: Batch, way: int) -> None:
    _, maps, weights = laid_another_way(*batch, way)
    for scene in range(len(maps)):
        moved = boxes_in(maps[scene])
        expected = sorted(moved_box(box, way) for box in boxes_in(batch[1][scene]))
        np.testing.assert_allclose(moved, expected, atol=1)
    assert weights.sum() == pytest.approx(float(batch[2].sum()))


@pytest.mark.parametrize("way", range(WAYS))
def test_images_move_as_boxes_do(batch: Batch, way: int) -> None:
    marked = torch.zeros(1, SIZE_PX, SIZE_PX, 3)
    marked[0, 20:30, 40:70] = 1
    images, _, _ = laid_another_way(marked, batch[1][:1], batch[2][:1], way)
    rows, columns = images[0, :, :, 0].nonzero(as_tuple=True)
    left, top = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
    assert (left, top, width, height) == moved_box((40, 20, 30, 10), way)


def test_every_way_is_another(batch: Batch) -> None:
    laid = {laid_another_way(*batch, way)[0].contiguous().numpy().tobytes() for way in range(WAYS)}
    assert len(laid) == WAYS


def test_views_of_a_step_follow_from_its_seed(batch: Batch) -> None:
    views = [(torch.manual_seed(seed), several_scenes(*batch, 2))[1] for seed in (1, 1, 2)]
    assert views[0][0].shape == (6, SIZE_PX, SIZE_PX, 3)
    assert views[0][1].shape == (6, SIZE_PX // 4, SIZE_PX // 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(views[0], views[1], strict=True))
    assert not torch.equal(views[0][0], views[2][0])
    assert 0 <= views[0][0].min() <= views[0][0].max() <= 255


def boxes_in(maps: torch.Tensor) -> list[tuple[int, int, int, int]]:
    return sorted(found.box for found in find_pills(maps.numpy(), SIZE_PX, SIZE_PX, 0.9))


def moved_box(box: tuple[int, int, int, int], way: int) -> tuple[int, int, int, int]:
    left, top, width, height = box
    if way & 1:
        left = SIZE_PX - left - width
    if way & 2:
        top = SIZE_PX - top - height
    return (top, left, height, width) if way & 4 else (left, top, width, height)
