"""Metrics -> Markdown that a person reads before they trust the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilltrack.pipeline.params import EvaluateParams


def markdown_report(metrics: dict[str, Any], settings: EvaluateParams) -> str:
    """The evaluation as Markdown: headline, then each kind of capture apart."""
    calibration, gallery = metrics["calibration"], metrics["gallery"]
    lines = [
        "# Evaluation of the shipped int8 model",
        "",
        f"Gallery: {gallery['references']} references of {gallery['pills']} pills. Threshold "
        f"{calibration['threshold']:.4f}, set for FPIR {settings.fpir:.1%} on "
        f"{calibration['n_stranger_probes']} photos of {calibration['n_stranger_pills']} "
        f"validation strangers ({settings.captures} captures). All numbers below: test pills.",
        "Intervals: 95 %, bootstrap over pills.",
    ]
    for kind, measured in metrics["test"].items():
        lines += ["", f"## {kind.capitalize()} captures", ""]
        lines += _table(
            ["pills", "photos (pills)", "recall@1", "recall@5"],
            [_mated_row(name, measured[name]) for name in ("seen", "new") if name in measured],
        )
        lines += ["", "recall@1 by references per side:", ""]
        lines += _by_references(measured)
        if "decisions" in measured:
            lines += ["", *_open_set(measured)]
    return "\n".join(lines) + "\n"


def _mated_row(name: str, measured: dict[str, Any]) -> list[str]:
    low, high = measured["recall_at_1_low"], measured["recall_at_1_high"]
    return [
        name,
        f"{measured['n_probes']} ({measured['n_pills']})",
        f"{measured['recall_at_1']:.1%} ({low:.1%} to {high:.1%})",
        f"{measured['recall_at_5']:.1%}",
    ]


def _by_references(measured: dict[str, Any]) -> list[str]:
    names = [name for name in ("seen", "new") if name in measured]
    counts = list(measured[names[0]]["by_references"])
    rows = [
        [name, *(f"{measured[name]['by_references'][c]['recall_at_1']:.1%}" for c in counts)]
        for name in names
    ]
    return _table(["pills", *counts], rows)


def _open_set(measured: dict[str, Any]) -> list[str]:
    open_set, decisions = measured["open_set"], measured["decisions"]
    return _table(
        ["open set", "value"],
        [
            [
                "strangers",
                f"{open_set['n_strangers']} photos of {open_set['n_stranger_pills']} pills",
            ],
            ["AUROC known against stranger", f"{open_set['auroc']:.3f}"],
            ["FNIR at FPIR 5 %", f"{open_set['fnir_at_fpir_5pct']:.1%}"],
            ["FNIR at FPIR 1 %", f"{open_set['fnir_at_fpir_1pct']:.1%}"],
            ["strangers above the threshold (FPIR)", f"{decisions['fpir']:.1%}"],
            ["strangers given a name", f"{decisions['stranger_named']:.1%}"],
            ["enrolled pills not named rightly (FNIR)", f"{decisions['fnir']:.1%}"],
            ["enrolled pills given another name", f"{decisions['misnamed']:.1%}"],
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
