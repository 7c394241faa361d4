"""While a device serves: it opens the bundle that state.json names, watches it, and looks for news.

    Follower   every second: another slot is active? open it; on trial? confirm it or go back
    Timer      every few hours: `update`, at a time of its own, lest a fleet comes all at once

Whoever changes state.json is followed: the timer, `pilltrack update`, an operator who goes back.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from pilltrack.core.bundle import PROBES_FILE
from pilltrack.core.errors import PillTrackError
from pilltrack.core.probes import broken_promises, read_probes
from pilltrack.edge.fetch import Fetcher
from pilltrack.edge.selftest import self_test_apart
from pilltrack.edge.service import Service
from pilltrack.edge.slots import Happening, Slots, utc_now
from pilltrack.edge.updater import Outcome, UpdateSource, source_of, update

log = logging.getLogger(__name__)

STEP_S = 1.0
FIRST_LOOK_S = 300.0  # at most, after a start
RETRY_S = 60.0
NOBODY_S = 60.0  # until it is asked again whether there is somebody to follow
MAX_TOLD = 100  # happenings, at once


class Follower:
    """Keeps a service on the active slot. One thread, or whoever calls `step`."""

    def __init__(
        self,
        service: Service,
        slots: Slots,
        tell: Callable[[Happening], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service, self.slots, self._tell, self._clock = service, slots, tell, clock
        self._watched: str | None = None  # the slot on trial
        self._unopened: Path | None = None
        self._since_s = 0.0
        self._told = slots.happenings(1)

    def step(self) -> None:
        """Open what is active, and settle its trial if it can be settled."""
        state = self.slots.state()
        bundle = self.slots.slot(state.active)
        if bundle not in (self.service.bundle, self._unopened):
            try:
                self.service.change(bundle)
            except (PillTrackError, OSError, RuntimeError, ValueError) as error:
                self._give_up(state.active, "cannot be opened", str(error))
                self._unopened = bundle  # what is open stays open
                return
            self._watched = self._unopened = None
        if state.trial is not None and state.active is not None:
            self._watch(state.active)
        self._tell_all()

    def _watch(self, manifest: str) -> None:
        if self._watched != manifest:
            self._watched, self._since_s = manifest, self._clock()
        settings = source_of(self.slots) or UpdateSource(url="/")
        if fault := self.service.health.fault(settings.max_frame_ms):
            self._give_up(manifest, "failed its watch", fault)
        elif self._clock() - self._since_s >= settings.watch_s:
            # Perhaps nobody looked meanwhile, and no look says what it should have been.
            identifier = self.service.identifier
            broken = broken_promises(
                read_probes(self.service.bundle / PROBES_FILE),
                locator=identifier.locator,
                embedder=identifier.embedder,
                gallery=identifier.gallery.bundled,
                rule=identifier.calibration,
            )
            if broken:
                self._give_up(manifest, "failed its watch", "; ".join(broken))
            else:
                self.slots.confirm(manifest)

    def _give_up(self, manifest: str | None, reason: str, detail: str) -> None:
        if manifest is None:
            self.slots.record("failed", reason, None, detail)
        else:
            self.slots.roll_back(manifest, reason, detail)
        self._tell_all()

    def _tell_all(self) -> None:
        new = self.slots.happenings(MAX_TOLD)
        if self._told and self._told[-1] in new:
            new = new[new.index(self._told[-1]) + 1 :]
        for happening in new:
            self._tell(happening)
        self._told = new[-1:] or self._told


class Timer:
    """Looks for news now and then."""

    def __init__(self, slots: Slots, home: Path, chance: random.Random) -> None:
        self.slots, self.home, self._chance = slots, home, chance
        self._n_failed = 0

    def first_wait_s(self) -> float:
        """Seconds from a start until the first look."""
        return self._chance.uniform(0.0, FIRST_LOOK_S)

    def look(self, now: Callable[[], datetime] = utc_now) -> float:
        """Update if there is somebody to follow; seconds until the next look."""
        source = source_of(self.slots)
        if source is None:
            return NOBODY_S
        outcome = update_apart(self.slots, source, self.home, now())
        self._n_failed = self._n_failed + 1 if outcome.kind == "failed" else 0
        return next_wait_s(source.interval_s, self._n_failed, self._chance)


def update_apart(
    slots: Slots,
    source: UpdateSource,
    home: Path,
    now: datetime,
    *,
    only_ask: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Outcome:
    """`update` with the self-test in a process of its own."""
    self_test = partial(self_test_apart, home=home, max_frame_ms=source.max_frame_ms)
    fetcher = Fetcher(source.bytes_per_s, progress)
    return update(slots, source, self_test, now, fetcher, only_ask=only_ask)


def next_wait_s(interval_s: float, n_failed: int, chance: random.Random) -> float:
    """Seconds until the next look: about the interval, after failures about a minute, two, four.

    "About" is half to one and a half of it, equally likely.

    >>> waits = [next_wait_s(3600.0, 2, random.Random(seed)) for seed in range(100)]
    >>> 60.0 <= min(waits) < 65.0 and 175.0 < max(waits) <= 180.0
    True
    """
    wait_s = interval_s
    if n_failed:
        wait_s = min(interval_s, RETRY_S * 2.0 ** min(n_failed - 1, 20))
    return wait_s * chance.uniform(0.5, 1.5)


class Following:
    """Follower and timer in two threads, until `close`."""

    def __init__(self, follower: Follower, timer: Timer) -> None:
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(follower,), name="follow", daemon=True),
            threading.Thread(target=self._look, args=(timer,), name="updates", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. An update that is under way is cut off, as by a power cut, and loses nothing."""
        self._over.set()
        self._threads[0].join()

    def _follow(self, follower: Follower) -> None:
        while not self._over.wait(STEP_S):
            _survived(follower.step)

    def _look(self, timer: Timer) -> None:
        wait_s = timer.first_wait_s()
        while not self._over.wait(wait_s):
            wait_s = _survived(timer.look) or RETRY_S


def _survived(step: Callable[[], float | None]) -> float | None:
    """A device serves on, whatever happens to its updates."""
    try:
        return step()
    except Exception:
        log.exception("update: an error that nobody expected")
        return None
