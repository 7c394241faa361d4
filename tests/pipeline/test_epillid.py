"""The ePillID protocol: numbers by hand, a brute-force computation, and every refusal."""

import csv
import doctest
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilltrack.core.embedder import open_embedder
from pilltrack.core.errors import DatasetRejected, ImageRejected
from pilltrack.core.image import read_image
from pilltrack.pipeline import epillid
from pilltrack.pipeline.epillid import (
    IMAGES,
    NAME,
    TABLES,
    as_text,
    evaluate_epillid,
    global_average_precision,
    global_average_precision_at_1,
    mean_average_precision,
    measure_pairs,
    side_pairs,
)
from tests.pipeline.pill_zips import brighter, photo, picture, png, tree
from tests.tiny_bundle import MODEL, tiny_bundle

HEADER = [
    "", "images", "pilltype_id", "label_code_id", "prod_code_id",
    "is_ref", "is_front", "is_new", "image_path", "label",
]  # fmt: skip
Row = tuple[str, str, bool, bool]  # image, label, is_ref, is_front


# --- metrics, by hand ---------------------------------------------------------------------------

# Right: 0.9 (rank 1), 0.6 (rank 2), and 0.4, which ties with c and so has rank 2.
SCORES = [[0.9, 0.5, 0.1], [0.8, 0.6, 0.2], [0.4, 0.3, 0.4]]
COLUMNS, TRUTH = ["a", "b", "c"], ["a", "b", "a"]


def test_map_is_the_mean_of_one_over_rank() -> None:
    assert mean_average_precision(SCORES, COLUMNS, TRUTH) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 3), (2, 2 / 3), (9, 2 / 3)])
def test_map_at_k_counts_only_ranks_up_to_k(k: int, expected: float) -> None:
    assert mean_average_precision(SCORES, COLUMNS, TRUTH, k=k) == pytest.approx(expected)


def test_map_at_0_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        mean_average_precision(SCORES, COLUMNS, TRUTH, k=0)


def test_gap_ranks_the_answers_of_all_queries_together() -> None:
    # The list: 0.9 right, 0.8, 0.6 right, 0.5, then 0.4 right and 0.4, and three more.
    # Precision at the right ones: 1/1, 2/3, and 3/6 because both 0.4 pass one threshold.
    gap = global_average_precision(SCORES, COLUMNS, TRUTH)
    assert gap == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)


def test_gap_is_lower_than_map_when_queries_need_different_thresholds() -> None:
    # Each right answer comes first in its row, yet 0.2 comes behind 0.5 and 0.4 in the list.
    scores = [[0.9, 0.5, 0.4], [0.2, 0.1, 0.0]]
    assert mean_average_precision(scores, COLUMNS, ["a", "a"]) == 1
    assert global_average_precision(scores, COLUMNS, ["a", "a"]) == (1 + 2 / 4) / 2


def test_gap_at_1_ranks_the_best_answer_of_each_query() -> None:
    # Best answers: 0.9 right, 0.7 wrong, 0.5 right: precision 1/1 and 2/3.
    scores = [[0.9, 0.8], [0.7, 0.6], [0.2, 0.5]]
    gap = global_average_precision_at_1(scores, ["a", "b"], ["a", "b", "b"])
    assert gap == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("scores", [[[0.1, 0.9]], [[0.5, 0.5]]])
def test_gap_at_1_without_a_right_best_answer_is_0(scores: list[list[float]]) -> None:
    assert global_average_precision_at_1(scores, ["a", "b"], ["a"]) == 0


def test_gap_at_1_does_not_let_a_tie_count_as_right() -> None:
    # 0.9 is right; 0.4 of the third query is right too, but c has 0.4 as well.
    assert global_average_precision_at_1(SCORES, COLUMNS, TRUTH) == 1
    ahead = [[0.3, 0.2, 0.1], [0.4, 0.3, 0.4]]  # the tie is wrong and comes first: 1/2
    assert global_average_precision_at_1(ahead, COLUMNS, ["a", "a"]) == 1 / 2


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3, st.sampled_from("abc")), min_size=1))
def test_gap_is_precision_summed_over_steps_of_recall(
    rows: list[tuple[int, int, int, str]],
) -> None:
    items = [
        (score, label == truth)
        for *scores, truth in rows
        for label, score in zip("abc", scores, strict=True)
    ]
    expected, recall = Fraction(0), Fraction(0)
    for threshold in sorted({score for score, _ in items}, reverse=True):
        passed = [right for score, right in items if score >= threshold]
        step = Fraction(sum(passed), len(rows)) - recall
        recall += step
        expected += step * Fraction(sum(passed), len(passed))
    gap = global_average_precision([row[:3] for row in rows], COLUMNS, [row[3] for row in rows])
    assert gap == pytest.approx(float(expected))


def test_every_front_is_paired_with_every_back_of_its_label() -> None:
    labels = ["a", "b", "a", "a", "b", "c", "a"]
    fronts = [True, False, False, True, True, True, False]
    assert side_pairs(labels, fronts) == [(0, 2), (0, 6), (3, 2), (3, 6), (4, 1)]


def test_pairs_average_two_photos_and_single_sides_count_once_for_each_pair() -> None:
    # Photos of a: fronts 0 and 1, back 2. Columns: a, b.
    scores = np.array([[0.8, 0.4], [0.1, 0.9], [0.6, 0.2]])
    measured = measure_pairs(scores, ["a", "b"], ["a", "a", "a"], [(0, 2), (1, 2)])
    # Pairs: (0.7, 0.3) and (0.35, 0.55); ranks 1 and 2; list 0.7 right, 0.55, 0.35 right, 0.3.
    # Best answers: 0.7 right, 0.55 wrong.
    assert measured["both_sides"] == pytest.approx(
        {"map": 3 / 4, "map_at_1": 1 / 2, "gap": (1 + 2 / 3) / 2, "gap_at_1": 1}
    )
    # Queries: photos 0, 1, 2, 2; ranks 1, 2, 1, 1. List: 0.9, then right 0.8, right 0.6 twice,
    # 0.4, 0.2 twice, right 0.1. Best answers: 0.9 wrong, right 0.8, right 0.6 twice.
    assert measured["single_side"] == pytest.approx(
        {
            "map": 7 / 8,
            "map_at_1": 3 / 4,
            "gap": (1 / 2 + 3 / 4 + 3 / 4 + 4 / 8) / 4,
            "gap_at_1": (1 / 2 + 3 / 4 + 3 / 4) / 3,
        }
    )


def test_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(epillid)
    assert (results.failed, results.attempted >= 7) == (0, True)


# --- tiny data sets in the benchmark's layout ---------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle around the golden model; its own gallery plays no part here."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), "other", picture("other"))


def table(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEADER)
    for number, (image, label, is_ref, is_front) in enumerate(rows):
        writer.writerow([number, image, label, 1, 2, is_ref, is_front, False, image, label])
    return text.getvalue()


def data_set(root: Path, folds: list[list[Row]], references: list[Row]) -> Path:
    """Write the tables; the pickle beside them must never be opened."""
    parts = {"all": [*references, *(row for fold in folds for row in fold)]}
    parts |= {str(number): fold for number, fold in enumerate(folds)}
    files: dict[str, bytes | str] = {
        f"{TABLES}/{NAME}_{part}.csv": table(rows) for part, rows in parts.items()
    }
    files[f"{TABLES}/label_encoder.pickle"] = b"no pickle"
    return tree(root, files)


REFERENCES: list[Row] = [
    ("dr/a-front.png", "a", True, True),
    ("dr/a-back.png", "a", True, False),
    ("dr/b-front.png", "b", True, True),
    ("dr/b-back.png", "b", True, False),
]
FOLDS: list[list[Row]] = [
    [  # copies of their own references: everything is right
        ("dc/0.png", "a", False, True),
        ("dc/1.png", "a", False, False),
        ("dc/2.png", "b", False, True),
        ("dc/3.png", "b", False, False),
    ],
    [  # said to be a, but copies of the references of b
        ("dc/4.png", "a", False, True),
        ("dc/5.png", "a", False, False),
    ],
    [  # a: 2 fronts x 1 back; b: no back, so left out
        ("dc/6.png", "a", False, True),
        ("dc/7.png", "a", False, True),
        ("dc/8.png", "a", False, False),
        ("dc/9.png", "b", False, True),
    ],
    [("dc/10.png", "b", False, True), ("dc/11.png", "b", False, False)],
    [("dc/12.png", "a", False, True), ("dc/13.png", "a", False, False)],
]
SHOWN = ["a-front", "a-back", "b-front", "b-back", "b-front", "b-back"]  # by dc/0 to dc/5


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two pill types; folds 0 and 1 can be worked by hand."""
    pixels = {image: photo(Path(image).stem) for image, *_ in REFERENCES}
    pixels |= {f"dc/{number}.png": photo(name) for number, name in enumerate(SHOWN)}
    pixels |= {f"dc/{number}.png": photo(f"a photo {number}") for number in range(6, 14)}
    tree(tmp_path / IMAGES, pixels)
    return data_set(tmp_path, FOLDS, REFERENCES)


PERFECT = {"map": 1.0, "map_at_1": 1.0, "gap": 1.0, "gap_at_1": 1.0}


def test_photos_like_their_own_references_score_1(bundle: Path, tiny: Path) -> None:
    report = evaluate_epillid(bundle, tiny, [0])
    assert (report["n_labels"], report["n_references"], report["bundle"]) == (2, 4, "tiny")
    assert report["folds"] == [
        {
            "fold": 0,
            "holdout": False,
            "n_photos": 4,
            "n_paired_photos": 4,
            "n_paired_labels": 2,
            "n_pairs": 2,
            "both_sides": PERFECT,
            "single_side": PERFECT,
        }
    ]


def test_photos_like_the_references_of_another_pill_score_as_worked_by_hand(
    bundle: Path, tiny: Path
) -> None:
    fold = evaluate_epillid(bundle, tiny, [1])["folds"][0]
    # One pair: b 1.0 (wrong), then a: rank 2, precision 1/2; the best answer is wrong.
    assert fold["both_sides"] == {"map": 0.5, "map_at_1": 0.0, "gap": 0.5, "gap_at_1": 0.0}
    # Two photos: two wrong answers with 1.0, then the right ones: precision 1/3 and 2/4.
    gap = round((1 / 3 + 2 / 4) / 2, 5)
    assert fold["single_side"] == {"map": 0.5, "map_at_1": 0.0, "gap": gap, "gap_at_1": 0.0}


def test_mean_and_sample_deviation_are_over_the_chosen_folds(bundle: Path, tiny: Path) -> None:
    report = evaluate_epillid(bundle, tiny, [1, 0])
    assert [fold["fold"] for fold in report["folds"]] == [0, 1]
    # MAP 1 and 1/2: mean 3/4, deviation sqrt(2 (1/4)^2 / 1); MAP@1 1 and 0: 1/2, sqrt(1/2).
    assert report["mean"]["both_sides"] == {
        "map": 0.75, "map_at_1": 0.5, "gap": 0.75, "gap_at_1": 0.5,
    }  # fmt: skip
    assert report["std"]["both_sides"] == {
        "map": 0.35355, "map_at_1": 0.70711, "gap": 0.35355, "gap_at_1": 0.70711,
    }  # fmt: skip


def test_one_fold_has_no_deviation(bundle: Path, tiny: Path) -> None:
    report = evaluate_epillid(bundle, tiny, [1])
    assert set(report["std"]["both_sides"].values()) == {None}
    assert report["mean"]["single_side"] == report["folds"][0]["single_side"]


def test_all_folds_are_the_default_and_the_last_is_the_holdout(bundle: Path, tiny: Path) -> None:
    folds = evaluate_epillid(bundle, tiny)["folds"]
    assert [(fold["fold"], fold["holdout"]) for fold in folds] == [
        (0, False), (1, False), (2, False), (3, False), (4, True),
    ]  # fmt: skip


def test_photos_of_a_pill_with_one_side_only_are_left_out_and_counted(
    bundle: Path, tiny: Path
) -> None:
    fold = evaluate_epillid(bundle, tiny, [2])["folds"][0]
    counts = {name: value for name, value in fold.items() if name.startswith("n_")}
    assert counts == {"n_photos": 4, "n_paired_photos": 3, "n_paired_labels": 1, "n_pairs": 2}


def test_report_survives_json(bundle: Path, tiny: Path) -> None:
    report = evaluate_epillid(bundle, tiny)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_report_reads_as_a_table(bundle: Path, tiny: Path) -> None:
    lines = as_text(evaluate_epillid(bundle, tiny, [0, 1])).splitlines()
    assert lines == [
        "2 pill types, 4 references, bundle tiny",
        "                                          both sides                         single side",
        "fold       pairs      MAP    MAP@1      GAP    GAP@1      MAP    MAP@1      GAP    GAP@1",
        "0              2  1.00000  1.00000  1.00000  1.00000  1.00000  1.00000  1.00000  1.00000",
        "1              1  0.50000  0.00000  0.50000  0.00000  0.50000  0.00000  0.41667  0.00000",
        "mean              0.75000  0.50000  0.75000  0.50000  0.75000  0.50000  0.70833  0.50000",
        "std               0.35355  0.70711  0.35355  0.70711  0.35355  0.70711  0.41248  0.70711",
    ]
    assert as_text(evaluate_epillid(bundle, tiny, [0])).splitlines()[-1].split() == ["std"] + (
        ["-"] * 8
    )


def test_each_photo_is_read_once_whatever_the_number_of_folds(
    bundle: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()

    def counted(path: Path) -> NDArray[np.uint8]:
        read[path.name] += 1
        return read_image(path)

    monkeypatch.setattr(epillid, "read_image", counted)
    evaluate_epillid(bundle, tiny)
    assert (len(read), set(read.values())) == (4 + 14, {1})


@pytest.mark.parametrize("words", [("1", "0"), ("1.0", "0.0"), ("TRUE", "FALSE")])
def test_true_and_false_may_be_spelled_as_other_tools_write_them(
    bundle: Path, tiny: Path, words: tuple[str, str]
) -> None:
    before = evaluate_epillid(bundle, tiny)
    for path in (tiny / TABLES).glob("*.csv"):
        text = path.read_text().replace("True", words[0]).replace("False", words[1])
        path.write_text(text)
    assert evaluate_epillid(bundle, tiny) == before


# --- against a computation from first principles ------------------------------------------------


@pytest.fixture
def hard(tmp_path: Path) -> Path:
    """Seven pill types, one never photographed; blurred photos, of which some are mistaken."""
    pills = "abcdefg"
    references: list[Row] = [
        (f"dr/{pill}-{side}.png", pill, True, side == "front")
        for pill in pills
        for side in ("front", "back")
    ]
    folds: list[list[Row]] = []
    draw = np.random.default_rng(5)
    pixels = {image: photo(image) for image, *_ in references}
    for number in range(5):
        fold: list[Row] = []
        for pill in pills[number : number + 2]:
            for shot in range(4 if pill == "c" else 3):
                front = shot % 2 == 0
                image = f"dc/{number}/{pill}{shot}.png"
                own = picture(f"dr/{pill}-{'front' if front else 'back'}.png").astype(float)
                other = picture(f"dr/{draw.choice(list(pills))}-front.png").astype(float)
                mixed = 0.55 * own + 0.45 * other + draw.normal(0, 12, own.shape)
                pixels[image] = png(brighter(np.clip(mixed, 0, 255).astype(np.uint8)))
                fold.append((image, pill, False, front))
        folds.append(fold)
    tree(tmp_path / IMAGES, pixels)
    return data_set(tmp_path, folds, references)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def precision_at_hits(answers: list[tuple[float, bool]]) -> float:
    """Mean over right answers of the precision at their score; a photo of two pairs ties."""
    precisions = []
    for threshold in (score for score, right in answers if right):
        passed = [right for score, right in answers if score >= threshold]
        precisions.append(sum(passed) / len(passed))
    return sum(precisions) / len(precisions) if precisions else 0.0


def brute_force(answers: list[tuple[dict[str, float], str]]) -> dict[str, float]:
    """The four numbers from each query's label -> score and right label."""
    ranks = [
        sorted(scores, key=lambda label: -scores[label]).index(truth) + 1
        for scores, truth in answers
    ]
    everything = [(s, label == truth) for scores, truth in answers for label, s in scores.items()]
    best = [max((s, label == truth) for label, s in scores.items()) for scores, truth in answers]
    return {
        "map": sum(1 / rank for rank in ranks) / len(ranks),
        "map_at_1": ranks.count(1) / len(ranks),
        "gap": precision_at_hits(everything),
        "gap_at_1": precision_at_hits(best),
    }


def test_numbers_are_those_of_a_brute_force_computation(bundle: Path, hard: Path) -> None:
    embedder = open_embedder(MODEL)

    def embed(image: str) -> NDArray[np.float32]:
        unit: NDArray[np.float32] = embedder.embed([read_image(hard / IMAGES / image)])[0]
        return unit

    everything = rows_of(hard / TABLES / f"{NAME}_all.csv")
    references = [
        (row["label"], embed(row["image_path"])) for row in everything if row["is_ref"] == "True"
    ]
    expected = []
    for number in range(5):
        photos = rows_of(hard / TABLES / f"{NAME}_{number}.csv")
        scores_of = {}
        for row in photos:
            vector, best = embed(row["image_path"]), dict[str, float]()
            for label, reference in references:
                best[label] = max(best.get(label, -1.0), float(vector @ reference))
            scores_of[row["image_path"]] = best
        both: list[tuple[dict[str, float], str]] = []
        single: list[tuple[dict[str, float], str]] = []
        for one in photos:
            for two in photos:
                if one["label"] == two["label"] and (one["is_front"], two["is_front"]) == (
                    "True", "False",
                ):  # fmt: skip
                    front, back = scores_of[one["image_path"]], scores_of[two["image_path"]]
                    mean = {label: (front[label] + back[label]) / 2 for label in front}
                    both.append((mean, one["label"]))
                    single += [(front, one["label"]), (back, one["label"])]
        expected.append((len(both), brute_force(both), brute_force(single)))

    report = evaluate_epillid(bundle, hard)
    assert report["n_labels"] == 7
    shares = [by_pair["map_at_1"] for _, by_pair, _ in expected]
    assert any(0 < share < 1 for share in shares)  # neither easy nor hopeless
    for fold, (n_pairs, by_pair, by_photo) in zip(report["folds"], expected, strict=True):
        assert fold["n_pairs"] == n_pairs
        assert fold["both_sides"] == pytest.approx(by_pair, abs=1e-5)
        assert fold["single_side"] == pytest.approx(by_photo, abs=1e-5)
    values = [by_pair["gap"] for _, by_pair, _ in expected]
    assert report["mean"]["both_sides"]["gap"] == pytest.approx(sum(values) / 5, abs=1e-5)
    assert report["std"]["both_sides"]["gap"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)


# --- refusals -----------------------------------------------------------------------------------


def refusal(bundle: Path, directory: Path, folds: list[int] | None = None) -> DatasetRejected:
    with pytest.raises(DatasetRejected) as caught:
        evaluate_epillid(bundle, directory, folds)
    assert caught.value.remedy.endswith(".")
    return caught.value


def path_of(directory: Path, part: int | str) -> Path:
    return directory / TABLES / f"{NAME}_{part}.csv"


def rewrite(directory: Path, part: int | str, change: Callable[[str], str]) -> None:
    path = path_of(directory, part)
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


@pytest.mark.parametrize("part", ["all", 3])
def test_missing_table_is_named(bundle: Path, tiny: Path, part: int | str) -> None:
    path_of(tiny, part).unlink()
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (str(path_of(tiny, part)), "no such file")


def test_fold_that_is_not_asked_for_may_be_missing(bundle: Path, tiny: Path) -> None:
    path_of(tiny, 3).unlink()
    (tiny / IMAGES / "dc/10.png").unlink()
    assert len(evaluate_epillid(bundle, tiny, [0, 1, 2, 4])["folds"]) == 4


@pytest.mark.parametrize("column", ["image_path", "label", "is_ref", "is_front"])
def test_missing_column_is_named(bundle: Path, tiny: Path, column: str) -> None:
    rewrite(tiny, 2, lambda text: re.sub(rf"(?<=,){column}\b", "other", text, count=1))
    error = refusal(bundle, tiny)
    assert error.subject == f"{path_of(tiny, 2)}:1"
    assert error.found == f"no column {column}"


@pytest.mark.parametrize("part", ["all", 4])
def test_table_without_rows_is_refused(bundle: Path, tiny: Path, part: int | str) -> None:
    rewrite(tiny, part, lambda text: text.splitlines()[0])
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (str(path_of(tiny, part)), "no rows")


def test_table_that_is_too_large_is_refused_unread(bundle: Path, tiny: Path) -> None:
    with path_of(tiny, "all").open("r+b") as file:
        file.truncate(17 * 1024 * 1024)
    assert refusal(bundle, tiny).found == "17825792 bytes"


def test_fold_without_a_front_and_back_of_one_pill_is_refused(bundle: Path, tiny: Path) -> None:
    def one_side(text: str) -> str:
        return "".join(line for line in text.splitlines(keepends=True) if "dc/13.png" not in line)

    rewrite(tiny, 4, one_side)
    error = refusal(bundle, tiny)
    assert error.subject == str(path_of(tiny, 4))
    assert error.found == "0 pairs of a front and a back of one label"


def test_fold_with_more_pairs_than_memory_holds_is_refused(bundle: Path, tmp_path: Path) -> None:
    many: list[Row] = [(f"dc/{n}.png", "a", False, n % 2 == 0) for n in range(6000)]
    error = refusal(bundle, data_set(tmp_path, [many], REFERENCES), [0])
    assert error.found.startswith("9000000 pairs")
    assert error.expected == "1 to 8388608 pairs"


def test_missing_photos_are_named_and_counted(bundle: Path, tiny: Path) -> None:
    for name in ("dc/8.png", "dr/b-back.png"):
        (tiny / IMAGES / name).unlink()
    error = refusal(bundle, tiny)
    assert error.subject == str(tiny / IMAGES / "dc/8.png")
    assert error.found == "no such photo (one of 2 that the tables name)"


def test_unreadable_photo_is_named(bundle: Path, tiny: Path) -> None:
    (tiny / IMAGES / "dc/8.png").write_bytes(photo("8")[:60])
    with pytest.raises(ImageRejected, match=r"dc/8\.png"):
        evaluate_epillid(bundle, tiny)


@pytest.mark.parametrize(
    "escape", ["../../secret.png", "/etc/secret.png", "dc/../../secret.png", r"..\secret.png"]
)
def test_path_out_of_the_data_set_is_refused_with_its_line(
    bundle: Path, tiny: Path, escape: str
) -> None:
    for part in ("all", 0):
        rewrite(tiny, part, lambda text: text.replace("dc/0.png", escape))
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (f"{path_of(tiny, 'all')}:6", escape)


def test_link_out_of_the_data_set_is_refused(
    bundle: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    secret.write_bytes(photo("secret"))
    link = tiny / IMAGES / "dc/0.png"
    link.unlink()
    link.symlink_to(secret)
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (str(link), f"a link to {secret}")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (("dr/a-front.png", "a", True, True), "dr/a-front.png, a reference"),
        (("dr/a-front.png", "a", False, True), "dr/a-front.png, a reference"),
        (("dc/99.png", "a", False, True), f"dc/99.png, not such a row of {NAME}_all.csv"),
        (("dc/4.png", "b", False, True), f"dc/4.png, not such a row of {NAME}_all.csv"),
    ],
)
def test_fold_that_disagrees_with_the_table_of_all_photos_is_refused(
    bundle: Path, tiny: Path, row: Row, found: str
) -> None:
    path_of(tiny, 0).write_text(table([*FOLDS[0], row]))
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (f"{path_of(tiny, 0)}:6", found)


def test_photo_of_a_pill_without_references_is_refused(bundle: Path, tiny: Path) -> None:
    rows = [*REFERENCES[:2], *(row for fold in FOLDS for row in fold)]
    path_of(tiny, "all").write_text(table(rows))
    error = refusal(bundle, tiny)
    assert error.subject == f"{path_of(tiny, 0)}:4"
    assert error.found == "dc/2.png of label 'b', which has no reference"


def test_photo_in_two_folds_is_refused(bundle: Path, tiny: Path) -> None:
    path_of(tiny, 3).write_text(table([*FOLDS[3], FOLDS[1][0]]))
    error = refusal(bundle, tiny)
    assert error.subject == str(path_of(tiny, 3))
    assert error.found == "dc/4.png, which is also in fold 1"


def test_repeated_row_is_refused(bundle: Path, tiny: Path) -> None:
    path_of(tiny, 0).write_text(table([*FOLDS[0], FOLDS[0][1]]))
    error = refusal(bundle, tiny)
    assert error.subject == f"{path_of(tiny, 0)}:6"
    assert error.found == "image_path 'dc/1.png' a second time"


def test_value_that_is_neither_true_nor_false_is_refused(bundle: Path, tiny: Path) -> None:
    rewrite(tiny, 0, lambda text: text.replace("True", "maybe", 1))
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (f"{path_of(tiny, 0)}:2", "is_front 'maybe'")


def test_empty_label_is_refused(bundle: Path, tiny: Path) -> None:
    rewrite(tiny, 0, lambda text: text.replace("dc/0.png,a\n", "dc/0.png,\n"))
    error = refusal(bundle, tiny)
    assert (error.subject, error.found) == (f"{path_of(tiny, 0)}:2", "an empty label")


@pytest.mark.parametrize(
    ("folds", "found"), [([5], "5"), ([-1], "-1"), ([0, 0], "0, 0"), ([], "none")]
)
def test_folds_that_do_not_exist_or_repeat_are_refused(
    bundle: Path, tiny: Path, folds: list[int], found: str
) -> None:
    assert refusal(bundle, tiny, folds).found == found
