"""The open bundle and home of a device, however they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pilltrack.edge.prescription import Expected
from pilltrack.edge.record import DecisionRecord, gallery_digest
from pilltrack.edge.service import Service
from tests.edge.conftest import noise, red

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def service(bundle: Path, tmp_path: Path) -> Iterator[Service]:
    service = Service(bundle, tmp_path / "home", threads=1)
    yield service
    service.close()


def test_a_record_names_the_gallery_that_was_searched_after_whatever_was_enrolled_or_forgotten(
    service: Service, bundle: Path
) -> None:
    seen = []

    def check() -> None:
        service.check(red(), [Expected("red-pill", 1)], NOW)
        recorded = service.history(1)[0].record
        assert isinstance(recorded, DecisionRecord)
        assert recorded.gallery == gallery_digest(service.identifier.gallery)
        seen.append(recorded.gallery)

    check()
    enrol(service, "one", noise(1))
    check()
    enrol(service, "one", noise(2))  # one more photo of it
    enrol(service, "two", noise(3))
    check()
    assert service.forget("one") == 2
    check()
    assert service.forget("two") == 1
    check()
    assert seen[-1] == seen[0]
    assert len(set(seen)) == 4


def enrol(service: Service, pill: str, crop: np.ndarray) -> None:
    service.enrol(pill, [("crop.png", crop)], ["front"], NOW, crops=True, reason="a test")
