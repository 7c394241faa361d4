"""The command line: help with examples, exit codes, and errors a person can act on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pilltrack.cli import STAGES, main
from pilltrack.core.image import read_image
from tests.tiny_bundle import tiny_bundle

COMMANDS = [
    *STAGES, "identify", "evaluate-folder", "evaluate-epillid", "report", "compare", "bench",
    "synth", "crop-boxes", "summary",
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  pilltrack {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["identfy"], ["identify"], ["synth", "--pills", "0"]])
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
    assert main(["evaluate-folder", f"--bundle={bundle}", "--json", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recall_at_1"] == {"value": 1.0}
    assert (report["gallery_references"], report["n_probes"]) == (1, 1)
    assert main(["evaluate-folder", f"--bundle={bundle}", *arguments]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["recall_at_1", "100.0 % (too few pills for an interval)"] in lines
