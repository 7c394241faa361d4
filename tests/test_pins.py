"""One set of pins: pyproject.toml, constraints.txt and environment.yaml say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from rattler import MatchSpec, Version

ROOT = Path(__file__).parents[1]


def _pins(lines: list[str]) -> dict[str, str]:
    matches = [re.fullmatch(r"([A-Za-z0-9_.-]+)==([^ ;]+)", line.strip()) for line in lines]
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in matches if m}


def _project() -> dict[str, str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"].values()
    declared = [pin for pins in (project["dependencies"], *extras) for pin in pins]
    pins = _pins(declared)
    assert len(pins) == len(declared), "every direct dependency is pinned with =="
    return pins


def _environment() -> list[str]:
    text = (ROOT / "environment.yaml").read_text(encoding="utf-8")
    environment = yaml.safe_load(text)
    assert environment["name"] == "pilltrack-conda"
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    return list(pip)


def test_environment_yaml_carries_exactly_the_pins_of_pyproject() -> None:
    assert _pins(_environment()) == _project()


def test_environment_yaml_uses_the_lock_and_installs_the_project() -> None:
    assert "--constraint constraints.txt" in _environment()
    assert "--editable ." in _environment()


def test_conda_reads_the_specs_and_gives_the_python_of_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    texts = [text for text in environment["dependencies"] if isinstance(text, str)]
    specs = {spec.name.normalized: spec for text in texts if (spec := MatchSpec(text)).name}
    assert set(specs) == {"python", "pip", "make", "git"}
    python = specs["python"].version
    assert python is not None
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = tomllib.load(file)["project"]["requires-python"]
    assert Version(str(python).removesuffix(".*")) >= Version(asked.removeprefix(">="))


def test_the_lock_agrees_with_every_pin_of_pyproject() -> None:
    lock = _pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert {name: lock.get(name) for name in _project()} == _project()


def test_no_local_build_tag_stands_in_a_pin() -> None:
    for name in ("pyproject.toml", "constraints.txt", "environment.yaml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"==[^\s\"']*\+", text), name
