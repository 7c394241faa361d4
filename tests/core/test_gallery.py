import json
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from pilltrack.core.background import WEIGHT, Background
from pilltrack.core.errors import BundleRejected, SpaceMismatch
from pilltrack.core.gallery import Candidate, Gallery, Reference, read_background, read_space
from pilltrack.core.looks import ENOUGH_TO_PAIR

SPACE = "space-a"


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    """Pills a (two references), b and c, in the plane."""
    with Gallery.create(SPACE, 2) as opened:
        opened.enrol(
            [reference("c", 0), reference("a", 0), reference("a", 1), reference("b", 0)],
            rows([0, -1], [1, 0], [0.6, 0.8], [0, 1]),
        )
        yield opened


def test_search_gives_the_best_score_of_each_pill_in_descending_order(gallery: Gallery) -> None:
    [found] = gallery.search(rows([0.8, 0.6]), n_pills=3)
    assert [candidate.pill for candidate in found] == ["a", "b", "c"]
    assert [candidate.score for candidate in found] == pytest.approx([0.96, 0.6, -0.6])


def test_pill_with_many_references_does_not_crowd_out_the_second() -> None:
    with Gallery.create(SPACE, 2) as gallery:
        many = [reference("crowd", i) for i in range(500)]
        gallery.enrol(many, np.repeat(rows([1, 0]), 500, axis=0))
        gallery.enrol([reference("far", 0)], rows([-1, 0]))
        [found] = gallery.search(rows([1, 0]), n_pills=2)
    assert found == [Candidate("crowd", 1.0), Candidate("far", -1.0)]


def test_equal_scores_come_in_order_of_pill_name_even_at_the_cut() -> None:
    with Gallery.create(SPACE, 2) as gallery:
        names = [f"{i:03d}" for i in range(200)]
        same = np.repeat(rows([1, 0]), 200, axis=0)
        gallery.enrol([reference(name, 0) for name in reversed(names)], same)
        [found] = gallery.search(rows([1, 0]), n_pills=3)
    assert [candidate.pill for candidate in found] == ["000", "001", "002"]


# Vectors of four halves have unit length and dot products in quarters: exact, with many ties.
halves = st.lists(st.sampled_from([-0.5, 0.5]), min_size=4, max_size=4)


@pytest.fixture(scope="module")
def reused() -> Iterator[Gallery]:
    """One gallery for all examples: creating and closing a shard waits for the disk."""
    with Gallery.create(SPACE, 4) as opened:
        yield opened


@settings(max_examples=100, deadline=None)
@given(
    enrolled=st.lists(st.tuples(st.sampled_from("abcdefgh"), halves), max_size=60),
    probe=halves,
    n_pills=st.integers(1, 10),
    removed=st.sampled_from("abcdefgh"),
)
def test_search_equals_brute_force(
    reused: Gallery,
    enrolled: list[tuple[str, list[float]]],
    probe: list[float],
    n_pills: int,
    removed: str,
) -> None:
    for pill in reused.pills():
        reused.remove(pill)
    enrolled = [one for n, one in enumerate(enrolled) if seldom(one[0], enrolled[:n])]
    references = [reference(pill, i) for i, (pill, _) in enumerate(enrolled)]
    embeddings = np.array([vector for _, vector in enrolled], dtype=np.float32).reshape(-1, 4)
    reused.enrol(references, embeddings)
    assert reused.search(rows(probe), n_pills) == [brute_force(enrolled, probe, n_pills)]
    reused.remove(removed)
    left = [(pill, vector) for pill, vector in enrolled if pill != removed]
    assert reused.counts() == Counter(pill for pill, _ in left)
    assert list(reused.counts()) == reused.pills() == sorted({pill for pill, _ in left})
    assert reused.search(rows(probe), n_pills) == [brute_force(left, probe, n_pills)]
    assert len(reused) == len(left)


def seldom(pill: str, before: list[tuple[str, list[float]]]) -> bool:
    """So that each reference is a look by itself, and all scores are exact."""
    return sum(name == pill for name, _ in before) < ENOUGH_TO_PAIR - 1


def brute_force(
    enrolled: list[tuple[str, list[float]]], probe: list[float], n_pills: int
) -> list[Candidate]:
    best: dict[str, float] = {}
    for pill, vector in enrolled:
        score = sum(x * y for x, y in zip(vector, probe, strict=True))
        best[pill] = max(best.get(pill, -1.0), score)
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Candidate(pill, score) for pill, score in ranked[:n_pills]]


def test_random_search_agrees_with_numpy() -> None:
    random = np.random.default_rng(0)
    embeddings, probes = unit(random, 200, 16), unit(random, 20, 16)
    pills = [f"pill-{i % 40:02d}" for i in range(200)]
    with Gallery.create(SPACE, 16) as gallery:
        gallery.enrol([reference(pill, i) for i, pill in enumerate(pills)], embeddings)
        found = gallery.search(probes, n_pills=40)
    similarities = probes @ embeddings.T
    for row, candidates in zip(similarities, found, strict=True):
        assert len(candidates) == 40
        for candidate in candidates:
            own = [i for i, pill in enumerate(pills) if pill == candidate.pill]
            pairs = [(i, j) for i, j in combinations(own, 2) if embeddings[i] @ embeddings[j] >= 0]
            looks = [
                (row[i] + row[j]) / np.linalg.norm(embeddings[i] + embeddings[j]) for i, j in pairs
            ]
            looks += [row[i] for i in own if not any(i in pair for pair in pairs)]
            assert candidate.score == pytest.approx(max(looks), abs=1e-6)
        scores = [candidate.score for candidate in candidates]
        assert scores == sorted(scores, reverse=True)


def test_a_pill_of_many_references_must_be_like_two_of_them() -> None:
    around: list[list[float]] = [[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    with Gallery.create(SPACE, 4) as gallery:
        gallery.enrol([reference("a", n) for n in range(3)], rows(*around[:3]))
        assert gallery.search(rows(around[0]), 1)[0][0].score == pytest.approx(1.0)
        gallery.enrol([reference("a", 3)], rows(around[3]))
        assert len(gallery) == 4
        between = [2 / 5**0.5, 1 / 5**0.5, 0, 0]  # of the first two, 0.6 apart
        assert gallery.search(rows(between), 1)[0][0].score == pytest.approx(1.0)
        assert gallery.search(rows(around[0]), 1)[0][0].score == pytest.approx(0.8**0.5)
        assert gallery.search(rows(around[3]), 1)[0][0].score == pytest.approx(0.5**0.5)
        gallery.replace("a", [reference("a", 9)], rows(around[3]))
        assert gallery.search(rows(around[0]), 1)[0][0].score == pytest.approx(0.0)
        assert gallery.search(rows(around[3]), 1)[0][0].score == pytest.approx(1.0)


def test_looks_are_what_a_search_compares_with_those_of_the_gallery_beside_too() -> None:
    random = np.random.default_rng(7)
    embeddings, probes = unit(random, 30, 8), unit(random, 10, 8)
    with Gallery.create(SPACE, 8) as below, Gallery.create(SPACE, 8, beside=below) as gallery:
        below.enrol([reference("p0", i) for i in range(3)], embeddings[:3])
        gallery.enrol([reference(f"p{i % 6}", i) for i in range(3, 30)], embeddings[3:])
        looks, pills = gallery.looks()
        found = gallery.search(probes, n_pills=6)
    assert pills.count("p0") > len(embeddings[3:]) / 6  # pairs with what lies below
    best = {pill: (probes @ looks.T)[:, np.array(pills) == pill].max(axis=1) for pill in pills}
    for row, candidates in enumerate(found):
        assert len(candidates) == 6
        for candidate in candidates:
            assert candidate.score == pytest.approx(best[candidate.pill][row], abs=1e-6)


def test_galleries_beside_each_other_are_one_to_a_search_whichever_changes() -> None:
    with Gallery.create(SPACE, 2) as below, Gallery.create(SPACE, 2, beside=below) as gallery:
        gallery.enrol([reference("a", 0)], rows([1, 0]))
        below.enrol([reference("a", 1), reference("b", 0)], rows([0, 1], [0.6, 0.8]))
        for either in (below, gallery):
            found = either.search(rows([0, 1]), 5)[0]
            assert [(c.pill, round(c.score, 6)) for c in found] == [("a", 1.0), ("b", 0.8)]
        below.remove("a")
        assert [c.pill for c in gallery.search(rows([1, 0]), 5)[0]] == ["a", "b"]
        assert (below.pills(), gallery.pills()) == (["b"], ["a"])
        with pytest.raises(ValueError, match="beside"):
            Gallery.create(SPACE, 2, beside=below)


def test_scores_never_leave_the_range_of_a_cosine() -> None:
    random = np.random.default_rng(1)
    embeddings = unit(random, 200, 64) * np.float32(1.0005)  # within the tolerance of enrol
    with Gallery.create(SPACE, 64) as gallery:
        gallery.enrol([reference(f"{i}", i) for i in range(200)], embeddings)
        tops = [found[0].score for found in gallery.search(embeddings, 1)]
    assert tops == [1.0] * 200


def test_empty_gallery_finds_nothing() -> None:
    with Gallery.create(SPACE, 2) as gallery:
        assert gallery.search(rows([1, 0], [0, 1]), n_pills=5) == [[], []]
        assert gallery.search(np.empty((0, 2), dtype=np.float32), n_pills=5) == []
        assert (len(gallery), gallery.pills(), gallery.references()) == (0, [], [])
        assert gallery.looks()[0].shape == (0, gallery.dim)
        assert gallery.embeddings().shape == (0, 2)


def test_zero_probe_is_similar_to_nothing(gallery: Gallery) -> None:
    [found] = gallery.search(rows([0, 0]), n_pills=1)
    assert found == [Candidate("a", 0.0)]


def test_removed_pill_is_no_longer_found(gallery: Gallery) -> None:
    assert gallery.remove("a") == 2
    assert gallery.remove("a") == 0
    assert gallery.pills() == ["b", "c"]
    assert len(gallery) == 2
    [found] = gallery.search(rows([1, 0]), n_pills=3)
    assert [candidate.pill for candidate in found] == ["b", "c"]


def test_a_replaced_pill_has_the_new_references_alone(gallery: Gallery) -> None:
    gallery.replace("a", [reference("a", 7)], rows([0, 1]))
    assert gallery.references("a") == [reference("a", 7)]
    assert gallery.counts()["a"] == 1
    [found] = gallery.search(rows([0, 1]), n_pills=1)
    assert found == [Candidate("a", 1.0)]
    gallery.replace("a", [], rows().reshape(0, 2))
    assert gallery.pills() == ["b", "c"]


def test_a_replacement_that_is_refused_changes_nothing(gallery: Gallery) -> None:
    before = gallery.references()
    for references, embeddings in (
        ([reference("b", 1)], rows([1, 0])),
        ([reference("a", 1)], rows([2, 0])),
    ):
        with pytest.raises(ValueError, match="expected"):
            gallery.replace("a", references, embeddings)
    assert gallery.references() == before


def test_no_search_lacks_a_pill_that_is_being_replaced(gallery: Gallery) -> None:
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            gallery.replace("a", [reference("a", 0)], rows([1, 0]))

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        nearest = {gallery.search(rows([1, 0]), n_pills=1)[0][0].pill for _ in range(300)}
    finally:
        stop.set()
        replacing.join()
    assert nearest == {"a"}


def test_references_and_embeddings_are_sorted_and_aligned(gallery: Gallery) -> None:
    assert gallery.references() == [
        reference("a", 0), reference("a", 1), reference("b", 0), reference("c", 0)
    ]  # fmt: skip
    expected = rows([1, 0], [0.6, 0.8], [0, 1], [0, -1])
    np.testing.assert_array_equal(gallery.embeddings(), expected)
    assert gallery.references("a") == [reference("a", 0), reference("a", 1)]
    np.testing.assert_array_equal(gallery.embeddings("a"), expected[:2])
    assert (gallery.references("none"), gallery.embeddings("none").shape) == ([], (0, 2))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((1, 3), dtype=np.float32), r"expected \(N, 2\) float32"),
        (np.zeros(2, dtype=np.float32), r"expected \(N, 2\) float32"),
        (np.array([[1.0, 0.0]]), "float64"),
        (np.array([[np.nan, 0]], dtype=np.float32), "not finite"),
        (np.array([[1, 0], [0, 1]], dtype=np.float32), "1 names for 2 embeddings"),
        (np.array([[0.5, 0]], dtype=np.float32), r"embedding 0 has length 0\.5"),
        (np.array([[0, 0]], dtype=np.float32), "length 0"),
    ],
)
def test_bad_embeddings_are_refused_and_change_nothing(
    gallery: Gallery, embeddings: NDArray[np.float32], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gallery.enrol([reference("new", 0)], embeddings)
    assert gallery.pills() == ["a", "b", "c"]


def test_one_bad_row_among_good_ones_enrols_none(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="embedding 1 has length"):
        gallery.enrol([reference("new", 0), reference("new", 1)], rows([1, 0], [1, 1]))
    assert len(gallery) == 4
    assert "new" not in {c.pill for c in gallery.search(rows([1, 0]), 9)[0]}


def test_shard_that_fails_half_way_enrols_none(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_the_last_chunk(points: list[Any]) -> object:
        if len(points) < 10:
            raise OSError("no space left on device")
        return real_upsert(points)

    real_upsert = qdrant_edge.UpdateOperation.upsert_points
    operations = SimpleNamespace(
        upsert_points=refuse_the_last_chunk,
        delete_points=qdrant_edge.UpdateOperation.delete_points,
    )
    monkeypatch.setattr("pilltrack.core.look_index.CHUNK", 10)
    monkeypatch.setattr(qdrant_edge, "UpdateOperation", operations)
    with pytest.raises(OSError, match="no space left"):
        gallery.enrol(
            [reference(f"new {i}", 0) for i in range(15)], np.repeat(rows([1, 0]), 15, axis=0)
        )
    assert len(gallery) == 4
    assert [c.pill for c in gallery.search(rows([1, 0]), 9)[0]] == ["a", "b", "c"]


def test_reference_without_a_pill_is_refused(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="has no pill"):
        gallery.enrol([Reference("", "front", "x.jpg")], rows([1, 0]))


@pytest.mark.parametrize("shape", [(1, 3), (2,)])
def test_probe_of_another_shape_is_refused(gallery: Gallery, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 2\) float32"):
        gallery.search(np.zeros(shape, dtype=np.float32), n_pills=1)


def test_probe_that_is_not_finite_is_refused(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="not finite"):
        gallery.search(rows([np.nan, 0]), n_pills=1)


def test_searching_for_no_pills_is_refused(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="n_pills is 0"):
        gallery.search(rows([1, 0]), n_pills=0)


def test_another_space_is_refused_naming_both(gallery: Gallery) -> None:
    gallery.require_space(SPACE)
    with pytest.raises(SpaceMismatch, match=r"space-a.*space-b"):
        gallery.require_space("space-b")


def test_saved_gallery_loads_as_it_was(gallery: Gallery, tmp_path: Path) -> None:
    path = tmp_path / "gallery.safetensors"
    gallery.save(path)
    assert read_space(path) == SPACE
    with Gallery.load(path) as loaded:
        assert (loaded.space, loaded.dim) == (SPACE, 2)
        assert loaded.references() == gallery.references()
        np.testing.assert_array_equal(loaded.embeddings(), gallery.embeddings())
        probe = rows([0.28, 0.96])
        assert loaded.search(probe, 3) == gallery.search(probe, 3)


def test_a_background_is_saved_and_lowers_all_scores_of_a_probe_alike(
    gallery: Gallery, tmp_path: Path
) -> None:
    probe = rows([0.6, 0.8])
    [plain] = gallery.search(probe, 3)
    gallery.background = Background(rows([1, 0], [0.6, 0.8]), ["x", "a"])
    gallery.save(tmp_path / "g")
    assert read_background(tmp_path / "g", 2).pills == ["x", "a"]
    with Gallery.load(tmp_path / "g") as loaded:
        [lowered] = loaded.search(probe, 3)
    assert [c.pill for c in lowered] == [c.pill for c in plain]
    for before, after in zip(plain, lowered, strict=True):  # "a" itself is left out
        assert after.score == pytest.approx(before.score - WEIGHT * 0.6, abs=1e-3)


def test_a_background_is_kept_as_the_file_keeps_it_and_cannot_be_changed_from_outside(
    gallery: Gallery, tmp_path: Path
) -> None:
    embeddings = rows([0.6001, 0.7999])
    gallery.background = Background(embeddings, ["x"])
    embeddings[:] = np.nan
    gallery.save(tmp_path / "g")
    kept = read_background(tmp_path / "g", 2).embeddings
    np.testing.assert_array_equal(gallery.background.embeddings, kept)
    with pytest.raises(BundleRejected, match=r"shape \(1, 2\)"):
        read_background(tmp_path / "g", 3)


def test_a_background_that_does_not_fit_changes_nothing(gallery: Gallery) -> None:
    for embeddings, pills in ((rows([1, 0]), []), (rows([2, 0]), ["x"]), (rows([1, 0]), [""])):
        with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
            gallery.background = Background(embeddings, pills)
        assert len(gallery.background) == 0


def test_empty_gallery_survives_saving(tmp_path: Path) -> None:
    with Gallery.create(SPACE, 5) as empty:
        empty.save(tmp_path / "g")
    with Gallery.load(tmp_path / "g") as loaded:
        assert (len(loaded), loaded.dim) == (0, 5)


def test_same_content_gives_the_same_bytes_in_whatever_order(
    gallery: Gallery, tmp_path: Path
) -> None:
    gallery.save(tmp_path / "first")
    with Gallery.create(SPACE, 2) as other:
        other.enrol([reference("b", 0)], rows([0, 1]))
        other.enrol([reference("x", 0)], rows([0, 1]))
        other.enrol([reference("a", 1), reference("a", 0)], rows([0.6, 0.8], [1, 0]))
        other.enrol([reference("c", 0)], rows([0, -1]))
        other.remove("x")
        other.save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_gallery_file_is_plain_safetensors(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path / "g")
    with safe_open(tmp_path / "g", framework="numpy") as file:
        assert sorted(file.keys()) == ["background", "embeddings"]
        metadata = file.metadata()
        embeddings = file.get_tensor("embeddings")
    assert metadata["format"] == "pilltrack-gallery-2"
    assert json.loads(metadata["references"])[1] == ["a", "front", "a-1.jpg"]
    np.testing.assert_array_equal(embeddings, rows([1, 0], [0.6, 0.8], [0, 1], [0, -1]))


def test_saving_replaces_the_file_and_leaves_nothing_else(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(b"old")
    gallery.save(tmp_path / "g")
    assert [entry.name for entry in tmp_path.iterdir()] == ["g"]
    assert read_space(tmp_path / "g") == SPACE


GOOD: dict[str, NDArray[Any]] = {
    "background": np.array([[0, 1]], np.float16),
    "embeddings": np.eye(2, dtype=np.float32),
}
METADATA = {
    "format": "pilltrack-gallery-2",
    "space": SPACE,
    "background": '["c"]',
    "references": '[["a","",""],["b","",""]]',
}


def test_the_file_that_the_next_test_spoils_is_good(tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(save(GOOD, METADATA))
    with Gallery.load(tmp_path / "g") as loaded:
        assert loaded.pills() == ["a", "b"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "found"),
    [
        (GOOD, {"format": "pilltrack-gallery-1"}, "format 'pilltrack-gallery-1'"),
        (GOOD, {"background": "{}"}, "background that are not such a table"),
        (GOOD, {"background": '["c","d"]'}, "2 names for 1 background embeddings"),
        (GOOD, {"background": '[""]'}, "a name that is empty"),
        ({**GOOD, "background": np.eye(2)}, {}, "background of type F64"),
        (
            {**GOOD, "background": np.array([[0, 2]], np.float16)},
            {},
            "background embedding 0 has length 2",
        ),
        ({**GOOD, "background": np.array([[0, 0, 1]], np.float16)}, {}, r"shape \(1, 3\)"),
        (GOOD, {"extra": "x"}, "metadata .*extra"),
        (GOOD, {"space": ""}, "no name of an embedding space"),
        (GOOD, {"references": "{"}, "references that are not such a table"),
        (GOOD, {"references": '[["a","",""],["b",""]]'}, "references that are not such a table"),
        (GOOD, {"references": '[["a","",""],["b","",1]]'}, "references that are not such a table"),
        (GOOD, {"references": '[["a","",""]]'}, "1 names for 2 embeddings"),
        (GOOD, {"references": '[["a","",""],["","",""]]'}, "has no pill"),
        ({"other": GOOD["embeddings"]}, {}, "tensors .*other"),
        ({**GOOD, "other": GOOD["embeddings"]}, {}, "tensors .*other"),
        ({**GOOD, "embeddings": np.eye(2)}, {}, "type F64"),
        ({**GOOD, "embeddings": np.ones(2, np.float32)}, {}, r"shape \[2\]"),
        (
            {**GOOD, "embeddings": np.empty((0, 0), np.float32)},
            {"references": "[]"},
            r"shape \[0, 0\]",
        ),
        ({**GOOD, "embeddings": np.eye(2, dtype=np.float32) * 2}, {}, "has length 2"),
        ({**GOOD, "embeddings": np.full((2, 2), np.inf, np.float32)}, {}, "not finite"),
    ],
)
def test_spoiled_gallery_file_is_refused_by_name(
    tensors: dict[str, NDArray[Any]], metadata: dict[str, str], found: str, tmp_path: Path
) -> None:
    (tmp_path / "spoiled").write_bytes(save(tensors, METADATA | metadata))
    with pytest.raises(BundleRejected, match=f"spoiled: .*{found}"):
        Gallery.load(tmp_path / "spoiled")


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_truncated_gallery_file_is_refused(gallery: Gallery, keep: int, tmp_path: Path) -> None:
    gallery.save(tmp_path / "g")
    (tmp_path / "g").write_bytes((tmp_path / "g").read_bytes()[:keep])
    with pytest.raises(BundleRejected, match="damaged"):
        Gallery.load(tmp_path / "g")


def test_file_that_promises_a_huge_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(BundleRejected, match="damaged"):
        Gallery.load(tmp_path / "g")


def test_missing_gallery_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRejected, match="cannot be read"):
        Gallery.load(tmp_path / "absent")


def test_refused_file_leaves_no_shard_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (tmp_path / "g").write_bytes(
        save({**GOOD, "embeddings": np.zeros((2, 2), np.float32)}, METADATA)
    )
    with pytest.raises(BundleRejected):
        Gallery.load(tmp_path / "g")
    assert list(scratch.iterdir()) == []


def test_closing_removes_the_private_directory_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gallery = Gallery.create(SPACE, 2)
    assert len(list(tmp_path.iterdir())) == 1
    gallery.close()
    gallery.close()
    assert list(tmp_path.iterdir()) == []


def test_given_directory_is_kept(tmp_path: Path) -> None:
    with Gallery.create(SPACE, 2, tmp_path / "shard"):
        pass
    assert (tmp_path / "shard").is_dir()


def test_threads_may_enrol_remove_and_search_at_once() -> None:
    embeddings = unit(np.random.default_rng(2), 50, 8)
    with Gallery.create(SPACE, 8) as gallery:
        gallery.enrol([reference("stays", 0)], embeddings[:1])

        def work(pill: str) -> None:
            for i in range(20):
                gallery.enrol([reference(pill, i)] * 5, embeddings[i : i + 5])
                assert "stays" in {c.pill for c in gallery.search(embeddings[:1], 9)[0]}
                assert gallery.remove(pill) == 5

        with ThreadPoolExecutor(4) as pool:
            for result in [pool.submit(work, pill) for pill in "abcd"]:
                result.result()
        assert gallery.pills() == ["stays"]


def reference(pill: str, number: int) -> Reference:
    return Reference(pill, "front", f"{pill}-{number}.jpg")


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def unit(random: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    values = random.normal(size=(n, dim))
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = (values / lengths).astype(np.float32)
    return normalised


@pytest.mark.parametrize(
    "do",
    [
        lambda gallery: gallery.enrol([reference("a", 5)], rows([-1, 0])),
        lambda gallery: gallery.replace("a", [reference("a", 5)], rows([-1, 0])),
        lambda gallery: gallery.remove("a"),
    ],
)
def test_a_change_whose_last_step_fails_changes_nothing(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, do: Callable[[Gallery], object]
) -> None:
    def refuse(ids: list[Any]) -> object:
        if first := ids and not failed:
            failed.append(first)
            raise OSError("no space left on device")
        return real_delete(ids)

    failed: list[object] = []
    real_delete = qdrant_edge.UpdateOperation.delete_points
    operations = SimpleNamespace(
        upsert_points=qdrant_edge.UpdateOperation.upsert_points, delete_points=refuse
    )
    before = (gallery.references(), gallery.search(rows([0.8, 0.6]), 5))
    with monkeypatch.context() as patch:
        patch.setattr(qdrant_edge, "UpdateOperation", operations)
        with pytest.raises(OSError, match="no space left"):
            do(gallery)
    assert (gallery.references(), gallery.search(rows([0.8, 0.6]), 5)) == before
    assert gallery.remove("a") == 2
    assert [c.pill for c in gallery.search(rows([0.8, 0.6]), 5)[0]] == ["b", "c"]
