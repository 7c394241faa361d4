"""Every accepted layout is read, and every mistake in one is named with file and line."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilltrack.core.errors import DatasetRejected, ImageRejected
from pilltrack.core.image import read_image
from pilltrack.pipeline.layouts import Layout, read_layout, side_of
from pilltrack.pipeline.prepare import prepare
from pilltrack.pipeline.table import (
    ImageRow,
    PillRow,
    load_images,
    load_pills,
    write_images,
    write_pills,
)
from pilltrack.pipeline.yolo import base_and_copy, crop_boxes, split_folders, square_crop
from tests.pipeline.pill_zips import (
    folders,
    params,
    photo,
    picture,
    png,
    snapshot,
    tree,
    zipped,
)

PHOTO = photo("any")
Files = Mapping[str, bytes | str]


def read(tmp_path: Path, files: Files) -> Layout:
    return read_layout(tree(tmp_path / "set", files), tmp_path / "crops")


def refusal(tmp_path: Path, files: Files) -> DatasetRejected:
    with pytest.raises(DatasetRejected) as caught:
        read(tmp_path, files)
    assert caught.value.remedy.endswith(".")
    return caught.value


# --- folders -----------------------------------------------------------------------------------


def test_one_folder_per_pill(tmp_path: Path) -> None:
    layout = read(tmp_path, {"b/front.jpg": PHOTO, "a b/1.png": PHOTO, "a b/x_back.png": PHOTO})
    assert layout.kind == "folders"
    assert [(p.source, p.pill, p.side, p.session) for p in layout.photos] == [
        ("a b/1.png", "a b", "", "a b/1"),
        ("a b/x_back.png", "a b", "back", "a b/x_back"),
        ("b/front.jpg", "b", "front", "b/front"),
    ]
    assert {(p.capture, p.given_split) for p in layout.photos} == {("real", None)}
    assert all(p.path.read_bytes() == PHOTO for p in layout.photos)


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("val", "validation"),
        ("valid", "validation"),
        ("validation", "validation"),
        ("test", "test"),
    ],
)
def test_split_folders_give_splits(tmp_path: Path, folder: str, split: str) -> None:
    layout = read(tmp_path, {f"{folder}/a/1.png": PHOTO, "train/b/1.png": PHOTO})
    assert layout.kind == "split folders"
    assert {p.pill: p.given_split for p in layout.photos} == {"a": split, "b": "train"}


def test_one_wrapping_folder_is_looked_through(tmp_path: Path) -> None:
    layout = read(tmp_path, {"my set/train/a/1.png": PHOTO, "my set/test/b/1.png": PHOTO})
    assert [p.source for p in layout.photos] == ["test/b/1.png", "train/a/1.png"]


def test_roboflow_copies_of_one_photo_are_one_session(tmp_path: Path) -> None:
    layout = read(tmp_path, {f"a/x_jpg.rf.{n}.jpg": PHOTO for n in "12"} | {"a/y.jpg": PHOTO})
    assert [p.session for p in layout.photos] == ["a/x_jpg", "a/x_jpg", "a/y"]


def test_documents_are_ignored_by_name_and_other_files_are_taken_for_photos(
    tmp_path: Path,
) -> None:
    layout = read(tmp_path, {"a/1.png": PHOTO, "a/2.heic": b"x", "README.md": "", "a/n.txt": ""})
    assert layout.ignored == ("README.md", "a/n.txt")
    assert [p.source for p in layout.photos] == ["a/1.png", "a/2.heic"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["1.png", "a/1.png"], "1.png"),
        (["a/b/c/1.png", "b/1.png"], "a/b/c/1.png"),
        (["train/1.png", "test/1.png"], "test/1.png"),
        (["a/b/1.png", "a/c/1.png", "d/e/1.png"], "a/b/1.png"),
    ],
)
def test_image_in_an_unexpected_place_is_named(
    tmp_path: Path, files: list[str], named: str
) -> None:
    assert refusal(tmp_path, dict.fromkeys(files, PHOTO)).subject == named


def test_folders_with_and_without_splits_are_not_mixed(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"train/a/1.png": PHOTO, "b/1.png": PHOTO})
    assert error.found == "a mixture of layouts"


def test_data_set_without_photos_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"README.md": "nothing"}).found == "no photos"


def test_unknown_table_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"a/1.png": PHOTO, "Images.csv": "image,pill\n"})
    assert (error.subject, error.found) == ("Images.csv", "an unknown table")


def test_pill_names_that_differ_only_by_case_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"Advil/1.png": PHOTO, "advil/2.png": PHOTO})
    assert "'advil' beside 'Advil'" in error.found


@pytest.mark.parametrize(
    "pill", [".hidden", "ends.", " space", "a" * 101, "=1+1", "@home", "-x", "+y"]
)
def test_pill_name_that_cannot_be_a_folder_everywhere_is_refused(tmp_path: Path, pill: str) -> None:
    error = refusal(tmp_path, {"images.csv": f'image,pill\n1.png,"{pill}"\n', "1.png": PHOTO}) \
        if pill.strip() == pill else refusal(tmp_path, {f"{pill}/1.png": PHOTO})  # fmt: skip
    assert repr(pill) in error.found


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("front.jpg", "front"), ("BACK.JPG", "back"), ("front-1.png", "front"),
        ("back_1.png", "back"), ("12_front.png", "front"), ("12-back.png", "back"),
        ("frontal.png", ""), ("aback.png", ""), ("front_back.png", ""), ("front 1.png", ""),
    ],
)  # fmt: skip
def test_side_is_read_from_the_name(name: str, side: str) -> None:
    assert side_of(name) == side


def test_files_of_one_name_in_several_splits_are_sessions_of_their_own(tmp_path: Path) -> None:
    names = [
        "train/a/1.png",
        "val/a/1.png",
        "val/a/2.png",
        "train/a/x.rf.1.png",
        "val/a/x.rf.2.png",
    ]
    layout = read(tmp_path, dict.fromkeys(names, PHOTO))
    assert {p.source: p.session for p in layout.photos} == {
        "train/a/1.png": "a/train/a/1",
        "val/a/1.png": "a/val/a/1",
        "val/a/2.png": "a/2",
        "train/a/x.rf.1.png": "a/x",
        "val/a/x.rf.2.png": "a/x",
    }


def test_documents_beside_the_wrapping_folder_are_ignored_by_name(tmp_path: Path) -> None:
    layout = read(tmp_path, {"data/p0/0.png": PHOTO, "data/p0/n.txt": "", "README.txt": ""})
    assert [p.source for p in layout.photos] == ["p0/0.png"]
    assert layout.ignored == ("README.txt", "p0/n.txt")


def test_file_name_that_ends_in_a_space_keeps_its_session_through_the_tables(
    tmp_path: Path,
) -> None:
    files = folders(12) | {
        f"p{n}/0{end}.png": photo(f"{n}{end}") for n in "ab" for end in ("", " ")
    }
    prepare(zipped(tmp_path / "x.zip", files), params(), tmp_path / "out")
    sessions = {row.session for row in load_images(tmp_path / "out") if row.pill == "pa"}
    assert sessions == {"pa/0", "pa/0 "}


# --- images.csv and pills.csv ------------------------------------------------------------------


def test_images_csv_rules_over_folders(tmp_path: Path) -> None:
    table = (
        "pill,image,side,session,capture\r\n"
        'a,"some/where/1.png",front,monday,rendered\r\n'
        "b,back.png,,,\r\n"
    )
    layout = read(
        tmp_path, {"images.csv": "\ufeff" + table, "some/where/1.png": PHOTO, "back.png": PHOTO}
    )
    assert layout.kind == "table"
    assert [(p.source, p.pill, p.side, p.session, p.capture) for p in layout.photos] == [
        ("back.png", "b", "", "b/back", "real"),
        ("some/where/1.png", "a", "front", "monday", "rendered"),
    ]


def test_images_csv_inside_split_folders_keeps_the_splits(tmp_path: Path) -> None:
    table = "image,pill\ntrain/1.png,a\ntest/1.png,b\n"
    files: Files = {"images.csv": table, "train/1.png": PHOTO, "test/1.png": PHOTO}
    assert [p.given_split for p in read(tmp_path, files).photos] == ["test", "train"]


@pytest.mark.parametrize(
    ("table", "subject", "found"),
    [
        ("image,pill\n1.png,a\n9.png,a\n", "images.csv:3", "'9.png', which does not exist"),
        ("image,pill\n1.png,a\n\n1.png,b\n", "images.csv:4", "'1.png' a second time"),
        ("image,pill\n1.png,\n", "images.csv:2", "no pill"),
        ("image,pill\n,a\n", ":2", "an empty image"),
        ("image,pill\n../set/1.png,a\n", "images.csv:2", "does not exist"),
        ("image,pill,side\n1.png,a,left\n", "images.csv:2", "side 'left'"),
        ("image,pill,side\n1.png,a,Front\n", "images.csv:2", "side 'Front'"),
        ("image,pill,capture\n1.png,a,fake\n", "images.csv:2", "capture 'fake'"),
        ("image,pill,colour\n1.png,a,red\n", "images.csv:1", "unknown column 'colour'"),
        ("image,pill,pill\n1.png,a,a\n", "images.csv:1", "column 'pill' 2 times"),
        ("image,side\n1.png,front\n", "images.csv:1", "no column pill"),
        ("image,pill\n1.png,a,b\n", "images.csv:2", "3 values"),
        ('image,pill\n1.png,"a"b\n', "images.csv:2", "not CSV"),
        ("", "images.csv:1", "no column image, pill"),
    ],
)
def test_mistake_in_images_csv_is_named_with_its_line(
    tmp_path: Path, table: str, subject: str, found: str
) -> None:
    error = refusal(tmp_path, {"images.csv": table, "1.png": PHOTO})
    assert error.subject.endswith(subject)
    assert found in error.found


def test_misspelt_column_gets_a_hint(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"images.csv": "image,pill,sesion\n1.png,a,s\n", "1.png": PHOTO})
    assert error.remedy.startswith("Did you mean session?")


def test_image_missing_from_images_csv_is_named(tmp_path: Path) -> None:
    files: Files = {"images.csv": "image,pill\n1.png,a\n", "1.png": PHOTO, "2.png": PHOTO}
    assert refusal(tmp_path, files).found == "1 images are not listed: 2.png"


def test_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    files = {"images.csv": "image,pill\n1.png,Dragée\n".encode("latin-1"), "1.png": PHOTO}
    assert "not UTF-8" in refusal(tmp_path, files).found


def test_pills_csv_adds_what_is_known(tmp_path: Path) -> None:
    layout = read(
        tmp_path,
        {"pills.csv": "ndc,pill,imprint\n1-2,b,X 5\n", "a/1.png": PHOTO, "b/1.png": PHOTO},
    )
    assert layout.pills == {"b": PillRow("b", ndc="1-2", imprint="X 5")}


@pytest.mark.parametrize(
    ("table", "subject", "found"),
    [
        ("pill\na\nz\n", "pills.csv:3", "'z', of which there is no photo"),
        ("pill\na\na\n", "pills.csv:3", "'a' a second time"),
        ("pill,color\na,red\n", "pills.csv:1", "unknown column 'color'"),
        ("name\nAdvil\n", "pills.csv:1", "no column pill"),
        ("pill,size_mm\na,12 mm\n", "pills.csv:2", "size_mm '12 mm'"),
        ("pill,size_mm\na,0.0\n", "pills.csv:2", "size_mm '0.0'"),
        ("pill,name\na,5\u202emg\n", "pills.csv:2", "name '5\\u202emg'"),
        ('pill,name\na,"=HYPERLINK(1)"\n', "pills.csv:2", "name '=HYPERLINK(1)'"),
        (f"pill,name\na,{'x' * 201}\n", "pills.csv:2", "name 'xxx"),
        ("pill,size_mm\na,nan\n", "pills.csv:2", "size_mm 'nan'"),
        ('pill,size_mm\na,"12,5"\n', "pills.csv:2", "size_mm '12,5'"),
    ],
)
def test_mistake_in_pills_csv_is_named_with_its_line(
    tmp_path: Path, table: str, subject: str, found: str
) -> None:
    error = refusal(tmp_path, {"pills.csv": table, "a/1.png": PHOTO})
    assert error.subject.endswith(subject)
    assert found in error.found


def test_images_csv_naming_a_pill_that_pills_csv_lacks_is_refused(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "images.csv": "image,pill\n1.png,a\n2.png,advl\n",
        "pills.csv": "pill\na\nadvil\n",
        "1.png": PHOTO,
        "2.png": PHOTO,
    }
    error = refusal(tmp_path, files)
    assert error.subject == "images.csv:3"
    assert "'advl', which pills.csv does not name" in error.found


# --- the tables between stages -----------------------------------------------------------------

VISIBLE = st.characters(codec="utf-8", exclude_categories=["C", "Z"])
NAMES = st.builds(  # with spaces at the ends, which file names may have
    "{}{}{}".format,
    st.sampled_from(["", " "]),
    st.text(VISIBLE, min_size=1),
    st.just(" ") | VISIBLE,
)
IMAGES = st.builds("images/{}".format, NAMES).filter(
    lambda name: "\\" not in name and "/../" not in f"{name}/"
)


@pytest.mark.parametrize("image", ["/etc/passwd", "../secret.png", "a/../../b.png", "a\\b.png"])
def test_an_image_outside_the_directory_is_refused(tmp_path: Path, image: str) -> None:
    write_images(tmp_path, [ImageRow(image, "a", "", "s", "real", "g", "test", "probe")])
    with pytest.raises(DatasetRejected, match=r"images\.csv:2: image .*below the directory"):
        load_images(tmp_path)


@given(
    st.lists(
        st.builds(
            ImageRow,
            image=IMAGES,
            pill=NAMES,
            side=st.sampled_from(["front", "back", ""]),
            session=NAMES,
            capture=st.sampled_from(["real", "rendered"]),
            group=NAMES,
            split=st.sampled_from(["train", "validation", "test"]),
            role=st.sampled_from(["fit", "reference", "probe", "stranger"]),
        ),
        min_size=1,
        unique_by=lambda row: row.image,
    )
)
def test_written_images_are_read_back_sorted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[ImageRow]
) -> None:
    directory = tmp_path_factory.mktemp("table")
    write_images(directory, rows)
    assert load_images(directory) == sorted(rows)
    assert [path.name for path in directory.iterdir()] == ["images.csv"]


def test_written_pills_are_read_back_sorted(tmp_path: Path) -> None:
    rows = [PillRow("b", name='5 mg, "round"'), PillRow("a", colour="weiß", size_mm="12.5")]
    write_pills(tmp_path, rows)
    assert load_pills(tmp_path) == {"a": rows[1], "b": rows[0]}


def test_pills_written_before_sizes_were_known_are_still_read(tmp_path: Path) -> None:
    old = "pill,name,ndc,strength,maker,shape,colour,imprint\na,Advil,,,,round,,\n"
    (tmp_path / "pills.csv").write_text(old)
    assert load_pills(tmp_path) == {"a": PillRow("a", name="Advil", shape="round")}


def test_size_that_is_no_number_is_refused_between_stages_too(tmp_path: Path) -> None:
    write_pills(tmp_path, [PillRow("a", size_mm="big")])
    with pytest.raises(DatasetRejected, match=r"pills\.csv:2: size_mm 'big'; expected millim"):
        load_pills(tmp_path)


def test_missing_table_says_which_stage_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetRejected, match=r"images\.csv: cannot be read.*pilltrack prepare"):
        load_images(tmp_path)


def test_value_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    row = ImageRow("i", "p", "front", "s", "real", "g", "train", "fit")
    write_images(tmp_path, [row])
    path = tmp_path / "images.csv"
    path.write_text(path.read_text().replace(",fit", ",fitted"))
    with pytest.raises(DatasetRejected, match=r"images\.csv:2: role 'fitted'; expected fit, ref"):
        load_images(tmp_path)


def test_table_without_rows_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, [])
    with pytest.raises(DatasetRejected, match="no rows"):
        load_images(tmp_path)


# --- YOLO --------------------------------------------------------------------------------------

NAMES_YAML = "names: [advil, midol]\nnc: 2\n"


def yolo(labels: str = "0 0.5 0.5 0.5 0.25\n", yaml: str = NAMES_YAML) -> dict[str, bytes | str]:
    return {
        "data.yaml": yaml,
        "images/train/p.png": png(picture("p", 40)),
        "labels/train/p.txt": labels,
    }


def test_crop_is_a_square_of_1_2_times_the_longer_side() -> None:
    image = picture("p", 40)
    crop = square_crop(image, 0.5, 0.5, 0.5, 0.25)  # 20 x 10 px: side 24, from 8 to 32
    np.testing.assert_array_equal(crop, image[8:32, 8:32])


def test_crop_repeats_the_border_where_it_leaves_the_photo() -> None:
    image = picture("p", 40)
    crop = square_crop(image, 0.0, 1.0, 0.25, 0.25)  # 10 px: side 12, columns -6..5, rows 34..45
    assert crop.shape == (12, 12, 3)
    np.testing.assert_array_equal(crop[:6, 6:], image[34:, :6])
    np.testing.assert_array_equal(crop[:6, 0], image[34:, 0])
    np.testing.assert_array_equal(crop[11, 6:], image[39, :6])


@given(x=st.floats(0, 1), y=st.floats(0, 1), width=st.floats(0.001, 1), height=st.floats(0.001, 1))
def test_crop_is_square_wherever_the_box_lies(
    x: float, y: float, width: float, height: float
) -> None:
    crop = square_crop(np.zeros((30, 50, 3), np.uint8), x, y, width, height)
    assert crop.shape[0] == crop.shape[1] == max(1, int(1.2 * max(50 * width, 30 * height) + 0.5))


@pytest.mark.parametrize("folders", ["images/{}", "{}/images"])
def test_yolo_boxes_become_crops(tmp_path: Path, folders: str) -> None:
    files: dict[str, bytes | str] = {"data.yaml": "names: {0: advil, 1: midol}"}
    for split, name in (("train", "p.rf.aa"), ("train", "p.rf.bb"), ("valid", "q")):
        images = folders.format(split)
        files[f"{images}/{name}.png"] = png(picture(name, 40))
        files[f"{images.replace('images', 'labels')}/{name}.txt"] = (
            "1 0.5 0.5 0.5 0.25\n\n0 .5 .5 .4 .4\n"
        )
    layout = read(tmp_path, files)
    assert layout.kind == "yolo"
    assert sorted({(p.pill, p.session, p.given_split, p.side) for p in layout.photos}) == [
        ("advil", "p", "train", ""),
        ("advil", "q", "validation", ""),
        ("midol", "p", "train", ""),
        ("midol", "q", "validation", ""),
    ]
    copy = base_and_copy("p.rf.aa.png", "train")[1]
    crop = read_image(tmp_path / "crops" / "midol" / f"p_{copy}_0.png")
    np.testing.assert_array_equal(crop, picture("p.rf.aa", 40)[8:32, 8:32])
    assert len(list((tmp_path / "crops").rglob("*.png"))) == len(layout.photos) == 6


def test_crop_remembers_the_line_of_its_box(tmp_path: Path) -> None:
    layout = read(tmp_path, yolo("0 .5 .5 .5 .5\n\n1 .5 .5 .4 .4\n"))
    assert [p.source for p in layout.photos] == ["labels/train/p.txt:1", "labels/train/p.txt:3"]


@pytest.mark.parametrize(
    "line",
    ["0 .5 .5 .5", "0 .5 .5 .5 .5 .5", "2 .5 .5 .5 .5", "-1 .5 .5 .5 .5", "0.5 .5 .5 .5 .5",
     "0 1.1 .5 .5 .5", "0 .5 .5 0 .5", "0 .5 .5 .5 -0.1", "0 nan .5 .5 .5", "0 .5 .5 inf .5",
     "advil .5 .5 .5 .5"],
)  # fmt: skip
def test_malformed_label_line_is_named(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, yolo(f"0 .5 .5 .5 .5\n{line}\n"))
    assert error.subject == "labels/train/p.txt:2"
    assert error.found == repr(line)


@pytest.mark.parametrize(
    ("yaml", "found"),
    [
        ("nc: 2\n", "None"),
        ("names: [a, a]\n", "['a', 'a']"),
        ("names: {1: a, 2: b}\n", "{1: 'a', 2: 'b'}"),
        ("names: [a, b]\nnc: 3\n", "3"),
        ("names: [a\n", "not YAML"),
    ],
)
def test_wrong_class_names_are_refused(tmp_path: Path, yaml: str, found: str) -> None:
    error = refusal(tmp_path, yolo(yaml=yaml))
    assert "data.yaml" in error.subject
    assert found in error.found


def test_text_below_the_class_names_is_ignored_and_noted(tmp_path: Path) -> None:
    layout = read(tmp_path, yolo(yaml=f"{NAMES_YAML}\ndescription\n(string)\n"))
    assert len(layout.photos) == 1
    assert layout.notes[0].startswith("data.yaml: not YAML from line 4 on")


def test_label_file_without_its_photo_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, yolo() | {"labels/train/q.txt": "0 .5 .5 .5 .5\n"})
    assert error.subject == "labels/train/q.txt"


def test_labels_beside_the_photos_are_refused(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "data.yaml": NAMES_YAML,
        "images/train/p.png": PHOTO,
        "images/train/p.txt": "0 .5 .5 .5 .5\n",
    }
    assert refusal(tmp_path, files).subject == "images/train/p.txt"


def test_photo_without_boxes_is_noted(tmp_path: Path) -> None:
    layout = read(tmp_path, yolo() | {"images/train/bare.png": PHOTO})
    assert "1 photos have no box" in layout.notes[0]


def test_files_of_a_yolo_set_that_are_not_read_are_ignored_by_name(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "README.txt": "",
        "labels/train.cache": "",
        "images/train/.hidden": "",
        "x.png": PHOTO,
        "pills.csv": "pill\nadvil\n",
    }
    layout = read(tmp_path, yolo() | files)
    assert layout.ignored == ("README.txt", "images/train/.hidden", "labels/train.cache", "x.png")
    assert list(layout.pills) == ["advil"]


@pytest.mark.parametrize(
    "stray", ["images/holdout/z.png", "images/z.jpg", "images/train/deep/z.png", "Val/images/z.PNG"]
)
def test_photo_in_a_folder_that_is_no_split_is_refused(tmp_path: Path, stray: str) -> None:
    error = refusal(tmp_path, yolo() | {stray: PHOTO})
    assert error.subject == stray
    assert error.found.startswith("1 photos")


def test_split_in_both_arrangements_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, yolo() | {"train/images/q.png": PHOTO})
    assert error.subject == "train/images"


def test_photos_of_one_name_in_two_splits_are_two_sessions(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"data.yaml": NAMES_YAML}
    for split, name in (("train", "1"), ("val", "1"), ("val", "2")):
        files[f"images/{split}/{name}.png"] = png(picture(f"{split}{name}", 40))
        files[f"labels/{split}/{name}.txt"] = "0 .5 .5 .5 .5\n"
    layout = read(tmp_path, files)
    assert [p.session for p in layout.photos] == ["train/1", "val/1", "2"]
    assert len({p.path for p in layout.photos}) == 3


def test_one_roboflow_copy_in_three_splits_gives_three_crops(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {"data.yaml": NAMES_YAML}
    for split in ("train", "val", "valid"):
        files[f"images/{split}/p.rf.a.png"] = png(picture(split, 40))
        files[f"labels/{split}/p.rf.a.txt"] = "0 .5 .5 .5 .5\n"
    layout = read(tmp_path, files)
    assert {p.session for p in layout.photos} == {"p"}
    assert len({p.path.read_bytes() for p in layout.photos}) == 3


def test_set_without_any_box_is_refused(tmp_path: Path) -> None:
    assert "1 photos and no box" in refusal(tmp_path, yolo(labels="")).found


def test_data_yaml_without_photo_folders_is_refused(tmp_path: Path) -> None:
    assert "no images/<split>/" in refusal(tmp_path, {"data.yaml": NAMES_YAML}).found


def test_two_descriptions_of_the_photos_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, yolo() | {"images.csv": "image,pill\n"})
    assert error.found == "both images.csv and data.yaml"


def test_unreadable_yolo_photo_is_counted_not_hidden(tmp_path: Path) -> None:
    files = yolo() | {"images/train/q.png": b"no png", "labels/train/q.txt": "0 .5 .5 .5 .5"}
    layout = read(tmp_path, files)
    assert len(layout.photos) == 1
    assert layout.unreadable == (("images/train/q.png", "it is not an image in a known format"),)


# --- crops for people --------------------------------------------------------------------------


def photos_of_two_pills(n_photos: int = 5, n_copies: int = 2) -> dict[str, bytes | str]:
    """Every photo shows advil twice and midol once."""
    files: dict[str, bytes | str] = {"data.yaml": NAMES_YAML}
    for n in range(n_photos):
        for copy in range(n_copies):
            name = f"p{n}_jpg.rf.{copy}"
            files[f"images/train/{name}.png"] = png(picture(name, 40))
            files[f"labels/train/{name}.txt"] = "0 .3 .3 .4 .4\n0 .7 .7 .4 .4\n1 .3 .7 .4 .4\n"
    return files


def test_crop_boxes_uses_one_copy_of_each_photo(tmp_path: Path) -> None:
    source = tree(tmp_path / "set", photos_of_two_pills(n_photos=2, n_copies=3))
    report = crop_boxes(source, tmp_path / "out")
    assert (report.n_photos, report.n_copies_left_out) == (2, 4)
    assert report.crops == {"advil": 4, "midol": 2}
    assert sorted(snapshot(tmp_path / "out")) == [
        "advil/p0_jpg_0.png", "advil/p0_jpg_1.png", "advil/p1_jpg_0.png", "advil/p1_jpg_1.png",
        "midol/p0_jpg_2.png", "midol/p1_jpg_2.png",
    ]  # fmt: skip
    first_copy = picture("p0_jpg.rf.0", 40)
    expected = square_crop(first_copy, 0.3, 0.7, 0.4, 0.4)
    np.testing.assert_array_equal(read_image(tmp_path / "out/midol/p0_jpg_2.png"), expected)


def test_crop_boxes_reads_a_zip_like_its_folder(tmp_path: Path) -> None:
    files = {f"wrap/{name}": data for name, data in photos_of_two_pills(2).items()}
    encoded = {n: d.encode() if isinstance(d, str) else d for n, d in files.items()}
    crop_boxes(zipped(tmp_path / "x.zip", encoded), tmp_path / "from_zip")
    crop_boxes(tree(tmp_path / "set", files), tmp_path / "from_folder")
    assert snapshot(tmp_path / "from_zip") == snapshot(tmp_path / "from_folder") != {}


def test_crop_boxes_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    source = tree(tmp_path / "set", photos_of_two_pills(1))
    tree(tmp_path / "out", {"mine.txt": "keep"})
    with pytest.raises(DatasetRejected, match="already there and not empty"):
        crop_boxes(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == {"mine.txt": b"keep"}


def test_crop_boxes_leaves_nothing_behind_when_a_photo_is_unreadable(tmp_path: Path) -> None:
    files = photos_of_two_pills(2, 1) | {"images/train/p1_jpg.rf.0.png": b"no png"}
    source = tree(tmp_path / "set", files)
    with pytest.raises(ImageRejected, match=r"p1_jpg\.rf\.0\.png"):
        crop_boxes(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_crop_boxes_needs_data_yaml(tmp_path: Path) -> None:
    source = tree(tmp_path / "set", {"a/1.png": PHOTO})
    with pytest.raises(DatasetRejected, match=r"no data\.yaml"):
        crop_boxes(source, tmp_path / "out")


def many_pills(n_pills: int, n_photos: int) -> dict[str, bytes | str]:
    """Photo n shows every pill twice, except that pill k is missing from photos 0..k-1."""
    names = [f"pill{k}" for k in range(n_pills)]
    files: dict[str, bytes | str] = {"data.yaml": f"names: {names}\n"}
    for n in range(n_photos):
        boxes = [f"{k} .{k + 1} .{place} .4 .4" for k in range(n_pills) if n >= k for place in "37"]
        files[f"images/val/photo{n}.png"] = png(picture(f"photo{n}", 40))
        files[f"labels/val/photo{n}.txt"] = "\n".join(boxes)
    return files


@pytest.mark.parametrize("seed", range(5))
def test_split_folders_keeps_photos_and_strangers_apart(tmp_path: Path, seed: int) -> None:
    source = tree(tmp_path / "set", many_pills(5, 6))
    report = split_folders(source, tmp_path / "out", references=2, strangers=2, seed=seed)
    written = [Path(name) for name in snapshot(tmp_path / "out")]
    pills = {
        part: {path.parts[1] for path in written if path.parts[0] == part}
        for part in ("gallery", "probes", "strangers")
    }
    assert len(pills["strangers"]) == 2
    assert not pills["strangers"] & (pills["gallery"] | pills["probes"])
    assert pills["gallery"] == pills["probes"]
    assert len(pills["gallery"]) == 3
    for pill in pills["gallery"]:
        references = {p.stem.split("_")[0] for p in written if p.parts[:2] == ("gallery", pill)}
        probes = {p.stem.split("_")[0] for p in written if p.parts[:2] == ("probes", pill)}
        n_photos = 6 - int(pill[-1])
        n_references = min(2, n_photos - 1)
        assert report.gallery[pill] == len(references) == n_references
        assert len(probes) == n_photos - n_references
        assert not references & probes
        assert (pill in report.short) == (n_references < 2)
    n_written = sum(sum(d.values()) for d in (report.gallery, report.probes, report.strangers))
    assert n_written == len(written)
    assert report.n_left_out == sum(report.gallery.values())  # the second box of each reference


def test_split_folders_depends_on_the_seed_only(tmp_path: Path) -> None:
    source = tree(tmp_path / "set", many_pills(5, 6))
    outputs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split_folders(source, tmp_path / name, references=2, strangers=2, seed=seed)
        outputs.append(snapshot(tmp_path / name))
    assert outputs[0] == outputs[1]
    assert outputs[0].keys() != outputs[2].keys()


@pytest.mark.parametrize(("references", "strangers"), [(1, 2), (0, 1), (1, -1)])
def test_split_folders_refuses_what_cannot_be(
    tmp_path: Path, references: int, strangers: int
) -> None:
    source = tree(tmp_path / "set", photos_of_two_pills(2))
    with pytest.raises(DatasetRejected, match="2 pills with boxes"):
        split_folders(source, tmp_path / "out", references=references, strangers=strangers, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
