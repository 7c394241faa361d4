"""What the locator learns from: pills cut out of photos, composed into scenes, with the answers.

    python -m pilltrack.pipeline.locator_data scenes.png        to look at some, rendered pills

A scene follows from its seed alone, so a training run sees the same frames whether or not it was
interrupted, and whoever measures can compose the same frames again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pilltrack.core.files import write_atomically
from pilltrack.core.image import read_image
from pilltrack.core.preprocess import to_model_input
from pilltrack.pipeline.capture import cut_out
from pilltrack.pipeline.invented import invent_pills
from pilltrack.pipeline.laid_pill import trimmed
from pilltrack.pipeline.locator_net import targets_of
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.render import render_face
from pilltrack.pipeline.scenes import Scene, compose
from pilltrack.pipeline.table import ImageRow

ASPECTS = (1.0, 0.75, 0.75, 0.5625)  # shorter side of a frame, of its longer one
TILE_PX = 320  # of a sheet
Example = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]


def cut_outs(prepared: Path, rows: Sequence[ImageRow]) -> list[Photo]:
    """The pills of studio photos, trimmed; photos with surroundings are left out."""
    cut = (cut_out(read_image(prepared / row.image)) for row in rows)
    return [trimmed(pill) for pill in cut if pill is not None]


def rendered_cut_outs(n_pills: int, seed: int) -> list[Photo]:
    """The fronts of invented pills, flatly lit: (h, w, 4) uint8 RGBA each."""
    rng = np.random.default_rng([seed, 1])
    faces = (render_face(pill, "front", rng).colour for pill in invent_pills(n_pills, seed))
    return [trimmed(_straight(face)) for face in faces]


def scene_of(
    cutouts: Sequence[Photo],
    size_px: int,
    seed: Sequence[int],
    n_pills: int | None = None,
    crowd: int = 1,
) -> Scene:
    """The scene of a seed, `size_px` on its longer side, upright or lying."""
    rng = np.random.default_rng(seed)
    short = round(size_px * float(rng.choice(ASPECTS)))
    shape = (size_px, short) if rng.random() < 0.5 else (short, size_px)
    return compose(cutouts, *shape, rng, n_pills, crowd)


def example(scene: Scene, size_px: int) -> Example:
    """A scene as the network is taught it: input, answers, and how much each cell counts.

    The frame goes through the device's own resize; a scene is as long as the input, so only its
    margins are filled, and the labels are moved along.
    """
    height, width = scene.labels.shape
    top, left = (size_px - height) // 2, (size_px - width) // 2
    labels = cv2.copyMakeBorder(
        scene.labels, top, size_px - height - top, left, size_px - width - left,
        cv2.BORDER_CONSTANT, value=0,
    ).astype(np.uint8)  # fmt: skip
    boxes = scene.boxes + np.array([left, top, 0, 0])
    return to_model_input(scene.frame, size_px), *targets_of(labels, boxes)


def _straight(colour: NDArray[np.float32]) -> Photo:
    """Premultiplied colours with opacity 0 to 1 -> straight RGBA, 0 to 255."""
    opacity = colour[..., 3:]
    plain = colour[..., :3] / np.maximum(opacity, 1 / 255)
    return np.dstack([plain, 255 * opacity]).round().clip(0, 255).astype(np.uint8)


def sheet(cutouts: Sequence[Photo], seed: int, n_scenes: int = 20, columns: int = 5) -> Photo:
    """Scenes side by side, their boxes drawn, to be looked at."""
    tiles = []
    for number in range(n_scenes):
        scene = scene_of(cutouts, TILE_PX, (seed, number))
        tile = to_model_input(scene.frame, TILE_PX).copy()
        top, left = ((TILE_PX - length) // 2 for length in scene.labels.shape)
        for x, y, width, height in (scene.boxes + np.array([left, top, 0, 0])).tolist():
            cv2.rectangle(tile, (x, y), (x + width - 1, y + height - 1), (60, 160, 255), 1)
        tiles.append(tile)
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, n_scenes, columns)]
    return np.vstack(rows)


if __name__ == "__main__":
    drawn = sheet(rendered_cut_outs(100, seed=0), seed=0)
    done, data = cv2.imencode(".png", drawn[:, :, ::-1])
    assert done
    write_atomically(Path(sys.argv[1] if sys.argv[1:] else "scenes.png"), data.tobytes())
