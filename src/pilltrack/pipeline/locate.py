"""Stage `locate`: the network that finds pills in a frame, trained on composed scenes alone.

Scenes are composed on the fly from the cut-outs of the fit pills and from rendered pills, each
from its own seed: step s of a run sees the same frames whether or not it was interrupted. The
network is exported as int8. From which confidence on a find is a pill is chosen on scenes with
validation pills and scenes without any, and the file is checked, as the device runs it, on others
of both kinds. Below the limits in params.yaml the stage fails and leaves no model.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as as_safetensors
from tqdm import tqdm

import pilltrack
from pilltrack.core.errors import GateFailed, StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.core.locate import Locator, LocatorCard, find_pills
from pilltrack.core.preprocess import to_model_input
from pilltrack.pipeline.capture import Photo
from pilltrack.pipeline.data import one_thread
from pilltrack.pipeline.depthwise import fast_depthwise
from pilltrack.pipeline.detections import score_locator, summary
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
from pilltrack.pipeline.locator_views import several_scenes
from pilltrack.pipeline.models import place, read_tensors, weights_file
from pilltrack.pipeline.params import LocateParams, Params
from pilltrack.pipeline.scenes import Scene
from pilltrack.pipeline.table import load_images, write_csv

log = logging.getLogger(__name__)

STARTER = Path(pilltrack.__file__).parent / "starter" / "locator.safetensors"
OUTPUTS = ("locator.tflite", "locator.safetensors", "locator.json", "history.csv")
HELD_OUT_RENDERED = 50  # pills beside the validation pills, whose photos may not be cut out
HELD_OUT_SEED = 1_000_003  # after the run's: no seed of a data set
CLUTTER_EVERY = 4  # scenes one without pills, beside those that have none by chance
CONFIDENCES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
COLUMNS = ("step", "loss", "learning_rate")
HISTORY_STEPS = 50  # in a row of the history


def main(params: Params, artifacts: Path) -> None:
    """Read `prepare/`, write `locate/`; of that only metrics.json when the gate is broken."""
    settings = params.locate
    prepared, out = artifacts / "prepare", artifacts / "locate"
    for older in OUTPUTS:
        (out / older).unlink(missing_ok=True)  # a broken gate must not leave one behind
    rows = load_images(prepared)
    cutouts = cut_outs(prepared, [row for row in rows if row.role == "fit"])
    cutouts += rendered_cut_outs(settings.rendered_pills, settings.seed)
    held_out = cut_outs(prepared, [row for row in rows if row.split == "validation"])
    held_out += rendered_cut_outs(HELD_OUT_RENDERED, settings.seed + HELD_OUT_SEED)
    torch.manual_seed(settings.seed)
    net = LocatorNet()
    inputs = [prepared / "images.csv", prepared / "audit.json"]
    for start in weights_file(settings.weights, STARTER):
        load_locator(net, start)
        inputs.append(start)
    checkpoint = artifacts / ".checkpoints" / "locate.pt"
    history = train(net, cutouts, settings, checkpoint, identity_of([settings], inputs))
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "locator.tflite"
        export_locator(net, cutouts, settings, model)
        least = choose_confidence(Locator(model, min_confidence=0.5), held_out, settings)
        metrics = check(Locator(model, min_confidence=least), held_out, settings)
        metrics |= {"min_confidence": least, "int8_bytes": model.stat().st_size}
        text = json.dumps(metrics, indent=1, sort_keys=True)
        write_atomically(out / "metrics.json", text.encode())
        log.info("locator: %s", metrics)
        gate(metrics, settings)
        write_csv(out / "history.csv", COLUMNS, [[row[c] for c in COLUMNS] for row in history])
        save_locator(net, out / "locator.safetensors")
        card = LocatorCard(min_confidence=least)
        write_atomically(out / "locator.json", card.model_dump_json().encode())
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
    for scenes in bar:
        torch.manual_seed(settings.seed + HELD_OUT_SEED + done)  # of the views
        images, maps, weights = (values.to(device) for values in scenes)
        images, maps, weights = several_scenes(images, maps, weights, settings.views_per_scene)
        rate = learning_rate(done, settings.steps, settings.learning_rate, settings.warmup_share)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=_bf16(settings, device)),
            fast_depthwise(device),
        ):
            logits = net.logits(images)
        loss = locator_loss(logits, maps, weights)
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


def save_locator(net: LocatorNet, path: Path) -> None:
    """Write the weights as safetensors, in half precision; whole numbers stay as they are.

    Raises StageFailed for a weight that half precision cannot hold.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise StageFailed(
            "locate",
            found="weights that half precision cannot hold",
            expected="numbers below 65,504",
            remedy="Lower `learning_rate` in params.yaml.",
        )
    write_atomically(path, as_safetensors(tensors))


def load_locator(net: LocatorNet, path: Path) -> None:
    """Fill `net` with weights that `save_locator` wrote.

    Raises StageFailed when the file is missing, damaged or of another network.
    """
    tensors, _ = read_tensors(path)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise StageFailed(
            f"weights {path}",
            found=f"not a locator ({str(error)[:200]})",
            expected="a locator.safetensors of the stage `locate`",
            remedy="Correct `locate.weights` in params.yaml: none, starter, or a path.",
        ) from error


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


def choose_confidence(locator: Locator, cutouts: Sequence[Photo], settings: LocateParams) -> float:
    """The confidence of CONFIDENCES that counts most scenes exactly; the highest of equals.

    Half of the scenes hold pills, half none: there a find is a wrong count. Those with finds in
    more than the share `false_finds` of the latter are out of the question; where all are, it is
    the highest.
    """
    n_scenes = settings.validation_scenes
    exact = np.zeros((2, len(CONFIDENCES)), np.int64)  # with pills, without
    for row, stream in zip(exact, ("choice", "choice, clutter"), strict=True):
        for scene in _scenes(cutouts, settings, stream, n_scenes):
            maps, (height, width) = locator.maps(scene.frame), scene.labels.shape
            counts = [len(find_pills(maps, height, width, least)) for least in CONFIDENCES]
            row += np.array(counts) == len(scene.boxes)
    return _most_exact(exact[0], exact[1], n_scenes, settings.false_finds)


def _most_exact(
    with_pills: NDArray[np.int64], without: NDArray[np.int64], n_scenes: int, false_finds: float
) -> float:
    """Choose from the scenes of each kind (C,) that each of CONFIDENCES counts exactly."""
    allowed = n_scenes - without <= false_finds * n_scenes
    if not allowed.any():
        log.warning("no confidence keeps finds to locate.false_finds = %g", false_finds)
        return CONFIDENCES[-1]
    exact = np.where(allowed, with_pills + without, -1)
    return CONFIDENCES[len(exact) - 1 - int(exact[::-1].argmax())]


def check(locator: Locator, cutouts: Sequence[Photo], settings: LocateParams) -> dict[str, float]:
    """Score the exported locator on scenes with `cutouts`, and on scenes without pills."""
    n_scenes = settings.validation_scenes
    with_pills = score_scenes(locator, _scenes(cutouts, settings, "check", n_scenes))
    without = score_scenes(locator, _scenes([], settings, "check, clutter", n_scenes))
    kept = ("pills", "recall", "precision", "ap50", "exact_count")
    metrics = {key: round(with_pills[key], 5) for key in kept}
    return metrics | {"scenes": n_scenes, "false_finds": round(without["false_finds"], 5)}


def score_scenes(locator: Locator, scenes: Iterable[Scene]) -> dict[str, float]:
    """Run the locator on scenes and sum up what it finds."""
    scores = [
        score_locator(locator, scene.frame, scene.boxes.astype(np.float64)) for scene in scenes
    ]
    return summary(*zip(*scores, strict=True))


def gate(metrics: dict[str, float], settings: LocateParams) -> None:
    """Raise GateFailed when the figures of `check` are below the limits."""
    right = (
        metrics["ap50"] >= settings.min_ap50
        and metrics["recall"] >= settings.min_recall
        and metrics["false_finds"] <= settings.max_false_finds
    )
    if not right:
        raise GateFailed(
            "locate",
            found=f"AP50 {metrics['ap50']:.3f}, recall {metrics['recall']:.1%}, and false finds "
            f"in {metrics['false_finds']:.1%} of scenes without pills",
            expected=f"at least {settings.min_ap50:.3f}, at least {settings.min_recall:.1%}, and "
            f"at most {settings.max_false_finds:.1%}",
            remedy="Train longer: raise `locate.steps` in params.yaml.",
        )


class _Scenes(torch.utils.data.Dataset[Example]):
    def __init__(self, cutouts: Sequence[Photo], settings: LocateParams) -> None:
        self.cutouts, self.settings = cutouts, settings

    def __getitem__(self, number: int) -> Example:
        seed = (self.settings.seed, _STREAMS.index("train"), number)
        n_pills = None if number % CLUTTER_EVERY else 0
        scene = scene_of(self.cutouts, self.settings.input_size_px, seed, n_pills)
        return example(scene, self.settings.input_size_px)


_STREAMS = ("train", "calibration", "choice", "choice, clutter", "check", "check, clutter")


def _scenes(
    cutouts: Sequence[Photo], settings: LocateParams, stream: str, count: int
) -> Iterator[Scene]:
    n_pills = 0 if stream.endswith("clutter") else None
    with_pills = stream in ("choice", "check")
    number = found = 0
    while found < count:
        seed = (settings.seed, _STREAMS.index(stream), number)
        number += 1
        scene = scene_of(cutouts, settings.input_size_px, seed, n_pills)
        if len(scene.boxes) or not with_pills:
            found += 1
            yield scene


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


def _bf16(settings: LocateParams, device: torch.device) -> bool:
    on_gpu = device.type == "cuda"
    return settings.precision == "bf16" or (settings.precision == "auto" and on_gpu)
