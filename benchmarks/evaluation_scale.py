"""How long everything after embedding takes for 10,000 probes and 10,000 references.

    python benchmarks/evaluation_scale.py

Embeddings are random points around random pill centres: 2,000 enrolled pills with 5 references
each, 4,000 probes of seen pills, 3,000 of new ones, and 3,000 of as many strangers, front and back.
Timed is what `evaluate` does with them: search as on the device, decide, calibrate, all measures
for 1, 3 and 5 references and for both sides, each with 1,000 bootstrap resamples, look-alikes.
"""

from __future__ import annotations

import time

import numpy as np

from pilltrack.core.gallery import Gallery, Reference
from pilltrack.pipeline.evaluate import measure_trial, parity
from pilltrack.pipeline.lookalikes import find_lookalikes
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.shots import Shot
from pilltrack.pipeline.table import ImageRow, Role, Side, Split
from pilltrack.pipeline.trial import calibrate_on, try_shots

DIM, N_PILLS, REFERENCES_PER_PILL, SPREAD = 128, 2000, 5, 0.13
COHORTS: dict[str, tuple[int, int, int, Split, Role]] = {  # probes, pills from, to, split, role
    "seen": (4000, 0, 1200, "train", "probe"),
    "new": (3000, 1200, 2000, "test", "probe"),
    "strangers": (3000, 2000, 5000, "test", "stranger"),
}
SETTINGS = EvaluateParams(
    seed=0,
    captures="real",
    augmented_per_photo=0,
    fpir=0.01,
    misnamed=0.01,
    refused_sets=0.01,
    promised_fpir=0.05,
    promised_misnamed=0.05,
    confidence=0.95,
    min_recall_at_1_seen=0,
    min_recall_at_1_new=0,
    max_fnir=1,
    max_flips=1,
)


def main() -> None:
    """Print seconds of each step and the figures found."""
    rng = np.random.default_rng(0)
    centres = _unit(rng.normal(size=(COHORTS["strangers"][2], DIM)))

    def photos(pills: np.ndarray) -> np.ndarray:
        return _unit(centres[pills] + SPREAD * rng.normal(size=(len(pills), DIM)))

    enrolled = np.repeat(np.arange(N_PILLS), REFERENCES_PER_PILL)
    shots: list[Shot] = []
    shown: list[int] = []
    for n_probes, start, stop, split, role in COHORTS.values():
        pills = np.sort(np.arange(n_probes) % (stop - start)) + start
        shown += pills.tolist()
        shots += [_shot(pill, n, split, role) for n, pill in enumerate(pills.tolist())]
    embeddings = photos(np.array(shown))
    clock = _Clock()
    with Gallery.create("space", DIM) as gallery:
        references = [Reference(_name(p), "", f"{n:05d}") for n, p in enumerate(enrolled.tolist())]
        gallery.enrol(references, photos(enrolled))
        clock.lap("gallery of 10,000 references built")
        validation = [shot for shot in shots if shot.row.split == "test"]
        rule, _ = calibrate_on(gallery, validation, embeddings[-len(validation) :], SETTINGS)
        clock.lap("6,000 probes searched, rule calibrated")
        trial = try_shots(gallery, rule, shots, embeddings, seed=0)
        clock.lap("10,000 probes searched and decided")
        report = measure_trial(trial, gallery, SETTINGS)
        clock.lap("all measures, 1,000 resamples each")
        parity(trial, trial)
        find_lookalikes(gallery.embeddings(), gallery.references(), {}, {}, {}, {})
        clock.lap("parity, look-alikes")
    print(f"{'total':40} {clock.total_s:6.2f} s")
    for name in ("recall_at_1", "auroc", "fnir_at_fpir_0.1pct"):
        print(f"new pills: {name:20} {report['new'][name]}")


class _Clock:
    def __init__(self) -> None:
        self._last_s = self._start_s = time.perf_counter()

    def lap(self, what: str) -> None:
        now_s = time.perf_counter()
        print(f"{what:40} {now_s - self._last_s:6.2f} s", flush=True)
        self._last_s = now_s

    @property
    def total_s(self) -> float:
        return time.perf_counter() - self._start_s


def _name(pill: int) -> str:
    return f"pill {pill:05d}"


def _shot(pill: int, n: int, split: Split, role: Role) -> Shot:
    side: Side = "back" if n % 2 else "front"
    row = ImageRow(f"{split}{role}{n}", _name(pill), side, "", "real", f"{n}", split, role)
    return Shot(row, None)


def _unit(points: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return unit


if __name__ == "__main__":
    main()
