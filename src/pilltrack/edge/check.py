"""The prescription check: what should lie on the tray against what does.

The list never enters the search: every pill on the tray has been decided against the whole
gallery, so one that is not on the list is seen for what it is, and never taken for one that is.

    ok              a pill of the list, as many as expected
    missing         a pill of the list, fewer than expected
    extra           a pill of the list, more than expected; or a known pill that is not on it
    wrong strength  a known pill that is not on the list, while another strength of the same drug
                    is on it and missing
    uncertain       pills that could be one of two (decision ambiguous)
    unknown         pills that are not enrolled

Only when every line is ok, and the tray cannot hold more than was seen, is the tray ok.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.locate import MAX_PILLS
from pilltrack.edge.prescription import Expected

Verdict = Literal["ok", "missing", "extra", "wrong strength", "uncertain", "unknown"]


@dataclass(frozen=True)
class Line:
    """What is to be said about one pill, or about all that are uncertain or unknown.

    `pill` is None for those two. `indices` are the places of the found pills in the tray's list,
    in its order: the boxes to colour. `instead_of` names the missing pills that one of wrong
    strength may stand for.
    """

    verdict: Verdict
    pill: str | None
    expected: int
    found: int
    indices: tuple[int, ...]
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """A line for each pill. `full`: as many pills were seen as can be, so there may be more."""

    lines: tuple[Line, ...]
    full: bool

    @property
    def ok(self) -> bool:
        """Exactly what is expected lies on the tray; never so for an empty list."""
        lines_ok = all(line.verdict == "ok" for line in self.lines)
        return bool(self.lines) and lines_ok and not self.full


def check(
    expected: Sequence[Expected],
    pills: Sequence[IdentifiedPill],
    metadata: Mapping[str, Mapping[str, str]],
) -> Check:
    """Compare a list with the identified pills of a tray.

    `metadata` (pill -> name, strength, ...) may lack pills; strengths are then not compared. The
    lines come in this order: the list's own; wrong strength; extra; each by name of pill;
    uncertain; unknown. Every pill of the tray stands in exactly one line. The order of the tray
    changes nothing but the indices.

    Raises ValueError for a count below 1, or a pill that is expected twice.
    """
    wanted = {entry.pill: entry.count for entry in expected}
    if len(wanted) != len(expected) or any(count < 1 for count in wanted.values()):
        raise ValueError("expected a list that names each pill once, each at least one time")
    places: dict[str, list[int]] = {}
    uncertain, unknown = [], []
    for index, found in enumerate(pills):
        match found.decision.kind, found.decision.pill:
            case "known", str(pill):
                places.setdefault(pill, []).append(index)
            case "ambiguous", _:
                uncertain.append(index)
            case _:
                unknown.append(index)
    listed = [_listed(pill, count, places.get(pill, [])) for pill, count in wanted.items()]
    missing = [line.pill for line in listed if line.verdict == "missing" and line.pill]
    foreign = [
        _foreign(pill, places[pill], missing, metadata) for pill in sorted(places.keys() - wanted)
    ]
    foreign.sort(key=lambda line: line.verdict != "wrong strength")
    rest = [_nameless("uncertain", uncertain), _nameless("unknown", unknown)]
    lines = (*listed, *foreign, *(line for line in rest if line.found))
    return Check(lines, full=len(pills) >= MAX_PILLS)


def as_json(result: Check) -> dict[str, Any]:
    """Turn a check into the answer of the web service and the record.

    >>> as_json(Check((Line("missing", "a", 2, 1, (0,)),), full=False))["lines"]
    [{'verdict': 'missing', 'pill': 'a', 'expected': 2, 'found': 1, 'indices': [0], \
'instead_of': []}]
    """
    return {
        "ok": result.ok,
        "full": result.full,
        "lines": [
            {
                "verdict": line.verdict,
                "pill": line.pill,
                "expected": line.expected,
                "found": line.found,
                "indices": list(line.indices),
                "instead_of": list(line.instead_of),
            }
            for line in result.lines
        ],
    }


def _listed(pill: str, count: int, indices: Sequence[int]) -> Line:
    verdict: Verdict = "ok"
    if len(indices) != count:
        verdict = "missing" if len(indices) < count else "extra"
    return Line(verdict, pill, count, len(indices), tuple(indices))


def _foreign(
    pill: str,
    indices: Sequence[int],
    missing: Sequence[str],
    metadata: Mapping[str, Mapping[str, str]],
) -> Line:
    its = metadata.get(pill, {})
    instead_of = tuple(other for other in missing if _other_strength(its, metadata.get(other, {})))
    verdict: Verdict = "wrong strength" if instead_of else "extra"
    return Line(verdict, pill, 0, len(indices), tuple(indices), instead_of)


def _nameless(verdict: Verdict, indices: Sequence[int]) -> Line:
    return Line(verdict, None, 0, len(indices), tuple(indices))


def _other_strength(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
    """Whether both drugs are known and the same, and both strengths known and different."""
    drugs = {" ".join(its.get("name", "").casefold().split()) for its in (a, b)}
    strengths = {"".join(its.get("strength", "").casefold().split()) for its in (a, b)}
    return len(drugs) == 1 and "" not in drugs and len(strengths) == 2 and "" not in strengths
