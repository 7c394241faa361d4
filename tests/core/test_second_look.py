"""A closer look at finds in doubt raises or lowers their confidence."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pilltrack.core.errors import BundleRejected
from pilltrack.core.litert import BATCH
from pilltrack.core.locate import MAX_CROP_PX, Found, Locator, crop, most_confident_first
from pilltrack.core.second_look import (
    BELIEVED,
    CUT,
    FIRST_WEIGHT,
    SURE,
    TRUST,
    closer,
    cut_off,
    log_odds,
    weighed,
)

GOLDEN = Path(__file__).parents[1] / "golden"
TWICE = GOLDEN / "looking_twice_locator.tflite"
ONCE = GOLDEN / "whole_frame_locator.tflite"


def plain(grey: int) -> np.ndarray:
    return np.full((48, 48, 3), grey, np.uint8)


def test_a_second_look_drops_what_the_first_one_found() -> None:
    twice, once = (Locator(file, min_confidence=0.5) for file in (TWICE, ONCE))
    assert [pill.box for pill in twice.locate(plain(250))] == [(0, 0, 48, 48)]
    assert twice.locate(plain(5)) == []
    assert [pill.box for pill in once.locate(plain(5))] == [(0, 0, 48, 48)]


def test_the_confidence_is_that_of_both_looks() -> None:
    twice = Locator(TWICE, min_confidence=0.5)
    (first,) = twice.first_look(plain(144), 0.1)
    (both,) = twice.find(plain(144), 0.0)
    surrounded = closer(plain(144), first.box, first.length_px / 0.6, 32).mean() / 8 - 16
    wanted = weighed(first.confidence, surrounded, cut=1.0)
    assert both.confidence == pytest.approx(wanted, abs=1e-3)
    assert both.confidence < first.confidence  # black beyond the border, and cut off


def test_a_find_clear_of_every_border_is_not_held_cut_off() -> None:
    twice, frame = Locator(TWICE, min_confidence=0.5), np.full((100, 200, 3), 250, np.uint8)
    assert twice._second
    finds = [found((x, 40, 10, 10), 0.59) for x in (150, 190)]
    clear, cut = twice._second.confidences(frame, finds)
    assert log_odds(clear) - log_odds(cut) >= CUT  # the other sees black beyond the border, too
    same = weighed(0.59, closer(frame, (150, 40, 10, 10), 10 / 0.6, 32).mean() / 8 - 16)
    assert clear == pytest.approx(same, abs=1e-3)


def test_what_the_first_look_is_sure_of_is_believed_inside_the_frame() -> None:
    twice, frame = Locator(TWICE, min_confidence=0.5), np.zeros((100, 200, 3), np.uint8)
    assert twice._second
    finds = [found((150, 40, 10, 10), q) for q in (SURE, 0.59, 0.9)]
    finds.append(found((190, 40, 10, 10), 0.9))
    believed, doubted, sure, cut = twice._second.confidences(frame, finds)
    assert believed == weighed(SURE, BELIEVED)
    assert sure == weighed(0.9, BELIEVED)
    assert doubted == pytest.approx(weighed(0.59, -16), abs=1e-3)
    assert cut == pytest.approx(weighed(0.9, -16, cut=1.0), abs=1e-3)
    all_doubted = twice._second.confidences(frame, finds, sure=1.0)
    assert all_doubted == pytest.approx(
        [weighed(q, -16) for q in (SURE, 0.59, 0.9)] + [cut], abs=1e-3
    )


@pytest.mark.parametrize("file", [TWICE.name, "spots_locator.tflite"])  # one by one; together
def test_many_finds_are_looked_at_as_each_by_itself(file: str) -> None:
    twice = Locator(TWICE.with_name(file), min_confidence=0.5)
    assert twice._second
    frame = np.random.default_rng(3).integers(0, 256, (100, 200, 3), np.uint8)
    finds = [found((4 * n, 2 * n, 12, 9), 0.4) for n in range(2 * BATCH + 3)]
    together = twice._second.confidences(frame, finds)
    assert together == [twice._second.confidences(frame, [find])[0] for find in finds]
    assert len(set(together)) > BATCH
    assert twice._second.confidences(frame, []) == []


def found(box: tuple[int, int, int, int], confidence: float) -> Found:
    return Found(box, np.ones((box[3], box[2]), bool), confidence)


def test_finds_come_most_confident_first() -> None:
    some = [((9, 0, 4, 4), 0.4), ((5, 0, 4, 4), 0.8), ((1, 0, 4, 4), 0.4)]
    ordered = most_confident_first(found(box, confidence) for box, confidence in some)
    assert [pill.box[0] for pill in ordered] == [5, 1, 9]


def test_a_find_of_less_than_the_least_confidence_is_none() -> None:
    twice = Locator(TWICE, min_confidence=0.5)
    confidences = [twice.find(plain(grey), 0.0)[0].confidence for grey in (150, 180, 210, 240)]
    assert confidences == sorted(confidences)
    assert twice.find(plain(150), confidences[0] + 0.01) == []


def test_no_opinion_leaves_the_order_as_it_was_and_even_odds_even() -> None:
    firsts = np.linspace(0, 1, 30)
    confidences = [weighed(first, 0.0) for first in firsts]
    assert confidences == sorted(confidences)
    assert weighed(0.5, 0.0) == 0.5
    assert log_odds(weighed(0.3, 1.5)) == pytest.approx(FIRST_WEIGHT * log_odds(0.3) + TRUST * 1.5)


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((0, 40, 10, 10), 1.0),
        ((40, 0, 10, 10), 1.0),
        ((190, 40, 10, 10), 1.0),
        ((40, 90, 10, 10), 1.0),
        ((0, 0, 200, 100), 1.0),
        ((3, 40, 10, 10), 0.25),
        ((40, 88, 10, 10), 0.5),
        ((4, 4, 192, 92), 0.0),
    ],
)
def test_a_find_at_the_border_is_held_less_sure(box: tuple[int, int, int, int], cut: float) -> None:
    assert cut_off(box, 100, 200) == pytest.approx(cut)
    taken_off = log_odds(weighed(0.6, 0.4)) - log_odds(weighed(0.6, 0.4, cut))
    assert taken_off == pytest.approx(CUT * cut)


@pytest.mark.parametrize(("first", "second"), [(0.0, -40.0), (1.0, 40.0), (0.0, 40.0), (1.0, -9.0)])
def test_a_confidence_is_never_beyond_0_and_1(first: float, second: float) -> None:
    assert 0 <= weighed(first, second) <= 1


def test_a_closer_look_is_square_and_black_beyond_the_frame() -> None:
    frame = np.full((40, 60, 3), 200, np.uint8)
    look = closer(frame, (50, 10, 10, 10), 40, 32)  # 15 of 40 pixels lie beyond its right side
    assert look.shape == (32, 32, 3)
    assert look[16, 2].tolist() == [200, 200, 200]
    assert look[16, -2].tolist() == [0, 0, 0]
    assert (look > 100).mean() == pytest.approx((25 / 40) * (35 / 40), abs=0.03)


def test_a_closer_look_at_a_find_of_no_size_is_still_one() -> None:
    frame = np.full((8, 8, 3), 200, np.uint8)
    assert closer(frame, (3, 3, 1, 1), 0.2, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("shape", [(1, 5000), (5700, 87), (10, 100_000), (1, 12_000_000)])
def test_a_find_as_long_as_a_thin_frame_takes_little_memory(shape: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), 250, np.uint8)
    tracemalloc.start()
    twice = Locator(TWICE, min_confidence=0.01)
    (found,) = twice.locate(frame)
    cut = crop(frame, found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(cut.shape) <= MAX_CROP_PX
    assert peak < 4 * frame.nbytes + 20e6


def test_a_second_look_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(BundleRejected, match=r"bad_look_locator.*signature look.*\[1, 2\]"):
        Locator(GOLDEN / "bad_look_locator.tflite", min_confidence=0.5)
