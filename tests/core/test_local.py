"""What was enrolled stays: across processes, kills, new bundles; damage is named, never passed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilltrack.core import local as local_module
from pilltrack.core.errors import ImageRejected, InputRejected, StageFailed
from pilltrack.core.gallery import Reference
from pilltrack.core.local import LocalReferences, digest_of, is_store

N_KILLS = 50
# Each start is a process of its own, forked from one that has everything imported: 0.05 s, not 0.4.
WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from pilltrack.core.local import LocalReferences

def write(start):
    print(os.getpid(), flush=True)
    with LocalReferences(Path(sys.argv[1])) as local:
        for i in range(start, start + 1000):
            photo = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
            local.add(f"pill-{i}", [(f"{i}.png", photo)])
            os.write(1, f"{i}\\n".encode())  # whole, whenever it is killed

for line in iter(sys.stdin.readline, ""):
    child = os.fork()
    if child == 0:
        write(int(line))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended by itself", flush=True)
"""


class Mean:
    """An embedder that says how red and how green a crop is, and remembers how many it saw."""

    input_size_px = 1

    def __init__(self, space: str = "mean", dim: int = 2) -> None:
        self.space, self.dim, self.n_seen = space, dim, 0

    def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.n_seen += len(crops)
        means = np.zeros((len(crops), self.dim), dtype=np.float32)
        for row, crop in zip(means, crops, strict=True):
            row[:2] = crop[..., :2].mean(axis=(0, 1))
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        unit: NDArray[np.float32] = means / np.maximum(lengths, 1e-6)
        return unit


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_references_come_back_in_order_of_adding_with_their_embeddings(home: Path) -> None:
    with LocalReferences(home) as local:
        assert local.add("red", [("r.png", RED), ("s.png", DARK_RED)], "front") == 2
        assert local.add("green", [("g.png", GREEN)]) == 1
    with LocalReferences(home) as local:
        assert list(local.pills().items()) == [("green", 1), ("red", 2)]
        references, embeddings = local.embedded(Mean())
    expected = [("red", "front", "r.png"), ("red", "front", "s.png"), ("green", "", "g.png")]
    assert references == [Reference(*row) for row in expected]
    assert embeddings.dtype == np.float32
    assert embeddings.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_empty_store_has_no_pills_and_an_empty_table_of_embeddings(home: Path) -> None:
    assert not is_store(home)
    with LocalReferences(home) as local:
        assert is_store(home)
        assert local.pills() == {}
        references, embeddings = local.embedded(Mean(dim=7))
    assert references == []
    assert embeddings.shape == (0, 7)


def test_what_one_process_added_another_sees(home: Path) -> None:
    with Writer(home) as writer:
        writer.start(0)
        acknowledged = writer.read(3)
        with LocalReferences(home) as local:  # while the other one is still writing
            assert {f"pill-{i}" for i in acknowledged} <= set(local.pills())
        writer.kill()


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(home: Path) -> None:
    acknowledged: set[int] = set()
    dice = random.Random(0)
    with Writer(home) as writer:
        for kill_round in range(N_KILLS):
            writer.start(1000 * kill_round)
            acknowledged |= writer.read(1 + kill_round % 8)
            time.sleep(dice.uniform(0, 0.01))  # an addition takes some 3 ms: hit all parts of it
            acknowledged |= writer.kill()
            if kill_round % 10 == 0:
                with LocalReferences(home) as local:
                    assert {f"pill-{i}" for i in acknowledged} <= set(local.pills())
    with LocalReferences(home) as local:
        pills = local.pills()
        references, _ = local.embedded(Mean())  # reads every photo
        assert {f"pill-{i}" for i in acknowledged} <= set(pills)
        # One more per round may have been stored before its line was read.
        assert len(references) == len(pills) <= len(acknowledged) + N_KILLS
        local.remove("none")
    assert len(photo_files(home)) == len(pills), "leftovers of the kills stayed"


def test_several_processes_may_open_and_fill_one_new_home(home: Path) -> None:
    def add_five(start: int) -> set[int]:
        with Writer(home) as writer:
            writer.start(start)
            return writer.read(5) | writer.kill()

    with ThreadPoolExecutor() as pool:
        numbers = set().union(*pool.map(add_five, (0, 1000, 2000)))
    with LocalReferences(home) as local:
        assert {f"pill-{i}" for i in numbers} <= set(local.pills())


def test_only_what_a_space_lacks_is_embedded(home: Path) -> None:
    old, new = Mean("old"), Mean("new", dim=5)
    many = [(f"{i}.png", noise(i)) for i in range(2 * local_module.EMBED_BATCH + 1)]
    with LocalReferences(home) as local:
        local.add("many", many)
        local.embedded(old)
        assert old.n_seen == 4 * len(many)  # quarter turns
        local.add("red", [("r.png", RED)])
        assert local.embedded(old, "many")[1].shape == (len(many), 2)
        assert old.n_seen == 4 * len(many)
        assert local.embedded(old, "red")[0] == [Reference("red", "", "r.png")]
        assert old.n_seen == 4 * (len(many) + 1)
        local.embedded(old)
        assert old.n_seen == 4 * (len(many) + 1)
    with LocalReferences(home) as local:  # the next bundle, another embedding space
        references, embeddings = local.embedded(new)
        assert len(references) == len(many) + 1
        assert new.n_seen == 4 * len(references)
        assert embeddings.shape == (len(many) + 1, 5)
        assert local.embedded(old)[1].shape == (len(many) + 1, 2)
    assert old.n_seen == 4 * (len(many) + 1)


def test_photo_is_kept_without_loss(home: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    seen: list[NDArray[np.uint8]] = []

    class Watching(Mean):
        def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            seen.extend(crops)
            return super().embed(crops)

    with LocalReferences(home) as local:
        local.add("noise", [("n.png", np.asfortranarray(photo))])
        local.embedded(Watching())
    np.testing.assert_array_equal(seen[0], photo)


def test_same_photo_of_a_pill_is_stored_once_and_takes_a_side_given_later(home: Path) -> None:
    with LocalReferences(home) as local:
        assert local.add("red", [("r.png", RED), ("copy.png", RED.copy())]) == 1
        assert local.add("red", [("again.png", RED), ("s.png", DARK_RED)], "back") == 1
        assert local.add("red", [("again.png", RED)]) == 0
        assert local.pills() == {"red": 2}
        assert [reference.side for reference in local.embedded(Mean())[0]] == ["back", "back"]
    assert len(photo_files(home)) == 2


def test_photo_of_another_pill_is_refused_with_its_name_and_nothing_is_added(home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED)])
        with pytest.raises(InputRejected, match=r"copy\.png: .*r\.png of the pill 'red'"):
            local.add("green", [("g.png", GREEN), ("copy.png", RED)])
        assert local.pills() == {"red": 1}
    assert len(photo_files(home)) == 1


@pytest.mark.parametrize(
    ("pill", "image", "side", "subject"),
    [
        ("", "r.png", "", "name of the pill"),
        ("x" * 201, "r.png", "", "name of the pill"),
        ("two\nlines", "r.png", "", "name of the pill"),
        ("bell\a", "r.png", "", "name of the pill"),
        ("not utf-8 \udcff", "r.png", "", "name of the pill"),
        (" red", "r.png", "", "name of the pill"),
        ("red", "r\0.png", "", "name of the photo"),
        ("red", "r.png", "top", "side"),
    ],
)
def test_impossible_name_or_side_is_refused(
    pill: str, image: str, side: str, subject: str, home: Path
) -> None:
    with LocalReferences(home) as local:
        with pytest.raises(InputRejected) as refused:
            local.add(pill, [(image, RED)], side)
        assert refused.value.subject == subject
        if subject == "name of the pill":
            with pytest.raises(InputRejected, match=subject):
                local.remove(pill)
        assert local.pills() == {}


def test_names_of_any_language_and_of_200_characters_are_kept(home: Path) -> None:
    names = ["x" * 200, "парацетамол 500", "阿司匹林", "'; DROP TABLE reference --", "../../etc"]
    with LocalReferences(home) as local:
        for i, name in enumerate(names):
            local.add(name, [("p.png", noise(i))])
        assert list(local.pills()) == sorted(names)
    assert sorted(path.name for path in home.iterdir()) == ["crops", "references.sqlite"]


def test_bad_photo_among_good_ones_adds_nothing(home: Path) -> None:
    with LocalReferences(home) as local:
        with pytest.raises(ImageRejected, match=r"thin\.png: .*at least 16 pixels"):
            local.add("red", [("r.png", RED), ("thin.png", RED[:15])])
        with pytest.raises(ValueError, match="uint8"):
            local.add("red", [("r.png", RED), ("grey.png", RED[..., 0])])
        assert local.pills() == {}
    assert photo_files(home) == []


def test_disk_that_fails_at_the_second_photo_adds_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.fsync, []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with LocalReferences(home) as local:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space"):
            local.add("red", [("r.png", RED), ("s.png", DARK_RED)])
        monkeypatch.undo()
        assert local.pills() == {}
        assert local.add("red", [("r.png", RED), ("s.png", DARK_RED)]) == 2


def test_each_photo_may_show_another_side(home: Path) -> None:
    with LocalReferences(home) as local:
        with local.adding("red", [("r.png", RED), ("s.png", DARK_RED)], ["front", "back"]) as n_new:
            assert n_new == 2
        assert [kept.side for kept in local.kept()] == ["front", "back"]
        with pytest.raises(ValueError, match="zip"), local.adding("red", [("r.png", RED)], []):
            pass


def test_an_embedding_made_before_is_not_made_again(home: Path) -> None:
    mean, made = Mean(), np.eye(2, dtype=np.float32)
    with LocalReferences(home) as local:
        with local.adding("red", [("r.png", RED)], [""]):
            local.remember(mean.space, [digest_of(RED), digest_of(DARK_RED)], made)
        np.testing.assert_array_equal(local.embedded(mean)[1], made[:1])
        assert mean.n_seen == 0


def test_nothing_is_added_when_the_block_fails(home: Path) -> None:
    with LocalReferences(home) as local:
        with (
            pytest.raises(RuntimeError, match="on second thoughts"),
            local.adding("red", [("r.png", RED)], [""]),
        ):
            raise RuntimeError("on second thoughts")
        assert local.pills() == {}
        assert local.add("red", [("r.png", RED)]) == 1


def test_too_many_references_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "MAX_REFERENCES", 2)
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED)])
        with pytest.raises(InputRejected, match="at most 2"):
            local.add("noise", [("1.png", noise(1)), ("2.png", noise(2))])
        assert local.pills() == {"red": 1}


def test_removed_pill_is_gone_with_its_photos(home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED), ("s.png", DARK_RED)])
        local.add("green", [("g.png", GREEN)])
        local.embedded(Mean())
        assert local.remove("red") == 2
        assert local.remove("red") == 0
        assert local.pills() == {"green": 1}
        assert [reference.pill for reference in local.embedded(Mean())[0]] == ["green"]
        assert len(photo_files(home)) == 1
        local.add("crimson", [("r.png", RED)])  # its photo is free again
        assert local.embedded(Mean())[1].tolist() == [[0, 1], [1, 0]]


def test_store_is_closed_to_other_users(home: Path) -> None:
    umask = os.umask(0)
    try:
        with LocalReferences(home) as local:
            local.add("red", [("r.png", RED)])
            paths = [home, *home.rglob("*")]  # with SQLite's -wal and -shm
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    finally:
        os.umask(umask)
    assert modes.pop("home") == modes.pop("crops") == 0o700
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("content", [None, b"", b"not a PNG", "another photo"])
def test_missing_or_changed_photo_is_named_and_mended_by_adding_it_again(
    content: bytes | str | None, home: Path
) -> None:
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED)])
        [file] = photo_files(home)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.unlink()
        if content == "another photo":
            local.add("green", [("g.png", GREEN)])
            [other] = photo_files(home)
            other.rename(file)
        with pytest.raises(StageFailed, match=r"r\.png of the pill 'red'.*Add the photo again"):
            local.embedded(Mean())
        local.add("red", [("r.png", RED)])
        if content != "another photo":
            assert local.embedded(Mean())[1].tolist() == [[1, 0]]


def test_photo_another_process_removes_meanwhile_is_left_out(home: Path) -> None:
    class Slow(Mean):
        def embed(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            with LocalReferences(home) as other:
                other.remove("red")
            return super().embed(crops)

    with LocalReferences(home) as local:
        local.add("noise", [(f"{i}.png", noise(i)) for i in range(local_module.EMBED_BATCH - 1)])
        local.add("red", [("r.png", RED), ("s.png", DARK_RED)])  # one in each batch
        references, embeddings = local.embedded(Slow())
    assert {reference.pill for reference in references} == {"noise"}
    assert len(embeddings) == len(references)


def test_photo_the_model_turns_into_zeros_is_named(home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("black", [("b.png", np.zeros((20, 20, 3), dtype=np.uint8))])
        with pytest.raises(StageFailed, match=r"b\.png .*gallery remove 'black'"):
            local.embedded(Mean())


def test_database_of_a_newer_version_is_refused_and_left_alone(home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED)])
    execute(home, "PRAGMA user_version = 2")
    with pytest.raises(StageFailed, match=r"schema version 2; expected schema version 1"):
        LocalReferences(home)
    execute(home, "PRAGMA user_version = 1")
    with LocalReferences(home) as local:
        assert local.pills() == {"red": 1}


def test_database_that_is_none_of_ours_is_refused(home: Path) -> None:
    home.mkdir()
    execute(home, "CREATE TABLE diary (page TEXT)")
    with pytest.raises(StageFailed, match="schema version 0"):
        LocalReferences(home)


def test_file_that_is_no_database_is_refused(home: Path) -> None:
    home.mkdir()
    (home / "references.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(StageFailed, match=r"references\.sqlite: .*restore the folder"):
        LocalReferences(home)


@pytest.mark.parametrize("lost", ["deleted", "emptied"])
def test_lost_database_does_not_cost_the_photos(lost: str, home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED)])
    if lost == "deleted":
        (home / "references.sqlite").unlink()
    else:
        (home / "references.sqlite").write_bytes(b"")
    with pytest.raises(StageFailed, match="holds photos"):
        LocalReferences(home)
    assert len(photo_files(home)) == 1


def test_damage_anywhere_in_the_database_never_ends_in_a_traceback(home: Path) -> None:
    with LocalReferences(home) as local:
        for i in range(20):
            local.add(f"pill-{i % 7}", [(f"{i}.png", noise(i))])
        expected = local.embedded(Mean())
    database = home / "references.sqlite"
    whole, dice, n_refused = database.read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 8, 200])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        database.write_bytes(damaged)
        for journal in home.glob("*.sqlite-*"):
            journal.unlink()
        try:
            with LocalReferences(home) as local:
                references, embeddings = local.embedded(Mean())
        except StageFailed:
            n_refused += 1
        else:
            assert [r.pill for r in references] == [r.pill for r in expected[0]]
            assert len(embeddings) == len(references)
    assert 100 < n_refused < 300


def test_damage_is_looked_for_whenever_a_store_is_opened_unless_told_otherwise(home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("red-pill", [("r.png", RED)])
    database = home / "references.sqlite"
    table, _, rest = database.read_bytes().rpartition(b"red-pill")  # the last one: of the index
    database.write_bytes(table + b"red-pull" + rest)
    with pytest.raises(StageFailed, match="restore the folder"):
        LocalReferences(home)
    with LocalReferences(home, check=False) as local:
        assert local.kept()[0].image == "r.png"


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("UPDATE embedding SET embedding = x'00'", "not 2 float32"),
        ("UPDATE embedding SET embedding = x'0000000000000000'", "not of unit length"),
        ("UPDATE embedding SET embedding = x'0000c07f0000c07f'", "not of unit length"),  # NaN
    ],
)
def test_impossible_stored_embedding_is_refused(sql: str, found: str, home: Path) -> None:
    with LocalReferences(home) as local:
        local.add("red", [("r.png", RED)])
        local.embedded(Mean())
        execute(home, sql)
        with pytest.raises(StageFailed, match=found):
            local.embedded(Mean())


def test_process_that_holds_the_lock_for_long_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_module, "BUSY_TIMEOUT_S", 0.1)
    with LocalReferences(home) as one, LocalReferences(home) as other, one._data.transaction():
        with pytest.raises(StageFailed, match=r"locked.*Try again"):
            other.add("red", [("r.png", RED)])
        assert other.pills() == {}  # reading does not wait


RED = np.full((20, 24, 3), (200, 0, 0), dtype=np.uint8)
DARK_RED = np.full((20, 24, 3), (100, 0, 0), dtype=np.uint8)
GREEN = np.full((20, 24, 3), (0, 200, 0), dtype=np.uint8)


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def photo_files(home: Path) -> list[Path]:
    return sorted((home / "crops").iterdir())


def execute(home: Path, sql: str) -> None:
    connection = sqlite3.connect(home / "references.sqlite")
    with connection:
        connection.execute(sql)
    connection.close()


class Writer:
    """Starts processes, one after the other, that add pills and say each number once stored."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-c", WRITER, str(home)]
        self._parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._pid = 0

    def start(self, number: int) -> None:
        """Begin to add pill-<number>, ..."""
        assert self._parent.stdin is not None
        self._parent.stdin.write(f"{number}\n")
        self._parent.stdin.flush()
        self._pid = int(self._line())

    def read(self, n_lines: int) -> set[int]:
        """The next numbers that it acknowledges."""
        return {int(self._line()) for _ in range(n_lines)}

    def kill(self) -> set[int]:
        """Kill -9, and read the numbers it had still acknowledged."""
        os.kill(self._pid, signal.SIGKILL)
        lines = list(iter(self._line, "killed"))  # a line is written whole or not at all
        return {int(line) for line in lines}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate()  # closes its input: it ends

    def _line(self) -> str:
        assert self._parent.stdout is not None
        line = self._parent.stdout.readline()
        assert line, "the writer failed"
        return line.strip()
