"""Two galleries searched as one: as if all had been enrolled in a single one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.background import Background
from pilltrack.core.device_gallery import DeviceGallery
from pilltrack.core.errors import SpaceMismatch
from pilltrack.core.gallery import Gallery, Reference

DIM = 4


def test_a_pill_in_both_is_one_pill_with_its_better_score() -> None:
    with gallery_of({"a": [1, 0, 0, 0]}) as device:
        device.enrol(
            [Reference("a", "", "1"), Reference("b", "", "2")], unit([0.6, 0.8, 0, 0], [0, 0, 1, 0])
        )
        [found] = device.search(unit([0.6, 0.8, 0, 0]), 5)
    assert [(c.pill, round(c.score, 5)) for c in found] == [("a", 1.0), ("b", 0.0)]


def test_the_looks_of_a_pill_in_both_are_made_of_the_references_of_both() -> None:
    with gallery_of({"a": [1, 0, 0, 0]}) as device:
        more = [Reference("a", "", f"{n}") for n in range(3)]
        device.enrol(more, np.eye(3, DIM, 1, dtype=np.float32))
        [[found]] = device.search(unit([1, 1, 0, 0]), 5)
        assert found.score == pytest.approx(1)
        [[found]] = device.search(unit([1, 0, 0, 0]), 5)
        assert found.score == pytest.approx(0.5**0.5)
        device.remove("a")
        [[found]] = device.search(unit([1, 0, 0, 0]), 5)
        assert found.score == pytest.approx(1)


def test_forgetting_leaves_what_the_bundle_brought() -> None:
    with gallery_of({"a": [1, 0, 0, 0]}) as device:
        device.enrol(
            [Reference("a", "", "1"), Reference("b", "", "2")], np.eye(2, DIM, dtype=np.float32)
        )
        assert (device.remove("a"), device.remove("b"), device.remove("c")) == (1, 1, 0)
        assert device.pills() == ["a"]
        assert len(device) == 1
        [[found]] = device.search(unit([1, 0, 0, 0]), 5)
    assert found.pill == "a"
    assert found.score == pytest.approx(1)


def test_the_bundle_alone_answers_as_before_whatever_is_enrolled_here() -> None:
    probe = unit([0.6, 0.8, 0, 0])
    with gallery_of({"a": [1, 0, 0, 0], "b": [0, 1, 0, 0]}) as device:
        before = device.search(probe, 5)
        device.enrol([Reference("a", "", "1"), Reference("c", "", "2")], unit(probe[0], probe[0]))
        with device.bundle_alone() as bundled:
            assert bundled.search(probe, 5) == before
        assert [found.pill for found in device.search(probe, 5)[0]] == ["a", "c", "b"]


def test_pills_in_both_cost_a_search_no_second_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(**how: Any) -> qdrant_edge.QueryRequest:
        limits.append(how["limit"])
        return real(**how)

    limits: list[int] = []
    real = qdrant_edge.QueryRequest
    embeddings = unit(*np.random.default_rng(3).normal(size=(40, 8)))
    references = [Reference(f"p{n}", "", "1") for n in range(40)]
    gallery = Gallery.create("s", 8)
    gallery.enrol(references, embeddings)
    with DeviceGallery(gallery) as device:
        device.enrol(references[:-1], embeddings[:-1])
        monkeypatch.setattr(qdrant_edge, "QueryRequest", ask)
        [[found]] = device.search(embeddings[:1], 1)
    assert found.pill == "p0"
    assert limits == [4]


@pytest.mark.parametrize("n_good", [0, 1])  # updates: what is new goes in, what was before out
@pytest.mark.parametrize("half_done", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda device, row: device.enrol([Reference("a", "", "2")], row),
        lambda device, row: device.replace("a", [Reference("a", "", "2")], row),
        lambda device, row: device.remove("a"),
    ],
)
def test_a_change_that_fails_half_way_changes_no_answer(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[DeviceGallery, NDArray[np.float32]], object],
    half_done: bool,
    n_good: int,
) -> None:
    probe = unit([0.6, 0.8, 0, 0])
    with gallery_of({"a": [1, 0, 0, 0], "b": [0, 1, 0, 0]}) as device:
        rows = unit(probe[0], [0, 0, 1, 0])
        device.enrol([Reference("a", "", "1"), Reference("c", "", "1")], rows)
        before = device.search(probe, 5), device.references()
        with monkeypatch.context() as patch:
            index = device.bundled._index
            patch.setattr(index, "_shard", _FailsOnce(index._shard, n_good, half_done))
            with pytest.raises(OSError, match="no space left"):
                change(device, -probe)
        assert (device.search(probe, 5), device.references()) == before
        assert device.remove("a") == 1
        assert [found.pill for found in device.search(probe, 5)[0]] == ["b", "a", "c"]


class _FailsOnce:
    """A shard whose update number `n_good` fails, `half_done`: after it was done."""

    def __init__(self, shard: qdrant_edge.EdgeShard, n_good: int, half_done: bool) -> None:
        self._shard, self._n_good, self._half_done = shard, n_good, half_done

    def update(self, operation: qdrant_edge.UpdateOperation) -> None:
        self._n_good -= 1
        if self._n_good != -1 or self._half_done:
            self._shard.update(operation)
        if self._n_good == -1:
            raise OSError("no space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)


def test_both_are_held_against_the_bundles_background() -> None:
    with gallery_of({}) as device:
        device.bundled.background = Background(np.eye(1, DIM, dtype=np.float32), ["other"])
        device.enrol([Reference("a", "", "1")], unit([1, 0, 0, 0]))
        [[found]] = device.search(unit([1, 0, 0, 0]), 5)
    assert found.score == pytest.approx(0.6)


def test_another_space_is_refused() -> None:
    with gallery_of({}) as device, pytest.raises(SpaceMismatch, match="elsewhere"):
        device.require_space("elsewhere")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 30), st.integers(0, 30))
def test_it_answers_as_one_gallery_with_all_references(
    seed: int, n_pills: int, n_bundled: int, n_local: int
) -> None:
    rng = np.random.default_rng(seed)
    references = [Reference(f"p{rng.integers(8)}", "", str(n)) for n in range(n_bundled + n_local)]
    embeddings = unit(*rng.normal(size=(n_bundled + n_local, DIM))) if references else None
    probes = unit(*rng.normal(size=(3, DIM)))
    with Gallery.create("s", DIM) as whole, gallery_of({}) as device:
        alone = device.bundled.search(probes, 9)
        if embeddings is not None:
            whole.enrol(references, embeddings)
            device.bundled.enrol(references[:n_bundled], embeddings[:n_bundled])
            alone = device.bundled.search(probes, 9)
            device.enrol(references[n_bundled:], embeddings[n_bundled:])
            if seed % 2:
                device.remove("p3")
                whole.replace("p3", device.references("p3"), device.bundled.embeddings("p3"))
        ours, theirs = device.search(probes, n_pills), whole.search(probes, n_pills)
        for one, other in zip(ours, theirs, strict=True):
            assert [c.pill for c in one] == [c.pill for c in other]
            assert [c.score for c in one] == pytest.approx([c.score for c in other], abs=1e-6)
        with device.bundle_alone() as bundled:
            assert bundled.search(probes, 9) == alone
        assert (device.pills(), device.references()) == (whole.pills(), whole.references())
        assert device.references("p3") == whole.references("p3")


def gallery_of(pills: dict[str, list[float]]) -> DeviceGallery:
    gallery = Gallery.create("s", DIM)
    if pills:
        gallery.enrol([Reference(pill, "", pill) for pill in pills], unit(*pills.values()))
    return DeviceGallery(gallery)


def unit(*rows: object) -> NDArray[np.float32]:
    values = np.array(rows, np.float64)
    rows_of_one: NDArray[np.float32] = (
        values / np.linalg.norm(values, axis=1, keepdims=True)
    ).astype(np.float32)
    return rows_of_one
