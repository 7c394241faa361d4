"""Pairs and losses, with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pilltrack.pipeline.losses import (
    WithProxies,
    appearance_pairs,
    distillation_loss,
    metric_loss,
    proxy_loss,
)
from pilltrack.pipeline.models import unit


def test_front_and_back_of_a_pill_are_neither_positive_nor_negative() -> None:
    pills = torch.tensor([0, 0, 1])  # pill 0: front and back
    appearances = torch.tensor([0, 1, 2])
    anchors, positives, anchors_of_negatives, negatives = appearance_pairs(pills, appearances)
    assert len(anchors) == len(positives) == 0
    pairs = set(zip(anchors_of_negatives.tolist(), negatives.tolist(), strict=True))
    assert pairs == {(0, 2), (2, 0), (1, 2), (2, 1)}


@pytest.mark.parametrize("name", ["supcon", "multi_similarity"])
def test_metric_loss_prefers_equal_appearances_together(name: str) -> None:
    pills = appearances = torch.tensor([0, 0, 1, 1])
    together = unit(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]))
    mixed = together[[0, 2, 1, 3]]
    loss = metric_loss(name)
    assert loss(together, pills, appearances) < loss(mixed, pills, appearances)


def test_proxy_loss_leaves_the_other_side_of_a_pill_out() -> None:
    of_proxies = torch.tensor([0, 0, 1])  # pill 0: front and back
    cosines = torch.tensor([[0.5, 0.9, 0.4]])
    front = proxy_loss(cosines, of_proxies, torch.tensor([0]), torch.tensor([0]))
    # Against pill 1 alone: ln(1 + exp((0.4 - 0.5) / 0.05)).
    assert front.item() == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-4)
    single = proxy_loss(cosines, of_proxies, torch.tensor([1]), torch.tensor([2]))
    expected = math.log(1 + math.exp(2.0) + math.exp(10.0))
    assert single.item() == pytest.approx(expected, rel=1e-4)


def test_a_margin_asks_the_own_proxy_to_be_nearer() -> None:
    cosines, of_proxies = torch.tensor([[0.5, 0.4]]), torch.tensor([0, 1])
    labels = torch.tensor([0])
    loss = proxy_loss(cosines, of_proxies, labels, labels, margin=0.2)
    # As if the own cosine were 0.3: ln(1 + exp((0.4 - 0.3) / 0.05)).
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-4)


def test_proxies_keep_the_direction_they_begin_with_and_learn() -> None:
    start = torch.tensor([[2.0, 0.0], [0.0, 0.3]])
    learner = WithProxies(torch.nn.Linear(2, 2, bias=False), start, torch.tensor([0, 1]))
    embeddings, cosines = learner(torch.tensor([[1.0, 2.0]]))
    assert embeddings.norm().item() == pytest.approx(1.0)
    torch.testing.assert_close(cosines, embeddings)  # the proxies are the axes
    labels = torch.tensor([0])
    proxy_loss(cosines, learner.pills, labels, labels).backward()  # type: ignore[no-untyped-call]
    assert learner.proxies.grad is not None
    assert learner.proxies.grad.abs().sum() > 0
    assert "pills" not in learner.state_dict()


def test_a_student_equal_to_its_teacher_has_no_loss() -> None:
    teacher = unit(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    loss = distillation_loss(teacher.clone(), teacher, temperature=0.1, alpha=0.5)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_alpha_one_leaves_the_embedding_loss() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[0.6, 0.8], [0.0, 1.0]])  # cosines 0.6 and 1.0
    loss = distillation_loss(student, teacher, temperature=1.0, alpha=1.0)
    assert loss.item() == pytest.approx(0.2)


def test_alpha_zero_leaves_the_similarity_loss() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    student = teacher[[1, 0]]
    # Teacher rows: softmax(1, 0); student rows: softmax(0, 1). KL = p ln(p/q) + q ln(q/p).
    p = math.e / (math.e + 1)
    expected = (2 * p - 1) * math.log(p / (1 - p))
    loss = distillation_loss(student, teacher, temperature=1.0, alpha=0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("closeness", [0.3, 0.02])
def test_losses_are_computed_in_full_precision_under_autocast(closeness: float) -> None:
    generator = torch.Generator().manual_seed(1)
    teacher = unit(torch.randn(32, 64, generator=generator))
    student = unit(teacher + closeness * torch.randn(32, 64, generator=generator))
    labels = torch.arange(32) // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distilled = distillation_loss(student, teacher, temperature=0.1, alpha=0.0)
        metric = metric_loss("supcon")(student, labels, labels)
    assert distilled == distillation_loss(student, teacher, temperature=0.1, alpha=0.0)
    assert metric == metric_loss("supcon")(student, labels, labels)
