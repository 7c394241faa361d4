"""The command line: help with examples, exit codes, and errors a person can act on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pilltrack.cli import STAGES, main
from pilltrack.core import identify
from pilltrack.core.bundle import write_bundle
from pilltrack.core.embedder import open_embedder
from pilltrack.core.enrol import quarter_turns
from pilltrack.core.gallery import Gallery
from pilltrack.core.image import read_image
from pilltrack.core.local import LocalReferences
from pilltrack.core.locate import Found, Locator
from tests.drawn import empty_table, pill_photo, saved
from tests.tiny_bundle import COLOURED, MODEL, tiny_bundle, tiny_calibration

BECAUSE = ("--override", "drawn by a test")
COMMANDS = [
    *STAGES, "identify", "count", "evaluate-folder", "evaluate-epillid", "report", "compare",
    "bench", "synth", "crop-boxes", "summary", "remote", "doctor",
    "gallery", "gallery add", "gallery list", "gallery remove",
    "gallery show", "gallery export", "gallery import", "serve", "audit",
    "comment", "comment write", "comment post", "release", "selftest",
    "audit list", "audit verify", "audit replay", "audit overrides",
]  # fmt: skip


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[8:32, 8:32] = (200, 30, 30)
    Image.fromarray(photo).save(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path, red: Path) -> Path:
    return tiny_bundle(tmp_path, "red-pill", read_image(red))


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle without references as the starter bundle, and a home where nothing is enrolled."""
    embedder = open_embedder(MODEL)
    with Gallery.create(embedder.space, embedder.dim) as gallery:
        gallery.save(tmp_path / "empty.safetensors")
    write_bundle(
        tmp_path / "starter",
        name="starter",
        locator=COLOURED,
        min_confidence=0.5,
        model=MODEL,
        gallery=tmp_path / "empty.safetensors",
        probe_crops=[np.full((40, 40, 3), 90, np.uint8)],
        probe_frames=[],
        calibration=tiny_calibration(embedder.space),
        pills={},
        git_commit="c",
        data_digest="d",
        params_digest="p",
    )
    monkeypatch.setattr(identify, "STARTER_BUNDLE", tmp_path / "starter")
    monkeypatch.setenv("PILLTRACK_HOME", str(tmp_path / "home"))
    return tmp_path / "starter"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  pilltrack {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["identfy"],
        ["identify"],
        ["synth", "--pills", "0"],
        ["gallery"],
        ["gallery", "add", "x"],
        ["gallery", "add", "x", "x.jpg", "--side", "top"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_an_enrolled_photo_is_named(
    bundle: Path, red: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identify", "--json", "--crop", f"--bundle={bundle}", str(red)]) == 0
    answer = json.loads(capsys.readouterr().out)
    (pill,) = answer.pop("pills")
    assert answer == {"image": str(red)}
    assert pill["score"] == pytest.approx(1.0)
    assert pill["candidates"] == [{"pill": "red-pill", "score": pill.pop("score")}]
    assert pill.pop("candidates")
    assert pill.pop("confidence") == 1
    assert pill == {"box": [0, 0, 40, 40], "decision": "known", "pill": "red-pill"}


def test_an_unreadable_image_is_named_and_the_others_are_still_identified(
    bundle: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(red.read_bytes()[:60])
    assert main(["identify", f"--bundle={bundle}", str(broken), str(red)]) == 1
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    assert "Replace or delete the file" in printed.err
    assert "red-pill" in printed.out


def test_a_missing_bundle_is_an_error_not_a_traceback(
    tmp_path: Path, red: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identify", f"--bundle={tmp_path / 'none'}", str(red)]) == 1
    printed = capsys.readouterr()
    assert "none" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_missing_params_file_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 1
    assert "Run from the root of the repository" in capsys.readouterr().err


def test_three_photos_of_a_pill_are_enrolled_and_it_is_named(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gallery", "add", "my pill", *both_sides(photos(tmp_path, 3))]) == 0
    printed = capsys.readouterr()
    assert printed.out == "my pill: 3 references (3 new)\n"
    assert printed.err == ""
    assert main(["identify", "--json", str(tmp_path / "1.png")]) == 0
    printed = capsys.readouterr()
    [pill] = json.loads(printed.out)["pills"]
    assert (pill["decision"], pill["pill"]) == ("known", "my pill")
    assert pill["score"] == pytest.approx(1.0)
    assert printed.err == ""


def test_added_photos_are_embedded_at_once(starter: Path, tmp_path: Path) -> None:
    class NeverCalled:
        space, dim, input_size_px = open_embedder(MODEL).space, open_embedder(MODEL).dim, 1

        def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            raise AssertionError

    assert main(["gallery", "add", "my pill", *both_sides(photos(tmp_path, 3))]) == 0
    with LocalReferences(tmp_path / "home") as local:
        references, _ = local.embedded(NeverCalled())
    assert [reference.image for reference in references] == ["1.png", "2.png", "3.png"]


def test_one_side_is_refused_until_it_is_said_why_and_few_photos_bring_advice(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front, *back = photos(tmp_path, 4)
    arguments = ["gallery", "add", "my pill", front, "--side", "front"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "my pill: one side: no photo of the back; expected photos of both sides" in printed.err
    assert "Turn the pill over" in printed.err
    assert printed.out == ""
    assert not (tmp_path / "home").exists()
    assert main([*arguments, "--override", "both sides are plain"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "my pill: 1 reference (1 new)\n"
    assert "enrolled all the same (one side); the reason is on record" in printed.err
    assert "three or more photos" in printed.err
    assert main(["gallery", "add", "my pill", *back, "--side", "back"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "my pill: 4 references (3 new)\n"
    assert printed.err == ""


def test_all_unreadable_photos_are_named_and_nothing_is_added(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"x")
    names = [str(tmp_path / name) for name in ("broken.jpg", "missing.jpg")]
    assert main(["gallery", "add", "my pill", *photos(tmp_path, 1), *names]) == 1
    printed = capsys.readouterr()
    for name in names:
        assert name in printed.err
    assert "nothing was added" in printed.err
    assert printed.out == ""
    assert main(["gallery", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"home": str(tmp_path / "home"), "pills": []}


def test_photo_of_another_pill_is_an_error_that_names_it_and_its_picture(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos(tmp_path, 1)
    assert main(["gallery", "add", "my pill", *photo, *BECAUSE]) == 0
    [kept] = (tmp_path / "home" / "crops").iterdir()
    assert main(["gallery", "add", "your pill", *photo]) == 1
    printed = capsys.readouterr().err
    assert f"{photo[0]}: collides: 1 of 1 photos are taken for an enrolled pill" in printed
    assert f"The picture of my pill: {kept}." in printed
    assert main(["gallery", "add", "your pill", *photo, *BECAUSE]) == 1
    assert "1.png of the pill 'my pill'" in capsys.readouterr().err
    assert main(["audit", "overrides"]) == 0
    assert "your pill" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "photo", "found", "expected", "remedy"),
    [
        ("blurred", pill_photo(blur_px=6), "edges are blurred by", "at most 2.0%", "hold it still"),
        ("clipped", pill_photo(at=(58, 120)), "ends 0 px from", "at least 5 px", "to the middle"),
        ("too dark", pill_photo(light=0.4), "reach 64 of 255", "at least 100", "Turn on a lamp"),
        ("no pill", empty_table(), "no pill found", "one pill", "plain surface"),
    ],
)
def test_a_bad_photo_is_named_with_what_is_wrong_and_what_to_do(
    fault: str,
    photo: NDArray[np.uint8],
    found: str,
    expected: str,
    remedy: str,
    starter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = (saved(p, tmp_path / f"{n}.png") for n, p in enumerate((pill_photo(), photo)))
    assert main(["gallery", "add", "my pill", "--front", good, "--back", bad]) == 1
    printed = capsys.readouterr()
    [line] = [line for line in printed.err.splitlines() if line.startswith("pilltrack: error: ")]
    for words in (f"error: {bad}: {fault}: ", found, f"; expected {expected}", remedy):
        assert words in line
    assert "nothing was added" in printed.err
    assert printed.out == ""
    assert not (tmp_path / "home").exists()


def test_an_override_and_its_reason_are_on_record(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = saved(pill_photo(blur_px=6), tmp_path / "soft.png")
    arguments = ["gallery", "add", "my pill", "--front", soft, "--override", "the last\none left"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["audit", "overrides"]) == 0
    assert capsys.readouterr().out.endswith("Z  my pill (blurred, one side): the last one left\n")
    assert main(["audit", "overrides", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["id"], row["pill"], row["reason"]) == (1, "my pill", "the last\none left")
    assert [fault["kind"] for fault in row["faults"]] == ["blurred", "one side"]
    assert [(p["image"], p["side"]) for p in row["photos"]] == [("soft.png", "front")]
    assert main(["audit", "verify"]) == 0


def test_no_reason_enrols_a_photo_without_a_pill(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = saved(empty_table(), tmp_path / "empty.png")
    assert main(["gallery", "add", "my pill", empty, *BECAUSE]) == 1
    assert "nothing to enrol, whatever the reason" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_enrolled_pills_are_listed_and_removed(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = photos(tmp_path, 3)
    main(["gallery", "add", "ibuprofen-200", first, *BECAUSE])
    main(["gallery", "add", "aspirin", *both_sides(others)])
    capsys.readouterr()
    assert main(["gallery", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["2", "aspirin"], ["1", "ibuprofen-200"]]
    assert main(["gallery", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pills"] == [
        {"pill": "aspirin", "references": 2},
        {"pill": "ibuprofen-200", "references": 1},
    ]
    assert main(["gallery", "remove", "ibuprofen"]) == 1
    assert "Similar names: ibuprofen-200." in capsys.readouterr().err
    assert main(["gallery", "remove", "ibuprofen-200"]) == 0
    assert capsys.readouterr().out == "ibuprofen-200: 1 reference removed\n"
    assert main(["gallery", "remove", "ibuprofen-200"]) == 1
    assert "pilltrack gallery list" in capsys.readouterr().err


def test_list_and_remove_make_no_home(
    starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gallery", "list"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pilltrack gallery add NAME PHOTO..." in printed.err
    assert main(["gallery", "remove", "x"]) == 1
    assert not (tmp_path / "home").exists()


def test_empty_gallery_is_said_once_with_the_remedy(
    starter: Path, red: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identify", str(red), str(red)]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("pilltrack gallery add NAME PHOTO...") == 1
    assert printed.out.count("unnamed (unknown") == 2


def test_bundle_of_ones_own_is_not_mixed_with_the_home_unless_that_is_named(
    starter: Path, bundle: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    arguments = ["identify", "--json", f"--bundle={bundle}", str(red)]
    assert main([*arguments, f"--home={home}"]) == 0
    assert f"no pill is enrolled in {home}" in capsys.readouterr().err
    assert main(["gallery", "add", "my pill", *both_sides(photos(tmp_path, 3))]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert candidates(capsys.readouterr().out) == ["red-pill"]
    assert main([*arguments, f"--home={home}"]) == 0
    assert candidates(capsys.readouterr().out) == ["red-pill", "my pill"]
    assert main(["identify", "--json", f"--bundle={starter}", str(red)]) == 0
    assert "name its --home" in capsys.readouterr().err


def test_home_is_below_the_users_own_by_default(
    starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILLTRACK_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    arguments = ["gallery", "add", "my pill", *photos(tmp_path, 1), *BECAUSE]
    assert main(arguments) == 0
    assert (tmp_path / "user" / ".pilltrack" / "references.sqlite").is_file()
    assert main([*arguments, f"--home={tmp_path}/x"]) == 0
    assert (tmp_path / "x" / "references.sqlite").is_file()


@pytest.mark.parametrize("command", [["identify"], ["gallery", "add", "x"], ["bench"]])
def test_missing_starter_bundle_is_named_with_the_remedy(
    command: list[str],
    red: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(identify, "STARTER_BUNDLE", tmp_path / "none")
    monkeypatch.setenv("PILLTRACK_HOME", str(tmp_path / "home"))
    assert main([*command, *([] if command == ["bench"] else [str(red)])]) == 1
    printed = capsys.readouterr().err
    assert str(tmp_path / "none") in printed
    assert "--bundle DIR" in printed
    assert not (tmp_path / "home").exists()


def test_bench_measures_the_starter_bundle_by_default(
    starter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--json", "--runs=3", "--references=5"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == "starter"


def test_several_pills_or_none_are_not_enrolled(
    starter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finds: list[int] = []
    one = Found((40, 40, 48, 48), np.ones((48, 48), bool), 0.9)
    monkeypatch.setattr(Locator, "locate", lambda self, frame: [one] * finds.pop(0))
    paths = photos(tmp_path, 3)
    finds += [2, 0, 1]
    assert main(["gallery", "add", "my pill", *both_sides(paths), *BECAUSE]) == 1
    printed = capsys.readouterr().err
    assert f"{paths[0]}: several pills: 2 pills found; expected one pill" in printed
    assert f"{paths[1]}: no pill: no pill found; expected one pill" in printed
    assert paths[2] not in printed
    assert "--crop" in printed
    assert "nothing was added" in printed
    assert not (tmp_path / "home").exists()
    assert main(["gallery", "add", "my pill", "--crop", *both_sides(paths)]) == 0


def test_a_pill_too_far_away_is_not_enrolled(
    starter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = Found((60, 60, 9, 9), np.ones((9, 9), bool), 0.9)
    monkeypatch.setattr(Locator, "locate", lambda self, frame: [tiny])
    arguments = ["gallery", "add", "my pill", *photos(tmp_path, 1)]
    assert main(arguments) == 1
    found = "1.png: too small: the pill is 9 px long; expected at least 12 px. Go closer"
    assert found in capsys.readouterr().err
    assert main([*arguments, *BECAUSE]) == 1  # the home could not keep it
    assert "1.png: 12 x 12 pixels" in capsys.readouterr().err
    assert main(["audit", "overrides"]) == 1


def test_the_crop_that_identify_will_see_is_what_is_enrolled(starter: Path, tmp_path: Path) -> None:
    assert main(["gallery", "add", "my pill", *photos(tmp_path, 1), *BECAUSE]) == 0
    [kept] = (tmp_path / "home" / "crops").iterdir()
    assert read_image(kept).shape == (64, 64, 3)  # 48 pixels take three quarters of the side


def test_pills_are_counted_and_numbered(
    starter: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "numbered.png"
    assert main(["count", str(red), f"--draw={out}"]) == 0
    assert capsys.readouterr().out == f"{red}: 1\n"
    assert read_image(out).shape == (40, 40, 3)
    assert (read_image(out) != read_image(red)).any()
    assert main(["count", "--json", str(red)]) == 0
    answer = json.loads(capsys.readouterr().out)
    pills = [{"box": [8, 8, 24, 24], "confidence": 0.9412}]
    assert answer == {"image": str(red), "count": 1, "or_more": False, "pills": pills}


def test_count_names_an_unreadable_image_and_goes_on(
    starter: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", str(tmp_path / "absent.png"), str(red)]) == 1
    printed = capsys.readouterr()
    assert "absent.png" in printed.err
    assert printed.out == f"{red}: 1\n"


def test_several_images_are_drawn_into_a_folder_none_over_another(
    starter: Path, red: Path, tmp_path: Path
) -> None:
    same_name = tmp_path / "other" / red.name
    looks_numbered = tmp_path / "other" / "1-red.png"
    same_name.parent.mkdir()
    for copy in (same_name, looks_numbered):
        copy.write_bytes(red.read_bytes())
    images = [str(red), str(same_name), str(looks_numbered)]
    assert main(["identify", *images, f"--draw={tmp_path / 'named'}"]) == 0
    drawn = {path.name for path in (tmp_path / "named").iterdir()}
    assert drawn == {"1-red-pills.png", "2-red-pills.png", "3-1-red-pills.png"}
    assert main(["identify", str(red), f"--draw={tmp_path / 'one'}"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["red-pills.png"]


@pytest.mark.parametrize("out", ["red.png", "out.gif", "several.png"])
def test_a_drawing_that_cannot_be_is_wrong_usage_and_replaces_nothing(
    out: str, starter: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = red.read_bytes()
    images = [str(red)] * (2 if out == "several.png" else 1)
    with pytest.raises(SystemExit) as ended:
        main(["count", *images, f"--draw={tmp_path / out}"])
    assert ended.value.code == 2
    assert f"--draw {tmp_path / out}" in capsys.readouterr().err
    assert red.read_bytes() == before
    assert not (tmp_path / "several.png").exists()


def test_a_drawing_that_cannot_be_written_costs_no_other_answer(
    starter: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    [noise] = photos(tmp_path, 1)
    assert main(["count", str(red), noise, f"--draw={tmp_path / 'taken'}"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{red}: 1\n{noise}: 1\n"
    assert "Name another place with --draw" in printed.err


def test_as_many_pills_as_can_be_found_are_called_so_many_or_more(
    starter: Path, red: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pilltrack.core.locate.MAX_PILLS", 1)
    assert main(["count", str(red)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{red}: 1 or more\n"
    assert "count fewer at once" in printed.err
    assert main(["count", "--json", str(red)]) == 0
    assert json.loads(capsys.readouterr().out)["or_more"] is True


def test_a_photo_without_a_pill_is_said_so(
    starter: Path,
    red: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Locator, "locate", lambda self, frame: [])
    assert main(["identify", str(red)]) == 0
    assert capsys.readouterr().out == f"{red}: no pill found\n"
    assert main(["identify", "--json", str(red)]) == 0
    assert json.loads(capsys.readouterr().out) == {"image": str(red), "pills": []}
    assert main(["count", str(red)]) == 0
    assert capsys.readouterr().out == f"{red}: 0\n"


def test_evaluate_folder_refuses_a_stranger_that_is_enrolled(
    bundle: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("gallery", "probes", "strangers"):
        pill = tmp_path / folder / "red-pill"
        pill.mkdir(parents=True)
        (pill / "1.png").write_bytes(red.read_bytes())
    arguments = [f"--{name}={tmp_path / name}" for name in ("gallery", "probes", "strangers")]
    assert main(["evaluate-folder", f"--bundle={bundle}", *arguments]) == 1
    assert "strangers that are enrolled" in capsys.readouterr().err


def test_evaluate_folder_prints_recall_and_counts(
    bundle: Path, red: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, brighter in (("gallery", 0), ("probes", 5)):
        pill = tmp_path / folder / "red-pill"
        pill.mkdir(parents=True)
        Image.fromarray(np.asarray(Image.open(red)) + np.uint8(brighter)).save(pill / "1.png")
    arguments = [f"--{name}={tmp_path / name}" for name in ("gallery", "probes")]
    command = ["evaluate-folder", f"--bundle={bundle}", "--json", *arguments]
    assert main([*command, "--rule-for", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["rule_for_pills"] == 7
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recall_at_1"] == {"value": 1.0}
    assert (report["gallery_references"], report["n_probes"]) == (1, 1)
    assert main(["evaluate-folder", f"--bundle={bundle}", *arguments]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["recall_at_1", "100.0 % (too few pills for an interval)"] in lines


def both_sides(paths: Sequence[str]) -> list[str]:
    """The last is of the back."""
    return ["--front", *paths[:-1], "--back", paths[-1]]


def photos(directory: Path, n_photos: int) -> list[str]:
    """Write photos of coloured noise, 48 pixels of it on a grey table of 128; name them.

    They look alike in all turns, as does their crop.
    """
    paths = [directory / f"{i}.png" for i in range(1, n_photos + 1)]
    for i, path in enumerate(paths):
        noise = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        alike = np.mean(quarter_turns(noise), axis=0).astype(np.uint8)
        photo = np.full((128, 128, 3), 150, np.uint8)
        photo[40:88, 40:88] = alike
        Image.fromarray(photo).save(path)
    return [str(path) for path in paths]


def candidates(answer: str) -> list[str]:
    [pill] = json.loads(answer)["pills"]
    return [candidate["pill"] for candidate in pill["candidates"]]
