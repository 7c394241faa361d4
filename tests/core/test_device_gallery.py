"""Two galleries searched as one: as if all had been enrolled in a single one."""

from __future__ import annotations

import numpy as np
import pytest
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
        if embeddings is not None:
            whole.enrol(references, embeddings)
            device.bundled.enrol(references[:n_bundled], embeddings[:n_bundled])
            device.enrol(references[n_bundled:], embeddings[n_bundled:])
        ours, theirs = device.search(probes, n_pills), whole.search(probes, n_pills)
        for one, other in zip(ours, theirs, strict=True):
            assert [c.pill for c in one] == [c.pill for c in other]
            assert [c.score for c in one] == pytest.approx([c.score for c in other], abs=1e-6)
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
