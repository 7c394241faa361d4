"""A training in steps: rates, long gradients, losses that are no numbers, runs that are done."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.params import LocateParams, load_params
from pilltrack.pipeline.steps import Steps

RATES = [0.1, 0.1, 0.075, 0.025]  # of 4 steps: one to warm up, then half a cosine


@pytest.fixture
def settings() -> LocateParams:
    params = load_params(Path(__file__).parents[2] / "params.yaml").locate
    return params.model_copy(update={"warmup_share": 0.25, "checkpoint_every_s": 1e-9})


def training(
    settings: LocateParams, checkpoint: Path, **options: Any
) -> tuple[torch.nn.Linear, torch.optim.Optimizer, Steps]:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    groups: list[dict[str, Any]] = [{"params": [net.weight]}, {"params": [net.bias]}]
    optimiser = torch.optim.SGD(groups, lr=0.1)
    options = {"shares": (1.0, 0.3)} | options
    return net, optimiser, Steps("run", net, optimiser, 4, settings, checkpoint, "id", **options)


def test_each_group_learns_at_its_share_of_the_rate_also_after_a_stop(
    settings: LocateParams, tmp_path: Path
) -> None:
    seen = []
    for count in (2, 2):
        net, optimiser, steps = training(settings, tmp_path / "a.pt")
        for _ in range(count):
            steps.begin()
            seen.append([group["lr"] for group in optimiser.param_groups])
            loss = net(torch.ones(1, 3)).sum()
            assert steps.end(loss) == loss.item()
    assert seen == [pytest.approx([rate, 0.3 * rate]) for rate in RATES]
    assert [row["step"] for row in steps.history] == [4]
    assert steps.history[0]["learning_rate"] == pytest.approx(RATES[-1])


def test_a_gradient_is_no_longer_than_the_limit(settings: LocateParams, tmp_path: Path) -> None:
    moves = []
    for limit in (0.5, None):
        net, _, steps = training(settings, tmp_path / f"{limit}.pt", shares=(1.0, 1.0))
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        steps.begin()
        steps.end(net(torch.ones(1, 3)).sum(), limit)
        after = torch.cat([p.detach().flatten() for p in net.parameters()])
        moves.append(float((after - before).norm()))
    assert moves == [pytest.approx(0.1 * 0.5), pytest.approx(0.1 * 2)]  # four derivatives of 1


def test_a_loss_that_is_no_number_names_its_step_and_its_setting(
    settings: LocateParams, tmp_path: Path
) -> None:
    net, _, steps = training(settings, tmp_path / "a.pt", setting="look_learning_rate")
    steps.begin()
    with pytest.raises(StageFailed, match=r"(?s)run, step 1.*nan.*`look_learning_rate`"):
        steps.end(net(torch.full((1, 3), float("nan"))).sum())


def test_a_run_that_is_done_comes_back_as_it_ended(settings: LocateParams, tmp_path: Path) -> None:
    net, _, steps = training(settings, tmp_path / "a.pt")
    for _ in range(4):
        steps.begin()
        steps.end(net(torch.ones(1, 3)).square().sum())
    again, _, done = training(settings, tmp_path / "a.pt")
    assert (done.done, done.history) == (4, steps.history)
    assert torch.equal(again.weight, net.weight)
