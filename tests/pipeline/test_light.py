"""Shadows, and a relief in the light."""

from __future__ import annotations

import numpy as np

from pilltrack.pipeline.light import Light, cast_shadows, lit_relief


def test_the_shadow_falls_away_from_the_light() -> None:
    surface = np.full((100, 100, 3), 200, np.float32)
    y, x = np.mgrid[:100, :100]
    alpha = (np.hypot(x - 50, y - 50) < 20).astype(np.float32)
    cast_shadows(surface, alpha, Light(1.0, 0.0, 1.0), thickness_px=12, darkness=0.6)
    left, right = surface[50, 24, 0], surface[50, 76, 0]  # light from the right
    assert left < 150
    assert right > 185
    assert surface.min() >= 200 * (1 - 0.6) - 1e-3


def test_what_faces_the_lamp_is_bright_and_a_level_surface_keeps_its_colour() -> None:
    x = np.mgrid[:60, :60][1].astype(np.float32)
    roof = np.minimum(x, 59 - x) * np.float32(0.5)  # rises to the middle, then falls
    solid = np.ones_like(roof)
    diffuse, mirror = lit_relief(roof, solid, Light(1.0, 0.0, 1.0), sharpness=20)
    assert diffuse[30, 45] > 1.1  # light from the right
    assert diffuse[30, 15] < 0.8
    assert mirror[30, 45] > mirror[30, 15]
    level, _ = lit_relief(0 * roof, solid, Light(1.0, 0.0, 1.0), sharpness=20)
    np.testing.assert_allclose(level, 1, atol=1e-6)
