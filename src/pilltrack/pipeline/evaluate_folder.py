"""`pilltrack evaluate-folder`: how well does a bundle do on photos of one's own?

The pills of one folder are enrolled without any training, those of another are identified, and
those of a third are strangers. Of the bundle's own gallery only the background is used. Every file
counts or is refused by name, and no photo may be in two of the folders: a photo finds itself again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pilltrack.core.bundle import GALLERY_FILE, read_bundle
from pilltrack.core.decide import Decision, Rule, decide
from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.errors import DatasetRejected
from pilltrack.core.gallery import Candidate, read_background
from pilltrack.core.image import SUFFIXES, read_image
from pilltrack.pipeline.archive import is_junk
from pilltrack.pipeline.protocol import (
    Drawn,
    Probes,
    drawn,
    measure,
    measure_decisions,
    measure_strangers,
    rounded,
    search,
    single_views,
)

BATCH = 8  # bounds memory: so many decoded photos at once


def evaluate_folder(
    bundle: Path,
    gallery: Path,
    probes: Path,
    strangers: Path | None = None,
    *,
    references: int | None = None,
    rule_for: int | None = None,
) -> dict[str, Any]:
    """Enrol `gallery`, identify `probes` and `strangers`; each a folder of `<pill>/<image>`.

    `references`: how many photos of each pill to enrol, first by name; None enrols all. `rule_for`:
    decide by the bundle's rule for so many pills, at least 1, though no more are enrolled; None
    takes that for those of `gallery`. Returns counts, the measures of `protocol.measure` (AUROC and
    FNIR at a FPIR only with strangers), how many pills the rule is for and its threshold, and what
    it decides: those of `protocol.measure_decisions`, and `fpir` and `fpir_upper` with strangers.

    Raises DatasetRejected when a folder holds no pills or anything but photos of pills, a probe's
    pill is not enrolled, a stranger's is, or the same pixels are in two of the folders;
    ImageRejected for an unreadable photo; BundleRejected for a damaged bundle.
    """
    manifest = read_bundle(bundle)
    embedder = open_embedder(bundle / manifest.model.file, threads=2)
    background = read_background(bundle / GALLERY_FILE, embedder.dim)
    enrolled_photos = pill_photos(gallery)
    if references is not None:
        enrolled_photos = _first_of_each(enrolled_photos, references)
    probe_photos = pill_photos(probes)
    stranger_photos = pill_photos(strangers) if strangers else []
    _check_names(gallery, probes, strangers, enrolled_photos, probe_photos, stranger_photos)
    seen: dict[str, Path] = {}
    enrolled = _embed(partial(embed_references, embedder), enrolled_photos, "enrol", seen)
    mated = _embed(embedder.embed, probe_photos, "identify", seen)
    foreign = None
    if stranger_photos:
        foreign = _embed(embedder.embed, stranger_photos, "strangers", seen)

    def found(probes: Probes, seed: int) -> Drawn:
        outcomes = search(enrolled.embeddings[:, 0], enrolled.pills, probes, background)
        return drawn(outcomes, seed=seed)

    report: dict[str, Any] = {
        "bundle": manifest.name,
        "gallery_pills": len(set(enrolled.pills)),
        "gallery_references": len(enrolled),
    }
    if foreign:
        report |= {"n_strangers": len(foreign), "n_stranger_pills": len(set(foreign.pills))}
    calibration = manifest.calibration
    of_pills = report["gallery_pills"] if rule_for is None else rule_for
    rule = calibration.rule_for(of_pills)
    known, odd = found(mated, 0), found(foreign, 1) if foreign else None
    report |= measure(known, odd)
    report |= {"rule_for_pills": of_pills, "threshold": rounded(rule.threshold)}
    report |= measure_decisions(known, _decided(known, rule), calibration.confidence)
    if odd:
        let_in = measure_strangers(odd, _decided(odd, rule), calibration.confidence)
        report |= {key: let_in[key] for key in ("fpir", "fpir_upper")}
    return report


def _decided(probes: Drawn, rule: Rule) -> list[Decision]:
    """What the device makes of each photo."""
    found = probes.outcomes
    pairs = zip(found.best_pill, found.best, found.second_pill, found.second, strict=True)
    return [
        decide([Candidate(best, score), Candidate(second, next_score)], rule)
        for best, score, second, next_score in pairs
    ]


def pill_photos(folder: Path) -> list[tuple[str, Path]]:
    """(pill, image) for each image in `<folder>/<pill>/`, sorted.

    Hidden files and junk of the desktop are skipped. Raises DatasetRejected for a folder that is
    missing or empty, and, naming the first and the number of them, for whatever else is no photo
    and for pill folders without any photo.
    """
    pills = _visible(folder) if folder.is_dir() else []
    photos: list[tuple[str, Path]] = []
    others = [path for path in pills if not path.is_dir()]
    bare: list[Path] = []
    for pill in pills:
        inside = _visible(pill) if pill.is_dir() else []
        images = [path for path in inside if path.is_file() and path.suffix.lower() in SUFFIXES]
        photos += [(pill.name, image) for image in images]
        others += [path for path in inside if path not in images]
        if pill.is_dir() and not inside:
            bare.append(pill)
    if others:
        raise DatasetRejected(
            str(others[0]),
            found=f"not a photo of a pill (one of {len(others)} in {folder})",
            expected=f"<pill>/<image> only, an image being {', '.join(sorted(SUFFIXES))}",
            remedy="Save photos as JPEG or PNG in the folder of their pill, and move the rest out.",
        )
    if bare:
        raise DatasetRejected(
            str(bare[0]),
            found=f"no photos (one of {len(bare)} such folders in {folder})",
            expected="photos of the pill",
            remedy="Add photos or delete the folder.",
        )
    if not photos:
        raise DatasetRejected(
            str(folder),
            found="no images" if folder.is_dir() else "no such folder",
            expected="one folder for each pill with its photos: <pill>/<image>.jpg",
            remedy="Check the path.",
        )
    return photos


def _visible(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and not is_junk((path.name,))
    )


def _first_of_each(photos: list[tuple[str, Path]], count: int) -> list[tuple[str, Path]]:
    kept: dict[str, list[tuple[str, Path]]] = {}
    for pill, image in photos:
        kept.setdefault(pill, []).append((pill, image))
    return [photo for of_pill in kept.values() for photo in of_pill[:count]]


def _check_names(
    gallery: Path,
    probes: Path,
    strangers: Path | None,
    enrolled: list[tuple[str, Path]],
    mated: list[tuple[str, Path]],
    foreign: list[tuple[str, Path]],
) -> None:
    names = {pill for pill, _ in enrolled}
    missing = sorted({pill for pill, _ in mated} - names)
    if missing:
        raise DatasetRejected(
            str(probes / missing[0]),
            found=f"{len(missing)} pills that are not in {gallery}",
            expected="probes of enrolled pills only",
            remedy="Move pills that are not enrolled to the --strangers folder.",
        )
    known = sorted({pill for pill, _ in foreign} & names)
    if known:
        raise DatasetRejected(
            str((strangers or probes) / known[0]),
            found=f"{len(known)} strangers that are enrolled in {gallery}",
            expected="strangers that are not enrolled",
            remedy="Take them out of one of the two folders.",
        )


def _embed(
    embed: Callable[[list[NDArray[np.uint8]]], NDArray[np.float32]],
    photos: list[tuple[str, Path]],
    title: str,
    seen: dict[str, Path],
) -> Probes:
    """Embed the photos of one folder; `seen` holds the digests of the folders before it."""
    parts = []
    digests: dict[str, Path] = {}
    with tqdm(total=len(photos), desc=title, unit="photo", disable=None) as bar:
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH]
            images = [read_image(path) for _, path in batch]
            for (_, path), image in zip(batch, images, strict=True):
                digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
                if digest in seen:
                    raise _same_photo(seen[digest], path)
                digests[digest] = path
            parts.append(embed(images))
            bar.update(len(batch))
    seen |= digests
    return single_views(np.concatenate(parts), [pill for pill, _ in photos])


def _same_photo(first: Path, second: Path) -> DatasetRejected:
    return DatasetRejected(
        f"{first} and {second}",
        found="the same photo in two folders",
        expected="each photo in one of gallery, probes and strangers only",
        remedy="Delete one of the two; a photo compared with itself measures nothing.",
    )
