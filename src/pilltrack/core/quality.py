"""Is a photo fit to enrol a pill with? What is wrong with it, and what to do about it.

A bad reference is worse than none: whatever is wrong with it comes back as a false name. So each
photo is judged alone (`photo_faults`), then all photos of the pill together (`set_faults`), then
against the pills that are enrolled already (`collision`):

    photo, finds -> one pill? -> close-up of fixed size -> blur, glare, exposure -> faults
    embeddings, sides          -> the photos agree? both sides shown?            -> faults
    candidates of the gallery  -> called another pill?                           -> a fault

Nothing is refused here. Whoever enrols shows the faults, and may go on with a reason. How much the
photos must agree, the bundle says; every other limit was set by measuring what it costs the starter
model and how many good photos it would refuse (benchmarks/enrolment_quality.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Rule, decide
from pilltrack.core.gallery import Candidate
from pilltrack.core.locate import PILL_SHARE, Found, crop
from pilltrack.core.preprocess import to_model_input

FaultKind = Literal[
    "no pill", "several pills", "clipped", "too small", "blurred", "glare", "too dark",
    "too bright", "disagrees", "one side", "collides",
]  # fmt: skip

# A cell and a half of the locator (4 of its 480 pixels each): so far may its box end short of the
# border.
BORDER_SHARE = 0.0125  # of the frame's longer side
# What pills lose here and below was measured with the starter of 2026-11-23.
# A pill of half the length that the model looks at loses 9 of 100 new pills; of three eighths, 14;
# of a quarter, 23.
LEAST_LENGTH = 0.5  # of the pill's length in the model's input
# Out of focus by 1 % loses 3 of 100 new pills, by 2 % 9, by 3 % 23, by 4 % 41; shaken is a little
# better. A good photo's own blur is at most 1 %.
MOST_BLUR = 0.02  # standard deviation of the blur, of the pill's length
# Glare over 5 % of a pill loses 13 of 100 new pills, over 10 % 22, over 20 % 38. In good light the
# streaks on 19 of 20 capsules cover less than 1 %.
MOST_GLARE = 0.04  # of the pill's area
# Half a good photo's light loses 10 of 100 new pills, a third 17, a quarter 34. Good photos reach
# 110 even where a dark pill lies on a dark mat.
LEAST_BRIGHTNESS = 100.0  # grey level that the brightest twentieth of the close-up reaches
# Of white pills on phone photos up to 40 % is burnt out. Over 40 to 60 % of a pill loses 15 of 100
# new pills, 60 to 75 % 26, 75 to 90 % 41.
MOST_BURNT = 0.65  # of the pill's area

_CLOSER = "Go closer, until the pill is about a quarter of the picture long."
_LOOK_PX = 160  # length of the pill in the close-up, if the photo shows as much
_NEAR_SHARE = 0.06  # of its length: how far beyond the mask the outline may lie
_INSIDE_SHARE = 0.03  # of its length: how far inside the mask surely is the pill
_FINE, _COARSE = 0.016, 0.032  # of its length: the two smoothings that tell how soft an edge is
_PIXEL_PX = 0.7  # blur that a camera's pixels are made with, no fault of the photographer
_DIFFERENCE = 1 / 3  # variance in pixels that a slope has from reaching over two of them
_DIRECTIONS = 6  # over half a turn: a shaken hand blurs in one of them
_SHORTEST_EDGE = 0.06  # of the pill's length; a direction with less is not judged
_SHARPEST = 25  # percentile: edges as sharp as these count, others may be shadows
_EDGE_SHARE = (0.2, 0.5)  # of the strongest gradient, of all and of its own direction
_LEAST_CONTRAST = 12.0  # grey levels; an outline fainter than that cannot be judged when soft
_SPECK_SHARE = 0.002  # of the pill's area: smaller spots are left out, there may be hundreds
_BURNT_LEVEL = 250  # from here on a channel has lost what it saw
_GLARE_STEP = 45.0  # grey levels from a reflection down to the pill around it
_RING = 60  # percentile of the pill around: ink beside a white spot is no reason to call it glare
_AROUND_SHARES = (0.015, 0.06)  # of the pill's length: from where to where is around


@dataclass(frozen=True)
class Fault:
    """One reason not to enrol; it says what was found and what to do next."""

    image: str  # name of the photo; empty where it is about all of them
    kind: FaultKind
    found: str  # with the measured figure
    expected: str
    remedy: str  # for the person at the counter
    other: str = ""  # the enrolled pill it collides with


@dataclass(frozen=True)
class Measures:
    """What was measured of a pill in a photo; shares are 0 to 1."""

    length_px: float  # of the pill, in the photo
    blur: float  # standard deviation, of the pill's length; infinite where no edge can be seen
    glare: float  # share of the pill's area
    burnt: float  # share of the pill's area without colour and imprint
    brightness: float  # 0 to 255: what the brightest twentieth of the close-up reaches


def photo_faults(
    image: str, photo: NDArray[np.uint8], found: Sequence[Found], input_size_px: int
) -> list[Fault]:
    """Say what is wrong with one photo, RGB (H, W, 3) uint8, in which the locator found `found`.

    `image` is its name; `input_size_px` is the side of the embedder's input, >= 1. A photo that
    does not show exactly one pill is judged no further; without any, its exposure is: it may be
    why. The blur of a pill that is too small or too dark is not judged. An empty list is a good
    photo.

    Raises ValueError for another shape or dtype, or an empty photo.

    >>> night = np.zeros((90, 120, 3), np.uint8)
    >>> [fault.kind for fault in photo_faults("a.jpg", night, [], 128)]
    ['no pill', 'too dark']
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or photo.size == 0:
        raise ValueError(
            f"photo has shape {photo.shape} and dtype {photo.dtype}; expected (H, W, 3) uint8, "
            "not empty"
        )
    if not found:
        remedy = (
            "Lay the pill alone on a plain surface of another colour, about a quarter of the "
            "picture long."
        )
        nothing = Fault(image, "no pill", "no pill found", "one pill", remedy)
        return [nothing, *_exposure_faults(image, _brightness(photo), float(_burnt(photo).mean()))]
    if len(found) > 1:
        remedy = "Leave this pill alone in the picture and take everything else away."
        return [Fault(image, "several pills", f"{len(found)} pills found", "one pill", remedy)]
    measured = measure(photo, found[0])
    least_px = LEAST_LENGTH * PILL_SHARE * input_size_px
    exposure = _exposure_faults(image, measured.brightness, measured.burnt)
    faults = _border_faults(image, photo, found[0])
    if measured.length_px < least_px:
        seen = f"the pill is {measured.length_px:.0f} px long"
        faults.append(Fault(image, "too small", seen, f"at least {least_px:.0f} px", _CLOSER))
    elif measured.blur > MOST_BLUR and measured.brightness >= LEAST_BRIGHTNESS:
        seen, wanted = "no edge of the pill can be seen", "sharp edges"
        if math.isfinite(measured.blur):
            seen = f"edges are blurred by {measured.blur:.1%} of the pill's length"
            wanted = f"at most {MOST_BLUR:.1%}"
        remedy = "Let the camera focus on the pill and hold it still; more light helps."
        faults.append(Fault(image, "blurred", seen, wanted, remedy))
    if measured.glare > MOST_GLARE:
        seen = f"a reflection covers {measured.glare:.0%} of the pill"
        remedy = "Move the lamp aside, or turn the pill, until the bright spot is gone."
        faults.append(Fault(image, "glare", seen, f"at most {MOST_GLARE:.0%}", remedy))
    return faults + exposure


def measure(photo: NDArray[np.uint8], found: Found) -> Measures:
    """Measure one pill of a photo (H, W, 3) uint8.

    Only `length_px` depends on how large the pill is in the frame.
    """
    pixels, mask, length_px, scale = _close_up(photo, found)
    reach = max(1, round(_INSIDE_SHARE * length_px))
    inside = cv2.erode(mask, _disc(reach), borderValue=0) > 0
    if not inside.any():
        inside = mask > 0
    area = max(1, int(np.count_nonzero(inside)))
    return Measures(
        length_px=found.length_px,
        blur=_blur(pixels, mask, length_px, _PIXEL_PX * scale),
        glare=_reflection_px(pixels, inside, length_px) / area,
        burnt=int(np.count_nonzero(_burnt(pixels) & inside)) / area,
        brightness=_brightness(pixels),
    )


def least_agreement(embeddings: NDArray[np.float32]) -> float:
    """Mean cosine to the others of the photo of one side that is least like them.

    -1 to 1, but for rounding. `embeddings` (N, D) float32, N > 1, of unit length.

    >>> round(least_agreement(np.array([[1, 0], [1, 0], [0.6, 0.8]], np.float32)), 4)
    0.6
    """
    return float(_mean_cosines(embeddings).min())


def set_faults(
    images: Sequence[str],
    embeddings: NDArray[np.float32],
    sides: Sequence[str],
    sides_enrolled: Collection[str] = (),
    *,
    agreement: float,
) -> list[Fault]:
    """Say what is wrong with all photos of one pill together.

    `embeddings` (N, D) float32, of unit length, are those of `core.enrol.embed_references`, one
    for each of `images`; `sides` says what each shows, "front", "back" or nothing;
    `sides_enrolled` which sides the pill has already. Photos of one side shall agree: while the
    mean cosine of one to the others is below `agreement` (-1 to 1; `Calibration` has it), the least
    similar is named and left out. Of the last two, nobody can say which is wrong: a fault without a
    photo.

    Raises ValueError for lengths that differ, another shape, or another side.

    >>> rows = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    >>> sides = ["front"] * 3
    >>> [f.image for f in set_faults(["a", "b", "c"], rows, sides, ["back"], agreement=0.3)]
    ['c']
    """
    if embeddings.ndim != 2 or not len(images) == len(embeddings) == len(sides):
        raise ValueError(
            f"{len(images)} photos, {len(sides)} sides and embeddings {embeddings.shape}; "
            "expected one side and one row for each photo"
        )
    shown = {*sides, *sides_enrolled}
    if unknown := shown - {"", "front", "back"}:
        raise ValueError(f"sides {sorted(unknown)}; expected front, back or nothing")
    faults = []
    for side in sorted(set(sides)):
        rows = [row for row, its_side in enumerate(sides) if its_side == side]
        faults += _disagreements([images[row] for row in rows], embeddings[rows], agreement)
    return faults + _side_faults(shown)


def collision(
    images: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    pill: str,
    rule: Rule,
) -> Fault | None:
    """Say which enrolled pill these photos of `pill` would be taken for, or None.

    `candidates` are those of `Gallery.search` for each of `images`, each photo embedded as
    `identify` does. One photo whose best candidate is another pill, with a score that the rule
    accepts, is enough; the fault names the photo with the highest score. A pill that has
    references already does not collide with itself.

    Raises ValueError for lengths that differ.

    >>> rule = Rule(threshold=0.5, margin=0.1)
    >>> found = collision(["a.jpg"], [[Candidate("x", 0.8)]], "new", rule)
    >>> found.kind, found.image, found.other
    ('collides', 'a.jpg', 'x')
    >>> collision(["a.jpg"], [[Candidate("x", 0.8)]], "x", rule) is None
    True
    """
    taken_for: list[tuple[float, str, str]] = []  # score, photo, pill
    for image, of_photo in zip(images, candidates, strict=True):
        decision = decide(of_photo, rule)
        if decision.kind != "unknown" and decision.candidates[0].pill != pill:
            taken_for.append((decision.score, image, decision.candidates[0].pill))
    if not taken_for:
        return None
    score, image, other = max(taken_for, key=lambda found: found[0])
    return Fault(
        image,
        "collides",
        f"{len(taken_for)} of {len(images)} photos are taken for an enrolled pill, this one for "
        f"{other} (score {score:.2f}, accepted from {rule.threshold:.2f})",
        "photos that are taken for no other pill",
        f"Compare both pictures. If they show the same pill, add the photos to {other}; if not, "
        "say what tells the two apart and enrol it all the same.",
        other,
    )


def _exposure_faults(image: str, brightness: float, burnt: float) -> list[Fault]:
    if brightness < LEAST_BRIGHTNESS:
        seen = f"the brightest parts reach {brightness:.0f} of 255"
        remedy = "Turn on a lamp, or lay the pill on a lighter surface."
        return [Fault(image, "too dark", seen, f"at least {LEAST_BRIGHTNESS:.0f}", remedy)]
    if burnt > MOST_BURNT:
        seen = f"{burnt:.0%} is burnt out to white"
        remedy = "Use less light, or touch the pill on the screen so that the camera adapts to it."
        return [Fault(image, "too bright", seen, f"at most {MOST_BURNT:.0%}", remedy)]
    return []


def _border_faults(image: str, photo: NDArray[np.uint8], found: Found) -> list[Fault]:
    (x, y, width, height), (rows, columns) = found.box, photo.shape[:2]
    away_px = min(x, y, columns - x - width, rows - y - height)
    least_px = math.floor(BORDER_SHARE * max(rows, columns)) + 1
    if away_px >= least_px:
        return []
    seen = f"the pill ends {away_px} px from the border of the photo"
    remedy = "Move the pill to the middle of the picture."
    return [Fault(image, "clipped", seen, f"at least {least_px} px", remedy)]


def _disagreements(
    images: Sequence[str], embeddings: NDArray[np.float32], agreement: float
) -> list[Fault]:
    kept: list[int] = list(range(len(images)))
    faults: list[Fault] = []
    while len(kept) > 1:
        means = _mean_cosines(embeddings[kept])
        least = int(means.argmin())
        if means[least] >= agreement:
            break
        wanted = f"at least {agreement:.2f}"
        if len(kept) == 2:
            names = " and ".join(images[row] for row in kept)
            seen = f"the similarity of {names} is {means[least]:.2f}"
            remedy = "Take both again: same pill, same side up, in the same light."
            return [*faults, Fault("", "disagrees", seen, wanted, remedy)]
        seen = f"its similarity to the other photos is {means[least]:.2f}"
        remedy = (
            "Take it again with the same pill, same side up; if it shows the other side, say so."
        )
        faults.append(Fault(images[kept.pop(least)], "disagrees", seen, wanted, remedy))
    return faults


def _mean_cosines(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each of N > 1 rows, the mean cosine to the others."""
    cosines = embeddings @ embeddings.T
    means: NDArray[np.float32] = (cosines.sum(axis=1) - cosines.diagonal()) / (len(cosines) - 1)
    return means


def _side_faults(shown: set[str]) -> list[Fault]:
    missing = [side for side in ("front", "back") if side not in shown]
    if not missing:
        return []
    seen = "no photo says which side it shows"
    remedy = "Say which photos show the front and which the back, and add what is missing."
    if len(missing) == 1:
        seen = f"no photo of the {missing[0]}"
        remedy = f"Turn the pill over and add photos of its {missing[0]}."
    alike = " If both sides look alike, give that as the reason and go on."
    return [Fault("", "one side", seen, "photos of both sides", remedy + alike)]


def _close_up(
    photo: NDArray[np.uint8], found: Found
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], float, float]:
    """The pill's crop (S, S, 3), its mask (S, S) of 0 and 1, its length and scale there."""
    pixels = crop(photo, found)
    side = min(len(pixels), round(_LOOK_PX / PILL_SHARE))
    scale = side * PILL_SHARE / found.length_px
    # The middle of the box is the middle of the crop.
    left, top = ((side - scale * length - 1 + scale) / 2 for length in found.box[2:])
    place = np.array([[scale, 0, left], [0, scale, top]], np.float32)
    mask = cv2.warpAffine(
        found.mask.astype(np.uint8), place, (side, side), flags=cv2.INTER_NEAREST
    ).astype(np.uint8)
    return to_model_input(pixels, side), mask, side * PILL_SHARE, scale


def _brightness(pixels: NDArray[np.uint8]) -> float:
    return float(np.quantile(pixels.max(axis=2), 0.95))


def _burnt(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where at least two of the three channels are burnt out, (H, W)."""
    burnt: NDArray[np.bool_] = (pixels >= _BURNT_LEVEL).sum(axis=2) >= 2
    return burnt


def _reflection_px(pixels: NDArray[np.uint8], inside: NDArray[np.bool_], length_px: float) -> int:
    """How many pixels lie in white spots that stand out from the pill around them.

    A white pill in good light, or the white half of a capsule, is white in places too; there the
    pill beside the spot is nearly as white, along much of its border.
    """
    whiteness = pixels.min(axis=2)
    white = ((whiteness >= _BURNT_LEVEL) & inside).astype(np.uint8)
    close, wide = (_disc(max(1, round(share * length_px))) for share in _AROUND_SHARES)
    around = inside & (cv2.dilate(white, close) == 0)
    least_px = _SPECK_SHARE * np.count_nonzero(inside)
    _, spots, stats, _ = cv2.connectedComponentsWithStats(white)
    reflected = 0
    for number, (x, y, width, height, area_px) in enumerate(stats.tolist()):
        if number == 0 or area_px < least_px:  # 0 is what is not white
            continue
        rows = slice(max(0, y - len(wide)), y + height + len(wide))
        columns = slice(max(0, x - len(wide)), x + width + len(wide))
        spot = (spots[rows, columns] == number).astype(np.uint8)
        ring = whiteness[rows, columns][(cv2.dilate(spot, wide) > 0) & around[rows, columns]]
        if len(ring) and np.percentile(ring, _RING) <= _BURNT_LEVEL - _GLARE_STEP:
            reflected += area_px
    return reflected


def _blur(
    pixels: NDArray[np.uint8], mask: NDArray[np.uint8], length_px: float, pixel_px: float
) -> float:
    """Standard deviation of the blur as a share of the pill's length.

    An edge is smoothed twice; the softer it was, the less the second smoothing takes from its
    gradient (Zhuo and Sim 2011, Defocus map estimation from a single image, equation 4). What
    counts are the sharpest edges of the outline and of what is inside, in each direction alone,
    and of the directions the softest: one sharp side is enough for a plain pill beside its own
    shadow, but a shaken photo is sharp only along its motion. Contrast plays no part.
    """
    softness, strength, turn = _edges(pixels, mask, length_px)
    if not len(strength):
        return math.inf
    # So steep is the faintest outline when it is blurred half as much again as allowed.
    spread_px = math.hypot(1.5 * MOST_BLUR, _FINE) * length_px
    faintest = _LEAST_CONTRAST / (math.sqrt(2 * math.pi) * spread_px)
    of_all, of_direction = _EDGE_SHARE
    strong = strength >= max(of_all * float(np.quantile(strength, 0.95)), faintest)
    direction = (turn / math.pi * _DIRECTIONS).astype(int) % _DIRECTIONS
    softest = -1.0
    for number in range(_DIRECTIONS):
        own = strong & (direction == number)
        if not own.any():
            continue
        own &= strength >= of_direction * np.quantile(strength[own], 0.95)
        if np.count_nonzero(own) >= _SHORTEST_EDGE * length_px:
            softest = max(softest, float(np.percentile(softness[own], _SHARPEST)))
    if softest < 0:
        return math.inf
    own = (pixel_px**2 + _DIFFERENCE) / length_px**2
    return math.sqrt(max(0.0, softest**2 - own))


def _edges(
    pixels: NDArray[np.uint8], mask: NDArray[np.uint8], length_px: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Of each edge pixel on and near the pill: softness, strength of gradient, direction.

    Softness is a standard deviation as a share of the pill's length; the direction of the
    gradient is 0 to pi. Of the three channels the one with the strongest gradient counts.
    """
    fine = _gradient(pixels, _FINE * length_px)  # (S, S, 3, 2)
    coarse = _gradient(pixels, _COARSE * length_px)
    strongest = (fine**2).sum(axis=3).argmax(axis=2)[..., None, None]
    fine = np.take_along_axis(fine, strongest, axis=2)[:, :, 0]  # (S, S, 2)
    coarse = np.take_along_axis(coarse, strongest, axis=2)[:, :, 0]
    near = cv2.dilate(mask, _disc(max(1, round(_NEAR_SHARE * length_px))))
    near[[0, -1]] = near[:, [0, -1]] = 0
    # Canny's thinning alone: every ridge of the gradient, however weak.
    x, y = (np.ascontiguousarray((64 * fine[..., k]).astype(np.int16)) for k in (0, 1))
    ridge = (cv2.Canny(x, y, 1, 1, L2gradient=True) > 0) & (near > 0)
    fine, coarse = fine[ridge], coarse[ridge]  # (E, 2)
    strength = np.hypot(*fine.T)
    ratio = np.maximum(strength / np.maximum(np.hypot(*coarse.T), 1e-6), 1.001)
    softness = np.sqrt(np.maximum(_COARSE**2 - (ratio * _FINE) ** 2, 0) / (ratio**2 - 1))
    return softness, strength, np.arctan2(fine[:, 1], fine[:, 0]) % np.pi


def _gradient(pixels: NDArray[np.uint8], sigma_px: float) -> NDArray[np.float32]:
    """Grey levels per pixel along x and y after a smoothing, (S, S, 3, 2)."""
    smooth = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), sigma_px)
    slopes = [cv2.Scharr(smooth, cv2.CV_32F, *axis, scale=1 / 32) for axis in ((1, 0), (0, 1))]
    return np.stack(slopes, axis=3).astype(np.float32)


def _disc(radius_px: int) -> NDArray[np.uint8]:
    size = 2 * radius_px + 1
    disc: NDArray[np.uint8] = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return disc
