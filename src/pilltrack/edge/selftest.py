"""Does a bundle do on this device what it promises? Asked before it serves.

    open (verified) -> golden probes -> time of a frame -> this device's own pills -> SelfTest

`self_test` asks in this process, `self_test_apart` in a process of its own: a model that crashes
its runtime, hangs or takes all memory then costs nothing but the test. That process has low
priority, so that whoever serves meanwhile is not disturbed. The references of the home are
embedded in the bundle's space and remembered there, so that switching to the bundle is quick.

    python -m pilltrack.edge.selftest BUNDLE [--home DIR] [--max-frame-ms N]     prints JSON
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.bundle import PROBES_FILE
from pilltrack.core.errors import GateFailed, PillTrackError, StageFailed
from pilltrack.core.gallery import Candidate
from pilltrack.core.identify import Identifier, open_identifier
from pilltrack.core.local import EMBED_BATCH, LocalReferences, is_store
from pilltrack.core.probes import Probes, read_probes
from pilltrack.core.quality import collision

MAX_FRAME_MS = 1000.0  # slower than that, a counter is no better off than with a loupe
TIMEOUT_S = 900.0  # 10,000 references to embed on a small board; what is done stays done
NICENESS = 10
N_WARM_UP, N_FRAMES = 2, 5


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Collision(_Part):
    """A pill of this device that the bundle would take for another one."""

    pill: str
    other: str
    image: str  # the photo that resembles the other most
    found: str

    def __str__(self) -> str:
        return f"{self.pill} (photo {self.image}): {self.found}"


class SelfTest(_Part):
    """What a bundle did on this device.

    `failures` are sentences; without any it has `passed`. `frame_ms`, the time of one processor
    core from locating to the decisions, is missing when the bundle could not be opened.
    `references` are the home's, all embedded in the bundle's space now. `collisions` are no
    failures: they are for people to judge. `of_home`: what failed is the home, not the bundle.
    """

    passed: bool
    failures: tuple[str, ...]
    frame_ms: float | None = None
    probes: int = Field(ge=0, default=0)  # crops and frames
    references: int = Field(ge=0, default=0)
    collisions: tuple[Collision, ...] = ()
    of_home: bool = False


def self_test(bundle: Path, home: Path | None, max_frame_ms: float = MAX_FRAME_MS) -> SelfTest:
    """Try a bundle in this process; `home` is where the device keeps what it learnt, if anywhere.

    A bundle that is refused, or references that cannot be embedded, are failures too.
    """
    try:
        with open_identifier(bundle, local=home) as identifier:
            probes = read_probes(bundle / PROBES_FILE)
            failures = identifier.broken_promises(probes)
            frame_ms = _frame_ms(identifier, probes)
            if not frame_ms <= max_frame_ms:
                failures += (f"a frame takes {frame_ms:.1f} ms, at most {max_frame_ms:g} allowed",)
            return SelfTest(
                passed=not failures,
                failures=failures,
                frame_ms=frame_ms,
                probes=len(probes.crops) + len(probes.frames),
                references=len(identifier.gallery.local),
                collisions=tuple(_collisions(identifier, home)),
            )
    except StageFailed as error:  # references that are damaged
        return SelfTest(passed=False, failures=(str(error),), of_home=True)
    except PillTrackError as error:
        return _failed(str(error))


def self_test_apart(
    bundle: Path,
    home: Path | None,
    max_frame_ms: float = MAX_FRAME_MS,
    timeout_s: float = TIMEOUT_S,
) -> SelfTest:
    """As `self_test`, in a process of its own; its crash or its being too slow is a failure."""
    # -P: a file of the working directory must not stand in for a module.
    command = [sys.executable, "-P", "-m", "pilltrack.edge.selftest", str(bundle.absolute())]
    command += [f"--max-frame-ms={max_frame_ms}"]
    command += [] if home is None else [f"--home={home.absolute()}"]
    try:
        done = subprocess.run(  # noqa: S603 - this Python, no shell
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"the self-test did not end within {timeout_s:g} s")
    if done.returncode < 0:
        return _failed(f"the self-test was ended by {_signal_name(-done.returncode)}")
    try:
        return SelfTest.model_validate_json(done.stdout)
    except ValidationError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return _failed(f"the self-test ended with exit code {done.returncode}: {last}")


def main() -> None:
    """Test the bundle of the command line, print the result as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m pilltrack.edge.selftest")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--max-frame-ms", type=float, default=MAX_FRAME_MS)
    arguments = parser.parse_args()
    os.nice(NICENESS)
    found = self_test(arguments.bundle, arguments.home, arguments.max_frame_ms)
    sys.stdout.write(found.model_dump_json() + "\n")


def require_passed(found: SelfTest, bundle: Path) -> None:
    """Raise GateFailed, naming each failure, for a bundle that did not pass."""
    if not found.passed:
        raise GateFailed(
            str(bundle),
            found="; ".join(found.failures),
            expected="a bundle that keeps its promises on this device",
            remedy="Leave the bundle that serves now in place; build or fetch this one again.",
        )


def as_text(found: SelfTest) -> str:
    """A result for people.

    >>> print(as_text(SelfTest(passed=True, failures=(), frame_ms=12.34, probes=10)))
    passed: 10 probes, a frame in 12.3 ms
    """
    parts = [f"{found.probes} probes"]
    if found.frame_ms is not None:
        parts.append(f"a frame in {found.frame_ms:.1f} ms")
    if found.references:
        parts.append(f"{found.references} references of this device")
    lines = [f"{'passed' if found.passed else 'failed'}: {', '.join(parts)}"]
    lines += [f"failure: {failure}" for failure in found.failures]
    lines += [f"collision: {collided}" for collided in found.collisions]
    return "\n".join(lines)


def _frame_ms(identifier: Identifier, probes: Probes) -> float:
    """The median processor time of a frame: the bundle's own, or noise where it has none.

    By the clock on the wall, low priority beside a busy service would make any bundle slow.
    """
    frame = probes.frames[0] if probes.frames else _noise()
    times_s = []
    for _ in range(N_WARM_UP + N_FRAMES):
        start_s = time.process_time()
        identifier.identify(frame)
        times_s.append(time.process_time() - start_s)
    return round(1000 * statistics.median(times_s[N_WARM_UP:]), 3)


def _noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def _collisions(identifier: Identifier, home: Path | None) -> Iterator[Collision]:
    """Ask for each pill of the home, as enrolment does: what would it be without its references?"""
    if home is None or not is_store(home):
        return
    gallery, rule = identifier.gallery, identifier.rule
    with LocalReferences(home, check=False) as local:
        for pill in local.pills():
            references, embeddings = local.embedded(identifier.embedder, pill)
            kept = iter(local.kept(pill))
            gallery.remove(pill)
            images: list[str] = []
            candidates: list[list[Candidate]] = []
            while batch := list(islice(kept, EMBED_BATCH)):
                photos = [local.photo(reference.crop) for reference in batch]
                images += [reference.image for reference in batch]
                candidates += gallery.search(identifier.embedder.embed(photos), 2)
            gallery.enrol(references, embeddings)
            if fault := collision(images, candidates, pill, rule):
                yield Collision(pill=pill, other=fault.other, image=fault.image, found=fault.found)


def _failed(why: str) -> SelfTest:
    return SelfTest(passed=False, failures=(why,))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    main()
