"""A real S3 server, and clones of a small DVC project that use it."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.imports import ROOT
from tests.proxy import Passing, listening

SCRIPT = ROOT / "tests" / "s3_server.sh"
COMMANDS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool")
KEY, SECRET = "AKIDOFTHETESTS", "the-secret-of-the-tests"
AWS = ("AWS_", "PILLTRACK_REMOTE", "MLFLOW_")


@dataclass(frozen=True)
class Server:
    endpoint: str

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def keys(self, bucket: str) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def environment(self, bucket: str, **changed: str) -> dict[str, str]:
        return {
            "PILLTRACK_REMOTE": f"s3://{bucket}/team",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            **changed,
        }


def start(directory: Path) -> Server:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"no S3 server ({', '.join(missing)}): apt-get install radosgw ceph-mon ceph-osd"
        )
    port = free_ports(10)
    started = subprocess.run(
        [SCRIPT, "start", directory, str(port), KEY, SECRET],
        stdout=subprocess.DEVNULL,  # the daemons keep what they are given
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=180,
    )
    if started.returncode:
        stop(directory)
        pytest.fail(
            f"the S3 server did not start:\n{(directory / 'start.log').read_text()[-3000:]}"
        )
    return Server(f"http://127.0.0.1:{port}")


def stop(directory: Path) -> None:
    subprocess.run([SCRIPT, "stop", directory], check=True, timeout=30)


@contextlib.contextmanager
def door(to: Server, puts: int) -> Iterator[tuple[str, threading.Event]]:
    """A way to the server that lets `puts` objects in: its address, and whether one more waits.

    An object more, and all after it, wait until the door is taken away, then their connections end.
    """
    number, waits, gone = itertools.count(1), threading.Event(), threading.Event()

    class Door(Passing):
        behind = to.endpoint.removeprefix("http://")

        def blocked(self) -> bool:
            if self.command != "PUT" or next(number) <= puts:
                return False
            waits.set()
            gone.wait()
            self.close_connection = True
            return True

    with listening(Door) as address:
        try:
            yield address, waits
        finally:
            gone.set()


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    draw = random.Random()
    for _ in range(100):
        first = draw.randrange(20_000, 32_000)
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
    pytest.fail("no ten free ports in a row")


def project(directory: Path) -> Path:
    """A DVC project with PillTrack's own configuration and nothing in it."""
    (directory / ".dvc").mkdir(parents=True)
    for name in ("config", ".gitignore"):
        shutil.copy2(ROOT / ".dvc" / name, directory / ".dvc" / name)
    subprocess.run(["git", "init", "--quiet", directory], check=True)
    return directory


def clone(of: Path, directory: Path) -> Path:
    """What a colleague has after `git clone`: the .dvc files, no data, no cache."""
    project(directory)
    for pointer in of.glob("data/*.dvc"):
        (directory / "data").mkdir(exist_ok=True)
        shutil.copy2(pointer, directory / "data" / pointer.name)
    return directory


def start_command(where: Path, environment: dict[str, str], *command: str) -> Any:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(AWS)}
    home = where.parent / "home"  # no keys of whoever runs the tests
    home.mkdir(exist_ok=True)
    full = {
        **bare,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT / "src"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "DVC_NO_ANALYTICS": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    return subprocess.Popen(
        command,
        cwd=where,
        env=full,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(where: Path, environment: dict[str, str], *command: str) -> tuple[int, str]:
    """Exit code and everything printed."""
    process = start_command(where, environment, *command)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def must(where: Path, environment: dict[str, str], *command: str) -> str:
    code, said = run(where, environment, *command)
    assert code == 0, said
    return said
