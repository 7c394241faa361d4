"""Updates of a device: a whole bundle or none, and the one before serves when anything fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import numpy as np
import pytest

from pilltrack.core.bundle import FileRecord, read_bundle
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.local import LocalReferences
from pilltrack.core.probes import read_probes, save_probes
from pilltrack.edge import fetch, updater
from pilltrack.edge.selftest import SelfTest, self_test_apart
from pilltrack.edge.slots import digest_of_manifest, locked
from pilltrack.edge.source import UpdateSource, join, leave, source_of
from pilltrack.pipeline import keys
from pilltrack.pipeline.roots import Role
from tests.edge.conftest import red
from tests.edge.files_server import Answer, cut_off, dripping, endless, giving, saying
from tests.edge.fleet import Fleet, fleet, make_bundles, make_keys, now
from tests.tiny_bundle import tiny_bundle

Usage = namedtuple("Usage", "total used free")
Listed = namedtuple("Listed", "files name")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_bundles(tmp_path_factory.mktemp("bundles"), 4)


@pytest.fixture
def fleet_(tmp_path: Path, bundles: list[Path]) -> Iterator[Fleet]:
    with fleet(tmp_path, bundles) as made:
        yield made


@pytest.fixture
def served(fleet_: Fleet) -> Fleet:
    """A device that runs the first release; the second is published."""
    fleet_.publish(1)
    assert fleet_.update().kind == "switched"
    fleet_.slots.confirm(fleet_.slots.state().active)
    fleet_.publish(2)
    fleet_.files.asked.clear()
    return fleet_


def test_a_published_bundle_becomes_the_active_one_on_trial(fleet_: Fleet) -> None:
    assert fleet_.active() == "pill-0"
    digest = fleet_.publish(1)
    assert fleet_.update(only_ask=True).kind == "available"
    assert fleet_.active() == "pill-0"
    outcome = fleet_.update()
    assert outcome.kind == "switched"
    assert outcome.release is not None
    assert (outcome.release.number, outcome.release.manifest) == (1, digest)
    assert fleet_.active() == "pill-1"
    assert fleet_.slots.state().trial is not None
    assert fleet_.update().kind == "current"
    assert fleet_.update(only_ask=True).kind == "current"


def test_only_what_changed_is_fetched(served: Fleet) -> None:
    assert served.update().kind == "switched"
    manifest = json.loads((served.bundles[2] / "manifest.json").read_bytes())
    before = json.loads((served.bundles[1] / "manifest.json").read_bytes())
    old = {record["sha256"] for record in before["files"].values()}
    new = {record["sha256"] for record in manifest["files"].values()} - old
    assert 0 < len(new) < len(manifest["files"])
    expected = {f"/targets/{sha256}" for sha256 in {*new, digest_of_manifest(served.bundles[2])}}
    assert set(served.files.fetched()) == expected
    assert not (served.slots.root / "files").exists()


def test_what_the_install_already_has_is_not_fetched(fleet_: Fleet) -> None:
    fleet_.publish(0)
    assert fleet_.update().kind == "switched"
    assert len(fleet_.files.fetched()) == 1  # the manifest
    assert fleet_.slots.slot(fleet_.slots.state().active) != fleet_.bundles[0]


def test_only_two_slots_are_kept(served: Fleet) -> None:
    served.update()
    served.slots.confirm(served.slots.state().active)
    served.publish(3)
    served.update()
    kept = {path.name for path in (served.slots.root / "slots").iterdir()}
    assert kept == {digest_of_manifest(served.bundles[number]) for number in (2, 3)}


def test_a_channel_that_goes_back_takes_the_device_along(served: Fleet) -> None:
    served.update()
    served.publisher().set_channel("stable", 1)
    assert served.update().kind == "switched"
    assert served.active() == "pill-1"


def test_a_yanked_release_gives_way_to_the_one_before(served: Fleet) -> None:
    served.update()
    served.slots.confirm(served.slots.state().active)
    served.publisher().yank(2, "names the wrong pill")
    assert served.update().kind == "switched"
    assert served.active() == "pill-1"
    # Nor is the yanked one what the device goes back to.
    assert served.slots.roll_back(served.slots.state().active, "bad").active is None


def test_when_all_is_yanked_the_bundle_of_the_install_is_left(served: Fleet) -> None:
    served.update()
    served.publisher().yank(1, "bad")
    served.publisher().yank(2, "names the wrong pill")
    assert served.update().reason == "no release in this channel"
    assert served.active() == "pill-0"
    assert [h.reason for h in served.slots.happenings(2)] == ["yanked", served.last()[1]]


def test_a_beta_is_for_those_who_follow_beta(served: Fleet) -> None:
    served.publisher().publish(served.bundles[3], "beta")
    assert served.update().release is not None
    assert served.active() == "pill-2"
    served.source = served.source.model_copy(update={"channel": "beta"})
    served.update()
    assert served.active() == "pill-3"


def test_a_stick_will_do(served: Fleet) -> None:
    served.source = UpdateSource(url=str(served.releases))
    assert served.update().kind == "switched"
    assert served.files.asked == []


def test_rotated_keys_are_followed_from_the_first_root(served: Fleet) -> None:
    roles: tuple[Role, ...] = ("online", "targets", "root")
    for role in roles:
        keys.rotate(served.directory / "keys", role, now=now(), passphrase=None)
        served.publisher().renew()
    served.publish(3)
    assert served.update().kind == "switched"
    assert served.active() == "pill-3"


# Attacks and faults: the bundle before serves, and what happened is on record.


def keeps_serving(served: Fleet, reason: str, detail: str = "", kind: str = "failed") -> None:
    """Whatever was done, the device still runs the first release and says why."""
    outcome = served.update()
    assert (outcome.kind, outcome.reason) == (kind, reason)
    assert detail in outcome.detail
    assert served.last() == (kind, reason)
    assert served.active() == "pill-1"
    assert not (served.slots.root / "new").exists()


def timestamp(served: Fleet) -> Path:
    return served.releases / "metadata" / "timestamp.json"


def blob(served: Fleet, name: str, number: int = 2) -> Path:
    manifest = json.loads((served.bundles[number] / "manifest.json").read_bytes())
    return served.releases / "targets" / str(manifest["files"][name]["sha256"])


def test_a_tampered_file(served: Fleet) -> None:
    path = blob(served, "gallery.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    keeps_serving(served, "damaged", "SHA-256")


def test_a_tampered_manifest(served: Fleet) -> None:
    path = served.releases / "targets" / digest_of_manifest(served.bundles[2])
    path.write_bytes(path.read_bytes().replace(b"pill-2", b"pill-9"))
    keeps_serving(served, "damaged", "SHA-256")


def test_a_gallery_swapped_for_that_of_another_release(served: Fleet) -> None:
    shutil.copyfile(blob(served, "gallery.safetensors", 1), blob(served, "gallery.safetensors", 2))
    keeps_serving(served, "damaged", "SHA-256")


def test_a_model_and_a_gallery_that_the_publisher_mixed_up(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even signed: a manifest of one embedding space, a gallery of another."""
    mixed = served.directory / "mixed"
    shutil.copytree(served.bundles[2], mixed)
    manifest = json.loads((mixed / "manifest.json").read_bytes())
    manifest["space"] = "0" * 64
    (mixed / "manifest.json").write_text(json.dumps(manifest))
    publish_unchecked(served, mixed, monkeypatch)
    keeps_serving(served, "bundle rejected", "embedding space", kind="refused")


def test_a_bundle_of_a_newer_format(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = served.directory / "newer"
    shutil.copytree(served.bundles[2], newer)
    manifest = json.loads((newer / "manifest.json").read_bytes())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "format": 99, "new": 1}))
    publish_unchecked(served, newer, monkeypatch)
    served.files.asked.clear()
    keeps_serving(served, "needs a newer PillTrack", "format 99", kind="refused")
    assert len(served.files.fetched()) == 1


def test_an_old_signed_release_forced_again(fleet_: Fleet) -> None:
    fleet_.publish(2)
    old = fleet_.save_releases("old")
    fleet_.publish(1)
    assert fleet_.update().kind == "switched"
    fleet_.slots.confirm(fleet_.slots.state().active)
    fleet_.put_back(old)
    keeps_serving(fleet_, "older than what was seen")


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_old_metadata_under_a_new_timestamp(role: str, served: Fleet) -> None:
    for path in (served.releases / "metadata").glob(f"2.{role}.json"):
        shutil.copyfile(path.with_name(f"1.{role}.json"), path)
    keeps_serving(served, "damaged")


def test_a_frozen_timestamp_is_noticed_once_it_ends(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone shows the device the same metadata for ever, and keeps the second release back."""
    with monkeypatch.context() as patch:
        set_clock(patch, now() + timedelta(days=40))
        keeps_serving(served, "expired", "nothing newer is published")
    served.publisher().renew()
    assert served.update().kind == "switched"


def test_metadata_that_never_ends(served: Fleet) -> None:
    served.files.answers["/metadata/timestamp.json"] = endless
    keeps_serving(served, "too long")


def test_a_file_that_never_ends(served: Fleet) -> None:
    served.files.answers[f"/targets/{blob(served, 'gallery.safetensors').name}"] = endless
    keeps_serving(served, "damaged", "longer than")


def test_a_root_that_never_ends(served: Fleet) -> None:
    served.files.answers["/metadata/2.root.json"] = endless
    keeps_serving(served, "too long")


def test_a_server_that_drips(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "WINDOW_S", 0.2)
    served.files.answers["/metadata/timestamp.json"] = dripping(0.05)
    keeps_serving(served, "too slow")


def test_another_publisher_with_keys_of_his_own(served: Fleet, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    with fleet(tmp_path / "evil", served.bundles) as evil:
        evil.publish(3)
        for _ in range(5):  # with higher versions than the device has seen
            evil.publisher().renew()
        served.put_back(evil.save_releases("copy"))
    keeps_serving(served, "not signed by whom this device trusts")


def test_a_root_of_another_publisher(served: Fleet, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other", now())
    keys.rotate(tmp_path / "other", "online", now=now(), passphrase=None)
    shutil.copyfile(other.with_name("2.root.json"), served.releases / "metadata" / "2.root.json")
    keeps_serving(served, "not signed by whom this device trusts")


@pytest.mark.parametrize("after", [0, 20])
def test_a_truncated_download_goes_on_with_the_next_update(after: int, served: Fleet) -> None:
    path = f"/targets/{blob(served, 'gallery.safetensors').name}"
    served.files.answers[path] = cut_off(after)
    keeps_serving(served, "no answer")
    served.files.answers.clear()
    assert served.update().kind == "switched"
    assert (path, f"bytes={after * fetch.TRIES}-" if after else "") in served.files.asked


@pytest.mark.parametrize("answer", [saying(500), saying(403), giving(b""), giving(b"<html>")])
def test_a_server_that_answers_nonsense(answer: Answer, served: Fleet) -> None:
    served.files.answers["/metadata/timestamp.json"] = answer
    outcome = served.update()
    assert outcome.kind == "failed"
    assert outcome.reason in ("no answer", "not signed by whom this device trusts")
    assert served.active() == "pill-1"


def test_nobody_answers_for_months(served: Fleet) -> None:
    served.source = UpdateSource(url="http://127.0.0.1:9")
    for _ in range(3):
        keeps_serving(served, "no answer", "127.0.0.1 does not answer")


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_fetched(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = updater.RESERVE_BYTES + 5000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - small, small))
    keeps_serving(served, "disk is full", "are free")
    assert len(served.files.fetched()) == 1  # the manifest fits


def test_a_disk_that_fills_up_on_the_way(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: a file system of half a megabyte."""
    updates, real = served.slots.root, served.directory / "real"
    monkeypatch.setattr(updater, "RESERVE_BYTES", -(10**12))
    updates.rename(real)
    updates.mkdir()
    size = sum(path.stat().st_size for path in real.rglob("*") if path.is_file()) + 80_000
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(updates)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system")
    try:
        shutil.copytree(real, updates, symlinks=True, dirs_exist_ok=True)
        filler = updates / "filler"
        free = shutil.disk_usage(updates).free
        filler.write_bytes(b"x" * max(0, free - 12_000))
        outcome = served.update()
        assert (outcome.kind, outcome.reason) == ("failed", "disk is full")
        assert served.active() == "pill-1"
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(updates)], check=True)
        assert served.update().kind == "switched"
        assert served.active() == "pill-2"
    finally:
        subprocess.run(["umount", "-l", str(updates)], check=True)


@pytest.mark.parametrize("years", [1, 10, 50])
def test_a_clock_that_is_years_behind(years: int, served: Fleet) -> None:
    wrong = now() - timedelta(days=365 * years)
    outcome = served.update(time=wrong)
    assert (outcome.kind, outcome.reason) == ("failed", "clock is wrong")
    assert "set the clock" in outcome.detail
    assert served.last() == ("failed", "clock is wrong")
    assert served.active() == "pill-1"
    assert served.update().kind == "switched"


def test_a_clock_that_is_years_ahead_finds_everything_expired(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, datetime(2046, 1, 1, tzinfo=UTC))
    keeps_serving(served, "expired", "this device's clock")
    monkeypatch.undo()
    assert served.update().kind == "switched"


def test_a_bundle_that_fails_its_self_test_is_tried_twice_and_no_more(served: Fleet) -> None:
    def failing(_: Path) -> SelfTest:
        return SelfTest(passed=False, failures=("probe 1: cosine 0.2",))

    served.self_test = failing
    for _ in range(2):
        keeps_serving(served, "self-test failed", "probe 1: cosine 0.2", kind="refused")
    served.files.asked.clear()
    outcome = served.update()
    assert (outcome.kind, outcome.reason) == ("refused", "self-test failed")
    assert "was tried before" in outcome.detail
    assert served.files.fetched() == []
    assert len(served.slots.happenings(99)) == 4  # the third is no news
    served.publish(3)  # a newer release is another matter
    served.self_test = lambda _: SelfTest(passed=True, failures=())
    assert served.update().kind == "switched"


def test_a_bundle_that_promises_what_it_does_not_keep_never_serves(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real self-test, in a process of its own."""
    served.self_test = lambda slot: self_test_apart(slot, served.home, 60_000.0)
    false = served.directory / "false"
    shutil.copytree(served.bundles[2], false)
    probes = read_probes(false / "probes.safetensors")
    save_probes(replace(probes, embeddings=-probes.embeddings), false / "probes.safetensors")
    manifest = json.loads((false / "manifest.json").read_bytes())
    content = (false / "probes.safetensors").read_bytes()
    manifest["files"]["probes.safetensors"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (false / "manifest.json").write_text(json.dumps(manifest))
    served.publisher().publish(false, "stable")
    keeps_serving(served, "self-test failed", "probe 1", kind="refused")


def test_a_bundle_that_is_too_slow_here_never_serves(served: Fleet) -> None:
    served.self_test = lambda slot: self_test_apart(slot, served.home, 0.000001)
    keeps_serving(served, "self-test failed", "at most 1e-06 allowed", kind="refused")
    served.self_test = lambda slot: self_test_apart(slot, served.home, 60_000.0)
    assert served.update().kind == "switched"


def test_a_pill_of_this_device_that_looks_like_one_of_the_new_bundle_is_on_record(
    served: Fleet, tmp_path: Path
) -> None:
    with LocalReferences(served.home) as local:
        local.add("mine", [("mine.png", red())], "front")
    served.publisher().publish(tiny_bundle(tmp_path, "theirs", red()), "stable")
    assert served.update().kind == "switched"
    [said] = [h for h in served.slots.happenings(9) if h.kind == "collision"]
    assert "mine" in said.detail
    assert "theirs" in said.detail
    with LocalReferences(served.home) as local:
        assert local.pills() == {"mine": 1}


def test_joining_waits_for_an_update_and_leaving_does_not(served: Fleet) -> None:
    root = (served.directory / "keys" / "1.root.json").read_bytes()
    with locked(served.slots.root / "update.lock"):
        with pytest.raises(StageFailed, match="another update is running"):
            join(served.slots, UpdateSource(url="https://other.example.org"), root)
        assert source_of(served.slots) is not None
        leave(served.slots)
    assert source_of(served.slots) is None


def test_a_corrupt_current_slot_is_left_at_start_and_fetched_again(served: Fleet) -> None:
    served.update()
    served.slots.confirm(served.slots.state().active)
    active = served.slots.active()
    (active / "gallery.safetensors").write_bytes(b"")
    assert served.active() == "pill-1"
    assert served.last() == ("rolled back", "damaged")
    assert served.update().kind == "switched"
    assert served.active() == "pill-2"


def test_two_updates_at_once_are_one(served: Fleet) -> None:
    begun, go_on = threading.Event(), threading.Event()
    really = served.self_test

    def waiting(slot: Path) -> SelfTest:
        begun.set()
        assert go_on.wait(20)
        return really(slot)

    served.self_test = waiting
    outcomes: list[str] = []
    first = threading.Thread(target=lambda: outcomes.append(served.update().kind))
    first.start()
    assert begun.wait(20)
    second = served.update()
    assert (second.kind, second.reason) == ("failed", "another update is running")
    assert served.last() == ("failed", "another update is running")
    go_on.set()
    first.join()
    assert outcomes == ["switched"]
    assert served.active() == "pill-2"


def test_what_a_killed_update_left_is_cleared_away(served: Fleet) -> None:
    (served.slots.root / "metadata" / "tmpabc").write_bytes(b"half")
    (served.slots.root / "new").mkdir()
    (served.slots.root / "new" / "model.tflite").write_bytes(b"half")
    assert served.update().kind == "switched"
    assert not (served.slots.root / "metadata" / "tmpabc").exists()


def test_an_error_of_the_disk_is_on_record(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "copyfile", broken)
    keeps_serving(served, "disk fails", "Input/output error")


@pytest.mark.parametrize("made_wrong", [b"", b"{}", b"x" * 600_000])
def test_what_is_no_root_is_not_joined(made_wrong: bytes, fleet_: Fleet) -> None:
    before = source_of(fleet_.slots)
    with pytest.raises(InputRejected, match=r"root"):
        join(fleet_.slots, UpdateSource(url="https://other.example.org"), made_wrong)
    assert source_of(fleet_.slots) == before


def test_a_damaged_home_is_no_fault_of_the_bundle(served: Fleet) -> None:
    def failing(_: Path) -> SelfTest:
        return SelfTest(passed=False, failures=("a photo is missing",), of_home=True)

    really, served.self_test = served.self_test, failing
    for _ in range(3):
        keeps_serving(served, "home is damaged", "a photo is missing")
    served.self_test = really
    assert served.update().kind == "switched"


def test_a_yanked_bundle_is_left_though_the_one_that_follows_it_is_refused(
    served: Fleet,
) -> None:
    served.slots.refuse(digest_of_manifest(served.bundles[2]), "bad")
    served.slots.refuse(digest_of_manifest(served.bundles[2]), "bad")
    served.publisher().yank(1, "names the wrong pill")
    assert served.update().kind == "refused"
    assert served.active() == "pill-0"
    assert served.last() == ("rolled back", "yanked")


def test_a_release_from_the_future_can_be_yanked(served: Fleet) -> None:
    """A publisher whose clock was wrong: the fleet must not be lost for it."""
    wrong = now() + timedelta(days=20)
    served.clock = lambda: wrong
    served.publish(3)
    assert served.update().reason == "clock is wrong"
    served.publisher().yank(3, "published with a wrong clock")
    assert served.update().kind == "switched"
    assert served.active() == "pill-2"


def test_downloads_of_refused_releases_do_not_pile_up(served: Fleet, tmp_path: Path) -> None:
    served.self_test = lambda _: SelfTest(passed=False, failures=("bad",))
    sizes = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        pill = tiny_bundle(tmp_path / str(number), f"another-{number}", red())
        served.publisher().publish(pill, "stable")
        assert served.update().reason == "self-test failed"
        sizes.append(sum(1 for _ in (served.slots.root / "files").iterdir()))
    assert sizes[-1] <= sizes[0] + 1


def test_embeddings_of_spaces_that_no_bundle_here_has_are_forgotten(served: Fleet) -> None:
    with LocalReferences(served.home) as local:
        local.add("mine", [("mine.png", red())], "front")
        digest = local.kept()[0].crop
        local.remember("0" * 64, [digest], np.zeros((1, 8), np.float32))
    assert spaces_of(served.home) == {"0" * 64}
    assert served.update().kind == "switched"
    assert spaces_of(served.home) == {read_bundle(served.bundles[2]).space}


@pytest.mark.parametrize("signed", [True, False])
def test_a_root_that_its_own_keys_have_not_signed_is_not_joined(
    signed: bool, served: Fleet
) -> None:
    root = json.loads((served.directory / "keys" / "1.root.json").read_bytes())
    if not signed:
        root["signatures"] = []
    else:
        root["signed"]["expires"] = "2099-01-01T00:00:00Z"
    with pytest.raises(InputRejected, match="signed by its own keys"):
        join(served.slots, served.source, json.dumps(root).encode())


def test_another_publisher_may_begin_at_lower_versions(served: Fleet, tmp_path: Path) -> None:
    for _ in range(3):
        served.publisher().renew()
    served.update()
    (tmp_path / "other").mkdir()
    with fleet(tmp_path / "other", served.bundles) as other:
        other.publish(3)
        root = (other.directory / "keys" / "1.root.json").read_bytes()
        join(served.slots, other.source, root)
        served.source = other.source
        assert served.update().kind == "switched"
    assert served.active() == "pill-3"


def test_what_lies_among_the_metadata_is_no_anchor_of_trust(served: Fleet, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    with fleet(tmp_path / "evil", served.bundles) as evil:
        evil.publish(3)
        served.put_back(evil.save_releases("copy"))
        root = (evil.directory / "keys" / "1.root.json").read_bytes()
    for path in (served.slots.root / "metadata").rglob("*.json"):
        path.unlink()
    (served.slots.root / "metadata" / "root.json").write_bytes(root)
    (served.slots.root / "metadata" / "root_history" / "1.root.json").write_bytes(root)
    keeps_serving(served, "not signed by whom this device trusts")


def test_a_manifest_or_a_file_that_no_device_can_hold_is_not_fetched(
    served: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(updater, "MAX_MANIFEST_BYTES", 100)
        keeps_serving(served, "too long", "a manifest of", kind="refused")
    with monkeypatch.context() as patch:
        patch.setattr(updater, "MAX_FILE_BYTES", 100)
        keeps_serving(served, "too long", "a file of more than", kind="refused")


def test_leaving_keeps_the_bundle(served: Fleet) -> None:
    leave(served.slots)
    assert source_of(served.slots) is None
    assert served.active() == "pill-1"


def test_a_source_that_says_nothing_is_an_error(served: Fleet) -> None:
    (served.slots.root / "source.json").write_text('{"url": 5}')
    with pytest.raises(StageFailed, match=r"source\.json"):
        source_of(served.slots)


def test_a_damaged_cache_of_metadata_is_fetched_again(served: Fleet) -> None:
    for path in (served.slots.root / "metadata").glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"")
    assert served.update().kind == "switched"


def set_clock(patch: pytest.MonkeyPatch, time: datetime) -> None:
    """The clock by which The Update Framework judges what has expired."""
    import tuf.ngclient._internal.trusted_metadata_set as theirs

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls.fromtimestamp(time.timestamp(), UTC)

    patch.setattr(theirs.datetime, "datetime", Clock)


def publish_unchecked(served: Fleet, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish what no publisher would: his tools do not look at it."""
    content = json.loads((bundle / "manifest.json").read_bytes())
    files = {name: FileRecord(**file) for name, file in content["files"].items()}
    manifest = Listed(files, content["name"])
    with monkeypatch.context() as patch:
        patch.setattr("pilltrack.pipeline.publish.read_bundle", lambda _: manifest)
        patch.setattr("pilltrack.pipeline.publish.private_copy", nullcontext)
        served.publisher().publish(bundle, "stable")


def spaces_of(home: Path) -> set[str]:
    with sqlite3.connect(home / "references.sqlite") as database:
        return {space for (space,) in database.execute("SELECT space FROM embedding")}
