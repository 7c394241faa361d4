"""Training with the rounding of int8, so that the exported file embeds like the network.

While a network trains, its weights and activations pass through the 255 or 256 codes that the
exporter will use, with straight-through gradients (Jacob et al. 2018, section 3). Weights are
symmetric per output channel: folding a batch norm into them afterwards scales channel and codes
alike. Depthwise layers are spared, as in the export.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


def add_int8_rounding(net: nn.Module) -> None:
    """Round the weights and inputs of dense convolutions, and the weights of linear layers."""
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_round_input)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            parametrize.register_parametrization(module, "weight", _Weights())


def settle_int8_rounding(net: nn.Module) -> None:
    """Leave the rounded weights in place of what was trained, and stop rounding activations."""
    for module in net.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module._forward_pre_hooks = type(module._forward_pre_hooks)(
                (key, hook)
                for key, hook in module._forward_pre_hooks.items()
                if hook is not _round_input
            )


class _Weights(nn.Module):
    """(O, ...) -> the same, each output channel on 255 codes around zero."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-12) / 127
        zero = torch.zeros_like(scale, dtype=torch.int32)
        rounded: torch.Tensor = torch.fake_quantize_per_channel_affine(
            weight, scale, zero, 0, -127, 127
        )
        return rounded


def _round_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Round to 256 codes between the extremes of this batch."""
    (values,) = inputs
    with torch.no_grad():
        low, high = (end.float() for end in torch.aminmax(values))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / 255).clamp(min=1e-12)
        zero = torch.round(-low / scale).int()
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 255)
    return (rounded.to(values.dtype),)
