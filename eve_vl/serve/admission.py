"""Admission: requests without the token or for another host are refused, and all are counted.

Slow clients, connections without a request and long headers are left to uvicorn's limits and to a
reverse proxy.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eve_vl.serve.metrics import Metrics
from eve_vl.serve.refusals import RequestRefusedError


class AdmissionMiddleware:
    """Refuses requests without the token or for another host, and counts all."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        body_seconds: float,
        token: str | None,
        open_paths: Iterable[str],
    ):
        """body_seconds: that a client has to send its body, and again after a refusal.

        open_paths: need no token.
        """
        self.app = app
        self.metrics = metrics
        self.body_seconds = body_seconds
        self.token = token
        self.open_paths = {"/healthz", *open_paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # the page's files are small, and errors in a range would be answered in plain text
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        started = time.perf_counter()
        status = 500
        # nothing is awaited of a client that waits for an answer before it sends a body
        is_whole = b"expect" in dict(scope["headers"])
        clock = asyncio.get_running_loop().time
        deadline = clock() + self.body_seconds

        async def receive_and_watch() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        async def discard_body(deadline: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    while not is_whole:
                        await receive_and_watch()

        async def send_after_body(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await discard_body(deadline)
            is_end = message["type"] == "http.response.body" and not message.get("more_body")
            if is_end and not is_whole:
                # the end closes the connection, and a client that still sends would lose the answer
                await send({**message, "more_body": True})
                await discard_body(clock() + self.body_seconds)
                message = {"type": "http.response.body"}
            await send(message)

        refusal = self._refusal(scope)
        app = self.app if refusal is None else refusal.response()
        try:
            await app(scope, receive_and_watch, send_after_body)
        finally:
            call = getattr(scope.get("route"), "path", "other")
            self.metrics.count_request(call, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> RequestRefusedError | None:
        headers = dict(scope["headers"])
        if self.token is None:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if not is_loopback(name.strip("[]").lower()):  # DNS rebinding by a page of another site
                message = f"host {name}: this server answers as localhost only"
                return RequestRefusedError(400, message)
            return None
        if scope["path"] in self.open_paths:
            return None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        is_right = hmac.compare_digest(self.token.encode(), token.strip())
        if scheme.lower() == b"bearer" and is_right:
            return None
        message = "this server needs its token: send the header Authorization: Bearer TOKEN"
        return RequestRefusedError(401, message, {"www-authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
