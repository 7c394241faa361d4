"""The usual choice to compare with: MobileNetV2 at 224 px, exported as our students are.

    python benchmarks/mobilenetv2_224.py --out build/mobilenetv2_224.tflite
    pilltrack bench --bundle artifacts/package/bundle --against build/mobilenetv2_224.tflite

Weights are random and the activation ranges are those of noise: how long a network takes depends
on neither. timm starts the batch norms of this network at 1, so no layer is dead (its ResNets
start some at 0). Same embedding length, int8 recipe and runtime as a student. Needs the training
install; the file it writes does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from pilltrack.pipeline.export import export_int8
from pilltrack.pipeline.models import EmbeddingNet

BACKBONE, INPUT_SIZE_PX, N_CALIBRATION = "mobilenetv2_100", 224, 4


def main() -> None:
    """Parse arguments, export, print the path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.tflite")
    parser.add_argument("--embedding-dim", type=int, default=128, help="of your student (128)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    net = EmbeddingNet(BACKBONE, arguments.embedding_dim, options={}, pixels="imagenet")
    shape = (N_CALIBRATION, INPUT_SIZE_PX, INPUT_SIZE_PX, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    export_int8(net, INPUT_SIZE_PX, noise, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
