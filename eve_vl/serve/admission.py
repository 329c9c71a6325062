"""Admission of requests, and counters of `/metrics`.

Requests are admitted by token, host, size and room.

Slow clients, connections without a request and long headers are left to uvicorn's limits and to a reverse proxy.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import Iterable
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eve_vl.serve import MB, Limits, RequestRefusedError, busy

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Room:
    """Requests in the server, and the bytes that they hold."""

    def __init__(self, limits: Limits):
        self.limits, self.requests, self.held = limits, 0, 0


class Reservation:
    """Place of one request in the queue, and its bytes, until the block ends."""

    def __init__(self, room: Room):
        self.room, self.size = room, 0

    def __enter__(self) -> Self:
        if self.room.requests >= self.room.limits.queue:
            raise busy(f"{self.room.requests} requests wait already")
        self.room.requests += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.room.requests -= 1
        self.room.held -= self.size

    def resize(self, size: int) -> None:
        """Reserve `size` bytes instead of those before.

        Raises RequestRefusedError if there is no room.
        """
        if size > self.size and self.room.held + size - self.size > self.room.limits.memory_mb * MB:
            raise busy("too many large requests at a time")
        self.size, self.room.held = size, self.room.held + size - self.size

    async def body(self, request: Request) -> bytes:
        """Return the body of a request.

        Raises RequestRefusedError if it is too large or too slow.
        """
        limits, parts, size = self.room.limits, [], 0
        status, problem = (
            408,
            f"was incomplete after {limits.body_seconds:g} s; send it faster, or smaller images",
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.body_seconds):
                async for (
                    chunk
                ) in request.stream():  # to the end: to close before would lose the answer
                    size += len(chunk)
                    if size > limits.body_mb * MB:
                        status, problem = (
                            413,
                            f"has more than {limits.body_mb} MB; send fewer or smaller images",
                        )
                    else:
                        self.resize(size)
                        parts.append(chunk)
                if status != 413:
                    return b"".join(parts)
        raise RequestRefusedError(status, f"the body {problem}", {"connection": "close"})


class Counts:
    """Counters of `/metrics`."""

    def __init__(self, room: Room):
        self.registry, self.limits = CollectorRegistry(), room.limits
        more: Any = {"registry": self.registry, "namespace": "eve"}
        self.requests = Counter("requests", "Requests answered.", ["call", "status"], **more)
        self.seconds = Histogram(
            "request_seconds",
            "Seconds from a request to its answer.",
            ["call"],
            buckets=SECONDS,
            **more,
        )
        self.rows = Histogram("batch_rows", "Images or texts of a batch.", buckets=ROWS, **more)
        self.computing = Histogram(
            "batch_seconds", "Seconds to compute a batch.", buckets=SECONDS, **more
        )
        self.queue = Gauge("queue_length", "Jobs that wait to be computed.", **more)
        Gauge("requests_accepted", "Requests that wait or are computed.", **more).set_function(
            lambda: room.requests
        )
        Gauge("held_bytes", "Bytes of bodies, decoded images and results.", **more).set_function(
            lambda: room.held
        )
        ProcessCollector(registry=self.registry)

    def batch(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.rows.observe(rows)
        self.computing.observe(seconds)


class AdmissionMiddleware:
    """Refuses requests without the token or for another host, and counts all."""

    def __init__(self, app: ASGIApp, counts: Counts, token: str | None, open_paths: Iterable[str]):
        self.app, self.counts, self.token = app, counts, token
        self.open_paths = {"/healthz", *open_paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500
        # the page's files are small, and errors in a range would be answered in plain text
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]

        # nothing is awaited of a client that waits for an answer before it sends a body
        is_whole = b"expect" in dict(scope["headers"])
        until = asyncio.get_running_loop().time() + self.counts.limits.body_seconds

        async def received() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while not is_whole:  # to close before the end of a body would lose the answer
                        await received()
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, received, watched)
        finally:
            call = getattr(scope.get("route"), "path", "other")
            self.counts.requests.labels(call, status).inc()
            self.counts.seconds.labels(call).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if self.token is None:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_loopback(name.strip("[]").lower()):  # DNS rebinding by a page of another site
                return answer_of(
                    RequestRefusedError(400, f"host {name}: this server answers as localhost only")
                )
        elif scope["path"] not in self.open_paths:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(
                self.token.encode(), given.strip()
            ):
                message = "this server needs its token: send the header Authorization: Bearer TOKEN"
                return answer_of(RequestRefusedError(401, message, {"www-authenticate": "Bearer"}))
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def answer_of(refusal: RequestRefusedError) -> JSONResponse:
    """Return the response of a refusal."""
    return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)
