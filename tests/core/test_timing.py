"""Timing the steps: what is counted, in which order, on which cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core.embedder import Embedder, open_embedder
from pilltrack.core.gallery import Gallery
from pilltrack.core.identify import open_identifier
from pilltrack.core.timing import (
    CROPS_PER_TURN,
    N_WARM_UP,
    Subject,
    identify_timed,
    measure,
    noise_crops,
    percentiles,
    pinned,
    time_steps,
)
from tests.tiny_bundle import MODEL, tiny_bundle, tiny_calibration

RED = np.full((40, 40, 3), (200, 30, 30), np.uint8)


class Noted:
    """An embedder that also writes down whose turn it was."""

    def __init__(self, name: str, embedder: Embedder, turns: list[str]) -> None:
        self.name, self.embedder, self.turns = name, embedder, turns
        self.dim, self.space = embedder.dim, embedder.space
        self.input_size_px = embedder.input_size_px

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.turns.append(self.name)
        return self.embedder.embed(crops)


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    embedder = open_embedder(MODEL)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        yield gallery


def _subject(gallery: Gallery, embedder: Embedder | None = None) -> Subject:
    return Subject(embedder or open_embedder(MODEL), gallery, tiny_calibration(gallery.space))


def test_percentiles_of_101_crops_are_their_ranks() -> None:
    embed_ms = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    times_ms = np.stack([np.full(101, 10.0), embed_ms, np.zeros(101), np.zeros(101)], axis=1)
    found = percentiles(times_ms)
    assert list(found) == ["preprocess", "embed", "search", "decide", "total"]
    assert found["preprocess"].model_dump() == {"p50": 10, "p95": 10, "p99": 10, "max": 10}
    assert found["embed"].model_dump() == {"p50": 51, "p95": 96, "p99": 100, "max": 101}
    assert found["total"].model_dump() == {"p50": 61, "p95": 106, "p99": 110, "max": 111}


def test_each_step_lasts_from_one_look_at_the_clock_to_the_next(gallery: Gallery) -> None:
    squares = (float(tick**2) for tick in count())  # 0 1 4 9 16: steps of 1 3 5 7 s
    times_s, _ = identify_timed(_subject(gallery), RED, squares.__next__)
    assert times_s == [1, 3, 5, 7]


def test_times_are_milliseconds_by_subject_crop_and_step(gallery: Gallery) -> None:
    seconds = (float(tick) for tick in count())
    crops = noise_crops(3)
    times_ms = time_steps([_subject(gallery), _subject(gallery)], crops, seconds.__next__)
    assert times_ms.shape == (2, 3, 4)
    assert set(times_ms.ravel()) == {1000.0}


def test_two_models_take_turns_and_each_is_first_as_often(gallery: Gallery) -> None:
    turns: list[str] = []
    both = [_subject(gallery, Noted(name, open_embedder(MODEL), turns)) for name in "ab"]
    times_ms = time_steps(both, noise_crops(2 * CROPS_PER_TURN + 1))
    full, last = N_WARM_UP + CROPS_PER_TURN, N_WARM_UP + 1
    assert times_ms.shape == (2, 2 * CROPS_PER_TURN + 1, 4)
    assert "".join(turns) == (
        "a" * full + "b" * full + "b" * full + "a" * full + "a" * last + "b" * last
    )


def test_both_models_get_the_same_crops(gallery: Gallery) -> None:
    seen: dict[str, list[bytes]] = {"a": [], "b": []}

    class Kept(Noted):
        def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            seen[self.name].append(crops[0].tobytes())
            return super().embed(crops)

    both = [_subject(gallery, Kept(name, open_embedder(MODEL), [])) for name in "ab"]
    time_steps(both, noise_crops(4))
    assert seen["a"] == seen["b"]
    assert len(set(seen["a"])) == 4


def test_warm_up_crops_are_not_counted(gallery: Gallery) -> None:
    turns: list[str] = []
    subject = _subject(gallery, Noted("a", open_embedder(MODEL), turns))
    times_ms = time_steps([subject], noise_crops(2))
    assert times_ms.shape == (1, 2, 4)
    assert len(turns) == N_WARM_UP + 2


def test_no_crops_give_no_times(gallery: Gallery) -> None:
    assert time_steps([_subject(gallery)], []).shape == (1, 0, 4)


def test_the_timed_steps_decide_as_identify_does(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "red-pill", RED)
    with open_identifier(bundle) as identifier:
        subject = Subject(identifier.embedder, identifier.gallery, identifier.calibration)
        kinds = set()
        for crop in (RED, *noise_crops(1)):
            (pill,) = identifier.identify_crop(crop)
            _, decision = identify_timed(subject, crop)
            assert decision == pill.decision
            kinds.add(decision.kind)
    assert kinds == {"known", "unknown"}


def test_p50_to_max_never_fall(gallery: Gallery) -> None:
    (steps_ms,) = measure([_subject(gallery)], runs=10)
    for at in steps_ms.values():
        assert 0 <= at.p50 <= at.p95 <= at.p99 <= at.max
    assert steps_ms["total"].p50 > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins a process to cores")
def test_pinning_holds_inside_and_is_undone_even_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    inside: list[set[int]] = []

    def fail_while_pinned() -> None:
        with pinned(1) as cores:
            inside.extend([set(cores), os.sched_getaffinity(0)])
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_pinned()
    assert inside == [{max(before)}, {max(before)}]
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins a process to cores")
def test_more_threads_than_cores_use_every_core() -> None:
    before = os.sched_getaffinity(0)
    with pinned(len(before) + 1) as cores:
        assert set(cores) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins a process to cores")
def test_a_system_that_forbids_pinning_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(process: int, cores: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbid)
    with pinned(1) as cores:
        assert cores == []
