"""Fast strided depthwise convolutions: same values, same gradients, really used."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from pilltrack.pipeline import depthwise
from pilltrack.pipeline.depthwise import fast_depthwise

CPU = torch.device("cpu")


def values_and_gradients(
    layer: nn.Conv2d, images: torch.Tensor, *, fast: bool, bf16: bool = False
) -> tuple[torch.Tensor, ...]:
    images = images.clone().requires_grad_()
    layer.zero_grad()
    context = fast_depthwise(CPU) if fast else contextlib.nullcontext()
    with context, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        out = layer(images)
    out.float().square().sum().backward()
    assert images.grad is not None
    assert layer.weight.grad is not None
    return out.detach().float(), images.grad, layer.weight.grad.clone()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    calls: list[torch.dtype] = []
    real = depthwise._StridedDepthwise.apply

    class Counting:
        @staticmethod
        def apply(*args: Any) -> Any:
            calls.append(args[0].dtype)
            return real(*args)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(depthwise, "_StridedDepthwise", Counting)
    return calls


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 2, 1, 8), (3, 2, 1, 7), (5, 2, 2, 9), (3, 2, 0, 9), (5, 3, 1, 11), (3, 2, (0, 1), 8)],
)
def test_values_and_gradients_are_those_of_torch(
    counted: list[torch.dtype],
    kernel: int,
    stride: int,
    padding: int | tuple[int, int],
    size: int,
    bf16: bool,
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False)
    images = torch.randn(2, 6, size, size)

    expected = values_and_gradients(layer, images, fast=False, bf16=bf16)
    found = values_and_gradients(layer, images, fast=True, bf16=bf16)

    assert len(counted) == 1
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=0.05 if bf16 else 1e-5, rtol=0.02)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False),
        nn.Conv2d(6, 12, 3, 2, 1, groups=6, bias=False),
        nn.Conv2d(6, 6, 3, 2, 1, groups=2, bias=False),
        nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=True),
        nn.Conv2d(6, 6, 3, 2, 2, dilation=2, groups=6, bias=False),
        nn.Conv2d(6, 6, 3, (2, 1), 1, groups=6, bias=False),
    ],
    ids=["stride 1", "multiplier", "groups", "bias", "dilated", "uneven"],
)
def test_other_convolutions_are_left_to_torch(counted: list[torch.dtype], layer: nn.Conv2d) -> None:
    images = torch.randn(2, 6, 9, 9)

    expected = values_and_gradients(layer, images, fast=False)
    found = values_and_gradients(layer, images, fast=True)

    assert not counted
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_only_a_cpu_needs_it() -> None:
    assert isinstance(fast_depthwise(torch.device("cuda")), contextlib.nullcontext)
