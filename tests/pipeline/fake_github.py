"""A local server that speaks as much of GitHub's API as a comment needs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pilltrack.pipeline.comment import MAX_CHARACTERS

BOT = "github-actions[bot]"
TOKEN = "ghs_test"
Answer = tuple[int, dict[str, str], Any]
DENIED: Answer = (403, {}, {"message": "Resource not accessible by integration"})


@contextmanager
def serving_github(head: str) -> Iterator[FakeGitHub]:
    """Serve repository o/r, in which `head` is the newest commit of pull request 7."""
    fake = FakeGitHub(head)
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


class FakeGitHub:
    """Repository o/r with pull request 7, its comments, and answers to give first."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.comments: list[dict[str, Any]] = []
        self.first: list[Answer] = []  # given before anything else, in this order
        self.deny_writes = False
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def comment(self, body: str, login: str = BOT) -> None:
        number = len(self.comments) + 1
        self.comments.append({"id": number, "body": body, "user": {"login": login}})

    def bodies(self) -> list[str]:
        return [comment["body"] for comment in self.comments]

    def answer(self, method: str, path: str, token: str, content: Any) -> Answer:
        self.requests.append(f"{method} {path}")
        if self.first:
            return self.first.pop(0)
        if token != f"Bearer {TOKEN}":
            return 401, {}, {"message": "Bad credentials"}
        parts = urlsplit(path)
        if method == "GET" and parts.path == "/repos/o/r/pulls/7":
            return 200, {}, {"head": {"sha": self.head}}
        if method == "GET" and parts.path == "/repos/o/r/issues/7/comments":
            query = {key: int(value[0]) for key, value in parse_qs(parts.query).items()}
            start = (query["page"] - 1) * query["per_page"]
            return 200, {}, self.comments[start : start + query["per_page"]]
        if self.deny_writes and method in ("POST", "PATCH"):
            return DENIED
        if method == "POST" and parts.path == "/repos/o/r/issues/7/comments":
            if len(content["body"]) > MAX_CHARACTERS:
                return 422, {}, {"message": "body is too long"}
            self.comment(content["body"])
            return 201, {}, {"html_url": f"https://github.com/o/r/pull/7#{len(self.comments)}"}
        found = re.fullmatch(r"/repos/o/r/issues/comments/(\d+)", parts.path)
        if method == "PATCH" and found:
            self.comments[int(found[1]) - 1]["body"] = content["body"]
            return 200, {}, {"html_url": f"https://github.com/o/r/pull/7#{found[1]}"}
        return 404, {}, {"message": "Not Found"}

    def _handler(fake) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - self is the handler's
        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                content = json.loads(self.rfile.read(length)) if length else None
                token = self.headers.get("Authorization", "")
                status, headers, answer = fake.answer(self.command, self.path, token, content)
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = _reply  # noqa: N815 - names of http.server

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
