"""The open-set protocol: one gallery, mated probes, strangers -> the errors that matter.

The `evaluate` stage, `pilltrack compare` and `pilltrack evaluate-folder` all measure through this
file, on embeddings made by the exported model, so the same photos give the same numbers.
Definitions and sources of the measures: `core.metrics`; intervals: `pipeline.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.background import Background, no_background
from pilltrack.core.decide import Decision
from pilltrack.core.gallery import Reference
from pilltrack.core.looks import all_looks
from pilltrack.core.metrics import auroc, fnir_at_fpir
from pilltrack.pipeline.intervals import (
    Interval,
    Resamples,
    auroc_interval,
    fnir_interval,
    mean_interval,
    pill_means,
    pills_needed,
    resample_pills,
    upper_bound,
)

FPIRS = (0.05, 0.01, 0.001)
CHUNK = 500  # probes compared with the whole gallery at a time
Measures = dict[str, Any]  # as in metrics.json: docs/adr/0002-evaluation.md


@dataclass(frozen=True)
class Probes:
    """Embedded probes, the pill each shows, and from which side it is seen (or empty)."""

    embeddings: NDArray[np.float32]  # (N, views, D), L2-normalised; one view or front and back
    pills: Sequence[str]  # (N,)

    def __len__(self) -> int:
        return len(self.pills)


@dataclass(frozen=True)
class Outcomes:
    """What the gallery answers to each of N probes; equal scores never count in our favour."""

    truth: Sequence[str]  # (N,) the pill shown
    best: NDArray[np.float64]  # (N,) score of the first pill
    best_pill: Sequence[str]  # (N,)
    second: NDArray[np.float64]  # (N,) score of the second pill; -1 when only one is enrolled
    second_pill: Sequence[str]  # (N,) empty when only one is enrolled
    rank: NDArray[np.intp]  # (N,) of the true pill, 1 for the first; 0 for strangers
    average_precision: NDArray[np.float64]  # (N,) over single references; 0 for strangers

    def __len__(self) -> int:
        return len(self.truth)


def single_views(embeddings: NDArray[np.float32], pills: Sequence[str]) -> Probes:
    """One photo per probe: embeddings (N, D)."""
    return Probes(embeddings[:, None, :], list(pills))


def two_sided(
    embeddings: NDArray[np.float32], pills: Sequence[str], sides: Sequence[str]
) -> Probes | None:
    """Pairs of a front and a back photo of one pill, the first with the first and so on.

    Photos without a partner are left out; None when there is no pair.

    >>> photos = np.eye(3, dtype=np.float32)
    >>> two_sided(photos, ["a", "a", "b"], ["front", "back", "front"]).embeddings.shape
    (1, 2, 3)
    """
    by_side: dict[str, dict[str, list[int]]] = {"front": {}, "back": {}}
    for index, (pill, side) in enumerate(zip(pills, sides, strict=True)):
        if side in by_side:
            by_side[side].setdefault(pill, []).append(index)
    pairs = [
        (front, back)
        for pill, fronts in by_side["front"].items()
        for front, back in zip(fronts, by_side["back"].get(pill, []), strict=False)
    ]
    if not pairs:
        return None
    return Probes(embeddings[np.array(pairs)], [pills[front] for front, _ in pairs])


def first_references(references: Sequence[Reference], per_side: int) -> NDArray[np.intp]:
    """Indices of the first `per_side` references of each pill and side, in gallery order.

    >>> refs = [Reference("a", "front", "1"), Reference("a", "front", "2"), Reference("b", "", "3")]
    >>> first_references(refs, 1).tolist()
    [0, 2]
    """
    counts: dict[tuple[str, str], int] = {}
    kept = []
    for index, reference in enumerate(references):
        key = (reference.pill, reference.side)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= per_side:
            kept.append(index)
    return np.array(kept, np.intp)


def search(
    references: NDArray[np.float32],
    reference_pills: Sequence[str],
    probes: Probes,
    background: Background | None = None,
    sides: Sequence[str] | None = None,
) -> Outcomes:
    """Compare every probe with the looks of every pill, from all references (R, D).

    A pill's score is that of its best look (`core.looks`) less the share of `background` (None
    takes nothing off), averaged over the views of the probe. A probe of a pill that is not enrolled
    is a stranger's. `sides` (R,): those of the references; None names none.
    """
    names = sorted(set(reference_pills))
    enrolled = _by_pill(references, reference_pills)
    looks = _by_pill(*all_looks(references, reference_pills, sides or [""] * len(references)))
    column_of = {name: column for column, name in enumerate(names)}
    own = np.array([column_of.get(pill, -1) for pill in probes.pills], np.intp)
    parts = [
        _search_chunk(enrolled, looks, probes.embeddings[start : start + CHUNK], own_part)
        for start, own_part in _chunks(own)
    ]
    best, first, second, runner_up, rank, precision = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    nearest = [names[column] for column in first]
    around = background or no_background(references.shape[1])
    views = np.moveaxis(probes.embeddings, 1, 0)
    taken = np.mean([around.share(view, nearest) for view in views], axis=0)
    return Outcomes(
        truth=list(probes.pills),
        best=best - taken,
        best_pill=nearest,
        second=second - taken if len(names) > 1 else second,
        second_pill=[names[column] if len(names) > 1 else "" for column in runner_up],
        rank=rank,
        average_precision=precision,
    )


def _chunks(own: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
    return [(start, own[start : start + CHUNK]) for start in range(0, len(own), CHUNK)]


def _by_pill(
    embeddings: NDArray[np.float32], pills: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Embeddings (R, D) in order of their pills, and where each of these begins, and the end."""
    names, pill_of = np.unique(np.asarray(pills, dtype=object), return_inverse=True)
    order = np.argsort(pill_of, kind="stable")
    return embeddings[order], np.searchsorted(pill_of[order], np.arange(len(names) + 1))


def _search_chunk(
    enrolled: tuple[NDArray[np.float32], NDArray[np.intp]],
    looks: tuple[NDArray[np.float32], NDArray[np.intp]],
    views: NDArray[np.float32],
    own: NDArray[np.intp],
) -> tuple[NDArray[Any], ...]:
    n, n_views = views.shape[:2]
    rows = np.arange(n)
    per_view = np.maximum.reduceat(
        views.reshape(n * n_views, -1) @ looks[0].T, looks[1][:-1], axis=1
    )
    scores = per_view.reshape(n, n_views, -1).mean(axis=1)
    mated = own >= 0
    rank = np.where(mated, (scores >= scores[rows, own][:, None]).sum(axis=1), 0)
    precision = np.zeros(n)
    if n_views == 1:
        references, starts = enrolled
        similarities = views[:, 0] @ references.T
        for row in np.flatnonzero(mated):
            relevant = slice(starts[own[row]], starts[own[row] + 1])
            precision[row] = _average_precision(similarities[row], relevant)
    first = scores.argmax(axis=1)
    best = scores[rows, first].astype(np.float64)
    if scores.shape[1] == 1:
        return best, first, np.full(n, -1.0), first, rank, precision
    scores[rows, first] = -np.inf
    runner_up = scores.argmax(axis=1)
    return best, first, scores[rows, runner_up].astype(np.float64), runner_up, rank, precision


def _average_precision(similarities: NDArray[np.float32], relevant: slice) -> float:
    """`metrics.average_precision` without sorting all references."""
    own = np.sort(similarities[relevant])[::-1]
    ranks = (similarities >= own[:, None]).sum(axis=1)
    return float(np.mean(np.searchsorted(-own, -own, side="right") / ranks))


@dataclass(frozen=True)
class Drawn:
    """Outcomes and the draws of their pills: made once, used by every measure."""

    outcomes: Outcomes
    draws: Resamples


def drawn(outcomes: Outcomes, *, seed: int) -> Drawn:
    """Attach bootstrap draws to outcomes."""
    return Drawn(outcomes, resample_pills(outcomes.truth, seed=seed))


def measure(mated: Drawn, strangers: Drawn | None, *, with_map: bool = True) -> Measures:
    """Recall, mAP, AUROC and FNIR at the FPIRs of `FPIRS`, with intervals.

    Every pill of `mated` must be enrolled: a missing reference would look like a hit.
    Thresholds for AUROC and FNIR are set on these very strangers, as is usual for a curve:
    compare systems with these numbers, do not promise them. Without strangers they are left out;
    where the strangers are too few for an FPIR, the pills needed stand in place of the interval.
    """
    found, draws = mated.outcomes, mated.draws
    assert (found.rank > 0).all(), "a mated probe without references"
    report: Measures = {"n_probes": len(found), "n_pills": draws.n_pills}
    for k in (1, 5):
        report[f"recall_at_{k}"] = share(found.rank <= k, draws)
    if with_map:
        report["map"] = share(found.average_precision, draws)
    if strangers is None:
        return report
    foreign = strangers.outcomes.best
    report["auroc"] = _measure(
        auroc(found.best, foreign), auroc_interval(found.best, draws, foreign, strangers.draws)
    )
    for fpir in FPIRS:
        fnir, _, _ = fnir_at_fpir(found.best, found.rank == 1, foreign, fpir)
        key = f"fnir_at_fpir_{fpir * 100:g}pct"
        needed = pills_needed(fpir)
        if strangers.draws.n_pills < needed:
            report[key] = {"value": rounded(fnir), "needs_stranger_pills": needed}
            continue
        interval = fnir_interval(found.best, found.rank == 1, draws, foreign, strangers.draws, fpir)
        report[key] = _measure(fnir, interval)
    return report


def measure_decisions(mated: Drawn, decisions: Sequence[Decision], confidence: float) -> Measures:
    """What the device would have said to enrolled pills, as shares; each pill has one vote.

    fnir: not named rightly (unknown, ambiguous or misnamed). misnamed: given another pill's name;
    misnamed_upper: its upper bound. ambiguous: no name because two pills are too close to call.
    """
    truth = mated.outcomes.truth
    wrong = misnamed(truth, decisions)
    return {
        "fnir": pill_share(~named_rightly(truth, decisions), mated),
        "misnamed": pill_share(wrong, mated),
        "misnamed_upper": rounded_up(upper_bound(wrong, truth, confidence)),
        "ambiguous": pill_share([d.kind == "ambiguous" for d in decisions], mated),
    }


def measure_strangers(
    strangers: Drawn, decisions: Sequence[Decision], confidence: float
) -> Measures:
    """What the device would have said to pills that are not enrolled; each pill has one vote.

    fpir: above the threshold (known or ambiguous); fpir_upper: its upper bound. named: given a
    name.
    """
    truth = strangers.outcomes.truth
    let_in = accepted(decisions)
    return {
        "n_probes": len(truth),
        "n_pills": strangers.draws.n_pills,
        "fpir": pill_share(let_in, strangers),
        "fpir_upper": rounded_up(upper_bound(let_in, truth, confidence)),
        "named": pill_share([d.kind == "known" for d in decisions], strangers),
    }


def named_rightly(truth: Sequence[str], decisions: Sequence[Decision]) -> NDArray[np.bool_]:
    """Which probes (N,) get the name of the pill they show."""
    pairs = zip(truth, decisions, strict=True)
    return np.array([d.kind == "known" and d.pill == pill for pill, d in pairs])


def misnamed(truth: Sequence[str], decisions: Sequence[Decision]) -> NDArray[np.bool_]:
    """Which probes (N,) get the name of another pill."""
    pairs = zip(truth, decisions, strict=True)
    return np.array([d.kind == "known" and d.pill != pill for pill, d in pairs])


def accepted(decisions: Sequence[Decision]) -> NDArray[np.bool_]:
    """Which probes (N,) pass the threshold, with a name or too close to call."""
    return np.array([d.kind != "unknown" for d in decisions])


def det_curve(
    mated: Sequence[Outcomes], strangers: Outcomes, n_points: int = 200
) -> list[tuple[float, ...]]:
    """(FPIR, FNIR of each mated cohort) just above stranger scores, from strict to lax.

    Every stranger's score is a step; of more than `n_points`, those evenly spaced on a log scale
    of FPIR are kept.
    """
    falling = np.sort(strangers.best)[::-1]
    n = len(falling)
    steps = np.arange(n)
    if n > n_points:
        steps = np.unique(np.r_[0, np.geomspace(1, n - 1, n_points - 1).round().astype(int)])
    columns = []
    for found in mated:
        right = np.sort(found.best[found.rank == 1])
        passing = len(right) - np.searchsorted(right, falling[steps], side="right")
        columns.append(1 - passing / len(found))
    return [
        (rounded(step / n), *(rounded(column[i]) for column in columns))
        for i, step in enumerate(steps)
    ]


def share(values: Any, draws: Resamples) -> Measures:
    """The mean over photos of values in 0..1 as a measure of metrics.json."""
    return _measure(float(np.mean(values)), mean_interval(values, draws))


def pill_share(values: Any, of: Drawn) -> Measures:
    """The mean over pills of their photos' means: what aims, promises and bounds speak of."""
    return share(pill_means(values, of.outcomes.truth), of.draws.per_pill())


def rounded(value: float | np.floating[Any]) -> float:
    """Five digits: what is written into metrics.json."""
    return round(float(value), 5)


def rounded_up(value: float) -> float:
    """The same for an upper bound: never below it."""
    return math.ceil(value * 1e5 - 1e-6) / 1e5


def _measure(value: float, interval: Interval | None) -> Measures:
    if interval is None:
        return {"value": rounded(value)}
    return {"value": rounded(value), "low": rounded(interval[0]), "high": rounded(interval[1])}
