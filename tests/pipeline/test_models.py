"""Starting weights are loaded or the run stops; a written network reads back the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.models import (
    EmbeddingNet,
    freeze,
    load_network,
    load_starting_weights,
    read_tensors,
    save_network,
    unit,
)


def _net(seed: int = 0, backbone: str = "mobilenetv4_conv_small") -> EmbeddingNet:
    torch.manual_seed(seed)
    return EmbeddingNet(backbone, 16, options={}, pixels="imagenet").eval()


def test_a_network_written_and_read_gives_the_same_embeddings(tmp_path: Path) -> None:
    net = _net()
    save_network(net, tmp_path / "net.safetensors", input_size_px=64)
    again, size_px = load_network(tmp_path / "net.safetensors")
    images = torch.randint(0, 256, (2, 64, 64, 3)).float()
    assert size_px == 64
    assert torch.equal(net(images), again(images))


def test_embeddings_have_unit_length() -> None:
    lengths = unit(_net()(torch.randint(0, 256, (3, 64, 64, 3)).float())).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(3))


def test_a_missing_weights_file_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="no such file"):
        load_starting_weights(_net(), str(tmp_path / "absent.safetensors"))


def test_frozen_modules_ask_for_no_gradient_and_the_others_do() -> None:
    net = _net()
    freeze(net, ["conv_stem", "blocks.0"])
    asking = {name.split(".")[0] for name, p in net.backbone.named_parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in net.backbone.blocks[0].parameters())
    assert not net.backbone.conv_stem.weight.requires_grad
    assert asking == {"bn1", "blocks", "conv_head", "norm_head"}
    assert net.head.weight.requires_grad


@pytest.mark.parametrize("name", ["", "blocks.99", "head"])
def test_a_frozen_module_that_the_backbone_has_not_stops_the_run(name: str) -> None:
    with pytest.raises(StageFailed, match="no such module in mobilenetv4_conv_small"):
        freeze(_net(), [name])


def test_imagenet_weights_without_a_connection_stop_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StageFailed, match="could not be downloaded"):
        load_starting_weights(_net(), "imagenet")


@pytest.mark.parametrize("dim", [16, 24, 8])
def test_a_trained_network_gives_its_backbone_and_the_numbers_that_both_heads_have(
    tmp_path: Path, dim: int
) -> None:
    source = _net(1)
    save_network(source, tmp_path / "net.safetensors", input_size_px=64)
    torch.manual_seed(2)
    net = EmbeddingNet("mobilenetv4_conv_small", dim, options={}, pixels="imagenet")
    start, both = net.head.weight.detach().clone(), min(dim, 16)
    load_starting_weights(net, str(tmp_path / "net.safetensors"))
    assert torch.equal(net.backbone.conv_stem.weight, source.backbone.conv_stem.weight)
    assert torch.equal(net.head.weight[:both], source.head.weight[:both])
    assert torch.equal(net.head.bias[:both], source.head.bias[:both])
    assert torch.equal(net.head.weight[both:], start[both:])


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"weight": (16, 1280)},
        {"bias": (16,)},
        {"weight": (16, 1280), "bias": (3,)},
        {"weight": (16, 1), "bias": (16,)},
        {"weight": (1280,), "bias": (16,)},
        {"weight": (16, 1280), "bias": (16,), "scale": (16,)},
    ],
)
def test_a_head_that_is_not_whole_stops_the_run(
    tmp_path: Path, head: dict[str, tuple[int, ...]]
) -> None:
    path = tmp_path / "net.safetensors"
    save_network(_net(), path, input_size_px=64)
    tensors, metadata = read_tensors(path)
    tensors = {name: values for name, values in tensors.items() if not name.startswith("head.")}
    tensors |= {f"head.{name}": torch.ones(shape) for name, shape in head.items()}
    save_file(tensors, path, metadata)
    with pytest.raises(StageFailed, match="a head of"):
        load_starting_weights(_net(), str(path))


def test_a_network_trained_with_other_pixels_stops_the_run(tmp_path: Path) -> None:
    save_network(_net(), tmp_path / "net.safetensors", input_size_px=64)
    other = EmbeddingNet("mobilenetv4_conv_small", 16, options={}, pixels="minus_one_to_one")
    with pytest.raises(StageFailed, match="a network with pixels imagenet"):
        load_starting_weights(other, str(tmp_path / "net.safetensors"))


def test_backbone_weights_are_loaded_from_a_file_and_a_classifier_is_left_out(
    tmp_path: Path,
) -> None:
    source, net = _net(1), _net(2)
    tensors = {**source.backbone.state_dict(), "classifier.weight": torch.zeros(3, 3)}
    save_file(tensors, tmp_path / "w.safetensors")
    load_starting_weights(net, str(tmp_path / "w.safetensors"))
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(net.backbone.state_dict()[key], value), key


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_stop_the_run(tmp_path: Path, damage: str) -> None:
    net = _net()
    tensors = dict(net.backbone.state_dict())
    if damage == "missing":
        tensors.pop("conv_stem.weight")
    elif damage == "unexpected":
        tensors["other.weight"] = torch.zeros(1)
    else:
        tensors["conv_stem.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(StageFailed, match=damage):
        load_starting_weights(net, str(tmp_path / "w.safetensors"))


def test_a_truncated_weights_file_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(_net().backbone.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StageFailed, match="not readable as safetensors"):
        load_starting_weights(_net(), str(path))


def test_a_file_of_another_project_is_not_a_network(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(StageFailed, match="not a PillTrack network"):
        load_network(tmp_path / "x.safetensors")


def test_a_backbone_for_one_image_size_only_is_refused() -> None:
    with pytest.raises(StageFailed, match="a convolutional network"):
        EmbeddingNet("vit_tiny_patch16_224", 16, options={}, pixels="imagenet")


def test_an_unknown_backbone_is_refused_with_the_remedy() -> None:
    with pytest.raises(StageFailed, match="list_models"):
        EmbeddingNet("resnet5000", 16, options={}, pixels="imagenet")
