"""How one device is set up: what the command line and the environment say.

PILLTRACK_HOME    where the device keeps what it learns (default ~/.pilltrack)
PILLTRACK_TOKEN   the secret that the page and the API ask for, unless only this machine can
                  reach them

Events for other machines, only if a broker is named (`pilltrack serve --mqtt-host` and so on say
the same, but for the password):

PILLTRACK_MQTT_HOST       the broker
PILLTRACK_MQTT_PORT       default 1883, with TLS 8883
PILLTRACK_MQTT_TOPIC      what all topics begin with (default pilltrack)
PILLTRACK_MQTT_TLS        1 for a connection by TLS; SSL_CERT_FILE names other authorities than the
                          system's
PILLTRACK_MQTT_USER       and PILLTRACK_MQTT_PASSWORD, where the broker asks for them
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilltrack.core.errors import InputRejected

MIN_TOKEN_LENGTH = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_TOPIC_LENGTH = 200
MQTT = "PILLTRACK_MQTT_"


@dataclass(frozen=True)
class Broker:
    """An MQTT broker, and what all topics begin with."""

    host: str
    port: int = 1883
    topic: str = "pilltrack"
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            self.host.encode("idna")
        except UnicodeError as error:
            raise _refused(f"{MQTT}HOST", repr(self.host), "the name or address of a broker") from (
                error
            )
        if not self.host:
            raise _refused(f"{MQTT}HOST", "nothing", "the name or address of a broker")
        if not 0 < self.port < 65_536:
            raise _refused(f"{MQTT}PORT", str(self.port), "a port from 1 to 65535")
        is_plain = self.topic.isprintable() and not set("+#$") & set(self.topic)
        if not is_plain or not all(self.topic.split("/")) or len(self.topic) > MAX_TOPIC_LENGTH:
            expected = f"at most {MAX_TOPIC_LENGTH} characters without + # $, between single /"
            raise _refused(f"{MQTT}TOPIC", repr(self.topic), expected)
        if self.password and not self.user:
            raise _refused(f"{MQTT}USER", "nothing", f"a user, since {MQTT}PASSWORD is set")


@dataclass(frozen=True)
class Settings:
    """One device; `token` is empty where the address is loopback and none was set."""

    bundle: Path
    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    camera: str | None = None  # of the device itself; browsers bring their own
    threads: int = 2  # of each model
    max_upload_bytes: int = 32 * 1024 * 1024  # of one request
    max_waiting: int = 8  # requests that look at photos, running or waiting; more get 429
    max_at_once: int = 2  # of these running, and as many live pictures: more would be no faster
    requests_per_s: float = 50.0  # of one client, in the long run
    burst: int = 200  # of one client, at once
    timeout_s: float = 30.0  # to send a request
    mqtt: Broker | None = None  # who is told of events
    follow: bool = False  # updates of `home`; `bundle` is then the last resort

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


def broker_of(
    host: str | None = None,
    port: int | None = None,
    topic: str | None = None,
    tls: bool | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Broker | None:
    """The broker that the command line names, else the environment; None if neither does.

    Raises InputRejected for what no broker can have, and for settings of a broker without host.

    >>> broker_of("broker.local", environment={"PILLTRACK_MQTT_TLS": "1"})
    Broker(host='broker.local', port=8883, topic='pilltrack', tls=True, user='')
    """
    said = {name.removeprefix(MQTT): value.strip() for name, value in environment.items()
            if name.startswith(MQTT) and value.strip()}  # fmt: skip
    unknown = sorted(said.keys() - {"HOST", "PORT", "TOPIC", "TLS", "USER", "PASSWORD"})
    if unknown:
        raise _refused(f"{MQTT}{unknown[0]}", "set", "no such setting")
    host = host or said.get("HOST")
    if host is None:
        if said or (port, topic, tls) != (None, None, None):
            raise _refused(f"{MQTT}HOST", "nothing", "the broker that other settings are about")
        return None
    if tls is None:
        if said.get("TLS", "0") not in ("0", "1"):
            raise _refused(f"{MQTT}TLS", repr(said["TLS"]), "0 or 1")
        tls = said.get("TLS") == "1"
    if port is None:
        given = said.get("PORT", "8883" if tls else "1883")
        port = int(given) if given.isdecimal() and len(given) < 6 else 0
    return Broker(
        host=host,
        port=port,
        topic=topic or said.get("TOPIC", "pilltrack"),
        tls=tls,
        user=said.get("USER", ""),
        password=said.get("PASSWORD", ""),
    )


def _refused(setting: str, found: str, expected: str) -> InputRejected:
    remedy = "See docs/device.md, Events over MQTT."
    return InputRejected(setting, found=found, expected=expected, remedy=remedy)


def token_of(environment: Mapping[str, str] = os.environ) -> str:
    """The device's secret, empty if none is set."""
    return environment.get("PILLTRACK_TOKEN", "").strip()
