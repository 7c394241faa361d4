"""What this machine has for the pipeline, what is missing, and how to mend it.

Every check answers within seconds, also where a server does not: what is remote gets short
timeouts, and whatever is still silent after `DEADLINE_S` is broken. Four states:

    ok         it works: it was tried, not only found
    not used   nothing asks for it
    missing    something asks for it, and it is not there
    broken     it is there, and does not work

Only `ok` and `not used` are healthy. `require` turns *not used* into *missing*: where CI must
have S3, an empty secret is no green check. No key or password is ever part of a check.
"""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pilltrack.core.errors import InputRejected, PillTrackError, StageFailed
from pilltrack.pipeline.mlflow_uri import mlflow_uri
from pilltrack.pipeline.remote import Remote, current_remote, s3_client, s3_from, without_login

DEADLINE_S = 10.0  # for a check of something remote
GPU_DEADLINE_S = 60.0  # importing torch from a cold disk
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3, 4
GIGABYTE = 1_000_000_000
COPIES_OF_THE_ZIP = 4  # the zip, its images, and both again in DVC's cache
FREE_BYTES = 2 * GIGABYTE  # models, checkpoints, reports
DATA = Path("data/pills_dataset_resnet.zip")
SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
State = Literal["ok", "not used", "missing", "broken"]
KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (see .env.example)."
S3_REMEDIES = {
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is wrong: set the secret of this key.",
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID is unknown there: check key and endpoint.",
    "InvalidToken": "AWS_SESSION_TOKEN is wrong: renew or unset it.",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired: renew it.",
    "AccessDenied": "Allow this key to list the bucket and to get, put and delete its objects.",
    "NoSuchBucket": "Create the bucket, or correct PILLTRACK_REMOTE and repeat `pilltrack remote`.",
    "PermanentRedirect": "Set AWS_REGION to the bucket's region and repeat `pilltrack remote s3`.",
    "AuthorizationHeaderMalformed": "Set AWS_REGION to the bucket's region and repeat "
    "`pilltrack remote s3`.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, how it is, and what to do if it is not well."""

    name: str
    state: State
    found: str
    remedy: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing has to be mended."""
        return self.state in ("ok", "not used")


NAMES = ("python", "packages", "disk", "gpu", "dvc remote", "s3 write", "mlflow")


def examine(
    project: Path, environment: Mapping[str, str], require: Collection[str] = ()
) -> list[Check]:
    """All checks, in the order of `NAMES`; those named in `require` may not be *not used*.

    Raises InputRejected where `require` names no check.
    """
    for name in require:
        if name not in NAMES:
            raise InputRejected(
                "--require",
                found=repr(name),
                expected=f"one of {', '.join(map(repr, NAMES))}",
                remedy="Correct the name.",
            )
    remote = within(DEADLINE_S, "dvc remote", lambda: check_remote(project, environment))
    if remote.is_healthy:
        write = within(DEADLINE_S, "s3 write", lambda: check_s3_write(project, environment))
    else:
        write = Check("s3 write", remote.state, "not tried", "Mend the DVC remote first.")
    checks = [
        check_python(sys.version_info[:3]),
        check_packages(),
        check_disk(project),
        within(GPU_DEADLINE_S, "gpu", lambda: check_gpu(environment)),
        remote,
        write,
        within(DEADLINE_S, "mlflow", lambda: check_mlflow(project, environment)),
    ]
    return [_without_secrets(_required(check, require), environment) for check in checks]


def exit_code(checks: Sequence[Check]) -> int:
    """0 when all checks are healthy, else 1."""
    return 0 if all(check.is_healthy for check in checks) else 1


def as_text(checks: Sequence[Check]) -> str:
    """A table for a person, each remedy below its check.

    >>> print(as_text([Check("disk", "broken", "1.0 GB free", "Make room.")]))
    disk        broken    1.0 GB free
                          -> Make room.
    """
    lines = []
    for check in checks:
        lines.append(f"{check.name:11} {check.state:9} {check.found}")
        if check.remedy:
            lines.append(f"{'':21} -> {check.remedy}")
    return "\n".join(lines)


def within(seconds: float, name: str, check: Callable[[], Check]) -> Check:
    """Run one check, and give it up as broken after `seconds`; its thread is left behind."""
    answers: list[Check] = []

    def answer() -> None:
        try:
            answers.append(check())
        except ModuleNotFoundError as error:
            found = f"package {error.name} is not installed"
            answers.append(Check(name, "missing", found, "Run `pip install 'pilltrack[train]'`."))
        except PillTrackError as error:
            found = f"{error.subject}: {error.found}; expected {error.expected}"
            answers.append(Check(name, "broken", found, error.remedy))
        except Exception as error:  # noqa: BLE001  a doctor reports what it did not foresee, too
            found = f"{type(error).__name__}: {error}"
            answers.append(Check(name, "broken", found, "Please report this as a bug."))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    return Check(name, "broken", f"no answer within {seconds:.0f} s", "Check address and network.")


def check_python(version: tuple[int, ...]) -> Check:
    """Python itself; the pins are made and tested for 3.11."""
    found = ".".join(map(str, version))
    if version[:2] == (3, 11):
        return Check("python", "ok", found)
    state: State = "broken" if version < (3, 11) else "ok"
    return Check("python", state, found, "Use Python 3.11, for which the pins are tested.")


def check_packages() -> Check:
    """The packages of the training install, in the versions that pyproject.toml pins."""
    missing, other = [], []
    for requirement in metadata.requires("pilltrack") or ():
        pin, _, condition = requirement.partition(";")
        if "extra" in condition and '"train"' not in condition:
            continue
        name, _, wanted = (part.strip() for part in pin.partition("=="))
        try:
            version = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version != wanted:
            other.append(f"{name} {version} instead of {wanted}")
    if not missing and not other:
        return Check("packages", "ok", "all of the training install, as pinned")
    found = "; ".join([*([f"missing {', '.join(missing)}"] if missing else []), *other])
    remedy = "Run `make install`, or `pip install -c constraints.txt '.[train]'`."
    return Check("packages", "missing" if missing else "broken", found, remedy)


def check_disk(project: Path) -> Check:
    """Room for a run: four copies of the zip, and 2 GB for models and reports."""
    zip_bytes = (project / DATA).stat().st_size if (project / DATA).is_file() else 0
    wanted = COPIES_OF_THE_ZIP * zip_bytes + FREE_BYTES
    free = shutil.disk_usage(project).free
    found = f"{free / GIGABYTE:.1f} GB free, a run wants {wanted / GIGABYTE:.1f}"
    if not os.access(project, os.W_OK):
        return Check("disk", "broken", f"{project} cannot be written", "Mend its permissions.")
    if free >= wanted:
        return Check("disk", "ok", found)
    return Check("disk", "broken", found, "Make room; `dvc gc --workspace` drops old results.")


def check_gpu(environment: Mapping[str, str]) -> Check:
    """An NVIDIA card, and whether torch can compute on it; without a card nothing is asked."""
    path = environment.get("PATH", os.defpath)
    tool = shutil.which("nvidia-smi", path=path)
    if tool is None:
        return Check("gpu", "not used", "no NVIDIA driver: training runs on the CPU")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(  # noqa: S603
            query, capture_output=True, text=True, check=False, timeout=DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return Check("gpu", "broken", "nvidia-smi hangs", "Restart the machine or its driver.")
    cards = listed.stdout.strip()
    if listed.returncode or not cards:
        said = (listed.stderr.strip() or cards or "no card").splitlines()[0]
        return Check("gpu", "broken", f"nvidia-smi: {said}", "Repair the driver (DKMS, reboot).")
    program = "import torch; torch.ones(1, device='cuda').add_(1).item(); print('computes')"
    tried = subprocess.run(  # noqa: S603  torch stays out of this process
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=GPU_DEADLINE_S,
    )
    found = "; ".join(cards.splitlines())
    if tried.stdout.strip() == "computes":
        return Check("gpu", "ok", found)
    why = (tried.stderr.strip().splitlines() or ["torch does not compute"])[-1]
    remedy = "Install a build of torch that fits the driver (pytorch.org, Get Started)."
    return Check("gpu", "broken", f"{found}, but torch: {why}", remedy)


def check_remote(project: Path, environment: Mapping[str, str]) -> Check:
    """DVC's default remote: a folder that can be written, or a bucket that answers."""
    wanted = s3_from(environment)
    remote = current_remote(project)
    if wanted and _place(wanted) != _place(remote):
        found = f"DVC uses {remote}, the environment names {wanted}"
        return Check("dvc remote", "broken", found, "Run `pilltrack remote s3`.")
    if remote.is_s3:
        return check_s3_read(remote, environment)
    if remote.is_folder:
        return _check_folder("dvc remote", Path(remote.url))
    found = without_login(remote.url)
    remedy = "Use a folder or s3://; other remotes are not checked here."
    return Check("dvc remote", "broken", found, remedy)


def _place(remote: Remote) -> tuple[str, Any]:
    return remote.url.rstrip("/"), remote.options.get("endpointurl")


def check_s3_read(remote: Remote, environment: Mapping[str, str]) -> Check:
    """Whether the keys may list the bucket."""

    def read(client: Any) -> str:
        client.list_objects_v2(Bucket=remote.bucket, Prefix=remote.prefix, MaxKeys=1)
        return str(remote)

    return _on_s3("dvc remote", remote, environment, read)


def check_s3_write(project: Path, environment: Mapping[str, str]) -> Check:
    """Whether DVC's bucket takes an object, gives it back and deletes it; not for a folder."""
    remote = current_remote(project)
    if not remote.is_s3:
        return Check("s3 write", "not used", "the DVC remote is a folder")
    return write_to_s3(remote, environment)


def write_to_s3(remote: Remote, environment: Mapping[str, str]) -> Check:
    """Put one small object under a key of its own, read it back and delete it."""
    key = f"{remote.prefix}.pilltrack-doctor-{uuid.uuid4().hex}"
    body = uuid.uuid4().bytes

    def write(client: Any) -> str:
        client.put_object(Bucket=remote.bucket, Key=key, Body=body)
        try:
            got = client.get_object(Bucket=remote.bucket, Key=key)["Body"].read()
        finally:
            client.delete_object(Bucket=remote.bucket, Key=key)
        return "put, read back and deleted" if got == body else ""

    check = _on_s3("s3 write", remote, environment, write)
    if check.state == "ok" and not check.found:
        found = "the bucket gave back other bytes than it was given"
        return Check("s3 write", "broken", found, "Do not keep data there.")
    return check


def require_s3(remote: Remote, environment: Mapping[str, str]) -> None:
    """Raise StageFailed, with the remedy, unless the bucket can be listed and written."""
    for name, check in (("dvc remote", check_s3_read), ("s3 write", write_to_s3)):
        done = within(DEADLINE_S, name, lambda check=check: check(remote, environment))  # type: ignore[misc]
        done = _without_secrets(done, environment)
        if not done.is_healthy:
            raise StageFailed(
                f"{name} ({remote})",
                found=done.found,
                expected="a bucket that these keys may list and write",
                remedy=done.remedy,
            )


def check_mlflow(project: Path, environment: Mapping[str, str]) -> Check:
    """The tracking server's health, or whether its file or folder can be written."""
    if environment.get("PILLTRACK_TRACKING") == "off":
        return Check("mlflow", "not used", "PILLTRACK_TRACKING is off")
    uri = mlflow_uri(environment)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _check_health(uri)
    if scheme == "sqlite" and uri.startswith("sqlite:///"):
        return _check_file("mlflow", project / uri.removeprefix("sqlite:///"))
    if scheme in ("", "file"):
        return _check_folder("mlflow", project / urlsplit(uri).path)
    remedy = "Set MLFLOW_TRACKING_URI to http(s)://HOST, sqlite:///FILE or a folder."
    return Check("mlflow", "broken", f"cannot check {without_login(uri)}", remedy)


def _check_health(uri: str) -> Check:
    parts = urlsplit(uri)
    shown = without_login(uri)
    remedy = "Start the server, or correct MLFLOW_TRACKING_URI; stages keep their runs meanwhile."
    host, path = parts.hostname or "", f"{parts.path.rstrip('/')}/health"
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                host, parts.port, timeout=READ_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=READ_TIMEOUT_S)
        try:
            connection.request("GET", path)
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Check("mlflow", "broken", f"{shown} does not answer: {error}", remedy)
    if status == http.client.OK:
        return Check("mlflow", "ok", shown)
    return Check("mlflow", "broken", f"{shown} answers {status} to GET /health", remedy)


def _check_file(name: str, path: Path) -> Check:
    if not path.exists():
        return replace(_check_folder(name, path.parent), found=f"{path} (not begun)")
    if path.is_file() and os.access(path, os.W_OK):
        return Check(name, "ok", str(path))
    return Check(name, "broken", f"{path} cannot be written", "Mend its permissions.")


def _check_folder(name: str, path: Path) -> Check:
    """Write a file there, or where the folder will be made."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"1")
    except OSError as error:
        found = f"{there} cannot be written: {error.strerror}"
        return Check(name, "broken", found, "Mend its permissions, or make room.")
    return Check(name, "ok", str(path) if there == path else f"{path} (not begun)")


def _on_s3(
    name: str, remote: Remote, environment: Mapping[str, str], act: Callable[[Any], str]
) -> Check:
    """Do something with the bucket, and put what goes wrong into words."""
    from botocore import exceptions as wrong

    try:
        return Check(name, "ok", act(_client(remote, environment)))
    except wrong.NoCredentialsError:
        return Check(name, "missing", f"no keys for {remote}", KEYS)
    except wrong.PartialCredentialsError as error:
        return Check(name, "missing", str(error), KEYS)
    except wrong.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        found = f"{remote} refuses {error.operation_name}: {code}"
        return Check(name, "broken", found, S3_REMEDIES.get(code, "Ask who runs this S3."))
    except (
        wrong.ConnectionError,
        wrong.HTTPClientError,
    ) as error:  # closed, silent, unknown host, bad certificate
        found = f"{remote} does not answer ({type(error).__name__})"
        return Check(name, "broken", found, "Check AWS_ENDPOINT_URL and the network.")
    except wrong.BotoCoreError as error:
        return Check(name, "broken", str(error), "Check the AWS_* variables (see .env.example).")


def _client(remote: Remote, environment: Mapping[str, str]) -> Any:
    """A client that uses what DVC would use, but gives up sooner."""
    return s3_client(
        remote,
        environment,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        read_timeout_s=READ_TIMEOUT_S,
    )


def _required(check: Check, require: Collection[str]) -> Check:
    if check.name not in require or check.state != "not used":
        return check
    remedy = KEYS.replace("Set", "Set PILLTRACK_REMOTE,") if check.name == "s3 write" else ""
    return replace(check, state="missing", remedy=remedy or "It is required here: set it up.")


def _without_secrets(check: Check, environment: Mapping[str, str]) -> Check:
    """What others wrote (errors, URLs) may quote a secret; nothing of it is passed on."""
    found = check.found
    for name in SECRETS:
        if environment.get(name):
            found = found.replace(environment[name], "***")
    return replace(check, found=found)
