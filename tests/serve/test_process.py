"""Connections and signals: slow clients, closed connections, a clean stop."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from eve_vl.serve import server
from eve_vl.serve.application import application
from eve_vl.serve.computing_thread import Job
from eve_vl.serve.limits import MB, Limits
from eve_vl.serve.server import Server, listening, settings
from eve_vl.utils.errors import UserError
from helpers.serving import (  # noqa: F401
    ONE,
    VQA,
    served_folder,
    served_index,
    served_runs,
    text_of,
)


def test_the_command_says_what_it_lacks(eve, folder, monkeypatch):
    monkeypatch.delenv("EVE_TOKEN", raising=False)
    run = folder / "runs" / "retrieval"
    for args, message in (
        ((), "name run folders to serve, or an --index"),
        ((run, "--host", "0.0.0.0"), "other machines can reach it; give a --token"),
        ((run, "--token", ""), "--token: is empty, which would let everybody in"),
        ((run, "--token", "schlüssel"), "--token: a header cannot carry it"),
        ((run, "--queue", "0"), "--queue: 0 was given, expected more than 0"),
        ((run, "--port", "70000"), "is no port, expected 0 to 65535"),
    ):
        found = eve("serve", "--port", "0", *args)
        assert (found.returncode, found.stderr.count("\n"), message in found.stderr) == (
            2,
            1,
            True,
        ), found.stderr
    monkeypatch.setenv("EVE_TOKEN", "")
    assert "EVE_TOKEN: is empty" in eve("serve", "--port", "0", run).stderr


def test_without_a_port_the_next_free_one_is_taken(eve, monkeypatch):
    """A port that was given is not replaced, and a missing index is named before the port."""
    with listening("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setattr(server, "PORT", port)
        with listening("127.0.0.1", None) as other:
            assert port < other.getsockname()[1] < port + server.NUM_PORTS
        with pytest.raises(UserError, match=f"--port {port}: cannot listen"):
            listening("127.0.0.1", port)
        done = eve("app", "--index", "missing.index", "--port", port)
    assert (
        done.stderr.startswith("eve: missing.index: no such index; ")
        and done.stderr.count("\n") == 1
    )


def test_the_root_of_a_server_without_a_page_names_its_description(runs):
    answer = TestClient(application([runs["vqa"]]), base_url="http://localhost").get("/")
    assert answer.status_code == 200 and "/openapi.json" in answer.text


@contextlib.contextmanager
def listening_server(app: Any) -> Iterator[tuple[Any, int]]:
    """A server that answers sockets, in a thread."""
    with listening("127.0.0.1", 0) as listener:
        server: Any = Server(settings(app))
        server.thread = threading.Thread(target=server.run, args=([listener],))
        server.thread.start()
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            server.thread.join()


def asked(
    port: int, body: bytes, sockets: contextlib.ExitStack, part: int | None = None
) -> socket.socket:
    """A connection over which vqa's answer was asked for. part: bytes of the body that are sent, if not all."""
    connection = sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
    head = f"POST {VQA} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:part])
    return connection


def until(is_so: Callable[[], object]) -> None:
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < 60
        time.sleep(0.01)


QUESTION = json.dumps({"image": text_of(ONE), "question": "what"}).encode()


def test_what_is_hung_up_on_is_not_computed(runs):
    app, go, body = application([runs["vqa"]]), threading.Event(), QUESTION
    with contextlib.ExitStack() as sockets, listening_server(app) as (_, port):
        until(lambda: app.state.service.compute.is_alive())
        app.state.service.compute.submit(Job(compute=lambda given: [go.wait(60)], arguments=None))
        waiting = [asked(port, body, sockets) for _ in range(3)]
        until(lambda: len(app.state.service.compute) == 3)
        waiting[1].close()
        until(lambda: len(app.state.service.compute) == 2)
        until(lambda: app.state.service.reservations.num_requests == 2)
        go.set()


def test_who_sends_too_much_is_told_so(runs):
    """The rest of the body is read: a connection that closes before would be reset, and its answer lost."""
    body = b" " * (8 * MB)
    with contextlib.ExitStack() as sockets:
        _, port = sockets.enter_context(
            listening_server(application([runs["vqa"]], limits=Limits(body_mb=1)))
        )
        answer = read_all(asked(port, body, sockets))
    assert answer.split()[1] == "413"


def test_sigterm_loses_no_request_that_has_begun(eve_fork, folder, index):
    """Ten bodies have half arrived when the signal comes: their other halves are read, and all are answered."""
    process = eve_fork("serve", "--index", folder / "index", "--port", "0")
    with contextlib.ExitStack() as sockets:
        try:
            said = process.console / "stdout"
            until(lambda: said.exists() and "\n" in said.read_text())
            port = int(re.findall(r":(\d+) ", said.read_text())[0])
            body = json.dumps({"query": "a red circle"}).encode()
            head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            begun = [
                sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
                for _ in range(10)
            ]
            for connection in begun:
                connection.sendall(
                    f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:9]
                )
            until(lambda: f"eve_held_bytes {90.0}" in got(port, "/metrics"))
            process.send_signal(signal.SIGTERM)
            until(lambda: not is_listening(port))
            for connection in begun:
                connection.sendall(body[9:])
            answers = [read_all(connection) for connection in begun]
            process.communicate()
            assert process.returncode == 0
        finally:
            process.process.kill()
    assert [answer.splitlines()[0] for answer in answers] == ["HTTP/1.1 200 OK"] * 10
    assert all('"hits":[{' in answer for answer in answers)


def test_a_second_signal_ends_at_once(runs):
    app, go = application([runs["vqa"]]), threading.Event()
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        until(lambda: app.state.service.compute.is_alive())
        app.state.service.compute.submit(Job(compute=lambda given: [go.wait(60)], arguments=None))
        asked(port, QUESTION, sockets)
        until(lambda: len(app.state.service.compute) == 1)
        server.handle_exit(signal.SIGINT, None)
        server.handle_exit(signal.SIGINT, None)
        server.thread.join(20)
        assert not server.thread.is_alive()
        go.set()


def test_headers_have_an_end(runs):
    with (
        contextlib.ExitStack() as sockets,
        listening_server(application([runs["vqa"]])) as (_, port),
    ):
        connection = sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 11_000)
        assert connection.recv(12) == b"HTTP/1.1 400"


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 60).close()
    except OSError:
        return False
    return True


def got(port: int, path: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        return read_all(connection)


def read_all(connection: socket.socket) -> str:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data.decode()
