"""Sends events to an MQTT broker, and never has the device wait for it.

    publish -> queue of at most QUEUE_SIZE events -> sender thread -> broker (QoS 1)

While the broker is away events stay in the queue; when that is full the oldest goes, and is
counted. Connecting is tried again after 1, 2, 4, ... 30 s. An event counts as sent once the broker
has acknowledged it; it may arrive twice, with the same id. What is still queued when the device
stops is lost.

`TOPIC/status` says {"online": true} or {"online": false}, retained; the broker itself says false
when the device vanishes.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pilltrack.core.errors import StageFailed
from pilltrack.edge.events import Event
from pilltrack.edge.settings import Broker

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

QUEUE_SIZE = 1000
IN_FLIGHT = 20  # sent and not yet acknowledged
RETRY_S = (1, 30)  # the first pause and the longest
KEEPALIVE_S = 30
CLOSE_S = 2.0  # for the last events to leave
ONLINE, OFFLINE = b'{"online":true}', b'{"online":false}'


class _Message(NamedTuple):
    topic: str
    payload: bytes
    retain: bool = False


class EventMetrics(Collector):
    """What Prometheus wants to know about a connection."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def collect(self) -> Iterator[Metric]:
        """What is true now."""
        events = self._events
        yield GaugeMetricFamily(
            "pilltrack_mqtt_connected", "1 if the broker is there", float(events.connected)
        )
        yield GaugeMetricFamily(
            "pilltrack_mqtt_waiting", "Messages not yet acknowledged", events.n_waiting
        )
        yield CounterMetricFamily(
            "pilltrack_mqtt_acknowledged", "Messages, status included", events.n_acknowledged
        )
        yield CounterMetricFamily(
            "pilltrack_mqtt_dropped", "Events dropped from a full queue", events.n_dropped
        )


class Events:
    """A connection to a broker that comes and goes. Use `close` when done."""

    def __init__(self, broker: Broker, queue_size: int = QUEUE_SIZE) -> None:
        """Begin to connect, in the background.

        Raises StageFailed when the MQTT client is not installed.
        """
        self.broker = broker
        self._queue_size = queue_size
        self._queue: deque[_Message] = deque()
        self._status: bytes | None = None  # to be said next, before any event
        self._n_in_flight = self._n_acknowledged = self._n_dropped = 0
        self._connected = self._closing = False
        self._trouble = ""  # what was logged last
        # Never held while the client is called: the client holds locks of its own when it calls.
        self._changed = threading.Condition()
        self._client = self._make_client()
        self._client.connect_async(broker.host, broker.port, KEEPALIVE_S)
        self._client.loop_start()
        self._sender = threading.Thread(target=self._send, name="events", daemon=True)
        self._sender.start()

    @property
    def connected(self) -> bool:
        """The broker has let the device in and has not been lost since."""
        return self._connected

    @property
    def n_acknowledged(self) -> int:
        """How many messages the broker has acknowledged, those about the status among them."""
        return self._n_acknowledged

    @property
    def n_dropped(self) -> int:
        """How many events were given up because the queue was full."""
        return self._n_dropped

    @property
    def n_waiting(self) -> int:
        """How many messages are queued or not yet acknowledged."""
        return len(self._queue) + self._n_in_flight + (self._status is not None)

    def publish(self, event: Event) -> None:
        """Queue an event; returns at once, from any thread."""
        topic = f"{self.broker.topic}/{event.event}"
        message = _Message(topic, event.model_dump_json().encode())
        with self._changed:
            if self._closing:
                return
            if len(self._queue) >= self._queue_size:
                self._queue.popleft()
                self._n_dropped += 1
            self._queue.append(message)
            self._changed.notify_all()

    def close(self) -> None:
        """Say offline, wait up to CLOSE_S for what can still leave, and end. Harmless twice."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._status = OFFLINE
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._connected or not self.n_waiting, CLOSE_S)
        self._client.disconnect()
        # The client may be amid a look-up of the broker's name, which nothing can interrupt.
        ending = threading.Thread(target=self._client.loop_stop, daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        with self._changed:
            self._connected = False
            self._changed.notify_all()
        self._sender.join(CLOSE_S)

    @property
    def _status_topic(self) -> str:
        return f"{self.broker.topic}/status"

    def _make_client(self) -> Client:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError as error:
            raise StageFailed(
                "package paho-mqtt",
                found="not installed",
                expected="it, since an MQTT broker is named",
                remedy="Run `pip install 'pilltrack[mqtt]'`, or name no broker.",
            ) from error
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"pilltrack-{uuid4().hex[:12]}")
        if self.broker.user:
            client.username_pw_set(self.broker.user, self.broker.password)
            if not self.broker.tls:
                log.warning("the MQTT password is sent unencrypted; PILLTRACK_MQTT_TLS=1 hides it")
        if self.broker.tls:
            client.tls_set_context(ssl.create_default_context())
        client.will_set(self._status_topic, OFFLINE, qos=1, retain=True)
        client.reconnect_delay_set(*RETRY_S)
        client.max_inflight_messages_set(IN_FLIGHT)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._may_send() or self._is_over())
                if self._is_over():
                    return
                message = self._next()
                self._n_in_flight += 1
            # Even if the connection is lost now, the client keeps it and sends it on the next.
            self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)

    def _next(self) -> _Message:
        status, self._status = self._status, None
        if status is not None:
            return _Message(self._status_topic, status, retain=True)
        return self._queue.popleft()

    def _may_send(self) -> bool:
        return self._connected and self._has_more() and self._n_in_flight < IN_FLIGHT

    def _is_over(self) -> bool:
        return self._closing and not (self._connected and self._has_more())

    def _has_more(self) -> bool:
        return self._status is not None or bool(self._queue)

    # The client's thread calls what follows.

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._say(f"refused the device ({reason})")
            return
        with self._changed:
            self._connected = True
            self._status = ONLINE
            self._changed.notify_all()
        self._trouble = ""
        log.info("events go to MQTT broker %s:%d", self.broker.host, self.broker.port)

    def _on_connect_fail(self, client: Client, userdata: object) -> None:
        self._say("cannot be reached")

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._changed:
            was_connected, self._connected = self._connected, False
            self._changed.notify_all()
        if was_connected and not self._closing:
            self._say(f"is lost ({reason})")

    def _on_publish(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._changed:
            self._n_in_flight -= 1
            self._n_acknowledged += 1
            self._changed.notify_all()

    def _say(self, trouble: str) -> None:
        """Log a trouble once, not at every try."""
        if trouble != self._trouble:
            where = f"{self.broker.host}:{self.broker.port}"
            log.warning("MQTT broker %s %s; trying again, events wait", where, trouble)
        self._trouble = trouble
