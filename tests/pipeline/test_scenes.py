"""Composed scenes: labels are where the pills are, and a seed is a scene."""

import cv2
import numpy as np
import pytest

from pilltrack.pipeline import clutter, laid_pill, scenes
from pilltrack.pipeline.clutter import add_clutter, draw_backdrop, lay
from pilltrack.pipeline.laid_pill import CUTOUT_PX, trimmed
from pilltrack.pipeline.light import Light
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.scenes import MAX_PILLS, MIN_PILL_PX, MIN_SHARE, compose

LIGHT = Light(1.0, 0.0, 1.0)


def test_the_same_seed_gives_the_same_scene() -> None:
    some, other = (compose(discs(), 160, 120, np.random.default_rng(5)) for _ in range(2))
    assert (some.frame == other.frame).all()
    assert (some.labels == other.labels).all()
    third = compose(discs(), 160, 120, np.random.default_rng(6))
    assert (some.frame != third.frame).any()


@pytest.mark.parametrize("seed", range(12))
def test_every_pill_has_a_label_and_its_box(seed: int) -> None:
    scene = compose(discs(), 160, 128, np.random.default_rng(seed))
    assert scene.frame.shape == (160, 128, 3)
    assert scene.labels.shape == (160, 128)
    assert np.unique(scene.labels[scene.labels > 0]).tolist() == list(
        range(1, len(scene.boxes) + 1)
    )
    for number, box in enumerate(scene.boxes, 1):
        rows, columns = np.nonzero(scene.labels == number)
        corner = (columns.min(), rows.min())
        size = (columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min())
        assert tuple(box) == (*corner, *size)
        assert max(size) >= MIN_PILL_PX * 0.4


def test_colourful_pixels_are_where_the_labels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laid_pill, "DYED", 0.0)
    inside, outside = [], []
    for seed in range(12):
        scene = compose([solid((255, 0, 0))], 160, 160, np.random.default_rng(seed), 6)
        colourful = np.ptp(scene.frame.astype(int), axis=2) > 110
        pills = (scene.labels > 0).astype(np.uint8)
        square = np.ones((5, 5), np.uint8)
        inside.append(colourful[cv2.erode(pills, square) > 0])
        outside.append(colourful[cv2.dilate(pills, square) == 0])
    assert np.concatenate(inside).mean() > 0.9
    assert np.concatenate(outside).mean() < 0.3


def test_dyed_capsules_have_two_colours_and_keep_their_outline() -> None:
    white = solid((250, 250, 250), 0.4)
    hues, alphas = [], []
    for seed in range(60):
        laid = laid_pill.turned(white, 60, 1.0, np.random.default_rng(seed))
        inside = laid[..., 3] > 0.99
        colours = laid[inside][:, :3].round(-1)
        hues.append(len(np.unique(colours, axis=0)))
        alphas.append(inside.sum())
    assert 5 < sum(n > 3 for n in hues) < 40  # two dyes, and shades at their seam
    assert max(alphas) - min(alphas) < 0.1 * max(alphas)


def test_a_scene_without_pills_needs_no_cutouts() -> None:
    scene = compose([], 96, 128, np.random.default_rng(0), 0)
    assert not scene.labels.any()
    assert scene.boxes.shape == (0, 4)


def test_a_crowded_scene_holds_many_pills() -> None:
    counts = [len(compose(discs(), 320, 320, np.random.default_rng(s), 32).boxes) for s in range(6)]
    assert max(counts) == MAX_PILLS
    assert np.mean(counts) > 24


def test_more_pills_than_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 32"):
        compose(discs(), 96, 96, np.random.default_rng(0), MAX_PILLS + 1)
    with pytest.raises(ValueError, match="from 0 cut-outs"):
        compose([], 96, 96, np.random.default_rng(0), 1)


def test_some_pills_touch() -> None:
    touching = 0.0
    for seed in range(8):
        labels = compose(discs(), 240, 240, np.random.default_rng(seed), 16).labels
        beside = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
        touching += float(sum(((a != b) & (a > 0) & (b > 0)).sum() for a, b in beside))
    assert touching > 100


def test_trimmed_cutouts_have_no_empty_border_and_are_small() -> None:
    photo = np.zeros((300, 400, 4), np.uint8)
    photo[50:250, 100:350] = 255
    small = trimmed(photo)
    assert small.shape == (round(CUTOUT_PX * 200 / 250), CUTOUT_PX, 4)
    assert (small[..., 3] == 255).all()


def test_a_thing_casts_its_shadow_away_from_the_light() -> None:
    scene = np.full((64, 64, 3), 200, np.float32)
    mask = np.zeros((64, 64), np.uint8)
    cv2.rectangle(mask, (26, 26), (37, 37), 255, cv2.FILLED)
    lay(scene, mask, np.array([10.0, 20.0, 30.0]), LIGHT, 6, 0.6)
    assert scene[32, 32].tolist() == [10, 20, 30]
    assert scene[32, 22, 0] < 190  # light comes from the right
    assert scene[32, 50, 0] > 195


@pytest.mark.parametrize("seed", range(30))
def test_clutter_of_any_size_stays_finite(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, room = draw_backdrop(96, LIGHT, rng)
    add_clutter(scene, 12, float(rng.uniform(3, 60)), LIGHT, rng)
    assert np.isfinite(scene).all()
    assert scene.shape == (96, 96, 3)
    assert room.dtype == np.uint8
    assert room.shape == (96, 96)


def discs() -> list[Photo]:
    return [solid((250, 250, 250)), solid((200, 40, 60)), solid((30, 60, 160), 0.4)]


def solid(colour: tuple[int, int, int], squeeze: float = 1.0) -> Photo:
    """An ellipse of one colour, 60 pixels long."""
    alpha = np.zeros((60, 60), np.uint8)
    cv2.ellipse(alpha, (30, 30), (29, round(29 * squeeze)), 0, 0, 360, 255, -1, cv2.LINE_AA)
    photo = np.empty((60, 60, 4), np.uint8)
    photo[..., :3], photo[..., 3] = colour, alpha
    return trimmed(photo)


def test_no_pill_is_put_there_that_is_shorter_than_the_shortest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[float] = []
    add = scenes._Heap.add

    def seen(heap: scenes._Heap, cutout: Photo, length_px: float) -> None:
        lengths.append(length_px)
        add(heap, cutout, length_px)

    monkeypatch.setattr(scenes._Heap, "add", seen)
    for seed in range(24):
        compose(discs(), 400, 300, np.random.default_rng(seed), MAX_PILLS)
    assert min(lengths) == MIN_SHARE * 400


def test_crumbs_are_smaller_than_any_pill(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []

    def seen(mask: Photo, outline: np.ndarray, *_: object) -> None:
        lengths.append(float(max(cv2.minAreaRect(outline.astype(np.float32) / 16)[1])))

    monkeypatch.setattr("pilltrack.pipeline.clutter.cv2.fillConvexPoly", seen)
    for seed in range(30):
        scene = np.full((640, 640, 3), 200.0, np.float32)
        clutter._add_crumbs(scene, 400.0, LIGHT, np.random.default_rng(seed))
    assert len(lengths) > 200
    assert 0.02 * 640 < max(lengths) < MIN_SHARE * 640
