"""How a bundle does on photos of one's own, over several draws of references and strangers.

    for n in 1 2 3 4 5 6; do
        pilltrack crop-boxes phone_pills.zip --out phone$n --references 5 --strangers 5 --seed $n
    done
    python benchmarks/folder_draws.py src/pilltrack/starter/bundle phone[1-6] \\
        --references 5 --rule-for 12 25 41

A draw is a folder with `gallery`, `probes` and `strangers`, each measured as by
`pilltrack evaluate-folder`. One draw of few pills says little: another moves recall by ten points.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pilltrack.cli_parts import positive
from pilltrack.pipeline.evaluate_folder import evaluate_folder

FIGURES = ("recall_at_1", "auroc", "fnir_at_fpir_5pct", "fnir_at_fpir_1pct")
DECIDED = ("fnir", "misnamed", "fpir")
Report = dict[str, Any]


def main() -> None:
    """Print two Markdown tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("draws", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--references", type=positive, metavar="K", help="of each pill (all)")
    parser.add_argument(
        "--rule-for",
        type=positive,
        nargs="+",
        default=[None],
        metavar="N",
        help="decide by the rule for N pills (those of the gallery); more pills err more often",
    )
    parser.add_argument("--json", action="store_true", help="all reports of each rule")
    arguments = parser.parse_args()
    reports = [
        [
            evaluate_folder(
                arguments.bundle,
                *(draw / folder for folder in ("gallery", "probes", "strangers")),
                references=arguments.references,
                rule_for=n_pills,
            )
            for draw in arguments.draws
        ]
        for n_pills in arguments.rule_for
    ]
    if arguments.json:
        print(json.dumps(reports))
        return
    print(scores_table([draw.name for draw in arguments.draws], reports[0]))
    print()
    print(rules_table(reports))


def scores_table(names: list[str], reports: list[Report]) -> str:
    """FIGURES of each draw, and their means."""
    found = np.array([_values(report, FIGURES) for report in reports])
    lines = [
        "| draw | recall@1 | AUROC | FNIR at FPIR 5 % | at 1 % |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in zip([*names, "mean"], [*found, found.mean(axis=0)], strict=True):
        recall, area, five, one = row
        lines.append(f"| {name} | {recall:.1%} | {area:.3f} | {five:.1%} | {one:.1%} |")
    return "\n".join(lines)


def rules_table(reports: list[list[Report]]) -> str:
    """DECIDED by each rule: means over the draws, and the worst draw."""
    lines = [
        "| rule for | threshold | not named rightly | wrong name | strangers accepted |",
        "|---:|---:|---:|---:|---:|",
    ]
    for of_rule in reports:
        if len({report["rule_for_pills"] for report in of_rule}) > 1:
            sys.exit("galleries of different sizes have different rules: name one with --rule-for")
        found = np.array([_values(report, DECIDED) for report in of_rule])
        cells = [
            f"{mean:.1%} ({worst:.1%})"
            for mean, worst in zip(found.mean(axis=0), found.max(axis=0), strict=True)
        ]
        n_pills, threshold = of_rule[0]["rule_for_pills"], of_rule[0]["threshold"]
        lines.append(f"| {n_pills} | {threshold:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(report: Report, names: tuple[str, ...]) -> list[float]:
    return [report[name]["value"] for name in names]


if __name__ == "__main__":
    main()
