"""Where DVC keeps data and models: a folder beside the project, or S3.

`.dvc/config` names the folder `dvc-remote/`, so that everything works without an account. `use_s3`
writes an address into `.dvc/config.local`, which git ignores, and makes it this clone's default;
`use_folder` takes that back. Keys stay in the environment, where DVC finds them by itself: none is
ever written to a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pilltrack.core.errors import InputRejected, StageFailed

S3 = "s3"  # the remote's name in .dvc/config.local
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60


@dataclass(frozen=True)
class Remote:
    """DVC's default remote; `options` are DVC's own, and may hold keys: never print them."""

    url: str  # a folder's absolute path, or s3://bucket/prefix
    options: Mapping[str, Any]

    @property
    def is_s3(self) -> bool:
        """Whether it lies on S3."""
        return self.url.startswith("s3://")

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.url

    @property
    def bucket(self) -> str:
        """The bucket of an S3 remote."""
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        """What every key begins with: empty, or ending in a slash."""
        path = urlsplit(self.url).path.strip("/")
        return f"{path}/" if path else ""

    def __str__(self) -> str:
        endpoint = self.options.get("endpointurl")
        url = without_login(self.url)
        return f"{url} at {without_login(endpoint)}" if endpoint else url


def s3_from(environment: Mapping[str, str]) -> Remote | None:
    """The S3 address that the environment names; None where `PILLTRACK_REMOTE` is empty or unset.

    >>> str(s3_from({"PILLTRACK_REMOTE": "s3://pills/team", "AWS_REGION": "eu-central-1"}))
    's3://pills/team'
    >>> s3_from({}) is None
    True
    """
    url = environment.get("PILLTRACK_REMOTE", "").strip()
    return s3_address(url, environment, "PILLTRACK_REMOTE") if url else None


def s3_address(url: str, environment: Mapping[str, str], name: str) -> Remote:
    """An S3 address with the endpoint and region of the environment; `name` is who gave it."""
    url = url.strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.hostname or parts.query or "@" in parts.netloc:
        raise InputRejected(
            name,
            found=repr(without_login(url)),
            expected="s3://BUCKET or s3://BUCKET/PREFIX",
            remedy="Correct it; an endpoint goes into AWS_ENDPOINT_URL, keys into AWS_*.",
        )
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "verify": True,  # hash again what was pulled: a damaged object must not pass
    }
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        named = urlsplit(endpoint)
        if named.scheme not in ("http", "https") or not named.hostname or "@" in named.netloc:
            raise InputRejected(
                "AWS_ENDPOINT_URL",
                found=repr(without_login(endpoint)),
                expected="http(s)://HOST[:PORT] without user or password",
                remedy="Correct it, or unset it for Amazon's own S3.",
            )
        options["endpointurl"] = endpoint
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region  # DVC itself reads only AWS_DEFAULT_REGION
    return Remote(url, options)


def s3_client(
    remote: Remote,
    environment: Mapping[str, str],
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
    attempts: int = 1,
) -> Any:
    """A client for a remote's bucket, with keys from its options or the AWS_* variables.

    Raises botocore's PartialCredentialsError where only one half of a key is given.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import PartialCredentialsError

    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = [name for name in pair if environment.get(name)]
    if len(given) == 1:
        (lacking,) = set(pair) - set(given)
        raise PartialCredentialsError(provider="the environment", cred_var=lacking)
    options = remote.options
    session = boto3.Session(profile_name=options.get("profile"))
    return session.client(
        "s3",
        endpoint_url=options.get("endpointurl"),
        region_name=options.get("region"),
        verify=options.get("ssl_verify"),
        aws_access_key_id=options.get("access_key_id") or environment.get(pair[0]) or None,
        aws_secret_access_key=options.get("secret_access_key") or environment.get(pair[1]) or None,
        aws_session_token=options.get("session_token")
        or environment.get("AWS_SESSION_TOKEN")
        or None,
        config=Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"total_max_attempts": attempts},
            request_checksum_calculation="when_required",  # other servers know no others
            response_checksum_validation="when_required",
        ),
    )


def current_remote(project: Path) -> Remote:
    """DVC's default remote for a project.

    Raises StageFailed where there is no DVC project, or no default remote.
    """
    config = _config(project)
    name = config["core"].get("remote")
    section = config["remote"].get(name, {})
    if "url" not in section:
        raise StageFailed(
            str(project / ".dvc"),
            found="no default remote" if name is None else f"no URL for the remote {name!r}",
            expected="a folder or an S3 bucket",
            remedy="Run `pilltrack remote s3` or `dvc remote add --default NAME URL`.",
        )
    options = {key: value for key, value in section.items() if key != "url"}
    return Remote(str(section["url"]), options)


def use_s3(project: Path, remote: Remote) -> None:
    """Make an S3 address the default remote of this clone, in `.dvc/config.local`."""
    with _config(project).edit("local") as local:
        local["core"]["remote"] = S3
        local["remote"][S3] = {"url": remote.url, **remote.options}


def use_folder(project: Path) -> None:
    """Forget what `use_s3` wrote, so that `.dvc/config` decides again."""
    with _config(project).edit("local") as local:
        if local["core"].get("remote") == S3:
            del local["core"]["remote"]
        local["remote"].pop(S3, None)


def without_login(url: str) -> str:
    """A URL without user, password and query, fit to be printed.

    >>> without_login("https://ann:secret@mlflow.example.org:5000/x?token=1")
    'https://mlflow.example.org:5000/x'
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _config(project: Path) -> Any:
    from dvc.config import Config, ConfigError

    directory = project / ".dvc"
    if not directory.is_dir():
        raise StageFailed(
            str(directory),
            found="missing",
            expected="a DVC project",
            remedy="Run the command in the project's folder.",
        )
    try:
        return Config(os.fspath(directory))
    except ConfigError as error:
        raise StageFailed(
            str(directory),
            found=str(error),
            expected="a configuration that DVC can read",
            remedy="Correct .dvc/config or .dvc/config.local.",
        ) from error
