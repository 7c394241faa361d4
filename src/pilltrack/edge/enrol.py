"""Photos of a pill -> it is searchable from now on, or every reason why it should not be.

    photos -> the one pill in each -> blur, glare, exposure, its place      -> faults
    crops  -> embeddings           -> they agree? both sides? another pill? -> faults
    no fault, or a reason to go on -> photos on the disk, reason on record  -> searchable

The page, the API and the command line enrol by this one function. All faults are said at once, so
that whoever gives a reason gives it for what was seen; where nothing can be enrolled, since a
photo shows no pill or several, no reason helps. What was enrolled in spite of faults is on record
before it counts: neither is there without the other, but that a record may outlive a power cut
in that instant alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.enrol import embed_references, pills_to_enrol
from pilltrack.core.errors import ImageRejected, InputRejected
from pilltrack.core.identify import Identifier
from pilltrack.core.local import LocalReferences, digest_of, is_store
from pilltrack.core.locate import MAX_CROP_PX, Found, crop
from pilltrack.core.preprocess import to_model_input
from pilltrack.core.quality import Fault, FaultKind, collision, photo_faults, set_faults
from pilltrack.edge.audit import AuditLog
from pilltrack.edge.record import (
    MAX_REASON_LENGTH,
    Override,
    RecordedFault,
    RecordedPhoto,
)

Photo = NDArray[np.uint8]  # (H, W, 3)
NOTHING_TO_ENROL: frozenset[FaultKind] = frozenset({"no pill", "several pills"})
# Where in a photo that is nothing but the pill it ends, nobody says.
_NEEDS_OUTLINE: frozenset[FaultKind] = frozenset({"clipped", "glare", "too bright"})


@dataclass(frozen=True, eq=False)
class Judged:
    """Photos, what would be enrolled of them, and what is wrong with them.

    A fault's `image` is one of `names`, or empty where it is about all photos.
    """

    names: tuple[str, ...]  # of all photos, no two alike
    boxes: tuple[tuple[int, int, int, int] | None, ...]  # None where not just one pill was found
    crops: tuple[Photo, ...]  # of the others
    embeddings: NDArray[np.float32]  # (len(crops), D), to enrol them with
    faults: tuple[Fault, ...]
    alike: str  # digest of the kept photo of the pill they collide with; empty without one

    @property
    def can_override(self) -> bool:
        """There is something to enrol, if someone says why."""
        return not any(fault.kind in NOTHING_TO_ENROL for fault in self.faults)


class PhotosRefused(InputRejected):
    """Photos have faults, and nothing was enrolled."""

    def __init__(self, pill: str, judged: Judged) -> None:
        self.judged = judged
        remedy = "Do what each fault asks for, or give a reason to enrol the pill all the same."
        if not judged.can_override:
            remedy = "Take another photo: of none or several pills there is nothing to enrol, "
            remedy += "whatever the reason."
        found = (f"{fault.image or 'all photos'}: {fault.kind}" for fault in judged.faults)
        super().__init__(
            pill, found="; ".join(found), expected="photos without a fault", remedy=remedy
        )


@dataclass(frozen=True)
class Enrolled:
    """How many references a pill has now, how many are new, and which faults were overridden."""

    references: int
    new: int
    overridden: tuple[Fault, ...]


def enrol(
    identifier: Identifier,
    home: Path,
    pill: str,
    photos: Iterable[tuple[str, Photo]],
    sides: Sequence[str],
    time: datetime,
    *,
    crops: bool = False,
    reason: str = "",
) -> Enrolled:
    """Enrol photos (name, RGB (H, W, 3) uint8) of one pill, all or none; taken one by one.

    `identifier` searches `home` too; `sides` says what each photo shows, "front", "back" or
    nothing; `time` is in UTC. `crops`: the photos are nothing but the pill, and what depends on
    where it ends is not judged. With a `reason` photos with faults are enrolled all the same.

    Raises PhotosRefused for faults without a reason, or where there is nothing to enrol;
    ImageRejected for a photo that the model sees nothing in; InputRejected for a reason that is
    too long or no text; and as `LocalReferences.adding`.
    """
    reason = _checked(reason)
    judged = _judged(identifier, home, pill, photos, sides, crops)
    if judged.faults and not (reason and judged.can_override):
        raise PhotosRefused(pill, judged)
    kept = list(zip(judged.names, judged.crops, strict=True))
    with LocalReferences(home, check=False) as local:
        with local.adding(pill, kept, sides) as n_new:
            digests = [digest_of(crop) for crop in judged.crops]
            local.remember(identifier.embedder.space, digests, judged.embeddings)
            if judged.faults:
                override = _override(identifier, pill, judged, sides, reason, time)
                with AuditLog(home) as audit:
                    audit.add_override(override)
        references, embeddings = local.embedded(identifier.embedder, pill)
    identifier.gallery.replace(pill, references, embeddings)
    return Enrolled(len(references), n_new, judged.faults)


def _judged(
    identifier: Identifier,
    home: Path,
    pill: str,
    photos: Iterable[tuple[str, Photo]],
    sides: Sequence[str],
    crops: bool,
) -> Judged:
    """Judge photos alone, together and against the enrolled pills.

    Of photos of none or several pills only the side counts for what is said about all together.
    """
    size_px, faults, alike = identifier.embedder.input_size_px, list[Fault](), ""
    names: list[str] = []
    boxes: dict[str, tuple[int, int, int, int]] = {}
    cut: dict[str, tuple[Photo, str]] = {}  # name -> crop, side
    for (called, photo), side in zip(photos, sides, strict=True):
        name = _told_apart(called, names)
        names.append(name)
        if crops:
            whole = Found((0, 0, *photo.shape[1::-1]), np.ones(photo.shape[:2], bool), 1.0)
            found, of_photo = [whole], photo_faults(name, photo, [whole], size_px)
            faults += [fault for fault in of_photo if fault.kind not in _NEEDS_OUTLINE]
        else:
            found = pills_to_enrol(identifier.locator, photo)
            faults += photo_faults(name, photo, found, size_px)
        if len(found) == 1:
            boxes[name] = found[0].box
            cut[name] = (_no_larger(photo) if crops else crop(photo, found[0])), side
    squares, shown = [square for square, _ in cut.values()], [side for _, side in cut.values()]
    embeddings = embed_references(identifier.embedder, squares)
    for name, embedding in zip(cut, embeddings, strict=True):
        if not embedding.any():
            raise _nothing_seen(name)
    enrolled = {reference.side for reference in identifier.gallery.references(pill)}
    calibration = identifier.calibration
    faults += set_faults(
        [*cut], embeddings, shown, {*enrolled, *sides}, agreement=calibration.agreement
    )
    probes = identifier.embedder.embed(squares)
    candidates = identifier.gallery.search(probes, 2)
    rule = calibration.rule_for(len({*identifier.gallery.pills(), pill}))
    if fault := collision([*cut], candidates, pill, rule):
        faults.append(fault)
        alike = _most_alike(identifier, home, fault.other, probes[[*cut].index(fault.image)])
    return Judged(
        tuple(names),
        tuple(map(boxes.get, names)),
        tuple(squares),
        embeddings,
        tuple(faults),
        alike,
    )


def _no_larger(photo: Photo) -> Photo:
    """A photo that is nothing but the pill, no larger than `crop` would have cut it out."""
    return photo if max(photo.shape[:2]) <= MAX_CROP_PX else to_model_input(photo, MAX_CROP_PX)


def _most_alike(identifier: Identifier, home: Path, pill: str, probe: NDArray[np.float32]) -> str:
    """The digest of the photo of a pill that is most like a probe; empty where none is kept."""
    if not is_store(home):
        return ""
    with LocalReferences(home, check=False) as local:
        kept = local.kept(pill)
        _, embeddings = local.embedded(identifier.embedder, pill)
    return kept[int((embeddings @ probe).argmax())].crop if kept else ""


def _override(
    identifier: Identifier,
    pill: str,
    judged: Judged,
    sides: Sequence[str],
    reason: str,
    time: datetime,
) -> Override:
    return Override.model_validate(
        {
            "time": time,
            "pill": pill,
            "bundle": identifier.manifest.name,
            "space": identifier.manifest.space,
            "photos": tuple(
                RecordedPhoto.model_validate({"image": name, "side": side, "crop": digest_of(crop)})
                for name, crop, side in zip(judged.names, judged.crops, sides, strict=True)
            ),
            "faults": tuple(
                RecordedFault(
                    image=fault.image,
                    kind=fault.kind,
                    found=fault.found,
                    expected=fault.expected,
                    other=fault.other,
                )
                for fault in judged.faults
            ),
            "reason": reason,
        }
    )


def _told_apart(name: str, taken: Sequence[str]) -> str:
    """A name that differs from those before it: phones call every photo alike.

    >>> _told_apart("image.jpg", ["image.jpg", "a.jpg"])
    'image.jpg (3)'
    """
    while name in taken:
        name = f"{name} ({len(taken) + 1})"
    return name


def _checked(reason: str) -> str:
    """A reason without blanks around it."""
    reason = reason.strip()
    if len(reason) > MAX_REASON_LENGTH or _is_no_text(reason):
        raise InputRejected(
            "reason",
            found=f"{len(reason)} characters",
            expected=f"text of at most {MAX_REASON_LENGTH} characters",
            remedy="Say it in other words.",
        )
    return reason


def _is_no_text(words: str) -> bool:
    """It holds control characters, which a terminal obeys, or halves of characters."""
    kinds = {unicodedata.category(character) for character in words if character not in "\n\r\t"}
    return bool(kinds & {"Cc", "Cs"})


def _nothing_seen(image: str) -> ImageRejected:
    return ImageRejected(
        image,
        found="nothing that the model sees",
        expected="a photo of a pill",
        remedy="Take another photo of it.",
    )
