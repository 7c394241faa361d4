"""The result of the last `dvc repro`: a few photos identified, and a few lines of figures."""

from __future__ import annotations

from pathlib import Path

from pilltrack.core.identify import Identifier, open_identifier, sentence
from pilltrack.core.image import read_image
from pilltrack.pipeline.latency import latency_ms
from pilltrack.pipeline.results import load_metrics
from pilltrack.pipeline.table import load_images
from pilltrack.pipeline.words import in_words

N_EXAMPLES = 3  # photos of each kind


def summary(artifacts: Path) -> str:
    """Photos of test pills as the bundle answers, recall@1, model size, latency, where things are.

    The photos are of enrolled pills that were never trained on, and of strangers. Latency is
    crop to decision, measured now, on one thread. The report is named when there is one. Raises
    StageFailed when the pipeline has not run, BundleRejected for a damaged bundle.
    """
    bundle, page = artifacts / "package" / "bundle", artifacts / "report" / "report.html"
    metrics = load_metrics(artifacts / "evaluate" / "metrics.json")
    with open_identifier(bundle, threads=1) as identifier:
        examples = _examples(identifier, artifacts / "prepare")
        p50, p95 = latency_ms(identifier)
    lines = []
    for captures, test in metrics.test.items():
        n_strangers = test.strangers.n_pills if test.strangers else 0
        for name, mated in (("seen", test.seen), ("new", test.new)):
            if mated:
                counts = f"{mated.n_probes} photos of {mated.n_pills} pills"
                recall = in_words(mated.recall_at_1, n_strangers)
                gallery = f"gallery {metrics.gallery.pills} pills"
                lines.append(
                    (f"recall@1 {name} pills ({captures})", f"{recall}, {counts}, {gallery}")
                )
        if test.strangers:
            counts = f"{test.strangers.n_probes} photos of {test.strangers.n_pills} pills"
            fpir = in_words(test.strangers.fpir, n_strangers)
            lines.append((f"strangers accepted ({captures})", f"{fpir}, {counts}"))
    lines.append(("int8 model", f"{metrics.model.int8_bytes / 1e6:.2f} MB"))
    lines.append(("crop to decision, 1 thread", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms"))
    if page.is_file():
        lines.append(("report", str(page)))
    lines.append(("bundle", str(bundle)))
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
            (pill,) = identifier.identify_crop(read_image(prepared / row.image))
            lines.append(f"  {row.image}: {sentence(pill.decision)}")
    return lines
