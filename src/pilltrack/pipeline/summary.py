"""The result of the last `dvc repro` in a few lines, with the latency of this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from pilltrack.core.errors import StageFailed
from pilltrack.core.identify import open_identifier

N_TIMED = 200


def summary(artifacts: Path) -> str:
    """A short table: recall@1, model size, crop-to-decision latency, where report and bundle are.

    Latency is measured now, on one thread, over `N_TIMED` crops of noise at the model's size.
    Raises StageFailed when the pipeline has not run.
    """
    bundle, report = artifacts / "package" / "bundle", artifacts / "evaluate" / "report.md"
    try:
        text = (artifacts / "evaluate" / "metrics.json").read_text(encoding="utf-8")
    except OSError as error:
        raise StageFailed(
            str(artifacts / "evaluate" / "metrics.json"),
            found="cannot be read",
            expected="the metrics of a finished run",
            remedy="Run `dvc repro`.",
        ) from error
    metrics = json.loads(text)
    lines = []
    for captures, measured in metrics["test"].items():
        for name in ("seen", "new"):
            if name in measured:
                m = measured[name]
                lines.append(
                    (
                        f"recall@1 {name} pills ({captures})",
                        f"{m['recall_at_1']:.1%}  ({m['n_probes']} photos of {m['n_pills']} pills, "
                        f"gallery {metrics['gallery']['pills']} pills)",
                    )
                )
    lines.append(("int8 model", f"{metrics['model']['int8_bytes'] / 1e6:.2f} MB"))
    p50, p95 = _latency_ms(bundle)
    lines.append(("crop to decision, 1 thread", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms"))
    lines += [("report", str(report)), ("bundle", str(bundle))]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:{width}}  {value}" for label, value in lines)


def _latency_ms(bundle: Path) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    times_ms = []
    with open_identifier(bundle, threads=1) as identifier:
        side = identifier.embedder.input_size_px * 2
        for _ in range(N_TIMED + 10):
            crop = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            start_s = time.perf_counter()
            identifier.identify(crop)
            times_ms.append((time.perf_counter() - start_s) * 1000)
    p50, p95 = np.quantile(times_ms[10:], [0.5, 0.95])
    return float(p50), float(p95)
