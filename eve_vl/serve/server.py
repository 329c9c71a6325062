"""The process: listens, and stops without losing what it has begun."""

import asyncio
import contextlib
import math
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from eve_vl.errors import UserError
from eve_vl.talk import say

BACKLOG = 2048
MOST_AROUND = 256 * 1024  # bytes of a request that are not its body: address, headers, marks of chunks, trailers
# Each small operation of a batch gives Python's lock away and wants it back: from threads that decode and answer it would get
# it after 5 ms, hundreds of times a batch (LOG.md).
SWITCH_INTERVAL = 1e-4  # seconds


class Protocol(HttpToolsProtocol):
    """HTTP of a connection; uvicorn would keep headers as long as a client sends them, before anybody asks for its token."""

    _around = 0

    def data_received(self, data: bytes) -> None:
        """Read on, or close the connection if what is around a body is too long."""
        self._around += len(data)
        super().data_received(data)
        if self._around > MOST_AROUND and not self.transport.is_closing():
            self.send_400_response(f"More than {MOST_AROUND} bytes of headers.")

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._around -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take a request's end."""
        self._around = 0
        super().on_message_complete()


class Server(uvicorn.Server):
    """Uvicorn, which at a first signal still answers what has come, and refuses what comes; at a second one it ends at once.

    It waits for the head of a request, and for who reads an answer, as long as the client likes; here either may take as long
    as a body.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI):
        super().__init__(config)
        self.traffic = app.state.service.traffic
        self._since: dict[Any, tuple[Any, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if self.traffic.is_stopping:
            self.should_exit = self.force_exit = True
        self.traffic.is_stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Exit when all is answered."""
        if self.traffic.is_stopping and not self.traffic.active:
            self.should_exit = True
        if counter % 10 == 0:
            self._hang_up(time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the ends of answers, and give up those that nobody takes."""
        await super().shutdown(sockets)
        for connection in [*self.server_state.connections]:
            connection.transport.abort()
        await asyncio.sleep(0)

    def _hang_up(self, now: float) -> None:
        """Close connections of which for too long no request has begun and nothing of an answer was taken."""
        waits: dict[Any, tuple[Any, float]] = {}
        connections: list[Any] = [*self.server_state.connections]
        for connection in connections:
            last, transport = connection.cycle, connection.transport  # the request that came last
            if last is None or last.response_complete or transport.is_closing():
                left = transport.get_write_buffer_size()
                known, since = self._since.get(connection, (None, now))
                waits[connection] = (last, left), since if known == (last, left) else now
                if now - waits[connection][1] > self.traffic.limits.body_seconds:
                    transport.abort() if left else transport.close()  # what the kernel still has is not lost by closing
        self._since = waits


def serve(app: FastAPI, host: str, port: int, *, tell: Callable[[str], object] = lambda _: None) -> None:
    """Answer requests until a signal comes. tell: is told the address when it can be asked. Raises UserError if the port cannot
    be had."""
    with listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        sys.setswitchinterval(SWITCH_INTERVAL)
        address = f"http://{name}:{listener.getsockname()[1]}"
        say(f"serving on {address} (Ctrl-C stops)")
        tell(address)
        Server(settings(app), app).run(sockets=[listener])


def settings(app: FastAPI) -> uvicorn.Config:
    """Return what uvicorn is told."""
    return uvicorn.Config(
        app,
        http=Protocol,
        limit_concurrency=BACKLOG,  # beyond, 503 at once
        timeout_graceful_shutdown=math.ceil(app.state.service.limits.body_seconds),  # for the ends of answers
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
    )


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that has the port. Raises UserError."""
    if not 0 <= port < 2**16:  # getaddrinfo would take what is left of it after division
        raise UserError(f"--port {port}: is no port, expected 0 to {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as if_it_fails:
            listener = if_it_fails.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)  # whoever reads the line that comes next may connect
            if_it_fails.pop_all()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({reason}); --port 0 takes one that is free"
        ) from None
    return listener
