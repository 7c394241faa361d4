"""The pictures that a bundle is probed with on the device: crops of pills, and small scenes.

    reference photos of enrolled pills, named right and by far   -> up to N_KNOWN crops
    rendered pills, of which no gallery holds any                -> N_RENDERED crops
    scenes composed of rendered pills                            -> frames

What a bundle's own parts answer to them, and which answers are close calls, is for `core.probes`
to find out. The same data and the same parts give the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from pilltrack.core.decide import Rule
from pilltrack.core.embedder import Embedder
from pilltrack.core.gallery import Gallery
from pilltrack.core.image import read_image
from pilltrack.core.preprocess import to_model_input
from pilltrack.core.probes import Picture, Promised, clear_decision
from pilltrack.pipeline.invented import invent_pills
from pilltrack.pipeline.locator_data import rendered_cut_outs, scene_of
from pilltrack.pipeline.render import draw_setting, photograph_pill, render_face
from pilltrack.pipeline.scenes import Scene
from pilltrack.pipeline.table import ImageRow

N_KNOWN, N_RENDERED = 8, 8
CROP_PX = 112  # 38 kB; another size than a model's input, so that resizing is probed too
FRAME_PX = 256
MAX_REFERENCES = 320  # photos looked at for the known ones
N_PILLS = (3, 4, 5)  # in a scene
LEAST_PX = 36  # length of each: a pill of a few pixels is a close call everywhere
N_SCENES = 12  # of which the first clear ones become probes
BATCH = 16
SEED = 20261126

T = TypeVar("T")
_Ask = Callable[[Sequence[Picture]], list[Promised | None]]


def probe_crops(
    prepared: Path, rows: Sequence[ImageRow], embedder: Embedder, gallery: Gallery, rule: Rule
) -> list[Picture]:
    """Crops of pills that are clearly named right, then rendered ones, clearly unknown if possible.

    `rows` are the enrolled photos, below `prepared`; none for a bundle without pills. The others
    are those of the bundle.
    """

    def asked(crops: Sequence[Picture]) -> list[Promised | None]:
        return [clear_decision(row, gallery, rule) for row in embedder.embed(crops)]

    return [*islice(_known(prepared, rows, asked), N_KNOWN), *_rendered(asked)]


def probe_frames() -> Iterator[Picture]:
    """Compose small scenes of some rendered pills, more than a bundle takes; some are close calls.

    Made one by one, as they are asked for.
    """
    cutouts = rendered_cut_outs(24, SEED)
    scenes = (scene_of(cutouts, FRAME_PX, (SEED, n), N_PILLS[n % len(N_PILLS)]) for n in count())
    large = (scene for scene in scenes if _all_are_large(scene))
    yield from (scene.frame for scene in islice(large, N_SCENES))


def _all_are_large(scene: Scene) -> bool:
    lengths = scene.boxes[:, 2:].max(axis=1)
    return len(lengths) in N_PILLS and int(lengths.min()) >= LEAST_PX


def _known(prepared: Path, rows: Sequence[ImageRow], ask: _Ask) -> Iterator[Picture]:
    """One crop of each pill, in order of pill."""
    done: set[str] = set()
    for batch in _batches(_each_pill_in_turn(rows)[:MAX_REFERENCES]):
        crops = [to_model_input(read_image(prepared / row.image), CROP_PX) for row in batch]
        for row, crop, promised in zip(batch, crops, ask(crops), strict=True):
            if promised is not None and promised.pill == row.pill and row.pill not in done:
                done.add(row.pill)
                yield crop


def _each_pill_in_turn(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """The first photo of each pill, then the second of each, ...; new pills before trained ones."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, bool, ImageRow]] = []
    for row in sorted(rows):
        turns.append((seen.setdefault(row.pill, 0), row.split == "train", row))
        seen[row.pill] += 1
    return [row for _, _, row in sorted(turns)]


def _rendered(ask: _Ask) -> list[Picture]:
    """Pills that are clearly unknown; where these are too few, others, for their embeddings."""
    crops = list(_invented(3 * N_RENDERED))
    asked = [promised for batch in _batches(crops) for promised in ask(batch)]
    clear = [promised is not None and promised.kind == "unknown" for promised in asked]
    order = sorted(range(len(crops)), key=lambda n: (not clear[n], n))
    return [crops[n] for n in order[:N_RENDERED]]


def _invented(n_pills: int) -> Iterator[Picture]:
    rng = np.random.default_rng(SEED)
    for pill in invent_pills(n_pills, SEED):
        face = render_face(pill, "front", rng)
        yield photograph_pill(face, draw_setting(rng), CROP_PX, rng)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(items)
    while batch := list(islice(waiting, BATCH)):
        yield batch
