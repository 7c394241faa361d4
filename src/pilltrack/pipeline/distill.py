"""Stage `distill`: a light student learns the teacher's embedding space.

Teacher and student look at the same capture, each at its own input size, so the student copies
what the teacher makes of this very picture. Both loss terms compare with the teacher's
embeddings directly: the student lands in the teacher's space and shares its galleries.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from pilltrack.pipeline.data import Batch, Captures
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
    load_network,
    load_starting_weights,
    place,
    save_network,
    unit,
    weights_file,
)
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import load_images

log = logging.getLogger(__name__)


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
    torch.manual_seed(settings.seed)
    net = EmbeddingNet(
        settings.backbone,
        teacher.head.out_features,
        options=settings.backbone_options,
        pixels=settings.pixels,
    )
    log.info("student %s: %s", settings.backbone, load_starting_weights(net, settings.weights))

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
    inputs += weights_file(settings.weights)
    checkpoint = artifacts / ".checkpoints" / "distill.pt"
    history = fit(
        net,
        loss_of_batch,
        Captures(prepared, rows, [teacher_px, settings.input_size_px], params.capture),
        settings,
        process,
        checkpoint=checkpoint,
        identity=identity_of([settings, params.capture], inputs),
        title="distill",
    )
    if process.leads:
        file = artifacts / "distill" / "student.safetensors"
        save_network(net, file, input_size_px=settings.input_size_px)
        write_history(history, file.with_name("history.csv"))
        checkpoint.unlink(missing_ok=True)
