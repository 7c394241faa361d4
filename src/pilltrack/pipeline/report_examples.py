"""The pictures of the report: what was asked, what was answered, and what the answer looked like.

Photos become small JPEGs inside the page. Everything is chosen by rule, never at random: errors
with the highest score first, because those are the ones no threshold would have stopped.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pilltrack.core.embedder import Embedder
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.core.image import read_image
from pilltrack.core.metrics import best_per_pill
from pilltrack.pipeline.lookalikes import LookAlike
from pilltrack.pipeline.outcomes import OutcomeRow
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.shots import Shot, photo_of
from pilltrack.pipeline.table import ImageRow, PillRow

THUMBNAIL_PX, JPEG_QUALITY = 120, 80
N_HARMS, N_OTHERS, N_CANDIDATES = 6, 4, 3
N_WORST, N_LOOKALIKES = 10, 12
OPPOSITE_SIDES = {("front", "back"), ("back", "front"), ("back", "back")}


@dataclass(frozen=True)
class Shown:
    """A pill with its picture and the side that this shows; `score` only as a candidate."""

    name: str
    picture: str  # data URI
    side: str  # front, back, or empty
    score: float | None = None
    is_right: bool = False


@dataclass(frozen=True)
class Example:
    """One photo, what it shows, what was said, and the nearest pills."""

    picture: str
    side: str
    truth: str
    said: str
    candidates: Sequence[Shown]


@dataclass(frozen=True)
class Group:
    """Examples of one kind; `is_harm`: these are the errors that hurt."""

    title: str
    is_harm: bool
    n_photos: int
    n_asked: int
    examples: Sequence[Example]


@dataclass(frozen=True)
class WorstPill:
    """An enrolled pill that is often given a wrong name, or not the nearest to its own photos."""

    pill: Shown
    cohort: str
    n_misnamed: int
    n_right: int
    n_photos: int
    taken_for: Shown | None
    n_taken_for: int


@dataclass(frozen=True)
class WorstPills:
    """The worst pills, out of `n_imperfect`; of `n_never`, the right one was never the nearest."""

    pills: Sequence[WorstPill]
    n_imperfect: int
    n_never: int


@dataclass(frozen=True)
class Difference:
    """An attribute in which two pills differ; no values where only the pictures say so."""

    attribute: str
    first: str = ""
    second: str = ""


@dataclass(frozen=True)
class Pair:
    """Two pills that are easily confused; `turn_over`: their pictures show backs, or two sides."""

    row: LookAlike
    first: Shown
    second: Shown
    differences: Sequence[Difference]
    turn_over: bool


@dataclass
class Album:
    """Names and small pictures of pills; each picture is made once.

    Only what `images` (the prepared table, by image) lists is ever read: other tables and the
    gallery name photos too, and could name any file.
    """

    prepared: Path
    images: Mapping[str, ImageRow]
    pills: Mapping[str, PillRow]
    gallery: Gallery
    _made: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.references = self.gallery.references()
        self.embeddings = self.gallery.embeddings()  # (R, D)
        self.looks, self.pill_of_look = self.gallery.looks()
        self.background = self.gallery.background
        self._first: dict[str, Reference] = {}
        for reference in sorted(self.references, key=lambda r: r.side == "back"):
            self._first.setdefault(reference.pill, reference)  # backs are often blank

    def about(self, pill: str) -> PillRow:
        """What pills.csv says about the pill; empty fields when it says nothing."""
        return self.pills.get(pill, PillRow(pill))

    def name(self, pill: str) -> str:
        """What a person calls the pill, and its key where that is something else."""
        row = self.about(pill)
        words = " ".join(part for part in (row.name, row.strength) if part)
        return f"{words} ({pill})" if words and words != pill else pill

    def row(self, image: str) -> ImageRow:
        """The row of a photo in images.csv; raises StageFailed when there is none."""
        if image not in self.images:
            raise StageFailed(
                f"image {image!r}",
                found="not in images.csv",
                expected="results and gallery that name photos of prepare/",
                remedy="Run `dvc repro`.",
            )
        return self.images[image]

    def picture(self, image: str) -> str:
        """A photo of images.csv as a data URI; raises StageFailed for any other."""
        if image not in self._made:
            self._made[image] = thumbnail(read_image(self.prepared / self.row(image).image))
        return self._made[image]

    def show(self, pill: str) -> Shown:
        """An enrolled pill with its first reference photo that is not of its back."""
        if pill not in self._first:
            raise StageFailed(
                f"pill {pill!r}",
                found="not in the gallery",
                expected="results and gallery of one run",
                remedy="Run `dvc repro`.",
            )
        return self.shown(pill, self._first[pill].image)

    def shown(self, pill: str, image: str) -> Shown:
        """A pill with a photo of images.csv."""
        return Shown(self.name(pill), self.picture(image), self.row(image).side)


def thumbnail(photo: NDArray[np.uint8]) -> str:
    """An RGB image (H, W, 3) as a data URI of at most 120 pixels a side."""
    image = Image.fromarray(photo)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def example_groups(
    outcomes: Sequence[OutcomeRow], capture: CaptureParams, album: Album, embedder: Embedder
) -> list[Group]:
    """A handful of photos of each kind of answer, one per pill, the worst first.

    `outcomes` of one kind of captures. Kinds that did not occur have no examples.
    """
    strangers = [row for row in outcomes if row.cohort == "strangers"]
    mated = [row for row in outcomes if row.cohort != "strangers"]

    def group(
        title: str,
        asked: Sequence[OutcomeRow],
        chosen: Callable[[OutcomeRow], bool],
        *,
        is_harm: bool = False,
        spread: bool = False,
    ) -> Group:
        rows = [row for row in asked if chosen(row)]
        picked = _one_per_pill(rows, N_HARMS if is_harm else N_OTHERS, spread=spread)
        examples = _examples(picked, capture, album, embedder)
        return Group(title, is_harm, len(rows), len(asked), examples)

    return [
        group(
            "Not enrolled, yet given a name",
            strangers,
            lambda row: row.decision == "known",
            is_harm=True,
        ),
        group(
            "Enrolled, but given the name of another pill",
            mated,
            lambda row: row.decision == "known" and row.best_pill != row.pill,
            is_harm=True,
        ),
        group(
            "Enrolled, no name given: two pills too close to call (ambiguous)",
            mated,
            lambda row: row.decision == "ambiguous",
        ),
        group(
            "Enrolled, no name given: nothing near enough (unknown)",
            mated,
            lambda row: row.decision == "unknown",
        ),
        group(
            "Enrolled and named rightly",
            mated,
            lambda row: row.decision == "known" and row.best_pill == row.pill,
            spread=True,
        ),
        group(
            "Not enrolled and refused",
            strangers,
            lambda row: row.decision == "unknown",
            spread=True,
        ),
    ]


def _one_per_pill(rows: Sequence[OutcomeRow], count: int, *, spread: bool) -> list[OutcomeRow]:
    """The photo with the highest score of each pill; the first `count`, or evenly spread ones."""
    falling = sorted(rows, key=lambda row: (-row.best_score, row.image, row.capture_seed))
    best: dict[str, OutcomeRow] = {}
    for row in falling:
        best.setdefault(row.pill, row)
    chosen = list(best.values())
    if not spread or len(chosen) <= count:
        return chosen[:count]
    return [chosen[round(i * (len(chosen) - 1) / (count - 1))] for i in range(count)]


def _examples(
    rows: Sequence[OutcomeRow], capture: CaptureParams, album: Album, embedder: Embedder
) -> list[Example]:
    if not rows:
        return []
    photos = [_photo(row, capture, album) for row in rows]
    embeddings = embedder.embed(photos)
    taken = album.background.share(embeddings, [row.best_pill for row in rows])
    cosines = embeddings @ album.embeddings.T  # (N, R)
    best, pills = best_per_pill(embeddings @ album.looks.T, album.pill_of_look)
    scores = np.minimum(best, 1.0) - taken[:, None]  # (N, pills)
    return [
        Example(
            picture=thumbnail(photo),
            side=album.row(row.image).side,
            truth=album.name(row.pill),
            said=album.name(row.best_pill) if row.decision == "known" else row.decision,
            candidates=_candidates(row.pill, dict(zip(pills, own, strict=True)), nearest, album),
        )
        for row, photo, own, nearest in zip(rows, photos, scores, cosines, strict=True)
    ]


def _photo(row: OutcomeRow, capture: CaptureParams, album: Album) -> NDArray[np.uint8]:
    seed = int(row.capture_seed) if row.capture_seed else None
    return photo_of(Shot(album.row(row.image), seed), album.prepared, capture)


def _candidates(
    truth: str, scores: Mapping[str, float], cosines: NDArray[np.float32], album: Album
) -> list[Shown]:
    """The best pills of one probe, each with its reference of the highest of `cosines` (R,)."""
    best = sorted(scores, key=lambda pill: (-scores[pill], pill))[:N_CANDIDATES]
    rows_of: dict[str, list[int]] = {pill: [] for pill in best}
    for row, reference in enumerate(album.references):
        if reference.pill in rows_of:
            rows_of[reference.pill].append(row)
    nearest = {pill: max(rows, key=lambda row: cosines[row]) for pill, rows in rows_of.items()}
    return [
        replace(
            album.shown(pill, album.references[nearest[pill]].image),
            score=float(scores[pill]),
            is_right=pill == truth,
        )
        for pill in best
    ]


def worst_pills(outcomes: Sequence[OutcomeRow], album: Album) -> WorstPills:
    """Enrolled pills by photos named wrongly, then by recall@1, then by name; none that is perfect.

    `outcomes` of one kind of captures.
    """
    photos: dict[str, list[OutcomeRow]] = {}
    for row in outcomes:
        if row.cohort != "strangers":
            photos.setdefault(row.pill, []).append(row)
    right = {pill: sum(row.rank == 1 for row in rows) for pill, rows in photos.items()}
    misnamed = {
        pill: sum(row.decision == "known" and row.best_pill != pill for row in rows)
        for pill, rows in photos.items()
    }
    imperfect = [pill for pill, rows in photos.items() if right[pill] < len(rows) or misnamed[pill]]
    imperfect.sort(
        key=lambda pill: (-misnamed[pill], right[pill] / len(photos[pill]), album.name(pill))
    )
    worst = []
    for pill in imperfect[:N_WORST]:
        rows = photos[pill]
        others = Counter(row.best_pill for row in rows if row.best_pill != pill)
        other, count = min(others.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
        worst.append(
            WorstPill(
                pill=album.show(pill),
                cohort=rows[0].cohort,
                n_misnamed=misnamed[pill],
                n_right=right[pill],
                n_photos=len(rows),
                taken_for=album.show(other) if other else None,
                n_taken_for=count,
            )
        )
    return WorstPills(worst, len(imperfect), sum(right[pill] == 0 for pill in imperfect))


def lookalike_pairs(rows: Sequence[LookAlike], album: Album) -> list[Pair]:
    """The first pairs of lookalikes.csv, which lists the most easily confused first."""
    pairs = []
    for row in rows[:N_LOOKALIKES]:
        first, second = album.shown(row.pill_a, row.image_a), album.shown(row.pill_b, row.image_b)
        differences = _differences(row, album.about(row.pill_a), album.about(row.pill_b))
        turn_over = (first.side, second.side) in OPPOSITE_SIDES
        pairs.append(Pair(row, first, second, differences, turn_over))
    return pairs


def _differences(row: LookAlike, a: PillRow, b: PillRow) -> list[Difference]:
    found = []
    for attribute in filter(None, row.told_apart_by.split("; ")):
        column = "size_mm" if attribute == "size" else attribute
        values = [getattr(pill, column, "") for pill in (a, b)]
        if not all(values):  # measured in the pictures
            found.append(Difference(attribute))
            continue
        unit = " mm" if attribute == "size" else ""
        faces = [", ".join(part.strip() for part in value.split(";")) for value in values]
        found.append(Difference(attribute, faces[0], faces[1] + unit))
    return found
