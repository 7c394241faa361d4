"""Does the teacher help? One student, one budget, with and without it, several seeds.

    python benchmarks/distillation.py --teacher artifacts/train/teacher.safetensors \\
        --prepared artifacts/prepare --params params/starter.yaml --epochs 4 --input-size 96 \\
        --pills 300 --weights weights/mobilenetv2_100_imagenet.safetensors

Both students have the backbone, starting weights, batches, captures and steps of the `distill`
section; one learns from the teacher's embeddings (stage `distill`), the other from the names of
the pills (stage `train`, with its losses). Measured is recall@1 of validation pills on captures of
the camera `counter` (benchmarks/camera_conditions.py). `--pills` trains on, and enrols beside the
validation pills, only that many train pills, `--input-size` makes the student look at smaller
pictures: both save time. A student that starts from the teacher's
weights (`distill.weights: teacher`) is no test of this kind: name others with --weights.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from camera_conditions import CAMERAS, under_cameras

from pilltrack.pipeline import distill, train
from pilltrack.pipeline.params import Params, load_params
from pilltrack.pipeline.table import IMAGES_CSV, ImageRow, load_images, write_images
from pilltrack.pipeline.torch_embedder import open_torch_embedder


def main() -> None:
    """Print one JSON line for each student, then a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prepared", type=Path, default=Path("artifacts/prepare"))
    parser.add_argument("--weights", help="starting weights of both students")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--input-size", type=int, help="of the students, in pixels")
    parser.add_argument("--pills", type=int, help="train pills to use (all)")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    found: dict[str, list[float]] = {"with": [], "without": []}
    for seed in range(arguments.seeds):
        for kind, recalls in found.items():
            start = time.monotonic()
            recall = recall_of_student(kind, seed, params, arguments)
            recalls.append(recall)
            seconds = round(time.monotonic() - start)
            line = {"teacher": kind, "seed": seed, "recall_at_1": recall, "seconds": seconds}
            print(json.dumps(line), flush=True)
    print("| student | recall@1, mean | standard deviation | seeds |\n|---|---:|---:|---:|")
    for kind, recalls in found.items():
        print(f"| {kind} teacher | {mean(recalls):.1%} | {stdev(recalls):.1%} | {len(recalls)} |")


def recall_of_student(kind: str, seed: int, params: Params, arguments: argparse.Namespace) -> float:
    """Train one student in a directory of its own and measure it."""
    changes: dict[str, Any] = {"seed": seed, "epochs": arguments.epochs}
    if arguments.weights:
        changes["weights"] = arguments.weights
    if arguments.input_size:
        changes["input_size_px"] = arguments.input_size
    settings = params.distill.model_copy(update={**changes, "int8_rounding": False})
    shared = {name: getattr(settings, name) for name in type(params.train).model_fields
              if name in type(settings).model_fields}  # fmt: skip
    trained = params.model_copy(
        update={"distill": settings, "train": params.train.model_copy(update=shared)}
    )
    with tempfile.TemporaryDirectory() as directory:
        artifacts = Path(directory)
        rows = link_prepared(arguments.prepared, artifacts / "prepare", arguments.pills)
        if kind == "with":
            (artifacts / "train").mkdir()
            os.link(arguments.teacher, artifacts / "train" / "teacher.safetensors")
            distill.main(trained, artifacts)
            student = artifacts / "distill" / "student.safetensors"
        else:
            train.main(trained, artifacts)
            student = artifacts / "train" / "teacher.safetensors"
        [found] = under_cameras(
            [open_torch_embedder(student)],
            rows,
            arguments.prepared,
            "validation",
            params.capture,
            {"counter": CAMERAS["counter"]},
        )
        return found["counter"]["recall_at_1"]


def link_prepared(prepared: Path, to: Path, pills: int | None) -> list[ImageRow]:
    """The prepared data with the first `pills` train pills only; returns its rows."""
    rows = load_images(prepared)
    kept = set(sorted({row.pill for row in rows if row.split == "train"})[:pills])
    rows = [row for row in rows if row.split != "train" or row.pill in kept]
    to.mkdir()
    for entry in prepared.iterdir():
        if entry.name != IMAGES_CSV:
            (to / entry.name).symlink_to(entry.absolute())
    write_images(to, rows)
    return rows


if __name__ == "__main__":
    main()
