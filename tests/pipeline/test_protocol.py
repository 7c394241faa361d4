"""The open-set protocol on embeddings placed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.decide import Decision
from pilltrack.pipeline.protocol import (
    Probes,
    det_curve,
    measure_decisions,
    measure_mated,
    measure_open_set,
    top_scores,
)


def _at(*degrees: float) -> NDArray[np.float32]:
    """Unit vectors in the plane at these angles."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


REFERENCES, PILLS = _at(0, 10, 90), ["a", "a", "b"]


def test_the_nearest_reference_names_the_probe() -> None:
    # 12 degrees: next to a's second reference; 50: 40 to both a's second and b, a tie counts
    # against us; 80: next to b, but it shows a.
    probes = Probes(_at(12, 50, 80), ["a", "b", "a"])
    best, ranks = top_scores(REFERENCES, PILLS, probes)
    assert best == pytest.approx(np.cos(np.radians([2, 40, 10])), abs=1e-6)
    assert ranks.tolist()[0] == 1
    assert ranks.tolist()[2] == 2
    report = measure_mated(REFERENCES, PILLS, Probes(_at(12, 80), ["a", "a"]), seed=0)
    assert report["recall_at_1"] == 0.5
    assert report["recall_at_5"] == 1.0
    assert (report["n_probes"], report["n_pills"]) == (2, 1)


def test_strangers_far_from_all_references_are_told_apart() -> None:
    mated = Probes(_at(1, 91), ["a", "b"])
    strangers = Probes(_at(180, 200, 220, 240), ["x", "x", "y", "z"])
    report = measure_open_set(REFERENCES, PILLS, mated, strangers)
    assert report["auroc"] == 1.0
    assert report["fnir_at_fpir_5pct"] == 0.0
    assert (report["n_strangers"], report["n_stranger_pills"]) == (4, 3)


def test_strangers_on_top_of_references_make_every_mated_probe_a_miss() -> None:
    mated = Probes(_at(5, 85), ["a", "b"])
    strangers = Probes(_at(0, 90), ["x", "y"])
    report = measure_open_set(REFERENCES, PILLS, mated, strangers)
    assert report["auroc"] == 0.0
    assert report["fnir_at_fpir_5pct"] == 1.0


def test_decisions_are_counted_by_their_harm() -> None:
    known_a = Decision("known", "a", 0.9, ())
    known_b = Decision("known", "b", 0.9, ())
    unknown = Decision("unknown", None, 0.1, ())
    ambiguous = Decision("ambiguous", None, 0.9, ())
    mated = [("a", known_a), ("a", known_b), ("a", unknown), ("a", ambiguous)]
    report = measure_decisions(mated, [known_a, ambiguous, unknown, unknown, unknown])
    assert report == {"fnir": 0.75, "misnamed": 0.25, "fpir": 0.4, "stranger_named": 0.2}


def test_det_curve_goes_from_strict_to_lax() -> None:
    curve = det_curve(np.array([0.9, 0.7, 0.8]), np.array([1, 1, 2]), np.array([0.75, 0.2]))
    # Above 0.75: only the 0.9 is named (0.8 has the wrong pill first). Above 0.2: 0.9 and 0.7.
    assert np.array(curve) == pytest.approx(np.array([[0.0, 2 / 3], [0.5, 1 / 3]]))
