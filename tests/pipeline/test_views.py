"""Several views of one capture: as many as asked for, of the same pill, none like another."""

from __future__ import annotations

import pytest
import torch

from pilltrack.pipeline.views import several_views


def captures(n: int, size_px: int) -> torch.Tensor:
    """Grey frames, each with a square of its own brightness in the middle."""
    images = torch.full((n, size_px, size_px, 3), 40.0)
    third = size_px // 3
    for number in range(n):
        images[number, third:-third, third:-third] = 120 + 60 * number
    return images


def test_views_of_one_capture_stand_together() -> None:
    torch.manual_seed(0)
    (views,) = several_views([captures(3, 48)], 5)
    assert views.shape == (15, 48, 48, 3)
    middles = views[:, 22:26, 22:26].mean(dim=(1, 2, 3)).reshape(3, 5).mean(dim=1)
    assert middles[0] < middles[1] < middles[2]


def test_views_are_pixels_and_differ() -> None:
    torch.manual_seed(0)
    (views,) = several_views([captures(1, 32)], 6)
    assert torch.equal(views, views.round())
    assert 0 <= views.min() <= views.max() <= 255
    assert len({tuple(view.flatten().tolist()) for view in views}) == 6


def test_the_seed_of_a_step_decides_its_views() -> None:
    first, again, other = (
        (torch.manual_seed(seed), several_views([captures(2, 32)], 3)[0])[1] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_teacher_and_student_see_the_same_photo_at_their_own_size() -> None:
    torch.manual_seed(0)
    large, small = several_views([captures(8, 96), captures(8, 48)], 2)
    shrunk = torch.nn.functional.avg_pool2d(large.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    between_views = (shrunk[::2] - shrunk[1::2]).abs().mean()
    between_sizes = (shrunk - small).abs().mean()
    assert between_sizes < 0.3 * between_views


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_views_than_lenses_are_taken_too(n: int) -> None:
    torch.manual_seed(0)
    assert several_views([captures(1, 32)], n)[0].shape[0] == n
