"""The pills that are easily confused are found, ordered by danger, and told apart."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.errors import DatasetRejected, ImageRejected
from pilltrack.core.gallery import Reference
from pilltrack.pipeline import lookalikes as module
from pilltrack.pipeline.lookalikes import (
    COLUMNS,
    LookAlike,
    Pair,
    load_lookalikes,
    measure_pictures,
    same_drug_other_strength,
    told_apart_by,
    write_lookalikes,
)
from pilltrack.pipeline.table import PillRow, write_pills
from tests.pipeline.pill_zips import Pixels, png

Embeddings = NDArray[np.float32]


def find_lookalikes(
    embeddings: Embeddings,
    references: Sequence[Reference],
    pills: Mapping[str, PillRow],
    confusions: Mapping[Pair, int],
    n_probes: Mapping[str, int],
    *,
    limit: int = 50,
) -> list[LookAlike]:
    """The function itself, where no photo was given a wrong name."""
    return module.find_lookalikes(
        embeddings, references, pills, confusions, {}, n_probes, limit=limit
    )


def at_angles(*degrees: float) -> Embeddings:
    """Unit vectors in the plane: the similarity of two is the cosine between them."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def references(*pills: str) -> list[Reference]:
    return [Reference(pill, "", f"images/{pill}/{n}.png") for n, pill in enumerate(pills)]


def names(found: list[LookAlike]) -> list[str]:
    return [row.pill_a + row.pill_b for row in found]


def random_gallery(
    seed: int, n_references: int, n_pills: int
) -> tuple[Embeddings, list[Reference]]:
    draw = np.random.default_rng(seed)
    embeddings = draw.normal(size=(n_references, 3)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    pills = [f"p{n:04d}" for n in draw.integers(0, n_pills, n_references)]
    return embeddings, references(*pills)


# --- which pairs, in which order ---------------------------------------------------------------


def test_pairs_that_nothing_confused_are_ordered_by_similarity() -> None:
    found = find_lookalikes(at_angles(0, 10, 40), references("a", "b", "c"), {}, {}, {})
    assert names(found) == ["ab", "bc", "ac"]
    assert [row.similarity for row in found] == [0.98481, 0.86603, 0.76604]  # cosines of 10, 30, 40
    assert {(row.n_probes, row.n_confused, row.confusion_rate) for row in found} == {(0, 0, None)}


def test_closest_references_stand_for_a_pair() -> None:
    embeddings = at_angles(0, 90, 180, 80)
    found = find_lookalikes(embeddings, references("b", "b", "a", "a"), {}, {}, {})
    assert len(found) == 1
    assert (found[0].image_a, found[0].image_b) == ("images/a/3.png", "images/b/1.png")
    assert found[0].similarity == 0.98481


def test_confused_pairs_come_before_more_similar_ones() -> None:
    found = find_lookalikes(
        at_angles(0, 1, 90), references("a", "b", "c"), {}, {("c", "a"): 1}, {"c": 4, "a": 6}
    )
    assert names(found) == ["ac", "ab", "bc"]
    first = found[0]
    assert (first.n_confused, first.n_probes, first.confusion_rate) == (1, 10, 0.1)
    assert (found[1].n_probes, found[1].confusion_rate) == (6, 0)


def test_confusions_of_both_directions_are_added_and_right_answers_passed_over() -> None:
    confusions = {("a", "b"): 1, ("b", "a"): 2, ("a", "a"): 5}
    found = find_lookalikes(at_angles(0, 1), references("a", "b"), {}, confusions, {"a": 6, "b": 3})
    assert [(row.n_confused, row.n_probes, row.confusion_rate) for row in found] == [(3, 9, 0.3333)]


def test_eight_of_twenty_come_before_one_of_one_and_two_of_two_before_both() -> None:
    confusions = {("a", "b"): 8, ("c", "d"): 1, ("e", "f"): 2}
    found = find_lookalikes(
        at_angles(0, 60, 120, 180, 240, 300),
        references(*"abcdef"),
        {},
        confusions,
        {"a": 20, "c": 1, "e": 2},
        limit=6,
    )
    # Wilson 1927, lower ends: 2/2 0.342, 8/20 0.219, 1/1 0.207
    assert names(found)[:3] == ["ef", "ab", "cd"]


def test_most_similar_pairs_keep_half_of_the_places() -> None:
    pills = [f"p{n}" for n in range(20)]
    embeddings = at_angles(*(n * n / 2 for n in range(20)))  # neighbours, ever farther apart
    far = {(f"p{n}", f"p{n - 9}"): 1 for n in range(9, 20)} | {("p17", "p8"): 2}  # eleven pairs
    found = find_lookalikes(
        embeddings, references(*pills), {}, far, dict.fromkeys(pills, 2), limit=6
    )
    assert len(found) == 6
    assert [row.n_confused for row in found] == [2, 1, 1, 0, 0, 0]
    assert names(found)[0] == "p17p8"
    assert names(found)[3:] == ["p0p1", "p1p2", "p0p2"]  # 0.5, 1.5 and 2 degrees


def test_similar_pairs_fill_the_places_that_no_confusion_takes() -> None:
    found = find_lookalikes(
        at_angles(0, 5, 11, 18), references(*"abcd"), {}, {("a", "d"): 1}, {"a": 1}, limit=4
    )
    assert names(found) == ["ad", "ab", "bc", "cd"]  # 5, 6, 7 degrees


def test_a_wrong_name_is_worse_than_any_number_of_nearest_references() -> None:
    wrong = {("b", "c"): 1}
    found = module.find_lookalikes(
        at_angles(0, 1, 90),
        references("a", "b", "c"),
        {},
        {("a", "b"): 9, ("c", "b"): 1},
        wrong,
        {"a": 9, "b": 9, "c": 1},
    )
    assert names(found) == ["bc", "ab", "ac"]
    assert [(row.n_confused, row.n_misnamed) for row in found] == [(1, 1), (9, 0), (0, 0)]


def test_ties_are_ordered_by_name() -> None:
    embeddings = np.ones((4, 1), np.float32)
    found = find_lookalikes(embeddings, references(*"dbca"), {}, {}, {}, limit=4)
    assert names(found) == ["ab", "ac", "ad", "bc"]


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_limit_is_kept(limit: int) -> None:
    confusions = {("a", "c"): 1, ("a", "b"): 1}
    found = find_lookalikes(
        at_angles(0, 1, 2), references(*"abc"), {}, confusions, {"a": 2}, limit=limit
    )
    assert len(found) == limit


@pytest.mark.parametrize("pills", ["", "a", "aa"])
def test_fewer_than_two_pills_make_no_pair(pills: str) -> None:
    embeddings = at_angles(*range(len(pills)))
    assert find_lookalikes(embeddings, references(*pills), {}, {}, {}) == []


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_references=st.integers(2, 60),
    n_pills=st.integers(2, 12),
    limit=st.integers(1, 20),
    rows_per_chunk=st.integers(1, 20),
)
def test_most_similar_pairs_are_those_of_a_plain_search(
    seed: int, n_references: int, n_pills: int, limit: int, rows_per_chunk: int
) -> None:
    embeddings, listed = random_gallery(seed, n_references, n_pills)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS_PER_CHUNK", rows_per_chunk)  # pills across chunks
        found = find_lookalikes(embeddings, listed, {}, {}, {}, limit=limit)
    best: dict[tuple[str, str], float] = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(listed), 2):
        if a.pill != b.pill:
            pair = (min(a.pill, b.pill), max(a.pill, b.pill))
            similarity = float(embeddings[i].astype(float) @ embeddings[j].astype(float))
            best[pair] = max(best.get(pair, -1.0), similarity)
    expected = sorted(best.values(), reverse=True)[:limit]
    assert [row.similarity for row in found] == pytest.approx(expected, abs=1e-4)
    for row in found:
        assert row.similarity == pytest.approx(best[row.pill_a, row.pill_b], abs=1e-4)
        i, j = (
            next(n for n, r in enumerate(listed) if r.image == image)
            for image in (row.image_a, row.image_b)
        )
        assert (listed[i].pill, listed[j].pill) == (row.pill_a, row.pill_b)
        assert float(embeddings[i] @ embeddings[j]) == pytest.approx(row.similarity, abs=1e-3)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_order_of_the_references_does_not_matter(seed: int, order: object) -> None:
    embeddings, listed = random_gallery(seed, 30, 8)
    shuffled = np.random.default_rng(seed + 1).permutation(30)
    again = find_lookalikes(embeddings[shuffled], [listed[n] for n in shuffled], {}, {}, {})
    assert again == find_lookalikes(embeddings, listed, {}, {}, {})


def test_ten_thousand_references_take_seconds() -> None:
    draw = np.random.default_rng(0)
    embeddings = draw.normal(size=(10_000, 256)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    listed = references(*(f"p{n % 2269:04d}" for n in range(10_000)))
    embeddings[9_999] = embeddings[3]
    start = time.perf_counter()
    found = find_lookalikes(embeddings, listed, {}, {}, {})
    assert time.perf_counter() - start < 30
    assert (found[0].pill_a, found[0].pill_b) == ("p0003", f"p{9_999 % 2269:04d}")
    assert found[0].similarity == 1


def test_embeddings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="of 1 references"):
        find_lookalikes(at_angles(0, 1), references("a"), {}, {}, {})
    with pytest.raises(ValueError, match="float32"):
        find_lookalikes(np.ones((1, 2)), references("a"), {}, {}, {})  # type: ignore[arg-type]


def test_confusions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="'x', which has no reference"):
        find_lookalikes(at_angles(0, 1), references(*"ab"), {}, {("a", "x"): 1}, {"a": 1})
    with pytest.raises(ValueError, match="3 of 2 test photos"):
        find_lookalikes(at_angles(0, 1), references(*"ab"), {}, {("a", "b"): 3}, {"a": 2})


# --- what tells them apart ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"colour": "white"}, {"colour": "blue"}, "colour"),
        ({"colour": "Light  Blue "}, {"colour": "light blue"}, ""),
        ({"colour": "white"}, {}, ""),
        ({"shape": "round"}, {"shape": "oval"}, "shape"),
        ({"size_mm": "9"}, {"size_mm": "10.1"}, "size"),
        ({"size_mm": "9"}, {"size_mm": "10"}, ""),
        ({"size_mm": "2.2"}, {"size_mm": "1.2"}, ""),
        ({"size_mm": "9"}, {}, ""),
        ({"imprint": "TEVA;5310"}, {"imprint": "teva; 5311"}, "imprint"),
        ({"imprint": "TEVA;5310"}, {"imprint": "5310 ; teva"}, ""),
        ({"imprint": ";"}, {"imprint": "5310"}, ""),
        ({"name": "x", "strength": "1 mg"}, {"name": "y", "strength": "2 mg"}, ""),
        (
            {"colour": "white", "shape": "round", "size_mm": "9", "imprint": "A"},
            {"colour": "pink", "shape": "oval", "size_mm": "12", "imprint": "B"},
            "colour; shape; size; imprint",
        ),
    ],
)
def test_attributes_that_are_known_to_differ_are_named(
    a: dict[str, str], b: dict[str, str], expected: str
) -> None:
    first, second = PillRow("a", **a), PillRow("b", **b)
    assert told_apart_by(first, second) == told_apart_by(second, first) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({}, {}, "colour (measured); shape (measured)"),
        ({"colour": "white"}, {}, "colour (measured); shape (measured)"),
        ({"colour": "white"}, {"colour": "white"}, "shape (measured)"),
        ({"shape": "oval"}, {"shape": "round"}, "colour (measured); shape"),
    ],
)
def test_pictures_count_only_where_the_tables_say_nothing(
    a: dict[str, str], b: dict[str, str], expected: str
) -> None:
    told = told_apart_by(
        PillRow("a", **a), PillRow("b", **b), colours_differ=True, shapes_differ=True
    )
    assert told == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("Advil", "200 mg"), ("ADVIL ", "400 mg"), True),
        (("Advil", "200 mg"), ("Advil", "200MG"), False),
        (("Advil", "200 mg"), ("Motrin", "400 mg"), False),
        (("Advil", ""), ("Advil", "400 mg"), False),
        (("", "200 mg"), ("", "400 mg"), False),
    ],
)
def test_other_strength_is_flagged_when_names_and_strengths_are_known(
    a: tuple[str, str], b: tuple[str, str], expected: bool
) -> None:
    rows = [
        PillRow(pill, name=name, strength=s) for pill, (name, s) in zip("ab", (a, b), strict=True)
    ]
    assert same_drug_other_strength(*rows) is expected
    found = find_lookalikes(
        at_angles(0, 1), references("a", "b"), dict(zip("ab", rows, strict=True)), {}, {}
    )
    assert [row.same_drug_other_strength for row in found] == [expected]


def test_pills_named_by_their_code_alone_are_not_guessed_about() -> None:
    rows = [PillRow("0093-0010"), PillRow("0093-0012")]
    assert not same_drug_other_strength(*rows)
    assert told_apart_by(*rows) == ""


# --- what the pictures say ---------------------------------------------------------------------

WHITE, GREY, BLUE = (205, 205, 205), (165, 165, 165), (120, 150, 215)


def tablet(colour: tuple[int, int, int], axes: tuple[int, int] = (80, 80), turn: int = 0) -> Pixels:
    """A tablet on black, 224 x 224."""
    image: Pixels = np.zeros((224, 224, 3), np.uint8)
    cv2.ellipse(image, (112, 112), axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
    return image


def on_a_table(colour: tuple[int, int, int]) -> Pixels:
    """The same, on a surface too busy to cut it out."""
    image: Pixels = np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)
    cv2.circle(image, (112, 112), 60, colour, -1)
    return image


def measured(
    tmp_path: Path, a: Pixels, b: Pixels, pills: tuple[PillRow, ...] = (), told: str = ""
) -> LookAlike:
    (tmp_path / "images").mkdir()
    for name, image in (("a", a), ("b", b)):
        (tmp_path / f"images/{name}.png").write_bytes(png(image))
    write_pills(tmp_path, pills)
    row = LookAlike("a", "b", "images/a.png", "images/b.png", 0.9, 4, 1, 0, 0.25, told, False)
    found = measure_pictures(tmp_path, [row])
    assert [(r.pill_a, r.image_b, r.similarity, r.n_confused) for r in found] == [
        ("a", "images/b.png", 0.9, 1)
    ]
    return found[0]


def test_one_tablet_photographed_darker_does_not_differ_in_colour(tmp_path: Path) -> None:
    row = measured(tmp_path, tablet(WHITE), tablet(GREY))
    assert row.colour_difference == pytest.approx((82.05 - 67.58) / 3, abs=0.2)  # L* of the greys
    assert row.aspect_difference == pytest.approx(0, abs=0.01)
    assert row.told_apart_by == ""


def test_blue_and_white_tablet_differ_in_colour(tmp_path: Path) -> None:
    row = measured(tmp_path, tablet(WHITE), tablet(BLUE))
    assert row.colour_difference is not None
    assert row.colour_difference > 20
    assert row.told_apart_by == "colour (measured)"


@pytest.mark.parametrize("turn", [0, 30, 45, 90])
def test_shape_is_measured_whichever_way_a_pill_lies(tmp_path: Path, turn: int) -> None:
    row = measured(tmp_path, tablet(WHITE, (90, 60), turn), tablet(WHITE, (80, 80)))
    assert row.aspect_difference == pytest.approx(0.5, abs=0.03)
    assert row.told_apart_by == "shape (measured)"


def test_slightly_longer_pill_does_not_differ_in_shape(tmp_path: Path) -> None:
    row = measured(tmp_path, tablet(WHITE, (88, 80)), tablet(WHITE))
    assert row.aspect_difference == pytest.approx(0.1, abs=0.02)
    assert row.told_apart_by == ""


def test_photo_with_surroundings_gives_the_colour_of_its_middle_and_no_shape(
    tmp_path: Path,
) -> None:
    row = measured(tmp_path, on_a_table(WHITE), tablet(BLUE, (90, 60)))
    assert row.aspect_difference is None
    assert row.told_apart_by == "colour (measured)"


def test_colours_outside_the_studio_must_differ_by_more(tmp_path: Path) -> None:
    warm = (225, 205, 180)
    (tmp_path / "studio").mkdir()
    (tmp_path / "table").mkdir()
    studio = measured(tmp_path / "studio", tablet(WHITE), tablet(warm))
    outside = measured(tmp_path / "table", on_a_table(WHITE), on_a_table(warm))
    assert studio.colour_difference == pytest.approx(outside.colour_difference or 0, abs=0.5)
    assert 8 < (outside.colour_difference or 0) < 20
    assert studio.told_apart_by == "colour (measured)"
    assert outside.told_apart_by == ""


def test_tables_are_believed_before_pictures(tmp_path: Path) -> None:
    pills = (PillRow("a", colour="white", imprint="X"), PillRow("b", colour="white", imprint="Y"))
    row = measured(tmp_path, tablet(WHITE), tablet(BLUE, (90, 60)), pills, told="imprint")
    assert row.told_apart_by == "shape (measured); imprint"
    assert (row.colour_difference or 0) > 20


def test_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    write_pills(tmp_path, [])
    row = LookAlike("a", "b", "images/a.png", "images/b.png", 0.9, 0, 0, 0, None, "", False)
    with pytest.raises(ImageRejected, match=r"images/a\.png: cannot be read"):
        measure_pictures(tmp_path, [row])


# --- the table ---------------------------------------------------------------------------------

ROWS = [
    LookAlike("b", "c d", "i/1,2.png", "j", 0.9, 4, 2, 1, 0.25, "colour; size", True, 12.5, 0.125),
    LookAlike("a", "b", "i", "j", -0.125, 0, 0, 0, None, "", False),
]


def test_written_table_is_read_back_in_its_order(tmp_path: Path) -> None:
    path = write_lookalikes(tmp_path / "lookalikes.csv", ROWS)
    assert load_lookalikes(path) == ROWS
    assert path.read_text().splitlines() == [
        "pill_a,pill_b,image_a,image_b,similarity,n_probes,n_confused,n_misnamed,confusion_rate,"
        "told_apart_by,same_drug_other_strength,colour_difference,aspect_difference",
        'b,c d,"i/1,2.png",j,0.9,4,2,1,0.25,colour; size,1,12.5,0.125',
        "a,b,i,j,-0.125,0,0,0,,,0,,",
    ]


def test_empty_table_is_read_back(tmp_path: Path) -> None:
    assert load_lookalikes(write_lookalikes(tmp_path / "x.csv", [])) == []


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("similarity", "high", "similarity 'high'; expected a number"),
        ("similarity", "", "similarity ''; expected a number"),
        ("similarity", "nan", "similarity 'nan'; expected a number"),
        ("confusion_rate", "x", "confusion_rate 'x'; expected a number"),
        ("colour_difference", "inf", "colour_difference 'inf'; expected a number"),
        ("n_probes", "-1", "n_probes '-1'; expected a count"),
        ("n_confused", "1.5", "n_confused '1.5'; expected a count"),
        ("same_drug_other_strength", "yes", "same_drug_other_strength 'yes'; expected 0, 1"),
        ("pill_b", "a", "the pair 'b', 'a'; expected each pair once, in order"),
        ("pill_b", "b", "the pair 'b', 'b'; expected each pair once, in order"),
    ],
)
def test_damaged_table_is_refused_with_its_line(
    tmp_path: Path, column: str, value: str, found: str
) -> None:
    path = write_lookalikes(tmp_path / "x.csv", ROWS)
    lines = path.read_text().splitlines()
    values = ["b", "c d", "i", "j", "0.9", "4", "2", "1", "0.25", "colour", "1", "12.5", "0.1"]
    values[COLUMNS.index(column)] = value
    path.write_text("\n".join([lines[0], ",".join(values)]))
    with pytest.raises(DatasetRejected) as caught:
        load_lookalikes(path)
    assert str(caught.value).startswith(f"{path}:2: {found}")


def test_pair_that_stands_in_the_table_twice_is_refused(tmp_path: Path) -> None:
    path = write_lookalikes(tmp_path / "x.csv", [ROWS[1], ROWS[1]])
    with pytest.raises(DatasetRejected, match=r"x\.csv:3: the pair 'a', 'b'"):
        load_lookalikes(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = write_lookalikes(tmp_path / "x.csv", ROWS)
    path.write_text(path.read_text().replace("n_probes", "probes"))
    with pytest.raises(DatasetRejected, match="unknown column 'probes'"):
        load_lookalikes(path)
