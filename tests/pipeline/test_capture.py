"""Cutting pills out of studio photos, and photographing them again on a counter top."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.pipeline.capture import cut_out, photograph, simulate_capture
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.surfaces import SURFACE_SHARES, draw_surface
from tests.pipeline.clean_camera import CLEAN

HARD = CaptureParams(
    background_share=1,
    scale=(0.6, 0.95),
    perspective=0.1,
    shadow=0.6,
    light=0.4,
    colour_cast=0.15,
    blur_px=5,
    noise=0.05,
    jpeg_quality=(30, 90),
    clip=0.2,
    distant=0.5,
    body=0.5,
)


def studio_disc(
    size_px: int = 224, radius: int = 80, pill: int = 190, background: int = 0
) -> tuple[Photo, NDArray[np.bool_]]:
    """A grey disc on a plain background, and where it is."""
    y, x = np.mgrid[:size_px, :size_px]
    middle = (size_px - 1) / 2
    inside = np.hypot(x - middle, y - middle) <= radius
    photo = np.where(inside, pill, background).astype(np.uint8)
    return np.dstack([photo] * 3), inside


def overlap(alpha: Photo, truth: NDArray[np.bool_]) -> float:
    mask = alpha > 127
    return float((mask & truth).sum() / (mask | truth).sum())


def alpha_of(photo: Photo) -> Photo:
    cut = cut_out(photo)
    assert cut is not None
    return cut[..., 3]


@pytest.mark.parametrize(("pill", "background"), [(190, 0), (60, 0), (120, 255), (230, 140)])
def test_cut_out_finds_the_pill_on_any_plain_background(pill: int, background: int) -> None:
    photo, truth = studio_disc(pill=pill, background=background)
    cut = cut_out(photo)
    assert cut is not None
    assert cut.shape == (224, 224, 4)
    np.testing.assert_array_equal(cut[..., :3], photo)
    # The outline may be drawn in by two pixels of a radius of 80: (78 / 80)^2 = 0.95.
    assert overlap(cut[..., 3], truth) > 0.95
    assert not cut[..., 3][~cv2.dilate(truth.astype(np.uint8), np.ones((3, 3))).astype(bool)].any()


def test_cut_out_survives_the_rings_of_jpeg() -> None:
    photo, truth = studio_disc(pill=220)
    coded = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    alpha = alpha_of(decoded)
    assert overlap(alpha, truth) > 0.94
    assert decoded[alpha > 127].min() > 110  # no black fringe


def test_cut_out_keeps_a_black_imprint_on_black_opaque() -> None:
    photo, truth = studio_disc()
    cv2.putText(photo, "44", (70, 140), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 8)
    assert (photo[truth] == 0).any()
    alpha = alpha_of(photo)
    inner = cv2.erode(truth.astype(np.uint8), np.ones((9, 9))).astype(bool)
    assert alpha[inner].min() == 255


def test_cut_out_accepts_a_pill_that_touches_the_border_left_and_right() -> None:
    y, x = np.mgrid[:224, :224] - 111.5
    truth = np.hypot(np.maximum(np.abs(x) - 72, 0), y) <= 40
    photo = np.dstack([np.where(truth, 200, 0).astype(np.uint8)] * 3)
    assert overlap(alpha_of(photo), truth) > 0.92


@pytest.mark.parametrize("kind", list(SURFACE_SHARES))
def test_cut_out_returns_none_for_a_pill_on_an_ordinary_surface(kind: str) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scene = draw_surface(128, rng, kind)
        slope = np.linspace(0.8, 1.1, 128, dtype=np.float32)[:, None, None]
        scene *= slope
        cv2.circle(scene, (64, 64), 40, (240, 240, 240), cv2.FILLED)
        assert cut_out(np.clip(scene, 0, 255).astype(np.uint8)) is None


@pytest.mark.parametrize("value", [0, 255])
def test_cut_out_returns_none_for_an_empty_photo(value: int) -> None:
    assert cut_out(np.full((64, 64, 3), value, np.uint8)) is None


def test_cut_out_returns_none_when_several_pills_lie_there() -> None:
    photo = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(photo, (60, 100), 30, (200, 200, 200), cv2.FILLED)
    cv2.circle(photo, (140, 100), 30, (200, 200, 200), cv2.FILLED)
    assert cut_out(photo) is None


def test_same_generator_gives_the_same_pixels_and_another_gives_others() -> None:
    photo, _ = studio_disc()
    alpha = alpha_of(photo)
    first, again, other = (
        simulate_capture(photo, alpha, 96, HARD, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


def test_settings_of_zero_change_only_position_and_size() -> None:
    photo, _ = studio_disc(radius=80, pill=190)
    capture = simulate_capture(photo, alpha_of(photo), 160, CLEAN, np.random.default_rng(3))
    # The disc now fills 0.8 of 160 px: radius 64, but it may stand off the middle by 0.5 * room,
    # which is 0.05 of the frame = 8 px.
    y, x = np.mgrid[:160, :160] - 79.5
    from_middle = np.hypot(x, y)
    assert np.abs(capture[from_middle < 50].astype(int) - 190).max() <= 2
    assert capture[from_middle > 78].max() <= 2
    area = float((capture[..., 0] > 95).sum())
    assert area == pytest.approx(np.pi * 64**2, rel=0.04)


def test_settings_of_zero_leave_an_ordinary_photo_its_colours() -> None:
    photo = np.full((90, 120, 3), (200, 120, 60), np.uint8)
    capture = simulate_capture(photo, None, 64, CLEAN, np.random.default_rng(0))
    assert np.abs(capture.astype(int) - (200, 120, 60)).max() <= 2


def test_scale_is_the_share_of_the_frame_the_longer_side_fills() -> None:
    photo, _ = studio_disc(radius=80)
    alpha = alpha_of(photo)
    for share in (0.4, 0.7):
        settings = CLEAN.model_copy(update={"scale": (share, share)})
        capture = simulate_capture(photo, alpha, 200, settings, np.random.default_rng(0))
        _, _, width, height = cv2.boundingRect((capture[..., 0] > 95).astype(np.uint8))
        assert width == pytest.approx(share * 200, abs=4)
        assert height == pytest.approx(share * 200, abs=4)


def test_a_new_surface_replaces_the_studio_as_often_as_background_share_says() -> None:
    photo, _ = studio_disc(radius=60)
    alpha = alpha_of(photo)
    settings = CLEAN.model_copy(update={"background_share": 0.5})
    n_black = 0
    for seed in range(100):
        capture = simulate_capture(photo, alpha, 32, settings, np.random.default_rng(seed))
        n_black += bool(capture[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 10)
    assert 30 <= n_black <= 70  # 50 expected, 5 is one standard deviation


def test_clip_pushes_no_more_than_its_share_out_of_the_frame() -> None:
    photo, _ = studio_disc(radius=80)
    alpha = alpha_of(photo)
    settings = CLEAN.model_copy(update={"clip": 0.3})
    areas = []
    for seed in range(60):
        capture = simulate_capture(photo, alpha, 64, settings, np.random.default_rng(seed))
        areas.append(float((capture[..., 0] > 95).sum()))
    whole = np.pi * (0.4 * 64) ** 2
    assert min(areas) < 0.97 * whole
    # Even pushed out diagonally, a segment 0.3 diameters high on two sides stays the limit.
    assert min(areas) > 0.45 * whole


def test_a_distant_pill_has_few_pixels_as_often_as_the_setting_says() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)

    def detail(distant: float, seed: int, size_px: int = 224) -> float:
        settings = CLEAN.model_copy(update={"distant": distant})
        capture = simulate_capture(photo, None, size_px, settings, np.random.default_rng(seed))
        assert capture.shape == (size_px, size_px, 3)
        return float(np.abs(np.diff(capture.astype(int), axis=1)).mean())

    near = [detail(0, seed) for seed in range(60)]
    # At 28 to 128 of 224 px no fine noise is left; a near capture keeps what rotation leaves.
    assert max(detail(1, seed) for seed in range(60)) < 0.6 * min(near)
    n_distant = sum(detail(0.5, seed) < 0.6 * near[seed] for seed in range(60))
    assert 15 <= n_distant <= 45  # 30 expected, 4 is one standard deviation
    assert detail(1, 0, size_px=20) > 0  # a frame of fewer pixels than any distant crop


@pytest.mark.parametrize("shape", [(16, 16), (17, 300), (300, 17), (1, 1), (5, 3), (224, 223)])
def test_odd_shapes_do_not_crash(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert cut_out(photo) is None
    alpha = np.full(shape, 255, np.uint8)
    for mask in (None, alpha, np.zeros_like(alpha)):
        for size_px in (32, 33):
            capture = simulate_capture(photo, mask, size_px, HARD, rng)
            assert capture.shape == (size_px, size_px, 3)
            assert capture.dtype == np.uint8


def test_a_camera_without_faults_stores_what_it_sees() -> None:
    scene = np.full((48, 48, 3), 130, np.float32)
    assert np.abs(photograph(scene, CLEAN, np.random.default_rng(0)).astype(int) - 130).max() <= 1


@pytest.mark.parametrize("kind", list(SURFACE_SHARES))
def test_surfaces_are_finite_repeatable_and_in_range(kind: str) -> None:
    first, again, other = (
        draw_surface(64, np.random.default_rng(seed), kind) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.5
    assert first.min() >= 0
    assert first.max() <= 255
