"""The result of the last `dvc repro`: a few photos identified, and a few lines of figures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from pilltrack.core.errors import StageFailed
from pilltrack.core.identify import Identifier, open_identifier, sentence
from pilltrack.core.image import read_image
from pilltrack.pipeline.table import load_images

N_WARM_UP, N_TIMED = 10, 200
N_EXAMPLES = 3  # photos of each kind


def summary(artifacts: Path) -> str:
    """Photos of test pills as the bundle answers, recall@1, model size, latency, where things are.

    The photos are of enrolled pills that were never trained on, and of strangers. Latency is
    crop to decision, measured now, on one thread, over `N_TIMED` crops of noise. Raises
    StageFailed when the pipeline has not run, BundleRejected for a damaged bundle.
    """
    bundle, report = artifacts / "package" / "bundle", artifacts / "evaluate" / "report.md"
    path = artifacts / "evaluate" / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageFailed(
            str(path),
            found=f"cannot be read ({error})",
            expected="the metrics of a finished run",
            remedy="Run `dvc repro`.",
        ) from error
    with open_identifier(bundle, threads=1) as identifier:
        examples = _examples(identifier, artifacts / "prepare")
        p50, p95 = _latency_ms(identifier)
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
    lines.append(("crop to decision, 1 thread", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms"))
    lines += [("report", str(report)), ("bundle", str(bundle))]
    width = max(len(label) for label, _ in lines)
    figures = [f"{label:{width}}  {value}" for label, value in lines]
    return "\n".join([*examples, "", *figures])


def _examples(identifier: Identifier, prepared: Path) -> list[str]:
    lines = []
    rows = [row for row in load_images(prepared) if row.split == "test"]
    for role, title in (
        ("probe", "Photos of enrolled pills that were never trained on:"),
        ("stranger", "Photos of pills that are not enrolled:"),
    ):
        chosen = [row for row in rows if row.role == role][:: max(1, len(rows) // 20)][:N_EXAMPLES]
        lines += [title] if chosen else []
        for row in chosen:
            (pill,) = identifier.identify(read_image(prepared / row.image))
            lines.append(f"  {row.image}: {sentence(pill.decision)}")
    return lines


def _latency_ms(identifier: Identifier) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    side = identifier.embedder.input_size_px * 2
    times_ms = []
    for _ in range(N_WARM_UP + N_TIMED):
        crop = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        start_s = time.perf_counter()
        identifier.identify(crop)
        times_ms.append((time.perf_counter() - start_s) * 1000)
    p50, p95 = np.quantile(times_ms[N_WARM_UP:], [0.5, 0.95])
    return float(p50), float(p95)
