"""Kill an update at every change it makes to the disk, and see what a device makes of the rest.

    python -m tests.edge.kill_points DIRECTORY [--say]     with killer.c preloaded; prints JSON

DIRECTORY holds `template` (the home of a device that runs one release while a newer one is
published), `install` (a bundle) and `releases`. For each point a copy of the template is updated,
started and confirmed in a process of its own, which is killed there; then another process starts
the device, and updates it once more. With `--say` nobody is killed: `home` is updated once.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pilltrack.core.bundle import read_bundle
from pilltrack.core.identify import open_identifier
from pilltrack.edge.fetch import Fetcher
from pilltrack.edge.selftest import self_test
from pilltrack.edge.slots import Slots
from pilltrack.edge.source import UpdateSource
from pilltrack.edge.updater import update

MAX_POINTS = 2000
shim = ctypes.CDLL(None)


def main(directory: Path) -> None:
    """Walk through all points until an update ends before it reaches the next."""
    logging.disable()
    points: list[dict[str, object]] = []
    for number in range(1, MAX_POINTS):
        home = directory / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(directory / "template", home, symlinks=True)
        was_killed = _forked(partial(_update, directory, home, number)) == -signal.SIGKILL
        said = directory / "said"
        said.unlink(missing_ok=True)
        code = _forked(partial(_see, directory, home, said))
        found = json.loads(said.read_bytes()) if said.exists() else {}
        points.append({"point": number, "killed": was_killed, "code": code, **found})
        if not was_killed:
            break
    sys.stdout.write(json.dumps(points))


def _update(directory: Path, home: Path, number: int) -> None:
    """The whole of an update: fetch, prove, try, switch, start, confirm."""
    shim.arm(os.fsencode(home), ctypes.c_long(number))
    slots = Slots(home, directory / "install")
    _once(directory, slots)
    slots.start()
    slots.confirm(slots.state().active)


def _see(directory: Path, home: Path, said: Path) -> None:
    """What the device serves after that, and after the next update."""
    slots = Slots(home, directory / "install")
    served = _served(slots)
    outcome = _once(directory, slots)
    found = {"served": served, "outcome": outcome, "then": _served(slots)}
    leftovers = {path.name for path in slots.root.iterdir()}
    known = {"metadata", "slots", "root.json", "source.json", "state.json", "events.jsonl"}
    known |= {"state.lock", "update.lock", "state.json.part", "events.jsonl.part"}
    found["left"] = sorted(leftovers - known) + sorted(_in_slots(slots))
    said.write_text(json.dumps(found))


def _in_slots(slots: Slots) -> set[str]:
    """What lies among the slots and is neither the active nor the previous one."""
    state = slots.state()
    found = {path.name for path in (slots.root / "slots").iterdir()}
    return found - {str(state.active), str(state.previous)}


def _once(directory: Path, slots: Slots) -> str:
    source = UpdateSource(url=str(directory / "releases"))
    test = partial(self_test, home=slots.root.parent, max_frame_ms=60_000.0)
    return update(slots, source, test, datetime.now(UTC), Fetcher()).kind


def _served(slots: Slots) -> list[str]:
    """The pills that the device knows once it has started: its bundle's and its own."""
    bundle = slots.slot(slots.start().active)
    read_bundle(bundle)
    with open_identifier(bundle, local=slots.root.parent) as identifier:
        return identifier.gallery.pills()


def _forked(call: Callable[[], None]) -> int:
    """The exit code of a child that makes a call; minus the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        call()
    except BaseException:
        logging.disable(logging.NOTSET)
        logging.exception("in the child")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    if "--say" in sys.argv:
        _update(Path(sys.argv[1]), Path(sys.argv[1]) / "home", 0)
    else:
        main(Path(sys.argv[1]))
