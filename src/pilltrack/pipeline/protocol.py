"""The open-set protocol: one gallery, mated probes, strangers -> the errors that matter.

Both the `evaluate` stage and `pilltrack evaluate-folder` measure through this file, on
embeddings made by the exported model, so the same photos give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilltrack.core.decide import Decision
from pilltrack.core.gallery import Reference
from pilltrack.core.metrics import (
    auroc,
    best_per_pill,
    bootstrap_interval,
    fnir_at_fpir,
    true_ranks,
)

FPIRS = (0.05, 0.01)
CHUNK = 1000  # probes compared with the whole gallery at a time


@dataclass(frozen=True)
class Probes:
    """Embedded probes and the pill that each one shows."""

    embeddings: NDArray[np.float32]  # (N, D), L2-normalised
    pills: Sequence[str]  # (N,)

    def __len__(self) -> int:
        return len(self.pills)


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


def top_scores(
    references: NDArray[np.float32], reference_pills: Sequence[str], probes: Probes
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Best score (N,) and rank of the true pill (N,) of mated probes."""
    best, ranks = [], []
    for start in range(0, len(probes), CHUNK):
        part = slice(start, start + CHUNK)
        scores, pills = best_per_pill(probes.embeddings[part] @ references.T, reference_pills)
        best.append(scores.max(axis=1))
        ranks.append(true_ranks(scores, pills, probes.pills[part]))
    return np.concatenate(best), np.concatenate(ranks)


def measure_mated(
    references: NDArray[np.float32], reference_pills: Sequence[str], probes: Probes, *, seed: int
) -> dict[str, Any]:
    """recall@1 and recall@5 of mated probes, with a 95 % interval by bootstrap over pills."""
    _, ranks = top_scores(references, reference_pills, probes)
    low, high = bootstrap_interval(ranks <= 1, probes.pills, seed=seed)
    return {
        "n_probes": len(probes),
        "n_pills": len(set(probes.pills)),
        "recall_at_1": _rounded(np.mean(ranks <= 1)),
        "recall_at_1_low": _rounded(low),
        "recall_at_1_high": _rounded(high),
        "recall_at_5": _rounded(np.mean(ranks <= 5)),
    }


def measure_open_set(
    references: NDArray[np.float32],
    reference_pills: Sequence[str],
    mated: Probes,
    strangers: Probes,
) -> dict[str, Any]:
    """AUROC known against stranger, and FNIR at the FPIRs of `FPIRS`.

    Thresholds are set on these very strangers, as is usual for a curve: compare systems with
    these numbers, do not promise them.
    """
    best, ranks = top_scores(references, reference_pills, mated)
    foreign = (strangers.embeddings @ references.T).max(axis=1)
    report: dict[str, Any] = {
        "n_strangers": len(strangers),
        "n_stranger_pills": len(set(strangers.pills)),
        "auroc": _rounded(auroc(best, foreign)),
    }
    for fpir in FPIRS:
        fnir, _, actual = fnir_at_fpir(best, ranks == 1, foreign, fpir)
        report[f"fnir_at_fpir_{fpir * 100:g}pct"] = _rounded(fnir)
        report[f"actual_fpir_{fpir * 100:g}pct"] = _rounded(actual)
    return report


def measure_decisions(
    mated: Sequence[tuple[str, Decision]], strangers: Sequence[Decision]
) -> dict[str, float]:
    """What the calibrated device would have said, as shares.

    fnir: mated probes not named rightly (unknown, ambiguous or misnamed). misnamed: mated probes
    given another pill's name. fpir: strangers above the threshold (known or ambiguous).
    stranger_named: strangers given a name.
    """
    right = [d.kind == "known" and d.pill == truth for truth, d in mated]
    misnamed = [d.kind == "known" and d.pill != truth for truth, d in mated]
    return {
        "fnir": _rounded(1.0 - float(np.mean(right))),
        "misnamed": _rounded(float(np.mean(misnamed))),
        "fpir": _rounded(float(np.mean([d.kind != "unknown" for d in strangers]))),
        "stranger_named": _rounded(float(np.mean([d.kind == "known" for d in strangers]))),
    }


def det_curve(
    best: NDArray[np.float64], ranks: NDArray[np.intp], stranger_scores: NDArray[np.floating[Any]]
) -> list[tuple[float, float]]:
    """(FPIR, FNIR) just above every stranger score, from strict to lax.

    `best` and `ranks` as from `top_scores`; a probe is missed when its true pill is not first or
    its score does not pass the threshold.

    >>> det_curve(np.array([0.9, 0.4]), np.array([1, 1]), np.array([0.5, 0.1]))
    [(0.0, 0.5), (0.5, 0.0)]
    """
    strangers = np.sort(stranger_scores)[::-1]
    return [
        (n_accepted / len(strangers), float(np.mean((ranks > 1) | (best <= threshold))))
        for n_accepted, threshold in enumerate(strangers)
    ]


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 5)
