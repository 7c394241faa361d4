"""A calibration that keeps its promises, for tests that need one."""

from __future__ import annotations

from pilltrack.core.decide import Calibration, Evidence

EVIDENCE = Evidence(
    n_stranger_pills=400,
    n_stranger_photos=800,
    fpir=0.0,
    fpir_upper=0.008,
    n_mated_pills=300,
    n_mated_photos=600,
    misnamed=0.0,
    misnamed_upper=0.01,
    fnir=0.2,
)


def calibration(space: str = "s", threshold: float = 0.5, margin: float = 0.1) -> Calibration:
    """Promises 1 % strangers and 2 % wrong names, with the evidence for it."""
    return Calibration(
        space=space,
        threshold=threshold,
        margin=margin,
        fpir=0.01,
        misnamed=0.02,
        confidence=0.95,
        gallery_size=3,
        captures="simulated",
        agreement=0.3,
        evidence=EVIDENCE,
    )
