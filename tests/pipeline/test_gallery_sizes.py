"""Thresholds of smaller galleries: every gallery that could be drawn is drawn here, and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.background import Background
from pilltrack.core.gallery import Candidate, Gallery, Reference
from pilltrack.core.metrics import just_above
from pilltrack.pipeline.calibrate import conformal_threshold
from pilltrack.pipeline.gallery_sizes import (
    LAST_DIGITS,
    SIZES,
    Ranking,
    chance_of_first,
    measure_sizes,
    raised_until_proven,
    rank_pills,
    thresholds_by_size,
)
from pilltrack.pipeline.intervals import upper_bound
from pilltrack.pipeline.params import EvaluateParams, load_params
from tests.imports import ROOT

DIM, PILLS = 6, [f"pill {n}" for n in range(5)]
TRAINED = ["a trained one", "trained 1", "trained 3"]  # two of them in the background
EVERY = sorted([*PILLS, *TRAINED])
Found = dict[tuple[str, ...], list[list[Candidate]]]  # by enrolled pills: two nearest of each probe


def _units(count: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(count, DIM)) + 0.7
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit.astype(np.float32)


def _gallery(pills: Sequence[str]) -> Gallery:
    """Two references of each pill, before a background of others."""
    gallery = Gallery.create("s", DIM)
    for pill in pills:
        references = [Reference(pill, "", f"{n}.png") for n in range(2)]
        gallery.enrol(references, _units(2, EVERY.index(pill)))
    gallery.background = Background(_units(14, 50), [f"trained {n // 2}" for n in range(14)])
    return gallery


PROBES, SHOWN = _units(12, 99), [PILLS[n % 4] for n in range(12)]
FOREIGN = [f"stranger {n % 5}" for n in range(12)]


@pytest.fixture(scope="module")
def drawn() -> Found:
    """What every gallery that can be drawn from the pills says of every probe."""
    found: Found = {}
    drawn = [pills for size in (1, 2, 4) for pills in combinations(PILLS, size)]
    for pills in [*drawn, *(tuple(sorted([*PILLS, pill])) for pill in TRAINED)]:
        with _gallery(pills) as gallery:
            found[pills] = gallery.search(PROBES, 2)
    return found


@pytest.fixture(scope="module")
def whole() -> Iterator[Gallery]:
    with _gallery(EVERY) as gallery:
        yield gallery


@pytest.mark.parametrize("n_drawn", [0, 1, 2, 5])
def test_chance_of_first_is_that_of_all_draws(n_drawn: int) -> None:
    draws = list(combinations(range(5), n_drawn))
    firsts = [min(draw) for draw in draws if draw]
    expected = [firsts.count(place) / len(draws) for place in range(5)]
    assert chance_of_first(5, n_drawn) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("threshold", [0.3, 0.35, 0.45])
def test_strangers_are_accepted_as_often_as_in_all_galleries_of_that_size(
    whole: Gallery, drawn: Found, size: int, threshold: float
) -> None:
    scores = [[two[0].score for two in of] for pills, of in drawn.items() if len(pills) == size]
    ranking = rank_pills(whole, PILLS, PROBES, FOREIGN)
    reached = ranking.share_of_errors(size, threshold)
    expected = (np.array(scores) >= threshold).mean(axis=0)
    if size <= len(PILLS):
        assert reached == pytest.approx(expected)
    assert (reached >= expected - 1e-9).all()
    assert 0 < expected.mean() < 1


@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("threshold", [0.2, 0.35])
def test_enrolled_pills_are_misnamed_and_named_as_often_as_in_all_such_galleries(
    whole: Gallery, drawn: Found, size: int, threshold: float
) -> None:
    margin, wrong, right = 0.06, [], []
    for probe, shown in enumerate(SHOWN):
        among = [of for pills, of in drawn.items() if shown in pills and len(pills) == size]
        accepted = [found for of in among if (found := of[probe])[0].score >= threshold]
        names = [first.pill for first, *_ in accepted]
        ahead = [
            first.score - (rest[0].score if rest else -9) >= margin for first, *rest in accepted
        ]
        wrong.append(sum(name != shown for name in names) / len(among))
        pairs = zip(names, ahead, strict=True)
        right.append(sum(name == shown and leads for name, leads in pairs) / len(among))
    ranking = rank_pills(whole, PILLS, PROBES, SHOWN)
    assert ranking.share_of_errors(size, threshold) == pytest.approx(wrong)
    strangers = rank_pills(whole, PILLS, PROBES, FOREIGN)
    measured = measure_sizes(
        {size: threshold}, {size: threshold}, margin, strangers, ranking, 0.95
    )[str(size)]
    by_pill = [np.mean([r for r, s in zip(right, SHOWN, strict=True) if s == p]) for p in PILLS[:4]]
    assert measured["fnir"] == pytest.approx(1 - np.mean(by_pill), abs=1e-5)
    assert measured["fpir_upper"] >= measured["fpir"]
    assert measured["misnamed_upper"] >= measured["misnamed"]


def _settings(fpir: float, misnamed: float) -> EvaluateParams:
    settings = load_params(ROOT / "params.yaml").evaluate
    return settings.model_copy(update={"fpir": fpir, "misnamed": misnamed})


def _rankings(seed: int, n_enrolled: int = 120) -> tuple[Ranking, Ranking]:
    """Scores of 60 strangers, and of 40 pills beside their own; one photo each."""
    rng = np.random.default_rng(seed)
    foreign = -np.sort(-rng.normal(0.3, 0.15, (60, n_enrolled)), axis=1)
    others = -np.sort(-rng.normal(0.3, 0.15, (40, n_enrolled - 1)), axis=1)
    own = rng.normal(0.7, 0.15, 40)
    of_pool = rng.permuted(np.tile(np.arange(n_enrolled - 1) < 79, (100, 1)), axis=1)
    with_own = np.insert(of_pool[:60], 50, True, axis=1)  # 80 of the pool, 40 trained on
    strangers, pills = [f"s{n}" for n in range(60)], [f"p{n}" for n in range(40)]
    return (
        Ranking(strangers, foreign, with_own),
        Ranking(pills, others, of_pool[60:], own, own[:, None] - others),
    )


def _error(ranking: Ranking, size: int, threshold: float) -> float:
    return float(ranking.share_of_errors(size, threshold).mean())


def test_thresholds_rise_with_the_gallery_and_keep_the_aims() -> None:
    strangers, mated = _rankings(0)
    thresholds = thresholds_by_size(strangers, mated, _settings(0.1, 0.1))
    assert list(thresholds) == [5, 10, 20, 30, 50, 75, 100] == [n for n in SIZES if n < 120]
    assert sorted(thresholds.values()) == list(thresholds.values())
    assert thresholds[5] < thresholds[100] - 0.1
    for size, threshold in thresholds.items():
        assert max(_error(ranking, size, threshold) for ranking in (strangers, mated)) <= 0.1
    measured = measure_sizes(thresholds, thresholds, 0.0, strangers, mated, 0.95)
    assert measured["5"]["fpir"] == pytest.approx(0.1 - 1 / 60, abs=0.02)  # no further than needed
    assert measured["5"]["fnir"] < measured["100"]["fnir"]
    lead = measure_sizes(thresholds, thresholds, 0.2, strangers, mated, 0.95)
    assert lead["100"]["fnir"] > measured["100"]["fnir"]


@pytest.mark.parametrize("size", [2, 90, 110])
def test_a_bound_only_falls_as_the_threshold_rises(size: int) -> None:
    for ranking in _rankings(5):
        levels = np.unique(ranking.others)[::40]
        bounds = [ranking.bound_of_errors(size, 0.95)(level) for level in levels]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[-1] < bounds[0]


def test_no_photo_is_safer_in_a_larger_gallery() -> None:
    """A nearer pill that the background hardly knows must not hide one that it knows well."""
    probe = np.array([[1, 0, 0]], np.float32)
    near, nearer = ([c, (1 - c * c) ** 0.5, 0] for c in (0.90, 0.91))
    with Gallery.create("s", 3) as gallery:
        gallery.enrol(
            [Reference("new", "", "1"), Reference("x", "", "1"), Reference("y", "", "1")],
            np.array([[0, 0, 1], near, nearer], np.float32),
        )
        gallery.background = Background(np.array([near] * 4 + [nearer], np.float32), [*"xxxxy"])
        ranking = rank_pills(gallery, ["new"], probe, ["stranger"])
        shown = {pill: gallery.search(probe, 3)[0] for pill in ("all",)}
    for threshold in (0.5, 0.55, 0.6):
        errors = [ranking.share_of_errors(size, threshold)[0] for size in (1, 2, 3)]
        assert errors == sorted(errors), threshold
    assert shown["all"][0].pill == "y"


def test_a_threshold_errs_less_in_every_smaller_gallery() -> None:
    for ranking in _rankings(2):
        errors = [_error(ranking, size, 0.5) for size in range(1, 101)]
        assert errors == sorted(errors)
        assert errors[0] < errors[-1]


def test_the_threshold_also_keeps_enrolled_pills_from_wrong_names() -> None:
    strangers, mated = _rankings(1)
    lax = thresholds_by_size(strangers, mated, _settings(0.6, 0.5))
    strict = thresholds_by_size(strangers, mated, _settings(0.6, 0.03))
    assert strict[100] > lax[100]
    assert _error(mated, 100, strict[100]) <= 0.03


def test_next_stranger_is_accepted_as_rarely_as_aimed_on_average() -> None:
    accepted = []
    for seed in range(60):
        strangers, mated = _rankings(seed)
        threshold = thresholds_by_size(strangers, mated, _settings(0.1, 0.9))[10]
        new, _ = _rankings(1000 + seed)
        accepted.append(_error(new, 10, threshold))
    assert 0.08 < np.mean(accepted) < 0.105  # 3,600 strangers


def test_a_threshold_that_proves_its_promises_stays() -> None:
    strangers, mated = _rankings(3)
    kept = {5: 0.8, 50: 0.8}
    assert raised_until_proven(kept, strangers, mated, _settings(0.1, 0.1)) == kept


@pytest.mark.parametrize("promise", ["promised_fpir", "promised_misnamed"])
def test_a_threshold_is_raised_no_further_than_test_photos_need(promise: str) -> None:
    strangers, mated = _rankings(4)
    settings = _settings(0.1, 0.1).model_copy(
        update={"promised_fpir": 0.99, "promised_misnamed": 0.99, promise: 0.2}
    )
    (raised,) = raised_until_proven({50: 0.1}, strangers, mated, settings).values()
    ranking = strangers if promise == "promised_fpir" else mated
    assert raised > 0.1

    bound = ranking.bound_of_errors(50, settings.confidence)
    assert bound(raised) <= 0.2 < bound(raised - 1e-5)
    last = just_above(ranking.others[ranking.chance_of_error(50) > 0].max() + LAST_DIGITS)
    few = _settings(0.1, 0.1).model_copy(update={promise: 0.01})  # 60 pills cannot prove it
    assert raised_until_proven({50: 0.1}, strangers, mated, few)[50] == last


def test_photos_of_the_pool_and_of_others_are_not_mixed(whole: Gallery) -> None:
    with pytest.raises(ValueError, match="in one ranking"):
        rank_pills(whole, PILLS, PROBES[:2], ["pill 1", "stranger"])
    with pytest.raises(ValueError, match="background in the pool"):
        rank_pills(whole, EVERY, PROBES, FOREIGN)
    with pytest.raises(ValueError, match="3 of 2 pills"):
        chance_of_first(2, 3)


def test_certain_chances_are_none() -> None:
    scores, pills = [0.9, 0.1, 0.8, 0.2, 0.3], [f"pill {n}" for n in range(5)]
    for share in (0.2, 0.5):
        alone = conformal_threshold(scores, pills, share)
        columns = np.array(scores)[:, None]
        assert conformal_threshold(columns, pills, share, np.ones((5, 1))) == alone


def test_chances_too_small_for_the_aim_need_no_threshold() -> None:
    scores, pills = np.full((9, 3), 0.9), [f"pill {n}" for n in range(9)]
    assert conformal_threshold(scores, pills, 0.2, np.full((9, 3), 0.01)) == -np.inf
    assert conformal_threshold(scores, pills, 0.2, np.full((9, 3), 0.3)) > 0.9
    with pytest.raises(ValueError, match=r"scores \(9, 3\)"):
        conformal_threshold(scores, pills, 0.2, np.full((9, 2), 0.3))


@given(st.floats(0.01, 0.4))
def test_bound_of_chances_lies_above_that_of_as_many_whole_errors(chance: float) -> None:
    pills = [f"pill {n}" for n in range(40)]
    whole = int(np.ceil(40 * chance - 1e-9))
    certain = upper_bound([1] * whole + [0] * (40 - whole), pills, 0.95)
    assert certain < upper_bound([chance] * 40, pills, 0.95) < 1
