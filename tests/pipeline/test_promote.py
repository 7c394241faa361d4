"""The champion changes only for a bundle that was compared with it here, and on record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pilltrack.cli import main
from pilltrack.core.decide import REJECT_EVERYTHING
from pilltrack.core.errors import BundleRejected, InputRejected, StageFailed
from pilltrack.pipeline.checkout import git_commit
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.promote import promote
from pilltrack.pipeline.spool import Started, record
from pilltrack.pipeline.tracking import Registry, send, spool_of
from tests.pipeline.mlflow_server import free_port, mlflow_server
from tests.pipeline.test_compare import ACCEPT_EVERYTHING, bundle, frozen

__all__ = ["frozen"]  # a fixture
NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server and where it keeps its artifacts."""
    directory = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(directory) as uri:
        yield uri, directory / "kept"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RANK", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def registry(store: tuple[str, Path]) -> Iterator[Registry]:
    """The model `tiny`, without versions before and after."""
    uri, _ = store
    yield Registry(uri, "tiny")
    MlflowClient(uri, uri).delete_registered_model("tiny")


def register(registry: Registry, artifacts: Path, params: Params, threshold: float) -> str:
    """Send a bundle with this rule, trained on the data of `artifacts`, as challenger."""
    started = Started("package")
    place = artifacts / "package" / "bundle"
    if place.exists():
        shutil.rmtree(place)
    bundle(
        place,
        artifacts,
        threshold=threshold,
        git_commit=git_commit(),
        params_digest=params.digest(),
    )
    audit = json.loads((artifacts / "prepare" / "audit.json").read_bytes())
    settings = params.digest("capture", "enroll", "evaluate")
    (artifacts / "evaluate").mkdir(exist_ok=True)
    (artifacts / "evaluate" / "metrics.json").write_text(
        json.dumps({"origin": {"data": audit["archive_sha256"], "settings": settings}})
    )
    record(started, params, artifacts, error=None, load=[])
    [version] = send(spool_of(artifacts), registry.uri, "promotion").versions
    return version.split()[1]


def try_to_promote(
    registry: Registry, artifacts: Path, params: Params, *, first: bool = False, by: str = "A"
) -> str:
    done = promote(registry, params, artifacts, by=by, reason="because", now=NOW, first=first)
    return done.version.number


def test_a_challenger_that_is_not_worse_becomes_champion_on_record(
    registry: Registry, frozen: Path, tiny_params: Params
) -> None:
    one = register(registry, frozen, tiny_params, REJECT_EVERYTHING)
    with pytest.raises(StageFailed, match="--first"):
        try_to_promote(registry, frozen, tiny_params)
    assert try_to_promote(registry, frozen, tiny_params, first=True) == one
    assert registry.aliases() == {"champion": one}
    two = register(registry, frozen, tiny_params, REJECT_EVERYTHING)
    assert registry.aliases() == {"champion": one, "challenger": two}
    assert try_to_promote(registry, frozen, tiny_params, by="A. Chemist") == two
    assert registry.aliases() == {"champion": two}
    version = registry.version(two)
    kept = {key: value for key, value in version.tags.items() if key.startswith("promoted")}
    assert kept == {
        "promoted_by": "A. Chemist",
        "promoted_at": "2026-05-01T12:30:00+00:00",
        "promoted_because": "because",
        "promoted_over": one,
        "promoted_verdict": "no difference",
    }
    client = MlflowClient(registry.uri, registry.uri)
    [file] = client.list_artifacts(version.run_id, "promotions")
    text = Path(client.download_artifacts(version.run_id, file.path)).read_text()
    assert json.loads(text)["verdict"] == "no difference"


def test_a_worse_challenger_is_refused_and_the_champion_stays(
    registry: Registry,
    frozen: Path,
    tiny_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = register(registry, frozen, tiny_params, REJECT_EVERYTHING)
    try_to_promote(registry, frozen, tiny_params, first=True)
    two = register(registry, frozen, tiny_params, ACCEPT_EVERYTHING)
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(tiny_params.model_dump(mode="json")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    command = ["promote", "--model=tiny", "--reason=haste", f"--params={params}"]
    assert main([*command, f"--artifacts={frozen}"]) == 1
    said = capsys.readouterr().err
    assert "not promoted: B is worse than A: strangers accepted (FPIR)" in said
    assert f"Version {one} stays champion" in said
    assert registry.aliases() == {"champion": one, "challenger": two}
    assert "promoted_by" not in registry.version(two).tags
    # without the test photos nothing can be compared
    assert main([*command, f"--artifacts={tmp_path / 'none'}"]) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert main([*command, f"--artifacts={frozen}"]) == 1
    assert "Check MLFLOW_TRACKING_URI" in capsys.readouterr().err
    assert registry.aliases() == {"champion": one, "challenger": two}


def test_a_bundle_changed_on_the_server_is_refused(
    registry: Registry, store: tuple[str, Path], frozen: Path, tiny_params: Params
) -> None:
    _, kept = store
    number = register(registry, frozen, tiny_params, REJECT_EVERYTHING)
    version = registry.version(number)
    client = MlflowClient(registry.uri, registry.uri)
    client.set_model_version_tag("tiny", number, "git_commit", "another")
    with pytest.raises(StageFailed, match="its bundle has git_commit unversioned"):
        try_to_promote(registry, frozen, tiny_params, first=True)
    client.set_model_version_tag("tiny", number, "git_commit", git_commit())
    [model] = kept.glob(f"*/{version.run_id}/artifacts/model/data/bundle/model.tflite")
    with model.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"?")
    with pytest.raises(BundleRejected):
        try_to_promote(registry, frozen, tiny_params, first=True)
    assert registry.aliases() == {"challenger": number}


def test_who_and_why_must_be_said_and_a_version_must_be_there(
    registry: Registry, frozen: Path, tiny_params: Params
) -> None:
    with pytest.raises(StageFailed, match="tiny"):  # no such model
        try_to_promote(registry, frozen, tiny_params, first=True)
    number = register(registry, frozen, tiny_params, REJECT_EVERYTHING)
    with pytest.raises(InputRejected, match="--by"):
        try_to_promote(registry, frozen, tiny_params, first=True, by=" ")
    try_to_promote(registry, frozen, tiny_params, first=True)
    with pytest.raises(StageFailed, match="no version is challenger"):
        try_to_promote(registry, frozen, tiny_params)
    with pytest.raises(StageFailed, match="is the champion already"):
        promote(registry, tiny_params, frozen, by="A", reason="b", now=NOW, number=number)
