"""The embedding network: a timm backbone, pooled, and one linear layer.

The network takes what the device has, uint8 pixels as float32 in 0..255, NHWC, so that
normalisation is part of every exported graph. It returns the raw head output; whoever compares
embeddings divides by the L2 norm (training does in `unit`, the device in `core.embedder`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

import pilltrack
from pilltrack.core.errors import StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.pipeline.torchvision_import import ensure_torchvision

STARTER = Path(pilltrack.__file__).parent / "starter" / "student.safetensors"
PIXEL_STATISTICS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "minus_one_to_one": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}


class EmbeddingNet(nn.Module):
    """(N, S, S, 3) float32 pixels in 0..255 -> (N, D) raw embeddings."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, backbone: str, embedding_dim: int, *, options: dict[str, Any], pixels: str
    ) -> None:
        super().__init__()
        ensure_torchvision()
        import timm

        try:
            self.backbone = timm.create_model(backbone, num_classes=0, **options)
        except (RuntimeError, TypeError) as error:
            raise StageFailed(
                f"backbone {backbone!r}",
                found=str(error),
                expected="a model name of timm and options it accepts",
                remedy="See timm.list_models(); correct `backbone` in params.yaml.",
            ) from error
        mean, std = PIXEL_STATISTICS[pixels]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.head = nn.Linear(self._pooled_width(backbone), embedding_dim)
        self.description: dict[str, Any] = {
            "backbone": backbone,
            "embedding_dim": embedding_dim,
            "options": options,
            "pixels": pixels,
        }

    def _pooled_width(self, name: str) -> int:
        training = self.backbone.training
        try:
            with torch.no_grad():
                return int(self.backbone.eval()(torch.zeros(1, 3, 64, 64)).shape[1])
        except (AssertionError, RuntimeError) as error:
            raise StageFailed(
                f"backbone {name!r}",
                found=f"does not take images of any size ({error})",
                expected="a convolutional network",
                remedy="Choose another `backbone` in params.yaml.",
            ) from error
        finally:
            self.backbone.train(training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raw embeddings (N, D) of images (N, S, S, 3)."""
        pixels = images.permute(0, 3, 1, 2)
        normalised = (pixels - self.mean) / self.std
        raw: torch.Tensor = self.head(self.backbone(normalised))
        return raw


def place(net: torch.nn.Module, device: torch.device) -> None:
    """Move a network to its device, in the memory layout that convolutions run fastest in."""
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows divided by their L2 norm, in float32."""
    return nn.functional.normalize(embeddings.float(), dim=1)


def load_starting_weights(net: EmbeddingNet, weights: str) -> str:
    """Fill the network from `weights`; return a sentence for the log.

    `imagenet` is timm's download, `none` keeps the seeded random start, `starter` is the network
    that ships with PillTrack, anything else is the path of a safetensors file: a network of train
    or distill, or the weights of a backbone. A classifier is left out. The head of a network whose
    embeddings have another length gives the numbers that both have; others keep their random
    start. Any other missing or unexpected tensor stops the run.
    """
    if weights == "none":
        return "random start"
    if weights == "imagenet":
        return _load_from_hub(net)
    (path,) = weights_file(weights)
    if not path.is_file():
        raise StageFailed(
            f"weights {path}",
            found="no such file",
            expected="imagenet, none, starter, or the path of a .safetensors file",
            remedy="Correct `weights` in params.yaml; paths are relative to the repository.",
        )
    tensors, metadata = read_tensors(path)
    head = {}
    if "pilltrack" in metadata:
        _require_same_input(net, json.loads(metadata["pilltrack"]), path)
        head = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
        _require_head(net, head, path)
        tensors = {
            k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")
        }
    classifier = str(net.backbone.pretrained_cfg.get("classifier") or "classifier")
    tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{classifier}.")}
    own = net.backbone.state_dict()
    counters = {k for k in own if k.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - counters - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    wrong = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if missing or unexpected or wrong:
        raise StageFailed(
            f"weights {path}",
            found=f"{len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(wrong)} of another shape (for example {(missing + unexpected + wrong)[0]})",
            expected=f"the backbone {net.description['backbone']}",
            remedy="Choose the backbone that the weights were trained for.",
        )
    net.backbone.load_state_dict(tensors, strict=False)
    if head:
        both = min(len(head["bias"]), net.head.out_features)
        start = net.head.state_dict()
        net.head.load_state_dict(
            {name: torch.cat([head[name][:both], start[name][both:]]) for name in start}
        )
    return f"started from {path}"


def freeze(net: EmbeddingNet, modules: Sequence[str]) -> None:
    """Let these modules of the backbone keep their weights.

    Early layers see the most pixels: MobileNetV2 at 128 px trains twice as fast on two CPU cores
    without the stem and its first two blocks. Raises StageFailed for a name the backbone has not.
    """
    known = dict(net.backbone.named_modules())
    for name in modules:
        if not name or name not in known:
            raise StageFailed(
                f"frozen: {name!r}",
                found=f"no such module in {net.description['backbone']}",
                expected=f"a path such as {', '.join(list(known)[1:4])}",
                remedy="Correct `frozen` in params.yaml.",
            )
        known[name].requires_grad_(False)


def weights_file(weights: str, starter: Path = STARTER) -> list[Path]:
    """The file that `weights` names, as a list: empty for `imagenet` and `none`."""
    if weights == "starter":
        return [starter]
    return [] if weights in ("imagenet", "none") else [Path(weights)]


def save_network(net: EmbeddingNet, path: Path, *, input_size_px: int) -> None:
    """Write weights and description as safetensors; to a temporary name, then renamed."""
    description = {**net.description, "input_size_px": input_size_px}
    # One key: safetensors writes several in random order, and equal networks would differ.
    metadata = {"pilltrack": json.dumps(description, sort_keys=True)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    write_atomically(path, save(tensors, metadata=metadata))


def load_network(path: Path) -> tuple[EmbeddingNet, int]:
    """Rebuild a network written by `save_network`; returns it in eval mode, and its input size.

    Raises StageFailed for a file that is missing, damaged or not from this project.
    """
    tensors, metadata = read_tensors(path)
    try:
        description = json.loads(metadata["pilltrack"])
        input_size_px = description.pop("input_size_px")
        net = EmbeddingNet(**description)
        net.load_state_dict(tensors)
        return net.eval(), input_size_px
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StageFailed(
            str(path),
            found=f"not a PillTrack network ({str(error)[:200]})",
            expected="a file written by train or distill",
            remedy="Run `dvc repro`.",
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; StageFailed when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StageFailed(
            str(path),
            found=f"not readable as safetensors ({error})",
            expected="a whole .safetensors file",
            remedy="Get the file again, or run the stage that writes it.",
        ) from error


def _require_same_input(net: EmbeddingNet, trained: dict[str, Any], path: Path) -> None:
    for setting in ("backbone", "options", "pixels"):
        if trained.get(setting) != net.description[setting]:
            raise StageFailed(
                f"weights {path}",
                found=f"a network with {setting} {trained.get(setting)}",
                expected=f"{setting} {net.description[setting]}, as params.yaml says",
                remedy="Give this section of params.yaml the settings of the weights, or choose "
                "other weights.",
            )


def _require_head(net: EmbeddingNet, head: dict[str, torch.Tensor], path: Path) -> None:
    """A head for embeddings of any length, whole."""
    own = net.head.state_dict()
    shapes = {name: tuple(values.shape) for name, values in head.items()}
    of_number = {name: shape[1:] for name, shape in shapes.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if of_number != {name: values.shape[1:] for name, values in own.items()} or len(lengths) != 1:
        raise StageFailed(
            f"weights {path}",
            found=f"a head of {shapes}",
            expected=f"weight (D, {net.head.in_features}) and bias (D,)",
            remedy="Get the file again, or run the stage that writes it.",
        )


def _load_from_hub(net: EmbeddingNet) -> str:
    import timm

    name, options = str(net.description["backbone"]), net.description["options"]
    try:
        pretrained = timm.create_model(name, num_classes=0, pretrained=True, **options)
    except Exception as error:
        if os.environ.get("HF_HUB_OFFLINE"):
            reason = "HF_HUB_OFFLINE is set"
        else:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise StageFailed(
            f"ImageNet weights of {name}",
            found=f"could not be downloaded ({reason})",
            expected="a connection to the Hugging Face hub, or a local copy",
            remedy="Set `weights` in params.yaml to `none` or to a .safetensors file.",
        ) from error
    net.backbone.load_state_dict(pretrained.state_dict())
    return f"started from timm's ImageNet weights of {name}"
