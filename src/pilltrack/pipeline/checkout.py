"""What is checked out here, and whether code, parameters, data and results belong to it."""

from __future__ import annotations

import subprocess

from pilltrack.core.errors import StageFailed

MADE_OF = ("src", "params.yaml", "dvc.yaml")


def git_commit() -> str:
    """The commit of the working directory; `unversioned` outside a repository with commits.

    `+changes` follows it when code, parameters, pipeline or data differ from that commit.
    """
    found = git("rev-parse", "HEAD")
    if found.returncode:
        return "unversioned"
    differs = git("status", "--porcelain", "--", *MADE_OF, "data").stdout.strip()
    return found.stdout.strip() + ("+changes" if differs else "")


def require_unchanged(revision: str, *more: str) -> None:
    """Refuse code, parameters and `more` paths that differ from what is checked out as `revision`.

    Raises StageFailed then, and where git does not answer.
    """
    others = changed(*MADE_OF, *more)
    if others:
        raise StageFailed(
            revision,
            found=f"changes that it does not hold: {', '.join(others)}",
            expected="all as committed",
            remedy="Commit them, or `git restore` them.",
        )


def out_of_step() -> set[str]:
    """The stages and data files whose inputs or results are not as dvc.lock has them.

    Raises StageFailed outside a repository with git and DVC.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repository:
            return set(repository.status())
    except DvcException as error:
        raise StageFailed(
            "dvc status",
            found=str(error) or type(error).__name__,
            expected="a repository with git and DVC",
            remedy="Run from the repository in which the pipeline ran.",
        ) from error


def changed(*paths: str) -> list[str]:
    """Files below `paths` that differ from the commit, or are new and not ignored.

    Raises StageFailed where git does not answer.
    """
    answer = git("status", "--porcelain", "--", *paths)
    if answer.returncode:
        raise StageFailed(
            "git status",
            found=answer.stderr.strip() or f"exit code {answer.returncode}",
            expected="a repository that git reads",
            remedy="Run from the repository in which the pipeline ran.",
        )
    return [line[3:] for line in answer.stdout.splitlines()]


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in the working directory; the caller looks at the exit code."""
    return subprocess.run(  # noqa: S603 - no shell; revisions are checked by their caller
        ["git", *arguments],  # noqa: S607 - git of the user's PATH is meant
        capture_output=True,
        text=True,
        check=False,
    )
