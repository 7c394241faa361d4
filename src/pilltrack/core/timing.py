"""How long each step from a crop to a decision takes.

The steps are those of `core.identify`, with a clock between them. Several models are measured in
turns on the same crops, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pilltrack.core.decide import Decision, Rule, decide
from pilltrack.core.device_gallery import DeviceGallery
from pilltrack.core.embedder import Embedder
from pilltrack.core.gallery import Gallery
from pilltrack.core.preprocess import to_model_input

STEPS = ("preprocess", "embed", "search", "decide")
CROPS_PER_TURN = 25
N_WARM_UP = 20  # so many crops a small model needs to be itself again after a large one
CROP_PX = 300
N_CANDIDATES = 5  # as `identify` has it


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, the gallery it is searched in and the rule that decides."""

    embedder: Embedder
    gallery: Gallery | DeviceGallery
    rule: Rule


class Percentiles(BaseModel):
    """Of one step, in ms."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    p50: float
    p95: float
    p99: float
    max: float


def measure(subjects: Sequence[Subject], runs: int) -> list[dict[str, Percentiles]]:
    """Percentiles of each of `STEPS` and of their "total" over `runs` >= 1 crops, per subject.

    Crops are noise of `CROP_PX` px, the same for all subjects.
    """
    return [percentiles(times_ms) for times_ms in time_steps(subjects, noise_crops(runs))]


def time_steps(
    subjects: Sequence[Subject],
    crops: Iterable[NDArray[np.uint8]],
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float64]:
    """Time the steps for each crop: (subjects, crops, steps) ms, steps in the order of `STEPS`.

    The subjects take turns: `CROPS_PER_TURN` crops go to all of them before the next ones come,
    and each time another subject is first. A turn begins with `N_WARM_UP` uncounted crops, for
    another model has filled the processor's caches meanwhile. `clock` gives seconds. No crops
    give (subjects, 0, steps).
    """
    seconds: list[list[list[float]]] = [[] for _ in subjects]
    waiting = iter(crops)
    turn = 0
    while block := list(islice(waiting, CROPS_PER_TURN)):
        for place in range(len(subjects)):
            which = (turn + place) % len(subjects)
            for crop in islice(cycle(block), N_WARM_UP):
                identify_timed(subjects[which], crop, clock)
            seconds[which] += [identify_timed(subjects[which], crop, clock)[0] for crop in block]
        turn += 1
    return np.array(seconds, np.float64).reshape(len(subjects), -1, len(STEPS)) * 1000


def identify_timed(
    subject: Subject, crop: NDArray[np.uint8], clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], Decision]:
    """Identify one RGB crop; return the seconds of each step and the decision."""
    marks = [clock()]
    model_input = to_model_input(crop, subject.embedder.input_size_px)
    marks.append(clock())
    embedding = subject.embedder.embed([model_input])  # (1, D): not resized a second time
    marks.append(clock())
    (candidates,) = subject.gallery.search(embedding, N_CANDIDATES)
    marks.append(clock())
    decision = decide(candidates, subject.rule)
    marks.append(clock())
    return [end - begin for begin, end in pairwise(marks)], decision


def percentiles(times_ms: NDArray[np.float64]) -> dict[str, Percentiles]:
    """Percentiles of each step and of their total, from (crops, steps) ms; linear between ranks.

    >>> percentiles(np.array([[1.0, 5.0, 2.0, 0.0], [3.0, 5.0, 2.0, 0.0]]))["total"]
    Percentiles(p50=9.0, p95=9.9, p99=9.98, max=10.0)
    """
    columns = {**dict(zip(STEPS, times_ms.T, strict=True)), "total": times_ms.sum(axis=1)}
    result = {}
    for step, values in columns.items():
        p50, p95, p99, most = (
            round(float(np.quantile(values, q)), 4) for q in (0.5, 0.95, 0.99, 1)
        )
        result[step] = Percentiles(p50=p50, p95=p95, p99=p99, max=most)
    return result


def noise_crops(n: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yield `n` RGB crops of noise; a network takes as long for them as for pills."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield rng.integers(0, 256, (CROP_PX, CROP_PX, 3), dtype=np.uint8)


@contextmanager
def pinned(n_cores: int) -> Iterator[list[int]]:
    """Keep this thread, and threads it starts from now on, on `n_cores` cores; then free it again.

    Yields the cores, the highest numbers this process may use (interrupts like the lowest), or
    none where the system cannot pin or forbids it.
    """
    if sys.platform != "linux":
        yield []
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)[-n_cores:]
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        cores = []
    try:
        yield cores
    finally:
        if cores:
            os.sched_setaffinity(0, before)
