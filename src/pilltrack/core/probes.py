"""Golden probes: a few pictures in a bundle, and what its own parts answered to them.

    probes file     safetensors
      tensors       crops.00 ...    (H, W, 3) uint8, as they are before preprocessing
                    embeddings      (N, D) float32, unit length: what the model made of each crop
                    frames.00 ...   (H, W, 3) uint8
      metadata      format          "pilltrack-probes-1"
                    space           name of the embedding space
                    decisions       JSON [[kind, pill, score] or null, ...], one for each crop
                    boxes           JSON [[[x, y, width, height], ...], ...], one row for each frame

A device that gets a bundle asks the same questions before it trusts it. Other processors round
otherwise, so an embedding may be off by MIN_COSINE; a decision is promised only where no embedding
within that tolerance could change it, and a frame only where no find is a close call. A broken
promise is therefore never rounding. Only the bundle's own gallery is asked: what a device enrolled
itself changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from pilltrack.core.background import WEIGHT
from pilltrack.core.decide import Rule, decide
from pilltrack.core.embedder import Embedder
from pilltrack.core.errors import BundleRejected
from pilltrack.core.gallery import MAX_DIM, MAX_NAME_LENGTH, UNIT_TOLERANCE, Gallery
from pilltrack.core.locate import MAX_PILLS, Box, Locator, in_reading_order, iou
from pilltrack.core.second_look import LEAST_LOOKED_AT, SURE, cut_off, log_odds
from pilltrack.core.tensors import as_json, write_tensors

FORMAT: Final = "pilltrack-probes-1"
MAX_CROPS = 16
MAX_CROP_PX = 320
MAX_FRAMES = 2
MAX_FRAME_PX = 640
MAX_FILE_BYTES = 8 * 1024 * 1024

# Kernels for other processors round otherwise. The first starter's int8 file on 120 crops, against
# AVX-512: AVX2 the same to the bit, SSE4 at least 0.9987, LiteRT's plain reference kernels at least
# 0.9945 (docs/lab-log.md). Another model agrees on nothing.
MIN_COSINE = 0.98
# Its locator on scenes of 256 px: with the reference kernels the log-odds of 339 finds differ by
# 0.27 on average, of a few in doubt by up to 3.4; 37 of 37 frames that could be probes kept their
# promise (docs/lab-log.md). What is taken off near the border hangs on single pixels, so a frame
# with a find there is no probe either.
MIN_IOU = 0.7
LOG_ODDS_SLACK = 1.5  # a frame with a find so close to the least confidence is no probe,
FIRST_SLACK = 1.5  # nor one with a find so close, by this factor, to being dropped unseen

_METADATA = {"format", "space", "decisions", "boxes"}
_MOVED = math.sqrt(2 * (1 - MIN_COSINE))  # |e - e'| of two unit vectors with this cosine
_SCORE_SLACK = (1 + WEIGHT) * _MOVED

Picture = NDArray[np.uint8]  # (H, W, 3)
_Row = tuple[Literal["known", "unknown"], str | None, float]


@dataclass(frozen=True)
class Promised:
    """A decision; `pill` only if it is known. A close call, "ambiguous", is never promised."""

    kind: Literal["known", "unknown"]
    pill: str | None
    score: float


@dataclass(frozen=True, eq=False)
class Probes:
    """Pictures and promises: for each crop an embedding, and a decision or None; for each frame
    the boxes of its pills in reading order.
    """

    space: str
    crops: tuple[Picture, ...]
    embeddings: NDArray[np.float32]  # (len(crops), D), L2-normalised
    decisions: tuple[Promised | None, ...]
    frames: tuple[Picture, ...]
    boxes: tuple[tuple[Box, ...], ...]


def promise(
    crops: Sequence[Picture],
    frames: Iterable[Picture],
    *,
    locator: Locator,
    embedder: Embedder,
    gallery: Gallery,
    rule: Rule,
) -> Probes:
    """Ask the parts of a bundle about pictures, and promise what they answer.

    Every crop gets an embedding, and a decision unless it is a close call. Of the frames the first
    MAX_FRAMES count that show a pill and no close call; no more are asked for.

    Raises SpaceMismatch for a gallery of another embedding space, ValueError for too many or too
    large pictures, no crop, or one in which the model sees nothing.
    """
    gallery.require_space(embedder.space)
    _check_pictures("crop", crops, 1, MAX_CROPS, MAX_CROP_PX)
    embeddings = embedder.embed(crops)  # (N, D) float32, L2-normalised
    for number, embedding in enumerate(embeddings, 1):
        if not embedding.any():
            raise ValueError(f"the model sees nothing in crop {number}")
    asked = ((frame, _clear_boxes(frame, locator)) for frame in frames)
    clear = list(islice(((frame, boxes) for frame, boxes in asked if boxes), MAX_FRAMES))
    _check_pictures("frame", [frame for frame, _ in clear], 0, MAX_FRAMES, MAX_FRAME_PX)
    return Probes(
        embedder.space,
        tuple(crops),
        embeddings,
        tuple(clear_decision(embedding, gallery, rule) for embedding in embeddings),
        tuple(frame for frame, _ in clear),
        tuple(boxes for _, boxes in clear),
    )


def clear_decision(embedding: NDArray[np.float32], gallery: Gallery, rule: Rule) -> Promised | None:
    """The decision, if every embedding with a cosine of at least MIN_COSINE gets the same.

    Turned by the angle a = arccos(MIN_COSINE), an embedding's cosine c = cos b to any reference
    stays between cos(b + a) and cos(b - a). Its share of the background, WEIGHT times a mean of
    such cosines, moves by at most WEIGHT * |e - e'|.
    """
    if not len(gallery):
        return Promised("unknown", None, 0.0)
    [nearest] = gallery.nearest(embedding[None], len(gallery.pills()))
    [scored] = gallery.search(embedding[None], 2)
    best, moved = nearest[0], WEIGHT * _MOVED if len(gallery.background) else 0.0
    decision = decide(scored, rule)
    least = _turned(best.score, away=True)
    rivals = [pill for pill in nearest if _turned(pill.score, away=False) >= least]
    shares = gallery.background.share(
        np.repeat(embedding[None], len(rivals), axis=0), [pill.pill for pill in rivals]
    )
    if decision.kind == "unknown":
        highest = [
            _turned(pill.score, away=False) - max(share - moved, 0.0)
            for pill, share in zip(rivals, shares, strict=True)
        ]
        if max(highest) >= rule.threshold:
            return None
        return Promised("unknown", None, decision.score)
    ahead = all(
        least - _turned(rival.score, away=False) > rule.margin
        for rival in nearest
        if rival.pill != best.pill
    )
    if decision.kind == "known" and ahead and least - shares[0] - moved >= rule.threshold:
        return Promised("known", decision.pill, decision.score)
    return None


def broken_promises(
    probes: Probes, *, locator: Locator, embedder: Embedder, gallery: Gallery, rule: Rule
) -> tuple[str, ...]:
    """Say in a sentence each promise that these parts do not keep; nothing when all are kept.

    `gallery` is the bundle's own. Of a crop whose embedding is wrong the decision is not judged.
    """
    broken = []
    found = embedder.embed(probes.crops)
    cosines = (found * probes.embeddings).sum(axis=1)
    for number, promised in enumerate(probes.decisions):
        name = f"probe {number + 1}"
        if not cosines[number] >= MIN_COSINE:
            broken.append(
                f"{name}: its embedding has a cosine of {cosines[number]:.3f} to the promised one, "
                f"expected at least {MIN_COSINE}"
            )
        elif promised is not None:
            broken += _broken_decision(name, found[number], promised, gallery, rule)
    for number, (frame, boxes) in enumerate(zip(probes.frames, probes.boxes, strict=True), 1):
        seen = [pill.box for pill in locator.locate(frame)]
        broken += _broken_boxes(f"frame {number}", seen, boxes)
    return tuple(broken)


def save_probes(probes: Probes, path: Path) -> None:
    """Write the probes file (see the module's docstring); the same content, the same bytes."""
    tensors: dict[str, NDArray[Any]] = {
        **{_name("crops", number): crop for number, crop in enumerate(probes.crops)},
        "embeddings": probes.embeddings,
        **{_name("frames", number): frame for number, frame in enumerate(probes.frames)},
    }
    decisions = [d and [d.kind, d.pill, d.score] for d in probes.decisions]
    names = ["embeddings", *sorted(set(tensors) - {"embeddings"})]  # float32 stays aligned
    write_tensors(
        path,
        {name: tensors[name] for name in names},
        {
            "format": FORMAT,
            "space": probes.space,
            "decisions": as_json(decisions),
            "boxes": as_json(probes.boxes),
        },
    )


def read_probes(path: Path) -> Probes:
    """Read a probes file; every value is checked.

    Raises BundleRejected when it is missing, damaged, of another format, too large, or holds what
    `promise` could not have made.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _rejected(path, f"{size} bytes", f"at most {MAX_FILE_BYTES} bytes")
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, NDArray[Any]] = {}
            for name in sorted(file.keys()):
                if (dtype := file.get_slice(name).get_dtype()) not in ("U8", "F32"):
                    raise _rejected(path, f"{name} of type {dtype}", "tensors of U8 or F32")
                tensors[name] = file.get_tensor(name)
    except OSError as error:
        raise _rejected(path, f"cannot be read ({error})", "a probes file") from error
    except SafetensorError as error:
        raise _rejected(path, f"damaged ({error})", "a whole probes file") from error
    found_format = metadata.get("format")
    if found_format != FORMAT:
        raise _rejected(path, f"format {found_format!r}", f"format {FORMAT!r}")
    if set(metadata) != _METADATA or not metadata["space"]:
        expected = f"metadata {', '.join(sorted(_METADATA))}"
        raise _rejected(path, f"metadata {sorted(metadata)}", expected)
    rows = _table(
        path,
        metadata,
        "decisions",
        list[_Row | None],
    )
    boxes = _table(path, metadata, "boxes", list[list[Box]])
    names = [_name("crops", number) for number in range(len(rows))]
    frame_names = [_name("frames", number) for number in range(len(boxes))]
    if set(tensors) != {"embeddings", *names, *frame_names}:
        found = f"tensors {', '.join(sorted(tensors))} for {len(rows)} crops, {len(boxes)} frames"
        raise _rejected(path, found, "one for each, and their embeddings")
    probes = Probes(
        metadata["space"],
        tuple(tensors[name] for name in names),
        tensors["embeddings"],
        tuple(row and Promised(*row) for row in rows),
        tuple(tensors[name] for name in frame_names),
        tuple(map(tuple, boxes)),
    )
    try:
        _check(probes)
    except ValueError as error:
        raise _rejected(path, str(error), "probes that PillTrack wrote") from error
    return probes


def _turned(cosine: float, *, away: bool) -> float:
    """The least (`away`) or greatest cosine after a turn that MIN_COSINE allows.

    >>> [round(_turned(cosine, away=True), 3) for cosine in (1.0, 0.8, -1.0)]
    [0.98, 0.665, -1.0]
    """
    angle, turn = math.acos(max(-1.0, min(1.0, cosine))), math.acos(MIN_COSINE)
    return math.cos(min(angle + turn, math.pi) if away else max(angle - turn, 0.0))


def _clear_boxes(frame: Picture, locator: Locator) -> tuple[Box, ...]:
    """The boxes found in a frame; none where a find is a close call."""
    limit = log_odds(locator.min_confidence)
    low, high = LEAST_LOOKED_AT / FIRST_SLACK, LEAST_LOOKED_AT * FIRST_SLACK
    if any(pill.confidence < high for pill in locator.first_look(frame, low)):
        return ()
    boxes = []
    for sure in (SURE, math.inf):  # other kernels may be less sure of what is not looked at here
        found = locator.find(frame, 0.0, sure)
        if any(0 < cut_off(pill.box, *frame.shape[:2]) < 1 for pill in found):
            return ()
        if any(abs(log_odds(pill.confidence) - limit) < LOG_ODDS_SLACK for pill in found):
            return ()
        kept = [pill for pill in found if pill.confidence >= locator.min_confidence]
        boxes.append(tuple(pill.box for pill in in_reading_order(kept)))
    return boxes[0] if boxes[0] == boxes[1] else ()


def _broken_decision(
    name: str, embedding: NDArray[np.float32], promised: Promised, gallery: Gallery, rule: Rule
) -> list[str]:
    [candidates] = gallery.search(embedding[None], 2)
    decision = decide(candidates, rule)
    if (decision.kind, decision.pill) != (promised.kind, promised.pill):
        found, expected = (
            f"{kind}{f', {pill}' if pill else ''}"
            for kind, pill in ((decision.kind, decision.pill), (promised.kind, promised.pill))
        )
        return [f"{name}: decided as {found}, promised {expected}"]
    if not abs(decision.score - promised.score) <= _SCORE_SLACK:
        return [
            f"{name}: its score is {decision.score:.3f}, promised {promised.score:.3f} "
            f"to within {_SCORE_SLACK:.2f}"
        ]
    return []


def _broken_boxes(name: str, found: Sequence[Box], promised: Sequence[Box]) -> list[str]:
    if len(found) != len(promised):
        return [f"{name}: {len(found)} pills found, promised {len(promised)}"]
    left = list(found)
    for box in promised:
        overlaps = [iou(box, other) for other in left]
        nearest = int(np.argmax(overlaps))
        if overlaps[nearest] < MIN_IOU:
            return [
                f"{name}: the pill promised at {box} is found at {left[nearest]}, an overlap (IoU) "
                f"of {overlaps[nearest]:.2f}, expected at least {MIN_IOU}"
            ]
        del left[nearest]
    return []


def _check(probes: Probes) -> None:
    """Raise ValueError for what `promise` could not have made."""
    _check_pictures("crop", probes.crops, 1, MAX_CROPS, MAX_CROP_PX)
    _check_pictures("frame", probes.frames, 0, MAX_FRAMES, MAX_FRAME_PX)
    embeddings = probes.embeddings
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or embeddings.shape[1] > MAX_DIM:
        raise ValueError(f"embeddings have shape {embeddings.shape} and dtype {embeddings.dtype}")
    if len(embeddings) != len(probes.crops):
        raise ValueError(f"{len(embeddings)} embeddings for {len(probes.crops)} crops")
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():
        raise ValueError("an embedding that is not of unit length")
    for promised in probes.decisions:
        if promised is None:
            continue
        named = promised.pill is not None and 1 <= len(promised.pill) <= MAX_NAME_LENGTH
        if named != (promised.kind == "known") or not math.isfinite(promised.score):
            raise ValueError(f"a decision {promised!r:.200}")
    for frame, boxes in zip(probes.frames, probes.boxes, strict=True):
        height, width = frame.shape[:2]
        inside = all(
            min(x, y) >= 0 and min(w, h) >= 1 and x + w <= width and y + h <= height
            for x, y, w, h in boxes
        )
        if not inside or not 1 <= len(boxes) <= MAX_PILLS:
            raise ValueError(f"{len(boxes)} boxes, or one that is not in its frame")


def _check_pictures(
    what: str, pictures: Sequence[Picture], least: int, most: int, most_px: int
) -> None:
    if not least <= len(pictures) <= most:
        raise ValueError(f"{len(pictures)} {what}s; expected {least} to {most}")
    for picture in pictures:
        shape, dtype = picture.shape, picture.dtype
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or not picture.size:
            raise ValueError(f"a {what} of shape {shape} and dtype {dtype}")
        if max(shape) > most_px:
            raise ValueError(f"a {what} of {shape[1]} x {shape[0]} px; at most {most_px} px")


def _table(path: Path, metadata: dict[str, str], name: str, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_json(metadata[name], strict=True)
    except ValidationError as error:
        found = f"{name} that are not such a table ({error.errors()[0]['msg']})"
        raise _rejected(path, found, "JSON, one row for each picture") from error


def _name(kind: str, number: int) -> str:
    return f"{kind}.{number:02}"


def _rejected(path: Path, found: str, expected: str) -> BundleRejected:
    return BundleRejected(
        str(path), found=found, expected=expected, remedy="Fetch or build the bundle again."
    )
