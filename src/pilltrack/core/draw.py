"""Marks over a frame: boxes and words, told apart by line and word, not by colour alone.

    known       solid green       the pill's name and score
    ambiguous   dashed amber      "a or b?"
    unknown     dotted red        "unknown"
    counted     solid blue        the pill's number

More than MAX_LABELS marks get numbers, and a legend below the frame says the words. The font is
Pillow's own, with ASCII letters only: others lose their accents, or become "?".
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pilltrack.core.identify import IdentifiedPill
from pilltrack.core.locate import Found

Colour = tuple[int, int, int]
STYLES: Final[dict[str, tuple[Colour, float, float]]] = {  # colour, dash and gap in line widths
    "known": ((40, 200, 90), 1.0, 0.0),
    "ambiguous": ((255, 180, 40), 4.0, 2.5),
    "unknown": ((255, 90, 80), 1.2, 2.0),
    "counted": ((60, 160, 255), 1.0, 0.0),
}
_DARK = (15, 15, 15)
MAX_LABELS = 12
_MAX_NAME = 28  # characters of a pill's name in a mark
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Area = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Mark:
    """A box (x, y, width, height) in the frame's pixels, its words, and a style of STYLES."""

    box: tuple[int, int, int, int]
    text: str
    style: str


def identified_marks(pills: Sequence[IdentifiedPill]) -> list[Mark]:
    """What `pilltrack identify` paints."""
    return [Mark(pill.box, _words(pill), pill.decision.kind) for pill in pills]


def counted_marks(found: Sequence[Found]) -> list[Mark]:
    """What `pilltrack count` paints: numbers from 1, in the order of `found`."""
    return [Mark(pill.box, str(number), "counted") for number, pill in enumerate(found, 1)]


def draw(frame: NDArray[np.uint8], marks: Sequence[Mark]) -> NDArray[np.uint8]:
    """Paint marks over a copy of an RGB frame (H, W, 3) uint8; a legend makes it taller."""
    picture = Image.fromarray(frame)
    brush = ImageDraw.Draw(picture)
    longer = max(picture.size)
    width = max(2, round(longer / 320))
    font = ImageFont.load_default(size=max(11, round(longer / 45)))
    labels = [mark.text for mark in marks]
    numbered = len(marks) > MAX_LABELS and any(mark.style != "counted" for mark in marks)
    if numbered:
        labels = [str(number) for number in range(1, len(marks) + 1)]
    for mark in marks:
        _outline(brush, mark, width)
    boxes: list[_Area] = [(x, y, x + w, y + h) for x, y, w, h in (mark.box for mark in marks)]
    taken: list[_Area] = []
    for number, (mark, label) in enumerate(zip(marks, labels, strict=True)):
        others = [*taken, *boxes[:number], *boxes[number + 1 :]]
        place = _label_place(brush, boxes[number], label, font, picture.size, width, others)
        if place is not None:
            taken.append(place)
            _write(brush, place, label, mark, font, width)
    if numbered:
        picture = _with_legend(picture, marks, font)
    return np.asarray(picture, np.uint8)


def _words(pill: IdentifiedPill) -> str:
    decision = pill.decision
    if decision.kind == "known":
        return f"{_short(decision.pill or '')} {decision.score:.2f}"
    if decision.kind == "ambiguous":
        return " or ".join(_short(candidate.pill) for candidate in decision.candidates[:2]) + "?"
    return "unknown"


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[:15]}...{name[-10:]}"


def _ascii(text: str) -> str:
    """What the font can show of a text.

    >>> _ascii("Ibuprofène 200")
    'Ibuprofene 200'
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(character if " " <= character <= "~" else "?" for character in plain)


def _write(
    brush: ImageDraw.ImageDraw, place: _Area, label: str, mark: Mark, font: _Font, pad: int
) -> None:
    left, top, _, bottom = place
    brush.rectangle(place, fill=_DARK)
    colour = STYLES[mark.style][0]
    at = (left + pad, (top + bottom) / 2)
    brush.text(at, _ascii(label), fill=colour, font=font, anchor="lm")


def _with_legend(picture: Image.Image, marks: Sequence[Mark], font: _Font) -> Image.Image:
    """The picture and a strip below it, which says what each number is."""
    lines = [_ascii(f"{number}  {mark.text}") for number, mark in enumerate(marks, 1)]
    brush = ImageDraw.Draw(picture)
    row = 1.5 * brush.textbbox((0, 0), "Ag", font=font)[3]
    column = max(brush.textlength(line, font=font) for line in lines) + row
    n_columns = max(1, int(picture.width // column))
    n_rows = math.ceil(len(lines) / n_columns)
    taller = Image.new("RGB", (picture.width, picture.height + round((n_rows + 0.5) * row)), _DARK)
    taller.paste(picture)
    brush = ImageDraw.Draw(taller)
    for index, (line, mark) in enumerate(zip(lines, marks, strict=True)):
        at = (row / 2 + index // n_rows * column, picture.height + row * (index % n_rows + 0.75))
        brush.text(at, line, fill=STYLES[mark.style][0], font=font, anchor="lm")
    return taller


def _outline(brush: ImageDraw.ImageDraw, mark: Mark, width: int) -> None:
    x, y, box_width, box_height = mark.box
    right, bottom = x + box_width - 1, y + box_height - 1
    corners = [(x, y), (right, y), (right, bottom), (x, bottom)]
    colour, dash, gap = STYLES[mark.style]
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        brush.line((start, end), fill=_DARK, width=width + 2)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        for part in _dashes(start, end, dash * width, gap * width):
            brush.line(part, fill=colour, width=width)


def _dashes(
    start: tuple[float, float], end: tuple[float, float], dash: float, gap: float
) -> list[tuple[float, float, float, float]]:
    """The painted parts of a line.

    >>> _dashes((0, 0), (10, 0), 4, 2)
    [(0.0, 0.0, 4.0, 0.0), (6.0, 0.0, 10.0, 0.0)]
    """
    length = math.dist(start, end)
    if not gap or not length:
        return [(*start, *end)]
    way = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    parts, at = [], 0.0
    while at < length:
        until = min(at + dash, length)
        parts.append((start[0] + way[0] * at, start[1] + way[1] * at,
                      start[0] + way[0] * until, start[1] + way[1] * until))  # fmt: skip
        at += dash + gap
    return parts


def _label_place(
    brush: ImageDraw.ImageDraw,
    box: _Area,
    label: str,
    font: _Font,
    size: tuple[int, int],
    pad: int,
    others: Sequence[_Area],
) -> _Area | None:
    """Above the box, else below, else inside: where it covers least of `others`.

    None where the frame is too small for it.
    """
    left, top, right, bottom = brush.textbbox((0, 0), _ascii(label), font=font)
    wide, high = right - left + 2 * pad, bottom - top + 2 * pad
    if wide > size[0] or 3 * high > size[1]:
        return None
    x = max(0.0, min(box[0], size[0] - wide))
    rows = (box[1] - high - pad, box[3] + pad, box[1] + pad)
    places = [(x, row, x + wide, row + high) for row in rows if 0 <= row <= size[1] - high]
    places = places or [(x, 0.0, x + wide, high)]
    return min(places, key=lambda place: sum(_shared(place, other) for other in others))


def _shared(some: _Area, other: _Area) -> float:
    """The area that two places have in common."""
    wide = min(some[2], other[2]) - max(some[0], other[0])
    high = min(some[3], other[3]) - max(some[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
