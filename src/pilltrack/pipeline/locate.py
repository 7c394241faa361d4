"""Stage `locate`: the network that finds pills in a frame, trained on composed scenes alone.

Scenes are composed on the fly from the cut-outs of the fit pills and from rendered pills, each
from its own seed: step s of a run sees the same frames whether or not it was interrupted. The
network is exported as int8 and checked as the device runs it, on scenes with validation pills
and on scenes without any. Below the limits in params.yaml the stage fails and leaves no model.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.locate import Locator
from pilltrack.core.preprocess import to_model_input
from pilltrack.pipeline.capture import Photo
from pilltrack.pipeline.data import one_thread
from pilltrack.pipeline.depthwise import fast_depthwise
from pilltrack.pipeline.detections import FrameScore, boxes_of, score_frame, summary
from pilltrack.pipeline.export import export_litert, whole_int8
from pilltrack.pipeline.fit import identity_of, learning_rate, resume, save
from pilltrack.pipeline.locator_data import (
    Example,
    cut_outs,
    example,
    rendered_cut_outs,
    scene_of,
)
from pilltrack.pipeline.locator_net import LocatorNet, locator_loss
from pilltrack.pipeline.models import place
from pilltrack.pipeline.params import Count, Positive, Seed, Share, _Section
from pilltrack.pipeline.scenes import Scene
from pilltrack.pipeline.table import load_images, write_csv

log = logging.getLogger(__name__)

HELD_OUT_RENDERED = 50  # pills beside the validation pills, whose photos may not be cut out
COLUMNS = ("step", "loss", "learning_rate")
HISTORY_STEPS = 50  # in a row of the history


class LocateParams(_Section):
    """The locator."""

    seed: Seed
    input_size_px: Annotated[int, Field(ge=64, le=1024, multiple_of=32)]
    rendered_pills: Annotated[int, Field(ge=0)]  # cut out beside the fit pills
    steps: Count
    scenes_per_step: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup_share: Share  # of all steps
    precision: Literal["fp32", "bf16"]
    workers: Annotated[int, Field(ge=0)]
    checkpoint_every_s: Positive
    calibration_scenes: Count
    validation_scenes: Count  # with pills; and as many without
    min_ap50: Share  # on scenes with validation pills
    max_false_finds: Share  # of scenes without pills


def main(settings: LocateParams, artifacts: Path) -> None:
    """Read `prepare/`, write `locate/{locator.tflite,history.csv,metrics.json}`."""
    prepared, out = artifacts / "prepare", artifacts / "locate"
    rows = load_images(prepared)
    cutouts = cut_outs(prepared, [row for row in rows if row.role == "fit"])
    cutouts += rendered_cut_outs(settings.rendered_pills, settings.seed)
    held_out = cut_outs(prepared, [row for row in rows if row.split == "validation"])
    held_out += rendered_cut_outs(HELD_OUT_RENDERED, settings.seed + 1)
    torch.manual_seed(settings.seed)
    net = LocatorNet()
    checkpoint = artifacts / ".checkpoints" / "locate.pt"
    identity = identity_of([settings], [prepared / "images.csv", prepared / "audit.json"])
    history = train(net, cutouts, settings, checkpoint, identity)
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "locator.tflite"
        export_locator(net, cutouts, settings, model)
        metrics = check(Locator(model), held_out, settings)
        metrics["int8_bytes"] = model.stat().st_size
        text = json.dumps(metrics, indent=1, sort_keys=True)
        write_atomically(out / "metrics.json", text.encode())
        log.info("locator: %s", metrics)
        gate(metrics, settings)
        write_csv(out / "history.csv", COLUMNS, [[row[c] for c in COLUMNS] for row in history])
        write_atomically(out / model.name, model.read_bytes())
    checkpoint.unlink(missing_ok=True)


def train(
    net: LocatorNet,
    cutouts: Sequence[Photo],
    settings: LocateParams,
    checkpoint: Path,
    identity: str,
) -> list[dict[str, float]]:
    """Train `net` in place and return the history, a row for every HISTORY_STEPS.

    Goes on from `checkpoint` when that belongs to the same `identity`. Raises StageFailed when
    there are no cut-outs, or the loss is not finite.
    """
    if not cutouts:
        raise StageFailed(
            "locate",
            found="no studio photo whose pill can be cut out, and no rendered pill",
            expected="pills to compose scenes from",
            remedy="Set `rendered_pills` in params.yaml.",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place(net, device)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    done, history, losses = resume(checkpoint, identity, net, optimiser, device)
    saved_s = time.monotonic()
    batches = _batches(cutouts, settings, done)
    bar = tqdm(batches, total=settings.steps, initial=done, desc="locate", disable=None)
    net.train()
    for images, maps, weights in bar:
        rate = learning_rate(done, settings.steps, settings.learning_rate, settings.warmup_share)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
            fast_depthwise(device),
        ):
            logits = net.logits(images.to(device).float())
        loss = locator_loss(logits, maps.to(device), weights.to(device))
        if not math.isfinite(loss.item()):
            raise StageFailed(
                f"locate, step {done + 1}",
                found=f"loss {loss.item()}",
                expected="a finite loss",
                remedy="Lower `learning_rate` in params.yaml.",
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
        done += 1
        losses.append(loss.item())
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if done % HISTORY_STEPS == 0 or done == settings.steps:
            row = (done, sum(losses) / len(losses), rate)
            history.append(dict(zip(COLUMNS, row, strict=True)))
            log.debug("locate: step %d, loss %.4f", *row[:2])
            losses = []
        if done == settings.steps or time.monotonic() - saved_s > settings.checkpoint_every_s:
            save(checkpoint, identity, net, optimiser, done, history, losses)
            saved_s = time.monotonic()
    net.cpu().eval()
    return history


def export_locator(
    net: LocatorNet, cutouts: Sequence[Photo], settings: LocateParams, path: Path
) -> None:
    """Write the network as a `.tflite` with int8 weights, activations, input and output.

    Activation ranges come from `calibration_scenes` scenes, and a black and a white frame.
    """
    size = settings.input_size_px
    scenes = _scenes(cutouts, settings, "calibration", settings.calibration_scenes)
    frames = np.stack([to_model_input(scene.frame, size) for scene in scenes])
    export_litert(net, size, frames, whole_int8, path)


def check(locator: Locator, cutouts: Sequence[Photo], settings: LocateParams) -> dict[str, float]:
    """Score the exported locator on scenes with `cutouts`, and on scenes without pills."""
    n_scenes = settings.validation_scenes
    with_pills = summary(score_scenes(locator, _scenes(cutouts, settings, "check", n_scenes)))
    without = summary(score_scenes(locator, _scenes([], settings, "clutter", n_scenes)))
    kept = ("pills", "recall", "precision", "ap50", "exact_count")
    metrics = {key: round(with_pills[key], 5) for key in kept}
    return metrics | {"scenes": n_scenes, "false_finds": round(without["false_finds"], 5)}


def score_scenes(locator: Locator, scenes: Iterable[Scene]) -> list[FrameScore]:
    """Run the locator on scenes and match what it finds."""
    scores = []
    for scene in scenes:
        found = locator.locate(scene.frame)
        scores.append(score_frame(*boxes_of(found), scene.boxes.astype(np.float64)))
    return scores


def gate(metrics: dict[str, float], settings: LocateParams) -> None:
    """Raise GateFailed when the figures of `check` are below the limits."""
    right = metrics["ap50"] >= settings.min_ap50
    if not (right and metrics["false_finds"] <= settings.max_false_finds):
        raise GateFailed(
            "locate",
            found=f"AP50 {metrics['ap50']:.3f} and false finds in {metrics['false_finds']:.1%} "
            "of scenes without pills",
            expected=f"at least {settings.min_ap50:.3f}, and at most "
            f"{settings.max_false_finds:.1%}",
            remedy="Train longer: raise `locate.steps` in params.yaml.",
        )


class _Scenes(torch.utils.data.Dataset[Example]):
    def __init__(self, cutouts: Sequence[Photo], settings: LocateParams) -> None:
        self.cutouts, self.settings = cutouts, settings

    def __getitem__(self, number: int) -> Example:
        seed = (self.settings.seed, _STREAMS["train"], number)
        scene = scene_of(self.cutouts, self.settings.input_size_px, seed)
        return example(scene, self.settings.input_size_px)


_STREAMS = {"train": 0, "calibration": 1, "check": 2, "clutter": 3}


def _scenes(
    cutouts: Sequence[Photo], settings: LocateParams, stream: str, count: int
) -> Iterator[Scene]:
    n_pills = 0 if stream == "clutter" else None
    for number in range(count):
        seed = (settings.seed, _STREAMS[stream], number)
        yield scene_of(cutouts, settings.input_size_px, seed, n_pills)


def _batches(
    cutouts: Sequence[Photo], settings: LocateParams, done: int
) -> Iterator[list[torch.Tensor]]:
    """The batches from step `done` on."""
    size = settings.scenes_per_step
    plan = [list(range(step * size, (step + 1) * size)) for step in range(done, settings.steps)]
    yield from torch.utils.data.DataLoader(
        _Scenes(cutouts, settings),
        batch_sampler=plan,
        num_workers=settings.workers,
        worker_init_fn=one_thread,
    )
