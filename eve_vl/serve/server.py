"""The process: listens, and stops without losing what it has begun."""

import asyncio
import contextlib
import math
import resource
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from eve_vl.serve.admission import answer_of
from eve_vl.serve.limits import busy
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

BACKLOG = 2048
MOST_AROUND = 256 * 1024  # bytes of a request that are not its body: address, headers, marks of chunks, trailers
# Each small operation of a batch gives Python's lock away and wants it back: from threads that decode and answer it would get
# it after 5 ms, hundreds of times a batch (LOG.md).
SWITCH_INTERVAL = 1e-4  # seconds
AGAIN = 1.0  # seconds after which a second signal counts, and which its answers have
NOFILE_ELSE = 100  # files that are open beside connections


def last_words(answer: Response) -> bytes:
    """Return an answer as it goes over a connection that ends with it."""
    head = [b"HTTP/1.1 503 Service Unavailable", *(b": ".join(each) for each in answer.raw_headers), b"connection: close"]
    return b"\r\n".join([*head, b"", bytes(answer.body)])


FULL = last_words(answer_of(busy("the server has as many connections as it can take")))


class Protocol(HttpToolsProtocol):
    """HTTP of a connection; uvicorn would keep headers as long as a client sends them, before anybody asks for its token."""

    _around = 0
    _is_surplus = False

    def __init__(self, config: uvicorn.Config, *args: Any, **more: Any):
        super().__init__(config, *args, **more)
        self.limit_concurrency = None  # uvicorn's own refusal does not say when to come again
        self._most = config.limit_concurrency or BACKLOG

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a connection, or one more than there may be, to tell it so once its request begins."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._is_surplus = True
            self.loop.call_later(1, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Read on, or close the connection if it is one too many or if what is around a body is too long."""
        if self._is_surplus:
            self.transport.write(FULL)
            self.transport.close()
            return
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
    """Uvicorn, which at a first signal still answers what has come, and refuses what comes; at a second one, a second
    later, it answers all with 503 and ends.

    It waits for the head of a request, and for who reads an answer, as long as the client likes; here either may take as long
    as a body.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI):
        super().__init__(config)
        self.service = app.state.service
        self.traffic = self.service.traffic
        self._stops_since = math.inf
        self._ends_at: float | None = None
        self._since: dict[Any, tuple[Any, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or to end. A terminal and a parent may send the same signal within milliseconds."""
        now = time.monotonic()
        if not self.traffic.is_stopping:
            self.traffic.is_stopping, self._stops_since = True, now
        elif now - self._stops_since >= AGAIN:
            self._ends_at = now + AGAIN
            self.force_exit = self.should_exit  # when all is answered but not taken

    async def on_tick(self, counter: int) -> bool:
        """Exit when all is answered: after a second signal with 503."""
        now = time.monotonic()
        if self._ends_at is not None:
            self.traffic.refuse(busy("the server stops", seconds=5))
            self.should_exit = self.force_exit = not self.traffic.active or now > self._ends_at
        elif self.traffic.is_stopping and not self.traffic.active:
            self.should_exit = True
        if counter % 10 == 0:
            self._hang_up(now)
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
                state = last, transport.get_write_buffer_size()
                known, since = self._since.get(connection, (state, now))
                waits[connection] = state, since if known == state else now
                if now - waits[connection][1] > self.traffic.limits.body_seconds:
                    transport.abort()  # what the kernel has already is sent all the same
        self._since = waits


def serve(app: FastAPI, host: str, port: int, *, tell: Callable[[str], object] = lambda _: None) -> None:
    """Answer requests until a signal comes. tell: is told the address when it can be asked. Raises UserError if the port cannot
    be had."""
    with listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        sys.setswitchinterval(SWITCH_INTERVAL)
        address = f"http://{name}:{listener.getsockname()[1]}"
        print_line(f"serving on {address} (Ctrl-C stops)")
        tell(address)
        Server(settings(app), app).run(sockets=[listener])


def settings(app: FastAPI) -> uvicorn.Config:
    """Return what uvicorn is told."""
    return uvicorn.Config(
        app,
        http=Protocol,
        limit_concurrency=most_connections(),
        timeout_graceful_shutdown=math.ceil(app.state.service.limits.body_seconds),  # for the ends of answers
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
    )


def most_connections() -> int:
    """Return how many connections there may be, of as many open files as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes no limit that is none
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return BACKLOG if files == resource.RLIM_INFINITY else max(1, min(BACKLOG, files - NOFILE_ELSE))


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
