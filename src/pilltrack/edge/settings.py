"""How one device is set up: what the command line and the environment say.

PILLTRACK_HOME    where the device keeps what it learns (default ~/.pilltrack)
PILLTRACK_TOKEN   the secret that the page and the API ask for, unless only this machine can
                  reach them
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilltrack.core.errors import InputRejected

MIN_TOKEN_LENGTH = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """One device; `token` is empty where the address is loopback and none was set."""

    bundle: Path
    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    camera: str | None = None  # of the device itself; browsers bring their own
    threads: int = 2  # of each model
    max_upload_bytes: int = 32 * 1024 * 1024  # of one request
    max_waiting: int = 8  # requests that look at photos, running or waiting; more get 429
    requests_per_s: float = 50.0  # of one client, in the long run
    burst: int = 200  # of one client, at once
    timeout_s: float = 30.0  # to send a request

    def __post_init__(self) -> None:
        if not self.is_loopback and len(self.token) < MIN_TOKEN_LENGTH:
            raise InputRejected(
                f"address {self.host}",
                found="no token" if not self.token else f"a token of {len(self.token)} characters",
                expected=f"PILLTRACK_TOKEN with at least {MIN_TOKEN_LENGTH} characters, since "
                "others can reach this address",
                remedy="Set PILLTRACK_TOKEN to a long random text, or serve on 127.0.0.1.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> list[str]:
        """Names under which a browser may ask for the page, without port.

        On loopback no others: a foreign page that names itself 127.0.0.1 is refused.
        """
        return list(LOOPBACK_NAMES) if self.is_loopback else ["*"]


def token_of(environment: Mapping[str, str] = os.environ) -> str:
    """The device's secret, empty if none is set."""
    return environment.get("PILLTRACK_TOKEN", "").strip()
