"""The server process: its command, its port, connections, and a clean stop."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI

from eve_vl.eve import Eve
from eve_vl.serve import server
from eve_vl.serve.application import application
from eve_vl.serve.computing_thread import QueuedCall
from eve_vl.serve.limits import MB, Limits
from eve_vl.serve.server import Server, listening, settings
from eve_vl.utils.errors import UserError
from helpers.serving import QUESTION, VQA

BODY = json.dumps(QUESTION).encode()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name run folders to serve, or an --index"),
        (("RUN", "--host", "0.0.0.0"), "other machines can reach it; give a --token"),
        (("RUN", "--token", ""), "--token: is empty, which would let everybody in"),
        (("RUN", "--token", "schlüssel"), "--token: a header cannot carry it"),
        (("RUN",), "EVE_TOKEN: is empty"),
        (("RUN", "--queue", "0"), "--queue: 0 was given, expected more than 0"),
        (("RUN", "--port", "70000"), "is no port, expected 0 to 65535"),
    ],
)
def test_mistake_is_one_line(eve, folder, monkeypatch, args, message):
    monkeypatch.delenv("EVE_TOKEN", raising=False)
    if message.startswith("EVE_TOKEN"):
        monkeypatch.setenv("EVE_TOKEN", "")
    run = folder / "runs" / "retrieval"
    words = [run if word == "RUN" else word for word in args]
    done = eve("serve", "--port", "0", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_next_free_port_is_taken_unless_one_was_given(eve, monkeypatch):
    """A missing index is named before the port."""
    with listening("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setattr(server, "PORT", port)
        with listening("127.0.0.1", None) as listener:
            assert port < listener.getsockname()[1] < port + server.NUM_PORTS
        with pytest.raises(UserError, match=f"--port {port}: cannot listen"):
            listening("127.0.0.1", port)
        done = eve("serve", "--index", "missing.index", "--port", port)
    assert done.stderr.startswith("eve: missing.index: no such index; ")
    assert done.stderr.count("\n") == 1


@dataclass
class RunningServer:
    """A server in a thread, and connections to it."""

    app: FastAPI
    server: Server
    thread: threading.Thread
    port: int
    connections: contextlib.ExitStack

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), 60)
        return self.connections.enter_context(connection)

    def ask(self, body: bytes) -> socket.socket:
        """Return a connection over which a question was asked."""
        connection = self.connect()
        connection.sendall(post_head(VQA, body) + body)
        return connection

    def block(self) -> threading.Event:
        """Let the computing thread wait for the event that is returned."""
        compute = self.app.state.service.compute
        wait_until(compute.is_alive)
        go = threading.Event()
        compute.submit(QueuedCall(compute=lambda _: [go.wait(60)], arguments=None))
        return go


@contextlib.contextmanager
def running(run: Eve, limits: Limits | None = None) -> Iterator[RunningServer]:
    app = application([run], limits=limits)
    with contextlib.ExitStack() as connections, listening("127.0.0.1", 0) as listener:
        server = Server(settings(app))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            port = listener.getsockname()[1]
            yield RunningServer(app, server, thread, port, connections)
        finally:
            server.should_exit = True
            server.force_exit = True
            thread.join()


def post_head(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode()


def read_all(connection: socket.socket) -> str:
    with connection.makefile("rb") as file:
        return file.read().decode()


def wait_until(condition: Callable[[], Any]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 60
        time.sleep(0.01)


def test_request_of_a_client_that_has_gone_is_not_computed(runs):
    with running(runs["vqa"]) as running_server:
        service = running_server.app.state.service
        go = running_server.block()
        waiting = [running_server.ask(BODY) for _ in range(3)]
        wait_until(lambda: len(service.compute) == 3)
        waiting[1].close()
        wait_until(lambda: len(service.compute) == 2)
        wait_until(lambda: service.reservations.num_requests == 2)
        go.set()


def test_client_that_sends_too_much_gets_the_answer(runs):
    """A connection that closes before the end of the body would be reset, and its answer lost."""
    with running(runs["vqa"], Limits(body_mb=1)) as running_server:
        answer = read_all(running_server.ask(b" " * (8 * MB)))
    assert answer.split()[1] == "413"


def test_second_signal_ends_at_once(runs):
    with running(runs["vqa"]) as running_server:
        go = running_server.block()
        running_server.ask(BODY)
        wait_until(lambda: len(running_server.app.state.service.compute) == 1)
        for _ in range(2):
            running_server.server.handle_exit(signal.SIGINT, None)
        running_server.thread.join(20)
        assert not running_server.thread.is_alive()
        go.set()


def test_endless_headers_are_refused(runs):
    with running(runs["vqa"]) as running_server:
        connection = running_server.connect()
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 11_000)
        assert connection.recv(12) == b"HTTP/1.1 400"


def get(port: int, path: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        return read_all(connection)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 60).close()
    except OSError:
        return False
    return True


def test_sigterm_loses_no_request_that_has_begun(eve_fork, folder, index):
    """Ten bodies have half arrived when the signal comes: all are read to the end and answered."""
    process = eve_fork("serve", "--index", folder / "index", "--port", "0")
    body = json.dumps({"query": "a red circle"}).encode()
    with contextlib.ExitStack() as connections:
        try:
            output = process.console / "stdout"
            wait_until(lambda: output.exists() and "\n" in output.read_text())
            port = int(re.findall(r":(\d+) ", output.read_text())[0])
            begun = []
            for _ in range(10):
                connection = socket.create_connection(("127.0.0.1", port), 60)
                begun.append(connections.enter_context(connection))
                connection.sendall(post_head("/v1/search", body) + body[:9])
            wait_until(lambda: "eve_held_bytes 90.0" in get(port, "/metrics"))
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_listening(port))
            for connection in begun:
                connection.sendall(body[9:])
            answers = [read_all(connection) for connection in begun]
            process.communicate()
            assert process.returncode == 0
        finally:
            process.process.kill()
    for answer in answers:
        assert answer.startswith("HTTP/1.1 200 OK")
        assert '"hits":[{' in answer
