"""How many good photos enrolment would refuse, how many bad ones it catches, what those would cost.

    python benchmarks/enrolment_quality.py [--pills N] [--bundle DIR] [--cost]
    PILLTRACK_REAL_DATA=<folder of phone_pills.zip> python benchmarks/enrolment_quality.py

Prints a Markdown table. Good photos are rendered pills through the renderer's camera, its own
blur, noise, light and JPEG included; bad ones are made of them. Pills are found as by a locator
without error on its grid of cells, or with --bundle by that bundle's. With the variable set,
phone photos are judged too; their masks are made by GrabCut from their boxes. Embeddings,
threshold and background are the starter's. With --cost a second table says how many pills are
found at the first guess when their only reference was spoilt and all others were not. Needs the
training install; takes two minutes, with --cost five.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.bundle import GALLERY_FILE, read_bundle
from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.enrol import embed_references
from pilltrack.core.gallery import Gallery, Reference, read_background
from pilltrack.core.identify import STARTER_BUNDLE, open_locator
from pilltrack.core.image import read_image
from pilltrack.core.locate import Found, crop, find_pills
from pilltrack.core.quality import Fault, collision, measure, photo_faults, set_faults
from pilltrack.pipeline import render
from pilltrack.pipeline.invented import InventedPill, invent_pills
from pilltrack.pipeline.locator_net import targets_of
from pilltrack.pipeline.yolo import first_copies, opened

Photo = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
Finder = Callable[[Photo, Sequence[Mask]], list[Found]]
Row = tuple[str, str, list[list[Fault]]]  # what, the fault it should have, what each photo has
LOCATOR_PX = 320
SIDES_PX = (160, 480)  # of a photo in which the pill fills most of the frame
SMALL_PX = 60  # length of a pill photographed from afar


@dataclass(frozen=True, eq=False)
class Shot:
    """A rendered photo of one pill, and where the pill is."""

    pixels: Photo
    mask: Mask

    @property
    def length_px(self) -> float:
        """Of the pill."""
        return _seen(self.mask).length_px


@dataclass(frozen=True, eq=False)
class Shots:
    """Photos of one pill: three fronts, two for enrolment and one more, and as many backs."""

    pill: InventedPill
    fronts: list[Shot]
    backs: list[Shot]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pills", type=int, default=80, help="how many to render (80)")
    parser.add_argument("--seed", type=int, default=4242, help="of pills and photos (4242)")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="take its locator")
    parser.add_argument("--cost", action="store_true", help="what spoilt references cost, too")
    arguments = parser.parse_args()
    finder = perfect_finder
    if arguments.bundle:
        locator = open_locator(arguments.bundle)

        def finder(photo: Photo, masks: Sequence[Mask]) -> list[Found]:
            return locator.locate(photo)

    embedder = open_embedder(STARTER_BUNDLE / "model.tflite")
    pills = [*rendered(arguments.pills, arguments.seed)]
    rows = [
        *good_rows(pills, finder, embedder.input_size_px, arguments.seed),
        *bad_rows(pills, finder, embedder.input_size_px, arguments.seed),
        *phone_rows(embedder.input_size_px, arguments.seed),
        *set_rows(pills, embedder, arguments.seed),
        *collision_rows(pills, embedder),
    ]
    print(as_table(rows))
    if arguments.cost:
        print(f"\n{cost_table(pills, embedder, arguments.seed)}")


def rendered(n_pills: int, seed: int) -> Iterator[Shots]:
    """Photos of invented pills, every photo in another setting."""
    rng = np.random.default_rng([seed, 1])
    for pill in invent_pills(n_pills, seed):
        faces = [render.render_face(pill, side, rng) for side in ("front", "back")]
        fronts, backs = ([shot(face, rng) for _ in range(3)] for face in faces)
        yield Shots(pill, fronts, backs)


def shot(face: render.RenderedFace, rng: np.random.Generator) -> Shot:
    """One photo, of a size between SIDES_PX, with room around it up to the pill's length."""
    size_px = round(math.exp(rng.uniform(*np.log(SIDES_PX))))
    setting = render.draw_setting(rng)
    # The place is what `photograph_pill` draws first.
    place = render._placement(face, size_px, copy.deepcopy(rng))
    opacity = np.ascontiguousarray(face.colour[..., 3])
    mask = cv2.warpPerspective(opacity, place, (size_px, size_px)) > 0.5
    pixels = render.photograph_pill(face, setting, size_px, rng)
    above, below, left, right = rng.integers(0, round(0.5 * size_px), 4).tolist()
    room = ((above, below), (left, right))
    return Shot(np.pad(pixels, (*room, (0, 0)), mode="edge"), np.pad(mask, room))


def perfect_finder(photo: Photo, masks: Sequence[Mask]) -> list[Found]:
    """What a locator without error finds: its answers are shares of cells, as the real one's."""
    rows, columns = photo.shape[:2]
    scale = LOCATOR_PX / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    top, left = (LOCATOR_PX - height) // 2, (LOCATOR_PX - width) // 2
    labels = np.zeros((LOCATOR_PX, LOCATOR_PX), np.uint8)
    for number, mask in enumerate(masks, 1):
        share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        labels[top : top + height, left : left + width][share >= 0.5] = number
    boxes = [cv2.boundingRect((labels == n + 1).astype(np.uint8)) for n in range(len(masks))]
    maps, _ = targets_of(labels, np.array(boxes, np.int64).reshape(-1, 4))
    return find_pills(maps, rows, columns, 0.3)


def good_rows(pills: Sequence[Shots], finder: Finder, size_px: int, seed: int) -> Iterator[Row]:
    """Photos that should pass."""
    every = [(shots.pill, True, one) for shots in pills for one in shots.fronts]
    every += [(shots.pill, False, one) for shots in pills for one in shots.backs]

    def judged(some: Sequence[Shot]) -> list[list[Fault]]:
        return [photo_faults("", s.pixels, finder(s.pixels, [s.mask]), size_px) for s in some]

    yield "good", "", judged([one for *_, one in every])
    white = [(pill, front, one) for pill, front, one in every if "white" in pill.colour_name]
    yield "good: white pills", "", judged([one for *_, one in white])
    plain = [one for pill, front, one in white if not (pill.front if front else pill.back).text]
    yield "good: white, no imprint", "", judged(plain)
    rng = np.random.default_rng([seed, 2])
    far = [_shrunk(one, SMALL_PX, rng) for *_, one in every if one.length_px > 1.5 * SMALL_PX]
    yield f"good: pill {SMALL_PX} px long", "", judged(far)


def bad_rows(pills: Sequence[Shots], finder: Finder, size_px: int, seed: int) -> Iterator[Row]:
    """Photos that should be refused: one fault each, made into the first front of each pill."""
    rng = np.random.default_rng([seed, 3])
    shots = [of_pill.fronts[0] for of_pill in pills]
    others = [*shots[1:], shots[0]]

    def judged(pixels: Photo, masks: Sequence[Mask]) -> list[Fault]:
        return photo_faults("", pixels, finder(pixels, masks), size_px)

    def each(change: Callable[[Shot], Photo]) -> list[list[Fault]]:
        return [judged(change(one), [one.mask]) for one in shots]

    for share in (0.02, 0.03, 0.04, 0.08):
        found = each(lambda one: _defocused(one, share, rng))  # noqa: B023
        yield f"out of focus by {share:.0%} of the pill", "blurred", found
    for share in (0.02, 0.03, 0.04, 0.08):
        found = each(lambda one: _shaken(one, share, rng))  # noqa: B023
        yield f"shaken by {share:.0%}", "blurred", found
    for gain in (0.5, 0.35, 0.25, 0.12):
        found = each(lambda one: _relit(one, gain, rng))  # noqa: B023
        yield f"{gain:.0%} of the light", "too dark", found
    for gain in (1.8, 2.5, 4.0):
        found = each(lambda one: _relit(one, gain, rng))  # noqa: B023
        yield f"{gain} times the light", "too bright", found
    dull = [one for one in shots if float(np.median(one.pixels[one.mask])) < 180]
    for share in (0.05, 0.1, 0.2):
        shiny = [(_with_glare(one, share, rng), [one.mask]) for one in dull]
        yield f"glare over {share:.0%}, not on white", "glare", [judged(*one) for one in shiny]
    white = [one for one in shots if float(np.median(one.pixels[one.mask])) >= 180]
    shiny = [(_with_glare(one, 0.2, rng), [one.mask]) for one in white]
    yield "glare over 20%, on white", "glare", [judged(*one) for one in shiny]
    for px in (40, 25):
        far = [_shrunk(one, px, rng) for one in shots]
        yield f"pill {px} px long", "too small", [judged(one.pixels, [one.mask]) for one in far]
    for share in (0.03, 0.1, 0.3):
        cut = [_clipped(one, share, rng) for one in shots]
        found = [judged(one.pixels, [one.mask]) for one in cut]
        yield f"{share:.0%} outside the frame", "clipped", found
    pairs = [_side_by_side(*two) for two in zip(shots, others, strict=True)]
    yield "two pills", "several pills", [judged(*pair) for pair in pairs]
    yield "no pill", "no pill", [judged(one.pixels, []) for one in shots]


def phone_rows(size_px: int, seed: int) -> Iterator[Row]:
    """Phone photos as they are, and out of focus; none without the variable."""
    folder = os.environ.get("PILLTRACK_REAL_DATA")
    if not folder:
        return
    rng = np.random.default_rng([seed, 4])
    shots = [*_phone_shots(Path(folder) / "phone_pills.zip", rng)]
    sharp = [photo_faults("", one.pixels, [_seen(one.mask)], size_px) for one in shots]
    yield "good: phone photos", "", sharp
    for share in (0.03, 0.04):
        soft = [(_defocused(one, share, rng), _seen(one.mask)) for one in shots]
        found = [photo_faults("", pixels, [pill], size_px) for pixels, pill in soft]
        yield f"phone photos out of focus by {share:.0%}", "blurred", found


def set_rows(pills: Sequence[Shots], embedder: Embedder, seed: int) -> Iterator[Row]:
    """Three photos of a side that agree, and with the third one wrong."""
    rng = np.random.default_rng([seed, 5])
    sides = [("front", shots.fronts) for shots in pills] + [("back", s.backs) for s in pills]
    rows = {(n, side): _references(embedder, s) for n, (side, s) in enumerate(sides)}
    ours = [rows[n, side] for n, (side, _) in enumerate(sides)]

    limit = read_bundle(STARTER_BUNDLE).calibration.agreement

    def judged(embeddings: NDArray[np.float32]) -> list[Fault]:
        three, sides = ["a", "b", "odd"], ["front"] * 3
        return set_faults(three, embeddings, sides, ["back"], agreement=limit)

    yield "good: three photos of a side", "", [judged(three) for three in ours]
    n_pills = len(pills)
    fronts, backs = ours[:n_pills], ours[n_pills:]

    def with_odd(odd: Sequence[tuple[int, NDArray[np.float32]]]) -> list[list[Fault]]:
        return [judged(np.vstack([fronts[n][:2], row[None]])) for n, row in odd]

    shift = int(rng.integers(1, n_pills))
    strange = [(n, fronts[(n + shift) % n_pills][0]) for n in range(n_pills)]
    yield "one of three another pill", "disagrees", with_odd(strange)
    alike = [
        (n, fronts[m][0])
        for n, one in enumerate(pills)
        for m, two in enumerate(pills)
        if n != m
        and (one.pill.colour_name, one.pill.body.shape)
        == (two.pill.colour_name, two.pill.body.shape)
    ]
    yield "one another pill of its colour and shape", "disagrees", with_odd(alike)
    turned = [(n, backs[n][0]) for n, one in enumerate(pills) if one.pill.front != one.pill.back]
    yield "one of three the other side", "disagrees", with_odd(turned)
    sided = [set_faults(["a"] * 3, three, ["front"] * 3, agreement=limit) for three in fronts]
    yield (
        "only the front",
        "one side",
        [[f for f in faults if f.kind == "one side"] for faults in sided],
    )


def collision_rows(pills: Sequence[Shots], embedder: Embedder) -> Iterator[Row]:
    """Strangers, and enrolled pills under another name, before a gallery of two thirds of all."""
    rule = read_bundle(STARTER_BUNDLE).calibration
    n_enrolled = 2 * len(pills) // 3
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        gallery.background = read_background(STARTER_BUNDLE / GALLERY_FILE, embedder.dim)
        for shots in pills[:n_enrolled]:
            for side, some in (("front", shots.fronts[:2]), ("back", shots.backs[:2])):
                named = [Reference(shots.pill.pill, side, str(n)) for n in range(2)]
                gallery.enrol(named, _references(embedder, some))

        def judged(some: Sequence[Shot]) -> list[Fault]:
            embeddings = embedder.embed([_crop(one) for one in some])
            found = gallery.search(embeddings, 5)
            fault = collision([str(n) for n in range(len(some))], found, "new", rule)
            return [fault] if fault else []

        yield (
            "good: two fronts, a back of a new pill",
            "",
            [judged([*shots.fronts[1:], shots.backs[2]]) for shots in pills[n_enrolled:]],
        )
        yield (
            "a front, a back of an enrolled pill",
            "collides",
            [judged([shots.fronts[2], shots.backs[2]]) for shots in pills[:n_enrolled]],
        )


def as_table(rows: Sequence[Row]) -> str:
    """One line for each kind of photo."""
    lines = [
        "| photos | n | refused | for the fault meant | for |",
        "|---|---:|---:|---:|---|",
    ]
    for what, meant, faults in rows:
        kinds: Counter[str] = Counter()
        for found in faults:
            kinds.update({fault.kind for fault in found})
        refused = sum(bool(found) for found in faults) / max(1, len(faults))
        right = f"{kinds[meant] / max(1, len(faults)):.1%}" if meant else ""
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        lines.append(f"| {what} | {len(faults)} | {refused:.1%} | {right} | {listed} |")
    return "\n".join(lines)


def cost_table(pills: Sequence[Shots], embedder: Embedder, seed: int) -> str:
    """Recall@1 over all fronts and backs, one photo enrolled and one looked up."""
    rng = np.random.default_rng([seed, 6])
    shots = [side for of_pill in pills for side in (of_pill.fronts, of_pill.backs)]
    probes = embedder.embed([_crop(one) for _, one, _ in shots])
    scores = probes @ _references(embedder, [one for one, _, _ in shots]).T
    own = np.arange(len(shots))
    good = scores.argmax(axis=1) == own
    lines = ["| reference | n | recall@1 | of good references |", "|---|---:|---:|---:|"]

    def hits(references: Sequence[Shot]) -> NDArray[np.bool_]:
        spoilt = scores.copy()
        spoilt[own, own] = (probes * _references(embedder, references)).sum(axis=1)
        found: NDArray[np.bool_] = spoilt.argmax(axis=1) == own
        return found

    for what, spoil, levels in (
        ("out of focus by {:.0%}", _defocused, (0.01, 0.02, 0.03, 0.04)),
        ("shaken by {:.0%}", _shaken, (0.01, 0.02, 0.03, 0.04)),
        ("glare over {:.0%}", _with_glare, (0.05, 0.1, 0.2)),
        ("{:.0%} of the light", _relit, (0.5, 0.35, 0.25)),
    ):
        for level in levels:
            found = hits([Shot(spoil(one, level, rng), one.mask) for one, _, _ in shots])
            lines.append(_cost(what.format(level), found, good))
    for px in (80, 64, 48, 36, 24):
        found = hits([_shrunk(one, px, rng) for one, _, _ in shots])
        lines.append(_cost(f"pill {px} px long", found, good))
    burnt, lost = [], []
    for gain in (1.2, 1.4, 1.6, 1.8, 2.1):
        bright = [Shot(_relit(one, gain, rng), one.mask) for one, _, _ in shots]
        burnt.append([measure(one.pixels, _seen(one.mask)).burnt for one in bright])
        lost.append(hits(bright))
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.75), (0.75, 0.9), (0.9, 1.01)):
        some = (np.array(burnt) >= low) & (np.array(burnt) < high)
        alike = np.broadcast_to(good, some.shape)[some]
        what = f"too much light, {low:.0%} to {min(high, 1):.0%} burnt out"
        lines.append(_cost(what, np.array(lost)[some], alike))
    return "\n".join(lines)


def _cost(what: str, found: NDArray[np.bool_], good: NDArray[np.bool_]) -> str:
    return f"| {what} | {len(found)} | {found.mean():.1%} | {good.mean():.1%} |"


def _seen(mask: Mask) -> Found:
    """The pill of an exact mask."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return Found((x, y, width, height), mask[y : y + height, x : x + width], 1.0)


def _crop(one: Shot) -> Photo:
    return crop(one.pixels, _seen(one.mask))


def _references(embedder: Embedder, shots: Sequence[Shot]) -> NDArray[np.float32]:
    return embed_references(embedder, [_crop(one) for one in shots])


def _stored(pixels: NDArray[np.floating], noise: float, rng: np.random.Generator) -> Photo:
    """Through the sensor, whose noise is a share of full scale, and JPEG."""
    noisy = pixels + rng.normal(0, 255 * noise, pixels.shape)
    sampled = noisy.round().clip(0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", sampled[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


def _defocused(one: Shot, share: float, rng: np.random.Generator) -> Photo:
    soft = cv2.GaussianBlur(one.pixels.astype(np.float32), (0, 0), share * one.length_px)
    return _stored(soft, 0.008, rng)


def _shaken(one: Shot, share: float, rng: np.random.Generator) -> Photo:
    """Moved along a line; its standard deviation is `share` of the pill's length."""
    length = max(3, round(share * one.length_px * math.sqrt(12)))
    angle, side = rng.uniform(0, math.pi), length | 1
    line = (np.arange(16 * length) + 0.5) / 16 - length / 2
    x, y = (np.rint(line * f(angle)).astype(int) + side // 2 for f in (math.cos, math.sin))
    kernel = np.zeros((side, side))
    np.add.at(kernel, (y.clip(0, side - 1), x.clip(0, side - 1)), 1 / len(line))
    moved = cv2.filter2D(one.pixels.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT)
    return _stored(moved, 0.008, rng)


def _relit(one: Shot, gain: float, rng: np.random.Generator) -> Photo:
    return _stored(one.pixels.astype(np.float32) * gain, 0.012, rng)


def _with_glare(one: Shot, share: float, rng: np.random.Generator) -> Photo:
    """A white reflection over a share of the pill, somewhere around its middle."""
    y, x = (axis.astype(np.float64) for axis in np.nonzero(one.mask))
    at = int(rng.integers(len(x)))
    middle = [float(axis.mean() + 0.5 * (axis[at] - axis.mean())) for axis in (x, y)]
    flat = rng.uniform(0.4, 1)
    long_px = math.sqrt(share * len(x) / math.pi / flat)
    axes = (max(1, round(long_px)), max(1, round(long_px * flat)))
    spot = np.zeros(one.mask.shape, np.float32)
    centre = (round(middle[0]), round(middle[1]))
    cv2.ellipse(spot, centre, axes, float(rng.uniform(0, 180)), 0, 360, [1.0], -1)
    spot = cv2.GaussianBlur(spot, (0, 0), 0.02 * one.length_px) * one.mask
    return _stored(one.pixels + 255 * spot[..., None], 0.008, rng)


def _shrunk(one: Shot, length_px: float, rng: np.random.Generator) -> Shot:
    scale = length_px / one.length_px
    rows, columns = (max(1, round(scale * side)) for side in one.mask.shape)
    pixels = cv2.resize(one.pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    share = cv2.resize(one.mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return Shot(_stored(pixels.astype(np.float32), 0.012, rng), share >= 0.5)


def _clipped(one: Shot, share: float, rng: np.random.Generator) -> Shot:
    """The frame ends within the pill: that share of its width or height is outside."""
    turn = int(rng.integers(4))
    pixels, mask = np.rot90(one.pixels, turn), np.rot90(one.mask, turn)
    x, _, width, _ = _seen(mask).box
    cut = x + max(1, round(share * width))
    return Shot(np.ascontiguousarray(pixels[:, cut:]), np.ascontiguousarray(mask[:, cut:]))


def _side_by_side(left: Shot, right: Shot) -> tuple[Photo, list[Mask]]:
    rows = min(len(left.mask), len(right.mask))
    pixels, masks = [], []
    for one in (left, right):
        columns = round(one.mask.shape[1] * rows / len(one.mask))
        pixels.append(cv2.resize(one.pixels, (columns, rows), interpolation=cv2.INTER_AREA))
        masks.append(cv2.resize(one.mask.astype(np.uint8), (columns, rows)) > 0)
    empty = [np.zeros_like(mask) for mask in masks]
    whole = [np.hstack([masks[0], empty[1]]), np.hstack([empty[0], masks[1]])]
    return np.hstack(pixels).astype(np.uint8), whole


def _phone_shots(archive: Path, rng: np.random.Generator) -> Iterator[Shot]:
    """Up to three larger pills of each photo, away from its border, where GrabCut finds one."""
    with opened(archive) as yolo:
        for photo in first_copies(yolo):
            frame = read_image(photo.path)
            boxes = photo.boxes_px(*frame.shape[:2])
            boxes = boxes[boxes[:, 2:].max(axis=1) >= 48]
            for box in rng.permutation(boxes)[:3]:
                mask = _grabbed(frame, *(round(float(v)) for v in box))
                if mask is not None:
                    yield Shot(frame, mask)


def _grabbed(frame: Photo, x: int, y: int, width: int, height: int) -> Mask | None:
    """The pill in a box; None at the border, or when what is found does not fill the box."""
    rows, columns = frame.shape[:2]
    if x < 3 or y < 3 or x + width > columns - 3 or y + height > rows - 3:
        return None
    pad = max(width, height) // 3
    top, left = max(0, y - pad), max(0, x - pad)
    part = np.ascontiguousarray(frame[top : y + height + pad, left : x + width + pad])
    if (part.max(axis=2) == 0).mean() > 0.05:  # the black corners of a turned copy
        return None
    labels = np.full(part.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y - top : y - top + height, x - left : x - left + width] = cv2.GC_PR_BGD
    middle = (x - left + width // 2, y - top + height // 2)
    axes = (round(0.3 * width), round(0.3 * height))
    cv2.ellipse(labels, middle, axes, 0, 0, 360, [cv2.GC_PR_FGD], -1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(part, labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
    pill = cv2.morphologyEx((labels & 1).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(pill.astype(np.uint8))
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    wide, high, area = stats[largest, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_AREA]]
    if area < 0.35 * width * height or (wide < 0.8 * width and high < 0.8 * height):
        return None
    mask = np.zeros((rows, columns), bool)
    mask[top : top + len(part), left : left + part.shape[1]] = parts == largest
    return mask


if __name__ == "__main__":
    main()
