"""The tray against the list: every pill counted once, and ok only for exactly what is expected."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilltrack.core.decide import Decision
from pilltrack.core.gallery import Candidate
from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.locate import MAX_PILLS
from pilltrack.edge.check import Line, as_json, check
from pilltrack.edge.prescription import Expected

METADATA = {
    "ibu-200": {"name": "Ibuprofen", "strength": "200 mg"},
    "ibu-400": {"name": "ibuprofen", "strength": "400 mg"},
    "ibu-200-other-maker": {"name": "Ibuprofen", "strength": "200mg"},
    "aspirin": {"name": "Aspirin", "strength": "81 mg"},
    "plain": {"name": "Ibuprofen", "strength": ""},
}


def tray(*what: str | None) -> list[IdentifiedPill]:
    """Pills on a tray: a name is known, None unknown, "?" ambiguous."""
    return [pill_of(each) for each in what]


def pill_of(what: str | None) -> IdentifiedPill:
    if what is None:
        decision = Decision("unknown", None, 0.1, (Candidate("aspirin", 0.1),))
    elif what == "?":
        candidates = (Candidate("ibu-200", 0.9), Candidate("ibu-400", 0.9))
        decision = Decision("ambiguous", None, 0.9, candidates)
    else:
        decision = Decision("known", what, 0.9, (Candidate(what, 0.9),))
    return IdentifiedPill((0, 0, 1, 1), 0.9, decision)


def test_exactly_what_is_expected_is_ok() -> None:
    result = check(
        [Expected("ibu-200", 2), Expected("aspirin", 1)],
        tray("ibu-200", "aspirin", "ibu-200"),
        METADATA,
    )
    assert result.lines == (
        Line("ok", "ibu-200", 2, 2, (0, 2)),
        Line("ok", "aspirin", 1, 1, (1,)),
    )
    assert result.ok


def test_fewer_are_missing_and_more_are_extra() -> None:
    result = check(
        [Expected("ibu-200", 3), Expected("aspirin", 1)],
        tray("aspirin", "ibu-200", "aspirin"),
        METADATA,
    )
    assert result.lines == (
        Line("missing", "ibu-200", 3, 1, (1,)),
        Line("extra", "aspirin", 1, 2, (0, 2)),
    )
    assert not result.ok


def test_known_pill_that_is_not_listed_is_extra() -> None:
    result = check([Expected("aspirin", 1)], tray("ibu-200", "aspirin"), METADATA)
    assert result.lines == (
        Line("ok", "aspirin", 1, 1, (1,)),
        Line("extra", "ibu-200", 0, 1, (0,)),
    )
    assert not result.ok


def test_other_strength_of_a_missing_pill_is_called_so() -> None:
    result = check([Expected("ibu-200", 2)], tray("ibu-400", "ibu-200"), METADATA)
    assert result.lines == (
        Line("missing", "ibu-200", 2, 1, (1,)),
        Line("wrong strength", "ibu-400", 0, 1, (0,), ("ibu-200",)),
    )


def test_other_strength_of_a_pill_that_is_all_there_is_extra() -> None:
    result = check([Expected("ibu-200", 1)], tray("ibu-400", "ibu-200"), METADATA)
    assert result.lines[1] == Line("extra", "ibu-400", 0, 1, (0,))


def test_listed_pill_is_never_of_wrong_strength() -> None:
    result = check(
        [Expected("ibu-200", 1), Expected("ibu-400", 1)], tray("ibu-400", "ibu-400"), METADATA
    )
    assert [line.verdict for line in result.lines] == ["missing", "extra"]


@pytest.mark.parametrize(
    "foreign",
    ["ibu-200-other-maker", "aspirin", "plain", "not in the metadata"],
)
def test_strengths_are_compared_only_where_both_are_known_of_one_drug(foreign: str) -> None:
    result = check([Expected("ibu-200", 1)], tray(foreign), METADATA)
    assert [line.verdict for line in result.lines] == ["missing", "extra"]


@pytest.mark.parametrize(
    "metadata", [{}, {"a": {"strength": "1 mg"}, "b": {"strength": "2 mg", "name": " "}}]
)
def test_pills_without_a_name_of_the_drug_are_not_taken_for_one_drug(
    metadata: dict[str, dict[str, str]],
) -> None:
    result = check([Expected("a", 1)], tray("b"), metadata)
    assert [line.verdict for line in result.lines] == ["missing", "extra"]


def test_wrong_strengths_come_before_what_is_extra() -> None:
    result = check([Expected("ibu-200", 1)], tray("plain", "ibu-400", None, "aspirin"), METADATA)
    assert [(line.verdict, line.pill) for line in result.lines] == [
        ("missing", "ibu-200"),
        ("wrong strength", "ibu-400"),
        ("extra", "aspirin"),
        ("extra", "plain"),
        ("unknown", None),
    ]


def test_wrong_strength_names_every_missing_strength() -> None:
    metadata = {f"x-{n}": {"name": "X", "strength": f"{n} mg"} for n in (1, 2, 3)}
    result = check([Expected("x-3", 1), Expected("x-1", 1)], tray("x-2", "x-2"), metadata)
    assert result.lines[2] == Line("wrong strength", "x-2", 0, 2, (0, 1), ("x-3", "x-1"))


def test_unknown_and_uncertain_pills_fill_no_gap() -> None:
    result = check([Expected("ibu-200", 2)], tray(None, "ibu-200", "?", None), METADATA)
    assert result.lines == (
        Line("missing", "ibu-200", 2, 1, (1,)),
        Line("uncertain", None, 0, 1, (2,)),
        Line("unknown", None, 0, 2, (0, 3)),
    )
    assert not result.ok


@pytest.mark.parametrize("left_over", [None, "?"])
def test_tray_with_all_pills_and_one_left_over_is_not_ok(left_over: str | None) -> None:
    result = check([Expected("aspirin", 1)], tray("aspirin", left_over), METADATA)
    assert result.lines[0].verdict == "ok"
    assert not result.ok


def test_empty_tray_lacks_everything() -> None:
    result = check([Expected("aspirin", 1)], [], METADATA)
    assert result.lines == (Line("missing", "aspirin", 1, 0, ()),)


def test_nothing_expected_and_nothing_there_is_not_called_ok() -> None:
    assert not check([], [], METADATA).ok


def test_tray_that_may_hold_more_than_can_be_seen_is_not_ok() -> None:
    for n_pills, ok in ((MAX_PILLS - 1, True), (MAX_PILLS, False)):
        result = check([Expected("aspirin", n_pills)], tray(*["aspirin"] * n_pills), METADATA)
        assert result.lines == (Line("ok", "aspirin", n_pills, n_pills, tuple(range(n_pills))),)
        assert result.ok is ok
        assert result.full is not ok


@pytest.mark.parametrize("bad", [[Expected("a", 0)], [Expected("a", 1), Expected("a", 2)]])
def test_impossible_list_is_refused(bad: list[Expected]) -> None:
    with pytest.raises(ValueError, match="each pill once"):
        check(bad, [], METADATA)


def test_json_has_exactly_the_promised_shape() -> None:
    result = check([Expected("ibu-200", 1)], tray("ibu-400", None), METADATA)
    expected = {
        "ok": False,
        "full": False,
        "lines": [
            {"verdict": "missing", "pill": "ibu-200", "expected": 1, "found": 0,
             "indices": [], "instead_of": []},
            {"verdict": "wrong strength", "pill": "ibu-400", "expected": 0, "found": 1,
             "indices": [0], "instead_of": ["ibu-200"]},
            {"verdict": "unknown", "pill": None, "expected": 0, "found": 1,
             "indices": [1], "instead_of": []},
        ],
    }  # fmt: skip
    assert as_json(result) == expected
    assert json.loads(json.dumps(as_json(result))) == expected


WHAT = st.sampled_from([*METADATA, None, "?"])
LISTS = st.dictionaries(st.sampled_from(sorted(METADATA)), st.integers(1, 3)).map(
    lambda counts: [Expected(pill, count) for pill, count in counts.items()]
)


@settings(max_examples=300, deadline=None)
@given(LISTS, st.lists(WHAT, max_size=8))
def test_every_pill_stands_in_one_line_and_ok_means_equal(
    expected: list[Expected], what: list[str | None]
) -> None:
    result = check(expected, tray(*what), METADATA)
    indices = [index for line in result.lines for index in line.indices]
    assert sorted(indices) == list(range(len(what)))
    assert all(line.found == len(line.indices) for line in result.lines)
    assert sum(line.expected for line in result.lines) == sum(e.count for e in expected)
    wanted = Counter({entry.pill: entry.count for entry in expected})
    assert result.ok == (bool(expected) and Counter(what) == wanted)


@settings(max_examples=100, deadline=None)
@given(LISTS, st.lists(WHAT, max_size=8), st.randoms(use_true_random=False))
def test_order_of_the_tray_changes_nothing_but_indices(
    expected: list[Expected], what: list[str | None], dice: random.Random
) -> None:
    shuffled = list(what)
    dice.shuffle(shuffled)
    one, other = (check(expected, tray(*each), METADATA) for each in (what, shuffled))
    said = [
        [(ln.verdict, ln.pill, ln.found, ln.instead_of) for ln in r.lines] for r in (one, other)
    ]
    assert said[0] == said[1]
