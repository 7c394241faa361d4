"""DVC's remote from the environment: what is accepted, what is written, what is kept."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pilltrack.cli import main
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.pipeline import doctor
from pilltrack.pipeline.remote import Remote, current_remote, s3_from, use_folder, use_s3
from tests.imports import ROOT
from tests.s3 import project

NAMED = {
    "PILLTRACK_REMOTE": "s3://pills/team/",
    "AWS_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL": "https://s3.example.org",
}


def test_a_new_clone_uses_the_folder_without_any_account(tmp_path: Path) -> None:
    remote = current_remote(project(tmp_path / "clone"))
    assert remote.is_folder
    assert remote.url == str(tmp_path / "clone" / "dvc-remote")


def test_a_login_in_an_address_is_never_shown() -> None:
    assert "secret" not in str(Remote("webdavs://ann:secret@host/x", {}))


def test_the_environment_reaches_dvc(tmp_path: Path) -> None:
    clone = project(tmp_path / "clone")
    named = s3_from(NAMED)
    assert named is not None
    use_s3(clone, named)
    remote = current_remote(clone)
    assert (remote.url, remote.bucket, remote.prefix) == ("s3://pills/team", "pills", "team/")
    assert remote.options["region"] == "eu-central-1"  # DVC reads no AWS_REGION
    assert remote.options["endpointurl"] == "https://s3.example.org"
    assert remote.options["verify"] is True
    assert str(remote) == "s3://pills/team at https://s3.example.org"


def test_the_endpoint_of_s3_alone_comes_first() -> None:
    named = s3_from({**NAMED, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"})
    assert named is not None
    assert named.options["endpointurl"] == "http://127.0.0.1:9000"


def test_other_settings_of_the_clone_are_kept(tmp_path: Path) -> None:
    clone = project(tmp_path / "clone")
    local = clone / ".dvc" / "config.local"
    local.write_text("[cache]\n    type = symlink\n")
    named = s3_from(NAMED)
    assert named is not None
    use_s3(clone, named)
    assert "type = symlink" in local.read_text()
    use_folder(clone)
    assert "type = symlink" in local.read_text()
    assert "s3" not in local.read_text()
    assert current_remote(clone).is_folder


@pytest.mark.parametrize(
    "wrong",
    [
        {"PILLTRACK_REMOTE": "https://pills.s3.amazonaws.com"},
        {"PILLTRACK_REMOTE": "s3://"},
        {"PILLTRACK_REMOTE": "s3://key:hunter2@pills"},
        {"PILLTRACK_REMOTE": "s3://pills", "AWS_ENDPOINT_URL": "s3.example.org"},
        {"PILLTRACK_REMOTE": "s3://pills", "AWS_ENDPOINT_URL": "https://key:hunter2@s3.example"},
    ],
)
def test_wrong_address_is_refused_without_repeating_its_password(wrong: dict[str, str]) -> None:
    with pytest.raises(InputRejected) as refused:
        s3_from(wrong)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("empty", [{}, {"PILLTRACK_REMOTE": ""}, {"PILLTRACK_REMOTE": "  "}])
def test_empty_address_is_none(empty: dict[str, str]) -> None:
    assert s3_from(empty) is None


def test_s3_without_an_address_ends_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project(tmp_path / "clone"))
    monkeypatch.setenv("PILLTRACK_REMOTE", "")  # as GitHub passes a secret that does not exist
    assert main(["remote", "s3"]) == 1
    assert "PILLTRACK_REMOTE: not set" in capsys.readouterr().err


def test_outside_a_project_there_is_no_remote(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="expected a DVC project"):
        current_remote(tmp_path)


def test_broken_configuration_is_named(tmp_path: Path) -> None:
    clone = project(tmp_path / "clone")
    (clone / ".dvc" / "config.local").write_text("[remote\n")
    with pytest.raises(StageFailed, match=r"config\.local"):
        current_remote(clone)


def test_the_example_names_every_variable_and_holds_no_secret() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    named = [line.lstrip("#") for line in lines if re.match(r"#?[A-Z0-9_]+=", line)]
    assert {name for name in named if not name.endswith("=")} == set()
    assert {f"{name}=" for name in (*NAMED, *doctor.SECRETS, "AWS_ACCESS_KEY_ID")} <= {
        *named, "MLFLOW_TRACKING_TOKEN=",
    }  # fmt: skip
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
