"""A tiny prepared data set of rendered pills, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilltrack.pipeline.params import Params, load_params
from pilltrack.pipeline.prepare import prepare
from pilltrack.pipeline.synth import synth
from tests.imports import ROOT


@pytest.fixture(scope="session")
def tiny_params() -> Params:
    """The small-machine setting, cut down to seconds."""
    params = load_params(ROOT / "params.yaml")
    fit = {
        "backbone": "mobilenetv4_conv_small",
        "backbone_options": {},
        "weights": "none",
        "frozen": [],
        "batch_norm": "train",
        "learning_rate": 0.002,
        "input_size_px": 32,
        "epochs": 3,
        "pills_per_batch": 6,
        "photos_per_pill": 2,
        "variants_per_pill": 1,
        "views_per_photo": 1,
        "workers": 0,
        "checkpoint_every_s": 1000,
    }
    return params.model_copy(
        update={
            "enroll": params.enroll.model_copy(update={"background_photos": 20}),
            "train": params.train.model_copy(
                update={**fit, "pixels": "imagenet", "embedding_dim": 16}
            ),
            "distill": params.distill.model_copy(
                # three epochs teach nothing
                update={**fit, "int8_rounding": False, "min_teacher_recall_at_1": 0.0}
            ),
        }
    )


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory, tiny_params: Params) -> Path:
    """`artifacts/` with the output of prepare: 20 rendered pills, 6 photos each."""
    directory = tmp_path_factory.mktemp("tiny")
    synth(directory / "pills.zip", pills=20, photos=6, seed=11, workers=1)
    prepare(directory / "pills.zip", tiny_params.prepare, directory / "prepare", workers=1)
    return directory
