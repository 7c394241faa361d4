"""A bundle is published as it was checked, and only if devices would run it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilltrack.core.bundle import MANIFEST_FILE, PROBES_FILE, read_bundle
from pilltrack.core.errors import BundleRejected, GateFailed
from pilltrack.core.gallery import Gallery
from pilltrack.core.probes import Promised, read_probes, save_probes
from pilltrack.pipeline import prove
from pilltrack.pipeline.prove import private_copy, require_proven
from tests.releases import PHOTO, some_bundle
from tests.tiny_bundle import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return some_bundle(tmp_path / "some")


def changed_probes(bundle: Path, **changed: Any) -> Path:
    """A bundle with other probes, and a manifest that knows of it."""
    path = bundle / PROBES_FILE
    save_probes(replace(read_probes(path), **changed), path)
    manifest = json.loads((bundle / MANIFEST_FILE).read_bytes())
    record = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    manifest["files"][PROBES_FILE] = record
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))
    return bundle


def test_a_bundle_that_keeps_its_promises_passes(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require_proven(bundle)
    assert caplog.text == ""


def test_a_broken_promise_of_an_embedding_is_named(bundle: Path) -> None:
    other = np.zeros_like(read_probes(bundle / PROBES_FILE).embeddings)
    other[:, 0] = 1
    with pytest.raises(GateFailed, match="bundle 'tiny': probe 1: its embedding has a cosine"):
        require_proven(changed_probes(bundle, embeddings=other))


def test_a_broken_promise_of_a_decision_is_named(bundle: Path) -> None:
    unknown = (Promised("unknown", None, 0.0),)
    with pytest.raises(GateFailed, match="probe 1: decided as known, blue-pill, promised unknown"):
        require_proven(changed_probes(bundle, decisions=unknown))


def test_a_bundle_that_promises_nothing_is_refused(bundle: Path) -> None:
    with pytest.raises(GateFailed, match="promise no decision and no frame"):
        require_proven(changed_probes(bundle, decisions=(None,), frames=(), boxes=()))


def test_few_promises_are_warned_of(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require_proven(changed_probes(bundle, decisions=(None,)))
    assert "bundle 'tiny' promises no decision" in caplog.text
    caplog.clear()
    require_proven(tiny_bundle(tmp_path, "red", PHOTO, threshold=0.95))
    assert "bundle 'tiny' has no frame" in caplog.text


def test_a_bundle_without_pills_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Gallery, "enrol", lambda *_: None)
    require_proven(tiny_bundle(tmp_path, "nobody", PHOTO, frames=[PHOTO]))
    assert "knows no pill" in caplog.text


def test_a_copy_is_the_bundle(bundle: Path) -> None:
    with private_copy(bundle) as copy:
        assert copy != bundle
        assert copy.parent.stat().st_mode & 0o077 == 0
        assert read_bundle(copy) == read_bundle(bundle)
        assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
            p.name: p.read_bytes() for p in bundle.iterdir()
        }
    assert not copy.exists()


def test_a_bundle_that_changes_while_it_is_read_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_file = shutil.copyfile

    def rewritten(source: Path, target: Path, **options: Any) -> None:
        if source.name == "gallery.safetensors":
            source.write_bytes(b"other")
        copy_file(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", rewritten)
    with (
        pytest.raises(BundleRejected, match="files that change while they are read"),
        private_copy(bundle),
    ):
        pass


def test_a_file_that_devices_do_not_take_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max((path.stat().st_size, path.name) for path in bundle.iterdir())
    monkeypatch.setattr(prove, "MAX_FILE_BYTES", longest[0] - 1)
    with (
        pytest.raises(BundleRejected, match=f"{longest[1]}: {longest[0]} bytes; expected at most"),
        private_copy(bundle),
    ):
        pass
    monkeypatch.setattr(prove, "MAX_FILE_BYTES", longest[0])
    with private_copy(bundle):
        pass
