"""The gate holds only when every figure is there and within its limit."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from pilltrack.core.errors import GateFailed
from pilltrack.pipeline.evaluate import broken_limits, gate
from pilltrack.pipeline.params import load_params
from tests.imports import ROOT

SETTINGS = load_params(ROOT / "params.yaml").evaluate.model_copy(
    update={
        "captures": "real",
        "promised_fpir": 0.05,
        "promised_misnamed": 0.04,
        "min_recall_at_1_seen": 0.9,
        "min_recall_at_1_new": 0.8,
        "max_fnir": 0.3,
        "max_flips": 0.005,
    }
)
GOOD: dict[str, Any] = {
    "test": {
        "real": {
            "seen": {"recall_at_1": {"value": 0.9}},
            "new": {
                "recall_at_1": {"value": 0.8},
                "decisions": {"misnamed_upper": 0.04, "fnir": {"value": 0.3}},
            },
            "strangers": {"fpir_upper": 0.05},
            "parity": {"flips": 0.005},
        }
    }
}
PLACES = {
    "strangers accepted": ("strangers", "fpir_upper"),
    "enrolled pills misnamed": ("new", "decisions", "misnamed_upper"),
    "recall@1 of seen pills": ("seen", "recall_at_1", "value"),
    "recall@1 of new pills": ("new", "recall_at_1", "value"),
    "FNIR of new pills": ("new", "decisions", "fnir", "value"),
    "decisions flipped by int8": ("parity", "flips"),
}


def _with(place: tuple[str, ...], value: float) -> dict[str, Any]:
    metrics = copy.deepcopy(GOOD)
    inner = metrics["test"]["real"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return metrics


def test_figures_at_their_limits_pass() -> None:
    assert broken_limits(GOOD, SETTINGS) == []
    gate(GOOD, SETTINGS)


@pytest.mark.parametrize("name", PLACES)
def test_each_figure_just_outside_its_limit_breaks_the_gate_alone(name: str) -> None:
    place = PLACES[name]
    worse = -1e-4 if "recall" in name else 1e-4
    inner: Any = GOOD["test"]["real"]
    for key in place:
        inner = inner[key]
    (broken,) = broken_limits(_with(place, inner + worse), SETTINGS)
    assert broken.startswith(name)


@pytest.mark.parametrize("name", PLACES)
def test_a_figure_that_is_no_number_breaks_the_gate(name: str) -> None:
    with pytest.raises(GateFailed, match=name):
        gate(_with(PLACES[name], math.nan), SETTINGS)


def test_all_broken_limits_are_named_at_once() -> None:
    metrics = copy.deepcopy(GOOD)
    metrics["test"]["real"]["strangers"]["fpir_upper"] = 0.2
    metrics["test"]["real"]["parity"]["flips"] = 0.1
    with pytest.raises(GateFailed, match=r"strangers accepted.*0\.2000.*flipped.*0\.1000"):
        gate(metrics, SETTINGS)


def test_figures_of_other_captures_do_not_help() -> None:
    with pytest.raises(KeyError):
        broken_limits({"test": {"rendered": GOOD["test"]["real"]}}, SETTINGS)
