"""Outputs appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilltrack.core.files import replaced_directory, write_atomically


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_that_fails_halfway_keeps_its_old_content(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replaced_directory(target) as fresh:
        (fresh / "a").write_text("old")
    with (  # noqa: PT012 - the block is the thing under test
        pytest.raises(KeyboardInterrupt),
        replaced_directory(target) as fresh,
    ):
        (fresh / "a").write_text("new")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("a", "b"):
        with replaced_directory(target) as fresh:
            (fresh / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["b"]


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    old = tmp_path / ".out.old"  # what such a crash leaves: the old content under this name
    old.mkdir()
    (old / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_directory(target):
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
