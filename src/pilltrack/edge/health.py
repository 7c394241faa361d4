"""How looks go with the open bundle: do they end well, and in time?"""

from __future__ import annotations

import statistics
import threading
from collections import deque

MIN_FAILED, MAX_FAILED_SHARE = 3, 0.1
N_TIMED, MIN_TIMED = 50, 20


class Health:
    """Counts of looks. May be shared between threads."""

    def __init__(self) -> None:
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

    def fault(self, max_frame_ms: float) -> str:
        """What is wrong, empty if nothing is.

        >>> health = Health()
        >>> for _ in range(20): health.looked(40.0)
        >>> health.fault(1000.0), health.fault(30.0)
        ('', 'a frame takes 40 ms (median of the last 20), expected at most 30 ms')
        """
        with self._lock:
            n_looks, n_failed, ms = self._n_looks, self._n_failed, list(self._ms)
        if n_failed >= MIN_FAILED and n_failed > MAX_FAILED_SHARE * n_looks:
            return f"{n_failed} of {n_looks} looks failed"
        if len(ms) >= MIN_TIMED and (median := statistics.median(ms)) > max_frame_ms:
            took = f"a frame takes {median:.0f} ms (median of the last {len(ms)})"
            return f"{took}, expected at most {max_frame_ms:.0f} ms"
        return ""
