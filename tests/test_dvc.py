"""dvc.yaml, params.yaml and the code say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pilltrack.cli import STAGES
from pilltrack.pipeline.params import Params, load_params
from tests.imports import ROOT, dependencies

DVC: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_every_stage_is_a_command_a_module_and_a_params_section() -> None:
    assert list(DVC) == list(STAGES) == [n for n in Params.model_fields if n != "capture"]
    for stage, entry in DVC.items():
        assert entry["cmd"] == f"pilltrack {stage}"
        assert stage in entry["params"]
        assert (ROOT / "src" / "pilltrack" / "pipeline" / f"{stage}.py").is_file()


def test_what_is_enrolled_depends_on_the_kind_of_captures_that_are_identified() -> None:
    assert set(DVC["enroll"]["params"]) == {"capture", "enroll", "evaluate.captures"}


@pytest.mark.parametrize("stage", list(DVC))
def test_stage_depends_on_every_source_file_it_imports_and_on_the_weights_it_may_begin_with(
    stage: str,
) -> None:
    listed = {dep for dep in DVC[stage]["deps"] if dep.startswith("src/")}
    assert listed == dependencies(stage)


@pytest.mark.parametrize(
    "name",
    ["params.yaml", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "params").glob("*.yaml"))],
)
def test_params_file_is_complete(name: str) -> None:
    load_params(ROOT / name)


def test_full_setting_is_the_promised_one() -> None:
    full = load_params(ROOT / "params" / "full.yaml")
    assert (full.train.backbone, full.train.weights) == ("resnet50", "imagenet")
    assert full.distill.backbone == "mobilenetv4_conv_small"


def test_stages_read_only_what_earlier_stages_wrote() -> None:
    written: set[str] = {"data/pills_dataset_resnet.zip"}
    for stage, entry in DVC.items():
        for dep in entry["deps"]:
            known = dep.startswith("src/") or any(
                Path(dep) == Path(out) or Path(out) in Path(dep).parents for out in written
            )
            assert known, f"{stage} depends on {dep}"
        for kind in ("outs", "metrics", "plots"):
            written |= {
                out if isinstance(out, str) else next(iter(out)) for out in entry.get(kind, [])
            }
