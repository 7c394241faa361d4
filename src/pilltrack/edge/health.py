"""How looks go with the open bundle: do they end well, and in time?"""

from __future__ import annotations

import statistics
import threading
from collections import deque

MIN_FAILED, MAX_FAILED_SHARE = 3, 0.1
N_TIMED, MIN_TIMED = 50, 20


SLOWER = 3.0  # than with the bundle before: more than other photos or more clients explain


class Health:
    """Counts of looks. May be shared between threads.

    `usual_ms` is what a look took with the bundle before, 0 if nobody knows.
    """

    def __init__(self, usual_ms: float = 0.0) -> None:
        self._usual_ms = usual_ms
        self._lock = threading.Lock()
        self._n_looks = self._n_failed = 0
        self._ms: deque[float] = deque(maxlen=N_TIMED)

    def looked(self, ms: float) -> None:
        """Count a look that ended well, and its time from frame to decisions."""
        with self._lock:
            self._n_looks += 1
            self._ms.append(ms)

    def failed(self) -> None:
        """Count a look that ended in an error which was not the photo's fault."""
        with self._lock:
            self._n_looks += 1
            self._n_failed += 1

    def median_ms(self) -> float:
        """What a look takes, 0 as long as too few were counted."""
        with self._lock:
            return statistics.median(self._ms) if len(self._ms) >= MIN_TIMED else 0.0

    def fault(self, max_frame_ms: float) -> str:
        """What is wrong, empty if nothing is.

        Large photos and many clients make any bundle slow, so one may take `SLOWER` times as long
        as the one before, too.

        >>> health = Health()
        >>> for _ in range(20): health.looked(40.0)
        >>> health.fault(1000.0), health.fault(30.0)
        ('', 'a look takes 40 ms, expected at most 30 ms')
        """
        with self._lock:
            n_looks, n_failed = self._n_looks, self._n_failed
        median_ms, limit_ms = self.median_ms(), max(max_frame_ms, SLOWER * self._usual_ms)
        if n_failed >= MIN_FAILED and n_failed > MAX_FAILED_SHARE * n_looks:
            return f"{n_failed} of {n_looks} looks failed"
        if median_ms > limit_ms:
            return f"a look takes {median_ms:.0f} ms, expected at most {limit_ms:.0f} ms"
        return ""
