"""Pills keep their track while they move, and get a steady name only when frames agree."""

import itertools

import pytest

from pilltrack.core.decide import Decision
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.locate import Box
from pilltrack.edge.tracking import NEEDED, PATIENCE, WINDOW, Tracker, steady

ASPIRIN = Decision("known", "aspirin", 0.9, ())
IBUPROFEN = Decision("known", "ibuprofen", 0.9, ())
UNKNOWN = Decision("unknown", None, 0.1, ())
AMBIGUOUS = Decision("ambiguous", None, 0.8, ())


def test_a_name_is_shown_only_after_enough_frames_say_it() -> None:
    tracker = Tracker()
    kinds = [tracker.update([at((0, 0, 20, 20))])[0].kind for _ in range(NEEDED + 1)]
    assert kinds == ["checking"] * (NEEDED - 1) + ["known", "known"]


def test_a_pill_that_moves_keeps_its_track() -> None:
    tracker = Tracker()
    tracks = [tracker.update([at((5 * n, 0, 20, 20))])[0].track for n in range(12)]
    assert set(tracks) == {1}


def test_two_pills_side_by_side_keep_their_tracks_in_whatever_order_they_are_found() -> None:
    left, right = at((0, 0, 20, 20), ASPIRIN), at((22, 0, 20, 20), IBUPROFEN)
    tracker = Tracker()
    for pills in itertools.islice(itertools.cycle([[left, right], [right, left]]), NEEDED):
        shown = tracker.update(pills)
    assert [(pill.track, pill.pill) for pill in shown] == [(1, "aspirin"), (2, "ibuprofen")]


def test_two_names_on_one_pill_are_never_outvoted() -> None:
    assert steady([ASPIRIN] * (WINDOW - 1) + [IBUPROFEN]) == ("ambiguous", None)


def test_a_name_is_withdrawn_when_it_is_no_longer_said() -> None:
    tracker = Tracker()
    for _ in range(WINDOW):
        tracker.update([at((0, 0, 20, 20))])
    kinds = [tracker.update([at((0, 0, 20, 20), UNKNOWN)])[0].kind for _ in range(WINDOW)]
    assert kinds[0] == "known"
    assert kinds[-1] == "unknown"
    assert kinds == sorted(kinds, key=["known", "checking", "unknown"].index)


def test_a_pill_out_of_sight_for_a_moment_comes_back_as_itself() -> None:
    tracker = Tracker()
    tracker.update([at((0, 0, 20, 20))])
    for _ in range(PATIENCE):
        assert tracker.update([]) == []
    assert tracker.update([at((2, 0, 20, 20))])[0].track == 1
    for _ in range(PATIENCE + 1):
        tracker.update([])
    assert tracker.update([at((2, 0, 20, 20))])[0].track == 2


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], ("checking", None)),
        ([UNKNOWN] * NEEDED, ("unknown", None)),
        ([AMBIGUOUS] * NEEDED, ("ambiguous", None)),
        ([AMBIGUOUS] * 2 + [UNKNOWN] * 2, ("unknown", None)),
        ([ASPIRIN] * NEEDED + [UNKNOWN] * (WINDOW - NEEDED), ("known", "aspirin")),
    ],
)
def test_votes_decide(votes: list[Decision], expected: tuple[str, str | None]) -> None:
    assert steady(votes) == expected


def at(box: Box, decision: Decision = ASPIRIN) -> IdentifiedPill:
    return IdentifiedPill(box, 0.9, decision)
