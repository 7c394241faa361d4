"""The sticky comment, against a local server that speaks GitHub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilltrack.cli import main
from pilltrack.core.errors import StageFailed
from pilltrack.pipeline.comment import MARKER, MAX_CHARACTERS, Note
from pilltrack.pipeline.github import OF_A_FORK, Event, GitHub, NotPermitted, post_note, read_event
from tests.pipeline.fake_github import BOT, TOKEN, Answer, FakeGitHub, serving_github

HEAD, OLD = "a" * 40, "b" * 40
OURS, FORK = Event(HEAD, from_fork=False), Event(HEAD, from_fork=True)


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with serving_github(HEAD) as fake:
        yield fake


def note(text: str = "82 %", commit: str = HEAD) -> Note:
    return Note(pull_request=7, commit=commit, body=f"{MARKER}\n{text}")


def post(
    fake: FakeGitHub,
    text: str = "82 %",
    event: Event = OURS,
    *,
    summary: Path | None = None,
    waits: list[float] | None = None,
    token: str = TOKEN,
    commit: str = HEAD,
) -> str:
    sleep = (waits if waits is not None else []).append
    github = GitHub(fake.url, "o/r", token, patience_s=120, sleep=sleep, now=lambda: 1000.0)
    return post_note(note(text, commit), event, github, author=BOT, summary=summary)


def test_the_first_report_makes_a_comment_and_the_next_ones_renew_it(fake: FakeGitHub) -> None:
    fake.comment("Nice pills!", "reader")
    assert post(fake, "82 %") == "created https://github.com/o/r/pull/7#2"
    assert post(fake, "83 %") == "updated https://github.com/o/r/pull/7#2"
    assert fake.bodies() == ["Nice pills!", f"{MARKER}\n83 %"]


def test_the_comment_is_found_behind_hundreds_of_others(fake: FakeGitHub) -> None:
    for number in range(230):
        fake.comment(f"Talk {number}", "reader")
    fake.comment(f"{MARKER}\nold")
    assert post(fake).startswith("updated")
    assert fake.bodies().count(f"{MARKER}\n82 %") == 1
    assert len(fake.comments) == 231


def test_exactly_one_full_page_is_no_end_of_the_search(fake: FakeGitHub) -> None:
    for number in range(100):
        fake.comment(f"Talk {number}", "reader")
    assert post(fake).startswith("created")


def test_a_reader_who_copies_the_marker_is_not_overwritten(fake: FakeGitHub) -> None:
    fake.comment(f"{MARKER}\nmine", "reader")
    fake.comment(f"I quote: {MARKER}")
    assert post(fake).startswith("created")
    assert len(fake.comments) == 3


def test_a_missing_permission_fails_and_says_which(fake: FakeGitHub, tmp_path: Path) -> None:
    fake.deny_writes = True
    with pytest.raises(NotPermitted, match=r"403: Resource not.*pull-requests: write"):
        post(fake, summary=tmp_path / "summary.md")
    assert not (tmp_path / "summary.md").exists()


def test_a_fork_without_permission_is_reported_in_the_summary(
    fake: FakeGitHub, tmp_path: Path
) -> None:
    fake.deny_writes = True
    done = post(fake, event=FORK, summary=tmp_path / "summary.md")
    assert done.startswith("not commented: a fork's token may not")
    assert "82 %" in (tmp_path / "summary.md").read_text()
    assert fake.comments == []
    with pytest.raises(NotPermitted):  # nowhere to put it
        post(fake, event=FORK)


def test_what_a_fork_wrote_is_marked_as_such(fake: FakeGitHub) -> None:
    post(fake, "x" * (MAX_CHARACTERS - len(MARKER) - 1), event=FORK)
    (body,) = fake.bodies()
    assert body.startswith(f"{MARKER}\n{OF_A_FORK}\n")
    assert len(body) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        ((429, {"Retry-After": "7"}, {}), 7.0),
        ((403, {"Retry-After": "7"}, {"message": "secondary rate limit"}), 7.0),
        ((403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1042"}, {}), 42.0),
        ((429, {}, {}), 60.0),
        ((403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"}, {}), 60.0),
    ],
)
def test_a_rate_limit_is_waited_for(fake: FakeGitHub, answer: Answer, wait_s: float) -> None:
    waits: list[float] = []
    fake.first = [answer]
    assert post(fake, waits=waits).startswith("created")
    assert waits == [wait_s]


def test_a_rate_limit_that_lasts_ends_in_an_error(fake: FakeGitHub) -> None:
    waits: list[float] = []
    fake.first = [(429, {"Retry-After": "50"}, {})] * 9
    with pytest.raises(StageFailed, match=r"a rate limit \(429\) for another 50 s"):
        post(fake, waits=waits)
    assert waits == [50.0, 50.0]
    fake.first = [(429, {"Retry-After": "0"}, {})] * 500
    with pytest.raises(StageFailed, match="rate limit"):
        post(fake)


def test_a_wait_of_an_hour_is_not_begun(fake: FakeGitHub) -> None:
    waits: list[float] = []
    fake.first = [(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4600"}, {})]
    with pytest.raises(StageFailed, match="for another 3600 s"):
        post(fake, waits=waits)
    assert waits == []


def test_figures_of_another_commit_are_not_posted(fake: FakeGitHub) -> None:
    with pytest.raises(StageFailed, match=f"figures of {OLD}, but the event {HEAD}"):
        post(fake, commit=OLD)
    old_run = Event(OLD, from_fork=False)
    with pytest.raises(StageFailed, match=f"figures of {OLD}, but pull request 7 {HEAD}"):
        post(fake, event=old_run, commit=OLD)
    assert fake.comments == []


def test_a_redirect_does_not_get_the_token(fake: FakeGitHub) -> None:
    fake.first = [(302, {"Location": f"{fake.url}/elsewhere"}, {"message": "moved"})]
    with pytest.raises(StageFailed, match="302: moved"):
        post(fake)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, {"message": "Bad credentials"}), "Check GITHUB_TOKEN"),
        ((500, {}, "oops"), "500: no reason given"),
        ((404, {}, {"message": "Not Found"}), "check GITHUB_REPOSITORY"),
    ],
)
def test_other_answers_end_in_an_error(fake: FakeGitHub, answer: Answer, message: str) -> None:
    fake.first = [answer]
    with pytest.raises(StageFailed, match=message):
        post(fake)


def test_no_server_and_no_https_end_in_an_error(fake: FakeGitHub) -> None:
    fake.server.server_close()
    with pytest.raises(StageFailed, match=r"no answer from 127\.0\.0\.1"):
        post(fake)
    with pytest.raises(StageFailed, match="GITHUB_API_URL"):
        GitHub("http://api.example.org", "o/r", TOKEN)


def event_file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(content))
    return path


def test_the_event_says_which_commit_and_whether_of_a_fork(tmp_path: Path) -> None:
    ours, theirs = {"full_name": "o/r"}, {"full_name": "x/r"}
    pull: dict[str, Any] = {"head": {"sha": HEAD, "repo": theirs}, "base": {"repo": ours}}
    assert read_event(event_file(tmp_path, {"pull_request": pull})) == FORK
    pull["head"]["repo"] = ours
    assert read_event(event_file(tmp_path, {"pull_request": pull})) == OURS
    pull["head"]["repo"] = None  # the fork has been deleted
    assert read_event(event_file(tmp_path, {"pull_request": pull})) == FORK
    run = {"head_sha": HEAD, "head_repository": theirs}
    assert read_event(event_file(tmp_path, {"workflow_run": run, "repository": ours})) == FORK
    others: list[Any] = [{"ref": "refs/heads/main"}, [], "push"]
    for other in others:
        with pytest.raises(StageFailed, match="no event of a pull request"):
            read_event(event_file(tmp_path, other))


def test_the_command_posts_what_the_environment_names(
    fake: FakeGitHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = {"head_sha": HEAD, "head_repository": {"full_name": "o/r"}}
    event = event_file(tmp_path, {"workflow_run": run, "repository": {"full_name": "o/r"}})
    file = tmp_path / "note.json"
    file.write_text(note().model_dump_json())
    settings = {"TOKEN": TOKEN, "REPOSITORY": "o/r", "API_URL": fake.url, "EVENT_PATH": str(event)}
    for name, value in settings.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert main(["comment", "post", str(file)]) == 0
    assert capsys.readouterr().out == "created https://github.com/o/r/pull/7#1\n"
    monkeypatch.delenv("GITHUB_TOKEN")
    assert main(["comment", "post", str(file)]) == 1
    assert "GITHUB_TOKEN: not set" in capsys.readouterr().err
    assert main(["comment", "post", str(tmp_path / "none.json")]) == 1
    assert "none.json: missing" in capsys.readouterr().err
    file.write_text('{"pull_request": 7}')
    assert main(["comment", "post", str(file)]) == 1
    assert "not a note" in capsys.readouterr().err
