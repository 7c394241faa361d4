"""One comment on a pull request, written anew each time instead of repeated.

The Note may come from a fork, so nothing in it is believed: GitHub is asked for the pull request
that it names, whose head must be the commit that the Note and the event name, and its text is
marked as a fork's. The comment to renew is the one that starts with the marker and has our own
author, so that no one can make us overwrite theirs.
"""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.comment import MARKER, Note, limited

log = logging.getLogger(__name__)
PER_PAGE = 100
MAX_PAGES = 50
MAX_ANSWER_BYTES = 32 * 1024 * 1024
TIMEOUT_S = 30.0
OF_A_FORK = "⚠ Written by the code of a fork, which nobody here has checked."
Posted = Literal["created", "updated"]


class NotPermitted(StageFailed):
    """The token may not do this."""


@dataclass(frozen=True)
class Event:
    """What the run was started by; `head` is the pull request's newest commit then."""

    head: str
    from_fork: bool


class GitHub:
    """GitHub's REST API for one repository, at a URL that a test may choose.

    A rate limit is waited for, at most `patience_s` in all. Redirects are not followed: the token
    goes to one host.
    """

    def __init__(
        self,
        url: str,
        repository: str,
        token: str,
        *,
        patience_s: float = 120,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.hostname is None or parts.scheme not in ("https", *(["http"] if local else [])):
            raise StageFailed(
                "GITHUB_API_URL",
                found=repr(url),
                expected="https://…",
                remedy="Leave it unset for github.com.",
            )
        self._https, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base = f"{parts.path.rstrip('/')}/repos/{repository}"
        self._token = token
        self._patience_s, self._sleep, self._now = patience_s, sleep, now

    def head_of(self, pull_request: int) -> str:
        """The newest commit of a pull request."""
        pull = self._call("GET", f"/pulls/{pull_request}")
        return str(pull["head"]["sha"])

    def own_comment(self, pull_request: int, author: str) -> int | None:
        """The id of the comment of `author` that starts with the marker."""
        for page in range(1, MAX_PAGES + 1):
            path = f"/issues/{pull_request}/comments?per_page={PER_PAGE}&page={page}"
            comments = self._call("GET", path)
            for comment in comments:
                by = (comment.get("user") or {}).get("login")
                if by == author and (comment.get("body") or "").startswith(MARKER):
                    return int(comment["id"])
            if len(comments) < PER_PAGE:
                break
        return None

    def put_comment(self, pull_request: int, body: str, author: str) -> tuple[Posted, str]:
        """Renew our comment or make the first one; return which, and its address."""
        existing = self.own_comment(pull_request, author)
        if existing is None:
            made = self._call("POST", f"/issues/{pull_request}/comments", {"body": body})
            return "created", str(made["html_url"])
        made = self._call("PATCH", f"/issues/comments/{existing}", {"body": body})
        return "updated", str(made["html_url"])

    def _call(self, method: str, path: str, content: Mapping[str, str] | None = None) -> Any:
        patience_s = self._patience_s
        while True:
            status, headers, answer = self._send(method, path, content)
            if status in (200, 201):
                return _parsed(method, path, answer)
            wait_s = _rate_limit_s(status, headers, answer, self._now())
            if wait_s is None:
                raise _refusal(method, path, status, answer)
            if wait_s > patience_s:
                raise StageFailed(
                    f"GitHub, {method} {path}",
                    found=f"a rate limit ({status}) for another {wait_s:.0f} s",
                    expected=f"an answer within {self._patience_s:.0f} s",
                    remedy="Run the job again later.",
                )
            log.info("GitHub asks to wait %.0f s", wait_s)
            self._sleep(wait_s)
            patience_s -= max(wait_s, 1)

    def _send(
        self, method: str, path: str, content: Mapping[str, str] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection: http.client.HTTPConnection
        if self._https:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self._token}",
            "User-Agent": "pilltrack",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        data = None if content is None else json.dumps(content).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, f"{self._base}{path}", data, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise StageFailed(
                f"GitHub, {method} {path}",
                found=f"no answer from {self._host} ({error or type(error).__name__})",
                expected="GitHub's API",
                remedy="Check GITHUB_API_URL and the network, then run the job again.",
            ) from error
        finally:
            connection.close()


def post_note(
    note: Note,
    event: Event,
    github: GitHub,
    *,
    author: str,
    summary: Path | None,
) -> str:
    """Put a note on its pull request; return a line that says what was done.

    Where a fork's token may not comment, the note goes to `summary`, the page of the run. Raises
    StageFailed when the note, the event and the pull request do not name the same commit, and
    NotPermitted where no fork explains that the token may not comment.
    """
    if note.commit != event.head:
        raise _another_commit(note, f"the event {event.head}")
    said = note.body.removeprefix(f"{MARKER}\n")
    body = limited(f"{OF_A_FORK}\n\n{said}" if event.from_fork else said)
    try:
        head = github.head_of(note.pull_request)
        if head != note.commit:
            raise _another_commit(note, f"pull request {note.pull_request} {head}")
        what, address = github.put_comment(note.pull_request, body, author)
    except NotPermitted:
        if not event.from_fork or summary is None:
            raise
        with summary.open("a", encoding="utf-8") as opened:
            opened.write(f"{body}\n")
        return (
            f"not commented: a fork's token may not. The report of pull request "
            f"{note.pull_request} stands in the summary of this run"
        )
    return f"{what} {address}"


def read_event(path: Path) -> Event:
    """Read the event file of a run that a pull request started, or that follows such a run.

    Raises StageFailed when it is missing or of another kind.
    """
    try:
        content = json.loads(path.read_bytes())
        if "pull_request" in content:
            pull = content["pull_request"]
            # The repository is null when a fork has been deleted.
            ours = pull["base"]["repo"]["full_name"] == (pull["head"]["repo"] or {}).get(
                "full_name"
            )
            return Event(head=str(pull["head"]["sha"]), from_fork=not ours)
        run = content["workflow_run"]
        ours = content["repository"]["full_name"] == (run["head_repository"] or {}).get("full_name")
        return Event(head=str(run["head_sha"]), from_fork=not ours)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageFailed(
            f"GITHUB_EVENT_PATH {path}",
            found=f"no event of a pull request ({type(error).__name__}: {error})",
            expected="the event file of a pull_request or workflow_run event",
            remedy="Run this in such a workflow.",
        ) from error


def _another_commit(note: Note, other: str) -> StageFailed:
    return StageFailed(
        f"the note for pull request {note.pull_request}",
        found=f"figures of {note.commit}, but {other}",
        expected="one commit",
        remedy="Nothing was posted. A newer push has its own run; else run the pipeline again.",
    )


def _parsed(method: str, path: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        raise StageFailed(
            f"GitHub, {method} {path}",
            found="an answer that is not JSON",
            expected="GitHub's API",
            remedy="Check GITHUB_API_URL.",
        ) from error


def _rate_limit_s(
    status: int, headers: Mapping[str, str], answer: bytes, now: float
) -> float | None:
    """How long to wait, None when this is no rate limit."""
    if status not in (403, 429):
        return None
    try:
        if "retry-after" in headers:
            return max(0.0, float(headers["retry-after"]))
        if headers.get("x-ratelimit-remaining") == "0":
            return max(0.0, float(headers["x-ratelimit-reset"]) - now)
    except (ValueError, KeyError):
        return 60.0  # what GitHub advises where it says nothing
    return 60.0 if status == 429 or b"rate limit" in answer.lower() else None


def _refusal(method: str, path: str, status: int, answer: bytes) -> StageFailed:
    try:
        said = str(json.loads(answer)["message"])[:200]
    except (ValueError, KeyError, TypeError):
        said = "no reason given"
    kind, expected, remedy = StageFailed, "200 or 201", "Run the job again later."
    if status == 401:
        expected, remedy = "a valid token", "Check GITHUB_TOKEN."
    elif status in (403, 404):
        kind, expected = NotPermitted, "a token that may comment on pull requests"
        remedy = "Give the job `permissions: pull-requests: write`, and check GITHUB_REPOSITORY."
    return kind(f"GitHub, {method} {path}", found=f"{status}: {said}", expected=expected,
                remedy=remedy)  # fmt: skip
