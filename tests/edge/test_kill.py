"""A device survives kill -9 at every change that an update makes to its disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pilltrack.core.local import LocalReferences
from tests.edge.conftest import red
from tests.edge.fleet import fleet, make_bundles
from tests.imports import ROOT

KILLER = Path(__file__).with_name("killer.c")


def test_what_a_switch_relies_on_is_on_the_disk_before_it(tmp_path: Path) -> None:
    """A power cut takes what was written and not synced, and may keep the name all the same."""
    killer = compiled(tmp_path)
    prepared(tmp_path)
    shutil.copytree(tmp_path / "template", tmp_path / "home", symlinks=True)
    said = subprocess.run(
        [sys.executable, "-m", "tests.edge.kill_points", str(tmp_path), "--say"],
        env={**os.environ, "LD_PRELOAD": str(killer)},
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    updates = f"{tmp_path}/home/updates/"
    unsynced: set[str] = set()
    names: set[str] = set()  # directories in which a name is new
    renamed, switched = [], False
    for line in said.splitlines():
        what, _, place = line.strip().partition(" ")
        if not f"{place.strip()}/".startswith(updates):
            continue
        old, _, new = place.strip().partition(" ")
        if what == "write":
            unsynced.add(old)
            names.add(str(Path(old).parent))
        elif what == "fsync":
            unsynced.discard(old)
            names.discard(old)
            switched = switched and f"{old}/" != updates
        elif what == "rename":
            inside = {path for path in unsynced if path == old or path.startswith(f"{old}/")}
            if "/metadata/" not in old:  # The Update Framework's own: synced all at once
                assert not inside, line
                assert old not in names, line
            unsynced = {new + path[len(old) :] if path in inside else path for path in unsynced}
            assert not switched, "the switch itself is not on the disk before the next change"
            switched = new == f"{updates}state.json"
            renamed.append(new.removeprefix(updates))
            names.add(str(Path(new).parent))
            if new == f"{updates}state.json" and not renamed.count("state.json") > 1:
                slots = {f"{updates}slots", f"{updates}metadata"}
                assert not slots & names, names
                assert not {path for path in unsynced if "/metadata/" in path}, unsynced
    assert any(name.startswith("slots/") for name in renamed)
    assert any(name.startswith("files/") for name in renamed)
    assert "state.json" in renamed


@pytest.mark.e2e
def test_every_point_at_which_an_update_can_be_killed_is_survived(tmp_path: Path) -> None:
    killer = compiled(tmp_path)
    prepared(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.edge.kill_points", str(tmp_path)],
        env={**os.environ, "LD_PRELOAD": str(killer)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    points = json.loads(ran.stdout)
    said = [line for line in ran.stderr.splitlines() if line.startswith("killed at ")]
    kinds = {line.removeprefix("killed at ") for line in said}
    assert len(said) == len(points) - 1
    assert {"open", "write", "fsync", "rename", "mkdir", "unlink", "unlinkat"} <= kinds
    assert len(points) > 60
    assert [point["killed"] for point in points] == [True] * (len(points) - 1) + [False]
    for point in points:
        assert point["code"] == 0, point
        assert point["served"] in (["mine", "pill-1"], ["mine", "pill-2"]), point
        assert point["outcome"] in ("switched", "current"), point
        assert point["then"] == ["mine", "pill-2"], point
        assert point["left"] == [], point
    served = [point["served"] for point in points]
    switch = served.index(["mine", "pill-2"])
    assert served == sorted(served)  # old up to the switch, new from then on
    assert 0 < switch < len(points) - 1


def prepared(tmp_path: Path) -> None:
    """What kill_points needs: a device that runs one release while a newer one is published."""
    with fleet(tmp_path, make_bundles(tmp_path / "bundles", 3)) as device:
        device.publish(1)
        assert device.update().kind == "switched"
        device.slots.confirm(device.slots.state().active)
        device.publish(2)
        with LocalReferences(device.home) as local:  # it is embedded anew on the way
            local.add("mine", [("mine.png", red())])
    (tmp_path / "home").rename(tmp_path / "template")
    shutil.copytree(tmp_path / "bundles" / "0" / "bundle", tmp_path / "install")


def compiled(directory: Path) -> Path:
    """The library of killer.c, or no test where nothing compiles it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler on Linux: apt-get install gcc libc6-dev")
    library = directory / "killer.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(KILLER), "-ldl"], check=True
    )
    return library


def test_the_shim_kills_at_the_point_it_is_told(tmp_path: Path) -> None:
    killer = compiled(tmp_path)
    script = (
        "import ctypes, os, sys\n"
        "ctypes.CDLL(None).arm(os.fsencode(sys.argv[1]), ctypes.c_long(int(sys.argv[2])))\n"
        "with open(sys.argv[1] + '/a', 'wb', buffering=0) as f: f.write(b'12345678')\n"
        "os.rename(sys.argv[1] + '/a', sys.argv[1] + '/b')\n"
    )
    left = []
    for number in range(1, 5):
        place = tmp_path / str(number)
        place.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", script, str(place), str(number)],
            env={**os.environ, "LD_PRELOAD": str(killer)},
            capture_output=True,
            check=False,
        )
        left.append((ran.returncode, {path.name: path.read_bytes() for path in place.iterdir()}))
    assert left == [
        (-9, {}),
        (-9, {"a": b"1234"}),
        (-9, {"a": b"12345678"}),
        (0, {"b": b"12345678"}),
    ]
