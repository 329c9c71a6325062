"""Requests without the token or for another host are refused, and no client learns a path."""

import asyncio
import logging
from typing import Any

import pytest

from eve_vl.serve.admission import AdmissionMiddleware
from eve_vl.serve.limits import Limits
from eve_vl.serve.metrics import Metrics
from eve_vl.serve.public_names import distinct, without_paths
from eve_vl.serve.reservations import Reservations
from eve_vl.serve.server import settings
from helpers.serving import serving


def test_token_opens_all_but_the_page(runs):
    bearer = {"authorization": "Bearer sesame"}
    with serving(runs["vqa"], token="sesame", with_page=True) as client:
        for path in ("/v1/runs", "/metrics", "/openapi.json", "/other"):
            assert client.get(path).status_code == 401
            wrong = {"authorization": "Bearer sesamE"}
            assert client.get(path, headers=wrong).status_code == 401
            status = 404 if path == "/other" else 200
            assert client.get(path, headers=bearer).status_code == status
        lower_case = {"authorization": "bearer sesame"}  # RFC 9110: in any case
        assert client.get("/v1/runs", headers=lower_case).status_code == 200
        basic = {"authorization": "Basic sesame"}
        assert client.get("/v1/runs", headers=basic).status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.head("/healthz").status_code == 200
        assert client.get("/").text.startswith("<!doctype html>")
        host = {**bearer, "host": "example.org"}
        assert client.get("/v1/runs", headers=host).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("LocalHost", 200),
        ("[::1]:1", 200),
        ("127.0.0.2:1", 200),
        ("example.org", 400),
        ("127.0.0.1.example.org", 400),
    ],
)
def test_without_a_token_only_this_machine_is_answered(client, host, status):
    """Or a page of another site could let its own name mean this machine."""
    assert client.get("/v1/runs", headers={"host": host}).status_code == status


def test_refused_request_is_read_to_its_end():
    """To close a connection before would lose the answer."""
    events: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the request is refused")

    async def receive() -> dict[str, Any]:
        events.append("part")
        return {"type": "http.request", "body": b"a" * 1000, "more_body": len(events) < 5}

    async def send(message: Any) -> None:
        events.append(message.get("status", "body"))

    metrics = Metrics(Reservations(Limits()))
    admission = AdmissionMiddleware(app, metrics, 20.0, "token", ())
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(admission(scope, receive, send))
    assert events == ["part"] * 5 + [401, "body"]


@pytest.mark.parametrize("part", ["bytes=5-1", "--5", "bytes=0-3"])
def test_page_is_sent_whole(runs, part):
    with serving(runs["vqa"], with_page=True) as client:
        answer = client.get("/", headers={"range": part})
        assert (answer.status_code, answer.content) == (200, client.get("/").content)


def test_log_does_not_advise_to_install_websockets(client):
    settings(client.app)
    message = "No supported WebSocket library detected."
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, message, None, None)
    assert not logging.getLogger("uvicorn.error").filter(record)


@pytest.mark.parametrize(
    ("message", "names", "expected"),
    [
        ("/a/b/run: lacks /x/y z.png (/a/b/c)", {"/a/b": "b"}, "b/run: lacks y z.png (b/c)"),
        ("a red/blue 1/2 ~/x/y and /", {}, "a red/blue 1/2 y and /"),
        ("/a/bc, and b/c/d", {"/a/b": "b", "b/c": "B"}, "bc, and B/d"),
        ("a run in . of /srv/my photos/x y.jpg", {"a": "A", ".": "i"}, "a run in . of x y.jpg"),
    ],
)
def test_paths_in_messages_become_names(message, names, expected):
    assert without_paths(message, names) == expected


def test_repeated_names_are_numbered():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]


def test_answers_hold_no_paths_of_the_server(client, index, folder, caplog):
    path = folder / "photos" / "new" / "05.png"
    (image,) = [hit for hit in index.search("red", top=7) if hit.name == str(path)]
    path.rename(folder / "gone.png")
    answer = client.get(f"/v1/images/{image.id}")
    (folder / "gone.png").rename(path)
    assert answer.status_code == 404
    problem = f"image {image.id} cannot be shown; the server's log says why"
    assert answer.json() == {"error": problem}
    assert str(path) in caplog.text
    for url in ("/v1/runs", "/openapi.json", "/metrics"):
        assert str(folder) not in client.get(url).text
