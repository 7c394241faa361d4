"""The second look learns from what the first one finds, and goes on where it was stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pilltrack.core.errors import StageFailed
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.pipeline import second_look
from pilltrack.pipeline.locator_data import rendered_cut_outs, scene_of
from pilltrack.pipeline.models import STARTER, load_network
from pilltrack.pipeline.params import LocateParams
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.second_look import (
    LOOK_PX,
    Finds,
    SecondLookNet,
    _Batches,
    gather,
    train_second_look,
)
from tests.pipeline.test_locate import SETTINGS

LOCATOR = STARTER_BUNDLE / "locator.tflite"


@pytest.fixture(scope="module")
def cutouts() -> list[Photo]:
    return rendered_cut_outs(SETTINGS.rendered_pills, SETTINGS.seed)


@pytest.fixture(scope="module")
def finds(cutouts: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> Finds:
    settings = SETTINGS.model_copy(update={"look_scenes": 12})
    return gather(LOCATOR, cutouts, settings, tmp_path_factory.mktemp("kept") / "finds", "run")


def test_finds_are_cut_out_and_said_to_be_right_or_wrong(finds: Finds) -> None:
    assert finds.crops.shape == (len(finds.right), 96, 96, 3)
    assert finds.crops.dtype == np.uint8
    assert finds.right.dtype == bool
    assert finds.right.sum() >= 10  # every second scene has pills, and the starter finds them
    assert finds.first[finds.right].mean() > 0


def test_crowded_scenes_hold_more_things(cutouts: list[Photo]) -> None:
    usual, crowded = (
        [scene_of(cutouts, 160, (1, n), 0, crowd).frame.astype(float) for n in range(12)]
        for crowd in (1, 4)
    )
    edges = [
        np.mean([np.abs(np.diff(frame, axis=1)).mean() for frame in frames])
        for frames in (usual, crowded)
    ]
    assert edges[1] > 1.2 * edges[0]


def test_kept_finds_are_read_again_and_those_of_another_run_are_not(
    cutouts: list[Photo], finds: Finds, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"look_scenes": 2})
    kept = tmp_path / "finds"
    made = gather(LOCATOR, cutouts, settings, kept, "run")
    again = gather(tmp_path / "absent.tflite", cutouts, settings, kept, "run")
    for some, other in ((made.crops, again.crops), (made.right, again.right)):
        assert np.array_equal(some, other)
    assert np.array_equal(made.first, again.first)
    (shard,) = kept.iterdir()
    shard.write_bytes(shard.read_bytes()[:-7])  # cut off by a full disk
    assert len(gather(LOCATOR, cutouts, settings, kept, "run").right) == len(made.right)
    more = settings.model_copy(update={"look_scenes": 4})
    assert len(gather(LOCATOR, cutouts, more, kept, "another").right) > len(made.right)


def test_finds_are_the_same_in_shards_by_workers(
    cutouts: list[Photo], finds: Finds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_look, "SHARD", 5)
    settings = SETTINGS.model_copy(update={"look_scenes": 12, "workers": 2})
    made = gather(LOCATOR, cutouts, settings, tmp_path / "kept", "run")
    assert len(list((tmp_path / "kept").iterdir())) == 3
    assert np.array_equal(made.crops, finds.crops)
    assert np.array_equal(made.first, finds.first)


def test_steps_without_scenes_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValueError, match="look_scenes"):
        LocateParams.model_validate(SETTINGS.model_dump() | {"look_scenes": 0})
    LocateParams.model_validate(SETTINGS.model_dump() | {"look_scenes": 0, "look_steps": 0})


def test_a_loss_that_is_no_number_stops_the_training(finds: Finds, tmp_path: Path) -> None:
    net = seeded_net()
    torch.nn.init.constant_(net.head.bias, float("nan"))
    with pytest.raises(StageFailed, match="look_learning_rate"):
        train_second_look(net, both_kinds(finds), settings(2), tmp_path / "a.pt", "run")


def test_it_learns_to_tell_apart_what_the_first_look_cannot(tmp_path: Path) -> None:
    bright, dark = (np.full((20, 96, 96, 3), grey, np.uint8) for grey in (220, 30))
    finds = Finds(np.concatenate([bright, dark]), np.arange(40) < 20, np.zeros(40, np.float32))
    torch.manual_seed(0)
    net = SecondLookNet("starter")
    quick = settings(30).model_copy(update={"look_learning_rate": 0.005})
    history = train_second_look(net, finds, quick, tmp_path / "a.pt", "run")
    assert [row["step"] for row in history] == [30]
    with torch.no_grad():
        logits = net(torch.tensor([220.0, 30.0]).view(2, 1, 1, 1).expand(2, LOOK_PX, LOOK_PX, 3))
    assert logits[0] > 0 > logits[1]


def test_an_untaught_second_look_has_no_opinion() -> None:
    with torch.no_grad():
        assert (
            SecondLookNet().eval()(torch.rand(2, LOOK_PX, LOOK_PX, 3) * 255).tolist() == [[0.0]] * 2
        )


def test_stopped_training_goes_on_to_the_same_weights(finds: Finds, tmp_path: Path) -> None:
    finds = both_kinds(finds)
    whole, halted, resumed = seeded_net(), seeded_net(), seeded_net()
    history = train_second_look(whole, finds, settings(4), tmp_path / "whole.pt", "run")
    calls, forward = 0, halted.forward

    def stopping(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return forward(images)

    halted.forward = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train_second_look(halted, finds, settings(4), tmp_path / "halted.pt", "run")
    again = train_second_look(resumed, finds, settings(4), tmp_path / "halted.pt", "run")
    assert again == history
    for some, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(some, other)


def test_layers_of_the_starter_are_kept_and_the_later_ones_taught(
    finds: Finds, tmp_path: Path
) -> None:
    net = SecondLookNet("starter")
    stem = load_network(STARTER)[0].backbone.conv_stem.weight
    last = [p.clone() for p in net.body[-1].parameters()]
    train_second_look(net, both_kinds(finds), settings(2), tmp_path / "a.pt", "run")
    assert torch.equal(net.body[0].weight, stem)  # type: ignore[arg-type]
    changed = zip(net.body[-1].parameters(), last, strict=True)
    assert any(not torch.equal(some, other) for some, other in changed)


@pytest.mark.parametrize("right", [True, False])
def test_finds_of_one_kind_alone_teach_nothing(right: bool, tmp_path: Path) -> None:
    finds = Finds(np.zeros((3, 96, 96, 3), np.uint8), np.full(3, right), np.zeros(3, np.float32))
    with pytest.raises(StageFailed, match=r"look_scenes"):
        train_second_look(seeded_net(), finds, settings(2), tmp_path / "a.pt", "run")


def test_half_of_a_batch_are_pills_and_sure_mistakes_come_more_often() -> None:
    crops = np.zeros((101, 96, 96, 3), np.uint8)
    right = np.arange(101) < 1
    first = np.where(np.arange(101) == 100, 3.0, -3.0).astype(np.float32)
    drawn = [_Batches(Finds(crops, right, first), settings(20), 0)[n] for n in range(20)]
    assert all(batch[1].sum() == 24 for batch in drawn)
    sure = sum(int((batch[2] == 3).sum()) for batch in drawn)
    assert 20 * 24 / 100 * 3 < sure < 20 * 24 / 3  # its share is 1.05 of 15.8


def both_kinds(finds: Finds) -> Finds:
    """The same finds, some of them called wrong if none is."""
    right = finds.right.copy()
    right[::3] = False
    return Finds(finds.crops, right, finds.first)


def settings(steps: int) -> LocateParams:
    return SETTINGS.model_copy(update={"look_steps": steps})


def seeded_net() -> SecondLookNet:
    torch.manual_seed(0)
    return SecondLookNet()
