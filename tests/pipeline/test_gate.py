"""The gate holds only when every figure is there and within its limit."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from pilltrack.core.errors import GateFailed
from pilltrack.pipeline.gate import broken_limits, gate
from pilltrack.pipeline.params import load_params
from pilltrack.pipeline.results import Metrics
from tests.imports import ROOT

SETTINGS = load_params(ROOT / "params.yaml").evaluate.model_copy(
    update={
        "captures": "real",
        "confidence": 0.95,
        "promised_fpir": 0.05,
        "promised_misnamed": 0.04,
        "min_recall_at_1_seen": 0.9,
        "min_recall_at_1_new": 0.8,
        "max_fnir": 0.3,
        "max_flips": 0.005,
    }
)


def mated(recall_at_1: float, n_pills: int) -> dict[str, Any]:
    return {
        "n_probes": 100,
        "n_pills": n_pills,
        "recall_at_1": {"value": recall_at_1},
        "recall_at_5": {"value": 1.0},
        "decisions": {
            "fnir": {"value": 0.3},
            "misnamed": {"value": 0.01},
            "misnamed_upper": 0.04,
            "ambiguous": {"value": 0.0},
        },
        "by_references": {},
    }


GOOD: dict[str, Any] = {
    "origin": {"data": "ab" * 32, "settings": "cd" * 32},
    "gallery": {"pills": 30, "references": 60, "background": 0},
    "calibration": {
        "threshold": 0.9,
        "margin": 0.01,
        "n_stranger_probes": 10,
        "n_stranger_pills": 10,
        "n_mated_probes": 10,
        "n_mated_pills": 10,
    },
    "model": {"int8_bytes": 1000},
    "test": {
        "real": {
            "seen": mated(0.9, 20),
            "new": mated(0.8, 10),
            "strangers": {
                "n_probes": 100,
                "n_pills": 60,
                "fpir": {"value": 0.01},
                "fpir_upper": 0.05,
                "named": {"value": 0.01},
            },
            "parity": {
                "n_probes": 300,
                "n_accepted": 200,
                "flips": 0.005,
                "flips_of_accepted": 0.0075,
                "fpir_int8": 0.01,
                "fpir_float": 0.01,
                "fnir_int8": 0.3,
                "fnir_float": 0.3,
            },
        }
    },
}
FIGURES = {  # key of the limit -> where the figure stands, what is said 0.1 points outside
    "promised_fpir": (
        ("strangers", "fpir_upper"),
        "up to 5.1 % of strangers may be accepted (95 % confidence); promised at most 5.0 %",
    ),
    "promised_misnamed": (
        ("new", "decisions", "misnamed_upper"),
        "up to 4.1 % of new pills may be given a wrong name (95 % confidence); "
        "promised at most 4.0 %",
    ),
    "min_recall_at_1_seen": (
        ("seen", "recall_at_1", "value"),
        "recall@1 of seen pills is 89.9 %; at least 90.0 % required",
    ),
    "min_recall_at_1_new": (
        ("new", "recall_at_1", "value"),
        "recall@1 of new pills is 79.9 %; at least 80.0 % required",
    ),
    "max_fnir": (
        ("new", "decisions", "fnir", "value"),
        "names only 69.9 % of new pills rightly; at least 70.0 % required",
    ),
    "max_flips": (
        ("parity", "flips"),
        "int8 changes 0.6 % of the decisions; at most 0.5 % allowed",
    ),
}


def metrics(place: tuple[str, ...] = (), by: float = 0.0) -> Metrics:
    """`GOOD`, with the figure at `place` changed."""
    changed = copy.deepcopy(GOOD)
    if place:
        inner = changed["test"]["real"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] += by
    return Metrics.model_validate(changed)


def without_validation(place: tuple[str, ...], value: float) -> Metrics:
    """As `Metrics` never lets it in: the gate does not lean on that."""
    found = metrics()
    parts: list[Any] = [found.test["real"]]
    for key in place[:-1]:
        parts.append(getattr(parts[-1], key))
    new: Any = value
    for part, key in zip(reversed(parts), reversed(place), strict=True):
        new = part.model_copy(update={key: new})
    return found.model_copy(update={"test": {"real": new}})


def test_figures_at_their_limits_pass() -> None:
    assert broken_limits(metrics(), SETTINGS) == []
    gate(metrics(), SETTINGS)


@pytest.mark.parametrize("key", FIGURES)
def test_each_figure_outside_its_limit_breaks_the_gate_alone_and_says_so(key: str) -> None:
    place, sentence = FIGURES[key]
    by = -0.001 if key.startswith("min_") else 0.001
    assert broken_limits(metrics(place, by), SETTINGS) == [f"{sentence} (evaluate.{key})"]


@pytest.mark.parametrize("key", FIGURES)
def test_the_smallest_excess_breaks_the_gate_and_can_be_read(key: str) -> None:
    by = -1e-5 if key.startswith("min_") else 1e-5
    (reason,) = broken_limits(metrics(FIGURES[key][0], by), SETTINGS)
    shares = re.findall(r"([\d.]+) %(?! confidence)", reason)
    assert len(shares) == 2
    assert shares[0] != shares[1], reason


@pytest.mark.parametrize("key", FIGURES)
def test_a_figure_that_is_no_number_breaks_the_gate(key: str) -> None:
    with pytest.raises(GateFailed, match=rf"not a number.*\(evaluate\.{key}\)"):
        gate(without_validation(FIGURES[key][0], math.nan), SETTINGS)


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("strangers", ["promised_fpir"]),
        ("new", ["promised_misnamed", "min_recall_at_1_new", "max_fnir"]),
        ("seen", ["min_recall_at_1_seen"]),
        ("parity", ["max_flips"]),
    ],
)
def test_a_part_that_was_not_measured_breaks_its_limits(part: str, keys: list[str]) -> None:
    changed = copy.deepcopy(GOOD)
    del changed["test"]["real"][part]
    broken = broken_limits(Metrics.model_validate(changed), SETTINGS)
    assert [reason.rpartition("(evaluate.")[2] for reason in broken] == [f"{k})" for k in keys]
    assert all("not measured in real captures" in reason for reason in broken)


def test_figures_of_other_captures_do_not_help() -> None:
    other = Metrics.model_validate({**GOOD, "test": {"rendered": GOOD["test"]["real"]}})
    assert len(broken_limits(other, SETTINGS)) == len(FIGURES)
    with pytest.raises(GateFailed, match=r"strangers accepted: not measured in real captures"):
        gate(other, SETTINGS)


def test_all_broken_limits_are_named_at_once() -> None:
    changed = copy.deepcopy(GOOD)
    changed["test"]["real"]["strangers"]["fpir_upper"] = 0.2
    changed["test"]["real"]["parity"]["flips"] = 0.1
    with pytest.raises(GateFailed, match=r"20\.0 % of strangers.*int8 changes 10\.0 %"):
        gate(Metrics.model_validate(changed), SETTINGS)
