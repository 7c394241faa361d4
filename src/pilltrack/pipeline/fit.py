"""One training loop for teacher and student: single process, or several under torchrun.

The loop can be stopped at any step: what a step does follows from the settings, the epoch and the
step alone, and a checkpoint holds all that changes (weights, optimiser, history). On a CPU a run
killed and started again ends with the same weights as one left alone; a GPU rounds differently
each time.

Under torchrun every process computes its share of each batch and the embeddings are gathered, so
that the loss sees the whole batch: two processes train what one would have trained, as long as
batch norms keep their statistics (`batch_norm: eval`) and each capture is seen once
(`views_per_photo: 1`); in train mode each process normalises over its own share, and further views
are drawn by each process for itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.nn import functional as distributed_functional
from tqdm import tqdm

from pilltrack.core.errors import StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.pipeline.data import Batch, Captures, Item, batch_plan, load_batches, shares_of_rank
from pilltrack.pipeline.depthwise import fast_depthwise
from pilltrack.pipeline.models import place
from pilltrack.pipeline.params import DistillParams, TrainParams
from pilltrack.pipeline.table import write_csv
from pilltrack.pipeline.views import several_views

log = logging.getLogger(__name__)

LossOfBatch = Callable[[torch.nn.Module, Batch], torch.Tensor]
AfterEpoch = Callable[[dict[str, float]], None]  # gets the new row of the history
COLUMNS = ("epoch", "step", "loss", "learning_rate")


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started; alone, rank 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """True for the one process that writes files and shows progress."""
        return self.rank == 0


def start_process() -> Process:
    """Join the process group when torchrun started us, and choose the device."""
    cuda = torch.cuda.is_available()
    if not distributed.is_torchelastic_launched():
        return Process(0, 1, torch.device("cuda" if cuda else "cpu"))
    distributed.init_process_group("nccl" if cuda else "gloo")
    local = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local)
    device = torch.device(f"cuda:{local}" if cuda else "cpu")
    return Process(distributed.get_rank(), distributed.get_world_size(), device)


def end_process(process: Process) -> None:
    """Leave the process group again."""
    if process.world > 1:
        distributed.destroy_process_group()


def gather(values: torch.Tensor, process: Process) -> torch.Tensor:
    """Rows of all processes, in the order of the undivided batch; gradients flow back."""
    if process.world == 1:
        return values
    parts = (
        distributed_functional.all_gather(values)  # type: ignore[no-untyped-call]
        if values.requires_grad
        else _all_gather(values, process.world)
    )
    # Process r holds photos r, r + world, ...: interleave.
    return torch.stack(tuple(parts), dim=1).flatten(0, 1)


def fit(
    net: torch.nn.Module,
    loss_of_batch: LossOfBatch,
    captures: Captures,
    settings: TrainParams | DistillParams,
    process: Process,
    *,
    checkpoint: Path | None,
    identity: str,
    title: str,
    after_epoch: AfterEpoch | None = None,
) -> list[dict[str, float]]:
    """Train `net` in place and return the history, one row per epoch (keys: COLUMNS).

    `identity` names everything the result depends on; a checkpoint with another identity is
    ignored. Delete the checkpoint once the result is written: a finished one would be taken for
    this run's. Without a checkpoint, a killed run begins anew. `after_epoch` may look at `net`, and
    ends the training by raising. Raises StageFailed when the loss is not finite.
    """
    # A GPU's deterministic kernels would cost more than their promise is worth there.
    torch.use_deterministic_algorithms(process.device.type == "cpu")
    torch.backends.cudnn.benchmark = process.device.type == "cuda"
    place(net, process.device)
    trained = _parallel(net, process)
    optimiser = torch.optim.AdamW(
        _with_and_without_decay(net, settings.weight_decay), lr=settings.learning_rate
    )
    plans = [_plan(captures, settings, process, epoch) for epoch in range(settings.epochs)]
    plan = [batch for of_epoch in plans for batch in of_epoch]
    ends = {end: epoch for epoch, end in enumerate(accumulate(map(len, plans)), 1)}
    done, history, losses = resume(checkpoint, identity, net, optimiser, process.device)
    saved_s = epoch_s = time.monotonic()
    bar = tqdm(
        load_batches(captures, plan[done:], settings.workers),
        total=len(plan),
        initial=done,
        desc=title,
        unit="step",
        disable=None if process.leads else True,
    )
    for batch in bar:
        rate = learning_rate(done, len(plan), settings.learning_rate, settings.warmup_share)
        for group in optimiser.param_groups:
            group["lr"] = rate
        _set_mode(net, settings)
        torch.manual_seed(hash((settings.seed, done, process.rank)))  # dropout and views
        batch = _on_device(batch, process, settings.views_per_photo)
        with _autocast(settings, process), fast_depthwise(process.device):
            loss = loss_of_batch(trained, batch)
        losses.append(must_be_finite(loss, f"{title}, step {done + 1}"))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        done += 1
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        if done in ends:
            row = (ends[done], done, sum(losses) / len(losses), rate)
            history.append(dict(zip(COLUMNS, row, strict=True)))
            seconds, epoch_s = time.monotonic() - epoch_s, time.monotonic()
            log.debug("%s: epoch %d, loss %.4f, %.1f s", title, ends[done], row[2], seconds)
            losses = []
            if after_epoch:
                after_epoch(history[-1])
        if checkpoint is None:
            continue
        if done in ends or time.monotonic() - saved_s > settings.checkpoint_every_s:
            if process.leads:
                save(checkpoint, identity, net, optimiser, done, history, losses)
            saved_s = time.monotonic()
    if history:
        log.info("%s: %d steps, loss %.4f", title, done, history[-1]["loss"])
    net.eval()
    return history


def learning_rate(step: int, steps: int, highest: float, warmup_share: float) -> float:
    """Linear warm-up over `warmup_share` of all steps, then half a cosine down to zero.

    >>> [round(learning_rate(step, 4, 1.0, 0.5), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return highest * 0.5 * (1.0 + math.cos(math.pi * progress))


def must_be_finite(loss: torch.Tensor, where: str, setting: str = "learning_rate") -> float:
    """The value of a step's loss; `where` names the step, `setting` is its learning rate's.

    Raises StageFailed when it is not finite.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise StageFailed(
            where,
            found=f"loss {value}",
            expected="a finite loss",
            remedy=f"Lower `{setting}` in params.yaml.",
        )
    return value


def resume(
    checkpoint: Path | None,
    identity: str,
    net: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
) -> tuple[int, list[dict[str, float]], list[float]]:
    """Load weights and optimiser from a checkpoint: steps done, history, losses since its last row.

    Nothing is loaded, and all three are zero or empty, when there is no checkpoint or it has
    another identity. Raises StageFailed when it is damaged.
    """
    if checkpoint is None or not checkpoint.is_file():
        return 0, [], []
    try:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
    except Exception as error:
        raise StageFailed(
            str(checkpoint),
            found=f"a damaged checkpoint ({error})",
            expected="the checkpoint of an interrupted run",
            remedy="Delete it to start anew.",
        ) from error
    if saved["identity"] != identity:
        log.info("the checkpoint %s belongs to other settings or data: starting anew", checkpoint)
        return 0, [], []
    net.load_state_dict(saved["net"])
    optimiser.load_state_dict(saved["optimiser"])
    log.info("resuming at step %d from %s", saved["step"], checkpoint)
    return saved["step"], saved["history"], saved["losses"]


def save(
    checkpoint: Path,
    identity: str,
    net: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    history: list[dict[str, float]],
    losses: list[float],
) -> None:
    """Write what `resume` reads; whole or not at all."""
    state = {
        "identity": identity,
        "net": net.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "history": history,
        "losses": losses,
    }
    written = io.BytesIO()
    torch.save(state, written)
    write_atomically(checkpoint, written.getvalue())


def identity_of(settings: Iterable[Any], inputs: Iterable[Path]) -> str:
    """Digest of all that a training run depends on: parameter sections, input files, code, torch.

    The code is the source of every module of `pilltrack.core` and `pilltrack.pipeline` that is
    loaded; editing any other file keeps a checkpoint usable.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    for name in sorted(sys.modules):
        if name.startswith(("pilltrack.core.", "pilltrack.pipeline.")):
            digest.update(Path(str(sys.modules[name].__file__)).read_bytes())
    for section in settings:
        digest.update(json.dumps(section.model_dump(mode="json"), sort_keys=True).encode())
    for path in inputs:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write_history(
    history: list[dict[str, float]], path: Path, columns: Sequence[str] = COLUMNS
) -> None:
    """Write the history as CSV, one row for each of its dicts; whole or not at all."""
    write_csv(path, columns, [[row[column] for column in columns] for row in history])


def _plan(
    captures: Captures, settings: TrainParams | DistillParams, process: Process, epoch: int
) -> list[list[Item]]:
    plan = batch_plan(
        captures.labels,
        pills_per_batch=settings.pills_per_batch,
        photos_per_pill=settings.photos_per_pill,
        seed=settings.seed,
        epoch=epoch,
    )
    for batch in plan:
        if len(batch) % process.world:
            raise StageFailed(
                "torchrun",
                found=f"a batch of {len(batch)} photos for {process.world} processes",
                expected="pills_per_batch x photos_per_pill divisible by the number of processes",
                remedy="Change pills_per_batch in params.yaml, or start fewer processes.",
            )
    return shares_of_rank(plan, process.rank, process.world)


def _parallel(net: torch.nn.Module, process: Process) -> torch.nn.Module:
    if process.world == 1:
        return net
    return torch.nn.parallel.DistributedDataParallel(net)


def _with_and_without_decay(net: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _set_mode(net: torch.nn.Module, settings: TrainParams | DistillParams) -> None:
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            own = list(module.parameters())
            frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
            if settings.batch_norm == "eval" or frozen:
                module.eval()


def _autocast(settings: TrainParams | DistillParams, process: Process) -> torch.autocast:
    on_gpu = process.device.type == "cuda"
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and on_gpu)
    return torch.autocast(process.device.type, dtype=torch.bfloat16, enabled=bf16)


def _on_device(batch: Batch, process: Process, views: int) -> Batch:
    images, pills, appearances = batch
    to = process.device
    images = [of_size.to(to).float() for of_size in images]
    if views > 1:
        images = several_views(images, views)
        pills, appearances = (part.repeat_interleave(views) for part in (pills, appearances))
    return images, pills.to(to), appearances.to(to)


def _all_gather(values: torch.Tensor, world: int) -> list[torch.Tensor]:
    parts = [torch.empty_like(values) for _ in range(world)]
    distributed.all_gather(parts, values)
    return parts
