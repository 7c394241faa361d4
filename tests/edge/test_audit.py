"""What is on record stays as it was written, or `verify` says from which row on it does not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.core.local import digest_of
from pilltrack.edge import audit
from pilltrack.edge.audit import AuditLog, Head, parse_head
from tests.edge.records import NOON, noise, override, record

N_KILLS = 4
WRITER = """
import sys
from pathlib import Path
from pilltrack.edge.audit import AuditLog
from tests.edge.records import noise, record
home, name = Path(sys.argv[1]), sys.argv[2]
with AuditLog(home) as log:
    for i in range(1000):
        crop = noise(i)
        log.append(record(crop, bundle=f"{name}-{i}"), [crop])
        print(f"{name}-{i}", flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_decisions_come_back_as_written_the_newest_first(home: Path) -> None:
    one, two, empty = record(noise(1)), record(noise(1), noise(2), bundle="b"), record()
    with AuditLog(home) as log:
        assert log.append(one, [noise(1)]) == 1
        assert log.append(two, [noise(1), noise(2)]) == 2
    with AuditLog(home) as log:
        assert log.append(empty, []) == 3
        assert [(entry.id, entry.record) for entry in log.records()] == [
            (3, empty),
            (2, two),
            (1, one),
        ]
        assert [entry.id for entry in log.records(limit=1)] == [3]
        assert [entry.id for entry in log.records(limit=2, before=3)] == [2, 1]
        assert log.records(before=1) == log.records(limit=0) == []
        assert log.entry(2) == log.records()[1]


def test_overrides_come_back_as_written_and_are_no_decisions(home: Path) -> None:
    one, two = override("aspirin"), override("ibuprofen")
    with AuditLog(home) as log:
        assert log.add_override(one) == 1
        log.append(record(), [])
        assert log.add_override(two) == 3
        assert log.overrides() == [(3, two), (1, one)]
        assert log.overrides(limit=1) == [(3, two)]
        assert [entry.id for entry in log.records()] == [2]
        with pytest.raises(InputRejected, match="not on record"):
            log.entry(1)
        assert log.verify().id == 3
    tamper(home, "UPDATE entry SET content = replace(content, 'the last one', 'x') WHERE id = 1")
    with AuditLog(home) as log:
        with pytest.raises(StageFailed, match="row 1: changed"):
            log.overrides()
        with pytest.raises(StageFailed, match="row 1: changed"):
            log.verify()


def test_row_holds_canonical_json_and_the_hash_of_all_before_it(home: Path) -> None:
    with AuditLog(home) as log:
        log.append(record(noise(1)), [noise(1)])
        log.add_action(1, "confirmed", "looks \u00e9qual", time=NOON)
        head = log.head()
    rows = execute(home, "SELECT id, previous, hash, content FROM entry ORDER BY id")
    before = "0" * 64
    for number, (row_id, previous, digest, content) in enumerate(rows, 1):
        text = f"{number}\n{before}\n{content}"
        assert (row_id, previous) == (number, before)
        assert digest == hashlib.sha256(text.encode()).hexdigest()
        plain = json.dumps(
            json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        assert content == plain
        before = digest
    assert head == Head(2, before)
    assert '"score":0.30000000000000004' in rows[0][3]
    assert '"time":"2026-01-31T12:00:00.000250Z"' in rows[0][3]
    assert rows[1][3] == (
        '{"action":{"action":"confirmed","decision":1,"note":"looks \u00e9qual",'
        '"time":"2026-01-31T12:00:00.000250Z"}}'
    )


def test_action_stands_with_its_decision(home: Path) -> None:
    with AuditLog(home) as log:
        for _ in range(2):
            log.append(record(), [])
        assert log.add_action(1, "overridden", "double-checked", time=NOON) == 3
        assert log.add_action(1, "confirmed", time=NOON + timedelta(seconds=5)) == 4
        done = [(action.action, action.note) for action in log.entry(1).actions]
        assert done == [("overridden", "double-checked"), ("confirmed", "")]
        assert [len(entry.actions) for entry in log.records()] == [0, 2]
        assert [entry.id for entry in log.records(before=4)] == [2, 1]


@pytest.mark.parametrize("number", [0, 2, 3, -1, 2**70])
def test_number_of_no_decision_is_refused(number: int, home: Path) -> None:
    with AuditLog(home) as log:
        log.append(record(), [])
        log.add_action(1, "confirmed", time=NOON)  # row 2 is no decision
        with pytest.raises(InputRejected, match=f"decision {number}: not on record"):
            log.entry(number)
        with pytest.raises(InputRejected, match="not on record"):
            log.add_action(number, "confirmed", time=NOON)
        assert log.verify().id == 2


@pytest.mark.parametrize(
    ("action", "note"),
    [("", ""), ("x" * 101, ""), ("x", "n" * 2001), ("\udcff", ""), ("x", "\udcff")],
)
def test_impossible_action_is_refused_and_not_added(action: str, note: str, home: Path) -> None:
    with AuditLog(home) as log:
        log.append(record(), [])
        with pytest.raises(InputRejected, match="at most 100 characters"):
            log.add_action(1, action, note, time=NOON)
        assert log.head().id == 1


@pytest.mark.parametrize(
    "time", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))]
)
def test_time_that_is_not_utc_is_refused(time: datetime, home: Path) -> None:
    with AuditLog(home) as log:
        log.append(record(), [])
        with pytest.raises(ValueError, match="UTC"):
            log.add_action(1, "confirmed", time=time)


def test_whole_log_is_verified_and_gives_its_head(home: Path) -> None:
    with AuditLog(home) as log:
        assert log.verify() == log.head() == Head(0, "0" * 64)
        log.append(record(), [])
        first = log.verify()
        log.append(record(), [])
        assert first.id == 1
        assert log.verify(first) == log.verify(log.head()) == log.head() != first


def test_more_rows_than_are_read_at_once_are_verified(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "VERIFY_ROWS", 2)
    four_rows(home)
    with AuditLog(home) as log:
        assert log.verify().id == 4
    tamper(home, "UPDATE entry SET content = replace(content, 'b3', 'b9') WHERE id = 3")
    with AuditLog(home) as log, pytest.raises(StageFailed, match="row 3: changed"):
        log.verify()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE entry SET content = replace(content, 'b2', 'b9') WHERE id = 2", "row 2: changed"),
        ("UPDATE entry SET content = content || ' ' WHERE id = 2", "row 2: changed"),
        ("UPDATE entry SET hash = replace(hash, 'a', 'b') WHERE id = 2", "row 2: changed"),
        ("UPDATE entry SET previous = 'x' WHERE id = 2", "row 2: follows a row of hash x"),
        ("DELETE FROM entry WHERE id = 1", "row 1: gone, 2 is next"),
        ("DELETE FROM entry WHERE id = 2", "row 2: gone, 3 is next"),
        ("DELETE FROM entry WHERE id IN (2, 3)", "row 2: gone, 4 is next"),
        ("DELETE FROM entry WHERE id = 2; UPDATE entry SET id = 2 WHERE id = 3;"
         "UPDATE entry SET id = 3 WHERE id = 4", "row 2: follows"),
        ("UPDATE entry SET id = 9 WHERE id = 2; UPDATE entry SET id = 2 WHERE id = 3;"
         "UPDATE entry SET id = 3 WHERE id = 9", "row 2: follows"),
        ("UPDATE entry SET id = id + 10; UPDATE entry SET id = id - 9", "row 1: gone"),
        ("INSERT INTO entry SELECT 0, previous, hash, content FROM entry WHERE id = 1",
         "row 0: slipped in"),
        ("INSERT INTO entry SELECT -7, previous, hash, content FROM entry WHERE id = 1",
         "row -7: slipped in"),
        ("INSERT INTO entry SELECT 5, previous, hash, content FROM entry WHERE id = 4",
         "row 5: follows"),
    ],
)  # fmt: skip
def test_tampering_is_found_at_its_first_row(sql: str, message: str, home: Path) -> None:
    four_rows(home)
    tamper(home, sql)
    with AuditLog(home) as log, pytest.raises(StageFailed, match=f"{message}.*cannot be trusted"):
        log.verify()


def test_row_that_was_hashed_again_no_longer_holds_the_next_one(home: Path) -> None:
    four_rows(home)
    rehash(home, 2, lambda content: content.replace("b2", "b9"))
    with AuditLog(home) as log, pytest.raises(StageFailed, match="row 3: follows"):
        log.verify()


def test_row_that_is_no_record_is_found(home: Path) -> None:
    four_rows(home)
    rehash(home, 4, lambda content: content.replace("threshold", "treshold"))
    with AuditLog(home) as log, pytest.raises(StageFailed, match="row 4: no record"):
        log.verify()


def test_end_that_was_cut_off_is_seen_only_by_who_kept_the_head(home: Path) -> None:
    kept = four_rows(home)
    tamper(home, "DELETE FROM entry WHERE id > 2")
    with AuditLog(home) as log:
        assert log.verify().id == 2
        with pytest.raises(StageFailed, match="row 4: cut off"):
            log.verify(kept)
        for _ in range(2):
            log.append(record(bundle="new"), [])  # as long as it was
        assert log.verify().id == 4
        with pytest.raises(StageFailed, match=f"row 4: hash .*; expected {kept.hash}"):
            log.verify(kept)


def test_head_is_written_down_and_read_back(home: Path) -> None:
    head = four_rows(home)
    assert str(head) == f"4:{head.hash}"
    assert parse_head(f" {head}\n") == head
    for text in ("", "4", head.hash, f"x:{head.hash}", f"4:{head.hash[:-1]}", f"-1:{head.hash}"):
        with pytest.raises(InputRejected, match="expected the number of a row"):
            parse_head(text)


def test_changed_row_is_not_handed_out(home: Path) -> None:
    four_rows(home)
    tamper(home, "UPDATE entry SET content = replace(content, 'b2', 'b9') WHERE id = 2")
    with AuditLog(home) as log:
        for read in (lambda: log.entry(2), log.records):
            with pytest.raises(StageFailed, match="row 2: changed"):
                read()
        assert log.entry(1).record.bundle == "b1"


@pytest.mark.parametrize("sql", ["UPDATE entry SET content = ''", "DELETE FROM entry"])
def test_rows_are_not_changed_by_mistake(sql: str, home: Path) -> None:
    four_rows(home)
    with pytest.raises(sqlite3.IntegrityError, match="only added to"):
        execute(home, sql)


def test_crops_are_kept_without_loss(home: Path) -> None:
    crops = [noise(1), np.asfortranarray(noise(2)), noise(1)[:1, :1]]
    with AuditLog(home) as log:
        log.append(record(*crops), crops)
        log.append(record(crops[0]), crops[:1])
        for crop in crops:
            np.testing.assert_array_equal(log.crop(digest_of(crop)), crop)
    assert {file.name for file in crop_files(home)} == {f"{digest_of(crop)}.png" for crop in crops}


def test_crops_of_another_record_are_refused_and_nothing_is_kept(home: Path) -> None:
    with AuditLog(home) as log:
        for crops in ([], [noise(2)], [noise(1), noise(1)]):
            with pytest.raises(ValueError, match="not those of the record"):
                log.append(record(noise(1)), crops)
        assert log.head().id == 0
    assert crop_files(home) == []


@pytest.mark.parametrize("content", [None, b"", b"no PNG", "another"])
def test_missing_or_changed_crop_is_named(content: bytes | str | None, home: Path) -> None:
    with AuditLog(home) as log:
        log.append(record(noise(1)), [noise(1)])
        [file] = crop_files(home)
        if content == "another":
            log.append(record(noise(2)), [noise(2)])
            crop_file(home, digest_of(noise(2))).replace(file)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.unlink()
        with pytest.raises(StageFailed, match=rf"{file.name}: .*expected the crop"):
            log.crop(digest_of(noise(1)))


def test_crop_is_found_by_its_digest_only(home: Path) -> None:
    with AuditLog(home) as log:
        for digest in ("", "../audit", "A" * 64, "a" * 63):
            with pytest.raises(InputRejected, match="64 hexadecimal digits"):
                log.crop(digest)


def test_disk_that_fails_at_the_second_crop_adds_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.fsync, []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with AuditLog(home) as log:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space"):
            log.append(record(noise(1), noise(2)), [noise(1), noise(2)])
        monkeypatch.undo()
        assert log.head().id == 0
        assert log.append(record(noise(1), noise(2)), [noise(1), noise(2)]) == 1


def test_log_is_closed_to_other_users(home: Path) -> None:
    umask = os.umask(0)
    try:
        with AuditLog(home) as log:
            log.append(record(noise(1)), [noise(1)])
            paths = [home, *home.rglob("*")]  # with SQLite's -wal and -shm
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    finally:
        os.umask(umask)
    assert modes.pop("home") == modes.pop("audit") == 0o700
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


def test_log_that_is_not_there_is_not_made_by_looking(home: Path) -> None:
    with pytest.raises(InputRejected, match=r"audit\.sqlite: no record of decisions"):
        AuditLog(home, create=False)
    assert not home.exists()
    four_rows(home)
    with AuditLog(home, create=False) as log:
        assert log.verify().id == 4


@pytest.mark.parametrize("lost", ["deleted", "emptied"])
def test_lost_database_is_not_begun_anew_beside_its_crops(lost: str, home: Path) -> None:
    with AuditLog(home) as log:
        log.append(record(noise(1)), [noise(1)])
    if lost == "deleted":
        (home / "audit.sqlite").unlink()
    else:
        (home / "audit.sqlite").write_bytes(b"")
    with pytest.raises(StageFailed, match="holds crops"):
        AuditLog(home)


def test_database_of_a_newer_version_is_refused(home: Path) -> None:
    four_rows(home)
    execute(home, "PRAGMA user_version = 2")
    with pytest.raises(StageFailed, match=r"schema version 2; expected schema version 1"):
        AuditLog(home)


def test_file_that_is_no_log_is_refused(home: Path) -> None:
    home.mkdir()
    execute(home, "CREATE TABLE diary (page TEXT)")
    with pytest.raises(StageFailed, match="schema version 0"):
        AuditLog(home)
    (home / "audit.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(StageFailed, match=r"audit\.sqlite: .*restore the folder"):
        AuditLog(home)


def test_damage_anywhere_in_the_file_is_named_or_harmless(home: Path) -> None:
    head = four_rows(home)
    database = home / "audit.sqlite"
    whole, dice, n_refused = database.read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 8, 200])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        database.write_bytes(damaged)
        for journal in home.glob("*.sqlite-*"):
            journal.unlink()
        try:
            with AuditLog(home) as log:
                assert log.verify() == head
                assert [entry.record.bundle for entry in log.records()] == ["b4", "b3", "b2", "b1"]
        except StageFailed:
            n_refused += 1
    assert 50 < n_refused < 150


def test_row_and_crops_are_flushed_to_the_disk_before_they_are_acknowledged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def fsync(descriptor: int) -> None:
        flushed.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    with AuditLog(home) as log:  # what a kill cannot show and a power cut would
        monkeypatch.setattr(os, "fsync", fsync)
        log.append(record(noise(1), noise(2)), [noise(1), noise(2)])
        assert flushed == ["file", "file", "directory"]
        assert log._data.rows("PRAGMA synchronous") == [(2,)]  # FULL
        assert log._data.rows("PRAGMA journal_mode") == [("wal",)]


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(home: Path) -> None:
    acknowledged: set[str] = set()
    for kill_round in range(N_KILLS):
        with writer(home, f"round-{kill_round}") as process:
            acknowledged |= read_lines(process, 1 + 3 * kill_round)
            acknowledged |= kill(process)
    with AuditLog(home) as log:
        n_rows = log.verify().id
        entries = log.records(limit=100_000)
        names = {entry.record.bundle for entry in entries}
        assert acknowledged <= names
        # One more per round may have been written before its line was read.
        assert len(entries) == len(names) == n_rows <= len(acknowledged) + N_KILLS
        for entry in entries:
            log.crop(entry.record.pills[0].crop)


def test_several_processes_write_one_chain(home: Path) -> None:
    def add_some(name: str) -> set[str]:
        with writer(home, name) as process:
            return read_lines(process, 5) | kill(process)

    with ThreadPoolExecutor() as pool:
        acknowledged = set().union(*pool.map(add_some, ("a", "b", "c")))
    with AuditLog(home) as log:
        names = [entry.record.bundle for entry in log.records(limit=100_000)]
        assert log.verify().id == len(names) == len(set(names))
        assert acknowledged <= set(names)


def test_threads_share_one_log(home: Path) -> None:
    with AuditLog(home) as log, ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: log.append(record(noise(1)), [noise(1)]), range(20)))
        assert sorted(numbers) == list(range(1, 21))
        assert log.verify().id == 20


def test_process_that_holds_the_lock_for_long_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BUSY_TIMEOUT_S", 0.1)
    with AuditLog(home) as one, AuditLog(home) as other, one._data.transaction():
        with pytest.raises(StageFailed, match=r"locked.*Try again"):
            other.append(record(), [])
        assert other.verify().id == 0  # reading does not wait


def four_rows(home: Path) -> Head:
    """Decisions of the bundles b1 to b4; their head."""
    with AuditLog(home) as log:
        for number in range(1, 5):
            log.append(record(bundle=f"b{number}"), [])
        return log.head()


def execute(home: Path, sql: str) -> list[tuple[int, str, str, str]]:
    connection = sqlite3.connect(home / "audit.sqlite")
    try:
        with connection:
            return connection.execute(sql).fetchall()
    finally:
        connection.close()


def tamper(home: Path, sql: str) -> None:
    """What someone can do who may write the file."""
    for trigger in ("entry_stays", "entry_is_kept"):
        execute(home, f"DROP TRIGGER {trigger}")
    for statement in sql.split(";"):
        execute(home, statement)


def rehash(home: Path, number: int, change: Callable[[str], str]) -> None:
    """Change a row and give it the hash that it should then have."""
    [(_, previous, _, content)] = execute(home, f"SELECT * FROM entry WHERE id = {number}")
    changed = change(content)
    assert changed != content
    digest = hashlib.sha256(f"{number}\n{previous}\n{changed}".encode()).hexdigest()
    tamper(home, f"UPDATE entry SET content = '{changed}', hash = '{digest}' WHERE id = {number}")


def crop_files(home: Path) -> list[Path]:
    return sorted((home / "audit").iterdir())


def crop_file(home: Path, digest: str) -> Path:
    return home / "audit" / f"{digest}.png"


def writer(home: Path, name: str) -> subprocess.Popen[str]:
    """A process that adds decisions <name>-0, ... and prints each name once it is stored."""
    command = [sys.executable, "-c", WRITER, str(home), name]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def read_lines(process: subprocess.Popen[str], n_lines: int) -> set[str]:
    assert process.stdout is not None
    return {process.stdout.readline().strip() for _ in range(n_lines)} - {""}


def kill(process: subprocess.Popen[str]) -> set[str]:
    """Kill -9, and read the names it had still acknowledged."""
    assert process.stdout is not None
    process.send_signal(signal.SIGKILL)
    return {line.strip() for line in process.stdout if line.endswith("\n")}
