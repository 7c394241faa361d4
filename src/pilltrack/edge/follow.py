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
from pilltrack.core.errors import BundleRejected, PillTrackError, StageFailed
from pilltrack.core.probes import read_probes
from pilltrack.edge.fetch import Fetcher
from pilltrack.edge.happenings import Happening, utc_now
from pilltrack.edge.selftest import self_test_apart
from pilltrack.edge.service import Service
from pilltrack.edge.slots import Slots, State
from pilltrack.edge.source import UpdateSource, source_of
from pilltrack.edge.updater import Outcome, update

log = logging.getLogger(__name__)

STEP_S = 1.0
FIRST_LOOK_S = 300.0  # at most, after a start
RETRY_S = 60.0
SURVIVED_S = 30.0  # of serving, after which a crash is not taken for the bundle's
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
        self._seen_s = clock()  # until then the open bundle is known to have served
        self._given_up: State | None = None
        self._told = slots.happenings(1)

    def step(self) -> None:
        """Open what is active, and settle its trial if it can be settled."""
        state = self.slots.state()
        bundle = self.slots.slot(state.active)
        if bundle != self.service.bundle and state != self._given_up:
            try:
                self.service.change(bundle)
                self._seen_s = self._clock()
            except (PillTrackError, OSError, RuntimeError, ValueError) as error:
                # A disk that fails, or a damaged home, is not the bundle's fault.
                again = isinstance(error, OSError | StageFailed)
                self._give_up(state.active, "cannot be opened", str(error), again=again)
                self._given_up = self.slots.state()  # what is open stays open until it changes
        elif bundle == self.service.bundle and state.trial and state.active is not None:
            self._watch(state.active, state.trial.watched_s)
        self._tell_all()

    def close(self) -> None:
        """An end in order is no harm that a bundle does."""
        state = self.slots.state()
        if state.trial and self.slots.slot(state.active) == self.service.bundle:
            self.slots.survived(state.active, self._clock() - self._seen_s)

    def _watch(self, manifest: str, watched_s: float) -> None:
        settings, now_s = self._settings(), self._clock()
        if fault := self.service.health.fault(settings.max_frame_ms):
            self._give_up(manifest, "failed its watch", fault)
            return
        since_s = now_s - self._seen_s
        if watched_s + since_s < settings.watch_s:
            if since_s >= SURVIVED_S:
                self.slots.survived(manifest, since_s)
                self._seen_s = now_s
            return
        # Perhaps nobody looked meanwhile, and no look says what it should have been.
        try:
            probes = read_probes(self.service.bundle / PROBES_FILE)
        except BundleRejected as error:  # a bundle that cannot prove itself is not kept
            again = isinstance(error.__cause__, OSError)
            self._give_up(manifest, "failed its watch", str(error), again=again)
            return
        broken = self.service.identifier.broken_promises(probes)
        if broken:
            self._give_up(manifest, "failed its watch", "; ".join(broken))
        else:
            self.slots.confirm(manifest)

    def _settings(self) -> UpdateSource:
        try:
            return source_of(self.slots) or UpdateSource(url="/")
        except StageFailed:  # the timer complains
            return UpdateSource(url="/")

    def _give_up(
        self, manifest: str | None, reason: str, detail: str, *, again: bool = False
    ) -> None:
        if manifest is None:
            self.slots.record("failed", reason, None, detail)
        else:
            self.slots.roll_back(manifest, reason, detail, again=again)

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
        try:
            source = source_of(self.slots)
        except StageFailed as error:
            last = self.slots.happenings(1)
            if not last or last[0].reason != "source is damaged":
                self.slots.record("failed", "source is damaged", None, str(error))
            return NOBODY_S
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
        self._over, self._follower = threading.Event(), follower
        self._threads = [
            threading.Thread(target=self._follow, name="follow", daemon=True),
            threading.Thread(target=self._look, args=(timer,), name="updates", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. An update that is under way is cut off, as by a power cut, and loses nothing."""
        self._over.set()
        self._threads[0].join()
        _Guard().survives(self._follower.close)

    def _follow(self) -> None:
        guard = _Guard()
        while not self._over.wait(STEP_S):
            guard.survives(self._follower.step)

    def _look(self, timer: Timer) -> None:
        guard, wait_s = _Guard(), timer.first_wait_s()
        while not self._over.wait(wait_s):
            wait_s = guard.survives(timer.look) or RETRY_S


class _Guard:
    """A device serves on, whatever happens to its updates; the same error is said once."""

    def __init__(self) -> None:
        self._last = ""

    def survives(self, step: Callable[[], float | None]) -> float | None:
        try:
            found = step()
        except Exception as error:
            if (said := f"{type(error).__name__}: {error}") != self._last:
                log.exception("update: an error that nobody expected")
            self._last = said
            return None
        self._last = ""
        return found
