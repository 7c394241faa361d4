"""From a zip to splits: what is accepted, what is refused, and that nothing leaks."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilltrack.core.errors import ArchiveRejected, DatasetRejected, PillTrackError, StageFailed
from pilltrack.pipeline import prepare as prepare_module
from pilltrack.pipeline.audit import Audit, check_leaks
from pilltrack.pipeline.params import load_params
from pilltrack.pipeline.prepare import prepare
from pilltrack.pipeline.splits import Member, assign
from pilltrack.pipeline.synth import synth
from pilltrack.pipeline.table import (
    SIDES,
    SPLITS,
    ImageRow,
    PillRow,
    Side,
    Split,
    load_images,
    load_pills,
)
from tests.imports import ROOT
from tests.pipeline.pill_zips import (
    Pixels,
    brighter,
    different,
    folders,
    jpeg,
    params,
    photo,
    picture,
    png,
    snapshot,
    zipped,
)

REAL_DATA = Path(os.environ.get("PILLTRACK_REAL_DATA", "no-real-data"))


def refusal(archive: Path, **changes: object) -> PillTrackError:
    """Prepare over an existing output, expect a refusal, and that the output is untouched."""
    out = archive.parent / "out"
    if not out.exists():
        out.mkdir()
        (out / "images.csv").write_text("from an earlier run")
    before = snapshot(archive.parent)
    with pytest.raises(PillTrackError) as caught:
        prepare(archive, params(**changes), out)
    assert snapshot(archive.parent) == before
    assert sorted(path.name for path in archive.parent.iterdir()) == ["out", archive.name]
    assert caught.value.remedy.endswith(".")
    return caught.value


def roles_of(rows: list[ImageRow], pill: str) -> Counter[str]:
    return Counter(row.role for row in rows if row.pill == pill)


# --- what is written ---------------------------------------------------------------------------


def test_original_bytes_are_kept_and_listed(tmp_path: Path) -> None:
    files = folders(10, 2) | {"pill00/photo.jpg": jpeg(picture("jpeg"), 60)}
    prepare(zipped(tmp_path / "x.zip", files), params(), tmp_path / "out")
    rows = load_images(tmp_path / "out")
    written = snapshot(tmp_path / "out/images")
    assert written == files
    assert [row.image for row in rows] == sorted(f"images/{name}" for name in files)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "audit.json", "audit.md", "images", "images.csv", "pills.csv",
    ]  # fmt: skip


def test_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    prepare(zipped(tmp_path / "x.zip", folders(8)), params(), tmp_path / "out")
    with (tmp_path / "out/images.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header == ["image", "pill", "side", "session", "capture", "group", "split", "role"]


def test_every_pill_has_a_row_with_blanks_where_nothing_is_known(tmp_path: Path) -> None:
    files = folders(8) | {"pills.csv": b"pill,name\npill03,Advil\n"}
    prepare(zipped(tmp_path / "x.zip", files), params(), tmp_path / "out")
    pills = load_pills(tmp_path / "out")
    assert list(pills) == [f"pill{n:02d}" for n in range(8)]
    assert pills["pill03"] == PillRow("pill03", name="Advil")
    assert pills["pill04"] == PillRow("pill04")


def test_odd_file_names_become_plain_and_stay_different(tmp_path: Path) -> None:
    odd = ["pill00/é.png", "pill00/ü.png", "pill00/A b.PNG", "pill00/a_b.png", "pill00/x:1.png"]
    files = folders(8) | {name: photo(name) for name in odd}
    prepare(zipped(tmp_path / "x.zip", files), params(), tmp_path / "out")
    images = [row.image for row in load_images(tmp_path / "out") if row.pill == "pill00"]
    assert len({image.casefold() for image in images}) == len(odd) + 1
    assert all(image.isascii() and " " not in image for image in images)
    assert "images/pill00/x_1.png" in images


def test_images_csv_in_the_zip_reaches_the_output(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(12)]
    table = "image,pill,side,session,capture\n" + "".join(
        f"{name},p{n // 2},{('front', 'back')[n % 2]},s{n},rendered\n"
        for n, name in enumerate(names)
    )
    files = {name: photo(name) for name in names} | {"images.csv": table.encode()}
    audit = prepare(zipped(tmp_path / "x.zip", files), params(), tmp_path / "out")
    row = next(row for row in load_images(tmp_path / "out") if row.image.endswith("/3.png"))
    assert (row.pill, row.side, row.session, row.capture) == ("p1", "back", "s3", "rendered")
    assert audit.captures == {"rendered": 12}


def test_yolo_set_is_cropped_and_prepared(tmp_path: Path) -> None:
    names = [f"pill{n}" for n in range(7)]
    files = {"data.yaml": f"names: {names}".encode()}
    for n in range(8):
        files[f"images/train/{n}.png"] = png(picture(f"scene{n}", 256))
        files[f"labels/train/{n}.txt"] = "\n".join(
            f"{k} {(k % 3) * 0.3 + 0.2} {k // 3 * 0.3 + 0.2} 0.15 0.1" for k in range(7)
        ).encode()
    out = tmp_path / "out"
    audit = prepare(zipped(tmp_path / "x.zip", files), params(), out)
    assert (audit.layout, audit.n_images, audit.n_pills) == ("yolo", 56, 7)
    assert audit.shared_sessions == tuple("01234567")  # every photo shows pills of several splits
    assert "pills of several splits (8)" in (out / "audit.md").read_text()
    assert {row.session for row in load_images(out)} == {str(n) for n in range(8)}


def test_audit_counts_what_happened(tmp_path: Path) -> None:
    files = folders(10, 2) | {
        "pill10/only.png": photo("only"),
        "pill00/again.png": photo("0/0"),
        "pill01/bright.png": png(brighter(picture("1/0"))),
        "README.txt": b"hello",
        "__MACOSX/x": b"junk",
        "pill02/broken.png": b"no image",
    }
    out = tmp_path / "out"
    audit = prepare(zipped(tmp_path / "x.zip", files), params(max_unreadable_share=0.05), out)
    assert (audit.n_images, audit.n_pills) == (23, 11)
    assert audit.exact_duplicates == (("pill00/0.png", "pill00/again.png"),)
    assert audit.near_duplicates == (("pill01/0.png", "pill01/bright.png"),)
    assert audit.single_image_pills == ("pill10",)
    assert [name for name, _ in audit.unreadable] == ["pill02/broken.png"]
    assert audit.ignored == ("README.txt",)
    assert audit.skipped == ("__MACOSX/x",)
    assert audit.leaks
    assert not any(audit.leaks.values())
    assert {s: c["pills"] for s, c in audit.splits.items()} == {
        "train": 7, "validation": 2, "test": 2,
    }  # fmt: skip
    assert json.loads((out / "audit.json").read_text())["n_images"] == 23
    text = (out / "audit.md").read_text()
    assert "## Unreadable images (1)" in text
    assert "pill02/broken.png" in text
    assert "| train | 7 |" in text


def test_new_output_replaces_the_old_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(zipped(tmp_path / "x.zip", folders(8, prefix="old")), params(), out)
    prepare(zipped(tmp_path / "x.zip", folders(8, prefix="new")), params(), out)
    assert {row.pill[:3] for row in load_images(out)} == {"new"}
    assert {path.name[:3] for path in (out / "images").iterdir()} == {"new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.zip"]


@pytest.mark.parametrize("workers", [1, 4])
def test_result_depends_on_content_and_params_only(tmp_path: Path, workers: int) -> None:
    files = folders(12, 3)
    shuffled = dict(random.Random(workers).sample(sorted(files.items()), len(files)))
    zipped(tmp_path / "x.zip", files)
    prepare(tmp_path / "x.zip", params(), tmp_path / "a", workers=2)
    zipped(tmp_path / "x.zip", shuffled)
    prepare(tmp_path / "x.zip", params(), tmp_path / "b", workers=workers)
    first, second = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    for name in ("audit.json", "audit.md"):  # name the hash of the zip file
        first.pop(name), second.pop(name)
    assert first == second


def test_another_seed_deals_other_splits(tmp_path: Path) -> None:
    zipped(tmp_path / "x.zip", folders(12))
    tables = []
    for seed in (1, 2):
        prepare(tmp_path / "x.zip", params(seed=seed), tmp_path / str(seed))
        tables.append((tmp_path / str(seed) / "images.csv").read_text())
    assert tables[0] != tables[1]


# --- what is refused ---------------------------------------------------------------------------


def test_unsafe_zip_is_refused(tmp_path: Path) -> None:
    error = refusal(zipped(tmp_path / "x.zip", folders(8) | {"../evil.png": b"x"}))
    assert isinstance(error, ArchiveRejected)
    assert "climbs out" in error.found


def test_truncated_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", folders(8))
    path.write_bytes(path.read_bytes()[:-100])
    assert isinstance(refusal(path), ArchiveRejected)


def test_zip_over_the_size_in_params_is_refused(tmp_path: Path) -> None:
    error = refusal(zipped(tmp_path / "x.zip", folders(8)), max_unzipped_gb=1e-6)
    assert "max_unzipped_gb" in error.remedy


def test_unreadable_images_are_named_and_the_share_is_a_limit(tmp_path: Path) -> None:
    files = folders(18) | {"pill00/empty.png": b"", "pill01/cut.jpg": jpeg(picture("c"))[:200]}
    path = zipped(tmp_path / "x.zip", files)
    error = refusal(path, max_unreadable_share=0.09)  # 2 of 20 are 0.1
    assert "2 of 20 images" in error.found
    assert "pill00/empty.png: the file is empty (0 bytes)" in error.found
    assert "pill01/cut.jpg: it is damaged or truncated" in error.found
    audit = prepare(path, params(max_unreadable_share=0.1), tmp_path / "out")
    assert audit.n_images == 18


def test_many_unreadable_images_are_counted_and_three_are_named(tmp_path: Path) -> None:
    error = refusal(zipped(tmp_path / "x.zip", {f"a/{n}.png": b"text" for n in range(5)}))
    assert "a/2.png" in error.found
    assert "a/3.png" not in error.found
    assert "and 2 more" in error.found


def test_nothing_readable_is_refused_whatever_the_share(tmp_path: Path) -> None:
    error = refusal(zipped(tmp_path / "x.zip", {"a/1.png": b"text"}), max_unreadable_share=1.0)
    assert "1 of 1 images" in error.found


def test_two_folders_with_the_same_images_are_refused(tmp_path: Path) -> None:
    files = folders(8) | {"copy/1.png": photo("3/0"), "copy/2.png": photo("4/0")}
    error = refusal(zipped(tmp_path / "x.zip", files))
    assert error.subject == "copy/1.png and pill03/0.png"
    assert "'copy' and as 'pill03' (and 1 more such images)" in error.found
    assert error.remedy.startswith("Merge the two pills into one folder")


def test_same_pixels_under_two_names_are_refused_whatever_the_format(tmp_path: Path) -> None:
    done = zipped(tmp_path / "x.zip", folders(8) | {"b/1.bmp": bmp("2/0")})
    assert refusal(done).subject == "b/1.bmp and pill02/0.png"


def bmp(name: str) -> bytes:
    done, data = cv2.imencode(".bmp", picture(name)[:, :, ::-1])
    assert done
    return bytes(data)


@pytest.mark.parametrize("n_pills", [1, 5])
def test_fewer_pills_than_the_splits_need_are_refused(tmp_path: Path, n_pills: int) -> None:
    error = refusal(zipped(tmp_path / "x.zip", folders(n_pills, 3)))
    assert f"{n_pills} pills" in error.found
    assert "6 pills in all" in error.expected


def test_six_pills_are_enough(tmp_path: Path) -> None:
    audit = prepare(zipped(tmp_path / "x.zip", folders(6)), params(), tmp_path / "out")
    assert {s: (c["pills"], c["strangers"]) for s, c in audit.splits.items()} == {
        "train": (2, 0), "validation": (2, 1), "test": (2, 1),
    }  # fmt: skip


def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", folders(10))
    error = refusal(path, validation_share=0.5, test_share=0.5)
    assert "validation takes 5 and test 5, so 0 are left" in error.found


def test_look_alikes_that_leave_too_few_clusters_are_refused(tmp_path: Path) -> None:
    files = {f"pill{n}/1.png": png(picture("one pill") + n) for n in range(8)}
    error = refusal(zipped(tmp_path / "x.zip", files))
    assert "1 clusters of look-alike pills out of 8 pills" in error.found


def test_mistake_in_a_table_leaves_the_output_alone(tmp_path: Path) -> None:
    files = folders(8) | {"pills.csv": b"pill,weight\npill00,3\n"}
    assert isinstance(refusal(zipped(tmp_path / "x.zip", files)), DatasetRejected)


def test_interrupt_leaves_the_old_output_and_no_other_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(zipped(tmp_path / "x.zip", folders(8)), params(), out)
    before = snapshot(tmp_path)
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from pilltrack.pipeline import prepare
        from tests.pipeline.pill_zips import params
        look = prepare.fingerprint
        def slow(image):
            print("decoding", flush=True)
            import time; time.sleep(0.2)
            return look(image)
        prepare.fingerprint = slow
        prepare.prepare(Path({str(tmp_path / "x.zip")!r}), params(), Path({str(out)!r}), workers=1)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"decoding\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert snapshot(tmp_path) == before


# --- splits and roles --------------------------------------------------------------------------


def test_shares_are_kept(tmp_path: Path) -> None:
    files = folders(40)
    audit = prepare(
        zipped(tmp_path / "x.zip", files),
        params(validation_share=0.1, test_share=0.25, stranger_share=0.3),
        tmp_path / "out",
    )
    assert {s: (c["pills"], c["strangers"]) for s, c in audit.splits.items()} == {
        "train": (26, 0),
        "validation": (4, 1),  # 30 % of 4 is 1.2
        "test": (10, 3),
    }


@pytest.mark.parametrize(("n_photos", "n_probes"), [(1, 0), (2, 1), (4, 1), (7, 1), (8, 2)])
def test_a_quarter_of_the_photos_and_at_least_one_of_two_are_probes(
    tmp_path: Path, n_photos: int, n_probes: int
) -> None:
    out = tmp_path / "out"
    prepare(zipped(tmp_path / "x.zip", folders(7, n_photos)), params(probe_share=0.25), out)
    rows = load_images(out)
    for pill in {row.pill for row in rows}:
        roles = roles_of(rows, pill)
        if "stranger" in roles:
            assert roles == {"stranger": n_photos}
        else:
            assert roles["probe"] == n_probes
            assert roles["fit"] + roles["reference"] == n_photos - n_probes


def test_probes_are_chosen_per_side(tmp_path: Path) -> None:
    files = {
        f"p{pill}/{side}_{n}.png": photo(f"{pill}{side}{n}")
        for pill in range(6)
        for side, count in (("front", 4), ("back", 1))
        for n in range(count)
    }
    out = tmp_path / "out"
    audit = prepare(zipped(tmp_path / "x.zip", files), params(probe_share=0.5), out)
    rows = [row for row in load_images(out) if row.role != "stranger"]
    assert {row.side for row in rows if row.role == "probe"} == {"front"}
    assert sum(row.role == "probe" for row in rows) == 2 * len({row.pill for row in rows})
    assert audit.sides_without_probe == len({row.pill for row in rows})  # the backs


def test_images_of_one_session_share_a_role(tmp_path: Path) -> None:
    files = {
        f"p{pill}/{shot}.rf.{copy}.png": photo(f"{pill}{shot}{copy}")
        for pill in range(7)
        for shot in "abcd"
        for copy in range(3)
    }
    out = tmp_path / "out"
    prepare(zipped(tmp_path / "x.zip", files), params(probe_share=0.5), out)
    by_session: dict[str, set[str]] = {}
    for row in load_images(out):
        by_session.setdefault(row.session, set()).add(row.role)
    assert len(by_session) == 28
    assert all(len(roles) == 1 for roles in by_session.values())
    assert {"probe", "fit"} <= set().union(*by_session.values())


def test_near_duplicates_of_two_pills_bring_them_together_and_into_the_audit(
    tmp_path: Path,
) -> None:
    files = folders(20) | {"twin/0.png": png(brighter(picture("5/0")))}
    for seed in range(6):
        out = tmp_path / "out"
        audit = prepare(zipped(tmp_path / "x.zip", files), params(seed=seed), out)
        rows = {row.pill: row for row in load_images(out)}
        assert rows["twin"].group == rows["pill05"].group
        assert (rows["twin"].split, rows["twin"].role) == (
            rows["pill05"].split, rows["pill05"].role,
        )  # fmt: skip
        assert [alike.pills for alike in audit.alike] == [("pill05", "twin")]
        assert "pill05, twin: pill05/0.png and twin/0.png" in (out / "audit.md").read_text()


def split_zip(path: Path) -> Path:
    """Pills a..c only in train, d..e only in val, f..g only in test, m in train and in test."""
    files: dict[str, bytes] = {}
    for split, pills in (("train", "abc"), ("val", "de"), ("test", "fg")):
        files |= {f"{split}/{pill}/{n}.png": photo(f"{pill}{n}") for pill in pills for n in "12"}
    files |= {f"train/m/{n}.png": photo(f"m{n}") for n in "123"}
    files |= {f"test/m/{n}.png": photo(f"m{n}") for n in "45"}
    return zipped(path, files)


def test_given_splits_are_respected(tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit = prepare(split_zip(tmp_path / "x.zip"), params(zip_splits="respect"), out)
    rows = load_images(out)
    assert {row.pill: row.split for row in rows} == {
        **dict.fromkeys("abcm", "train"),
        **dict.fromkeys("de", "validation"),
        **dict.fromkeys("fg", "test"),
    }
    roles = {row.session: row.role for row in rows if row.pill == "m"}
    assert roles == {
        "m/1": "fit", "m/2": "fit", "m/3": "fit", "m/4": "probe", "m/5": "probe",
    }  # fmt: skip
    strangers = {row.pill for row in rows if row.role == "stranger"}
    assert len(strangers & set("de")) == len(strangers & set("fg")) == 1
    assert audit.notes == ()


def test_given_splits_can_be_ignored(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = split_zip(tmp_path / "x.zip")
    splits = []
    for seed in range(4):
        prepare(path, params(seed=seed), out)
        splits.append({row.pill: row.split for row in load_images(out)})
    assert any(split["a"] != "train" for split in splits)


def test_copies_across_given_splits_pull_the_pill_into_training(tmp_path: Path) -> None:
    files = {f"train/{pill}/1.png": photo(pill) for pill in "abc"}
    files |= {f"val/{pill}/1.png": photo(pill) for pill in "de"}
    files |= {f"test/{pill}/1.png": photo(pill) for pill in "fgh"}
    files["test/h/2.png"] = png(brighter(picture("a")))
    out = tmp_path / "out"
    audit = prepare(zipped(tmp_path / "x.zip", files), params(zip_splits="respect"), out)
    rows = load_images(out)
    assert {row.split for row in rows if row.pill == "h"} == {"train"}
    assert audit.notes == ("h: given as test, put into train with its look-alikes a",)


def test_copies_of_train_photos_are_no_probes_although_given_as_test(tmp_path: Path) -> None:
    path = split_zip(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test/m/leak.png", png(brighter(picture("m1"))))
    prepare(path, params(zip_splits="respect"), tmp_path / "out")
    roles = {row.session: row.role for row in load_images(tmp_path / "out")}
    assert (roles["m/leak"], roles["m/4"], roles["m/5"]) == ("fit", "probe", "probe")


def test_classic_split_of_the_same_pills_is_refused_with_the_way_out(tmp_path: Path) -> None:
    files = {
        f"{split}/{pill}/1.png": photo(split + pill)
        for split in ("train", "val", "test")
        for pill in "abcdefgh"
    }
    path = zipped(tmp_path / "x.zip", files)
    error = refusal(path, zip_splits="respect")
    assert "8 train, 0 validation, 0 test pills" in error.found
    assert "prepare.zip_splits to ignore" in error.remedy
    assert prepare(path, params(), tmp_path / "out").n_pills == 8


# --- properties of the assignment --------------------------------------------------------------


def as_members(drawn: list[tuple[int, Side, int | None, Split]]) -> list[Member]:
    return [
        Member(f"i{n:03d}", f"p{pill:02d}", side, 1000 + n if group is None else group, given)
        for n, (pill, side, group, given) in enumerate(drawn)
    ]


MEMBERS = st.lists(
    st.tuples(
        st.integers(0, 30),  # pill
        st.sampled_from(SIDES),
        st.one_of(st.none(), st.integers(0, 25)),  # a group shared with others
        st.sampled_from(SPLITS),
    ),
    min_size=25,
    max_size=90,
).map(as_members)


@settings(deadline=None)
@given(
    members=MEMBERS,
    seed=st.integers(0, 3),
    zip_splits=st.sampled_from(["ignore", "respect"]),
    shares=st.tuples(*[st.floats(0, 0.4)] * 2, *[st.floats(0, 1)] * 2),
    order=st.randoms(use_true_random=False),
)
def test_duplicates_never_cross_a_split_or_a_role(
    members: list[Member],
    seed: int,
    zip_splits: str,
    shares: tuple[float, float, float, float],
    order: random.Random,
) -> None:
    names = ("validation_share", "test_share", "stranger_share", "probe_share")
    chosen = params(seed=seed, zip_splits=zip_splits, **dict(zip(names, shares, strict=True)))
    try:
        assignment = assign(members, chosen)
    except DatasetRejected:
        return  # too few clusters; that it does not always happen is checked below
    rows = [
        ImageRow(
            m.name, m.pill, m.side, m.name, "real", str(m.group),
            assignment.splits[m.pill], assignment.roles[m.name],
        )
        for m in members
    ]  # fmt: skip
    prints = {m.name: different(m.name) for m in members}
    assert not any(check_leaks(rows, prints, 20)[0].values())
    for split in ("validation", "test"):
        inside = {row.pill for row in rows if row.split == split}
        strange = {row.pill for row in rows if row.split == split and row.role == "stranger"}
        assert 1 <= len(strange) < len(inside)
    assert sum(split == "train" for split in assignment.splits.values()) >= 2
    shuffled = members[:]
    order.shuffle(shuffled)
    again = assign(shuffled, chosen)
    assert (again.splits, again.roles) == (assignment.splits, assignment.roles)


@given(
    n_pills=st.integers(6, 60),
    validation=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    stranger=st.floats(0, 1),
)
def test_pills_that_do_not_look_alike_are_dealt_to_the_pill(
    n_pills: int, validation: float, test: float, stranger: float
) -> None:
    members = [Member(f"i{n}", f"p{n}", "", n, None) for n in range(n_pills)]
    chosen = params(validation_share=validation, test_share=test, stranger_share=stranger)
    wanted = {
        "validation": max(2, math.floor(n_pills * validation + 0.5 + 1e-9)),
        "test": max(2, math.floor(n_pills * test + 0.5 + 1e-9)),
    }
    if n_pills - sum(wanted.values()) < 2:
        with pytest.raises(DatasetRejected):
            assign(members, chosen)
        return
    assignment = assign(members, chosen)
    counts = Counter(assignment.splits.values())
    assert {split: counts[split] for split in wanted} == wanted  # type: ignore[index]
    for split, n in wanted.items():
        n_strangers = sum(assignment.splits[pill] == split for pill in assignment.strangers)
        assert n_strangers == min(n - 1, max(1, math.floor(n * stranger + 0.5 + 1e-9)))


def test_large_cluster_of_look_alikes_still_leaves_every_split_filled() -> None:
    members = [Member(f"i{n}", f"p{n:02d}", "", min(n, 20), None) for n in range(60)]  # 20..59
    for seed in range(20):
        assignment = assign(members, params(seed=seed))
        assert len({assignment.splits[f"p{n}"] for n in range(20, 60)}) == 1
        assert Counter(assignment.splits.values())["train"] >= 2
        assert assignment.clusters == (tuple(f"p{n}" for n in range(20, 60)),)


def test_adding_a_pill_moves_few_others() -> None:
    members = [Member(f"i{n}", f"p{n}", "", n, None) for n in range(100)]
    before = assign(members[:99], params()).splits
    after = assign(members, params()).splits
    assert sum(before[pill] != after[pill] for pill in before) <= 4


def test_probe_share_of_zero_means_no_probes() -> None:
    members = [Member(f"i{n}", f"p{n // 3}", "", n, None) for n in range(30)]
    roles = assign(members, params(probe_share=0)).roles
    assert "probe" not in roles.values()
    assert Counter(assign(members, params(probe_share=1)).roles.values())["probe"] == 2 * 8


# --- planted leaks: refused, or healed and reported; the checks themselves are in test_audit.py ---


def given_splits(tmp_path: Path, planted: dict[str, bytes]) -> tuple[Audit, dict[str, ImageRow]]:
    """Prepare `split_zip` with more files, respecting its folders: audit, session -> row."""
    path = split_zip(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in planted.items():
            archive.writestr(name, data)
    audit = prepare(path, params(zip_splits="respect"), tmp_path / "out")
    assert not any(audit.leaks.values())
    return audit, {row.session: row for row in load_images(tmp_path / "out")}


SCENE = picture("scene", 160)
HALF: Pixels = cv2.resize(SCENE, (80, 80), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    "copy",
    [png(SCENE), jpeg(SCENE, 60), png(HALF), png(brighter(SCENE))],
    ids=["exact", "re-encoded", "resized", "brighter"],
)
def test_copy_of_a_train_photo_in_the_test_folder_is_trained_on_and_reported(
    tmp_path: Path, copy: bytes
) -> None:
    audit, rows = given_splits(tmp_path, {"train/m/scene.png": png(SCENE), "test/m/leak.png": copy})
    assert (rows["m/leak"].split, rows["m/leak"].role) == ("train", "fit")
    assert rows["m/4"].role == "probe"  # a photo given as test that is no copy
    assert audit.divided_by_zip == (("test/m/leak.png", "train/m/scene.png"),)
    text = (tmp_path / "out/audit.md").read_text()
    assert "own splits (1)" in text
    assert "- test/m/leak.png ~ train/m/scene.png\n" in text


def test_clean_splits_of_the_zip_are_not_reported_as_divided(tmp_path: Path) -> None:
    audit, _ = given_splits(tmp_path, {"train/m/again.png": photo("m1")})
    assert audit.divided_by_zip == ()


def test_copy_of_a_train_photo_under_another_name_in_the_test_folder_is_refused(
    tmp_path: Path,
) -> None:
    path = split_zip(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test/f/leak.png", photo("a1"))
    error = refusal(path, zip_splits="respect")
    assert error.subject == "test/f/leak.png and train/a/1.png"
    assert "the same image as 'f' and as 'a'" in error.found


def test_near_copy_of_a_train_photo_makes_no_stranger_and_is_reported(tmp_path: Path) -> None:
    audit, rows = given_splits(
        tmp_path,
        {
            "train/a/scene.png": png(SCENE),
            "test/g/leak.jpg": jpeg(SCENE, 60),
            "test/h/1.png": photo("h1"),
        },
    )
    assert {row.split for row in rows.values() if row.pill == "g"} == {"train"}
    assert {row.role for row in rows.values() if row.pill == "g"} <= {"fit", "probe"}
    assert rows["g/leak"].role == rows["a/scene"].role
    assert audit.divided_by_zip == (("test/g/leak.jpg", "train/a/scene.png"),)
    assert audit.notes == ("g: given as test, put into train with its look-alikes a",)
    assert "g: given as test, put into train" in (tmp_path / "out/audit.md").read_text()


def test_session_in_two_split_folders_is_brought_together_and_reported(tmp_path: Path) -> None:
    path = split_zip(tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        sessions = {"train/m/1.png": "film", "test/m/4.png": "film"}
        lines = [
            f"{name},{name.split('/')[1]},{sessions.get(name, '')}\n" for name in archive.namelist()
        ]
        archive.writestr("images.csv", "image,pill,session\n" + "".join(lines))
    audit = prepare(path, params(zip_splits="respect"), tmp_path / "out")
    rows = load_images(tmp_path / "out")
    assert [(r.split, r.role) for r in rows if r.session == "film"] == [("train", "fit")] * 2
    assert audit.divided_by_zip == (("test/m/4.png", "train/m/1.png"),)
    assert "- test/m/4.png ~ train/m/1.png\n" in (tmp_path / "out/audit.md").read_text()


def test_copy_of_a_photo_never_becomes_a_probe_for_it(tmp_path: Path) -> None:
    files = folders(8, 2) | {f"pill{pill:02d}/copy.png": photo(f"{pill}/0") for pill in range(8)}
    audit = prepare(zipped(tmp_path / "x.zip", files), params(probe_share=0.5), tmp_path / "out")
    rows = {row.image: row for row in load_images(tmp_path / "out")}
    for pill in range(8):
        copies = [rows[f"images/pill{pill:02d}/{name}.png"].role for name in ("0", "copy")]
        assert len(set(copies)) == 1
    assert "probe" in {row.role for row in rows.values()}
    assert len(audit.exact_duplicates) == 8


@pytest.mark.parametrize(
    ("copy", "check"),
    [
        (png(brighter(picture("3/0"))), "near duplicates across"),
        (photo("3/0"), "equal images across"),
    ],
)
def test_audit_stops_a_build_whose_groups_lost_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bytes, check: str
) -> None:
    # The defect that the audit is there for: every photo for itself, whatever it is a copy of.
    monkeypatch.setattr(prepare_module, "_groups", lambda photos, links: list(range(len(photos))))
    files = folders(8, 2) | {"pill03/copy.png": copy}
    error = refusal(zipped(tmp_path / "x.zip", files), probe_share=0.7)
    assert isinstance(error, StageFailed)
    assert f"1 {check}" in error.found


def test_closest_pair_that_was_let_through_is_named(tmp_path: Path) -> None:
    files = folders(8) | {"twin/0.png": png(brighter(picture("5/0")))}
    out = tmp_path / "out"
    for seed in range(20):  # until the two fall into different splits
        audit = prepare(
            zipped(tmp_path / "x.zip", files), params(seed=seed, near_duplicate_bits=0), out
        )
        rows = {row.pill: row for row in load_images(out)}
        if rows["twin"].split != rows["pill05"].split:
            break
    first = audit.closest.pairs[0]
    assert first.images == ("images/pill05/0.png", "images/twin/0.png")
    assert first.places == tuple(f"{rows[p].split} {rows[p].role}" for p in ("pill05", "twin"))
    assert first.alike
    assert audit.closest.bits == first.bits > 0
    assert f"{first.bits} bits, " in (out / "audit.md").read_text()
    assert "kept apart by the hash alone" in (out / "audit.md").read_text()


# --- real photographs --------------------------------------------------------------------------


@pytest.mark.real
def test_no_studio_photo_of_one_pill_is_taken_for_a_copy_of_another(tmp_path: Path) -> None:
    archive = REAL_DATA / "nlm_reference.zip"
    if not archive.exists():
        pytest.skip(f"{archive} is absent; set PILLTRACK_REAL_DATA")
    start = time.perf_counter()
    audit = prepare(archive, params(), tmp_path / "out")
    assert (audit.n_images, audit.n_pills) == (4537, 2269)
    assert (audit.alike, audit.near_duplicates, audit.exact_duplicates) == ((), (), ())
    assert audit.single_image_pills == ("99207-467",)
    assert time.perf_counter() - start < 120


@pytest.mark.real
def test_phone_photos_with_boxes_are_prepared(tmp_path: Path) -> None:
    archive = REAL_DATA / "phone_pills.zip"
    if not archive.exists():
        pytest.skip(f"{archive} is absent; set PILLTRACK_REAL_DATA")
    audit = prepare(archive, params(), tmp_path / "out")
    assert (audit.layout, audit.n_images, audit.n_pills) == ("yolo", 1383, 17)
    assert audit.unreadable == ()
    sessions = {row.session for row in load_images(tmp_path / "out")}
    assert len(sessions) <= 82 + 13 + 8


def test_a_data_set_that_evaluate_could_not_measure_leaves_the_old_output(tmp_path: Path) -> None:
    whole = load_params(ROOT / "params.yaml")
    archive = tmp_path / "pills.zip"
    synth(archive, pills=20, photos=4, seed=1, workers=1)
    real = whole.evaluate.model_copy(update={"captures": "real"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "images.csv").write_text("from an earlier run")
    before = snapshot(tmp_path)
    with pytest.raises(DatasetRejected, match="to rendered"):
        prepare(archive, whole.prepare, out, evaluation=real)
    assert snapshot(tmp_path) == before
