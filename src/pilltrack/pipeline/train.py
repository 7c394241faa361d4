"""Stage `train`: the teacher, trained by deep metric learning on captures of the train pills."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
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
from pilltrack.pipeline.losses import WithProxies, metric_loss, proxy_loss
from pilltrack.pipeline.models import (
    EmbeddingNet,
    freeze,
    load_starting_weights,
    place,
    save_network,
    weights_file,
)
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.table import load_images
from pilltrack.pipeline.torch_embedder import TorchEmbedder

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
    captures = Captures(
        prepared, rows, [settings.input_size_px], params.capture, settings.variants_per_pill
    )
    place(net, process.device)
    learner = _with_proxies(net, captures)
    place(learner, process.device)
    pair_loss = None if settings.loss == "none" else metric_loss(settings.loss)

    def loss_of_batch(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        (images,), pills, appearances = batch
        embeddings, cosines = (gather(part, process) for part in net(images))
        pills, appearances = gather(pills, process), gather(appearances, process)
        loss = settings.proxy_weight * proxy_loss(
            cosines, learner.pills, pills, appearances, margin=settings.proxy_margin
        )
        return loss + pair_loss(embeddings, pills, appearances) if pair_loss is not None else loss

    inputs = [prepared / "audit.json", prepared / "images.csv", *weights_file(settings.weights)]
    checkpoint = artifacts / ".checkpoints" / "train.pt"
    history = fit(
        learner,
        loss_of_batch,
        captures,
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


def _with_proxies(net: EmbeddingNet, captures: Captures) -> WithProxies:
    """Each proxy begins where the untrained network sees a photo of its appearance."""
    first: dict[int, int] = {}  # appearance -> photo
    for index, (_, appearance) in enumerate(captures.labels):
        first.setdefault(appearance, index)
    photos = [first[appearance] for appearance in sorted(first)]
    embedder = TorchEmbedder(net, captures.sizes_px[0], space="start")
    parts = [
        embedder.embed([captures.photo(index) for index in photos[n : n + 64]])
        for n in range(0, len(photos), 64)
    ]
    start = torch.from_numpy(np.concatenate(parts))
    pills = torch.tensor([captures.labels[index][0] for index in photos])
    # What all photos have in common would begin as the same direction in every proxy.
    return WithProxies(net, start - start.mean(dim=0), pills)
