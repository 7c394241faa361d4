"""What ships of a starter run: its bundle, and both networks to train on from.

    python -m pilltrack.pipeline.starter        after `dvc repro` with params/starter.yaml
    python -m pilltrack.pipeline.starter renew  the shipped bundle in the present format
    python -m pilltrack.pipeline.starter locator  the shipped bundle with the locator of the run

MODEL_CARD.md and the licences beside them are written by hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from pilltrack.core.bundle import (
    GALLERY_FILE,
    LOCATOR_FILE,
    MANIFEST_FILE,
    Manifest,
    calibration_in,
    read_bundle,
    write_bundle,
)
from pilltrack.core.decide import Calibration
from pilltrack.core.embedder import open_embedder
from pilltrack.core.files import replaced_directory, write_atomically
from pilltrack.core.gallery import Gallery
from pilltrack.core.identify import STARTER_BUNDLE
from pilltrack.core.locate import LocatorCard
from pilltrack.pipeline.locate import STARTER as STARTER_LOCATOR
from pilltrack.pipeline.models import STARTER, load_network, save_network
from pilltrack.pipeline.probe_pictures import probe_crops, probe_frames


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


def ship_locator(artifacts: Path) -> None:
    """Replace the locator of the shipped starter by that in `artifacts`; the rest stays."""
    found = artifacts / "locate"
    renew(STARTER_BUNDLE, found)
    write_atomically(STARTER_LOCATOR, (found / STARTER_LOCATOR.name).read_bytes())


def renew(bundle: Path, found: Path | None = None) -> Manifest:
    """Write a bundle without pills again in the present format: the same parts, new probes.

    Its manifest may be of an earlier format, so its files are taken as they are. A locator in
    `found`, where the stage `locate` wrote it, takes the place of its own; the manifest goes on
    naming the run of the model.
    """
    old = json.loads((bundle / MANIFEST_FILE).read_bytes())
    model, gallery_file = bundle / old["model"]["file"], bundle / GALLERY_FILE
    rule = Calibration.model_validate_json(json.dumps(calibration_in(old)))
    card = LocatorCard(min_confidence=old["locator"]["min_confidence"])
    if found is not None:
        card = LocatorCard.model_validate_json((found / "locator.json").read_bytes())
    with Gallery.load(gallery_file) as gallery:
        crops = probe_crops(Path(), [], open_embedder(model), gallery, rule)
    return write_bundle(
        bundle,
        name=old["name"],
        locator=(found or bundle) / LOCATOR_FILE,
        min_confidence=card.min_confidence,
        model=model,
        gallery=gallery_file,
        probe_crops=crops,
        probe_frames=probe_frames(),
        calibration=rule,
        pills={},
        git_commit=old["git_commit"],
        data_digest=old["data_digest"],
        params_digest=old["params_digest"],
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            ship(Path("artifacts"))
        case ["renew"]:
            renew(STARTER_BUNDLE)
        case ["locator"]:
            ship_locator(Path("artifacts"))
        case _:
            sys.exit(__doc__)
