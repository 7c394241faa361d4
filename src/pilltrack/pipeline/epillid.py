"""`pilltrack evaluate-epillid`: the protocol of the ePillID benchmark, run on a bundle's model.

For people who hold that data set. The photos of each fold are identified among the studio
references of all its pill types: every front of a pill type is paired with every back of it, the
two sides' scores are averaged, and MAP and GAP judge the order of the pill types. Nothing is
trained here and the bundle's own gallery is left aside, so each fold measures the same model; the
benchmark publishes fold 4, its holdout. docs/epillid.md tells where we differ and why.

Protocol: Usuyama, Delgado, Hall & Lundin, "ePillID Dataset: A Low-Shot Fine-Grained Benchmark for
Pill Identification", CVPR Workshops (2020), and its code, github.com/usuyama/ePillID-benchmark,
described there and implemented afresh here. Its pickled label encoder is never opened: the pill
types are the values of column `label`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from pilltrack.core.bundle import read_bundle
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import DatasetRejected
from pilltrack.core.image import read_image
from pilltrack.core.metrics import average_precision, best_per_pill, true_ranks
from pilltrack.pipeline.table import check_choice, duplicate_row, read_table

IMAGES = "classification_data"
NAME = "pilltypeid_nih_sidelbls0.01_metric_5folds"
TABLES = f"folds/{NAME}/base"
N_FOLDS = 5
HOLDOUT = 4
COLUMNS = ("image_path", "label", "is_ref", "is_front")  # the others are not read
BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

SIDES = ("both_sides", "single_side")
METRICS = ("map", "map_at_1", "gap", "gap_at_1")

BATCH = 64
CHUNK = 256  # photos compared with all references at a time
MAX_TABLE_BYTES = 16 * 1024 * 1024  # 5 times the real table
MAX_HEADER = 10_000  # characters
MAX_SCORES = 2**24  # pairs x pill types of a fold, 5 times the real holdout; 1 GB of memory


@dataclass(frozen=True)
class Photo:
    """One row of a table; `image` is its path below `classification_data`, with `/`."""

    image: str
    label: str
    is_reference: bool
    is_front: bool


def evaluate_epillid(
    bundle: Path, directory: Path, folds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Run the benchmark's protocol on the unpacked ePillID data in `directory`.

    `folds`: which of 0 to 4 to evaluate; None means all. Returns counts and, for each fold, MAP,
    MAP@1, GAP and GAP@1 of both sides together and of single sides, then their mean and sample
    standard deviation (n - 1) over the folds, None for a single fold.

    Raises DatasetRejected, before any photo is embedded, when a table or a photo is missing or
    lies outside `directory`, a value is not one of those known, a fold disagrees with the table
    of all photos or with another fold, or has no front and back of one pill type; ImageRejected
    for an unreadable photo; BundleRejected for a damaged bundle.
    """
    manifest = read_bundle(bundle)
    chosen = _chosen_folds(folds)
    everything = _read_photos(_table(directory, "all"))
    references = [photo for photo in everything if photo.is_reference]
    photos_of = {fold: _read_fold(directory, fold, everything) for fold in chosen}
    _check_disjoint(directory, photos_of)
    queries = [photo for fold in chosen for photo in photos_of[fold]]
    images = sorted({photo.image for photo in [*references, *queries]})
    paths = _checked_paths(directory, images)
    embedder = open_embedder(bundle / manifest.model.file, threads=2)
    embeddings = _embed(embedder, paths)
    row_of = {image: row for row, image in enumerate(images)}

    def embedded(photos: Sequence[Photo]) -> NDArray[np.float32]:
        return embeddings[[row_of[photo.image] for photo in photos]]

    known, reference_labels = embedded(references), [photo.label for photo in references]
    reports: list[dict[str, Any]] = []
    for fold, photos in photos_of.items():
        labels = [photo.label for photo in photos]
        pairs = side_pairs(labels, [photo.is_front for photo in photos])
        scores, columns = label_scores(known, reference_labels, embedded(photos))
        counts = {
            "n_photos": len(photos),
            "n_paired_photos": len({index for pair in pairs for index in pair}),
            "n_paired_labels": len({labels[front] for front, _ in pairs}),
            "n_pairs": len(pairs),
        }
        measured = measure_pairs(scores, columns, labels, pairs)
        reports.append({"fold": fold, "holdout": fold == HOLDOUT, **counts, **measured})
    mean: dict[str, dict[str, float]] = {side: {} for side in SIDES}
    std: dict[str, dict[str, float | None]] = {side: {} for side in SIDES}
    for side in SIDES:
        for name in METRICS:
            values = [report[side][name] for report in reports]
            mean[side][name], std[side][name] = mean_and_std(values)
    return {
        "bundle": manifest.name,
        "n_labels": len(set(reference_labels)),
        "n_references": len(references),
        "folds": [_rounded(report) for report in reports],
        "mean": _rounded(mean),
        "std": _rounded(std),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """Return the report of `evaluate_epillid` as a table for a terminal."""
    titles = [name.upper().replace("_AT_", "@") for name in METRICS]
    width = 9 * len(titles)
    lines = [
        f"{report['n_labels']} pill types, {report['n_references']} references, "
        f"bundle {report['bundle']}",
        f"{'':16}{'both sides':>{width}}{'single side':>{width}}",
        f"{'fold':8}{'pairs':>8}" + "".join(f"{title:>9}" for title in titles * 2),
    ]
    rows = [(str(fold["fold"]), str(fold["n_pairs"]), fold) for fold in report["folds"]]
    rows += [("mean", "", report["mean"]), ("std", "", report["std"])]
    for name, pairs, part in rows:
        values = [part[side][metric] for side in SIDES for metric in METRICS]
        cells = ["-" if value is None else f"{value:.5f}" for value in values]
        lines.append(f"{name:8}{pairs:>8}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def side_pairs(labels: Sequence[str], is_front: Sequence[bool]) -> list[tuple[int, int]]:
    """Pair every front with every back of its label: (front, back) indices.

    F fronts and B backs of a label give F x B pairs; a label with one side only gives none. The
    benchmark takes the same pairs, in another order.

    >>> side_pairs(["a", "a", "b", "a"], [True, False, True, False])
    [(0, 1), (0, 3)]
    """
    backs: dict[str, list[int]] = {}
    for index, (label, front) in enumerate(zip(labels, is_front, strict=True)):
        if not front:
            backs.setdefault(label, []).append(index)
    fronts = [index for index, front in enumerate(is_front) if front]
    return [(front, back) for front in fronts for back in backs.get(labels[front], ())]


def label_scores(
    references: NDArray[np.float32],
    reference_labels: Sequence[str],
    photos: NDArray[np.float32],
) -> tuple[NDArray[np.float64], list[str]]:
    """Score each photo (P, D) for each label: (P, L), and the labels of the columns.

    score(p, label) = max over the references of the label of the cosine, whichever side of the
    pill a reference shows: ePillID's rule. All embeddings are of unit length, as from an Embedder.

    >>> references = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    >>> scores, labels = label_scores(references, ["a", "b", "a"], references[1:2])
    >>> scores.round(3).tolist(), labels
    ([[0.8, 1.0]], ['a', 'b'])
    """
    parts = []
    for start in range(0, len(photos), CHUNK):
        similarities = photos[start : start + CHUNK] @ references.T
        scores, labels = best_per_pill(similarities, reference_labels)
        parts.append(scores)
    return np.concatenate(parts), labels


def measure_pairs(
    scores: NDArray[np.float64],
    columns: Sequence[str],
    labels: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> dict[str, dict[str, float]]:
    """Measure photos' `scores` (P, L), as from `label_scores`, on `pairs` of their rows.

    both_sides: a pair is one query; score(pair, label) = mean of its two photos' scores.
    single_side: each photo of each pair is a query of its own, once for each pair it is in.

    >>> scores = np.array([[0.9, 0.2], [0.3, 0.6]])
    >>> measured = measure_pairs(scores, ["a", "b"], ["a", "a"], [(0, 1)])
    >>> measured["both_sides"]["map"], measured["single_side"]["map"]  # of 0.6, 0.4
    (1.0, 0.75)
    """
    front, back = (scores[list(side)] for side in zip(*pairs, strict=True))
    truth = [labels[index] for index, _ in pairs]
    return {
        "both_sides": _measure((front + back) / 2, columns, truth),
        "single_side": _measure(np.concatenate([front, back]), columns, truth * 2),
    }


def _measure(
    scores: NDArray[np.float64], columns: Sequence[str], truth: Sequence[str]
) -> dict[str, float]:
    return {
        "map": mean_average_precision(scores, columns, truth),
        "map_at_1": mean_average_precision(scores, columns, truth, k=1),
        "gap": global_average_precision(scores, columns, truth),
        "gap_at_1": global_average_precision_at_1(scores, columns, truth),
    }


def mean_average_precision(
    scores: ArrayLike, columns: Sequence[str], truth: Sequence[str], k: int | None = None
) -> float:
    """MAP, or MAP@k: the mean over queries of the average precision of one query, in 0..1.

    A query has one right label, so its average precision is 1 / rank of that label; MAP@k counts
    0 for a rank beyond k, and MAP@1 is recall@1. MAP with one right answer is also called the
    mean reciprocal rank. Usuyama et al. (2020); Manning, Raghavan & Schütze, "Introduction to
    Information Retrieval" (2008), section 8.4.

    `scores` (Q, L) with columns `columns`, `truth` (Q,). A wrong label with an equal score counts
    as ahead. Raises ValueError as `true_ranks`, and for k below 1.

    >>> scores = [[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]
    >>> mean_average_precision(scores, ["a", "b", "c"], ["a", "b"])  # ranks 1 and 2
    0.75
    >>> mean_average_precision(scores, ["a", "b", "c"], ["a", "b"], k=1)
    0.5
    """
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    ranks = true_ranks(scores, columns, truth)
    return float(np.mean(np.where(ranks <= (k or len(columns)), 1 / ranks, 0)))


def global_average_precision(
    scores: ArrayLike, columns: Sequence[str], truth: Sequence[str]
) -> float:
    """GAP: the average precision of all queries' answers in one list, in 0..1.

    GAP = (1 / Q) sum over queries of TP(s) / N(s), where s is the score of the query's right label,
    N(s) of all Q x L scores are at least s, and TP(s) of these belong to a right label. Equal
    scores are one threshold, so their order is moot, as in scikit-learn's
    `average_precision_score`. Unlike MAP it asks that one threshold suits all queries. Also called
    micro-averaged AP: Perronnin, Liu & Renders, CVPR (2009); Usuyama et al. (2020).

    Arguments as in `mean_average_precision`. Raises KeyError for a right label without a column.

    >>> scores = [[0.9, 0.8], [0.3, 0.6]]  # right: 0.9 and 0.3, first and fourth of the list
    >>> global_average_precision(scores, ["a", "b"], ["a", "a"])
    0.75
    """
    values = np.asarray(scores, dtype=np.float64)
    column_of = {label: column for column, label in enumerate(columns)}
    right = np.zeros(values.shape, dtype=np.bool_)
    right[np.arange(len(values)), [column_of[label] for label in truth]] = True
    return average_precision(values.ravel(), right.ravel())


def global_average_precision_at_1(
    scores: ArrayLike, columns: Sequence[str], truth: Sequence[str]
) -> float:
    """GAP@1: as GAP, of each query's best answer only, in 0..1; 0 when no best answer is right.

    As in the benchmark's code recall is relative to the right best answers, not to all queries:
    it says how well the score tells right from wrong answers, and can be high for few right ones.
    A best answer that ties with another label is wrong.

    >>> scores = [[0.9, 0.1], [0.7, 0.2], [0.2, 0.6]]  # best: right, wrong, right
    >>> round(global_average_precision_at_1(scores, ["a", "b"], ["a", "b", "b"]), 4)
    0.8333
    """
    right = true_ranks(scores, columns, truth) == 1
    best = np.asarray(scores, dtype=np.float64).max(axis=1)
    return average_precision(best, right) if right.any() else 0.0


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, sqrt(sum (x - mean)^2 / (n - 1)); None for one value.

    >>> mean_and_std([0.25, 0.75]), mean_and_std([0.5])
    ((0.5, 0.3535533905932738), (0.5, None))
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _chosen_folds(folds: Sequence[int] | None) -> list[int]:
    chosen = list(range(N_FOLDS)) if folds is None else list(folds)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(N_FOLDS)):
        raise DatasetRejected(
            "folds to evaluate",
            found=", ".join(map(str, chosen)) or "none",
            expected=f"some of 0 to {N_FOLDS - 1}, each once",
            remedy=f"Name other folds; {HOLDOUT} is the benchmark's holdout.",
        )
    return sorted(chosen)


def _table(directory: Path, part: int | str) -> Path:
    return directory / TABLES / f"{NAME}_{part}.csv"


def _read_photos(path: Path) -> dict[Photo, int]:
    """Read a table: photo -> line. Columns other than `COLUMNS` are passed over."""
    if not path.is_file():
        raise DatasetRejected(
            str(path),
            found="no such file",
            expected=f"the unpacked ePillID data: {IMAGES}/ and {TABLES}/{NAME}_all.csv",
            remedy="Give the folder that holds these two, ePillID_data as unzipped.",
        )
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DatasetRejected(
            str(path),
            found=f"{path.stat().st_size} bytes",
            expected=f"at most {MAX_TABLE_BYTES} bytes",
            remedy="Unzip the data set again.",
        )
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = next(csv.reader([file.readline(MAX_HEADER)]), [])
    others = [name.strip() for name in header if name.strip() not in COLUMNS]
    photos: dict[Photo, int] = {}
    for line, record in read_table(path, required=COLUMNS, optional=others):
        photo = _photo(path, line, record)
        if photo in photos:
            raise duplicate_row(path, line, "image_path", photo.image)
        photos[photo] = line
    if not photos:
        raise DatasetRejected(
            str(path),
            found="no rows",
            expected="one row for each photo",
            remedy="Unzip the data set again.",
        )
    return photos


def _photo(path: Path, line: int, record: Mapping[str, str]) -> Photo:
    image = PurePosixPath(record["image_path"])
    odd = any(character in record["image_path"] for character in "\\\0")
    if image.is_absolute() or ".." in image.parts or odd:
        raise _outside(f"{path}:{line}", record["image_path"])
    if not record["label"]:
        raise DatasetRejected(
            f"{path}:{line}",
            found="an empty label",
            expected="the pill type that the photo shows",
            remedy="Fill it in or delete the line.",
        )
    flags = {}
    for column in ("is_ref", "is_front"):
        value = record[column].lower()
        check_choice(path, line, column, value, list(BOOLEANS))
        flags[column] = BOOLEANS[value]
    return Photo(str(image), record["label"], flags["is_ref"], flags["is_front"])


def _read_fold(directory: Path, fold: int, everything: Mapping[Photo, int]) -> list[Photo]:
    """Read a fold and check that the protocol can be run on it."""
    path = _table(directory, fold)
    photos = _read_photos(path)
    reference_images = {photo.image for photo in everything if photo.is_reference}
    reference_labels = {photo.label for photo in everything if photo.is_reference}
    for photo, line in photos.items():
        found = None
        if photo.image in reference_images or photo.is_reference:
            found = f"{photo.image}, a reference"
        elif photo not in everything:
            found = f"{photo.image}, not such a row of {_table(directory, 'all').name}"
        elif photo.label not in reference_labels:
            found = f"{photo.image} of label {photo.label!r}, which has no reference"
        if found:
            raise DatasetRejected(
                f"{path}:{line}",
                found=found,
                expected="consumer photos of the table of all photos, of labels with references",
                remedy="Unzip the data set again, or correct both tables.",
            )
    fronts = Counter(photo.label for photo in photos if photo.is_front)
    backs = Counter(photo.label for photo in photos if not photo.is_front)
    n_pairs = sum(count * backs[label] for label, count in fronts.items())
    if not 0 < n_pairs * len(reference_labels) <= MAX_SCORES:
        raise DatasetRejected(
            str(path),
            found=f"{n_pairs} pairs of a front and a back of one label",
            expected=f"1 to {MAX_SCORES // len(reference_labels)} pairs",
            remedy="Unzip the data set again, or choose other folds.",
        )
    return list(photos)


def _check_disjoint(directory: Path, photos_of: Mapping[int, Sequence[Photo]]) -> None:
    seen: dict[str, int] = {}
    for fold, photos in photos_of.items():
        images = {photo.image for photo in photos}
        twice = sorted(images & seen.keys())
        if twice:
            raise DatasetRejected(
                str(_table(directory, fold)),
                found=f"{twice[0]}, which is also in fold {seen[twice[0]]}",
                expected="each photo in one fold",
                remedy="Unzip the data set again.",
            )
        seen |= dict.fromkeys(images, fold)


def _checked_paths(directory: Path, images: Sequence[str]) -> list[Path]:
    root = directory / IMAGES
    paths = [root / image for image in images]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetRejected(
            str(missing[0]),
            found=f"no such photo (one of {len(missing)} that the tables name)",
            expected=f"every photo of the tables below {root}",
            remedy="Unzip the data set again.",
        )
    inside = root.resolve()
    for path in paths:
        if not path.resolve().is_relative_to(inside):
            raise _outside(str(path), f"a link to {path.resolve()}")
    return paths


def _outside(subject: str, found: str) -> DatasetRejected:
    return DatasetRejected(
        subject,
        found=found,
        expected=f"a path that stays below {IMAGES}, with / between its parts",
        remedy="Correct the path; photos of other folders are never read.",
    )


def _embed(embedder: Embedder, paths: Sequence[Path]) -> NDArray[np.float32]:
    embeddings = np.empty((len(paths), embedder.dim), dtype=np.float32)
    with tqdm(total=len(paths), desc="embed", unit="photo", disable=None) as bar:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            embeddings[start : start + len(batch)] = embedder.embed(
                [read_image(path) for path in batch]
            )
            bar.update(len(batch))
    return embeddings


def _rounded(part: Mapping[str, Any]) -> dict[str, Any]:
    """Round the metrics of both kinds of query; leave counts alone."""
    rounded = {
        side: {
            name: None if value is None else round(value, 5) for name, value in part[side].items()
        }
        for side in SIDES
    }
    return {**part, **rounded}
