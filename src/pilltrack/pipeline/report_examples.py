"""The pictures of the report: what was asked, what was answered, and what the answer looked like.

Photos become small JPEGs inside the page. Everything is chosen by rule, never at random: errors
with the highest score first, because those are the ones no threshold would have stopped.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pilltrack.core.embedder import Embedder
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery
from pilltrack.core.image import read_image
from pilltrack.pipeline.lookalikes import LookAlike
from pilltrack.pipeline.outcomes import OutcomeRow
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.shots import Shot, photo_of
from pilltrack.pipeline.table import ImageRow, PillRow

THUMBNAIL_PX, JPEG_QUALITY = 120, 80
N_HARMS, N_OTHERS, N_CANDIDATES = 6, 4, 3
N_WORST, N_LOOKALIKES = 10, 12


@dataclass(frozen=True)
class Shown:
    """A pill with its picture; `score` only as a candidate."""

    name: str
    picture: str  # data URI
    score: float | None = None
    is_right: bool = False


@dataclass(frozen=True)
class Example:
    """One photo, what it shows, what was said, and the nearest pills."""

    picture: str
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
    """An enrolled pill that is often not the nearest to its own photos."""

    pill: Shown
    cohort: str
    n_right: int
    n_photos: int
    taken_for: Shown | None
    n_taken_for: int


@dataclass(frozen=True)
class Pair:
    """Two pills that are easily confused."""

    row: LookAlike
    first: Shown
    second: Shown


@dataclass
class Album:
    """Names and small pictures of pills; each picture is made once."""

    prepared: Path
    pills: Mapping[str, PillRow]
    gallery: Gallery
    _made: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.references = self.gallery.references()
        self.embeddings = self.gallery.embeddings()  # (R, D)
        self._first: dict[str, str] = {}
        for reference in self.references:
            self._first.setdefault(reference.pill, reference.image)

    def name(self, pill: str) -> str:
        """What a person calls the pill, and its key where that is something else."""
        row = self.pills.get(pill, PillRow(pill))
        words = " ".join(part for part in (row.name, row.strength) if part)
        return f"{words} ({pill})" if words and words != pill else pill

    def picture(self, image: str) -> str:
        """A photo below `prepare/` as a data URI."""
        if image not in self._made:
            self._made[image] = thumbnail(read_image(self.prepared / image))
        return self._made[image]

    def show(self, pill: str) -> Shown:
        """An enrolled pill with its first reference photo."""
        if pill not in self._first:
            raise StageFailed(
                f"pill {pill!r}",
                found="not in the gallery",
                expected="results and gallery of one run",
                remedy="Run `dvc repro`.",
            )
        return Shown(self.name(pill), self.picture(self._first[pill]))


def thumbnail(photo: NDArray[np.uint8]) -> str:
    """An RGB image (H, W, 3) as a data URI of at most 120 pixels a side."""
    image = Image.fromarray(photo)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def example_groups(
    outcomes: Sequence[OutcomeRow],
    images: Mapping[str, ImageRow],
    capture: CaptureParams,
    album: Album,
    embedder: Embedder,
) -> list[Group]:
    """A handful of photos of each kind of answer, one per pill, the worst first.

    `outcomes` of one kind of captures; `images`: the prepared table by image. Kinds that did not
    occur have no examples.
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
        examples = _examples(picked, images, capture, album, embedder)
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
    rows: Sequence[OutcomeRow],
    images: Mapping[str, ImageRow],
    capture: CaptureParams,
    album: Album,
    embedder: Embedder,
) -> list[Example]:
    photos = [_photo(row, images, capture, album.prepared) for row in rows]
    scores = embedder.embed(photos) @ album.embeddings.T  # (N, R)
    return [
        Example(
            picture=thumbnail(photo),
            truth=album.name(row.pill),
            said=album.name(row.best_pill) if row.decision == "known" else row.decision,
            candidates=_candidates(row.pill, own, album),
        )
        for row, photo, own in zip(rows, photos, scores, strict=True)
    ]


def _photo(
    row: OutcomeRow, images: Mapping[str, ImageRow], capture: CaptureParams, prepared: Path
) -> NDArray[np.uint8]:
    if row.image not in images:
        raise StageFailed(
            f"image {row.image!r} of outcomes.csv",
            found="not in images.csv",
            expected="the photos that evaluate looked at",
            remedy="Run `dvc repro`.",
        )
    seed = int(row.capture_seed) if row.capture_seed else None
    return photo_of(Shot(images[row.image], seed), prepared, capture)


def _candidates(truth: str, scores: NDArray[np.float32], album: Album) -> list[Shown]:
    """The nearest pills of one probe by scores (R,), each with its nearest reference photo."""
    found: dict[str, Shown] = {}
    for index in np.argsort(-scores, kind="stable"):
        reference = album.references[index]
        if reference.pill not in found:
            found[reference.pill] = Shown(
                album.name(reference.pill),
                album.picture(reference.image),
                score=min(1.0, float(scores[index])),
                is_right=reference.pill == truth,
            )
        if len(found) == N_CANDIDATES:
            break
    return list(found.values())


def worst_pills(outcomes: Sequence[OutcomeRow], album: Album) -> list[WorstPill]:
    """Enrolled pills with the lowest recall@1, those with more photos first; none that is perfect.

    `outcomes` of one kind of captures.
    """
    photos: dict[str, list[OutcomeRow]] = {}
    for row in outcomes:
        if row.cohort != "strangers":
            photos.setdefault(row.pill, []).append(row)
    right = {pill: sum(row.rank == 1 for row in rows) for pill, rows in photos.items()}
    imperfect = [pill for pill, rows in photos.items() if right[pill] < len(rows)]
    imperfect.sort(key=lambda pill: (right[pill] / len(photos[pill]), -len(photos[pill]), pill))
    worst = []
    for pill in imperfect[:N_WORST]:
        rows = photos[pill]
        others = Counter(row.best_pill for row in rows if row.best_pill != pill)
        other, count = min(others.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
        worst.append(
            WorstPill(
                pill=album.show(pill),
                cohort=rows[0].cohort,
                n_right=right[pill],
                n_photos=len(rows),
                taken_for=album.show(other) if other else None,
                n_taken_for=count,
            )
        )
    return worst


def lookalike_pairs(rows: Sequence[LookAlike], album: Album) -> list[Pair]:
    """The first pairs of lookalikes.csv, which lists the most easily confused first."""
    return [
        Pair(
            row,
            Shown(album.name(row.pill_a), album.picture(row.image_a)),
            Shown(album.name(row.pill_b), album.picture(row.image_b)),
        )
        for row in rows[:N_LOOKALIKES]
    ]
