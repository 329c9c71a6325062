"""Connections and signals: who is slow, who hangs up, and how the server ends."""

import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from serving import (  # noqa: F401
    ONE,
    VQA,
    served_folder,
    served_index,
    served_runs,
    silent,
    text_of,
)

from eve_vl.serve import server as server_module
from eve_vl.serve.app import application
from eve_vl.serve.batching import Job
from eve_vl.serve.limits import DECODERS, MB, Limits
from eve_vl.serve.server import Server, listening, settings


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
        assert (found.returncode, found.stderr.count("\n"), message in found.stderr) == (2, 1, True), found.stderr
    monkeypatch.setenv("EVE_TOKEN", "")
    assert "EVE_TOKEN: is empty" in eve("serve", "--port", "0", run).stderr


class Quiet(asyncio.Transport):
    """A connection whose client takes what it likes."""

    left = 0
    end = ""

    def is_closing(self) -> bool:
        return bool(self.end)

    def get_write_buffer_size(self) -> int:
        return self.left

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = "aborted"


@dataclass(eq=False)
class Cycle:
    """A request."""

    response_complete: bool = True


@dataclass(eq=False)
class Connection:
    """What uvicorn knows of a connection."""

    cycle: Cycle = field(default_factory=Cycle)
    transport: Quiet = field(default_factory=Quiet)


def test_who_takes_an_answer_slowly_gets_all_of_it(runs):
    """The clock of a connection begins anew with each request and with all that is taken."""
    server = Server(uvicorn.Config(silent, log_config=None), application([runs["vqa"]], limits=Limits(body_seconds=10)))
    reads, stands, _, asks, unread = connections = [Connection() for _ in range(5)]
    reads.transport.left = stands.transport.left = unread.transport.left = 1000
    unread.cycle.response_complete = False
    unread.transport.close()  # given up by the gate
    server.server_state.connections = {*connections}  # pyright: ignore[reportAttributeAccessIssue]
    for second in range(100):
        reads.transport.left -= second % 9 == 0
        asks.cycle = Cycle() if second % 9 == 0 else asks.cycle
        server._hang_up(second)
        if second == 10:
            assert {each.transport.end for each in connections[:4]} == {""}
    assert [each.transport.end for each in connections] == ["", "aborted", "aborted", "", "aborted"]


@contextlib.contextmanager
def listening_server(app: Any) -> Iterator[tuple[Any, int]]:
    """A server that answers sockets, in a thread."""
    with listening("127.0.0.1", 0) as listener:
        server: Any = Server(settings(app), app)
        server.thread = threading.Thread(target=server.run, args=([listener],))
        server.thread.start()
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            server.thread.join()


def test_a_stop_does_not_wait_for_who_never_reads(runs):
    app = application([runs["vqa"]], limits=Limits(body_seconds=0.5))
    with listening_server(app) as (server, port), socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        while not any(each.transport.get_write_buffer_size() for each in [*server.server_state.connections]):
            time.sleep(0.01)
        server.handle_exit(signal.SIGTERM, None)
        server.thread.join(20)
        assert not server.thread.is_alive()


def asked(port: int, body: bytes, sockets: contextlib.ExitStack, part: int | None = None) -> socket.socket:
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


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_second_signal_ends_at_once_but_for_one_that_comes_with_the_first(runs, monkeypatch, seconds):
    monkeypatch.setattr(server_module, "AGAIN", 30.0)
    app, go, body = application([runs["vqa"]]), threading.Event(), QUESTION
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        until(lambda: server.service.compute.is_alive())
        first = Job(compute=lambda given: [go.wait(60)], given=None)
        server.service.compute.submit(first)
        until(first.result.running)
        waiting = [asked(port, body, sockets) for _ in range(3)]
        until(lambda: len(server.service.compute) == 3)
        server.handle_exit(signal.SIGINT, None)
        server._stops_since -= seconds
        server.handle_exit(signal.SIGTERM, None)
        if not seconds:
            until(lambda: "503" in got(port, "/v1/runs"))
            go.set()
        answers = [read_all(connection) for connection in waiting]
        server.thread.join(60)
        go.set()
    assert {answer.split()[1] for answer in answers} == ({"503"} if seconds else {"200"})
    assert all("retry-after: 5" in answer for answer in answers) == bool(seconds)


@pytest.mark.parametrize("hangs", ["a body", "decoding", "writing", "telling"])
def test_a_second_signal_ends_whatever_is_waited_for(runs, index, monkeypatch, hangs, caplog):
    """With 503, no traceback, and no thread that the process would wait for."""
    app, go, before = application([runs["vqa"], index.encoder], index), threading.Event(), {*threading.enumerate()}
    service = app.state.service
    monkeypatch.setattr(service, "about_index", lambda _: go.wait(60))
    monkeypatch.setattr(service.calls["vqa"]["answer"], "prepare" if hangs == "decoding" else "show", lambda _: go.wait(60))
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        if hangs == "telling":
            waits = sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            waits.sendall(b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        else:
            waits = asked(port, QUESTION, sockets, 9 if hangs == "a body" else None)
        until(lambda: server.traffic.active)
        time.sleep(0.5)
        server.handle_exit(signal.SIGTERM, None)
        server._stops_since -= 60
        server.handle_exit(signal.SIGTERM, None)
        answer = read_all(waits)
        started = {*threading.enumerate()} - before - {server.thread}
        server.thread.join(20)
        assert not server.thread.is_alive()
    assert all(thread.daemon for thread in started)
    go.set()
    assert (answer.split()[1], "retry-after: 5" in answer) == ("503", True)
    assert "Traceback" not in caplog.text


def test_what_is_hung_up_on_is_not_computed(runs):
    app, go, body = application([runs["vqa"]]), threading.Event(), QUESTION
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        until(lambda: server.service.compute.is_alive())
        server.service.compute.submit(Job(compute=lambda given: [go.wait(60)], given=None))
        waiting = [asked(port, body, sockets) for _ in range(3)]
        until(lambda: len(server.service.compute) == 3)
        waiting[1].close()
        until(lambda: len(server.service.compute) == 2)
        assert server.traffic.accepted == 2
        go.set()


def test_what_is_hung_up_on_is_not_decoded(runs, monkeypatch):
    app, go, decoded = application([runs["vqa"]]), threading.Event(), []
    with contextlib.ExitStack() as sockets, listening_server(app) as (server, port):
        served = server.service.calls["vqa"]["answer"]
        prepare = served.prepare
        monkeypatch.setattr(served, "prepare", lambda body: decoded.append(body) or prepare(body))
        for _ in range(DECODERS):
            server.service.decoders.submit(Job(compute=lambda given: [go.wait(60)], given=None))
        goes, stays = (asked(port, QUESTION, sockets) for _ in range(2))
        until(lambda: server.traffic.accepted == 2)
        goes.close()
        until(lambda: server.traffic.accepted == 1)
        assert server.traffic.held == len(QUESTION)
        go.set()
        assert read_all(stays).split()[1] == "200"
    assert decoded == [QUESTION]


def test_who_sends_too_much_is_told_so(runs):
    """Though the server does not want the rest: a connection that ends before all is read is reset, and its answer is lost."""
    body = b" " * (8 * MB)
    for path, status in ((VQA, "413"), ("/v1/runs", "405")):
        with contextlib.ExitStack() as sockets:
            _, port = sockets.enter_context(listening_server(application([runs["vqa"]], limits=Limits(body_mb=1))))
            connection = sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = read_all(connection)
        assert answer.split()[1] == status


def test_connections_that_are_too_many_are_told_so(runs, monkeypatch):
    monkeypatch.setattr(server_module, "most_connections", lambda: 2)
    with contextlib.ExitStack() as sockets, listening_server(application([runs["vqa"]])) as (_, port):
        two = [sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(2)]
        for connection in two:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        refused = got(port, "/healthz")
    assert (refused.split()[1], "retry-after: 1" in refused) == ("503", True)
    assert json.loads(refused.partition("\r\n\r\n")[2])["error"].startswith("the server has as many connections as it can")


def test_connections_leave_files_for_the_rest(monkeypatch):
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.__setitem__(slice(None), given))
    assert (server_module.most_connections(), limits) == (2048, [4096, 4096])
    limits[:] = 256, 600
    assert (server_module.most_connections(), limits) == (500, [600, 600])


def test_sigterm_loses_no_request_that_has_begun(eve_process, folder, index):
    """Ten bodies are half there when the signal comes: their other halves are read, and all are answered."""
    with contextlib.ExitStack() as sockets, eve_process("serve", "--index", folder / "index", "--port", "0") as process:
        try:
            port = int(re.findall(r":(\d+) ", process.stdout.readline())[0])
            body = json.dumps({"query": "a red circle"}).encode()
            head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            begun = [sockets.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(10)]
            for connection in begun:
                connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:9])
            while f"eve_held_bytes {90.0}" not in got(port, "/metrics"):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            while "503" not in got(port, "/healthz"):
                time.sleep(0.02)
            refused = got(port, "/v1/runs")
            for connection in begun:
                connection.sendall(body[9:])
            answers = [read_all(connection) for connection in begun]
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "503" in refused.splitlines()[0]
    assert "retry-after: 5" in refused
    assert [answer.splitlines()[0] for answer in answers] == ["HTTP/1.1 200 OK"] * 10
    assert all('"hits":[{' in answer for answer in answers)


def got(port: int, path: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return read_all(connection)


def read_all(connection: socket.socket) -> str:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data.decode()
