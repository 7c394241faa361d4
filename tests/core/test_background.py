"""What a photo owes to resembling pills in general."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.background import NEAREST, WEIGHT, Background, no_background


def at(*degrees: float) -> NDArray[np.float32]:
    """Unit vectors (N, 2) at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_it_is_a_share_of_the_mean_cosine_to_the_nearest() -> None:
    near, far = [0.0] * NEAREST, [60.0] * 5
    background = Background(at(*near, *far), ["x"] * (NEAREST + 5))
    (share,) = background.share(at(0), ["a"])
    assert share == pytest.approx(WEIGHT)
    (share,) = background.share(at(60), ["a"])  # five at 0 degrees, five at 60
    assert share == pytest.approx(WEIGHT * (5 * 1 + 5 * 0.5) / 10)


def test_the_pill_itself_does_not_stand_in_its_own_way() -> None:
    background = Background(at(0, 60), ["a", "b"])
    shares = background.share(at(0, 0), ["a", "new"])
    assert shares == pytest.approx([WEIGHT * 0.5, WEIGHT * 0.75])


def test_nothing_is_taken_off_or_added_without_a_likeness() -> None:
    probes = at(0)
    assert no_background(2).share(probes, ["a"]).tolist() == [0]
    assert Background(at(0), ["a"]).share(probes, ["a"]).tolist() == [0]
    assert Background(at(180), ["b"]).share(probes, ["a"]).tolist() == [0]
