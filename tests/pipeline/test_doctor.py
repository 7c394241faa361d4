"""The doctor without any server but those a test starts; tests/test_s3.py asks a real S3."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
import torch

from pilltrack.cli import main
from pilltrack.pipeline import doctor
from pilltrack.pipeline.doctor import Check, check_gpu, check_mlflow, examine, exit_code, within
from tests.s3 import project
from tests.test_architecture import loaded_by

NO_TOOLS = {"PATH": "/nowhere"}


def test_healthy_machine_without_any_account(tmp_path: Path) -> None:
    checks = examine(project(tmp_path / "clone"), NO_TOOLS)
    assert [check.name for check in checks] == list(doctor.NAMES)
    states = {check.name: check.state for check in checks}
    assert (states["gpu"], states["s3 write"]) == ("not used", "not used")
    assert (states["dvc remote"], states["mlflow"]) == ("ok", "ok")
    assert exit_code(checks) == 0


def test_what_is_required_may_not_be_unused(tmp_path: Path) -> None:
    checks = examine(project(tmp_path / "clone"), NO_TOOLS, ["s3 write"])
    (write,) = (check for check in checks if check.name == "s3 write")
    assert write.state == "missing"
    assert "PILLTRACK_REMOTE" in write.remedy
    assert exit_code(checks) == 1


def test_unknown_requirement_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project(tmp_path / "clone"))
    assert main(["doctor", "--require", "s3"]) == 1
    assert "expected one of 'python'" in capsys.readouterr().err


def test_address_that_dvc_does_not_use_yet_is_broken(tmp_path: Path) -> None:
    named = {**NO_TOOLS, "PILLTRACK_REMOTE": "s3://pills"}
    checks = {check.name: check for check in examine(project(tmp_path / "clone"), named)}
    assert checks["dvc remote"].state == "broken"
    assert checks["dvc remote"].remedy == "Run `pilltrack remote s3`."
    assert checks["s3 write"].state == "broken"


def test_json_says_healthy_only_with_exit_code_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = project(tmp_path / "clone")
    monkeypatch.chdir(clone)
    monkeypatch.delenv("PILLTRACK_REMOTE", raising=False)
    monkeypatch.delenv("PILLTRACK_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    (clone / "dvc-remote").write_text("a file where the folder belongs")
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is False
    broken = [check["name"] for check in report["checks"] if check["state"] == "broken"]
    assert broken == ["dvc remote", "s3 write"]


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (503, "broken"), (404, "broken")])
def test_mlflow_is_what_its_health_says(status: int, state: str, tmp_path: Path) -> None:
    with answering(status) as (address, asked):
        check = check_mlflow(tmp_path, {"MLFLOW_TRACKING_URI": f"{address}/mlflow/"})
    assert check.state == state
    assert asked == ["/mlflow/health"]


def test_mlflow_that_is_not_there_or_silent_is_broken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        check = check_mlflow(
            tmp_path, {"MLFLOW_TRACKING_URI": f"http://a:hunter2@127.0.0.1:{port}"}
        )
        assert time.monotonic() - started < doctor.DEADLINE_S
    assert check.state == "broken"
    assert "hunter2" not in check.found
    assert check_mlflow(tmp_path, {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}) != check
    assert check.remedy


def test_mlflow_file_must_be_writable(tmp_path: Path) -> None:
    assert check_mlflow(tmp_path, {}).state == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").touch()
    below = {"MLFLOW_TRACKING_URI": "sqlite:///taken/mlflow.db"}
    assert check_mlflow(tmp_path, below).state == "broken"
    assert check_mlflow(tmp_path, {"MLFLOW_TRACKING_URI": "runs"}).state == "ok"
    assert check_mlflow(tmp_path, {"MLFLOW_TRACKING_URI": "postgresql://x"}).state == "broken"
    assert check_mlflow(tmp_path, {"PILLTRACK_TRACKING": "off"}).state == "not used"


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", "NVIDIA-SMI has failed"),
        ("exit 0", "no card"),
    ],
)
def test_broken_driver_is_broken(script: str, found: str, tmp_path: Path) -> None:
    check = check_gpu({"PATH": str(tool(tmp_path, "nvidia-smi", script))})
    assert check.state == "broken"
    assert found in check.found


def test_card_that_torch_cannot_use_is_broken(tmp_path: Path) -> None:
    path = tool(tmp_path, "nvidia-smi", "echo 'NVIDIA X, 81559 MiB, 570.1'")
    check = check_gpu({"PATH": str(path)})
    assert "NVIDIA X" in check.found
    assert check.state == ("ok" if torch.cuda.is_available() else "broken")


def test_other_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = [
        f"boto3=={metadata.version('boto3')}",
        'dvc==0.1; extra == "train"',
        'no-such-package==1; extra == "train"',
        'nor-this==1; extra == "dev"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: pins)
    check = doctor.check_packages()
    assert check.state == "missing"
    assert "missing no-such-package; dvc" in check.found
    assert "instead of 0.1" in check.found
    assert "nor-this" not in check.found


def test_disk_too_full_for_four_copies_of_the_zip_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.check_disk(tmp_path).state == "ok"
    (tmp_path / doctor.DATA).parent.mkdir()
    with (tmp_path / doctor.DATA).open("wb") as file:
        file.truncate(10**13)  # sparse
    check = doctor.check_disk(tmp_path)
    assert check.state == "broken"
    assert "a run wants 40002.0" in check.found


def test_older_python_is_broken_and_newer_is_only_advised() -> None:
    assert doctor.check_python((3, 10, 1)).state == "broken"
    assert doctor.check_python((3, 11, 7)) == Check("python", "ok", "3.11.7")
    assert doctor.check_python((3, 13, 0)).state == "ok"


def test_check_that_hangs_is_given_up() -> None:
    hanging = threading.Event()
    check = within(0.05, "mlflow", lambda: Check("mlflow", "ok", str(hanging.wait(5))))
    hanging.set()
    assert (check.state, check.found) == ("broken", "no answer within 0 s")


def test_check_that_fails_unforeseen_is_broken() -> None:
    def fails() -> Check:
        raise RuntimeError("out of paper")

    assert within(5, "gpu", fails).found == "RuntimeError: out of paper"


def test_secret_in_what_others_say_is_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Check("mlflow", "broken", "token abc-123 refused")
    monkeypatch.setattr(doctor, "check_mlflow", lambda *_: said)
    checks = examine(project(tmp_path / "clone"), {**NO_TOOLS, "MLFLOW_TRACKING_TOKEN": "abc-123"})
    assert checks[-1].found == "token *** refused"


def test_the_doctor_loads_no_torch() -> None:
    assert loaded_by(["pilltrack.pipeline.doctor"], ("torch", "mlflow", "dvc", "boto3")) == []


def tool(directory: Path, name: str, script: str) -> Path:
    """A folder with one command."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return directory


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
