"""Stage `prepare`: a zip of pill photos -> checked images, splits by pill identity, an audit.

Unzip, recognise the layout, decode every image, find copies, deal pills to splits and photos to
roles, write, and verify what was written. All of it happens in a hidden folder beside the
output, which is swapped in by renaming: bad input or Ctrl-C leaves the previous output as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pilltrack.core.errors import DatasetRejected, ImageRejected, StageFailed
from pilltrack.core.image import read_image
from pilltrack.pipeline.archive import extract
from pilltrack.pipeline.audit import Alike, Audit, check_leaks, count_splits, write_audit
from pilltrack.pipeline.cohorts import require_captures
from pilltrack.pipeline.duplicates import Fingerprint, Link, Unions, find_copies, fingerprint
from pilltrack.pipeline.layouts import Layout, Photo, read_layout
from pilltrack.pipeline.params import EvaluateParams, Params, PrepareParams
from pilltrack.pipeline.splits import Assignment, Member, assign
from pilltrack.pipeline.table import (
    ImageRow,
    PillRow,
    load_images,
    write_images,
    write_pills,
)


def main(params: Params, artifacts: Path, archive: Path) -> None:
    """Read the zip, write `prepare/`; refuse now what `evaluate` could not measure later."""
    prepare(archive, params.prepare, artifacts / "prepare", evaluation=params.evaluate)


def prepare(
    archive: Path,
    params: PrepareParams,
    out: Path,
    *,
    evaluation: EvaluateParams | None = None,
    workers: int | None = None,
) -> Audit:
    """Prepare `archive` (a zip) into the directory `out`, replacing what it held.

    Writes `images/<pill>/<file>` (original bytes), `images.csv`, `pills.csv`, `audit.json` and
    `audit.md`. The result depends on the content of the archive and on `params`, not on the order
    of members, the number of `workers` (default: one per core) or the clock.

    Raises ArchiveRejected for an unsafe or damaged zip, and DatasetRejected for a layout or table
    that is wrong, more unreadable images than allowed, one image under two pill names, and too
    few pills; with `evaluation` also for lack of the captures that evaluate needs. `out` is then
    as it was before.
    """
    with _workspace(out) as work:
        extraction = extract(archive, work / "zip", max_bytes=int(params.max_unzipped_gb * 1e9))
        layout = read_layout(extraction.directory, work / "crops")
        photos, prints, unreadable = _decode(layout, workers or os.cpu_count() or 1)
        _check_unreadable(unreadable, len(photos), params.max_unreadable_share)
        links = find_copies(prints, params.near_duplicate_bits)
        _check_names(photos, links)
        groups = _groups(photos, links)
        members = [
            Member(photo.source, photo.pill, photo.side, group, photo.given_split)
            for photo, group in zip(photos, groups, strict=True)
        ]
        assignment = assign(members, params)

        result = work / "result"
        rows = _rows(photos, groups, assignment)
        for photo, row in zip(photos, rows, strict=True):
            target = result / row.image
            target.parent.mkdir(parents=True, exist_ok=True)
            photo.path.rename(target)
        write_images(result, rows)
        write_pills(result, _pill_rows(layout, photos))
        by_image = {row.image: print_ for row, print_ in zip(rows, prints, strict=True)}
        found = _Found(archive, layout, photos, links, groups, unreadable, extraction.skipped)
        audit = _audit(found, assignment, load_images(result), by_image, params)
        write_audit(result, audit)
        if any(audit.leaks.values()):
            raise StageFailed(
                "prepare",
                found=", ".join(f"{n} {check}" for check, n in audit.leaks.items() if n),
                expected="no leak between splits and roles",
                remedy="This is a defect of PillTrack: please report it with the archive.",
            )
        if evaluation is not None:
            require_captures(load_images(result), evaluation)
        _swap(result, out, work / "previous")
    return audit


@dataclass(frozen=True, slots=True)
class _Found:
    archive: Path
    layout: Layout
    photos: list[Photo]
    links: list[Link]
    groups: list[int]
    unreadable: list[tuple[str, str]]
    skipped: tuple[str, ...]


def _decode(
    layout: Layout, workers: int
) -> tuple[list[Photo], list[Fingerprint], list[tuple[str, str]]]:
    """Decode all photos; return the readable ones, their fingerprints, and the unreadable."""

    def look(photo: Photo) -> Fingerprint | str:
        try:
            return fingerprint(read_image(photo.path))
        except ImageRejected as error:
            return f"{error.found}; expected {error.expected}"

    photos: list[Photo] = []
    prints: list[Fingerprint] = []
    unreadable = list(layout.unreadable)
    pool = ThreadPoolExecutor(workers)  # decoding and hashing release the interpreter lock
    try:
        looked = pool.map(look, layout.photos)
        bar = tqdm(looked, "checking", len(layout.photos), unit="image", disable=None)
        for photo, outcome in zip(layout.photos, bar, strict=True):
            if isinstance(outcome, str):
                unreadable.append((photo.source, outcome))
            else:
                photos.append(photo)
                prints.append(outcome)
    finally:
        pool.shutdown(cancel_futures=True)
    return photos, prints, sorted(unreadable)


def _check_unreadable(unreadable: list[tuple[str, str]], n_readable: int, limit: float) -> None:
    n_all = len(unreadable) + n_readable
    if n_readable == 0 or len(unreadable) > limit * n_all:
        named = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:3])
        raise DatasetRejected(
            "the data set",
            found=f"{len(unreadable)} of {n_all} images cannot be used ({named}"
            + (f"; and {len(unreadable) - 3} more)" if len(unreadable) > 3 else ")"),
            expected=f"at most {limit:.1%} (prepare.max_unreadable_share)",
            remedy="Replace or delete these images, or raise the share.",
        )


def _check_names(photos: Sequence[Photo], links: Sequence[Link]) -> None:
    for link in links:
        first, second = photos[link.first], photos[link.second]
        if link.exact and first.pill != second.pill:
            others = sum(
                other.exact and photos[other.first].pill != photos[other.second].pill
                for other in links
            )
            more = f" (and {others - 1} more such images)" if others > 1 else ""
            raise DatasetRejected(
                f"{first.source} and {second.source}",
                found=f"the same image as {first.pill!r} and as {second.pill!r}{more}",
                expected="each image under one pill name",
                remedy="Merge the two pills into one folder, or delete the wrong image.",
            )


def _groups(photos: Sequence[Photo], links: Sequence[Link]) -> list[int]:
    """Join copies, and photos of one session of one pill; groups count by their first photo."""
    unions = Unions(len(photos))
    for link in links:
        unions.unite(link.first, link.second)
    sessions: dict[tuple[str, str], int] = {}
    for index, photo in enumerate(photos):
        unions.unite(sessions.setdefault((photo.pill, photo.session), index), index)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in unions.labels()]


def _rows(photos: Sequence[Photo], groups: Sequence[int], assignment: Assignment) -> list[ImageRow]:
    return [
        ImageRow(
            image=image,
            pill=photo.pill,
            side=photo.side,
            session=photo.session,
            capture=photo.capture,
            group=f"g{group:06d}",
            split=assignment.splits[photo.pill],
            role=assignment.roles[photo.source],
        )
        for photo, group, image in zip(photos, groups, _image_names(photos), strict=True)
    ]


def _image_names(photos: Sequence[Photo]) -> list[str]:
    """Name files below the output: plain characters, unique even where case does not count."""
    plain: list[tuple[Photo, str, str]] = []
    for photo in photos:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", photo.path.stem)[:100]
        plain.append((photo, stem, photo.path.suffix.lower()))
    uses = Counter((photo.pill, (stem + suffix).casefold()) for photo, stem, suffix in plain)
    names: list[str] = []
    for photo, stem, suffix in plain:
        if uses[photo.pill, (stem + suffix).casefold()] > 1:
            stem = f"{stem}-{hashlib.sha256(photo.source.encode()).hexdigest()[:12]}"
        names.append(f"images/{photo.pill}/{stem}{suffix}")
    assert len({name.casefold() for name in names}) == len(names)
    return names


def _pill_rows(layout: Layout, photos: Sequence[Photo]) -> list[PillRow]:
    pills = {photo.pill for photo in photos}
    return [layout.pills.get(pill, PillRow(pill)) for pill in sorted(pills)]


def _audit(
    found: _Found,
    assignment: Assignment,
    rows: list[ImageRow],
    prints: dict[str, Fingerprint],
    params: PrepareParams,
) -> Audit:
    photos, links = found.photos, found.links
    per_pill = Counter(row.pill for row in rows)
    enrolled = [row for row in rows if row.role != "stranger"]
    sides = {(row.pill, row.side) for row in enrolled}
    probed = {(row.pill, row.side) for row in enrolled if row.role == "probe"}
    seen_in: dict[str, set[str]] = {}
    for row in rows:
        seen_in.setdefault(row.session, set()).add(row.split)
    with found.archive.open("rb") as file:
        archive_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    respected = params.zip_splits == "respect"
    leaks, closest = check_leaks(rows, prints, params.near_duplicate_bits)
    lost = {photo.pill for photo in found.layout.photos} - per_pill.keys()
    lost_notes = [f"{pill}: no readable photo, left out" for pill in sorted(lost)]
    return Audit(
        archive=found.archive.name,
        archive_sha256=archive_sha256,
        layout=found.layout.kind,
        n_images=len(rows),
        n_pills=len(per_pill),
        captures=dict(sorted(Counter(row.capture for row in rows).items())),
        splits=count_splits(rows),
        unreadable=tuple(found.unreadable),
        exact_duplicates=_components(photos, [link for link in links if link.exact]),
        near_duplicates=_components(photos, links, skip_all_exact=True),
        alike=_alike(photos, links, assignment),
        single_image_pills=tuple(sorted(pill for pill, n in per_pill.items() if n == 1)),
        sides_without_probe=len(sides - probed),
        divided_by_zip=_divided(photos, found.groups) if respected else (),
        shared_sessions=tuple(sorted(name for name, s in seen_in.items() if len(s) > 1)),
        skipped=tuple(sorted(found.skipped)),
        ignored=found.layout.ignored,
        notes=(*found.layout.notes, *assignment.notes, *lost_notes),
        leaks=leaks,
        near_duplicate_bits=params.near_duplicate_bits,
        closest=closest,
    )


def _divided(photos: Sequence[Photo], groups: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the sources of each group that the folders of the zip put into several splits."""
    members: dict[int, list[Photo]] = {}
    for photo, group in zip(photos, groups, strict=True):
        members.setdefault(group, []).append(photo)
    divided = (found for found in members.values() if len({p.given_split for p in found}) > 1)
    return tuple(sorted(tuple(sorted(photo.source for photo in found)) for found in divided))


def _components(
    photos: Sequence[Photo], links: Sequence[Link], *, skip_all_exact: bool = False
) -> tuple[tuple[str, ...], ...]:
    unions = Unions(len(photos))
    for link in links:
        unions.unite(link.first, link.second)
    near = {unions.find(link.first) for link in links if not link.exact}
    found: dict[int, list[str]] = {}
    for link in links:
        label = unions.find(link.first)
        if label in near or not skip_all_exact:
            names = found.setdefault(label, [])
            names.extend(photos[index].source for index in (link.first, link.second))
    return tuple(sorted(tuple(sorted(set(names))) for names in found.values()))


def _alike(
    photos: Sequence[Photo], links: Sequence[Link], assignment: Assignment
) -> tuple[Alike, ...]:
    cluster_of = {pill: cluster for cluster in assignment.clusters for pill in cluster}
    shown: dict[tuple[str, ...], Alike] = {}
    for link in links:
        first, second = photos[link.first], photos[link.second]
        if first.pill != second.pill:
            cluster = cluster_of[first.pill]
            alike = Alike(cluster, first.source, second.source, link.bits)
            best = shown.get(cluster)
            if best is None or alike.bits < best.bits:
                shown[cluster] = alike
    return tuple(shown[cluster] for cluster in sorted(shown))


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(result: Path, out: Path, previous: Path) -> None:
    """Put `result` in the place of `out`; an interruption in between puts the old one back."""
    had_output = out.exists()
    try:
        if had_output:
            out.rename(previous)
        result.rename(out)
    except BaseException:
        if had_output and previous.exists() and not out.exists():
            previous.rename(out)
        raise
