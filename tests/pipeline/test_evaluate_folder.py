"""What `evaluate-folder` measures, and what it refuses to measure."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pilltrack.core.background import Background
from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import embed_references, quarter_turns
from pilltrack.core.errors import DatasetRejected, ImageRejected
from pilltrack.core.gallery import read_background
from pilltrack.core.image import read_image
from pilltrack.pipeline.evaluate_folder import evaluate_folder, pill_photos
from pilltrack.pipeline.protocol import Drawn, Probes, drawn, measure, search, single_views
from tests.pipeline.pill_zips import Pixels, brighter, jpeg, photo, picture, png, tree
from tests.tiny_bundle import MODEL, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle around the golden model; its own gallery plays no part here."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), "other", picture("other"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Gallery of a, b, c (2 photos each), 2 probes each (one hard), strangers y and z."""
    files: dict[str, bytes | str] = {}
    for pill in "abc":
        files |= {f"gallery/{pill}/{n}.png": photo(f"{pill}{n}") for n in "12"}
        files[f"probes/{pill}/near.png"] = png(brighter(picture(f"{pill}1")))
        files[f"probes/{pill}/far.png"] = photo(f"{pill}-far")
    files |= {f"strangers/{pill}/{n}.png": photo(f"{pill}{n}") for pill in "yz" for n in "123"}
    return tree(tmp_path / "mine", files)


def folders_of(mine: Path) -> tuple[Path, Path, Path]:
    return mine / "gallery", mine / "probes", mine / "strangers"


def refusal(bundle: Path, mine: Path) -> DatasetRejected:
    with pytest.raises(DatasetRejected) as caught:
        evaluate_folder(bundle, *folders_of(mine))
    assert caught.value.remedy.endswith(".")
    return caught.value


def embedded(folder: Path, names: list[str], *, enrolled: bool = False) -> Probes:
    images = [read_image(folder / name) for name in names]
    pills = [Path(name).parent.name for name in names]
    embedder = open_embedder(MODEL)
    embeddings = embed_references(embedder, images) if enrolled else embedder.embed(images)
    return single_views(embeddings, pills)


def found(enrolled: Probes, probes: Probes, seed: int) -> Drawn:
    return drawn(search(enrolled.embeddings[:, 0], enrolled.pills, probes), seed=seed)


PROBES = [f"{pill}/{name}.png" for pill in "abc" for name in ("far", "near")]
STRANGERS = [f"{pill}/{n}.png" for pill in "yz" for n in "123"]
DECIDED = (
    "rule_for_pills", "threshold", "fnir", "misnamed", "misnamed_upper", "ambiguous", "fpir",
    "fpir_upper",
)  # fmt: skip


@pytest.mark.parametrize(
    ("references", "enrolled"),
    [
        (None, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "c/1.png", "c/2.png"]),
        (1, ["a/1.png", "b/1.png", "c/1.png"]),
        (2, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "c/1.png", "c/2.png"]),
        (9, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "c/1.png", "c/2.png"]),
    ],
)
def test_numbers_are_those_of_the_protocol_on_the_first_references_by_name(
    bundle: Path, mine: Path, references: int | None, enrolled: list[str]
) -> None:
    gallery, probes, strangers = folders_of(mine)
    known = embedded(gallery, enrolled, enrolled=True)
    mated, foreign = embedded(probes, PROBES), embedded(strangers, STRANGERS)
    report = evaluate_folder(bundle, gallery, probes, strangers, references=references)
    assert {key: value for key, value in report.items() if key not in DECIDED} == {
        "bundle": "tiny",
        "gallery_pills": 3,
        "gallery_references": len(enrolled),
        "n_strangers": 6,
        "n_stranger_pills": 2,
        **measure(found(known, mated, 0), found(known, foreign, 1)),
    }


def test_what_the_bundles_own_rule_decides_is_counted(mine: Path, tmp_path: Path) -> None:
    known = embedded(mine / "gallery", [f"{p}/{n}.png" for p in "abc" for n in "12"], enrolled=True)
    mated = found(known, embedded(mine / "probes", PROBES), 0).outcomes
    foreign = found(known, embedded(mine / "strangers", STRANGERS), 1).outcomes
    threshold = float(np.median(np.r_[mated.best, foreign.best]))
    bundle = tiny_bundle(tmp_path, "other", picture("other"), threshold=threshold)
    report = evaluate_folder(bundle, *folders_of(mine))
    named = mated.best >= threshold  # two photos of each pill, three of each stranger
    assert report["threshold"] == pytest.approx(threshold, abs=1e-5)
    assert report["fnir"]["value"] == pytest.approx(
        1 - np.mean(named & (mated.rank == 1)), abs=1e-5
    )
    assert report["misnamed"]["value"] == pytest.approx(
        np.mean(named & (mated.rank != 1)), abs=1e-5
    )
    assert report["fpir"]["value"] == pytest.approx(np.mean(foreign.best >= threshold), abs=1e-5)
    assert 0 < report["fpir"]["value"] < report["fpir_upper"]
    assert 0 < report["fnir"]["value"] < 1


def test_the_rule_is_that_of_as_many_pills_as_are_enrolled_or_as_asked_for(
    mine: Path, tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path, "other", picture("other"), threshold=0.9, alone=0.3)
    report = evaluate_folder(bundle, *folders_of(mine))
    assert (report["rule_for_pills"], report["threshold"]) == (3, 0.9)
    report = evaluate_folder(bundle, *folders_of(mine), rule_for=1)
    assert (report["rule_for_pills"], report["threshold"]) == (1, 0.3)
    one = mine.parent / "one"
    for folder in ("gallery", "probes"):
        shutil.copytree(mine / folder / "a", one / folder / "a")
    assert evaluate_folder(bundle, one / "gallery", one / "probes")["threshold"] == 0.3


def test_scores_are_held_against_the_background_of_the_bundle(mine: Path, tmp_path: Path) -> None:
    embedder = open_embedder(MODEL)
    names = ["x", "y", "z"]
    around = Background(embedder.embed([picture(name) for name in names]), names)
    bundle = tiny_bundle(tmp_path, "other", picture("other"), around)
    enrolled = embedded(
        mine / "gallery", [f"{p}/{n}.png" for p in "abc" for n in "12"], enrolled=True
    )
    probes = embedded(mine / "probes", PROBES)
    strangers = embedded(mine / "strangers", STRANGERS)
    kept = read_background(bundle / "gallery.safetensors", embedder.dim)
    mated, foreign = (
        drawn(search(enrolled.embeddings[:, 0], enrolled.pills, seen, kept), seed=seed)
        for seed, seen in enumerate((probes, strangers))
    )
    expected = measure(mated, foreign)
    report = evaluate_folder(bundle, *folders_of(mine))
    assert {key: report[key] for key in expected} == expected
    assert expected != measure(found(enrolled, probes, 0), found(enrolled, strangers, 1))


def test_which_photos_are_enrolled_goes_by_name(bundle: Path, tmp_path: Path) -> None:
    """Photo 1 of each pill shows the other pill's probe: K = 1 confuses them, K = 2 does not."""
    a, b = (  # alike in all turns, so that references are photos
        np.mean(quarter_turns(picture(pill)), axis=0).astype(np.uint8) for pill in "ab"
    )
    files = {
        "gallery/a/2.png": png(a), "gallery/a/1.png": png(brighter(b)),
        "gallery/b/2.png": png(b), "gallery/b/1.png": png(brighter(a)),
        "probes/a/1.jpg": jpeg(a, 95), "probes/b/1.jpg": jpeg(b, 95),
    }  # fmt: skip
    gallery, probes, _ = folders_of(tree(tmp_path, files))
    one, two = (evaluate_folder(bundle, gallery, probes, references=k) for k in (1, 2))
    assert (one["gallery_references"], two["gallery_references"]) == (2, 4)
    recall = [report["recall_at_1"]["value"] for report in (one, two)]
    assert recall == [0.0, 1.0]


def test_strangers_give_auroc_and_fnir_and_without_them_there_is_none(
    bundle: Path, mine: Path
) -> None:
    gallery, probes, strangers = folders_of(mine)
    open_set = {
        "n_strangers", "n_stranger_pills", "auroc", "fnir_at_fpir_5pct", "fnir_at_fpir_1pct",
        "fnir_at_fpir_0.1pct", "fpir", "fpir_upper",
    }  # fmt: skip
    without = evaluate_folder(bundle, gallery, probes)
    report = evaluate_folder(bundle, gallery, probes, strangers)
    assert report.keys() - without.keys() == open_set
    assert (report["n_strangers"], report["n_stranger_pills"]) == (6, 2)
    assert {name: report[name] for name in without} == without


@pytest.mark.parametrize("missing", ["gallery", "probes", "strangers"])
def test_missing_folder_is_named(bundle: Path, mine: Path, missing: str) -> None:
    (mine / missing).rename(mine / "elsewhere")
    error = refusal(bundle, mine)
    assert (error.subject, error.found) == (str(mine / missing), "no such folder")


def test_empty_folder_is_named(bundle: Path, mine: Path) -> None:
    (mine / "probes").rename(mine / "elsewhere")
    (mine / "probes").mkdir()
    error = refusal(bundle, mine)
    assert (error.subject, error.found) == (str(mine / "probes"), "no images")


def test_probe_of_a_pill_that_is_not_enrolled_is_refused(bundle: Path, mine: Path) -> None:
    tree(mine, {"probes/new/1.png": photo("new")})
    error = refusal(bundle, mine)
    assert error.subject == str(mine / "probes" / "new")
    assert "1 pills that are not in" in error.found


def test_stranger_that_is_enrolled_is_refused(bundle: Path, mine: Path) -> None:
    tree(mine, {"strangers/b/1.png": photo("another b")})
    error = refusal(bundle, mine)
    assert error.subject == str(mine / "strangers" / "b")
    assert "1 strangers that are enrolled" in error.found


def test_unreadable_photo_is_named(bundle: Path, mine: Path) -> None:
    tree(mine, {"probes/b/far.png": photo("b-far")[:60]})
    with pytest.raises(ImageRejected, match=r"probes/b/far\.png"):
        evaluate_folder(bundle, *folders_of(mine))


@pytest.mark.parametrize(
    ("others", "named", "count"),
    [
        (["probes/b/1.heic"], "probes/b/1.heic", 1),
        (["probes/c/1.gif", "probes/b/1.heic"], "probes/b/1.heic", 2),
        (["gallery/a/front/1.png"], "gallery/a/front", 1),
        (["strangers/1.png"], "strangers/1.png", 1),
        (["probes/only/1.HEIC"], "probes/only/1.HEIC", 1),
    ],
)
def test_file_that_is_no_photo_of_a_pill_is_named_and_counted(
    bundle: Path, mine: Path, others: list[str], named: str, count: int
) -> None:
    tree(mine, dict.fromkeys(others, b"x"))
    error = refusal(bundle, mine)
    assert error.subject == str(mine / named)
    assert f"one of {count} in" in error.found


def test_pill_folders_without_photos_are_named_and_counted(bundle: Path, mine: Path) -> None:
    for pill in ("e", "d"):
        (mine / "gallery" / pill).mkdir()
    tree(mine, {"gallery/d/.DS_Store": b"x"})
    error = refusal(bundle, mine)
    assert error.subject == str(mine / "gallery" / "d")
    assert "one of 2 such folders" in error.found


def test_hidden_files_and_junk_of_the_desktop_are_skipped(mine: Path) -> None:
    before = pill_photos(mine / "probes")
    junk = [".git/config", "__MACOSX/b/1.png", "b/Thumbs.db", "b/._1.png", "desktop.ini"]
    tree(mine / "probes", dict.fromkeys(junk, b"x"))
    assert pill_photos(mine / "probes") == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("gallery/a/1.png", "probes/a/again.png"),
        ("gallery/a/1.png", "strangers/z/again.png"),
        ("probes/b/far.png", "strangers/z/again.png"),
    ],
)
def test_photo_in_two_of_the_folders_is_refused_also_under_another_name_and_format(
    bundle: Path, mine: Path, first: str, second: str
) -> None:
    pixels = read_image(mine / first)
    renamed = Path(second).with_suffix(".bmp").as_posix()
    tree(mine, {renamed: bitmap(pixels)})
    error = refusal(bundle, mine)
    assert error.subject == f"{mine / first} and {mine / renamed}"
    assert error.found == "the same photo in two folders"


def test_photo_twice_in_one_folder_is_no_leak(bundle: Path, mine: Path) -> None:
    tree(mine, {"probes/b/again.png": photo("b-far")})
    assert evaluate_folder(bundle, *folders_of(mine))["n_probes"] == 7


def bitmap(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()
