"""Stage `distill`: a light student learns the teacher's embedding space.

Teacher and student look at the same capture, each at its own input size, so the student copies
what the teacher makes of this very picture: the mean over its quarter turns, as of a reference.
Both loss terms compare with the teacher's embeddings directly: the student lands in the teacher's
space and shares its galleries. A student may also be the teacher's twin, and learn to live with
int8. A teacher that cannot tell validation pills apart is refused before hours are spent on
copying it.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.image import read_image
from pilltrack.core.metrics import best_per_pill, recall_at_k
from pilltrack.pipeline.data import Batch, Captures, captured
from pilltrack.pipeline.fit import (
    AfterEpoch,
    Process,
    end_process,
    fit,
    gather,
    identity_of,
    start_process,
    write_history,
)
from pilltrack.pipeline.losses import distillation_loss
from pilltrack.pipeline.models import (
    EmbeddingNet,
    freeze,
    load_network,
    load_starting_weights,
    place,
    save_network,
    unit,
    weights_file,
)
from pilltrack.pipeline.params import DistillParams, Params
from pilltrack.pipeline.rounding import add_int8_rounding, settle_int8_rounding
from pilltrack.pipeline.table import appearance_of, load_images
from pilltrack.pipeline.torch_embedder import TorchEmbedder

log = logging.getLogger(__name__)
MAX_VALIDATION_PHOTOS = 400


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `train/`, write `distill/student.safetensors` and `history.csv`."""
    process = start_process()
    try:
        distill(params, artifacts, process)
    finally:
        end_process(process)


def distill(params: Params, artifacts: Path, process: Process) -> None:
    """Train the student; several processes share each batch (see `fit`)."""
    teacher = open_teacher(params, artifacts, process)
    checkpoint = artifacts / ".checkpoints" / "distill.pt"
    student = student_of(teacher, params.distill)
    history = teach(student, teacher, params, artifacts, process, checkpoint=checkpoint)
    if process.leads:
        file = artifacts / "distill" / "student.safetensors"
        save_network(student, file, input_size_px=params.distill.input_size_px)
        write_history(history, file.with_name("history.csv"))
        checkpoint.unlink(missing_ok=True)


@dataclass(frozen=True)
class Teacher:
    """The network that is copied, the size of picture that it takes, and its file."""

    net: EmbeddingNet
    size_px: int
    file: Path


def open_teacher(params: Params, artifacts: Path, process: Process) -> Teacher:
    """Load what `train` wrote. Raises GateFailed when it does not tell validation pills apart."""
    file = artifacts / "train" / "teacher.safetensors"
    net, size_px = load_network(file)
    net.requires_grad_(False)
    place(net, process.device)
    _require_able(net, validation_probes(params, artifacts / "prepare", size_px), params.distill)
    return Teacher(net, size_px, file)


def student_of(teacher: Teacher, settings: DistillParams) -> EmbeddingNet:
    """A student as it is before the first step."""
    torch.manual_seed(settings.seed)
    net = EmbeddingNet(
        settings.backbone,
        teacher.net.head.out_features,
        options=settings.backbone_options,
        pixels=settings.pixels,
    )
    log.info("student %s: %s", settings.backbone, _load_start(net, teacher.net, settings.weights))
    freeze(net, settings.frozen)
    if settings.int8_rounding:
        add_int8_rounding(net)
    return net


def teach(
    student: EmbeddingNet,
    teacher: Teacher,
    params: Params,
    artifacts: Path,
    process: Process,
    *,
    checkpoint: Path | None,
    title: str = "distill",
    after_epoch: AfterEpoch | None = None,
) -> list[dict[str, float]]:
    """Train the student in place and return the history; the last arguments are those of `fit`."""
    settings, prepared = params.distill, artifacts / "prepare"
    rows = [row for row in load_images(prepared) if row.role == "fit"]

    def loss_of_batch(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        (for_teacher, for_student), _, _ = batch
        return distillation_loss(
            gather(unit(net(for_student)), process),
            gather(embeddings_of_turns(teacher.net, for_teacher), process),
            temperature=settings.temperature,
            alpha=settings.alpha,
        )

    inputs = [prepared / "audit.json", prepared / "images.csv", teacher.file]
    if settings.weights != "teacher":
        inputs += weights_file(settings.weights)
    sizes_px = [teacher.size_px, settings.input_size_px]
    history = fit(
        student,
        loss_of_batch,
        Captures(prepared, rows, sizes_px, params.capture, settings.variants_per_pill),
        settings,
        process,
        checkpoint=checkpoint,
        identity=identity_of([settings, params.capture], inputs),
        title=title,
        after_epoch=after_epoch,
    )
    settle_int8_rounding(student)
    return history


@torch.no_grad()
def embeddings_of_turns(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unit means (N, D) over the quarter turns of images (N, S, S, 3), as of a photo enrolled.

    They name more pills right than single embeddings (docs/lab-log.md), but take four times as
    long, which a device has no time for.
    """
    turns = [unit(net(images.rot90(turn, (1, 2)).contiguous())) for turn in range(4)]
    return unit(torch.stack(turns).mean(dim=0))


def _load_start(net: EmbeddingNet, teacher: EmbeddingNet, weights: str) -> str:
    if weights != "teacher":
        return load_starting_weights(net, weights)
    if net.description != teacher.description:
        raise StageFailed(
            "distill.weights: teacher",
            found=f"a student {net.description} for a teacher {teacher.description}",
            expected="the same network",
            remedy="Give distill the backbone, backbone_options and pixels of train in "
            "params.yaml, or other weights.",
        )
    net.load_state_dict(teacher.state_dict())
    return "started from the teacher"


def _require_able(net: EmbeddingNet, probes: Probes, settings: DistillParams) -> None:
    recall = probes.recall_at_1(net)
    log.info("teacher: recall@1 %.1f %% on validation pills", 100 * recall)
    if not recall >= settings.min_teacher_recall_at_1:
        raise GateFailed(
            "distill: the teacher",
            found=f"recall@1 {recall:.3f} on captures of {len(set(probes.pills))} validation pills",
            expected=f"at least {settings.min_teacher_recall_at_1:.3f} "
            "(distill.min_teacher_recall_at_1)",
            remedy="Train the teacher longer; look at artifacts/train/history.csv.",
        )


@dataclass(frozen=True)
class Probes:
    """Captures of validation pills, and the photos among which each must find its pill."""

    captures: list[NDArray[np.uint8]]
    photos: list[NDArray[np.uint8]]
    pills: list[str]  # of both
    left_out: NDArray[np.bool_]  # (captures, photos): the capture's own, where its side has others
    size_px: int

    def recall_at_1(self, net: EmbeddingNet) -> float:
        """Share of the captures whose nearest photo shows the right pill; leaves `net` in eval."""
        embedder = TorchEmbedder(net, self.size_px, space="validation")
        similarities = embedder.embed(self.captures) @ embedder.embed(self.photos).T
        similarities[self.left_out] = -1
        return recall_at_k(*best_per_pill(similarities, self.pills), self.pills, k=1)


def validation_probes(params: Params, prepared: Path, size_px: int) -> Probes:
    """Photos of validation pills, `MAX_VALIDATION_PHOTOS` at most, and one capture of each."""
    validation = [row for row in load_images(prepared) if row.split == "validation"]
    shuffled = np.random.default_rng(params.distill.seed).permutation(
        sorted({row.pill for row in validation})
    )
    order = {pill: place for place, pill in enumerate(shuffled)}
    rows = sorted(validation, key=lambda row: (order[row.pill], row))[:MAX_VALIDATION_PHOTOS]
    photos = [read_image(prepared / row.image) for row in rows]
    seeds = np.random.default_rng(params.distill.seed).integers(2**62, size=len(rows))
    captures = [
        captured(photo, size_px, params.capture, int(seed))
        for photo, seed in zip(photos, seeds, strict=True)
    ]
    groups_of = Counter(appearance_of(row) for row in {row.group: row for row in rows}.values())
    left_out = [
        [groups_of[appearance_of(row)] > 1 and other.group == row.group for other in rows]
        for row in rows
    ]
    return Probes(captures, photos, [row.pill for row in rows], np.array(left_out), size_px)
