"""Events on their way to a real broker: Debian's mosquitto, started on a free port."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pilltrack.core.errors import StageFailed
from pilltrack.edge.events import EVENT, EnrolEvent
from pilltrack.edge.mqtt import ONLINE, Events
from pilltrack.edge.settings import Broker, Settings
from tests.edge.conftest import noise, png, red
from tests.edge.server import serving

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
if MOSQUITTO is None:
    pytest.skip("no mosquitto", allow_module_level=True)

SECRET = "correct horse battery staple"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
Started = Callable[..., "Mosquitto"]


class Mosquitto:
    """A broker on a port of its own, which keeps what listeners have not heard over a restart."""

    def __init__(self, directory: Path, lines: list[str], port: int = 0) -> None:
        self.port = port or free_port()
        self._config = directory / f"mosquitto-{self.port}.conf"
        listener = [f"listener {self.port} 127.0.0.1", "user root"]
        listener += ["persistence true", f"persistence_location {directory}/"]
        self._config.write_text("\n".join([*listener, *lines]) + "\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: answers(self.port))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    brokers: list[Mosquitto] = []

    def start(*lines: str, port: int = 0) -> Mosquitto:
        brokers.append(Mosquitto(tmp_path, list(lines) or ["allow_anonymous true"], port))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.stop()


class Listener:
    """Another machine: keeps what the broker passes on under a topic."""

    def __init__(self, port: int, topic: str = "pilltrack/#") -> None:
        self.heard: list[tuple[str, str, int, bool]] = []
        version = paho.CallbackAPIVersion.VERSION2
        self.client = paho.Client(version, client_id=f"listener-{id(self)}", clean_session=False)
        self.client.on_message = self._hear
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", port)
        self.client.subscribe(topic, qos=1)
        self.client.loop_start()
        assert subscribed.wait(20)

    def _hear(self, _client: object, _userdata: object, message: MQTTMessage) -> None:
        text = message.payload.decode()
        self.heard.append((message.topic, text, message.qos, message.retain))

    def events(self) -> list[tuple[str, str]]:
        return [(topic, text) for topic, text, _, _ in self.heard if "/status" not in topic]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_all_events_arrive_as_documented(bundle: Path, tmp_path: Path, started: Started) -> None:
    broker = started()
    listener = Listener(broker.port, "ward/3/#")
    mqtt = Broker("127.0.0.1", broker.port, topic="ward/3")
    with (
        serving(Settings(bundle=bundle, home=tmp_path / "home", mqtt=mqtt)) as address,
        httpx.Client(base_url=f"{address}/api/v1") as client,
    ):
        until(lambda: client.get("status").json()["events"] == "connected")
        photo = {"image": ("t.png", png(red()))}
        client.post("identify", files=photo).raise_for_status()
        number = client.post("check", data={"expected": "2 red-pill"}, files=photo).json()["number"]
        client.post(f"history/{number}/actions", data={"action": "rejected", "note": "a secret"})
        files = [("photos", ("1.png", png(noise())))]
        form = {"name": "my pill", "override_reason": "noise has no edges"}
        client.post("gallery", data=form, files=files).raise_for_status()
        client.delete("gallery/my pill").raise_for_status()
        until(lambda: len(listener.events()) == 5)
        metrics = httpx.get(f"{address}/metrics").text.splitlines()
        assert {"pilltrack_mqtt_connected 1.0", "pilltrack_mqtt_dropped_total 0.0"} <= set(metrics)
        assert "pilltrack_mqtt_acknowledged_total 6.0" in metrics
    until(lambda: len(listener.heard) == 7)
    listener.close()
    assert listener.heard[0] == ("ward/3/status", '{"online":true}', 1, False)
    assert listener.heard[-1] == ("ward/3/status", '{"online":false}', 1, False)
    assert {qos for _, _, qos, _ in listener.heard} == {1}
    told = {topic.removeprefix("ward/3/"): EVENT.validate_json(text)
            for topic, text in listener.events()}  # fmt: skip
    assert [(name, event.event) for name, event in told.items()] == [
        (name, name) for name in ("identify", "check", "action", "enrol", "forget")
    ]
    assert len({event.id for event in told.values()}) == 5
    assert all(
        abs(event.time - datetime.now(UTC)) < timedelta(minutes=5) for event in told.values()
    )
    assert told["identify"].pills[0].pill == "red-pill"  # type: ignore[union-attr]
    check = told["check"].model_dump()
    assert (check["ok"], check["number"], check["pills"][0]["pill"]) == (False, number, "red-pill")
    assert [(line["verdict"], line["indices"]) for line in check["lines"]] == [("missing", [0])]
    assert told["action"].model_dump(exclude={"id", "time", "bundle"}) == {
        "event": "action", "number": number, "action": "rejected",
    }  # fmt: skip
    enrol = told["enrol"].model_dump()
    assert (enrol["pill"], enrol["references"], enrol["new"]) == ("my pill", 1, 1)
    assert enrol["overridden"] > 0
    assert "a secret" not in str(listener.heard)


def test_without_a_broker_the_device_works_and_says_so(bundle: Path, tmp_path: Path) -> None:
    mqtt = Broker("127.0.0.1", free_port())
    with (
        serving(Settings(bundle=bundle, home=tmp_path / "home", mqtt=mqtt)) as address,
        httpx.Client(base_url=f"{address}/api/v1", timeout=5) as client,
    ):
        for _ in range(5):
            client.post("identify", files={"image": ("t.png", png(red()))}).raise_for_status()
        status = client.get("status").json()
        assert (status["events"], status["events_waiting"]) == ("disconnected", 5)
        assert "pilltrack_mqtt_connected 0.0" in httpx.get(f"{address}/metrics").text


def test_what_happened_while_the_broker_was_away_arrives_in_order(started: Started) -> None:
    broker = started()
    listener = Listener(broker.port)
    events = Events(Broker("127.0.0.1", broker.port))
    until(lambda: events.connected)
    events.publish(enrolled(0))
    until(lambda: numbers(listener) == [0])
    broker.stop()
    until(lambda: not events.connected)
    for number in range(1, 61):
        events.publish(enrolled(number))
    assert events.n_waiting == 60
    broker.start()
    until(lambda: numbers(listener) == list(range(61)))
    until(lambda: not events.n_waiting)
    assert events.n_dropped == 0
    events.close()
    listener.close()


def test_a_device_that_starts_before_its_broker_finds_it(started: Started) -> None:
    port = free_port()
    events = Events(Broker("127.0.0.1", port))
    events.publish(enrolled(0))
    time.sleep(0.5)
    assert (events.connected, events.n_waiting) == (False, 1)
    started(port=port)
    until(lambda: events.connected and not events.n_waiting)
    events.close()


def test_a_full_queue_gives_up_its_oldest_and_counts_them(started: Started) -> None:
    broker = started()
    listener = Listener(broker.port)
    broker.stop()
    events = Events(Broker("127.0.0.1", broker.port), queue_size=3)
    for number in range(7):
        events.publish(enrolled(number))
    assert (events.n_waiting, events.n_dropped) == (3, 4)
    broker.start()
    until(lambda: numbers(listener) == [4, 5, 6])
    assert events.n_dropped == 4
    events.close()
    listener.close()


def test_a_full_queue_never_gives_up_the_status() -> None:
    events = Events(Broker("127.0.0.1", free_port()), queue_size=2)
    events._status = ONLINE  # the broker has just let the device in, and nothing has left yet
    for number in range(5):
        events.publish(enrolled(number))
    assert (events.n_waiting, events.n_dropped) == (3, 3)
    assert events._next().payload == ONLINE
    assert json.loads(events._next().payload)["pill"] == "3"
    events.close()


def test_a_broker_that_never_answers_holds_nothing_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        events = Events(Broker("127.0.0.1", silent.getsockname()[1]))
        start_s = time.monotonic()
        for number in range(2000):
            events.publish(enrolled(number))
        assert time.monotonic() - start_s < 2
        assert (events.connected, events.n_dropped) == (False, 1000)
        events.close()
        events.close()
        events.publish(enrolled(0))
        assert time.monotonic() - start_s < 8


def test_the_broker_says_offline_when_the_device_vanishes(started: Started) -> None:
    broker = started()
    listener = Listener(broker.port)
    program = "from pilltrack.edge.mqtt import Events; from pilltrack.edge.settings import Broker;"
    program += f"Events(Broker('127.0.0.1', {broker.port})); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program]) as device:
        until(lambda: said(listener) == ['{"online":true}'])
        device.kill()
    until(lambda: said(listener) == ['{"online":true}', '{"online":false}'])
    late = Listener(broker.port)
    until(lambda: late.heard == [("pilltrack/status", '{"online":false}', 1, True)])
    late.close()
    listener.close()


@pytest.mark.parametrize(("password", "let_in"), [(SECRET, True), ("a guess", False)])
def test_a_password_opens_the_broker_and_is_never_logged(
    password: str, let_in: bool, tmp_path: Path, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    passwords = tmp_path / "passwords"
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), "device", SECRET]
    subprocess.run(command, check=True, capture_output=True)
    broker = started("allow_anonymous false", f"password_file {passwords}")
    mqtt = Broker("127.0.0.1", broker.port, user="device", password=password)
    events = Events(mqtt)
    if let_in:
        until(lambda: events.connected)
    else:
        until(lambda: "refused the device" in caplog.text)
        time.sleep(1.5)  # another try
        assert not events.connected
        assert caplog.text.count("refused the device") == 1
    events.close()
    assert "unencrypted" in caplog.text
    settings = Settings(bundle=tmp_path, home=tmp_path, token=SECRET, mqtt=mqtt)
    assert password not in caplog.text + repr(settings)
    assert SECRET not in repr(settings)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_tls_needs_a_certificate_that_is_trusted(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path)
    broker = started("allow_anonymous true", f"certfile {certificate}", f"keyfile {key}")
    stranger = Events(Broker("127.0.0.1", broker.port, tls=True))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    friend = Events(Broker("127.0.0.1", broker.port, tls=True))
    friend.publish(enrolled(1))
    until(lambda: friend.connected and not friend.n_waiting)
    assert not stranger.connected
    friend.close()
    stranger.close()


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(StageFailed, match=r"pip install 'pilltrack\[mqtt\]'"):
        Events(Broker("127.0.0.1"))


def test_the_command_line_names_the_broker_and_the_environment_the_password(
    bundle: Path, tmp_path: Path, started: Started
) -> None:
    broker = started()
    command = [str(Path(sys.executable).with_name("pilltrack")), "serve", "--port=0"]
    command += [f"--bundle={bundle}", f"--home={tmp_path / 'home'}", "--mqtt-topic=ward"]
    command += ["--mqtt-host=127.0.0.1", f"--mqtt-port={broker.port}"]
    secret = {"PILLTRACK_MQTT_USER": "device", "PILLTRACK_MQTT_PASSWORD": SECRET}
    listener = Listener(broker.port, "ward/status")
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **secret}
    ) as device:
        until(lambda: said(listener) == ['{"online":true}'], 60)
        device.terminate()
        assert device.stderr is not None
        logged = device.stderr.read()
    assert f"events go to MQTT broker 127.0.0.1:{broker.port}" in logged
    assert SECRET not in logged
    until(lambda: said(listener) == ['{"online":true}', '{"online":false}'])
    listener.close()


def test_the_client_is_loaded_only_for_a_broker() -> None:
    program = "import sys, pilltrack.edge.serve; sys.exit('paho' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def enrolled(number: int) -> EnrolEvent:
    return EnrolEvent(time=NOON, bundle="tiny", pill=str(number), references=1, new=1, overridden=0)


def numbers(listener: Listener) -> list[int]:
    return [int(EVENT.validate_json(text).pill) for _, text in listener.events()]  # type: ignore[union-attr]


def said(listener: Listener) -> list[str]:
    return [text for topic, text, _, _ in listener.heard if topic.endswith("/status")]


def until(true: Callable[[], object], timeout_s: float = 20) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
