"""The gate: no bundle unless every figure on test pills is there and within its limit.

Two limits are promises, which an upper confidence bound must not exceed; the others are limits
on what was measured. All of them stand in params.yaml, section `evaluate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pilltrack.core.errors import GateFailed
from pilltrack.pipeline.params import EvaluateParams
from pilltrack.pipeline.results import Metrics, Test
from pilltrack.pipeline.words import at_most, percent, told_apart


def gate(metrics: Metrics, settings: EvaluateParams) -> None:
    """Raise GateFailed naming every broken limit."""
    broken = broken_limits(metrics, settings)
    if broken:
        raise GateFailed(
            f"evaluate ({settings.captures} captures, test pills)",
            found="; ".join(broken),
            expected="every measure within the limits and promises of params.yaml",
            remedy="Look at the pictures: `pilltrack report`. Train longer, add photos, or "
            "promise less.",
        )


def broken_limits(metrics: Metrics, settings: EvaluateParams) -> list[str]:
    """Every measure that is outside its limit or promise, as a sentence; empty when none is.

    A measure that is absent, or not a number, breaks its limit.
    """
    test = metrics.test.get(settings.captures, Test())
    reasons = []
    for checked in _checked(test, settings):
        value, limit = checked.value, getattr(settings, checked.key)
        if value is None:
            reason = f"{checked.figure}: not measured in {settings.captures} captures"
        elif math.isnan(value):
            reason = f"{checked.figure}: not a number in {settings.captures} captures"
        elif value >= limit if checked.key.startswith("min_") else value <= limit:
            continue
        else:
            found, allowed = _in_percent(checked.key, value, limit)
            reason = checked.sentence.format(found=found, limit=allowed)
        reasons.append(f"{reason} (evaluate.{checked.key})")
    return reasons


@dataclass(frozen=True)
class _Checked:
    """A figure, the key of its limit, and what is said when it is outside."""

    key: str
    value: float | None
    figure: str
    sentence: str


def _checked(test: Test, settings: EvaluateParams) -> list[_Checked]:
    sure = f"({100 * settings.confidence:g} % confidence)"
    seen, new, strangers, parity = test.seen, test.new, test.strangers, test.parity
    return [
        _Checked(
            "promised_fpir",
            strangers.fpir_upper if strangers else None,
            "share of strangers accepted",
            f"up to {{found}} of strangers may be accepted {sure}; promised at most {{limit}}",
        ),
        _Checked(
            "promised_misnamed",
            new.decisions.misnamed_upper if new else None,
            "share of new pills given a wrong name",
            f"up to {{found}} of new pills may be given a wrong name {sure}; "
            "promised at most {limit}",
        ),
        _Checked(
            "min_recall_at_1_seen",
            seen.recall_at_1.value if seen else None,
            "recall@1 of seen pills",
            "recall@1 of seen pills is {found}; at least {limit} required",
        ),
        _Checked(
            "min_recall_at_1_new",
            new.recall_at_1.value if new else None,
            "recall@1 of new pills",
            "recall@1 of new pills is {found}; at least {limit} required",
        ),
        _Checked(
            "max_fnir",
            new.decisions.fnir.value if new else None,
            "share of new pills named rightly",
            "names only {found} of new pills rightly; at least {limit} required",
        ),
        _Checked(
            "max_flips",
            parity.flips if parity else None,
            "share of decisions that int8 changes",
            "int8 changes {found} of the decisions; at most {limit} allowed",
        ),
    ]


def _in_percent(key: str, value: float, limit: float) -> tuple[str, str]:
    if key.startswith("promised_"):
        return f"{at_most(value, 100)} %", percent(limit)
    if key == "max_fnir":  # FNIR is limited; what a person asks is how many are named
        return told_apart(1 - value, 1 - limit)
    return told_apart(value, limit)
