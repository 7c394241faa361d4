"""Runs in MLflow, against a real server: all of a `dvc repro`, nothing lost, nothing twice."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from pilltrack.cli import STAGES, main
from pilltrack.core.bundle import read_bundle
from pilltrack.core.bundle_model import BundleModel
from pilltrack.core.errors import GateFailed, InputRejected, ParamsRejected, StageFailed
from pilltrack.core.identify import open_identifier, to_json
from pilltrack.core.image import decode_image
from pilltrack.pipeline.checkout import git_commit
from pilltrack.pipeline.machine_load import MachineLoad, parse_gpus
from pilltrack.pipeline.params import Params, load_params
from pilltrack.pipeline.spool import (
    FILES,
    RUN_FILE,
    SESSIONS,
    Ending,
    Started,
    record,
    waiting,
)
from pilltrack.pipeline.tracking import is_tracked, send, spool_of, tracked
from tests.imports import ROOT
from tests.pipeline.mlflow_server import free_port, mlflow_server, proxy_before
from tests.pipeline.test_compare import bundle

HISTORY = "epoch,step,loss,learning_rate\n1,6,0.5,0.001\n2,12,0.25,0.0005\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture
def workplace(tmp_path: Path, tiny_artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit and prepared data, in which we stand; returns `artifacts/`."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PILLTRACK_TRACKING", "RANK", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "Begin"], check=True)
    artifacts = tmp_path / "artifacts"
    (artifacts / "prepare").mkdir(parents=True)
    for name in ("audit.json", "audit.md"):
        data = (tiny_artifacts / "prepare" / name).read_bytes()
        (artifacts / "prepare" / name).write_bytes(data)
    return artifacts


def spool_train(artifacts: Path, params: Params, error: BaseException | None = None) -> Path:
    """What `train` would leave in the spool."""
    started = Started("train")
    (artifacts / "train").mkdir(exist_ok=True)
    (artifacts / "train" / "history.csv").write_text(HISTORY)
    load = MachineLoad(interval_s=0.01).start()
    load.stop()
    return record(started, params, artifacts, error=error, load=load.samples)


def spool_package(artifacts: Path, params: Params, **changed: str) -> Path:
    """What `package` would leave in the spool; `changed` has the bundle or metrics of another."""
    started = Started("package")
    about = {
        "git_commit": git_commit(),
        "params_digest": params.digest(),
        "metrics_data": json.loads((artifacts / "prepare" / "audit.json").read_bytes())[
            "archive_sha256"
        ],
        **changed,
    }
    bundle(
        artifacts / "package" / "bundle",
        artifacts,
        threshold=-1.0,
        pills=["x"],
        git_commit=about["git_commit"],
        params_digest=about["params_digest"],
    )
    origin = {
        "data": about["metrics_data"],
        "settings": params.digest("capture", "enroll", "evaluate"),
    }
    (artifacts / "evaluate").mkdir(exist_ok=True)
    (artifacts / "evaluate" / "metrics.json").write_text(json.dumps({"origin": origin}))
    return record(started, params, artifacts, error=None, load=[])


def runs_of(uri: str, experiment: str) -> list[Run]:
    client = MlflowClient(uri, uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def children(uri: str, experiment: str) -> list[Run]:
    return [run for run in runs_of(uri, experiment) if "mlflow.parentRunId" in run.data.tags]


def history(uri: str, run: Run, key: str) -> list[tuple[int, float]]:
    found = MlflowClient(uri, uri).get_metric_history(run.info.run_id, key)
    return [(metric.step, metric.value) for metric in found]


# --- what a run holds ----------------------------------------------------------------------------


STAGE = """
import sys
from pathlib import Path
from pilltrack.pipeline.params import load_params
from pilltrack.pipeline.tracking import tracked

stage, artifacts = sys.argv[1], Path("artifacts")
with tracked(stage, load_params(Path("params.yaml")), artifacts):
    (artifacts / stage).mkdir(exist_ok=True)
    (artifacts / stage / "history.csv").write_text({history!r})
"""


def test_the_stages_of_one_dvc_repro_are_children_of_one_run(
    workplace: Path, server: str, tiny_params: Params
) -> None:
    stages = {
        stage: {
            "cmd": f"{sys.executable} stage.py {stage}",
            "deps": [*previous],
            "outs": [f"artifacts/{stage}"],
        }
        for stage, previous in {"train": [], "distill": ["artifacts/train"]}.items()
    }
    Path("stage.py").write_text(STAGE.format(history=HISTORY))
    Path("params.yaml").write_text(yaml.safe_dump(tiny_params.model_dump(mode="json")))
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": server,
        "MLFLOW_EXPERIMENT_NAME": "repro",
        "PYTHONPATH": str(ROOT / "src"),
        "DVC_NO_ANALYTICS": "1",
    }
    for command in ("init --quiet", "repro"):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command.split()],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert waiting(spool_of(workplace)) == []
    lock = hashlib.sha256(Path("dvc.lock").read_bytes()).hexdigest()
    [parent] = {run.data.tags["mlflow.parentRunId"] for run in children(server, "repro")}
    before = MlflowClient(server, server).get_run(parent)
    assert before.data.tags["dvc_lock_sha256"] != lock  # DVC had not written the last stage
    send(spool_of(workplace), server, "repro")

    whole = MlflowClient(server, server).get_run(parent)
    assert "dvc repro" in whole.info.run_name
    assert whole.info.status == "FINISHED"
    assert whole.data.tags["git_commit"] == git_commit()
    assert whole.data.tags["dvc_lock_sha256"] == lock
    stages_run = {run.data.tags["stage"]: run for run in children(server, "repro")}
    assert set(stages_run) == {"train", "distill"}
    assert len(runs_of(server, "repro")) == 3
    train = stages_run["train"]
    assert train.data.params["train.epochs"] == "3"
    assert f"{train.data.tags['mlflow.source.git.commit']}+changes" == git_commit()
    assert history(server, train, "loss") == [(1, 0.5), (2, 0.25)]
    assert history(server, train, "learning_rate") == [(1, 0.001), (2, 0.0005)]
    assert len(history(server, train, "system/cpu_utilization_percentage")) >= 1
    assert train.inputs is not None
    [data] = train.inputs.dataset_inputs
    audit = json.loads((workplace / "prepare" / "audit.json").read_bytes())
    assert data.dataset.digest == audit["archive_sha256"][:36]
    assert json.loads(data.dataset.profile or "")["sha256"] == audit["archive_sha256"]
    files = MlflowClient(server, server).list_artifacts(train.info.run_id)
    assert {file.path for file in files} == {"history.csv", "history.png", "params.json"}


@pytest.mark.e2e
def test_the_whole_pipeline_is_one_run_in_the_local_store(repository: Path) -> None:
    uri = f"sqlite:///{repository / 'mlflow.db'}"
    found = {run.data.tags["stage"]: run for run in children(uri, "pilltrack")}
    assert list(STAGES) == sorted(found, key=list(STAGES).index)
    [parent] = {run.data.tags["mlflow.parentRunId"] for run in found.values()}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    with (repository / "artifacts" / "train" / "history.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    loss = history(uri, found["train"], "loss")
    assert loss == [(int(row["epoch"]), float(row["loss"])) for row in rows]
    metrics = json.loads((repository / "artifacts" / "evaluate" / "metrics.json").read_bytes())
    recall = "test/rendered/new/recall_at_1/value"
    value = metrics["test"]["rendered"]["new"]["recall_at_1"]["value"]
    assert found["evaluate"].data.metrics[recall] == value
    assert MlflowClient(uri, uri).get_run(parent).data.metrics[f"evaluate/{recall}"] == value
    name = load_params(repository / "params.yaml").package.name
    version = MlflowClient(uri, uri).get_model_version_by_alias(name, "challenger")
    assert version.run_id == found["package"].info.run_id


def test_a_file_of_an_earlier_run_is_not_recorded(workplace: Path, tiny_params: Params) -> None:
    (workplace / "convert").mkdir()
    parity = workplace / "convert" / "parity.json"
    parity.write_text('{"int8_mean_cosine": 0.9}')
    os.utime(parity, (time.time() - 60, time.time() - 60))
    old = record(Started("convert"), tiny_params, workplace, error=None, load=[])
    assert not (old / FILES / "parity.json").exists()
    assert "int8_mean_cosine" not in (old / RUN_FILE).read_text()
    started = Started("convert")
    parity.write_text('{"int8_mean_cosine": 0.9}')
    new = record(started, tiny_params, workplace, error=None, load=[])
    assert "int8_mean_cosine" in (new / RUN_FILE).read_text()


def test_a_gpu_that_reports_nothing_is_left_out() -> None:
    assert parse_gpus("") == {}
    assert parse_gpus("[N/A], [N/A]") == {}
    assert parse_gpus("99, 512") == {
        "system/gpu_0_utilization_percentage": 99.0,
        "system/gpu_0_memory_usage_megabytes": 512.0,
    }


# --- what can go wrong ---------------------------------------------------------------------------


def test_a_stage_outlives_a_server_that_is_down_and_is_sent_later_once(
    workplace: Path,
    server: str,
    tiny_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with caplog.at_level(logging.WARNING), tracked("train", tiny_params, workplace):
        (workplace / "train").mkdir()
        (workplace / "train" / "history.csv").write_text(HISTORY)
        ended = time.monotonic()
    assert time.monotonic() - ended < 60
    [warning] = caplog.messages
    assert "`pilltrack track sync` sends it later" in warning
    assert len(waiting(spool_of(workplace))) == 1
    for sent in [("train",), ()]:
        assert send(spool_of(workplace), server, "later").stages == sent
    [run] = children(server, "later")
    assert history(server, run, "loss") == [(1, 0.5), (2, 0.25)]
    assert waiting(spool_of(workplace)) == []


def test_a_machine_without_git_runs_stages_untracked(
    workplace: Path,
    tiny_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = []
    with caplog.at_level(logging.WARNING), tracked("train", tiny_params, workplace):
        ran.append("train")
    assert ran == ["train"]
    [warning] = caplog.messages
    assert "train is not tracked" in warning
    assert "git" in warning


def test_a_failing_stage_fails_as_without_tracking_and_is_on_record(
    workplace: Path, server: str, tiny_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "failing")
    broken = GateFailed("recall", found="0.1", expected="0.5", remedy="Train longer.")
    with pytest.raises(GateFailed) as caught, tracked("evaluate", tiny_params, workplace):
        raise broken
    assert caught.value is broken
    [run] = children(server, "failing")
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == str(broken)
    [parent] = [run for run in runs_of(server, "failing") if "stage" not in run.data.tags]
    assert parent.info.status == "FAILED"


def test_a_server_that_fails_half_way_gets_everything_once(
    workplace: Path, server: str, tiny_params: Params
) -> None:
    spool_train(workplace, tiny_params)
    spool_package(workplace, tiny_params)
    with proxy_before(server) as (uri, proxy):
        failures: list[str] = []
        for passes in range(1, 200, 4):
            proxy.seen, proxy.passes = 0, passes
            try:
                send(spool_of(workplace), uri, "half way")
            except StageFailed as error:
                failures.append(str(error))
            else:
                break
    assert len(failures) >= 5
    assert all(uri in failure for failure in failures), failures
    assert waiting(spool_of(workplace)) == []
    found = {run.data.tags["stage"]: run for run in children(server, "half way")}
    assert set(found) == {"train", "package"}
    assert len(runs_of(server, "half way")) == 3
    assert history(server, found["train"], "loss") == [(1, 0.5), (2, 0.25)]
    assert len(history(server, found["train"], "stage_seconds")) == 1
    run_id = found["package"].info.run_id
    versions = MlflowClient(server, server).search_model_versions(f"run_id='{run_id}'")
    assert len(versions) == 1


def test_sync_says_what_is_wrong_and_keeps_everything(
    workplace: Path,
    server: str,
    tiny_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spool_train(workplace, tiny_params)
    with proxy_before(server) as (uri, proxy):
        proxy.passes = 0
        with_password = uri.replace("http://", "http://me:secret@")
        for address, words in {
            with_password: "500",
            f"http://127.0.0.1:{free_port()}": "refused",
            "carrier-pigeon://roof": "carrier-pigeon",
            f"sqlite:///{workplace / 'prepare' / 'audit.md'}/runs.db": "File exists",
        }.items():
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            assert main(["track", "sync"]) == 1
            said = capsys.readouterr().err
            assert words in said
            assert "Check MLFLOW_TRACKING_URI" in said
            assert "secret" not in said
            assert "Traceback" not in said
    assert len(waiting(spool_of(workplace))) == 1


def test_a_damaged_record_is_reported_and_holds_up_no_other(
    workplace: Path, server: str, tiny_params: Params
) -> None:
    damaged = spool_train(workplace, tiny_params)
    (damaged / FILES / "history.csv").write_text("epoch,step,loss,learning_rate\n1,1,0,0\n")
    spool_train(workplace, tiny_params)
    with pytest.raises(StageFailed, match=r"history\.csv"):
        send(spool_of(workplace), server, "damaged")
    assert len(children(server, "damaged")) == 1
    assert waiting(spool_of(workplace)) == [damaged]


def test_a_damaged_session_is_reported_and_holds_up_no_record(
    workplace: Path, server: str, tiny_params: Params
) -> None:
    spool_train(workplace, tiny_params)
    damaged = spool_of(workplace) / SESSIONS / "0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"{\xff")
    for _ in range(2):
        with pytest.raises(StageFailed, match=r"0\.json: not a session.*Move it away"):
            send(spool_of(workplace), server, "damaged session")
    assert len(children(server, "damaged session")) == 1
    assert waiting(spool_of(workplace)) == []
    assert damaged.is_file()
    # That of the next record is written anew.
    [session] = set(damaged.parent.iterdir()) - {damaged}
    session.write_text("{}")
    damaged.unlink()
    spool_train(workplace, tiny_params)
    send(spool_of(workplace), server, "damaged session")
    assert len(children(server, "damaged session")) == 2
    assert Ending.model_validate_json(session.read_bytes()).session.pid == os.getpid()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"git_commit": "0" * 40}, "commit of the bundle"),
        ({"params_digest": "0" * 64}, "parameters of the bundle"),
        ({"metrics_data": "0" * 64}, "data of the metrics"),
    ],
)
def test_a_bundle_with_metrics_of_another_run_is_not_registered(
    workplace: Path, server: str, tiny_params: Params, changed: dict[str, str], named: str
) -> None:
    folder = spool_package(workplace, tiny_params, **changed)
    with pytest.raises(StageFailed, match=named):
        send(spool_of(workplace), server, "mixed")
    assert waiting(spool_of(workplace)) == [folder]
    assert children(server, "mixed") == []


def test_tracking_can_be_left_out_and_only_the_leading_process_tracks(
    workplace: Path, tiny_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILLTRACK_TRACKING", "off")
    with tracked("train", tiny_params, workplace):
        pass
    assert not spool_of(workplace).exists()
    monkeypatch.setenv("PILLTRACK_TRACKING", "maybe")
    with pytest.raises(ParamsRejected, match="on or off"):
        is_tracked()
    monkeypatch.delenv("PILLTRACK_TRACKING")
    monkeypatch.setenv("RANK", "1")
    assert not is_tracked()


# --- models --------------------------------------------------------------------------------------


def png(tmp_path: Path) -> bytes:
    file = tmp_path / "pill.png"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(file)
    return file.read_bytes()


def test_a_registered_bundle_predicts_from_images_as_on_the_device(
    workplace: Path, server: str, tiny_params: Params, tmp_path: Path
) -> None:
    spool_package(workplace, tiny_params)
    sent = send(spool_of(workplace), server, "models")
    [version] = sent.versions
    client = MlflowClient(server, server)
    mlflow.set_tracking_uri(server)
    model = mlflow.pyfunc.load_model("models:/tiny@challenger")
    assert client.get_model_version_by_alias("tiny", "challenger").version == version.split()[1]
    image = png(tmp_path)
    [answer] = model.predict(pd.DataFrame({"image": [image]}))
    directory = workplace / "package" / "bundle"
    with open_identifier(directory) as identifier:
        frame = decode_image(image, name="image 0")
        assert answer == to_json("image 0", identifier.identify(frame))
        [crop] = model.predict(pd.DataFrame({"image": [image]}), params={"crop": True})
        assert crop == to_json("image 0", identifier.identify_crop(frame))
    tags = client.get_model_version_by_alias("tiny", "challenger").tags
    assert tags["space"] == read_bundle(directory).space


def test_a_model_reads_bytes_and_no_path_of_its_machine(
    workplace: Path, tiny_params: Params, tmp_path: Path
) -> None:
    spool_package(workplace, tiny_params)
    with open_identifier(workplace / "package" / "bundle") as identifier:
        model = BundleModel(identifier)
        assert model.predict(png(tmp_path)) == model.predict([png(tmp_path)])
        for wrong in ("/etc/passwd", ["/etc/passwd"], 3, pd.DataFrame({"path": [b""]})):
            with pytest.raises(InputRejected, match="bytes of JPEG or PNG"):
                model.predict(wrong)


def test_a_registered_bundle_runs_from_its_own_source_and_holds_no_pickle(
    workplace: Path, server: str, tiny_params: Params, tmp_path: Path
) -> None:
    spool_package(workplace, tiny_params)
    send(spool_of(workplace), server, "models")
    mlflow.set_tracking_uri(server)
    there = Path(
        mlflow.artifacts.download_artifacts("models:/tiny@challenger", dst_path=str(tmp_path))
    )
    kinds = {file.suffix for file in there.rglob("*") if file.is_file()}
    assert not kinds & {".pkl", ".pickle", ".joblib", ".pt"}
    png(tmp_path)
    program = f"""
import sys, mlflow.pyfunc
sys.modules.pop("pilltrack", None)
sys.path = [place for place in sys.path if "pilltrack" not in place]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
model = mlflow.pyfunc.load_model({str(there)!r})
import pilltrack
print(pilltrack.__file__)
import pandas
print(model.predict(pandas.DataFrame({{"image": [open("pill.png", "rb").read()]}})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(there / "code") in done.stdout
    assert "'decision'" in done.stdout
