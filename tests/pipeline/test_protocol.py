"""The open-set protocol on embeddings placed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.background import WEIGHT, Background
from pilltrack.core.decide import Decision
from pilltrack.core.looks import all_looks
from pilltrack.core.metrics import average_precision, best_per_pill, true_ranks
from pilltrack.pipeline import protocol
from pilltrack.pipeline.protocol import (
    Drawn,
    Probes,
    det_curve,
    drawn,
    measure,
    measure_decisions,
    measure_strangers,
    rounded_up,
    search,
    single_views,
    two_sided,
)


def _at(*degrees: float) -> NDArray[np.float32]:
    """Unit vectors in the plane at these angles."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def _cos(*degrees: float) -> NDArray[np.float64]:
    return np.cos(np.radians(degrees))


REFERENCES, PILLS = _at(0, 10, 90), ["a", "a", "b"]


def _found(probes: Probes) -> Drawn:
    return drawn(search(REFERENCES, PILLS, probes), seed=0)


def test_the_nearest_reference_names_the_probe() -> None:
    # 12 degrees: 2 from a's second reference, 78 from b; 80: 10 from b, 70 from a, but shows a.
    found = search(REFERENCES, PILLS, single_views(_at(12, 80, 91), ["a", "a", "x"]))
    assert found.best == pytest.approx(_cos(2, 10, 1), abs=1e-6)
    assert found.second == pytest.approx(_cos(78, 70, 81), abs=1e-6)
    assert (found.best_pill, found.second_pill) == (["a", "b", "b"], ["b", "a", "a"])
    assert found.rank.tolist() == [1, 2, 0]  # the stranger has none
    # a's references rank 1 and 2; then 2 and 3: (1/2 + 2/3) / 2.
    assert found.average_precision == pytest.approx([1, (1 / 2 + 2 / 3) / 2, 0])


def test_an_equal_score_of_another_pill_counts_as_ahead() -> None:
    found = search(_at(0, 0), ["a", "b"], single_views(_at(5, 5), ["a", "b"]))
    assert found.rank.tolist() == [2, 2]
    assert found.average_precision.tolist() == [0.5, 0.5]


def test_a_single_enrolled_pill_has_no_rival() -> None:
    found = search(_at(0, 10), ["a", "a"], single_views(_at(5), ["a"]))
    assert (found.second.tolist(), found.second_pill) == ([-1.0], [""])


def test_search_agrees_with_the_pure_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CHUNK", 7)  # several chunks, the last one short
    random = np.random.default_rng(0)
    references, photos = random.normal(size=(80, 8)), random.normal(size=(30, 8))
    references, photos = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        for x in (references, photos)
    )
    pills = [f"p{n}" for n in random.integers(0, 12, 80)]
    truth = [pills[n] for n in random.integers(0, 80, 30)]
    sides = [("front", "back")[n] for n in random.integers(0, 2, 80)]
    found = search(references, pills, single_views(photos, truth), sides=sides)
    similarities = photos @ references.T
    looks, pill_of = all_looks(references, pills, sides)
    scores, columns = best_per_pill(photos @ looks.T, pill_of)
    assert len(looks) != 80  # most pills have enough references to pair
    assert found.rank.tolist() == true_ranks(scores, columns, truth).tolist()
    ordered = np.sort(scores, axis=1)
    assert found.best == pytest.approx(ordered[:, -1])
    assert found.second == pytest.approx(ordered[:, -2])
    assert found.average_precision == pytest.approx(
        [
            average_precision(row, [pill == own for pill in pills])
            for row, own in zip(similarities, truth, strict=True)
        ]
    )


def test_both_sides_together_settle_what_one_side_cannot() -> None:
    """Two pills share a front at 0 degrees; their backs lie at 60 and at 120."""
    references, pills = _at(0, 60, 0, 120), ["a", "a", "b", "b"]
    photos, sides = _at(0, 62, 1, 118), ["front", "back", "front", "back"]
    truth = ["a", "a", "b", "b"]
    front = search(references, pills, single_views(photos[::2], ["a", "b"]))
    assert front.rank.tolist() == [2, 2]  # equal
    both = two_sided(photos, truth, sides)
    assert both is not None
    found = search(references, pills, both)
    assert found.rank.tolist() == [1, 1]
    assert found.best[0] == pytest.approx(_cos(0, 2).mean(), abs=1e-6)
    assert found.second[0] == pytest.approx(_cos(0, 58).mean(), abs=1e-6)


def test_a_background_is_taken_off_each_view_and_leaves_order_and_gaps() -> None:
    references, pills = _at(0, 60, 0, 120), ["a", "a", "b", "b"]
    both = two_sided(_at(0, 62), ["a", "a"], ["front", "back"])
    assert both is not None
    plain = search(references, pills, both)
    around = Background(_at(30, 30), ["x", "a"])  # the second shows the pill itself
    found = search(references, pills, both, around)
    assert found.best[0] == pytest.approx(plain.best[0] - WEIGHT * _cos(30, 32).mean(), abs=1e-6)
    assert found.best[0] - found.second[0] == pytest.approx(plain.best[0] - plain.second[0])
    assert (found.best_pill, found.rank.tolist()) == (plain.best_pill, plain.rank.tolist())
    alone = search(references[:2], ["a", "a"], both, around)
    assert alone.second.tolist() == [-1.0]


def test_photos_without_a_partner_make_no_two_sided_probe() -> None:
    photos = _at(0, 1, 2, 3)
    assert two_sided(photos, ["a"] * 4, ["", "", "front", "front"]) is None
    pairs = two_sided(photos, ["a", "a", "a", "b"], ["front", "back", "back", "back"])
    assert pairs is not None
    assert pairs.pills == ["a"]
    assert pairs.embeddings.tolist() == [photos[:2].tolist()]


def test_measures_of_a_hand_made_evening() -> None:
    """recall@1 1/2, recall@5 1, and strangers far away."""
    report = measure(_found(single_views(_at(12, 80), ["a", "a"])), None)
    assert report == {
        "n_probes": 2,
        "n_pills": 1,
        "recall_at_1": {"value": 0.5},  # one pill: no interval
        "recall_at_5": {"value": 1.0},
        "map": {"value": round((1 + (1 / 2 + 2 / 3) / 2) / 2, 5)},
    }
    strangers = _found(single_views(_at(180, 200, 220, 240), ["x", "x", "y", "z"]))
    open_set = measure(_found(single_views(_at(1, 91), ["a", "b"])), strangers)
    assert open_set["auroc"] == {"value": 1.0}
    assert open_set["fnir_at_fpir_5pct"] == {"value": 0.0, "needs_stranger_pills": 59}
    assert open_set["fnir_at_fpir_0.1pct"]["needs_stranger_pills"] == 2995


def test_strangers_on_top_of_references_make_every_mated_probe_a_miss() -> None:
    strangers = _found(single_views(_at(0, 90), ["x", "y"]))
    report = measure(_found(single_views(_at(5, 85), ["a", "b"])), strangers)
    assert report["auroc"]["value"] == 0.0
    assert report["fnir_at_fpir_5pct"]["value"] == 1.0


def test_enough_strangers_bring_an_interval_to_fnir() -> None:
    names = [f"x{n}" for n in range(59)]
    strangers = _found(single_views(_at(*np.linspace(120, 240, 59)), names))
    mated = _found(single_views(_at(*([1] * 20)), ["a"] * 20))
    report = measure(mated, strangers)
    assert report["fnir_at_fpir_5pct"] == {"value": 0.0}  # one mated pill: still no interval
    assert "needs_stranger_pills" in report["fnir_at_fpir_1pct"]


KNOWN_A, KNOWN_B = Decision("known", "a", 0.9, ()), Decision("known", "b", 0.9, ())
UNKNOWN, AMBIGUOUS = Decision("unknown", None, 0.1, ()), Decision("ambiguous", None, 0.9, ())


def test_decisions_are_counted_by_their_harm() -> None:
    mated = _found(single_views(_at(1, 1, 1, 1), ["a"] * 4))
    report = measure_decisions(mated, [KNOWN_A, KNOWN_B, UNKNOWN, AMBIGUOUS], 0.95)
    assert report["fnir"]["value"] == 0.75
    assert report["misnamed"]["value"] == report["ambiguous"]["value"] == 0.25
    assert report["misnamed_upper"] == 1.0  # one pill proves nothing
    strangers = _found(single_views(_at(1, 1, 1, 1, 1), list("vwxyz")))
    harm = measure_strangers(strangers, [KNOWN_A, AMBIGUOUS, UNKNOWN, UNKNOWN, UNKNOWN], 0.95)
    assert (harm["fpir"]["value"], harm["named"]["value"]) == (0.4, 0.2)
    # Clopper-Pearson for 2 of 5: P(Bin(5, p) <= 2) = 0.05 at p = 0.8107.
    assert harm["fpir_upper"] == pytest.approx(0.8107, abs=1e-4)


def test_a_pill_with_many_photos_has_one_vote_in_what_is_promised() -> None:
    """One pill accepted in all of 50 photos, three never, in one photo each."""
    strangers = _found(single_views(_at(*([1] * 53)), ["w"] * 50 + list("xyz")))
    harm = measure_strangers(strangers, [KNOWN_A] * 50 + [UNKNOWN] * 3, 0.95)
    assert harm["fpir"]["value"] == harm["named"]["value"] == 0.25
    assert harm["fpir_upper"] >= 0.25


def test_bounds_are_rounded_up() -> None:
    assert [rounded_up(value) for value in (0.0100024, 0.01, 0.099999999999)] == [
        0.01001, 0.01, 0.1,
    ]  # fmt: skip


def test_a_probe_without_references_is_no_hit() -> None:
    with pytest.raises(AssertionError, match="without references"):
        measure(_found(single_views(_at(1, 2), ["a", "gone"])), None)


def test_det_curve_goes_from_strict_to_lax() -> None:
    # Scores: mated 1, cos 20, and a wrong name at cos 10; strangers cos 15 and cos 60.
    mated = search(REFERENCES, PILLS, single_views(_at(0, -20, 80), ["a", "a", "a"]))
    strangers = search(REFERENCES, PILLS, single_views(_at(-15, -60), ["x", "y"]))
    # Above cos 15 only the first is named; above cos 60 the second as well.
    assert det_curve([mated], strangers) == [(0.0, round(2 / 3, 5)), (0.5, round(1 / 3, 5))]


def test_det_curve_of_many_strangers_keeps_its_ends_and_falls() -> None:
    random = np.random.default_rng(0)
    mated = search(_at(0), ["a"], single_views(_at(*random.normal(0, 30, 500)), ["a"] * 500))
    strangers = search(_at(0), ["a"], single_views(_at(*random.normal(60, 30, 5000)), ["x"] * 5000))
    curve = np.array(det_curve([mated], strangers, n_points=100))
    assert len(curve) <= 100
    assert curve[0, 0] == 0.0
    assert curve[-1, 0] == pytest.approx(1, abs=1e-3)
    assert (np.diff(curve[:, 0]) > 0).all()
    assert (np.diff(curve[:, 1]) <= 0).all()
