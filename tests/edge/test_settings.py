"""Which broker is told of events: what the command line and the environment say."""

from __future__ import annotations

import pytest

from pilltrack.cli import main
from pilltrack.core.errors import InputRejected
from pilltrack.edge.settings import Broker, broker_of

HOST = {"PILLTRACK_MQTT_HOST": "broker.local"}


def test_no_broker_is_told_unless_one_is_named() -> None:
    assert broker_of(environment={}) is None
    assert broker_of(environment={"PILLTRACK_MQTT_HOST": " "}) is None


def test_the_environment_says_everything() -> None:
    environment = {
        **HOST,
        "PILLTRACK_MQTT_PORT": "2000",
        "PILLTRACK_MQTT_TOPIC": "ward/3",
        "PILLTRACK_MQTT_TLS": "1",
        "PILLTRACK_MQTT_USER": "device",
        "PILLTRACK_MQTT_PASSWORD": "secret",
    }
    expected = Broker("broker.local", 2000, "ward/3", True, "device", "secret")
    assert broker_of(environment=environment) == expected


def test_the_command_line_goes_before_the_environment() -> None:
    environment = {**HOST, "PILLTRACK_MQTT_PORT": "2000", "PILLTRACK_MQTT_USER": "device"}
    told = broker_of("other.local", 3000, "ward", True, environment)
    assert told == Broker("other.local", 3000, "ward", True, "device")


@pytest.mark.parametrize(("tls", "port"), [("0", 1883), ("1", 8883)])
def test_the_port_follows_from_tls(tls: str, port: int) -> None:
    told = broker_of(environment={**HOST, "PILLTRACK_MQTT_TLS": tls})
    assert told is not None
    assert told.port == port


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOST", "x" * 70),
        ("HOST", "a..b"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("TOPIC", "a/+"),
        ("TOPIC", "#"),
        ("TOPIC", "/a"),
        ("TOPIC", "a//b"),
        ("TOPIC", "$SYS"),
        ("TOPIC", "a\nb"),
        ("TOPIC", "x" * 201),
        ("TLS", "maybe"),
        ("PASSWORD", "without a user"),
        ("PASWORD", "secret"),
    ],
)
def test_what_no_broker_can_have_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(
        InputRejected, match=f"PILLTRACK_MQTT_{name}|PILLTRACK_MQTT_USER"
    ) as refused:
        broker_of(environment={**HOST, f"PILLTRACK_MQTT_{name}": value})
    if "PAS" in name:
        assert value not in str(refused.value)


@pytest.mark.parametrize("argument", ["--mqtt-port=2000", "--mqtt-topic=ward", "--mqtt-tls"])
def test_settings_of_no_broker_are_refused(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PILLTRACK_MQTT_HOST", raising=False)
    assert main(["serve", argument]) == 1
    assert "PILLTRACK_MQTT_HOST" in capsys.readouterr().err
