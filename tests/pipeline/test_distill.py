"""The student copies what the teacher makes of a capture in all its quarter turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pilltrack.pipeline import distill
from pilltrack.pipeline.distill import embeddings_of_turns
from pilltrack.pipeline.fit import end_process, start_process
from pilltrack.pipeline.models import EmbeddingNet, save_network
from pilltrack.pipeline.params import Params


def test_what_is_copied_is_the_same_for_a_picture_in_any_quarter_turn() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((3, 8, 8, 3), generator=generator)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 5))
    found = embeddings_of_turns(net, images)
    assert torch.allclose(found.norm(dim=1), torch.ones(3))
    assert not torch.allclose(found[0], found[1], atol=0.1)
    for turn in range(1, 4):
        turned = embeddings_of_turns(net, images.rot90(turn, (1, 2)))
        torch.testing.assert_close(turned, found)


def test_of_a_network_that_sees_no_turn_it_is_the_embedding_itself() -> None:
    images = torch.rand((2, 4, 4, 3), generator=torch.Generator().manual_seed(2))
    net = torch.nn.Sequential(torch.nn.Flatten(1, 2), _MeanColour())
    expected = torch.nn.functional.normalize(images.mean(dim=(1, 2)), dim=1)
    torch.testing.assert_close(embeddings_of_turns(net, images), expected)


class _MeanColour(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=1)


def test_the_student_copies_that_mean(
    tiny_params: Params, tiny_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(student: torch.Tensor, target: torch.Tensor, **how: float) -> torch.Tensor:
        targets.append(target)
        return (student - target).square().sum()

    def turned(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        made.append(embeddings_of_turns(net, images))
        return made[-1]

    targets: list[torch.Tensor] = []
    made: list[torch.Tensor] = []
    monkeypatch.setattr(distill, "distillation_loss", loss)
    monkeypatch.setattr(distill, "embeddings_of_turns", turned)
    settings = tiny_params.distill.model_copy(update={"epochs": 1})
    params = tiny_params.model_copy(update={"distill": settings})
    net = EmbeddingNet(settings.backbone, 4, options={}, pixels="imagenet").eval()
    save_network(net, tmp_path / "net.safetensors", input_size_px=32)
    teacher = distill.Teacher(net, 32, tmp_path / "net.safetensors")
    process = start_process()
    try:
        student = distill.student_of(teacher, settings)
        distill.teach(student, teacher, params, tiny_artifacts, process, checkpoint=None)
    finally:
        end_process(process)
    assert len(made) > 0
    for target, mean in zip(targets, made, strict=True):
        torch.testing.assert_close(target, mean)
