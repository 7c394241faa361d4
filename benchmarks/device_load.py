"""200 clients at once ask a device to identify a photo, for 30 seconds: what do they get?

    python benchmarks/device_load.py [--bundle DIR] [--clients 200] [--seconds 30] [--json FILE]

A `pilltrack serve` on the same machine gets a JPEG of 640 x 480 with five pills. Clients ask again
at once, or wait for as long as a 429 tells them; they keep their connection, or ask for it to be
closed after each answer. Each has an address of its own (127.0.1.1 and so on), so that it meets the
limit of photos being looked at; or all share one, and meet the limit of requests of one client.
Times are from before a connection is asked for until the whole answer is there. Exit code 1 if
anything but 200 and 429 came. Needs the training install.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from running_device import jpeg, rss_mb, running_device, scene_with

from pilltrack.core.bench import this_machine
from pilltrack.core.identify import STARTER_BUNDLE

N_PILLS = 5
CASES = (
    "own addresses, wait as told",
    "own addresses, ask at once",
    "own addresses, ask at once, connection closed",
    "one address, ask at once",
)
TIMEOUT_S = 60.0
Answer = tuple[str, float]  # status or error, and ms
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=STARTER_BUNDLE, help="(the starter)")
    parser.add_argument("--references", type=int, default=10_000, help="of its gallery (10000)")
    parser.add_argument("--clients", type=int, default=200, help="(200)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each case (30)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    photo = jpeg(scene_with(N_PILLS, arguments.bundle))
    report: dict[str, Any] = {"machine": this_machine().model_dump(), **vars(arguments)}
    print("| clients | answers | 200 a second | 200, ms | 429 a second | 429, ms | memory, MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in CASES:
        with running_device(arguments.bundle, arguments.references) as (address, pid):
            answers = asyncio.run(asked(name, address, photo, arguments.clients, arguments.seconds))
            report[name] = summary(answers, arguments.seconds) | {"rss_mb": rss_mb(pid)}
        print(row(name, report[name]), flush=True)
    print("\np50 (p99)")
    if arguments.json:
        text = json.dumps(report, indent=1, default=str) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    wrong = {kind for name in CASES for kind in report[name]["counts"]} - {"200", "429"}
    if wrong:
        sys.exit(f"not only 200 and 429 came, but {', '.join(sorted(wrong))}")


async def asked(
    case: str, address: str, photo: bytes, n_clients: int, seconds: float
) -> list[Answer]:
    """All answers to clients that begin at once and stop asking after `seconds`."""
    one_address, waits, closes = (word in case for word in ("one address", "wait", "closed"))
    request = request_of(address, photo, closes)
    until_s = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def client(number: int) -> None:
        own = "127.0.0.1" if one_address else f"127.0.{1 + number // 250}.{1 + number % 250}"
        connection: Connection | None = None
        while time.perf_counter() < until_s:
            start_s, wait_s = time.perf_counter(), 0.0
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    connection = connection or await opened(address, own)
                    status, wait_s = await asked_once(connection, request)
                if closes:
                    connection[1].close()
                    connection = None
            except (OSError, EOFError, TimeoutError) as error:
                status, connection = type(error).__name__, None
            answers.append((status, 1000 * (time.perf_counter() - start_s)))
            if waits and wait_s:
                await asyncio.sleep(wait_s)
        if connection:
            connection[1].close()

    async with asyncio.TaskGroup() as group:
        for number in range(n_clients):
            group.create_task(client(number))
    return answers


def request_of(address: str, photo: bytes, closes: bool) -> bytes:
    """A whole request. By hand, since 200 clients share the device's two cores."""
    request = httpx.Request(
        "POST", f"http://{address}/api/v1/identify", files={"image": ("tray.jpg", photo)}
    )
    body = request.read()
    if closes:
        request.headers["connection"] = "close"
    head = f"POST {request.url.path} HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in request.headers.items()
    )
    return head.encode() + b"\r\n" + body


async def opened(address: str, own: str) -> Connection:
    """A connection from an address of this machine."""
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), local_addr=(own, 0))


async def asked_once(connection: Connection, request: bytes) -> tuple[str, float]:
    """The status of the answer, and how many seconds it tells to wait."""
    reader, writer = connection
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = [line.partition(": ") for line in head.lower().splitlines()]
    headers = {name: value for name, _, value in lines}
    await reader.readexactly(int(headers["content-length"]))
    return head.split()[1], float(headers.get("retry-after", 0))


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Counts and percentiles of each kind of answer."""
    counts = Counter(status for status, _ in answers)
    times_ms = {}
    for kind in counts:
        p50, p99 = np.quantile([ms for status, ms in answers if status == kind], (0.5, 0.99))
        times_ms[kind] = {"p50": float(p50), "p99": float(p99)}
    per_s = {kind: n / seconds for kind, n in counts.items()}
    return {"counts": dict(counts), "per_s": per_s, "ms": times_ms}


def row(name: str, figures: dict[str, Any]) -> str:
    """One line of the table."""
    counts = ", ".join(f"{kind}: {n}" for kind, n in sorted(figures["counts"].items()))
    cells = []
    for kind in ("200", "429"):
        if kind in figures["counts"]:
            ms = figures["ms"][kind]
            cells += [f"{figures['per_s'][kind]:.0f}", f"{ms['p50']:.0f} ({ms['p99']:.0f})"]
        else:
            cells += ["0", ""]
    return f"| {name} | {counts} | {' | '.join(cells)} | {figures['rss_mb']:.0f} |"


if __name__ == "__main__":
    main()
