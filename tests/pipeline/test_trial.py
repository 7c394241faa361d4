"""A system is tried as the device works: search, then decide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.background import Background
from pilltrack.core.decide import Rule
from pilltrack.core.errors import StageFailed
from pilltrack.core.gallery import Gallery, Reference
from pilltrack.pipeline.params import EvaluateParams, load_params
from pilltrack.pipeline.protocol import search, single_views
from pilltrack.pipeline.shots import Shot
from pilltrack.pipeline.table import ImageRow
from pilltrack.pipeline.trial import calibrate_on, try_shots
from tests.imports import ROOT


def _at(*degrees: float) -> NDArray[np.float32]:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def _shot(pill: str, split: str, role: str, n: int = 0) -> Shot:
    row = ImageRow(f"{pill}/{n}", pill, "", "s", "real", f"{pill}{n}", split, role)  # type: ignore[arg-type]
    return Shot(row, None)


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    """Pill a at 0 degrees, b at 90."""
    with Gallery.create("space", 2) as made:
        made.enrol([Reference("a", "", "1"), Reference("b", "", "2")], _at(0, 90))
        yield made


def test_cohorts_are_told_apart_and_decided_in_order(gallery: Gallery) -> None:
    shots = [
        _shot("a", "train", "probe"),
        _shot("x", "test", "stranger"),
        _shot("b", "test", "probe"),
        _shot("a", "train", "probe", 1),
        _shot("b", "test", "probe", 1),
    ]
    rule = Rule(threshold=float(np.cos(np.radians(40))), margin=0.1)
    tried = try_shots(gallery, rule, shots, _at(10, -60, 85, 80, 44), seed=0)
    assert set(tried) == {"seen", "new", "strangers"}
    assert tried["seen"].pills == ["a", "a"]
    assert [d.kind for d in tried["seen"].decisions] == ["known", "known"]
    assert [d.pill for d in tried["seen"].decisions] == ["a", "b"]  # the second is misnamed
    assert tried["seen"].outcomes.rank.tolist() == [1, 2]
    assert [d.kind for d in tried["new"].decisions] == ["known", "unknown"]
    assert [d.kind for d in tried["strangers"].decisions] == ["unknown"]


def test_a_background_lowers_what_is_measured_and_what_is_decided_alike(gallery: Gallery) -> None:
    shots = [_shot("a", "train", "probe"), _shot("x", "test", "stranger")]
    probes = _at(10, 60)
    gallery.background = Background(_at(0, 90, 80), ["a", "b", "c"])
    tried = try_shots(gallery, Rule(threshold=0.0, margin=0.0), shots, probes, seed=0)
    expected = search(
        gallery.embeddings(), ["a", "b"], single_views(probes, ["a", "x"]), gallery.background
    )
    plain = search(gallery.embeddings(), ["a", "b"], single_views(probes, ["a", "x"]))
    for index, cohort in enumerate(("seen", "strangers")):
        found = tried[cohort]  # type: ignore[index]
        assert found.outcomes.best[0] == pytest.approx(expected.best[index], abs=1e-6)
        assert found.outcomes.second[0] == pytest.approx(expected.second[index], abs=1e-6)
        assert found.decisions[0].score == found.outcomes.best[0]
        assert found.outcomes.best[0] < plain.best[index] - 0.1


def _settings(fpir: float, misnamed: float) -> EvaluateParams:
    settings = load_params(ROOT / "params.yaml").evaluate
    return settings.model_copy(update={"fpir": fpir, "misnamed": misnamed})


def test_the_rule_comes_from_validation_strangers_and_enrolled_pills(gallery: Gallery) -> None:
    # Strangers x0..x8 at -10, -20, ..., -90 degrees from a; enrolled ones 5 degrees off.
    shots = [_shot(f"x{n}", "validation", "stranger") for n in range(9)]
    shots += [_shot("a", "validation", "probe", n) for n in range(9)]
    embeddings = _at(*range(-10, -91, -10), *([5] * 9))
    with pytest.raises(StageFailed, match="1 enrolled pills"):
        calibrate_on(gallery, shots, embeddings, _settings(0.2, 0.2))
    rule, found = calibrate_on(gallery, shots, embeddings, _settings(0.2, 0.6))
    # 1 of 10 is the pill to come: one stranger may pass, so just above the second, cos 20.
    assert rule.threshold == pytest.approx(np.cos(np.radians(20)), abs=1e-6)
    assert rule.margin == 0.0
    assert (len(found["strangers"]), len(found["new"])) == (9, 9)


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        (_shot("gone", "test", "probe"), "1 that are not enrolled, such as gone"),
        (_shot("a", "test", "stranger"), "1 that are enrolled, such as a"),
    ],
)
def test_a_gallery_that_does_not_fit_the_shots_is_refused(
    gallery: Gallery, odd: Shot, found: str
) -> None:
    shots = [_shot("b", "test", "probe"), odd]
    with pytest.raises(StageFailed, match=found):
        try_shots(gallery, Rule(threshold=0.5, margin=0.0), shots, _at(85, 5), seed=0)
