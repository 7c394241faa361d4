"""Which bundle a device runs, whatever happens to its disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pilltrack.core.errors import BundleRejected, StageFailed
from pilltrack.edge.happenings import MAX_BYTES, utc_now
from pilltrack.edge.slots import (
    MAX_REFUSED,
    MAX_STARTS,
    MAX_TRIES,
    REFUSED_FOR,
    Slots,
    State,
    digest_of_manifest,
    locked,
)
from tests.edge.conftest import noise
from tests.tiny_bundle import tiny_bundle

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = datetime(2099, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for number in range(3):
        directory = tmp_path_factory.mktemp("made")
        made.append(tiny_bundle(directory, f"pill-{number}", noise(number)))
    return made


@pytest.fixture
def slots(tmp_path: Path, bundles: list[Path]) -> Slots:
    """A device with the first bundle in its install, the others in slots."""
    slots = Slots(tmp_path / "home", bundles[0])
    slots.begin()
    for bundle in bundles[1:]:
        shutil.copytree(bundle, slots.slot(digest_of_manifest(bundle)))
    return slots


@pytest.fixture
def digests(bundles: list[Path]) -> list[str]:
    return [digest_of_manifest(bundle) for bundle in bundles[1:]]


def test_a_device_that_never_updated_runs_the_bundle_of_its_install_and_writes_nothing(
    tmp_path: Path, bundles: list[Path]
) -> None:
    slots = Slots(tmp_path / "home", bundles[0])
    assert slots.start() == State()
    assert slots.active() == bundles[0]
    assert slots.happenings(9) == []
    assert not (tmp_path / "home").exists()


def test_a_switch_outlives_the_process_and_is_on_trial_until_it_is_confirmed(
    slots: Slots, digests: list[str], bundles: list[Path]
) -> None:
    slots.switch(digests[0], NOW)
    again = Slots(slots.root.parent, bundles[0])
    state = again.start()
    assert state.active == digests[0]
    assert state.trial is not None
    assert (state.trial.since, state.trial.starts) == (NOW, 1)
    assert again.confirm(digests[0]).trial is None
    assert again.start() == State(active=digests[0])
    assert [happening.kind for happening in slots.happenings(9)] == ["switched", "confirmed"]


def test_a_bundle_that_does_not_survive_its_starts_is_given_up(
    slots: Slots, digests: list[str]
) -> None:
    slots.switch(digests[0], NOW)
    slots.confirm(digests[0])
    slots.switch(digests[1], NOW)
    for _ in range(MAX_STARTS):
        assert slots.start().active == digests[1]
    state = slots.start()
    assert (state.active, state.trial) == (digests[0], None)
    assert state.refuses(digests[1], LATER) == "did not survive its starts"
    last = slots.happenings(1)[0]
    assert (last.kind, last.manifest) == ("rolled back", digests[1])


def test_going_back_skips_what_was_never_confirmed(slots: Slots, digests: list[str]) -> None:
    slots.switch(digests[0], NOW)  # on trial, and then comes the next
    slots.switch(digests[1], NOW)
    assert slots.roll_back(digests[1], "bad").active is None


@pytest.mark.parametrize("file", ["model.tflite", "gallery.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", ["changed", "missing", "empty"])
def test_a_damaged_slot_gives_way_to_the_one_before_at_start(
    file: str, how: str, slots: Slots, digests: list[str]
) -> None:
    for digest in digests:
        slots.switch(digest, NOW)
        slots.confirm(digest)
    path = slots.slot(digests[1]) / file
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else path.read_bytes()[:-1] + b"!")
    assert slots.start().active == digests[0]
    last = slots.happenings(1)[0]
    assert (last.kind, last.reason, last.manifest) == ("rolled back", "damaged", digests[1])
    assert file in last.detail
    assert slots.state().refuses(digests[1], utc_now()) == ""  # it can be fetched anew


def test_a_bundle_under_the_name_of_another_is_damaged(slots: Slots, digests: list[str]) -> None:
    slots.switch(digests[0], NOW)
    shutil.rmtree(slots.slot(digests[0]))
    shutil.copytree(slots.slot(digests[1]), slots.slot(digests[0]))
    assert slots.start().active is None


def test_when_every_slot_is_damaged_the_install_is_left_and_when_that_is_too_it_is_said(
    slots: Slots, digests: list[str], bundles: list[Path], tmp_path: Path
) -> None:
    for digest in digests:
        slots.switch(digest, NOW)
        slots.confirm(digest)
    shutil.rmtree(slots.slot(digests[0]).parent)
    assert slots.start().active is None
    assert [happening.reason for happening in slots.happenings(2)] == ["damaged", "damaged"]
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles[0], damaged)
    (damaged / "model.tflite").write_bytes(b"")
    with pytest.raises(BundleRejected, match=r"model\.tflite: 0 bytes"):
        Slots(tmp_path / "home", damaged).start()


@pytest.mark.parametrize("content", [b"", b"{}x", b'{"format": 2}', b'{"active": "../.."}', b"\0"])
def test_a_damaged_state_is_put_aside_and_the_newest_whole_slot_goes_on_trial(
    content: bytes, slots: Slots, digests: list[str]
) -> None:
    slots.switch(digests[0], NOW)
    slots.confirm(digests[0])
    os.utime(slots.slot(digests[0]), (2e9, 2e9))
    (slots.root / "state.json").write_bytes(content)
    state = slots.start()
    assert (state.active, state.previous) == (digests[0], None)
    assert state.trial is not None
    assert (slots.root / "state.json.damaged").read_bytes() == content
    assert slots.happenings(1)[0].kind == "mended"
    assert slots.start().active == digests[0]


def test_a_lost_state_is_noticed(slots: Slots, digests: list[str]) -> None:
    slots.switch(digests[0], NOW)
    (slots.root / "state.json").unlink()
    (slots.slot(digests[0]) / "gallery.safetensors").write_bytes(b"")
    assert slots.start().active == digests[1]  # not the one that is damaged
    assert slots.happenings(1)[0].detail == "missing"


def test_a_directory_in_place_of_the_state_is_put_aside(slots: Slots, bundles: list[Path]) -> None:
    shutil.rmtree(slots.root / "slots")
    (slots.root / "state.json").unlink()
    (slots.root / "state.json").mkdir()
    assert slots.start() == State()


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no lock can be taken: the file system is read-only."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    return lambda: monkeypatch.setattr("pilltrack.edge.slots.os.open", refuse)


def test_a_device_starts_on_a_disk_that_cannot_be_written(
    slots: Slots, digests: list[str], unwritable: Callable[[], None]
) -> None:
    for digest in digests:
        slots.switch(digest, NOW)
        slots.confirm(digest)
    (slots.slot(digests[1]) / "model.tflite").write_bytes(b"")
    unwritable()
    assert slots.start().active == digests[0]


def test_a_trial_starts_on_a_disk_that_cannot_be_written(
    slots: Slots, digests: list[str], unwritable: Callable[[], None]
) -> None:
    slots.switch(digests[0], NOW)
    unwritable()
    assert slots.start().active == digests[0]


def test_a_state_that_cannot_be_read_costs_the_state_and_not_the_bundle(
    slots: Slots, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slots.switch(digests[0], NOW)
    os.utime(slots.slot(digests[0]), (2e9, 2e9))

    def refuse(_: Slots) -> State:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Slots, "_read", refuse)
    assert slots.start().active == digests[0]


def test_root_does_not_write_into_the_home_of_a_user(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = slots.root.parent.stat().st_uid
    monkeypatch.setattr("pilltrack.edge.slots.os.geteuid", lambda: 0)
    if owner == 0:
        os.chown(slots.root.parent, 12345, -1)
    with (
        pytest.raises(StageFailed, match=r"asked by root.*sudo --user"),
        locked(slots.root / "state.lock"),
    ):
        pass


def test_the_home_is_for_its_owner_alone(tmp_path: Path, bundles: list[Path]) -> None:
    Slots(tmp_path / "new" / "home", bundles[0]).begin()
    assert (tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "home" / "updates").stat().st_mode & 0o777 == 0o700


def test_starts_that_were_survived_do_not_count_and_what_was_watched_does(
    slots: Slots, digests: list[str]
) -> None:
    slots.switch(digests[0], NOW)
    for _ in range(3 * MAX_STARTS):
        assert slots.start().active == digests[0]
        trial = slots.survived(digests[0], 20.0).trial
    assert trial is not None
    assert (trial.starts, trial.watched_s) == (0, 60.0 * MAX_STARTS)
    assert slots.survived(digests[1], 5.0).trial == trial


def test_confirming_or_giving_up_what_is_not_active_changes_nothing(
    slots: Slots, digests: list[str]
) -> None:
    state = slots.switch(digests[0], NOW)
    assert slots.confirm(digests[1]) == state
    assert slots.roll_back(digests[1], "late") == state
    assert slots.switch(digests[0], NOW) == state
    assert len(slots.happenings(9)) == 1


def test_a_bundle_is_tried_twice_and_after_a_week_or_by_another_version_again(
    slots: Slots, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(MAX_TRIES):
        assert slots.state().refuses(digests[0], utc_now()) == ""
        slots.refuse(digests[0], "self-test failed")
    state = slots.state()
    assert state.refuses(digests[0], utc_now()) == "self-test failed"
    assert state.refuses(digests[0], utc_now() + REFUSED_FOR) == ""
    with monkeypatch.context() as patch:
        patch.setattr("pilltrack.edge.slots.__version__", "99.0")
        assert state.refuses(digests[0], utc_now()) == ""
    slots.forgive()
    assert slots.state().refused == {}


def test_refusals_and_the_record_do_not_grow_without_end(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(MAX_REFUSED + 5):
        slots.refuse(f"{number:064x}", "bad")
    refused = slots.state().refused
    assert len(refused) == MAX_REFUSED
    assert f"{0:064x}" not in refused
    monkeypatch.setattr("pilltrack.edge.happenings.MAX_BYTES", 5000)
    for number in range(200):
        slots.record("failed", "no answer", None, f"number {number}")
    assert (slots.root / "events.jsonl").stat().st_size < 10_000 < MAX_BYTES
    assert slots.happenings(1)[0].detail == "number 199"


def test_a_torn_line_of_the_record_is_left_out(slots: Slots) -> None:
    slots.record("failed", "no answer")
    with (slots.root / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "20\n')
    slots.record("failed", "too slow")
    assert [happening.reason for happening in slots.happenings(9)] == ["no answer", "too slow"]


def test_pruning_keeps_the_active_and_the_one_before(
    slots: Slots, digests: list[str], bundles: list[Path]
) -> None:
    slots.switch(digests[0], NOW)
    slots.prune()
    assert [path.name for path in slots.slot(digests[0]).parent.iterdir()] == [digests[0]]
    assert slots.bundles() == [slots.slot(digests[0]), bundles[0]]


def test_many_processes_change_the_state_in_turn(slots: Slots, bundles: list[Path]) -> None:
    context = multiprocessing.get_context("spawn")
    home = slots.root.parent
    others = [context.Process(target=_refuse, args=(home, bundles[0], n)) for n in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(slots.state().refused) == 40
    assert len(slots.happenings(99)) == 40


def _refuse(home: Path, install: Path, number: int) -> None:
    for turn in range(10):
        Slots(home, install).refuse(f"{10 * number + turn:064x}", "bad")
