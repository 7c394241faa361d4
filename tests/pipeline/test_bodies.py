"""A studio photo as the top of a body: slant, side and light."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.pipeline import bodies
from pilltrack.pipeline.bodies import lay_body
from pilltrack.pipeline.capture import simulate_capture
from pilltrack.pipeline.light import Light
from pilltrack.pipeline.placing import Photo
from tests.pipeline.clean_camera import CLEAN

SIZE_PX = 160
FROM_THE_RIGHT = Light(1.0, 0.0, 1.0)
PLAIN = CLEAN.model_copy(update={"scale": (0.7, 0.7), "body": 1})


def disc(number: int = 0, rim: float = 1.0) -> tuple[Photo, Photo]:
    """A grey disc on black, `rim` times as bright at its edge as inside; and its alpha.

    Discs look alike, but with another `number` a disc is another pill, of another shape.
    """
    y, x = np.mgrid[:224, :224] - 111.5
    away = np.hypot(x, y) / 80
    shade = 1 + (rim - 1) * np.clip(away, 0, 1) ** 4
    photo = np.dstack([np.where(away <= 1, 170 * shade, 0).astype(np.uint8)] * 3)
    photo[0, 0] = number
    return photo, np.where(away <= 1, 255, 0).astype(np.uint8)


def capsule(number: int = 0) -> tuple[Photo, Photo]:
    """An evenly grey capsule on black, 174 px long and 70 wide; and its alpha."""
    alpha = np.zeros((224, 224), np.uint8)
    cv2.line(alpha, (60, 112), (164, 112), 255, 70)
    photo = np.dstack([np.where(alpha > 0, 150, 0).astype(np.uint8)] * 3)
    photo[0, 0] = number
    return photo, alpha


def test_a_body_with_its_side_fills_the_share_of_the_frame_that_scale_says() -> None:
    for seed in range(40):
        laid = lay_body(*disc(seed), SIZE_PX, FROM_THE_RIGHT, PLAIN, np.random.default_rng(seed))
        assert max(_sides(laid.opacity)) == pytest.approx(0.7 * SIZE_PX, abs=3)
        left, top, width, height = cv2.boundingRect((laid.opacity > 0.5).astype(np.uint8))
        assert min(left, top) > 0
        assert max(left + width, top + height) < SIZE_PX


def test_what_is_seen_at_a_slant_is_shortened_and_shows_its_side() -> None:
    thicknesses = []
    for seed in range(20):
        laid = lay_body(*disc(seed), SIZE_PX, FROM_THE_RIGHT, PLAIN, steepest(seed))
        foot_sides = _sides(laid.foot)
        assert min(foot_sides) / max(foot_sides) == pytest.approx(np.cos(np.radians(58)), abs=0.03)
        assert (laid.opacity[laid.foot > 0.9] > 0.5).mean() > 0.95  # the foot is its lower end
        beside = (laid.opacity > 0.5).sum() / (laid.foot > 0.5).sum() - 1
        # Across the slant a disc of diameter 1 covers pi / 4 cos + thickness sin.
        thickness = beside * np.pi / 4 / np.tan(np.radians(58))
        assert laid.thickness_px / max(foot_sides) == pytest.approx(thickness, abs=0.05)
        thicknesses.append(thickness)
    assert min(thicknesses) == pytest.approx(0.2, abs=0.1)
    assert max(thicknesses) == pytest.approx(0.6, abs=0.1)


def test_the_side_is_brighter_when_the_lamp_shines_on_it() -> None:
    for seed in range(20):
        laid = lay_body(*disc(seed), SIZE_PX, FROM_THE_RIGHT, PLAIN, steepest(seed))
        way = _middle(laid.foot) - _middle(laid.opacity)
        way /= np.hypot(*way)
        along = np.moveaxis(np.mgrid[:SIZE_PX, :SIZE_PX][::-1], 0, 2) @ way
        lowest = (laid.opacity > 0.99) & (along > along[laid.opacity > 0.5].max() - 5)
        facing, turned_away = (
            lay_body(*disc(seed), SIZE_PX, Light(x, y, 1.0), PLAIN, steepest(seed)).colours[lowest]
            for x, y in (way, -way)
        )
        assert facing.mean() > 1.2 * turned_away.mean()


def test_a_capsule_rolled_over_is_as_wide_as_before() -> None:
    """Six in ten long pills are round: their thickness is their width, and hides none of it."""
    ratios = []
    for seed in range(40):
        laid = lay_body(*capsule(seed), SIZE_PX, FROM_THE_RIGHT, PLAIN, steepest(seed))
        ratios.append(min(_sides(laid.opacity)) / laid.thickness_px)
    assert 16 <= sum(ratio < 1.25 for ratio in ratios) <= 32
    assert min(ratios) > 0.95


def test_two_colours_are_not_taken_for_the_light_of_the_studio() -> None:
    _, alpha = capsule()
    depth = cv2.distanceTransform((alpha > 0).astype(np.uint8), cv2.DIST_L2, 3)
    depth = (depth / depth.max()).astype(np.float32)
    columns = np.mgrid[:224, :224][1]
    for seed in range(10):
        seam = 112 + np.random.default_rng(seed).normal(0, 3, (224, 1))  # not quite in the middle
        top = np.where((columns < seam)[..., None], (230, 230, 225), (40, 60, 150))
        top = (top * (alpha > 0)[..., None]).astype(np.float32)
        evened = top.copy()
        bodies._take_off_light(evened, depth, 1.0)
        gains = (evened[..., 0] / np.maximum(top[..., 0], 1))[alpha > 0]
        assert gains.max() / gains.min() < 1.25


def test_a_photo_keeps_its_shape_from_capture_to_capture() -> None:
    def thickness(number: int, seed: int) -> float:
        flat = PLAIN.model_copy(update={"perspective": 0.0})
        laid = lay_body(*disc(number), SIZE_PX, FROM_THE_RIGHT, flat, steepest(seed))
        return laid.thickness_px / max(_sides(laid.foot))

    of_one = [thickness(1, seed) for seed in range(5)]
    of_others = [thickness(number, 0) for number in range(20)]
    assert max(of_one) - min(of_one) < 0.02
    assert max(of_others) - min(of_others) > 0.2


def test_a_photo_keeps_its_polish_from_capture_to_capture() -> None:
    """On a nearly black disc only the mirrored lamp is bright, and on a matt one nothing."""
    brightest = []
    for number in range(16):
        photo, alpha = disc(number)
        photo[alpha > 0] = 3
        brightest.append(
            max(
                lay_body(photo, alpha, SIZE_PX, FROM_THE_RIGHT, PLAIN, rng).colours.max()
                for rng in map(np.random.default_rng, range(12))
            )
        )
    assert sum(level < 6 for level in brightest) >= 2  # three in ten
    assert sum(level > 50 for level in brightest) >= 2  # two in five


def test_the_shading_of_the_studio_is_taken_off() -> None:
    """Two photos of one disc, one dark at the rim, look more alike as bodies than as photos."""
    even, alpha = disc()
    dark, _ = disc(rim=0.6)
    outline = bodies._outline(alpha)
    inside = alpha > 0
    as_photos = np.abs(even[inside].astype(float) - dark[inside]).mean()
    as_bodies = []
    for seed in range(20):
        shape = bodies._guess(disc(seed)[0], outline)
        first, second = (
            bodies._laid_as(
                shape,
                photo,
                alpha,
                outline,
                SIZE_PX,
                FROM_THE_RIGHT,
                PLAIN,
                np.random.default_rng(seed),
            )
            for photo in (even, dark)
        )
        solid = first.opacity > 0.99
        as_bodies.append(np.abs(first.colours[solid] - second.colours[solid]).mean())
    assert np.median(as_bodies) < 0.7 * as_photos


def test_the_half_of_the_top_towards_the_lamp_is_the_bright_one() -> None:
    right, left = [], []
    for seed in range(30):
        laid = lay_body(*disc(seed), SIZE_PX, FROM_THE_RIGHT, PLAIN, np.random.default_rng(seed))
        solid = laid.opacity > 0.99
        columns = np.mgrid[:SIZE_PX, :SIZE_PX][1]
        middle = columns[solid].mean()
        right.append(laid.colours[solid & (columns > middle)].mean())
        left.append(laid.colours[solid & (columns < middle)].mean())
    assert np.mean(right) > 1.1 * np.mean(left)


def test_the_side_has_the_colours_of_the_rim_it_hangs_from() -> None:
    for seed in range(20):
        photo, alpha = disc()
        photo[:, :112] = (200, 20, 20)  # a red and a blue half
        photo[:, 112:] = (20, 20, 200)
        photo[0, 0] = seed
        laid = lay_body(photo, alpha, SIZE_PX, FROM_THE_RIGHT, PLAIN, np.random.default_rng(seed))
        red, green, blue = np.moveaxis(laid.colours[laid.opacity > 0.99], 1, 0)
        pure = np.abs(red - blue) > 2 * (np.minimum(red, blue) - green + 5)
        assert pure.mean() > 0.9


def test_bodies_are_as_many_as_the_setting_says_and_none_for_a_photo_with_surroundings() -> None:
    photo, alpha = disc()

    def capture(body: float, mask: Photo | None, seed: int) -> Photo:
        settings = PLAIN.model_copy(update={"body": body})
        return simulate_capture(photo, mask, 64, settings, np.random.default_rng(seed))

    flat = [capture(0, alpha, seed) for seed in range(60)]
    changed = [
        not np.array_equal(capture(0.5, alpha, seed), plain) for seed, plain in enumerate(flat)
    ]
    assert 15 <= sum(changed) <= 45  # 30 expected, 4 is one standard deviation
    assert all(np.array_equal(capture(0, None, seed), capture(1, None, seed)) for seed in range(5))


def test_an_alpha_without_a_solid_pixel_is_laid_like_its_frame() -> None:
    photo, _ = disc()
    faint = np.full(photo.shape[:2], 90, np.uint8)
    laid = lay_body(photo, faint, SIZE_PX, FROM_THE_RIGHT, PLAIN, np.random.default_rng(0))
    assert np.isfinite(laid.colours).all()
    spread = cv2.minAreaRect(np.argwhere(laid.opacity > 0.2).astype(np.float32))[1]
    assert max(spread) == pytest.approx(0.7 * SIZE_PX, abs=4)


def test_a_pill_larger_than_the_frame_fills_it() -> None:
    near = PLAIN.model_copy(update={"scale": (2, 2)})
    for seed in range(20):
        laid = lay_body(*disc(seed), 48, FROM_THE_RIGHT, near, np.random.default_rng(seed))
        assert (laid.opacity > 0.99).mean() > 0.6
        assert np.isfinite(laid.colours).all()


def test_the_lamp_is_mirrored_towards_the_camera() -> None:
    """Under a lamp overhead the highlight of a slanted top lies between lamp and camera."""
    overhead = Light(1.0, 0.0, 1e3)
    places = []
    for seed in range(40):
        laid = lay_body(*disc(seed), SIZE_PX, overhead, PLAIN, steepest(seed))
        way = _middle(laid.foot) - _middle(laid.opacity)
        along = np.moveaxis(np.mgrid[:SIZE_PX, :SIZE_PX][::-1], 0, 2) @ (way / np.hypot(*way))
        solid = laid.opacity > 0.99
        brightness = laid.colours.sum(axis=2)
        bright = solid & (brightness >= np.quantile(brightness[solid], 0.98))
        places.append((along[bright].mean() - along[solid].mean()) / (0.5 * SIZE_PX))
    assert np.median(places) > -0.2


def test_light_says_how_much_brighter_than_in_the_studio_a_body_is() -> None:
    def mean(light: float) -> float:
        settings = PLAIN.model_copy(update={"light": light})
        laid = [
            lay_body(*disc(seed), SIZE_PX, FROM_THE_RIGHT, settings, np.random.default_rng(seed))
            for seed in range(20)
        ]
        return float(np.mean([body.colours.mean() for body in laid]))

    assert mean(1.0) > 1.15 * mean(0.0)


def test_clip_pushes_a_body_out_of_the_frame() -> None:
    clipped = PLAIN.model_copy(update={"clip": 0.3})
    seen = []
    for seed in range(40):
        laid = lay_body(*disc(seed), 64, FROM_THE_RIGHT, clipped, np.random.default_rng(seed))
        rim = np.concatenate([laid.opacity[[0, -1]].ravel(), laid.opacity[:, [0, -1]].ravel()])
        seen.append(rim.max() > 0.5)
    assert 1 <= sum(seen) <= 24  # three in ten are pushed, some of them hardly


def steepest(seed: int) -> np.random.Generator:
    return cast(np.random.Generator, Steepest(seed))


class Steepest:
    """A generator whose first draw, the slant, is the steepest."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._first = True

    def uniform(self, *bounds: Any) -> Any:
        drawn, self._first = (1.0 if self._first else self._rng.uniform(*bounds)), False
        return drawn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)


def _sides(field: NDArray[np.float32]) -> tuple[float, float]:
    """The sides of the smallest rectangle, in any turn, around what is there."""
    points = np.argwhere(field > 0.5).astype(np.float32)
    first, second = cv2.minAreaRect(points)[1]
    return first + 1, second + 1


def _middle(field: NDArray[np.float32]) -> NDArray[np.float64]:
    """Its centre of mass (x, y)."""
    return np.asarray(np.argwhere(field > 0.5).mean(axis=0)[::-1], np.float64)
