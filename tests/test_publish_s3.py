"""Releases on S3, against Ceph's gateway: publishers race there, and readers need no keys."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pilltrack.core.channels import release_in
from pilltrack.core.errors import StageFailed
from pilltrack.pipeline import keys
from pilltrack.pipeline.publish import Publisher
from pilltrack.pipeline.repository import RepositoryRejected, read_repository
from pilltrack.pipeline.roots import read_chain
from pilltrack.pipeline.store import PROBE, Store, Unreachable, open_store
from tests import s3
from tests.releases import (
    PASSPHRASE,
    Killed,
    Reader,
    Recorder,
    Watcher,
    publisher,
    race,
    some_bundles,
    some_keys,
)
from tests.s3 import SECRET, Server, must, run

pytestmark = pytest.mark.s3
PREFIX = "fleet"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("s3")
    yield s3.start(directory)
    s3.stop(directory)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return some_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bucket(server: Server) -> str:
    """A bucket that anybody may read, and only its owner list or write."""
    name = f"fleet-{uuid.uuid4().hex[:12]}"
    client = server.client()
    client.create_bucket(Bucket=name)
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{name}/{PREFIX}/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    return name


@pytest.fixture
def environment(server: Server, bucket: str) -> dict[str, str]:
    return server.environment(bucket)


@pytest.fixture
def store(environment: dict[str, str], bucket: str) -> Store:
    return open_store(f"s3://{bucket}/{PREFIX}", environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return some_keys(tmp_path / "keys")


@pytest.fixture
def reader(server: Server, bucket: str, folder: Path, tmp_path: Path) -> Reader:
    url = f"{server.endpoint}/{bucket}/{PREFIX}"
    return Reader(url, folder / "1.root.json", tmp_path / "device")


def test_a_reader_without_keys_gets_what_was_published(
    store: Store, folder: Path, bundles: list[Path], reader: Reader, tmp_path: Path
) -> None:
    one = publisher(store, folder)
    one.publish(bundles[0], "stable")
    one.publish(bundles[1], "stable")
    reader.fetch(reader.releases()[1], tmp_path / "got")
    keys.rotate(folder, "targets", now=datetime.now(UTC), passphrase=None)
    one.yank(2, "confuses strengths")
    releases = reader.releases()
    assert release_in("stable", releases) == releases[0]


def test_objects_say_what_they_are_and_how_long_they_hold(
    store: Store, folder: Path, bundles: list[Path], server: Server, bucket: str
) -> None:
    publisher(store, folder).publish(bundles[0], "stable")
    client = server.client()
    said = {key: client.head_object(Bucket=bucket, Key=key) for key in server.keys(bucket)}
    assert len(said) == 4 + 1 + len(list(bundles[0].iterdir()))
    for key, head in said.items():
        is_json = key.endswith(".json")
        expected = "application/json" if is_json else "application/octet-stream"
        assert head["ContentType"] == expected, key
        is_timestamp = key == f"{PREFIX}/metadata/timestamp.json"
        assert ("immutable" in head["CacheControl"]) != is_timestamp, key
        assert (head["CacheControl"] == "no-cache") == is_timestamp, key


def test_of_many_that_replace_one_content_one_succeeds(
    store: Store, environment: dict[str, str], bucket: str
) -> None:
    name = "metadata/timestamp.json"
    store.check()
    assert store.create(name, b"0")
    assert not store.create(name, b"1")
    stores = [open_store(f"s3://{bucket}/{PREFIX}", environment) for _ in range(16)]
    n_replaced = 0
    for turn in range(10):
        tagged = store.tagged(name, 100)
        assert tagged is not None
        contents = [f"{turn} {index}".encode() for index in range(16)]
        done = race([
            partial(each.replace, name, content, tagged[1])
            for each, content in zip(stores, contents, strict=True)
        ])  # fmt: skip
        winners = [content for content, is_done in zip(contents, done, strict=True) if is_done]
        assert len(winners) <= 1
        found = store.read(name, 100)
        if winners:
            assert found == winners[0]
            n_replaced += 1
        else:  # its answer was an error 500: nobody knows before reading
            assert found in [tagged[0], *contents]
    assert n_replaced >= 5


def test_of_many_that_create_one_name_one_succeeds(
    store: Store, environment: dict[str, str], bucket: str
) -> None:
    stores = [open_store(f"s3://{bucket}/{PREFIX}", environment) for _ in range(16)]
    for turn in range(10):
        done = race([
            partial(each.create, f"{turn}", str(index).encode())
            for index, each in enumerate(stores)
        ])  # fmt: skip
        assert done.count(True) == 1
        assert store.read(f"{turn}", 10) == str(done.index(True)).encode()


def test_sixteen_publishers_at_once_lose_nothing(
    store: Store, folder: Path, bundles: list[Path], reader: Reader, environment: dict[str, str],
    bucket: str, server: Server, tmp_path: Path,
) -> None:  # fmt: skip
    publisher(store, folder).renew()
    url = f"{server.endpoint}/{bucket}/{PREFIX}"
    late = Reader(url, folder / "1.root.json", tmp_path / "late")

    def publish(number: int) -> Any:
        own = open_store(f"s3://{bucket}/{PREFIX}", environment)
        return Publisher(own, folder, draw=random.Random(number)).publish(bundles[number], "stable")

    with Watcher(reader, tmp_path / "watched") as watcher:
        done = race([partial(publish, number) for number in range(16)])
    assert [error for error in done if isinstance(error, Exception)] == []
    assert watcher.faults == []
    assert watcher.n_looks > 5
    releases = late.releases()
    assert [release.number for release in releases] == list(range(1, 17))
    assert sorted(done, key=lambda release: release.number) == releases
    assert len({release.manifest for release in releases}) == 16
    assert {turn for release in releases for turn in release.channels.values()} == set(range(1, 17))
    for release in releases:
        late.fetch(release, tmp_path / "all" / str(release.number))


def test_a_publisher_that_dies_after_any_operation_leaves_a_whole_repository(
    store: Store, folder: Path, bundles: list[Path], reader: Reader
) -> None:
    """In one bucket: what one left who died is found by all that come later."""
    publisher(store, folder).publish(bundles[0], "stable")
    n_before = 1
    for at in range(100):
        bundle = bundles[1 + at % 15]
        dying = Recorder(store, at)
        try:
            publisher(dying, folder).publish(bundle, "stable")
        except Killed:
            pass
        else:
            break
        found = reader.releases()
        assert len(found) in (n_before, n_before + 1)
        publisher(store, folder).publish(bundle, "stable")
        n_before = len(reader.releases())
        assert n_before == min(at + 2, 16)
    assert 20 < at < 99


def test_an_older_timestamp_put_back_is_noticed(
    store: Store, folder: Path, bundles: list[Path], server: Server, bucket: str
) -> None:
    one = publisher(store, folder)
    one.publish(bundles[0], "stable")
    key = {"Bucket": bucket, "Key": f"{PREFIX}/metadata/timestamp.json"}
    client = server.client()
    old = client.get_object(**key)["Body"].read()
    one.publish(bundles[1], "stable")
    client.put_object(**key, Body=old)
    with pytest.raises(RepositoryRejected, match="older files"):
        one.renew()


def test_a_lost_bucket_is_published_again(
    store: Store, folder: Path, bundles: list[Path], reader: Reader, server: Server, bucket: str
) -> None:
    one = publisher(store, folder)
    for bundle in bundles[:2]:
        one.publish(bundle, "stable")
    reader.releases()
    client = server.client()
    for key in server.keys(bucket):
        client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(RepositoryRejected, match="--after-loss"):
        one.publish(bundles[1], "stable")
    assert set(server.keys(bucket)) <= {f"{PREFIX}/{PROBE}"}
    release = publisher(store, folder, after_loss=0).publish(bundles[1], "stable")
    assert reader.releases() == [release]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS_SECRET_ACCESS_KEY is wrong"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "AWS_ACCESS_KEY_ID is unknown"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "no keys"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer"),
    ],
)
def test_wrong_keys_change_nothing(
    changed: dict[str, str], said: str, store: Store, folder: Path, bundles: list[Path],
    environment: dict[str, str], server: Server, bucket: str,
) -> None:  # fmt: skip
    publisher(store, folder, place="here").publish(bundles[0], "stable")
    before = server.keys(bucket)
    address = f"s3://{bucket}/{PREFIX}"
    with pytest.raises(StageFailed) as caught:
        publisher(open_store(address, {**environment, **changed}), folder).renew()
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert server.keys(bucket) == before
    found, _ = read_repository(store, read_chain(folder))
    assert len(found.releases) == 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_is_refused_by_s3_itself(
    hours: int, store: Store, folder: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(remove_tzinfo: bool = True) -> datetime:
        time = datetime.now(UTC) + timedelta(hours=hours)
        return time.replace(tzinfo=None) if remove_tzinfo else time

    monkeypatch.setattr("botocore.auth.get_current_datetime", wrong)
    with pytest.raises(Unreachable, match=r"RequestTimeTooSkewed.* Set this machine's clock"):
        publisher(store, folder).publish(bundles[0], "stable")


def test_a_bucket_that_is_not_there(environment: dict[str, str], folder: Path) -> None:
    with pytest.raises(Unreachable, match="NoSuchBucket"):
        publisher(open_store("s3://no-such-bucket", environment), folder).renew()


def test_the_commands_on_s3(
    environment: dict[str, str], bucket: str, bundles: list[Path], tmp_path: Path, reader: Reader
) -> None:
    there = {
        **environment,
        keys.PASSPHRASE: PASSPHRASE.decode(),
        "PILLTRACK_RELEASES": f"s3://{bucket}/{PREFIX}",
    }
    must(tmp_path, there, "pilltrack", "keys", "init", "--keys", "new")
    change = ("--keys", "new")
    must(tmp_path, there, "pilltrack", "publish", str(bundles[0]), "--channel", "beta", *change)
    must(tmp_path, there, "pilltrack", "channel", "set", "stable", "1", *change)
    must(tmp_path, there, "pilltrack", "renew", *change)
    listed = must(tmp_path, there, "pilltrack", "releases", "--root", "new/1.root.json")
    assert "beta*, stable*" in listed
    wrong = {**there, "AWS_SECRET_ACCESS_KEY": "wrong"}
    code, said = run(tmp_path, wrong, "pilltrack", "renew", *change)
    assert code == 1
    assert "AWS_SECRET_ACCESS_KEY is wrong" in said
    assert "Traceback" not in said
