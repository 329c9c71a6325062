"""What every request passes: whose it is, whether there is room for it, how long it may take, and what is counted of it."""

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eve_vl.serve.limits import CLOSE, MB, Limits, RequestRefusedError, busy

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LINGER = 2.0  # seconds to read on after a refusal: the network takes it back if a connection ends before all is read
PIECE = 64 * 1024  # bytes of an answer that are sent at a time


class Counts:
    """What `/metrics` tells."""

    def __init__(self, traffic: "RequestTracker"):
        self.registry = CollectorRegistry()
        more: Any = {"registry": self.registry, "namespace": "eve"}
        self.requests = Counter("requests", "Requests answered.", ["call", "status"], **more)
        self.seconds = Histogram("request_seconds", "From a request to its answer.", ["call"], buckets=SECONDS, **more)
        self.rows = Histogram("batch_rows", "Images or texts computed at a time.", buckets=ROWS, **more)
        self.computing = Histogram("batch_seconds", "Time to compute a batch.", buckets=SECONDS, **more)
        self.queue = Gauge("queue_length", "Jobs that wait to be computed.", **more)
        Gauge("requests_accepted", "Requests that wait or are worked on.", **more).set_function(lambda: traffic.accepted)
        Gauge("held_bytes", "Bytes of bodies, decoded images and answers.", **more).set_function(lambda: traffic.held)
        ProcessCollector(registry=self.registry)

    def batch(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.rows.observe(rows)
        self.computing.observe(seconds)


class RequestTracker:
    """How many requests there are, and how many bytes they hold."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.active = 0
        """Requests whose answer is not sent yet."""
        self.accepted = 0
        """Requests whose body is there."""
        self.held = 0
        self.is_stopping = False
        self.refusal: RequestRefusedError | None = None
        self.unanswered: set[asyncio.Task[Any]] = set()
        """Requests whose answer has not begun."""
        self.counts = Counts(self)

    def refuse(self, error: RequestRefusedError) -> None:
        """Answer all requests with an error, whatever they wait for, but for those whose answer has begun."""
        self.refusal = error
        for task in self.unanswered:
            task.cancel()


class Reservation:
    """What one request has of the room that there is, until its answer is sent."""

    def __init__(self, traffic: RequestTracker):
        self.traffic, self.size, self.is_accepted = traffic, 0, False

    def resize(self, size: int) -> None:
        """Take room for so many bytes instead of those before. Raises RefusedError if there is none."""
        traffic, more = self.traffic, size - self.size
        if more > 0 and traffic.held + more > traffic.limits.memory_mb * MB:
            raise busy("too many large requests at a time")
        self.size, traffic.held = size, traffic.held + more

    def accept(self) -> None:
        """Take a place in the queue. Raises RefusedError if it is full."""
        if self.traffic.accepted >= self.traffic.limits.queue:
            raise busy(f"{self.traffic.accepted} requests wait already")
        self.traffic.accepted += 1
        self.is_accepted = True

    def release(self) -> None:
        """Give back what it has."""
        self.traffic.held -= self.size
        self.traffic.accepted -= self.is_accepted

    async def body(self, chunks: AsyncIterable[bytes], announced: str | None) -> bytes:
        """Read a body. Raises RefusedError if it is too large or too slow."""
        limits, parts, size = self.traffic.limits, [], 0
        too_large = RequestRefusedError(413, f"the body has more than {limits.body_mb} MB; send fewer or smaller images", CLOSE)
        if announced is not None and announced.isdecimal() and int(announced[:20]) > limits.body_mb * MB:
            raise too_large
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limits.body_mb * MB:
                        raise too_large
                    self.resize(size)
                    parts.append(chunk)
        except TimeoutError:
            message = f"the body was not there after {limits.body_seconds:g} s; send it faster, or smaller images"
            raise RequestRefusedError(408, message, CLOSE) from None
        return b"".join(parts)


class SlowClientError(Exception):
    """The client does not take its answer."""


def in_pieces(message: Message) -> Iterator[Message]:
    """Yield a message as it is, or a long body piece by piece and its end alone: each is sent once nearly all before it is
    gone, so that nobody's answer is done before it is taken."""
    body = message.get("body", b"")
    if len(body) > PIECE:
        for start in range(0, len(body), PIECE):
            yield {**message, "body": body[start : start + PIECE], "more_body": True}
        message = {**message, "body": b""}
    yield message


class AdmissionMiddleware:
    """Middleware: refuses what is not for this server, counts the rest, and does not wait forever for those who read slowly."""

    def __init__(self, app: ASGIApp, traffic: RequestTracker, token: str | None, open_paths: Iterable[str]):
        self.app, self.traffic, self.token = app, traffic, token
        self.open_paths = {"/healthz", *open_paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        traffic, started, status, is_read = self.traffic, time.perf_counter(), 500, False
        hold, task = Reservation(traffic), asyncio.current_task()
        assert task is not None
        scope["hold"] = hold

        async def watched() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def timed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            traffic.unanswered.discard(task)
            is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_end and status >= 400 and not is_read:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        await send({**message, "more_body": True})
                        while not is_read:
                            await watched()
                message = {**message, "body": b""}
            for piece in in_pieces(message):
                try:
                    async with asyncio.timeout(traffic.limits.body_seconds):
                        await send(piece)
                except TimeoutError:
                    raise SlowClientError from None

        traffic.active += 1
        traffic.unanswered.add(task)
        try:
            await self._answered(task, scope, watched, timed)
        except (SlowClientError, asyncio.CancelledError):  # the connection is closed when nothing follows
            status = 408
        finally:
            traffic.active -= 1
            traffic.unanswered.discard(task)
            hold.release()
            call = getattr(scope.get("route"), "path", "other")
            traffic.counts.requests.labels(call, status).inc()
            traffic.counts.seconds.labels(call).observe(time.perf_counter() - started)

    async def _answered(self, task: "asyncio.Task[Any]", scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the refusal of all if that comes before."""
        try:
            await (self._refused(scope) or self.app)(scope, receive, send)
        except asyncio.CancelledError:
            refusal = self.traffic.refusal
            if refusal is None or task not in self.traffic.unanswered:
                raise
            task.uncancel()
            await answer_of(refusal)(scope, receive, send)

    def _refused(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if self.token is None:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_loopback(name.strip("[]").lower()):  # a page of another site whose name was made to mean this machine
                return answer_of(RequestRefusedError(400, "this server is called localhost, not as the request's host says"))
        elif scope["path"] not in self.open_paths:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(self.token.encode(), given.strip()):
                message = "this server needs its token: send the header Authorization: Bearer TOKEN"
                return answer_of(RequestRefusedError(401, message, {"www-authenticate": "Bearer"}))
        if self.traffic.is_stopping and scope["path"] != "/healthz":
            refusal = busy("the server stops", seconds=5)
            return answer_of(RequestRefusedError(503, refusal.message, {**refusal.headers, **CLOSE}))
        return None


def is_loopback(host: str) -> bool:
    """Whether a host, by name or by address, is this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def answer_of(refusal: RequestRefusedError) -> JSONResponse:
    """Return the answer that a refusal is."""
    return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)
