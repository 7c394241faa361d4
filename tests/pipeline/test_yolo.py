"""Crops for people: every photo is used or counted, and `pilltrack crop-boxes` says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilltrack.cli import main
from pilltrack.core.errors import DatasetRejected
from pilltrack.pipeline.yolo import crop_boxes, split_folders
from tests.pipeline.pill_zips import photo, snapshot, tree, yolo_set

PHOTOS = ["train/000001", "val/000001", "val/000002", "train/x.rf.1", "train/x.rf.2", "val/x.rf.3"]


def source_in(tmp_path: Path) -> Path:
    """4 base photos with both pills; one of them in three Roboflow copies."""
    return tree(tmp_path / "set", yolo_set(PHOTOS, ["advil", "midol"]))


def test_photos_of_one_name_in_two_splits_are_both_cropped(tmp_path: Path) -> None:
    report = crop_boxes(source_in(tmp_path), tmp_path / "out")
    assert (report.n_photos, report.n_copies_left_out) == (4, 2)
    assert report.crops == {"advil": 4, "midol": 4}
    assert sorted(snapshot(tmp_path / "out")) == [
        "advil/000002_0.png", "advil/train_000001_0.png", "advil/val_000001_0.png", "advil/x_0.png",
        "midol/000002_1.png", "midol/train_000001_1.png", "midol/val_000001_1.png", "midol/x_1.png",
    ]  # fmt: skip
    written = snapshot(tmp_path / "out")
    assert written["advil/train_000001_0.png"] != written["advil/val_000001_0.png"]


def test_photos_of_one_name_in_two_splits_are_two_references(tmp_path: Path) -> None:
    report = split_folders(source_in(tmp_path), tmp_path / "out", references=3, strangers=0, seed=0)
    assert (report.gallery, report.probes) == ({"advil": 3, "midol": 3}, {"advil": 1, "midol": 1})
    assert (report.n_copies_left_out, report.n_left_out, report.strangers) == (2, 0, {})


def test_crop_that_would_overwrite_another_is_refused(tmp_path: Path) -> None:
    photos = ["train/1", "val/1", "train/train_1"]
    source = tree(tmp_path / "set", yolo_set(photos, ["advil"]))
    with pytest.raises(DatasetRejected, match=r"called train_1_0\.png"):
        crop_boxes(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_crop_boxes_refuses_photos_outside_the_splits(tmp_path: Path) -> None:
    source = tree(source_in(tmp_path), {"images/holdout/z.png": photo("z")})
    with pytest.raises(DatasetRejected, match=r"images/holdout/z\.png: 1 photos in a folder that"):
        crop_boxes(source, tmp_path / "out")


def test_crop_boxes_names_the_files_it_did_not_read(tmp_path: Path) -> None:
    files = yolo_set(PHOTOS, ["advil"]) | {"labels/train.cache": ""}
    wrapped = {f"wrap/{name}": data for name, data in files.items()} | {"README.txt": "hello"}
    report = crop_boxes(tree(tmp_path / "set", wrapped), tmp_path / "out")
    assert report.ignored == ("README.txt", "labels/train.cache")


def test_command_without_references_writes_one_folder_per_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tree(source_in(tmp_path), {f"{n}.txt": "" for n in "abcd"})
    assert main(["crop-boxes", str(source), f"--out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "crops       8 crops of 2 pills",
        "left out    2 Roboflow copies of photos used",
        "ignored     4 other files: a.txt, b.txt, c.txt, ...",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"advil", "midol"}


def test_command_with_references_writes_three_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--references=4", "--strangers=1", "--seed=3"]
    source = source_in(tmp_path)
    assert main(["crop-boxes", str(source), f"--out={tmp_path / 'out'}", *arguments]) == 0
    (known,) = [path.name for path in (tmp_path / "out" / "gallery").iterdir()]
    assert capsys.readouterr().out.splitlines() == [
        "gallery     3 crops of 1 pills",
        "probes      1 crops of 1 pills",
        "strangers   4 crops of 1 pills",
        "left out    2 Roboflow copies of photos used",
        f"too few     references of {known}",
    ]


def test_command_has_no_strangers_and_seed_0_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = source_in(tmp_path), tmp_path / "out"
    assert main(["crop-boxes", str(source), f"--out={out}", "--references=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "gallery": {"advil": 1, "midol": 1},
        "probes": {"advil": 3, "midol": 3},
        "strangers": {},
        "n_copies_left_out": 2,
        "n_left_out": 0,
        "short": [],
        "notes": [],
        "ignored": [],
    }
    split_folders(source, tmp_path / "again", references=1, strangers=0, seed=0)
    assert snapshot(out) == snapshot(tmp_path / "again")


@pytest.mark.parametrize("option", ["--strangers=0", "--seed=1"])
def test_command_refuses_options_it_would_not_use(tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["crop-boxes", str(source_in(tmp_path)), f"--out={tmp_path / 'out'}", option])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()
