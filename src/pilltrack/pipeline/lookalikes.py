"""Which enrolled pills are most easily taken for each other, and what tells them apart.

`find_lookalikes` compares every two references of different pills and joins what the test photos
got wrong; `measure_pictures` looks at the two closest photos of each pair where the tables say
nothing about colour or shape. The result is `lookalikes.csv`, one row per pair.

The order serves a person with little time: first the pairs of which one got the other's name, then
those nearest to each other, by how often that happens at least (lower end of the 95 % Wilson
interval), so that 8 of 20 photos stand before 1 of 1; then the others, by similarity. Half of the
places belong to the most similar pairs whatever was confused: a pair that no test photo happened
to show is as dangerous. Two pills often share no more than a blank back: then turning them over
tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.errors import DatasetRejected
from pilltrack.core.gallery import Reference
from pilltrack.core.image import read_image
from pilltrack.pipeline.capture import cut_out
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.table import PillRow, check_choice, load_pills, read_table, write_csv

SIZES_DIFFER_MM = 1.0
# How often two photos of one pill differ by more: measured in docs/data.md.
COLOURS_DIFFER = 8.0  # studio photos: 3 %; two white tablets: 5 %
COLOURS_DIFFER_OUTSIDE = 20.0  # photos with their own light: rendered 3.5 %, phone 11.5 %
SHAPES_DIFFER = 0.15  # of length / width, studio photos: none of 2,259 pills

_DIGITS = 5  # of a similarity
_ROWS_PER_CHUNK = 512
_CENTRE_SHARE = 0.2  # of a crop's side: on the pill even for a slim capsule
_LIGHTNESS_WEIGHT = 1 / 3
Pair = tuple[str, str]
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LookAlike:
    """Two enrolled pills (`pill_a` < `pill_b`), their closest references, and what is known.

    `similarity` is the cosine of the two references. Of `n_probes` test photos of either pill,
    `n_confused` were nearest to the other, and to `n_misnamed` the device gave the other's name;
    `confusion_rate` is that of `n_confused`, None without photos.
    `told_apart_by` names attributes that differ, with `; ` between them, out of colour, shape,
    size, imprint, "colour (measured)", "shape (measured)"; empty: nothing is known to differ.
    `colour_difference` and `aspect_difference` compare the two pictures (`measure_pictures`).
    """

    pill_a: str
    pill_b: str
    image_a: str
    image_b: str
    similarity: float
    n_probes: int
    n_confused: int
    n_misnamed: int
    confusion_rate: float | None
    told_apart_by: str
    same_drug_other_strength: bool
    colour_difference: float | None = None
    aspect_difference: float | None = None


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(LookAlike))


def find_lookalikes(
    embeddings: Rows,
    references: Sequence[Reference],
    pills: Mapping[str, PillRow],
    confusions: Mapping[Pair, int],
    wrong_names: Mapping[Pair, int],
    n_probes: Mapping[str, int],
    *,
    limit: int = 50,
) -> list[LookAlike]:
    """List the pairs of enrolled pills that are most easily confused, at most `limit`.

    `embeddings` (R, D) float32 of unit length belong to `references`, in any order; `pills` may
    lack some. `confusions` counts test photos by (their pill, pill of the best look),
    `wrong_names` by (their pill, name given); pairs of a pill with itself are passed over.
    `n_probes` counts the test photos of each pill.
    The order is that of the module's docstring, ties by name; the same for references in another
    order. Similarities are rounded to 5 digits before they are compared. Memory is O(R) beside
    20 MB per 10,000 references, time O(R^2).

    Raises ValueError for embeddings of another shape or type, a pill in `confusions` that is not
    enrolled, and more confused photos than there are.

    >>> embeddings = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    >>> references = [Reference(pill, "", f"{pill}.png") for pill in "abc"]
    >>> pills = {"b": PillRow("b", colour="white"), "c": PillRow("c", colour="Blue")}
    >>> confusions = {("c", "b"): 1}
    >>> for found in find_lookalikes(embeddings, references, pills, confusions, {}, {"c": 4}):
    ...     print(found.pill_a, found.pill_b, found.similarity, found.n_confused)
    b c 0.6 1
    a b 0.8 0
    a c 0.0 0
    """
    if embeddings.ndim != 2 or len(embeddings) != len(references) or embeddings.dtype != np.float32:
        raise ValueError(
            f"embeddings {embeddings.shape} {embeddings.dtype} of {len(references)} references; "
            "expected (R, D) float32"
        )
    enrolled = _Enrolled(embeddings, references)
    confused = _by_pair(confusions, enrolled)
    misnamed = _by_pair(wrong_names, enrolled)
    similar = enrolled.most_similar(limit)

    def harm(pair: Pair) -> tuple[float, float]:
        counts = (misnamed.get(pair, 0), confused.get(pair, 0))
        named, nearest = (_surely(count, _probes(pair, n_probes)) for count in counts)
        return -named, -nearest

    proven = sorted({*confused, *misnamed}, key=lambda pair: (*harm(pair), pair))
    chosen = dict.fromkeys(similar[: (limit + 1) // 2])
    for pair in [*proven, *similar]:
        if len(chosen) < limit:
            chosen[pair] = None
    rows = [
        _row(pair, enrolled, pills, confused, misnamed, _probes(pair, n_probes)) for pair in chosen
    ]
    return sorted(
        rows,
        key=lambda row: (*harm((row.pill_a, row.pill_b)), -row.similarity, row.pill_a, row.pill_b),
    )


def measure_pictures(prepared: Path, lookalikes: Sequence[LookAlike]) -> list[LookAlike]:
    """Compare the two pictures of each pair, where the tables do not say what tells them apart.

    `prepared` is the directory of the prepare stage. `colour_difference` is the distance of the
    median CIELAB colours of the pills' pixels, lightness weighted a third: studio photos expose
    white pills between L* 64 and 81, so that plain CIE76 calls a third of white pairs different.
    `aspect_difference` compares length / width, from the second moments of the masks; it is None
    unless both pills stand out from a studio background. Without a mask the colour is that of the
    middle of the crop, and has to differ by more.
    """
    pills = load_pills(prepared)
    images = {image for row in lookalikes for image in (row.image_a, row.image_b)}
    looks = {image: _look(read_image(prepared / image)) for image in sorted(images)}
    measured = []
    for row in lookalikes:
        a, b = looks[row.image_a], looks[row.image_b]
        studio = a.aspect is not None and b.aspect is not None
        colour = _colour_difference(a.lab, b.lab)
        aspect = None
        if a.aspect is not None and b.aspect is not None:
            aspect = round(abs(a.aspect - b.aspect), 3)
        told = told_apart_by(
            pills.get(row.pill_a, PillRow(row.pill_a)),
            pills.get(row.pill_b, PillRow(row.pill_b)),
            colours_differ=colour > (COLOURS_DIFFER if studio else COLOURS_DIFFER_OUTSIDE),
            shapes_differ=aspect is not None and aspect > SHAPES_DIFFER,
        )
        measured.append(
            replace(row, told_apart_by=told, colour_difference=colour, aspect_difference=aspect)
        )
    return measured


def told_apart_by(
    a: PillRow, b: PillRow, *, colours_differ: bool = False, shapes_differ: bool = False
) -> str:
    """Name the attributes in which two pills are known to differ, with `; ` between them.

    Text is compared without regard to case and repeated spaces, the faces of an imprint (between
    `;`) also to their order; sizes differ by more than 1 mm. What is empty on either side does not
    differ. `colours_differ` and `shapes_differ` are what pictures say; they count where the
    tables say nothing.

    >>> told_apart_by(PillRow("a", colour="White", imprint="TEVA; 5310", size_mm="9"),
    ...               PillRow("b", colour="white", imprint="5310;teva", size_mm="10.5"))
    'size'
    >>> told_apart_by(PillRow("a"), PillRow("b", colour="blue"), colours_differ=True)
    'colour (measured)'
    """
    found = []
    for name, first, second, seen in (
        ("colour", a.colour, b.colour, colours_differ),
        ("shape", a.shape, b.shape, shapes_differ),
    ):
        if first.strip() and second.strip():
            if _plain(first) != _plain(second):
                found.append(name)
        elif seen:
            found.append(f"{name} (measured)")
    if a.size_mm and b.size_mm:
        difference_mm = abs(float(a.size_mm) - float(b.size_mm))
        if round(difference_mm, 6) > SIZES_DIFFER_MM:  # 2.2 - 1.2 is 1.0000000000000002
            found.append("size")
    faces = _faces(a.imprint), _faces(b.imprint)
    if all(faces) and faces[0] != faces[1]:
        found.append("imprint")
    return "; ".join(found)


def same_drug_other_strength(a: PillRow, b: PillRow) -> bool:
    """Whether both names are known and equal, and both strengths known and different.

    >>> same_drug_other_strength(PillRow("a", name="Advil", strength="200 mg"),
    ...                          PillRow("b", name="advil", strength="400 mg"))
    True
    >>> same_drug_other_strength(PillRow("a", name="Advil", strength="200 mg"),
    ...                          PillRow("b", name="Advil", strength="200mg"))
    False
    """
    name = _plain(a.name)
    strengths = {"".join(_plain(row.strength).split()) for row in (a, b)}
    return name != "" and name == _plain(b.name) and "" not in strengths and len(strengths) == 2


def write_lookalikes(path: Path, lookalikes: Sequence[LookAlike]) -> Path:
    """Write `lookalikes.csv` in the given order; returns its path.

    An unknown number is an empty value, the flag is 1 or 0.
    """
    rows = [
        [int(value) if isinstance(value, bool) else value for value in astuple(row)]
        for row in lookalikes
    ]
    return write_csv(path, COLUMNS, rows)


def load_lookalikes(path: Path) -> list[LookAlike]:
    """Read `lookalikes.csv`, in its order.

    Raises DatasetRejected, naming file and line, for other columns, values that are no numbers,
    and pairs that are out of order or stand in it twice.
    """
    found: dict[Pair, LookAlike] = {}
    for line, record in read_table(path, required=COLUMNS, strip=False):
        check_choice(
            path, line, "same_drug_other_strength", record["same_drug_other_strength"], "01"
        )
        row = LookAlike(
            pill_a=record["pill_a"],
            pill_b=record["pill_b"],
            image_a=record["image_a"],
            image_b=record["image_b"],
            similarity=_number(path, line, record, "similarity"),
            n_probes=_count(path, line, record, "n_probes"),
            n_confused=_count(path, line, record, "n_confused"),
            n_misnamed=_count(path, line, record, "n_misnamed"),
            confusion_rate=_number_or_none(path, line, record, "confusion_rate"),
            told_apart_by=record["told_apart_by"],
            same_drug_other_strength=record["same_drug_other_strength"] == "1",
            colour_difference=_number_or_none(path, line, record, "colour_difference"),
            aspect_difference=_number_or_none(path, line, record, "aspect_difference"),
        )
        pair = row.pill_a, row.pill_b
        if row.pill_a >= row.pill_b or pair in found:
            raise _damaged(
                path, line, f"the pair {row.pill_a!r}, {row.pill_b!r}", "each pair once, in order"
            )
        found[pair] = row
    return list(found.values())


class _Enrolled:
    """References grouped by pill, and their embeddings."""

    def __init__(self, embeddings: Rows, references: Sequence[Reference]) -> None:
        order = sorted(range(len(references)), key=lambda index: references[index])
        self.references = [references[index] for index in order]
        self.embeddings = embeddings[order]  # (R, D)
        self.pills: list[str] = []
        starts: list[int] = []
        for index, reference in enumerate(self.references):
            if not self.pills or reference.pill != self.pills[-1]:
                self.pills.append(reference.pill)
                starts.append(index)
        self._starts = np.array([*starts, len(references)], np.intp)
        self._number = {pill: number for number, pill in enumerate(self.pills)}

    def __contains__(self, pill: object) -> bool:
        return pill in self._number

    def most_similar(self, limit: int) -> list[Pair]:
        """The `limit` pairs of pills with the most similar references, best first."""
        best: dict[tuple[int, int], float] = {}
        for pairs, similarities in self._chunks(limit):
            for pair, similarity in zip(pairs, similarities, strict=True):
                best[pair] = max(best.get(pair, -math.inf), similarity)
            ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
            best = dict(ranked[:limit])
        return [(self.pills[a], self.pills[b]) for a, b in best]

    def closest(self, pair: Pair) -> tuple[Reference, Reference, float]:
        """The most similar references of two pills, the first by name among equals."""
        first, second = (self._rows(pill) for pill in pair)
        columns = self.embeddings[second].T
        best = (-math.inf, 0, 0)
        for start in range(first.start, first.stop, _ROWS_PER_CHUNK):
            rows = self.embeddings[start : min(start + _ROWS_PER_CHUNK, first.stop)]
            block = _rounded(rows @ columns)
            row, column = divmod(int(block.argmax()), block.shape[1])
            if block[row, column] > best[0]:
                best = (float(block[row, column]), start + row, second.start + column)
        similarity, row, column = best
        return self.references[row], self.references[column], round(similarity, _DIGITS)

    def _rows(self, pill: str) -> slice:
        number = self._number[pill]
        return slice(int(self._starts[number]), int(self._starts[number + 1]))

    def _chunks(self, limit: int) -> Iterator[tuple[list[tuple[int, int]], list[float]]]:
        """Yield the `limit` best pairs of pills (by number, first < second) of some rows each."""
        for start in range(0, len(self.references), _ROWS_PER_CHUNK):
            rows = self.embeddings[start : start + _ROWS_PER_CHUNK]
            first = int(np.searchsorted(self._starts, start, side="right")) - 1
            last = int(np.searchsorted(self._starts, start + len(rows), side="left"))  # exclusive
            column = int(self._starts[first])
            block = rows @ self.embeddings[column:].T  # (n, R - column)
            block = np.maximum.reduceat(block, self._starts[first:-1] - column, axis=1)
            edges = np.maximum(self._starts[first:last] - start, 0)
            block = _rounded(np.maximum.reduceat(block, edges, axis=0))  # (pills here, pills on)
            block[np.tri(*block.shape, dtype=np.bool_)] = -np.inf
            indices = _largest(block.ravel(), limit)
            a, b = np.divmod(indices, block.shape[1])
            pairs = list(zip((a + first).tolist(), (b + first).tolist(), strict=True))
            yield pairs, block.ravel()[indices].tolist()


def _largest(values: Rows, n: int) -> NDArray[np.intp]:
    """Indices of the `n` largest finite values, the first ones among equals."""
    n = min(n, int(np.isfinite(values).sum()))
    if n <= 0:
        return np.empty(0, np.intp)
    limit = np.partition(values, -n)[-n]
    above, equal = np.flatnonzero(values > limit), np.flatnonzero(values == limit)
    return np.concatenate([above, equal[: n - len(above)]])


def _rounded(similarities: Rows) -> Rows:
    """What follows the last digit depends on the order of summation."""
    rounded: Rows = np.clip(np.round(similarities, _DIGITS), -1, 1)
    return rounded


def _by_pair(confusions: Mapping[Pair, int], enrolled: _Enrolled) -> dict[Pair, int]:
    confused: dict[Pair, int] = {}
    for (true, nearest), count in confusions.items():
        for pill in (true, nearest):
            if pill not in enrolled:
                raise ValueError(f"confusions name pill {pill!r}, which has no reference")
        if true != nearest and count:
            pair = (true, nearest) if true < nearest else (nearest, true)
            confused[pair] = confused.get(pair, 0) + count
    return confused


def _probes(pair: Pair, n_probes: Mapping[str, int]) -> int:
    return n_probes.get(pair[0], 0) + n_probes.get(pair[1], 0)


def _surely(n_confused: int, n_probes: int) -> float:
    """Lower end of the 95 % score interval of a share (Wilson 1927); 0 for nothing confused."""
    if not 0 <= n_confused <= n_probes:
        raise ValueError(f"{n_confused} of {n_probes} test photos confused")
    if n_confused == 0:
        return 0.0
    z2 = 1.959964**2
    share = n_confused / n_probes
    spread = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n_probes)) / n_probes)
    return (share + z2 / (2 * n_probes) - spread) / (1 + z2 / n_probes)


def _row(
    pair: Pair,
    enrolled: _Enrolled,
    pills: Mapping[str, PillRow],
    confused: Mapping[Pair, int],
    misnamed: Mapping[Pair, int],
    n_probes: int,
) -> LookAlike:
    n_confused = confused.get(pair, 0)
    a, b = (pills.get(pill, PillRow(pill)) for pill in pair)
    first, second, similarity = enrolled.closest(pair)
    return LookAlike(
        pill_a=pair[0],
        pill_b=pair[1],
        image_a=first.image,
        image_b=second.image,
        similarity=similarity,
        n_probes=n_probes,
        n_confused=n_confused,
        n_misnamed=misnamed.get(pair, 0),
        confusion_rate=round(n_confused / n_probes, 4) if n_probes else None,
        told_apart_by=told_apart_by(a, b),
        same_drug_other_strength=same_drug_other_strength(a, b),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """Median CIELAB colour (3,) of a pill, and length / width where it stands out."""

    lab: NDArray[np.float32]
    aspect: float | None


def _look(photo: Photo) -> _Look:
    cut = cut_out(photo)
    if cut is None:
        height, width = photo.shape[:2]
        side = max(1, round(min(height, width) * _CENTRE_SHARE))
        top, left = (height - side) // 2, (width - side) // 2
        pixels = photo[top : top + side, left : left + side].reshape(-1, 3)
        return _Look(_median_lab(pixels), None)
    mask = cut[..., 3] > 127
    rows, columns = np.nonzero(mask)
    short, long = np.linalg.eigvalsh(np.cov(np.stack([rows, columns])))
    return _Look(_median_lab(photo[mask]), math.sqrt(long / short))


def _median_lab(pixels: Photo) -> NDArray[np.float32]:
    lab = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    median: NDArray[np.float32] = np.median(lab, axis=0)
    return median


def _colour_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    lightness, *colour = (a - b).tolist()
    return round(math.hypot(lightness * _LIGHTNESS_WEIGHT, *colour), 1)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _faces(imprint: str) -> list[str]:
    return sorted(face for face in map(_plain, imprint.split(";")) if face)


def _number(path: Path, line: int, record: Mapping[str, str], column: str) -> float:
    try:
        value = float(record[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _damaged(path, line, f"{column} {record[column]!r}", "a number")
    return value


def _number_or_none(path: Path, line: int, record: Mapping[str, str], column: str) -> float | None:
    return _number(path, line, record, column) if record[column] else None


def _count(path: Path, line: int, record: Mapping[str, str], column: str) -> int:
    if not (record[column].isascii() and record[column].isdigit()):
        raise _damaged(path, line, f"{column} {record[column]!r}", "a count")
    return int(record[column])


def _damaged(path: Path, line: int, found: str, expected: str) -> DatasetRejected:
    return DatasetRejected(
        f"{path}:{line}",
        found=found,
        expected=expected,
        remedy="Run the evaluate stage again.",
    )
