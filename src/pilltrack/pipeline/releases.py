"""Where a bundle named on the command line lies: a directory, or a git revision through DVC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pilltrack.core.bundle import Manifest, read_bundle
from pilltrack.core.errors import BundleRejected, StageFailed

BUNDLE = "artifacts/package/bundle"


@contextmanager
def opened_bundle(source: str) -> Iterator[tuple[Path, Manifest]]:
    """Yield directory and manifest of the verified bundle that `source` names.

    An existing directory is the bundle itself. Anything else is a git revision of the repository
    in which we are: its `BUNDLE` is fetched through DVC and deleted when the block ends.

    Raises StageFailed when there is no such repository or revision, it has no bundle, or neither
    DVC's cache nor its remote holds it; BundleRejected, naming `source`, for a bundle that is
    damaged or of another format.
    """
    if Path(source).is_dir():
        yield Path(source), read_bundle(Path(source))
        return
    with TemporaryDirectory(prefix="pilltrack-bundle-") as directory:
        bundle = Path(directory) / "bundle"
        _fetch(source, bundle)
        try:
            manifest = read_bundle(bundle)
        except BundleRejected as error:
            part = f"{source}: {BUNDLE}/{Path(error.subject).name}"
            remedy = "Name a revision whose bundle this version of PillTrack can read."
            raise BundleRejected(
                part, found=error.found, expected=error.expected, remedy=remedy
            ) from error
        yield bundle, manifest


def _fetch(revision: str, target: Path) -> None:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexDirError

    try:
        files = DVCFileSystem(Repo.find_root(), rev=revision)
        files.info(f"/{BUNDLE}")  # unlike exists(), it says what is wrong
    except NotDvcRepoError as error:
        raise StageFailed(
            revision,
            found="no such directory, and no repository here in which it could be a revision",
            expected="a directory with a bundle, or a git revision of a repository with DVC",
            remedy="Check the path, or run from the repository.",
        ) from error
    except SCMError as error:
        raise StageFailed(
            revision,
            found=f"no such directory, and no such revision ({error})",
            expected="a directory with a bundle, or a branch, tag or commit",
            remedy="Check the path; `git fetch --tags` may bring the revision.",
        ) from error
    except FileNotFoundError as error:
        raise StageFailed(
            revision,
            found=f"no {BUNDLE} at that revision",
            expected="a bundle, committed with its dvc.lock",
            remedy="Name a revision at which `dvc repro` ran to its end and was committed.",
        ) from error
    except DvcException as error:
        raise StageFailed(
            revision,
            found=f"files of DVC that cannot be read ({error})",
            expected=f"{BUNDLE} at that revision",
            remedy="Name another revision, or the directory of a bundle.",
        ) from error
    try:
        files.get(f"/{BUNDLE}", str(target), recursive=True)
    except (DataIndexDirError, DvcException, OSError) as error:
        raise StageFailed(
            revision,
            found=f"its {BUNDLE} cannot be fetched ({error})",
            expected="the files in DVC's cache or its remote",
            remedy="Run `dvc push` where it was built, and check the remote here: "
            "`dvc remote list`.",
        ) from error
