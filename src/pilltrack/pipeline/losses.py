"""What training pulls together and pushes apart, and what a student takes from its teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
MetricLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_PROXY_NORM = 0.05


def appearance_pairs(pills: torch.Tensor, appearances: torch.Tensor) -> Pairs:
    """Index pairs for a batch: (anchor, positive, anchor, negative).

    Positives show the same appearance (pill and side), negatives another pill. Front and back of
    one pill are in neither set: they look different and must not be pushed apart either.

    >>> a, p, b, n = appearance_pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2]))
    >>> list(zip(a.tolist(), p.tolist())), list(zip(b.tolist(), n.tolist()))
    ([(0, 1), (1, 0)], [(0, 2), (1, 2), (2, 0), (2, 1)])
    """
    same = appearances[:, None] == appearances[None, :]
    same.fill_diagonal_(False)
    other = pills[:, None] != pills[None, :]
    anchors, positives = torch.nonzero(same, as_tuple=True)
    anchors_of_negatives, negatives = torch.nonzero(other, as_tuple=True)
    return anchors, positives, anchors_of_negatives, negatives


def metric_loss(name: str) -> MetricLoss:
    """A loss of (unit embeddings (N, D), pills (N,), appearances (N,)); the result is a scalar.

    `supcon`: Khosla et al. 2020, eq. 2, temperature 0.1. `multi_similarity`: Wang et al. 2019,
    eq. 12, alpha 2, beta 50, base 0.5. Both as implemented in pytorch-metric-learning.
    """
    from pilltrack.pipeline.torchvision_import import ensure_torchvision

    ensure_torchvision()
    from pytorch_metric_learning import losses

    if name == "supcon":
        loss = losses.SupConLoss(temperature=0.1)
    else:
        loss = losses.MultiSimilarityLoss(alpha=2.0, beta=50.0, base=0.5)

    def of_batch(
        embeddings: torch.Tensor, pills: torch.Tensor, appearances: torch.Tensor
    ) -> torch.Tensor:
        with _full_precision(embeddings):
            value: torch.Tensor = loss(embeddings, pills, appearance_pairs(pills, appearances))
        return value

    return of_batch


class WithProxies(nn.Module):
    """A network and one learned direction, a proxy, for each appearance it is trained on.

    A pair loss sees the pills of one batch; the proxies stand for all the others. They are
    needed only in training.
    """

    pills: torch.Tensor  # (A,)

    def __init__(self, net: nn.Module, start: torch.Tensor, pills: torch.Tensor) -> None:
        """`start` (A, D): where each proxy begins; `pills` (A,): whose appearance it is."""
        super().__init__()
        self.net = net
        # An optimiser's steps do not grow with the weights: short proxies turn faster.
        self.proxies = nn.Parameter(_PROXY_NORM * functional.normalize(start, dim=1))
        self.register_buffer("pills", pills, persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings (N, D) of images (N, S, S, 3); their cosines (N, A) to the proxies."""
        raw = self.net(images)
        with _full_precision(raw):
            embeddings = functional.normalize(raw.float(), dim=1)
            return embeddings, embeddings @ functional.normalize(self.proxies, dim=1).T


def proxy_loss(
    cosines: torch.Tensor,
    of_proxies: torch.Tensor,
    pills: torch.Tensor,
    appearances: torch.Tensor,
    *,
    margin: float = 0.0,
) -> torch.Tensor:
    """Mean cross-entropy of `cosines` (N, A) to all proxies; a pill's other side takes no part.

    `of_proxies` (A,): the pill of each proxy; `pills` (N,), `appearances` (N,) of the batch;
    `margin`: by how much its own proxy must be nearer than any other. Normalised softmax of Zhai
    and Wu 2019, eq. 3, with their temperature 0.05; the margin is that of CosFace, Wang et al.
    2018, eq. 4.
    """
    with _full_precision(cosines):
        own = functional.one_hot(appearances, len(of_proxies)).bool()
        siblings = (of_proxies[None] == pills[:, None]) & ~own
        logits = ((cosines - margin * own) / 0.05).masked_fill(siblings, float("-inf"))
        return functional.cross_entropy(logits, appearances)


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, *, temperature: float, alpha: float
) -> torch.Tensor:
    """alpha * embedding loss + (1 - alpha) * similarity-distribution loss; both (N, D) unit rows.

    Embedding loss: mean of 1 - cos(student_i, teacher_i). Similarity loss: mean KL divergence of
    the student's from the teacher's softmax over the batch, with the teacher's embeddings as the
    gallery for both, so that student probes can be searched among teacher references (the
    similarity-distribution idea of Fang et al. 2021, SEED, eq. 3, with the batch as the queue).
    """
    with _full_precision(student):
        embedding = 1.0 - (student * teacher).sum(dim=1).mean()
        target = functional.softmax(teacher @ teacher.T / temperature, dim=1)
        predicted = functional.log_softmax(student @ teacher.T / temperature, dim=1)
        similarity = functional.kl_div(predicted, target, reduction="batchmean")
        return alpha * embedding + (1.0 - alpha) * similarity


def _full_precision(embeddings: torch.Tensor) -> torch.autocast:
    """No autocast: cosines near 1, divided by a temperature, need more than 8 bits."""
    return torch.autocast(embeddings.device.type, enabled=False)
