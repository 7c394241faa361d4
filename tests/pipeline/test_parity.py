"""The shipped file against the float student, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pilltrack.core.decide import Decision
from pilltrack.pipeline.evaluate import Trial, flipped, parity
from pilltrack.pipeline.protocol import Outcomes, drawn
from pilltrack.pipeline.shots import Shot
from pilltrack.pipeline.table import ImageRow
from pilltrack.pipeline.trial import Tried

UNKNOWN, AMBIGUOUS = Decision("unknown", None, 0.1, ()), Decision("ambiguous", None, 0.9, ())


def known(pill: str) -> Decision:
    return Decision("known", pill, 0.9, ())


def tried(pills: str, decisions: list[Decision], ranks: str = "") -> Tried:
    n = len(pills)
    rank = np.array(list(ranks or "1" * n), np.intp)
    rows = [
        ImageRow(f"{n}", pill, "", "s", "real", "g", "test", "probe")
        for n, pill in enumerate(pills)
    ]
    zeros = np.zeros(n)
    outcomes = Outcomes(list(pills), zeros, list(pills), zeros, list(pills), rank, zeros)
    return Tried(
        [Shot(row, None) for row in rows], np.zeros((n, 2), np.float32), drawn(outcomes, seed=0),
        decisions,
    )  # fmt: skip


SHIPPED: Trial = {
    "seen": tried("aab", [known("a"), known("b"), UNKNOWN], ranks="123"),
    "new": tried("cc", [known("c"), AMBIGUOUS]),
    "strangers": tried("xyzw", [UNKNOWN, AMBIGUOUS, known("a"), UNKNOWN]),
}
STUDENT: Trial = {
    "seen": tried("aab", [known("a"), known("a"), UNKNOWN], ranks="113"),  # another name
    "new": tried("cc", [UNKNOWN, AMBIGUOUS]),  # another kind
    "strangers": tried("xyzw", [UNKNOWN, UNKNOWN, known("a"), UNKNOWN]),  # another kind
}


def test_another_kind_or_another_name_is_a_flip() -> None:
    assert flipped(SHIPPED["seen"], STUDENT["seen"]) == [False, True, False]
    assert flipped(SHIPPED["new"], STUDENT["new"]) == [True, False]
    assert flipped(SHIPPED["strangers"], STUDENT["strangers"]) == [False, True, False, False]


def test_flips_are_counted_over_all_and_over_what_either_accepts() -> None:
    report = parity(SHIPPED, STUDENT)
    assert (report["n_probes"], report["n_accepted"]) == (9, 6)
    assert report["flips"] == pytest.approx(3 / 9, abs=1e-5)
    assert report["flips_of_accepted"] == pytest.approx(3 / 6)
    # Named rightly: shipped a, c of five; student a, a of five. Strangers accepted: 2 and 1 of 4.
    assert (report["fnir_int8"], report["fnir_float"]) == (0.6, 0.6)
    assert (report["fpir_int8"], report["fpir_float"]) == (0.5, 0.25)
    # Nearest to a photo of their own pill: three and four of the five enrolled.
    assert (report["recall_at_1_int8"], report["recall_at_1_float"]) == (0.6, 0.8)


def test_two_models_that_refuse_everything_agree() -> None:
    nothing: Trial = {
        cohort: tried("".join(some.pills), [UNKNOWN] * len(some.pills))
        for cohort, some in SHIPPED.items()
    }
    report = parity(nothing, nothing)
    assert (report["flips"], report["flips_of_accepted"], report["n_accepted"]) == (0, 0, 0)
