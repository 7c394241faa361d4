"""The API as its users meet it: answers, refusals with a remedy, and what it never lets in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from pilltrack.core.decide import RESERVE
from pilltrack.core.errors import InputRejected
from pilltrack.edge.app import create_app
from pilltrack.edge.guard import COOKIE
from pilltrack.edge.service import Service
from pilltrack.edge.settings import Settings
from tests.edge.conftest import BASE, noise, png, red
from tests.tiny_bundle import tiny_bundle

LIVE = "ws://127.0.0.1:8000/api/v1/live"
TOKEN = "correct horse battery staple"
PROBLEM = "application/problem+json"
Opened = Callable[..., TestClient]


def test_an_enrolled_pill_is_named(client: TestClient) -> None:
    answer = identify(client, png(red()), crop=True)
    [pill] = answer["pills"]
    assert (pill["decision"], pill["pill"], pill["box"]) == ("known", "red-pill", [0, 0, 40, 40])
    assert (answer["width"], answer["height"]) == (40, 40)
    assert set(answer["ms"]) == {"decode", "locate", "identify"}


def test_a_pill_is_enrolled_recognised_shown_and_forgotten(client: TestClient) -> None:
    assert identify(client, png(noise()))["pills"][0]["decision"] == "unknown"
    answer = enrol(client, "my pill", png(noise()))
    assert (answer.status_code, answer.json()) == (
        201, {"pill": "my pill", "references": 1, "new": 1, "overridden": 2},
    )  # fmt: skip
    best = identify(client, png(noise()))["pills"][0]["candidates"][0]
    assert best["pill"] == "my pill"
    [pill] = [p for p in client.get("/api/v1/gallery").json()["pills"] if p["pill"] == "my pill"]
    assert (pill["references"], pill["local"], len(pill["photos"])) == (1, 1, 1)
    assert client.get("/api/v1/gallery/my pill").json() == pill
    picture = client.get(pill["photos"][0])
    assert picture.headers["content-type"] == "image/png"
    assert client.delete("/api/v1/gallery/my pill").json() == {"removed": 1}
    assert client.delete("/api/v1/gallery/my pill").status_code == 404
    assert client.get(pill["photos"][0]).status_code == 404
    names = [c["pill"] for c in identify(client, png(noise()))["pills"][0]["candidates"]]
    assert names == ["red-pill"]


@pytest.mark.parametrize("name", ["hydrocodone/APAP 5/325", "a/", "50 % / ü"])
def test_a_pill_with_a_slash_in_its_name_is_found_and_forgotten(
    client: TestClient, name: str
) -> None:
    assert enrol(client, name, png(noise())).status_code == 201
    address = f"/api/v1/gallery/{quote(name, safe='')}"
    assert client.get(address).json()["pill"] == name
    assert client.delete(address).json() == {"removed": 1}
    assert client.get(address).status_code == 404


def test_what_was_enrolled_is_there_after_a_restart(opened: Opened) -> None:
    assert enrol(opened(), "kept", png(noise())).status_code == 201
    pills = [pill["pill"] for pill in opened().get("/api/v1/gallery").json()["pills"]]
    assert pills == ["kept", "red-pill"]


def test_forgetting_a_pill_of_the_bundle_is_refused(client: TestClient) -> None:
    assert client.delete("/api/v1/gallery/red-pill").status_code == 404
    assert identify(client, png(red()), crop=True)["pills"][0]["pill"] == "red-pill"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 422, "image.png"),
        (b"no image", 422, "image.png"),
        (png(red())[:60], 422, "image.png"),
    ],
)
def test_an_unreadable_photo_is_a_problem_with_a_remedy(
    client: TestClient, content: bytes, status: int, words: str
) -> None:
    answer = client.post("/api/v1/identify", files={"image": ("image.png", content)})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert words in problem["detail"]
    assert problem["remedy"]
    assert problem["status"] == status


@pytest.mark.parametrize(
    "form",
    [{}, {"name": ""}, {"name": "x" * 201}, {"name": "two\nlines"}, {"name": "x", "side": "top"}],
)
def test_impossible_enrolments_are_refused(client: TestClient, form: dict[str, str]) -> None:
    files = [("photos", ("1.png", png(noise())))]
    answer = client.post("/api/v1/gallery", data=form, files=files)
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert [pill["pill"] for pill in client.get("/api/v1/gallery").json()["pills"]] == ["red-pill"]


def test_unknown_addresses_are_problems_too(client: TestClient) -> None:
    for path in ("/api/v1/gallery/nobody", "/api/v1/nothing", "/nothing.html"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_live_pictures_are_answered_with_tracked_pills(client: TestClient) -> None:
    with client.websocket_connect(LIVE) as socket:
        kinds = []
        for number in range(1, 6):
            socket.send_bytes(png(noise()))
            answer = socket.receive_json()
            [pill] = answer["pills"]
            kinds.append(pill["decision"])
            assert (answer["frame"], pill["track"]) == (number, 1)
        assert kinds == ["checking"] * 3 + ["unknown"] * 2
        socket.send_bytes(b"no picture")
        assert "live frame" in socket.receive_json()["error"]
        socket.send_bytes(png(noise()))
        assert socket.receive_json()["pills"]
    assert client.get("/api/v1/status").json()["frames"] == 6


def test_status_gives_the_threshold_for_as_many_pills_as_are_enrolled(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, "red-pill", red(), alone=0.5)
    settings = Settings(bundle=bundle, home=tmp_path / "home")
    app = create_app(Service(bundle, settings.home, threads=1), settings)
    with TestClient(app, base_url=BASE) as client:
        assert client.get("/api/v1/status").json()["threshold"] == 0.5
        enrol(client, "my pill", png(noise()))
        status = client.get("/api/v1/status").json()
    assert (status["pills"], status["threshold"]) == (2, 0.99)
    assert status["calibrated_for_pills"] == RESERVE + 1


def test_a_device_without_a_camera_says_so(client: TestClient) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        client.websocket_connect(f"{LIVE}?source=device") as socket,
    ):
        socket.receive_json()
    assert "no camera" in closed.value.reason


def test_metrics_count_what_was_seen(client: TestClient) -> None:
    identify(client, png(red()), crop=True)
    identify(client, png(noise()))
    lines = client.get("/metrics").text.splitlines()
    assert 'pilltrack_pills_total{decision="known"} 1.0' in lines
    assert 'pilltrack_pills_total{decision="unknown"} 1.0' in lines
    assert "pilltrack_references 1.0" in lines
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["bundle"] == "tiny"


def test_a_large_request_is_refused_announced_or_not(opened: Opened) -> None:
    client = opened(max_upload_bytes=1000)
    large = client.post("/api/v1/identify", files={"image": ("a.png", b"x" * 2000)})
    assert large.status_code == 413

    def pieces() -> object:
        for _ in range(20):
            yield b"x" * 100

    kind = {"content-type": "multipart/form-data; boundary=b"}
    trickled = client.post("/api/v1/identify", content=pieces(), headers=kind)  # type: ignore[arg-type]
    assert trickled.status_code == 413
    assert "1000 bytes" in trickled.json()["detail"]


def test_more_looks_at_once_than_allowed_are_told_to_wait(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilltrack.edge import service

    client = opened(max_waiting=1)
    inside, go_on = threading.Event(), threading.Event()
    look = service.Service.look

    def slow(self: service.Service, *rest: object, **more: object) -> service.Look:
        inside.set()
        go_on.wait(10)
        return look(self, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(service.Service, "look", slow)
    codes = []
    first = threading.Thread(
        target=lambda: codes.append(
            client.post("/api/v1/identify", files={"image": ("a.png", png(red()))}).status_code
        )
    )
    first.start()
    assert inside.wait(10)
    second = client.post("/api/v1/identify", files={"image": ("a.png", png(red()))})
    go_on.set()
    first.join()
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert codes == [200]
    assert (
        client.post("/api/v1/identify", files={"image": ("a.png", png(red()))}).status_code == 200
    )


def test_one_client_cannot_ask_without_end(opened: Opened) -> None:
    client = opened(burst=5, requests_per_s=0.001)
    assert [client.get("/healthz").status_code for _ in range(7)] == [200] * 5 + [429] * 2


def test_other_hosts_and_foreign_pages_are_refused(client: TestClient) -> None:
    assert client.get("/api/v1/status", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/v1/status", headers={"host": "localhost:8000"}).status_code == 200
    foreign = {"origin": "http://evil.example"}
    assert client.delete("/api/v1/gallery/red-pill", headers=foreign).status_code == 403
    assert client.get("/api/v1/status", headers=foreign).status_code == 200
    own = {"origin": "http://127.0.0.1:8000"}
    assert client.delete("/api/v1/gallery/nobody", headers=own).status_code == 404
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(LIVE, headers=foreign),
    ):
        pass


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for file in (Path(__file__).parents[2] / "src/pilltrack/edge/static").rglob("*.*"):
        words = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in words, file
        assert "https://" not in words, file


def test_others_need_the_token(opened: Opened) -> None:
    client = opened(host="0.0.0.0", token=TOKEN)
    assert client.get("/healthz").status_code == 200
    assert client.get("/").status_code == 200  # the page asks for the token
    refused = client.get("/api/v1/status")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    for wrong in ("", TOKEN[:-1], TOKEN + "x"):
        headers = {"authorization": f"Bearer {wrong}"}
        assert client.get("/api/v1/status", headers=headers).status_code == 401
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/api/v1/status", headers=headers).status_code == 200
    assert client.get("/metrics").status_code == 401
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE):
        pass


def test_signing_in_leaves_a_cookie_that_is_not_the_token(opened: Opened) -> None:
    client = opened(host="0.0.0.0", token=TOKEN)
    assert client.post("/api/v1/session", data={"token": "guess"}).status_code == 401
    answer = client.post("/api/v1/session", data={"token": TOKEN})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert COOKIE in client.cookies
    assert client.get("/api/v1/status").status_code == 200


@pytest.mark.parametrize("token", ["", "short"])
def test_an_address_others_can_reach_needs_a_long_token(token: str, bundle: Path) -> None:
    with pytest.raises(InputRejected, match="PILLTRACK_TOKEN"):
        Settings(bundle=bundle, home=bundle, host="192.168.1.20", token=token)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert Settings(bundle=bundle, home=bundle, host=host).is_loopback


def enrol(client: TestClient, pill: str, photo: bytes) -> Any:
    """One photo that a pill fills, so that it is clipped, and no photo of another side."""
    form = {"name": pill, "override_reason": "drawn by a test"}
    return client.post("/api/v1/gallery", data=form, files=[("photos", ("1.png", photo))])


def identify(client: TestClient, photo: bytes, *, crop: bool = False) -> Any:
    address = f"/api/v1/identify?crop={str(crop).lower()}"
    answer = client.post(address, files={"image": ("image.png", photo)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_tray_is_checked_recorded_confirmed_and_shown(client: TestClient) -> None:
    answer = client.post(
        "/api/v1/check", data={"expected": "1 red-pill"}, files={"image": ("t.png", png(noise()))}
    ).json()
    assert answer["ok"] is False
    assert [(line["verdict"], line["pill"]) for line in answer["lines"]] == [
        ("missing", "red-pill"), ("unknown", None),
    ]  # fmt: skip
    number = answer["number"]
    acted = client.post(
        f"/api/v1/history/{number}/actions", data={"action": "rejected", "note": "wrong tray"}
    )
    assert acted.status_code == 201
    [record] = client.get("/api/v1/history").json()["records"]
    assert (record["number"], record["ok"]) == (number, False)
    assert record["expected"] == [{"pill": "red-pill", "count": 1}]
    assert [(a["action"], a["note"]) for a in record["actions"]] == [("rejected", "wrong tray")]
    [crop] = record["crops"]
    assert client.get(crop).headers["content-type"] == "image/png"
    assert client.get(f"/api/v1/history?before={number}").json()["records"] == []


@pytest.mark.parametrize("expected", ["", "2 nobody", "0 red-pill", '{"resourceType": "Patient"}'])
def test_a_list_that_cannot_be_is_refused_with_a_remedy(client: TestClient, expected: str) -> None:
    answer = client.post(
        "/api/v1/check", data={"expected": expected}, files={"image": ("t.png", png(red()))}
    )
    assert answer.status_code == 422
    assert answer.json()["remedy"]
    assert client.get("/api/v1/history").json() == {"records": []}


def test_an_action_needs_a_decision(client: TestClient) -> None:
    answer = client.post("/api/v1/history/7/actions", data={"action": "confirmed"})
    assert (answer.status_code, answer.json()["detail"]) == (404, "decision 7 is not on record")


@pytest.mark.parametrize("name", ["nobody", " ", "x" * 300, "\x91"])
def test_forgetting_what_is_not_there_says_so(client: TestClient, name: str) -> None:
    assert client.delete(f"/api/v1/gallery/{name}").status_code == 404
    assert enrol(client, "my pill", png(noise())).status_code == 201
    assert client.delete(f"/api/v1/gallery/{name}").status_code == 404


def test_pictures_that_are_not_there_are_not_found(client: TestClient) -> None:
    for before in (True, False):
        for kind in ("crops", "photos"):
            answer = client.get(f"/api/v1/{kind}/{'0' * 64}.png")
            assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM), before
        files = {"image": ("t.png", png(noise()))}
        client.post("/api/v1/check", data={"expected": "1 red-pill"}, files=files)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/v1/check", "POST"),
        ("PATCH", "/api/v1/gallery", "GET, POST"),
        ("POST", "/api/v1/gallery/nobody", "DELETE, GET"),
        ("POST", "/style.css", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_there_are(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (405, PROBLEM)
    assert answer.headers["allow"] == allowed


def test_a_mistake_of_the_program_is_a_problem_too(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "pills", lambda _: 1 // 0)
    settings = Settings(bundle=bundle, home=tmp_path / "home")
    app = create_app(Service(bundle, settings.home, threads=1), settings)
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        answer = client.get("/api/v1/gallery")
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert "content-security-policy" in answer.headers
    assert answer.json()["remedy"]


def test_problems_are_described_as_they_are_sent(client: TestClient) -> None:
    for _ in range(2):
        document = client.get("/openapi.json").json()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                answers = operation["responses"]
                assert {"401", "421", "429", "500"} <= set(answers), path
                for code, answer in answers.items():
                    assert (list(answer.get("content", {})) == [PROBLEM]) == (code >= "400")


def test_sockets_elsewhere_are_refused(client: TestClient) -> None:
    for path in ("ws://127.0.0.1:8000/", "ws://127.0.0.1:8000/js/main.js"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(path):
            pass
