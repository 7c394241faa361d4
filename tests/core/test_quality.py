"""What enrolment refuses, on pills drawn by hand whose faults are known."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.decide import Rule
from pilltrack.core.gallery import Candidate
from pilltrack.core.locate import Found
from pilltrack.core.quality import (
    LEAST_LENGTH,
    MOST_BLUR,
    Fault,
    collision,
    least_agreement,
    measure,
    photo_faults,
    set_faults,
)

Colour = tuple[int, int, int]
Photo = NDArray[np.uint8]
GREY, WHITE, BLUE, BROWN = (120, 118, 115), (236, 235, 230), (60, 110, 190), (95, 60, 40)
INPUT_PX = 128
RULE = Rule(threshold=0.6, margin=0.05)
faults_of_set = functools.partial(set_faults, agreement=0.3)


def kinds(faults: list[Fault]) -> list[str]:
    return [fault.kind for fault in faults]


def judged(photo: Photo, found: Found) -> list[str]:
    return kinds(photo_faults("a.jpg", photo, [found], INPUT_PX))


# One photo: the pill and its frame


@pytest.mark.parametrize("length_px", [60, 90, 200, 640, 1500])
def test_a_good_photo_has_no_fault_however_large_the_pill_is(length_px: int) -> None:
    assert judged(*tablet(length_px, BLUE, imprint=True)) == []


def test_no_pill_is_a_fault() -> None:
    photo, _ = tablet(200, BLUE)
    assert kinds(photo_faults("a.jpg", photo, [], INPUT_PX)) == ["no pill"]


def test_no_pill_in_the_dark_is_too_dark_as_well() -> None:
    photo, _ = tablet(200, BLUE)
    assert kinds(photo_faults("a.jpg", photo // 8, [], INPUT_PX)) == ["no pill", "too dark"]


def test_several_pills_are_counted_and_nothing_else_is_judged() -> None:
    photo, found = tablet(200, BLUE)
    (fault,) = photo_faults("a.jpg", photo // 8, [found, found, found], INPUT_PX)
    assert (fault.kind, fault.image, fault.found) == ("several pills", "a.jpg", "3 pills found")


@pytest.mark.parametrize("turn", range(4))
def test_a_pill_at_any_border_is_clipped(turn: int) -> None:
    photo, found = tablet(200, BLUE)
    cut = found.box[0] + 30
    mask = np.zeros(photo.shape[:2], bool)
    x, y, width, height = found.box
    mask[y : y + height, x : x + width] = found.mask
    photo, mask = (np.ascontiguousarray(np.rot90(a[:, cut:], turn)) for a in (photo, mask))
    assert judged(photo, found_in(mask)) == ["clipped"]


def test_a_pill_nearly_at_the_border_is_clipped_and_told_how_near() -> None:
    photo, found = tablet(200, BLUE)
    x, y, width, height = found.box
    near = Found((0, y, width, height), found.mask, 1.0)
    (fault,) = photo_faults("a.jpg", np.ascontiguousarray(photo[:, x:]), [near], INPUT_PX)
    assert fault.kind == "clipped"
    assert "0 px" in fault.found
    assert judged(np.ascontiguousarray(photo[:, x - 12 :]), moved(found, 12 - x)) == []


def test_a_pill_of_too_few_pixels_depends_on_what_the_model_looks_at() -> None:
    photo, found = tablet(40, BLUE)
    assert LEAST_LENGTH * 0.75 * 128 > 42 > LEAST_LENGTH * 0.75 * 96
    assert kinds(photo_faults("a.jpg", photo, [found], 128)) == ["too small"]
    assert kinds(photo_faults("a.jpg", photo, [found], 96)) == []


# One photo: blur


@pytest.mark.parametrize("length_px", [80, 200, 900])
@pytest.mark.parametrize("blur", [0.02, 0.03, 0.04])
def test_blur_is_measured_as_a_share_of_the_pill_whatever_its_size(
    length_px: int, blur: float
) -> None:
    photo, found = tablet(length_px, BLUE)
    soft = cv2.GaussianBlur(photo, (0, 0), blur * length_px)
    assert measure(np.asarray(soft), found).blur == pytest.approx(blur, rel=0.15)


@pytest.mark.parametrize("length_px", [80, 200, 900])
def test_a_pill_out_of_focus_is_blurred(length_px: int) -> None:
    photo, found = tablet(length_px, WHITE, imprint=True)
    soft = cv2.GaussianBlur(photo, (0, 0), 1.5 * MOST_BLUR * length_px)
    assert judged(np.asarray(soft), found) == ["blurred"]


@pytest.mark.parametrize("noise", [0, 4, 8])
def test_noise_does_not_hide_blur_nor_look_like_it(noise: int) -> None:
    photo, found = tablet(200, BLUE, imprint=True)
    soft = np.asarray(cv2.GaussianBlur(photo, (0, 0), 2 * MOST_BLUR * 200))
    grain = np.random.default_rng(0).normal(0, noise, photo.shape) if noise else 0
    assert judged(clipped(photo + grain), found) == []
    assert judged(clipped(soft + grain), found) == ["blurred"]


@pytest.mark.parametrize("turn_degrees", [0, 30, 60, 90, 135])
def test_a_shaken_photo_is_blurred_though_it_is_sharp_across(turn_degrees: int) -> None:
    photo, found = tablet(200, BLUE, imprint=True)
    assert judged(shaken(photo, 40, turn_degrees), found) == ["blurred"]


@pytest.mark.parametrize("turn_degrees", [0, 90])
def test_a_capsule_shaken_along_or_across_is_blurred(turn_degrees: int) -> None:
    photo, found = capsule(200, BLUE)
    assert judged(photo, found) == []
    assert judged(shaken(photo, 40, turn_degrees), found) == ["blurred"]


@pytest.mark.parametrize("surface", [GREY, (30, 30, 32), (222, 220, 214)])
def test_a_plain_white_tablet_is_not_blurred(surface: Colour) -> None:
    assert judged(*tablet(200, WHITE, surface)) == []


@pytest.mark.parametrize("colour", [BROWN, (188, 180, 170)])
def test_a_soft_shadow_on_one_side_is_not_blur(colour: Colour) -> None:
    assert judged(*tablet(200, colour, (200, 190, 180), shadow=True)) == []


def test_soft_marbling_inside_a_sharp_outline_is_not_blur() -> None:
    photo, found = tablet(200, BLUE)
    grain = np.random.default_rng(0).standard_normal(photo.shape[:2])
    clouds = cv2.GaussianBlur(grain, (0, 0), 3 * MOST_BLUR * 200)
    marbled = photo + (disc_of(400, 90) * clouds * 30 / clouds.std())[..., None]
    assert measure(clipped(marbled), found).blur < MOST_BLUR / 4


def test_a_sharp_imprint_inside_a_soft_outline_is_not_blurred() -> None:
    photo, found = tablet(200, BLUE)
    soft = np.array(cv2.GaussianBlur(photo, (0, 0), 2 * MOST_BLUR * 200))
    assert judged(soft, found) == ["blurred"]
    cv2.circle(soft, (200, 200), 55, (15, 30, 60), 8, cv2.LINE_AA)
    assert judged(soft, found) == []


def test_one_sharp_line_does_not_save_a_photo_blurred_in_every_other_direction() -> None:
    photo, found = tablet(200, BLUE)
    soft = np.array(cv2.GaussianBlur(photo, (0, 0), 2 * MOST_BLUR * 200))
    middle = photo.shape[0] // 2
    cv2.line(soft, (middle - 50, middle), (middle + 50, middle), (15, 30, 60), 8)
    assert judged(soft, found) == ["blurred"]


@pytest.mark.parametrize("by_px", [-5, 0, 5])
def test_a_mask_that_is_off_by_a_cell_changes_nothing(by_px: int) -> None:
    photo, found = tablet(200, BLUE, imprint=True)
    assert judged(photo, moved(found, by_px)) == []
    soft = np.asarray(cv2.GaussianBlur(photo, (0, 0), 2 * MOST_BLUR * 200))
    assert judged(soft, moved(found, by_px)) == ["blurred"]


def test_a_mask_that_ends_inside_the_pill_still_shows_its_outline() -> None:
    photo, found = tablet(200, BLUE)
    inner = cv2.erode(found.mask.astype(np.uint8), np.ones((11, 11)), borderValue=0) > 0
    assert judged(photo, Found(found.box, inner, 1.0)) == []


def test_an_outline_that_only_one_colour_shows_is_seen() -> None:
    assert judged(*tablet(200, (GREY[0], GREY[1], 220))) == []


def test_what_a_pixel_blurs_by_itself_is_no_fault() -> None:
    photo, found = tablet(50, BLUE)
    assert measure(np.asarray(cv2.GaussianBlur(photo, (0, 0), 0.6)), found).blur < 0.005


@pytest.mark.parametrize("colour", [GREY, (124, 122, 119)])
def test_a_photo_in_which_no_edge_can_be_seen_is_blurred(colour: Colour) -> None:
    photo, found = tablet(200, colour)
    photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), 1.5 * MOST_BLUR * 200))
    (fault,) = photo_faults("a.jpg", photo, [found], INPUT_PX)
    assert fault.kind == "blurred"
    assert "no edge" in fault.found


# One photo: light


@pytest.mark.parametrize("colour", [BLUE, BROWN, GREY])
def test_a_reflection_on_a_tenth_of_a_pill_is_glare(colour: Colour) -> None:
    photo, found = tablet(200, colour, (150, 150, 150))
    radius = round(200 / 2 * math.sqrt(0.1))
    with_spot = spotted(photo, radius)
    assert judged(with_spot, found) == ["glare"]
    assert measure(with_spot, found).glare == pytest.approx(0.1, abs=0.03)


def test_glare_on_a_bright_yellow_pill_is_white_and_not_merely_bright() -> None:
    photo, found = tablet(200, (248, 225, 120))
    assert judged(spotted(photo, 32), found) == ["glare"]
    merely_bright = spotted(photo, 60)
    merely_bright[..., 2] = photo[..., 2]
    assert judged(merely_bright, found) == []


def test_the_small_highlight_of_a_capsule_is_not_glare() -> None:
    photo, found = tablet(200, BLUE, (150, 150, 150))
    assert judged(spotted(photo, 12), found) == []


@pytest.mark.parametrize("radius", [20, 40, 60])
def test_a_white_pill_whose_bright_side_is_burnt_out_has_no_glare(radius: int) -> None:
    photo, found = tablet(200, WHITE)
    bright = spotted(photo, radius)
    assert measure(bright, found).burnt > 0.02
    assert judged(bright, found) == []


def test_dark_ink_beside_white_is_not_glare() -> None:
    photo, found = tablet(200, (253, 253, 252))
    middle = photo.shape[0] // 2
    for shift in (-30, 0, 30):
        cv2.line(photo, (middle - 50, middle + shift), (middle + 50, middle + shift), BROWN, 8)
    bright = np.where(np.arange(photo.shape[1])[None, :, None] < middle, photo, photo * 0.93)
    assert measure(clipped(bright), found).glare == 0


def test_a_quarter_of_the_light_is_too_dark() -> None:
    photo, found = tablet(200, WHITE, imprint=True)
    assert judged(clipped(photo * 0.25), found) == ["too dark"]


def test_a_dark_pill_on_a_dark_surface_in_good_light_is_not_too_dark() -> None:
    assert judged(*tablet(200, (135, 80, 50), (70, 70, 75), imprint=True)) == []


def test_the_blur_of_a_dark_photo_is_not_judged() -> None:
    photo, found = tablet(200, WHITE)
    soft = cv2.GaussianBlur(photo, (0, 0), 3 * MOST_BLUR * 200)
    assert judged(clipped(np.asarray(soft) * 0.25), found) == ["too dark"]


@pytest.mark.parametrize("colour", [WHITE, (230, 150, 75)])
def test_a_pill_whose_colour_is_burnt_out_is_too_bright(colour: Colour) -> None:
    photo, found = tablet(200, colour, imprint=True)
    assert judged(clipped(photo * 1.75), found) == ["too bright"]


@pytest.mark.parametrize("length_px", [60, 150, 700])
@pytest.mark.parametrize("turn", range(4))
def test_what_is_measured_lies_inside_the_mask_and_nowhere_else(length_px: int, turn: int) -> None:
    mask = np.zeros((length_px + 57, length_px + 90), bool)
    mask[9 : 9 + length_px, 33 : 33 + length_px] = np.tri(length_px, dtype=bool)
    mask = np.ascontiguousarray(np.rot90(mask, turn))
    photo = np.where(mask, np.uint8(255), np.uint8(90))[..., None].repeat(3, axis=2)
    assert measure(photo, found_in(mask)).burnt == 1
    assert measure(255 - photo, found_in(mask)).burnt == 0


# One photo: what is handed in


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_photo_is_refused(photo: Photo) -> None:
    with pytest.raises(ValueError, match="expected \\(H, W, 3\\) uint8"):
        photo_faults("a.jpg", photo, [], INPUT_PX)


def test_a_photo_is_only_looked_at() -> None:
    photo, found = tablet(200, BLUE)
    before = photo.copy()
    photo.setflags(write=False)
    photo_faults("a.jpg", photo, [found], INPUT_PX)
    assert (photo == before).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70))
def test_any_find_in_any_photo_is_measured(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), np.uint8)
    x, y = int(rng.integers(width)), int(rng.integers(height))
    box = (x, y, int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1)))
    found = Found(box, rng.random((box[3], box[2])) < rng.random(), 0.5)
    measured = measure(photo, found)
    assert measured.blur >= 0
    assert 0 <= measured.glare <= 1
    assert 0 <= measured.burnt <= 1
    assert 0 <= measured.brightness <= 255
    assert all(fault.image == "b.png" for fault in photo_faults("b.png", photo, [found], 128))


# All photos of a pill


def test_photos_that_agree_and_show_both_sides_have_no_fault() -> None:
    rows = unit([1, 0, 0], [1, 0.2, 0], [0, 0, 1], [0, 0.2, 1])
    assert faults_of_set(["a", "b", "c", "d"], rows, ["front", "front", "back", "back"]) == []


def test_the_odd_one_of_three_is_named() -> None:
    rows = unit([1, 0, 0], [0, 1, 0], [1, 0.1, 0])
    (fault,) = faults_of_set(["a", "b", "c"], rows, ["front"] * 3, ["back"])
    assert (fault.kind, fault.image) == ("disagrees", "b")
    assert "0.05" in fault.found  # the mean of 0 and 0.1 / sqrt(1.01)


def test_two_odd_ones_of_five_are_named() -> None:
    rows = unit([1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1], [1, 0, 0.1])
    faults = faults_of_set(["a", "b", "c", "d", "e"], rows, ["front"] * 5, ["back"])
    assert {fault.image for fault in faults} == {"b", "d"}


def test_of_two_that_disagree_neither_is_called_wrong() -> None:
    (fault,) = faults_of_set(["a", "b"], unit([1, 0], [0, 1]), ["front"] * 2, ["back"])
    assert (fault.kind, fault.image) == ("disagrees", "")
    assert "a and b" in fault.found


def test_front_and_back_need_not_agree() -> None:
    assert faults_of_set(["a", "b"], unit([1, 0], [0, 1]), ["front", "back"]) == []


def test_a_photo_the_model_sees_nothing_in_disagrees() -> None:
    rows = np.vstack([unit([1, 0], [1, 0]), np.zeros((1, 2), np.float32)])
    (fault,) = faults_of_set(["a", "b", "c"], rows, ["front"] * 3, ["back"])
    assert fault.image == "c"


@pytest.mark.parametrize("more", [-0.01, 0.01])
def test_agreement_is_a_limit_that_can_be_set(more: float) -> None:
    rows = unit([1, 0], [0.5, math.sqrt(0.75)])
    faults = faults_of_set(["a", "b"], rows, ["front"] * 2, ["back"], agreement=0.5 + more)
    assert bool(faults) == (more > 0)


def test_agreement_is_that_of_the_photo_least_like_the_others() -> None:
    rows = unit([1, 0], [1, 0], [0.6, 0.8])
    assert least_agreement(rows[:2]) == 1
    least = least_agreement(rows)
    assert least == pytest.approx(0.6)
    three = ["front"] * 3
    assert faults_of_set(["a", "b", "c"], rows, three, ["back"], agreement=least) == []
    (fault,) = faults_of_set(["a", "b", "c"], rows, three, ["back"], agreement=least + 1e-6)
    assert fault.image == "c"


@pytest.mark.parametrize(("side", "missing"), [("front", "back"), ("back", "front")])
def test_only_one_side_is_a_fault_until_the_other_is_enrolled(side: str, missing: str) -> None:
    rows = unit([1, 0], [1, 0])
    (fault,) = faults_of_set(["a", "b"], rows, [side] * 2)
    assert (fault.kind, fault.image) == ("one side", "")
    assert missing in fault.found
    assert faults_of_set(["a", "b"], rows, [side] * 2, [missing]) == []


def test_photos_that_say_no_side_may_all_show_one() -> None:
    (fault,) = faults_of_set(["a"], unit([1, 0]), [""])
    assert fault.kind == "one side"
    assert "no photo says" in fault.found


def test_no_photos_of_a_pill_that_has_both_sides_are_no_fault() -> None:
    assert faults_of_set([], np.empty((0, 3), np.float32), [], ["front", "back"]) == []


def test_sides_and_rows_must_fit_the_photos() -> None:
    with pytest.raises(ValueError, match="2 photos, 1 sides"):
        faults_of_set(["a", "b"], unit([1, 0], [1, 0]), ["front"])
    with pytest.raises(ValueError, match="'top'"):
        faults_of_set(["a"], unit([1, 0]), ["top"])


# Against the enrolled pills


def test_a_photo_the_rule_takes_for_another_pill_collides() -> None:
    candidates = [[Candidate("x", 0.5)], [Candidate("x", 0.9), Candidate("y", 0.2)]]
    fault = collision(["a", "b"], candidates, "new", RULE)
    assert fault is not None
    assert (fault.kind, fault.image, fault.other) == ("collides", "b", "x")
    assert "1 of 2 photos" in fault.found
    assert "0.90" in fault.found


def test_the_picture_shown_is_the_most_similar_one() -> None:
    candidates = [[Candidate("x", 0.7)], [Candidate("y", 0.95)], [Candidate("x", 0.8)]]
    fault = collision(["a", "b", "c"], candidates, "new", RULE)
    assert fault is not None
    assert (fault.image, fault.other) == ("b", "y")


def test_between_two_enrolled_pills_it_still_collides() -> None:
    candidates = [[Candidate("x", 0.9), Candidate("y", 0.89)]]
    fault = collision(["a"], candidates, "new", RULE)
    assert fault is not None
    assert fault.other == "x"


@pytest.mark.parametrize(
    "candidates",
    [
        [],
        [Candidate("x", 0.59)],
        [Candidate("own", 0.9)],
        [Candidate("own", 0.9), Candidate("x", 0.89)],
        [Candidate("x", math.nan)],
    ],
)
def test_a_stranger_and_the_pill_itself_do_not_collide(candidates: list[Candidate]) -> None:
    assert collision(["a"], [candidates], "own", RULE) is None


def test_another_pill_ahead_of_the_pill_itself_collides() -> None:
    candidates = [[Candidate("x", 0.9), Candidate("own", 0.7)]]
    fault = collision(["a"], candidates, "own", RULE)
    assert fault is not None
    assert fault.other == "x"


def test_each_photo_needs_its_candidates() -> None:
    with pytest.raises(ValueError, match="zip"):
        collision(["a", "b"], [[]], "new", RULE)


# What all faults have in common


def test_every_fault_says_what_to_do() -> None:
    photo, found = tablet(200, BLUE)
    soft = np.asarray(cv2.GaussianBlur(photo, (0, 0), 10))
    small = np.ascontiguousarray(photo[::6, ::6])
    faults = [
        *photo_faults("a", photo, [], INPUT_PX),
        *photo_faults("a", photo, [found, found], INPUT_PX),
        *photo_faults("a", soft, [found], INPUT_PX),
        *photo_faults("a", spotted(photo, 40), [found], INPUT_PX),
        *photo_faults("a", photo // 8, [found], INPUT_PX),
        *photo_faults("a", clipped(photo * 9.0), [found], INPUT_PX),
        *photo_faults("a", small, [found_in(np.ones((20, 20), bool))], INPUT_PX),
        *faults_of_set(["a", "b"], unit([1, 0], [0, 1]), ["front"] * 2),
    ]
    collides = collision(["a"], [[Candidate("x", 0.9)]], "new", RULE)
    assert collides is not None
    faults.append(collides)
    assert {fault.kind for fault in faults} == {
        "no pill", "several pills", "blurred", "glare", "too dark", "too bright", "too small",
        "clipped", "disagrees", "one side", "collides",
    }  # fmt: skip
    for fault in faults:
        assert fault.remedy.endswith(".")
        assert not fault.found.endswith(".")
        assert fault.expected
        assert not fault.expected.endswith(".")
        assert (fault.other != "") == (fault.kind == "collides")


# Drawing


def tablet(
    length_px: int,
    colour: Colour,
    surface: Colour = GREY,
    *,
    imprint: bool = False,
    shadow: bool = False,
) -> tuple[Photo, Found]:
    """A round tablet in the middle of a square frame of twice its length, and where it is."""
    side = 2 * length_px
    disc = disc_of(side, length_px / 2)
    scene = np.full((side, side, 3), surface, np.float32)
    if shadow:
        fall = cv2.GaussianBlur(np.roll(disc, length_px // 10, 1), (0, 0), 0.08 * length_px)
        scene *= (1 - 0.6 * fall)[..., None]
    scene += disc[..., None] * (np.array(colour, np.float32) - scene)
    if imprint:
        at, reach, thick = length_px, round(0.25 * length_px), max(1, round(0.04 * length_px))
        ink = [0.7 * float(channel) for channel in colour]
        cv2.line(scene, (at - reach, at - reach), (at + reach, at), ink, thick, cv2.LINE_AA)
        cv2.line(scene, (at - reach, at + reach), (at, at), ink, thick, cv2.LINE_AA)
    return clipped(scene), found_in(disc > 0.5)


def capsule(length_px: int, colour: Colour) -> tuple[Photo, Found]:
    """A lying capsule, two and a half times as long as wide."""
    side, half = 2 * length_px, 0.2 * length_px
    axis = np.arange(side) + 0.5 - side / 2
    beyond = np.maximum(np.abs(axis) - (length_px / 2 - half), 0)
    away = np.hypot(beyond[None], axis[:, None])
    cover = np.clip(half - away + 0.5, 0, 1)[..., None]
    scene = cover * np.array(colour) + (1 - cover) * np.array(GREY)
    return clipped(scene), found_in(away <= half)


def disc_of(side: int, radius: float) -> NDArray[np.float32]:
    """Shares of pixels (side, side) that a disc in the middle covers."""
    axis = np.arange(side, dtype=np.float32) + np.float32(0.5 - side / 2)
    return np.asarray(np.hypot(axis[None], axis[:, None]) * -1 + radius + 0.5).clip(0, 1)


def spotted(photo: Photo, radius: int) -> Photo:
    """With a white spot in the middle, its edge softened."""
    spot = cv2.GaussianBlur(disc_of(len(photo), radius), (0, 0), 2)
    return clipped(photo + 255.0 * spot[..., None])


def shaken(photo: Photo, reach_px: int, turn_degrees: float) -> Photo:
    """Moved along a line of `reach_px` during the exposure."""
    kernel = np.zeros((reach_px + 1, reach_px + 1), np.float32)
    turn, middle = math.radians(turn_degrees), reach_px / 2
    for step in np.linspace(-middle, middle, 8 * reach_px):
        x, y = middle + step * math.cos(turn), middle + step * math.sin(turn)
        kernel[round(y), round(x)] += 1
    kernel /= kernel.sum()
    return np.asarray(cv2.filter2D(photo, -1, kernel, borderType=cv2.BORDER_REPLICATE), np.uint8)


def clipped(pixels: NDArray[np.floating]) -> Photo:
    return np.round(pixels).clip(0, 255).astype(np.uint8)


def found_in(mask: NDArray[np.bool_]) -> Found:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return Found((x, y, width, height), mask[y : y + height, x : x + width], 1.0)


def moved(found: Found, by_px: int) -> Found:
    x, y, width, height = found.box
    return Found((x + by_px, y, width, height), found.mask, 1.0)


def unit(*rows: list[float]) -> NDArray[np.float32]:
    embeddings = np.array(rows, np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings
