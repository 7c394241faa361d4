"""Stage `locate`: the network that finds pills in a frame, trained on composed scenes alone.

Scenes are composed on the fly from the cut-outs of the fit pills and from rendered pills, each
from its own seed: step s of a run sees the same frames whether or not it was interrupted. Then a
second network learns to look again at what the first one finds (`pipeline/second_look.py`). Both
are exported as int8, in one file. From which confidence on a find is a pill is chosen on scenes
without any, and the file is checked, as the device runs it, on others and on scenes with validation
pills. Below the limits in params.yaml the stage fails and leaves no model.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from pilltrack.core.second_look import LEAST_LOOKED_AT, LOOK_SHARE, SIGNATURE, closer
from pilltrack.pipeline.data import begin_worker
from pilltrack.pipeline.depthwise import fast_depthwise
from pilltrack.pipeline.detections import score_locator, summary
from pilltrack.pipeline.developed import developed
from pilltrack.pipeline.export import Part, export_litert, float_depthwise, whole_int8
from pilltrack.pipeline.fit import identity_of, write_history
from pilltrack.pipeline.locator_data import (
    Example,
    cut_outs,
    example,
    rendered_cut_outs,
    scene_of,
)
from pilltrack.pipeline.locator_net import LocatorNet, locator_loss
from pilltrack.pipeline.locator_views import several_scenes
from pilltrack.pipeline.models import STARTER as STUDENT
from pilltrack.pipeline.models import place, read_tensors, weights_file
from pilltrack.pipeline.params import LocateParams, Params
from pilltrack.pipeline.placing import Photo
from pilltrack.pipeline.scenes import Scene
from pilltrack.pipeline.second_look import (
    CROWDED,
    LOOK_PX,
    SecondLookNet,
    gather,
    train_second_look,
)
from pilltrack.pipeline.steps import COLUMNS, Steps
from pilltrack.pipeline.table import load_images

log = logging.getLogger(__name__)

STARTER = Path(pilltrack.__file__).parent / "starter" / "locator.safetensors"
OUTPUTS = (
    "locator.tflite", "locator.safetensors", "locator.json", "history.csv", "look_history.csv",
)  # fmt: skip
HELD_OUT_RENDERED = 50  # pills beside the validation pills, whose photos may not be cut out
HELD_OUT_SEED = 1_000_003  # after the run's: no seed of a data set
FIRST_SIGNATURE = "locate"  # of the first network in the file
CLUTTER_EVERY = 4  # scenes one without pills, beside those that have none by chance
# From 0.1 to 0.85: beyond, finds would be dropped of which the first look is SURE.
CONFIDENCES = tuple(round(0.1 + 0.025 * n, 3) for n in range(31))


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
    nets = TwoLooks(settings.look_weights)
    inputs = [prepared / "images.csv", prepared / "audit.json"]
    for start in weights_file(settings.weights, STARTER):
        load_locator(nets, start)
        inputs.append(start)
    inputs += weights_file(settings.look_weights, STUDENT)
    identity = identity_of([settings], inputs)
    checkpoint, kept, of_look = (
        artifacts / ".checkpoints" / name
        for name in ("locate.pt", "locate_finds", "locate_look.pt")
    )
    history, look_history = train(nets.first, cutouts, settings, checkpoint, identity), []
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "locator.tflite"
        seen = calibration_images(nets.first, cutouts, settings)
        if settings.look_steps:
            export_locator(nets, seen, model)
            finds = gather(model, cutouts, settings, kept, identity)
            look_history = train_second_look(nets.second, finds, settings, of_look, identity)
        export_locator(nets, seen, model)
        least = choose_confidence(Locator(model, min_confidence=0.5), settings)
        metrics = check(Locator(model, min_confidence=least), held_out, settings)
        metrics |= {"min_confidence": least, "int8_bytes": model.stat().st_size}
        text = json.dumps(metrics, indent=1, sort_keys=True)
        write_atomically(out / "metrics.json", text.encode())
        log.info("locator: %s", metrics)
        shutil.rmtree(kept, ignore_errors=True)  # large, and these settings need them no more
        gate(metrics, settings)
        for name, rows_of in (("history.csv", history), ("look_history.csv", look_history)):
            write_history(rows_of, out / name, COLUMNS)
        save_locator(nets, out / "locator.safetensors")
        card = LocatorCard(min_confidence=least)
        write_atomically(out / "locator.json", card.model_dump_json().encode())
        write_atomically(out / model.name, model.read_bytes())
    for left_over in (checkpoint, of_look):
        left_over.unlink(missing_ok=True)


class TwoLooks(torch.nn.Module):
    """The networks of a locator: the first sees the frame, the second what the first found."""

    def __init__(self, look_weights: str = "none") -> None:
        super().__init__()
        self.first = LocatorNet()
        self.second = SecondLookNet(look_weights)


def train(
    net: LocatorNet,
    cutouts: Sequence[Photo],
    settings: LocateParams,
    checkpoint: Path,
    identity: str,
) -> list[dict[str, float]]:
    """Train `net` in place and return the history, a row for every ROW_STEPS.

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
    steps = Steps("locate", net, optimiser, settings.steps, settings, checkpoint, identity)
    batches = _batches(cutouts, settings, steps.done)
    net.train()
    bar = tqdm(batches, total=settings.steps, initial=steps.done, desc="locate", disable=None)
    for scenes in bar:
        steps.begin()
        torch.manual_seed(settings.seed + HELD_OUT_SEED + steps.done)  # of the views
        images, maps, weights = (values.to(device) for values in scenes)
        images, maps, weights = several_scenes(images, maps, weights, settings.views_per_scene)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=_bf16(settings, device)),
            fast_depthwise(device),
        ):
            logits = net.logits(images)
        loss = steps.end(locator_loss(logits, maps, weights), longest_gradient=10.0)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    net.cpu().eval()
    return steps.history


def save_locator(nets: TwoLooks, path: Path) -> None:
    """Write the weights as safetensors, in half precision; whole numbers stay as they are.

    Raises StageFailed for a weight that half precision cannot hold.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in nets.state_dict().items()}
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise StageFailed(
            "locate",
            found="weights that half precision cannot hold",
            expected="numbers below 65,504",
            remedy="Lower `learning_rate` in params.yaml.",
        )
    write_atomically(path, as_safetensors(tensors))


def load_locator(nets: TwoLooks, path: Path) -> None:
    """Fill `nets` with weights that `save_locator` wrote.

    Raises StageFailed when the file is missing, damaged or of another network.
    """
    tensors, _ = read_tensors(path)
    try:
        nets.load_state_dict(tensors)
    except RuntimeError as error:
        raise StageFailed(
            f"weights {path}",
            found=f"not a locator ({str(error)[:200]})",
            expected="a locator.safetensors of the stage `locate`",
            remedy="Correct `locate.weights` in params.yaml: none, starter, or a path.",
        ) from error


def calibration_images(
    first: LocatorNet, cutouts: Sequence[Photo], settings: LocateParams
) -> dict[str, NDArray[np.uint8]]:
    """What activation ranges come from, (N, S, S, 3) for the signature of each network.

    For the first these are `calibration_scenes` scenes, for the second what the first finds there
    and in as many scenes crowded with clutter.
    """
    size = settings.input_size_px
    frames: list[NDArray[np.uint8]] = []
    looks: list[NDArray[np.uint8]] = []
    for number, scene in enumerate(
        _scenes(cutouts, settings, "calibration", settings.calibration_scenes)
    ):
        frames.append(to_model_input(scene.frame, size))
        seed = (settings.seed, _STREAMS.index("calibration, crowd"), number)
        for shown in (scene, scene_of([], size, seed, 0, CROWDED)):
            looks += _looks(first, shown.frame, size)
    of_second = np.array(looks, np.uint8).reshape(-1, LOOK_PX, LOOK_PX, 3)
    return {FIRST_SIGNATURE: np.stack(frames), SIGNATURE: of_second}


def export_locator(nets: TwoLooks, seen: Mapping[str, NDArray[np.uint8]], path: Path) -> None:
    """Write both networks as one int8 `.tflite`; depthwise layers of the second are in fp32.

    The second takes several finds at once. `seen` is what `calibration_images` returns; a black
    and a white image are added.
    """
    frames, finds = seen[FIRST_SIGNATURE], seen[SIGNATURE]
    parts = {
        FIRST_SIGNATURE: Part(nets.first, frames.shape[1], frames),
        SIGNATURE: Part(nets.second, LOOK_PX, finds, open_batch=True),
    }
    export_litert(parts, _recipe, path)


def _looks(net: LocatorNet, frame: NDArray[np.uint8], size_px: int) -> Iterator[NDArray[np.uint8]]:
    """What the second network is shown of a frame."""
    pixels = torch.from_numpy(to_model_input(frame, size_px))[None].float()
    with torch.no_grad():
        maps = net.eval()(pixels)[0].numpy()
    height, width = frame.shape[:2]
    for pill in find_pills(maps, height, width, LEAST_LOOKED_AT):
        yield closer(frame, pill.box, pill.length_px / LOOK_SHARE, LOOK_PX)


def _recipe() -> list[dict[str, Any]]:
    """All int8 but the second network's depthwise layers: with them 0.4 would be lost of its
    log-odds, with them in fp32 0.1 (docs/lab-log.md)."""
    return [*whole_int8(), float_depthwise(SecondLookNet.__name__)]


def choose_confidence(locator: Locator, settings: LocateParams) -> float:
    """The least of CONFIDENCES with finds in at most `false_finds` of scenes without pills.

    A pill that is missed is worse than a find that is none, which is called unknown: so no more is
    asked of a find than that aim needs. Where no confidence keeps it, it is the highest.
    """
    n_scenes = settings.validation_scenes
    surest = np.array(
        [
            max((pill.confidence for pill in locator.find(scene.frame, CONFIDENCES[0])), default=0)
            for scene in _scenes([], settings, "choice, clutter", n_scenes)
        ]
    )
    for least in CONFIDENCES:
        if np.count_nonzero(surest >= least) <= settings.false_finds * n_scenes:
            return least
    log.warning("no confidence keeps finds to locate.false_finds = %g", settings.false_finds)
    return CONFIDENCES[-1]


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
            remedy="Train longer: raise `locate.steps`, or `look_scenes` and `look_steps`.",
        )


class _Scenes(torch.utils.data.Dataset[Example]):
    def __init__(self, cutouts: Sequence[Photo], settings: LocateParams) -> None:
        self.cutouts, self.settings = cutouts, settings

    def __getitem__(self, number: int) -> Example:
        seed = (self.settings.seed, _STREAMS.index("train"), number)
        n_pills = None if number % CLUTTER_EVERY else 0
        scene = scene_of(self.cutouts, self.settings.input_size_px, seed, n_pills)
        frame = developed(scene.frame, np.random.default_rng((*seed, 1)))
        return example(replace(scene, frame=frame), self.settings.input_size_px)


_STREAMS = (  # a seed holds its stream's place, so "choice" stays, though it is not drawn any more
    "train", "calibration", "choice", "choice, clutter", "check", "check, clutter",
    "calibration, crowd",
)  # fmt: skip


def _scenes(
    cutouts: Sequence[Photo], settings: LocateParams, stream: str, count: int
) -> Iterator[Scene]:
    n_pills = 0 if stream.endswith("clutter") else None
    with_pills = stream == "check"
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
        worker_init_fn=begin_worker,
    )


def _bf16(settings: LocateParams, device: torch.device) -> bool:
    on_gpu = device.type == "cuda"
    return settings.precision == "bf16" or (settings.precision == "auto" and on_gpu)
