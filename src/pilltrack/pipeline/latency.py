"""How long a bundle takes from crop to decision, measured on this machine, now."""

from __future__ import annotations

import time

import numpy as np

from pilltrack.core.identify import Identifier

N_WARM_UP, N_TIMED = 10, 200


def latency_ms(identifier: Identifier) -> tuple[float, float]:
    """p50 and p95 over `N_TIMED` crops of noise, each twice the model's input size on a side.

    Threads are those the identifier was opened with.
    """
    rng = np.random.default_rng(0)
    side_px = identifier.embedder.input_size_px * 2
    times_ms = []
    for _ in range(N_WARM_UP + N_TIMED):
        crop = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
        start_s = time.perf_counter()
        identifier.identify(crop)
        times_ms.append((time.perf_counter() - start_s) * 1000)
    p50, p95 = np.quantile(times_ms[N_WARM_UP:], [0.5, 0.95])
    return float(p50), float(p95)
