"""Data that is absent, half there or damaged ends `prepare` and `dvc repro`; never green."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.imports import ROOT
from tests.s3 import must, project, run

DATA = "data/pills_dataset_resnet.zip"
ONLY_PREPARE = f"""
stages:
  prepare:
    cmd: pilltrack prepare
    deps: [{DATA}]
    outs: [artifacts/prepare]
"""


@pytest.fixture
def pills(tmp_path: Path) -> Path:
    """A project with the first stage and a small zip, which was pushed."""
    pills = project(tmp_path / "pills")
    shutil.copy2(ROOT / "params.yaml", pills / "params.yaml")
    (pills / "dvc.yaml").write_text(ONLY_PREPARE)
    must(pills, {}, "pilltrack", "synth", "--pills=12", "--photos=4", "--seed=3", f"--out={DATA}")
    must(pills, {}, "dvc", "add", "--quiet", DATA)
    must(pills, {}, "dvc", "push")
    return pills


def test_the_data_itself_is_good(pills: Path) -> None:
    must(pills, {}, "dvc", "repro")
    assert (pills / "artifacts" / "prepare" / "images.csv").is_file()


def test_data_that_was_never_pulled_ends_repro_and_prepare(pills: Path) -> None:
    (pills / DATA).unlink()
    shutil.rmtree(pills / ".dvc" / "cache")
    code, said = run(pills, {}, "dvc", "repro")
    assert code != 0
    assert "missing data" in said
    code, said = run(pills, {}, "pilltrack", "prepare")
    assert code == 1
    assert DATA in said
    assert "dvc pull" in said
    assert not (pills / "artifacts" / "prepare").exists()


@pytest.mark.parametrize("kept", [0, 0.9])
def test_half_of_the_zip_ends_repro(kept: float, pills: Path) -> None:
    whole = (pills / DATA).read_bytes()
    replace(pills / DATA, whole[: int(kept * len(whole))])
    refused(pills)


def test_zip_with_other_bytes_inside_ends_repro(pills: Path) -> None:
    whole = bytearray((pills / DATA).read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = os.urandom(64)
    replace(pills / DATA, bytes(whole))
    refused(pills)


def refused(pills: Path) -> None:
    code, said = run(pills, {}, "dvc", "repro")  # runs `pilltrack prepare`
    assert code != 0, said
    assert f"pilltrack: error: {DATA}" in said
    assert not (pills / "artifacts" / "prepare").exists()


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # it may be a link into the cache
    path.write_bytes(data)
