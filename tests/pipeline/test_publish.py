"""Releases: what is published is what devices get, whole, whoever publishes, dies or tampers."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets

from pilltrack import cli, cli_parts
from pilltrack.core.bundle import read_bundle
from pilltrack.core.channels import CHANNELS, release_in
from pilltrack.core.errors import BundleRejected, GateFailed, InputRejected, StageFailed
from pilltrack.pipeline import keys
from pilltrack.pipeline.keys import KeyMissing
from pilltrack.pipeline.publish import Publisher
from pilltrack.pipeline.repository import RepositoryRejected, read_repository
from pilltrack.pipeline.roots import Days, RootRejected, read_chain
from pilltrack.pipeline.store import DirectoryStore
from tests.imports import ROOT
from tests.releases import (
    PASSPHRASE,
    PHOTO,
    Killed,
    Reader,
    Recorder,
    Watcher,
    publisher,
    race,
    renamed_bundle,
    served,
    some_bundles,
    some_keys,
)
from tests.tiny_bundle import tiny_bundle

NOW = datetime.now(UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return some_keys(tmp_path / "keys")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "releases"


@pytest.fixture
def url(place: Path) -> Iterator[str]:
    with served(place) as url:
        yield url


@pytest.fixture
def reader(url: str, folder: Path, tmp_path: Path) -> Reader:
    return Reader(url, folder / "1.root.json", tmp_path / "device")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return some_bundles(tmp_path_factory.mktemp("bundles"))


def content(place: Path) -> dict[str, bytes]:
    """What readers can see."""
    shown = (path for part in ("metadata", "targets") for path in (place / part).glob("*"))
    return {str(path.relative_to(place)): path.read_bytes() for path in shown}


def test_a_reader_gets_the_bundle_that_was_published(
    folder: Path, place: Path, reader: Reader, bundles: list[Path], tmp_path: Path
) -> None:
    release = publisher(place, folder).publish(bundles[0], "beta")
    assert (release.number, release.channels, release.name) == (1, {"beta": 1}, "tiny")
    assert reader.releases() == [release]
    got = reader.fetch(release, tmp_path / "got")
    assert read_bundle(got) == read_bundle(bundles[0])
    for path in bundles[0].iterdir():
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (place / "targets" / sha256).read_bytes() == path.read_bytes()
    assert len(list((place / "targets").iterdir())) == len(list(bundles[0].iterdir()))


def test_files_that_did_not_change_are_there_once(
    folder: Path, place: Path, bundles: list[Path]
) -> None:
    one = publisher(place, folder)
    one.publish(bundles[0], "stable")
    before = set(content(place))
    one.publish(bundles[1], "stable")
    new = {name for name in set(content(place)) - before if name.startswith("targets/")}
    same = {path.name for path in bundles[0].iterdir()
            if path.read_bytes() == (bundles[1] / path.name).read_bytes()}  # fmt: skip
    assert {"model.tflite", "locator.tflite"} <= same
    assert len(new) == len(list(bundles[0].iterdir())) - len(same)


def test_the_same_bundle_again_is_the_same_release_assigned_anew(
    folder: Path, place: Path, bundles: list[Path], reader: Reader
) -> None:
    one = publisher(place, folder)
    first = one.publish(bundles[0], "stable")
    one.publish(bundles[1], "stable")
    again = one.publish(bundles[0], "stable")
    assert (again.number, again.time, again.channels) == (1, first.time, {"stable": 3})
    releases = reader.releases()
    assert [release.number for release in releases] == [1, 2]
    assert release_in("stable", releases) == again


def test_a_release_proven_on_beta_becomes_stable(
    folder: Path, place: Path, bundles: list[Path], reader: Reader
) -> None:
    one = publisher(place, folder)
    one.publish(bundles[0], "stable")
    one.publish(bundles[1], "beta")
    one.set_channel("stable", 2)
    releases = reader.releases()
    assert release_in("stable", releases) == release_in("beta", releases) == releases[1]
    with pytest.raises(InputRejected, match="release 3: no such release; expected one of 1, 2"):
        one.set_channel("stable", 3)


def test_yanking_brings_back_the_release_before(
    folder: Path, place: Path, bundles: list[Path], reader: Reader
) -> None:
    one = publisher(place, folder)
    one.publish(bundles[0], "stable")
    one.publish(bundles[1], "stable")
    one.yank(2, "confuses  two\nstrengths")
    releases = reader.releases()
    assert release_in("stable", releases) == releases[0]
    assert releases[1].yanked == "confuses two strengths"
    assert one.yank(2, "another reason")[1].yanked == "confuses two strengths"
    with pytest.raises(InputRejected, match="it was yanked"):
        one.set_channel("stable", 2)
    with pytest.raises(InputRejected, match="it was yanked"):
        one.publish(bundles[1], "beta")
    for reason in ("", " \n", "x" * 501, "wrong\x1b[2J"):
        with pytest.raises(InputRejected, match="--reason"):
            one.yank(1, reason)


def test_a_damaged_bundle_is_refused_before_anything_is_written(
    folder: Path, place: Path, bundles: list[Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(bundles[0], tmp_path / "damaged")
    (damaged / "model.tflite").write_bytes(b"other")
    with pytest.raises(BundleRejected):
        publisher(place, folder).publish(damaged, "stable")
    assert not place.exists()


def test_files_come_before_what_names_them(folder: Path, place: Path, bundles: list[Path]) -> None:
    recorder = Recorder(DirectoryStore(place))
    publisher(recorder, folder).publish(bundles[0], "stable")
    written = [name for operation, name in recorder.done if operation in ("create", "replace")]
    n_files = len(list(bundles[0].iterdir()))
    assert all(name.startswith("targets/") for name in written[:n_files])
    assert written[n_files:] == [
        "metadata/1.root.json", "metadata/1.targets.json", "metadata/1.snapshot.json",
        "metadata/timestamp.json",
    ]  # fmt: skip


def test_a_publisher_that_dies_after_any_operation_leaves_a_whole_repository(
    folder: Path, bundles: list[Path], tmp_path: Path
) -> None:
    start = tmp_path / "start"
    publisher(start, folder, place="place").publish(bundles[0], "stable")
    for at in range(100):
        place = shutil.copytree(start, tmp_path / str(at))
        mine = shutil.copytree(folder, tmp_path / f"keys {at}")
        dying = Recorder(DirectoryStore(place), at)
        try:
            publisher(dying, mine, place="place").publish(bundles[1], "stable")
        except Killed:
            pass
        else:
            break
        found, _ = read_repository(DirectoryStore(place), read_chain(folder))
        is_committed = ("replace", "metadata/timestamp.json") in dying.done
        assert [release.number for release in found.releases] == ([1, 2] if is_committed else [1])
        release = publisher(place, mine, place="place").publish(bundles[1], "stable")
        assert (release.number, list(release.channels)) == (2, ["stable"])
    assert 20 < at < 99


def test_sigkill_at_any_file_operation_leaves_a_whole_repository(
    folder: Path, bundles: list[Path], tmp_path: Path
) -> None:
    program = ROOT / "tests" / "pipeline" / "killed_publishers.py"
    done = subprocess.run(
        [sys.executable, program, tmp_path / "work", folder, bundles[0], bundles[1]],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["publish"]["n_killed"] > 50
    assert told["rotate"]["n_killed"] > 10
    assert [told[act]["faults"] for act in ("publish", "rotate")] == [[], []]


def test_sixteen_publishers_at_once_lose_nothing(
    folder: Path, place: Path, bundles: list[Path], reader: Reader, url: str, tmp_path: Path
) -> None:
    publisher(place, folder).renew()
    late = Reader(url, folder / "1.root.json", tmp_path / "late")
    with Watcher(reader, tmp_path / "watched") as watcher:
        done = race([
            lambda bundle=bundle, seed=seed: Publisher(
                DirectoryStore(place), folder, draw=random.Random(seed)
            ).publish(bundle, "stable")
            for seed, bundle in enumerate(bundles)
        ])  # fmt: skip
        assert [error for error in done if isinstance(error, Exception)] == []
    assert watcher.faults == []
    assert watcher.n_looks >= 1
    releases = late.releases()
    assert [release.number for release in releases] == list(range(1, 17))
    assert sorted(done, key=lambda release: release.number) == releases
    assert len({release.manifest for release in releases}) == 16
    for release in releases:
        late.fetch(release, tmp_path / "all" / str(release.number))


def test_who_loses_the_race_every_time_gives_up_and_changes_nothing(
    folder: Path, place: Path, bundles: list[Path]
) -> None:
    publisher(place, folder).publish(bundles[0], "stable")
    before = content(place)

    class Slow(DirectoryStore):
        def replace(self, name: str, content: bytes, tag: str) -> bool:
            return False

    pauses: list[float] = []
    with pytest.raises(StageFailed, match="another publisher that was faster"):
        publisher(Slow(place), folder, sleep=pauses.append).publish(bundles[1], "stable")
    assert content(place)["metadata/timestamp.json"] == before["metadata/timestamp.json"]
    assert 50 <= len(pauses) <= 100
    assert 0 <= min(pauses) < max(pauses) <= 2


def test_an_answer_that_is_lost_on_the_way_is_no_second_release(
    folder: Path, place: Path, bundles: list[Path]
) -> None:
    class Forgetful(DirectoryStore):
        def replace(self, name: str, content: bytes, tag: str) -> bool:
            super().replace(name, content, tag)
            return False

        def create(self, name: str, content: bytes | Path) -> bool:
            super().create(name, content)
            return False

    one = publisher(Forgetful(place), folder)
    assert one.publish(bundles[0], "stable").channels == {"stable": 1}
    assert one.publish(bundles[1], "stable").channels == {"stable": 2}
    assert sorted(path.name for path in (place / "metadata").iterdir()) == [
        "1.root.json", "1.snapshot.json", "1.targets.json", "2.snapshot.json", "2.targets.json",
        "timestamp.json",
    ]  # fmt: skip


class TestKeys:
    """Who may sign, as readers see it."""

    @pytest.mark.parametrize("role", ["root", "targets", "online"])
    def test_readers_follow_a_rotation_without_a_refusal(
        self, role: Any, folder: Path, place: Path, bundles: list[Path], reader: Reader, url: str,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        [*_, root_key] = folder.glob("root-*.pem")
        key = root_key.stem[-8:] if role == "root" else ""
        with Watcher(reader, tmp_path / "watched") as watcher:
            keys.rotate(folder, role, now=NOW, passphrase=None, key=key)
            publisher(place, folder).publish(bundles[1], "stable")
        assert watcher.faults == []
        assert (place / "metadata" / "2.root.json").exists()
        for number in (1, 2):  # a device from before, and one with the new root
            new = Reader(url, folder / f"{number}.root.json", tmp_path / f"from root {number}")
            assert [release.number for release in new.releases()] == [1, 2]
        shutil.rmtree(folder / "retired")
        publisher(place, folder).renew()
        assert [release.number for release in reader.releases()] == [1, 2]

    def test_a_rotation_dying_anywhere_refuses_no_reader(
        self, folder: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        publisher(tmp_path / "first", folder).publish(bundles[0], "stable")
        states = [shutil.copytree(folder, tmp_path / "keys before")]
        for role in ("online", "targets"):
            keys.rotate(folder, role, now=NOW, passphrase=None)
        states.append(folder)
        for at in range(100):
            place = shutil.copytree(tmp_path / "first", tmp_path / str(at))
            mine = shutil.copytree(folder, tmp_path / f"keys {at}")
            name = str(tmp_path / "first")
            dying = Recorder(DirectoryStore(place), at)
            try:
                publisher(dying, mine, place=name).renew()
            except Killed:
                pass
            else:
                break
            with served(place) as url:
                old = Reader(url, folder / "1.root.json", tmp_path / f"device {at}")
                assert len(old.releases()) == 1
                publisher(place, mine, place=name).renew()
                assert len(old.releases()) == 1
            assert (place / "metadata" / "3.root.json").exists()
        assert at > 15

    def test_lost_keys_are_replaced(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        reader.releases()
        for role in ("targets", "online"):
            for path in folder.glob(f"{role}-*.pem"):
                path.unlink()
            with pytest.raises(KeyMissing, match=f"pilltrack keys rotate {role}"):
                publisher(place, folder).publish(bundles[1], "stable")
            keys.rotate(folder, role, now=NOW, passphrase=None)
        assert not (folder / "retired").exists()
        publisher(place, folder).publish(bundles[1], "stable")
        assert [release.number for release in reader.releases()] == [1, 2]

    def test_a_publisher_that_died_after_replacing_lost_keys_is_followed_by_another(
        self, folder: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        first = tmp_path / "first"
        publisher(first, folder).publish(bundles[0], "stable")
        for path in folder.glob("online-*.pem"):
            path.unlink()
        keys.rotate(folder, "online", now=NOW, passphrase=None)
        for at in range(100):
            place = shutil.copytree(first, tmp_path / str(at))
            mine = shutil.copytree(folder, tmp_path / f"keys {at}")
            dying = Recorder(DirectoryStore(place), at)
            try:
                publisher(dying, mine, place=str(first)).renew()
            except Killed:
                publisher(place, mine, place=str(first)).renew()
            found, _ = read_repository(DirectoryStore(place), read_chain(mine))
            assert (found.published_root, found.verified_root) == (2, 2)
            if at >= len(dying.done):
                break

    def test_replaced_keys_never_count_again(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        """Who stole keys and writes to the bucket cannot have their list signed with new ones."""
        publisher(place, folder).publish(bundles[0], "stable")
        stolen = shutil.copytree(folder, tmp_path / "stolen")
        for role in ("targets", "online"):
            keys.rotate(folder, role, now=NOW, passphrase=None)
        publisher(place, folder).renew()
        for number in (2, 3):
            (place / "metadata" / f"{number}.root.json").unlink()
        (stolen / "published.json").unlink()
        publisher(place, stolen, after_loss=100).publish(bundles[1], "stable")
        with pytest.raises(RepositoryRejected, match="not genuine"):
            publisher(place, folder).renew()
        fresh = shutil.copytree(folder, tmp_path / "fresh")
        (fresh / "published.json").unlink()
        with pytest.raises(RepositoryRejected, match="not genuine"):
            publisher(place, fresh).renew()

    def test_a_root_that_waits_for_signatures_changes_nothing(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader, tmp_path: Path
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        for path in sorted(folder.glob("root-*.pem"))[1:]:
            path.unlink()
        assert keys.rotate(folder, "online", now=NOW, passphrase=None).missing == 1
        publisher(place, folder).renew()
        assert not (place / "metadata" / "2.root.json").exists()
        assert len(reader.releases()) == 1

    def test_a_newer_root_in_the_repository_is_taken(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path, reader: Reader
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        other = shutil.copytree(folder, tmp_path / "timer")
        keys.rotate(folder, "targets", now=NOW, passphrase=None)
        publisher(place, folder).renew()
        [targets] = other.glob("targets-*.pem")
        publisher(place, other).renew()  # the online key is the same
        assert len(reader.releases()) == 1
        assert [root.version for root in read_chain(other)] == [1, 2]  # and the next is the third
        assert (other / "retired" / targets.name).exists()
        with pytest.raises(KeyMissing, match="role targets"):
            publisher(place, other).publish(bundles[1], "stable")

    def test_another_root_of_the_same_number_is_refused(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        other = shutil.copytree(folder, tmp_path / "other")
        keys.rotate(folder, "targets", now=NOW, passphrase=None)
        keys.rotate(other, "targets", now=NOW, passphrase=None)
        publisher(place, folder).renew()
        before = content(place)
        with pytest.raises(RepositoryRejected, match="another root of the same number"):
            publisher(place, other).renew()
        assert content(place) == before

    def test_the_timer_needs_nothing_but_the_online_key(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        publisher(place, folder).publish(bundles[0], "stable")
        timer = tmp_path / "timer"
        timer.mkdir()
        for path in [*folder.glob("online-*.pem"), folder / "1.root.json"]:
            shutil.copy(path, timer)
        publisher(place, timer).renew()
        assert caplog.text == ""
        for days in (100, 200, 300):
            publisher(place, timer, now=lambda days=days: NOW + timedelta(days=days)).renew()
            assert ("the list of releases ends on" in caplog.text) == (days == 300)
        with pytest.raises(KeyMissing, match="role targets"):
            publisher(place, timer, now=lambda: NOW + timedelta(days=366)).renew()
        publisher(place, folder, now=lambda: NOW + timedelta(days=366)).renew()

    def test_a_key_folder_that_cannot_be_written_is_said(
        self, folder: Path, place: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        def read_only(*_: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("pilltrack.pipeline.publish.remember", read_only)
        publisher(place, folder).publish(bundles[0], "stable")
        assert "published, but" in caplog.text
        assert "Read-only file system" in caplog.text

    def test_a_wrong_passphrase_ends_before_anything_is_written(
        self, tmp_path: Path, place: Path, bundles: list[Path]
    ) -> None:
        folder = some_keys(tmp_path / "other", passphrase=PASSPHRASE)
        for passphrase in (None, b"the wrong words for these keys"):
            with pytest.raises(KeyMissing, match="PILLTRACK_KEY_PASSPHRASE"):
                publisher(place, folder, passphrase=passphrase).publish(bundles[0], "stable")
            assert content(place) == {}
        publisher(place, folder, passphrase=PASSPHRASE).publish(bundles[0], "stable")

    def test_no_private_key_is_ever_published(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        keys.rotate(folder, "online", now=NOW, passphrase=None)
        publisher(place, folder).renew()
        secrets = [
            line for path in folder.rglob("*.pem") for line in path.read_bytes().splitlines()[1:-1]
        ]
        assert len(secrets) == 6
        for name, data in content(place).items():
            assert b"PRIVATE" not in data, name
            assert not any(secret in data for secret in secrets), name


class TestAge:
    def test_renew_after_all_has_expired(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        for days, expired in (
            (31, ["timestamp", "snapshot"]),
            (400, ["timestamp", "snapshot", "targets"]),
        ):
            later = NOW + timedelta(days=days)
            found, _ = read_repository(DirectoryStore(place), read_chain(folder))
            assert found.expired(later) == expired
            late = publisher(place, folder, now=lambda later=later: later, clock_is_right=True)
            late.renew()
            found, _ = read_repository(DirectoryStore(place), read_chain(folder))
            assert found.expired(later) == []
        assert len(reader.releases()) == 1

    def test_devices_are_told_for_thirty_days(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        found, _ = read_repository(DirectoryStore(place), read_chain(folder))
        assert found.timestamp is not None
        assert found.targets is not None
        assert found.expired(NOW + timedelta(days=29)) == []
        assert (found.targets.expires - NOW).days in (364, 365)

    def test_renewing_is_seen_as_new(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        versions = one_version(place, folder)
        one.renew()
        assert one_version(place, folder) == (versions[0] + 1, versions[1] + 1, versions[2])
        assert len(reader.releases()) == 1

    def test_an_expired_root_is_refused_until_it_is_renewed(
        self, tmp_path: Path, place: Path, bundles: list[Path]
    ) -> None:
        folder = some_keys(tmp_path / "short", days=Days(root=10))
        publisher(place, folder).publish(bundles[0], "stable")
        later = NOW + timedelta(days=11)
        before = content(place)
        with pytest.raises(StageFailed, match="pilltrack keys renew"):
            publisher(place, folder, now=lambda: later).renew()
        assert content(place) == before
        keys.renew_root(folder, now=later, passphrase=None)
        publisher(place, folder, now=lambda: later).renew()

    def test_a_reader_refuses_what_nobody_renewed(
        self, tmp_path: Path, place: Path, bundles: list[Path]
    ) -> None:
        """The proof that renewing is needed: python-tuf's client holds us to the dates."""
        folder = some_keys(tmp_path / "keys", days=Days(online=1))
        past = datetime.now(UTC) - timedelta(days=2)
        with served(place) as url:
            with pytest.raises(RepositoryRejected, match="expired"):
                publisher(place, folder, now=lambda: past).publish(bundles[0], "stable")
            reader = Reader(url, folder / "1.root.json", tmp_path / "device")
            with pytest.raises(ExpiredMetadataError):
                reader.releases()
            publisher(place, folder).renew()
            assert len(reader.releases()) == 1


class TestClock:
    """Nothing is signed by a clock that does not fit what was signed last."""

    @pytest.mark.parametrize("days", [-400, -60, -2, 30 + 92, 700])
    def test_a_clock_that_is_wrong_signs_nothing(
        self, days: int, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        before = content(place)
        wrong = publisher(place, folder, now=lambda: NOW + timedelta(days=days))
        for command in (
            lambda: wrong.renew(),
            lambda: wrong.publish(bundles[1], "stable"),
            lambda: wrong.set_channel("beta", 1),
            lambda: wrong.yank(1, "x"),
        ):
            with pytest.raises(StageFailed, match=r"this machine's clock: .* --clock-is-right"):
                command()
        assert content(place) == before

    @pytest.mark.parametrize("days", [-0.9, 30, 30 + 89])
    def test_clocks_that_differ_a_little_and_a_long_silence_are_no_reason(
        self, days: float, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        publisher(place, folder, now=lambda: NOW + timedelta(days=days)).renew()

    def test_a_shorter_life_of_signatures_is_no_clock_that_is_wrong(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        keys.renew_root(folder, now=NOW, passphrase=None, days=Days(online=2))
        publisher(place, folder).renew()
        found, _ = read_repository(DirectoryStore(place), read_chain(folder))
        assert found.expired(NOW + timedelta(days=3)) == ["timestamp", "snapshot"]
        publisher(place, folder).renew()

    def test_what_a_clock_far_ahead_signed_is_repaired(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        future = NOW + timedelta(days=700)
        ahead = publisher(place, folder, now=lambda: future, clock_is_right=True)
        ahead.publish(bundles[1], "stable")
        assert reader.releases()[1].time > NOW + timedelta(days=699)  # for devices, a wrong clock
        with pytest.raises(StageFailed, match="--clock-is-right"):
            publisher(place, folder).renew()
        publisher(place, folder, clock_is_right=True).renew()
        releases = reader.releases()
        assert [release.number for release in releases] == [1, 2]
        assert abs(releases[1].time - datetime.now(UTC)) < timedelta(minutes=5)
        assert releases[0].time <= releases[1].time
        assert release_in("stable", releases) == releases[1]
        found, _ = read_repository(DirectoryStore(place), read_chain(folder))
        assert found.expired(NOW + timedelta(days=32)) == ["timestamp", "snapshot"]
        publisher(place, folder).renew()  # as ever
        assert reader.releases() == releases

    def test_the_repair_needs_the_key_of_the_list_only_where_it_changes_it(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        timer = shutil.copytree(folder, tmp_path / "timer")
        for path in timer.glob("targets-*.pem"):
            path.unlink()
        future = NOW + timedelta(days=700)
        publisher(place, folder, now=lambda: future, clock_is_right=True).renew()
        publisher(place, timer, clock_is_right=True).renew()
        publisher(place, folder, now=lambda: future, clock_is_right=True).publish(
            bundles[1], "stable"
        )
        with pytest.raises(KeyMissing, match="role targets"):
            publisher(place, timer, clock_is_right=True).renew()


class TestProof:
    """Only what devices would run is published, and as it was proven."""

    def test_a_bundle_that_breaks_its_promises_is_refused_before_anything_is_written(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        vacuous = tiny_bundle(tmp_path, "red", PHOTO)
        with pytest.raises(GateFailed, match="promise no decision and no frame"):
            publisher(place, folder).publish(vacuous, "stable")
        assert not place.exists()

    def test_a_bundle_that_is_rewritten_after_its_check_is_published_as_it_was(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path, reader: Reader
    ) -> None:
        bundle = shutil.copytree(bundles[0], tmp_path / "bundle")

        def rewrite(_: Path) -> None:
            for path in bundle.iterdir():
                path.write_bytes(b"another build")

        release = publisher(place, folder, prove=rewrite).publish(bundle, "stable")
        reader.fetch(release, tmp_path / "got")
        assert publisher(place, folder).publish(bundles[0], "beta").number == release.number

    @pytest.mark.parametrize("name", ["x\x1b[2J", "x\nrelease 9", "\u202ex"])
    def test_a_name_that_a_terminal_would_obey_is_refused(
        self, name: str, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        named = renamed_bundle(bundles[0], tmp_path / "named", name)
        with pytest.raises(InputRejected, match="without control characters") as caught:
            publisher(place, folder).publish(named, "stable")
        assert str(caught.value).isprintable()
        assert not place.exists()


class TestLyingStore:
    """A place that says it has stored what it has not."""

    class Lying(DirectoryStore):
        def replace(self, name: str, content: bytes, tag: str) -> bool:
            return True

    def test_no_command_says_that_it_was_done(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        for bundle in bundles[:2]:
            publisher(place, folder).publish(bundle, "stable")
        lying = publisher(self.Lying(place), folder)
        memory = (folder / "published.json").read_bytes()
        for command in (
            lambda: lying.yank(2, "dangerous"),
            lambda: lying.set_channel("beta", 1),
            lambda: lying.renew(),
            lambda: lying.publish(bundles[2], "stable"),
            lambda: lying.publish(bundles[1], "stable"),
        ):
            with pytest.raises(RepositoryRejected, match="readers still find timestamp 2;"):
                command()
        assert (folder / "published.json").read_bytes() == memory
        assert publisher(place, folder).yank(2, "dangerous")[1].yanked == "dangerous"


def one_version(place: Path, folder: Path) -> tuple[int, int, int]:
    found, _ = read_repository(DirectoryStore(place), read_chain(folder))
    return found.seen.timestamp, found.seen.snapshot, found.seen.targets


class TestTampering:
    """Nothing is signed on top of what is not genuine."""

    @pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
    @pytest.mark.parametrize("change", ["a byte", "cut", "gone", "of another publisher", "longer"])
    def test_changed_metadata_stop_every_command(
        self, name: str, change: str, folder: Path, place: Path, bundles: list[Path],
        tmp_path: Path,
    ) -> None:  # fmt: skip
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        one.publish(bundles[1], "stable")
        path = place / "metadata" / name
        data = path.read_bytes()
        if change == "gone":
            path.unlink()
        elif change == "of another publisher":
            other = some_keys(tmp_path / "other")
            for bundle in bundles[:2]:
                publisher(tmp_path / "others", other).publish(bundle, "stable")
            shutil.copy(tmp_path / "others" / "metadata" / name, path)
        else:
            other_data = {
                "a byte": data.replace(b"1", b"2", 1),
                "cut": data[:-20],
                "longer": data + b" " * 100_000,
            }
            path.write_bytes(other_data[change])
        before = content(place)
        for command in (
            lambda: one.renew(),
            lambda: one.yank(1, "x"),
            lambda: one.set_channel("stable", 1),
            lambda: one.publish(bundles[2], "stable"),
        ):
            with pytest.raises(StageFailed):
                command()
        assert content(place) == before

    @pytest.mark.parametrize("name", ["2.snapshot.json", "2.targets.json"])
    def test_what_the_same_keys_signed_for_another_place_is_refused(
        self, name: str, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        twin = shutil.copytree(folder, tmp_path / "twin")
        for number, keys_here, where in ((1, folder, place), (2, twin, tmp_path / "other")):
            publisher(where, keys_here).publish(bundles[0], "stable")
            publisher(where, keys_here).publish(bundles[number], "stable")
        shutil.copy(tmp_path / "other" / "metadata" / name, place / "metadata")
        before = content(place)
        with pytest.raises(RepositoryRejected, match=r"hash|length"):
            publisher(place, folder).renew()
        assert content(place) == before

    @pytest.mark.parametrize("part", [Snapshot, Targets])
    def test_a_part_of_another_version_than_it_is_named_by_is_refused(
        self, part: Any, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        """Whoever has the online key renames what is genuine."""
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        one.publish(bundles[1], "stable")
        metadata = place / "metadata"
        if part is Targets:
            renamed, named_by = "targets", metadata / "2.snapshot.json"
        else:
            renamed, named_by = "snapshot", metadata / "timestamp.json"
        content = (metadata / f"1.{renamed}.json").read_bytes()
        (metadata / f"9.{renamed}.json").write_bytes(content)
        described = MetaFile(9, len(content), {"sha256": hashlib.sha256(content).hexdigest()})
        sign_again(folder, named_by, {f"{renamed}.json": described})
        if part is Targets:
            content = named_by.read_bytes()
            described = MetaFile(2, len(content), {"sha256": hashlib.sha256(content).hexdigest()})
            sign_again(folder, metadata / "timestamp.json", {"snapshot.json": described})
        with pytest.raises(RepositoryRejected, match="version 1 instead of 9"):
            one.renew()

    def test_an_older_timestamp_put_back_is_noticed(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        old = (place / "metadata" / "timestamp.json").read_bytes()
        one.publish(bundles[1], "stable")
        (place / "metadata" / "timestamp.json").write_bytes(old)
        with pytest.raises(RepositoryRejected, match="older files"):
            one.renew()

    def test_a_changed_file_of_a_bundle_is_noticed(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        model = hashlib.sha256((bundles[0] / "model.tflite").read_bytes()).hexdigest()
        (place / "targets" / model).write_bytes(b"other")
        before = content(place)
        with pytest.raises(RepositoryRejected, match="Find out who changed it"):
            one.publish(bundles[1], "stable")
        assert content(place)["metadata/timestamp.json"] == before["metadata/timestamp.json"]

    def test_a_root_of_somebody_else_is_refused(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        other = some_keys(tmp_path / "other")
        keys.rotate(other, "online", now=NOW, passphrase=None)
        shutil.copy(other / "2.root.json", place / "metadata")
        with pytest.raises(RootRejected, match="0 valid signatures by keys of root 1"):
            publisher(place, folder).renew()


def sign_again(folder: Path, path: Path, meta: dict[str, MetaFile]) -> None:
    """Have the online key sign other content of a snapshot or timestamp."""
    metadata: Metadata[Any] = Metadata.from_file(str(path))
    if isinstance(metadata.signed, Snapshot):
        metadata.signed.meta = meta
    else:
        metadata.signed.snapshot_meta = meta["snapshot.json"]
    [key] = read_chain(folder)[-1].keys("online")
    signer = keys.private_key(folder, key, None)
    assert signer is not None
    metadata.sign(signer)
    metadata.to_file(str(path))


class TestLoss:
    """Versions go on above what devices have seen."""

    def test_an_empty_place_is_refused_where_something_was(
        self, folder: Path, place: Path, bundles: list[Path]
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        shutil.rmtree(place)
        with pytest.raises(RepositoryRejected, match="--after-loss"):
            publisher(place, folder).publish(bundles[0], "stable")
        assert content(place) == {}

    def test_after_a_loss_devices_take_what_is_published_again(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        one = publisher(place, folder)
        for bundle in bundles[:3]:
            one.publish(bundle, "stable")
        reader.releases()
        shutil.rmtree(place)
        place.mkdir()
        release = publisher(place, folder, after_loss=0).publish(bundles[1], "stable")
        assert release.number == 1004
        assert reader.releases() == [release]
        again = publisher(place, folder).publish(bundles[2], "beta")  # as ever
        assert again.number == 1005
        publisher(place, folder, after_loss=0).renew()  # nothing is lost: no second jump
        assert one_version(place, folder) == (1006, 1006, 1005)
        assert len(reader.releases()) == 2

    def test_without_memory_a_number_brings_devices_back(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        one = publisher(place, folder)
        for bundle in bundles[:3]:
            one.publish(bundle, "stable")
        reader.releases()
        shutil.rmtree(place)
        (folder / "published.json").unlink()
        publisher(place, folder).publish(bundles[0], "stable")
        with pytest.raises(RepositoryError):  # devices refuse: older than what they saw
            reader.releases()
        publisher(place, folder, after_loss=5000).publish(bundles[0], "stable")
        assert len(reader.releases()) == 1

    @pytest.mark.parametrize("number", [-5, -1, 10**30, 1_000_000_001])
    def test_a_number_that_cannot_be_is_refused(
        self, number: int, folder: Path, place: Path
    ) -> None:
        with pytest.raises(InputRejected, match="--after-loss"):
            publisher(place, folder, after_loss=number)

    def test_an_old_copy_is_noticed_by_whatever_name(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        publisher(place, folder).publish(bundles[0], "stable")
        old = shutil.copytree(place, tmp_path / "old")
        publisher(place, folder).publish(bundles[1], "stable")
        shutil.rmtree(place)
        shutil.copytree(old, place)
        (tmp_path / "link").symlink_to(place)
        for way in (place, tmp_path / "link", old / ".." / place.name):
            with pytest.raises(RepositoryRejected, match="older files"):
                publisher(way, folder).publish(bundles[2], "stable")

    def test_an_old_copy_of_the_repository_is_continued(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader, tmp_path: Path
    ) -> None:
        one = publisher(place, folder)
        one.publish(bundles[0], "stable")
        copy = shutil.copytree(place, tmp_path / "copy")
        one.publish(bundles[1], "stable")
        reader.releases()
        shutil.rmtree(place)
        shutil.copytree(copy, place)
        with pytest.raises(RepositoryRejected, match="older files"):
            one.publish(bundles[1], "stable")
        publisher(place, folder, after_loss=0).publish(bundles[1], "stable")
        assert [release.number for release in reader.releases()] == [1, 1003]

    def test_another_place_continues_the_versions(
        self, folder: Path, place: Path, bundles: list[Path], tmp_path: Path
    ) -> None:
        one = publisher(tmp_path / "first place", folder)
        for bundle in bundles[:3]:
            one.publish(bundle, "stable")
        publisher(place, folder).publish(bundles[0], "stable")
        assert one_version(place, folder) == (4, 4, 4)

    def test_a_new_online_key_makes_devices_forget_the_versions(
        self, folder: Path, place: Path, bundles: list[Path], reader: Reader
    ) -> None:
        """The last resort where nobody knows what devices have seen."""
        one = publisher(place, folder)
        for bundle in bundles[:3]:
            one.publish(bundle, "stable")
        reader.releases()
        shutil.rmtree(place)
        (folder / "published.json").unlink()
        keys.rotate(folder, "online", now=NOW, passphrase=None)
        publisher(place, folder).publish(bundles[0], "stable")
        assert len(reader.releases()) == 1


class TestCommands:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(keys.PASSPHRASE, PASSPHRASE.decode())
        monkeypatch.setenv("PILLTRACK_RELEASES", "releases")
        assert cli.main(["keys", "init"]) == 0

    def test_a_release_from_beta_to_stable_and_back(
        self, bundles: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["publish", str(bundles[0]), "--channel", "stable"]) == 0
        assert cli.main(["publish", str(bundles[1]), "--channel", "beta"]) == 0
        assert cli.main(["channel", "set", "stable", "2"]) == 0
        capsys.readouterr()
        assert cli.main(["releases"]) == 0
        first, one, two = capsys.readouterr().out.splitlines()
        assert first.split() == ["number", "time", "size", "name", "channels"]
        assert one.endswith("tiny     stable")
        assert two.endswith("tiny     beta*, stable*")
        assert cli.main(["yank", "2", "--reason", "confuses strengths"]) == 0
        said = capsys.readouterr()
        assert "stable runs release 1 (tiny)" in said.out
        assert "beta has no release left; devices that run a yanked one go back" in said.err
        assert cli.main(["renew"]) == 0
        assert cli.main(["releases", "--root", "keys/1.root.json", "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert [release["current"] for release in told["releases"]] == [["stable"], []]
        size = sum(path.stat().st_size for path in bundles[0].iterdir())
        assert told["releases"][0]["bytes"] == size
        assert told["releases"][1]["yanked"] == "confuses strengths"

    def test_the_channels_of_the_command_line_are_all(self) -> None:
        assert cli_parts.CHANNELS == CHANNELS

    def test_publish_as_json(self, bundles: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert cli.main(["publish", str(bundles[0]), "--channel", "beta", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["channels"] == {"beta": 1}

    def test_changes_as_json(self, bundles: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["publish", str(bundles[0]), "--channel", "beta"]) == 0

        def told(*words: str) -> Any:
            capsys.readouterr()
            assert cli.main([*words, "--json"]) == 0
            return json.loads(capsys.readouterr().out)

        assert told("channel", "set", "stable", "1")["channels"] == {"beta": 1, "stable": 2}
        assert told("yank", "1", "--reason", "confuses strengths")["yanked"] == "confuses strengths"
        assert [one["number"] for one in told("renew")["releases"]] == [1]

    def test_what_has_ended_is_said_with_what_renews_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cases: list[tuple[str, Days, str]] = [
            ("root", Days(root=1), "(root, timestamp, snapshot): `pilltrack keys renew`"),
            ("online", Days(online=30), "(timestamp, snapshot): `pilltrack renew`"),
        ]
        past = NOW - timedelta(days=40)
        for name, days, said in cases:
            folder, place = tmp_path / name, tmp_path / f"{name} releases"
            keys.init(folder, now=past, passphrase=None, days=days)
            with pytest.raises(RepositoryRejected, match="expired"):
                publisher(place, folder, now=lambda: past).renew()
            assert cli.main(["releases", "--from", str(place), "--keys", str(folder)]) == 0
            assert said in capsys.readouterr().err

    def test_a_clock_that_is_wrong_is_said_and_repaired(
        self, bundles: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        future = NOW + timedelta(days=700)
        ahead = publisher(Path("releases"), Path("keys"), passphrase=PASSPHRASE, now=lambda: future)
        ahead.publish(bundles[0], "stable")
        assert cli.main(["renew"]) == 1
        assert "say so with --clock-is-right" in capsys.readouterr().err
        assert cli.main(["renew", "--clock-is-right"]) == 0
        assert cli.main(["renew"]) == 0

    def test_errors_say_what_to_do(
        self, bundles: list[Path], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        assert cli.main(["publish", "nothing/there", "--channel", "beta"]) == 1
        assert cli.main(["channel", "set", "stable", "1"]) == 1
        assert "no such release" in capsys.readouterr().err
        monkeypatch.delenv(keys.PASSPHRASE)
        assert cli.main(["publish", str(bundles[0]), "--channel", "beta"]) == 1
        assert "Set PILLTRACK_KEY_PASSPHRASE" in capsys.readouterr().err
        monkeypatch.delenv("PILLTRACK_RELEASES")
        assert cli.main(["releases"]) == 1
        assert "Name it with --to" in capsys.readouterr().err
