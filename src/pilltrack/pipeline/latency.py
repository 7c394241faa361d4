"""How long a bundle takes from crop to decision, measured on this machine, now."""

from __future__ import annotations

from pilltrack.core.identify import Identifier
from pilltrack.core.timing import Subject, measure

N_TIMED = 200


def latency_ms(identifier: Identifier) -> tuple[float, float]:
    """p50 and p95 over `N_TIMED` crops, measured as `pilltrack bench` does, in its own gallery.

    Threads are those the identifier was opened with.
    """
    subject = Subject(identifier.embedder, identifier.gallery, identifier.calibration)
    (steps_ms,) = measure([subject], N_TIMED)
    return steps_ms["total"].p50, steps_ms["total"].p95
