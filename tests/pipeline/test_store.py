"""A directory keeps publishers apart and shows nothing half-written (S3: test_publish_s3)."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.pipeline.remote import Remote
from pilltrack.pipeline.store import INCOMING, DirectoryStore, S3Store, open_store
from tests.releases import race

NAME = "metadata/timestamp.json"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "releases")


def tag_of(store: DirectoryStore) -> str:
    tagged = store.tagged(NAME, 100)
    assert tagged is not None
    return tagged[1]


def test_what_is_not_there_is_none(store: DirectoryStore) -> None:
    assert store.read(NAME, 10) is None
    assert store.digest(NAME, 10) is None
    assert store.tagged(NAME, 10) is None
    assert not store.replace(NAME, b"one", hashlib.sha256(b"").hexdigest())
    assert store.read(NAME, 10) is None


def test_create_writes_only_where_nothing_is(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"two")
    assert store.create("targets/a", b"one")
    assert not store.create("targets/a", tmp_path / "file")
    assert store.read("targets/a", 10) == b"one"
    assert store.create("targets/b", tmp_path / "file")
    assert store.digest("targets/b", 3) == hashlib.sha256(b"two").hexdigest()


def test_files_can_be_read_by_a_web_server(store: DirectoryStore, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        store.create(NAME, b"one")
        store.replace(NAME, b"two", tag_of(store))
    finally:
        os.umask(mask)
    path = tmp_path / "releases" / NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_longer_file_than_allowed_is_not_read(store: DirectoryStore) -> None:
    store.create(NAME, b"12345")
    assert store.read(NAME, 5) == b"12345"
    with pytest.raises(StageFailed, match="expected at most 4 bytes"):
        store.read(NAME, 4)
    assert store.digest(NAME, 4) != hashlib.sha256(b"1234").hexdigest()


def test_replace_needs_the_tag_of_what_is_there(store: DirectoryStore) -> None:
    store.create(NAME, b"one")
    old = tag_of(store)
    assert store.replace(NAME, b"two", old)
    assert not store.replace(NAME, b"three", old)
    assert store.read(NAME, 10) == b"two"


def test_of_many_that_replace_one_content_one_succeeds(store: DirectoryStore) -> None:
    store.create(NAME, b"before")
    for turn in range(5):
        tag = tag_of(store)
        contents = [f"{turn} {index}".encode() for index in range(16)]
        done = race([partial(store.replace, NAME, content, tag) for content in contents])
        assert sorted(done) == [False] * 15 + [True]
        assert store.read(NAME, 10) == contents[done.index(True)]


def test_publishers_that_hesitate_wait_for_each_other(tmp_path: Path) -> None:
    class Hesitant(DirectoryStore):
        def digest(self, name: str, max_bytes: int) -> str | None:
            found = super().digest(name, max_bytes)
            time.sleep(0.01)  # between comparing and replacing
            return found

    store = Hesitant(tmp_path / "releases")
    store.create(NAME, b"before")
    tag = tag_of(store)
    done = race([partial(store.replace, NAME, str(index).encode(), tag) for index in range(8)])
    assert sorted(done) == [False] * 7 + [True]


def test_of_many_that_create_one_name_one_succeeds(store: DirectoryStore) -> None:
    done = race([partial(store.create, "a", str(index).encode()) for index in range(16)])
    assert sorted(done) == [False] * 15 + [True]
    assert store.read("a", 10) == str(done.index(True)).encode()


def test_nothing_but_names_that_are_complete_is_left(store: DirectoryStore, tmp_path: Path) -> None:
    store.check()
    store.create(NAME, b"one")
    store.create(NAME, b"two")
    store.replace(NAME, b"three", "another")
    assert [path.name for path in (tmp_path / "releases" / INCOMING).iterdir()] == ["lock"]


def test_leftovers_of_killed_publishers_are_deleted_after_a_day(
    store: DirectoryStore, tmp_path: Path
) -> None:
    incoming = tmp_path / "releases" / INCOMING
    incoming.mkdir(parents=True)
    for name, age_s in (("young", 80_000), ("old", 90_000), ("lock", 90_000)):
        (incoming / name).touch()
        os.utime(incoming / name, (time.time() - age_s,) * 2)
    store.check()
    assert sorted(path.name for path in incoming.iterdir()) == ["lock", "young"]


def test_a_file_system_without_hard_links_is_refused(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StageFailed, match="without hard links"):
        store.check()


@pytest.mark.parametrize("address", ["", "https://host/x", "gs://pills", "s3://", "s3://b?x=1"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputRejected):
        open_store(address, {})


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputRejected, match="a file; expected a directory"):
        open_store(str(tmp_path / "file"), {})


def test_a_directory_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("releases")
    monkeypatch.chdir(tmp_path)
    ways = ("releases", "releases/", "link", "other/../releases", tmp_path / "releases")
    assert {str(DirectoryStore(Path(way))) for way in ways} == {str(tmp_path / "releases")}


def test_an_address_names_its_store(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path), {}), DirectoryStore)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-central-1"}
    s3 = open_store("s3://pills/fleet", keys)
    assert isinstance(s3, S3Store)
    assert str(s3) == "s3://pills/fleet"


class Disobedient:
    """An S3 client whose server obeys no condition, or only `If-None-Match`."""

    def __init__(self, *, obeys: str) -> None:
        self._obeys, self._is_there = obeys, False

    def put_object(self, **options: Any) -> dict[str, str]:
        if self._is_there and self._obeys in options:
            answer = {"Error": {"Code": "PreconditionFailed"}}
            raise ClientError(answer, "PutObject")
        self._is_there = True
        return {"ETag": '"1"'}


@pytest.mark.parametrize(("obeys", "ignored"), [("", "If-None-Match"), ("IfNoneMatch", "If-Match")])
def test_a_server_that_ignores_conditions_is_refused(obeys: str, ignored: str) -> None:
    with pytest.raises(StageFailed, match=f"writes in spite of {ignored}"):
        S3Store(Disobedient(obeys=obeys), Remote("s3://pills", {})).check()
