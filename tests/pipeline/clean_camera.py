"""A camera without faults, and a pill that lies flat, near and unlit."""

from __future__ import annotations

from pilltrack.pipeline.params import CaptureParams

CLEAN = CaptureParams(
    background_share=0,
    scale=(0.8, 0.8),
    perspective=0,
    shadow=0,
    light=0,
    colour_cast=0,
    blur_px=0,
    noise=0,
    jpeg_quality=(100, 100),
    clip=0,
    distant=0,
    body=0,
)
