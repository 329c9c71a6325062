"""Requests without the token or for another host are refused, and no client learns a path."""

import asyncio
from typing import Any

import pytest

from eve_vl.serve.admission import AdmissionMiddleware
from eve_vl.serve.limits import Limits
from eve_vl.serve.metrics import Metrics
from eve_vl.serve.public_names import distinct, without_paths
from eve_vl.serve.reservations import Reservations
from helpers.serving import serving


def test_token_opens_all_but_the_page(runs):
    bearer = {"authorization": "Bearer sesame"}
    with serving(runs["vqa"], token="sesame", with_page=True) as client:
        for path, status in (
            ("/v1/runs", 200),
            ("/metrics", 200),
            ("/openapi.json", 200),
            ("/other", 404),
        ):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=bearer).status_code == status
        for authorization, status in (
            ("bearer sesame", 200),  # RFC 9110: in any case
            ("Bearer sesamE", 401),
            ("Basic sesame", 401),
        ):
            headers = {"authorization": authorization}
            assert client.get("/v1/runs", headers=headers).status_code == status
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.head("/healthz").status_code == 200
        page = client.get("/")
        assert page.text.startswith("<!doctype html>")
        part = client.get("/", headers={"range": "bytes=5-1"})
        assert (part.status_code, part.content) == (200, page.content)
        host = {**bearer, "host": "example.org"}
        assert client.get("/v1/runs", headers=host).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("LocalHost", 200),
        ("[::1]:1", 200),
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
        return {
            "type": "http.request",
            "body": b"a" * 1000,
            "more_body": len(events) < 5,
        }

    async def send(message: Any) -> None:
        events.append(message.get("status", "body"))

    metrics = Metrics(Reservations(Limits()))
    admission = AdmissionMiddleware(app, metrics, 20.0, "token", ())
    scope = {
        "type": "http",
        "path": "/",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(admission(scope, receive, send))
    assert events == ["part"] * 5 + [401, "body"]


def test_a_slow_client_is_answered_and_may_then_send_the_rest():
    """The end of an answer closes the connection; a client that still sends would not see it."""
    events: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the request is refused")

    async def ask() -> None:
        is_answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await is_answered.wait()
            events.append("part")
            return {
                "type": "http.request",
                "body": b"a",
                "more_body": events.count("part") < 3,
            }

        async def send(message: Any) -> None:
            events.append(message.get("status") or bool(message.get("more_body")))
            if b"token" in message.get("body", b""):
                is_answered.set()

        metrics = Metrics(Reservations(Limits()))
        admission = AdmissionMiddleware(app, metrics, 0.05, "token", ())
        await admission(
            {
                "type": "http",
                "path": "/",
                "headers": [],
            },
            receive,
            send,
        )

    asyncio.run(ask())
    assert events == [401, True, "part", "part", "part", False]


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
