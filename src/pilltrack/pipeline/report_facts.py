"""What both forms of the report say: verdict, promises, headline, speed, sizes, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilltrack.core.bundle import GALLERY_FILE, read_bundle
from pilltrack.core.decide import Calibration
from pilltrack.core.errors import StageFailed
from pilltrack.core.identify import open_identifier
from pilltrack.pipeline import verdict
from pilltrack.pipeline.audit import archive_digest
from pilltrack.pipeline.checkout import git_commit
from pilltrack.pipeline.gate import broken_limits
from pilltrack.pipeline.latency import latency_ms
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.releases import Earlier
from pilltrack.pipeline.results import Captures, Mated, Metrics, Results, Strangers, Test
from pilltrack.pipeline.verdict import Promise, Row, Verdict
from pilltrack.pipeline.words import CAPTURE_WORDS

COMPARE = "`pilltrack compare` judges two bundles on the same photos"


@dataclass(frozen=True)
class Comparison:
    """What stands beside today's figures: a revision, and what to know before comparing.

    `no_metrics`: why there is nothing to compare with; then the headline has no column for it.
    """

    revision: str
    no_metrics: str
    notes: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """One run in figures and words; `comparison` is None when none was asked for."""

    name: str
    captures: Captures
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
    comparison: Comparison | None
    speed_and_size: Sequence[tuple[str, str]]
    digests: Sequence[tuple[str, str]]

    @property
    def against(self) -> str | None:
        """The revision whose figures stand in the headline table, if any do."""
        if self.comparison is None or self.comparison.no_metrics:
            return None
        return self.comparison.revision


def gather(
    params: Params, artifacts: Path, results: Results, space: str, earlier: Earlier | None
) -> Facts:
    """Collect the facts of a run; the latency of its bundle is measured now.

    `space`: that of the model at hand. `earlier`: what the run is compared with. Raises
    StageFailed for artifacts of other parameters or of several runs, BundleRejected for a damaged
    bundle.
    """
    settings, metrics = params.evaluate, results.metrics
    data_digest = archive_digest(artifacts / "prepare")
    _require_one_run(params, results, data_digest, space)
    test, seen, new, strangers = verdict.measured_test(metrics, settings)
    broken = broken_limits(metrics, settings)
    comparison, then = _comparison(metrics, earlier, settings.captures)
    speed, bundle_digests = _bundle(artifacts, results.calibration, params, data_digest, space)
    gallery_file = artifacts / "enroll" / GALLERY_FILE
    return Facts(
        name=params.package.name,
        captures=settings.captures,
        captures_in_words=CAPTURE_WORDS[settings.captures],
        metrics=metrics,
        test=test,
        seen=seen,
        new=new,
        strangers=strangers,
        verdict=verdict.judge(results.calibration is not None, broken, new),
        promises=verdict.promises(metrics, settings),
        limits=verdict.gate_limits(settings),
        headline=verdict.headline(test, then, alike=not (comparison and comparison.notes)),
        comparison=comparison,
        speed_and_size=[
            *speed,
            ("int8 model", f"{metrics.model.int8_bytes / 1e6:.2f} MB"),
            (
                "gallery",
                f"{metrics.gallery.references:,} references of {metrics.gallery.pills:,} pills, "
                f"{gallery_file.stat().st_size / 1e6:.2f} MB",
            ),
            *verdict.parity_lines(test.parity),
        ],
        digests=[
            ("data (SHA-256 of the zip)", data_digest),
            ("params (SHA-256)", params.digest()),
            *bundle_digests,
            ("this report: git commit", git_commit()),
        ],
    )


def _require_one_run(params: Params, results: Results, data_digest: str, space: str) -> None:
    """Refuse results that were measured with other settings, data or model than are here now.

    Raises StageFailed.
    """
    settings, origin, calibration = params.evaluate, results.metrics.origin, results.calibration
    others = []
    if origin.settings != params.digest("capture", "enroll", "evaluate"):
        others.append("metrics.json: other settings of capture, enroll or evaluate")
    if origin.data != data_digest:
        others.append("metrics.json: other data than in prepare/")
    if calibration:
        promised = {
            "promised_fpir": calibration.fpir,
            "promised_misnamed": calibration.misnamed,
            "confidence": calibration.confidence,
            "captures": calibration.captures,
        }
        others += [
            f"calibration.json: {key} {value}, in params.yaml {getattr(settings, key)}"
            for key, value in promised.items()
            if value != getattr(settings, key)
        ]
        if calibration.space != space:
            others.append("calibration.json: another model than in convert/")
    if others:
        raise StageFailed(
            "the results in evaluate/",
            found="; ".join(others),
            expected="results of today's params.yaml, data and model",
            remedy="Run `dvc repro`.",
        )


def _bundle(
    artifacts: Path,
    calibration: Calibration | None,
    params: Params,
    data_digest: str,
    space: str,
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Latency and digests of the bundle, or why there are none."""
    directory, label = artifacts / "package" / "bundle", "crop to decision, 1 thread"
    if params.package.gallery == "empty":
        label += ", nothing enrolled"
    if not directory.is_dir():
        return [(label, "not measured: there is no bundle")], [("bundle", "none was made")]
    if calibration is None:
        old = "none was made; the one in package/ is of an earlier run"
        return [(label, "not measured: there is no bundle of this run")], [("bundle", old)]
    manifest = read_bundle(directory)
    compared = [
        ("data", manifest.data_digest, data_digest),
        ("params", manifest.params_digest, params.digest()),
        ("model", manifest.space, space),
        ("calibration", manifest.calibration, calibration),
    ]
    if params.package.gallery == "enrolled":
        gallery = hashlib.sha256((artifacts / "enroll" / GALLERY_FILE).read_bytes()).hexdigest()
        compared.insert(3, ("gallery", manifest.files[GALLERY_FILE].sha256, gallery))
    others = [what for what, found, expected in compared if found != expected]
    if others:
        old = f"of another run (other {', '.join(others)}): run `dvc repro`"
        return [(label, "not measured: the bundle is of another run")], [("bundle", old)]
    with open_identifier(directory, threads=1) as identifier:
        p50, p95 = latency_ms(identifier)
    return [(label, f"p50 {p50:.1f} ms, p95 {p95:.1f} ms (measured when this was written)")], [
        ("embedding space", manifest.space),
        ("bundle: git commit", manifest.git_commit),
    ]


def _comparison(
    now: Metrics, earlier: Earlier | None, captures: Captures
) -> tuple[Comparison | None, Test | None]:
    """The comparison and the earlier test; `notes` say in what it is not of like with like."""
    if earlier is None:
        return None, None
    then = earlier.metrics
    if then is None:
        return Comparison(earlier.revision, earlier.reason, []), None
    if captures not in then.test:
        reason = f"no {captures} captures were measured then"
        return Comparison(earlier.revision, reason, []), None
    notes = []
    if now.origin.data != then.origin.data:
        notes.append("the data are not the same")
    if now.origin.settings != then.origin.settings:
        notes.append("the settings of capture, enroll or evaluate are not the same")
    if now.gallery != then.gallery:
        notes.append(
            f"the gallery had {then.gallery.pills:,} pills and {then.gallery.references:,} "
            f"references then and has {now.gallery.pills:,} and {now.gallery.references:,} now"
        )
    counts = [_photo_counts(metrics.test[captures]) for metrics in (then, now)]
    if counts[0] != counts[1]:
        notes.append("the numbers of test photos or pills differ")
    if notes:
        notes.append(f"so no difference is called better or worse; {COMPARE}")
    return Comparison(earlier.revision, "", notes), then.test[captures]


def _photo_counts(test: Test) -> list[tuple[int, int] | None]:
    cohorts = (test.seen, test.new, test.strangers)
    return [(cohort.n_probes, cohort.n_pills) if cohort else None for cohort in cohorts]
