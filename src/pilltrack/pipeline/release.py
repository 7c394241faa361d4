"""What a release holds beside the wheel: the bundle as one archive, and its report.

Only what belongs to the tag is packed: the tag is the version of this code and the commit that is
checked out, nothing differs from it, and DVC finds every stage in step. The archive is the same
bytes for the same bundle.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from pathlib import Path

from pilltrack import __version__
from pilltrack.core.bundle import read_bundle
from pilltrack.core.errors import StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.pipeline.checkout import git, out_of_step, require_unchanged


def release(tag: str, artifacts: Path, out: Path) -> list[Path]:
    """Write `out/pilltrack-bundle-VERSION.tar.gz` and `out/report.md`; return both paths.

    Raises StageFailed when anything is not the tag's, BundleRejected for a damaged bundle.
    """
    _require_tag(tag)
    require_unchanged(tag, "data", "dvc.lock")
    unfinished = sorted(out_of_step())
    if unfinished:
        raise StageFailed(
            tag,
            found=f"results of other code, parameters or data: {', '.join(unfinished)}",
            expected="a finished run of this commit",
            remedy="Run `dvc pull` and `dvc repro`.",
        )
    bundle, report = artifacts / "package" / "bundle", artifacts / "report" / "report.md"
    manifest = read_bundle(bundle)
    if not report.is_file() or manifest.data_digest not in report.read_text(encoding="utf-8"):
        raise StageFailed(
            str(report),
            found="of another bundle" if report.is_file() else "missing",
            expected="the report of this bundle",
            remedy="Run `pilltrack report`.",
        )
    archive = out / f"pilltrack-bundle-{__version__}.tar.gz"
    write_atomically(archive, packed(bundle, archive.name.removesuffix(".tar.gz")))
    shutil.copyfile(report, out / "report.md")
    return [archive, out / "report.md"]


def packed(directory: Path, name: str) -> bytes:
    """A directory as .tar.gz below `name`: names in order, no times, owners or rights of here."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"{name}/{path.relative_to(directory).as_posix()}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as opened:
                archive.addfile(entry, opened)
    return gzip.compress(held.getvalue(), compresslevel=6, mtime=0)


def _require_tag(tag: str) -> None:
    if tag != f"v{__version__}":
        raise StageFailed(
            f"tag {tag}",
            found=f"version {__version__} in the code",
            expected=f"the tag v{__version__}",
            remedy="Set the version in pyproject.toml and src/pilltrack/__init__.py, and commit.",
        )
    tagged = git("rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}").stdout.strip()
    here = git("rev-parse", "HEAD").stdout.strip()
    if not tagged or tagged != here:
        raise StageFailed(
            f"tag {tag}",
            found=f"it names {tagged or 'no commit'}, checked out is {here}",
            expected="the commit of the tag",
            remedy=f"Run `git checkout {tag}`.",
        )
