"""The device's commands: records listed, proven and made again; pills shown and passed on."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from pilltrack.cli import main
from pilltrack.edge.service import Service
from tests.edge.conftest import noise, red

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(bundle: Path, tmp_path: Path) -> Path:
    """Where one tray was checked and rejected, and one pill enrolled, with a reason, before it."""
    service = Service(bundle, tmp_path / "home", threads=1)
    photos = [("n.png", noise(1))]
    service.enrol("noise", photos, ["front"], NOW, crops=True, reason="both sides are alike")
    checked = service.check(red(), service.expected(b"2 red-pill", "list"), NOW)
    service.act(checked.number, "rejected", "", NOW)
    service.close()
    return tmp_path / "home"


def test_decisions_are_listed(home: Path, capsys: Captured) -> None:
    assert main(["audit", "list", f"--home={home}"]) == 0
    assert capsys.readouterr().out == "     2  2026-01-31 12:00:00Z  1 pill not ok, rejected\n"
    assert main(["audit", "list", f"--home={home}", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["id"], row["bundle"], row["actions"][0]["action"]) == (2, "tiny", "rejected")


def test_overrides_are_listed_with_their_reasons(home: Path, capsys: Captured) -> None:
    assert main(["audit", "overrides", f"--home={home}"]) == 0
    line = "     1  2026-01-31 12:00:00Z  noise (one side): both sides are alike\n"
    assert capsys.readouterr().out == line
    assert main(["audit", "overrides", f"--home={home}", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["id"], row["pill"], row["reason"]) == (1, "noise", "both sides are alike")


def test_a_changed_decision_is_found(home: Path, capsys: Captured) -> None:
    assert main(["audit", "verify", f"--home={home}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3 rows, none changed; head 3:")
    assert "keep this head elsewhere" in printed.err
    head = printed.out.split()[-1]
    assert main(["audit", "verify", f"--home={home}", f"--head={head}"]) == 0
    with sqlite3.connect(home / "audit.sqlite") as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE entry SET content = replace(content, 'rejected', 'confirmed')")
    capsys.readouterr()
    assert main(["audit", "verify", f"--home={home}"]) == 1
    assert "row 3: changed" in capsys.readouterr().err


def test_a_decision_is_made_again_unless_the_gallery_has_changed(
    home: Path, bundle: Path, capsys: Captured
) -> None:
    arguments = ["audit", "replay", "2", f"--home={home}", f"--bundle={bundle}"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "decision 2: the same again (1 pills)\n"
    assert main(["gallery", "remove", "noise", f"--home={home}"]) == 0
    assert main(arguments) == 1
    assert "gallery" in capsys.readouterr().err


def test_looking_for_records_where_there_are_none_makes_none(
    tmp_path: Path, capsys: Captured
) -> None:
    for action in (["list"], ["verify"], ["replay", "1"], ["overrides"]):
        assert main(["audit", *action, f"--home={tmp_path / 'none'}"]) == 1
        assert "no record of decisions" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_kept_photos_are_shown_and_passed_on(
    home: Path, bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["gallery", "show", "noise", f"--home={home}", "--json"]) == 0
    [reference] = json.loads(capsys.readouterr().out)["references"]
    assert (reference["side"], reference["image"]) == ("front", "n.png")
    assert Image.open(reference["photo"]).size == (42, 42)
    assert main(["gallery", "show", "nobody", f"--home={home}"]) == 1
    pills, other = str(tmp_path / "pills.zip"), f"--home={tmp_path / 'other'}"
    assert main(["gallery", "export", pills, f"--home={home}"]) == 0
    capsys.readouterr()
    assert main(["gallery", "import", pills, other, f"--bundle={bundle}"]) == 0
    assert capsys.readouterr().out == "noise: 1 reference new\n"
    assert main(["gallery", "list", other]) == 0
    assert capsys.readouterr().out.split() == ["1", "noise"]
    assert main(["gallery", "export", pills, f"--home={tmp_path / 'empty'}"]) == 1
