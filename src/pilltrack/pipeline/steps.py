"""Training counted in steps: the rate of each, a finite loss, the history, the checkpoints.

What a step sees is up to the caller and must follow from its number alone: then a run that was
killed and started again ends with the weights of one left alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pilltrack.pipeline.fit import learning_rate, must_be_finite, resume, save
from pilltrack.pipeline.params import LocateParams

ROW_STEPS = 50  # in a row of the history
COLUMNS = ("step", "loss", "learning_rate")  # of the history


class Steps:
    """One network's training: `begin` a step, compute its loss, `end` it.

    `done` steps of `count` lie behind, `history` has a row (keys: COLUMNS) for every ROW_STEPS of
    them. `rate` names the highest learning rate among the settings; a parameter group of the
    optimiser learns at its `share` of it, 1 where it has none. It goes on from `checkpoint` when
    that belongs to the same `identity`. Raises StageFailed when the checkpoint is damaged.
    """

    def __init__(
        self,
        title: str,
        net: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        count: int,
        settings: LocateParams,
        checkpoint: Path,
        identity: str,
        *,
        rate: str = "learning_rate",
    ) -> None:
        self.title, self.net, self.optimiser, self.count = title, net, optimiser, count
        self.settings, self.checkpoint, self.identity = settings, checkpoint, identity
        self.rate = rate
        device = next(net.parameters()).device
        self.done, self.history, self._losses = resume(checkpoint, identity, net, optimiser, device)
        self._rate = 0.0
        self._saved_s = time.monotonic()

    def begin(self) -> None:
        """Set the rate of the coming step."""
        highest: float = getattr(self.settings, self.rate)
        self._rate = learning_rate(self.done, self.count, highest, self.settings.warmup_share)
        for group in self.optimiser.param_groups:
            group["lr"] = group.get("share", 1.0) * self._rate

    def end(self, loss: torch.Tensor, longest_gradient: float = float("inf")) -> None:
        """Learn from the loss. Raises StageFailed when it is not finite."""
        value = must_be_finite(loss, f"{self.title}, step {self.done + 1}", self.rate)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), longest_gradient)
        self.optimiser.step()
        self.done += 1
        self._losses.append(value)
        is_last = self.done == self.count
        if is_last or self.done % ROW_STEPS == 0:
            row = (self.done, sum(self._losses) / len(self._losses), self._rate)
            self.history.append(dict(zip(COLUMNS, row, strict=True)))
            self._losses = []
        if is_last or time.monotonic() - self._saved_s > self.settings.checkpoint_every_s:
            save(
                self.checkpoint, self.identity, self.net, self.optimiser,
                self.done, self.history, self._losses,
            )  # fmt: skip
            self._saved_s = time.monotonic()
