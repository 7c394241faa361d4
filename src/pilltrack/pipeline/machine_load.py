"""How busy the machine is while a stage runs: processor, memory, disk, network, GPU.

The names are those under which MLflow shows system metrics. GPUs are asked through `nvidia-smi`,
where there is one.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import psutil

INTERVAL_S = 10.0
MEGABYTE = 1e6

Sample = tuple[int, dict[str, float]]  # milliseconds since 1970, name -> value


class MachineLoad:
    """Samples the machine in a thread from `start` to `stop`: at both, and now and then between."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self.samples: list[Sample] = []
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="machine load", daemon=True)
        self._received, self._sent = _network()

    def start(self) -> Self:
        """Begin, and return itself."""
        psutil.cpu_percent()  # the first answer is always 0
        self._thread.start()
        return self

    def stop(self) -> None:
        """End, with a last sample."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s if self.samples else 0.1):
            self.samples.append(self._sample())
        self.samples.append(self._sample())

    def _sample(self) -> Sample:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(Path.cwd()))
        received, sent = _network()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
            "system/disk_usage_percentage": disk.percent,
            "system/disk_available_megabytes": disk.free / MEGABYTE,
            "system/network_receive_megabytes": (received - self._received) / MEGABYTE,
            "system/network_transmit_megabytes": (sent - self._sent) / MEGABYTE,
        }
        return int(time.time() * 1000), {**values, **_gpus()}


def _network() -> tuple[int, int]:
    counters = psutil.net_io_counters()
    return (counters.bytes_recv, counters.bytes_sent) if counters else (0, 0)


def _gpus() -> dict[str, float]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    fields = "--query-gpu=utilization.gpu,memory.used"
    try:
        answer = subprocess.run(  # noqa: S603 - arguments are constants
            [program, fields, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):  # this sample has no GPU in it
        return {}
    return parse_gpus(answer)


def parse_gpus(answer: str) -> dict[str, float]:
    """Utilisation in percent and memory in MB of each GPU, from the two columns of nvidia-smi.

    A value that a GPU does not report is left out.

    >>> parse_gpus("37, 2048\\n[N/A], 1\\n")
    {'system/gpu_0_utilization_percentage': 37.0, 'system/gpu_0_memory_usage_megabytes': 2048.0, \
'system/gpu_1_memory_usage_megabytes': 1.0}
    """
    names = ("utilization_percentage", "memory_usage_megabytes")
    found = {}
    for number, line in enumerate(answer.strip().splitlines()):
        for name, text in zip(names, line.split(","), strict=False):
            if text.strip().replace(".", "", 1).isdigit():
                found[f"system/gpu_{number}_{name}"] = float(text)
    return found
