"""params.yaml: complete, typed, and strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pilltrack.core.errors import ParamsRejected
from pilltrack.pipeline.params import load_params
from tests.imports import ROOT


@pytest.fixture
def raw() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return values


def _write(tmp_path: Path, raw: object) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_a_misspelt_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, raw: dict[str, Any]
) -> None:
    raw["train"]["epocs"] = 1
    with pytest.raises(ParamsRejected) as caught:
        load_params(_write(tmp_path, raw))
    assert "train.epocs" in str(caught.value)
    assert "Did you mean epochs?" in str(caught.value)


def test_an_unknown_section_is_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    raw["destill"] = {}
    with pytest.raises(ParamsRejected, match="Did you mean distill"):
        load_params(_write(tmp_path, raw))


def test_a_missing_key_is_refused_since_there_are_no_hidden_defaults(
    tmp_path: Path, raw: dict[str, Any]
) -> None:
    del raw["distill"]["temperature"]
    with pytest.raises(ParamsRejected, match=r"distill\.temperature: missing"):
        load_params(_write(tmp_path, raw))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("distill", "alpha", 1.5),
        ("train", "learning_rate", 0),
        ("train", "loss", "softmax"),
        ("train", "proxy_margin", 1.0),
        ("evaluate", "fpir", 0.0),
        ("prepare", "test_share", "many"),
        ("package", "name", "../escape"),
        ("train", "seed", -1),
        ("capture", "scale", [0.95, 0.7]),
        ("capture", "scale", [-3, 0.7]),
        ("capture", "jpeg_quality", [95, 40]),
    ],
)
def test_a_value_out_of_range_is_refused(
    tmp_path: Path, raw: dict[str, Any], section: str, key: str, value: object
) -> None:
    raw[section][key] = value
    with pytest.raises(ParamsRejected, match=rf"{section}\.{key}"):
        load_params(_write(tmp_path, raw))


def test_a_training_without_any_loss_is_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    raw["train"] |= {"loss": "none", "proxy_weight": 0}
    with pytest.raises(ParamsRejected, match="nothing to learn from"):
        load_params(_write(tmp_path, raw))


def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: [", encoding="utf-8")
    with pytest.raises(ParamsRejected, match="is not YAML"):
        load_params(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"train: \xff\xfe")
    with pytest.raises(ParamsRejected, match="is not YAML"):
        load_params(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsRejected, match="cannot be read"):
        load_params(tmp_path / "params.yaml")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ParamsRejected):
        load_params(path)
