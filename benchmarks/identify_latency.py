"""How long from a crop to a decision, step by step, on one thread.

    python benchmarks/identify_latency.py --bundle artifacts/package/bundle

Preprocess, embed, search and decide are timed on the same crops; percentiles over all crops.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from pilltrack.core.decide import decide
from pilltrack.core.identify import open_identifier
from pilltrack.core.preprocess import to_model_input

N_CROPS, CROP_PX = 500, 300


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    bundle = parser.parse_args().bundle
    start_s = time.perf_counter()
    rng = np.random.default_rng(0)
    steps: dict[str, list[float]] = {"preprocess": [], "embed": [], "search": [], "decide": []}
    with open_identifier(bundle, threads=1) as identifier:
        opened_s = time.perf_counter() - start_s
        for _ in range(N_CROPS):
            crop = rng.integers(0, 256, (CROP_PX, CROP_PX, 3), dtype=np.uint8)
            marks = [time.perf_counter()]
            resized = to_model_input(crop, identifier.embedder.input_size_px)
            marks.append(time.perf_counter())
            embedding = identifier.embedder.embed([resized])
            marks.append(time.perf_counter())
            (candidates,) = identifier.gallery.search(embedding, n_pills=5)
            marks.append(time.perf_counter())
            decide(candidates, identifier.calibration)
            marks.append(time.perf_counter())
            for step, begin, end in zip(steps, marks, marks[1:], strict=False):
                steps[step].append((end - begin) * 1000)
        references = len(identifier.gallery)
    total = np.sum(list(steps.values()), axis=0)
    print(f"{N_CROPS} crops of {CROP_PX} px, gallery of {references} references, 1 thread")
    print(f"{'step':12} {'p50':>8} {'p95':>8} {'p99':>8}  ms")
    for step, values in {**steps, "total": total}.items():
        p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99])
        print(f"{step:12} {p50:8.3f} {p95:8.3f} {p99:8.3f}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"bundle opened in {opened_s:.2f} s, peak memory {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
