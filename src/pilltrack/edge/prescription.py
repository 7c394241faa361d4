"""Expected lists: which pills, and how many of each, should lie on the tray.

    typed   2 ibuprofen-200 | 2 x ibuprofen-200 | ibuprofen-200, 2 | ibuprofen-200
    CSV     header pill,count
    JSON    [{"pill": "ibuprofen-200", "count": 2}]
    FHIR    MedicationDispense, MedicationRequest or a Bundle of them: see `edge.fhir`

Every entry must name one pill that this device knows, and a whole number of it. What does not is
refused with its place and with names that are alike; nothing is passed over and nothing guessed,
because a list that is read wrongly checks the tray against the wrong thing.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pilltrack.core.errors import InputRejected
from pilltrack.edge.fhir import NDC_SYSTEM, Order, read_orders

Pills = Mapping[str, Mapping[str, str]]  # pill -> metadata; no NDC is needed but for FHIR

MAX_BYTES = 1024 * 1024
MAX_ENTRIES = 1000
MAX_COUNT = 10_000  # of one pill
MAX_LINE_LENGTH = 400
COLUMNS = ("pill", "count")

_NUMBER = r"(?P<count>[-+]?[0-9]+(?:[.,][0-9]+)?)"
_TYPED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_NUMBER}\s*[xX×]\s+(?P<pill>\S.*)",
        rf"{_NUMBER}\s+(?P<pill>\S.*)",
        rf"(?P<pill>.*\S)\s*,\s*{_NUMBER}",
        rf"(?P<pill>.*\S)\s+[xX×]\s*{_NUMBER}",
    )
)


@dataclass(frozen=True)
class Expected:
    """So many of a pill are expected; `count` is at least 1."""

    pill: str
    count: int


def read_expected(data: bytes, *, name: str, pills: Pills) -> list[Expected]:
    """Read a list in any of the forms, which its content tells; in the order of the list.

    `name` is used in messages only. `pills` are all that the device can recognise, those enrolled
    on it included. A pill that is listed twice is counted together; letter case does not matter.

    Raises InputRejected for an empty list, anything beyond the limits above, a pill that is not
    among `pills`, and a count that is not a whole number from 1 on.
    """
    if len(data) > MAX_BYTES:
        remedy = "Send the list alone."
        raise _refused(name, f"{len(data)} bytes", f"at most {MAX_BYTES} bytes", remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"not UTF-8 text ({error.reason} at byte {error.start})"
        raise _refused(name, found, "a list in UTF-8", "Save it again as UTF-8.") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip().startswith("{"):
        return read_fhir(text, name=name, pills=pills)
    if first.lstrip().startswith("["):
        return read_json(text, name=name, pills=pills)
    if {cell.strip(' "').casefold() for cell in first.split(",")} >= set(COLUMNS):
        return read_csv(text, name=name, pills=pills)
    return read_typed(text, name=name, pills=pills)


def read_typed(text: str, *, name: str, pills: Pills) -> list[Expected]:
    """Read one pill a line; blank lines are passed over. Errors as `read_expected`.

    >>> read_typed("2 x aspirin-81\\nibuprofen-200", name="list",
    ...            pills={"aspirin-81": {}, "ibuprofen-200": {}})
    [Expected(pill='aspirin-81', count=2), Expected(pill='ibuprofen-200', count=1)]
    """
    names = _Names(pills)
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_LENGTH:
            expected = f"at most {MAX_LINE_LENGTH} characters"
            raise _refused(where, f"{len(line)} characters", expected, "One pill a line.")
        if line.strip():
            pill, count = _typed_line(line.strip(), where, names)
            entries.append((where, pill, _whole(count, where)))
    return _collected(entries, name)


def read_csv(text: str, *, name: str, pills: Pills) -> list[Expected]:
    """Read CSV with the columns pill and count, in either order. Errors as `read_expected`."""
    names = _Names(pills)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    entries = []
    remedy = "Correct the line; a value with a comma needs double quotes."
    try:
        for values in reader:
            cells, where = [value.strip() for value in values], f"{name}:{reader.line_num}"
            if not any(cells):
                continue
            if not header:
                header = [cell.casefold() for cell in cells]
                if sorted(header) != sorted(COLUMNS):
                    raise _refused(where, f"columns {cells!r:.80}", "pill,count", remedy)
            elif len(cells) != len(COLUMNS):
                raise _refused(where, f"{len(cells)} values", "a pill and a count", remedy)
            else:
                row = dict(zip(header, cells, strict=True))
                pill = names.pill(row["pill"], where)
                entries.append((where, pill, _whole(row["count"], where)))
    except csv.Error as error:
        where = f"{name}:{reader.line_num}"
        raise _refused(where, f"not CSV ({error})", "comma-separated values", remedy) from error
    return _collected(entries, name)


def read_json(text: str, *, name: str, pills: Pills) -> list[Expected]:
    """Read a JSON list of objects with exactly `pill` and `count`. Errors as `read_expected`."""
    names, content = _Names(pills), _json(text, name)
    if not isinstance(content, list):
        raise _refused(name, "JSON that is no list", _JSON_FORM, _JSON_REMEDY)
    entries = []
    for number, item in enumerate(content, 1):
        where = f"{name}: item {number}"
        try:
            entry = _Item.model_validate(item)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "object"
            raise _refused(
                where, f"{field!r:.80}: {first['msg']}", _JSON_FORM, _JSON_REMEDY
            ) from error
        entries.append((where, names.pill(entry.pill, where), _whole(entry.count, where)))
    return _collected(entries, name)


def read_fhir(text: str, *, name: str, pills: Pills) -> list[Expected]:
    """Read FHIR JSON; an NDC is looked up in the `ndc` of the pills, with or without dashes.

    An NDC names labeler, product and package. The package is how many are in the box and not what
    they look like, so it only decides between pills that share labeler and product. Errors as
    `read_expected` and `fhir.read_orders`, and for a medication without an NDC that belongs to
    one pill.
    """
    content = _json(text, name)
    if not isinstance(content, dict) or "resourceType" not in content:
        expected = f"a FHIR resource, or {_JSON_FORM}"
        raise _refused(name, "JSON without a resourceType", expected, _JSON_REMEDY)
    orders = read_orders(content, name=name)
    codes = _Codes(pills)
    return _collected(
        [(order.where, codes.pill(order), _whole(order.quantity, order.where)) for order in orders],
        name,
    )


_JSON_FORM = '[{"pill": "ibuprofen-200", "count": 2}]'
_JSON_REMEDY = "Correct the file."


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    pill: str
    count: int | Decimal


class _Names:
    """Finds a pill by its name."""

    def __init__(self, pills: Pills) -> None:
        self._pills = pills
        self._folded: dict[str, list[str]] = {}
        for pill in sorted(pills):
            self._folded.setdefault(_folded(pill), []).append(pill)

    def find(self, typed: str) -> list[str]:
        """The pills of that name: those that differ by case only if none has it exactly."""
        return [typed] if typed in self._pills else self._folded.get(_folded(typed), [])

    def pill(self, typed: str, where: str) -> str:
        """The one pill of that name."""
        found = self.find(typed)
        if len(found) == 1:
            return found[0]
        if found:
            remedy = "Write it as it was enrolled."
            raise _refused(where, f"pill {typed!r:.80}", f"one of {', '.join(found)}", remedy)
        raise _unknown(where, f"pill {typed!r:.80}", self.alike(typed))

    def alike(self, typed: str) -> list[str]:
        """Up to three enrolled names close to what was typed, the closest first."""
        close = difflib.get_close_matches(_folded(typed[:MAX_LINE_LENGTH]), self._folded, n=3)
        return [pill for folded in close for pill in self._folded[folded]][:3]


def _typed_line(line: str, where: str, names: _Names) -> tuple[str, str]:
    """The pill and the count of a line: the one way to read it that names an enrolled pill."""
    matches = [match for pattern in _TYPED if (match := pattern.fullmatch(line))]
    readings = [(match["pill"], match["count"]) for match in matches] + [(line, "1")]
    known = sorted({(pill, count) for typed, count in readings for pill in names.find(typed)})
    if len(known) == 1:
        return known[0]
    if known:
        either = " or ".join(f"{count} of {pill}" for pill, count in known)
        remedy = "Send the list as JSON."
        raise _refused(where, f"{line!r:.80}", f"one meaning, not {either:.400}", remedy)
    typed = readings[0][0]
    alike = [pill for reading, _ in readings for pill in names.alike(reading)]
    raise _unknown(where, f"pill {typed!r:.80}", list(dict.fromkeys(alike))[:3])


@dataclass(frozen=True)
class _Ndc:
    """An NDC; of ten digits without dashes only the digits are known, not where they part."""

    digits: str
    product: str = ""  # labeler and product, five and four digits
    package: str = ""  # two digits

    def same_pill(self, other: _Ndc) -> bool:
        if self.product and other.product:
            return self.product == other.product
        return self.digits == other.digits


def _ndc(code: str) -> _Ndc | None:
    """Parse an NDC as printed (4-4-2, 5-3-2, 5-4-1), padded to 5-4-2, or without its package."""
    match = re.fullmatch(r"([0-9]{4,5})-([0-9]{3,4})(?:-([0-9]{1,2}))?", code.strip())
    match = match or re.fullmatch(r"([0-9]{5})([0-9]{4})([0-9]{2})?", code.strip())
    if match:
        labeler, product, package = match.groups(default="")
        padded = package and package.zfill(2)
        return _Ndc(labeler + product + package, labeler.zfill(5) + product.zfill(4), padded)
    return _Ndc(code.strip()) if re.fullmatch(r"[0-9]{10}", code.strip()) else None


class _Codes:
    """Finds a pill by an NDC."""

    def __init__(self, pills: Pills) -> None:
        parsed = {pill: _ndc(pills[pill].get("ndc", "")) for pill in sorted(pills)}
        self._ndcs = {pill: ndc for pill, ndc in parsed.items() if ndc}

    def pill(self, order: Order) -> str:
        """The one pill that the codes of an order mean."""
        medication = f"{order.medication!r:.80}" if order.medication else "a medication"
        if not order.ndcs:
            without, expected = f"{medication} without an NDC", f"a coding with {NDC_SYSTEM}"
            remedy = "Add the NDC, or send the list as CSV."
            raise _refused(order.where, without, expected, remedy)
        found = sorted({pill for code in order.ndcs for pill in self._find(code)})
        codes = f"NDC {', '.join(order.ndcs)!r:.80} of {medication}"
        if not found:
            expected = "the NDC of a pill that is enrolled"
            remedy = "Enrol it with a bundle that knows its NDC, or send the list as CSV."
            raise _refused(order.where, codes, expected, remedy)
        if len(found) > 1:
            expected, remedy = "the NDC of one pill", "Send the list as CSV, with names of pills."
            either = f"{codes}, which {' and '.join(found):.400} share"
            raise _refused(order.where, either, expected, remedy)
        return found[0]

    def _find(self, code: str) -> list[str]:
        wanted = _ndc(code)
        if wanted is None:
            return []
        found = [pill for pill, ndc in self._ndcs.items() if ndc.same_pill(wanted)]
        exact = [pill for pill in found if wanted.package == self._ndcs[pill].package]
        return exact if len(found) > 1 and exact else found


def _whole(count: int | Decimal | str, where: str) -> int:
    """A whole number from 1 to MAX_COUNT; compared first, as 1e999999999 has no int."""
    number = 0 if isinstance(count, str) else count
    if isinstance(count, str) and re.fullmatch(r"[-+]?[0-9]{1,9}", count):
        number = int(count)
    if 1 <= number <= MAX_COUNT and number == int(number):
        return int(number)
    expected = f"a whole number from 1 to {MAX_COUNT}"
    raise _refused(where, f"count {str(count)!r:.80}", expected, "Correct the count.")


def _collected(entries: Sequence[tuple[str, str, int]], name: str) -> list[Expected]:
    """Add up the counts (where, pill, count) of each pill, in order of first appearance."""
    if not entries:
        raise _refused(name, "no pill", "a list of pills", "List at least one pill.")
    if len(entries) > MAX_ENTRIES:
        remedy = "Check one tray at a time."
        raise _refused(name, f"{len(entries)} entries", f"at most {MAX_ENTRIES}", remedy)
    counts: dict[str, int] = {}
    for where, pill, count in entries:
        counts[pill] = _whole(counts.get(pill, 0) + count, where)
    return [Expected(pill, count) for pill, count in counts.items()]


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(
            text, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_unique
        )
    except (ValueError, ArithmeticError, RecursionError) as error:  # Decimal's is arithmetic
        found = f"not JSON ({error!s:.120})"
        raise _refused(name, found, "JSON", _JSON_REMEDY) from error


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r:.80} twice in one object")
        found[key] = value
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _unknown(where: str, found: str, alike: Sequence[str]) -> InputRejected:
    hint = f"Did you mean {' or '.join(alike)}? " if alike else ""
    remedy = f"{hint}A pill must be enrolled before it can be checked."
    return _refused(where, found, "a pill that is enrolled", remedy)


def _refused(subject: str, found: str, expected: str, remedy: str) -> InputRejected:
    return InputRejected(subject, found=found, expected=expected, remedy=remedy)
