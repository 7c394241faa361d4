"""Frame -> list of identified pills: the whole path on one screen.

    frame -> pills found -> crops -> embeddings -> candidates -> decisions

What we evaluate is what ships: the training machine runs the exported models, the device runs them
through an `Identifier` opened from a bundle. What was enrolled on the device joins
the bundle's gallery in memory; the bundle itself never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.bundle import GALLERY_FILE, LOCATOR_FILE, Manifest, read_bundle
from pilltrack.core.decide import Calibration, Decision, Rule, decide
from pilltrack.core.device_gallery import DeviceGallery
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.gallery import Candidate, Gallery  # noqa: F401 - Candidate: doctest
from pilltrack.core.local import LocalReferences, is_store
from pilltrack.core.locate import Found, Locator, crop
from pilltrack.core.probes import Probes, broken_promises

# Comes with the package; no pill is enrolled in it.
STARTER_BUNDLE = Path(__file__).parents[1] / "starter" / "bundle"


@dataclass(frozen=True)
class IdentifiedPill:
    """A pill in a frame and what it is taken for; `box` is (x, y, width, height) in pixels."""

    box: tuple[int, int, int, int]
    confidence: float  # 0 to 1: that this is a pill
    decision: Decision


def identify(
    frame: NDArray[np.uint8],
    locator: Locator,
    embedder: Embedder,
    gallery: Gallery | DeviceGallery,
    calibration: Calibration,
    n_candidates: int = 5,
) -> list[IdentifiedPill]:
    """Find and identify the pills in an RGB frame (H, W, 3) uint8, in reading order.

    Raises as `Locator.locate` and `identify_crops`.
    """
    found = locator.locate(frame)
    crops = [crop(frame, pill) for pill in found]
    return identified(found, identify_crops(crops, embedder, gallery, calibration, n_candidates))


def identified(found: Sequence[Found], decisions: Sequence[Decision]) -> list[IdentifiedPill]:
    """Each find with what its crop was taken for."""
    return [
        IdentifiedPill(pill.box, pill.confidence, decision)
        for pill, decision in zip(found, decisions, strict=True)
    ]


def identify_crops(
    crops: Sequence[NDArray[np.uint8]],
    embedder: Embedder,
    gallery: Gallery | DeviceGallery,
    calibration: Calibration,
    n_candidates: int = 5,
) -> list[Decision]:
    """Identify the one pill in each RGB crop (H, W, 3) uint8.

    Each decision lists at most `n_candidates` >= 1 pills, best first, and is made by the rule for a
    gallery of this size.

    Raises SpaceMismatch when embedder, gallery and calibration do not belong together, and
    ValueError for a crop of another shape or dtype.
    """
    require_one_space(embedder, gallery, calibration)
    embeddings = embedder.embed(crops)  # (len(crops), D) float32, L2-normalised
    before = gallery.n_pills
    found = gallery.search(embeddings, max(2, n_candidates))  # a decision needs the runner-up
    # Of a gallery that changed meanwhile the stricter rule.
    rule = calibration.rule_for(max(before, gallery.n_pills))
    decisions = [decide(candidates, rule) for candidates in found]
    return [
        replace(decision, candidates=decision.candidates[:n_candidates]) for decision in decisions
    ]


def open_locator(bundle_dir: Path, threads: int = 1) -> Locator:
    """Verify a bundle and open its locator alone; errors as `open_identifier`."""
    return _locator(bundle_dir, read_bundle(bundle_dir), threads)


def open_identifier(bundle_dir: Path, threads: int = 1, local: Path | None = None) -> Identifier:
    """Verify a bundle and open it; `threads` is what each of its models may use.

    `local` is a home of `core.local`: its references are searched like the bundle's own, and a
    pill in both is one pill. A home in which nothing was ever enrolled adds nothing.

    Raises BundleRejected or SpaceMismatch as `read_bundle`, `open_embedder` and `Gallery.load`,
    StageFailed as `LocalReferences`.
    """
    manifest = read_bundle(bundle_dir)
    locator = _locator(bundle_dir, manifest, threads)
    embedder = open_embedder(bundle_dir / manifest.model.file, threads)
    gallery = DeviceGallery(Gallery.load(bundle_dir / GALLERY_FILE))
    try:
        _require_sizes(bundle_dir, manifest, embedder, gallery.bundled)
        if local is not None and is_store(local):
            with LocalReferences(local) as references:
                gallery.enrol(*references.embedded(embedder))
    except BaseException:
        gallery.close()
        raise
    return Identifier(manifest, locator, embedder, gallery)


class Identifier:
    """An open bundle. Use it as a context manager, or call `close`."""

    def __init__(
        self, manifest: Manifest, locator: Locator, embedder: Embedder, gallery: DeviceGallery
    ) -> None:
        self.manifest = manifest
        self.locator = locator
        self.embedder = embedder
        self.gallery = gallery

    @property
    def calibration(self) -> Calibration:
        """The bundle's calibration."""
        return self.manifest.calibration

    @property
    def rule(self) -> Rule:
        """By which the device decides, with as many pills as are enrolled now."""
        return self.calibration.rule_for(self.gallery.n_pills)

    def identify(self, frame: NDArray[np.uint8], n_candidates: int = 5) -> list[IdentifiedPill]:
        """Find and identify the pills in an RGB frame; see the function `identify`."""
        parts = self.locator, self.embedder, self.gallery, self.calibration
        return identify(frame, *parts, n_candidates)

    def identify_crop(
        self, photo: NDArray[np.uint8], n_candidates: int = 5
    ) -> list[IdentifiedPill]:
        """Identify a photo (H, W, 3) uint8 that is one pill; its box is the whole photo."""
        parts = self.embedder, self.gallery, self.calibration
        [decision] = identify_crops([photo], *parts, n_candidates)
        height, width = photo.shape[:2]
        return [IdentifiedPill((0, 0, width, height), 1.0, decision)]

    def broken_promises(self, probes: Probes) -> tuple[str, ...]:
        """Say which promises of its probes the bundle breaks; what was enrolled here counts not."""
        with self.gallery.bundle_alone() as gallery:
            return broken_promises(
                probes,
                locator=self.locator,
                embedder=self.embedder,
                gallery=gallery,
                rule=self.calibration,
            )

    def close(self) -> None:
        """Release the gallery. Harmless when repeated."""
        self.gallery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def require_one_space(
    embedder: Embedder, gallery: Gallery | DeviceGallery, calibration: Calibration
) -> None:
    """Raise SpaceMismatch, naming both spaces, unless all three belong to one."""
    gallery.require_space(embedder.space)
    if calibration.space != embedder.space:
        raise SpaceMismatch(
            "calibration",
            found=f"embedding space {calibration.space}",
            expected=f"embedding space {embedder.space}",
            remedy="Calibrate again with this model and gallery.",
        )


def to_json(image: str, pills: Sequence[IdentifiedPill]) -> dict[str, Any]:
    """Turn identified pills into the answer of the CLI and the web service.

    >>> to_json("a.jpg", [IdentifiedPill((0, 0, 4, 3), 0.5, Decision("unknown", None, 0.0, ()))])
    {'image': 'a.jpg', 'pills': [{'box': [0, 0, 4, 3], 'confidence': 0.5, \
'decision': 'unknown', 'pill': None, 'score': 0.0, 'candidates': []}]}
    """
    return {
        "image": image,
        "pills": [
            {
                "box": list(pill.box),
                "confidence": round(pill.confidence, 4),
                "decision": pill.decision.kind,
                "pill": pill.decision.pill,
                "score": pill.decision.score,
                "candidates": [
                    {"pill": candidate.pill, "score": candidate.score}
                    for candidate in pill.decision.candidates
                ],
            }
            for pill in pills
        ],
    }


def sentence(decision: Decision) -> str:
    """A decision in words, with up to three nearest pills and their scores.

    >>> sentence(Decision("known", "a", 0.9, (Candidate("a", 0.9), Candidate("b", 0.25))))
    'a (known; nearest: a 0.90, b 0.25)'
    """
    nearest = ", ".join(f"{c.pill} {c.score:.2f}" for c in decision.candidates[:3])
    return f"{decision.pill or 'unnamed'} ({decision.kind}; nearest: {nearest})"


def _locator(bundle_dir: Path, manifest: Manifest, threads: int) -> Locator:
    file, least = bundle_dir / LOCATOR_FILE, manifest.locator.min_confidence
    return Locator(file, min_confidence=least, threads=threads)


def _require_sizes(
    bundle_dir: Path, manifest: Manifest, embedder: Embedder, gallery: Gallery
) -> None:
    sizes = (embedder.input_size_px, embedder.dim, gallery.dim)
    card = manifest.model
    if sizes != (card.input_size_px, card.embedding_dim, card.embedding_dim):
        raise BundleRejected(
            str(bundle_dir),
            found=f"input size, embedding lengths of model and gallery {sizes}",
            expected=f"those of the manifest, {card.input_size_px} and {card.embedding_dim}",
            remedy="Build the bundle again.",
        )
