"""Batches: who meets whom, and that the same seed gives the same pictures."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Client
from multiprocessing.resource_sharer import DupFd
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pilltrack.pipeline.data import (
    Captures,
    batch_plan,
    begin_worker,
    load_batches,
    shares_of_rank,
)
from pilltrack.pipeline.params import load_params
from pilltrack.pipeline.table import ImageRow, appearance_of
from tests.imports import ROOT

CAPTURE = load_params(ROOT / "params.yaml").capture


def _row(pill: str, side: str, number: int) -> ImageRow:
    name = f"images/{pill}/{side}_{number}.png"
    return ImageRow(name, pill, side, "s", "real", name, "train", "fit")  # type: ignore[arg-type]


def _labels(rows: list[ImageRow]) -> list[tuple[int, int]]:
    return Captures(Path(), rows, [32], CAPTURE).labels


def _rows(n_pills: int, photos: int) -> list[ImageRow]:
    return [
        _row(f"p{pill}", side, n)
        for pill in range(n_pills)
        for side in ("front", "back")
        for n in range(photos)
    ]


@given(
    n_pills=st.integers(1, 9),
    photos=st.integers(1, 5),
    per_batch=st.integers(2, 6),
    per_pill=st.integers(2, 6),
)
def test_each_batch_holds_the_promised_photos_of_distinct_appearances(
    n_pills: int, photos: int, per_batch: int, per_pill: int
) -> None:
    rows = _rows(n_pills, photos)
    plan = batch_plan(
        _labels(rows), pills_per_batch=per_batch, photos_per_pill=per_pill, seed=3, epoch=0
    )
    looks = 2 * n_pills
    assert len(plan) == max(looks // per_batch, 1)
    seen: list[str] = []
    for batch in plan:
        batch_looks = [appearance_of(rows[index]) for index, _ in batch]
        assert {batch_looks.count(look) for look in batch_looks} == {per_pill}
        seen += set(batch_looks)
    assert len(seen) == len(set(seen))  # each appearance at most once an epoch


def test_photos_repeat_only_when_there_are_too_few() -> None:
    rows = _rows(4, 3)
    plan = batch_plan(_labels(rows), pills_per_batch=8, photos_per_pill=3, seed=0, epoch=0)
    (batch,) = plan
    assert len({index for index, _ in batch}) == len(rows)


def test_epochs_differ_and_the_same_epoch_repeats() -> None:
    rows = _rows(6, 2)

    def plan(epoch: int) -> list[list[tuple[int, int]]]:
        return batch_plan(_labels(rows), pills_per_batch=4, photos_per_pill=2, seed=0, epoch=epoch)

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_the_shares_of_all_processes_make_up_each_batch() -> None:
    rows = _rows(6, 2)
    plan = batch_plan(_labels(rows), pills_per_batch=4, photos_per_pill=2, seed=0, epoch=0)
    shares = [shares_of_rank(plan, rank, 2) for rank in range(2)]
    for batch, even, odd in zip(plan, *shares, strict=True):
        assert batch[0::2] == even
        assert batch[1::2] == odd


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, list[ImageRow]]:
    rows = _rows(2, 1)
    rng = np.random.default_rng(0)
    for row in rows:
        (tmp_path / row.image).parent.mkdir(parents=True, exist_ok=True)
        photo = np.zeros((80, 80, 3), np.uint8)
        photo[20:60, 10:70] = rng.integers(60, 255, 3)
        Image.fromarray(photo).save(tmp_path / row.image)
    return tmp_path, rows


def test_the_number_of_workers_does_not_change_a_pixel(
    photos: tuple[Path, list[ImageRow]],
) -> None:
    directory, rows = photos
    captures = Captures(directory, rows, [48, 32], CAPTURE)
    plan = batch_plan(_labels(rows), pills_per_batch=4, photos_per_pill=2, seed=5, epoch=0)
    for none, two in zip(
        load_batches(captures, plan, 0), load_batches(captures, plan, 2), strict=True
    ):
        assert [tuple(view.shape) for view in none[0]] == [(8, 48, 48, 3), (8, 32, 32, 3)]
        assert all(a.equal(b) for a, b in zip(none[0], two[0], strict=True))
        assert none[1].equal(two[1])


class _HandedOver(torch.utils.data.Dataset[int]):
    """Each item hands a file over, as a worker does with tensors, to one who leaves at once."""

    def __getitem__(self, index: int) -> int:
        with Path(os.devnull).open() as file:
            handle = DupFd(file.fileno())
        address, _ = handle._id  # type: ignore[attr-defined]
        Client(address).close()  # before the two have made sure of each other
        os.close(handle.detach())  # the thread that hands over is done with the first
        return index

    def __len__(self) -> int:
        return 2


def test_worker_is_quiet_when_the_training_is_interrupted(
    capfd: pytest.CaptureFixture[str],
) -> None:
    loader = torch.utils.data.DataLoader(
        _HandedOver(), batch_size=None, num_workers=1, worker_init_fn=begin_worker
    )
    assert list(loader) == [0, 1]
    assert capfd.readouterr().err == ""


class _Asked(torch.utils.data.Dataset[int]):
    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        sys.excepthook(KeyError, KeyError("a fault of another kind"), None)
        return index

    def __len__(self) -> int:
        return 1


def test_worker_leaves_ctrl_c_to_the_training_and_tells_of_other_faults(
    capfd: pytest.CaptureFixture[str],
) -> None:
    loader = torch.utils.data.DataLoader(
        _Asked(), batch_size=None, num_workers=1, worker_init_fn=begin_worker
    )
    assert list(loader) == [0]
    assert "a fault of another kind" in capfd.readouterr().err


def test_labels_tell_pills_and_sides_apart(photos: tuple[Path, list[ImageRow]]) -> None:
    directory, rows = photos
    captures = Captures(directory, rows, [32], CAPTURE)
    labels = [captures[(index, 1)][1:] for index in range(len(rows))]
    pills, looks = zip(*labels, strict=True)
    assert len(set(pills)) == 2
    assert len(set(looks)) == 4


def test_variants_are_pills_of_their_own_in_every_batch(
    photos: tuple[Path, list[ImageRow]],
) -> None:
    directory, rows = photos
    captures = Captures(directory, rows, [32], CAPTURE, variants=3)
    pills, looks = zip(*captures.labels, strict=True)
    assert (len(captures.labels), len(set(pills)), len(set(looks))) == (12, 6, 12)
    assert len({pills[2 * 3 + n] for n in range(3)} & {pills[n] for n in range(3)}) == 0
    own, recoloured = (captures[(index, 7)][0][0].float().mean((0, 1)) for index in (0, 1))
    plain = Captures(directory, rows, [32], CAPTURE)[(0, 7)][0][0].float().mean((0, 1))
    assert own.equal(plain)
    assert (own - recoloured).abs().max() > 5
