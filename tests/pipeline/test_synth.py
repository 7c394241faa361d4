"""The embedded data set: what lies in the zip, and which pills look alike."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pilltrack.core.errors import InputRejected
from pilltrack.core.image import decode_image, read_image
from pilltrack.pipeline.invented import InventedPill, invent_pills
from pilltrack.pipeline.light import Light
from pilltrack.pipeline.pillshape import (
    LOGOS,
    PX_PER_MM,
    Body,
    Face,
    depth_inside,
    face_relief,
    imprint_mask,
)
from pilltrack.pipeline.render import Setting, photograph_pill, render_face
from pilltrack.pipeline.surfaces import draw_surface
from pilltrack.pipeline.synth import contact_sheet, synth

N_PILLS, N_PHOTOS = 6, 5
ROUND = Body("round", 10.0, 10.0, "flat", 0.4, 0.1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "pills.zip"
    synth(out, pills=N_PILLS, photos=N_PHOTOS, seed=7, workers=1)
    return out


def table(archive: Path, name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(archive) as opened:
        return list(csv.DictReader(io.StringIO(opened.read(name).decode())))


def test_same_seed_gives_the_same_bytes_however_many_workers(archive: Path, tmp_path: Path) -> None:
    synth(tmp_path / "two.zip", pills=N_PILLS, photos=N_PHOTOS, seed=7, workers=2)
    assert (tmp_path / "two.zip").read_bytes() == archive.read_bytes()


def test_another_seed_gives_other_pills(archive: Path, tmp_path: Path) -> None:
    synth(tmp_path / "other.zip", pills=2, photos=2, seed=8, workers=1)
    assert table(tmp_path / "other.zip", "pills.csv") != table(archive, "pills.csv")[:2]


def test_every_photo_has_one_row_and_every_row_one_photo(archive: Path) -> None:
    rows = table(archive, "images.csv")
    with zipfile.ZipFile(archive) as opened:
        photos = {name for name in opened.namelist() if name.endswith(".jpg")}
    assert sorted(photos) == [row["image"] for row in rows]
    assert len(rows) == N_PILLS * N_PHOTOS
    for row in rows:
        assert row["image"].startswith(f"{row['pill']}/{row['side']}_")
        assert row["capture"] == "rendered"
    assert list(rows[0]) == ["image", "pill", "side", "session", "capture"]


def test_half_of_the_photos_show_the_front_and_sessions_pair_the_sides(archive: Path) -> None:
    rows = [row for row in table(archive, "images.csv") if row["pill"] == "synth-0001"]
    assert Counter(row["side"] for row in rows) == {"front": 3, "back": 2}
    sessions = defaultdict(list)
    for row in rows:
        sessions[row["session"]].append(row["image"].split("/")[1])
    assert sorted(map(sorted, sessions.values())) == [
        ["back_01.jpg", "front_01.jpg"],
        ["back_02.jpg", "front_02.jpg"],
        ["front_03.jpg"],
    ]


def test_pills_csv_names_every_pill_once(archive: Path) -> None:
    rows = table(archive, "pills.csv")
    assert list(rows[0]) == [
        "pill", "name", "ndc", "strength", "maker", "shape", "colour", "imprint",
    ]  # fmt: skip
    assert [row["pill"] for row in rows] == [f"synth-{n:04d}" for n in range(1, N_PILLS + 1)]
    assert len({row["ndc"] for row in rows}) == N_PILLS
    assert {row["pill"] for row in table(archive, "images.csv")} == {row["pill"] for row in rows}


def test_photos_are_224_px_and_readable(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if name.endswith(".jpg"):
                photo = decode_image(opened.read(name), name=name)
                assert photo.shape == (224, 224, 3)
                assert photo.std() > 3  # there is something to see


def test_progress_counts_finished_pills(tmp_path: Path) -> None:
    seen: list[int] = []
    synth(tmp_path / "p.zip", pills=3, photos=2, seed=0, progress=seen.append, workers=1)
    assert seen == [1, 2, 3]


def test_an_interrupted_run_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    out = tmp_path / "pills.zip"
    out.write_bytes(b"old")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth(out, pills=3, photos=2, seed=0, progress=stop, workers=1)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "pills", "photos", "subject"),
    [
        ("pills.tar", 2, 2, "pills.tar"),
        ("pills", 2, 2, "pills"),
        ("pills.zip", 0, 2, "pills"),
        ("pills.zip", 2, 1, "photos"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, pills: int, photos: int, subject: str
) -> None:
    with pytest.raises(InputRejected) as caught:
        synth(tmp_path / name, pills=pills, photos=photos, seed=0)
    assert subject in caught.value.subject
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_a_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pills.zip").mkdir()
    with pytest.raises(InputRejected, match="directory"):
        synth(tmp_path / "pills.zip", pills=1, photos=2, seed=0)


def families(pills: list[InventedPill]) -> list[list[InventedPill]]:
    groups: dict[int, list[InventedPill]] = defaultdict(list)
    for pill in pills:
        if pill.family is not None:
            groups[pill.family].append(pill)
    return list(groups.values())


def test_about_a_quarter_of_the_pills_have_look_alikes() -> None:
    groups = families(invent_pills(2000, seed=3))
    assert 0.2 < sum(map(len, groups)) / 2000 < 0.3
    assert {len(group) for group in groups} == {2, 3, 4}


def test_look_alikes_differ_only_in_imprint_or_only_in_size() -> None:
    kinds: Counter[str] = Counter()
    for group in families(invent_pills(1000, seed=5)):
        first = group[0]
        for other in group[1:]:
            labels = {name: getattr(other, name) for name in ("pill", "name", "ndc", "strength")}
            same_labels = replace(first, **labels)
            if other.body == first.body:
                kinds["imprint"] += 1
                assert other.front != first.front
                assert replace(same_labels, front=other.front, back=other.back) == other
                assert other.front.lines[:-1] == first.front.lines[:-1]
            else:
                kinds["size"] += 1
                assert replace(same_labels, body=other.body) == other
        sizes = [pill.body.length_mm for pill in group]
        for smaller, larger in pairwise(sizes):
            assert larger == smaller or larger / smaller > 1.15
    assert min(kinds["imprint"], kinds["size"]) > 20


def test_look_alikes_of_one_size_never_share_an_imprint_even_upside_down() -> None:
    upside_down = str.maketrans("69MW", "96WM")
    for group in families(invent_pills(3000, seed=11)):
        if len({pill.body for pill in group}) == 1:
            codes = [pill.front.lines[-1] for pill in group]
            turned = [code[::-1].translate(upside_down) for code in codes]
            assert len(set(codes)) == len(codes)
            for index, code in enumerate(codes):
                assert code not in turned[:index] + turned[index + 1 :]


def test_names_strengths_and_sizes_are_plausible() -> None:
    pills = invent_pills(500, seed=1)
    assert all(7 <= pill.body.length_mm <= 20 for pill in pills)
    assert all(pill.body.width_mm <= pill.body.length_mm for pill in pills)
    whites = sum(pill.colour_name.startswith(("white", "off-white")) for pill in pills)
    assert 0.25 < whites / 500 < 0.45  # the most common colour, yet not most pills
    for group in families(pills):
        assert len({(pill.name, pill.strength) for pill in group}) == len(group)


@pytest.mark.parametrize(
    ("shape", "width_mm", "area_mm2", "tolerance"),
    [
        ("round", 10.0, np.pi * 25, 0.02),
        ("oval", 6.0, np.pi * 5 * 3, 0.02),
        ("caplet", 4.0, 6 * 4 + np.pi * 4, 0.02),
        ("softgel", 6.0, np.pi * 5 * 3, 0.02),
        ("capsule", 4.0, 6 * 4 + np.pi * 4, 0.05),  # one half is narrower
        ("diamond", 7.0, 35.0, 0.15),  # round corners
    ],
)
def test_outlines_have_the_area_of_their_shape(
    shape: str, width_mm: float, area_mm2: float, tolerance: float
) -> None:
    body = replace(ROUND, shape=shape, width_mm=width_mm)  # type: ignore[arg-type]
    area = float((depth_inside(body) > 0).sum()) / PX_PER_MM**2
    assert area == pytest.approx(area_mm2, rel=tolerance)


def test_a_debossed_imprint_is_pressed_in_and_a_printed_one_is_not() -> None:
    blank = face_relief(ROUND, Face())
    debossed = Face(lines=("44",), depth_mm=0.2)
    inside = imprint_mask(ROUND, debossed) > 0.9
    assert inside.sum() > 100
    pressed = blank - face_relief(ROUND, debossed)
    assert 0.08 < float(pressed[inside].mean()) <= 0.2
    np.testing.assert_array_equal(face_relief(ROUND, replace(debossed, technique="printed")), blank)


@pytest.mark.parametrize("logo", LOGOS)
def test_every_logo_leaves_a_mark_of_its_own(logo: str) -> None:
    mask = imprint_mask(ROUND, Face(logo=logo))
    assert mask.sum() > 50
    others = [imprint_mask(ROUND, Face(logo=other)) for other in LOGOS if other != logo]
    assert min(float(np.abs(mask - other).sum()) for other in others) > 50


def test_imprints_stay_on_the_pill() -> None:
    for pill in invent_pills(150, seed=2):
        for face in (pill.front, pill.back):
            off = imprint_mask(pill.body, face) * (depth_inside(pill.body) < 0)
            assert off.sum() == 0, (pill.pill, pill.body, face)


def test_relief_is_brighter_towards_the_light() -> None:
    pill = replace(
        invent_pills(1, seed=0)[0],
        body=replace(ROUND, profile="convex", dome_mm=1.2),
        finish="matte",
        colours=((0.6, 0.6, 0.6), (0.6, 0.6, 0.6)),
        speckles=0.0,
        front=Face(),
    )
    dark = next(n for n in range(100) if draw_surface(224, np.random.default_rng(n)).mean() < 60)
    for seed in range(8):
        for side in (-1.0, 1.0):
            rng = np.random.default_rng(seed)
            setting = Setting(surface_seed=dark, light=Light(side, 0.0, 0.8), shadow=0.4)
            photo = photograph_pill(render_face(pill, "front", rng), setting, 224, rng)
            grey = photo.mean(2)
            rows, columns = np.nonzero(grey > 95)
            right = columns > np.median(columns)
            values = grey[rows, columns]
            assert (values[right].mean() - values[~right].mean()) * side > 5


def test_a_pill_15_percent_larger_fills_more_of_the_frame() -> None:
    small = replace(ROUND, length_mm=10.0, width_mm=10.0)
    large = replace(ROUND, length_mm=11.7, width_mm=11.7)
    areas = [float((depth_inside(body) > 0).sum()) for body in (small, large)]
    assert areas[1] / areas[0] == pytest.approx(1.17**2, rel=0.02)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_contact_sheet_shows_as_many_tiles_as_asked(
    archive: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"sheet{suffix}"
    contact_sheet(archive, out, columns=4, rows=2, tile_px=32)
    assert read_image(out).shape == (64, 128, 3)
