"""How long the measures take for 10,000 probes and 10,000 references, after embedding.

    python benchmarks/evaluation_scale.py [--probes 10000] [--references 10000]

Embeddings are random points around random pill centres, 2,000 enrolled pills with 5 references
each, half of the probes mated, half strangers of 1,000 other pills.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pilltrack.core.decide import Rule, decide
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.pipeline.calibrate import calibrate
from pilltrack.pipeline.protocol import (
    det_curve,
    drawn,
    measure,
    measure_decisions,
    measure_strangers,
    search,
    single_views,
)

DIM, REFERENCES_PER_PILL, SPREAD = 128, 5, 0.13


def main() -> None:
    """Print seconds of each step and the figures found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=10_000)
    parser.add_argument("--references", type=int, default=10_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    n_pills = arguments.references // REFERENCES_PER_PILL
    centres = _unit(rng.normal(size=(n_pills + n_pills // 2, DIM)))

    def photos(pills: np.ndarray) -> np.ndarray:
        return _unit(centres[pills] + SPREAD * rng.normal(size=(len(pills), DIM)))

    enrolled = np.repeat(np.arange(n_pills), REFERENCES_PER_PILL)
    references, names = photos(enrolled), [f"pill {n:05d}" for n in enrolled]
    mated = rng.integers(0, n_pills, arguments.probes // 2)
    foreign = rng.integers(n_pills, len(centres), arguments.probes - len(mated))
    probes = {
        "mated": single_views(photos(mated), [f"pill {n:05d}" for n in mated]),
        "strangers": single_views(photos(foreign), [f"pill {n:05d}" for n in foreign]),
    }
    clock = _Clock()
    found = {kind: search(references, names, some) for kind, some in probes.items()}
    clock.lap("search: ranks, average precision")
    tried = {kind: drawn(outcomes, seed=0) for kind, outcomes in found.items()}
    report = measure(tried["mated"], tried["strangers"])
    clock.lap("measures, bootstrap with 1,000 resamples")
    rule: Rule = calibrate(found["strangers"], found["mated"], fpir=0.01, misnamed=0.01)
    clock.lap("calibration")
    with Gallery.create("space", DIM) as gallery:
        gallery.enrol([Reference(p, "", str(n)) for n, p in enumerate(names)], references)
        clock.lap("gallery built")
        decisions = {
            kind: [decide(c, rule) for c in gallery.search(some.embeddings[:, 0], n_pills=2)]
            for kind, some in probes.items()
        }
        clock.lap("decisions, searched as on the device")
    report |= measure_decisions(tried["mated"], decisions["mated"], 0.95)
    report |= measure_strangers(tried["strangers"], decisions["strangers"], 0.95)
    det_curve([found["mated"]], found["strangers"])
    clock.lap("decisions measured, DET curve")
    print(f"{'total':45} {clock.total_s:6.2f} s")
    print(f"recall@1 {report['recall_at_1']}, AUROC {report['auroc']}, FPIR {report['fpir']}")


class _Clock:
    def __init__(self) -> None:
        self._last_s = self._start_s = time.perf_counter()

    def lap(self, what: str) -> None:
        now_s = time.perf_counter()
        print(f"{what:45} {now_s - self._last_s:6.2f} s")
        self._last_s = now_s

    @property
    def total_s(self) -> float:
        return time.perf_counter() - self._start_s


def _unit(points: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return unit


if __name__ == "__main__":
    main()
