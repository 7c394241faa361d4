"""What ships of a starter run: its bundle, and both networks to train on from.

    python -m pilltrack.pipeline.starter        after `dvc repro` with params/starter.yaml

MODEL_CARD.md and the licences beside them are written by hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from pilltrack.core.bundle import read_bundle
from pilltrack.core.files import replaced_directory, write_atomically
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.pipeline.locate import STARTER as STARTER_LOCATOR
from pilltrack.pipeline.models import STARTER, load_network, save_network


def ship(artifacts: Path) -> None:
    """Replace the shipped starter by the run in `artifacts`; weights in half precision.

    Raises BundleRejected or StageFailed for a run that is not whole.
    """
    bundle = artifacts / "package" / "bundle"
    read_bundle(bundle)
    net, size_px = load_network(artifacts / "distill" / "student.safetensors")
    with replaced_directory(STARTER_BUNDLE) as new:
        shutil.copytree(bundle, new, dirs_exist_ok=True)
    save_network(net.to(torch.float16), STARTER, input_size_px=size_px)
    locator = artifacts / "locate" / STARTER_LOCATOR.name
    write_atomically(STARTER_LOCATOR, locator.read_bytes())


if __name__ == "__main__":
    ship(Path("artifacts"))
