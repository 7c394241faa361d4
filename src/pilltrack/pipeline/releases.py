"""What stood at a git revision, read from git or through DVC: a bundle, or the metrics.

A bundle named on the command line is a directory, or such a revision.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from pilltrack.core.bundle import Manifest, read_bundle
from pilltrack.core.errors import BundleRejected, StageFailed
from pilltrack.pipeline.results import Metrics, first_problem

BUNDLE = "artifacts/package/bundle"
SHOWN_LENGTH = 60  # of a revision in a message


class NotAtRevision(StageFailed):
    """The revision is known, and there was no such file or directory."""


class UnknownRevision(StageFailed):
    """The repository has no such revision, or there is no repository."""


@contextmanager
def opened_bundle(source: str) -> Iterator[tuple[Path, Manifest]]:
    """Yield directory and manifest of the verified bundle that `source` names.

    An existing directory is the bundle itself. Anything else is a git revision of the repository
    in which we are: its `BUNDLE` is fetched through DVC and deleted when the block ends.

    Raises StageFailed when there is no such repository or revision, it has no bundle, or neither
    DVC's cache nor its remote holds it; BundleRejected, naming `source`, for a bundle that is
    damaged or of another format.
    """
    if _is_directory(source):
        yield Path(source), read_bundle(Path(source))
        return
    with TemporaryDirectory(prefix="pilltrack-bundle-") as directory:
        bundle = Path(directory) / "bundle"
        try:
            fetch_at(source, Path(BUNDLE), bundle, inside=Path())
        except UnknownRevision as error:
            raise UnknownRevision(
                error.subject,
                found=f"no such directory, and {error.found}",
                expected="a directory with a bundle, or a branch, tag or commit",
                remedy=f"Check the path. {error.remedy}",
            ) from error
        try:
            manifest = read_bundle(bundle)
        except BundleRejected as error:
            part = f"{source}: {BUNDLE}/{Path(error.subject).name}"
            remedy = "Name a revision whose bundle this version of PillTrack can read."
            raise BundleRejected(
                part, found=error.found, expected=error.expected, remedy=remedy
            ) from error
        yield bundle, manifest


@dataclass(frozen=True)
class Earlier:
    """The metrics at `revision`, or why there are none to compare with."""

    revision: str
    metrics: Metrics | None
    reason: str = ""


def load_metrics_at(revision: str, path: Path) -> Earlier:
    """Read the metrics.json at `path` as it was at a git revision, from git or through DVC.

    A revision that had no metrics, or metrics of another schema, is no error: the reason is
    returned. Raises StageFailed, naming the revision, when it is unknown, its metrics cannot be
    fetched, or `path` is not inside a DVC repository.
    """
    path = path.resolve()
    try:
        with TemporaryDirectory(prefix="pilltrack-metrics-") as directory:
            copy = Path(directory) / "metrics.json"
            fetch_at(revision, path, copy, inside=path.parent)
            metrics = Metrics.model_validate_json(copy.read_bytes())
    except NotAtRevision as error:
        return Earlier(revision, None, error.found)
    except ValidationError as error:
        return Earlier(revision, None, f"its metrics have another schema ({first_problem(error)})")
    except UnknownRevision as error:
        raise UnknownRevision(
            f"--against {shortened(revision)}",
            found=error.found,
            expected=error.expected,
            remedy=f"{error.remedy} Or leave out --against.",
        ) from error
    return Earlier(revision, metrics)


def fetch_at(revision: str, path: Path, target: Path, *, inside: Path) -> None:
    """Copy a file or directory as it was at a git revision to `target`.

    `path` is absolute, or relative to the root of the repository that holds `inside`. Git may
    track it, or DVC, whose cache or remote then holds the content.

    Raises UnknownRevision when there is no such repository or commit, NotAtRevision when there
    was nothing at `path`, StageFailed when the content cannot be had.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc_data.index import DataIndexDirError

    subject = shortened(revision)
    try:
        root = Path(Repo.find_root(str(inside))).resolve()
        name = (root / path).relative_to(root).as_posix()
    except (NotDvcRepoError, ValueError) as error:
        raise UnknownRevision(
            subject,
            found="no repository here in which it could be a revision",
            expected=f"{path} below the root of a repository with git and DVC",
            remedy="Run from the repository.",
        ) from error
    try:
        files = DVCFileSystem(str(root), rev=_commit(revision, root))
        files.info(f"/{name}")  # unlike exists(), it says what is wrong
    except FileNotFoundError as error:
        raise NotAtRevision(
            subject,
            found=f"no {name} at that revision",
            expected="the results of a finished run, committed with their dvc.lock",
            remedy="Name a revision at which `dvc repro` ran to its end and was committed.",
        ) from error
    except DvcException as error:
        raise StageFailed(
            subject,
            found=f"files of DVC that cannot be read ({error})",
            expected=f"{name} at that revision",
            remedy="Name another revision.",
        ) from error
    try:
        files.get(f"/{name}", str(target), recursive=True)
    except (DataIndexDirError, DvcException, OSError) as error:
        raise StageFailed(
            subject,
            found=f"its {name} cannot be fetched ({error})",
            expected="the files in DVC's cache or its remote",
            remedy="Run `dvc push` where it was built, and check the remote here: "
            "`dvc remote list`.",
        ) from error


def shortened(revision: str) -> str:
    """A revision as a message shows it: one line, not longer than `SHOWN_LENGTH`.

    >>> shortened("v1.0"), shortened("")
    ('v1.0', "''")
    >>> shortened("x" * 5000) == "x" * 60 + "…"
    True
    """
    plain = revision if revision.strip() and revision.isprintable() else repr(revision)
    return plain if len(plain) <= SHOWN_LENGTH else f"{plain[:SHOWN_LENGTH]}…"


def _commit(revision: str, root: Path) -> str:
    """The commit that `revision` names: DVC itself stumbles over trees, blobs and odd names."""
    asked = f"{revision}^{{commit}}"
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options"]
    try:
        found = subprocess.run(  # noqa: S603 - no shell, and no options after the end of options
            [*command, asked], capture_output=True, text=True, check=False
        )
    except (OSError, ValueError):  # longer than the system takes, or with a zero byte
        found = None
    if not revision.strip() or found is None or found.returncode != 0:
        raise UnknownRevision(
            shortened(revision),
            found=f"no such revision (unknown Git revision '{shortened(revision)}')",
            expected="a branch, tag or commit of this repository",
            remedy="`git fetch --tags` may bring it; `git log` shows what there is.",
        )
    return found.stdout.strip()


def _is_directory(source: str) -> bool:
    try:
        return source != "" and Path(source).is_dir()
    except OSError:  # a name too long for the file system
        return False
