"""Data on S3, against Ceph's gateway: what is pushed comes back, and nothing fails silently."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import s3
from tests.s3 import SECRET, Server, clone, must, project, run

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("s3")
    yield s3.start(directory)
    s3.stop(directory)


@pytest.fixture
def bucket(server: Server) -> str:
    name = f"pills-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def environment(server: Server, bucket: str) -> dict[str, str]:
    return server.environment(bucket)


@pytest.fixture
def pills(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A project whose zip is tracked and whose default remote is the bucket."""
    pills = project(tmp_path / "pills")
    (pills / "data").mkdir()
    (pills / "data" / "pills.zip").write_bytes(os.urandom(300_000))
    must(pills, environment, "dvc", "add", "--quiet", "data/pills.zip")
    must(pills, environment, "pilltrack", "remote", "s3")
    return pills


def test_push_wipe_pull_gives_the_same_bytes(
    pills: Path, environment: dict[str, str], server: Server, bucket: str
) -> None:
    pushed = (pills / "data" / "pills.zip").read_bytes()
    must(pills, environment, "dvc", "push")
    assert len(server.keys(bucket)) == 1
    shutil.rmtree(pills / ".dvc" / "cache")
    (pills / "data" / "pills.zip").unlink()
    must(pills, environment, "dvc", "pull")
    assert (pills / "data" / "pills.zip").read_bytes() == pushed
    assert not (pills / "dvc-remote").exists()


def test_no_key_is_written_to_a_file(pills: Path, environment: dict[str, str]) -> None:
    must(pills, environment, "dvc", "push")
    for path in (path for path in pills.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
    ignored = must(pills, environment, "git", "check-ignore", ".dvc/config.local")
    assert ignored.strip() == ".dvc/config.local"


@pytest.mark.parametrize("secret", ["wrong", ""])
def test_wrong_or_missing_secret_ends_every_command(
    secret: str, pills: Path, environment: dict[str, str], server: Server, bucket: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    refused = {**environment, "AWS_SECRET_ACCESS_KEY": secret}
    code, said = run(pills, refused, "dvc", "push")
    assert code != 0
    assert ("Forbidden" if secret else "missing: AWS_SECRET_ACCESS_KEY") in said
    assert server.keys(bucket) == []
    must(pills, environment, "dvc", "push")
    other = clone(pills, tmp_path / "other")
    code, said = run(other, refused, "pilltrack", "remote", "s3")
    assert code == 1
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert not (other / ".dvc" / "config.local").exists()
    must(other, environment, "pilltrack", "remote", "s3")
    code, said = run(other, refused, "dvc", "pull")
    assert code != 0
    assert not (other / "data" / "pills.zip").exists()
    code, checks = doctor(other, refused)
    assert code == 1
    assert checks["dvc remote"]["state"] == ("broken" if secret else "missing")
    assert "AWS_SECRET_ACCESS_KEY" in checks["dvc remote"]["remedy"]


def test_no_keys_at_all_end_push_and_doctor(pills: Path, environment: dict[str, str]) -> None:
    without = {
        name: value for name, value in environment.items() if name != "AWS_SECRET_ACCESS_KEY"
    }
    del without["AWS_ACCESS_KEY_ID"]
    code, said = run(pills, without, "dvc", "push")
    assert code != 0
    assert "credentials" in said
    code, checks = doctor(pills, without)
    assert (code, checks["dvc remote"]["state"]) == (1, "missing")


def test_push_killed_among_many_files_is_completed_by_the_next(
    pills: Path, environment: dict[str, str], server: Server, bucket: str, tmp_path: Path
) -> None:
    photos = {f"{number}.bin": os.urandom(20_000) for number in range(400)}
    (pills / "data" / "shots").mkdir()
    for name, body in photos.items():
        (pills / "data" / "shots" / name).write_bytes(body)
    must(pills, environment, "dvc", "add", "--quiet", "data/shots")
    kill_push(pills, environment, server, 10, "--jobs", "2")
    assert 9 <= len(server.keys(bucket)) <= 10  # one may have been on its way through the door

    other = clone(pills, tmp_path / "other")
    must(other, environment, "pilltrack", "remote", "s3")
    code, said = run(other, environment, "dvc", "pull")
    assert code != 0
    assert "failed to" in said
    assert not (other / "data" / "shots").exists()

    must(pills, environment, "dvc", "push")
    assert len(server.keys(bucket)) == len(photos) + 2  # with the list of them, and the zip
    must(other, environment, "dvc", "pull")
    pulled = {path.name: path.read_bytes() for path in (other / "data" / "shots").iterdir()}
    assert pulled == photos


def test_push_killed_within_a_large_file_leaves_no_part_of_it_to_pull(
    pills: Path, environment: dict[str, str], server: Server, bucket: str, tmp_path: Path
) -> None:
    large = os.urandom(1_000_000) * 260
    (pills / "data" / "large.bin").write_bytes(large)
    must(pills, environment, "dvc", "add", "--quiet", "data/large.bin")
    kill_push(pills, environment, server, 2, "data/large.bin.dvc")
    assert "Uploads" in server.client().list_multipart_uploads(Bucket=bucket)
    assert server.keys(bucket) == []
    must(pills, environment, "dvc", "push")
    other = clone(pills, tmp_path / "other")
    must(other, environment, "pilltrack", "remote", "s3")
    must(other, environment, "dvc", "pull")
    assert (other / "data" / "large.bin").read_bytes() == large


@pytest.mark.parametrize("damage", [b"", b"other bytes"])
def test_lost_or_damaged_object_is_not_pulled(
    damage: bytes, pills: Path, environment: dict[str, str], server: Server, bucket: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    must(pills, environment, "dvc", "push")
    (key,) = server.keys(bucket)
    if damage:
        server.client().put_object(Bucket=bucket, Key=key, Body=damage)
    else:
        server.client().delete_object(Bucket=bucket, Key=key)
    other = clone(pills, tmp_path / "other")
    must(other, environment, "pilltrack", "remote", "s3")
    code, said = run(other, environment, "dvc", "pull")
    assert code != 0
    assert "failed" in said
    assert not (other / "data" / "pills.zip").exists()


def test_doctor_writes_to_the_bucket_and_leaves_nothing(
    pills: Path, environment: dict[str, str], server: Server, bucket: str
) -> None:
    code, said = run(pills, environment, "pilltrack", "doctor")
    assert code == 0, said
    assert "s3 write    ok        put, read back and deleted" in said
    assert SECRET not in said
    assert server.keys(bucket) == []


def test_doctor_names_a_bucket_that_is_not_there(server: Server, tmp_path: Path) -> None:
    nowhere = server.environment("no-such-bucket")
    pills = project(tmp_path / "pills")
    code, said = run(pills, nowhere, "pilltrack", "remote", "s3")
    assert code == 1
    assert "NoSuchBucket" in said


def test_closed_port_ends_push_and_doctor(pills: Path, environment: dict[str, str]) -> None:
    closed = f"http://127.0.0.1:{s3.free_ports(1)}"
    config = pills / ".dvc" / "config.local"
    config.write_text(config.read_text().replace(environment["AWS_ENDPOINT_URL"], closed))
    elsewhere = {**environment, "AWS_ENDPOINT_URL": closed}
    code, said = run(pills, elsewhere, "dvc", "push")
    assert code != 0
    assert closed in said
    started = time.monotonic()
    code, checks = doctor(pills, elsewhere)
    assert time.monotonic() - started < 15
    assert code == 1
    assert "does not answer" in checks["dvc remote"]["found"]


def test_silent_server_is_given_up_within_ten_seconds(
    pills: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        code, said = run(
            pills, {**environment, "AWS_ENDPOINT_URL": address}, "pilltrack", "remote", "s3"
        )
        assert time.monotonic() - started < 15
    assert code == 1
    assert "does not answer" in said


def test_folder_takes_the_place_of_s3_again(pills: Path, environment: dict[str, str]) -> None:
    assert must(pills, {}, "pilltrack", "remote", "folder").strip() == str(pills / "dvc-remote")
    must(pills, {}, "dvc", "push")
    assert len([path for path in (pills / "dvc-remote").rglob("*") if path.is_file()]) == 1


def doctor(where: Path, environment: dict[str, str]) -> tuple[int, dict[str, Any]]:
    code, said = run(where, environment, "pilltrack", "doctor", "--json")
    assert SECRET not in said
    report = json.loads(said)
    assert report["healthy"] == (code == 0)
    return code, {check["name"]: check for check in report["checks"]}


def kill_push(
    pills: Path, environment: dict[str, str], server: Server, puts: int, *options: str
) -> None:
    """Kill a push and its children, without warning, once `puts` objects or parts are sent."""
    with s3.door(server, puts) as (address, one_more_waits):
        through = {**environment, "AWS_ENDPOINT_URL": address}
        must(pills, through, "pilltrack", "remote", "s3")
        push = s3.start_command(pills, through, "dvc", "push", *options)
        deadline = time.monotonic() + 120
        while not one_more_waits.wait(0.1):
            assert push.poll() is None, push.stdout.read()
            assert time.monotonic() < deadline
        os.killpg(push.pid, signal.SIGKILL)
        push.communicate(timeout=30)
        assert push.returncode == -signal.SIGKILL
    must(pills, environment, "pilltrack", "remote", "s3")
