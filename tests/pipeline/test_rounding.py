"""Training with int8's rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pilltrack.pipeline.rounding import add_int8_rounding, settle_int8_rounding


def weight_of(net: nn.Sequential, index: int) -> torch.Tensor:
    weight = net[index].weight
    assert isinstance(weight, torch.Tensor)
    return weight


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.Conv2d(4, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    ).eval()


def codes(weight: torch.Tensor) -> torch.Tensor:
    """Each channel in units of its 127th part: integers when it is on the grid."""
    rows = weight.detach().flatten(1)
    return rows / (rows.abs().amax(dim=1, keepdim=True) / 127)


def on_grid(weight: torch.Tensor) -> bool:
    values = codes(weight)
    return bool((values - values.round()).abs().max() < 1e-3)


def test_settled_weights_are_exactly_what_int8_can_hold_and_depthwise_ones_untouched() -> None:
    net, start = network(), network()
    add_int8_rounding(net)
    settle_int8_rounding(net)

    for index in (0, 4, 6):
        assert not on_grid(weight_of(start, index))
        assert on_grid(weight_of(net, index))
    assert torch.equal(weight_of(net, 3), weight_of(start, 3))
    assert net.state_dict().keys() == start.state_dict().keys()


def test_folding_a_batch_norm_keeps_the_codes() -> None:
    net = network()
    add_int8_rounding(net)
    settle_int8_rounding(net)
    gain = torch.tensor([0.01, 1.0, 7.0, 300.0])
    weight = weight_of(net, 0)
    torch.testing.assert_close(codes(weight * gain[:, None, None, None]), codes(weight))


def test_gradients_pass_the_rounding() -> None:
    images = torch.rand(2, 3, 8, 8)
    net, plain = network(), network()
    add_int8_rounding(net)

    net(images).square().sum().backward()
    plain(images).square().sum().backward()

    for index in (0, 4, 6):
        rounded, exact = (
            next(p for name, p in each[index].named_parameters() if "weight" in name).grad
            for each in (net, plain)
        )
        assert rounded is not None
        assert exact is not None
        cosine = nn.functional.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0)
        assert cosine > 0.98


def test_activations_are_rounded_while_training_only() -> None:
    images = torch.rand(20, 3, 8, 8)
    net = network()
    add_int8_rounding(net)
    seen: list[torch.Tensor] = []
    net[4].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    net(images)
    settle_int8_rounding(net)
    net(images)

    while_training, afterwards = (len(set(values.flatten().tolist())) for values in seen)
    assert while_training <= 256 < afterwards


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_activations_stay_finite(value: float) -> None:
    net = network()
    add_int8_rounding(net)
    assert torch.isfinite(net(torch.full((1, 3, 8, 8), value))).all()
