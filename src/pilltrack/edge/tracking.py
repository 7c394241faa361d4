"""Pills followed from frame to frame, and one steady decision for each.

A single frame can be blurred, or show a pill in glare. A track gathers the decisions on one pill
over the last WINDOW frames and gives a name only when NEEDED of them say the same name and none
says another. Until so many have been seen it is "checking". What is shown never depends on the
order in which pills were found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pilltrack.core.decide import Decision
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.locate import Box, iou

WINDOW = 7  # frames that vote: half a second at 15 a second
NEEDED = 4  # votes for a name, and for saying unknown or ambiguous
MIN_IOU = 0.3  # of a pill's boxes in two frames
PATIENCE = 5  # frames without the pill until its track ends

Kind = Literal["known", "unknown", "ambiguous", "checking"]


@dataclass(frozen=True)
class TrackedPill:
    """A pill as it is shown: its track, where it is now, and what its last frames agree on."""

    track: int
    box: Box
    confidence: float
    kind: Kind
    pill: str | None  # only if known
    score: float  # of the last frame
    candidates: tuple[tuple[str, float], ...]  # of the last frame, best first


@dataclass
class _Track:
    number: int
    box: Box
    votes: deque[Decision] = field(default_factory=lambda: deque(maxlen=WINDOW))
    missed: int = 0


class Tracker:
    """Follows the pills of one camera; belongs to one thread."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, pills: Sequence[IdentifiedPill]) -> list[TrackedPill]:
        """Take the pills of the next frame; return them with their tracks, in order of track."""
        pairs = sorted(
            (
                (iou(track.box, pill.box), track.number, index)
                for track in self._tracks
                for index, pill in enumerate(pills)
            ),
            key=lambda pair: (-pair[0], pair[1], pills[pair[2]].box),
        )
        by_number = {track.number: track for track in self._tracks}
        owners: dict[int, _Track] = {}  # index of a pill -> its track
        for share, number, index in pairs:
            if share >= MIN_IOU and number in by_number and index not in owners:
                owners[index] = by_number.pop(number)
        for track in by_number.values():
            track.missed += 1
        self._tracks = [track for track in self._tracks if track.missed <= PATIENCE]
        for index in sorted(range(len(pills)), key=lambda index: pills[index].box):
            if index not in owners:
                owners[index] = _Track(self._next, pills[index].box)
                self._tracks.append(owners[index])
                self._next += 1
        shown = []
        for index, track in owners.items():
            pill = pills[index]
            track.box, track.missed = pill.box, 0
            track.votes.append(pill.decision)
            shown.append(_shown(track, pill))
        return sorted(shown, key=lambda tracked: tracked.track)


def steady(votes: Sequence[Decision]) -> tuple[Kind, str | None]:
    """What the last decisions on one pill agree on.

    >>> known, unknown = Decision("known", "a", 0.9, ()), Decision("unknown", None, 0.1, ())
    >>> steady([known] * 4 + [unknown] * 3)
    ('known', 'a')
    >>> steady([known] * 3 + [unknown] * 3)
    ('checking', None)
    >>> steady([known] * 4 + [Decision("known", "b", 0.9, ())])
    ('ambiguous', None)
    """
    names = [vote.pill for vote in votes if vote.kind == "known"]
    if len(set(names)) > 1:
        return "ambiguous", None  # whatever the majority: a false name harms
    if len(names) >= NEEDED:
        return "known", names[0]
    kinds = [vote.kind for vote in votes]
    if kinds.count("ambiguous") >= NEEDED:
        return "ambiguous", None
    if len(votes) - len(names) >= NEEDED:
        return "unknown", None
    return "checking", None


def _shown(track: _Track, pill: IdentifiedPill) -> TrackedPill:
    kind, name = steady(track.votes)
    candidates = tuple((c.pill, c.score) for c in pill.decision.candidates)
    score = pill.decision.score
    return TrackedPill(track.number, pill.box, pill.confidence, kind, name, score, candidates)
