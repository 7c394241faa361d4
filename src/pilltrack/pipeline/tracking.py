"""Runs and models in MLflow; the only file that imports it.

    stage ends -> spool -> one child run per stage, below one parent run per `dvc repro`
    trial ends -> spool -> one child run per trial, below one parent run per study
    package ends -> spool -> a model version that `mlflow.pyfunc` loads, alias `challenger`

Everything goes to the spool first (see `spool`), and leaves it once the server has all of it. A
server that is down costs a stage seconds and one warning; `send` sends later what stayed. It may
be repeated after any failure: a run is found again by the id of its record, is filled a second
time with the same values, and counts as sent only when it is ended.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pilltrack.core.bundle import Manifest, read_bundle
from pilltrack.core.errors import ParamsRejected, PillTrackError, StageFailed
from pilltrack.pipeline.machine_load import MachineLoad
from pilltrack.pipeline.mlflow_uri import mlflow_uri
from pilltrack.pipeline.params import Params
from pilltrack.pipeline.results import Origin
from pilltrack.pipeline.spool import (
    BUNDLE,
    DIRECTORY,
    FIGURES,
    FILES,
    TRIAL,
    Ending,
    Session,
    StageRun,
    Started,
    Trial,
    endings,
    keep_ending,
    read_run,
    record,
    sha256,
    waiting,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
T = TypeVar("T")

EXPERIMENT = "pilltrack"
CHALLENGER, CHAMPION = "challenger", "champion"
SCORE = "recall_at_1"  # of a trial
MODEL = "model"  # where a run keeps the model among its artifacts
LOADER = "pilltrack.core.bundle_model"
SEND_TIMEOUT_S = 120
MAX_BATCH, MAX_PARAMS = 1000, 100  # metrics and parameters that MLflow takes at once
MAX_PARAM, MAX_DIGEST = 6000, 36  # characters that MLflow takes
# A server that is down must cost seconds; nobody is told that MLflow is used here.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri() -> str:
    """Where runs go: `MLFLOW_TRACKING_URI`, else a SQLite file in the working directory."""
    return mlflow_uri(os.environ)


def experiment_name() -> str:
    """The experiment that holds the runs: `MLFLOW_EXPERIMENT_NAME`, else `pilltrack`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def is_tracked() -> bool:
    """Tell whether stages are tracked: `PILLTRACK_TRACKING` is not `off`, and this process leads.

    Raises ParamsRejected when it is neither `on` nor `off`.
    """
    wanted = os.environ.get("PILLTRACK_TRACKING", "on")
    if wanted not in ("on", "off"):
        raise ParamsRejected(
            "PILLTRACK_TRACKING", found=repr(wanted), expected="on or off", remedy="Correct it."
        )
    return wanted == "on" and os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes


@contextmanager
def tracked(
    stage: str, params: Params, artifacts: Path, trial: Trial | None = None
) -> Iterator[None]:
    """Run a stage, or a trial, in the block and track it; it ends as it would have without.

    Whatever goes wrong with tracking is one warning.
    """
    watch = _begun(stage, trial) if is_tracked() else None
    if watch is None:
        yield
        return
    ended_by: BaseException | None = None
    started, load = watch
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        load.stop()
        try:
            record(started, params, artifacts, error=ended_by, load=load.samples)
            if ended_by is None or isinstance(ended_by, Exception):
                _send_beside(artifacts)
        except Exception as error:  # noqa: BLE001 - hours of training outweigh a record of them
            _warn_untracked(stage, error)


def _begun(stage: str, trial: Trial | None) -> tuple[Started, MachineLoad] | None:
    try:
        return Started(stage, trial), MachineLoad().start()
    except Exception as error:  # noqa: BLE001 - nor may it keep a stage from beginning
        _warn_untracked(stage, error)
        return None


def _warn_untracked(stage: str, error: Exception) -> None:
    log.warning("%s is not tracked: %s", stage, error)


def send_waiting(artifacts: Path) -> None:
    """Send what earlier stages and trials could not; what cannot be sent is one warning."""
    if is_tracked() and waiting(spool_of(artifacts)):
        _send_beside(artifacts)


def _send_beside(artifacts: Path) -> None:
    """Send in a process of its own, so that nothing MLflow does or waits for meets the stage."""
    command = [sys.executable, "-m", "pilltrack", "track", "sync", f"--artifacts={artifacts}"]
    later = "it is kept, and `pilltrack track sync` sends it later"
    try:
        done = subprocess.run(  # noqa: S603 - this program again
            command, capture_output=True, text=True, check=False, timeout=SEND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        log.warning("%s did not take the run in %d s: %s", _shown(tracking_uri()),
                    SEND_TIMEOUT_S, later)  # fmt: skip
        return
    if done.returncode:
        said = done.stderr.strip().splitlines()
        log.warning("%s (%s)", said[-1] if said else "tracking failed", later)


@dataclass(frozen=True)
class Sent:
    """What a server has taken: stages, and versions of models as `name version`."""

    stages: tuple[str, ...]
    versions: tuple[str, ...]


def send(spool: Path, uri: str, experiment: str) -> Sent:
    """Send all that waits in the spool, oldest first; what was taken leaves it.

    Raises StageFailed when the server cannot be reached or refuses, or another process sends; the
    rest then stays. A record or session that is damaged, or a bundle with the metrics of another
    run, stays as well: the others are sent, then it is reported.
    """
    stages: list[str] = []
    versions: list[str] = []
    refused: list[PillTrackError] = []
    ended, damaged = endings(spool)
    if not waiting(spool) and not ended:
        if damaged:
            raise damaged[0]
        return Sent((), ())
    with _locked(spool), _speaking_to(uri) as client:
        home = _experiment(client, experiment)
        for folder in waiting(spool):
            try:
                run = read_run(folder)
                manifest = _bundle_of(run, folder / FILES)
            except PillTrackError as error:
                refused.append(error)
                continue
            run_id = _send_run(client, home, run, folder / FILES)
            if manifest is not None:
                versions.append(_register(client, run, run_id, manifest, folder / FILES / BUNDLE))
            client.set_terminated(run_id, run.status, run.ended_ms)
            _end_parent(client, home, run)
            keep_ending(spool, run)
            shutil.rmtree(folder)
            stages.append(run.stage)
        ended, damaged = endings(spool)
        refused += damaged
        for file, ending in ended.items():
            _complete(client, home, ending)
            file.unlink()
    if refused:
        raise refused[0]
    return Sent(tuple(stages), tuple(versions))


@dataclass(frozen=True)
class Version:
    """A version of a registered model, and the run that made it."""

    model: str
    number: str
    run_id: str
    tags: Mapping[str, str]


class Registry:
    """The versions of one registered model on a server, and the names they go by."""

    def __init__(self, uri: str, model: str) -> None:
        self.uri = uri
        self.model = model

    def aliases(self) -> dict[str, str]:
        """Each alias and the number of its version. Raises StageFailed for an unknown model."""
        with _speaking_to(self.uri) as client:
            return {
                alias: str(number)
                for alias, number in client.get_registered_model(self.model).aliases.items()
            }

    def version(self, number: str) -> Version:
        """Look a version up. Raises StageFailed when there is none."""
        with _speaking_to(self.uri) as client:
            found = client.get_model_version(self.model, number)
            return Version(self.model, number, found.run_id or "", dict(found.tags))

    def fetch(self, version: Version, directory: Path) -> Path:
        """Download the bundle of a version into `directory`; it is not verified."""
        directory.mkdir(parents=True, exist_ok=True)
        with _speaking_to(self.uri) as client:
            place = f"{MODEL}/data/{BUNDLE}"
            return Path(client.download_artifacts(version.run_id, place, str(directory)))

    def note(self, version: Version, tags: Mapping[str, str], file: str, text: str) -> None:
        """Write tags onto a version, and a text among the artifacts of its run."""
        with _speaking_to(self.uri) as client:
            client.log_text(version.run_id, text, file)
            for key, value in tags.items():
                client.set_model_version_tag(self.model, version.number, key, value)

    def name(self, alias: str, version: Version) -> None:
        """Move an alias to a version."""
        with _speaking_to(self.uri) as client:
            client.set_registered_model_alias(self.model, alias, version.number)

    def unname(self, alias: str) -> None:
        """Take an alias away."""
        with _speaking_to(self.uri) as client:
            client.delete_registered_model_alias(self.model, alias)


@contextmanager
def _speaking_to(uri: str) -> Iterator[MlflowClient]:
    """A client for the block; whatever goes wrong between it and the server is a StageFailed."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow.store.db.utils
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # ten take minutes
    try:
        with warnings.catch_warnings():  # they speak to those who write MLflow code
            warnings.simplefilter("ignore")
            yield MlflowClient(uri, uri)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise StageFailed(
            f"MLflow at {_shown(uri)}",
            found=_shown(" ".join(str(error).split()))[:400],
            expected="a tracking server that takes runs and models",
            remedy="Check MLFLOW_TRACKING_URI and the server, then repeat the command.",
        ) from error


@contextmanager
def _locked(spool: Path) -> Iterator[None]:
    spool.mkdir(parents=True, exist_ok=True)
    with (spool / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StageFailed(
                str(spool),
                found="in use by another process that sends it",
                expected="one sender at a time",
                remedy="Wait for the other one, then repeat the command.",
            ) from error
        yield


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _run_with(
    client: MlflowClient, home: str, key: str, *, name: str, started_ms: int, tags: dict[str, str]
) -> str:
    """The run whose record has the id `key`, made if there is none."""
    found = client.search_runs([home], f"tags.`pilltrack.id` = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {**tags, "pilltrack.id": key}
    return str(client.create_run(home, started_ms, tags, name).info.run_id)


def _parent(client: MlflowClient, home: str, session: Session, tags: dict[str, str]) -> str:
    name = session.command[:200] or "stage"
    return _run_with(client, home, session.id, name=name, started_ms=session.started_ms, tags=tags)


def _shared_tags(run: StageRun) -> dict[str, str]:
    return {
        "mlflow.user": run.user,
        "mlflow.source.git.commit": run.git_commit.removesuffix("+changes"),
        "git_commit": run.git_commit,
        "dvc_lock_sha256": run.dvc_lock_sha256,
        "params_sha256": run.params_sha256,
        "data_sha256": run.data.sha256 if run.data else "",
        "host": run.session.host,
    }


def _in_parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _send_run(client: MlflowClient, home: str, run: StageRun, files: Path) -> str:
    from mlflow.entities import Metric, Param, RunTag

    shared = _shared_tags(run)
    parent = _parent(client, home, run.session, shared)
    own = {
        **shared,
        "mlflow.parentRunId": parent,
        "mlflow.source.name": f"pilltrack {run.stage}",
        "mlflow.source.type": "PROJECT",
        "stage": run.stage,
        **run.tags,
        **({"error": run.error} if run.error else {}),
    }
    name = f"trial {run.tags['trial']}" if run.stage == TRIAL else run.stage
    run_id = _run_with(client, home, run.id, name=name, started_ms=run.started_ms, tags=own)
    params = [Param(key, value[:MAX_PARAM]) for key, value in run.params.items()]
    for some in _in_parts(params, MAX_PARAMS):
        client.log_batch(run_id, params=some)
    points = [Metric(_plain(p.key), p.value, p.at_ms, p.step) for p in run.points]
    for several in _in_parts(points, MAX_BATCH):
        client.log_batch(run_id, metrics=several)
    _send_data(client, run_id, run)
    with tempfile.TemporaryDirectory() as directory:  # the bundle goes with the model
        shown = Path(directory) / "shown"
        shutil.copytree(files, shown, ignore=shutil.ignore_patterns(BUNDLE))
        client.log_artifacts(run_id, str(shown))
    if run.stage in FIGURES:  # so that whole runs can be compared
        final = [
            Metric(f"{run.stage}/{_plain(p.key)}", p.value, p.at_ms, p.step)
            for p in run.points
            if p.step == 0 and not p.key.startswith("system/")
        ]
        for several in _in_parts(final, MAX_BATCH):
            client.log_batch(parent, metrics=several)
    if run.stage == TRIAL and run.status == "FINISHED":  # so that the study is one curve
        scores = [p for p in run.points if p.key == SCORE][-1:]
        number = int(run.tags["trial"])
        final = [Metric(SCORE, p.value, p.at_ms, number) for p in scores]
        client.log_batch(parent, metrics=final)
    client.log_batch(parent, tags=[RunTag(key, value) for key, value in shared.items()])
    return run_id


def _send_data(client: MlflowClient, run_id: str, run: StageRun) -> None:
    if run.data is None:
        return
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = resolve_dataset_source(f"data/{run.data.name}")
    digest = run.data.sha256[:MAX_DIGEST]
    meta = MetaDataset(source, run.data.name, digest)  # type: ignore[abstract]
    described = meta.to_dict()
    profile = json.dumps({"images": run.data.n_images, "sha256": run.data.sha256})
    dataset = Dataset(**{**described, "profile": profile})
    context = "evaluation" if run.stage == "evaluate" else "training"
    tags = [InputTag("mlflow.data.context", context)]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])


def _end_parent(client: MlflowClient, home: str, run: StageRun) -> None:
    parent = _parent(client, home, run.session, _shared_tags(run))
    before = client.get_run(parent).info
    # A study goes on without a trial that failed, and trials are pruned on purpose.
    failed = (run.status != "FINISHED" and run.stage != TRIAL) or before.status in (
        "FAILED",
        "KILLED",
    )
    status = "FAILED" if failed else "FINISHED"
    client.set_terminated(parent, status, max(run.ended_ms, before.end_time or 0))


def _complete(client: MlflowClient, home: str, ending: Ending) -> None:
    """Give a parent run the dvc.lock that its `dvc repro` left, if that is still there.

    DVC writes the entry of the last stage after the stage, when no stage is left to record it.
    """
    from pilltrack.pipeline.checkout import git_commit

    lock = Path("dvc.lock")
    unchanged = ending.git_commit.split("+")[0] == git_commit().split("+")[0]
    if not lock.is_file() or not unchanged or lock.stat().st_mtime * 1000 < ending.ended_ms:
        return
    parent = _parent(client, home, ending.session, {})
    client.set_tag(parent, "dvc_lock_sha256", sha256(lock))
    client.log_artifact(parent, str(lock))


def _bundle_of(run: StageRun, files: Path) -> Manifest | None:
    """The manifest of the bundle that a stage made, None for other stages.

    Raises StageFailed unless bundle, metrics and run are of one commit, data set and setting.
    """
    if not (files / BUNDLE).is_dir():
        return None
    manifest = read_bundle(files / BUNDLE)
    params = Params.model_validate_json((files / "params.json").read_bytes())
    origin = _origin(files / "metrics.json")
    found = {
        "commit of the bundle": manifest.git_commit,
        "parameters of the bundle": manifest.params_digest,
        "data of the metrics": origin.data,
        "settings of the metrics": origin.settings,
    }
    expected = {
        "commit of the bundle": run.git_commit,
        "parameters of the bundle": run.params_sha256,
        "data of the metrics": manifest.data_digest,
        "settings of the metrics": params.digest("capture", "enroll", "evaluate"),
    }
    for what, value in found.items():
        if value != expected[what]:
            raise StageFailed(
                f"{files.parent}: {what}",
                found=f"{value[:20]}, of another run",
                expected=expected[what][:20],
                remedy="Run `dvc repro`, then move this folder away.",
            )
    return manifest


def _origin(metrics: Path) -> Origin:
    try:
        return Origin.model_validate(json.loads(metrics.read_bytes())["origin"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise StageFailed(
            str(metrics),
            found=f"not what `evaluate` writes ({' '.join(str(error).split())[:100]})",
            expected="the metrics of the run that made the bundle",
            remedy="Run `dvc repro`, then move this folder away.",
        ) from error


def _register(
    client: MlflowClient, run: StageRun, run_id: str, manifest: Manifest, bundle: Path
) -> str:
    """Make the bundle a version of the model of its name, found again if it is there already."""
    from mlflow.exceptions import MlflowException

    name = manifest.name
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, description="Bundles of PillTrack")
    found = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    if found:
        version = found[0]
    else:
        with tempfile.TemporaryDirectory() as directory:
            model = Path(directory) / MODEL
            save_model(bundle, model)
            client.log_artifacts(run_id, str(model), MODEL)
        source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL}"
        tags = {
            "git_commit": manifest.git_commit,
            "data_sha256": manifest.data_digest,
            "params_sha256": manifest.params_digest,
            "space": manifest.space,
            "dvc_lock_sha256": run.dvc_lock_sha256,
        }
        version = client.create_model_version(name, source, run_id, tags)
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return f"{name} {version.version}"


def save_model(bundle: Path, model: Path) -> None:
    """Write a bundle as a model that `mlflow.pyfunc` loads: files and source code, no pickle.

    It takes the bytes of images (column `image`) and, as parameter, `crop`; see `BundleModel`.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from pilltrack.core.bundle_model import COLUMN

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        params=ParamSchema([ParamSpec("crop", DataType.boolean, default=False)]),
    )
    package = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as directory:
        code, data = Path(directory) / package.name, Path(directory) / BUNDLE
        code.mkdir()
        shutil.copyfile(package / "__init__.py", code / "__init__.py")
        caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package / "core", code / "core", ignore=caches)
        shutil.copytree(bundle, data)
        mlflow.pyfunc.save_model(
            str(model),
            loader_module=LOADER,
            data_path=str(data),
            code_paths=[str(code)],
            signature=signature,
            pip_requirements=_device_requirements(),
        )


def _device_requirements() -> list[str]:
    """What a device installs, with its pins."""
    required = metadata.requires("pilltrack") or []
    return [line for line in required if "extra ==" not in line]


def _plain(key: str) -> str:
    """A key in the characters that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_\-./ :]", "_", key)[:250]


def _shown(text: str) -> str:
    """Without the name and password that a URI may carry.

    >>> _shown("https://me:secret@example.org/x")
    'https://example.org/x'
    """
    return re.sub(r"://[^/@\s]*@", "://", text)


def spool_of(artifacts: Path) -> Path:
    """The spool beside the results of a run."""
    return artifacts / DIRECTORY


def as_text(sent: Sent, uri: str) -> str:
    """What was sent, in words.

    >>> as_text(Sent(("train", "package"), ("pilltrack 3",)), "sqlite:///mlflow.db")
    'sent train, package to sqlite:///mlflow.db; registered pilltrack 3 as challenger'
    """
    if not sent.stages:
        return f"nothing waits for {_shown(uri)}"
    versions = [f"; registered {version} as {CHALLENGER}" for version in sent.versions]
    return f"sent {', '.join(sent.stages)} to {_shown(uri)}{''.join(versions)}"
