"""`pilltrack compare A B`: may the challenger B take the place of the champion A?

Both bundles are put before one frozen test set anew: the same photos and captures, the same
references enrolled with each bundle's model, each bundle's own rule. So every probe has an answer
of A and one of B, and a difference is judged by a bootstrap that draws pills and keeps these pairs
together: what makes a photo hard is hard for both, and cancels.

A metric is *better* or *worse* when the 95 % interval of the difference excludes 0, otherwise
there is *no difference* that these pills could show; fewer than ten pills *cannot tell*. B is
worse as soon as one gate metric is, and better only when none is worse and at least one better;
the harms (a stranger accepted, a pill misnamed) stand first and nothing makes up for them. The
intervals are not widened for looking at five metrics: that would hide harm. What it costs in
false alarms: docs/compare.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pilltrack.core.bundle import GALLERY_FILE, Manifest
from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import DatasetRejected, GateFailed, StageFailed
from pilltrack.core.gallery import Gallery, read_background
from pilltrack.core.metrics import auroc
from pilltrack.pipeline.audit import archive_digest
from pilltrack.pipeline.cohorts import COHORTS, Cohort, choose_references, cohort_of
from pilltrack.pipeline.enroll import enrol_rows
from pilltrack.pipeline.intervals import (
    LEVEL,
    MIN_PILLS,
    Interval,
    Resamples,
    difference_interval,
    pill_means,
    resample_pills,
    upper_bound,
)
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.protocol import accepted, misnamed, named_rightly, rounded, rounded_up
from pilltrack.pipeline.releases import opened_bundle
from pilltrack.pipeline.shots import Shot, embed_shots, shots_to_identify
from pilltrack.pipeline.table import load_images
from pilltrack.pipeline.trial import Tried, try_shots

DRAWS: tuple[Cohort, ...] = ("new", "seen", "strangers")  # each with the seed of its place
Better = Literal["higher", "lower"]
Verdict = Literal["better", "no difference", "worse", "cannot tell"]
PromiseState = Literal["kept", "not proven here", "broken here"]
Trial = Mapping[Cohort, Tried]


@dataclass(frozen=True)
class Metric:
    """A share of the probes of one cohort; `gate`: it counts in the verdict."""

    key: str
    label: str
    cohort: Cohort
    better: Better
    gate: bool


def _accepted(tried: Tried) -> NDArray[np.bool_]:
    return accepted(tried.decisions)


def _named(tried: Tried) -> list[bool]:
    return [decision.kind == "known" for decision in tried.decisions]


def _misnamed(tried: Tried) -> NDArray[np.bool_]:
    return misnamed(tried.pills, tried.decisions)


def _missed(tried: Tried) -> NDArray[np.bool_]:
    return ~named_rightly(tried.pills, tried.decisions)


def _first(tried: Tried) -> NDArray[np.bool_]:
    return tried.outcomes.rank <= 1


def _among_five(tried: Tried) -> NDArray[np.bool_]:
    return tried.outcomes.rank <= 5


# Gates are those of `evaluate`; the two harms first. One value for each probe.
METRICS: dict[Metric, Callable[[Tried], ArrayLike]] = {
    Metric("fpir", "strangers accepted (FPIR)", "strangers", "lower", True): _accepted,
    Metric("misnamed", "new pills given a wrong name", "new", "lower", True): _misnamed,
    Metric("fnir", "new pills not named rightly (FNIR)", "new", "lower", True): _missed,
    Metric("recall_at_1", "new pills: right one is nearest", "new", "higher", True): _first,
    Metric("recall_at_1", "seen pills: right one is nearest", "seen", "higher", True): _first,
    Metric("recall_at_5", "new pills: right one among 5", "new", "higher", False): _among_five,
    Metric("named", "strangers given a name", "strangers", "lower", False): _named,
}
AUROC = Metric("auroc", "AUROC, new pills against strangers", "new", "higher", False)


@dataclass(frozen=True)
class Change:
    """What one metric says: A, B, B - A with its 95 % interval (None: too few pills)."""

    cohort: Cohort
    metric: str
    label: str
    better: Better
    gate: bool
    n_pills: int
    n_photos: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Promise:
    """What a bundle promises about one harm, and what this test set says about it."""

    harm: str
    promised: float
    confidence: float
    measured: float
    upper: float  # with `confidence`
    state: PromiseState


@dataclass(frozen=True)
class Contender:
    """A bundle as it was named, what it is, and its promises against this test set."""

    source: str
    name: str
    git_commit: str
    data_digest: str
    space: str
    promises: tuple[Promise, ...]
    trained_elsewhere: bool  # on other data or another split: it may have seen these test pills


@dataclass(frozen=True)
class Comparison:
    """Everything `pilltrack compare` says; `because` names the changes behind the verdict."""

    verdict: Verdict
    because: tuple[str, ...]
    captures: str
    gallery_pills: int
    data_digest: str
    a: Contender
    b: Contender
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def compare(
    params: Params, artifacts: Path, champion: str, challenger: str, *, captures: str | None = None
) -> Comparison:
    """Try two bundles on the test split of `artifacts/prepare/`; progress shows on a terminal.

    `champion`, `challenger`: a directory with a bundle, else a git revision. `captures`: real,
    rendered or augmented; None means `evaluate.captures`.

    Raises StageFailed or BundleRejected when a bundle cannot be had or read, DatasetRejected when
    the test split lacks such captures of new, seen or stranger pills.
    """
    prepared, captures = artifacts / "prepare", captures or params.evaluate.captures
    rows = load_images(prepared)
    shots = shots_to_identify(params, rows, "test", captures)
    _require_cohorts(shots, captures)
    digest = archive_digest(prepared)
    references = choose_references(rows, params.enroll.references_per_side)
    with ExitStack() as stack:
        bundles = [stack.enter_context(opened_bundle(name)) for name in (champion, challenger)]
        embedders = [
            open_embedder(path / manifest.model.file, threads=2) for path, manifest in bundles
        ]
        galleries = []
        for embedder, (path, _) in zip(embedders, bundles, strict=True):
            gallery = stack.enter_context(Gallery.create(embedder.space, embedder.dim))
            enrol_rows(gallery, embedder, prepared, references, params)
            gallery.background = read_background(path / GALLERY_FILE, embedder.dim)
            galleries.append(gallery)
        embedded = embed_shots(embedders, shots, prepared, params.capture, f"test, {captures}")
        manifests = [manifest for _, manifest in bundles]
        rules = [manifest.calibration.rule_for(galleries[0].n_pills) for manifest in manifests]
        trials = [
            try_shots(gallery, rule, shots, embeddings, params.evaluate.seed)
            for gallery, rule, embeddings in zip(galleries, rules, embedded, strict=True)
        ]
        enrolled = galleries[0].pills()
    changes = judge(trials[0], trials[1], seed=params.evaluate.seed)
    verdict, because = overall(changes)
    return Comparison(
        verdict=verdict,
        because=tuple(because),
        captures=captures,
        gallery_pills=len(enrolled),
        data_digest=digest,
        a=_contender(champion, manifests[0], trials[0], _elsewhere(manifests[0], digest, enrolled)),
        b=_contender(
            challenger, manifests[1], trials[1], _elsewhere(manifests[1], digest, enrolled)
        ),
        changes=tuple(changes),
        notes=tuple(_notes(manifests, captures, digest, enrolled)),
    )


def exit_code(comparison: Comparison, require_better: bool) -> int:
    """0: B may follow A. 3: it may not, or nobody can tell.

    B may follow when it is better or, without `require_better`, when no difference is shown; when
    it breaks none of its promises on this test set; and when it cannot have been trained on it.
    """
    enough = {"better"} if require_better else {"better", "no difference"}
    broken = any(promise.state == "broken here" for promise in comparison.b.promises)
    fair = not broken and not comparison.b.trained_elsewhere
    return 0 if comparison.verdict in enough and fair else GateFailed.exit_code


def judge(first: Trial, second: Trial, *, seed: int) -> list[Change]:
    """Every metric of `METRICS`, then AUROC of new pills against strangers.

    `first`, `second`: what A and B made of the same shots, all cohorts; `seed` of the bootstrap.
    Raises StageFailed for a metric that is not a number.
    """
    # Cohorts are drawn apart, A and B together.
    draws = {
        cohort: resample_pills(first[cohort].pills, seed=seed + offset)
        for offset, cohort in enumerate(DRAWS)
    }
    for cohort in COHORTS:
        assert list(first[cohort].shots) == list(second[cohort].shots), "other shots for A than B"
    changes = [
        paired_change(
            metric,
            values(first[metric.cohort]),
            values(second[metric.cohort]),
            draws[metric.cohort],
        )
        for metric, values in METRICS.items()
    ]
    return [*changes, _auroc_change(first, second, draws["new"], draws["strangers"])]


def paired_change(metric: Metric, first: ArrayLike, second: ArrayLike, draws: Resamples) -> Change:
    """Judge one metric from its values (N,) for A and for B, probe by probe.

    Raises StageFailed when a value is not a finite number.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    _require_numbers(metric.label, np.concatenate([one, other]))
    return _change(
        metric,
        float(one.mean()),
        float(other.mean()),
        draws,
        difference_interval(one, other, draws),
    )


def check_promise(
    harm: str, promised: float, errors: ArrayLike, pills: Sequence[str], *, confidence: float
) -> Promise:
    """What photos (N,) of `pills` say about the promise of at most `promised` errors.

    Each pill has one vote. broken: even the share measured is above it. Not proven: only its
    upper bound is, so these pills are too few to tell.

    >>> pills = [f"pill {i}" for i in range(30)]
    >>> check_promise("harm", 0.1, [False] * 30, pills, confidence=0.95).state
    'kept'
    >>> check_promise("harm", 0.09, [False] * 30, pills, confidence=0.95).state
    'not proven here'
    """
    measured = float(np.mean(pill_means(errors, pills)))
    upper = upper_bound(errors, pills, confidence)
    state: PromiseState = "kept" if upper <= promised else "not proven here"
    if measured > promised:
        state = "broken here"
    return Promise(harm, promised, confidence, rounded(measured), rounded_up(upper), state)


def verdict_of(interval: Interval | None, better: Better) -> Verdict:
    """What the interval of a difference B - A says.

    >>> verdict_of((0.01, 0.2), "higher"), verdict_of((0.01, 0.2), "lower")
    ('better', 'worse')
    >>> verdict_of((0.0, 0.2), "higher"), verdict_of(None, "higher")
    ('no difference', 'cannot tell')
    """
    if interval is None:
        return "cannot tell"
    low, high = interval
    if low <= 0 <= high:
        return "no difference"
    return "better" if (low > 0) == (better == "higher") else "worse"


def overall(changes: Sequence[Change]) -> tuple[Verdict, list[str]]:
    """The verdict over the gate metrics, and the labels of those that decided it.

    One worse: worse. Else one that cannot be told: cannot tell. Else one better: better.
    """
    gates = [change for change in changes if change.gate]
    order: tuple[Verdict, ...] = ("worse", "cannot tell", "better")
    for verdict in order:
        labels = [change.label for change in gates if change.verdict == verdict]
        if labels:
            return verdict, labels
    return "no difference", []


def auroc_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    mated_draws: Resamples,
    stranger_draws: Resamples,
) -> Interval | None:
    """95 % interval for AUROC(second) - AUROC(first), with the same draws of pills for both.

    `first`, `second`: scores of mated probes (M,) and strangers (S,) by A and by B. A resample
    weighs each pair of a mated and a stranger pill by how often both were drawn. None below
    `MIN_PILLS` pills on a side.
    """
    if min(mated_draws.n_pills, stranger_draws.n_pills) < MIN_PILLS:
        return None
    gained = _wins(*second, mated_draws, stranger_draws) - _wins(
        *first, mated_draws, stranger_draws
    )
    drawn_mated, drawn_strangers = mated_draws.counts, stranger_draws.counts
    pairs = (drawn_mated @ np.bincount(mated_draws.pill_of)) * (
        drawn_strangers @ np.bincount(stranger_draws.pill_of)
    )
    replicates = ((drawn_mated @ gained) * drawn_strangers).sum(axis=1) / pairs
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _wins(
    mated: ArrayLike, strangers: ArrayLike, mated_draws: Resamples, stranger_draws: Resamples
) -> NDArray[np.float64]:
    """(mated pills, stranger pills): pairs of photos in which the mated one scores higher.

    Equal scores count half.
    """
    foreign = np.asarray(strangers, np.float64)
    columns = []
    for pill in range(stranger_draws.n_pills):
        ranked = np.sort(foreign[stranger_draws.pill_of == pill])
        below = np.searchsorted(ranked, mated, side="left")
        below_or_equal = np.searchsorted(ranked, mated, side="right")
        columns.append(np.bincount(mated_draws.pill_of, weights=(below + below_or_equal) / 2))
    return np.stack(columns, axis=1)


def _auroc_change(
    first: Trial, second: Trial, mated_draws: Resamples, stranger_draws: Resamples
) -> Change:
    one, other = (
        (trial["new"].outcomes.best, trial["strangers"].outcomes.best) for trial in (first, second)
    )
    _require_numbers(AUROC.label, np.concatenate([*one, *other]))
    interval = auroc_difference(one, other, mated_draws, stranger_draws)
    return _change(AUROC, auroc(*one), auroc(*other), mated_draws, interval)


def _change(
    metric: Metric, a: float, b: float, draws: Resamples, interval: Interval | None
) -> Change:
    return Change(
        cohort=metric.cohort,
        metric=metric.key,
        label=metric.label,
        better=metric.better,
        gate=metric.gate,
        n_pills=draws.n_pills,
        n_photos=len(draws.pill_of),
        a=rounded(a),
        b=rounded(b),
        difference=rounded(b - a),
        low=None if interval is None else rounded(interval[0]),
        high=None if interval is None else rounded(interval[1]),
        verdict=verdict_of(interval, metric.better),
    )


def _require_numbers(label: str, values: NDArray[np.float64]) -> None:
    if not np.isfinite(values).all():
        raise StageFailed(
            f"compare: {label}",
            found="values that are not numbers",
            expected="a number for every photo",
            remedy="A model is damaged: fetch or build its bundle again.",
        )


def _require_cohorts(shots: Sequence[Shot], captures: str) -> None:
    missing = sorted(set(COHORTS) - {cohort_of(shot.row) for shot in shots})
    if missing:
        raise DatasetRejected(
            f"test split, {captures} captures",
            found=f"none of {' and '.join(missing)} pills",
            expected="photos of seen, new and stranger pills: without them harm goes unseen",
            remedy="Choose other captures, or prepare a data set that has them.",
        )


def _elsewhere(manifest: Manifest, digest: str, enrolled: Sequence[str]) -> bool:
    return manifest.data_digest != digest or sorted(manifest.pills) != list(enrolled)


def _contender(source: str, manifest: Manifest, trial: Trial, elsewhere: bool) -> Contender:
    calibration = manifest.calibration
    foreign, new = trial["strangers"], trial["new"]
    check = partial(check_promise, confidence=calibration.confidence)
    return Contender(
        source=source,
        name=manifest.name,
        git_commit=manifest.git_commit,
        data_digest=manifest.data_digest,
        space=manifest.space,
        promises=(
            check("strangers accepted", calibration.fpir, _accepted(foreign), foreign.pills),
            check("enrolled pills misnamed", calibration.misnamed, _misnamed(new), new.pills),
        ),
        trained_elsewhere=elsewhere,
    )


def _notes(
    manifests: Sequence[Manifest], captures: str, digest: str, enrolled: Sequence[str]
) -> list[str]:
    """What makes the comparison less than even, in sentences."""
    notes = []
    for side, manifest in zip("AB", manifests, strict=True):
        seen = f"pills of this test set may have been in its training, in favour of {side}"
        calibration = manifest.calibration
        if manifest.data_digest != digest:
            notes.append(f"{side} was trained on other data: {seen}")
        elif sorted(manifest.pills) != list(enrolled):
            notes.append(f"{side} comes from another split of the same data: {seen}")
        if calibration.captures != captures:
            notes.append(
                f"{side}'s rule and promises are for {calibration.captures} captures, "
                f"these are {captures}"
            )
        if calibration.gallery_size < len(enrolled):
            notes.append(
                f"{side}'s rule and promises are for a gallery of {calibration.gallery_size} "
                f"pills, here are {len(enrolled)}"
            )
    if manifests[0].space == manifests[1].space:
        notes.append("A and B have the same model: only their rules and backgrounds can differ")
    return notes
