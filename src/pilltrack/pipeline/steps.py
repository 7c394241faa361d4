"""Training counted in steps: the rate of each, a finite loss, the history, the checkpoints.

What a step sees is up to the caller and must follow from its number alone: then a run that was
killed and started again ends with the weights of one left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pilltrack.pipeline.fit import learning_rate, must_be_finite, resume, save
from pilltrack.pipeline.params import LocateParams

log = logging.getLogger(__name__)

ROW_STEPS = 50  # in a row of the history
COLUMNS = ("step", "loss", "learning_rate")  # of the history


class Steps:
    """One network's training: `begin` a step, compute its loss, `end` it.

    `done` steps of `count` lie behind; `history` has a row (keys: COLUMNS) for every ROW_STEPS of
    them. Each parameter group of the optimiser learns at its share of the rate, whose highest
    value is what the optimiser was made with; `setting` is its name in the settings. Goes on from
    `checkpoint` when that belongs to the same `identity`. Raises StageFailed when the checkpoint
    is damaged.
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
        setting: str = "learning_rate",
        shares: Sequence[float] = (1.0,),
    ) -> None:
        self._title, self._net, self._optimiser, self._count = title, net, optimiser, count
        self._settings, self._checkpoint, self._identity = settings, checkpoint, identity
        self._setting, self._shares = setting, shares
        self._highest = float(optimiser.param_groups[0]["lr"])  # before a checkpoint's comes in
        self._rate: float | None = None  # of the step that was begun
        device = next(net.parameters()).device
        self.done, self.history, self._losses = resume(checkpoint, identity, net, optimiser, device)
        self._saved_s = time.monotonic()

    def begin(self) -> None:
        """Set the rate of the coming step."""
        warmup_share = self._settings.warmup_share
        self._rate = learning_rate(self.done, self._count, self._highest, warmup_share)
        for group, share in zip(self._optimiser.param_groups, self._shares, strict=True):
            group["lr"] = share * self._rate

    def end(self, loss: torch.Tensor, longest_gradient: float | None = None) -> float:
        """Learn from the loss, and return its value.

        A gradient of all weights together that is longer (Euclidean) than `longest_gradient` is
        shortened to it. Raises StageFailed when the loss is not finite.
        """
        assert self._rate is not None, "a step must begin before it ends"
        value = must_be_finite(loss, f"{self._title}, step {self.done + 1}", self._setting)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if longest_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self._net.parameters(), longest_gradient)
        self._optimiser.step()
        self.done += 1
        self._losses.append(value)
        is_last = self.done == self._count
        if is_last or self.done % ROW_STEPS == 0:
            row = (self.done, sum(self._losses) / len(self._losses), self._rate)
            self.history.append(dict(zip(COLUMNS, row, strict=True)))
            log.debug("%s: step %d, loss %.4f", self._title, *row[:2])
            self._losses = []
        if is_last or time.monotonic() - self._saved_s > self._settings.checkpoint_every_s:
            save(
                self._checkpoint, self._identity, self._net, self._optimiser,
                self.done, self.history, self._losses,
            )  # fmt: skip
            self._saved_s = time.monotonic()
        self._rate = None
        return value
