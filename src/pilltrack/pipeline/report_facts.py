"""What both forms of the report say: verdict, promises, headline, speed, sizes, digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilltrack.core.bundle import read_bundle
from pilltrack.core.identify import open_identifier
from pilltrack.pipeline import verdict
from pilltrack.pipeline.audit import archive_digest
from pilltrack.pipeline.evaluate import broken_limits
from pilltrack.pipeline.latency import latency_ms
from pilltrack.pipeline.package import git_commit
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.results import Mated, Metrics, Results, Strangers, Test
from pilltrack.pipeline.verdict import Promise, Row, Verdict


@dataclass(frozen=True)
class Facts:
    """One run in figures and words; `against` names the revision of each row's `then`."""

    name: str
    captures: str
    captures_in_words: str
    metrics: Metrics
    test: Test
    seen: Mated
    new: Mated
    strangers: Strangers
    verdict: Verdict
    promises: Sequence[Promise]
    limits: dict[str, float]
    headline: Sequence[Row]
    against: str | None
    comparison_notes: Sequence[str]
    speed_and_size: Sequence[tuple[str, str]]
    digests: Sequence[tuple[str, str]]


def gather(
    params: Params, artifacts: Path, results: Results, against: str | None, then: Metrics | None
) -> Facts:
    """Collect the facts of a run; the latency of its bundle is measured now.

    `then`: the metrics of the revision `against`. Raises StageFailed for artifacts of several
    runs, BundleRejected for a damaged bundle.
    """
    settings, metrics = params.evaluate, results.metrics
    test, seen, new, strangers = verdict.measured_test(metrics, settings.captures)
    then_test = then.test.get(settings.captures) if then else None
    params_digest = params.digest()
    judged = verdict.judge(results.passed, broken_limits(results.raw_metrics, settings))
    speed, bundle_digests = _bundle(artifacts, results.passed, params_digest)
    return Facts(
        name=params.package.name,
        captures=settings.captures,
        captures_in_words=verdict.CAPTURES[settings.captures],
        metrics=metrics,
        test=test,
        seen=seen,
        new=new,
        strangers=strangers,
        verdict=judged,
        promises=verdict.promises(metrics, settings),
        limits=verdict.gate_limits(settings),
        headline=verdict.headline(test, then_test),
        against=against,
        comparison_notes=_comparison_notes(metrics, then, settings.captures),
        speed_and_size=[
            *speed,
            ("int8 model", f"{metrics.model.int8_bytes / 1e6:.2f} MB"),
            (
                "gallery",
                f"{metrics.gallery.references:,} references of {metrics.gallery.pills:,} pills, "
                f"{(artifacts / 'enroll' / 'gallery.safetensors').stat().st_size / 1e6:.2f} MB",
            ),
            *verdict.parity_lines(test.parity),
        ],
        digests=[
            ("data (SHA-256 of the zip)", archive_digest(artifacts / "prepare")),
            ("params (SHA-256)", params_digest),
            *bundle_digests,
            ("this report: git commit", git_commit()),
        ],
    )


def _bundle(
    artifacts: Path, passed: bool, params_digest: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Latency and digests of the bundle, or why there are none."""
    directory, label = artifacts / "package" / "bundle", "crop to decision, 1 thread"
    if not directory.is_dir():
        return [(label, "not measured: there is no bundle")], [("bundle", "none was made")]
    if not passed:
        old = "none was made; the one in package/ is of an earlier run"
        return [(label, "not measured: there is no bundle of this run")], [("bundle", old)]
    manifest = read_bundle(directory)
    if manifest.params_digest != params_digest:
        old = f"made with other params ({manifest.params_digest}): run `dvc repro`"
        return [(label, "not measured: the bundle is of other params")], [("bundle", old)]
    with open_identifier(directory, threads=1) as identifier:
        p50, p95 = latency_ms(identifier)
    return [(label, f"p50 {p50:.1f} ms, p95 {p95:.1f} ms (measured when this was written)")], [
        ("embedding space", manifest.space),
        ("bundle: git commit", manifest.git_commit),
    ]


def _comparison_notes(now: Metrics, then: Metrics | None, captures: str) -> list[str]:
    """In what a comparison is not of like with like."""
    if then is None:
        return []
    if captures not in then.test:
        return [f"no {captures} captures were measured then"]
    notes = []
    if now.gallery != then.gallery:
        notes.append(
            f"the gallery had {then.gallery.pills:,} pills then and has {now.gallery.pills:,} now"
        )
    counts = [_photo_counts(metrics.test[captures]) for metrics in (then, now)]
    if counts[0] != counts[1]:
        notes.append("the test photos are not the same: their numbers differ")
    return notes


def _photo_counts(test: Test) -> list[tuple[int, int] | None]:
    cohorts = (test.seen, test.new, test.strangers)
    return [(cohort.n_probes, cohort.n_pills) if cohort else None for cohort in cohorts]
