"""Simulated counter-top captures: what a phone would have made of a studio photo.

A studio crop shows a pill in perfect light on black; a device sees it on a palm, turned, out of
focus and in warm light. `cut_out` separates the pill from its studio background, and
`simulate_capture` lays it on a drawn surface, lights it, and photographs it:

    place (turn, tilt, scale), relit, at times as a body -> surface, neighbours -> shadows -> pill
    -> exposure, colour cast -> blur, resolution -> noise -> JPEG -> at times, few pixels

A photo without a studio background keeps its own surroundings and passes through the same
camera. How hard the result is to recognise is set by `CaptureParams`, key by key; with every
range at zero only the rotation is left. The same steps photograph the rendered pills of
`synth`. Everything random comes from the generator handed in: same generator, same pixels.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.preprocess import to_model_input
from pilltrack.pipeline.bodies import lay_body
from pilltrack.pipeline.light import Light, cast_shadows, draw_light, shade_unevenly
from pilltrack.pipeline.params import CaptureParams
from pilltrack.pipeline.placing import Laid, Photo, moved, reduced, shift_in_frame, warped
from pilltrack.pipeline.surfaces import Field, draw_surface

CROP_MARGIN = 1.2  # side of a square crop, in longer sides of the pill
_CORNER_SHARE = 0.03  # side of the patches that tell the background colour, of the photo's side
_UNIFORM_LEVELS = 10  # how far two corners of one background may differ
_STEP_LEVELS = 10  # how far a pill's pixel differs from the background, at least
_JPEG_REACH_PX = 8  # JPEG's blocks: how far an edge rings
_RINGING = 0.3  # how strongly, relative to the edge
_DISTANT_PX = (28, 128)  # side of the crop of a pill far away: phone photos of many pills
_DISTANT_QUALITY = (50, 95)  # JPEG quality of such a photo


def cut_out(photo: Photo) -> Photo | None:
    """Cut the pill out of a studio photo.

    `photo` is (H, W, 3) uint8 RGB with one background colour (black, white, blue, ...); the pill
    may touch the border, but must leave three corners free. Returns (H, W, 4) uint8 RGBA: the
    colours as they were, alpha 255 on the pill with a soft edge; holes are filled, so a dark
    imprint on a dark background stays opaque. Returns None when the photo has no uniform
    background, or nothing, or several things lie on it.
    """
    height, width = photo.shape[:2]
    background = _studio_colour(photo)
    if background is None:
        return None
    # Distance from the background: the largest difference of the three channels.
    difference = cv2.absdiff(photo, np.broadcast_to(background, photo.shape))
    distance = np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2])
    if _is_graded(distance):
        return None
    reach = max(1, round(min(height, width) * 0.012))
    border = 2 * _JPEG_REACH_PX
    distance = cv2.copyMakeBorder(
        distance, border, border, border, border, cv2.BORDER_CONSTANT, value=0
    )
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    mask = cv2.morphologyEx((distance > _STEP_LEVELS).astype(np.uint8), cv2.MORPH_CLOSE, ellipse)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, ellipse)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = sorted((cv2.contourArea(contour) for contour in contours), reverse=True)
    share = areas[0] / (height * width) if areas else 0.0
    if not 0.01 < share < 0.97 or sum(areas[1:]) > 0.05 * areas[0]:
        return None
    alpha = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(alpha, [max(contours, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    ring = np.ones((2 * _JPEG_REACH_PX + 1, 2 * _JPEG_REACH_PX + 1), np.uint8)
    elsewhere = (distance > _STEP_LEVELS) & (cv2.dilate(alpha, ring) == 0)
    if np.count_nonzero(elsewhere) > 0.002 * height * width:  # clutter, or a black pill on black
        return None
    # JPEG rings around a bright outline: near the edge a pixel must stand out from its
    # neighbourhood too. Farther in, dark imprints and dark halves of capsules stay.
    core = cv2.erode(alpha, ring)
    faint = distance < cv2.convertScaleAbs(cv2.dilate(distance, ring), alpha=_RINGING)
    alpha[faint & (core == 0)] = 0
    alpha = cv2.morphologyEx(alpha, cv2.MORPH_CLOSE, ellipse)
    alpha = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    # Blurred and cut above the middle: a ragged outline is smoothed, and drawn in by a pixel.
    alpha = cv2.GaussianBlur(alpha, (0, 0), 0.6 * reach)[border:-border, border:-border]
    alpha = cv2.convertScaleAbs(np.maximum(alpha, 100) - np.uint8(100), alpha=255 / 100)
    return np.dstack([photo, alpha])


def simulate_capture(
    photo: Photo,
    alpha: Photo | None,
    size_px: int,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> Photo:
    """One counter-top capture of a pill: (size_px, size_px, 3) uint8 RGB.

    `photo` is (H, W, 3) uint8 RGB; `alpha` is the last channel of `cut_out`, (H, W) uint8, or
    None for a photo with its own surroundings. With `alpha` the pill's longer side becomes a
    share of the frame drawn from `settings.scale`; without it the photo is taken for a crop of
    1.2 times the pill's longer side and zoomed by the same rule.

    What each setting does: `background_share` how often a new surface (and sometimes a
    neighbour) replaces the studio colour; `perspective` tilt, squeeze and visible side wall;
    `shadow` cast and contact shadow; `light` uneven light, exposure, relief and glare;
    `colour_cast` white balance; `blur_px` defocus or motion, and lost resolution; `noise`,
    `jpeg_quality` the sensor and the file; `clip` how far out of the frame; `distant` how often
    the pill is far away, and its crop 28 to 128 pixels wide; `body` how often it is a body seen
    at a slant of up to 58 degrees, with the studio's light taken off (see `bodies`), whatever
    `light` and `perspective` say. The in-plane rotation is always drawn from the full circle.

    >>> settings = CaptureParams(
    ...     background_share=0, scale=(0.8, 0.8), perspective=0, shadow=0, light=0,
    ...     colour_cast=0, blur_px=0, noise=0, jpeg_quality=(95, 95), clip=0, distant=0, body=0)
    >>> photo = np.zeros((64, 64, 3), np.uint8)
    >>> simulate_capture(photo, None, 32, settings, np.random.default_rng(0)).shape
    (32, 32, 3)
    """
    light = draw_light(rng)
    if alpha is None or not alpha.any():
        scene = _same_surroundings(photo, size_px, settings, rng)
    else:
        scene = _new_surroundings(photo, alpha, size_px, light, settings, rng)
    shade_unevenly(scene, light, settings.light, rng)
    capture = photograph(scene, settings, rng)
    return _from_afar(capture, rng) if rng.random() < settings.distant else capture


def photograph(scene: Field, settings: CaptureParams, rng: np.random.Generator) -> Photo:
    """Expose, blur, sample and store a `scene` (S, S, 3) float32, 0 to 255: what the phone saves.

    Exposure follows `settings.light`, white balance `colour_cast`, the lens and the number of
    pixels `blur_px`, the sensor `noise`, the file `jpeg_quality`. Returns (S, S, 3) uint8.
    """
    size_px = scene.shape[0]
    image: Photo = _exposed(scene, settings, rng)
    blur_px = settings.blur_px * size_px / 224
    sigma = blur_px * rng.uniform(0, 1) ** 1.5
    kind = rng.random()
    if sigma > 0.2:
        image = (
            _motion(image, sigma, rng) if kind < 0.25 else cv2.GaussianBlur(image, (0, 0), sigma)
        )
    # A pill photographed from afar has few pixels, and noise and JPEG act on those.
    coarseness = 1 + min(blur_px, 3.0) * rng.uniform(0, 0.6) * (rng.random() < 0.5)
    sensor_px = max(16, round(size_px / coarseness))
    if sensor_px < size_px:
        image = cv2.resize(image, (sensor_px, sensor_px), interpolation=cv2.INTER_AREA)
        if kind > 0.6:  # phones sharpen, which leaves halos
            soft = cv2.GaussianBlur(image, (0, 0), 1.2)
            amount = rng.uniform(0.3, 1.2)
            image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    image = _noisy(image, settings.noise * rng.uniform(0, 1) ** 2, rng)
    low, high = settings.jpeg_quality
    image = _stored(image, int(rng.integers(low, high + 1)))
    if sensor_px < size_px:
        image = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return image


def _studio_colour(photo: Photo) -> Photo | None:
    """The colour that at least three of the four corners agree on, (3,) uint8."""
    height, width = photo.shape[:2]
    side = max(2, round(min(height, width) * _CORNER_SHARE))
    if min(height, width) < 2 * side + 1:
        return None
    corners = np.stack(
        [
            photo[rows, columns].reshape(-1, 3)
            for rows in (slice(side), slice(-side, None))
            for columns in (slice(side), slice(-side, None))
        ]
    ).astype(np.int16)  # (4, P, 3)
    colours = np.median(corners, axis=1)  # (4, 3)
    spread = np.abs(corners - colours[:, None]).mean(axis=(1, 2))  # (4,)
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2)  # (4, 4)
    agreeing = (apart <= _UNIFORM_LEVELS) & (spread < 3)[None]
    votes = agreeing.sum(axis=1)
    best = int(votes.argmax())
    if votes[best] < 3:
        return None
    background: Photo = np.median(colours[agreeing[best]], axis=0).astype(np.uint8)
    return background


def _is_graded(distance: Photo) -> bool:
    """The background shades off, as tables and palms do; a studio's is one colour.

    The limits part 4,537 NLM studio photos (18 fail, black capsules) from 400 crops of phone
    photos (1 passes, on a plain table).
    """
    side = max(2, min(distance.shape) // 12)
    corners = [
        np.count_nonzero(distance[rows, columns] <= 3) / side**2
        for rows in (slice(side), slice(-side, None))
        for columns in (slice(side), slice(-side, None))
    ]
    plain = np.count_nonzero(distance <= 4)
    between = np.count_nonzero(distance <= 24) - plain
    return bool(sum(sorted(corners)[1:]) / 3 < 0.8 or plain < 1.2 * between)


def _same_surroundings(
    photo: Photo, size_px: int, settings: CaptureParams, rng: np.random.Generator
) -> Field:
    height, width = photo.shape[:2]
    length = max(height, width) / CROP_MARGIN
    homography, scale = _placement(length, (width / 2, height / 2), size_px, settings, rng)[:2]
    photo, homography = reduced(photo, homography, scale)
    scene: Field = cv2.warpPerspective(
        photo, homography, (size_px, size_px), borderMode=cv2.BORDER_REFLECT_101
    ).astype(np.float32)
    return scene


def _new_surroundings(
    photo: Photo,
    alpha: Photo,
    size_px: int,
    light: Light,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> Field:
    lay = lay_body if rng.random() < settings.body else _lay_flat
    pill = lay(photo, alpha, size_px, light, settings, rng)
    if rng.random() < settings.background_share:
        scene = draw_surface(size_px, rng)
        if rng.random() < 0.25:
            add_neighbour(scene, light, settings.shadow, rng)
        cast_shadows(
            scene, pill.foot, light, pill.thickness_px, settings.shadow * rng.uniform(0.3, 1)
        )
    else:
        studio = np.median(photo[alpha == 0], axis=0) if (alpha == 0).any() else np.zeros(3)
        scene = np.full((size_px, size_px, 3), studio, np.float32)
    scene *= (1 - pill.opacity)[..., None]
    scene += pill.colours
    return scene


def _lay_flat(
    photo: Photo,
    alpha: Photo,
    size_px: int,
    light: Light,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> Laid:
    """The photo itself, a little tilted and relit: the studio's light stays in it."""
    left, top, width, height = cv2.boundingRect(alpha)
    centre = (left + width / 2, top + height / 2)
    homography, scale, tilt = _placement(max(width, height), centre, size_px, settings, rng)
    pill, opacity = warped(photo, alpha, homography, scale, size_px)
    thickness_px = rng.uniform(0.25, 0.45) * min(width, height) * scale
    if settings.light > 0:
        _relight(pill, opacity, light, settings.light, rng)
    if abs(tilt[0]) + abs(tilt[1]) > 0.02:
        return Laid(*_with_side_wall(pill, opacity, thickness_px, tilt), opacity, thickness_px)
    return Laid(pill, opacity, opacity, thickness_px)


def _placement(
    length_px: float,
    centre: tuple[float, float],
    size_px: int,
    settings: CaptureParams,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], float, tuple[float, float]]:
    """Photo -> frame: homography (3, 3), scale, and the tilt as a vector in the frame."""
    share = rng.uniform(*settings.scale)
    target = share * size_px
    angle = rng.uniform(0, 2 * math.pi)
    # Tilt: the far side of the camera's axis is foreshortened; corners move a little more.
    squeeze = 2 * settings.perspective * rng.uniform(0, 1)
    tilt_angle = rng.uniform(0, 2 * math.pi)
    tilt = (squeeze * math.cos(tilt_angle), squeeze * math.sin(tilt_angle))
    jitter = rng.uniform(-1, 1, (4, 2)) * settings.perspective * 0.5

    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    axis = np.array([math.cos(tilt_angle), math.sin(tilt_angle)])
    turned = corners @ turn.T
    turned = turned - squeeze * 0.5 * np.outer(turned @ axis, axis) + jitter
    shift = shift_in_frame(share, settings.clip, rng)
    target_quad = turned * target + (0.5 + shift) * size_px
    source_quad = corners * length_px + np.array(centre)
    homography: NDArray[np.float64] = cv2.getPerspectiveTransform(
        source_quad.astype(np.float32), target_quad.astype(np.float32)
    )
    return homography, target / length_px, tilt


def _relight(
    pill: Field, opacity: Field, light: Light, strength: float, rng: np.random.Generator
) -> None:
    """Shade a flatly lit studio pill by the scene's light, in place, and add its glare.

    The blurred outline stands in for the relief: it falls towards the edges, and its slope along
    the light brightens one side and darkens the other.
    """
    size_px = pill.shape[0]
    dome = cv2.GaussianBlur(opacity, (0, 0), size_px * rng.uniform(0.03, 0.07))
    step = size_px * 0.03
    slope = dome - moved(dome, -light.x * step, -light.y * step)
    relief = np.float32(-rng.uniform(0.2, 1.6) * strength)
    # Studio photos are exposed for the background: white pills are grey there.
    lift = 1 + strength * rng.uniform(0, 1.3)
    pill *= (np.float32(lift) * (1 + relief * slope))[..., None]
    if rng.random() < 0.45:
        glare = _glare(opacity, light, rng) * np.float32(255 * strength * rng.uniform(0.2, 1.8))
        pill += (glare * opacity)[..., None]


def _glare(opacity: Field, light: Light, rng: np.random.Generator) -> Field:
    """A soft bright spot on the side of the pill that faces the light, (S, S) float32, 0 to 1."""
    size_px = opacity.shape[0]
    moments = cv2.moments(opacity)
    mass = max(moments["m00"], 1e-6)
    spread_x = math.sqrt(max(moments["mu20"] / mass, 1.0))
    spread_y = math.sqrt(max(moments["mu02"] / mass, 1.0))
    off = rng.uniform(0.2, 0.9)
    x = moments["m10"] / mass + light.x * spread_x * off
    y = moments["m01"] / mass + light.y * spread_y * off
    lean = 0.5 * math.atan2(2 * moments["mu11"], moments["mu20"] - moments["mu02"])
    axes = np.array([spread_x + spread_y, (spread_x + spread_y) * rng.uniform(0.25, 0.6)])
    axes *= rng.uniform(0.12, 0.35)
    spot = np.zeros((size_px, size_px), np.float32)
    cv2.ellipse(
        spot,
        (round(x), round(y)),
        (max(1, round(axes[0])), max(1, round(axes[1]))),
        math.degrees(lean),
        0,
        360,
        1.0,
        cv2.FILLED,
    )
    soft: Field = cv2.GaussianBlur(spot, (0, 0), max(0.6, size_px * rng.uniform(0.008, 0.03)))
    return soft


def _with_side_wall(
    pill: Field, opacity: Field, thickness_px: float, tilt: tuple[float, float]
) -> tuple[Field, Field]:
    """A tilted pill and its side: the outline drawn out along the tilt, a little darker."""
    colour = pill.sum(axis=(0, 1)) / max(float(opacity.sum()), 1.0)
    wall = opacity
    for part in (0.33, 0.66, 1.0):
        there = moved(
            opacity, tilt[0] * 2.2 * thickness_px * part, tilt[1] * 2.2 * thickness_px * part
        )
        wall = np.maximum(wall, there)
    below = wall * (1 - opacity)
    return pill + below[..., None] * (0.72 * colour), opacity + below


def add_neighbour(scene: Field, light: Light, darkness: float, rng: np.random.Generator) -> None:
    """Let another pill-like thing intrude at the border of `scene` (S, S, 3), in place."""
    size_px = scene.shape[0]
    way = rng.uniform(0, 2 * math.pi)
    distance = rng.uniform(0.5, 0.75) * size_px
    x = size_px / 2 + math.cos(way) * distance
    y = size_px / 2 + math.sin(way) * distance
    radius = rng.uniform(0.1, 0.3) * size_px
    mask = np.zeros((size_px, size_px), np.uint8)
    if rng.random() < 0.5:
        axes = (round(radius), round(radius * rng.uniform(0.6, 1)))
        turn = rng.uniform(0, 180)
        cv2.ellipse(mask, (round(x), round(y)), axes, turn, 0, 360, 255, cv2.FILLED, cv2.LINE_AA)
    else:
        turn = rng.uniform(0, math.pi)
        end_x, end_y = math.cos(turn) * radius, math.sin(turn) * radius
        start, end = (round(x - end_x), round(y - end_y)), (round(x + end_x), round(y + end_y))
        cv2.line(mask, start, end, 255, max(2, round(radius)), cv2.LINE_AA)
    opacity = mask.astype(np.float32) / np.float32(255)
    cast_shadows(scene, opacity, light, radius * 0.5, darkness)
    colour = np.full(3, rng.uniform(190, 245))
    if rng.random() < 0.6:
        colour *= 1 - rng.uniform(0.1, 0.75) * rng.permutation([0.0, rng.uniform(0, 1), 1.0])
    pill = opacity[..., None] * colour.astype(np.float32)
    _relight(pill, opacity, light, 0.35, rng)
    scene *= (1 - opacity)[..., None]
    scene += pill


def _exposed(scene: Field, settings: CaptureParams, rng: np.random.Generator) -> Photo:
    """Exposure, white balance and tone curve, as one look-up table per channel."""
    exposure = math.exp(settings.light * rng.uniform(-0.8, 0.45))
    gamma = math.exp(settings.light * rng.uniform(-0.6, 0.4))
    # Lamps and daylight differ along red-blue; little of the error is green or magenta.
    warmth, tint = rng.triangular(-0.8, 0.25, 1.0), rng.uniform(-0.3, 0.3)
    cast = settings.colour_cast * np.array([warmth, tint, -warmth])
    levels = np.arange(256)[:, None] / 255
    curve = np.clip(levels**gamma * exposure * (1 + cast), 0, 1) * 255
    table = np.round(curve).astype(np.uint8)[None]  # (1, 256, 3)
    image: Photo = cv2.LUT(cv2.convertScaleAbs(np.clip(scene, 0, 255)), table)
    return image


def _motion(image: Photo, sigma: float, rng: np.random.Generator) -> Photo:
    """Blur along a line as long as a Gaussian of `sigma` is wide."""
    length = max(3, round(sigma * 3.5)) | 1
    kernel = np.zeros((length, length), np.uint8)
    angle = rng.uniform(0, math.pi)
    middle, arm = length // 2, length / 2
    ends = [
        (round(middle + sign * arm * math.cos(angle)), round(middle + sign * arm * math.sin(angle)))
        for sign in (-1, 1)
    ]
    cv2.line(kernel, ends[0], ends[1], 255, 1, cv2.LINE_AA)
    weights = kernel.astype(np.float32)
    blurred: Photo = cv2.filter2D(image, -1, weights / weights.sum(), borderType=cv2.BORDER_REFLECT)
    return blurred


def _from_afar(capture: Photo, rng: np.random.Generator) -> Photo:
    """The capture (S, S, 3) with the few pixels of a distant pill, stored so and enlarged."""
    size_px = capture.shape[0]
    fewest, most = (min(px, size_px) for px in _DISTANT_PX)
    crop_px = round(math.exp(rng.uniform(math.log(fewest), math.log(most))))
    quality = int(rng.integers(_DISTANT_QUALITY[0], _DISTANT_QUALITY[1] + 1))
    return to_model_input(_stored(to_model_input(capture, crop_px), quality), size_px)


def _noisy(image: Photo, sigma: float, rng: np.random.Generator) -> Photo:
    """Sensor noise: mostly brightness, some colour; `sigma` as a share of full scale."""
    if sigma <= 0.001:
        return image
    height, width = image.shape[:2]
    noise = rng.standard_normal((height, width, 3), dtype=np.float32)
    noise += rng.standard_normal((height, width, 1), dtype=np.float32)
    noise *= np.float32(sigma * 255 / math.sqrt(2))
    noise += image
    noisy: Photo = cv2.convertScaleAbs(np.maximum(noise, 0, out=noise))
    return noisy


def _stored(image: Photo, quality: int) -> Photo:
    """Through JPEG and back."""
    coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    stored: Any = cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB)
    decoded: Photo = stored
    return decoded
