"""What a pull request is told: the report of its own commit, or that there is none.

`comment write` runs where the pipeline ran, with the code of the pull request and without any
right to write. It leaves one small file, a Note. `comment post` (pilltrack.pipeline.github) runs
elsewhere with the code of the main branch and the right to comment, and holds the Note against
what GitHub itself says about the pull request.

Figures are shown only when they were measured at this commit: the report names it, and DVC finds
code, parameters, data and results in step. Otherwise the note says what is out of step, and that
there are no figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pilltrack.core.errors import StageFailed
from pilltrack.core.files import write_atomically
from pilltrack.pipeline.checkout import changed, git, out_of_step, require_unchanged

MARKER = "<!-- pilltrack: report of the pull request -->"
MAX_CHARACTERS = 65_536  # of a comment on GitHub
MAX_NOTE_BYTES = 1_000_000  # all of it in JSON
CUT = "\n\n⚠ Cut here: the whole report is with the run.\n"
AFTER_MEASURING = ("evaluate", "locate", "package")  # stages of which no figure depends


class Note(BaseModel):
    """A comment and where it belongs; `commit` is the head of the pull request."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    pull_request: Annotated[int, Field(ge=1)]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    body: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


def write_note(
    out: Path,
    *,
    pull_request: int,
    commit: str,
    artifacts: Path,
    comparison: Path | None,
    links: Mapping[str, str],
) -> bool:
    """Write the note on what the pipeline found at `commit`; return whether it has figures.

    `artifacts` holds report/report.md and the results it was made of; `comparison` is what
    `pilltrack compare --markdown` wrote, left out where it does not exist; `links` name -> URL.

    Raises StageFailed when `commit` is not checked out here, code or parameters differ from it,
    or a link is not one of the web.
    """
    _require_checked_out(commit)
    require_unchanged(commit)
    obstacles = _obstacles(artifacts)
    report = artifacts / "report" / "report.md"
    parts = [*_head(commit, links), ""]
    if obstacles:
        parts += ["# ✘ No figures for this commit", "", *(f"- {text}" for text in obstacles)]
    else:
        other_data = changed("data")
        if other_data:
            parts += [
                "⚠ Measured on other data than the repository names: "
                f"{', '.join(f'`{name}`' for name in other_data)} was made anew for this run.",
                "",
            ]
        unfinished = sorted(out_of_step())
        if unfinished:
            parts += [f"✘ The pipeline did not finish: {', '.join(unfinished)}.", ""]
        parts.append(report.read_text(encoding="utf-8").strip())
        if comparison is not None and comparison.is_file():
            parts += ["", "## Against the main branch", ""]
            parts.append(comparison.read_text(encoding="utf-8").strip())
    note = Note(pull_request=pull_request, commit=commit, body=limited("\n".join(parts) + "\n"))
    write_atomically(out, f"{note.model_dump_json(indent=1)}\n".encode())
    return not obstacles


def read_note(path: Path) -> Note:
    """Read a note that a run left; nothing in it is trusted but its form.

    Raises StageFailed when it is missing or not a note.
    """
    try:
        with path.open("rb") as file:
            return Note.model_validate_json(file.read(MAX_NOTE_BYTES))
    except (OSError, ValidationError) as error:
        found = "missing" if isinstance(error, FileNotFoundError) else "not a note"
        raise StageFailed(
            str(path),
            found=found,
            expected="the file that `pilltrack comment write` leaves",
            remedy="Look at the run that should have written it.",
        ) from error


def limited(text: str) -> str:
    """The text with the marker before it, cut at the end of a line where GitHub would refuse it.

    >>> limited("short").splitlines()[1]
    'short'
    >>> long = limited("line\\n" * 20_000)
    >>> len(long) <= MAX_CHARACTERS, long.endswith(CUT)
    (True, True)
    """
    body = f"{MARKER}\n{text}"
    if len(body) <= MAX_CHARACTERS:
        return body
    kept = body[: MAX_CHARACTERS - len(CUT)]
    return kept[: kept.rfind("\n")] + CUT


def _head(commit: str, links: Mapping[str, str]) -> Sequence[str]:
    for name, url in links.items():
        parts = urlsplit(url)
        plain = re.fullmatch(r"[^\s()<>\[\]`]+", url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not plain:
            raise StageFailed(
                f"--link {name}",
                found=repr(url),
                expected="NAME=https://…",
                remedy="Leave the link out, or give its address.",
            )
        if not re.fullmatch(r"[\w .-]+", name):
            raise StageFailed(
                "--link",
                found=f"the name {name!r}",
                expected="letters, digits, spaces, dots and dashes",
                remedy="Rename it.",
            )
    shown = [f"[{name}]({url})" for name, url in links.items()]
    return [" · ".join([f"PillTrack at {commit}", *shown])]


def _obstacles(artifacts: Path) -> list[str]:
    """Why the report at hand cannot be shown as this commit's; empty when it can."""
    report = artifacts / "report" / "report.md"
    if not report.is_file():
        return ["`pilltrack report` wrote nothing: the run stopped before it."]
    here = git("rev-parse", "HEAD").stdout.strip()
    row = re.search(
        r"^\| this report: git commit \| `([^`]*)` \|$",
        report.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    if row is None or row[1].removesuffix("+changes") != here:
        made_at = row[1] if row else "an unknown commit"
        return [f"The report at hand was made at `{made_at}`, checked out is `{here}`."]
    others = out_of_step()
    stale = sorted(others - set(AFTER_MEASURING))
    if stale:
        return [f"The results at hand are of other code, parameters or data: {', '.join(stale)}."]
    # A gate that fails leaves metrics.json, which DVC then does not count as made, and no
    # calibration. With a calibration the file is one of an earlier run.
    if "evaluate" in others and (artifacts / "evaluate" / "calibration.json").exists():
        return ["The results at hand are of an earlier run: evaluate."]
    return []


def _require_checked_out(commit: str) -> None:
    # GitHub checks out the merge of the pull request's head with main: the head is its ancestor.
    if git("merge-base", "--is-ancestor", commit, "HEAD").returncode:
        raise StageFailed(
            f"--commit {commit}",
            found=f"not part of what is checked out ({git('rev-parse', 'HEAD').stdout.strip()})",
            expected="the head of the pull request, in a clone with its history",
            remedy="Check out the pull request with `fetch-depth: 0`.",
        )
