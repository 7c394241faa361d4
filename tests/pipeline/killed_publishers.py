"""Publish, or replace a key, in a process that is killed at its k-th file operation, for every k.

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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pilltrack.pipeline import keys
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


def main(work: Path, folder: Path, first: Path, second: Path) -> None:
    """Kill publishers, and whoever replaces keys, until one comes to its end."""
    work.mkdir()
    assert forked(partial(published, work / "start", folder, first)) == 0
    told = {}
    for name, act, judge in (
        ("publish", partial(published, bundle=second), partial(judge_publish, bundle=second)),
        ("rotate", rotated, judge_rotate),
    ):
        faults: list[str] = []
        operation, code = 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            place = shutil.copytree(work / "start", work / "place")
            keys_here = shutil.copytree(folder, work / "keys")
            code = forked(partial(dying, act, operation, place, keys_here))
            faults += [f"{operation}: {fault}" for fault in judge(place, keys_here)]
            shutil.rmtree(place)
            shutil.rmtree(keys_here)
            operation += 1
        if code != 0:
            faults.append(f"the last one ended with {code}")
        told[name] = {"n_killed": operation - 1, "faults": faults}
    print(json.dumps(told))  # noqa: T201


def dying(act: Callable[[Path, Path], None], operation: int, place: Path, folder: Path) -> None:
    """Do something, and die at one operation."""
    killed_at(operation, (str(place), str(folder)))
    act(place, folder)


def judge_publish(place: Path, folder: Path, bundle: Path) -> Iterator[str]:
    """What is wrong after a publisher died; the next one must do it."""
    found, _ = read_repository(DirectoryStore(place), read_chain(folder))
    numbers = [release.number for release in found.releases]
    if numbers not in ([1], [1, 2]):
        yield f"releases {numbers}"
    if forked(partial(published, place, folder, bundle)) != 0:
        yield "the next publisher failed"
    found, _ = read_repository(DirectoryStore(place), read_chain(folder))
    if [release.number for release in found.releases] != [1, 2]:
        yield f"the next publisher left {found.releases}"


def judge_rotate(place: Path, folder: Path) -> Iterator[str]:
    """What is wrong after a rotation died; it can be completed or begun again."""
    if forked(partial(renewed, place, folder)) != 0:
        yield "what was there does not sign any more"
    if (folder / "2.root.json.part").exists():
        keys.sign(folder, folder, passphrase=None)
    elif len(read_chain(folder)) == 1:
        rotated(place, folder)
    if len(read_chain(folder)) != 2:
        yield "no second root"
    if forked(partial(renewed, place, folder)) != 0:
        yield "the new key does not sign"


def rotated(_place: Path, folder: Path) -> None:
    """Replace the online key."""
    keys.rotate(folder, "online", now=datetime.now(UTC), passphrase=None)


def renewed(place: Path, folder: Path) -> None:
    """Sign again what is published."""
    Publisher(DirectoryStore(place), folder, place="place").renew()


def published(place: Path, folder: Path, bundle: Path) -> None:
    """Publish; the place is known to the key folder under one name."""
    Publisher(DirectoryStore(place), folder, place="place").publish(bundle, "stable")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
