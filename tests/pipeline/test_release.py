"""What may be packed as a release, and that the archive depends on nothing but the bundle."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.checkout import require_unchanged
from pilltrack.pipeline.release import packed, release


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_same_bundle_gives_the_same_bytes(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("manifest.json", "model.tflite"):
        (bundle / name).write_text(name)
    first = packed(bundle, "pilltrack-bundle-1.0")
    (bundle / "model.tflite").chmod(0o600)
    os.utime(bundle / "model.tflite", (1, 1))
    assert packed(bundle, "pilltrack-bundle-1.0") == first
    (tmp_path / "packed.tar.gz").write_bytes(first)
    with tarfile.open(tmp_path / "packed.tar.gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    out = tmp_path / "out" / "pilltrack-bundle-1.0"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "manifest.json": "manifest.json",
        "model.tflite": "model.tflite",
    }


def test_where_git_does_not_answer_nothing_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "absent"))
    with pytest.raises(StageFailed, match="it names no commit"):
        release("v0.1.0", tmp_path, tmp_path)
    with pytest.raises(StageFailed, match="git status"):
        require_unchanged("v0.1.0")


@pytest.mark.parametrize("path", ["src/new.py", "data/pills.zip.dvc", "dvc.lock"])
def test_what_the_tag_does_not_hold_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "one")
    git("tag", "v0.1.0")
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("new")
    with pytest.raises(StageFailed, match=f"does not hold: {path.split('/')[0]}"):
        release("v0.1.0", tmp_path, tmp_path)


def test_a_tag_of_another_version_or_commit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "one")
    with pytest.raises(StageFailed, match=r"tag v9\.9: version 0\.1\.0 in the code"):
        release("v9.9", tmp_path, tmp_path)
    with pytest.raises(StageFailed, match="it names no commit"):
        release("v0.1.0", tmp_path, tmp_path)
    git("tag", "v0.1.0")
    git("commit", "--quiet", "--allow-empty", "--message", "two")
    with pytest.raises(StageFailed, match=r"Run `git checkout v0\.1\.0`"):
        release("v0.1.0", tmp_path, tmp_path)
