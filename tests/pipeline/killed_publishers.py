"""Publish in a process that is killed at its k-th file operation, for every k.

    killed_publishers.py WORK KEYS BUNDLE1 BUNDLE2

Python's audit events name each operation before it is done, so the kill comes right after the one
before. This process imports everything and starts no thread; each publisher is a fork of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pilltrack.pipeline.publish import Publisher
from pilltrack.pipeline.repository import read_repository
from pilltrack.pipeline.roots import read_chain
from pilltrack.pipeline.store import DirectoryStore

OPERATIONS = ("open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.chmod", "fcntl.flock")


def forked(act: Callable[[], None]) -> int:
    """Do something in a process of its own; how it ended."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  all the parent needs to know
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(operation: int, parts: tuple[str, str]) -> None:
    """From now on count what is done to files below `parts`, and die at one."""
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS:
            return
        if event != "fcntl.flock" and not str(arguments[0]).startswith(parts):
            return
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(watch)


def main(work: Path, keys: Path, first: Path, second: Path) -> None:
    """Kill publishers until one comes to its end."""
    work.mkdir()
    faults, operation, code = [], 0, -signal.SIGKILL
    assert forked(partial(published, work / "start", keys, first)) == 0
    while code == -signal.SIGKILL:
        place = shutil.copytree(work / "start", work / "place")
        folder = shutil.copytree(keys, work / "keys")

        def dying(place: Path = place, folder: Path = folder, operation: int = operation) -> None:
            killed_at(operation, (str(place), str(folder)))
            published(place, folder, second)

        code = forked(dying)
        found, _ = read_repository(DirectoryStore(place), read_chain(folder))
        numbers = [release.number for release in found.releases]
        if numbers not in ([1], [1, 2]):
            faults.append(f"{operation}: releases {numbers} after the kill")
        if forked(partial(published, place, folder, second)) != 0:
            faults.append(f"{operation}: the next publisher failed")
        found, _ = read_repository(DirectoryStore(place), read_chain(folder))
        if [release.number for release in found.releases] != [1, 2]:
            faults.append(f"{operation}: {found.releases}")
        shutil.rmtree(place)
        shutil.rmtree(folder)
        operation += 1
    if code != 0:
        faults.append(f"the last publisher ended with {code}")
    print(json.dumps({"n_killed": operation - 1, "faults": faults}))  # noqa: T201


def published(place: Path, folder: Path, bundle: Path) -> None:
    """Publish; the place is known to the key folder under one name."""
    Publisher(DirectoryStore(place), folder, place="place").publish(bundle, "stable")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
