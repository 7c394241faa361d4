"""Marks over a frame: they show, they stay inside, and their kinds differ without colour."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.decide import Decision
from pilltrack.core.draw import STYLES, Mark, counted_marks, draw, identified_marks
from pilltrack.core.gallery import Candidate
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.locate import Found

GREY = np.full((240, 320, 3), 128, np.uint8)
BOX = (100, 90, 120, 60)


def test_words_say_what_was_decided() -> None:
    candidates = (Candidate("aspirin", 0.875), Candidate("ibuprofen", 0.87))
    kinds = [
        Decision("known", "aspirin", 0.875, candidates),
        Decision("ambiguous", None, 0.875, candidates),
        Decision("unknown", None, 0.1, candidates),
    ]
    marks = identified_marks([IdentifiedPill(BOX, 0.9, decision) for decision in kinds])
    assert [(mark.text, mark.style) for mark in marks] == [
        ("aspirin 0.88", "known"),
        ("aspirin or ibuprofen?", "ambiguous"),
        ("unknown", "unknown"),
    ]


def test_pills_are_numbered_in_the_order_they_come() -> None:
    boxes = [(10, 10, 20, 20), (60, 10, 20, 20), (50, 80, 20, 20)]
    marks = counted_marks([Found(box, np.ones((20, 20), bool), 0.9) for box in boxes])
    assert [(mark.text, mark.box) for mark in marks] == list(zip("123", boxes, strict=True))


def test_long_names_keep_their_score_and_their_rival() -> None:
    long, other = "x" * 60, "y" * 60
    candidates = (Candidate(long, 0.9), Candidate(other, 0.9))
    known = IdentifiedPill(BOX, 0.9, Decision("known", long, 0.9, candidates))
    ambiguous = IdentifiedPill(BOX, 0.9, Decision("ambiguous", None, 0.9, candidates))
    texts = [mark.text for mark in identified_marks([known, ambiguous])]
    assert texts[0].endswith("x 0.90")
    assert "y?" in texts[1]
    assert max(map(len, texts)) < 65


def test_a_box_as_large_as_the_frame_shows_all_its_sides() -> None:
    painted = draw(GREY, [Mark((0, 0, 320, 240), "", "counted")]).astype(int)
    blue = np.abs(painted - STYLES["counted"][0]).max(axis=2) < 8
    for side in (blue[0], blue[-1], blue[:, 0], blue[:, -1]):
        assert side.mean() > 0.9


def test_many_marks_are_numbered_and_explained_below_the_frame() -> None:
    marks = [Mark((20 * n, 100, 15, 15), f"pill {n}", "known") for n in range(15)]
    painted = draw(GREY, marks)
    assert painted.shape[1] == 320
    assert painted.shape[0] > 240
    assert draw(GREY, marks[:12]).shape == GREY.shape
    numbers = [Mark(mark.box, str(n), "counted") for n, mark in enumerate(marks)]
    assert draw(GREY, numbers).shape == GREY.shape


def test_accents_are_folded_and_the_rest_is_marked() -> None:
    some, other = (draw(GREY, [Mark(BOX, text, "known")]) for text in ("Ibuprofène", "Ibuprofene"))
    assert (some == other).all()


def test_kinds_differ_in_their_lines_not_in_colour_alone() -> None:
    shares = []
    for style in ("known", "ambiguous", "unknown"):
        painted = draw(GREY, [Mark(BOX, "", style)])
        # A row of the lower side, well inside the line and away from the corners.
        row = painted[BOX[1] + BOX[3] - 1, BOX[0] + 10 : BOX[0] + BOX[2] - 10].astype(int)
        shares.append((np.abs(row - STYLES[style][0]).max(axis=1) < 8).mean())
    assert shares[0] == 1
    assert 0.2 < shares[2] < shares[1] - 0.1 < 0.9


def test_the_frame_itself_is_not_changed() -> None:
    frame = GREY.copy()
    painted = draw(frame, [Mark(BOX, "aspirin", "known")])
    assert (frame == GREY).all()
    assert (painted[110:140, 130:190] == 128).all()  # the pill stays visible
    assert (painted != GREY).any()


@pytest.mark.parametrize(
    "box", [(0, 0, 320, 240), (0, 0, 1, 1), (319, 239, 1, 1), (0, 230, 320, 10), (300, 0, 20, 20)]
)
@pytest.mark.parametrize("text", ["", "a", "a very long name " * 20, "\u0394 \u85ac"])
def test_any_box_and_text_are_painted(box: tuple[int, int, int, int], text: str) -> None:
    painted = draw(GREY, [Mark(box, text, "known")])
    assert painted.shape == GREY.shape
    assert painted.dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (2000, 1500, 3)])
def test_frames_of_any_size_are_painted(shape: tuple[int, int, int]) -> None:
    frame: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    assert draw(frame, [Mark((0, 0, 1, 1), "unknown", "unknown")]).shape == shape


def test_labels_of_pills_side_by_side_do_not_cover_each_other() -> None:
    marks = [
        Mark((40, 100, 60, 40), "some pill", "known"),
        Mark((70, 105, 60, 40), "other", "known"),
    ]
    both = draw(GREY, marks)
    for number in (0, 1):
        # The dark ground of a label that is alone is there as well when both are painted.
        alone = draw(GREY, [marks[number]])
        ground = (alone == 15).all(axis=2)
        assert (both[ground] == 15).all(axis=1).mean() > 0.5
