"""What a bundle must show before it is published: what every device will ask of it.

A device opens a bundle, asks its golden probes (`core.probes`) and refuses one that breaks a
promise. Found here, that costs a message; found there, a release that no device runs. Only how fast
it is, and what a device has learnt itself, is for the device to judge.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pilltrack.core.bundle import MANIFEST_FILE, PROBES_FILE, read_bundle
from pilltrack.core.channels import MAX_FILE_BYTES
from pilltrack.core.errors import BundleRejected, GateFailed
from pilltrack.core.identify import open_identifier
from pilltrack.core.probes import read_probes

log = logging.getLogger(__name__)


@contextmanager
def private_copy(bundle: Path) -> Iterator[Path]:
    """A verified copy that nobody else writes to, so that what was checked is what is published.

    Raises BundleRejected as `read_bundle`, also for a bundle that changes meanwhile, or has a file
    that is longer than devices take.
    """
    manifest = read_bundle(bundle)
    for name, record in manifest.files.items():
        _require_length(bundle / name, record.bytes)
    with TemporaryDirectory(prefix="pilltrack-publish-") as directory:
        copy = Path(directory) / "bundle"
        copy.mkdir()
        for name in (MANIFEST_FILE, *manifest.files):
            shutil.copyfile(bundle / name, copy / name, follow_symlinks=False)
        try:
            is_same = read_bundle(copy) == manifest
        except BundleRejected:
            is_same = False
        if not is_same:
            raise BundleRejected(
                str(bundle),
                found="files that change while they are read",
                expected="a bundle that nobody writes to",
                remedy="Publish it when it is finished; nothing was published.",
            )
        yield copy


def require_proven(bundle: Path) -> None:
    """Raise GateFailed for a bundle that breaks its promises, or makes none.

    A promise is a decision that no rounding can change, or a frame without a close call; a bundle
    without any would be taken by devices whatever it does. One kind may be missing, and so may all
    pills: these are only warned of.

    Raises BundleRejected or SpaceMismatch for what devices cannot open.
    """
    with open_identifier(bundle) as identifier:
        name = f"bundle {identifier.manifest.name!r:.60}"
        probes = read_probes(bundle / PROBES_FILE)
        broken = identifier.broken_promises(probes)
        is_empty = not len(identifier.gallery.bundled)
    if broken:
        raise GateFailed(
            name,
            found="; ".join(broken),
            expected="a bundle that keeps its promises",
            remedy="Build it again with `dvc repro`; no device would run this one.",
        )
    n_decisions = sum(promised is not None for promised in probes.decisions)
    if not n_decisions and not probes.frames:
        raise GateFailed(
            name,
            found="probes that promise no decision and no frame",
            expected="at least one promise, by which a device can tell that it works",
            remedy="Build it again with `dvc repro`, with reference photos that it names clearly.",
        )
    if not n_decisions:
        log.warning("%s promises no decision: devices can hardly tell whether it works", name)
    if not probes.frames:
        log.warning("%s has no frame to probe its locator with", name)
    if is_empty:
        log.warning("%s knows no pill: devices name only what was enrolled on them", name)


def _require_length(path: Path, n_bytes: int) -> None:
    if n_bytes > MAX_FILE_BYTES:
        raise BundleRejected(
            str(path),
            found=f"{n_bytes} bytes",
            expected=f"at most {MAX_FILE_BYTES}, which devices take",
            remedy="Build a smaller bundle.",
        )
