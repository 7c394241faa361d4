"""Stage `train`: the teacher, trained by deep metric learning on captures of the train pills."""

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
from pilltrack.pipeline.losses import metric_loss
from pilltrack.pipeline.models import (
    EmbeddingNet,
    freeze,
    load_starting_weights,
    save_network,
    unit,
    weights_file,
)
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import load_images

log = logging.getLogger(__name__)


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, write `train/teacher.safetensors` and `train/history.csv`."""
    process = start_process()
    try:
        train(params, artifacts, process)
    finally:
        end_process(process)


def train(params: Params, artifacts: Path, process: Process) -> None:
    """Train the teacher; several processes share each batch (see `fit`)."""
    settings, prepared = params.train, artifacts / "prepare"
    rows = [row for row in load_images(prepared) if row.role == "fit"]
    torch.manual_seed(settings.seed)
    net = EmbeddingNet(
        settings.backbone,
        settings.embedding_dim,
        options=settings.backbone_options,
        pixels=settings.pixels,
    )
    log.info("teacher %s: %s", settings.backbone, load_starting_weights(net, settings.weights))
    freeze(net, settings.frozen)
    loss = metric_loss(settings.loss)

    def loss_of_batch(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        (images,), pills, appearances = batch
        embeddings = gather(unit(net(images)), process)
        return loss(embeddings, gather(pills, process), gather(appearances, process))

    inputs = [prepared / "audit.json", prepared / "images.csv", *weights_file(settings.weights)]
    checkpoint = artifacts / ".checkpoints" / "train.pt"
    history = fit(
        net,
        loss_of_batch,
        Captures(prepared, rows, [settings.input_size_px], params.capture),
        settings,
        process,
        checkpoint=checkpoint,
        identity=identity_of([settings, params.capture], inputs),
        title="train",
    )
    if process.leads:
        file = artifacts / "train" / "teacher.safetensors"
        save_network(net, file, input_size_px=settings.input_size_px)
        write_history(history, file.with_name("history.csv"))
        checkpoint.unlink(missing_ok=True)
