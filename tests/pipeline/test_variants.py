"""Variants: pills of their own, the same on both sides, unlike the pill they come from."""

from __future__ import annotations

import numpy as np

from pilltrack.pipeline.variants import variant_of


def cut_out(colour: tuple[int, int, int]) -> np.ndarray:
    """(40, 60, 4): an opaque bar with a dark mark at its left end."""
    pill = np.zeros((40, 60, 4), np.uint8)
    pill[10:30, 5:55, :3] = colour
    pill[10:30, 5:55, 3] = 255
    pill[15:25, 8:14, :3] = 20
    return pill


def colour_of(pill: np.ndarray) -> np.ndarray:
    colour: np.ndarray = np.median(pill[..., :3][pill[..., 3] == 255].astype(float), axis=0)
    return colour


def test_the_first_variant_is_the_pill() -> None:
    pill = cut_out((200, 200, 200))
    assert variant_of(pill, "a", 0) is pill


def test_both_sides_of_a_pill_change_alike() -> None:
    front, back = cut_out((200, 190, 60)), cut_out((200, 190, 60))
    back[15:25, 8:14, :3] = (200, 190, 60)  # no mark
    one, other = (variant_of(side, "a", 1) for side in (front, back))
    assert one.shape == other.shape
    assert np.allclose(colour_of(one), colour_of(other))


def test_white_pills_become_coloured_and_no_two_variants_are_alike() -> None:
    white = cut_out((220, 220, 220))
    colours = [colour_of(variant_of(white, pill, n)) for pill in "abcdef" for n in (1, 2)]
    assert all(colour.max() - colour.min() > 20 for colour in colours)
    assert len({tuple(colour) for colour in colours}) == len(colours)


def test_some_are_mirrored_and_some_drawn_out_and_the_pill_stays_whole() -> None:
    changed = [variant_of(cut_out((220, 220, 220)), str(n), 1) for n in range(20)]
    heights = {pill.shape[0] for pill in changed}
    assert min(heights) < 40 < max(heights)
    marks = [
        float(pill[pill.shape[0] // 2, 8:14, :3].mean())
        < float(pill[pill.shape[0] // 2, -14:-8, :3].mean())
        for pill in changed
    ]
    assert 0 < sum(marks) < 20
    assert all((pill[..., 3] == 255).any() for pill in changed)
