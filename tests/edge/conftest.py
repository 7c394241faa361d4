"""A running app around a tiny bundle, asked without a network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pilltrack.edge.app import create_app
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings
from tests.tiny_bundle import tiny_bundle

BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("edge"), "red-pill", red())


@pytest.fixture
def client(bundle: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=bundle, home=tmp_path / "home")
    app = create_app(Service(bundle, settings.home, threads=1), settings)
    with TestClient(app, base_url=BASE) as client:
        yield client


@pytest.fixture
def opened(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes apps with other settings."""
    clients = []

    def make(**changes: object) -> TestClient:
        settings = Settings(bundle=bundle, home=tmp_path / "home", **changes)  # type: ignore[arg-type]
        app = create_app(Service(bundle, settings.home, threads=1), settings)
        clients.append(TestClient(app, base_url=BASE))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def red() -> np.ndarray:
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[8:32, 8:32] = (200, 30, 30)
    return photo


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (42, 42, 3), dtype=np.uint8)


def png(photo: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(photo).save(written, "png")
    return written.getvalue()
