"""Stage `distill`: a light student learns the teacher's embedding space.

Teacher and student look at the same capture, each at its own input size, so the student copies
what the teacher makes of this very picture. Both loss terms compare with the teacher's
embeddings directly: the student lands in the teacher's space and shares its galleries. A student
may also be the teacher's twin, and learn only to live with int8. A teacher that cannot tell
validation pills apart is refused before hours are spent on copying it.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.image import read_image
from pilltrack.core.metrics import best_per_pill, recall_at_k
from pilltrack.pipeline.data import Batch, Captures, appearance_of, captured
from pilltrack.pipeline.fit import (
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
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.rounding import add_int8_rounding, settle_int8_rounding
from pilltrack.pipeline.table import load_images
from pilltrack.pipeline.torch_embedder import TorchEmbedder

log = logging.getLogger(__name__)
MAX_TEACHER_PHOTOS = 400


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/` and `train/`, write `distill/student.safetensors` and `history.csv`."""
    process = start_process()
    try:
        distill(params, artifacts, process)
    finally:
        end_process(process)


def distill(params: Params, artifacts: Path, process: Process) -> None:
    """Train the student; several processes share each batch (see `fit`)."""
    settings, prepared = params.distill, artifacts / "prepare"
    rows = [row for row in load_images(prepared) if row.role == "fit"]
    teacher_file = artifacts / "train" / "teacher.safetensors"
    teacher, teacher_px = load_network(teacher_file)
    teacher.requires_grad_(False)
    place(teacher, process.device)
    _require_able(teacher, teacher_px, params, prepared)
    torch.manual_seed(settings.seed)
    net = EmbeddingNet(
        settings.backbone,
        teacher.head.out_features,
        options=settings.backbone_options,
        pixels=settings.pixels,
    )
    log.info("student %s: %s", settings.backbone, _load_start(net, teacher, settings.weights))
    freeze(net, settings.frozen)
    if settings.int8_rounding:
        add_int8_rounding(net)

    def loss_of_batch(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        (for_teacher, for_student), _, _ = batch
        with torch.no_grad():
            target = gather(unit(teacher(for_teacher)), process)
        return distillation_loss(
            gather(unit(net(for_student)), process),
            target,
            temperature=settings.temperature,
            alpha=settings.alpha,
        )

    inputs = [prepared / "audit.json", prepared / "images.csv", teacher_file]
    if settings.weights != "teacher":
        inputs += weights_file(settings.weights)
    checkpoint = artifacts / ".checkpoints" / "distill.pt"
    history = fit(
        net,
        loss_of_batch,
        Captures(
            prepared,
            rows,
            [teacher_px, settings.input_size_px],
            params.capture,
            settings.variants_per_pill,
        ),
        settings,
        process,
        checkpoint=checkpoint,
        identity=identity_of([settings, params.capture], inputs),
        title="distill",
    )
    settle_int8_rounding(net)
    if process.leads:
        file = artifacts / "distill" / "student.safetensors"
        save_network(net, file, input_size_px=settings.input_size_px)
        write_history(history, file.with_name("history.csv"))
        checkpoint.unlink(missing_ok=True)


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


def _require_able(net: EmbeddingNet, size_px: int, params: Params, prepared: Path) -> None:
    """Raise GateFailed unless the teacher tells validation pills apart.

    It must find the pill of a capture among the photos of all of them, the capture's own photo
    left out where its side has others.
    """
    validation = [row for row in load_images(prepared) if row.split == "validation"]
    shuffled = np.random.default_rng(params.distill.seed).permutation(
        sorted({row.pill for row in validation})
    )
    order = {pill: place for place, pill in enumerate(shuffled)}
    rows = sorted(validation, key=lambda row: (order[row.pill], row))[:MAX_TEACHER_PHOTOS]
    photos = [read_image(prepared / row.image) for row in rows]
    seeds = np.random.default_rng(params.distill.seed).integers(2**62, size=len(rows))
    captures = [
        captured(photo, size_px, params.capture, int(seed))
        for photo, seed in zip(photos, seeds, strict=True)
    ]
    embedder = TorchEmbedder(net, size_px, space="teacher")
    pills = [row.pill for row in rows]
    similarities = embedder.embed(captures) @ embedder.embed(photos).T
    groups_of = Counter(appearance_of(row) for row in {row.group: row for row in rows}.values())
    for index, row in enumerate(rows):
        if groups_of[appearance_of(row)] > 1:
            similarities[index, [other.group == row.group for other in rows]] = -1
    recall = recall_at_k(*best_per_pill(similarities, pills), pills, k=1)
    log.info("teacher: recall@1 %.1f %% on validation pills", 100 * recall)
    if not recall >= params.distill.min_teacher_recall_at_1:
        raise GateFailed(
            "distill: the teacher",
            found=f"recall@1 {recall:.3f} on captures of {len(set(pills))} validation pills",
            expected=f"at least {params.distill.min_teacher_recall_at_1:.3f} "
            "(distill.min_teacher_recall_at_1)",
            remedy="Train the teacher longer; look at artifacts/train/history.csv.",
        )
